"""Fit one member on all folds but one, and write the weights with their card."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from checkpoints.data.folds import Folds
from checkpoints.data.image_cache import Photos, load_photos
from checkpoints.data.mask_contest import Row
from checkpoints.loading.architectures import resolve_architecture
from checkpoints.loading.open import save_checkpoint
from checkpoints.training.batches import Images
from checkpoints.training.distributed import ALONE, Team
from checkpoints.training.epochs import Place, fit
from checkpoints.training.init_weights import start_model
from checkpoints.training.loggers import Logger, Remote
from checkpoints.training.settings import Settings, settings_dict
from ensemble.card import ModelCard
from ensemble.errors import DeviceError
from ensemble.events import SILENT, Listener
from ensemble.predictions.dataset import hash_ids

__all__ = ["Settings", "Trained", "fold_name", "state_path", "train"]


@dataclass(frozen=True, slots=True)
class Trained:
    """The weights' file and card, and the macro F1 of the held-out people in the epoch that is kept."""

    path: Path
    card: ModelCard
    macro_f1: float
    epoch: int
    seconds: float


def fold_name(member: str, fold: int) -> str:
    """How the model of one fold is called."""
    return f"{member}_f{fold}"


def state_path(out: Path, fold: int) -> Path:
    """Where the state after the last epoch is kept while a fold is trained."""
    return out / f"fold{fold}.state"


def train(
    rows: Sequence[Row],
    folds: Folds,
    fold: int,
    *,
    member: str,
    settings: Settings,
    seed: int,
    out: Path,
    photos: Photos | None = None,
    extra: Images | None = None,
    device: str = "cpu",
    team: Team = ALONE,
    origin: str | None = None,
    log: Logger | None = None,
    listener: Listener = SILENT,
) -> Trained:
    """Train on everyone but the people of ``fold``, and write ``out/fold<k>.safetensors``.

    ``photos`` are what `load_photos` gave for the rows, where they are there already; ``extra`` are images that
    every fold learns from besides. On the CPU the same rows, settings, seed and number of torch's threads give the same
    bytes. With an ``origin``, which says what is trained from what, it goes on after the last epoch that an earlier
    call of the same origin finished; the caller removes `state_path`.

    Raises:
        DataError: the codes of `ensemble.images.decode.read_image`, when images cannot be read.
        DeviceError: E601 when a GPU was asked for and torch has none.
        ModelError: E440 when the loss is no longer a number; those of `start_model`.
        OptionError: E204 when timm does not know the architecture, or a setting is not understood.
    """
    start = time.perf_counter()
    arch = resolve_architecture(settings.arch)
    if device != "cpu" and not torch.cuda.is_available():
        raise DeviceError("E601", f"{device} was asked for, but torch {torch.__version__} has no GPU here")
    if photos is None:
        photos = load_photos(rows, settings.preprocess, listener=listener)
    held_out = folds.holdout(rows, fold)
    targets = np.array([row.target for row in rows], dtype=np.int64)
    images = Images(photos, targets, np.array([row.label for row in rows], dtype=np.int64))
    name = fold_name(member, fold)
    # the caller's random numbers stay as they are
    with torch.random.fork_rng(devices=[] if device == "cpu" else [device]):
        torch.manual_seed(seed)
        model = start_model(
            arch,
            labels=settings.labels,
            size=settings.preprocess.size,
            head=settings.head,
            init=settings.init,
            pretrained=settings.pretrained,
            listener=listener,
        )
        remote = Remote(log if team.is_main else None, out, name, settings_dict(settings), listener=listener)
        kept = fit(
            model.to(device),
            images[~held_out] if extra is None else images[~held_out].joined(extra),
            images[held_out],
            settings,
            name,
            seed=seed,
            place=Place(out / f"fold{fold}.csv", state_path(out, fold), origin),
            remote=remote,
            listener=listener,
            team=team,
        )
        remote.close()
    card = ModelCard(
        member=name,
        group=member,
        fold=fold,
        arch=arch,
        labels=settings.labels,
        preprocess=settings.preprocess,
        mean=settings.mean,
        std=settings.std,
        checkpoint_sha256="",  # a file cannot hold its own hash; the export fills it in
        holdout_sha256=hash_ids(row.id for row, held in zip(rows, held_out, strict=True) if held),
        head=settings.head,
        class_counts=tuple(np.bincount(images.labels, minlength=len(settings.labels)).tolist()),
    )
    path = out / f"fold{fold}.safetensors"
    if team.is_main:
        save_checkpoint(path, kept.weights, card)
    return Trained(path, card, kept.macro_f1, kept.number, time.perf_counter() - start)
