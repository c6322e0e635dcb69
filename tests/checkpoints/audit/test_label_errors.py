"""Label errors: planted ones come first, on each axis, joined over a person, and for several labels."""

from __future__ import annotations

import importlib.util
from typing import Any

import numpy as np
import pytest
from scipy.special import softmax
from sklearn.metrics import average_precision_score

from checkpoints.audit.label_errors import LabelError, find_label_errors, find_several_label_errors
from ensemble.labels import Axis, LabelSpace

FLAT = LabelSpace.flat(["cat", "dog", "fox"])


def planted(seed: int, *, images: int = 600, share: float = 0.05, clarity: float = 3.0) -> tuple[Any, Any, Any]:
    """Probabilities of a model, the labels as given, and which of them are wrong."""
    rng = np.random.default_rng(seed)
    true = rng.integers(0, 3, images)
    logits = rng.normal(0, 1, (images, 3))
    logits[np.arange(images), true] += clarity
    wrong = rng.random(images) < share
    given = np.where(wrong, (true + rng.integers(1, 3, images)) % 3, true)
    return softmax(logits, axis=1), given, wrong


def precision(errors: tuple[LabelError, ...], wrong: Any) -> float:
    """Average precision of the ranking; images that are not listed come last."""
    score = np.zeros(len(wrong))
    for error in errors:
        score[error.row] = max(score[error.row], error.score)
    return float(average_precision_score(wrong, score))


def alone(count: int) -> list[str]:
    return [str(i) for i in range(count)]


def test_wrong_labels_come_first() -> None:
    """Of 600 images the 5 % wrong ones lead the list, with the right class; sure ones are wrong nearly always."""
    probabilities, given, wrong = planted(1)
    errors = find_label_errors(probabilities, given, FLAT, alone(600))
    assert precision(errors, wrong) > 0.85
    sure = [error for error in errors if error.score > 0.95]
    assert len(sure) > 8
    assert np.mean([wrong[error.row] for error in sure]) > 0.85
    first = errors[0]
    assert first.given == FLAT.names[given[first.row]]
    assert first.suggested == FLAT.names[probabilities[first.row].argmax()]
    assert [error.score for error in errors] == sorted((error.score for error in errors), reverse=True)
    assert all(0 < error.score <= 1 for error in errors)


def test_right_labels_are_hardly_listed() -> None:
    """Without a wrong label few images are listed, and hardly one is sure."""
    probabilities, given, _ = planted(2, share=0.0, clarity=5.0)
    errors = find_label_errors(probabilities, given, FLAT, alone(600))
    assert len(errors) < 20
    assert sum(error.score > 0.95 for error in errors) <= 2


def test_a_model_that_prefers_a_class_does_not_accuse_the_others() -> None:
    """A bias towards one class is taken out first, as the thresholds per class of confident learning do."""
    probabilities, given, wrong = planted(3)
    biased = softmax(np.log(probabilities) + np.array([4.0, 0, 0]), axis=1)
    assert precision(find_label_errors(biased, given, FLAT, alone(600)), wrong) > 0.85
    plain = 1 - biased[np.arange(600), given]
    assert average_precision_score(wrong, plain) < 0.8


def test_the_evidence_of_a_person_is_joined() -> None:
    """Seven images that say little each say much together, where the axis is one value per person."""
    rng = np.random.default_rng(4)
    labels = LabelSpace((Axis("mask", ("worn", "none")), Axis("gender", ("male", "female"))))
    people, each = 150, 7
    mask, gender = rng.integers(0, 2, (people, each)), np.repeat(rng.integers(0, 2, people), each).reshape(people, each)
    logits = rng.normal(0, 1, (people, each, 2, 2))
    for index in np.ndindex(people, each):
        logits[(*index, mask[index], slice(None))] += 4
        logits[(*index, slice(None), gender[index])] += 1.2
    probabilities = softmax(logits.reshape(people * each, 4), axis=1)
    flipped = np.repeat(rng.random(people) < 0.05, each)
    given = (mask * 2 + np.where(flipped.reshape(people, each), 1 - gender, gender)).ravel()
    groups = [str(person) for person in range(people) for _ in range(each)]
    joined = find_label_errors(probabilities, given, labels, groups)
    single = find_label_errors(probabilities, given, labels, alone(people * each))
    assert {error.joined for error in joined if error.axis == "gender"} == {7}
    assert {error.joined for error in joined if error.axis == "mask"} <= {1}
    assert precision(tuple(e for e in joined if e.axis == "gender"), flipped) > 0.9
    assert precision(tuple(e for e in single if e.axis == "gender"), flipped) < 0.7


def test_several_labels_are_judged_one_by_one() -> None:
    """A label that is missing and one that is too much are both found, by the label's name."""
    rng = np.random.default_rng(5)
    true = rng.random((400, 2)) < 0.4
    probabilities = np.clip(np.where(true, 0.9, 0.1) + rng.normal(0, 0.05, true.shape), 0.01, 0.99)
    given = true.copy()
    given[:6, 0] ^= True
    labels = LabelSpace.flat(["rain", "snow"])
    errors = find_several_label_errors(probabilities, given, labels, alone(400))
    assert {(error.row, error.axis) for error in errors} == {(row, "rain") for row in range(6)}
    assert all((error.suggested == "present") == true[error.row, 0] for error in errors)


def test_a_value_that_no_image_has_is_no_fault() -> None:
    """A class without images is never suggested, however probable the model finds it."""
    probabilities, given, _ = planted(6)
    two = np.where(given == 2, 0, given)
    errors = find_label_errors(probabilities, two, FLAT, alone(600))
    assert "fox" not in {error.suggested for error in errors}


@pytest.mark.skipif(importlib.util.find_spec("cleanlab") is None, reason="cleanlab is not installed")
def test_the_ranking_is_no_worse_than_cleanlabs() -> None:
    """cleanlab's normalized margin with adjusted probabilities finds no more of the planted errors."""
    from cleanlab.rank import get_label_quality_scores  # type: ignore[import-not-found]

    for seed in range(3):
        probabilities, given, wrong = planted(10 + seed, clarity=2.0)
        scores = get_label_quality_scores(given, probabilities, method="normalized_margin", adjust_pred_probs=True)
        ours = precision(find_label_errors(probabilities, given, FLAT, alone(600)), wrong)
        assert ours >= average_precision_score(wrong, -scores) - 0.01
