"""Train one member over its folds, and write each fold's predictions for the people it never saw."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from checkpoints.data.mask_contest import Row
from checkpoints.loading.open import build_model, open_checkpoint
from checkpoints.training.batches import predict_pixels
from checkpoints.training.distributed import SINGLE_PROCESS, DistributedContext
from checkpoints.training.job import JobImages, TrainJob, load_job_images
from checkpoints.training.train_fold import TrainedFold, train_fold
from ensemble.errors import ModelError, OptionError
from ensemble.events import SILENT, Listener
from ensemble.files import locked, remove, write_atomic
from ensemble.images.views import parse_views
from ensemble.metrics import confusion_matrix, macro_f1
from ensemble.predictions.dataset import (
    COMPLETE,
    Part,
    part_path,
    read_part,
    read_predictions,
    write_complete,
    write_part,
)

OOF = "oof"
_SETTINGS = "settings.json"


@dataclass(frozen=True, slots=True)
class TrainedMember:
    """The folds trained by this call, those that were finished before, and the folder of out-of-fold predictions.

    ``oof`` and ``macro_f1``, that of the identity view on all people, are None while folds are missing.
    """

    folder: Path
    trained: tuple[TrainedFold, ...]
    kept: tuple[int, ...]
    oof: Path | None
    macro_f1: float | None

    def as_dict(self) -> dict[str, Any]:
        """Return JSON-ready values."""
        return {
            "folder": str(self.folder),
            "folds": [{"path": str(t.path), "macro_f1": t.macro_f1, "epoch": t.epoch} for t in self.trained],
            "kept": list(self.kept),
            "oof": None if self.oof is None else str(self.oof),
            "macro_f1": self.macro_f1,
        }

    def render(self) -> str:
        """Return one line per fold, and one for the out-of-fold predictions."""
        lines = [f"{t.path}  macro F1 {t.macro_f1:.4f} in epoch {t.epoch}  {t.seconds:.0f} s" for t in self.trained]
        lines += [f"fold {fold} was already finished" for fold in self.kept]
        lines += [f"{self.oof}  out-of-fold macro F1 {self.macro_f1:.4f}"] if self.oof is not None else []
        return "\n".join(lines)


def train_member(
    job: TrainJob,
    *,
    only_fold: int | None = None,
    fresh: bool = False,
    distributed: DistributedContext = SINGLE_PROCESS,
    listener: Listener = SILENT,
) -> TrainedMember:
    """Train ``<member>/fold<k>.safetensors`` for each fold, and write the predictions ``<member>/oof/*``.

    Finished folds are kept, and an interrupted one resumes after its last epoch, unless ``fresh``. Each folder in
    ``oof`` has one fold's logits, in the views identity and hflip, of its hold-out images; ``truth.csv`` has their
    classes. Every process of a ``distributed`` training calls this function; the main one writes the files, and it
    alone returns ``oof`` and ``macro_f1``.

    Raises:
        EnsError: as `train_fold` does.
        OptionError: E204 when the batch size is not a multiple of the number of processes.
        ModelError: E442 when the folder holds a training with other settings; E446 when the processes do not see the
            same data or folder, E447 when one of them has ended.
    """
    processes = distributed.world_size
    if job.settings.batch % processes:
        raise OptionError("E204", f"--batch must be a multiple of the {processes} processes, got {job.settings.batch}")
    with locked(job.folder) if distributed.is_main else nullcontext(), distributed.detecting_lost_processes():
        fingerprint = job.fingerprint()
        wanted = range(job.folds.count) if only_fold is None else (only_fold,)
        kept: tuple[int, ...] = ()
        if distributed.is_main:
            _require_same_job(job, fingerprint, fresh=fresh)
            _write_truth(job.folder / "truth.csv", job.rows)
            kept = tuple(fold for fold in wanted if _is_finished(job, fold, fingerprint))
        distributed.require_same(fingerprint, "images, labels, folds and settings")
        kept = distributed.broadcast(kept)
        pending = [fold for fold in wanted if fold not in kept]
        trained: list[TrainedFold] = []
        if pending:
            images = load_job_images(job, listener=listener)
            for fold in pending:
                trained.append(
                    train_fold(job, fold, images, resumable=True, distributed=distributed, listener=listener)
                )
                if distributed.is_main:
                    _write_holdout(job, trained[-1], images, fingerprint, distributed.device)
                    remove(job.state_path(fold))
        if not distributed.is_main or not all(_is_finished(job, k, fingerprint) for k in range(job.folds.count)):
            return TrainedMember(job.folder, tuple(trained), kept, None, None)
        return TrainedMember(job.folder, tuple(trained), kept, job.folder / OOF, _score(job))


def _write_truth(path: Path, rows: Sequence[Row]) -> None:
    """Write the ground truth of the out-of-fold predictions, for ``--truth`` of `ens blend` and `ens evaluate`."""
    sink = io.StringIO()
    writer = csv.writer(sink, lineterminator="\n")
    writer.writerow(("ImageID", "ans", "person"))
    writer.writerows((row.id, row.label, row.person) for row in rows)
    write_atomic(path, sink.getvalue().encode())


def _require_same_job(job: TrainJob, fingerprint: str, *, fresh: bool) -> None:
    path = job.folder / _SETTINGS
    if path.exists() and not fresh:
        if path.read_text(encoding="utf-8") != fingerprint:
            message = f"{job.folder} holds a training with other settings, images or folds"
            raise ModelError("E442", message, path=job.folder)
        return
    for fold in range(job.folds.count):
        remove(_holdout_folder(job, fold) / COMPLETE)
        remove(job.state_path(fold))
    write_atomic(path, fingerprint.encode())


def _holdout_folder(job: TrainJob, fold: int) -> Path:
    return job.folder / OOF / job.fold_name(fold)


def _is_finished(job: TrainJob, fold: int, fingerprint: str) -> bool:
    """Check for weights and complete predictions; these are completed after the weights have been written."""
    holdout = _holdout_folder(job, fold)
    if not (job.folder / f"fold{fold}.safetensors").exists() or not (holdout / COMPLETE).exists():
        return False
    return read_part(part_path(holdout, 0)).origin == fingerprint


def _write_holdout(job: TrainJob, trained: TrainedFold, images: JobImages, fingerprint: str, device: str) -> None:
    """Write the fold's logits of its hold-out images, in the views identity and hflip."""
    assert trained.card.fold is not None, "a trained fold's card has its number"
    holdout = _holdout_folder(job, trained.card.fold)
    held_out = job.folds.holdout(job.rows, trained.card.fold)
    pixels = images.labeled.decoded.pixels[held_out]
    model: torch.nn.Module = build_model(open_checkpoint(trained.path)).to(device)
    views = parse_views("hflip")
    logits = {view.name: predict_pixels(model, pixels, job.settings, view=view.apply) for view in views}
    ids = tuple(row.id for row, held in zip(job.rows, held_out, strict=True) if held)
    path = part_path(holdout, 0)
    write_part(path, Part(ids, logits, fingerprint, trained.card))
    write_complete(holdout, [path], len(ids))


def _score(job: TrainJob) -> float:
    """Return the macro F1 of the identity view on all people, each image predicted by the fold that never saw it."""
    predicted: dict[str, int] = {}
    for fold in range(job.folds.count):
        part = read_predictions(_holdout_folder(job, fold))
        predicted |= dict(zip(part.ids, part.logits["identity"].argmax(axis=1).tolist(), strict=True))
    truth = np.array([row.label for row in job.rows])
    classes = np.array([predicted[row.id] for row in job.rows])
    return float(macro_f1(confusion_matrix(truth, classes, classes=len(job.settings.labels))))
