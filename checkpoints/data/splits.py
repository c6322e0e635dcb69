"""Names of splits into training, validation and test data, and the column of a table that has them."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Literal

from checkpoints.data.columns import is_binary, plain, truth_of
from checkpoints.data.table_options import TableOptions
from ensemble.errors import DataError, enumerate_some
from ensemble.events import SILENT, Listener, Notice
from ensemble.text.csv_table import Table

TRAINING = {"train", "training", "train_set", "training_set", "trn"}
VALIDATION = {"val", "valid", "validation", "dev", "validation_set"}
TEST = {"test", "testing", "test_set", "eval", "holdout"}

_COLUMNS = {
    *("split", "splits", "datasplit", "subset", "partition", "set", "dataset", "settype", "setname", "phase"),
    *("traintest", "trainval", "trainvaltest", "traintestsplit", "usage", "fold", "mode", "purpose"),
}
_FLAGS = re.compile(r"is(?P<what>train|test)(ing)?(set|image|img|data)?")
RowSplit = Literal["training", "validation", "test"]


def without_test_rows(table: Table, options: TableOptions, *, listener: Listener = SILENT) -> Table:
    """Return a table without the rows that a column such as ``split`` has for test data, and without this column.

    As with folders, rows of training and validation are kept. Both are said: W338 and I338.

    Raises:
        DataError: E340 when all rows are test data.
    """
    named = {options.id_column, options.group_column, options.fold_column, *options.label_columns}
    for column in table.header:
        splits = None if column in named else _splits(column, table.column(column))
        if splits is None:
            continue
        kept = [i for i, split in enumerate(splits) if split != "test"]
        where = f"{table.path.name}: column {column!r}"
        if not kept:
            raise DataError("E340", f"{where} says that all images are test data", path=table.path)
        if "validation" in splits and "training" in splits:
            message = f"{where}: training and validation are read as one data set, which is divided into folds again"
            listener.notice(Notice("I338", message, table.path))
        if len(kept) < len(splits):
            cells = table.column(column)
            values = enumerate_some(sorted({cells[i] for i, split in enumerate(splits) if split == "test"}))
            message = (
                f"{where}: {len(splits) - len(kept):,} rows of {values} are left out: only training and validation"
            )
            listener.notice(Notice("W338", f"{message} data are read; delete the column to read all rows", table.path))
        place = table.header.index(column)
        rows = tuple(table.rows[i][:place] + table.rows[i][place + 1 :] for i in kept)
        header = table.header[:place] + table.header[place + 1 :]
        return replace(table, header=header, rows=rows, lines=tuple(table.lines[i] for i in kept))
    return table


def _splits(column: str, cells: tuple[str, ...]) -> list[RowSplit] | None:
    """Return the split of each row; None for a column that does not have them."""
    name = plain(column)
    flag = _FLAGS.fullmatch(name)
    if flag is not None and is_binary(cells) and len({truth_of(cell) for cell in cells}) == 2:
        test = flag["what"] == "test"
        return ["test" if truth_of(cell) == test else "training" for cell in cells]
    if name not in _COLUMNS:
        return None
    found: list[RowSplit] = []
    for cell in cells:
        value = re.sub(r"[\s-]+", "_", cell.strip().lower())
        of: dict[RowSplit, set[str]] = {"training": TRAINING, "validation": VALIDATION, "test": TEST}
        split = next((split for split, names in of.items() if value in names), None)
        if split is None:
            return None
        found.append(split)
    return found if "training" in found else None
