"""The epochs of one fold: learn, score on the people held out, keep the best or the last."""

from __future__ import annotations

import copy
import time
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from torch.nn import functional

from checkpoints.training.augment import Policy, Simple, cutmix, erase, image_seed, mixup, parse_policy
from checkpoints.training.batches import Images, batches, normalise, predict_pixels
from checkpoints.training.distributed import ALONE, Team
from checkpoints.training.init_weights import freeze
from checkpoints.training.loggers import LogRow, Remote, write_log
from checkpoints.training.losses import Loss, class_weights, parse_loss
from checkpoints.training.optimizer import make_optimizer, make_schedule
from checkpoints.training.sampler import count_steps, cut_steps, draw_order
from checkpoints.training.settings import Settings
from checkpoints.training.training_state import Course, Epoch, load_course, save_course
from ensemble.errors import ModelError, OptionError
from ensemble.events import Listener, Notice
from ensemble.metrics import confusion_matrix, macro_f1


@dataclass(frozen=True, slots=True)
class Place:
    """Where a fold's log is written and, when ``origin`` says what is trained from what, its state after each epoch."""

    log: Path
    state: Path
    origin: str | None


@dataclass(frozen=True, slots=True, eq=False)
class _Task:
    """What stays the same from epoch to epoch; an epoch has ``steps`` steps of the optimiser.

    ``answer`` is the model as it is called to learn.
    """

    answer: torch.nn.Module
    team: Team
    seen: Images
    settings: Settings
    seed: int
    steps: int
    loss_of: Loss
    policy: Policy | Simple | None
    frozen: tuple[torch.nn.Module, ...]


def fit(
    model: torch.nn.Module,
    seen: Images,
    held_out: Images,
    settings: Settings,
    name: str,
    *,
    seed: int,
    place: Place,
    remote: Remote,
    listener: Listener,
    team: Team = ALONE,
) -> Epoch:
    """The epoch that is kept; of equally good ones the later.

    Raises:
        ModelError: E440 when a loss is no longer a number, E403 when the state to go on from is damaged.
        OptionError: E204 when several processes have too few images.
    """
    model = team.synchronise(model).to(memory_format=torch.channels_last)
    task = _prepare(model, seen, settings, seed, team)
    course = _begin(model, task)
    if place.origin is not None and load_course(place.state, course, origin=place.origin):
        listener.notice(Notice("I445", f"{name} goes on after epoch {course.done} of {settings.epochs}", place.state))
    team.require_same(course.done, f"state in {place.state.parent}")
    while course.done < settings.epochs and not _is_patience_over(course, settings):
        number = course.done + 1
        began = time.perf_counter()
        loss = _learn(course, task, number)
        if not np.isfinite(loss):
            raise ModelError("E440", f"{name}: the loss of epoch {number} is {loss}")
        speed = task.steps * settings.batch * settings.accumulate / (time.perf_counter() - began)
        scored = course.model if course.averaged is None else course.averaged
        score, accuracy = _score(scored, held_out, settings, team)
        if score >= course.best_score:
            course.best_epoch, course.best_score = number, score
        if settings.keep == "last" or course.best_epoch == number:
            course.kept = Epoch(number, score, {key: value.clone() for key, value in scored.state_dict().items()})
        course.done = number
        rate = max(group["lr"] for group in course.optimizer.param_groups)
        course.log.append(LogRow(number, loss, rate, score, accuracy, speed))
        if team.is_main:
            write_log(place.log, course.log)
            remote.log(course.log[-1])
            if place.origin is not None:
                save_course(place.state, course, origin=place.origin)
        listener.progress(f"train {name}", number, settings.epochs)
    if course.done < settings.epochs:
        listener.progress(f"train {name}", settings.epochs, settings.epochs)
    assert course.kept is not None, "a member is trained for one epoch or more"
    return course.kept


def _is_patience_over(course: Course, settings: Settings) -> bool:
    return settings.patience is not None and course.done - course.best_epoch >= settings.patience


def _prepare(model: torch.nn.Module, seen: Images, settings: Settings, seed: int, team: Team) -> _Task:
    if team.size > 1 and len(seen.labels) < settings.batch * settings.accumulate:
        raise OptionError(
            "E204",
            f"a step needs {settings.batch * settings.accumulate} images, and a fold learns from {len(seen.labels)}",
            hint="lower --batch or --accumulate, or train in one process",
        )
    counts = torch.from_numpy(np.bincount(seen.targets, minlength=len(settings.labels)))
    weights = class_weights(settings.class_weights, counts).to(next(model.parameters()).device)
    frozen = freeze(model, settings.freeze)
    return _Task(
        answer=team.prepare(model),
        team=team,
        seen=seen,
        settings=settings,
        seed=seed,
        steps=count_steps(len(seen.labels), batch=settings.batch, accumulate=settings.accumulate),
        loss_of=parse_loss(settings.loss, weights=weights, gamma=settings.gamma, smoothing=settings.label_smoothing),
        policy=parse_policy(settings.augment),
        frozen=frozen,
    )


