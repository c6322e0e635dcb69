"""Training data in a table of images and labels, as contests give it."""

from __future__ import annotations

import posixpath
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath

from checkpoints.data.columns import IMAGES, Columns, Unit, choose_columns, find_image_column, unit_of
from checkpoints.data.image_match import ImageIndex, Matched, normalize, without_zeros
from checkpoints.data.label_cells import read_labels
from checkpoints.data.long_table import widen_ids, widen_rows
from checkpoints.data.mask_contest import NO_CLASS, Row
from checkpoints.data.splits import without_test_rows
from checkpoints.data.table_file import read_training_table
from checkpoints.data.table_options import TableOptions
from ensemble.card import Activation
from ensemble.errors import DataError, NoImagesError, enumerate_some, show_spaces
from ensemble.events import SILENT, Listener, Notice, Recorder
from ensemble.ids import has_image_suffix
from ensemble.images.listing import FOLLOW_LINKS, list_images
from ensemble.label_file import ClassNames, whole
from ensemble.labels import LabelSpace
from ensemble.text.csv_table import Table


@dataclass(frozen=True, slots=True)
class TableData:
    """The rows of a table, their label space, and the folder that their ids are relative to.

    ``unit`` is the noun for the groups, `IMAGES` where there are none. ``folds`` has the fold of each group, if the
    table gives it.
    """

    rows: tuple[Row, ...]
    labels: LabelSpace
    activation: Activation
    images: Path
    unit: Unit
    folds: dict[str, int] | None


@dataclass(frozen=True, slots=True)
class _FoundTable:
    """The table, its columns, and for each of its rows the file of the image, relative to ``root``."""

    table: Table
    columns: Columns
    files: tuple[str, ...]
    root: Path


def read_table_layout(
    file: Path, options: TableOptions, names: ClassNames | None = None, *, listener: Listener = SILENT
) -> TableData:
    """Read a table; every guess is a notice I338.

    Raises:
        FileError: E707 when a file cannot be read.
        DataError: E314 when images are missing, E316 when there are none, E322 when a column of an option does not
            exist, E336 when the table is not understood, E337 when rows contradict each other, E340, E341; the codes
            of `list_images`.
    """
    table = read_training_table(file, listener=listener)
    if not table.rows:
        raise DataError("E340", f"{file.name} lists no images", path=file)
    table = without_test_rows(table, options, listener=listener)
    root = options.images or file.parent
    found = _find(table, root, options, listener)
    labeling = read_labels(found.table, found.columns, found.files, options, names)
    for guess in (*found.columns.guesses, *labeling.guesses):
        listener.notice(Notice("I338", f"{file.name}: {guess}", file))
    unused = [name for name in found.columns.unused if name != labeling.numbers]
    if unused:
        message = f"{file.name}: columns that are not used: {enumerate_some(unused)}"
        listener.notice(Notice("I338", message, file))
    first: dict[str, int] = {}
    for place, name in enumerate(found.files):
        first.setdefault(name, place)
    repeated = len(found.files) - len(first)
    if repeated:
        how = "have the same label" if labeling.activation == "softmax" else "are joined"
        message = f"{file.name}: {repeated:,} rows are of an image that has a row already; the labels {how}"
        listener.notice(Notice("I338", message, file))
    groups = _groups(found, first, listener)
    images, prefix = _common_folder(found)
    paths = _require_files(found.root, tuple(first), listener)
    rows = []
    for name, path in zip(first, paths, strict=True):
        present = labeling.of_image[name]
        id_ = name.removeprefix(prefix)
        row = Row(id_, groups.get(name, id_), None, None, None, NO_CLASS, path, present=present)
        rows.append(row if labeling.activation == "sigmoid" else replace(row, label=present[0], present=None))
    column = found.columns.group
    return TableData(
        tuple(rows),
        labeling.space,
        labeling.activation,
        images,
        IMAGES if column is None else unit_of(column),
        _folds(found, rows, first, listener),
    )


_LINKED = "I317"  # of `list_images`, about folders that are links


