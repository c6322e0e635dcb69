"""Training data in three layouts, with label fixes and the age cut applied."""

from __future__ import annotations

from pathlib import Path

import pytest

from checkpoints.data.dataset import read_dataset
from checkpoints.data.label_fixes import Fix, read_fixes
from ensemble.errors import DataError, EnsError, OptionError
from ensemble.events import Recorder
from ensemble.labels import MASK18, LabelSpace
from tests.checkpoints.data.test_mask_contest import make

PEOPLE = ("1,male,x,29,a", "2,female,x,58,b", "3,male,x,59,c", "4,female,x,60,d")


def write_fixes(root: Path, *lines: str, name: str = "fixes.csv") -> Path:
    path = root / name
    path.write_text("id,field,value,source\n" + "".join(f"{line}\n" for line in lines), encoding="utf-8")
    return path


def classes(root: Path, person: str, *lines: str) -> dict[str, int]:
    """Return the labels of a person's images after the given fixes."""
    root.mkdir(exist_ok=True)
    data = read_dataset(make(root / "train", *PEOPLE), fixes=[write_fixes(root, *lines)])
    return {row.path.stem: row.label for row in data.rows if row.person == person}


def test_a_gender_is_fixed_for_all_of_a_person(tmp_path: Path) -> None:
    """All seven images of the person move to the other gender's classes, those of others do not."""
    assert classes(tmp_path / "a", "1", "1,gender,female,s") == {
        "incorrect_mask": 9, "mask1": 3, "mask2": 3, "mask3": 3, "mask4": 3, "mask5": 3, "normal": 15
    }  # fmt: skip
    assert classes(tmp_path / "b", "2", "1,gender,female,s")["normal"] == 16


def test_an_age_is_fixed(tmp_path: Path) -> None:
    """59 corrected to 60 moves the person into the oldest group."""
    assert classes(tmp_path, "3", "3,age,60,s")["mask1"] == 2


def test_a_swap_exchanges_two_pictures(tmp_path: Path) -> None:
    """The images without a mask and with an incorrectly worn one are exchanged, and only once for two sources."""
    swapped = classes(tmp_path, "1", "1,swap,normal<->incorrect_mask,s", "1,swap,normal<->incorrect_mask,t")
    assert (swapped["normal"], swapped["incorrect_mask"], swapped["mask3"]) == (6, 12, 0)


def test_one_images_class_is_set_and_beats_its_persons_fixes(tmp_path: Path) -> None:
    """A label by index or name overrides other fixes of the image, in any order in the file."""
    fixed = classes(
        tmp_path, "1", "a/mask1.jpg,label,17,s", "a/mask2.jpg,label,none / female / under 30,s", "1,gender,female,s"
    )
    assert (fixed["mask1"], fixed["mask2"], fixed["mask3"]) == (17, 15, 3)


def test_images_and_people_are_dropped(tmp_path: Path) -> None:
    """Dropping an image removes only that image, dropping a person all seven."""
    root = make(tmp_path / "train", *PEOPLE)
    data = read_dataset(root, fixes=[write_fixes(tmp_path, "1,drop,,s", "b/normal.jpg,drop,,s")])
    assert len(data.rows) == 4 * 7 - 7 - 1
    assert sorted(one.images for one in data.applied) == [1, 7]


@pytest.mark.parametrize(("age_cut", "moved"), [(60, set()), (59, {"3"}), (58, {"2", "3"})])
def test_the_age_cut_moves_targets_and_no_labels(tmp_path: Path, age_cut: int, moved: set[str]) -> None:
    """People from the cut to 59 train as the oldest group; every label keeps the true border."""
    root = make(tmp_path, *PEOPLE)
    rows = read_dataset(root, age_cut=age_cut).rows
    assert {row.person for row in rows if row.target != row.label} == moved
    assert all(row.target == row.label + 1 for row in rows if row.person in moved)
    assert [row.label for row in rows] == [row.label for row in read_dataset(root).rows]


