"""Train one member over its folds, and keep what each fold says about the people it never saw."""

from __future__ import annotations

import csv
import hashlib
import io
import json
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from checkpoints.data.folds import Folds
from checkpoints.data.image_cache import Photos, load_photos
from checkpoints.data.mask_contest import Row
from checkpoints.loading.open import build_model, open_checkpoint
from checkpoints.training.batches import Images, predict_pixels
from checkpoints.training.distributed import ALONE, Team
from checkpoints.training.loggers import Logger
from checkpoints.training.pseudo_labels import Pseudo
from checkpoints.training.settings import Settings, settings_dict
from checkpoints.training.train_fold import Trained, fold_name, state_path, train
from ensemble.arrays import Pixels
from ensemble.card import validate_member
from ensemble.errors import ModelError, OptionError
from ensemble.events import SILENT, Listener
from ensemble.files import locked, remove, write_atomic
from ensemble.images.face_boxes import Boxes
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
    """What `train_member` left: the folds trained this time, those found finished, and the out-of-fold folder.

    ``oof`` is None while folds are missing; ``macro_f1`` is then None, else that of the identity view on all people.
    """

    folder: Path
    trained: tuple[Trained, ...]
    kept: tuple[int, ...]
    oof: Path | None
    macro_f1: float | None


def train_member(
    rows: Sequence[Row],
    folds: Folds,
    *,
    member: str,
    settings: Settings,
    seed: int,
    out: Path,
    boxes: Boxes | None = None,
    pseudo: Pseudo | None = None,
    only_fold: int | None = None,
    fresh: bool = False,
    device: str = "cpu",
    team: Team = ALONE,
    log: Logger | None = None,
    listener: Listener = SILENT,
) -> TrainedMember:
    """Train ``out/<member>/fold<k>.safetensors`` for each fold, and write the predictions ``out/<member>/oof/*``.

    Folds that are finished are kept, and one that was stopped goes on after its last epoch. Each folder in ``oof`` has
    one fold's answers, in the views identity and hflip, about the people that it held out; ``truth.csv`` has the
    classes. ``pseudo`` is learned in every fold, and is in no fold's holdout, scores or predictions. Each process of
    the ``team`` calls it; the main one writes, and alone knows ``oof`` and ``macro_f1``.

    Raises:
        EnsError: as `train` does.
        OptionError: E204 when the batch cannot be divided by the processes.
        OptionError, DataError: E206 and E351 when a preprocessing with a face crop lacks ``boxes`` of the rows.
        ModelError: E442 when the folder holds a training with other settings; E446 when the processes do not see the
            same data or folder, E447 when one of them has ended.
    """
    if settings.batch % team.size:
        raise OptionError("E204", f"--batch must be a multiple of the {team.size} processes, got {settings.batch}")
    folder = out / validate_member(member)
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    with locked(folder) if team.is_main else nullcontext(), team.watched():
        origin = _origin(rows, folds, settings, seed, boxes, pseudo)
        wanted = range(folds.count) if only_fold is None else (only_fold,)
        kept: tuple[int, ...] = ()
        if team.is_main:
            _same_settings(folder, member, origin, folds.count, fresh=fresh)
            _write_truth(folder / "truth.csv", rows)
            kept = tuple(fold for fold in wanted if _is_finished(folder, member, fold, origin))
        team.require_same(origin, "images, labels, folds and settings")
        kept = team.told(kept)
        todo = [fold for fold in wanted if fold not in kept]
        photos = _load(rows, settings, seed, boxes, listener) if todo else None
        extra = _load_extra(pseudo, settings, seed, listener) if todo and pseudo is not None else None
        trained = []
        for fold in todo:
            assert photos is not None, "there are images when there is a fold to train"
            found = train(
                rows,
                folds,
                fold,
                member=member,
                settings=settings,
                seed=seed,
                out=folder,
                photos=photos,
                extra=extra,
                device=device,
                team=team,
                origin=origin,
                log=log,
                listener=listener,
            )
            trained.append(found)
            if not team.is_main:
                continue
            held_out = folds.holdout(rows, fold)
            unseen = tuple(row for row, held in zip(rows, held_out, strict=True) if held)
            _write_holdout(
                _holdout_folder(folder, member, fold), found, unseen, photos.pixels[held_out], settings, origin, device
            )
            remove(state_path(folder, fold))
        if not team.is_main or not all(_is_finished(folder, member, fold, origin) for fold in range(folds.count)):
            return TrainedMember(folder, tuple(trained), kept, None, None)
        score = _score(folder, member, folds, rows, len(settings.labels))
        return TrainedMember(folder, tuple(trained), kept, folder / OOF, score)


