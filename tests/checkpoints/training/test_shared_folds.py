"""The folds of a training: dealt once per folder and split, and not at all where they are given."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from checkpoints.data.dataset import Dataset
from checkpoints.data.folds import Folds, write_folds
from checkpoints.data.mask_contest import Row
from checkpoints.training.shared_folds import read_or_make_folds
from ensemble.errors import DataError, OptionError
from ensemble.labels import LabelSpace

ROWS = tuple(Row(f"{n:02d}.png", str(n // 2), 0, 0, 20, n // 2 % 3, Path()) for n in range(48))
DATASET = Dataset(ROWS, LabelSpace.flat(3), Path(), is_contest=False)


def test_each_split_has_folds_of_its_own_which_all_members_share(tmp_path: Path) -> None:
    """Two splits differ, no person is in two folds of one, and the next member reads what the first has written."""
    first, second = (read_or_make_folds("2", repeat, 2, tmp_path, DATASET) for repeat in (0, 1))
    assert first.file == tmp_path / "folds.csv"
    assert second.file == tmp_path / "folds_r1.csv"
    assert first.folds != second.folds
    assert first.folds == read_or_make_folds("2", 0, 1, tmp_path, DATASET).folds
    other = Folds(2, {person: 1 - fold for person, fold in second.folds.of_person.items()})
    write_folds(second.file, other)
    assert read_or_make_folds("2", 1, 2, tmp_path, DATASET).folds == other
    with pytest.raises(OptionError, match=r"folds_r1\.csv has 2 folds, --folds is 3"):
        read_or_make_folds("3", 1, 2, tmp_path, DATASET)


def test_given_folds_are_one_split(tmp_path: Path) -> None:
    """Several splits of the folds of a file or of the table are refused."""
    given = read_or_make_folds("2", 0, 1, tmp_path, DATASET).folds
    path = write_folds(tmp_path / "mine.csv", given)
    for folds, dataset in ((str(path), DATASET), ("2", replace(DATASET, folds=given))):
        with pytest.raises(OptionError) as caught:
            read_or_make_folds(folds, 0, 2, tmp_path, dataset)
        assert caught.value.code == "E208"
    assert read_or_make_folds(str(path), 0, 1, tmp_path, DATASET).file is None


def test_folds_of_other_people_name_the_folder_where_they_are_shared_and_the_file_where_it_is_given(
    tmp_path: Path,
) -> None:
    """E341 does not ask for fewer folds or more images when a file of folds is of another training set."""
    shared = write_folds(tmp_path / "folds.csv", Folds(2, {"0": 0, "1": 1}))
    for folds, dataset, cure in (
        ("2", DATASET, "choose another folder with -o"),
        ("2", replace(DATASET, folds=Folds(2, {row.person: 0 for row in ROWS})), "choose another folder with -o"),
        (str(shared), DATASET, "a line for each person"),
    ):
        with pytest.raises(DataError, match=r"folds\.csv has no fold for 10, 11, ") as caught:
            read_or_make_folds(folds, 0, 1, tmp_path, dataset)
        assert caught.value.code == "E341"
        assert cure in (caught.value.hint or "")
