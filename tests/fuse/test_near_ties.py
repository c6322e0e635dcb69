"""A fused file may answer near ties otherwise: by the recipe's rule, and from probabilities that differ by little."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from ensemble.arrays import Floats, Pixels
from ensemble.blend.blend import Blended
from ensemble.blend.decision_rules import MacroF1Rule, Rule, ThresholdRule, decide, decide_labels
from ensemble.card import Activation
from ensemble.errors import DeployError
from ensemble.fuse import verify as verify_module
from ensemble.fuse.fuse import fuse, make_plan
from ensemble.fuse.fused_card import read_fused_card
from ensemble.fuse.fused_session import FusedAnswers
from ensemble.fuse.graph import FusePlan
from ensemble.fuse.verify import CheckImages, verify
from ensemble.labels import LabelSpace
from ensemble.runtime.model_file import read_model
from tests.support.fused import toy_recipe, write_members

IMAGES = 16
TIE = (0.4, 0.402, 0.1, 0.098)
OTHER = (0.402, 0.4, 0.1, 0.098)


class Answers:
    """A session that gives these probabilities for one image after the other, and what the rule decides by them."""

    def __init__(self, rows: Floats, rule: Rule, *, classes: NDArray[Any] | None = None) -> None:
        self.rows, self.rule, self.classes, self.next = rows, rule, classes, 0

    def run(self, _images: Pixels, _boxes: object = None) -> FusedAnswers:
        row = self.rows[self.next : self.next + 1]
        chosen = decide(row, self.rule) if self.classes is None else self.classes[self.next : self.next + 1]
        self.next += 1
        return FusedAnswers(row.astype(np.float32), chosen, decide_labels(row, self.rule))


@pytest.fixture(scope="module")
def plan(tmp_path_factory: pytest.TempPathFactory) -> FusePlan:
    recipe, folder = toy_recipe(), write_members(tmp_path_factory.mktemp("models"))
    paths = {path.stem: path for path in folder.glob("*.onnx")}
    found = make_plan(recipe, {name: read_model(path) for name, path in paths.items()})
    coarse = {name: replace(model, card=replace(model.card, precision="int8")) for name, model in found.models.items()}
    return replace(found, models=coarse)


def compared(
    plan: FusePlan,
    monkeypatch: pytest.MonkeyPatch,
    expected: Floats,
    found: Floats,
    *,
    rule: Rule = "argmax",
    classes: NDArray[Any] | None = None,
) -> verify_module.FusedChecks:
    """Compare files of these probabilities ``(16, C)``."""
    labels = LabelSpace.flat(tuple(f"class {i}" for i in range(expected.shape[1])))
    activation: Activation = "sigmoid" if isinstance(rule, ThresholdRule) else "softmax"
    plan = replace(plan, recipe=replace(plan.recipe, rule=rule, labels=labels, activation=activation))
    ids = tuple(map(str, range(len(expected))))
    blended = Blended(ids, expected, decide(expected, rule), labels, decisions=decide_labels(expected, rule))
    monkeypatch.setattr(verify_module, "_expected", lambda *_: blended)
    answers: Any = Answers(found, rule, classes=classes)
    return verify(answers, plan, CheckImages())


def rows(first: tuple[float, ...]) -> Floats:
    return np.array([first, *[(0.7, 0.1, 0.1, 0.1)] * (IMAGES - 1)])


def test_a_near_tie_is_counted(plan: FusePlan, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two probabilities 0.002 apart may change places; the card has how many images did."""
    checks = compared(plan, monkeypatch, rows(TIE), rows(OTHER))
    assert (checks.near_ties, checks.as_dict()["classes_changed"]) == (1, 1)
    assert checks.same == "same classes but for 1 near tie"
    assert replace(checks, near_ties=2).same == "same classes but for 2 near ties"
    assert compared(plan, monkeypatch, rows(TIE), rows(TIE)).same == "same classes"


def test_a_decision_that_its_probabilities_do_not_explain_is_refused(
    plan: FusePlan, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same probabilities and another class are another rule, however near the tie."""
    with pytest.raises(DeployError, match="1 of 16 answers differ") as caught:
        compared(plan, monkeypatch, rows(TIE), rows(TIE), classes=np.zeros(IMAGES, np.int64))
    assert caught.value.code == "E806"


def test_classes_of_small_probabilities_are_told_apart(plan: FusePlan, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of 400 classes each is below the limit: there a tie is near by its share."""
    wanted = np.full((IMAGES, 400), 0.0025)
    wanted[:, 3] += 0.001
    given = np.full((IMAGES, 400), 0.0025)
    given[:, 5] += 0.001
    with pytest.raises(DeployError, match="16 of 16 answers differ"):
        compared(plan, monkeypatch, wanted, given)


def test_near_ties_are_those_of_the_rule(plan: FusePlan, monkeypatch: pytest.MonkeyPatch) -> None:
    """By a rule for macro F1 other classes are near, and of independent labels those at their thresholds."""
    rule = MacroF1Rule(np.array([0.5, 0.5, 0.5, 0.5]), np.array([1.0, 1.0, 0.1, 0.1]))
    wanted, given = (0.4, 0.4, 0.099, 0.101), (0.4, 0.4, 0.101, 0.099)
    assert decide(np.array([wanted, given]), rule).tolist() == [0, 0]
    rule = replace(rule, f1=np.array([0.9, 0.9, 0.1, 0.1]))
    assert decide(np.array([wanted, given]), rule).tolist() == [3, 2]
    assert compared(plan, monkeypatch, rows(wanted), rows(given), rule=rule).near_ties == 1
    labels = ThresholdRule(np.array([0.401, 0.5, 0.2, 0.3]))
    assert compared(plan, monkeypatch, rows(TIE), rows(OTHER), rule=labels).near_ties == 1
    with pytest.raises(DeployError, match="1 of 16 answers differ"):
        compared(
            plan,
            monkeypatch,
            rows((0.002, 0.7, 0.1, 0.198)),
            rows((0.004, 0.698, 0.1, 0.198)),
            rule=replace(labels, thresholds=np.array([0.003, 0.5, 0.2, 0.3])),
        )


def test_a_card_says_that_no_class_changed(tmp_path: Path) -> None:
    """Without near ties it has the bytes of before."""
    done = fuse(toy_recipe(), [write_members(tmp_path / "models")], tmp_path / "e.onnx")
    assert read_fused_card(done.path).checks == {
        "images": 16,
        "drawn": True,
        "classes_changed": 0,
        "probability_difference_at_most": 1e-3,
    }
