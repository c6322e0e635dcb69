"""Train one member over its folds, and write each fold's predictions for the images it never saw."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from checkpoints.data.folds import Folds, read_folds, write_folds
from checkpoints.data.truth_table import truth_table
from checkpoints.loading.open import build_model, open_checkpoint
from checkpoints.training.average_choice import (
    KEPT,
    MEAN,
    average_weights,
    candidate_folder,
    choose_averages,
    clear_choices,
    forget_choice,
    score_folds,
    write_choices,
)
from checkpoints.training.batches import predict_pixels
from checkpoints.training.distributed import SINGLE_PROCESS, DistributedContext
from checkpoints.training.job import JobImages, TrainJob, load_job_images
from checkpoints.training.preflight import check_job
from checkpoints.training.scores import KEY, NAME
from checkpoints.training.train_fold import TrainedFold, train_fold
from ensemble.card import Activation, ModelCard
from ensemble.errors import ModelError, OptionError, cut_text
from ensemble.events import SILENT, Listener, Notice
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
            "folds": [
                {"path": str(t.path), key: t.score, "epoch": t.epoch} | ({"averaged": True} if t.is_mean else {})
                for t in self.trained
            ],
            "kept": list(self.kept),
            "oof": None if self.oof is None else str(self.oof),
            key: self.score,
        }

    def render(self, *, how: str = "") -> str:
        """Return one line per fold, and one for the out-of-fold predictions, with ``how`` these were decided."""
        name = NAME[self.activation]
        which = [f"of the mean up to epoch {t.epoch}" if t.is_mean else f"in epoch {t.epoch}" for t in self.trained]
        lines = [
            f"{t.path}  {name} {t.score:.4f} {how}  {t.seconds:.0f} s"
            for t, how in zip(self.trained, which, strict=True)
        ]
        lines += [f"fold {fold} was already finished" for fold in self.kept]
        lines += [f"{self.oof}  out-of-fold {name} {self.score:.4f}{how}"] if self.oof is not None else []
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
    wanted = choose_folds(job.folds, only_fold)
    check_job(job, distributed=distributed)
    fingerprint = job.fingerprint()
    with (
        _writing(job, fingerprint, fresh=fresh) if distributed.is_main else nullcontext(),
        distributed.detecting_lost_processes(),
    ):
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
                    stage = f"predict what {trained[-1].card.member} held out"
                    listener.progress(stage, 0, 1)
                    _write_holdout(job, trained[-1], images, fingerprint, distributed.device)
                    listener.progress(stage, 1, 1)
                    remove(job.state_path(fold))
                    remove(job.step_state_path(fold))
        if distributed.is_main:
            _mark_optimistic(job, fingerprint)
        if not distributed.is_main or not all(_is_finished(job, k, fingerprint) for k in range(job.folds.count)):
            _say_pending(job, trained, listener)
            return TrainedMember(job.folder, tuple(trained), kept, None, None, activation)
        if job.settings.swa is not None:
            trained = list(_take_means(job, fingerprint, trained, listener))
        score = score_folds(job, [_holdout_folder(job, k) for k in range(job.folds.count)])
        return TrainedMember(job.folder, tuple(trained), kept, job.member_folder / OOF, score, activation)


def choose_folds(folds: Folds, only_fold: int | None) -> Sequence[int]:
    """Return the folds to train: all, or the one that ``--only-fold`` names.

    Raises:
        OptionError: E204 when there is no fold of that number.
    """
    if only_fold is None:
        return range(folds.count)
    if not 0 <= only_fold < folds.count:
        raise OptionError("E204", f"--only-fold must be below {folds.count}, got {only_fold}")
    return (only_fold,)


def _say_pending(job: TrainJob, trained: Sequence[TrainedFold], listener: Listener) -> None:
    for one in trained:
        if one.mean_score is not None:
            scores = f"{NAME[job.settings.activation]} {one.mean_score:.4f}, that of epoch {one.epoch} {one.score:.4f}"
            message = f"{one.card.member}: the mean of the weights has a {scores}; the other folds choose, once trained"
            listener.notice(Notice("I474", message))


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
            truth = job.member_folder / "truth.csv"
            if not truth.is_file() or truth.read_bytes() != table:  # else an export goes by its time
                write_atomic(truth, table)
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
    clear_choices(job)
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
    return cut_text(text, 60)


def _holdout_folder(job: TrainJob, fold: int) -> Path:
    return job.member_folder / OOF / job.fold_name(fold)


def _is_finished(job: TrainJob, fold: int, fingerprint: str) -> bool:
    """Check for weights and complete predictions; these are completed after the weights have been written."""
    holdout = _holdout_folder(job, fold)
    files = job.folder / f"fold{fold}.safetensors", holdout / COMPLETE, part_path(holdout, 0)
    return all(file.exists() for file in files) and read_part(files[-1]).origin == fingerprint


def _write_holdout(job: TrainJob, trained: TrainedFold, images: JobImages, fingerprint: str, device: str) -> None:
    """Write the fold's logits of its hold-out images, in the views identity and hflip, and those of the mean."""
    fold = trained.card.fold
    assert fold is not None, "a trained fold's card has its number"
    part = _predict_holdout(job, trained.card, trained.path, images, device)
    part, optimistic = replace(part, origin=fingerprint), _is_optimistic(job)
    if trained.mean_score is not None:
        mean = _predict_holdout(job, trained.card, average_weights(job, fold), images, device)
        _write_predictions(candidate_folder(job, MEAN, fold), replace(mean, origin=fingerprint), optimistic)
        _write_predictions(candidate_folder(job, KEPT, fold), part, optimistic)
        forget_choice(job, fingerprint, fold)
    _write_predictions(_holdout_folder(job, fold), part, optimistic)


