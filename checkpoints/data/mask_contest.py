"""The training folder of the mask contest: train.csv and one folder of images per person."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from ensemble.errors import DataError
from ensemble.images.decode import SUFFIXES
from ensemble.text.csv_table import read_table
from ensemble.text.plain_numbers import is_count

_MASKS = {"mask1": 0, "mask2": 0, "mask3": 0, "mask4": 0, "mask5": 0, "incorrect_mask": 1, "normal": 2}
GENDERS = {"male": 0, "female": 1}
AGE_GROUPS = (30, 60)
"""The first ages in years of the second and the third group."""
NO_CLASS = -1
"""The class of an image that may have several labels, see `Row.present`."""


@dataclass(frozen=True, slots=True)
class Row:
    """One training image.

    ``id`` is its path below the image folder, as in `ensemble.images.listing`. ``person`` is the group that no two
    folds may share: the person, patient or site, and the image itself where there are none. ``mask`` is 0 worn,
    1 incorrect, 2 none; ``gender`` 0 male, 1 female; ``age`` in years; all None outside the mask contest. ``label`` is
    the true class; ``moved`` is the class to train on if it differs, see `target`. Where an image may have several
    labels, ``present`` has their indices in ascending order, and ``label`` is `NO_CLASS`.
    """

    id: str
    person: str
    mask: int | None
    gender: int | None
    age: int | None
    label: int
    path: Path
    moved: int | None = None
    present: tuple[int, ...] | None = None

    @property
    def target(self) -> int:
        """The class to train on; scores use ``label``."""
        return self.label if self.moved is None else self.moved


def is_contest_table(file: Path) -> bool:
    """Return whether a CSV has the columns of the contest's train.csv: people, and the folders of their images.

    Raises:
        OSError: the file cannot be read.
    """
    with file.open("rb") as stream:
        head = stream.readline(4096).decode("utf-8-sig", "replace").lower()
    return {"id", "gender", "age", "path"} <= {re.sub("[^a-z]", "", name) for name in head.split(",")}


def read_contest(train_dir: Path) -> tuple[Row, ...]:
    """Read a training folder; the rows are in the order of train.csv, then of the image names.

    Raises:
        DataError: E322 or E313 when train.csv lacks a column or repeats an id or path; E340 when there is no train.csv,
            or with all other faults in ``details``: no person is listed, a gender is unknown, an age is not a
            number, a folder is missing or has no images, or an image name is unknown or occurs twice.
    """
    file = train_dir / "train.csv"
    if not file.is_file():
        raise DataError("E340", f"there is no train.csv in {train_dir}", path=train_dir)
    table = read_table(file)
    people = zip(
        table.lines,
        table.without_duplicates("id"),
        table.column("gender"),
        table.column("age"),
        table.without_duplicates("path"),  # with one folder for two people, one face would be in two folds
        strict=True,
    )
    rows: list[Row] = []
    faults: list[str] = []
    for line, person, gender, age, folder in people:
        found = len(faults)
        if gender not in GENDERS:
            faults.append(f"line {line}: gender is {gender!r}, expected male or female")
        if not is_count(age):
            faults.append(f"line {line}: age is {age!r}, expected whole years")
        images = _find_images(train_dir / "images", folder, faults)
        if len(faults) == found:
            rows += [_row(person, gender, int(age), folder, path) for path in images]
    if not table.rows:
        faults.append("train.csv lists no people")
    if faults:
        raise DataError("E340", f"{len(faults)} faults in {train_dir}: {faults[0]}", path=file, details=tuple(faults))
    return tuple(rows)


def _find_images(root: Path, folder: str, faults: list[str]) -> tuple[Path, ...]:
    """Return the images of one person, sorted by name, and append what is wrong with them to ``faults``."""
    if PurePosixPath(folder).is_absolute() or ".." in PurePosixPath(folder).parts:
        faults.append(f"{folder}: the path leaves the image folder")
        return ()
    if not (root / folder).is_dir():
        faults.append(f"{folder}: the folder is missing")
        return ()
    # hidden files, such as macOS's ._mask1.jpg, are not images
    images = sorted(
        path for path in (root / folder).iterdir() if path.suffix.lower() in SUFFIXES and not path.name.startswith(".")
    )
    if not images:
        faults.append(f"{folder}: the folder holds no images")
    first: dict[str, Path] = {}
    for path in images:
        if path.stem not in _MASKS:
            faults.append(f"{folder}/{path.name}: the name is not one of {', '.join(_MASKS)}")
        elif first.setdefault(path.stem, path) != path:
            faults.append(f"{folder}/{path.name}: there is a {first[path.stem].name} as well")
    return tuple(images)


def _row(person: str, gender: str, age: int, folder: str, path: Path) -> Row:
    mask, sex = _MASKS[path.stem], GENDERS[gender]
    return Row(
        id=f"{folder}/{path.name}",
        person=person,
        mask=mask,
        gender=sex,
        age=age,
        label=class_of(mask, sex, age),
        path=path,
    )


def class_of(mask: int, gender: int, age: int) -> int:
    """Return the class in `ensemble.labels.MASK18`; the age groups are below 30, 30 to 59, and 60 and over."""
    return mask * 6 + gender * 3 + sum(age >= first for first in AGE_GROUPS)
