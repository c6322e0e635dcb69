"""Reading a training folder: every image becomes a row, and every fault is reported."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from checkpoints.data.mask_contest import read_contest
from ensemble.errors import DataError
from ensemble.images.listing import list_images
from ensemble.labels import MASK18
from exporters.demo.contest import draw_contest

HEADER = "id,gender,race,age,path\n"
STEMS = ("incorrect_mask", "mask1", "mask2", "mask3", "mask4", "mask5", "normal")


def make(root: Path, *people: str, suffix: str = ".jpg") -> Path:
    """Write a training folder with one empty image of each name per line of train.csv."""
    root.mkdir(exist_ok=True)
    (root / "train.csv").write_text(HEADER + "".join(f"{line}\n" for line in people), encoding="utf-8")
    for line in people:
        folder = root / "images" / line.split(",")[4]
        folder.mkdir(parents=True)
        for stem in STEMS:
            (folder / f"{stem}{suffix}").touch()
    return root


def test_a_drawn_contest_is_read_whole(tmp_path: Path) -> None:
    """Every image is one row, whose id is its path below images/ and whose label matches folder and name."""
    contest = draw_contest(tmp_path, train_people=6, eval_people=1)
    rows = read_contest(contest.train)
    listing = list_images(contest.train / "images")
    assert {row.id: row.path for row in rows} == dict(zip(listing.ids, listing.paths, strict=True))
    for row in rows:
        person, gender, _, age = row.path.parent.name.split("_")
        group = "under 30" if int(age) < 30 else "30 to 59" if int(age) < 60 else "60 and over"
        mask = {"normal": "none", "incorrect_mask": "incorrect"}.get(row.path.stem, "worn")
        assert MASK18.names[row.label] == f"{mask} / {gender} / {group}"
        assert (row.person, row.age) == (person, int(age))
        assert row.mask == int(MASK18.along("mask", row.label))
        assert row.gender == int(MASK18.along("gender", row.label))


@pytest.mark.parametrize(("age", "group"), [(29, 0), (30, 1), (59, 1), (60, 2), (61, 2)])
def test_age_groups_begin_at_30_and_60(tmp_path: Path, age: int, group: int) -> None:
    """Thirty is the first year of the second group, and sixty of the third."""
    (worn, *_) = [row for row in read_contest(make(tmp_path, f"1,male,x,{age},a")) if row.mask == 0]
    assert worn.label == group


def test_ids_are_text(tmp_path: Path) -> None:
    """An id keeps its leading zeros and its suffix."""
    rows = read_contest(make(tmp_path, "001498-1,female,Asian,23,001498-1_female_Asian_23"))
    assert {row.person for row in rows} == {"001498-1"}


@pytest.mark.parametrize("suffix", [".jpg", ".jpeg", ".png", ".JPG"])
def test_any_image_suffix_will_do(tmp_path: Path, suffix: str) -> None:
    """An image is identified by its stem, with any image suffix."""
    rows = read_contest(make(tmp_path, "1,male,x,20,a", suffix=suffix))
    assert [row.id for row in rows] == [f"a/{stem}{suffix}" for stem in STEMS]


def test_rows_follow_the_table_and_then_the_name(tmp_path: Path) -> None:
    """The order is that of train.csv, and of the names within a person."""
    rows = read_contest(make(tmp_path, "9,male,x,20,b", "1,female,x,20,a"))
    assert [row.id for row in rows] == [f"{folder}/{stem}.jpg" for folder in "ba" for stem in STEMS]


def test_leftovers_of_other_programs_are_no_pictures(tmp_path: Path) -> None:
    """Hidden files and files that are not images are ignored."""
    root = make(tmp_path, "1,male,x,20,a")
    for name in ("._mask1.jpg", "Thumbs.db", "notes.txt"):
        (root / "images/a" / name).touch()
    assert len(read_contest(root)) == len(STEMS)


def broken(root: Path, what: Callable[[Path], object]) -> DataError:
    """Return the error of a folder of one person after a change."""
    make(root, "1,male,x,20,a")
    what(root)
    with pytest.raises(DataError) as caught:
        read_contest(root)
    return caught.value


def table(text: str) -> Callable[[Path], object]:
    return lambda root: (root / "train.csv").write_text(text, encoding="utf-8")


@pytest.mark.parametrize(
    ("what", "said"),
    [
        (lambda root: (root / "train.csv").unlink(), "no train.csv"),
        (table(HEADER), "lists no people"),
        (table(HEADER + "1,man,x,20,a\n"), "line 2: gender is 'man', expected male or female"),
        (table(HEADER + "1,male,x,twenty,a\n"), "line 2: age is 'twenty', expected whole years"),
        (table(HEADER + "1,male,x,20.5,a\n"), "line 2: age is '20.5', expected whole years"),
        (table(HEADER + "1,male,x,20,b\n"), "b: the folder is missing"),
        (table(HEADER + "1,male,x,20,../a\n"), "../a: the path leaves the image folder"),
        (table(HEADER + "1,male,x,20,/etc\n"), "/etc: the path leaves the image folder"),
        (lambda root: (root / "images/a/mask6.jpg").touch(), "a/mask6.jpg: the name is not one of mask1"),
        (lambda root: (root / "images/a/mask1.png").touch(), "a/mask1.png: there is a mask1.jpg as well"),
        (lambda root: [path.unlink() for path in (root / "images/a").iterdir()], "a: the folder holds no images"),
    ],
)
def test_a_fault_is_named(tmp_path: Path, what: Callable[[Path], object], said: str) -> None:
    """Each violation of the layout is E340, which says where it is."""
    err = broken(tmp_path, what)
    assert err.code == "E340"
    assert said in err.message


@pytest.mark.parametrize(
    ("text", "code", "said"),
    [
        ("id,gender,race,path\n1,male,x,a\n", "E322", '"age" not found; have: id, gender, race, path'),
        (HEADER + "1,male,x,20,a\n1,male,x,20,b\n", "E313", "1 (lines 2, 3)"),
        (HEADER + "1,male,x,20,a\n2,male,x,20,a\n", "E313", "a (lines 2, 3)"),
    ],
)
def test_a_table_that_cannot_be_joined_is_refused(tmp_path: Path, text: str, code: str, said: str) -> None:
    """A missing column, a repeated id and a folder of two people are errors of the table."""
    err = broken(tmp_path, table(text))
    assert err.code == code
    assert said in err.message


def test_all_faults_are_told_at_once(tmp_path: Path) -> None:
    """Three people with four faults make one error with four details, in the order of the table."""
    root = make(tmp_path, "1,man,x,old,a", "2,male,x,20,b", "3,male,x,20,c")
    (root / "images/b/portrait.jpg").touch()
    for path in (root / "images/c").iterdir():
        path.unlink()
    with pytest.raises(DataError) as caught:
        read_contest(root)
    assert [detail.split(":")[0] for detail in caught.value.details] == ["line 2", "line 2", "b/portrait.jpg", "c"]
    assert caught.value.message.startswith("4 faults")
