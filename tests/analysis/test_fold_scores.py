"""The score of a blend as if folds had been averaged out of fold, against the real mean of folds on the same people."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from ensemble.analysis.evaluate import Scores, evaluate
from ensemble.analysis.fold_scores import score_fold_average
from ensemble.blend.blend import blend
from ensemble.blend.pooling import parse_pool
from ensemble.blend.recipe import make_recipe
from ensemble.predictions.out_of_fold import gather_folds
from ensemble.predictions.truth import Truth
from tests.support.simulation import make_contest, take_rows

FOLDS, PEOPLE = 4, 120


def scores(pool: str) -> tuple[Scores | None, Scores, Scores]:
    """The scores of a blend: of the simulated mean of folds, of the real one on the same people, of single folds."""
    contest = make_contest("A", seed=0, members=2)
    oof, truth = contest.draw_out_of_fold(PEOPLE, seed=1, folds=FOLDS)
    real, _ = contest.draw_folds(PEOPLE, seed=1, folds=FOLDS)
    test, _ = contest.draw_folds(100, seed=2, folds=FOLDS)
    held_out = gather_folds(oof, truth)
    recipe = make_recipe(held_out, pool=parse_pool(pool))
    averaged = score_fold_average(held_out, recipe, test, truth)
    of_real = evaluate(blend(real, make_recipe(real, pool=parse_pool(pool))), truth).scores[0]
    return averaged, of_real, evaluate(blend(held_out, recipe), truth).scores[0]


@pytest.mark.parametrize("pool", ["linear", "logit"])
def test_the_score_is_that_of_the_real_mean_of_folds(pool: str) -> None:
    """The likelihood is that of the real mean, single folds have a worse one."""
    averaged, real, single = scores(pool)
    assert averaged is not None
    assert averaged.nll is not None
    assert real.nll is not None
    assert single.nll is not None
    assert averaged.nll == pytest.approx(real.nll, abs=0.02)
    assert single.nll > real.nll + 0.02
    assert abs(averaged.macro_f1.value - real.macro_f1.value) < 0.04


def test_without_several_folds_or_people_there_is_no_score() -> None:
    """One model per member averages nothing, and four people are too few to tell."""
    contest = make_contest("A", seed=0, members=2)
    members, truth = contest.draw_folds(20, seed=1, folds=1)
    held_out = gather_folds(members, truth)
    recipe = make_recipe(held_out)
    assert score_fold_average(held_out, recipe, members, truth) is None
    rows = np.arange(28)
    assert truth.persons is not None
    few = Truth(truth.ids[:28], truth.classes[:28], truth.persons[:28], truth.labels)
    folds = [replace(one, fold=fold) for one in members for fold in range(2)]
    named = [replace(one, member=f"{one.member}_{one.fold}") for one in folds]
    assert score_fold_average([take_rows(one, rows) for one in held_out], recipe, named, few) is None


def test_views_that_the_recipe_does_not_use_may_be_absent() -> None:
    """A mirrored view out of fold, which the recipe leaves out and the new images lack, changes no score."""
    contest = make_contest("A", seed=0, members=2)
    oof, truth = contest.draw_out_of_fold(40, seed=1, folds=FOLDS)
    test, _ = contest.draw_folds(20, seed=2, folds=FOLDS)
    mirrored = [replace(one, logits={**one.logits, "hflip": one.logits["identity"]}) for one in oof]
    plain, more = gather_folds(oof, truth), gather_folds(mirrored, truth)
    recipe = make_recipe(plain)
    found = score_fold_average(more, recipe, test, truth)
    assert found is not None
    assert found == score_fold_average(plain, recipe, test, truth)
