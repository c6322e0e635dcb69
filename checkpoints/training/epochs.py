"""The training loop of one fold: train an epoch, score it on the hold-out part, keep the best or the last."""

from __future__ import annotations

import copy
import time
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from torch.nn import functional

from checkpoints.training.augment import cutmix, erase, image_seed, mixup, parse_policy
from checkpoints.training.batch_source import BatchSource, choose_workers
from checkpoints.training.batches import LabeledImages, normalize, predict_pixels
from checkpoints.training.distillation import Distillation, distillation_loss
from checkpoints.training.distributed import SINGLE_PROCESS, DistributedContext
from checkpoints.training.init_weights import freeze
from checkpoints.training.loggers import ExperimentLogger, LogRow, write_log
from checkpoints.training.losses import Loss
from checkpoints.training.make_loss import make_loss
from checkpoints.training.optimizer import make_optimizer, make_schedule
from checkpoints.training.sampler import balanced_classes, count_steps, cut_steps, draw_order
from checkpoints.training.scores import HoldoutScores, score_classes, score_labels
from checkpoints.training.settings import TrainSettings
from checkpoints.training.training_state import (
    Epoch,
    StepStates,
    TrainingState,
    WithinEpoch,
    restore_state,
    save_state,
)
from checkpoints.training.weight_average import add_to_mean, averaged_model
from ensemble.errors import ModelError, OptionError
from ensemble.events import Listener, Notice


@dataclass(frozen=True, slots=True, eq=False)
class FoldData:
    """One fold's images, the seed of everything that is drawn, and the model's name.

    With a ``teacher`` the training images have its probabilities (`distillation.with_teacher`).
    """

    name: str
    training: LabeledImages
    holdout: LabeledImages
    seed: int
    teacher: Distillation | None = None


@dataclass(frozen=True, slots=True)
class TrainingFiles:
    """A fold's log and the files of its training state, written only if there is a ``fingerprint`` of the job.

    ``state`` is that after an epoch, ``step_state`` that within one. A state is resumed from only if it has the same
    fingerprint.
    """

    log: Path
    state: Path
    step_state: Path
    fingerprint: str | None


@dataclass(frozen=True, slots=True, eq=False)
class TrainedEpochs:
    """The epoch whose weights are kept and, with ``swa``, the mean of the last ones, under the last one's number."""

    kept: Epoch
    mean: Epoch | None


@dataclass(frozen=True, slots=True, eq=False)
class _Loop:
    """The constants of a fold's epochs; each has ``steps`` optimizer steps.

    ``forward`` is the model wrapped for distributed training.
    """

    data: FoldData
    settings: TrainSettings
    forward: torch.nn.Module
    distributed: DistributedContext
    steps: int
    loss: Loss
    batches: BatchSource
    frozen: tuple[torch.nn.Module, ...]
    listener: Listener
    step_states: StepStates | None


def train_epochs(
    model: torch.nn.Module,
    data: FoldData,
    settings: TrainSettings,
    *,
    files: TrainingFiles,
    logger: ExperimentLogger,
    listener: Listener,
    distributed: DistributedContext = SINGLE_PROCESS,
) -> TrainedEpochs:
    """Train the model and return the epoch that is kept; the later one wins on ties, and with ``swa`` the mean.

    Raises:
        ModelError: E440 when the loss is not finite, E403 when the state to resume from is damaged.
        OptionError: E204 when several processes have too few images.
    """
    model = distributed.convert_batch_norm(model).to(memory_format=torch.channels_last)
    step_states = None
    if files.fingerprint is not None and distributed.world_size == 1:  # others have random generators of their own
        step_states = StepStates(files.step_state, fingerprint=files.fingerprint)
    loop = replace(_prepare(model, data, settings, distributed, listener), step_states=step_states)
    state = _init_state(model, loop)
    if files.fingerprint is not None and restore_state(files.state, state, fingerprint=files.fingerprint):
        message = f"{data.name} resumes after epoch {state.done} of {settings.epochs}"
        listener.notice(Notice("I445", message, files.state))
    distributed.require_same(state.done, f"state in {files.state.parent}")
    if step_states is not None and step_states.restore(state) and state.within is not None:
        message = f"{data.name} resumes in epoch {state.done + 1}, after step {state.within.steps} of {loop.steps}"
        listener.notice(Notice("I445", message, files.step_state))
    stage = f"train {data.name}"
    listener.progress(stage, state.done, settings.epochs)
    with loop.batches:
        while state.done < settings.epochs and not _is_patience_over(state, settings):
            _run_epoch(state, loop)
            if distributed.is_main:
                write_log(files.log, state.log)
                logger.log(state.log[-1])
                if files.fingerprint is not None:
                    save_state(files.state, state, fingerprint=files.fingerprint)
            if step_states is not None:
                step_states.clear()
            listener.step_done(f"{stage}: {_describe_epoch(state.log[-1], settings)}")
            listener.progress(stage, state.done, settings.epochs)
        mean = _score_mean(state, loop)
    if state.done < settings.epochs:
        listener.progress(stage, settings.epochs, settings.epochs)
    assert state.kept is not None, "a member is trained for one epoch or more"
    return TrainedEpochs(state.kept, mean)


