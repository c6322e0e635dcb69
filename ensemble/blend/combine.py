"""The answers of a blend, and of rows that are made of several images."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ensemble.blend.blend import Blended
from ensemble.blend.decision_rules import decide, decide_labels
from ensemble.blend.recipe import Recipe
from ensemble.events import SILENT, Listener
from ensemble.submission.rows import RowMap, combine_rows
from ensemble.submission.sheet import AnswerSheet, Submission


@dataclass(frozen=True, slots=True, eq=False)
class CombinedAnswers:
    """The answers for all rows of a map of images but those ``missing``, which could not be predicted."""

    submission: Submission
    missing: tuple[str, ...]


def answers_of(blended: Blended) -> Submission:
    """Return the answers of a blend for its images."""
    return Submission(
        blended.ids,
        blended.classes,
        blended.labels,
        blended.probabilities,
        blended.decisions,
        independent=blended.independent,
    )


def combine_answers(
    answers: Submission,
    recipe: Recipe,
    row_map: RowMap,
    *,
    missing: Sequence[str] = (),
    sheet: AnswerSheet | None = None,
    listener: Listener = SILENT,
) -> CombinedAnswers:
    """Return the answers for the rows of a map of images: combined probabilities, decided by the recipe's rule.

    Images that are ``missing`` are left out of their row, and a row of no others is missing as well.

    Raises:
        PredictionError: E504 when images of the map were not predicted.
    """
    assert answers.probabilities is not None
    present = row_map.without(missing)
    found = combine_rows(
        answers.ids,
        answers.probabilities,
        present,
        positive=None if sheet is None else sheet.positive,
        independent=answers.independent,
        listener=listener,
    )
    classes = decide(found, recipe.rule)
    decisions = decide_labels(found, recipe.rule)
    combined = Submission(present.ids, classes, answers.labels, found, decisions, independent=answers.independent)
    return CombinedAnswers(combined, tuple(sorted(set(row_map.ids) - set(present.ids))))
