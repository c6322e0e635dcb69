"""Fit one member on all folds but one, and keep its best epoch."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import timm
import torch
from torch.nn import functional

from checkpoints.architectures import resolve_architecture
from checkpoints.contest import Row
from checkpoints.folds import Folds
from checkpoints.open import save_checkpoint
from ensemble.card import ModelCard, Preprocess
from ensemble.codes import CODES
from ensemble.errors import DeviceError, ModelError, enumerate_some
from ensemble.events import SILENT, Listener, Notice
from ensemble.images import read_photo, resize_image
from ensemble.labels import MASK18, LabelSpace
from ensemble.metrics import confusion_matrix, macro_f1

_EVALUATED_AT_ONCE = 256


@dataclass(frozen=True, slots=True)
class Settings:
    """How a member is trained: ``learning_rate`` is the highest one; ``mean`` and ``std`` are those of RGB in 0..1."""

    arch: str
    preprocess: Preprocess
    epochs: int
    learning_rate: float
    batch: int = 32
    weight_decay: float = 0.05
    label_smoothing: float = 0.1
    labels: LabelSpace = MASK18
    mean: tuple[float, float, float] = (0.485, 0.456, 0.406)
    std: tuple[float, float, float] = (0.229, 0.224, 0.225)


@dataclass(frozen=True, slots=True)
class Trained:
    """The weights' file and card, and the macro F1 of the held-out people in the best epoch (counted from 1)."""

    path: Path
    card: ModelCard
    macro_f1: float
    epoch: int
    seconds: float


@dataclass(frozen=True, slots=True, eq=False)
class _Images:
    """``pixels`` is ``(N, H, W, 3)`` uint8, ``labels`` ``(N,)`` int64, on the device that trains."""

    pixels: torch.Tensor
    labels: torch.Tensor

    def __getitem__(self, chosen: torch.Tensor) -> _Images:
        return _Images(self.pixels[chosen], self.labels[chosen])


@dataclass(frozen=True, slots=True, eq=False)
class _Epoch:
    number: int
    macro_f1: float
    weights: Mapping[str, torch.Tensor]


def train(
    rows: Sequence[Row],
    folds: Folds,
    fold: int,
    *,
    member: str,
    settings: Settings,
    seed: int,
    out: Path,
    device: str = "cpu",
    listener: Listener = SILENT,
) -> Trained:
    """Train from random weights on everyone but the people of ``fold``, and write ``out/fold<k>.safetensors``.

    Every image is decoded once and stays in memory at the model's size: H * W * 3 bytes each, 12 kB at 64 px. On the
    CPU the same rows, settings, seed and number of torch's threads give the same bytes.

    Raises:
        DataError: the codes of `ensemble.images.read_photo`, when an image cannot be read.
        DeviceError: E601 when a GPU was asked for and torch has none.
        ModelError: E440 when the loss is no longer a number.
        OptionError: E204 when timm does not know the architecture.
    """
    start = time.perf_counter()
    arch = resolve_architecture(settings.arch)
    if device != "cpu" and not torch.cuda.is_available():
        raise DeviceError("E601", f"{device} was asked for, but torch {torch.__version__} has no GPU here")
    held_out = torch.from_numpy(folds.holdout(rows, fold))
    images = _load(rows, settings.preprocess, device, listener)
    name = f"{member}_f{fold}"
    # the caller's random numbers stay as they are
    with torch.random.fork_rng(devices=[] if device == "cpu" else [device]):
        torch.manual_seed(seed)
        model = timm.create_model(arch, pretrained=False, num_classes=len(settings.labels)).to(device)
        best = _fit(model, images[~held_out], images[held_out], settings, name, listener)
    held_out_ids = sorted(row.id for row, held in zip(rows, held_out.tolist(), strict=True) if held)
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
        holdout_sha256=hashlib.sha256("\0".join(held_out_ids).encode()).hexdigest(),
    )
    path = save_checkpoint(out / f"fold{fold}.safetensors", best.weights, card)
    return Trained(path, card, best.macro_f1, best.number, time.perf_counter() - start)


