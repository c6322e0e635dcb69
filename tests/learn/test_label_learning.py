"""Learning for several labels per image: thresholds, calibration and weights, and the same recipe applied again."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from sklearn.metrics import f1_score

from ensemble.arrays import Floats
from ensemble.blend.blend import blend
from ensemble.blend.decision_rules import ThresholdRule
from ensemble.blend.recipe import Recipe
from ensemble.cli import ens
from ensemble.errors import DataError, OptionError
from ensemble.learn.label_candidates import apply_labels, decided_by, fit_thresholds
from ensemble.learn.label_learning import learn_labels
from ensemble.learn.learned_recipe import learned_recipe
from ensemble.learn.objective import parse_contest_metric
from ensemble.predictions.dataset import Predictions
from ensemble.predictions.truth import Truth
from ensemble.submission.sheet import Decisions
from tests.support.members import make_member

ROWS, LABELS = 120, 3


def contest(shift: float = -1.5) -> tuple[list[Predictions], Truth]:
    """Return a strong and a weak member whose log-odds are all too low, and images in groups of three."""
    rng = np.random.default_rng(0)
    applies = rng.random((ROWS, LABELS)) < [0.2, 0.3, 0.5]
    members = [
        replace(
            make_member(name, strength * (2.0 * applies - 1) + rng.normal(size=applies.shape) + shift),
            activation="sigmoid",
        )
        for name, strength in (("strong", 1.5), ("weak", 0.3))
    ]
    persons = tuple(str(i // 3) for i in range(ROWS))
    return members, Truth(members[0].ids, applies.argmax(axis=1), persons, members[0].labels, applies)


def stacked(members: list[Predictions]) -> Floats:
    """Return all log-odds, ``(V, N, C)``."""
    return np.stack([member.logits["identity"].astype(np.float64) for member in members])


def test_every_candidate_is_the_same_as_a_recipe() -> None:
    """The recipe of each candidate, also after JSON, gives its probabilities and decisions."""
    members, truth = contest()
    learned = learn_labels(members, truth, repeats=1)
    for name, fitted in learned.candidates.items():
        recipe = learned_recipe(replace(learned, method=name, fitted=fitted), members)
        found = blend(members, Recipe.from_json(recipe.to_json()), ids=truth.ids)
        p = apply_labels(fitted, stacked(members))
        np.testing.assert_allclose(found.probabilities, p, atol=1e-9)
        if isinstance(fitted.rule, ThresholdRule):
            np.testing.assert_array_equal(found.decisions, decided_by(fitted, p))


def test_f1_gains_from_thresholds_or_a_bias() -> None:
    """Where all log-odds are too low, something that moves the decision is selected, in any order of the members."""
    members, truth = contest()
    learned = learn_labels(members, truth, repeats=1)
    assert learned.method != "mean"
    assert learned.expected_gain > 0
    assert truth.applies is not None
    in_sample = {row.candidate: row.in_sample for row in learned.table}
    p = apply_labels(learned.candidates["mean"], stacked(members))
    assert in_sample["mean"] == pytest.approx(f1_score(truth.applies, p >= 0.5, average="macro", zero_division=0))
    assert in_sample["mean+threshold"] > in_sample["mean"]
    weights = next(row.weights for row in learned.table if row.candidate == "linear")
    assert weights["strong/identity"] > weights["weak/identity"]
    again = learn_labels(members[::-1], truth, repeats=1)
    assert again.table == learned.table


def test_auc_has_ranks_and_no_thresholds() -> None:
    """A metric of order has a pool of ranks; one of probabilities has neither."""
    members, truth = contest()
    found = learn_labels(members, truth, metric="roc-auc", method="rank", repeats=1)
    assert [row.candidate for row in found.table] == ["mean", "rank"]
    assert learned_recipe(found, members).pool.ranks
    with pytest.raises(OptionError, match="none of auto, mean"):
        learn_labels(members, truth, metric="log-loss", method="mean+threshold")
    with pytest.raises(OptionError, match="one class per image"):
        learn_labels(members, truth, metric="qwk")
    with pytest.raises(DataError, match="one class per image"):
        learn_labels(members, replace(truth, applies=None))


def test_thresholds_per_label_are_not_worse_than_one() -> None:
    """With scales that differ by label, a threshold each is better; a label without images keeps the common one."""
    rng = np.random.default_rng(2)
    applies: Decisions = rng.random((200, 3)) < [0.3, 0.3, 0.0]
    p = np.clip((0.2 * applies + 0.1 * rng.random((200, 3))) * [1.0, 3.0, 1.0], 0, 1)
    metric = parse_contest_metric("macro-f1", make_member("a", np.zeros((1, 3))).labels, exclusive=False)
    one = fit_thresholds(p, applies, metric, per_label=False)
    each = fit_thresholds(p, applies, metric, per_label=True)
    assert len(set(one.tolist())) == 1
    score = [f1_score(applies, p >= t, average="macro", zero_division=0) for t in (one, each)]
    assert score[1] > score[0]
    assert each[1] > each[0]
    assert each[2] == one[2]


def test_labels_are_learned_through_the_command_line(tmp_path: Path) -> None:
    """Out-of-fold tables and a truth of several names per cell give a submission of names, and the recipe again."""
    members, truth = contest()
    assert truth.applies is not None
    names = ["cat", "dog", "owl"]
    (tmp_path / "labels.json").write_text('["cat", "dog", "owl"]')
    for member in members:
        rows = [
            f"{i}," + ",".join(map(repr, row.tolist()))
            for i, row in zip(member.ids, member.logits["identity"].astype(np.float64), strict=True)
        ]
        (tmp_path / f"{member.member}.csv").write_text("\n".join(["id," + ",".join(names), *rows]))
    cells = [" ".join(n for n, yes in zip(names, row, strict=True) if yes) for row in truth.applies]
    assert truth.persons is not None
    lines = [f"{i},{c},{p}" for i, c, p in zip(truth.ids, cells, truth.persons, strict=True)]
    (tmp_path / "truth.csv").write_text("\n".join(["id,labels,person", *lines]))
    (tmp_path / "sample.csv").write_text("\n".join(["id,labels", *(f"{i},cat dog" for i in truth.ids)]))
    tables = [tmp_path / f"{member.member}.csv" for member in members]
    learning = ["--truth", tmp_path / "truth.csv", "--oof", tables[0], "--oof", tables[1]]
    common = ["--as", "logits", "--activation", "sigmoid", "--labels", tmp_path / "labels.json"]
    common += ["--like", tmp_path / "sample.csv"]
    recipe = tmp_path / "blend.json"
    for out, words in (("a.csv", [*learning, "--save", recipe]), ("b.csv", ["--apply", recipe])):
        command = ["blend", *tables, *common, *words, "-o", tmp_path / out]
        done = CliRunner().invoke(ens, [str(word) for word in command], catch_exceptions=False)
        assert done.exit_code == 0, done.output
    assert (tmp_path / "a.csv").read_bytes() == (tmp_path / "b.csv").read_bytes()
    assert len(set((tmp_path / "a.csv").read_text().splitlines())) == ROWS + 1
