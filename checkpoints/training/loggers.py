"""What a training says about each epoch: a CSV always, and W&B or TensorBoard where asked."""

from __future__ import annotations

import csv
import io
import os
import queue
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Literal

from ensemble.events import Listener, Notice
from ensemble.files import write_atomic

Logger = Literal["wandb", "tensorboard"]
_AT_THE_END = 4  # times as patient, as there may be much left to send


@dataclass(frozen=True, slots=True)
class LogRow:
    """One epoch: the mean loss of its batches, the highest learning rate of its last step, the held-out scores."""

    epoch: int
    loss: float
    learning_rate: float
    macro_f1: float
    accuracy: float
    images_per_second: float


def write_log(path: Path, rows: Sequence[LogRow]) -> Path:
    """A line an epoch, under the names of `LogRow`.

    Raises:
        FileError: E701 or E702 when it cannot be written.
    """
    sink = io.StringIO()
    writer = csv.DictWriter(sink, [field.name for field in fields(LogRow)], lineterminator="\n")
    writer.writeheader()
    writer.writerows(asdict(row) for row in rows)
    return write_atomic(path, sink.getvalue().encode())


class Remote:
    """W&B or TensorBoard, or nobody; a logger that fails is given up with a notice, and the training goes on.

    So is one that does not answer within ``patience`` seconds, or four times as many at the end. W&B without a key in
    ``WANDB_API_KEY`` keeps its files to itself, in ``folder``.
    """

    def __init__(
        self,
        kind: Logger | None,
        folder: Path,
        name: str,
        settings: Mapping[str, Any],
        *,
        listener: Listener,
        patience: float = 15.0,
    ) -> None:
        self._kind, self._listener, self._patience = kind, listener, patience
        self._run: Any = None
        if kind is not None:
            self._run = self._try(lambda: self._start(folder, name, settings))

    def log(self, row: LogRow) -> None:
        """Pass an epoch on."""
        if run := self._run:
            self._try(lambda: self._send(run, row))

    def close(self) -> None:
        """Say that there are no more."""
        if run := self._run:
            self._try(run.finish if self._kind == "wandb" else run.close, patience=_AT_THE_END)

    def _start(self, folder: Path, name: str, settings: Mapping[str, Any]) -> object:
        if self._kind == "wandb":
            import wandb

            mode = None if os.environ.get("WANDB_API_KEY") else "offline"
            return wandb.init(project="ens", name=name, dir=str(folder), config=dict(settings), mode=mode)
        from torch.utils.tensorboard import SummaryWriter

        return SummaryWriter(str(folder / "tensorboard" / name))

    def _send(self, run: Any, row: LogRow) -> None:
        values = {key: value for key, value in asdict(row).items() if key != "epoch"}
        if self._kind == "wandb":
            run.log(values, step=row.epoch)
            return
        for key, value in values.items():
            run.add_scalar(key, value, row.epoch)

    def _try(self, action: Callable[[], object], *, patience: float = 1) -> object:
        try:
            return _within(patience * self._patience, action)
        except Exception as err:  # noqa: BLE001 - a logger can fail in any way, and none is worth a training
            self._run = None
            reason = str(err).partition("\n")[0] or type(err).__name__
            self._listener.notice(Notice("W443", f"{self._kind} is given up, the CSV goes on: {reason}"))
            return None


def _within(seconds: float, action: Callable[[], object]) -> object:
    """What an action returns.

    Raises:
        TimeoutError: when it does not return in time; it is left alone, and does not keep the process from ending.
        Exception: whatever it raises.
    """
    answers: queue.SimpleQueue[tuple[object, BaseException | None]] = queue.SimpleQueue()

    def run() -> None:
        try:
            answers.put((action(), None))
        except BaseException as err:  # noqa: BLE001 - raised again by who waits
            answers.put((None, err))

    threading.Thread(target=run, daemon=True).start()
    try:
        found, failed = answers.get(timeout=seconds)
    except queue.Empty:
        raise TimeoutError(f"no answer in {seconds:g} seconds") from None
    if failed is not None:
        raise failed
    return found
