"""Read predictions from CSV and Parquet tables with a column of ids and a column per class."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ensemble.arrays import Floats
from ensemble.errors import ColumnsError, DataError, FileError, PredictionError, enumerate_some, show_spaces
from ensemble.events import Listener, Notice
from ensemble.ids import find_id_column, usual_id_column
from ensemble.labels import LabelSpace
from ensemble.predictions.external_arrays import ExternalTable
from ensemble.submission.class_names import ColumnMatch, Mismatch, fold_name, match_columns
from ensemble.text.bounded_tables import list_values, read_parquet, require_pyarrow
from ensemble.text.csv_table import Table, parse_table
from ensemble.text.input_file import read_input
from ensemble.text.json_text import parse_json
from ensemble.text.plain_numbers import to_float

_BESIDE = {
    *("ans", "answer", "label", "labels", "target", "targets", "truth", "true", "y", "y true", "true label", "gt"),
    *("ground truth", "class", "class name", "class id", "fold", "folds", "split", "set", "kfold"),
    *("person", "person id", "patient", "patient id", "subject", "subject id", "group", "group id"),
    *("pred", "prediction", "predicted", "y pred", "pred label", "predicted label", "predicted class", "argmax"),
}
"""Columns that out-of-fold tables have beside their classes; they are left out with a notice."""

_IN_ORDER = "--in-order takes the columns in the order of --labels"


def read_csv_table(
    path: Path, labels: LabelSpace, *, in_order: bool, id_column: str | None, listener: Listener
) -> ExternalTable:
    """Read a CSV table; only with ``in_order`` may its columns have other names than the classes, or none.

    Raises:
        FileError: E707 when the file cannot be read.
        DataError: E313 when an id is repeated, E322 when it is not a table.
        PredictionError: E514 when a cell is not a number, E541 when the columns are not the classes.
    """
    data = read_input(path)
    first = parse_table(data, path, headless=True).rows[0]
    headless = len(first) > 1 and all(map(_is_measure, first[1:])) and not set(first[1:]) <= set(labels.names)
    if headless and not in_order:
        raise ColumnsError(
            "E541",
            f"{path.name}: the first line must name the columns, got {', '.join(map(show_spaces, first[:3]))}",
            path=path,
            hint=f"add a header line; {_IN_ORDER}",
        )
    table = parse_table(data, path, headless=headless, listener=listener)
    id_name = table.header[0] if headless else find_id_column(table, named=id_column, listener=listener)
    rest = [place for place, name in enumerate(table.header) if name != id_name]
    columns = [table.header[place] for place in rest]
    if in_order:
        places = _in_order(columns, rest, labels, path, listener)
    else:
        places = [rest[column] for column in _class_columns(columns, labels, path, listener)]
    ids = table.without_duplicates(id_name)
    return ExternalTable(ids, {"identity": _numbers(table, places)})


def _in_order(
    columns: Sequence[str], places: list[int], labels: LabelSpace, path: Path, listener: Listener
) -> list[int]:
    if len(columns) != len(labels):
        raise ColumnsError("E541", f"{path.name} has {len(columns)} columns for {len(labels)} classes", path=path)
    pairs = f"{show_spaces(columns[0])} is {labels.names[0]}, {show_spaces(columns[-1])} is {labels.names[-1]}"
    listener.notice(Notice("I544", f"{path.name}: columns are taken in the order of the classes: {pairs}"))
    return places


def _class_columns(columns: Sequence[str], labels: LabelSpace, path: Path, listener: Listener) -> list[int]:
    """Return the place of each class's column among ``columns``, in the order of the classes.

    Raises:
        PredictionError: E541 when the columns are not the classes.
    """
    match = match_columns(columns, labels.names)
    kept = list(range(len(columns)))
    if isinstance(match, Mismatch):
        beside = [place for place in kept if fold_name(columns[place]) in _BESIDE]
        kept = [place for place in kept if place not in beside]
        fewer = match_columns([columns[place] for place in kept], labels.names) if beside else match
        if isinstance(fewer, Mismatch):
            hint = "name each column after its class"
            index = any(not name.strip() or name.startswith("Unnamed") for name in match.unknown)
            hint = "write the table without its index: to_csv(path, index=False)" if index else f"{hint}; {_IN_ORDER}"
            raise ColumnsError(
                "E541", f"{path.name}: {len(columns)} columns for {len(labels)} classes: {fewer}", path=path, hint=hint
            )
        left_out = enumerate_some([columns[place] for place in beside])
        listener.notice(Notice("I545", f"{path.name}: columns that are not classes were not read: {left_out}"))
        match = fewer
    _notice_match(match, [columns[place] for place in kept], labels, path, listener)
    place_of = {label: kept[i] for i, label in enumerate(match.classes)}
    return [place_of[label] for label in range(len(labels))]


def _notice_match(
    match: ColumnMatch, columns: Sequence[str], labels: LabelSpace, path: Path, listener: Listener
) -> None:
    if match.how is not None:
        example = f"column {show_spaces(columns[0])} is {labels.names[match.classes[0]]}"
        listener.notice(Notice("I544", f"{path.name}: columns matched {match.how}: {example}"))


def _is_measure(cell: str) -> bool:
    """Return True for a number that is not a plain class number, so that it cannot be a column's name."""
    return re.fullmatch(r"\s*[-+]?([0-9]+\.[0-9]*|\.[0-9]+|[0-9]+(\.[0-9]*)?[eE][-+]?[0-9]+|nan)\s*", cell) is not None


