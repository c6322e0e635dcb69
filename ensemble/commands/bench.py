"""The command `ens bench`."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import click

from ensemble.commands.options import PATH, conflict, json_option
from ensemble.commands.submit import parse_early_exit
from ensemble.errors import enumerate_some
from ensemble.terminal import TERMINAL, show


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
    "--also", type=PATH, multiple=True, help="Folder with other models of the same members, such as int8; repeatable."
)
@click.option("--recipe", type=PATH, help="Also time ens submit with this recipe.")
@click.option("--early-exit", help="Early exit for --recipe, as in ens submit.")
@click.option("--oof", type=PATH, multiple=True, help="Out-of-fold predictions, as in ens submit; repeatable.")
@click.option("--truth", type=PATH, help="Ground-truth CSV for --oof (columns ImageID, ans, optional person).")
@click.option("--boxes", type=PATH, help="Face boxes from ens crop, for models trained on face crops.")
@click.option("--tta", is_flag=True, help="Also predict the horizontal flip.")
@click.option(
    "--device",
    default="auto",
    show_default=True,
    help="auto, cpu, cuda, cuda:N or tensorrt; there is no fallback to another device.",
)
@click.option("-b", "--batch", type=click.IntRange(1, 4096), help="Batch size of ens, as in ens predict.")
@click.option("-j", "--workers", type=click.IntRange(1, 512), help="Worker threads of ens.")
@click.option(
    "--rounds", type=click.IntRange(min=1), default=5, show_default=True, help="Number of runs of each contender."
)
@click.option("-o", "output", type=PATH, help="Also write the result as JSON.")
@json_option
def bench(
    models: tuple[Path, ...],
    images: Path,
    ids: Path | None,
    checkpoints: tuple[Path, ...],
    also: tuple[Path, ...],
    recipe: Path | None,
    early_exit: str | None,
    oof: tuple[Path, ...],
    truth: Path | None,
    boxes: Path | None,
    limit: int | None,
    tta: bool,
    device: str,
    batch: int | None,
    workers: int | None,
    rounds: int,
    output: Path | None,
    as_json: bool,
) -> None:
    """Compare the speed of ens predict with a plain torch loop and a plain onnxruntime loop on this machine.

    All must give the same outputs first. They run in turn; the loops are in exporters/bench_baselines.py.

    \b
    Example: ens bench models/*.onnx --images eval/images --checkpoints checkpoints --tta --limit 600
    """
    from ensemble.bench.bench import bench as run_bench
    from ensemble.bench.contenders import RunSubmit
    from ensemble.events import Notice
    from ensemble.files import require_different, write_atomic
    from ensemble.images.listing import read_ids
    from ensemble.runtime.model_file import find_models
    from exporters.bench_baselines import TorchLoop, onnxruntime_loop

    goal = parse_early_exit(early_exit, oof, truth)
    if early_exit is not None and recipe is None:
        raise conflict("--early-exit needs --recipe")
    sets = {path.resolve().name: path for path in also}
    if len(sets) < len(also):
        raise conflict("the folders of --also must have different names: results are listed under them")
    require_different({"-o": output}, {"--ids": ids, "--recipe": recipe, "--truth": truth})
    found = find_models(models)
    loops: dict[str, Any] = {"onnxruntime": onnxruntime_loop}
    left_out = []
    weights, reason = _weights(found, checkpoints)
    if reason:
        left_out.append(f"torch: {reason}")
        TERMINAL.notice(Notice("W622", left_out[0]))
    else:
        loops["torch"] = TorchLoop(weights)
    done = run_bench(
        found,
        loops=loops,
        images=images,
        also={name: find_models([path]) for name, path in sets.items()},
        recipe=None if recipe is None else RunSubmit(recipe, early_exit is not None, goal, oof, truth),
        ids=None if ids is None else read_ids(ids, listener=TERMINAL),
        limit=limit,
        boxes=boxes,
        tta=tta,
        device=device,
        batch=batch,
        workers=workers,
        rounds=rounds,
        left_out=left_out,
        listener=TERMINAL,
    )
    if output is not None:
        write_atomic(output, json.dumps(done.as_dict(), ensure_ascii=False, indent=1).encode() + b"\n")
    show(done.as_dict(), done.render(), as_json=as_json)


def _weights(models: Sequence[Path], paths: Sequence[Path]) -> tuple[Mapping[str, Path], str]:
    """Return the checkpoint that each member's model was exported from, or why there is no torch loop."""
    from ensemble.files import sha256_file
    from ensemble.runtime.model_file import read_model

    try:
        there = importlib.util.find_spec("torch") is not None and importlib.util.find_spec("timm") is not None
    except ModuleNotFoundError:  # from an import hook that hides them
        there = False
    if not there:
        return {}, "torch or timm is not installed"
    if not paths:
        return {}, "it needs --checkpoints"
    files = [
        file for path in paths for file in (sorted(path.rglob("*")) if path.is_dir() else [path]) if file.is_file()
    ]
    by_sha256 = {sha256_file(file): file for file in files}
    cards = [read_model(path).card for path in models]
    missing = [card.member for card in cards if card.checkpoint_sha256 not in by_sha256]
    if missing:
        return {}, f"--checkpoints does not contain the weights of {enumerate_some(missing)}"
    return {card.member: by_sha256[card.checkpoint_sha256] for card in cards}, ""
