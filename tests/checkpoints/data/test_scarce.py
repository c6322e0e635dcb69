"""What a training set has too little of is said by `ens data`: classes, images of a class, people, folds."""

from __future__ import annotations

from pathlib import Path

import pytest

from checkpoints.data.dataset import read_dataset
from checkpoints.data.scarce import tell_scarce
from checkpoints.data.table_options import TableOptions
from ensemble.errors import DataError
from ensemble.events import Recorder
from tests.support import toys

pytestmark = pytest.mark.slow


def said(root: Path, header: str, *lines: str, table: TableOptions | None = None) -> list[str]:
    """Write a table and its images, and return what is said about too little, and of columns with one value."""
    root.mkdir()
    for line in lines:
        (root / line.split(",")[0]).write_bytes(toys.encode(toys.picture(1, size=(8, 8)), "PNG"))
    (root / "train.csv").write_text("\n".join([header, *lines]) + "\n")
    heard = Recorder()
    data = read_dataset(root / "train.csv", table=table, listener=heard)
    tell_scarce(data.rows, data.labels, data.unit, listener=heard)
    return [one.message for one in heard.notices if one.code == "W368" or "has one value" in one.message]


def test_one_class_is_said_once(tmp_path: Path) -> None:
    """A table of one class teaches nothing; with two classes of two images each nothing is said."""
    found = said(tmp_path / "a", "image,label", "a.png,cat", "b.png,cat", "c.png,cat")
    assert found == ["all 3 images are of one class, cat: nothing can be learned from them"]
    assert said(tmp_path / "b", "image,label", "a.png,cat", "b.png,dog", "c.png,cat", "d.png,dog") == []


def test_classes_of_one_image_are_counted_and_named(tmp_path: Path) -> None:
    """The single image of a class cannot be trained on and held out."""
    found = said(tmp_path / "a", "image,label", "a.png,cat", "b.png,dog", "c.png,cat", "d.png,owl")
    assert found == ["2 of 3 classes have one image, which cannot be both trained on and held out: dog, owl"]


def test_one_person_and_classes_of_one_person_are_said(tmp_path: Path) -> None:
    """One person for everything, or one for all images of a class."""
    lines = ("a.png,x,1", "b.png,y,1", "c.png,x,1", "d.png,y,1")
    (unused,) = said(tmp_path / "a", "image,label,person", *lines)
    assert "column 'person' has one value, so it gives no groups that no two folds share" in unused
    named = said(tmp_path / "c", "image,label,person", *lines, table=TableOptions(group_column="person"))
    assert named == ["all 4 images are of one person: no fold can hold out others"]
    found = said(tmp_path / "b", "image,label,person", "a.png,x,1", "b.png,y,1", "c.png,x,2", "d.png,y,1")
    assert found == ["1 of 2 classes have images of one person only, which cannot be both trained on and held out: y"]


def test_one_fold_is_said(tmp_path: Path) -> None:
    """A column of folds in which all have the same number."""
    lines = ("a.png,x,0", "b.png,y,0", "c.png,x,0", "d.png,y,0")
    (found,) = said(tmp_path / "a", "image,label,fold", *lines)
    assert "column 'fold' has one value, so it gives no folds" in found
    with pytest.raises(DataError, match=r"E341.*at least two"):
        said(tmp_path / "b", "image,label,fold", *lines, table=TableOptions(fold_column="fold"))


def test_labels_that_tell_nothing_are_said(tmp_path: Path) -> None:
    """Of several labels per image: the same for all, none, one or all images."""
    header = "image,sun,rain,snow"
    found = said(tmp_path / "a", header, "a.png,1,1,0", "b.png,1,1,0", "c.png,1,1,0")
    assert found[0] == "all 3 images have the same labels (sun, rain): nothing can be learned from them"
    found = said(tmp_path / "b", header, "a.png,1,1,0", "b.png,1,0,0", "c.png,1,1,0", "d.png,1,0,0")
    assert found == ["1 of 3 labels have no image: snow", "labels that all images have: sun"]
    found = said(tmp_path / "c", header, "a.png,1,1,0", "b.png,1,0,1", "c.png,0,1,0", "d.png,1,0,0")
    assert found == ["1 of 3 labels have one image, which cannot be both trained on and held out: snow"]
