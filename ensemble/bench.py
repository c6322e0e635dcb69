"""Bench: `ens predict` beside the loops that people write, on one job, in turn, several times.

Every pass runs in a fresh process. Before any is timed, all have to give the same answers.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from ensemble.agreement import Agreement, compare, compare_classes, loosest
from ensemble.arms import Job, RunSubmit, run_bound, run_predict
from ensemble.card import ModelCard
from ensemble.devices import choose_device
from ensemble.errors import OptionError
from ensemble.events import SILENT, Listener
from ensemble.listing import list_images
from ensemble.meter import Lap, Loop, Outcome, measure
from ensemble.model_file import read_model
from ensemble.timings import Benchmark, Ratio, Timing, ratio, this_machine

CHECKED = 32  # images on which the arms must agree
ENS, BOUND, SUBMIT = "ens", "bound", "submit"
_LIMIT_OF_SHARE = 0.1  # few of the checked images: the share itself was certified on many


@dataclass(slots=True)
class _Arm:
    """One row of the table; ``cards`` are those of its models."""

    name: str
    kind: str
    loop: Loop[Job]
    job: Job
    cards: Mapping[str, ModelCard]
    ours: str = ""  # the arm of `predict` with the same models


def bench(
    models: Sequence[Path],
    images: Path,
    *,
    loops: Mapping[str, Loop[Job]],
    also: Mapping[str, Sequence[Path]] | None = None,
    recipe: RunSubmit | None = None,
    ids: Sequence[str] | None = None,
    limit: int | None = None,
    boxes: Path | None = None,
    tta: bool = False,
    device: str = "auto",
    batch: int | None = None,
    workers: int | None = None,
    rounds: int = 5,
    left_out: Sequence[str] = (),
    listener: Listener = SILENT,
) -> Benchmark:
    """Time `predict`, its bound and the ``loops`` on the same images, ``rounds`` times in turn.

    ``also`` names further sets of the same members, such as int8 models, that run through `predict` in the same rounds;
    ``recipe`` adds `submit` for each set. ``limit`` takes the first so many images. Odd rounds run in the opposite
    order, so that a machine that slows down hurts all alike. ``left_out`` is what the caller could not offer and why.

    Raises:
        OptionError: E204 when another set has other members.
        DeviceError: E620 when an arm gives other answers than `predict`, E621 when one dies.
        EnsError: as `read_model`, `list_images`, `choose_device` and `predict`.
    """
    where = choose_device(device, listener=listener)
    listed = list_images(images, ids, listener=listener).ids[:limit]
    first = Job(tuple(models), images, listed, tta, str(where), boxes, batch, workers, warm_up=0)
    arms = list(_arms(first, loops, also or {}, recipe))
    total, done = len(arms) * (rounds + 1), 0
    gpu = where.index if where.kind in {"cuda", "tensorrt"} else None
    layout: dict[str, Outcome] = {}

    def run(arm: _Arm, job: Job) -> tuple[Lap, Outcome]:
        """One pass; the bound works as `predict` with the same models last did."""
        nonlocal done
        if arm.kind == BOUND:
            job = replace(job, batch=layout[arm.ours].batch, workers=layout[arm.ours].workers)
        listener.progress("bench", done, total)
        lap, outcome = measure(arm.loop, job, name=arm.name, gpu=gpu)
        done += 1
        layout[arm.name] = replace(outcome, answers={})
        return lap, outcome

    sample = tuple(listed[i] for i in np.unique(np.linspace(0, len(listed) - 1, CHECKED).round().astype(int)))
    outcomes = {arm.name: run(arm, replace(arm.job, ids=sample))[1] for arm in arms}
    agreements = tuple(_agreements(arms, outcomes, exact_device=where.kind == "cpu", sample=sample))
    laps: dict[str, list[Lap]] = {arm.name: [] for arm in arms}
    for number in range(rounds):
        for arm in arms if number % 2 == 0 else reversed(arms):
            warm_up = min(len(listed), max(CHECKED, layout[arm.name].batch))
            laps[arm.name].append(run(arm, replace(arm.job, warm_up=warm_up))[0])
    listener.progress("bench", total, total)
    timings = tuple(Timing(arm.name, len(listed), tuple(laps[arm.name])) for arm in reversed(arms))
    return Benchmark(
        images=len(listed),
        views=first.views,
        device=str(where),
        models={
            arm.name: tuple((c.member, c.arch, c.precision) for c in arm.cards.values())
            for arm in arms
            if arm.kind == ENS
        },
        machine=this_machine(),
        timings=timings,
        ratios=tuple(_ratios(arms, {timing.name: timing for timing in timings})),
        agreements=agreements,
        left_out=tuple(left_out),
    )


def _arms(
    first: Job, loops: Mapping[str, Loop[Job]], also: Mapping[str, Sequence[Path]], recipe: RunSubmit | None
) -> Iterator[_Arm]:
    """All arms in the order they run: `predict` before its bound, which does as it did."""
    cards = _cards(first.models)
    for name, models in {"": first.models, **also}.items():
        own = _cards(models)
        if own.keys() != cards.keys():
            raise OptionError("E204", f"{name} holds {', '.join(sorted(own))}, not {', '.join(sorted(cards))}")
        ours = f"{ENS} {name}".rstrip()
        job = replace(first, models=tuple(models))
        yield _Arm(ours, ENS, run_predict, job, own)
        if recipe is not None:
            yield _Arm(f"{SUBMIT} {name}".rstrip(), SUBMIT, recipe, job, own, ours)
        yield _Arm(f"{BOUND} {name}".rstrip(), BOUND, run_bound, job, own, ours)
    for name, loop in loops.items():
        yield _Arm(name, name, loop, first, cards, ENS)


def _cards(models: Sequence[Path]) -> dict[str, ModelCard]:
    cards = [read_model(path).card for path in models]
    return {card.member: card for card in cards}


def _agreements(
    arms: Sequence[_Arm], outcomes: Mapping[str, Outcome], *, exact_device: bool, sample: tuple[str, ...]
) -> Iterator[Agreement]:
    """Compare each arm with what it stands beside, or raise E620.

    A loop on a GPU computes in fp16 or TF32, whatever the model's card says.
    """
    reference = next(arm for arm in arms if arm.name == ENS)
    for arm in arms:
        other = ENS if arm.kind == ENS else arm.ours
        if arm is reference:
            continue
        if arm.kind == SUBMIT:
            assert isinstance(arm.loop, RunSubmit)
            if not arm.loop.early:
                continue  # its answers are not to be compared with those of anything quicker
            whole = measure(arm.loop.without_exit(), replace(arm.job, ids=sample), name=arm.name)[1]
            limit = _LIMIT_OF_SHARE if arm.loop.share is not None else 0.0
            yield compare_classes(arm.name, outcomes[arm.name].classes, "all its members", whole.classes, limit=limit)
            continue
        own = [] if arm.kind in {ENS, BOUND} or exact_device else ["fp16"]
        limits = {
            member: loosest([card.precision, reference.cards[member].precision, *own])
            for member, card in arm.cards.items()
        }
        yield compare(arm.name, outcomes[arm.name].answers, other, outcomes[other].answers, limits=limits)


def _ratios(arms: Sequence[_Arm], timings: Mapping[str, Timing]) -> Iterator[Ratio]:
    """What is ours over the loops, over its bound, and over `predict` with the first models."""
    loops = [arm for arm in arms if arm.kind not in {ENS, BOUND, SUBMIT}]
    for arm in arms:
        if arm.kind not in {ENS, SUBMIT}:
            continue
        own = [other for other in arms if arm.kind == ENS and other.kind == BOUND and other.ours == arm.name]
        for other in (*reversed(loops), *own):
            yield ratio(timings[arm.name], timings[other.name])
        if arm.name != ENS:
            yield ratio(timings[arm.name], timings[ENS])
