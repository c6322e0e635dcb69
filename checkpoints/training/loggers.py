"""Metrics per epoch: always a CSV file, and W&B or TensorBoard on request."""

from __future__ import annotations

import csv
import io
import os
import queue
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from ensemble.events import Listener, Notice
from ensemble.files import write_atomic

LoggerKind = Literal["wandb", "tensorboard"]
_CLOSE_FACTOR = 4  # times the timeout, as there may be much left to send


@dataclass(frozen=True, slots=True)
class LogRow:
    """One epoch: the mean loss of its batches, the highest learning rate of its last step, the hold-out scores.

    ``average_precision`` is the mean over the labels, where an image may have several.
    """

    epoch: int
    loss: float
    learning_rate: float
    macro_f1: float
    accuracy: float
    images_per_second: float
    average_precision: float | None = None

    def as_dict(self) -> dict[str, Any]:
        """Return the values by name, without those that are None."""
        return {key: value for key, value in asdict(self).items() if value is not None}


def write_log(path: Path, rows: Sequence[LogRow]) -> Path:
    """Write one line per epoch, with the values of `LogRow` as columns.

    Raises:
        FileError: E701 or E702 when it cannot be written.
    """
    sink = io.StringIO()
    writer = csv.DictWriter(sink, list(rows[0].as_dict()), lineterminator="\n")
    writer.writeheader()
    writer.writerows(row.as_dict() for row in rows)
    return write_atomic(path, sink.getvalue().encode())


class ExperimentLogger:
    """W&B, TensorBoard or neither; a logger that fails is dropped with a notice, and the training continues.

    So is one that does not respond within ``timeout`` seconds, or four times as many on closing. Without a key in
    ``WANDB_API_KEY``, W&B works offline and writes to ``folder``.
    """

    def __init__(
        self,
        kind: LoggerKind | None,
        folder: Path,
        name: str,
        settings: Mapping[str, Any],
        *,
        listener: Listener,
        timeout: float = 15.0,
    ) -> None:
        self._kind, self._listener, self._timeout = kind, listener, timeout
        self._run: Any = None
        if kind is not None:
            self._run = self._try(lambda: self._start(folder, name, settings))

    def log(self, row: LogRow) -> None:
        """Log one epoch."""
        if run := self._run:
            self._try(lambda: self._send(run, row))

    def close(self) -> None:
        """Close the logger after the last epoch."""
        if run := self._run:
            self._try(run.finish if self._kind == "wandb" else run.close, timeout_factor=_CLOSE_FACTOR)

    def _start(self, folder: Path, name: str, settings: Mapping[str, Any]) -> object:
        if self._kind == "wandb":
            import wandb

            mode = None if os.environ.get("WANDB_API_KEY") else "offline"
            return wandb.init(project="ens", name=name, dir=str(folder), config=dict(settings), mode=mode)
        from torch.utils.tensorboard import SummaryWriter

        return SummaryWriter(str(folder / "tensorboard" / name))

    def _send(self, run: Any, row: LogRow) -> None:
        values = {key: value for key, value in row.as_dict().items() if key != "epoch"}
        if self._kind == "wandb":
            run.log(values, step=row.epoch)
            return
        for key, value in values.items():
            run.add_scalar(key, value, row.epoch)

    def _try(self, action: Callable[[], object], *, timeout_factor: float = 1) -> object:
        try:
            return _run_with_timeout(timeout_factor * self._timeout, action)
        except Exception as err:  # noqa: BLE001 - a logger can fail in any way, and none may stop a training
            self._run = None
            reason = str(err).partition("\n")[0] or type(err).__name__
            self._listener.notice(Notice("W443", f"{self._kind} is disabled, the CSV log continues: {reason}"))
            return None


def _run_with_timeout(seconds: float, action: Callable[[], object]) -> object:
    """Return the result of an action.

    Raises:
        TimeoutError: when it does not return in time; it keeps running in a daemon thread.
        Exception: any exception of the action.
    """
    results: queue.SimpleQueue[tuple[object, BaseException | None]] = queue.SimpleQueue()

    def run() -> None:
        try:
            results.put((action(), None))
        except BaseException as err:  # noqa: BLE001 - raised again in the waiting thread
            results.put((None, err))

    threading.Thread(target=run, daemon=True).start()
    try:
        result, failed = results.get(timeout=seconds)
    except queue.Empty:
        raise TimeoutError(f"no response within {seconds:g} seconds") from None
    if failed is not None:
        raise failed
    return result
