"""Fit one member on all folds but one, and keep its best epoch."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional

from checkpoints.architectures import resolve_architecture
from checkpoints.augment import Policy, Simple, cutmix, image_seed, parse_policy
from checkpoints.contest import Row
from checkpoints.folds import Folds
from checkpoints.losses import Loss, class_weights, parse_loss
from checkpoints.open import save_checkpoint
from checkpoints.optimise import Optimizer, Schedule, make_optimizer, make_schedule
from checkpoints.photos import load_photos
from checkpoints.start import freeze, start_model
from ensemble.card import ModelCard, Preprocess
from ensemble.errors import DeviceError, ModelError, OptionError
from ensemble.events import SILENT, Listener
from ensemble.images import Pixels
from ensemble.labels import MASK18, LabelSpace
from ensemble.metrics import confusion_matrix, macro_f1
from ensemble.predictions import hash_ids

_EVALUATED_AT_ONCE = 256


@dataclass(frozen=True, slots=True)
class Settings:
    """How a member is trained: ``learning_rate`` is the highest one; ``mean`` and ``std`` are those of RGB in 0..1.

    ``freeze`` counts the layer groups that stay as they are, ``ema`` is the share of the averaged weights kept at a
    step (None: no averaging), ``patience`` the epochs without a better score before it stops (None: never),
    ``warm_up`` a share of all steps, and ``cutmix`` what `checkpoints.augment.cutmix` pastes.

    Raises:
        OptionError: E204 when a number is out of range.
    """

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
    loss: str = "ce"
    gamma: float = 2.0
    class_weights: str = "isns"
    augment: str = "light"
    cutmix: Literal["none", "plain", "half"] = "none"
    optimizer: Optimizer = "adamw"
    schedule: Schedule = "onecycle"
    warm_up: float = 0.15
    layer_decay: float | None = None
    ema: float | None = None
    clip: float | None = None
    freeze: int = 0
    patience: int | None = None
    bf16: bool = False
    init: Path | None = None
    pretrained: bool = False

    def __post_init__(self) -> None:
        if min(self.epochs, self.batch) < 1 or not self.learning_rate > 0 or not 0 < self.warm_up < 1:
            raise OptionError("E204", "epochs, batch and learning rate must be above 0, warm-up between 0 and 1")
        if any(share is not None and not 0 < share < 1 for share in (self.ema, self.layer_decay)):
            raise OptionError("E204", f"ema and layer decay lie between 0 and 1, got {self.ema} and {self.layer_decay}")


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
    """``pixels`` is ``(N, H, W, 3)`` uint8, ``labels`` ``(N,)`` int64."""

    pixels: Pixels
    labels: NDArray[np.int64]

    def __getitem__(self, chosen: NDArray[np.bool_]) -> _Images:
        return _Images(self.pixels[chosen], self.labels[chosen])


@dataclass(frozen=True, slots=True, eq=False)
class _Epoch:
    number: int
    macro_f1: float
    weights: Mapping[str, torch.Tensor]


def fold_name(member: str, fold: int) -> str:
    """How the model of one fold is called."""
    return f"{member}_f{fold}"


def train(
    rows: Sequence[Row],
    folds: Folds,
    fold: int,
    *,
    member: str,
    settings: Settings,
    seed: int,
    out: Path,
    pixels: Pixels | None = None,
    device: str = "cpu",
    listener: Listener = SILENT,
) -> Trained:
    """Train on everyone but the people of ``fold``, and write ``out/fold<k>.safetensors``.

    ``pixels`` is what `load_photos` gave for the rows, where it is there already. On the CPU the same rows, settings,
    seed and number of torch's threads give the same bytes.

    Raises:
        DataError: the codes of `ensemble.images.read_photo`, when images cannot be read.
        DeviceError: E601 when a GPU was asked for and torch has none.
        ModelError: E440 when the loss is no longer a number; those of `start_model`.
        OptionError: E204 when timm does not know the architecture, or a setting is not understood.
    """
    start = time.perf_counter()
    arch = resolve_architecture(settings.arch)
    if device != "cpu" and not torch.cuda.is_available():
        raise DeviceError("E601", f"{device} was asked for, but torch {torch.__version__} has no GPU here")
    if pixels is None:
        pixels = load_photos(rows, settings.preprocess, listener=listener)
    held_out = folds.holdout(rows, fold)
    images = _Images(pixels, np.array([row.label for row in rows], dtype=np.int64))
    name = fold_name(member, fold)
    # the caller's random numbers stay as they are
    with torch.random.fork_rng(devices=[] if device == "cpu" else [device]):
        torch.manual_seed(seed)
        model = start_model(
            arch,
            classes=len(settings.labels),
            init=settings.init,
            pretrained=settings.pretrained,
            listener=listener,
        )
        best = _fit(model.to(device), images[~held_out], images[held_out], settings, name, seed=seed, listener=listener)
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
    )
    path = save_checkpoint(out / f"fold{fold}.safetensors", best.weights, card)
    return Trained(path, card, best.macro_f1, best.number, time.perf_counter() - start)


def _fit(
    model: torch.nn.Module,
    seen: _Images,
    held_out: _Images,
    settings: Settings,
    name: str,
    *,
    seed: int,
    listener: Listener,
) -> _Epoch:
    """The epoch with the highest macro F1 on the held-out images, the later one of equals."""
    model = model.to(memory_format=torch.channels_last)
    device = next(model.parameters()).device
    frozen = freeze(model, settings.freeze)
    optimizer = make_optimizer(
        model,
        settings.optimizer,
        learning_rate=settings.learning_rate,
        weight_decay=settings.weight_decay,
        layer_decay=settings.layer_decay,
    )
    # a last batch of few images would spoil the batch statistics, so it waits for the next epoch's order
    steps = max(1, len(seen.labels) // settings.batch)
    schedule = make_schedule(optimizer, settings.schedule, steps=steps * settings.epochs, warm_up=settings.warm_up)
    weights = class_weights(
        settings.class_weights, torch.from_numpy(np.bincount(seen.labels, minlength=len(settings.labels)))
    )
    loss_of = parse_loss(
        settings.loss, weights=weights.to(device), gamma=settings.gamma, smoothing=settings.label_smoothing
    )
    averaged = copy.deepcopy(model) if settings.ema is not None else None
    policy = parse_policy(settings.augment)
    best: _Epoch | None = None
    for number in range(1, settings.epochs + 1):
        model.train()
        for module in frozen:
            module.eval()
        generator = torch.Generator().manual_seed(image_seed(seed, number, 0))
        order = torch.randperm(len(seen.labels), generator=generator)[: steps * settings.batch].view(steps, -1)
        for pixels, labels in _batches(seen, order.numpy(), policy, seed=seed, epoch=number):
            images = _normalise(torch.from_numpy(pixels).to(device), settings)
            targets = functional.one_hot(torch.from_numpy(labels), len(settings.labels)).float().to(device)
            if settings.cutmix != "none":
                images, targets = cutmix(images, targets, half=settings.cutmix == "half", generator=generator)
            loss = _step(model, images, targets, loss_of, optimizer, settings)
            schedule.step()
            if averaged is not None and settings.ema is not None:
                _average(averaged, model, settings.ema)
        if not bool(torch.isfinite(loss)):
            raise ModelError("E440", f"{name}: the loss of epoch {number} is {loss.item()}")
        scored = model if averaged is None else averaged
        score = _score(scored, held_out, settings)
        if best is None or score >= best.macro_f1:
            best = _Epoch(number, score, {key: value.clone() for key, value in scored.state_dict().items()})
        listener.progress(f"train {name}", number, settings.epochs)
        if settings.patience is not None and number - best.number >= settings.patience:
            listener.progress(f"train {name}", settings.epochs, settings.epochs)
            break
    assert best is not None, "a member is trained for one epoch or more"
    return best


def _step(
    model: torch.nn.Module,
    images: torch.Tensor,
    targets: torch.Tensor,
    loss_of: Loss,
    optimizer: torch.optim.Optimizer,
    settings: Settings,
) -> torch.Tensor:
    with torch.autocast(images.device.type, torch.bfloat16, enabled=settings.bf16):
        logits = model(images)
    loss = loss_of(logits, targets)
    optimizer.zero_grad()
    torch.autograd.backward(loss)
    if settings.clip is not None:
        torch.nn.utils.clip_grad_norm_(model.parameters(), settings.clip)
    optimizer.step()
    return loss.detach()


@torch.no_grad()
def _average(averaged: torch.nn.Module, model: torch.nn.Module, kept: float) -> None:
    """Exponential moving average of weights and batch statistics (Polyak and Juditsky 1992)."""
    for old, new in zip(averaged.state_dict().values(), model.state_dict().values(), strict=True):
        if old.is_floating_point():
            old.lerp_(new, 1 - kept)
        else:
            old.copy_(new)


def _batches(
    seen: _Images, order: NDArray[np.int64], policy: Policy | Simple | None, *, seed: int, epoch: int
) -> Iterator[tuple[Pixels, NDArray[np.int64]]]:
    """The batches of one epoch; the next one is made while the model works on this one."""

    def make(chosen: NDArray[np.int64]) -> tuple[Pixels, NDArray[np.int64]]:
        pixels = seen.pixels[chosen]
        if policy is not None:
            for row, image in enumerate(chosen.tolist()):
                pixels[row] = policy(pixels[row], image_seed(seed, epoch, image + 1))
        return pixels, seen.labels[chosen]

    with ThreadPoolExecutor(1) as pool:
        ahead = pool.submit(make, order[0])
        for chosen in order[1:]:
            ready, ahead = ahead, pool.submit(make, chosen)
            yield ready.result()
        yield ahead.result()


def _normalise(pixels: torch.Tensor, settings: Settings) -> torch.Tensor:
    """``(B, H, W, 3)`` uint8 to what the model takes, ``(B, 3, H, W)``."""
    images = pixels / 255
    mean, std = images.new_tensor(settings.mean), images.new_tensor(settings.std)
    return ((images - mean) / std).permute(0, 3, 1, 2)


@torch.no_grad()
def predict_pixels(
    model: torch.nn.Module, pixels: Pixels, settings: Settings, *, view: Callable[[Pixels], Pixels] = np.asarray
) -> NDArray[np.float32]:
    """The logits ``(N, C)`` of ``(N, H, W, 3)`` images, in float32, as a model in eval mode gives them."""
    model.eval()
    device = next(model.parameters()).device
    answers = [
        model(_normalise(torch.from_numpy(np.ascontiguousarray(view(batch))).to(device), settings)).cpu()
        for batch in np.split(pixels, range(_EVALUATED_AT_ONCE, len(pixels), _EVALUATED_AT_ONCE))
    ]
    found: NDArray[np.float32] = torch.cat(answers).numpy()
    return found


def _score(model: torch.nn.Module, images: _Images, settings: Settings) -> float:
    answered = predict_pixels(model, images.pixels, settings).argmax(axis=1)
    return float(macro_f1(confusion_matrix(images.labels, answered, classes=len(settings.labels))))
