"""A training that ends after an epoch as a killed process does."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from checkpoints.data.folds import Folds
from checkpoints.data.mask_contest import Row
from checkpoints.training.job import TrainJob
from checkpoints.training.settings import TrainSettings
from checkpoints.training.train_fold import TrainedFold, train_fold
from ensemble.events import SILENT, Listener


class Killed(Exception):
    """Simulates the end of the process."""


class Killer(Listener):
    """Ends the training after an epoch, by its number."""

    def __init__(self, epoch: int = 1) -> None:
        self.epoch = epoch

    def progress(self, stage: str, done: int, total: int) -> None:
        """Raise `Killed` once the epoch is done."""
        if stage != "decode" and done == self.epoch:
            raise Killed


def fit(
    rows: Sequence[Row], folds: Folds, out: Path, settings: TrainSettings, listener: Listener = SILENT
) -> TrainedFold:
    """Train fold 1 of a member, which resumes."""
    return train_fold(TrainJob(rows, folds, "b", settings, out), 1, resumable=True, listener=listener)
