"""Train one member over its folds, and write each fold's predictions for the images it never saw."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from checkpoints.data.folds import read_folds, write_folds
from checkpoints.data.truth_table import truth_table
from checkpoints.loading.open import build_model, open_checkpoint
from checkpoints.training.batches import predict_pixels
from checkpoints.training.distributed import SINGLE_PROCESS, DistributedContext
from checkpoints.training.job import JobImages, TrainJob, load_job_images, true_labels
from checkpoints.training.preflight import check_job
from checkpoints.training.scores import KEY, NAME, score_classes, score_labels
from checkpoints.training.train_fold import TrainedFold, train_fold
from ensemble.arrays import Logits
from ensemble.card import Activation
from ensemble.errors import ModelError, OptionError
from ensemble.events import SILENT, Listener
from ensemble.files import locked, remove, write_atomic
from ensemble.images.views import parse_views
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

    ``oof`` and ``score``, that of the identity view on all images, are None while folds are missing. It is the macro F1
    or, with several labels per image, the mean average precision.
    """

    folder: Path
    trained: tuple[TrainedFold, ...]
    kept: tuple[int, ...]
    oof: Path | None
    score: float | None
    activation: Activation = "softmax"

    def as_dict(self) -> dict[str, Any]:
        """Return JSON-ready values; the score is called ``macro_f1`` or ``average_precision``."""
        key = KEY[self.activation]
        return {
            "folder": str(self.folder),
            "folds": [{"path": str(t.path), key: t.score, "epoch": t.epoch} for t in self.trained],
            "kept": list(self.kept),
            "oof": None if self.oof is None else str(self.oof),
            key: self.score,
        }

    def render(self) -> str:
        """Return one line per fold, and one for the out-of-fold predictions."""
        name = NAME[self.activation]
        lines = [f"{t.path}  {name} {t.score:.4f} in epoch {t.epoch}  {t.seconds:.0f} s" for t in self.trained]
        lines += [f"fold {fold} was already finished" for fold in self.kept]
        lines += [f"{self.oof}  out-of-fold {name} {self.score:.4f}"] if self.oof is not None else []
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

    Finished folds are kept, and an interrupted one resumes where it was, unless ``fresh``. Each folder in
    ``oof`` has one fold's logits, in the views identity and hflip, of its hold-out images; ``truth.csv`` has their
    classes, or a column of 0 and 1 per label. A further fold split (`TrainJob.repeat`) has its weights in a folder of
    its own, and the rest in these. Every process of a ``distributed`` training calls this function; the main
    one writes the files, and it alone returns ``oof`` and its score.

    Raises:
        EnsError: as `check_job` and `train_fold` do; nothing is left behind by a start that `check_job` refuses.
        OptionError: E204 when the folder has other folds.
        ModelError: E442 when the folder holds a training with other settings; E446 when the processes do not see the
            same data or folder, E447 when one of them has ended.
    """
    activation = job.settings.activation
    if only_fold is not None and not 0 <= only_fold < job.folds.count:
        raise OptionError("E204", f"--only-fold must be below {job.folds.count}, got {only_fold}")
    check_job(job, distributed=distributed)
    fingerprint = job.fingerprint()
    with (
        _writing(job, fingerprint, fresh=fresh) if distributed.is_main else nullcontext(),
        distributed.detecting_lost_processes(),
    ):
        wanted = range(job.folds.count) if only_fold is None else (only_fold,)
        kept: tuple[int, ...] = ()
        if distributed.is_main:
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
                    remove(job.step_state_path(fold))
        if not distributed.is_main or not all(_is_finished(job, k, fingerprint) for k in range(job.folds.count)):
            return TrainedMember(job.folder, tuple(trained), kept, None, None, activation)
        return TrainedMember(job.folder, tuple(trained), kept, job.member_folder / OOF, _score(job), activation)


@contextmanager
def _writing(job: TrainJob, fingerprint: str, *, fresh: bool) -> Iterator[None]:
    """Hold the lock of the member's folder, and write settings, folds and truth there.

    A training that ends before its first epoch removes the settings and folds that it wrote: those of the next start
    may be others.
    """
    with locked(job.folder):
        made: list[Path] = []
        try:
            made += _keep_folds(job)
            made += _require_same_job(job, fingerprint, fresh=fresh)
            settings = job.settings
            table = truth_table(job.rows, settings.labels, settings.activation)
            write_atomic(job.member_folder / "truth.csv", table)
            yield
        except BaseException:
            if not _has_results(job.folder):
                for path in made:
                    remove(path)
            raise


def _keep_folds(job: TrainJob) -> list[Path]:
    """Write the folds that all members share if they are not there yet; return the file if it was written."""
    path = job.folds_file
    if path is None:
        return []
    if not path.exists():
        return [write_folds(path, job.folds)]
    if read_folds(path, job.rows) != job.folds:
        hint = "all members in a folder share its folds.csv: choose another folder with -o"
        raise OptionError("E204", f"{path} has other folds", hint=hint)
    return []


def _has_results(folder: Path) -> bool:
    return any(folder.glob("fold*.safetensors")) or any(folder.glob("fold*.state"))


def _require_same_job(job: TrainJob, fingerprint: str, *, fresh: bool) -> list[Path]:
    """Write the settings if the folder has no results of others; return the file if it was written."""
    path = job.folder / _SETTINGS
    if path.exists() and not fresh:
        before = path.read_text(encoding="utf-8")
        if before == fingerprint:
            return []
        if _has_results(job.folder):
            message = f"{job.folder} holds a training with other settings, images or folds"
            raise ModelError("E442", message, path=job.folder, details=_differences(before, fingerprint))
    for fold in range(job.folds.count):
        remove(_holdout_folder(job, fold) / COMPLETE)
        remove(job.state_path(fold))
        remove(job.step_state_path(fold))
    return [write_atomic(path, fingerprint.encode())]


def _differences(before: str, now: str) -> tuple[str, ...]:
    """Return one line for each setting that differs; images and folds by their hashes."""
    try:
        old, new = json.loads(before), json.loads(now)
    except ValueError:
        return ()
    if not isinstance(old, dict):
        return ()
    return tuple(
        f"{name}: {_shown(old.get(name, '(default)'))} before, now {_shown(new.get(name, '(default)'))}"
        for name in sorted(old.keys() | new.keys())
        if old.get(name) != new.get(name)
    )


def _shown(value: object) -> str:
    text = value if isinstance(value, str) else json.dumps(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _holdout_folder(job: TrainJob, fold: int) -> Path:
    return job.member_folder / OOF / job.fold_name(fold)


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
    """Return the score of the identity view on all images, each predicted by the fold that never saw it."""
    predicted: dict[str, Logits] = {}
    for fold in range(job.folds.count):
        part = read_predictions(_holdout_folder(job, fold))
        predicted |= dict(zip(part.ids, part.logits["identity"], strict=True))
    truth = true_labels(job.rows, job.settings)
    logits = np.stack([predicted[row.id] for row in job.rows])
    if job.settings.activation == "sigmoid":
        return score_labels(truth, logits).main
    return score_classes(truth, logits.argmax(axis=1), classes=len(job.settings.labels)).main
