"""The metric of `ens evaluate --recipe` is that of the recipe, and a notice says which it is and why."""

from __future__ import annotations

from dataclasses import replace

import pytest

from ensemble.analysis.recipe_metric import metrics_of
from ensemble.blend.recipe import Recipe, make_recipe
from ensemble.events import Recorder
from tests.support.members import make_member


def a_recipe(metric: str | None, *, labels: bool = False) -> Recipe:
    recipe = make_recipe([make_member("a", [[0, 1], [1, 0]])])
    recipe = replace(recipe, activation="sigmoid") if labels else recipe
    return recipe if metric is None else replace(recipe, learned={"metric": metric, "method": "mean"})


@pytest.mark.parametrize(
    ("learned", "named", "found", "said"),
    [
        (None, (), (), "the recipe names no metric, as none was learned for: the scores are macro F1, accuracy, NLL"),
        (None, ("mcc",), ("mcc",), "scored by mcc, which --metric names; the recipe names no metric"),
        ("macro-f1", (), (), "scored by macro-f1, which the recipe was learned for and which is always shown"),
        ("accuracy:age", (), (), "scored by accuracy:age, which the recipe was learned for and which is always shown"),
        ("macro-f1:age", (), (), "learned for macro-f1:age, a metric of one axis, which is not scored here"),
        ("balanced-accuracy", (), ("balanced-accuracy",), "scored by balanced-accuracy, which the recipe was learned"),
        ("quadratic-kappa", (), ("quadratic-kappa",), "scored by quadratic-kappa, which the recipe was learned for"),
        ("mcc", ("brier",), ("brier",), "scored by brier, which --metric names; the recipe was learned for mcc"),
        ("mine.py:score", (), (), "a function of yours, which is run only if --metric names it: the scores are macro"),
    ],
)
def test_the_metric_and_its_reason_are_said(
    learned: str | None, named: tuple[str, ...], found: tuple[str, ...], said: str
) -> None:
    """One notice, whether the recipe has a metric, one that is always shown, one that is not run, or none."""
    heard = Recorder()
    assert metrics_of(a_recipe(learned), named, listener=heard) == found
    (notice,) = heard.notices
    assert notice.code == "I594"
    assert said in notice.message


def test_of_several_labels_accuracy_is_not_always_shown() -> None:
    """The table of several labels has no accuracy, so it is scored where the recipe was learned for it."""
    heard = Recorder()
    assert metrics_of(a_recipe("accuracy", labels=True), (), listener=heard) == ("accuracy",)
    assert metrics_of(a_recipe(None, labels=True), (), listener=heard) == ()
    assert "macro, micro and sample F1" in heard.notices[-1].message
