"""The options of several commands about the tables that they read, and how answers are written."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import click

from ensemble.commands.options import PATH
from ensemble.terminal import TERMINAL

_OPTIONS = {
    "answer_kind": click.option(
        "--answers",
        "answer_kind",
        metavar="KIND",
        help="How answers are written: number, name, probabilities, probability, label-columns, decisions, "
        "label-cells, ranking, ranking:<k>, long, or number:1 for class numbers from 1.  [default: as in the sample]",
    ),
    "id_column": click.option("--id-column", metavar="NAME", help="Column of the ids.  [default: by its name]"),
    "label_column": click.option(
        "--label-column", metavar="NAME", help="Column of the answers.  [default: all but the ids]"
    ),
    "positive": click.option(
        "--positive", metavar="NAME", help="Of two classes, the one whose probability is written."
    ),
    "separator": click.option(
        "--sep", "separator", metavar="TEXT", help="Separator of the names in a cell.  [default: as in the sample]"
    ),
    "digits": click.option(
        "--digits",
        type=click.IntRange(1, 15),
        help="Decimals of probabilities; those of exclusive classes still sum to one.  [default: 9 significant digits]",
    ),
}


def sheet_options(command: Callable[..., None]) -> Callable[..., None]:
    """Add the options that `SheetOptions` holds to a command, which gets them as its parameter ``sheet``."""
    return _add_options(command, tuple(_OPTIONS))


def reading_options(command: Callable[..., None]) -> Callable[..., None]:
    """Add those of the options that matter to a command which reads answers and writes none."""
    return _add_options(command, tuple(name for name in _OPTIONS if name != "digits"))


def _add_options(command: Callable[..., None], names: Sequence[str]) -> Callable[..., None]:

    @functools.wraps(command)
    def with_options(
        *,
        answer_kind: str | None,
        id_column: str | None,
        label_column: str | None,
        positive: str | None,
        separator: str | None,
        digits: int | None = None,
        **parameters: object,
    ) -> None:
        from ensemble.submission.sheet_options import SheetOptions

        only_read = "digits" not in names
        sheet = SheetOptions(answer_kind, id_column, label_column, positive, separator, digits, names_classes=only_read)
        sheet.kind  # noqa: B018 - an unknown kind is an error before any work
        command(sheet=sheet, **parameters)

    wrapped: Callable[..., None] = with_options
    for name in reversed(names):
        wrapped = _OPTIONS[name](wrapped)
    return wrapped


array_option = click.option("--array", metavar="NAME", help="Array of .npz files to read.  [default: each is a view]")
oof_ids_option = click.option("--oof-ids", type=PATH, help="List of the ids of the rows of .npy files of --oof.")


def table_options(
    *kinds: str, submissions: bool = True, oof: bool = False
) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Return a decorator that adds the options of `ExternalOptions`, which the command gets as ``tables``.

    ``submissions`` says that the command reads submissions, too, and ``oof`` that it takes out-of-fold predictions.
    """

    def decorate(command: Callable[..., None]) -> Callable[..., None]:
        @functools.wraps(command)
        def with_options(
            *,
            kind: Any,
            in_order: bool,
            row_ids: Path | None,
            activation: Any,
            array: str | None,
            oof_ids: Path | None = None,
            **parameters: object,
        ) -> None:
            from ensemble.predictions.external import ExternalOptions

            tables = ExternalOptions(kind, in_order, row_ids, activation=activation, oof_ids=oof_ids, array=array)
            command(tables=tables, **parameters)

        content = "Content of tables and arrays."
        if submissions and "classes" in kinds:
            content = "Content of tables and arrays; classes: a submission."
        elif submissions:
            content += "  [default: a CSV file is a submission]"
        wrapped: Callable[..., None] = with_options
        for option in (
            *([oof_ids_option] if oof else []),
            click.option(
                "--activation",
                type=click.Choice(["softmax", "sigmoid"]),
                default="softmax",
                show_default=True,
                help="Of tables and arrays: one class per image (softmax), or any number of labels (sigmoid).",
            ),
            array_option,
            click.option("--ids", "row_ids", type=PATH, help="List of the ids of the rows of .npy files."),
            click.option("--in-order", is_flag=True, help="Take the columns of tables in the order of --labels."),
            click.option(
                "--as",
                "kind",
                type=click.Choice(kinds),
                help=content,
            ),
        ):
            wrapped = option(wrapped)
        return wrapped

    return decorate


def oof_table_options(command: Callable[..., None]) -> Callable[..., None]:
    """Add the options about out-of-fold files of other tools to a command, which gets them as ``oof_tables``."""

    @functools.wraps(command)
    def with_options(
        *, kind: Any, in_order: bool, array: str | None, oof_ids: Path | None, **parameters: object
    ) -> None:
        from ensemble.predictions.external import ExternalOptions

        command(oof_tables=ExternalOptions(kind, in_order, oof_ids, array=array), **parameters)

    wrapped: Callable[..., None] = with_options
    for option in (
        oof_ids_option,
        array_option,
        click.option(
            "--in-order", is_flag=True, help="Take the columns of tables of --oof in the order of the classes."
        ),
        click.option(
            "--as",
            "kind",
            type=click.Choice(["logits", "probabilities"]),
            help="Content of tables and arrays of --oof.",
        ),
    ):
        wrapped = option(wrapped)
    return wrapped


def rows_options(command: Callable[..., None]) -> Callable[..., None]:
    """Add the options about rows of several images, which a command gets as the map ``row_map`` or None."""

    @functools.wraps(command)
    def with_options(*, rows: Path | None, combine: Any, **parameters: object) -> None:
        from ensemble.submission.rows import read_row_map

        row_map = None if rows is None else read_row_map(rows, how=combine, listener=TERMINAL)
        command(row_map=row_map, **parameters)

    wrapped: Callable[..., None] = with_options
    for option in (
        click.option(
            "--combine",
            type=click.Choice(["mean", "max", "noisy-or"]),
            default="mean",
            show_default=True,
            help="How --rows combines the probabilities of a row's images.",
        ),
        click.option("--rows", type=PATH, help="CSV image,row[,weight]: combine several images into each row."),
    ):
        wrapped = option(wrapped)
    return wrapped
