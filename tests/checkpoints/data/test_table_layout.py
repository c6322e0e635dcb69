"""Tables of labels as contests give them: any columns, ids, label cells, groups and folds; every guess is said."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from checkpoints.data.columns import PEOPLE, Unit
from checkpoints.data.dataset import Dataset, read_dataset
from checkpoints.data.folds import make_folds
from checkpoints.data.mask_contest import NO_CLASS, Row
from checkpoints.data.table_options import TableOptions
from ensemble.errors import DataError, EnsError, OptionError
from ensemble.events import Recorder
from ensemble.label_file import parse_class_names
from ensemble.labels import LabelSpace
from tests.checkpoints.data.test_dataset import touch, write_fixes

N = range(12)


def contest(root: Path, image: str, *lines: str, name: str = "train.csv") -> Path:
    """Write twelve images named by the pattern, and a table."""
    touch(root, *(image.format(i) for i in N))
    (root / name).write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    return root


def classes(data: Dataset) -> list[str]:
    return [data.labels.names[row.label] for row in data.rows]


def labels(data: Dataset) -> list[set[str]]:
    return [{data.labels.names[i] for i in row.present or ()} for row in data.rows]


def heard(place: Path, **options: object) -> tuple[Dataset, str]:
    recorder = Recorder()
    data = read_dataset(place, table=TableOptions(**options), listener=recorder)  # type: ignore[arg-type]
    return data, "\n".join(notice.message for notice in recorder.notices)


@pytest.mark.parametrize(
    ("image", "header", "cell", "ids"),
    [
        ("train_images/{0}.jpg", "image_id,label", "{0}.jpg", "{0}.jpg"),  # cassava-leaf-disease-classification
        ("train/{0:04x}.tif", "id,label", "{0:04x}", "{0:04x}.tif"),  # histopathologic-cancer-detection
        ("jpeg/train/ISIC_{0:07d}.jpg", "image_name,target", "ISIC_{0:07d}", "ISIC_{0:07d}.jpg"),  # ISIC 2020
        ("train/TRAIN_{0:03d}.png", "img_path,label", "./train/TRAIN_{0:03d}.png", "train/TRAIN_{0:03d}.png"),  # DACON
        ("images/{0}.png", "Image Index,Finding Labels", "data/images/{0}.png", "{0}.png"),
        ("im/{0}.png", "file,breed", "C:\\x\\im\\{0}.png", "{0}.png"),
        ("im/{0}.png", "ID,species", " {0}.dcm ", "{0}.png"),
        ("a b/{0}.JPG", "Filename,Class", "{0}.JPG", "{0}.JPG"),
    ],
)
def test_the_images_are_found_as_the_table_names_them(
    tmp_path: Path, image: str, header: str, cell: str, ids: str
) -> None:
    """With or without suffix and folder, also of another machine, each row gets its file and no other."""
    touch(tmp_path, *(f"test_images/{i}.txt" for i in N))
    rows = [f"{cell.format(i)},{'yes' if i % 3 else 'no'}" for i in N]
    data, _ = heard(contest(tmp_path, image, header, *rows))
    assert [row.path for row in data.rows] == [tmp_path / image.format(i) for i in N]
    assert [row.id for row in data.rows] == [ids.format(i) for i in N]
    assert all(data.images / row.id == row.path for row in data.rows)
    assert classes(data) == ["yes" if i % 3 else "no" for i in N]


def test_images_of_one_name_in_two_folders(tmp_path: Path) -> None:
    """The training folder is taken and said, two equal ones are an error, and --images settles it."""
    lines = ["id,label", *(f"{i},{i % 2}" for i in N)]
    touch(tmp_path / "a", *(f"test/{i}.png" for i in N))
    data, said = heard(contest(tmp_path / "a", "train/{0}.png", *lines))
    assert data.rows[3].path == tmp_path / "a/train/3.png"
    assert "the images are those in train; images of the same names are in test" in said
    touch(tmp_path / "b", *(f"x/{i}.png" for i in N))
    with pytest.raises(DataError, match="several folders: x, y"):
        heard(contest(tmp_path / "b", "y/{0}.png", *lines))
    data, _ = heard(tmp_path / "b", images=tmp_path / "b" / "x")
    assert data.rows[3].path == tmp_path / "b/x/3.png"
    touch(tmp_path / "c", *(f"x/{i}.jpg" for i in N))
    with pytest.raises(DataError, match=r"several images: x/0\.(jpg|png), x/0\.(jpg|png)"):
        heard(contest(tmp_path / "c", "x/{0}.png", *lines))


@pytest.mark.parametrize(
    ("lines", "options", "said"),
    [
        (["image,cat,dog", *(f"{i},{i / 16},{1 - i / 16}" for i in N)], {}, "cat, dog have fractions: 'cat' is"),
        (["image,label", *(f"{i},{i / 16}" for i in N)], {}, "different fractions, such as 0.0625"),
        (["image,label", *(f"{i},{i}e-3" for i in N)], {}, "different fractions, such as "),
        (
            ["image,cat,dog", *(f"{i},{i / 16},{1 - i / 16}" for i in N)],
            {"label_columns": ("cat", "dog")},
            "line 3: 'cat' is '0.0625'; a label's column has 0 and 1",
        ),
    ],
)
def test_soft_labels_are_refused(tmp_path: Path, lines: list[str], options: dict[str, object], said: str) -> None:
    """Fractions as labels are not classes of their own: E364 says what is possible."""
    with pytest.raises(DataError) as caught:
        heard(contest(tmp_path, "x/{0}.png", *lines), **options)
    assert caught.value.code == "E364"
    assert said in caught.value.message
    assert "one class per image" in str(caught.value.hint)


def test_a_few_fractions_are_names_of_classes_which_is_said(tmp_path: Path) -> None:
    """A scale of half steps, such as a clinical dementia rating, has few of them."""
    scale = ("0", "0.5", "1", "2")
    data, said = heard(contest(tmp_path, "x/{0}.png", "image,label", *(f"{i},{scale[i % 4]}" for i in N)))
    assert sorted(set(classes(data))) == ["0", "0.5", "1", "2"]
    assert "such as 0.5, are taken as names of classes" in said


def test_a_column_of_each_label(tmp_path: Path) -> None:
    """One 1 per row is one class per image, any number of them are labels, and the option overrules; both are said."""
    one = ["image_id,healthy,rust,scab", *(f"t{i},{int(i % 3 == 0)},{int(i % 3 == 1)},{int(i % 3 == 2)}" for i in N)]
    place = contest(tmp_path / "a", "images/t{0}.jpg", *one)  # plant-pathology-2020-fgvc7
    data, said = heard(place)
    assert (data.activation, classes(data)[:3]) == ("softmax", ["healthy", "rust", "scab"])
    assert "each of the 3 columns of 0 and 1 is a label" in said
    assert "--activation sigmoid" in said
    data, _ = heard(place, activation="sigmoid")
    assert (data.activation, labels(data)[:2]) == ("sigmoid", [{"healthy"}, {"rust"}])
    several = [
        "StudyInstanceUID,ETT - Abnormal,CVC - Normal,PatientID",
        *(f"1.2.826.{i},{i % 2},{int(i % 3 == 0)}.0,p{i // 2}" for i in N),
    ]
    data, said = heard(contest(tmp_path / "b", "train/1.2.826.{0}.jpg", *several))  # ranzcr-clip-catheter-line
    assert labels(data)[:4] == [{"CVC - Normal"}, {"ETT - Abnormal"}, set(), {"ETT - Abnormal", "CVC - Normal"}]
    assert {row.label for row in data.rows} == {NO_CLASS}
    assert [row.person for row in data.rows[:3]] == ["p0", "p0", "p1"]
    assert data.unit == Unit("patient", "patients")
    assert "no two folds share a value of 'PatientID'" in said
    with pytest.raises(DataError, match="have no label"):
        heard(tmp_path / "b", activation="softmax")
    text = (tmp_path / "b/train.csv").read_text().replace("1.2.826.2,0", "1.2.826.2,0.5")
    (tmp_path / "b/train.csv").write_text(text)
    with pytest.raises(DataError, match=r"line 4: 'ETT - Abnormal' is '0\.5'"):
        heard(tmp_path / "b", label_columns=("ETT - Abnormal", "CVC - Normal"))


@pytest.mark.parametrize(
    ("cells", "expected"),
    [
        (("haze primary", "clear primary", "haze", "clear haze"), [{"haze", "primary"}, {"clear", "primary"}]),
        (("Mass|Edema", "Edema", "Mass", "Edema|Mass"), [{"Mass", "Edema"}, {"Edema"}]),
        (('"a b, c d"', '"c d"', '"a b"', '"c d, a b"'), [{"a b", "c d"}, {"c d"}]),
        (("a;b", "b;c", "c", "a"), [{"a", "b"}, {"b", "c"}]),
        (("\"['a', 'b']\"", '"[]"', "\"['b']\"", "\"['a']\""), [{"a", "b"}, set()]),
        (("0 2", "2", "1 0", "1"), [{"0", "2"}, {"2"}]),  # human-protein-atlas-image-classification
    ],
)
def test_several_labels_in_a_cell(tmp_path: Path, cells: tuple[str, ...], expected: list[set[str]]) -> None:
    """Names divided by a space, bar, comma or semicolon, or in a list, are recognized where parts recur."""
    rows = [f"{i},{cells[i % 4]}" for i in N]
    data, said = heard(contest(tmp_path, "x/{0}.png", "image,labels", *rows))
    assert data.activation == "sigmoid"
    assert labels(data)[:2] == expected
    assert "several labels, divided by" in said or "lists of labels" in said
    (tmp_path / "train.csv").write_text("image,labels\n" + "".join(f"{i},{cells[i % 4]}\n" for i in N))
    if "[" not in cells[0]:
        assert heard(tmp_path, separator="none")[0].activation == "softmax"


def test_class_names_with_spaces_stay_whole(tmp_path: Path) -> None:
    """Names whose words do not recur, or seldom, are classes; the option divides them."""
    names = ("bacterial leaf blight", "brown spot", "leaf smut")
    place = contest(tmp_path, "x/{0}.png", "image,label", *(f"{i},{names[i % 3]}" for i in N))
    assert set(classes(heard(place)[0])) == set(names)
    assert "leaf" in heard(place, separator="space")[0].labels.names


def test_rows_of_one_image(tmp_path: Path) -> None:
    """A row per label means several labels where it is common, a contradiction where rare; repetitions are said."""
    many = [f"{i},{name}" for i in N for name in (("cat", "dog") if i % 2 else ("cat",))]
    data, said = heard(contest(tmp_path / "a", "x/{0}.png", "image,label", *many))
    assert labels(data)[:2] == [{"cat"}, {"cat", "dog"}]
    assert "6 of 12 images have rows of different labels" in said
    few = [*(f"{i},{'cat' if i % 2 else 'dog'}" for i in N), "3,dog"]
    place = contest(tmp_path / "b", "x/{0}.png", "image,label", *few)
    with pytest.raises(DataError, match=r"x/3.png \(line 5, 14\): cat, dog") as caught:
        heard(place)
    assert caught.value.code == "E337"
    same = [*(f"{i},{'cat' if i % 2 else 'dog'}" for i in N), "3,cat"]
    data, said = heard(contest(tmp_path / "c", "x/{0}.png", "image,label", *same))
    assert len(data.rows) == 12
    assert "1 rows are of an image that has a row already" in said


def test_a_row_per_image_and_class(tmp_path: Path) -> None:
    """Ids of image and class, or two columns of them, with 0 or 1 become labels: RSNA's hemorrhages, and the like."""
    kinds = ("any", "epidural", "sub_dural")
    cells = [(i, k, int(i * (j + 1) % 3 == 0)) for i in N for j, k in enumerate(kinds)]
    expected = [{k for i, k, value in cells if i == image and value} for image in N]
    joined = ["ID,Label", *(f"ID_{i:03x}_{k.replace('_', '')},{value}" for i, k, value in cells)]
    data, said = heard(contest(tmp_path / "a", "stage_1_train/ID_{0:03x}.png", *joined))
    assert labels(data) == [{k.replace("_", "") for k in one} for one in expected]
    assert "each image has a row per class" in said
    apart = ["image,class,present", *(f"{i},{k},{value}" for i, k, value in cells)]
    data, _ = heard(contest(tmp_path / "b", "x/{0}.png", *apart))
    assert labels(data) == expected


