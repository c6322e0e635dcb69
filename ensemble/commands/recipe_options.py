"""The options of `ens blend` for recipes of contests of order and of several labels: weights per class, smoothing."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ensemble.commands.options import PATH
from ensemble.errors import cut_text

if TYPE_CHECKING:
    from ensemble.blend.smoothing import Smoothing

NAMES = ("class_weights", "thresholds", "smooth", "smooth_ids", "smooth_edges", "smooth_group", "smooth_order")


@dataclass(frozen=True, slots=True)
class RecipeExtras:
    """Parsed options; see `ensemble.blend.recipe.make_recipe`."""

    class_weights: Mapping[str, Mapping[str, float]] | None = None
    thresholds: float | Mapping[str, float] | None = None
    smoothing: Smoothing | None = None
    row_table: Path | None = None


smooth_table_option = click.option(
    "--smooth-table",
    type=PATH,
    help="CSV of ids, groups and their order for smoothing, where the ids do not have them.",
)


def recipe_options(command: Callable[..., None]) -> Callable[..., None]:
    """Add the options to a command, which gets them as ``extras``."""

    @functools.wraps(command)
    def with_options(
        *,
        class_weights: Path | None,
        thresholds: str | None,
        smooth: str | None,
        smooth_ids: str | None,
        smooth_edges: Any,
        smooth_table: Path | None,
        smooth_group: str | None,
        smooth_order: str | None,
        **parameters: object,
    ) -> None:
        extras = RecipeExtras(
            None if class_weights is None else _read_class_weights(class_weights),
            None if thresholds is None else _parse_thresholds(thresholds),
            _parse_smoothing(smooth, smooth_ids, smooth_edges, smooth_table, smooth_group, smooth_order),
            smooth_table,
        )
        command(extras=extras, **parameters)

    wrapped: Callable[..., None] = with_options
    for option in (
        click.option(
            "--smooth-order",
            metavar="COLUMN",
            help="Column of --smooth-table that orders the rows of a group.",
        ),
        click.option("--smooth-group", metavar="COLUMN", help="Column of --smooth-table with the group of each row."),
        smooth_table_option,
        click.option(
            "--smooth-edges",
            type=click.Choice(["nearest", "shrink", "zero", "reflect"]),
            help="What --smooth takes beyond the ends of a file.  [default: nearest, the last row]",
        ),
        click.option(
            "--smooth-ids", metavar="REGEX", help="Groups of an id: the file, and its number.  [default: file_number]"
        ),
        click.option(
            "--smooth", metavar="KERNEL", help="Smooth over the rows of one file, such as 0.1,0.2,0.4,0.2,0.1."
        ),
        click.option(
            "--thresholds", help="Probability from which labels apply: 0.4, or cat=0.3,dog=0.6.  [default: 0.5]"
        ),
        click.option(
            "--class-weights",
            type=PATH,
            help="CSV of weights per class: a column class, and one per group; the class * is for all others.",
        ),
    ):
        wrapped = option(wrapped)
    return wrapped


def _read_class_weights(path: Path) -> dict[str, dict[str, float]]:
    """Read weights by group and class; the row ``*`` is kept under that name.

    Raises:
        DataError: E322 when a column is missing or a class repeated.
        PredictionError: E508 when a weight is not a number.
    """
    from ensemble.errors import PredictionError
    from ensemble.text.csv_table import read_table
    from ensemble.text.plain_numbers import to_float

    table = read_table(path)
    classes = table.without_duplicates("class")
    found: dict[str, dict[str, float]] = {}
    for group in table.header:
        if group == "class":
            continue
        found[group] = {}
        for name, cell, line in zip(classes, table.column(group), table.lines, strict=True):
            try:
                found[group][name] = to_float(cell)
            except ValueError as err:
                raise PredictionError("E508", f"{path.name}: line {line}: {cell!r} is not a weight", path=path) from err
    return found


def _parse_thresholds(text: str) -> float | dict[str, float]:
    from ensemble.blend.recipe import parse_weights
    from ensemble.errors import PredictionError
    from ensemble.text.plain_numbers import to_float

    hint = "give one number for all labels, such as 0.4, or some by name, such as cat=0.3,dog=0.6"
    try:
        found: float | dict[str, float] = to_float(text)
    except ValueError:
        try:
            found = parse_weights(text)
        except PredictionError as err:
            raise PredictionError("E508", f"--thresholds {err.message}", hint=hint) from err
    if not all(map(math.isfinite, found.values() if isinstance(found, dict) else (found,))):
        raise PredictionError(
            "E508", f"--thresholds {cut_text(text, 80)}: a threshold is not a finite number", hint=hint
        )
    return found


def _parse_smoothing(
    kernel: str | None,
    ids: str | None,
    edges: Any,
    table: Path | None,
    group: str | None,
    order: str | None,
) -> Smoothing | None:
    from ensemble.blend.row_table import RowColumns, read_row_table
    from ensemble.blend.smoothing import IDS, Smoothing
    from ensemble.commands.options import conflict
    from ensemble.errors import PredictionError
    from ensemble.terminal import TERMINAL
    from ensemble.text.plain_numbers import to_float

    if table is None and (group is not None or order is not None):
        raise conflict("--smooth-group and --smooth-order name columns of --smooth-table")
    if kernel is None:
        if ids is not None or edges is not None or group is not None or order is not None:
            raise conflict("--smooth-ids, --smooth-edges, --smooth-group and --smooth-order belong to --smooth")
        return None
    try:
        weights = tuple(to_float(part) for part in kernel.split(","))
    except ValueError as err:
        raise PredictionError("E508", f"--smooth {kernel!r} is not a list of numbers such as 0.25,0.5,0.25") from err
    if table is None:
        return Smoothing(weights, IDS if ids is None else ids, edges or "nearest")
    if ids is not None:
        raise conflict("--smooth-ids finds the groups in ids, and --smooth-table has them")
    found = read_row_table(table, RowColumns(None, group, order), listener=TERMINAL)
    return Smoothing(weights, edges=edges or "nearest", group=found.group, order=found.order, table=found)
