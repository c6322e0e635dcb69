"""Submit: apply a saved recipe to images and write the submission, with no more forward passes than needed."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from ensemble import files
from ensemble.arrays import Classes, Floats
from ensemble.blend.blend import blend
from ensemble.blend.decision_rules import decide_labels
from ensemble.blend.recipe import Recipe
from ensemble.errors import DataError, ModelError, PredictionError, UnreadableImagesError, enumerate_some
from ensemble.events import SILENT, Listener, Notice, Recorder
from ensemble.ids import without_ids
from ensemble.images.face_boxes import Boxes
from ensemble.images.listing import Listing, list_images
from ensemble.images.views import View, views_by_name
from ensemble.predict.bad_images import ERRORS, describe_priors, tell_unread, unread, write_errors
from ensemble.predict.batch_size import SIZES
from ensemble.predict.inputs import Inputs, select_boxes
from ensemble.predict.memory_budget import Bounds, fit_chunks, need_of
from ensemble.predict.options import RunOptions
from ensemble.predict.pipeline import Pipeline
from ensemble.predict.predict import BATCH, RUN, predict
from ensemble.predict.result import Predicted
from ensemble.predict.timing import Stopwatch
from ensemble.predictions.dataset import Predictions, read_predictions
from ensemble.predictions.members import common_images
from ensemble.runtime.device import Device
from ensemble.runtime.machine import available_cores, available_memory
from ensemble.runtime.model_file import ModelFile, find_models, read_model
from ensemble.runtime.run_device import choose_run_device
from ensemble.submission.sheet import Submission
from ensemble.submit.chunks import Plan, answers_of, begun_run, filled_chunk, rows_of_chunk, rows_per_pass, run_chunks
from ensemble.submit.destination import Destination, require_answers_known, write_answers
from ensemble.submit.early_exit import ForwardPass, in_order, passes_of, require_early_exit, used_part
from ensemble.submit.exit_thresholds import Calibration, Goal, calibrate
from ensemble.submit.result import PassCount, Submitted
from ensemble.submit.time_budget import fit_to_budget

EXACT = "exact"


@dataclass(frozen=True, slots=True, eq=False)
class EarlyExit:
    """``goal`` bounds the allowed change in answers; None means exact early exit.

    A goal needs out-of-fold predictions ``oof``, and takes classes and persons from ``truth`` where it is given.
    """

    goal: Goal | None = None
    oof: Sequence[Predictions] = ()
    truth: Path | None = None


@dataclass(frozen=True, slots=True, eq=False)
class _Answered:
    """The ``classes`` ``(N,)`` of ``ids``, and what they took; see `Submitted`.

    ``probabilities`` ``(N, C)`` are not known after an early exit. ``seen`` is by pass of the plan.
    """

    plan: Plan
    ids: tuple[str, ...]
    classes: Classes
    seen: tuple[int, ...]
    filled: tuple[str, ...]
    missing: tuple[str, ...]
    stages: Mapping[str, float]
    decisions: Mapping[str, Mapping[str, str]]
    saved_time: float | None = 0.0
    calibration: Calibration | None = None
    probabilities: Floats | None = None

    def submission(self, recipe: Recipe) -> Submission:
        """Return the answers for the images."""
        independent = recipe.activation == "sigmoid"
        decisions = None if self.probabilities is None else decide_labels(self.probabilities, recipe.rule)
        return Submission(self.ids, self.classes, recipe.labels, self.probabilities, decisions, independent=independent)


def submit(
    recipe: Recipe,
    images: Path,
    models: Sequence[Path],
    destination: Destination,
    *,
    early_exit: EarlyExit | None = None,
    budget: float | None = None,
    boxes: Boxes | None = None,
    options: RunOptions = RunOptions(),  # noqa: B008 - frozen
) -> Submitted:
    """Predict what the recipe weighs, blend, decide and write the submission.

    Without ``early_exit`` and ``budget`` the file is that of `predict` and `blend`, byte for byte; with an exact early
    exit too. ``budget`` seconds leave members out where this machine is too slow for all. With an early exit,
    ``options.memory`` has to hold the pixels of a whole chunk for each worker.

    Raises:
        OptionError: E207 when the recipe's answers cannot be known early.
        DataError: E326 when images could not be read and ``on_bad_image`` is ``fail``, or when none could be: all
            others are done, ``errors.csv`` names them, and no submission is written; others as `predict`.
        ModelError: E428 when two models have one name.
        PredictionError: E530 when the recipe's members have no models, E534 when images are left out and may not be.
        EnsError: as `predict`, `blend`, `calibrate` and `write_submission`.
    """
    began = time.monotonic()
    recorder = Recorder(options.listener)
    work = destination.work
    require_answers_known(recipe, destination, early_exit=early_exit is not None)
    files.require_writable(work)
    recipe = used_part(recipe)
    if early_exit is not None:
        require_early_exit(recipe, exact=early_exit.goal is None)
    found = find_members(recipe, models, recorder)
    plan = Plan(recipe, passes_of(recipe), found, _views_of(recipe, found))
    listing = list_images(images, destination.images, listener=recorder)
    begun = () if options.fresh else begun_run(work, found)
    device = choose_run_device(options.device, found.values(), begun=begun, listener=recorder)
    options = replace(options, device=device, workers=options.workers or available_cores(), listener=recorder)
    options = replace(options, errors=options.errors or work / ERRORS)
    inputs = Inputs(listing, select_boxes(list(found.values()), boxes, listing, recorder))
    fit = None
    if budget is not None:
        fit = fit_to_budget(plan, inputs, work / "budget.json", seconds=budget, device=device, options=options)
        plan = plan.keep(fit.kept)
    plan = replace(plan, boxes=boxes)
    if early_exit is None:
        answered = _without_exit(plan, listing, images, destination, options)
    else:
        answered = _with_exit(plan, inputs, early_exit, destination, device, options)
    answers = answered.submission(recipe)
    rows = write_answers(destination, answers, recipe, missing=answered.missing, listener=recorder)
    passes = answered.plan.passes
    done = Submitted(
        path=destination.path,
        rows=rows,
        device=str(device),
        early_exit=None if early_exit is None else str(early_exit.goal or EXACT),
        passes=sum(answered.seen),
        whole=(len(listing) - len(answered.filled) - len(answered.missing)) * len(passes),
        cells=tuple(
            PassCount(one.member, one.view, one.weight, rows) for one, rows in zip(passes, answered.seen, strict=True)
        ),
        seconds=time.monotonic() - began,
        stages=answered.stages,
        saved_time=answered.saved_time,
        calibration=answered.calibration,
        fit=fit,
        decisions=answered.decisions,
        filled=answered.filled,
        missing=answered.missing,
    )
    _write_record(work / RUN, done, plan.models, recorder)
    return done


def _views_of(recipe: Recipe, models: Mapping[str, ModelFile]) -> dict[str, View]:
    """Return the views that a recipe weighs, by name.

    Raises:
        OptionError: E201 when one is unknown, or does not fit a model.
    """
    passes = passes_of(recipe)
    views = views_by_name(one.view for one in passes)
    for one in passes:
        views[one.view].require_fits(
            models[one.member].card.preprocess.size, models[one.member].card.labels, member=one.member
        )
    return views


def _without_exit(
    plan: Plan, listing: Listing, images: Path, destination: Destination, options: RunOptions
) -> _Answered:
    """Predict all images with all members, and blend."""
    runs = _predict_groups(plan, listing, images, destination.work / "preds", options)
    members = [run for done in runs for run in done.members]
    found = [read_predictions(destination.work / "preds" / name) for name in plan.models]
    common = common_images(found, allow_missing=destination.allow_missing)
    ids = without_ids(listing.ids, common.missing)
    blended = blend(common.members, plan.recipe, ids=ids, listener=options.listener)
    stages: dict[str, float] = {}
    for done in runs:
        for stage in ("read", "decode", "resize", "copy"):
            if stage in done.seconds:
                stages[stage] = stages.get(stage, 0.0) + done.seconds[stage]
    return _Answered(
        plan=plan,
        ids=ids,
        classes=blended.classes,
        probabilities=blended.probabilities,
        seen=(len(listing) - len(blended.filled) - len(common.missing),) * len(plan.passes),
        filled=blended.filled,
        missing=common.missing,
        stages=stages | {run.member: run.seconds for run in members},
        decisions={run.member: run.decisions for run in members},
    )


def _predict_groups(plan: Plan, listing: Listing, images: Path, folder: Path, options: RunOptions) -> list[Predicted]:
    """Predict with every member, those with the same views over one decode.

    Raises:
        UnreadableImagesError: E326 when images could not be read, once all members are done.
    """
    together: dict[tuple[str, ...], list[str]] = {}
    for group in plan.recipe.groups.values():
        together.setdefault(tuple(plan.recipe.views_of(group)), []).extend(group.members)
    runs: list[Predicted] = []
    fault: UnreadableImagesError | None = None
    for wanted, names in together.items():
        cropped = any(plan.models[name].card.preprocess.face is not None for name in names)
        try:
            done = predict(
                [plan.models[name].path for name in names],
                images,
                folder,
                views=[view for name, view in plan.views.items() if name in wanted],
                ids=listing.ids,
                boxes=plan.boxes if cropped else None,
                options=options,
            )
        except UnreadableImagesError as err:
            fault = err
        else:
            runs.append(done)
    if fault is not None:
        raise fault
    return runs


def _with_exit(
    plan: Plan,
    inputs: Inputs,
    early_exit: EarlyExit,
    destination: Destination,
    device: Device,
    options: RunOptions,
) -> _Answered:
    """Run the passes one after the other, each on the images whose answer can still change."""
    # what a pass costs, near enough and the same everywhere: the order must not depend on a clock
    cost = {name: float(len(m.data) * np.prod(m.card.preprocess.size)) for name, m in plan.models.items()}
    plan = replace(plan, passes=in_order(plan.passes, cost, whole_groups=early_exit.goal is not None))
    calibration = None
    if early_exit.goal is not None:
        calibration = calibrate(
            plan.recipe,
            plan.passes,
            early_exit.oof,
            early_exit.goal,
            truth=early_exit.truth,
            listener=options.listener,
        )
        plan = replace(plan, stops=calibration.stops)
    bounds = _bounds(plan, inputs.listing, device, options)
    pipeline = Pipeline(
        inputs,
        on_gpu=device.is_gpu,
        workers=bounds.workers,
        ahead=bounds.ahead,
        sizes=() if options.batch else SIZES,
        listener=options.listener,
    )
    ran = run_chunks(
        plan,
        inputs.listing,
        destination.work / "early",
        pipeline=pipeline,
        device=device,
        batch=bounds.batch,
        fresh=options.fresh,
        listener=options.listener,
    )
    handled = _handle_unread(plan, inputs.listing, ran.faults, destination, options)
    chunks = [*ran.chunks, filled_chunk(plan, handled.filled)] if handled.filled else ran.chunks
    seen = rows_per_pass(chunks, len(plan.passes))
    read = len(inputs.listing) - len(handled.filled) - len(handled.missing)
    return _Answered(
        plan=plan,
        ids=tuple(name for chunk in chunks for name in chunk.ids),
        classes=answers_of(plan, chunks),
        seen=tuple(seen),
        filled=handled.filled,
        missing=handled.missing,
        stages={stage: spent for stage, spent in pipeline.watch.seconds.items() if stage != "write"},
        decisions=ran.decisions,
        saved_time=share_of_time(plan.passes, seen, read, pipeline.watch),
        calibration=calibration,
    )


def _bounds(plan: Plan, listing: Listing, device: Device, options: RunOptions) -> Bounds:
    """Fit workers and batches into the memory of this machine."""
    memory, batch = options.memory or available_memory() // 2, options.batch or BATCH[device.kind]
    workers = options.workers or available_cores()
    need = need_of(list(plan.models.values()), listing, device)
    bounds = fit_chunks(need, memory, rows=rows_of_chunk(device), workers=workers, batch=batch, on_gpu=device.is_gpu)
    if bounds.workers < workers or bounds.batch < batch:
        message = f"{memory / 2**30:.1f} GB of memory are enough for {bounds}"
        options.listener.notice(Notice("W603", message))
    return bounds


@dataclass(frozen=True, slots=True)
class _Unread:
    """The images that could not be read: those to be filled, or those without a row."""

    filled: tuple[str, ...] = ()
    missing: tuple[str, ...] = ()


def _handle_unread(
    plan: Plan,
    listing: Listing,
    faults: Mapping[int, DataError],
    destination: Destination,
    options: RunOptions,
) -> _Unread:
    """Name the images that could not be read in ``errors.csv``, and apply ``on_bad_image``.

    Raises:
        DataError: E326 when the policy is ``fail``, or when no image could be read.
        PredictionError: E534 when images are to be left out and may not be.
    """
    path = options.errors or destination.work / ERRORS
    write_errors(path, listing, faults)
    if not faults:
        return _Unread()
    ids, policy = tuple(listing.ids[row] for row in sorted(faults)), options.on_bad_image
    if policy == "fail" or len(ids) == len(listing):
        raise unread(faults, listing, path, kept="all others are done and kept")
    filling = f"filled with {describe_priors(model.card for model in plan.models.values())}"
    tell_unread(faults, listing, path, "left out" if policy == "skip" else filling, options.listener)
    if policy == "fill":
        return _Unread(filled=ids)
    if not destination.allow_missing:
        raise PredictionError("E534", f"{len(ids):,} images could not be read: {enumerate_some(list(ids))}")
    return _Unread(missing=ids)


def _write_record(path: Path, done: Submitted, models: Mapping[str, ModelFile], recorder: Recorder) -> None:
    """Write what ran as JSON, beside what was computed."""
    record = done.as_dict() | {
        "models": {name: {"path": str(model.path), "sha256": model.sha256} for name, model in models.items()},
        "notices": [notice.as_dict() for notice in recorder.notices],
    }
    files.write_atomic(path, json.dumps(record, ensure_ascii=False, indent=1).encode() + b"\n")


def find_members(recipe: Recipe, models: Sequence[Path], listener: Listener = SILENT) -> dict[str, ModelFile]:
    """Find the model of each member of the recipe among files and folders of models.

    Raises:
        FileError, ModelError: see `read_model`; E428 when two models have one name.
        PredictionError: E501 when a model has other classes than the recipe, E530 when a member has no model.
    """
    found: dict[str, ModelFile] = {}
    for path in find_models(models):
        model = read_model(path)
        other = found.setdefault(model.card.member, model)
        if other is not model:
            raise ModelError("E428", f"{other.path}, {path} are both called {model.card.member!r}")
    missing, extra = sorted(recipe.inputs.keys() - found.keys()), sorted(found.keys() - recipe.inputs.keys())
    if missing:
        raise PredictionError(
            "E530",
            f"{len(missing)} of the recipe's {len(recipe.inputs)} members have no model: {enumerate_some(missing)}",
        )
    if extra:
        listener.notice(Notice("I531", f"{len(extra)} models are not weighed by the recipe: {enumerate_some(extra)}"))
    for name in recipe.inputs:
        recipe.labels.permutation(found[name].card.labels, owner=name)
    return {name: found[name] for name in recipe.inputs}


def share_of_time(passes: Sequence[ForwardPass], seen: Sequence[int], rows: int, watch: Stopwatch) -> float | None:
    """Return the share of the members' time that was saved, by the measured seconds per row; None without any."""
    if not all(watch.rows.get(one.member) for one in passes):
        return None
    cost = [watch.seconds[one.member] / watch.rows[one.member] for one in passes]
    whole = rows * sum(cost)
    return 1 - sum(n * each for n, each in zip(seen, cost, strict=True)) / whole if whole > 0 else None