def _predict_holdout(job: TrainJob, card: ModelCard, weights: Path, images: JobImages, device: str) -> Part:
    assert card.fold is not None, "a trained fold's card has its number"
    held_out = job.folds.holdout(job.rows, card.fold)
    pixels = images.labeled.decoded.pixels[held_out]
    model: torch.nn.Module = build_model(open_checkpoint(weights)).to(device)
    views = parse_views("hflip")
    logits = {view.name: predict_pixels(model, pixels, job.settings, view=view.apply) for view in views}
    ids = tuple(row.id for row, held in zip(job.rows, held_out, strict=True) if held)
    return Part(ids, logits, "", card)


def _is_optimistic(job: TrainJob) -> bool:
    return job.teacher is not None and job.teacher.optimistic


def _mark_optimistic(job: TrainJob, fingerprint: str) -> None:
    """Record with the out-of-fold predictions of a run before that they are optimistic: new ones are written so."""
    if not _is_optimistic(job):
        return
    for fold in range(job.folds.count):
        if not _is_finished(job, fold, fingerprint):
            continue
        folder = _holdout_folder(job, fold)
        if not read_predictions(folder).optimistic:  # a file that is written again would have the exports run again
            path = part_path(folder, 0)
            write_complete(folder, [path], len(read_part(path).ids), optimistic=True)


def _write_predictions(folder: Path, part: Part, optimistic: bool) -> None:
    path = part_path(folder, 0)
    write_part(path, part)
    write_complete(folder, [path], len(part.ids), optimistic=optimistic)


def _take_means(
    job: TrainJob, fingerprint: str, trained: Sequence[TrainedFold], listener: Listener
) -> tuple[TrainedFold, ...]:
    """Put the means of weights that were chosen in the places of the kept epochs, and return what is trained now."""
    choices = choose_averages(job, fingerprint, listener=listener)
    for choice in choices:
        if choice.adopted and not choice.done:
            weights = average_weights(job, choice.fold).read_bytes()
            write_atomic(job.folder / f"fold{choice.fold}.safetensors", weights)
            part = read_part(part_path(candidate_folder(job, MEAN, choice.fold), 0))
            _write_predictions(_holdout_folder(job, choice.fold), part, _is_optimistic(job))
    write_choices(job, fingerprint, [replace(choice, done=True) for choice in choices])
    for choice in choices:
        remove(average_weights(job, choice.fold))
    taken = {choice.fold for choice in choices if choice.adopted}
    return tuple(
        replace(one, score=one.mean_score, epoch=job.settings.epochs, is_mean=True)
        if one.card.fold in taken and one.mean_score is not None
        else one
        for one in trained
    )
