"""The reference jobs: many images, several folds, what the cores can decode, and the plain loops beside them."""

from __future__ import annotations

import importlib.util
import os
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import helper, numpy_helper

from ensemble.bench.contenders import BenchJob, run_bound, run_predict
from ensemble.bench.process_meter import Pass, measure
from ensemble.card import METADATA_KEY, ModelCard
from ensemble.images.decode import decode_file, read_file
from ensemble.images.face_crop import prepare_image
from ensemble.images.listing import list_images
from ensemble.runtime.machine import available_cores
from ensemble.runtime.model_file import ModelFile, read_model
from exporters.bench_baselines import TorchLoop, onnxruntime_loop

COUNT = 12_600
FOLDS = 5
LOOPED = 2  # members of ten that the plain loops run
_NOISE = 1e-3
_DECODED = 3_000

Keep = Callable[..., None]


def repeat_images(folder: Path, target: Path, *, count: int | None = None) -> Path:
    """Fill a folder with hard links to the images until there are ``count``, by default 12,600."""
    listing = list_images(folder, None)
    target.mkdir(parents=True, exist_ok=True)
    for i in range(COUNT if count is None else count):
        source = listing.paths[i % len(listing)]
        link = target / f"{i:06d}{source.suffix}"
        if not link.exists():
            os.link(source, link)
    return target


def make_folds(model: ModelFile, folder: Path, *, count: int = FOLDS) -> list[ModelFile]:
    """Return copies of a model with slightly other weights, under names of their own."""
    folder.mkdir(parents=True, exist_ok=True)
    made = []
    for fold in range(count):
        proto = onnx.load_from_string(model.data)
        generator = np.random.default_rng(fold)
        for tensor in proto.graph.initializer:
            values = numpy_helper.to_array(tensor)
            if values.ndim > 1 and values.dtype.kind == "f":
                noisy = values + generator.normal(0, _NOISE, values.shape).astype(values.dtype)
                tensor.CopyFrom(numpy_helper.from_array(noisy, tensor.name))
        card = replace(model.card, member=f"{model.card.member}-{fold}")
        helper.set_model_props(proto, {METADATA_KEY: card.to_json()})
        path = folder / f"{card.member}.onnx"
        path.write_bytes(proto.SerializeToString())
        made.append(read_model(path))
    return made


def decode_rate(images: Path, models: Sequence[ModelFile]) -> float:
    """Return the images per second that threads on all cores read, decode and resize, with nothing else to do."""
    paths = list_images(images, None).paths[:_DECODED]
    preprocesses = {model.card.preprocess for model in models}

    def prepare(path: Path) -> None:
        image = decode_file(read_file(path), path).image
        for preprocess in preprocesses:
            prepare_image(image, preprocess, None)

    with ThreadPoolExecutor(available_cores()) as pool:
        list(pool.map(prepare, paths[:200]))
        began = time.perf_counter()
        list(pool.map(prepare, paths))
        return len(paths) / (time.perf_counter() - began)


def time_contenders(
    models: Sequence[ModelFile], images: Path, keep: Keep, *, decoding: float | None = None
) -> dict[str, Any]:
    """Time `predict` and its bound on all images; each figure is kept as soon as it is known."""
    job = job_of(models, images)
    ours = measure(run_predict, job, name="ens", gpu=0)
    count, cost = len(job.ids), ours.cost
    found: dict[str, Any] = {
        "images": count,
        "images_per_second": count / cost.seconds,
        "seconds_of_ens": cost.seconds,
        "first_image": cost.start,
        "busy": cost.gpu_busy,
        "gpu_memory": cost.gpu_memory,
        "memory": cost.memory,
        "stages": dict(cost.stages),
    }
    summary = [f"{count / cost.seconds:,.0f} images/s", f"first image after {cost.start:.0f} s"]
    summary += [] if cost.gpu_busy is None else [f"GPU busy {cost.gpu_busy:.0%}"]
    if decoding:
        found["of_decoding"] = count / cost.seconds / decoding
        summary.append(f"{found['of_decoding']:.0%} of the {decoding:,.0f} images/s that all cores decode")
    keep(**found, summary=summary)
    bound = bound_of(job, ours)
    found |= {"seconds_of_bound": bound.cost.seconds, "over_bound": cost.seconds / bound.cost.seconds}
    return found | {"summary": [*summary, f"{found['over_bound']:.2f} times its bound"]}


def bound_of(job: BenchJob, ours: Pass) -> Pass:
    """Time the forward passes alone, in the batches that `predict` chose."""
    result = ours.result
    warm_up = min(result.batch, len(job.ids))
    asked = replace(job, batch=result.batch, workers=result.workers, at_once=result.at_once, warm_up=warm_up)
    return measure(run_bound, asked, name="bound", gpu=0)


def time_loops(models: Sequence[ModelFile], images: Path, keep: Keep, *, ours: float) -> dict[str, Any]:
    """Time the plain loops on some of the models, scaled to all, over the seconds of `predict`."""
    some = [*models[:1], *models[-1:]][:LOOPED]
    job = job_of(some, images)
    scale = len(models) / len(some)
    found: dict[str, Any] = {}
    # the onnxruntime loop decodes in one thread: a part of the images is enough
    part = replace(job, ids=job.ids[: max(1, len(job.ids) // 10)])
    loops: list[tuple[str, Any, BenchJob]] = []
    if importlib.util.find_spec("timm") is not None:
        loops.append(("torch", UntrainedTorchLoop({}), replace(job, warm_up=min(256, len(job.ids)))))
    else:
        found["torch"] = "left out: timm is not installed"
    loops.append(("onnxruntime", onnxruntime_loop, replace(part, warm_up=min(128, len(part.ids)))))
    for name, loop, asked in loops:
        seconds = measure(loop, asked, name=name, gpu=0).cost.seconds * scale * len(job.ids) / len(asked.ids)
        found |= {f"seconds_of_{name}": seconds, f"over_{name}": seconds / ours}
        keep(**found)
    return found


def job_of(models: Sequence[ModelFile], images: Path) -> BenchJob:
    """Return the job of predicting all images of a folder with two views on the first GPU."""
    ids = list_images(images, None).ids
    return BenchJob(tuple(model.path for model in models), images, ids, tta=True, device="cuda:0")


@dataclass(frozen=True, slots=True)
class UntrainedTorchLoop(TorchLoop):
    """The torch loop without checkpoints: untrained weights take the same time."""

    def _network(self, card: ModelCard, device: Any) -> Any:
        import timm
        import torch

        network: Any = timm.create_model(card.arch, pretrained=False, num_classes=len(card.labels)).eval().to(device)
        return torch.compile(network.to(memory_format=torch.channels_last))
