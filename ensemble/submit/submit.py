"""Submit: a saved recipe from photographs to a submission, with no more forward passes than the answers need."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ensemble import files
from ensemble.blend.blend import blend
from ensemble.blend.recipe import Recipe
from ensemble.errors import DataError, ModelError, PredictionError, UnreadableImagesError, enumerate_some
from ensemble.events import SILENT, Listener, Notice, Recorder
from ensemble.ids import without_ids
from ensemble.images.face_boxes import Boxes
from ensemble.images.listing import Listing, list_images
from ensemble.images.views import parse_views
from ensemble.predict.bad_images import ERRORS, OnBadImage, describe_priors, tell_unread, unread, write_errors
from ensemble.predict.batch_size import SIZES
from ensemble.predict.inputs import select_boxes
from ensemble.predict.memory_budget import fit_chunks, need_of
from ensemble.predict.pipeline import Pipeline
from ensemble.predict.predict import BATCH, RUN, predict
from ensemble.predict.timing import Stopwatch
from ensemble.predictions.dataset import Predictions, read_predictions
from ensemble.predictions.members import common_images
from ensemble.runtime.device import Device
from ensemble.runtime.machine import available_cores, available_memory
from ensemble.runtime.model_file import ModelFile, find_models, read_model
from ensemble.runtime.providers import choose_device
from ensemble.submission.format import SubmissionFormat, write_submission
from ensemble.submit.chunk_file import Chunk
from ensemble.submit.chunks import Chunks, Plan, answers_of, filled_chunk, rows_of_cells, rows_of_chunk, run_chunks
from ensemble.submit.early_exit import Cell, cells_of, in_order, keep_members, require_early_exit, used_part
from ensemble.submit.exit_thresholds import Goal, calibrate
from ensemble.submit.result import Submitted
from ensemble.submit.time_budget import fit_to_budget

EXACT = "exact"


@dataclass(frozen=True, slots=True, eq=False)
class EarlyExit:
    """``goal`` is what the answers may lose; None: nothing, by proof.

    A goal needs out-of-fold predictions ``oof``, and takes classes and persons from ``truth`` where it is given.
    """

    goal: Goal | None = None
    oof: Sequence[Predictions] = ()
    truth: Path | None = None


def submit(
    recipe: Recipe,
    images: Path,
    models: Sequence[Path],
    output: Path,
    *,
    work: Path,
    like: SubmissionFormat | None = None,
    early_exit: EarlyExit | None = None,
    budget: float | None = None,
    device: str = "auto",
    batch: int | None = None,
    workers: int | None = None,
    memory: int | None = None,
    boxes: Boxes | None = None,
    fresh: bool = False,
    on_bad_image: OnBadImage = "fail",
    allow_missing: bool = False,
    listener: Listener = SILENT,
) -> Submitted:
    """Predict what the recipe weighs, blend, decide and write the submission.

    Without ``early_exit`` and ``budget`` the file is that of `predict` and `blend`, byte for byte; with an exact early
    exit too. What is computed goes to ``work``, and a run that was stopped goes on from there. ``budget`` seconds leave
    members out where this machine is too slow for all. ``memory`` is that of `predict`; with an early exit it has to
    hold the pixels of a whole chunk for each worker. ``on_bad_image`` is that of `predict`; where images are left out,
    the submission lacks them, which has to be allowed.

    Raises:
        OptionError: E207 when the recipe's answers cannot be known early.
        DataError: E326 when images could not be read and ``on_bad_image`` is ``fail``, or when none could be: all
            others are done, ``errors.csv`` names them, and no submission is written; others as `predict`.
        ModelError: E428 when two models have one name.
        PredictionError: E530 when the recipe's members have no models, E534 when images are left out and may not be.
        EnsError: as `predict`, `blend`, `calibrate` and `write_submission`.
    """
    began = time.monotonic()
    recorder = Recorder(listener)
    files.require_writable(work)
    recipe = used_part(recipe)
    if early_exit is not None:
        require_early_exit(recipe, exact=early_exit.goal is None)
    found = find_members(recipe, models, recorder)
    views = {view.name: view for view in parse_views(",".join(sorted({cell.view for cell in cells_of(recipe)})))}
    for cell in cells_of(recipe):
        views[cell.view].require_fits(found[cell.member].card.preprocess.size, member=cell.member)
    listing = list_images(images, None if like is None else like.ids, listener=recorder)
    where = choose_device(device, listener=recorder)
    sizes, workers = () if batch else SIZES, workers or available_cores()
    faces = select_boxes(list(found.values()), boxes, listing, recorder)
    fit = None
    if budget is not None:
        plan = Plan(recipe, cells_of(recipe), found, views)
        fit = fit_to_budget(
            plan,
            listing,
            work / "budget.json",
            seconds=budget,
            pipeline=Pipeline(
                listing, (), on_gpu=where.is_gpu, workers=workers, boxes=faces, sizes=sizes, listener=recorder
            ),
            device=where,
            workers=workers,
            fresh=fresh,
            listener=recorder,
        )
        recipe = keep_members(recipe, set(fit.kept))
        found = {name: found[name] for name in fit.kept}
    calibration = None
    saved_time: float | None = 0.0
    if early_exit is None:
        cells = cells_of(recipe)
        plan = Plan(recipe, cells, found, views, boxes=boxes)
        members, stages, decisions = _predict_all(
            plan,
            listing,
            images,
            work / "preds",
            device=where,
            batch=batch,
            workers=workers,
            memory=memory,
            fresh=fresh,
            on_bad_image=on_bad_image,
            listener=recorder,
        )
        common = common_images(members, allow_missing=allow_missing)
        missing = common.missing
        ids = without_ids(listing.ids, missing)
        blended = blend(common.members, recipe, ids=ids, listener=recorder)
        classes, filled = blended.classes, blended.filled
        read = len(listing) - len(filled) - len(missing)
        seen = [read] * len(cells)
    else:
        # what one look costs, near enough and the same everywhere: the order must not depend on a clock
        cost = {name: float(len(m.data) * np.prod(m.card.preprocess.size)) for name, m in found.items()}
        cells = in_order(cells_of(recipe), cost, whole_groups=early_exit.goal is not None)
        if early_exit.goal is not None:
            calibration = calibrate(
                recipe, cells, early_exit.oof, early_exit.goal, truth=early_exit.truth, listener=recorder
            )
        plan = Plan(recipe, cells, found, views, None if calibration is None else calibration.stops, boxes)
        memory, batch = memory or available_memory() // 2, batch or BATCH[where.kind]
        bounds = fit_chunks(
            need_of(list(found.values()), listing, where),
            memory,
            rows=rows_of_chunk(where),
            workers=workers,
            batch=batch,
            on_gpu=where.is_gpu,
        )
        if bounds.workers < workers or bounds.batch < batch:
            recorder.notice(Notice("W603", f"{memory / 2**30:.1f} GB of memory are enough for {bounds}"))
        pipeline = Pipeline(
            listing,
            (),
            on_gpu=where.is_gpu,
            workers=bounds.workers,
            boxes=faces,
            ahead=bounds.ahead,
            sizes=sizes,
            listener=recorder,
        )
        ran = run_chunks(
            plan,
            listing,
            work / "early",
            pipeline=pipeline,
            device=where,
            batch=bounds.batch,
            fresh=fresh,
            listener=recorder,
        )
        chunks, filled, missing = _settle(plan, listing, work, ran, on_bad_image, recorder, allow_missing=allow_missing)
        ids = tuple(name for chunk in chunks for name in chunk.ids)
        classes, seen = answers_of(plan, chunks), rows_of_cells(chunks, len(cells))
        decisions = ran.decisions
        read = len(listing) - len(filled) - len(missing)
        stages = {stage: spent for stage, spent in pipeline.watch.seconds.items() if stage != "write"}
        saved_time = share_of_time(cells, seen, read, pipeline.watch)
    write_submission(output, ids, classes, like=like, missing=missing, listener=recorder)
    done = Submitted(
        output,
        len(ids),
        str(where),
        None if early_exit is None else str(early_exit.goal or EXACT),
        sum(seen),
        read * len(cells),
        tuple((cell.member, cell.view, cell.weight, rows) for cell, rows in zip(cells, seen, strict=True)),
        time.monotonic() - began,
        stages,
        saved_time,
        calibration,
        fit,
        decisions,
        filled,
        missing,
    )
    record = done.as_dict() | {
        "models": {name: {"path": str(m.path), "sha256": m.sha256} for name, m in found.items()},
        "notices": [notice.as_dict() for notice in recorder.notices],
    }
    files.write_atomic(work / RUN, json.dumps(record, ensure_ascii=False, indent=1).encode() + b"\n")
    return done


def _settle(
    plan: Plan,
    listing: Listing,
    work: Path,
    ran: Chunks,
    on_bad_image: OnBadImage,
    listener: Listener,
    *,
    allow_missing: bool,
) -> tuple[list[Chunk], tuple[str, ...], tuple[str, ...]]:
    """The chunks that are answered, with the images that are filled and those that are missing."""
    write_errors(work / ERRORS, listing, ran.faults)
    faulty = tuple(listing.ids[row] for row in sorted(ran.faults))
    if not faulty:
        return ran.chunks, (), ()
    if on_bad_image == "fail" or len(faulty) == len(listing):
        raise unread(ran.faults, listing, work / ERRORS, kept="all others are done and kept")
    what = (
        "left out" if on_bad_image == "skip" else f"filled with {describe_priors(m.card for m in plan.models.values())}"
    )
    tell_unread(ran.faults, listing, work / ERRORS, what, listener)
    if on_bad_image == "fill":
        return [*ran.chunks, filled_chunk(plan, faulty)], faulty, ()
    if not allow_missing:
        raise PredictionError("E534", f"{len(faulty):,} images could not be read: {enumerate_some(list(faulty))}")
    return ran.chunks, (), faulty


def find_members(recipe: Recipe, models: Sequence[Path], listener: Listener = SILENT) -> dict[str, ModelFile]:
    """The model of each of the recipe's members, among files and folders of models.

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


