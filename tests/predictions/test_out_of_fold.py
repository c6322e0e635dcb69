"""Out-of-fold predictions: folds are joined into one member, and predictions that are not out-of-fold are refused."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import pytest
from scipy.special import expit, softmax

from ensemble.errors import EnsError
from ensemble.events import Recorder
from ensemble.labels import LabelSpace
from ensemble.predictions.dataset import Predictions, hash_ids
from ensemble.predictions.out_of_fold import gather_folds, held_out_part
from ensemble.predictions.truth import Truth
from tests.support.members import draw_logits, make_member, reorder

LOGITS = {"identity": draw_logits(0), "hflip": draw_logits(1)}
WHOLE = make_member("r18", LOGITS)
TRUTH = Truth(WHOLE.ids, np.arange(30) % 4, tuple(f"p{i // 5}" for i in range(30)), WHOLE.labels)


def fold(number: int | None, rows: range, *, name: str | None = None) -> Predictions:
    """Some rows of the whole as one fold of r18."""
    part = reorder(WHOLE, rows)
    return replace(part, member=name or f"r18_f{number}", fold=number)


FOLDS = [fold(0, range(10)), fold(1, range(10, 15)), fold(2, range(15, 30))]


def code_of(action: Callable[[], object]) -> tuple[str, str]:
    with pytest.raises(EnsError) as caught:
        action()
    return caught.value.code, caught.value.message


def test_folds_become_the_whole() -> None:
    """Folds, rows and classes in any order are joined into one member in the order of the ground truth."""
    columns = [3, 1, 0, 2]
    turned = replace(
        reorder(FOLDS[1], [4, 2, 0, 1, 3]),
        labels=LabelSpace.flat([WHOLE.labels.names[c] for c in columns]),
    )
    turned = replace(turned, logits={view: values[:, columns] for view, values in turned.logits.items()})
    for folds in (FOLDS, [FOLDS[2], turned, FOLDS[0]]):
        (joined,) = gather_folds(folds, TRUTH)
        assert (joined.member, joined.group, joined.fold, joined.ids) == ("r18", "r18", None, TRUTH.ids)
        for view, values in LOGITS.items():
            np.testing.assert_array_equal(joined.logits[view], values)


def test_predictions_of_all_images_count_where_their_fold_held_out() -> None:
    """A ground truth with folds takes each model's own images (I593); of another split, or without one, it does not."""
    folds = tuple([0] * 10 + [1] * 5 + [2] * 15)
    known = replace(TRUTH, folds=folds)
    every = [replace(WHOLE, member=f"r18_f{number}", fold=number) for number in (0, 1, 2)]
    listener = Recorder()
    (joined,) = gather_folds(every, known, listener=listener)
    assert (joined.ids, [notice.code for notice in listener.notices]) == (TRUTH.ids, ["I593"])
    assert "r18_f1 5 of 30" in listener.notices[0].message
    for view, values in LOGITS.items():
        np.testing.assert_array_equal(joined.logits[view], values)
    listener = Recorder()
    others = replace(TRUTH, folds=tuple(i % 3 for i in range(30)))
    assert (
        gather_folds(FOLDS, others, listener=listener)[0].ids == TRUTH.ids
    )  # predictions of holdouts are what they are
    assert not listener.notices
    hashed = replace(every[0], holdout_sha256=hash_ids(TRUTH.ids[:10]))
    assert len(gather_folds([hashed, *every[1:]], known)) == 1
    for members, answers in ((every, TRUTH), ([replace(one, fold=None) for one in every], known)):
        assert code_of(lambda members=members, answers=answers: gather_folds(members, answers))[0] == "E511"  # type: ignore[misc]
    assert code_of(lambda: gather_folds([hashed, *every[1:]], others))[0] == "E511"


def test_unreadable_images_are_those_of_the_fold() -> None:
    """Images without an answer, and with the class prior in place of one, are cut to the fold as all others."""
    known = replace(TRUTH, folds=tuple([0] * 10 + [1] * 20))
    ids = TRUTH.ids
    filled = [replace(WHOLE, member=f"r18_f{i}", fold=i, filled=(ids[3], ids[12])) for i in (0, 1)]
    assert [one.filled for one in held_out_part(filled, known)] == [(ids[3],), (ids[12],)]
    part = reorder(WHOLE, range(1, 30))
    lacking = [replace(part, member=f"r18_f{i}", fold=i, missing=(ids[0],)) for i in (0, 1)]
    assert [one.missing for one in held_out_part(lacking, known)] == [(ids[0],), ()]
    assert code_of(lambda: gather_folds(lacking, known))[0] == "E534"