def _numbers(table: Table, places: Sequence[int]) -> Floats:
    """Return cells as numbers ``(N, C)``.

    Raises:
        PredictionError: E514 when one is not a number.
    """
    values = np.empty((len(table.rows), len(places)))
    for row, (cells, line) in enumerate(zip(table.rows, table.lines, strict=True)):
        try:
            values[row] = [_number(cells[place], table.delimiter) for place in places]
        except ValueError as err:
            raise PredictionError("E514", f"{table.path.name}: line {line}: {err}", path=table.path) from err
    return values


def _number(cell: str, delimiter: str) -> float:
    return to_float(cell.replace(",", ".") if delimiter != "," and cell.count(",") == 1 else cell)


def read_parquet_table(path: Path, labels: LabelSpace, *, id_column: str | None, listener: Listener) -> ExternalTable:
    """Read a Parquet table, such as pandas and polars write it: the ids may be the index of pandas.

    Raises:
        FileError: E707 when the file cannot be read.
        DataError: E322 when it lacks the column of ids.
        PredictionError: E514 when it is not such a table, E541 when its columns are not the classes.
        OptionError: E205 when pyarrow is not installed.
    """
    require_pyarrow(path.name)
    import pyarrow as pa

    try:
        table = read_parquet(path, checksums=False)
    except OSError as err:
        raise FileError("E707", f"{path} cannot be read: {err.strerror or err}", path=path) from err
    except pa.ArrowException as err:
        raise PredictionError("E514", f"{path.name} is not a Parquet file: {err}", path=path) from err
    except ValueError as err:
        raise PredictionError("E514", str(err), path=path) from err
    if any(pa.types.is_nested(column.type) for column in table.schema):
        raise PredictionError(
            "E514", f"{path.name} has columns of lists: give the folder that ens predict wrote", path=path
        )
    index = [name for name in _index_columns(table) if name in table.column_names]
    names = [name for name in table.column_names if name not in index]
    ids = _parquet_ids(table, names, index, id_column, path, listener)
    rest = [name for name in names if name != ids]
    chosen = [rest[place] for place in _class_columns(rest, labels, path, listener)]
    # numpy would take a date for the number of its seconds
    kinds = {name: table.schema.field(name).type for name in chosen}
    odd = next((name for name, kind in kinds.items() if pa.types.is_temporal(kind) or pa.types.is_boolean(kind)), None)
    if odd is not None:
        raise PredictionError(
            "E514", f"{path.name}: column {show_spaces(odd)} is {kinds[odd]}, expected numbers", path=path
        )
    try:
        values = np.stack([table.column(name).to_numpy().astype(np.float64) for name in chosen], axis=1)
    except (ValueError, TypeError, pa.ArrowException) as err:
        raise PredictionError("E514", f"{path.name}: a column of a class is not of numbers: {err}", path=path) from err
    try:
        found = [n.decode() if isinstance(n, bytes) else n for n in list_values(table.column(ids))]
    except ValueError as err:
        raise DataError("E322", f"{path.name}: column {show_spaces(ids)} has no ids: {err}", path=path) from err
    if any(name is None or name == "" for name in found):
        raise DataError("E322", f"{path.name}: column {show_spaces(ids)} has empty ids", path=path)
    return ExternalTable(tuple(map(str, found)), {"identity": values})


def _index_columns(table: Any) -> list[str]:
    """Return the columns that hold the index of pandas; a range is stored in the metadata only."""
    try:
        stored = parse_json((table.schema.metadata or {}).get(b"pandas", b"{}"))
        return [name for name in stored.get("index_columns", []) if isinstance(name, str)]
    except (ValueError, AttributeError, TypeError):
        return []


def _parquet_ids(
    table: Any, names: list[str], index: list[str], id_column: str | None, path: Path, listener: Listener
) -> str:
    """Return the column of ids: one with a usual name, else the index of pandas, else the first column."""
    if id_column is not None:
        found = find_id_column(Table(path, (*names, *index), (), ()), named=id_column)
    else:
        import pyarrow as pa

        texts = [name for name in index if not pa.types.is_integer(table.schema.field(name).type)]
        known = usual_id_column(names) or usual_id_column(index)
        found = known or next(iter([*texts, *names, *index]))
        if known is None and found not in index:
            listener.notice(
                Notice("I382", f"{path.name}: the ids are taken from the first column, {show_spaces(found)}")
            )
    left = [name for name in index if name != found]
    if left:
        listener.notice(Notice("I545", f"{path.name}: the index of pandas was not read: {enumerate_some(left)}"))
    return found
