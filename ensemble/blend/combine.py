"""Combine the answers for several images into one row, and decide its class anew."""

from __future__ import annotations

from dataclasses import replace

from ensemble.blend.decision_rules import decide
from ensemble.blend.recipe import Recipe
from ensemble.events import SILENT, Listener
from ensemble.submission.rows import RowMap, combine_rows
from ensemble.submission.sheet import AnswerSheet, Submission


def combine_answers(
    answers: Submission, row_map: RowMap, recipe: Recipe, *, sheet: AnswerSheet | None, listener: Listener = SILENT
) -> Submission:
    """Return the answers for the map's rows: their probabilities combined, and classes decided by the recipe's rule.

    Images that could not be read are left out of their row; a row all of whose images are left out is an error.

    Raises:
        PredictionError: E504 when images of the map were not predicted.
    """
    assert answers.probabilities is not None
    found = combine_rows(
        answers.ids,
        answers.probabilities,
        row_map,
        positive=None if sheet is None else sheet.positive,
        independent=answers.independent,
        listener=listener,
    )
    return replace(answers, ids=row_map.ids, probabilities=found, classes=decide(found, recipe.rule), decisions=None)
