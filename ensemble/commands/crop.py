"""The command `ens crop`."""

from __future__ import annotations

from pathlib import Path

import click

from ensemble.commands.options import PATH, ROOT, json_option, progress_options, torch_extra
from ensemble.terminal import TERMINAL, show


@click.command(short_help="Find the face in each image")
@click.argument("images", type=PATH)
@click.option(
    "-o", "path", type=PATH, default=Path(ROOT, "boxes.parquet"), show_default=True, help="Output file of the boxes."
)
@click.option(
    "--min-face",
    type=float,
    default=0.15,
    show_default=True,
    help="Smallest face, as a share of the image's shorter side; smaller is slower.",
)
@click.option(
    "--thresholds",
    default="0.5,0.6,0.6",
    show_default=True,
    help="Confidence thresholds of MTCNN's three networks; its defaults 0.6,0.7,0.7 miss many masked faces.",
)
@click.option(
    "--second",
    default="0.4,0.5,0.5",
    show_default=True,
    help="Thresholds of a second pass over the images without a face, or none.",
)
@click.option(
    "--device",
    default="auto",
    show_default=True,
    help="auto, cpu, cuda or cuda:<index>; only auto falls back to the CPU.",
)
@click.option("-j", "--workers", type=click.IntRange(1, 512), help="Worker threads.  [default: number of cores]")
@click.option("--fresh", is_flag=True, help="Discard the boxes of an earlier run.")
@progress_options
@json_option
def crop(
    images: Path,
    path: Path,
    min_face: float,
    thresholds: str,
    second: str,
    device: str,
    workers: int | None,
    fresh: bool,
    as_json: bool,
) -> None:
    """Find the face in every image, without rewriting images: training and prediction crop them when decoding.

    Example: ens crop eval/images -o eval-boxes.parquet
    """
    from ensemble.card import parse_triple

    with torch_extra("crop"):
        from checkpoints.data.face_detection import DetectorSettings, find_faces

    settings = DetectorSettings(
        min_face,
        parse_triple(thresholds, "--thresholds"),
        None if second == "none" else parse_triple(second, "--second"),
    )
    done = find_faces(images, path, settings=settings, device=device, workers=workers, fresh=fresh, listener=TERMINAL)
    show(done.as_dict(), done.render(), as_json=as_json)
