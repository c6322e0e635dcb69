"""Score a blend on out-of-fold predictions as if the folds of each member had been averaged, as in the submission."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from threadpoolctl import threadpool_limits

from ensemble.analysis.evaluate import Scores, evaluate
from ensemble.blend.blend import blend
from ensemble.blend.recipe import Recipe
from ensemble.errors import TooLittleTruthError
from ensemble.events import SILENT
from ensemble.learn.learning_data import average_folds, sort_images, stack_members, stack_new
from ensemble.learn.result import MemberView
from ensemble.predictions.dataset import Predictions
from ensemble.predictions.members import members_by_name
from ensemble.predictions.truth import Truth


def score_fold_average(
    held_out: Sequence[Predictions], recipe: Recipe, test: Sequence[Predictions], truth: Truth
) -> Scores | None:
    """Return the scores of the blend of ``held_out`` members, made as good as the mean of the folds in ``test``.

    ``recipe`` is that for ``held_out``, which has one member per group of ``test``; see `ensemble.learn.fold_average`.
    None where no group has several folds, or there are too few people to learn from.

    Raises:
        PredictionError: E504 and E516 when the test predictions of a fold lack images or a view.
    """
    by_name = members_by_name(held_out)
    used = {view for group in recipe.groups.values() for view in (group.views or recipe.views)}
    views = tuple(MemberView(n, view) for n, one in by_name.items() for view in sorted(one.logits) if view in used)
    try:
        ids = tuple(sort_images(truth).ids)
    except TooLittleTruthError:
        return None
    new = stack_new(test, views, truth.labels)
    with threadpool_limits(limits=1, user_api="blas"):
        given = stack_members(by_name, views, truth)
        data = average_folds(given, views, new, seed=0, listener=SILENT)
    if data is given:
        return None
    values = data.log_p if data.log_g is None or recipe.pool.order != 0 else data.log_g
    moved = []
    for name, one in by_name.items():
        logits = {view.view: values[i].astype("float32") for i, view in enumerate(views) if view.member == name}
        moved.append(replace(one, ids=ids, labels=truth.labels, logits=logits, looks=None))
    return evaluate(blend(moved, recipe), truth).scores[0]
