"""Draw the toy contest: synthetic people in the layout of the mask contest, with the ground truth beside it.

train/train.csv                      id,gender,race,age,path
train/images/<path>/<stem>.<suffix>  <path> = <id>_<gender>_<race>_<age>; mask1..mask5, incorrect_mask, normal
eval/info.csv                        ImageID,ans; ans is 0 throughout: the sample submission
eval/images/<40 hex>.jpg
eval_truth.csv                       ImageID,ans,person; ans = mask * 6 + gender * 3 + age
"""

from __future__ import annotations

import hashlib
import io
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from ensemble.arrays import Pixels
from ensemble.events import SILENT, Listener
from ensemble.files import write_atomic
from ensemble.text.csv_table import render_table
from exporters.synthetic_faces import draw, make_person

# mask of each image: 0 worn, 1 incorrect, 2 none
_STEMS = {"mask1": 0, "mask2": 0, "mask3": 0, "mask4": 0, "mask5": 0, "incorrect_mask": 1, "normal": 2}
_GENDERS = ("male", "female")
_YEARS = ((18, 29), (30, 59), (60, 60))  # first and last of each age group; as in the contest, the oldest are all 60
# the age groups of twenty people in turn, two of each: the first six people show all 18 classes
_ROUND = (0, 1, 2, 0, 1, 0, 1, 0, 1, 2)


@dataclass(frozen=True, slots=True)
class ToyContest:
    """The paths of the toy contest: two folders and two tables."""

    train: Path
    eval_images: Path
    info: Path
    truth: Path


def draw_contest(
    folder: Path, *, train_people: int = 160, eval_people: int = 40, seed: int = 18, listener: Listener = SILENT
) -> ToyContest:
    """Draw the contest into ``folder``, seven images per person; the same seed gives the same bytes.

    Six people or more cover all 18 classes.

    Raises:
        FileError: E701 or E702 when a picture cannot be written.
    """
    contest = ToyContest(folder / "train", folder / "eval/images", folder / "eval/info.csv", folder / "eval_truth.csv")
    _draw_train(contest, train_people, seed, listener)
    _draw_eval(contest, eval_people, seed, listener)
    return contest


@dataclass(frozen=True, slots=True)
class _Subject:
    """A person and their seven images: ``(stem, pixels)``."""

    gender: int
    age_group: int
    age: int
    pictures: Iterator[tuple[str, Pixels]]


def _subjects(people: int, *, split: int, seed: int) -> Iterator[_Subject]:
    for i in range(people):
        rng = np.random.default_rng([seed, split, i])
        gender, age_group = i % 2, _ROUND[i // 2 % len(_ROUND)]
        first, last = _YEARS[age_group]
        age = int(rng.integers(first, last, endpoint=True))
        person = make_person(gender=gender, age=age, rng=rng)
        yield _Subject(
            gender, age_group, age, ((stem, draw(person, mask=mask, rng=rng)) for stem, mask in _STEMS.items())
        )


def _draw_train(contest: ToyContest, people: int, seed: int, listener: Listener) -> None:
    rng = np.random.default_rng(seed)
    rows = []
    number = 0
    for i, subject in enumerate(_subjects(people, split=0, seed=seed)):
        number += int(rng.integers(1, 4))  # as in the contest, ids have gaps and one has a suffix
        person = f"{number:06d}-1" if i == 1 else f"{number:06d}"
        gender = _GENDERS[subject.gender]
        path = f"{person}_{gender}_drawn_{subject.age}"
        for stem, pixels in subject.pictures:
            suffix = str(rng.choice(["jpg", "jpeg", "png"], p=[0.9, 0.06, 0.04]))
            data = _encode(pixels, "PNG" if suffix == "png" else "JPEG")
            write_atomic(contest.train / "images" / path / f"{stem}.{suffix}", data, sync=False)
        rows.append((person, gender, "drawn", subject.age, path))
        listener.progress("draw train", i + 1, people)
    write_atomic(contest.train / "train.csv", render_table(("id", "gender", "race", "age", "path"), rows))


def _draw_eval(contest: ToyContest, people: int, seed: int, listener: Listener) -> None:
    rows = []
    for i, subject in enumerate(_subjects(people, split=1, seed=seed)):
        for stem, pixels in subject.pictures:
            name = hashlib.sha256(f"{seed}/{i}/{stem}".encode()).hexdigest()[:40] + ".jpg"
            write_atomic(contest.eval_images / name, _encode(pixels, "JPEG"), sync=False)
            rows.append((name, _STEMS[stem] * 6 + subject.gender * 3 + subject.age_group, f"e{i:03d}"))
        listener.progress("draw eval", i + 1, people)
    rows.sort()  # by their hashes, so that the images of one person are apart
    write_atomic(contest.info, render_table(("ImageID", "ans"), [(name, 0) for name, _, _ in rows]))
    write_atomic(contest.truth, render_table(("ImageID", "ans", "person"), rows))


def _encode(pixels: Pixels, form: str) -> bytes:
    data = io.BytesIO()
    Image.fromarray(pixels).save(data, form, quality=88)
    return data.getvalue()
