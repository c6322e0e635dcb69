"""A sample submission says how answers are written, or the error says what would settle it."""

from __future__ import annotations

import unicodedata
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ensemble.errors import EnsError, OptionError
from ensemble.events import Recorder
from ensemble.labels import LabelSpace
from ensemble.submission.lint import check_submission, read_submission
from ensemble.submission.recognize import read_sheet
from ensemble.submission.sheet import AnswerSheet, Submission
from ensemble.submission.sheet_options import SheetOptions
from ensemble.submission.write import write_submission

PETS = ["ant", "bee", "cat"]
TWO = ["healthy", "tumor"]


def sheet_of(folder: Path, text: str, names: list[str], *, heard: Recorder | None = None, **given: Any) -> AnswerSheet:
    """The sheet of a sample, with ``independent`` and the fields of `SheetOptions` as options."""
    (folder / "s.csv").write_text(text, encoding="utf-8")
    several = given.pop("independent", False)
    labels, options = LabelSpace.flat(names), SheetOptions(**given)
    heard = heard or Recorder()
    return read_sheet(folder / "s.csv", labels, options=options, independent=several, listener=heard)


def one_column(*answers: str, header: str = "id,label") -> str:
    return f"{header}\n" + "".join(f"{i}.jpg,{answer}\n" for i, answer in enumerate(answers))


@pytest.mark.parametrize(
    ("text", "names", "given", "kind"),
    [
        (one_column("0", "2"), PETS, {}, "number"),
        (one_column("ant", "ant"), PETS, {}, "name"),
        (one_column("0", "1"), ["0", "1", "2"], {}, "number"),
        (one_column("10", "10"), ["0", "1", "10", "2"], {}, "name"),
        (one_column("1", "1"), ["1", "2", "3"], {}, "name"),
        (one_column("007", "007"), ["007", "013"], {}, "name"),
        (one_column("0.5", "0.5"), TWO, {}, "probability"),
        (one_column("0", "1"), TWO, {}, "number"),
        (one_column("0", "0"), TWO, {"answers": "probability"}, "probability"),
        (one_column("", ""), PETS, {"answers": "name"}, "name"),
        ("id,cat,ant,bee\na,0.3,0.3,0.4\n", PETS, {}, "probabilities"),
        ("id,cat,ant,bee\na,0,0,0\n", PETS, {"independent": True}, "label-columns"),
        ("id,cat,ant,bee\na,1,1,0\n", PETS, {"independent": None}, "label-columns"),
        ("id,cat,ant,bee\na,0.2,0.2,0.6\n", PETS, {"independent": None}, "probabilities"),
        (one_column("ant", "ant"), PETS, {"independent": True}, "label-cells"),
        (one_column("0 2", "1"), PETS, {"independent": True}, "label-cells"),
        (one_column('"0,2"', '"0,1"'), PETS, {"independent": True}, "label-cells"),
        (one_column("ant|bee", "cat|ant|bee"), PETS, {}, "label-cells"),
        (one_column("ant bee", "cat ant"), PETS, {}, "ranking"),
        (one_column("ant", "ant"), PETS, {"answers": "ranking:2"}, "ranking"),
        (one_column("0 1", "0 1"), PETS, {}, "ranking"),
        ("id,p\n" + "".join(f"{i}-{c},0\n" for i in "xy" for c in PETS), PETS, {}, "long"),
        ("p,id,what\n" + "".join(f"0,{i},{c}\n" for i in "xy" for c in PETS), PETS, {}, "long"),
        (
            "row_id,image,what,prob,usage\n"
            + "".join(f"{n},{i},{c},0,Public\n" for n, (i, c) in enumerate((i, c) for i in "xy" for c in PETS)),
            PETS,
            {},
            "long",
        ),
        ("id,p\nx_0,0\nx_1,0\n", TWO, {"answers": "long"}, "long"),
        ("id,p\nx_0,0\nx_1,0\n", ["0", "1"], {}, "number"),
    ],
)
def test_the_kind_is_read_from_the_sample(
    tmp_path: Path, text: str, names: list[str], given: dict[str, Any], kind: str
) -> None:
    """Names, numbers, columns and cells give each kind, with what is known of the members."""
    assert sheet_of(tmp_path, text, names, **given).kind == kind


