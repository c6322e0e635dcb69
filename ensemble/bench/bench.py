"""Benchmark `ens predict` against other implementations of the same job, in turn, for several rounds.

Every pass runs in a fresh process. All contenders must give the same predictions before any of them is timed.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from ensemble.bench.agreement import Agreement, Limit, MemberLogits, compare, compare_classes, loosest
from ensemble.bench.contenders import BenchJob, RunSubmit, run_bound, run_predict
from ensemble.bench.fused_contenders import fused_cards, run_fused, run_fused_bound
from ensemble.bench.process_meter import Pass, PassCost, PassFunction, PassResult, measure
from ensemble.bench.results import Benchmark, ModelInfo, Ratio, Timing, ratio, this_machine
from ensemble.card import ModelCard
from ensemble.errors import OptionError
from ensemble.events import SILENT, Listener
from ensemble.fuse.detect import is_fused
from ensemble.images.listing import list_images
from ensemble.runtime.model_file import read_model
from ensemble.runtime.run_device import choose_run_device
from ensemble.submit.exit_thresholds import Keep

CHECKED = 32  # images on which the contenders must agree
ENS, BOUND, SUBMIT = "ens", "bound", "submit"
# Shares of the few checked images whose class an early exit may change. Its goal was certified on many more images.
_CHANGED, _CHANGED_BY_LOSS = 0.1, 0.4


@dataclass(frozen=True, slots=True)
class BenchPlan:
    """The extent of a benchmark: the first ``limit`` images, ``rounds`` times, with the contenders in ``arms``.

    ``arms`` are names such as ``ens`` or ``bound``, or one with a set of models such as ``ens int8``; none means all.
    ``quick`` leaves out the passes that only check: the outputs of the first round are compared instead, on all images
    that both contenders predicted, and a difference is an error after it was timed.
    """

    limit: int | None = None
    rounds: int = 5
    arms: tuple[str, ...] = ()
    quick: bool = False


@dataclass(slots=True)
class _Contender:
    """One row of the results.

    ``cards`` are those of its models; ``ours`` names the contender that runs `predict` with the same models.
    """

    name: str
    kind: str
    function: PassFunction[BenchJob]
    job: BenchJob
    cards: Mapping[str, ModelCard]
    ours: str = ""


def bench(
    job: BenchJob,
    *,
    baselines: Mapping[str, PassFunction[BenchJob]],
    also: Mapping[str, Sequence[Path]] | None = None,
    recipe: RunSubmit | None = None,
    plan: BenchPlan = BenchPlan(),
    left_out: Sequence[str] = (),
    listener: Listener = SILENT,
) -> Benchmark:
    """Time `predict`, its bound and the ``baselines`` on the same images, several rounds in turn.

    Every other round runs in the opposite order, so that a machine that slows down affects all contenders alike.

    Args:
        job: Models, or one fused file; images and settings. No ``ids`` means all images in the folder.
        baselines: Other implementations of the same job, by name.
        also: Further models of the same members, such as int8 ones, which run through `predict` in the same rounds.
        recipe: Also time `submit`, with each set of models.
        plan: Which contenders run, how often and on how many images.
        left_out: What the caller could not include, and why.
        listener: Hears notices and progress.

    Raises:
        OptionError: E204 when another set has other members, or an arm of the plan is not one of the contenders.
        DeviceError: E620 when the predictions of a contender differ from those of `predict`, E621 when one dies.
        EnsError: as `read_model`, `list_images`, `choose_run_device` and `predict`.
    """
    ids = list_images(job.images, job.ids or None, listener=listener).ids[: plan.limit]
    fused = len(job.models) == 1 and is_fused(job.models[0])
    every_model = () if fused else (*job.models, *(path for paths in (also or {}).values() for path in paths))
    device = choose_run_device(job.device, map(read_model, every_model), listener=listener)
    with tempfile.TemporaryDirectory(prefix="ens-bench-") as scratch:
        first = replace(job, ids=ids, device=device, scratch=Path(scratch))
        every = _fused_contenders(first, baselines) if fused else _contenders(first, baselines, also or {}, recipe)
        contenders = _choose(list(every), plan.arms)
        extra = 0 if plan.quick else 1
        passes = _Passes(len(contenders) * (plan.rounds + extra), device.index if device.is_gpu else None, listener)
        exact = device.kind == "cpu"
        agreements = () if plan.quick else _check(contenders, passes, exact_device=exact)
        costs: dict[str, list[PassCost]] = {one.name: [] for one in contenders}
        results: dict[str, PassResult] = {}
        for number in range(plan.rounds):
            for one in contenders if number % 2 == 0 else reversed(contenders):
                batch = passes.layout[one.name].batch if one.name in passes.layout else 0
                done = passes.run(one, replace(one.job, warm_up=min(len(ids), max(CHECKED, batch))))
                costs[one.name].append(done.cost)
                if number == 0 and plan.quick:
                    results[one.name] = done.result
        passes.finish()
        if plan.quick:
            agreements = _compare_all(contenders, results, contenders[0].job, exact_device=exact)
    timings = tuple(Timing(one.name, len(ids), tuple(costs[one.name])) for one in reversed(contenders))
    return Benchmark(
        images=len(ids),
        views=first.views,
        device=str(device),
        models={one.name: tuple(map(ModelInfo.of, one.cards.values())) for one in contenders if one.kind == ENS},
        machine=this_machine(),
        timings=timings,
        ratios=tuple(_ratios(contenders, {timing.name: timing for timing in timings})),
        agreements=agreements,
        left_out=tuple(left_out),
    )


def _contenders(
    first: BenchJob,
    baselines: Mapping[str, PassFunction[BenchJob]],
    also: Mapping[str, Sequence[Path]],
    recipe: RunSubmit | None,
) -> Iterator[_Contender]:
    """Yield the contenders in the order they run: `predict` before its bound, which takes over its batch size."""
    cards = _cards(first.models)
    for name, models in {"": first.models, **also}.items():
        own = _cards(models)
        if own.keys() != cards.keys():
            raise OptionError(
                "E204", f"{name} holds the members {', '.join(sorted(own))}, not {', '.join(sorted(cards))}"
            )
        ours = f"{ENS} {name}".rstrip()
        job = replace(first, models=tuple(models))
        yield _Contender(ours, ENS, run_predict, job, own)
        if recipe is not None:
            yield _Contender(f"{SUBMIT} {name}".rstrip(), SUBMIT, recipe, job, own, ours)
        yield _Contender(f"{BOUND} {name}".rstrip(), BOUND, run_bound, job, own, ours)
    for name, baseline in baselines.items():
        yield _Contender(name, name, baseline, first, cards, ENS)


def _fused_contenders(first: BenchJob, baselines: Mapping[str, PassFunction[BenchJob]]) -> Iterator[_Contender]:
    """Yield the contenders of a fused file, which has its views inside."""
    cards = fused_cards(first)
    yield _Contender(ENS, ENS, run_fused, first, cards)
    yield _Contender(BOUND, BOUND, run_fused_bound, first, cards, ENS)
    for name, baseline in baselines.items():
        yield _Contender(name, name, baseline, first, cards, ENS)


def _choose(contenders: list[_Contender], arms: Sequence[str]) -> list[_Contender]:
    """Return the contenders of these names, in the order they run.

    Raises:
        OptionError: E204 when a name is not one of theirs, or the bound is asked for without `predict`, whose batch
            size it takes over.
    """
    names = [one.name for one in contenders]
    unknown = [arm for arm in arms if arm not in names]
    if unknown:
        raise OptionError("E204", f"{unknown[0]!r} is not a contender here; there are {', '.join(names)}")
    chosen = [one for one in contenders if not arms or one.name in arms]
    for one in chosen:
        if one.ours and one.ours not in [other.name for other in chosen]:
            hint = f"add {one.ours} to --arms"
            raise OptionError("E204", f"{one.name} is compared with {one.ours}, which is not among the arms", hint=hint)
    return chosen


def _cards(models: Sequence[Path]) -> dict[str, ModelCard]:
    cards = [read_model(path).card for path in models]
    for card in cards:
        card.require_rgb("the benchmark")
    return {card.member: card for card in cards}


@dataclass(slots=True)
class _Passes:
    """Runs one pass after another; ``layout`` keeps the last batch size and workers of each contender."""

    total: int
    gpu: int | None
    listener: Listener
    done: int = 0
    layout: dict[str, PassResult] = field(default_factory=dict)

    def run(self, contender: _Contender, job: BenchJob) -> Pass:
        """Run one pass; the bound uses the batch size and workers that `predict` last used with the same models."""
        self.listener.progress("bench", self.done, self.total)
        if contender.kind == BOUND:
            ours = self.layout[contender.ours]
            job = replace(job, batch=ours.batch, workers=ours.workers, at_once=ours.at_once)
        done = measure(contender.function, job, name=contender.name, gpu=self.gpu)
        self.done += 1
        self.layout[contender.name] = replace(done.result, logits={})
        return done

    def finish(self) -> None:
        """Report that all passes have run."""
        self.listener.progress("bench", self.total, self.total)


def _check(contenders: Sequence[_Contender], passes: _Passes, *, exact_device: bool) -> tuple[Agreement, ...]:
    """Compare the predictions of each contender on some of the images with its reference, or raise E620."""
    ids = contenders[0].job.ids
    sample = tuple(ids[i] for i in np.unique(np.linspace(0, len(ids) - 1, CHECKED).round().astype(int)))
    results = {one.name: passes.run(one, replace(one.job, ids=sample)).result for one in contenders}
    return _compare_all(contenders, results, replace(contenders[0].job, ids=sample), exact_device=exact_device)


def _compare_all(
    contenders: Sequence[_Contender], results: Mapping[str, PassResult], job: BenchJob, *, exact_device: bool
) -> tuple[Agreement, ...]:
    """Compare what the contenders predicted for the images of ``job``, each with its reference, or raise E620."""
    found = []
    for one in contenders:
        if one.kind == SUBMIT:
            assert isinstance(one.function, RunSubmit)
            if one.function.early:  # without an early exit there is nothing that could change a class
                own = replace(one.job, ids=job.ids)
                found.append(_check_early_exit(one, one.function, own, results[one.name]))
        elif one.name != ENS:
            reference = ENS if one.kind == ENS else one.ours
            found.append(
                compare(
                    one.name,
                    results[one.name].logits,
                    reference,
                    _first_rows(results[reference].logits, results[one.name].logits),
                    limits=_limits(one, contenders[0], exact_device=exact_device),
                )
            )
    return tuple(found)


def _first_rows(logits: MemberLogits, like: MemberLogits) -> MemberLogits:
    """Return the logits of as many images as ``like`` has: the bound keeps only some."""
    return {
        member: {view: values[: len(like[member][view])] for view, values in views.items()}
        for member, views in logits.items()
    }


def _check_early_exit(contender: _Contender, function: RunSubmit, job: BenchJob, result: PassResult) -> Agreement:
    """Compare the classes of an early exit with those of all members on all images."""
    without = measure(function.without_exit(), job, name=contender.name).result.classes
    limit = 0.0
    if function.goal is not None:
        limit = max(_CHANGED, 2 * (1 - function.goal.share)) if isinstance(function.goal, Keep) else _CHANGED_BY_LOSS
    return compare_classes(contender.name, result.classes, "all its members", without, limit=limit)


def _limits(contender: _Contender, reference: _Contender, *, exact_device: bool) -> dict[str, Limit]:
    """Return the limits of a contender's members against those of `predict`, by the precisions involved."""
    # on a GPU a baseline computes in fp16 or TF32, whatever the model's card says
    own = [] if exact_device or contender.kind in {ENS, BOUND} else ["fp16"]
    return {
        member: loosest([card.precision, reference.cards[member].precision, *own])
        for member, card in contender.cards.items()
    }


def _ratios(contenders: Sequence[_Contender], timings: Mapping[str, Timing]) -> Iterator[Ratio]:
    """Yield `predict` and `submit` over the baselines, over their bound, and over `predict` with the first models."""
    baselines = [one for one in contenders if one.kind not in {ENS, BOUND, SUBMIT}]
    for one in contenders:
        if one.kind not in {ENS, SUBMIT}:
            continue
        own = [other for other in contenders if one.kind == ENS and other.kind == BOUND and other.ours == one.name]
        for other in (*reversed(baselines), *own):
            yield ratio(timings[one.name], timings[other.name])
        if one.name != ENS:
            yield ratio(timings[one.name], timings[ENS])
