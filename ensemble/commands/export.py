"""The command `ens export`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from ensemble.commands.options import PATH, ROOT, json_option, torch_extra
from ensemble.errors import FileError, OptionError
from ensemble.terminal import TERMINAL, show


@click.command()
@click.argument("checkpoints", nargs=-1, required=True, type=PATH)
@click.option(
    "-o", "folder", type=PATH, default=Path(ROOT, "models"), show_default=True, help="Where to put the models."
)
@click.option("--arch", help="The timm architecture; found out from the weights where that is possible.")
@click.option(
    "--weights", type=click.Choice(["raw", "ema"]), help="Which weights, where a file holds both.  [default: ema]"
)
@click.option("--labels", help="mask18, a number of classes, or a JSON file of class names or axes.")
@click.option("--size", help="Input size in pixels: 224, or HEIGHTxWIDTH.")
@click.option("--resize", type=click.Choice(["squash", "center", "pad"]), help="How an image gets to that size.")
@click.option("--interpolation", type=click.Choice(["nearest", "bilinear", "bicubic", "lanczos"]))
@click.option("--crop-pct", type=float, help="The share of the resized image that is kept, around its centre.")
@click.option("--mean", help="R,G,B in 0..1.")
@click.option("--std", help="R,G,B in 0..1.")
@click.option("--member", help="The member's name; by default the file's.")
@click.option("--fold", type=click.IntRange(min=0), help="Which fold the checkpoint never saw.")
@click.option("--precision", type=click.Choice(["fp32", "fp16", "int8"]), default="fp32", show_default=True)
@click.option("--calibrate", type=PATH, help="The folder of images that int8 is calibrated on and judged by.")
@click.option(
    "--truth", type=PATH, help="ImageID,ans[,person]: judge int8 or fp16 by macro F1 on these images as well."
)
@click.option("--features", is_flag=True, help="Also output the features before pooling, for class-activation maps.")
@click.option("--check-images", type=PATH, help="Verify on the images of this folder instead of the built-in pictures.")
@click.option("--boxes", type=PATH, help="The face boxes of the images, for models trained on face crops.")
@json_option
def export(
    checkpoints: tuple[Path, ...],
    folder: Path,
    arch: str | None,
    weights: Any,
    labels: str | None,
    size: str | None,
    mean: str | None,
    std: str | None,
    member: str | None,
    calibrate: Path | None,
    truth: Path | None,
    check_images: Path | None,
    boxes: Path | None,
    as_json: bool,
    **settings: Any,
) -> None:
    """Turn checkpoints into self-describing .onnx files, each verified against torch before it gets its name.

    What the checkpoint or timm knows is the default; an option overrides it.

    \b
    Example: ens export r18.pth -o models --labels mask18 --size 224 --resize squash --check-images eval/images

    \b
    Example: ens export runs/r18/fold0.safetensors --precision int8 --calibrate train/images --truth truth.csv
    """
    if member is not None and len(checkpoints) > 1:
        raise OptionError("E204", f"--member names one model, got {len(checkpoints)} checkpoints")
    if boxes is not None and check_images is None and calibrate is None:
        raise OptionError("E204", "--boxes are those of images: give --check-images or --calibrate too")
    if (calibrate is None) == (settings["precision"] == "int8"):
        raise OptionError("E204", "--precision int8 and --calibrate belong together; give both or neither")
    if truth is not None and (settings["precision"] == "fp32" or (calibrate is None and check_images is None)):
        raise OptionError(
            "E204", "--truth judges int8 on the images of --calibrate, or fp16 on those of --check-images"
        )
    for path in checkpoints:
        if not path.is_file():
            raise FileError("E707", f"{path} is not a file", path=path)
    with torch_extra("export"):
        from checkpoints.loading.open import open_checkpoint
        from exporters.export import Exported, ExportOptions, Photographs
        from exporters.export import export as run_export
    from ensemble.card import parse_size, parse_triple
    from ensemble.images.face_boxes import read_boxes
    from ensemble.images.listing import list_images
    from ensemble.labels import parse_labels

    options = ExportOptions(
        labels=None if labels is None else parse_labels(labels),
        size=None if size is None else parse_size(size),
        mean=None if mean is None else parse_triple(mean, "--mean"),
        std=None if std is None else parse_triple(std, "--std"),
        member=member,
        **settings,
    )
    found_boxes = None if boxes is None else read_boxes(boxes)

    def look(root: Path) -> Photographs:
        listing = list_images(root, listener=TERMINAL)
        return Photographs(listing.ids, listing.paths, None if found_boxes is None else found_boxes.select(listing.ids))

    checked = None if check_images is None else look(check_images)
    judges = look(calibrate) if calibrate is not None else checked if truth is not None else None
    done: list[Exported] = []
    for number, path in enumerate(checkpoints):
        TERMINAL.progress("export", number, len(checkpoints))
        exported = run_export(
            open_checkpoint(path, arch=arch, weights=weights, listener=TERMINAL),
            folder,
            options=options,
            check_images=() if checked is None else checked.paths,
            boxes=None if checked is None else checked.boxes,
            photographs=judges,
            truth=truth,
            taken=[other.card.member for other in done],
            listener=TERMINAL,
        )
        done.append(exported)
        if not as_json:
            judged = f"  {exported.verdict}" if exported.verdict else ""
            show(None, f"{exported.path}  {exported.card.arch}{judged}  {exported.seconds:.1f} s", as_json=False)
    TERMINAL.progress("export", len(checkpoints), len(checkpoints))
    if as_json:
        show([exported.as_dict() for exported in done], "", as_json=True)
