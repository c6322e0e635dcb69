"""Metrics that `ens evaluate` is asked for: values, intervals by group, undefined cases, and the table."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.metrics import log_loss, roc_auc_score

from ensemble.analysis.evaluate import evaluate
from ensemble.analysis.evaluate_labels import evaluate_labels
from ensemble.analysis.metric_estimates import positive_class
from ensemble.blend.pooling import log_softmax
from ensemble.errors import OptionError
from ensemble.events import Recorder
from ensemble.labels import LabelSpace
from ensemble.predictions.truth import Truth
from ensemble.scoring.catalog import find_metric
from ensemble.submission.sheet import Submission
from tests.support.members import draw_logits, make_member

COUNT = 80


def truth_of(ids: tuple[str, ...], labels: LabelSpace) -> Truth:
    """Return random classes of images in groups of four."""
    classes = np.random.default_rng(3).integers(len(labels), size=len(ids))
    return Truth(ids, classes, tuple(str(i // 4) for i in range(len(ids))), labels)


def test_requested_metrics_have_values_and_intervals() -> None:
    """Log loss and AUC are scikit-learn's, inside their intervals, and listed in the table, the AUC per class."""
    labels = LabelSpace.flat(["cat", "dog", "owl"])
    member = make_member("a", {"identity": draw_logits(1, COUNT, 3)}, labels=labels)
    truth = truth_of(member.ids, labels)
    names = ("log-loss", "roc-auc")
    found = evaluate(member, truth, metrics=[find_metric(name) for name in names], resamples=50)
    p = np.exp(log_softmax(member.logits["identity"]))
    scores = found.scores[0].metrics
    expected = [roc_auc_score(truth.classes == c, p[:, c]) for c in range(3)]
    assert scores["roc-auc"].by_class == pytest.approx(expected)
    for name, value in zip(names, (log_loss(truth.classes, p), np.mean(expected)), strict=True):
        estimate = scores[name].estimate
        assert estimate is not None
        assert estimate.value == pytest.approx(value)
        assert estimate.low < value < estimate.high
    text = found.render()
    assert "ROC AUC per class" in text
    assert "log loss" in text


def test_a_submission_of_classes_has_no_log_loss() -> None:
    """What needs probabilities is None and a dash, and what decisions suffice for is scored."""
    labels = LabelSpace.flat(3)
    truth = truth_of(tuple(f"{i}.png" for i in range(COUNT)), labels)
    answers = Submission(truth.ids, truth.classes, labels)
    found = evaluate(answers, truth, metrics=[find_metric("log-loss"), find_metric("mcc")], resamples=20)
    metrics = found.scores[0].metrics
    assert metrics["log-loss"].estimate is None
    assert metrics["mcc"].estimate is not None
    assert metrics["mcc"].estimate.value == 1
    with pytest.raises(OptionError, match="several labels"):
        evaluate(answers, truth, metrics=[find_metric("sample-f1")])


def test_labels_have_their_metrics_per_label() -> None:
    """Of labels, one of which applies nowhere, the AUC is the mean of the others and undefined for that one."""
    rng = np.random.default_rng(4)
    labels = LabelSpace.flat(["a", "b", "c"])
    ids = tuple(f"{i}.png" for i in range(COUNT))
    applies = rng.random((COUNT, 3)) < 0.4
    applies[:, 2] = False
    p = rng.random((COUNT, 3))
    truth = Truth(ids, applies.argmax(axis=1), None, labels, applies)
    answers = {"x": Submission(ids, p.argmax(axis=1), labels, p, None, independent=True)}
    found = evaluate_labels(
        answers, truth, metrics=[find_metric("auc"), find_metric("average-precision")], resamples=20
    )
    score = found.scores[0].metrics["roc-auc"]
    expected = [roc_auc_score(applies[:, c], p[:, c]) for c in range(2)]
    assert score.by_class is not None
    assert score.by_class[:2] == pytest.approx(expected)
    assert score.by_class[2] is None
    assert score.estimate is not None
    assert score.estimate.value == pytest.approx(np.mean(expected))
    assert found.scores[0].auc == score.estimate
    assert "ROC AUC per class" in found.render()


def test_the_positive_class_is_named_or_told_by_its_name() -> None:
    """``no mask`` against ``mask``, the second of unrelated names with a notice, and the one that is named."""
    listener = Recorder()
    assert positive_class(["mask", "no mask"], None, listener=listener) == 0
    assert positive_class(["cat", "dog"], None, listener=listener) == 1
    assert [notice.code for notice in listener.notices] == ["I549", "I549"]
    assert positive_class(["cat", "dog"], "cat") == 0
    assert positive_class(["a", "b", "c"], None) == 1


def test_a_ranking_has_an_order_and_no_probabilities() -> None:
    """MAP@k of a submission of ranked names is that of its order; log loss and AUC are not defined."""
    labels = LabelSpace.flat(4)
    ids = tuple(f"{i}.png" for i in range(4))
    truth = Truth(ids, np.array([0, 1, 2, 3]), None, labels)
    order = np.array([[4.0, 3, 2, 1]] * 4)
    answers = Submission(ids, order.argmax(axis=1), labels, order, ranked=True)
    names = ("map@3", "top-2-accuracy", "log-loss", "auc", "accuracy")
    found = evaluate(answers, truth, metrics=[find_metric(name) for name in names], resamples=20).scores[0].metrics
    values = [None if one.estimate is None else one.estimate.value for one in found.values()]
    assert values == [pytest.approx((1 + 1 / 2 + 1 / 3) / 4), 0.5, None, None, 0.25]
