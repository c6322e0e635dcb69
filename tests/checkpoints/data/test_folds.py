"""Folds: no person is in two of them, and each has its share of every class."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from checkpoints.data.folds import make_folds
from checkpoints.data.mask_contest import Row
from ensemble.errors import DataError, OptionError


def seven(person: int, gender: int, age_group: int) -> list[Row]:
    """Return the seven rows of one person."""
    age = (20, 40, 60)[age_group]
    return [
        Row(f"{person}/{k}.jpg", str(person), mask, gender, age, mask * 6 + gender * 3 + age_group, Path())
        for k, mask in enumerate((0, 0, 0, 0, 0, 1, 2))
    ]


def crowd(*counts: int) -> list[Row]:
    """Return rows with these counts of people: male under 30, male 30 to 59, ..., female 60 and over."""
    kinds = [(kind // 3, kind % 3) for kind, count in enumerate(counts) for _ in range(count)]
    return [row for person, (gender, group) in enumerate(kinds) for row in seven(person, gender, group)]


# as skewed as the contest, in which people of 60 are rare
ROWS = crowd(41, 55, 11, 61, 73, 8)


@pytest.mark.parametrize("folds", [2, 5, 8])
def test_nobody_is_in_two_folds(folds: int) -> None:
    """Every row is held out exactly once, together with all rows of its person."""
    made = make_folds(ROWS, folds=folds, seed=0)
    held_out = np.array([made.holdout(ROWS, fold) for fold in range(folds)])
    assert (held_out.sum(axis=0) == 1).all()
    people = [{row.person for row, held in zip(ROWS, fold, strict=True) if held} for fold in held_out]
    assert sum(map(len, people)) == len(set().union(*people)) == 249


@pytest.mark.parametrize("folds", [2, 5, 8])
@pytest.mark.parametrize("seed", [0, 1])
def test_every_fold_has_its_share_of_every_class(folds: int, seed: int) -> None:
    """Each fold's number of people per class is within two of the even share, and never zero."""
    made = make_folds(ROWS, folds=folds, seed=seed)
    labels = np.array([row.label for row in ROWS])
    pictures = np.array([5] * 6 + [1] * 12)  # of one person, by class
    shares = np.bincount(labels, minlength=18) / pictures / folds
    for fold in range(folds):
        found = np.bincount(labels[made.holdout(ROWS, fold)], minlength=18) / pictures
        assert (abs(found - shares) < 2).all()
        assert (found > 0).all()


def test_a_seed_decides_the_folds() -> None:
    """The same seed gives the same folds in any order of the rows, and another seed gives others."""
    made = make_folds(ROWS, folds=5, seed=7)
    shuffled = [ROWS[i] for i in np.random.default_rng(0).permutation(len(ROWS))]
    assert make_folds(shuffled, folds=5, seed=7) == made
    assert make_folds(ROWS, folds=5, seed=8) != made


def test_a_class_rarer_than_the_folds_is_refused() -> None:
    """With four women of 60 and five folds, one fold could not be scored: E341 names the class."""
    rows = crowd(6, 6, 6, 6, 6, 4)
    assert make_folds(rows, folds=4, seed=0).count == 4
    with pytest.raises(DataError, match="female / 60 and over") as caught:
        make_folds(rows, folds=5, seed=0)
    assert caught.value.code == "E341"


@pytest.mark.parametrize("folds", [1, 0, -3])
def test_one_fold_is_none(folds: int) -> None:
    """Fewer than two folds leave nothing to train on or to hold out: E204."""
    with pytest.raises(OptionError) as caught:
        make_folds(ROWS, folds=folds, seed=0)
    assert caught.value.code == "E204"