def test_numbers_have_the_names_of_a_file(tmp_path: Path) -> None:
    """A JSON beside the table names the numbers; without one, numbers with gaps or from 1 on are names themselves."""
    place = contest(tmp_path, "train_images/{0}.jpg", "image_id,label", *(f"{i}.jpg,{i % 3}" for i in N))
    assert heard(place)[0].labels == LabelSpace.flat(3)
    (place / "label_num_to_disease_map.json").write_text('{"0": "blight (CBB)", "1": "healthy", "2": "mosaic"}')
    data, said = heard(place)
    assert data.labels.names == ("blight (CBB)", "healthy", "mosaic")
    assert "label_num_to_disease_map.json" in said
    (place / "names.json").write_text('{"dog": 2, "cat": 0, "cow": 1}')
    given = read_dataset(place, labels=parse_class_names(str(place / "names.json")))
    assert classes(given)[:3] == ["cat", "cow", "dog"]
    for name, text in (("names.csv", "id,name\n0,cat\n1,cow\n2,dog\n"), ("names.txt", "cat\ncow\ndog\n")):
        (place / name).write_text(text)
        assert parse_class_names(str(place / name)).space.names == ("cat", "cow", "dog")
    for number, names in (("{0}", ("5", "6", "7")), ("{0}.0", ("5", "6", "7")), ("0{0}", ("05", "06", "07"))):
        rows = (f"{i}.jpg,{number.format(5 + i % 3)}" for i in N)
        data, said = heard(contest(tmp_path / "b", "{0}.jpg", "image_id,label", *rows))
        assert data.labels.names == names
    assert [c.code for c in (_error(contest(tmp_path / "d", "{0}.jpg", "image_id,label", *(f"{i},9" for i in N)),
            labels=LabelSpace.flat(3)),)] == ["E340"]  # fmt: skip


