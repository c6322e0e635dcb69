"""Training data in any of three layouts, with label fixes and the age cut applied.

the mask contest    train.csv and images/<path>/<stem>.jpg, see `checkpoints.data.mask_contest`
a folder per class  <class>/**/<name>.jpg; the sorted names of the folders are the classes
a CSV               path,label and, if known, person; paths are relative to the folder of the CSV
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from checkpoints.data.label_fixes import AppliedFix, apply_fixes, read_fixes, unmatched_ids
from checkpoints.data.mask_contest import Row, read_contest
from ensemble.csv_table import read_table
from ensemble.errors import DataError, OptionError, enumerate_some
from ensemble.events import SILENT, Listener, Notice
from ensemble.images.listing import list_images
from ensemble.labels import MASK18, LabelSpace

AGE_CUTS = (58, 59, 60)


@dataclass(frozen=True, slots=True)
class Dataset:
    """The training images and their label space.

    ``images`` is the folder that the ids of the rows are relative to; ``applied`` are the label fixes. With
    ``is_contest`` the rows have mask, gender and age.
    """

    rows: tuple[Row, ...]
    labels: LabelSpace
    images: Path
    is_contest: bool
    applied: tuple[AppliedFix, ...] = ()
    age_cut: int = 60


def read_dataset(
    train_dir: Path,
    *,
    fixes: Sequence[Path | str] = (),
    without: Collection[str] = (),
    age_cut: int = 60,
    labels: LabelSpace | None = None,
    listener: Listener = SILENT,
) -> Dataset:
    """Read a training folder or CSV, and apply ``fixes`` as described in `checkpoints.data.label_fixes`.

    ``age_cut`` changes the border of the oldest group for training only: with 59, people of 59 are trained as 60 and
    over (`Row.target`), while `Row.label`, and with it every score, keeps the true border. ``labels`` gives the order
    of the classes if the layout does not; by default they are sorted by name.

    Raises:
        OptionError: E204 when the age cut is not 58, 59 or 60, the data has no ages, or a source in ``without`` is
            unknown.
        DataError: E340 when the layout is unknown; E322, E313, E323, E342, E343.
        FileError: E707 when a file cannot be read.
    """
    if age_cut not in AGE_CUTS:
        raise OptionError("E204", f"the age cut must be 58, 59 or 60, got {age_cut}")
    wanted = read_fixes(fixes, without=without, listener=listener)
    data = _read(train_dir, labels, listener)
    if age_cut != 60 and not data.is_contest:
        raise OptionError("E204", f"{train_dir} has no ages, which --age-cut needs")
    rows, applied = apply_fixes(data.rows, wanted, data.labels)
    missing = unmatched_ids(applied, data.rows)
    if missing:
        listener.notice(
            Notice("W345", f"{len(missing)} ids of label fixes are not in the data: {enumerate_some(list(missing))}")
        )
    made = [fix for fix in applied if fix.images]
    if made:
        images = sum(fix.images for fix in made)
        listener.notice(Notice("I344", f"{len(made)} label fixes changed {images:,} images"))
    if not rows:
        raise DataError("E340", f"{train_dir} has no images left", path=train_dir)
    return replace(data, rows=tuple(_with_age_cut(row, age_cut) for row in rows), applied=applied, age_cut=age_cut)


def _read(place: Path, labels: LabelSpace | None, listener: Listener) -> Dataset:
    if place.is_file():
        return _read_table(place, labels, listener)
    if (place / "train.csv").is_file() or (place / "images").is_dir():
        if labels is not None and labels != MASK18:
            raise OptionError("E204", f"{place} is in the mask contest's layout, whose classes are mask18")
        return Dataset(read_contest(place), MASK18, place / "images", is_contest=True)
    return _read_folders(place, labels, listener)


def _read_folders(place: Path, labels: LabelSpace | None, listener: Listener) -> Dataset:
    listing = list_images(place, listener=listener)
    loose = [name for name in listing.ids if "/" not in name]
    if loose:
        message = f"{place} has no train.csv, and {len(loose)} images are in no class's folder: {enumerate_some(loose)}"
        raise DataError("E340", message, path=place)
    space, numbers = _number([name.partition("/")[0] for name in listing.ids], labels, place, indices=False)
    rows = (  # the people are unknown, so each image counts as its own person
        Row(name, name, None, None, None, number, path)
        for name, number, path in zip(listing.ids, numbers, listing.paths, strict=True)
    )
    return Dataset(tuple(rows), space, place, is_contest=False)


def _read_table(file: Path, labels: LabelSpace | None, listener: Listener) -> Dataset:
    table = read_table(file, listener=listener)
    names = table.without_duplicates("path")
    persons = table.column("person") if "person" in table.header else names
    if not names:
        raise DataError("E340", f"{file.name} lists no images", path=file)
    space, numbers = _number(table.column("label"), labels, file, indices=True)
    listing = list_images(file.parent, names, listener=listener)
    rows = (
        Row(name, person, None, None, None, number, path)
        for name, person, number, path in zip(names, persons, numbers, listing.paths, strict=True)
    )
    return Dataset(tuple(rows), space, file.parent, is_contest=False)


def _number(
    names: Sequence[str], labels: LabelSpace | None, place: Path, *, indices: bool
) -> tuple[LabelSpace, list[int]]:
    """Return the label space and the class of each image; if ``indices``, whole numbers are class indices."""
    numeric = all(name.isdecimal() for name in names)
    if indices and numeric:
        labels = labels or LabelSpace.flat(max(map(int, names)) + 1)
        position = {name: int(name) for name in set(names) if int(name) < len(labels)}
    else:
        labels = labels or LabelSpace.flat(sorted(set(names), key=int if numeric else None))
        position = {name: i for i, name in enumerate(labels.names)}
    unknown = sorted(set(names) - set(position))
    if unknown:
        raise DataError("E340", f"{place}: {unknown[0]!r} is none of the {len(labels)} classes", path=place)
    return labels, [position[name] for name in names]


def _with_age_cut(row: Row, age_cut: int) -> Row:
    if row.age is None or not age_cut <= row.age < 60:
        return row
    return replace(row, moved=row.label + 1)