def _find(table: Table, root: Path, options: TableOptions, listener: Listener) -> _FoundTable:
    heard = Recorder()
    try:
        index = ImageIndex(list_images(root, listener=heard).ids)
    except NoImagesError as err:
        if options.images is None and not any(notice.code == _LINKED for notice in heard.notices):
            raise NoImagesError("E316", err.message, path=root, hint="name the images' folder with --images") from err
        raise
    linked = [notice for notice in heard.notices if notice.code == _LINKED]
    for notice in linked:
        listener.notice(notice)
    image = find_image_column(table, index, options)
    guesses: tuple[str, ...] = ()
    wide = widen_ids(table, index) if image is None else widen_rows(table, image, options)
    if wide is not None:
        table, guesses = wide.table, (wide.guess,)
        options = replace(options, label_columns=wide.classes)
        image = wide.image
    if image is None:
        folders = _folder_column(table, index)
        if folders is None:
            raise _no_images(table, root, index)
        table, image, files = _expand_folders(table, folders, index)
        message = f"the images are those in the folders in column {folders!r}, which no two folds share"
        options = replace(options, id_column=image, group_column=options.group_column or folders)
        columns = choose_columns(table, image, options)
        columns = replace(columns, guesses=(message, *columns.guesses))
        return _FoundTable(table, columns, files, root)
    beside = _folder_beside(table, image, index)
    if beside is not None:
        table = table.with_cells(
            image, [f"{a}/{b}" for a, b in zip(table.column(beside), table.column(image), strict=True)]
        )
        guesses = (*guesses, f"the folders of the images are in column {beside!r}")
    columns = choose_columns(table, image, options)
    columns = replace(columns, guesses=(*guesses, *columns.guesses))
    if beside is not None:
        columns = replace(columns, unused=tuple(name for name in columns.unused if name != beside))
    cells = table.column(image)
    if set(map(normalize, cells)) <= set(map(normalize, index.files)) or _has_escaping(cells):
        return _FoundTable(table, columns, tuple(normalize(cell) for cell in cells), root)
    matched = index.match(cells, table=table.path.name)
    _require_all(table, image, matched, index, linked)
    _report_match(table, matched, listener)
    return _FoundTable(table, columns, tuple(name for name in matched.files if name is not None), root)


def _folder_beside(table: Table, image: str, index: ImageIndex) -> str | None:
    """Return the column of folders in which images of one name are told apart, if names alone do not tell them."""
    files = table.column(image)
    if index.are_unique(files):
        return None
    for name in table.header:
        joined = [f"{folder}/{file}" for folder, file in zip(table.column(name), files, strict=True)]
        if name != image and all(table.column(name)) and index.are_unique(joined):
            return name
    return None


def _has_escaping(cells: Sequence[str]) -> bool:
    return any(".." in normalize(cell).split("/") for cell in cells)


def _folder_column(table: Table, index: ImageIndex) -> str | None:
    for name in table.header:
        cells = dict.fromkeys(table.column(name))
        if len(cells) == len(table.rows) and all(index.below(cell) for cell in cells):
            return name
    return None


def _expand_folders(table: Table, column: str, index: ImageIndex) -> tuple[Table, str, tuple[str, ...]]:
    """Return a table with a row per image of the folders, in a column of its own."""
    image = "image file"
    rows, lines, files = [], [], []
    for cells, line, folder in zip(table.rows, table.lines, table.column(column), strict=True):
        for name in index.below(folder):
            rows.append((*cells, name))
            lines.append(line)
            files.append(name)
    return Table(table.path, (*table.header, image), tuple(rows), tuple(lines)), image, tuple(files)


def _no_images(table: Table, root: Path, index: ImageIndex) -> DataError:
    first = ", ".join(f"{name} ({cell!r})" for name, cell in zip(table.header, table.rows[0], strict=True))
    stems = {without_zeros(name): name for name in index.files}
    for name in table.header:
        cells = table.column(name)
        if len(set(cells)) == len(cells) and all(_is_number(cell) and without_zeros(cell) in stems for cell in cells):
            found = stems[without_zeros(cells[0])]
            return DataError(
                "E314",
                f"{table.path.name}: the images of column {name!r} are missing; {cells[0]!r} may be {found!r}",
                path=table.path,
                hint="the ids have lost their leading zeros: read the column as text when you write the table",
            )
    hint = table.hint_about_spaces or "name the column with --id-column and the images' folder with --images"
    if any(has_image_suffix(word) for name in table.header for word in name.split()):
        header = "write a header line such as image,label above the first row"
        hint = header if table.hint_about_spaces is None else f"{table.hint_about_spaces}; and {header}"
    return DataError(
        "E336",
        f"{table.path.name}: no column has names of images below {root}, such as {index.files[0]!r}; columns: {first}",
        path=table.path,
        hint=hint,
    )


def _is_number(cell: str) -> bool:
    return PurePosixPath(normalize(cell)).stem.isdecimal()


