"""The answers of a blend, with several images combined into one row where a map says so."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ensemble.blend.blend import Blended
from ensemble.blend.decision_rules import decide
from ensemble.blend.recipe import Recipe
from ensemble.events import SILENT, Listener
from ensemble.submission.rows import RowMap, combine_rows
from ensemble.submission.sheet import AnswerSheet, Submission


@dataclass(frozen=True, slots=True, eq=False)
class BlendedAnswers:
    """The answers for all rows of a submission but those ``missing``, which could not be predicted."""

    submission: Submission
    missing: tuple[str, ...]


def answers_of(
    blended: Blended,
    recipe: Recipe,
    *,
    row_map: RowMap | None = None,
    missing: Sequence[str] = (),
    sheet: AnswerSheet | None = None,
    listener: Listener = SILENT,
) -> BlendedAnswers:
    """Return the answers of a blend; with a map of rows, those of its rows, decided by the recipe's rule.

    Images that are ``missing`` are left out of their row, and a row of no others is missing as well.

    Raises:
        PredictionError: E504 when images of the map were not predicted.
    """
    answers = Submission(blended.ids, blended.classes, blended.labels, blended.probabilities, None, blended.independent)
    if row_map is None:
        return BlendedAnswers(answers, tuple(missing))
    present = row_map.without(missing)
    found = combine_rows(
        answers.ids,
        blended.probabilities,
        present,
        positive=None if sheet is None else sheet.positive,
        independent=answers.independent,
        listener=listener,
    )
    classes = decide(found, recipe.rule)
    combined = Submission(present.ids, classes, answers.labels, found, None, answers.independent)
    return BlendedAnswers(combined, tuple(sorted(set(row_map.ids) - set(present.ids))))
