"""The command `ens adopt`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Literal

import click

from ensemble.commands.options import CHANNELS, PATH, RESIZERS, ROOT, InterpolationChoice, json_option, progress_options
from ensemble.commands.output_paths import FOLDER, MEMBER
from ensemble.terminal import TERMINAL, show

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ensemble.adopt.adopt import Adopted
    from ensemble.adopt.make_card import AdoptOptions
    from ensemble.card import Activation, Align, Channels, FaceCrop, Interpolation, Resize, Resizer
    from ensemble.images.face_boxes import Boxes


@click.command(short_help="Make a member of a ready-made ONNX classifier")
@click.argument("models", nargs=-1, required=True, type=PATH)
@click.option(
    "-o", "folder", type=FOLDER, default=Path(ROOT, "models"), show_default=True, help="Output folder for the models."
)
@click.option(
    "--output",
    type=click.Choice(["logits", "probabilities"]),
    help="Kind of the network's answers.  [default: what its last layer proves]",
)
@click.option("--output-name", help="Output with the answers, if there are several.")
@click.option(
    "--layout", type=click.Choice(["nchw", "nhwc"]), help="Order of the input's axes, if its shape is ambiguous."
)
@click.option(
    "--labels",
    help="Label space: mask18, a number of classes, or a file of class names (JSON, CSV or one per line) or axes.  "
    "[default: as in the file]",
)
@click.option("--size", help="Input size in pixels, if the network takes any: 224, or HEIGHTxWIDTH.")
@click.option(
    "--resize",
    type=click.Choice(["squash", "center", "pad"]),
    help="How to resize images to the input size.  [default: center]",
)
@click.option(
    "--interpolation",
    type=InterpolationChoice(),
    help="Interpolation when resizing.  [default: bilinear]",
)
@click.option(
    "--resizer", type=click.Choice(RESIZERS), help="Library that resized the images in training.  [default: pillow]"
)
@click.option(
    "--crop-pct",
    type=float,
    help="Fraction of the resized image to keep, around its center.  [default: 0.875, or 1]",
)
@click.option("--mean", help="Normalization mean: one value per channel in 0..1.  [default: ImageNet's]")
@click.option("--std", help="Normalization standard deviation: one value per channel in 0..1.  [default: ImageNet's]")
@click.option(
    "--input-range",
    type=click.Choice(["0..1", "-1..1", "0..255"]),
    help="Range that pixels are scaled to, instead of --mean and --std.",
)
@click.option(
    "--channels",
    type=click.Choice(CHANNELS),
    help="Channels of the network's input, made from RGB in the graph.  [default: rgb, or grey for one]",
)
@click.option(
    "--activation",
    type=click.Choice(["softmax", "sigmoid"]),
    help="sigmoid for independent labels, of which an image may have several.  [default: what the answers show]",
)
@click.option("--member", type=MEMBER, help="Name of the member.  [default: the file name]")
@click.option(
    "--fold",
    type=click.IntRange(min=0),
    help="Fold that the network was not trained on.  [default: the one that ends the member's name, as in _fold3]",
)
@click.option("--features", is_flag=True, help="Also output the features before pooling, for ens explain.")
@click.option("--check-images", type=PATH, help="Compare on the images in this folder instead of the built-in ones.")
@click.option("--boxes", type=PATH, help="Face boxes from ens crop, for networks trained on face crops.")
@click.option(
    "--margin",
    type=float,
    help="Margin around a face, as a share of its longer side.  [default: 0.2; aligned to arcface 0, to dlib 0.25]",
)
@click.option(
    "--align",
    type=click.Choice(["arcface", "dlib"]),
    help="Turn faces upright by their five points, to the square that ArcFace's or dlib's networks take.",
)
@progress_options
@json_option
def adopt(
    models: tuple[Path, ...],
    folder: Path,
    output: Literal["logits", "probabilities"] | None,
    output_name: str | None,
    layout: Literal["nchw", "nhwc"] | None,
    labels: str | None,
    size: str | None,
    resize: Resize | None,
    interpolation: Interpolation | None,
    resizer: Resizer | None,
    crop_pct: float | None,
    mean: str | None,
    std: str | None,
    input_range: Literal["0..1", "-1..1", "0..255"] | None,
    channels: Channels | None,
    activation: Activation | None,
    member: str | None,
    fold: int | None,
    features: bool,
    check_images: Path | None,
    boxes: Path | None,
    margin: float | None,
    align: Align | None,
    as_json: bool,
) -> None:
    """Put preprocessing in front of ONNX classifiers of other programs, and a card inside.

    Each is compared with the original file before it is written.

    \b
    Example: ens adopt model.onnx -o models --output logits --labels names.json --check-images eval/images
    """
    from ensemble.adopt.make_card import AdoptOptions
    from ensemble.card import parse_size
    from ensemble.channel_values import parse_channel_values
    from ensemble.commands.options import conflict
    from ensemble.label_file import parse_labels

    if member is not None and len(models) > 1:
        raise conflict(f"--member names one model, got {len(models)} files")
    known, face = _read_faces(boxes, margin, align)
    options = AdoptOptions(
        output=output,
        output_name=output_name,
        layout=layout,
        labels=None if labels is None else parse_labels(labels),
        size=None if size is None else parse_size(size),
        resize=resize,
        interpolation=interpolation,
        crop_pct=crop_pct,
        mean=None if mean is None else parse_channel_values(mean, "--mean"),
        std=None if std is None else parse_channel_values(std, "--std"),
        input_range=input_range,
        channels=channels,
        resizer=resizer,
        activation=activation,
        member=member,
        fold=fold,
        features=features,
        face=face,
    )
    _adopt_all(models, folder, options, check_images, known, as_json=as_json)


def _adopt_all(
    models: Sequence[Path],
    folder: Path,
    options: AdoptOptions,
    check_images: Path | None,
    boxes: Boxes | None,
    *,
    as_json: bool,
) -> None:
    from ensemble.adopt.adopt import adopt as run_adopt
    from ensemble.images.listing import list_images

    listing = None if check_images is None else list_images(check_images, listener=TERMINAL)
    done: list[Adopted] = []
    for path in models:
        adopted = run_adopt(
            path,
            folder,
            options=options,
            check_images=() if listing is None else listing.paths,
            check_boxes=() if listing is None or boxes is None else boxes.select(listing.ids),
            taken=[other.card.member for other in done],
            listener=TERMINAL,
        )
        done.append(adopted)
        if not as_json:
            show(None, str(adopted), as_json=False)
    if as_json:
        show([adopted.as_dict() for adopted in done], "", as_json=True)


def _read_faces(path: Path | None, margin: float | None, align: Align | None) -> tuple[Boxes | None, FaceCrop | None]:
    """Return the boxes of a file and the crop of a network that was trained on them; both None without a file."""
    from ensemble.events import Notice
    from ensemble.images.face_boxes import Boxes, read_faces
    from ensemble.images.face_crop import choose_crop, tell_faces

    faces = None if path is None else read_faces(path).faces
    crop = choose_crop(faces, margin, align)
    tell_faces(faces, TERMINAL)
    if faces is None or crop is None:
        return None, None
    if margin is None:
        message = f"--margin {crop.margin:g} is a default: name it if the network was trained with another one"
        TERMINAL.notice(Notice("W483", message, path))
    return Boxes({face.id: face.box for face in faces}), crop
