"""Write two small contests of scikit-learn's pictures of digits: ``python -m exporters.demo.digits FOLDER``.

The pictures are handwritten digits (Alpaydin and Kaynak 1998, "Optical Recognition of Handwritten Digits"), 8 by 8
pixels in 17 levels of grey, enlarged fourfold.

one/train.csv                  image_id,label: one of five digits, by name
one/train_images/<id>.png
one/test_images/<id>.png
one/sample_submission.csv      image_id and one probability per name
one/solution.csv               image_id,label of the test images
one/classes.json               the names
several/...                    the same with two digits beside each other, and both names in a cell, divided by a space
"""

from __future__ import annotations

import io
import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image
from sklearn.datasets import load_digits

from ensemble.arrays import Pixels
from ensemble.files import write_atomic
from ensemble.terminal import show
from ensemble.text.csv_table import render_table

NAMES = ("zero", "one", "two", "three", "four")
_ENLARGED = 4


@dataclass(frozen=True, slots=True)
class DigitContests:
    """The folders of the two contests."""

    one: Path
    several: Path


def write_digit_contests(folder: Path, *, train: int = 300, test: int = 100, seed: int = 0) -> DigitContests:
    """Write both contests, each with the given numbers of images; the same seed gives the same bytes.

    Raises:
        FileError: E701 or E702 when a file cannot be written.
    """
    data = load_digits(n_class=len(NAMES))
    # 0 to 16: at most 255, and the paper is white
    pictures = 255 - np.kron(data.images * 15, np.ones((_ENLARGED, _ENLARGED))).astype(np.uint8)
    rng = np.random.default_rng(seed)
    order = rng.permutation(len(pictures))[: train + test]
    one = [(pictures[i], (NAMES[data.target[i]],)) for i in order]
    pairs = rng.integers(0, len(pictures), (train + test, 2))
    several = [
        (np.hstack([pictures[a], pictures[b]]), tuple(sorted({NAMES[data.target[a]], NAMES[data.target[b]]})))
        for a, b in pairs
    ]
    found = DigitContests(folder / "one", folder / "several")
    _write(found.one, one, train)
    _write(found.several, several, train)
    return found


def _write(folder: Path, images: Sequence[tuple[Pixels, Sequence[str]]], train: int) -> None:
    write_atomic(folder / "classes.json", json.dumps(NAMES).encode())
    labels = []
    for number, (pixels, names) in enumerate(images):
        part = "train_images" if number < train else "test_images"
        encoded = io.BytesIO()
        Image.fromarray(pixels).save(encoded, "PNG")
        write_atomic(folder / part / f"{number:04d}.png", encoded.getvalue())
        labels.append((f"{number:04d}", " ".join(names)))
    column = "label" if folder.name == "one" else "labels"
    even = 1 / len(NAMES) if folder.name == "one" else 0.5
    write_atomic(folder / "train.csv", render_table(("image_id", column), labels[:train]))
    write_atomic(folder / "solution.csv", render_table(("image_id", column), labels[train:]))
    sample = [(name, *[even] * len(NAMES)) for name, _ in labels[train:]]
    write_atomic(folder / "sample_submission.csv", render_table(("image_id", *NAMES), sample))


def main(folder: str) -> None:
    """Write the contests, and print where they are."""
    found = write_digit_contests(Path(folder))
    show({"one": str(found.one), "several": str(found.several)}, f"{found.one}\n{found.several}", as_json=False)


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else "digits")