def _is_patience_over(state: TrainingState, settings: TrainSettings) -> bool:
    return settings.patience is not None and state.done - state.best_epoch >= settings.patience


def _describe_epoch(row: LogRow, settings: TrainSettings) -> str:
    """Return the line of an epoch: its loss, its score on the hold-out part and its speed."""
    score = f"macro F1 {row.macro_f1:.4f}"
    if row.average_precision is not None:
        score = f"average precision {row.average_precision:.4f}"
    speed = f"{row.images_per_second:,.1f} images/s"
    return f"epoch {row.epoch} of {settings.epochs}, loss {row.loss:.4f}, {score}, {speed}"


def _prepare(
    model: torch.nn.Module,
    data: FoldData,
    settings: TrainSettings,
    distributed: DistributedContext,
    listener: Listener,
) -> _Loop:
    targets, per_step = data.training.targets, settings.batch * settings.accumulate
    if distributed.world_size > 1 and len(targets) < per_step:
        raise OptionError(
            "E204",
            f"a step needs {per_step} images, and the training part of a fold has {len(targets)}",
            hint="lower --batch or --accumulate, or train in one process",
        )
    device = next(model.parameters()).device
    frozen = freeze(model, settings.freeze)
    loss = make_loss(targets, settings, device)
    if data.teacher is not None:
        loss = distillation_loss(loss, data.teacher, activation=settings.activation)
    workers = choose_workers(device.type, parse_policy(settings.augment), processes=distributed.world_size)
    return _Loop(
        data=data,
        settings=settings,
        forward=distributed.prepare(model),
        distributed=distributed,
        steps=count_steps(len(targets), batch=settings.batch, accumulate=settings.accumulate),
        loss=loss,
        batches=BatchSource(data.training, settings.augment, seed=data.seed, workers=workers),
        frozen=frozen,
        listener=listener,
        step_states=None,
    )


def _init_state(model: torch.nn.Module, loop: _Loop) -> TrainingState:
    settings = loop.settings
    optimizer = make_optimizer(
        model,
        settings.optimizer,
        learning_rate=settings.learning_rate,
        weight_decay=settings.weight_decay,
        layer_decay=settings.layer_decay,
    )
    schedule = make_schedule(optimizer, settings.schedule, steps=loop.steps * settings.epochs, warm_up=settings.warm_up)
    averaged = copy.deepcopy(model) if settings.ema is not None else None
    scaler = torch.amp.GradScaler(next(model.parameters()).device.type, enabled=settings.fp16)
    return TrainingState(model, averaged, optimizer, schedule, scaler)