def _require_all(table: Table, column: str, matched: Matched, index: ImageIndex, linked: Sequence[Notice]) -> None:
    cells = table.column(column)
    missing = [cell for cell, name in zip(cells, matched.files, strict=True) if name is None]
    if not missing:
        return
    lines = [line for line, name in zip(table.lines, matched.files, strict=True) if name is None]
    details = tuple(f"line {line}: {cell}" for line, cell in zip(lines, missing, strict=True))
    stems = {without_zeros(name): name for name in index.files}
    hint = "add the images, or remove these rows"
    if all(_is_number(cell) and without_zeros(cell) in stems for cell in missing):
        hint = f"{missing[0]!r} may be {stems[without_zeros(missing[0])]!r}: the ids have lost their leading zeros"
    else:
        by_case = {normalize(name).rpartition("/")[2].casefold(): name for name in index.files}
        for cell in missing:
            similar = by_case.get(normalize(cell).rpartition("/")[2].casefold())
            if similar is not None:
                hint = f"{cell!r} may be {similar!r}: they differ in letter case"
                break
    message = (
        f"{table.path.name}: {len(missing):,} of {len(cells):,} images are missing: {enumerate_some(list(details))}"
    )
    if linked:
        message += f"; {linked[0].message}"
        hint = FOLLOW_LINKS
    raise DataError("E314", message, path=table.path, hint=hint, details=details)


def _report_match(table: Table, matched: Matched, listener: Listener) -> None:
    if matched.folders[1:]:
        others = enumerate_some([folder or "." for folder in matched.folders[1:]])
        message = (
            f"{table.path.name}: the images are those in {matched.folders[0] or '.'}; images of the same names are in"
        )
        listener.notice(Notice("I338", f"{message} {others} (--images names another folder)", table.path))
    if matched.other_suffix:
        message = f"{table.path.name}: {matched.other_suffix:,} images have another suffix than in the table"
        listener.notice(Notice("I338", message, table.path))


def _common_folder(found: _FoundTable) -> tuple[Path, str]:
    """Return the folder that the ids are relative to, and its path below ``root`` with a slash at the end.

    Where the cells are the paths below ``root``, it is ``root``; otherwise it is the folder that all files share.
    """
    cells = {normalize(cell) for cell in found.table.column(found.columns.image)}
    if cells == {normalize(name) for name in found.files}:
        return found.root, ""
    shared = posixpath.commonpath([posixpath.dirname(name) or "." for name in found.files]) if found.files else "."
    shared = "" if shared == "." or any("/" not in name for name in found.files) else shared
    return (found.root / shared, f"{shared}/") if shared else (found.root, "")


def _require_files(root: Path, names: tuple[str, ...], listener: Listener) -> tuple[Path, ...]:
    return list_images(root, names, listener=listener).paths


def _groups(found: _FoundTable, first: dict[str, int], listener: Listener) -> dict[str, str]:
    """Return the group of each image; an image without one is its own group.

    Raises:
        DataError: E337 when rows of one image have different groups.
    """
    column = found.columns.group
    if column is None:
        return {}
    cells = [cell.strip() for cell in found.table.column(column)]
    for name, cell, line in zip(found.files, cells, found.table.lines, strict=True):
        if cell != cells[first[name]]:
            message = f"line {line}: {name} is of {show_spaces(column)} {cell!r}, and of {cells[first[name]]!r} before"
            raise DataError("E337", f"{found.table.path.name}: {message}", path=found.table.path)
    groups = {name: cells[row] for name, row in first.items() if cells[row]}
    if len(groups) < len(first):
        message = f"{len(first) - len(groups):,} images have no {show_spaces(column)}, and each counts as its own group"
        listener.notice(Notice("W338", f"{found.table.path.name}: {message}", found.table.path))
    return groups


def _folds(found: _FoundTable, rows: Sequence[Row], first: dict[str, int], listener: Listener) -> dict[str, int] | None:
    """Return the fold of each group from the table's column; numbers from 1 on are counted from 0.

    Raises:
        DataError: E341 when a fold is not a whole number, a number is skipped or a group is in two folds.
    """
    column = found.columns.fold
    if column is None:
        return None
    where = found.table.path.name
    numbers = [whole(cell) for cell in found.table.column(column)]
    for number, line in zip(numbers, found.table.lines, strict=True):
        if number is None:
            message = f"{where}: line {line}: column {column!r} is not a whole number"
            raise DataError("E341", message, path=found.table.path, hint="--fold-column none makes the folds")
    least = min(number for number in numbers if number is not None)
    of_group: dict[str, int] = {}
    for row, place in zip(rows, first.values(), strict=True):
        number = numbers[place]
        assert number is not None, "every row has a number"
        if of_group.setdefault(row.person, number - least) != number - least:
            raise DataError(
                "E341",
                f"{where}: {row.person} is in folds {of_group[row.person] + least} and {number} of column {column!r}",
                path=found.table.path,
                hint="--fold-column none makes folds that keep it together; --group-column none ignores the groups",
            )
    if least:
        message = f"{where}: the folds of column {column!r} are counted from 0, so {least} is fold 0"
        listener.notice(Notice("I338", message, found.table.path))
    return of_group