@pytest.mark.parametrize(
    ("text", "names", "code", "said"),
    [
        (one_column("", ""), PETS, "E540", "column label is empty"),
        (one_column("aNt"), PETS, "E540", "'aNt' is neither a class (did you mean 'ant'?)"),
        (one_column("dog"), PETS, "E540", "'dog' is neither a class nor"),
        (one_column("4"), PETS, "E540", "it has the answer 4, but the classes are 0 to 2"),
        (one_column("0"), ["1", "2", "3"], "E540", "'0' is neither a class"),
        (one_column("0.5"), PETS, "E540", "numbers such as 0.5, and there are 3 classes"),
        (one_column("0.5"), ["cat", "dog"], "E542", "'cat' or 'dog': the names do not tell"),
        ("id,ant,bea,cat\na,0,0,1\n", PETS, "E541", "column 'bea' is not a class (did you mean 'bee'?)"),
        ("id,ant,bee\na,0,0\n", PETS, "E541", "no column for the class 'cat'"),
        ("id\na\n", PETS, "E322", "has ids and answers, got id"),
    ],
)
def test_what_cannot_be_told_is_an_error(tmp_path: Path, text: str, names: list[str], code: str, said: str) -> None:
    """The message says what was seen, and the hint of an unclear kind lists the options that settle it."""
    with pytest.raises(EnsError) as caught:
        sheet_of(tmp_path, text, names)
    assert caught.value.code == code
    assert said in caught.value.message
    assert code != "E540" or "--answers name" in caught.value.hint


def test_decomposed_names_are_written_as_the_sample_has_them(tmp_path: Path) -> None:
    """Names in another Unicode form than the classes are the same classes, in the sample's form."""
    names = ["가구", "곰팡이"]
    form = [unicodedata.normalize("NFD", name) for name in names]
    assert sheet_of(tmp_path, one_column(form[0], form[0]), names).spelling == tuple(form)
    assert sheet_of(tmp_path, one_column(names[0], names[0]), names).spelling == tuple(names)


@pytest.mark.parametrize(
    ("names", "column", "positive"),
    [
        (["healthy", "tumor"], "label", "tumor"),
        (["malignant", "benign"], "target", "malignant"),
        (["1", "0"], "p", "1"),
        (["mask", "no mask"], "p", "mask"),
        (["not_fresh", "fresh"], "p", "fresh"),
        (["dog", "cat"], "is_cat", "cat"),
        (["dog", "cat"], "Dog", "dog"),
        (["dog", "cat"], "p(cat)", "cat"),
        (["yes", "no"], "answer", "yes"),
    ],
)
def test_the_class_of_a_single_probability_is_said(
    tmp_path: Path, names: list[str], column: str, positive: str
) -> None:
    """The column's name, or the classes' own names, tell of which class it is, and the line names it."""
    heard = Recorder()
    found = sheet_of(tmp_path, one_column("0.5", header=f"id,{column}"), names, heard=heard)
    assert found.positive == names.index(positive)
    assert heard.notices[-1].message == f"s.csv: its single number per image is the probability of {positive}"


def test_an_option_names_the_class_of_a_single_probability(tmp_path: Path) -> None:
    """--positive overrules the names; a class that does not exist, or another kind of answers, is an error."""
    assert sheet_of(tmp_path, one_column("0.5"), TWO, positive="healthy").positive == 0
    with pytest.raises(EnsError, match="E541"):
        sheet_of(tmp_path, one_column("0.5"), TWO, positive="sick")
    with pytest.raises(EnsError, match="E204"):
        sheet_of(tmp_path, one_column("ant"), PETS, positive="ant")


def test_columns_are_chosen_by_options(tmp_path: Path) -> None:
    """Ids need not be in the first column, and an option names a column that no usual name tells."""
    assert sheet_of(tmp_path, "label,image\nant,a.jpg\n", PETS).ids == ("a.jpg",)
    heard = Recorder()
    assert sheet_of(tmp_path, "thing,label\na,ant\n", PETS, heard=heard).ids == ("a",)
    assert [notice.code for notice in heard.notices][:1] == ["I382"]
    assert sheet_of(tmp_path, "label,thing\nant,a\n", PETS, id_column="thing").ids == ("a",)
    with pytest.raises(EnsError, match=r"E322.*'nothing' not found|E322.*\"nothing\" not found"):
        sheet_of(tmp_path, "label,thing\nant,a\n", PETS, id_column="nothing")


def test_names_that_contain_the_separator_need_another_one(tmp_path: Path) -> None:
    """A space between names that have spaces would be ambiguous: it is an error that names --sep."""
    names = ["black bear", "deer"]
    with pytest.raises(EnsError, match="E204") as caught:
        sheet_of(tmp_path, one_column("deer"), names, independent=True)
    assert "--sep" in caught.value.hint
    found = sheet_of(tmp_path, one_column("deer"), names, independent=True, separator=";")
    assert (found.kind, found.separator) == ("label-cells", ";")
    found = sheet_of(tmp_path, one_column('"black bear, deer"'), names, independent=True)
    assert found.separator == ", "