def _run_epoch(state: TrainingState, loop: _Loop) -> None:
    """Train and score the next epoch, and update the state: its log, its best epoch and the epoch that is kept."""
    settings, number = loop.settings, state.done + 1
    start, steps = time.perf_counter(), loop.steps - (0 if state.within is None else state.within.steps)
    loss = _train_epoch(state, loop, number)
    if not np.isfinite(loss):
        raise ModelError("E440", f"{loop.data.name}: the loss of epoch {number} is {loss}")
    speed = steps * settings.batch * settings.accumulate / (time.perf_counter() - start)
    scored = state.model if state.averaged is None else state.averaged
    loop.listener.detail(f"epoch {number}: the hold-out part is predicted")
    scores = _score(scored, loop.data.holdout, settings, loop.distributed)
    score = scores.main
    if score >= state.best_score:
        state.best_epoch, state.best_score = number, score
    if settings.keep == "last" or state.best_epoch == number:
        state.kept = Epoch(number, score, {key: value.clone() for key, value in scored.state_dict().items()})
    state.done = number
    if settings.swa is not None and (averaged := number - (settings.epochs - settings.swa)) >= 1:
        state.mean = add_to_mean(state.mean, state.model, averaged)
    learning_rate = max(group["lr"] for group in state.optimizer.param_groups)
    row = LogRow(number, loss, learning_rate, scores.macro_f1, scores.accuracy, speed, scores.average_precision)
    state.log.append(row)


def _score_mean(state: TrainingState, loop: _Loop) -> Epoch | None:
    """Return the mean of the weights with batch statistics of its own, and its score on the hold-out part.

    The statistics are those of one epoch of augmented images, as in training (`torch.optim.swa_utils.update_bn`). Every
    process computes all of them.
    """
    settings, number = loop.settings, state.done + 1
    if state.mean is None:
        return None
    device = next(state.model.parameters()).device
    generator = torch.Generator().manual_seed(image_seed(loop.data.seed, number, 0))
    order = draw_order(balanced_classes(loop.data.training.targets), balanced=settings.balanced, generator=generator)
    steps = cut_steps(order, batch=settings.batch, accumulate=1)
    made = loop.batches.epoch([batch for step in steps for batch in step], number)
    images = (normalize(_move(torch.from_numpy(pixels), device), settings) for pixels, _ in made)
    found = averaged_model(state.model, state.mean, images, frozen=loop.frozen)
    score = _score(found, loop.data.holdout, settings, loop.distributed).main
    return Epoch(state.done, score, found.state_dict())


def _train_epoch(state: TrainingState, loop: _Loop, number: int) -> float:
    """Train one epoch and return its mean loss, which is not finite as soon as that of one batch is not."""
    settings, data, distributed = loop.settings, loop.data, loop.distributed
    device = next(state.model.parameters()).device
    state.model.train()
    for module in loop.frozen:
        module.eval()
    generator = torch.Generator().manual_seed(image_seed(data.seed, number, 0))
    order = draw_order(balanced_classes(data.training.targets), balanced=settings.balanced, generator=generator)
    steps = cut_steps(order, batch=settings.batch, accumulate=settings.accumulate)
    if not distributed.is_main:  # from here on each process draws its own random numbers
        own = image_seed(data.seed, number, 0, distributed.rank)
        generator.manual_seed(own)
        torch.manual_seed(own)
    first, total = 0, torch.zeros((), dtype=torch.float64, device=device)
    if state.within is not None:
        first, total = state.within.steps, total + state.within.loss
        generator.set_state(state.within.generator)
        state.within = None
    shards = [batch[distributed.shard(len(batch))] for step in steps[first:] for batch in step]
    batches = loop.batches.epoch(shards, number)
    for taken, step in enumerate(steps[first:], first + 1):
        loop.listener.detail(f"epoch {number}: step {taken:,} of {len(steps):,}")
        for part, (pixels, labels) in enumerate(islice(batches, len(step)), 1):
            images = normalize(_move(torch.from_numpy(pixels), device), settings)
            targets = _move(_soft_targets(torch.from_numpy(labels), settings), device)
            images, targets = _mix(images, targets, settings, generator)
            with distributed.gradient_sync(loop.forward, enabled=part == len(step)):
                total += _backward(state, images, targets, loop, share=1 / len(step)) / len(step)
        _step(state, settings)
        if loop.step_states is not None and loop.step_states.is_due:
            loop.step_states.save(state, WithinEpoch(taken, total.item(), generator.get_state()))
    return total.item() / loop.steps