def _load(rows: Sequence[Row], preprocess: Preprocess, device: str, listener: Listener) -> _Images:
    pixels = np.empty((len(rows), *preprocess.size, 3), dtype=np.uint8)
    oddities: dict[str, list[str]] = {}
    for i, row in enumerate(rows):
        photo = read_photo(row.path)
        pixels[i] = resize_image(photo.pixels, preprocess)
        for code in photo.notices:
            oddities.setdefault(code, []).append(row.id)
    for code, ids in sorted(oddities.items()):
        listener.notice(Notice(code, f"{len(ids):,} images: {CODES[code].cause} ({enumerate_some(ids, limit=3)})"))
    labels = torch.tensor([row.label for row in rows])
    return _Images(torch.from_numpy(pixels).to(device), labels.to(device))


def _fit(
    model: torch.nn.Module, seen: _Images, held_out: _Images, settings: Settings, name: str, listener: Listener
) -> _Epoch:
    """The epoch with the highest macro F1 on the held-out images, the later one of equals."""
    model = model.to(memory_format=torch.channels_last)
    optimizer = torch.optim.AdamW(model.parameters(), lr=settings.learning_rate, weight_decay=settings.weight_decay)
    # a last batch of few images would spoil the batch statistics, so it waits for the next epoch's order
    steps = max(1, len(seen.labels) // settings.batch)
    schedule = torch.optim.lr_scheduler.OneCycleLR(  # warm-up, then a cosine
        optimizer, settings.learning_rate, total_steps=steps * settings.epochs, pct_start=0.15, cycle_momentum=False
    )
    weights = _class_weights(seen.labels, len(settings.labels))
    best: _Epoch | None = None
    for number in range(1, settings.epochs + 1):
        model.train()
        order = torch.randperm(len(seen.labels), device=seen.labels.device)[: steps * settings.batch]
        for chosen in order.view(steps, -1):
            batch = seen[chosen]
            logits = model(_normalise(_augment(batch.pixels), settings))
            loss = functional.cross_entropy(logits, batch.labels, weights, label_smoothing=settings.label_smoothing)
            optimizer.zero_grad()
            torch.autograd.backward(loss)
            optimizer.step()
            schedule.step()
        if not bool(torch.isfinite(loss)):
            raise ModelError("E440", f"{name}: the loss of epoch {number} is {loss.item()}")
        score = _score(model, held_out, settings)
        if best is None or score >= best.macro_f1:
            best = _Epoch(number, score, {key: value.clone() for key, value in model.state_dict().items()})
        listener.progress(f"train {name}", number, settings.epochs)
    assert best is not None, "a member is trained for one epoch or more"
    return best


def _augment(pixels: torch.Tensor) -> torch.Tensor:
    """Float RGB in 0..1 of ``(B, H, W, 3)`` uint8, half of it mirrored, each image in another light."""
    size, device = len(pixels), pixels.device
    mirrored = torch.rand(size, 1, 1, 1, device=device) < 0.5
    images = torch.where(mirrored, pixels.flip(2), pixels) / 255
    brightness = 1 + 0.2 * (2 * torch.rand(size, 1, 1, 1, device=device) - 1)
    cast = 1 + 0.05 * (2 * torch.rand(size, 1, 1, 3, device=device) - 1)
    return (images * brightness * cast).clamp(0, 1)


def _normalise(images: torch.Tensor, settings: Settings) -> torch.Tensor:
    """``(B, H, W, 3)`` in 0..1 to what the model takes, ``(B, 3, H, W)``."""
    mean, std = images.new_tensor(settings.mean), images.new_tensor(settings.std)
    return ((images - mean) / std).permute(0, 3, 1, 2)


def _class_weights(labels: torch.Tensor, classes: int) -> torch.Tensor:
    """Inverse square roots of the class counts: between no weights and full balance."""
    counts = labels.bincount(minlength=classes).clamp(min=1)
    return counts.float().rsqrt() / counts.float().rsqrt().mean()


@torch.no_grad()
def _score(model: torch.nn.Module, images: _Images, settings: Settings) -> float:
    model.eval()
    answers = [
        model(_normalise(pixels / 255, settings)).argmax(dim=1)
        for pixels in torch.split(images.pixels, _EVALUATED_AT_ONCE)
    ]
    truth, answered = images.labels.cpu().numpy(), torch.cat(answers).cpu().numpy()
    return float(macro_f1(confusion_matrix(truth, answered, classes=len(settings.labels))))