def test_the_age_cut_sees_the_fixed_age(tmp_path: Path) -> None:
    """A person corrected from 29 to 59 is moved by a cut at 59; a class set by hand is not."""
    root = make(tmp_path / "train", *PEOPLE)
    fixes = write_fixes(tmp_path, "1,age,59,s", "c/normal.jpg,label,12,s")
    rows = {row.id: row for row in read_dataset(root, fixes=[fixes], age_cut=59).rows}
    assert (rows["a/mask1.jpg"].label, rows["a/mask1.jpg"].target) == (1, 2)
    assert (rows["c/normal.jpg"].label, rows["c/normal.jpg"].target) == (12, 12)


@pytest.mark.parametrize(
    ("lines", "code"),
    [
        (("1,race,x,s",), "E342"),
        ((",gender,male,s",), "E342"),
        (("1,gender,woman,s",), "E342"),
        (("1,age,old,s",), "E342"),
        (("1,label,3,s",), "E342"),  # the images of a person are not all of one class
        (("a/mask1.jpg,label,18,s",), "E342"),
        (("1,gender,male,s", "1,gender,female,t"), "E343"),
    ],
)
def test_fixes_that_make_no_sense_are_refused(tmp_path: Path, lines: tuple[str, ...], code: str) -> None:
    """Unknown fields and values are E342, contradictions E343."""
    with pytest.raises(DataError) as caught:
        classes(tmp_path, "1", *lines)
    assert caught.value.code == code


def test_a_source_can_be_left_out(tmp_path: Path) -> None:
    """Ignoring a source removes its fixes and contradictions, and an unknown source is an error."""
    path = write_fixes(tmp_path, "1,gender,male,s", "1,gender,female,t", "2,age,20,t")
    assert read_fixes([path], without=["t"]) == (Fix("1", "gender", "male", "s"),)
    with pytest.raises(OptionError, match="s, t"):
        read_fixes([path], without=["u"])


def test_fixes_of_another_data_set_are_noticed(tmp_path: Path) -> None:
    """W345 names the ids that are not in the data, and I344 counts the changed images."""
    root = make(tmp_path / "train", *PEOPLE)
    recorder = Recorder()
    read_dataset(root, fixes=[write_fixes(tmp_path, "77,gender,male,s", "1,gender,female,s")], listener=recorder)
    assert [(notice.code, notice.message) for notice in recorder.notices] == [
        ("W345", "1 ids of label fixes are not in the data: 77"),
        ("I344", "1 label fixes changed 7 images"),
    ]


def test_what_a_spreadsheet_leaves_in_a_file_of_fixes_is_said(tmp_path: Path) -> None:
    """A cleared row is no fix, and a mark in a column of its own strikes none; score and why are of the audit."""
    path = tmp_path / "fixes.csv"
    path.write_text(
        "\ufeffstrike;id;field;value;source;score;why\r\nx;1;gender;female;audit;0.9;a\r\n;;;;;;\r\n;2;age;20;x;0.8;b\r\n"
    )
    recorder = Recorder()
    data = read_dataset(make(tmp_path / "train", *PEOPLE), fixes=[path], listener=recorder)
    assert len(data.applied) == 2
    assert [(notice.code, notice.message) for notice in recorder.notices if notice.code != "I380"] == [
        ("W386", "fixes.csv: 1 row of empty cells passed over"),
        ("W386", "fixes.csv: column 'strike' is not read, and the row with something in it applies like the others"),
        ("I344", "2 label fixes (1 of audit, 1 of x) changed 14 images"),
    ]


def test_a_refused_file_of_fixes_is_told_what_to_do(tmp_path: Path) -> None:
    """The table of all findings, a contradiction within one source, and a class that is not one."""
    findings = tmp_path / "audit.csv"
    findings.write_text("kind,score,id,group,axis,given,suggested,other,why\nlabel,1,a,,class,x,y,,\n")
    with pytest.raises(DataError) as caught:
        read_fixes([findings])
    assert caught.value.code == "E342"
    assert "fixes.csv" in str(caught.value.hint)
    with pytest.raises(DataError) as caught:
        read_fixes([write_fixes(tmp_path, "1,gender,male,s", "1,gender,female,s")])
    assert caught.value.code == "E343"
    assert "delete one of the two lines" in str(caught.value.hint)
    with pytest.raises(DataError) as caught:
        classes(tmp_path, "1", "a/mask1.jpg,label,x,s")
    assert caught.value.code == "E342"
    assert "worn / male / under 30" in str(caught.value.hint)


