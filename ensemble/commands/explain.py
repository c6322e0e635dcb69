"""The command `ens explain`."""

from __future__ import annotations

from pathlib import Path

import click

from ensemble.commands.options import PATH, json_option
from ensemble.terminal import TERMINAL, show


@click.command(short_help="Draw class-activation maps")
@click.argument("model", type=PATH)
@click.argument("images", nargs=-1, required=True, type=PATH)
@click.option("-o", "folder", type=PATH, required=True, help="Output folder for the images.")
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
    help="auto, cpu, cuda, cuda:N or tensorrt; only auto falls back to the CPU.",
)
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

    The model must have been exported with ens export --features.

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
        truth=truth,
        device=device,
        listener=TERMINAL,
    )
    show(done.as_dict(), done.render(), as_json=as_json)
