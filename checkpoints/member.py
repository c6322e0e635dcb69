"""Train one member over its folds, and keep what each fold says about the people it never saw."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import torch

from checkpoints.contest import Row
from checkpoints.folds import Folds
from checkpoints.open import build_model, open_checkpoint
from checkpoints.photos import load_photos
from checkpoints.train import Settings, Trained, predict_pixels, train
from ensemble.card import validate_member
from ensemble.errors import ModelError
from ensemble.events import SILENT, Listener
from ensemble.files import locked, remove, sha256_file, write_atomic
from ensemble.images import Pixels
from ensemble.predictions import COMPLETE, Part, part_path, read_part, read_predictions, write_complete, write_part
from ensemble.tta import parse_views

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
    only_fold: int | None = None,
    fresh: bool = False,
    device: str = "cpu",
    listener: Listener = SILENT,
) -> TrainedMember:
    """Train ``out/<member>/fold<k>.safetensors`` for each fold, and write the predictions ``out/<member>/oof``.

    Folds that are finished are kept. Each part of ``oof`` is one fold's answers, in the views identity and hflip, about
    the people that it held out.

    Raises:
        EnsError: as `train` does.
        ModelError: E442 when the folder holds a training with other settings.
    """
    folder = out / validate_member(member)
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    with locked(folder):
        origin = _origin(rows, folds, settings, seed)
        _same_settings(folder, origin, folds.count, fresh=fresh)
        wanted = range(folds.count) if only_fold is None else (only_fold,)
        kept = tuple(fold for fold in wanted if _is_finished(folder, fold, origin))
        todo = [fold for fold in wanted if fold not in kept]
        pixels = load_photos(rows, settings.preprocess, listener=listener) if todo else None
        trained = []
        for fold in todo:
            assert pixels is not None, "there are images when there is a fold to train"
            found = train(
                rows,
                folds,
                fold,
                member=member,
                settings=settings,
                seed=seed,
                out=folder,
                pixels=pixels,
                device=device,
                listener=listener,
            )
            _write_holdout(folder, found, rows, folds, pixels, settings, origin, device)
            trained.append(found)
        score = None
        oof = _finish(folder, folds.count, origin, rows)
        if oof is not None:
            score = _score(oof, rows, len(settings.labels))
        return TrainedMember(folder, tuple(trained), kept, oof, score)


def _origin(rows: Sequence[Row], folds: Folds, settings: Settings, seed: int) -> str:
    """Everything that decides the weights, as JSON; files by their hashes."""
    people = [(row.id, row.label, folds.of_person[row.person]) for row in rows]
    value = asdict(replace(settings, init=None)) | {
        "labels": settings.labels.to_dict(),
        "init": None if settings.init is None else sha256_file(settings.init),
        "seed": seed,
        "rows": hashlib.sha256(json.dumps(people).encode()).hexdigest(),
    }
    if settings.augment.endswith(".toml"):
        value["augment"] = sha256_file(Path(settings.augment))
    return json.dumps(value, sort_keys=True)


def _same_settings(folder: Path, origin: str, folds: int, *, fresh: bool) -> None:
    path = folder / _SETTINGS
    if path.exists() and not fresh:
        if path.read_text(encoding="utf-8") != origin:
            raise ModelError("E442", f"{folder} holds a training with other settings, images or folds", path=folder)
        return
    for stale in (folder / OOF / COMPLETE, *(part_path(folder / OOF, fold) for fold in range(folds))):
        remove(stale)
    write_atomic(path, origin.encode())


def _is_finished(folder: Path, fold: int, origin: str) -> bool:
    """The part is written after the weights, so it alone shows that both are there."""
    path = part_path(folder / OOF, fold)
    return (folder / f"fold{fold}.safetensors").exists() and path.exists() and read_part(path)[0].origin == origin


def _write_holdout(
    folder: Path,
    found: Trained,
    rows: Sequence[Row],
    folds: Folds,
    pixels: Pixels,
    settings: Settings,
    origin: str,
    device: str,
) -> None:
    fold = found.card.fold
    assert fold is not None, "training gives every card its fold"
    held_out = folds.holdout(rows, fold)
    model: torch.nn.Module = build_model(open_checkpoint(found.path)).to(device)
    logits = {
        view.name: predict_pixels(model, pixels[held_out], settings, view=view.apply) for view in parse_views("hflip")
    }
    ids = tuple(row.id for row, held in zip(rows, held_out, strict=True) if held)
    # all parts have one card: the member's, of no fold, since every image was predicted by the fold that never saw it
    card = replace(
        found.card,
        member=found.card.group or found.card.member,
        group=None,
        fold=None,
        holdout_sha256=None,
        checks={"out_of_fold": folds.count},
    )
    write_part(part_path(folder / OOF, fold), Part(ids, logits, origin), card)


def _finish(folder: Path, folds: int, origin: str, rows: Sequence[Row]) -> Path | None:
    if not all(_is_finished(folder, fold, origin) for fold in range(folds)):
        return None
    write_complete(folder / OOF, [part_path(folder / OOF, fold) for fold in range(folds)], len(rows))
    return folder / OOF


def _score(oof: Path, rows: Sequence[Row], classes: int) -> float:
    from ensemble.metrics import confusion_matrix, macro_f1

    found = read_predictions(oof)
    label_of = {row.id: row.label for row in rows}
    truth = np.array([label_of[i] for i in found.ids])
    return float(macro_f1(confusion_matrix(truth, found.logits["identity"].argmax(axis=1), classes=classes)))
