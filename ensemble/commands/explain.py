"""The command `ens explain`."""

from __future__ import annotations

from pathlib import Path

import click

from ensemble.commands.options import PATH, json_option
from ensemble.terminal import TERMINAL, show


@click.command(short_help="Draw which parts of an image decide")
@click.argument("model", type=PATH)
@click.argument("images", nargs=-1, required=True, type=PATH)
@click.option("-o", "folder", type=PATH, required=True, help="Where to put the pictures.")
@click.option(
    "--class", "target", help="The class to explain, by name or index.  [default: each image's predicted class]"
)
@click.option(
    "--boxes",
    type=PATH,
    help="The face boxes that ens crop wrote: for models trained on face crops, and to measure how much lies on faces.",
)
@click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda, cuda:N, tensorrt; never replaced.")
@json_option
def explain(
    model: Path,
    images: tuple[Path, ...],
    folder: Path,
    target: str | None,
    boxes: Path | None,
    device: str,
    as_json: bool,
) -> None:
    """Draw where in each image the evidence for its class lies; the model was exported with --features.

    \b
    Example: ens explain models/r18.onnx eval/images --boxes eval-boxes.parquet -o explained
    """
    from ensemble.analysis.explain import explain as run_explain
    from ensemble.images.face_boxes import read_boxes

    done = run_explain(
        model,
        images,
        folder,
        target=target,
        boxes=None if boxes is None else read_boxes(boxes),
        device=device,
        listener=TERMINAL,
    )
    show(done.as_dict(), done.render(), as_json=as_json)
