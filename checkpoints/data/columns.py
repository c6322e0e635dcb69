"""The columns of a training table that have the image, its labels, its group and its fold: given, or recognized."""

from __future__ import annotations

import os
import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass

from checkpoints.data.image_match import ImageIndex
from checkpoints.data.table_options import NONE, TableOptions
from ensemble.errors import DataError, enumerate_some, show_spaces
from ensemble.images.decode import ARRAY_SUFFIX, SUFFIXES
from ensemble.label_file import whole
from ensemble.text.csv_table import Table

_SAMPLE = 500
_NUMBER = re.compile(r"[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]+)?")


def _words(text: str) -> tuple[str, ...]:
    return tuple(text.split())


# compared without case and punctuation; the first that fits wins
_IMAGES = _words(
    "path filepath imagepath imgpath imagefilepath file filename imagefile imagefilename imagename imgname image img "
    "photo picture imageid imgid imageids imageindex imageuid photoid pictureid idcode id uid uuid key isicid name "
    "fname index sopinstanceuid studyinstanceuid seriesinstanceuid sampleid rowid"
)
_LABELS = _words(
    "label labels target targets class classes classname classid classlabel classlabels labelname labelid labelids "
    "category categories categoryname categoryid y ans answer truth groundtruth gt diagnosis dx diseases disease "
    "findinglabels findings species breed variety tag tags attributeids attributes primarylabel level severity grade "
    "isupgrade individualid cultivar type predicted prediction result"
)
_GROUPS = _words(
    "person personid patient patientid patientnumber subject subjectid participant participantid volunteer volunteerid "
    "individual donor donorid animal animalid group groupid groups family familyid lesion lesionid site siteid"
)
_FOLDS = _words("fold kfold folds foldid cvfold foldnumber stratifiedfold")
_PEOPLE = {"person", "personid", "people", "persons"}


@dataclass(frozen=True, slots=True)
class Columns:
    """The columns by their role; ``labels`` are several where each is a label with 0 and 1 as its cells.

    ``guesses`` are sentences about what was recognized, and ``unused`` the other columns.
    """

    image: str
    labels: tuple[str, ...]
    group: str | None
    fold: str | None
    guesses: tuple[str, ...]
    unused: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Unit:
    """The noun for the groups that no two folds share: people where there are people, or patients, or groups."""

    singular: str
    plural: str


PEOPLE = Unit("person", "people")
IMAGES = Unit("image", "images")


def unit_of(column: str) -> Unit:
    """Return the noun for the values of a group column."""
    key = plain(column)
    if key in _PEOPLE:
        return PEOPLE
    word = re.sub(r"(id|number|uid)$", "", key)
    if word in {"patient", "subject", "participant", "volunteer", "donor", "animal", "site", "lesion", "individual"}:
        return Unit(word, f"{word}s")
    shown = show_spaces(column)
    return Unit(f"group ({shown})", f"groups ({shown})")


def plain(name: str) -> str:
    """Return a column's name without case, spaces and punctuation."""
    return re.sub(r"[\W_]+", "", name.casefold())


