"""The learned table in the terminal: every candidate, within 80 columns, and the reason for the selection."""

from __future__ import annotations

from dataclasses import replace

import pytest

from ensemble.labels import LabelSpace
from ensemble.learn.learn import learn
from ensemble.learn.objective import parse_metric
from ensemble.learn.result import CandidateScore, Learned
from ensemble.learn.table import explain_selection, render_learned, render_weights
from tests.learn.test_learn import contest

ACCURACY = parse_metric("accuracy", LabelSpace.flat(3))


def learned_of(metric: str) -> Learned:
    """A comparison of all candidates on six members with long names."""
    members, truth = contest(members=6)
    named = [replace(m, member=f"tf_efficientnetv2_{m.member}", group=f"tf_efficientnetv2_{m.member}") for m in members]
    return learn(named, truth, metric=metric, repeats=1)


def score(candidate: str, gain: float, weights: dict[str, float] | None = None) -> CandidateScore:
    return CandidateScore(candidate, 0.8 + gain, 0.75, 0.85, gain, 0.01, 0.9, weights or {"a/identity": 1.0})


@pytest.mark.parametrize("metric", ["macro-f1", "nll"])
def test_the_table_fits_80_columns(metric: str) -> None:
    """With long member names and negative scores, no line is wider than 80 characters."""
    learned = learned_of(metric)
    lines = render_learned(learned, width=80).splitlines()
    assert max(map(len, lines)) <= 80
    title = "macro F1" if metric == "macro-f1" else "log-likelihood"
    assert lines[0] == f"5-fold CV on 240 images of 60 persons, 1 repeat; score: {title}"
    assert lines[1].split() == ["method", "score", "95", "%", "CI", "gain", "±", "SE", "optimism"]
    table = lines[2 : lines.index("")]
    assert [line.lstrip("* ").split()[0] for line in table] == [row.candidate for row in learned.table]
    assert [line.split()[1] for line in table if line.startswith("*")] == [learned.method]


def test_weights_reason_and_views_follow_the_table() -> None:
    """Below the table are the weights once per pool, the whole reason, and a line for each added view."""
    learned = learned_of("macro-f1")
    _, weights, members, reason, views = render_learned(learned, width=80).split("\n\n")
    assert "  mean, logit, scaled, calibrated, " in weights
    assert "\n  linear: tf_efficientnetv2_" in weights
    assert [line.split()[0] for line in members.splitlines()[1:]] == [one.member for one in learned.members]
    assert " ".join(reason.split()) == learned.reason
    assert [line.split()[0] for line in views.splitlines()[2:]] == ["hflip"]


def test_a_selection_is_explained_with_its_corrected_gain() -> None:
    """The reason of an automatic selection says the gain, its error, and the gain expected of other people."""
    table = [score("mean", 0), score("pool", 0.02), score("greedy", 0.01)]
    assert explain_selection(table, "pool", ACCURACY, expected_gain=0.0123) == (
        "pool is selected: compared with the mean of probabilities it changes the cross-validated accuracy by "
        "+0.0200 ± 0.0100. Corrected for selection bias (bootstrap bias-corrected CV), the expected gain is "
        "+0.0123 ± 0.0100."
    )


def test_a_kept_mean_is_explained_by_the_best_candidate() -> None:
    """Where the mean is kept, the reason names the candidate with the largest gain minus one standard error."""
    table = [score("mean", 0), score("pool", -0.02), score("greedy", 0.005)]
    assert explain_selection(table, "mean", ACCURACY, expected_gain=0.0) == (
        "The mean of probabilities is kept: no candidate clearly gains on other people; the best, greedy, "
        "changes accuracy by +0.0050 ± 0.0100 in cross-validation."
    )


def test_a_requested_method_is_explained_without_a_corrected_gain() -> None:
    """A named method has a score and a gain, but nothing was selected that could bias them."""
    table = [score("mean", 0), score("greedy", 0.02, {"a/identity": 1.0, "b/identity": 0.0, "b/hflip": 0.0})]
    assert explain_selection(table, "greedy", ACCURACY, expected_gain=None) == (
        "greedy was requested; its cross-validated accuracy is 0.8200, +0.0200 ± 0.0100 compared with the mean of "
        "probabilities; b has no weight: given the others, adding it never helped."
    )
    assert explain_selection(table, "mean", ACCURACY, expected_gain=None) == (
        "mean was requested; its cross-validated accuracy is 0.8000."
    )


def test_the_four_largest_weights_are_named() -> None:
    """Weights are listed from the largest, ties by name, without those that are 0; equal ones are not listed."""
    weights = {"f": 0.1, "a": 0.1, "b": 0.3, "c": 0.0, "d": 0.25, "e": 0.25}
    assert render_weights(weights) == "b 0.30, d 0.25, e 0.25, a 0.10 and 1 more"
    assert render_weights({"a": 0.5, "b": 0.5}) == "equal"
