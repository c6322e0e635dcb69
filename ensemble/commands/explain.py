"""The command `ens explain`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from ensemble.commands.options import PATH, conflict, given_options, json_option, progress_options
from ensemble.commands.output_paths import FOLDER
from ensemble.terminal import TERMINAL, show

if TYPE_CHECKING:
    from ensemble.analysis.map_source import MapSource


@click.command(short_help="Draw class-activation maps")
@click.argument("model", type=PATH)
@click.argument("images", nargs=-1, required=True, type=PATH)
@click.option("-o", "folder", type=FOLDER, required=True, help="Output folder for the images.")
@click.option("--class", "target", help="Class to explain, by name or index.  [default: each image's predicted class]")
@click.option(
    "--boxes",
    type=PATH,
    help="Face boxes from ens crop: for models trained on face crops, and to measure the share of evidence on faces.",
)
@click.option("--truth", type=PATH, help="Ground-truth CSV: shows the true class below the answer.")
@click.option(
    "--device",
    default="auto",
    show_default=True,
    help="auto, cpu, cpu:fastest, cuda, cuda:N, tensorrt or openvino; only auto falls back to the CPU.",
)
@progress_options
@json_option
def explain(
    model: Path,
    images: tuple[Path, ...],
    folder: Path,
    target: str | None,
    boxes: Path | None,
    truth: Path | None,
    device: str,
    as_json: bool,
) -> None:
    """Draw class-activation maps: where in each image the evidence for a class is.

    The model must have been exported with ens export --features, or be a file of ens fuse --maps.

    \b
    Example: ens explain models/r18.onnx eval/images --boxes eval-boxes.parquet -o explained
    """
    from ensemble.analysis.explain import explain_source, require_readable
    from ensemble.fuse.detect import is_fused
    from ensemble.images.face_boxes import read_boxes

    known = None if boxes is None else read_boxes(boxes)
    require_readable(images, truth)
    source: MapSource
    if is_fused(model):
        if given := given_options(("device",)):
            raise conflict(f"{given}: not for a fused file, which runs on the CPU")
        from ensemble.fuse.explain_fused import start_fused_maps

        source = start_fused_maps(model, listener=TERMINAL)
    else:
        from ensemble.analysis.map_source import start_member
        from ensemble.runtime.model_file import read_model

        source = start_member(read_model(model), device=device, listener=TERMINAL)
    done = explain_source(
        source,
        images,
        folder,
        target=target,
        boxes=known,
        truth=truth,
        listener=TERMINAL,
    )
    show(done.as_dict(), done.render(), as_json=as_json)