def _error(place: Path, **arguments: object) -> EnsError:
    with pytest.raises(EnsError) as caught:
        read_dataset(place, **arguments)  # type: ignore[arg-type]
    return caught.value


@pytest.mark.parametrize(
    ("one", "other", "alike"),
    [
        ("cat", "Cat", True),
        ("grey cat", "grey  cat", True),
        ("grey cat", "greycat", True),
        ("cat", "cat\u200b", True),
        ("cat", "c\u00adat", True),
        ("caf\u00e9", "CAFE\u0301", True),
        ("\uff23at", "cat", True),
        ("strasse", "Stra\u00dfe", True),
        ("01", "1", True),
        ("p 1.0", "p 1", False),
        ("1.50", "1.5", False),
        ("0", "00", True),
        ("10", "1", False),
        ("A-", "A", False),
        ("1 1", "11", False),
        ("cat", "cats", False),
    ],
)
def test_names_that_are_hardly_told_apart_are_said(tmp_path: Path, one: str, other: str, alike: bool) -> None:
    """W366 names classes that differ in letter case, spaces, Unicode form or unseen characters; no others."""
    lines = (f"{i}.jpg,{[one, other][i % 2]}" for i in N)
    recorder = Recorder()
    read_dataset(contest(tmp_path, "{0}.jpg", "image,label", *lines), listener=recorder)
    assert ("W366" in [notice.code for notice in recorder.notices]) is alike


