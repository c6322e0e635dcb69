"""Label errors: planted ones come first, on each axis, joined over a person, from several models."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import pytest
from scipy.special import softmax
from sklearn.metrics import average_precision_score

from checkpoints.audit.label_errors import LabelError, find_label_errors, find_several_label_errors
from checkpoints.audit.noisy_labels import fit_noisy_labels
from ensemble.errors import OptionError
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
    errors = find_label_errors([probabilities], given, FLAT, alone(600)).errors
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
    errors = find_label_errors([probabilities], given, FLAT, alone(600)).errors
    assert len(errors) < 20
    assert sum(error.score > 0.95 for error in errors) <= 2


def test_a_model_that_prefers_a_class_does_not_accuse_the_others() -> None:
    """A bias towards one class is taken out first, as the thresholds per class of confident learning do."""
    probabilities, given, wrong = planted(3)
    biased = softmax(np.log(probabilities) + np.array([4.0, 0, 0]), axis=1)
    assert precision(find_label_errors([biased], given, FLAT, alone(600)).errors, wrong) > 0.85
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
    joined = find_label_errors([probabilities], given, labels, groups).errors
    single = find_label_errors([probabilities], given, labels, alone(people * each)).errors
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
    errors = find_several_label_errors([probabilities], given, labels, alone(400)).errors
    assert {(error.row, error.axis) for error in errors} == {(row, "rain") for row in range(6)}
    assert all((error.suggested == "present") == true[error.row, 0] for error in errors)


def test_a_value_that_no_image_has_is_no_fault() -> None:
    """A class without images is never suggested, however probable the model finds it."""
    probabilities, given, _ = planted(6)
    two = np.where(given == 2, 0, given)
    errors = find_label_errors([probabilities], two, FLAT, alone(600)).errors
    assert "fox" not in {error.suggested for error in errors}


def test_an_axis_that_is_hard_to_tell_does_not_come_first() -> None:
    """Probabilities of 0.9 that are wrong one time in ten are no label errors; a contradicted certain model is."""
    rng = np.random.default_rng(7)
    labels = LabelSpace((Axis("kind", ("a", "b")), Axis("age", ("young", "old"))))
    kind, age = rng.integers(0, 2, 1000), rng.integers(0, 2, 1000)
    sharp = np.where(kind[:, None] == [0, 1], 0.999, 0.001)
    seen = np.where(rng.random(1000) < 0.9, age, 1 - age)
    hazy = np.where(seen[:, None] == [0, 1], 0.9, 0.1)
    wrong = rng.random(1000) < 0.02
    given = np.where(wrong, 1 - kind, kind) * 2 + age
    found = find_label_errors([(sharp[:, :, None] * hazy[:, None, :]).reshape(1000, 4)], given, labels, alone(1000))
    assert precision(found.errors, wrong) > 0.98
    kinds, ages = found.axes
    assert abs(kinds.noise - wrong.mean()) < 0.01
    assert ages.noise < 0.02
    assert ages.unlisted + sum(error.axis == "age" for error in found.errors) == (seen != age).sum()


def test_models_are_weighted_by_what_they_know_of_an_axis() -> None:
    """Of two models each knows one axis; together they find the wrong labels of both, which their mean does not."""
    rng = np.random.default_rng(8)
    labels = LabelSpace((Axis("x", ("0", "1")), Axis("y", ("0", "1"))))
    true = rng.integers(0, 2, (800, 2))
    members = []
    for known in (0, 1):
        logits = rng.normal(0, 2, (800, 2, 2))
        logits[np.arange(800), known, true[:, known]] += 6
        members.append((softmax(logits[:, 0], 1)[:, :, None] * softmax(logits[:, 1], 1)[:, None]).reshape(800, 4))
    wrong = rng.random((800, 2)) < 0.03
    given = np.where(wrong, 1 - true, true)
    classes = given[:, 0] * 2 + given[:, 1]
    found = find_label_errors(members, classes, labels, alone(800))
    (one, other), (third, fourth) = (axis.weights for axis in found.axes)
    assert one > 5 * other
    assert fourth > 5 * third
    mean = find_label_errors([np.mean(members, axis=0)], classes, labels, alone(800))
    assert precision(found.errors, wrong.any(axis=1)) > precision(mean.errors, wrong.any(axis=1)) + 0.1


def of_people(seed: int) -> tuple[Any, Any, Any, list[str]]:
    """Probabilities, labels as given, and wrong ones, of 100 people of 6 images, each person of one class."""
    rng = np.random.default_rng(seed)
    true = np.repeat(rng.integers(0, 3, 100), 6)
    logits = rng.normal(0, 1, (600, 3))
    logits[np.arange(600), true] += 1.5
    wrong = rng.random(600) < 0.02
    given = np.where(wrong, (true + 1) % 3, true)
    return softmax(logits, axis=1), given, wrong, [str(row // 6) for row in range(600)]


def test_one_wrong_image_of_a_person_is_judged_by_all_of_them() -> None:
    """A few images with another label than the rest of their group do not keep its evidence from being joined."""
    probabilities, given, wrong, people = of_people(9)
    found = find_label_errors([probabilities], given, FLAT, people)
    (axis,) = found.axes
    assert (axis.joined, axis.mixed) == (100, len({person for person, bad in zip(people, wrong, strict=True) if bad}))
    assert precision(found.errors, wrong) > 0.95
    apart = find_label_errors([probabilities], given, FLAT, people, join=())
    assert apart.axes[0].joined == 0
    assert precision(apart.errors, wrong) < 0.7
    assert find_label_errors([probabilities], given, FLAT, people, join=("class",)) == found
    with pytest.raises(OptionError, match="--join: kind is none of class"):
        find_label_errors([probabilities], given, FLAT, people, join=("kind",))


def test_a_rare_label_is_not_taken_for_the_groups() -> None:
    """A label that is absent from nearly all pairs of images is so by chance: their evidence is not joined."""
    rng = np.random.default_rng(10)
    applies = np.stack([rng.random(1000) < 0.01, np.repeat(rng.random(500) < 0.01, 2)], axis=1)
    assert (applies[::2, 0] == applies[1::2, 0]).mean() > 0.95
    probabilities = np.where(applies, 0.8, 0.02)
    pairs = [str(row // 2) for row in range(1000)]
    found = find_several_label_errors([probabilities], applies, LabelSpace.flat(["chance", "pair"]), pairs)
    assert [axis.joined for axis in found.axes] == [0, 500]


def asymmetric(seed: int) -> tuple[Any, Any, Any]:
    """Probabilities, labels as given, and wrong ones: a tenth of the dogs, and nothing else, is labeled cat."""
    probabilities, given, _ = planted(seed, share=0.0, clarity=2.0)
    wrong = (given == 1) & (np.random.default_rng(seed).random(len(given)) < 0.1)
    return probabilities, np.where(wrong, 0, given), wrong


@pytest.mark.skipif(importlib.util.find_spec("cleanlab") is None, reason="cleanlab is not installed")
@pytest.mark.parametrize("case", [partial(planted, clarity=2.0), partial(planted, clarity=2.0, share=0.2), asymmetric])
def test_the_ranking_is_no_worse_than_cleanlabs(case: Callable[[int], tuple[Any, Any, Any]]) -> None:
    """The best of cleanlab's scores finds no more of the planted errors, be they few, many or one-sided."""
    from cleanlab.rank import get_label_quality_scores

    ours, theirs = [], []
    for seed in range(10, 16):
        probabilities, given, wrong = case(seed)
        ours.append(average_precision_score(wrong, fit_noisy_labels(np.log(probabilities)[None], given).wrong))
        scores = [
            get_label_quality_scores(given, probabilities, method=method, adjust_pred_probs=adjust)
            for method in ("self_confidence", "normalized_margin")
            for adjust in (False, True)
        ]
        theirs.append([average_precision_score(wrong, -one) for one in scores])
    assert np.mean(ours) >= np.mean(theirs, axis=0).max() - 0.015


def test_an_axis_of_one_value_is_not_judged() -> None:
    """An only value cannot be wrong; the other axis is judged as without it."""
    probabilities, given, _ = planted(1, images=60)
    both = LabelSpace((Axis("kind", ("animal",)), *FLAT.axes))
    found = find_label_errors([probabilities], given, both, alone(60))
    assert found == find_label_errors([probabilities], given, FLAT, alone(60))
    assert find_label_errors([np.ones((3, 1))], np.zeros(3, dtype=np.intp), LabelSpace.flat(["x"]), alone(3)).axes == ()
