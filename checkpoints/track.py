"""What a training says about each epoch: a CSV always, and W&B or TensorBoard where asked."""

from __future__ import annotations

import csv
import io
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Literal

from ensemble.events import Listener, Notice
from ensemble.files import write_atomic

Logger = Literal["wandb", "tensorboard"]


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

    W&B without a key in ``WANDB_API_KEY`` keeps its files to itself, in ``folder``.
    """

    def __init__(
        self, kind: Logger | None, folder: Path, name: str, settings: Mapping[str, Any], *, listener: Listener
    ) -> None:
        self._kind, self._listener = kind, listener
        self._run: Any = None
        if kind is not None:
            self._try(lambda: self._start(folder, name, settings))

    def log(self, row: LogRow) -> None:
        """Pass an epoch on."""
        if self._run is not None:
            self._try(lambda: self._send(row))

    def close(self) -> None:
        """Say that there are no more."""
        if self._run is not None:
            self._try(lambda: self._run.finish() if self._kind == "wandb" else self._run.close())

    def _start(self, folder: Path, name: str, settings: Mapping[str, Any]) -> None:
        if self._kind == "wandb":
            import wandb

            mode = None if os.environ.get("WANDB_API_KEY") else "offline"
            self._run = wandb.init(project="ens", name=name, dir=str(folder), config=dict(settings), mode=mode)
        else:
            from torch.utils.tensorboard import SummaryWriter

            self._run = SummaryWriter(str(folder / "tensorboard" / name))

    def _send(self, row: LogRow) -> None:
        values = {key: value for key, value in asdict(row).items() if key != "epoch"}
        if self._kind == "wandb":
            self._run.log(values, step=row.epoch)
            return
        for key, value in values.items():
            self._run.add_scalar(key, value, row.epoch)

    def _try(self, action: Callable[[], object]) -> None:
        try:
            action()
        except Exception as err:  # noqa: BLE001 - a logger can fail in any way, and none is worth a training
            self._run = None
            reason = str(err).partition("\n")[0] or type(err).__name__
            self._listener.notice(Notice("W443", f"{self._kind} is given up, the CSV goes on: {reason}"))