def find_image_column(table: Table, index: ImageIndex, options: TableOptions) -> str | None:
    """Return the column whose cells are image files: the first by its name, and among others the most distinct one.

    Raises:
        DataError: E322 when the column of the option does not exist.
    """
    if options.id_column is not None:
        table.column(options.id_column)
        return options.id_column
    ranked = []
    for place, name in enumerate(table.header):
        cells = [cell for cell in table.column(name) if cell.strip()]
        step = max(1, len(cells) // _SAMPLE)
        some = cells[::step]
        matched = index.count(some)
        distinct, is_named = len(set(cells)), _names_images(name)
        few = 2 * matched < len(some)
        # numbers of classes can be names of files by chance, but there are few of them
        if matched and (is_named or not (few or 2 * distinct <= len(table.rows))):
            ranked.append((few, _rank(name, _IMAGES), not is_named, -distinct, place, name))
    if ranked:
        return min(ranked)[-1]
    # none of the files is there: the names alone say which column it is
    named = [name for name in table.header if _rank(name, _IMAGES) < len(_IMAGES)]
    paths = [name for name in named if all(_is_image_name(cell) for cell in table.column(name))]
    return min(paths, key=lambda name: _rank(name, _IMAGES)) if paths else None


def choose_columns(table: Table, image: str, options: TableOptions) -> Columns:
    """Return the columns of the other roles.

    Raises:
        DataError: E322 when a column of an option does not exist, E336 when no column is recognized as the label, E364
            when columns have fractions.
    """
    guesses = [] if image == "path" or options.id_column else [f"the images are in column {image!r}"]
    taken = {image}
    for name in (*options.label_columns, options.group_column, options.fold_column):
        if name is not None and name != NONE:
            table.column(name)
            taken.add(name)
    fold = _optional(table, options.fold_column, _FOLDS, taken, _is_fold)
    taken |= {fold or image}
    labels = options.label_columns or _find_labels(table, taken, guesses)
    taken |= set(labels)
    group = _optional(table, options.group_column, _GROUPS, taken, _is_group)
    taken |= {group or image}
    if group is not None and group != "person" and options.group_column is None:
        guesses.append(f"no two folds share a value of {group!r} (--group-column none: every image by itself)")
    if fold is not None and options.fold_column is None:
        guesses.append(f"the folds are those of column {fold!r} (--fold-column none: made by --folds)")
    for given, found, names, what in (
        (options.group_column, group, _GROUPS, "groups that no two folds share"),
        (options.fold_column, fold, _FOLDS, "folds"),
    ):
        if given is None and found is None:
            guesses += [
                f"column {name!r} has one value, so it gives no {what}"
                for name in table.header
                if name not in taken and _rank(name, names) < len(names) and len(set(table.column(name))) == 1
            ]
    unused = tuple(name for name in table.header if name not in taken)
    return Columns(image, labels, group, fold, tuple(guesses), unused)


def _optional(
    table: Table, given: str | None, names: Sequence[str], taken: Collection[str], fits: object
) -> str | None:
    if given is not None:
        return None if given == NONE else given
    assert callable(fits)
    found = [name for name in table.header if name not in taken and _rank(name, names) < len(names)]
    found = [name for name in found if fits(table.column(name))]
    return min(found, key=lambda name: _rank(name, names)) if found else None


def _find_labels(table: Table, taken: Collection[str], guesses: list[str]) -> tuple[str, ...]:
    free = [name for name in table.header if name not in taken]
    named = sorted((name for name in free if _rank(name, _LABELS) < len(_LABELS)), key=lambda n: _rank(n, _LABELS))
    if named:
        filled = [name for name in named if any(cell.strip() for cell in table.column(name))] or named
        if plain(filled[0]) != "label":
            others = f"; also possible: {enumerate_some(filled[1:])}" if filled[1:] else ""
            guesses.append(f"the labels are in column {filled[0]!r} (--label-column names another{others})")
        return (filled[0],)
    kept = [name for name in free if _rank(name, _GROUPS) == len(_GROUPS) and plain(name) not in {"unnamed0", ""}]
    binary = [name for name in kept if is_binary(table.column(name))]
    if len(binary) > 1:
        guesses.append(f"each of the {len(binary)} columns of 0 and 1 is a label: {enumerate_some(binary)}")
        return tuple(binary)
    if len(kept) == 1:
        guesses.append(f"the labels are in column {kept[0]!r}, the only other one")
        return (kept[0],)
    soft = [name for name in kept if (cells := table.column(name)) and fractions(cells)]
    if len(soft) > 1:
        shown = f"{soft[0]!r} is {fractions(table.column(soft[0]))[0]}"
        message = f"{table.path.name}: no column is known to have the labels, and {enumerate_some(soft)} have fractions"
        raise DataError("E364", f"{message}: {shown}", path=table.path)
    have = ", ".join(table.header)
    raise DataError(
        "E336",
        f"{table.path.name}: none of the columns is known to have the labels: {have}",
        path=table.path,
        hint="name it with --label-column; repeat it for one column of 0 and 1 per label",
    )


def is_binary(cells: Sequence[str]) -> bool:
    """Return whether all cells are yes or no, written as numbers or words, and not all are empty."""
    return all(truth_of(cell) is not None for cell in cells) and any(cell.strip() for cell in cells)


def fractions(cells: Sequence[str]) -> list[str]:
    """Return the distinct cells that are not whole numbers; none of a column that has other cells than numbers."""
    filled = [cell.strip() for cell in cells if cell.strip()]
    if not all(_NUMBER.fullmatch(cell) for cell in filled):
        return []
    return [cell for cell in dict.fromkeys(filled) if whole(cell.lstrip("+-")) is None]


def truth_of(cell: str) -> bool | None:
    """Return the meaning of a cell of a label's column: an empty one means no; None if it is neither yes nor no."""
    text = cell.strip().lower()
    if text in {"1", "1.0", "true", "yes"}:
        return True
    return False if text in {"", "0", "0.0", "false", "no", "nan"} else None


def _is_fold(cells: Sequence[str]) -> bool:
    numbers = {whole(cell) for cell in cells}
    return None not in numbers and 2 <= len(numbers) <= 100


def _is_group(cells: Sequence[str]) -> bool:
    return len({cell for cell in cells if cell.strip()}) > 1


def _names_images(column: str) -> bool:
    return bool(_rank(column, _IMAGES) < len(_IMAGES) or re.search("image|img|file|path|photo|pic|id$", plain(column)))


def _is_image_name(cell: str) -> bool:
    return os.path.splitext(cell.strip().lower())[1] in {*SUFFIXES, ARRAY_SUFFIX}


def _rank(name: str, names: Sequence[str]) -> int:
    key = plain(name)
    return names.index(key) if key in names else len(names)
