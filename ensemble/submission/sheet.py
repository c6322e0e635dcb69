"""AnswerSheet: the format of a submission, as the contest's sample gives it; and Submission: what is written in it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from ensemble.arrays import Classes, Floats
from ensemble.labels import LabelSpace
from ensemble.submission.label_cells import CellForm

Decisions: TypeAlias = NDArray[np.bool_]
AnswerKind = Literal[
    "number", "name", "probabilities", "probability", "label-columns", "label-cells", "ranking", "long"
]

KINDS: dict[str, str] = {
    "number": "the class's number",
    "name": "the class's name",
    "probabilities": "a probability per class, one column each, that sum to one",
    "probability": "the probability of one of two classes",
    "label-columns": "a probability per label, one column each",
    "label-cells": "the names of all labels that apply, in one cell",
    "ranking": "the most probable classes, best first, in one cell",
    "long": "a row per image and class, with a probability",
}
"""All kinds of answers, and how an image's answer is written."""

DECISIONS = "decisions"
"""As a value of --answers: label columns that hold 0 and 1 instead of probabilities."""


@dataclass(frozen=True, slots=True, eq=False)
class Submission:
    """The answers for images ``ids``: class ``classes[i]``, ``(N,)``, of ``labels``, is the one decided for image i.

    ``probabilities`` ``(N, C)`` are needed for most kinds of answers. Where several labels may apply, each column is
    the probability of one label, and ``decisions`` ``(N, C)`` says which of them apply (by default those above 0.5).
    They are ``independent`` then: the probabilities of an image do not sum to one. Those of a ranking that was read are
    only ``ranked``: they have an order, and no meaning.
    """

    ids: tuple[str, ...]
    classes: Classes
    labels: LabelSpace
    probabilities: Floats | None = None
    decisions: Decisions | None = None
    independent: bool = False
    ranked: bool = False

    def __len__(self) -> int:
        return len(self.ids)


@dataclass(frozen=True, slots=True)
class LongRow:
    """A row of a sample with one row per image and class: its cells, and the image's place in ``ids`` and the class."""

    cells: tuple[str, ...]
    image: int
    label: int


@dataclass(frozen=True, slots=True)
class AnswerSheet:
    """The format of a sample submission: header, ids in order and spelling, line ending, and the kind of answers.

    One ``for_excel`` has a line before its header, as ``sep=;``, which is not written.
    ``columns`` is the header. The ids are in column ``id_place``; all others hold answers: number j that of class
    ``classes[j]`` for `probabilities` and `label-columns`, a single one for the other kinds. ``spelling`` has the text
    of each class in a cell: empty for their numbers. ``positive`` is the class of a single `probability`;
    ``separator`` is between the names in a cell, of which a ranking has ``at_most``; without ``empty_cells`` a
    cell has at least one.
    ``rows`` are those of a `long` sample, whose answers are in column ``answer_place`` and whose ``ids`` are the
    images; or of one with columns that are copied.

    The probabilities of ``independent`` labels do not sum to one; None if that is not known. With ``decisions``,
    label columns hold 0 and 1. The answers of a ``constant`` sample are all the same: they do not tell whether several
    labels may apply. Probabilities are written with ``digits`` decimals, by default nine significant digits,
    and ``decimal`` as decimal mark; percentages have a ``scale`` of 100. Cells of several names are divided by
    ``separator``; lists have ``brackets`` (two characters) around them and may have a ``quote`` around each name.
    """

    ids: tuple[str, ...]
    columns: tuple[str, ...] = ("ImageID", "ans")
    newline: str = "\n"
    bom: bool = False
    kind: AnswerKind = "number"
    id_place: int = 0
    delimiter: str = ","
    for_excel: bool = False
    classes: tuple[int, ...] = ()
    spelling: tuple[str, ...] = ()
    positive: int | None = None
    separator: str = " "
    brackets: str = ""
    quote: str = ""
    at_most: int | None = None
    empty_cells: bool = False
    rows: tuple[LongRow, ...] = ()
    answer_place: int = 1
    answer_columns: tuple[int, ...] = ()
    in_columns: bool = False
    independent: bool | None = None
    decisions: bool = False
    constant: bool = field(default=False, compare=False)
    digits: int | None = None
    decimal: str = "."
    scale: float = 1.0
    _label_of: Mapping[str, int] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        # looked up once per cell: a search through the names would make the cost of a file rows x classes
        labels = {text: label for label, text in reversed(list(enumerate(self.spelling)))}
        object.__setattr__(self, "_label_of", labels)

    @property
    def cell_form(self) -> CellForm:
        """The separator, brackets and quotes of the names in a cell."""
        return CellForm(self.separator, self.brackets, self.quote)

    @property
    def id_column(self) -> str:
        """The name of the column of ids."""
        return self.columns[self.id_place]

    @property
    def answer_places(self) -> tuple[int, ...]:
        """The places of the columns that hold answers."""
        if self.rows:
            return self.answer_columns or (self.answer_place,)
        return tuple(place for place in range(len(self.columns)) if place != self.id_place)

    @property
    def keys(self) -> tuple[str, ...]:
        """The key of each row: its id, or all of its cells but the answer where the sample has more columns."""
        if not self.rows:
            return self.ids
        answers = set(self.answer_places)
        return tuple(self.delimiter.join(c for i, c in enumerate(row.cells) if i not in answers) for row in self.rows)

    @property
    def needs_probabilities(self) -> bool:
        """True if the class decided for an image is not enough to write its answer."""
        return self.kind not in {"number", "name"}

    def label_of(self, text: str, classes: int) -> int | None:
        """Return the class that the text of a cell names, of so many ``classes``; None if it names none."""
        if self.spelling:
            return self._label_of.get(text)
        # as a class is written: no plus sign, no leading zero, no digit of another script
        is_number = text.isascii() and text.isdecimal() and (text == "0" or text[0] != "0")
        return int(text) if is_number and len(text) < 10 and int(text) < classes else None

    def spell(self, label: int) -> str:
        """Return the text of a class in a cell."""
        return self.spelling[label] if self.spelling else str(label)
