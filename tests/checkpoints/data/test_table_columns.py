"""Columns of a training table that say more than labels: splits, numbers of classes, folders and addresses."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.checkpoints.data.test_dataset import touch
from tests.checkpoints.data.test_table_layout import N, _error, classes, contest, heard

NAMES = ("rust", "scab", "blight")


@pytest.mark.parametrize(
    ("column", "values"),
    [
        ("split", ("train", "val", "test")),
        ("Subset", ("Training", "Validation", "Testing")),
        ("fold", ("train", "valid", "holdout")),
        ("is_train", ("1", "1", "0")),
        ("isTestImage", ("False", "False", "True")),
    ],
)
def test_rows_of_test_data_are_left_out(tmp_path: Path, column: str, values: tuple[str, ...]) -> None:
    """As in folders called train, valid and test, those of the test are no training images, which is said."""
    rows = [f"{i}.jpg,{'ab'[i % 2]},{values[i % 3]}" for i in N]
    data, said = heard(contest(tmp_path, "x/{0}.jpg", f"image,label,{column}", *rows))
    assert [row.id for row in data.rows] == [f"{i}.jpg" for i in N if i % 3 < 2]
    assert classes(data) == ["ab"[i % 2] for i in N if i % 3 < 2]
    assert f"column '{column}': 4 rows of {values[2]} are left out" in said
    assert "not used" not in said


def test_test_data_may_lack_labels_and_images(tmp_path: Path) -> None:
    """A row that is left out is not looked at."""
    rows = [f"{i}.jpg,{'ab'[i % 2]},train" for i in N]
    data, _ = heard(contest(tmp_path, "x/{0}.jpg", "image,label,split", *rows, "missing.jpg,,test"))
    assert len(data.rows) == 12


@pytest.mark.parametrize(
    ("column", "values"),
    [
        ("set", ("train", "bus")),  # of another kind
        ("split", ("val", "test")),  # nothing to train on
        ("vehicle", ("train", "test")),
        ("split", ("train", "val")),  # all is training data
    ],
)
def test_other_columns_leave_nothing_out(tmp_path: Path, column: str, values: tuple[str, str]) -> None:
    """A column is one of splits by its name and by all of its values."""
    rows = [f"{i}.jpg,{'ab'[i % 2]},{values[i % 2]}" for i in N]
    data, said = heard(contest(tmp_path, "x/{0}.jpg", f"image,label,{column}", *rows))
    assert len(data.rows) == 12
    assert "left out" not in said


def test_a_column_of_labels_is_not_one_of_splits(tmp_path: Path) -> None:
    """Classes may be called train and test, if --label-column names their column."""
    rows = [f"{i}.jpg,{('train', 'test')[i % 2]}" for i in N]
    data, _ = heard(contest(tmp_path, "x/{0}.jpg", "image,set", *rows), label_columns=("set",))
    assert set(classes(data)) == {"train", "test"}


@pytest.mark.parametrize("first", [0, 1])
def test_classes_are_in_the_order_of_their_numbers(tmp_path: Path, first: int) -> None:
    """A contest that gives names and numbers asks for these numbers; the alphabet would have others."""
    rows = [f"{i}.jpg,{i % 3 + first},{NAMES[i % 3]}" for i in N]
    data, said = heard(contest(tmp_path, "x/{0}.jpg", "image,class_id,class_name", *rows))
    assert data.labels.names == NAMES
    assert classes(data) == [NAMES[i % 3] for i in N]
    assert "the classes are in the order of their numbers in column 'class_id'" in said
    assert "not used" not in said


@pytest.mark.parametrize("number", [lambda i: i % 2, lambda i: 5 + i % 3, lambda i: i, lambda i: i % 3 * 2])
def test_other_numbers_do_not_order_the_classes(tmp_path: Path, number: object) -> None:
    """Numbers of something else, with gaps, or from another number than 0 and 1 are not those of the classes."""
    assert callable(number)
    rows = [f"{i}.jpg,{number(i)},{NAMES[i % 3]}" for i in N]
    data, said = heard(contest(tmp_path, "x/{0}.jpg", "image,number,class_name", *rows))
    assert data.labels.names == tuple(sorted(NAMES))
    assert "order of their numbers" not in said


def test_folder_and_file_in_two_columns(tmp_path: Path) -> None:
    """Files of one name are told apart by the folder that another column has."""
    touch(tmp_path, *(f"x/{folder}/{i}.jpg" for folder in ("p1", "p2") for i in range(6)))
    rows = [f"{'ab'[i % 2]},p{i // 6 + 1},{i % 6}.jpg" for i in N]
    (tmp_path / "train.csv").write_text("\n".join(["label,folder,file", *rows]), encoding="utf-8")
    data, said = heard(tmp_path)
    assert [row.path for row in data.rows] == [tmp_path / f"x/p{i // 6 + 1}/{i % 6}.jpg" for i in N]
    assert "the folders of the images are in column 'folder'" in said


def test_addresses_are_images_without_their_query(tmp_path: Path) -> None:
    """What follows a question mark in a URL is no part of a file's name; in a plain name it is."""
    rows = [f"https://cdn.example.org/x/{i}.jpg?w=200#a,{i % 2}" for i in N]
    data, _ = heard(contest(tmp_path, "x/{0}.jpg", "image_url,label", *rows))
    assert [row.id for row in data.rows] == [f"{i}.jpg" for i in N]


def test_a_list_of_files_without_a_header_is_told_so(tmp_path: Path) -> None:
    """Lines such as a.jpg 0 have no leading zeros to look for."""
    error = _error(contest(tmp_path, "x/a{0}.jpg", *(f"a{i}.jpg {i % 2}" for i in N)))
    assert error.code == "E336"
    assert "separated by spaces" in error.hint
    assert "header line" in error.hint
