"""Training data in any of three layouts, with label fixes and the age cut applied.

the mask contest    train.csv and images/<path>/<stem>.jpg, see `checkpoints.data.mask_contest`
a folder per class  <class>/**/<name>.jpg, also below train/ and valid/, see `checkpoints.data.folder_layout`
a table             of images and labels, and possibly groups and folds, see `checkpoints.data.table_layout`
"""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from checkpoints.data.columns import IMAGES, PEOPLE, Unit, find_image_column
from checkpoints.data.folder_layout import read_folders
from checkpoints.data.folds import Folds
from checkpoints.data.image_match import ImageIndex
from checkpoints.data.label_fixes import AppliedFix, apply_fixes, count_sources, read_fixes, unmatched_ids
from checkpoints.data.mask_contest import Row, is_contest_table, read_contest
from checkpoints.data.scarce import tell_one_class
from checkpoints.data.similar_names import tell_similar_names
from checkpoints.data.table_file import TABLE_SUFFIXES, read_training_table
from checkpoints.data.table_layout import read_table_layout
from checkpoints.data.table_options import TableOptions
from ensemble.card import Activation
from ensemble.errors import DataError, EnsError, OptionError, enumerate_some
from ensemble.events import SILENT, Listener, Notice
from ensemble.images.listing import list_images
from ensemble.label_file import ClassNames
from ensemble.labels import MASK18, LabelSpace

AGE_CUTS = (58, 59, 60)


@dataclass(frozen=True, slots=True)
class Dataset:
    """The training images and their label space.

    ``images`` is the folder that the ids of the rows are relative to; ``applied`` are the label fixes. With
    ``is_contest`` the rows have mask, gender and age. With the activation sigmoid an image has any number of labels,
    `Row.present`. ``unit`` is the noun for the groups that no two folds share, and ``folds`` are the table's own.
    """

    rows: tuple[Row, ...]
    labels: LabelSpace
    images: Path
    is_contest: bool
    applied: tuple[AppliedFix, ...] = ()
    age_cut: int = 60
    activation: Activation = "softmax"
    unit: Unit = IMAGES
    folds: Folds | None = None


def read_dataset(
    train_dir: Path,
    *,
    fixes: Sequence[Path | str] = (),
    without: Collection[str] = (),
    age_cut: int = 60,
    labels: LabelSpace | ClassNames | None = None,
    table: TableOptions | None = None,
    listener: Listener = SILENT,
) -> Dataset:
    """Read a training folder or CSV, and apply ``fixes`` as described in `checkpoints.data.label_fixes`.

    ``age_cut`` changes the border of the oldest group for training only: with 59, people of 59 are trained as 60 and
    over (`Row.target`), while `Row.label`, and with it every score, keeps the true border. ``labels`` gives the order
    of the classes if the layout does not; by default they are sorted by name. ``table`` has the options for a table.

    Raises:
        OptionError: E204 when the age cut is not 58, 59 or 60, the data has no ages, or a source in ``without`` is
            unknown.
        DataError: E340 when the layout is unknown; E342 and E343; the codes of `read_contest`, `read_table_layout` and
            `read_folders`.
        FileError: E707 when a file cannot be read.
    """
    if age_cut not in AGE_CUTS:
        raise OptionError("E204", f"the age cut must be 58, 59 or 60, got {age_cut}")
    wanted = read_fixes(fixes, without=without, listener=listener)
    names = ClassNames.of(labels) if isinstance(labels, LabelSpace) else labels
    data = _read(train_dir, names, table or TableOptions(), listener)
    groups = [] if data.unit == IMAGES else [row.person for row in data.rows]
    tell_similar_names(data.labels, groups, data.unit.plural, listener)
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
        listener.notice(Notice("I344", f"{len(made)} label fixes{count_sources(made)} changed {images:,} images"))
    if not rows:
        raise DataError("E340", f"{train_dir} has no images left", path=train_dir)
    tell_one_class(rows, data.labels, data.activation, listener=listener)
    return replace(data, rows=tuple(_with_age_cut(row, age_cut) for row in rows), applied=applied, age_cut=age_cut)