def _load(rows: Sequence[Row], settings: Settings, seed: int, boxes: Boxes | None, listener: Listener) -> Photos:
    if settings.preprocess.face is None:
        return load_photos(rows, settings.preprocess, listener=listener)
    if boxes is None:
        raise OptionError("E206", "a training on face crops needs the boxes of the faces")
    return load_photos(
        rows,
        settings.preprocess,
        boxes=boxes.select([row.id for row in rows]),
        fallback_share=settings.fallback_share,
        seed=seed,
        listener=listener,
    )


def _load_extra(pseudo: Pseudo, settings: Settings, seed: int, listener: Listener) -> Images:
    photos = _load(pseudo.rows, settings, seed, pseudo.boxes, listener)
    targets = np.array([row.target for row in pseudo.rows], dtype=np.int64)
    return Images(photos, targets, targets)


def _origin(
    rows: Sequence[Row], folds: Folds, settings: Settings, seed: int, boxes: Boxes | None, pseudo: Pseudo | None
) -> str:
    """Everything that decides the weights, as JSON; files by their hashes."""
    people = [(row.id, row.label, row.target, folds.of_person[row.person]) for row in rows]
    value = settings_dict(settings) | {
        "seed": seed,
        "boxes": None if boxes is None else boxes.sha256,
        "rows": hashlib.sha256(json.dumps(people).encode()).hexdigest(),
    }
    if pseudo is not None:  # a later thing: trainings without it stay what they are
        learned = [(row.id, row.target) for row in pseudo.rows]
        value["pseudo"] = {
            "boxes": None if pseudo.boxes is None else pseudo.boxes.sha256,
            "rows": hashlib.sha256(json.dumps(learned).encode()).hexdigest(),
        }
    return json.dumps(value, sort_keys=True)


def _write_truth(path: Path, rows: Sequence[Row]) -> None:
    """What `ens blend --truth` and `ens evaluate --truth` compare the out-of-fold predictions with."""
    sink = io.StringIO()
    writer = csv.writer(sink, lineterminator="\n")
    writer.writerow(("ImageID", "ans", "person"))
    writer.writerows((row.id, row.label, row.person) for row in rows)
    write_atomic(path, sink.getvalue().encode())


def _same_settings(folder: Path, member: str, origin: str, folds: int, *, fresh: bool) -> None:
    path = folder / _SETTINGS
    if path.exists() and not fresh:
        if path.read_text(encoding="utf-8") != origin:
            raise ModelError("E442", f"{folder} holds a training with other settings, images or folds", path=folder)
        return
    for fold in range(folds):
        remove(_holdout_folder(folder, member, fold) / COMPLETE)
        remove(state_path(folder, fold))
    write_atomic(path, origin.encode())


def _holdout_folder(folder: Path, member: str, fold: int) -> Path:
    return folder / OOF / fold_name(member, fold)


def _is_finished(folder: Path, member: str, fold: int, origin: str) -> bool:
    """The predictions are declared finished after the weights are there, so they alone show that both are."""
    holdout = _holdout_folder(folder, member, fold)
    if not (folder / f"fold{fold}.safetensors").exists() or not (holdout / COMPLETE).exists():
        return False
    return read_part(part_path(holdout, 0)).origin == origin


def _write_holdout(
    holdout: Path, found: Trained, rows: Sequence[Row], pixels: Pixels, settings: Settings, origin: str, device: str
) -> None:
    """What the fold says about ``rows``, which are those that it never saw, in the views identity and hflip."""
    model: torch.nn.Module = build_model(open_checkpoint(found.path)).to(device)
    logits = {view.name: predict_pixels(model, pixels, settings, view=view.apply) for view in parse_views("hflip")}
    path = part_path(holdout, 0)
    write_part(path, Part(tuple(row.id for row in rows), logits, origin, found.card))
    write_complete(holdout, [path], len(rows))


def _score(folder: Path, member: str, folds: Folds, rows: Sequence[Row], classes: int) -> float:
    """Macro F1 of the identity view over all people, each image answered by the fold that never saw it."""
    answers: dict[str, int] = {}
    for fold in range(folds.count):
        found = read_predictions(_holdout_folder(folder, member, fold))
        answers |= dict(zip(found.ids, found.logits["identity"].argmax(axis=1).tolist(), strict=True))
    truth = np.array([row.label for row in rows])
    return float(macro_f1(confusion_matrix(truth, np.array([answers[row.id] for row in rows]), classes=classes)))