def _move(values: torch.Tensor, device: torch.device) -> torch.Tensor:
    """Copy values to the device; to a GPU from pinned memory, while it still computes the step before."""
    if device.type == "cuda":
        return values.pin_memory().to(device, non_blocking=True)
    return values.to(device)


def _soft_targets(labels: torch.Tensor, settings: TrainSettings) -> torch.Tensor:
    """Return the targets of a batch as float32 ``(B, C)``, from classes ``(B,)`` or 0 and 1 per label.

    Those of a distillation, ``(B, 2 C)``, are what they should be.
    """
    if settings.activation == "sigmoid" or labels.is_floating_point():
        return labels.float()
    return functional.one_hot(labels, len(settings.labels)).float()


def _mix(
    images: torch.Tensor, targets: torch.Tensor, settings: TrainSettings, generator: torch.Generator
) -> tuple[torch.Tensor, torch.Tensor]:
    """Apply random erasing, then MixUp or CutMix: where both are set, each batch gets one of them at even odds."""
    if settings.erasing:
        images = erase(images, share=settings.erasing, generator=generator)
    cuts = settings.cutmix != "none"
    if settings.mixup is not None and (not cuts or torch.rand((), generator=generator) < 0.5):
        return mixup(images, targets, alpha=settings.mixup, generator=generator)
    return cutmix(images, targets, half=settings.cutmix == "half", generator=generator) if cuts else (images, targets)


def _backward(
    state: TrainingState, images: torch.Tensor, targets: torch.Tensor, loop: _Loop, *, share: float
) -> torch.Tensor:
    """Add ``share`` of a batch's gradient to that of the step, and return the batch's loss."""
    settings, distributed = loop.settings, loop.distributed
    precision = torch.float16 if settings.fp16 else torch.bfloat16
    with torch.autocast(images.device.type, precision, enabled=settings.bf16 or settings.fp16):
        logits = loop.forward(images)
    loss = loop.loss(distributed.gather_with_grad(logits), distributed.gather_with_grad(targets))
    torch.autograd.backward(state.scaler.scale(share * distributed.world_size * loss))
    return loss.detach()


def _step(state: TrainingState, settings: TrainSettings) -> None:
    state.scaler.unscale_(state.optimizer)
    if settings.clip is not None:
        torch.nn.utils.clip_grad_norm_(state.model.parameters(), settings.clip)
    before = state.scaler.get_scale()
    state.scaler.step(state.optimizer)
    state.scaler.update()
    state.optimizer.zero_grad()
    if state.scaler.get_scale() < before:  # float16 overflowed: the optimizer skipped the step
        return
    state.schedule.step()
    if state.averaged is not None and settings.ema is not None:
        _update_average(state.averaged, state.model, settings.ema)


@torch.no_grad()
def _update_average(averaged: torch.nn.Module, model: torch.nn.Module, decay: float) -> None:
    """Update the exponential moving average of weights and batch statistics (Polyak and Juditsky 1992)."""
    for old, new in zip(averaged.state_dict().values(), model.state_dict().values(), strict=True):
        if old.is_floating_point():
            old.lerp_(new, 1 - decay)
        else:
            old.copy_(new)


def _score(
    model: torch.nn.Module, images: LabeledImages, settings: TrainSettings, distributed: DistributedContext
) -> HoldoutScores:
    """Return the scores of the hold-out part, of which each process predicts its share."""
    distributed.broadcast_buffers(model)
    pixels = images.decoded.pixels[distributed.shard(len(images.labels))]
    logits = predict_pixels(model, pixels, settings) if len(pixels) else None
    if settings.activation == "sigmoid":
        every = distributed.gather_objects([] if logits is None else logits.tolist())
        return score_labels(images.labels, np.array(every, dtype=np.float32))
    own = [] if logits is None else logits.argmax(axis=1).tolist()
    return score_classes(images.labels, np.array(distributed.gather_objects(own)), classes=len(settings.labels))
