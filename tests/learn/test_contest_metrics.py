"""Learning for contest metrics: what is fitted and selected depends on the metric."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from sklearn.metrics import average_precision_score, cohen_kappa_score, roc_auc_score

from ensemble.blend.blend import blend
from ensemble.blend.decision_rules import OrdinalRule, decide, fit_ordinal_rule
from ensemble.blend.pooling import log_softmax
from ensemble.errors import OptionError
from ensemble.events import Recorder
from ensemble.labels import MASK18, LabelSpace
from ensemble.learn.candidates import candidates_for
from ensemble.learn.learn import learn
from ensemble.learn.learned_recipe import learned_recipe
from ensemble.learn.objective import parse_metric, title_of
from ensemble.learn.selection import ResampledScores, select_candidate
from ensemble.predictions.dataset import Predictions
from ensemble.predictions.truth import Truth
from tests.support.members import make_member

ROWS = 150


def contest(classes: int, strengths: tuple[float, ...]) -> tuple[list[Predictions], Truth]:
    """Return members of some strengths, of images in groups of three."""
    rng = np.random.default_rng(0)
    truth = rng.integers(classes, size=ROWS)
    hot = np.eye(classes)[truth]
    logits = [strength * hot + rng.normal(size=(ROWS, classes)) for strength in strengths]
    members = [make_member(f"m{i}", one) for i, one in enumerate(logits)]
    return members, Truth(members[0].ids, truth, tuple(str(i // 3) for i in range(ROWS)), members[0].labels)


def test_candidates_follow_from_what_a_metric_depends_on() -> None:
    """AUC has ranks and no rule, kappa cuts of the expected class, Matthews a power of the prior, log loss neither."""
    labels = LabelSpace.flat(4)
    names = {name: candidates_for(parse_metric(name, labels), labels) for name in ("auc", "qwk", "mcc", "log-loss")}
    assert "rank" in names["auc"]
    assert "pool+ordinal" in names["qwk"]
    assert "pool+tau" in names["mcc"]
    assert not [name for name in (*names["log-loss"], *names["auc"]) if "+" in name]
    assert all(each[0] == "mean" for each in names.values())


def test_learning_for_auc_weighs_the_better_member_more() -> None:
    """The in-sample AUC of every candidate is that of scikit-learn for its recipe, of ranks as well."""
    members, truth = contest(2, (2.0, 0.2))
    learned = learn(members, truth, metric="roc-auc", repeats=1)
    by_name = {row.candidate: row for row in learned.table}
    assert by_name["greedy"].weights["m0/identity"] > by_name["greedy"].weights["m1/identity"]
    for name in ("mean", "rank", "log-linear"):
        order = sorted(range(ROWS), key=truth.ids.__getitem__)
        log_p = np.stack([log_softmax(member.logits["identity"])[order] for member in members])
        p = np.exp(learned.candidates[name].apply(log_p))
        assert by_name[name].in_sample == pytest.approx(roc_auc_score(truth.classes[order], p[:, 1]), abs=1e-9)
    method = learn(members, truth, metric="roc-auc", method="rank", repeats=1)
    recipe = learned_recipe(method, members)
    assert recipe.pool.ranks
    found = blend(members, recipe, ids=truth.ids)
    assert roc_auc_score(truth.classes, found.probabilities[:, 1]) == pytest.approx(method.table[1].in_sample, abs=1e-3)


def test_learning_is_about_the_positive_class_that_is_named() -> None:
    """The in-sample average precision of the mean is that of scikit-learn for the class named, else the second."""
    members, truth = contest(2, (1.0, 0.2))
    order = sorted(range(ROWS), key=truth.ids.__getitem__)
    p = np.exp(np.stack([log_softmax(member.logits["identity"])[order] for member in members])).mean(axis=0)
    heard: list[str] = []
    for positive in (0, 1, None):
        listener = Recorder()
        named = replace(truth, positive=positive)
        learned = learn(members, named, metric="average-precision", method="mean", repeats=1, listener=listener)
        shown = 1 if positive is None else positive
        expected = average_precision_score(truth.classes[order] == shown, p[:, shown])
        assert learned.table[0].in_sample == pytest.approx(expected, abs=1e-9)
        heard += [notice.code for notice in listener.notices if notice.code == "I549"]
    assert heard == ["I549"]


def test_a_positive_class_of_three_is_refused() -> None:
    """Metrics of one of two classes have no meaning for three."""
    members, truth = contest(3, (1.0, 0.2))
    with pytest.raises(OptionError, match="one of two classes, and there are 3"):
        learn(members, replace(truth, positive=1), metric="average-precision")


def test_ordinal_cuts_raise_kappa_on_a_skewed_scale() -> None:
    """Where members see too little of high grades, tuned cuts have a higher kappa than the most probable class."""
    rng = np.random.default_rng(1)
    truth = rng.integers(4, size=400)
    logits = -0.5 * (np.arange(4) - (0.4 * truth + rng.normal(size=400) * 0.3)[:, np.newaxis]) ** 2
    p = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)

    def score(classes: np.ndarray[tuple[int, ...], np.dtype[np.intp]]) -> float:
        return float(cohen_kappa_score(truth, classes, weights="quadratic", labels=range(4)))

    rule = fit_ordinal_rule(p, truth, score)
    assert isinstance(rule, OrdinalRule)
    assert score(decide(p, rule)) > score(p.argmax(axis=1)) + 0.2
    assert (np.diff(rule.cuts) >= 0).all()


def test_a_function_of_the_user_is_learned_for(tmp_path: Path) -> None:
    """The share of right answers as a user's loss gives the accuracy's scores; a recipe's name of it is not run."""
    path = tmp_path / "mine.py"
    path.write_text("def score(t, p):\n    return float((p.argmax(1) != t).mean())\nscore.greater_is_better = False\n")
    members, truth = contest(3, (1.0, 0.5))
    own = learn(members, truth, metric=f"{path}:score", method="log-linear", repeats=1)
    accuracy = learn(members, truth, metric="accuracy", method="log-linear", repeats=1)
    for one, other in zip(own.table, accuracy.table, strict=True):
        assert one.nested == pytest.approx(other.nested - 1)
    path.write_text("raise SystemExit")
    assert title_of(f"{path}:score", truth.labels) == f"{path}:score"


def test_a_metric_of_order_is_selected_by_its_score() -> None:
    """The candidate with the most certain gain wins, whatever its likelihood; without a clear gain it is the mean."""
    rng = np.random.default_rng(0)
    noise = rng.normal(size=200) * 0.1
    score = ResampledScores(np.array([0.5, 0.6, 0.7]), np.stack([0.5 + noise, 0.6 + noise * 1.1, 0.7 + noise * 1.01]))
    likelihood = ResampledScores(np.array([-1.0, -0.5, -9.0]), np.stack([noise, noise, noise]))
    assert select_candidate(["mean", "linear", "rank"], score, likelihood, by_score=True) == 2
    flat = ResampledScores(np.zeros(3), score.resampled)
    assert select_candidate(["mean", "linear", "rank"], flat, likelihood, by_score=True) == 0


def test_metrics_of_other_classes_are_refused() -> None:
    """Sample F1 needs several labels, and an axis is only for the metrics of classes."""
    for text in ("sample-f1", "binary-f1", "nothing", "mcc:age"):
        with pytest.raises(OptionError) as caught:
            parse_metric(text, MASK18)
        assert caught.value.code == "E204"
