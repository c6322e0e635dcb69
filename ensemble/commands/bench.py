"""The command `ens bench`."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ensemble.commands.options import PATH, conflict, given_options, json_option, named, progress_options
from ensemble.commands.output_paths import JSON
from ensemble.commands.sheet_options import oof_table_options
from ensemble.commands.submit import parse_early_exit
from ensemble.terminal import TERMINAL, show

if TYPE_CHECKING:
    from checkpoints.loading.open_options import OpenOptions
    from ensemble.predictions.external import ExternalOptions
    from ensemble.runtime.device import Device


_NOT_FOR_FUSED = (
    *("checkpoints", "arch_options", "chosen", "head_layers", "head_name", "leave_out", "also"),
    *("recipe", "early_exit", "oof", "truth", "tta", "device", "batch"),
)


@click.command(short_help="Compare speed with torch and onnxruntime")
@click.argument("models", nargs=-1, required=True, type=PATH)
@click.option("--images", type=PATH, required=True, help="Folder of the images.")
@click.option(
    "--ids", type=PATH, help="CSV that lists the images, such as info.csv.  [default: all images in the folder]"
)
@click.option("--limit", type=click.IntRange(min=1), help="Use only the first N images.")
@click.option(
    "--checkpoints", type=PATH, multiple=True, help="Checkpoints for the torch loop: files or folders; repeatable."
)
@click.option(
    "--arch-option",
    "arch_options",
    multiple=True,
    metavar="KEY=VALUE",
    help="Option of timm's create_model that a checkpoint was exported with, as in ens export; repeatable.",
)
@click.option(
    "--weights", "chosen", metavar="NAME", help="Weights that a checkpoint was exported from, as in ens export."
)
@click.option("--head-layers", help="Layers of the head that a checkpoint was exported with, as in ens export.")
@click.option("--head-name", help="Name of the head that a checkpoint was exported with, as in ens export.")
@click.option(
    "--leave-out", multiple=True, help="Prefix of the names of tensors that do not belong to the network; repeatable."
)
@click.option(
    "--also", type=PATH, multiple=True, help="Folder with other models of the same members, such as int8; repeatable."
)
@click.option("--recipe", type=PATH, help="Also time ens submit with this recipe.")
@click.option("--early-exit", help="Early exit for --recipe, as in ens submit.")
@click.option("--oof", type=PATH, multiple=True, help="Out-of-fold predictions, as in ens submit; repeatable.")
@oof_table_options
@click.option("--truth", type=PATH, help="Ground-truth CSV for --oof (columns ImageID, ans, optional person).")
@click.option("--boxes", type=PATH, help="Face boxes from ens crop, for models trained on face crops.")
@click.option("--tta", is_flag=True, help="Also predict the horizontal flip.")
@click.option(
    "--device",
    default="auto",
    show_default=True,
    help="auto, cpu, cpu:fastest, cuda, cuda:N, tensorrt or openvino; only auto falls back to the CPU.",
)
@click.option("-b", "--batch", type=click.IntRange(1, 4096), help="Batch size of ens, as in ens predict.")
@click.option("-j", "--workers", type=click.IntRange(1, 512), help="Worker threads of ens.")
@click.option(
    "--rounds", type=click.IntRange(min=1), default=5, show_default=True, help="Number of runs of each contender."
)
@click.option("--arms", help="Only these contenders, such as ens,bound: names as in the result, comma-separated.")
@click.option(
    "--quick", is_flag=True, help="One round, whose own outputs are compared; without the torch loop on a GPU."
)
@click.option("-o", "output", type=JSON, help="Also write the result as JSON.")
@progress_options
@json_option
def bench(
    models: tuple[Path, ...],
    images: Path,
    ids: Path | None,
    limit: int | None,
    checkpoints: tuple[Path, ...],
    arch_options: tuple[str, ...],
    chosen: str | None,
    head_layers: str | None,
    head_name: str | None,
    leave_out: tuple[str, ...],
    also: tuple[Path, ...],
    recipe: Path | None,
    early_exit: str | None,
    oof: tuple[Path, ...],
    oof_tables: ExternalOptions,
    truth: Path | None,
    boxes: Path | None,
    tta: bool,
    device: str,
    batch: int | None,
    workers: int | None,
    rounds: int,
    arms: str | None,
    quick: bool,
    output: Path | None,
    as_json: bool,
) -> None:
    """Compare the speed of ens predict with a plain torch loop and a plain onnxruntime loop on this machine.

    All must give the same outputs first. They run in turn; the loops are in exporters/bench_baselines.py. A file of
    ens fuse is compared with a plain onnxruntime loop over the same file.

    \b
    Example: ens bench models/*.onnx --images eval/images --checkpoints checkpoints --tta --limit 600
    """
    from ensemble.bench.bench import BenchPlan
    from ensemble.bench.bench import bench as run_bench
    from ensemble.bench.contenders import BenchJob, RunSubmit
    from ensemble.events import Notice
    from ensemble.files import write_atomic
    from ensemble.images.listing import list_images, read_ids
    from ensemble.runtime.model_file import find_models
    from exporters.bench_baselines import TorchLoop, find_weights, fused_loop, onnxruntime_loop

    how = _how_to_open(checkpoints, arch_options, chosen, head_layers, head_name, leave_out)
    goal = parse_early_exit(early_exit, oof, truth)
    if early_exit is not None and recipe is None:
        raise conflict("--early-exit needs --recipe")
    sets = _sets(also)
    _require_output(output, {"--ids": ids, "--recipe": recipe, "--truth": truth, "--boxes": boxes}, models, oof)
    found = tuple(find_models(models))
    named = () if ids is None else tuple(read_ids(ids, listener=TERMINAL))
    fused = _is_fused(found)
    asked = () if arms is None else tuple(part.strip() for part in arms.split(","))
    list_images(images, named or None)  # before engines are timed and checkpoints are opened
    where = _device("cpu", ()) if fused else _device(device, (*found, *chain.from_iterable(sets.values())))
    baselines: dict[str, Any] = {"onnxruntime": fused_loop if fused else onnxruntime_loop}
    left_out = []
    if not fused:
        weights = find_weights(found, checkpoints, options=how, listener=TERMINAL)
        if quick and where.is_gpu and "torch" not in asked:
            weights = replace(weights, problem="torch.compile takes minutes; --arms can name it")
        if weights.problem and (not asked or "torch" in asked):
            left_out.append(f"torch: {weights.problem}")
            TERMINAL.notice(Notice("W622", left_out[0]))
        if not weights.problem:
            baselines["torch"] = TorchLoop(weights.checkpoints, weights.options)
    done = run_bench(
        BenchJob(found, images, named, tta, where, boxes, batch, workers),
        baselines=baselines,
        also=sets,
        recipe=None if recipe is None else RunSubmit(recipe, early_exit is not None, goal, oof, truth, oof_tables),
        plan=BenchPlan(limit, 1 if quick else rounds, asked, quick),
        left_out=left_out,
        listener=TERMINAL,
    )
    if output is not None:
        write_atomic(output, json.dumps(done.as_dict(), ensure_ascii=False, indent=1).encode() + b"\n")
    show(done.as_dict(), done.render(), as_json=as_json)


def _require_output(
    output: Path | None, read: Mapping[str, Path | None], models: Sequence[Path], oof: Sequence[Path]
) -> None:
    from ensemble.files import require_different

    require_different({"-o": output}, {**read, **named("MODELS", models), **named("--oof", oof)})


def _sets(also: tuple[Path, ...]) -> dict[str, Sequence[Path]]:
    """Return the models of --also by the names under which their results are listed."""
    from ensemble.runtime.model_file import find_models

    sets = {Path(os.path.realpath(path)).name: path for path in also}
    if len(sets) < len(also):
        raise conflict("the folders of --also must have different names: results are listed under them")
    return {name: find_models([path]) for name, path in sets.items()}


def _device(text: str, models: Sequence[Path]) -> Device:
    from ensemble.runtime.model_file import read_model
    from ensemble.runtime.run_device import choose_run_device

    return choose_run_device(text, map(read_model, models), listener=TERMINAL)


def _is_fused(models: Sequence[Path]) -> bool:
    """Return True for one fused file, for which the options of members are refused."""
    from ensemble.fuse.detect import is_fused

    if len(models) != 1 or not is_fused(models[0]):
        return False
    if given := given_options(_NOT_FOR_FUSED):
        raise conflict(f"{given}: not for a fused file, which has its views inside and runs on the CPU")
    return True


def _how_to_open(
    checkpoints: tuple[Path, ...],
    arch_options: tuple[str, ...],
    weights: str | None,
    head_layers: str | None,
    head_name: str | None,
    leave_out: tuple[str, ...],
) -> OpenOptions | None:
    """Return the options of the checkpoints; None where none is given."""
    if not (arch_options or weights or head_layers or head_name or leave_out):
        return None
    if not checkpoints:
        raise conflict("--arch-option, --weights, --head-layers, --head-name and --leave-out need --checkpoints")
    from checkpoints.loading.arch_options import parse_arch_options
    from checkpoints.loading.head_options import HeadRequest, parse_head_layers
    from checkpoints.loading.open_options import OpenOptions

    layers, scale = (None, 1.0) if head_layers is None else parse_head_layers(head_layers)
    head = HeadRequest(layers=layers, scale=scale, name=head_name, leave_out=leave_out)
    return OpenOptions(arch_options=parse_arch_options(arch_options), weights=weights, head=head)