@pytest.mark.parametrize(
    ("word", "said"), [("nan", True), ("NA", True), ("<NA>", True), ("NULL", True), ("none", False), ("nana", False)]
)
def test_names_of_missing_values_are_said(tmp_path: Path, word: str, said: bool) -> None:
    """W367 of a class, and of patients: what pandas writes for an empty cell would be one class, or one patient."""
    lines = (f"{i}.jpg,{['cat', 'dog', word][i % 3]},{['p', 'q', word][i % 3]}" for i in N)
    recorder = Recorder()
    read_dataset(contest(tmp_path, "{0}.jpg", "image,label,patient_id", *lines), listener=recorder)
    found = [notice.message for notice in recorder.notices if notice.code == "W367"]
    assert found == (
        [
            f"classes that are named like a missing value: {word}",
            f"patients that are named like a missing value: {word}",
        ]
        if said
        else []
    )


def test_groups_that_are_hardly_told_apart_are_said(tmp_path: Path) -> None:
    """The same patient in two spellings would be in two folds."""
    lines = (f"{i}.jpg,{i % 2},{['P1', 'p1', 'P2'][i % 3]}" for i in N)
    _, said = heard(contest(tmp_path, "{0}.jpg", "image,label,patient_id", *lines))
    assert "patients that differ only in letter case, spaces, zeros or unseen characters: P1 and p1" in said