def test_groups_stay_apart() -> None:
    """Every group becomes a member, also one without folds."""
    other = make_member("b3", LOGITS, group="b3")
    assert [member.member for member in gather_folds([*FOLDS, other], TRUTH)] == ["b3", "r18"]


def test_fault_86_predictions_that_are_not_out_of_fold() -> None:
    """Folds that overlap, or have no or equal fold numbers, are E511 with the images or members."""
    overlapping = [FOLDS[0], fold(1, range(8, 15)), FOLDS[2]]
    assert code_of(lambda: gather_folds(overlapping, TRUTH)) == (
        "E511",
        "r18: 2 of 30 images are predicted by more than one of its 3 folds: 008.jpg, 009.jpg",
    )
    for number in (None, 0):
        mixed = [FOLDS[0], fold(number, range(10, 15), name="x"), FOLDS[2]]
        code, message = code_of(lambda mixed=mixed: gather_folds(mixed, TRUTH))  # type: ignore[misc]
        assert code == "E511"
        assert message.startswith("r18: its members need distinct fold numbers, got r18_f0 0, r18_f2 2, x ")


def test_a_fold_whose_card_knows_its_holdout_predicts_just_that() -> None:
    """Predictions of other images than the card's holdout are E511, even those of a single fold."""
    held_out = hashlib.sha256("\0".join(sorted(FOLDS[1].ids)).encode()).hexdigest()
    known = replace(reorder(FOLDS[1], [4, 2, 0, 1, 3]), holdout_sha256=held_out)
    assert len(gather_folds([FOLDS[0], known, FOLDS[2]], TRUTH)) == 1
    other = [fold(0, range(9)), replace(fold(1, range(9, 15)), holdout_sha256=held_out), FOLDS[2]]
    for members in (other, [replace(WHOLE, holdout_sha256=held_out)]):
        code, message = code_of(lambda members=members: gather_folds(members, TRUTH))  # type: ignore[misc]
        assert (code, "held out" in message) == ("E511", True)


def test_fault_87_a_person_in_two_holdouts() -> None:
    """A person in two holdouts is E512 with the name; unknown persons are not checked."""
    split = [fold(0, range(7)), fold(1, range(7, 15)), FOLDS[2]]
    assert code_of(lambda: gather_folds(split, TRUTH)) == (
        "E512",
        "r18: 1 of 6 persons are in more than one holdout: p1",
    )
    assert len(gather_folds(split, replace(TRUTH, persons=None))) == 1


def test_every_image_of_the_truth_is_needed() -> None:
    """A group without a fold, or with images missing in the ground truth, is E330; a missing view is E516."""
    assert code_of(lambda: gather_folds(FOLDS[:2], TRUTH))[0] == "E330"
    fewer = Truth(TRUTH.ids[:15], TRUTH.classes[:15], None, TRUTH.labels)
    assert code_of(lambda: gather_folds(FOLDS, fewer))[0] == "E330"
    flat = replace(FOLDS[1], logits={"identity": FOLDS[1].logits["identity"]})
    assert code_of(lambda: gather_folds([FOLDS[0], flat, FOLDS[2]], TRUTH))[0] == "E516"


@pytest.mark.parametrize("activation", ["softmax", "sigmoid"])
def test_fold_splits_become_the_mean_of_their_probabilities(activation: Any) -> None:
    """Each split covers every image; the member has the mean of their probabilities, and each split as a look."""
    other = make_member("r18", {view: draw_logits(seed) for seed, view in enumerate(LOGITS, start=5)})
    splits = [
        replace(reorder(whole, rows), member=f"r18_r{r}_f{f}", fold=f, repeat=r, activation=activation)
        for r, whole in enumerate((WHOLE, other))
        for f, rows in enumerate((range(10), range(10, 30)))
    ]
    (found,) = gather_folds(splits, TRUTH)
    assert (found.member, found.ids) == ("r18", TRUTH.ids)
    assert found.looks is not None
    chances = expit if activation == "sigmoid" else partial(softmax, axis=-1)
    for view in LOGITS:
        np.testing.assert_array_equal(found.looks[view], np.stack([WHOLE.logits[view], other.logits[view]]))
        np.testing.assert_allclose(chances(found.logits[view]), chances(found.looks[view]).mean(axis=0), atol=1e-12)
    assert code_of(lambda: gather_folds(splits[:3], TRUTH))[0] == "E330"
    assert code_of(lambda: gather_folds([replace(one, repeat=0) for one in splits], TRUTH))[0] == "E511"