def _read(place: Path, names: ClassNames | None, table: TableOptions, listener: Listener) -> Dataset:
    if place.is_dir() and _is_mask_contest(place):
        if names is not None and names.space != MASK18:
            raise OptionError("E204", f"{place} is in the mask contest's layout, whose classes are mask18")
        _require_no_options(place, table)
        return Dataset(read_contest(place), MASK18, place / "images", is_contest=True, unit=PEOPLE)
    file = place if place.is_file() else _find_table(place, listener) if place.is_dir() else None
    if file is not None:
        found = read_table_layout(file, table, names, listener=listener)
        folds = None if found.folds is None else _checked_folds(file, found.folds)
        return Dataset(
            found.rows,
            found.labels,
            found.images,
            is_contest=False,
            activation=found.activation,
            unit=found.unit,
            folds=folds,
        )
    _require_no_options(place, table)
    if table.activation == "sigmoid":
        raise OptionError("E204", f"{place} has a folder per class, so each image has one class, not several labels")
    folders = read_folders(place, names, listener=listener)
    return Dataset(folders.rows, folders.labels, folders.images, is_contest=False)


def _is_mask_contest(place: Path) -> bool:
    file = place / "train.csv"
    if not file.is_file():  # its images without its table would otherwise be one class per person
        return any((place / "images").glob("*/incorrect_mask.*"))
    return is_contest_table(file)


def _find_table(place: Path, listener: Listener) -> Path | None:
    """Return the table of the labels in a folder: one named like training data, or the only one that lists images."""
    tables = sorted(path for path in place.iterdir() if path.suffix.lower() in TABLE_SUFFIXES and path.is_file())
    tables = [path for path in tables if not path.name.startswith(".")]
    usual = [
        path for path in tables if not re.search("sample|submission|test|eval|requirements|readme", path.stem.lower())
    ]
    named = [path for path in usual if re.search("train|label|metadata|answer|solution|truth", path.stem.lower())]
    best = [path for path in named if path.stem.lower() == "train"] or named
    if len(best) > 1:
        some = enumerate_some([path.name for path in best])
        raise DataError("E340", f"{place} has several tables: {some}", path=place, hint="give the table itself")
    if best:
        others = [path.name for path in tables if path != best[0]]
        if others or best[0].name != "train.csv":
            rest = f"; not read: {enumerate_some(others)}" if others else ""
            listener.notice(Notice("I338", f"the labels are those in {best[0].name}{rest}", place))
        return best[0]
    listing = [path for path in usual if path.suffix.lower() != ".txt" and _lists_images(path, place)]
    if len(listing) > 1:
        some = enumerate_some([path.name for path in listing])
        raise DataError(
            "E340", f"{place} has several tables of images: {some}", path=place, hint="give the table itself"
        )
    for path in usual:
        what = "the labels are those in" if path in listing else "no labels are read from"
        listener.notice(Notice("I338", f"{what} {path.name}", place))
    return listing[0] if listing else None


def _lists_images(path: Path, place: Path) -> bool:
    try:
        table = read_training_table(path)
        index = ImageIndex(list_images(place).ids)
        column = find_image_column(table, index, TableOptions()) if table.rows else None
        return column is not None and index.count(table.column(column)) > 0
    except EnsError:
        return False


def _require_no_options(place: Path, table: TableOptions) -> None:
    given = [option for option in table.given() if option != "--images"]
    if given or table.images is not None:
        names = ", ".join(table.given())
        raise OptionError("E204", f"{place} is read without a table, so {names} has no meaning")


def _checked_folds(file: Path, of_group: dict[str, int]) -> Folds:
    count = max(of_group.values()) + 1
    if count < 2 or len(set(of_group.values())) != count:
        raise DataError(
            "E341",
            f"{file.name}: folds must be numbers without a gap, at least two",
            path=file,
            hint="--fold-column none makes the folds",
        )
    return Folds(count, of_group)


def _with_age_cut(row: Row, age_cut: int) -> Row:
    if row.age is None or not age_cut <= row.age < 60:
        return row
    return replace(row, moved=row.label + 1)