def _begin(model: torch.nn.Module, task: _Task) -> Course:
    settings = task.settings
    optimizer = make_optimizer(
        model,
        settings.optimizer,
        learning_rate=settings.learning_rate,
        weight_decay=settings.weight_decay,
        layer_decay=settings.layer_decay,
    )
    schedule = make_schedule(optimizer, settings.schedule, steps=task.steps * settings.epochs, warm_up=settings.warm_up)
    averaged = copy.deepcopy(model) if settings.ema is not None else None
    scaler = torch.amp.GradScaler(next(model.parameters()).device.type, enabled=settings.fp16)
    return Course(model, averaged, optimizer, schedule, scaler)


def _learn(course: Course, task: _Task, number: int) -> float:
    """One epoch; its mean loss, which is no number as soon as that of one batch is none."""
    settings, seen, team = task.settings, task.seen, task.team
    device = next(course.model.parameters()).device
    course.model.train()
    for module in task.frozen:
        module.eval()
    generator = torch.Generator().manual_seed(image_seed(task.seed, number, 0))
    order = draw_order(seen.targets, balanced=settings.balanced, generator=generator)
    steps = cut_steps(order, batch=settings.batch, accumulate=settings.accumulate)
    if not team.is_main:  # what is drawn from here on is each process's own
        own = image_seed(task.seed, number, 0, team.number)
        generator.manual_seed(own)
        torch.manual_seed(own)
    shares = [team.cut(batch) for step in steps for batch in step]
    made = batches(seen, shares, task.policy, seed=task.seed, epoch=number)
    total = torch.zeros((), dtype=torch.float64, device=device)
    for step in steps:
        for part, (pixels, labels) in enumerate(islice(made, len(step)), 1):
            images = normalise(torch.from_numpy(pixels).to(device), settings)
            targets = functional.one_hot(torch.from_numpy(labels), len(settings.labels)).float().to(device)
            images, targets = _mix(images, targets, settings, generator)
            with team.averaging(task.answer, now=part == len(step)):
                total += _backward(course, images, targets, task, share=1 / len(step)) / len(step)
        _step(course, settings)
    return total.item() / task.steps


def _mix(
    images: torch.Tensor, targets: torch.Tensor, settings: Settings, generator: torch.Generator
) -> tuple[torch.Tensor, torch.Tensor]:
    """Erase, and then mix the batch with itself; of two ways to mix each batch takes one, with even chances."""
    if settings.erasing:
        images = erase(images, share=settings.erasing, generator=generator)
    cuts = settings.cutmix != "none"
    if settings.mixup is not None and (not cuts or torch.rand((), generator=generator) < 0.5):
        return mixup(images, targets, alpha=settings.mixup, generator=generator)
    return cutmix(images, targets, half=settings.cutmix == "half", generator=generator) if cuts else (images, targets)


def _backward(
    course: Course, images: torch.Tensor, targets: torch.Tensor, task: _Task, *, share: float
) -> torch.Tensor:
    """Add ``share`` of the gradient of a batch to that of the step; its loss."""
    settings, team = task.settings, task.team
    precision = torch.float16 if settings.fp16 else torch.bfloat16
    with torch.autocast(images.device.type, precision, enabled=settings.bf16 or settings.fp16):
        logits = task.answer(images)
    loss = task.loss_of(team.whole(logits), team.whole(targets))
    torch.autograd.backward(course.scaler.scale(share * team.size * loss))
    return loss.detach()


def _step(course: Course, settings: Settings) -> None:
    course.scaler.unscale_(course.optimizer)
    if settings.clip is not None:
        torch.nn.utils.clip_grad_norm_(course.model.parameters(), settings.clip)
    before = course.scaler.get_scale()
    course.scaler.step(course.optimizer)
    course.scaler.update()
    course.optimizer.zero_grad()
    if course.scaler.get_scale() < before:  # float16 overflowed: it was no step, and the next one is scaled less
        return
    course.schedule.step()
    if course.averaged is not None and settings.ema is not None:
        _average(course.averaged, course.model, settings.ema)


@torch.no_grad()
def _average(averaged: torch.nn.Module, model: torch.nn.Module, kept: float) -> None:
    """Exponential moving average of weights and batch statistics (Polyak and Juditsky 1992)."""
    for old, new in zip(averaged.state_dict().values(), model.state_dict().values(), strict=True):
        if old.is_floating_point():
            old.lerp_(new, 1 - kept)
        else:
            old.copy_(new)


def _score(model: torch.nn.Module, images: Images, settings: Settings, team: Team) -> tuple[float, float]:
    """Macro F1 and accuracy."""
    team.spread_statistics(model)
    pixels = images.photos.pixels[team.share(len(images.labels))]
    own = predict_pixels(model, pixels, settings).argmax(axis=1).tolist() if len(pixels) else []
    answered = np.array(team.joined(own))
    confusion = confusion_matrix(images.labels, answered, classes=len(settings.labels))
    return float(macro_f1(confusion)), float(np.mean(answered == images.labels))
