"""Bench: `ens predict` beside the loops that people write, on one job, in turn, several times.

Every pass runs in a fresh process. Before any is timed, all have to give the same answers.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from ensemble.bench.agreement import Agreement, Limit, compare, compare_classes, loosest
from ensemble.bench.contenders import Job, RunSubmit, run_bound, run_predict
from ensemble.bench.process_meter import Lap, Loop, Outcome, measure
from ensemble.bench.results import Benchmark, Ratio, Timing, ratio, this_machine
from ensemble.card import ModelCard
from ensemble.errors import OptionError
from ensemble.events import SILENT, Listener
from ensemble.images.listing import list_images
from ensemble.runtime.model_file import read_model
from ensemble.runtime.providers import choose_device
from ensemble.submit.exit_thresholds import Keep

CHECKED = 32  # images on which the arms must agree
ENS, BOUND, SUBMIT = "ens", "bound", "submit"
_CHANGED, _CHANGED_BY_LOSS = 0.1, 0.4  # of the few images that are checked; the goal itself was certified on many


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
    ``recipe`` adds `submit` for each set. ``limit`` takes the first so many images. Every other round runs in the
    opposite order, so that a machine that slows down hurts all alike. ``left_out`` is what the caller could not offer
    and why.

    Raises:
        OptionError: E204 when another set has other members.
        DeviceError: E620 when an arm gives other answers than `predict`, E621 when one dies.
        EnsError: as `read_model`, `list_images`, `choose_device` and `predict`.
    """
    where = choose_device(device, listener=listener)
    listed = list_images(images, ids, listener=listener).ids[:limit]
    with tempfile.TemporaryDirectory(prefix="ens-bench-") as scratch:
        first = Job(tuple(models), images, listed, tta, str(where), boxes, batch, workers, scratch=Path(scratch))
        arms = list(_arms(first, loops, also or {}, recipe))
        passes = _Passes(len(arms) * (rounds + 1), where.index if where.is_gpu else None, listener)
        agreements = _check(arms, passes, exact_device=where.kind == "cpu")
        laps: dict[str, list[Lap]] = {arm.name: [] for arm in arms}
        for number in range(rounds):
            for arm in arms if number % 2 == 0 else reversed(arms):
                warm_up = min(len(listed), max(CHECKED, passes.layout[arm.name].batch))
                laps[arm.name].append(passes.run(arm, replace(arm.job, warm_up=warm_up))[0])
        passes.finish()
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


@dataclass(slots=True)
class _Passes:
    """Runs one pass after another; ``layout`` is what each arm last said of its batches and workers."""

    total: int
    gpu: int | None
    listener: Listener
    done: int = 0
    layout: dict[str, Outcome] = field(default_factory=dict)

    def run(self, arm: _Arm, job: Job) -> tuple[Lap, Outcome]:
        """One pass; the bound works as `predict` with the same models last did."""
        self.listener.progress("bench", self.done, self.total)
        if arm.kind == BOUND:
            ours = self.layout[arm.ours]
            job = replace(job, batch=ours.batch, workers=ours.workers, at_once=ours.at_once)
        lap, outcome = measure(arm.loop, job, name=arm.name, gpu=self.gpu)
        self.done += 1
        self.layout[arm.name] = replace(outcome, answers={})
        return lap, outcome

    def finish(self) -> None:
        """All passes have run."""
        self.listener.progress("bench", self.total, self.total)


def _check(arms: Sequence[_Arm], passes: _Passes, *, exact_device: bool) -> tuple[Agreement, ...]:
    """Compare what each arm answers about some of the images with what it stands beside, or raise E620."""
    ids = arms[0].job.ids
    sample = tuple(ids[i] for i in np.unique(np.linspace(0, len(ids) - 1, CHECKED).round().astype(int)))
    outcomes = {arm.name: passes.run(arm, replace(arm.job, ids=sample))[1] for arm in arms}
    found = []
    for arm in arms:
        if arm.kind == SUBMIT:
            assert isinstance(arm.loop, RunSubmit)
            if arm.loop.early:  # otherwise nothing quicker stands beside it
                found.append(_check_early_exit(arm, arm.loop, replace(arm.job, ids=sample), outcomes[arm.name]))
        elif arm.name != ENS:
            beside = ENS if arm.kind == ENS else arm.ours
            found.append(
                compare(
                    arm.name,
                    outcomes[arm.name].answers,
                    beside,
                    outcomes[beside].answers,
                    limits=_limits(arm, arms[0], exact_device=exact_device),
                )
            )
    return tuple(found)


def _check_early_exit(arm: _Arm, loop: RunSubmit, job: Job, outcome: Outcome) -> Agreement:
    """Compare an early exit's classes with those of all members on all images."""
    whole = measure(loop.without_exit(), job, name=arm.name)[1].classes
    limit = 0.0
    if loop.goal is not None:
        limit = max(_CHANGED, 2 * (1 - loop.goal.share)) if isinstance(loop.goal, Keep) else _CHANGED_BY_LOSS
    return compare_classes(arm.name, outcome.classes, "all its members", whole, limit=limit)


def _limits(arm: _Arm, reference: _Arm, *, exact_device: bool) -> dict[str, Limit]:
    """How far an arm's members may be from those of `predict`, by the precisions that take part."""
    # on a GPU a loop computes in fp16 or TF32, whatever the model's card says
    own = [] if exact_device or arm.kind in {ENS, BOUND} else ["fp16"]
    return {
        member: loosest([card.precision, reference.cards[member].precision, *own]) for member, card in arm.cards.items()
    }


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
