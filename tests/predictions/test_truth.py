"""The ground truth: which side lacks images when it does not match the predictions."""

from __future__ import annotations

import tracemalloc
from pathlib import Path

import numpy as np
import pytest

from ensemble.errors import DataError
from ensemble.events import Recorder
from ensemble.labels import LabelSpace
from ensemble.predictions.truth import Truth, read_truth, true_classes

TRUTH = Truth(("a", "b", "c"), np.array([2, 0, 1]), None, LabelSpace.flat(3))


def test_true_classes_follow_the_order_of_the_ids() -> None:
    """The classes are those of the given ids, in their order."""
    assert true_classes(("c", "a", "b"), TRUTH).tolist() == [1, 2, 0]


def test_the_error_says_which_side_lacks_images() -> None:
    """Where the ground truth lacks an image of the predictions, the message says so and not the reverse."""
    with pytest.raises(DataError) as caught:
        true_classes(("a", "b", "z"), TRUTH)
    assert caught.value.code == "E330"
    assert caught.value.message.endswith("the ground truth lacks 1 of 3 ids: z; has 1 others: c")


def test_a_column_of_folds_is_read_where_it_has_whole_numbers(tmp_path: Path) -> None:
    """The column fold is no answer, in any letter case, and other words in it are not folds."""
    path = tmp_path / "truth.csv"
    for header, cells, folds in (("Fold", ("0", "1", "12"), (0, 1, 12)), ("fold", ("a", "1", "2"), None)):
        path.write_text(f"id,species,{header}\n" + "".join(f"{i},{i},{cell}\n" for i, cell in enumerate(cells)))
        found = read_truth(path, LabelSpace.flat(3))
        assert (found.folds, found.classes.tolist()) == (folds, [0, 1, 2])


def test_memory_for_answers_does_not_grow_with_the_number_of_classes(tmp_path: Path) -> None:
    """A class per image takes a number per image: a flag per image and class would take 150 MB here."""
    path = tmp_path / "truth.csv"
    path.write_text("ImageID,ans\n" + "".join(f"{i},{i * 7 % 50_000}\n" for i in range(3000)))
    labels = LabelSpace.flat(50_000)
    tracemalloc.start()
    try:
        found = read_truth(path, labels)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert found.classes[:3].tolist() == [0, 7, 14]
    assert peak < 40e6


@pytest.mark.parametrize(("answers", "said"), [((0, 0, 0), True), ((2, 2, 1), False), ((0,), False)])
def test_a_sample_that_is_given_as_the_truth_is_said(tmp_path: Path, answers: tuple[int, ...], said: bool) -> None:
    """Answers that are all the same are W330: a sample submission was scored against without a word."""
    path = tmp_path / "info.csv"
    path.write_text("ImageID,ans\n" + "".join(f"{i}.jpg,{answer}\n" for i, answer in enumerate(answers)))
    recorder = Recorder()
    read_truth(path, LabelSpace.flat(3), listener=recorder)
    assert [notice.code for notice in recorder.notices] == ["W330"] * said
