"""The options that overrule what is read from a sample, and the sheet of a submission without a sample."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import cast

from ensemble.errors import OptionError
from ensemble.labels import LabelSpace
from ensemble.submission.cell_spelling import numbers_from_one
from ensemble.submission.positive import find_positive
from ensemble.submission.sheet import DECISIONS, KINDS, AnswerKind, AnswerSheet


@dataclass(frozen=True, slots=True)
class SheetOptions:
    """The options that overrule what is read from a sample.

    ``answers`` is a kind, ``decisions``, ``ranking:<k>``, or ``number:0`` and ``number:1``, which give the number
    of the first class; ``positive`` the class of a single probability; ``separator`` what is between the names in a
    cell; ``digits`` the decimals of probabilities. ``scored`` says that ``positive`` may also be about a metric,
    whatever the kind of answers. ``recorded`` is the positive class that a recipe was made for, where neither
    ``positive`` nor the column's name tells it. ``names_classes`` says that the command has the option ``--labels``,
    and its classes may be a guess.
    """

    answers: str | None = None
    id_column: str | None = None
    label_column: str | None = None
    positive: str | None = None
    separator: str | None = None
    digits: int | None = None
    scored: bool = False
    recorded: str | None = None
    names_classes: bool = False

    @property
    def kind(self) -> AnswerKind | None:
        """The kind of answers that is asked for, if one is.

        Raises:
            OptionError: E202 when the kind is unknown.
        """
        if self.answers is None:
            return None
        name = "label-columns" if self.answers == DECISIONS else self.answers.partition(":")[0]
        more = r"ranking:[1-9][0-9]*|number:[01]"
        if name not in KINDS or (":" in self.answers and not re.fullmatch(more, self.answers)):
            known = ", ".join([*KINDS, DECISIONS, "ranking:<k>", "number:1"])
            raise OptionError("E202", f"--answers {self.answers!r} is not one of {known}", hint=f"one of {known}")
        return cast("AnswerKind", name)

    @property
    def ranks(self) -> int | None:
        """The number of names in a ranking, if it is given."""
        kind, colon, count = (self.answers or "").partition(":")
        return int(count) if colon and kind == "ranking" else None

    @property
    def first(self) -> int | None:
        """The number of the first class, if it is given."""
        kind, colon, number = (self.answers or "").partition(":")
        return int(number) if colon and kind == "number" else None


NO_OPTIONS = SheetOptions()


def default_sheet(
    ids: Sequence[str], labels: LabelSpace, *, options: SheetOptions = NO_OPTIONS, independent: bool = False
) -> AnswerSheet:
    """Return the sheet of a submission without a sample: sorted ids, and class numbers or the kind that is asked for.

    Raises:
        OptionError: E202 or E204 when an option is unknown or does not fit.
        PredictionError: E542 when it is unknown which class a probability is of.
    """
    kind = options.kind or ("label-columns" if independent else "number")
    names, ordered = labels.names, tuple(sorted(ids))
    header = (options.id_column or "ImageID", options.label_column or "ans")
    sheet = AnswerSheet(ordered, header, kind=kind, independent=independent)
    if kind in {"probabilities", "label-columns"}:
        sheet = replace(sheet, columns=(header[0], *names), classes=tuple(range(len(names))))
    elif kind == "probability":
        sheet = replace(sheet, positive=find_positive(names, header[1], options.positive, recorded=options.recorded))
    elif kind == "long":
        raise OptionError("E204", "--answers long needs a sample with --like: it says how image and class are joined")
    elif kind == "number" and options.first == 1:
        sheet = replace(sheet, kind="name", spelling=numbers_from_one(len(names)))
    elif kind != "number":
        sheet = replace(sheet, spelling=names, at_most=options.ranks or 5 if kind == "ranking" else None)
    return apply_options(replace(sheet, decisions=options.answers == DECISIONS), options, "the submission")


def apply_options(sheet: AnswerSheet, options: SheetOptions, name: str) -> AnswerSheet:
    """Apply the options about how answers are written.

    Raises:
        OptionError: E204 when one does not fit the kind of answers.
    """
    numeric = sheet.kind in {"probabilities", "probability", "label-columns", "long"} and not sheet.decisions
    unfit = {
        "--digits": options.digits is not None and not numeric,
        "--positive": options.positive is not None and sheet.positive is None and not options.scored,
        "--sep": options.separator is not None and sheet.kind not in {"label-cells", "ranking"},
    }
    for option, bad in unfit.items():
        if bad:
            raise OptionError("E204", f"{option} does not fit: {name} asks for {KINDS[sheet.kind]}")
    if options.digits is not None:
        sheet = replace(sheet, digits=options.digits)
    return sheet if options.separator is None else replace(sheet, separator=options.separator)