def test_groups_and_folds_of_the_table(tmp_path: Path) -> None:
    """A column of patients is kept together, a column of folds is used from 0 on, and none switches either off."""
    rows = [f"{i},{'ab'[i % 2]},{i // 4},{1 + i // 4}" for i in N]
    place = contest(tmp_path, "x/{0}.png", "image,label,patient_id,fold", *rows)
    data, said = heard(place)
    assert data.folds is not None
    assert (data.folds.count, data.folds.of_person) == (3, {"0": 0, "1": 1, "2": 2})
    assert "the folds are those of column 'fold'" in said
    assert "counted from 0, so 1 is fold 0" in said
    data, _ = heard(place, fold_column="none", group_column="none")
    assert data.folds is None
    assert len({row.person for row in data.rows}) == 12
    crossing = [f"{i},{'ab'[i % 2]},{i // 4},{i % 2}" for i in N]
    assert _error(contest(tmp_path, "x/{0}.png", "image,label,patient_id,fold", *crossing)).code == "E341"
    person = [f"{i},{'ab'[i % 2]},{i // 4}" for i in N]
    assert heard(contest(tmp_path, "x/{0}.png", "path,label,person", *person))[0].unit == PEOPLE
    lacking = [f"{i},{'ab'[i % 2]},{i // 4 or ''}" for i in N]
    data, said = heard(contest(tmp_path, "x/{0}.png", "image,label,site", *lacking))
    assert "4 images have no site" in said
    assert len({row.person for row in data.rows}) == 6


@pytest.mark.parametrize(
    ("lines", "code", "words"),
    [
        (["image,height,width", *(f"{i},{i + 7},{i + 9}" for i in N)], "E336", "none of the columns"),
        (["image,label", *(f"{i},a" for i in range(14))], "E314", "2 of 14 images are missing: line 14: 12"),
        (["image,label", *(f"{i},{'a' if i else ''}" for i in N)], "E336", "1 rows have no label in label: line 2"),
        (["a,label", *(f"none{i},{i % 2}" for i in N)], "E336", "no column has names of images"),
        (["image,label", *(f"X{i}.PNG,{i % 2}" for i in N)], "E314", "12 of 12 images are missing"),
    ],
)
def test_what_is_not_understood_is_refused(tmp_path: Path, lines: list[str], code: str, words: str) -> None:
    """The error names the columns, lines or files, and the hint an option or a fix."""
    error = _error(contest(tmp_path, "x/{0}.png", *lines))
    assert (error.code, words in error.message) == (code, True), error.message
    assert error.hint


def test_ids_without_their_leading_zeros_are_named(tmp_path: Path) -> None:
    """A spreadsheet makes 00001 a 1; the error shows the file that may be meant."""
    error = _error(contest(tmp_path, "x/{0:05d}.png", "image,label", *(f"{i},{i % 2}" for i in N)))
    assert (error.code, "'x/00000.png'" in error.message, "leading zeros" in error.hint) == ("E314", True, True)


def test_other_kinds_of_files(tmp_path: Path) -> None:
    """Parquet with lists and an index is read; spreadsheets and packed tables say what to do."""
    touch(tmp_path, *(f"x/{i}.png" for i in N))
    table = {"image": [str(i) for i in N], "tags": [["a", "b"] if i % 2 else ["b"] for i in N], "blob": [b""] * 12}
    pq.write_table(pa.table(table | {"__index_level_0__": list(N)}), tmp_path / "train.parquet")
    data, said = heard(tmp_path)
    assert labels(data)[:2] == [{"b"}, {"a", "b"}]
    assert "columns of bytes or records are not read: blob" in said
    for name in ("a.xlsx", "a.csv.gz", "a.jsonl"):
        touch(tmp_path, name)
        error = _error(tmp_path / name)
        assert (error.code, error.hint != "") == ("E322", True)


def test_folders_of_splits_and_single_folders(tmp_path: Path) -> None:
    """train/ and valid/ are one data set and test/ is left out, said; one folder around the classes is entered."""
    touch(tmp_path / "a", *(f"{s}/{c}/{i}.png" for s in ("train", "valid", "test") for c in "ab" for i in (1, 2)))
    data, said = heard(tmp_path / "a")
    assert Counter(row.id.split("/")[0] for row in data.rows) == {"train": 4, "valid": 4}
    assert data.labels.names == ("a", "b")
    assert "train and valid are read as one data set" in said
    assert "4 images in test are left out" in said
    touch(tmp_path / "b", *(f"data/PetImages/{c}/{i}.png" for c in ("Cat", "Dog") for i in (1, 2)))
    data, said = heard(tmp_path / "b")
    assert data.labels.names == ("Cat", "Dog")
    assert data.rows[0].id == "Cat/1.png"
    assert "the classes are the folders in" in said
    touch(tmp_path / "c", "images/1.png", "images/2.png", "labels.xlsx")
    error = _error(tmp_path / "c")
    assert (error.code, "labels.xlsx" in error.hint) == ("E340", True)
    with pytest.raises(OptionError, match="--label-column has no meaning"):
        heard(tmp_path / "a", label_columns=("x",))


