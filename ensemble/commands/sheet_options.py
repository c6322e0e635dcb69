"""The options about how answers are written, which overrule what is read from a sample."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence

import click

_OPTIONS = {
    "answer_kind": click.option(
        "--answers",
        "answer_kind",
        metavar="KIND",
        help="How answers are written: number, name, probabilities, probability, label-columns, decisions, "
        "label-cells, ranking, ranking:<k> or long.  [default: as in the sample]",
    ),
    "id_column": click.option("--id-column", metavar="NAME", help="Column of the ids.  [default: by its name]"),
    "label_column": click.option(
        "--label-column", metavar="NAME", help="Column of the answers.  [default: all but the ids]"
    ),
    "positive": click.option(
        "--positive", metavar="NAME", help="Of two classes, the one whose probability is written."
    ),
    "separator": click.option(
        "--sep", "separator", metavar="TEXT", help="What separates the names in a cell.  [default: as in the sample]"
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

        sheet = SheetOptions(answer_kind, id_column, label_column, positive, separator, digits)
        sheet.kind  # noqa: B018 - an unknown kind is an error before any work
        command(sheet=sheet, **parameters)

    wrapped: Callable[..., None] = with_options
    for name in reversed(names):
        wrapped = _OPTIONS[name](wrapped)
    return wrapped