def test_columns_beside_ids_and_answers_are_copied(tmp_path: Path) -> None:
    """A sample with a further column keeps it, wherever it is, and the line says which column holds the answers."""
    text, heard = "Usage,id,label\nPublic,a,ant\nPrivate,b,ant\n", Recorder()
    sheet = sheet_of(tmp_path, text, PETS, heard=heard)
    said = heard.notices[0].message
    assert said == (
        "s.csv: it has columns beside ids and answers, Usage: "
        "answers are written in column label, and the others copied"
    )
    labels = LabelSpace.flat(PETS)
    given = Submission(("b", "a"), np.array([2, 1]), labels)
    path = write_submission(tmp_path / "out.csv", given, sheet=sheet)
    assert path.read_text() == "Usage,id,label\nPublic,a,bee\nPrivate,b,cat\n"
    found = read_submission(path, labels, like=sheet)
    assert (found.ids, found.classes.tolist()) == (("a", "b"), [1, 2])
    with pytest.raises(EnsError, match="E541"):
        sheet_of(tmp_path, "id,u,v\na,ant,ant\n", PETS)
    assert sheet_of(tmp_path, "id,u,v\na,ant,1\n", PETS, label_column="u").kind == "name"


@pytest.mark.parametrize("answers", ["names", "ranking:0", "ranking:x", "number:3"])
def test_an_unknown_kind_is_an_option_error(tmp_path: Path, answers: str) -> None:
    """--answers with another word is E202, which lists the kinds."""
    with pytest.raises(EnsError, match="E202") as caught:
        sheet_of(tmp_path, one_column("ant"), PETS, answers=answers)
    assert "label-cells" in caught.value.hint


def test_the_column_of_images_is_found_beside_a_column_of_answers_called_id(tmp_path: Path) -> None:
    """In a table of Image and Id the column that does not repeat, or has the suffixes, has the images."""
    whales = ["new_whale", "w_1", "w_2"]
    for text in ("Image,Id\na.jpg,w_1 w_2\nb.jpg,w_1 w_2\n", "Image,Id\na.jpg,w_1 w_2\nb.jpg,w_2 w_1\n"):
        heard = Recorder()
        found = sheet_of(tmp_path, text, whales, heard=heard)
        assert (found.ids, found.kind, found.id_place) == (("a.jpg", "b.jpg"), "ranking", 0)
        assert heard.notices[0].code == "I382"
    kept = sheet_of(tmp_path, "id,image\n1,ant\n2,ant\n", PETS)
    assert kept.ids == ("1", "2")


def test_numbers_as_classes_of_a_long_sample_need_a_column_that_says_so(tmp_path: Path) -> None:
    """ImageId_ClassId ends in the number of a class; an id that only ends in a number may be one of a frame."""
    rows = "".join(f"{image}.jpg_{label},0.5\n" for image in "ab" for label in (1, 2, 3))
    found = sheet_of(tmp_path, f"ImageId_ClassId,p\n{rows}", ["1", "2", "3"], independent=True)
    assert (found.kind, found.ids) == ("long", ("a.jpg", "b.jpg"))
    with pytest.raises(EnsError) as caught:
        sheet_of(tmp_path, f"id,p\n{rows}", ["1", "2", "3"], independent=True)
    assert caught.value.code == "E540"


@pytest.mark.parametrize(
    ("text", "names", "code"),
    [
        (one_column("41.5", "0.2"), TWO, "E564"),
        (one_column("41.5", "3.5"), PETS, "E564"),
        (one_column("7 0.88", "9 0.1"), ["7", "9", "11"], "E565"),
    ],
)
def test_measured_numbers_and_scores_of_classes_are_refused(
    tmp_path: Path, text: str, names: list[str], code: str
) -> None:
    """Neither a regression nor a class with its score is written as something else."""
    with pytest.raises(EnsError) as caught:
        sheet_of(tmp_path, text, names)
    assert caught.value.code == code


@pytest.mark.parametrize(
    ("text", "code", "said", "hint"),
    [
        ("id label\na.jpg 0\nb.jpg 1\n", "E322", "got id label", "separated by spaces: write it with commas"),
        ("id\na.jpg\n", "E322", "got id", "header line"),
        (
            "id,p\na.jpg,0.2 0.8\nb.jpg,0.7 0.3\n",
            "E540",
            "several numbers, such as '0.2 0.8'",
            "a column for each class",
        ),
    ],
)
def test_cells_between_spaces_are_told(tmp_path: Path, text: str, code: str, said: str, hint: str) -> None:
    """A table that spaces divide, and probabilities in one cell, are refused with what to write instead."""
    path = tmp_path / "like.csv"
    path.write_text(text)
    with pytest.raises(EnsError) as caught:
        read_sheet(path, LabelSpace.flat(["ant", "bee"]))
    assert (caught.value.code, said in caught.value.message) == (code, True)
    assert hint in caught.value.hint


def test_a_class_with_the_separator_in_its_name_is_told(tmp_path: Path) -> None:
    """Cells of several names, one of whose classes has a space, are E204, and not two faults of their lines."""
    path = tmp_path / "ours.csv"
    path.write_text("id,label\na.jpg,cat dog\nb.jpg,dog\n")
    with pytest.raises(OptionError, match="which is in the class 'big cow'"):
        check_submission(path, None, LabelSpace.flat(["cat", "dog", "big cow"]))