def test_the_contests_fixes_come_with_the_package() -> None:
    """`contest` has 18 genders, 3 swaps and one age, each with its source, and no id twice."""
    fixes = read_fixes(["contest"])
    fields = [fix.field for fix in fixes]
    assert (fields.count("gender"), fields.count("swap"), fields.count("age")) == (18, 3, 1)
    assert len({fix.id for fix in fixes}) == len(fixes) == 22
    assert {fix.source for fix in fixes} == {"agreed-gender", "agreed-mask", "agreed-age"}
    assert len(read_fixes(["contest"], without=["agreed-mask"])) == 19


def touch(root: Path, *names: str) -> None:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()


def test_folders_are_classes(tmp_path: Path) -> None:
    """A folder per class: names sorted, numbers by value, ids below the root, and each image its own person."""
    touch(tmp_path / "pets", "dog/1.jpg", "cat/x/2.png", "cat/3.jpg")
    data = read_dataset(tmp_path / "pets")
    assert data.labels == LabelSpace.flat(["cat", "dog"])
    assert [(row.id, row.person, row.label) for row in data.rows] == [
        ("cat/3.jpg", "cat/3.jpg", 0), ("cat/x/2.png", "cat/x/2.png", 0), ("dog/1.jpg", "dog/1.jpg", 1)
    ]  # fmt: skip
    assert all(row.target == row.label and row.path == data.images / row.id for row in data.rows)
    touch(tmp_path / "years", "10/a.jpg", "9/b.jpg")
    assert read_dataset(tmp_path / "years").labels.names == ("9", "10")
    given = LabelSpace.flat(["dog", "cat", "bird"])
    assert [row.label for row in read_dataset(tmp_path / "pets", labels=given).rows] == [1, 1, 0]


def test_a_table_lists_images_and_classes(tmp_path: Path) -> None:
    """In a CSV, names are sorted to classes and whole numbers are class indices; persons are kept."""
    touch(tmp_path, "x/1.jpg", "x/2.jpg", "3.jpg")
    (tmp_path / "a.csv").write_text("path,label,person\nx/1.jpg,b,p\n3.jpg,a,q\nx/2.jpg,b,p\n")
    data = read_dataset(tmp_path / "a.csv", fixes=[write_fixes(tmp_path, "3.jpg,label,b,s")])
    assert [(row.id, row.person, row.label) for row in data.rows] == [
        ("x/1.jpg", "p", 1), ("3.jpg", "q", 1), ("x/2.jpg", "p", 1)
    ]  # fmt: skip
    (tmp_path / "n.csv").write_text("path,label\nx/1.jpg,0\n3.jpg,2\n")
    numbered = read_dataset(tmp_path / "n.csv")
    assert (len(numbered.labels), [row.label for row in numbered.rows]) == (3, [0, 2])
    assert [row.label for row in read_dataset(tmp_path / "n.csv", labels=MASK18).rows] == [0, 2]


def test_what_does_not_fit_a_layout_is_refused(tmp_path: Path) -> None:
    """Loose images, missing files, unknown classes, ages that do not exist and fields that do not apply."""
    touch(tmp_path / "loose", "1.jpg", "cat/2.jpg")
    touch(tmp_path / "pets", "cat/2.jpg", "dog/3.jpg")
    (tmp_path / "pets" / "gone.csv").write_text("path,label\nnone.jpg,1\n")
    fixes = [write_fixes(tmp_path, "cat/2.jpg,gender,male,s")]
    cases: list[tuple[str, dict[str, object], str]] = [
        ("loose", {}, "E340"),
        ("pets/gone.csv", {}, "E314"),
        ("pets", {"labels": LabelSpace.flat(["dog"])}, "E340"),
        ("pets", {"age_cut": 59}, "E204"),
        ("pets", {"age_cut": 57}, "E204"),
        ("pets", {"fixes": fixes}, "E342"),
        ("pets", {"fixes": [write_fixes(tmp_path, "cat/2.jpg,drop,,s", "dog/3.jpg,drop,,s", name="drop.csv")]}, "E340"),
    ]
    for place, arguments, code in cases:
        with pytest.raises(EnsError) as caught:
            read_dataset(tmp_path / place, **arguments)  # type: ignore[arg-type]
        assert caught.value.code == code, place
