"""Read which rows are smoothed over each other from a table: a column of groups, and one of their order."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from ensemble.blend.recipe import Recipe
from ensemble.blend.smoothing import RowTable, needs_table, rows_in_table
from ensemble.errors import DataError, OptionError, show_spaces
from ensemble.events import SILENT, Listener, Notice
from ensemble.ids import find_id_column
from ensemble.text.csv_table import Table, read_table
from ensemble.text.plain_numbers import to_float

_GROUPS = re.compile(
    r"(?:file|recording|soundscape|audio|clip|video|sequence|seq|series|study|scan|volume|patient|subject|group|track)"
    r"(?:[_\s-]?(?:id|name|file))?|filename",
    re.IGNORECASE,
)
_ORDERS = re.compile(
    r"(?:start|end)?[_\s-]?(?:frame|second|seconds|time|offset|slice|segment|position|order|number|instance|window)"
    r"s?(?:[_\s-]?(?:id|no|nr|number|index|start|s|sec))?|index",
    re.IGNORECASE,
)


@dataclass(frozen=True, slots=True)
class RowColumns:
    """The names of the columns of ids, groups and order in a table; None for those that are called as usual.

    With ``chosen`` the columns are a recipe's: without one of order, the rows of the table are in order.
    """

    ids: str | None = None
    group: str | None = None
    order: str | None = None
    chosen: bool = False


def read_row_table(path: Path, columns: RowColumns, *, listener: Listener = SILENT) -> RowTable:
    """Read the group of each row and its place in it; without a column of order, the rows of the table are in order.

    What is chosen by its name is said (I382).

    Raises:
        FileError: E707 when the table cannot be read.
        DataError: E313 when an id is repeated, E322 when a column that is named is missing, E365 when no column is one
            of groups, or more than one may be, and when an order is not a number.
    """
    table = read_table(path, listener=listener)
    id_column = find_id_column(table, named=columns.ids, listener=listener)
    ids = table.without_duplicates(id_column)
    group = _column(table, columns.group, _GROUPS, id_column)
    if group is None:
        others = ", ".join(show_spaces(name) for name in table.header if name != id_column) or "no other"
        raise DataError(
            "E365",
            f"{path.name}: no column, or more than one, is called one of groups; "
            f"beside {show_spaces(id_column)} it has {others}",
            path=path,
        )
    known = columns.chosen and columns.order is None
    order = None if known else _column(table, columns.order, _ORDERS, id_column)
    ordered = "the table's rows" if order is None else f"the column {show_spaces(order)}"
    if not columns.chosen and (columns.group is None or columns.order is None):
        text = f"rows are smoothed within groups of the column {show_spaces(group)}, in the order of {ordered}"
        listener.notice(Notice("I382", f"{path.name}: {text}", path))
    places = tuple(map(float, range(len(ids)))) if order is None else _numbers(table, order)
    return RowTable(ids, table.column(group), places, group, order)


def with_row_table(
    recipe: Recipe, path: Path | None, *, ids: Sequence[str] | None = None, listener: Listener = SILENT
) -> Recipe:
    """Return a recipe that smooths over the groups of a table with that table; ``ids`` must be in it, where given.

    Raises:
        OptionError: E204 when the recipe needs a table and there is none, or the other way round.
        PredictionError: E504 when ids are not in the table.
        EnsError: as `read_row_table`.
    """
    smoothing = recipe.smoothing
    if smoothing is not None and smoothing.table is not None:
        return recipe
    if smoothing is None or smoothing.group is None:
        if path is not None:
            raise OptionError(
                "E204",
                "--smooth-table is for smoothing over the groups of a table, and the recipe does not",
                hint="give --smooth, or a recipe that was made with --smooth-table",
            )
        return recipe
    if path is None:
        raise needs_table(smoothing.group)
    columns = RowColumns(None, smoothing.group, smoothing.order, chosen=True)
    found = replace(smoothing, table=read_row_table(path, columns, listener=listener))
    if ids is not None:
        rows_in_table(ids, found, SILENT)
    return replace(recipe, smoothing=found)


def _column(table: Table, named: str | None, usual: re.Pattern[str], id_column: str) -> str | None:
    if named is not None:
        return table.header[table.place(named)]
    found = [name for name in table.header if name != id_column and usual.fullmatch(name.strip())]
    return found[0] if len(found) == 1 else None


def _numbers(table: Table, column: str) -> tuple[float, ...]:
    found = []
    for cell, line in zip(table.column(column), table.lines, strict=True):
        try:
            found.append(to_float(cell))
        except ValueError as err:
            text = f"line {line}: {cell!r} in column {show_spaces(column)} is not a number, and rows are in its order"
            raise DataError("E365", f"{table.path.name}: {text}", path=table.path) from err
    return tuple(found)