def share_of_time(cells: Sequence[Cell], seen: Sequence[int], rows: int, watch: Stopwatch) -> float | None:
    """The share of the members' time that was not needed, by the seconds a row that were measured; None without any."""
    if not all(watch.rows.get(cell.member) for cell in cells):
        return None
    cost = [watch.seconds[cell.member] / watch.rows[cell.member] for cell in cells]
    whole = rows * sum(cost)
    return 1 - sum(n * each for n, each in zip(seen, cost, strict=True)) / whole if whole > 0 else None


def _predict_all(
    plan: Plan,
    listing: Listing,
    images: Path,
    folder: Path,
    *,
    device: Device,
    batch: int | None,
    workers: int,
    memory: int | None,
    fresh: bool,
    on_bad_image: OnBadImage,
    listener: Listener,
) -> tuple[list[Predictions], dict[str, float], dict[str, Mapping[str, str]]]:
    """The predictions of every member, those with the same views over one decode; with `Submitted`'s figures."""
    stages: dict[str, float] = {}
    decisions: dict[str, Mapping[str, str]] = {}
    together: dict[tuple[str, ...], list[str]] = {}
    for group in plan.recipe.groups.values():
        together.setdefault(tuple(plan.recipe.views_of(group)), []).extend(group.members)
    fault: DataError | None = None
    for wanted, names in together.items():
        cropped = any(plan.models[name].card.preprocess.face is not None for name in names)
        try:
            done = predict(
                [plan.models[name].path for name in names],
                images,
                folder,
                views=[view for name, view in plan.views.items() if name in wanted],
                ids=listing.ids,
                device=str(device),
                batch=batch,
                workers=workers,
                memory=memory,
                boxes=plan.boxes if cropped else None,
                fresh=fresh,
                on_bad_image=on_bad_image,
                listener=listener,
            )
        except UnreadableImagesError as err:
            fault = err
            continue
        for stage in ("read", "decode", "resize", *(["copy"] if device.is_gpu else [])):
            stages[stage] = stages.get(stage, 0.0) + done.seconds[stage]
        stages |= {run.member: run.seconds for run in done.members}
        decisions |= {run.member: run.decisions for run in done.members}
    if fault is not None:
        raise fault
    return [read_predictions(folder / name) for name in plan.models], stages, decisions