def test_a_class_of_one_split_alone_is_said(tmp_path: Path) -> None:
    """A folder that is spelled otherwise in another split would be a class more."""
    touch(tmp_path, *(f"train/{c}/{i}.png" for c in "ab" for i in (1, 2)), "valid/a/3.png", "valid/B/4.png")
    data, said = heard(tmp_path)
    assert len(data.labels) == 3
    assert "only train has a folder b: is it a class of its own, or spelled otherwise?" in said
    assert "only valid has a folder B:" in said


def test_rows_of_folders(tmp_path: Path) -> None:
    """A column that names a folder of images gives its label to each of them, and keeps them in one fold."""
    touch(tmp_path, *(f"train/{i // 3:05d}/img-{i}.png" for i in N))
    (tmp_path / "train_labels.csv").write_text(
        "BraTS21ID,MGMT_value\n" + "".join(f"{i:05d},{i % 2}\n" for i in range(4))
    )
    data, said = heard(tmp_path)
    assert [(row.person, row.label) for row in data.rows[:4]] == [("00000", 0)] * 3 + [("00001", 1)]
    assert len(data.rows) == 12
    assert "the images are those in the folders in column 'BraTS21ID'" in said


def test_fixes_of_several_labels(tmp_path: Path) -> None:
    """A fix sets an image's labels by name, none with an empty value, and an unknown name is refused."""
    place = contest(tmp_path / "a", "x/{0}.png", "image,labels", *(f"{i},{('a b', 'b', 'a')[i % 3]}" for i in N))
    fixes = [write_fixes(tmp_path, "0.png,label,b,s", "1.png,label,,s", "2.png,label,a|b,s")]
    assert labels(read_dataset(place, fixes=fixes))[:3] == [{"b"}, set(), {"a", "b"}]
    error = _error(place, fixes=[write_fixes(tmp_path, "0.png,label,c,s")])
    assert error.code == "E342"


def crowd(seed: int, images: int, rates: tuple[float, ...]) -> list[Row]:
    """Images of groups of one to six, whose labels appear at the given rates and together within a group."""
    rng = np.random.default_rng(seed)
    rows = []
    for i in range(images):
        present = tuple(np.flatnonzero(rng.random(len(rates)) < rates).tolist())
        group = f"g{i // int(rng.integers(1, 7))}"
        rows.append(Row(f"{i}.png", group, None, None, None, NO_CLASS, Path(f"{i}.png"), present=present))
    return rows


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_folds_have_their_share_of_every_label(seed: int) -> None:
    """No group is in two folds, and each label's share of a fold is nearer to even than with groups at random."""
    rates = (0.5, 0.2, 0.05, 0.02)
    rows, space = crowd(seed, 1500, rates), LabelSpace.flat(4)
    made = make_folds(rows, folds=5, seed=seed, labels=space)
    assert set(made.of_person) == {row.person for row in rows}
    assert make_folds(rows[::-1], folds=5, seed=seed, labels=space) == made

    def spread(fold_of: dict[str, int]) -> float:
        counts = np.zeros((5, 5))
        for row in rows:
            counts[fold_of[row.person], [*(row.present or ()), 4]] += 1
        return float((np.abs(counts - counts.mean(axis=0)) / counts.mean(axis=0)).max())

    people = sorted(made.of_person)
    rng = np.random.default_rng(seed)
    random = [spread(dict(zip(people, rng.integers(0, 5, len(people)).tolist(), strict=True))) for _ in range(20)]
    assert spread(dict(made.of_person)) < 0.5 * min(random)


def test_labels_too_rare_for_every_fold_are_said() -> None:
    """A label of two groups cannot be in five folds: W338 names it, and fewer groups than folds are E341."""
    rows = [Row(f"{i}", f"{i}", None, None, None, NO_CLASS, Path(), present=(0,) if i > 1 else (0, 1)) for i in N]
    recorder = Recorder()
    make_folds(rows, folds=5, seed=0, labels=LabelSpace.flat(["a", "b"]), listener=recorder)
    assert [(n.code, "b (2)" in n.message) for n in recorder.notices] == [("W338", True)]
    with pytest.raises(DataError, match="folds need 13 images; there are 12"):
        make_folds(rows, folds=13, seed=0, labels=LabelSpace.flat(2), unit=Unit("image", "images"))
