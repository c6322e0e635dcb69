"""Sample submissions in other spellings: lists, letter case, TRUE and FALSE, percentages, ranks in columns."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ensemble.errors import EnsError
from ensemble.events import Recorder
from ensemble.labels import LabelSpace
from ensemble.predictions.truth import read_truth
from ensemble.submission.class_names import ColumnMatch, match_columns
from ensemble.submission.lint import check_submission, read_submission
from ensemble.submission.recognize import read_sheet
from ensemble.submission.sheet import Submission
from ensemble.submission.sheet_options import SheetOptions, default_sheet
from ensemble.submission.write import write_submission

PETS = ["cat", "dog", "owl"]
P = np.array([[0.6, 0.1, 0.3], [0.25, 0.5, 0.25]])
"""The probabilities of the images a and b."""
TWO = np.array([[0.75, 0.25], [0.125, 0.875]])


def written(
    folder: Path, sample: str, names: list[str], p: np.ndarray, *, several: bool = False, **given: Any
) -> tuple[str, str]:
    """The file that is written for a sample, which is checked and read back, and what was said."""
    path, out, labels, heard = folder / "s.csv", folder / "out.csv", LabelSpace.flat(names), Recorder()
    path.write_text(sample, encoding="utf-8")
    options = SheetOptions(**given)
    sheet = read_sheet(path, labels, options=options, independent=several, listener=heard)
    answers = Submission(("a", "b"), p.argmax(axis=1), labels, p, independent=several)
    write_submission(out, answers, sheet=sheet)
    # ens check and ens evaluate know the sample alone
    alone = read_sheet(path, labels, options=options)
    assert check_submission(out, alone, labels, options=options) == ()
    back = read_submission(out, labels, like=alone, options=options, independent=several)
    assert back.independent == several
    if not several:
        np.testing.assert_array_equal(back.classes, answers.classes)
    return out.read_text(encoding="utf-8"), " ".join(one.message for one in heard.notices)


@pytest.mark.parametrize(
    ("rows", "names", "expected"),
    [
        ("a,dog\nb,dog\n", ["Cat", "Dog", "Owl"], "a,cat\nb,dog\n"),
        ("a,SEA OWL\nb,SEA OWL\n", ["cat", "dog", "sea owl"], "a,CAT\nb,DOG\n"),
        ("a,00\nb,00\n", PETS, "a,00\nb,01\n"),
        ("a,001\nb,002\n", ["1", "2", "3"], "a,001\nb,002\n"),
    ],
)
def test_classes_are_spelled_as_the_sample_does(tmp_path: Path, rows: str, names: list[str], expected: str) -> None:
    """Letter case, zeros ahead and brackets are those of the sample, also for classes that it does not have."""
    text, _ = written(tmp_path, f"id,label\n{rows}", names, P)
    assert text == f"id,label\n{expected}"


@pytest.mark.parametrize(
    ("cell", "names", "given", "expected"),
    [
        ("FALSE", ["False", "True"], {}, ["FALSE", "TRUE"]),
        ("false", ["0", "1"], {}, ["false", "true"]),
        ("True", ["real", "fake"], {}, ["False", "True"]),
        ("No", ["tumor", "healthy"], {}, ["Yes", "No"]),
        ("F", ["cat", "dog"], {"positive": "cat"}, ["T", "F"]),
    ],
)
def test_two_classes_may_be_true_and_false(
    tmp_path: Path, cell: str, names: list[str], given: dict[str, Any], expected: list[str]
) -> None:
    """TRUE is the class that the names tell to be positive, or --positive."""
    text, said = written(tmp_path, f"id,flag\na,{cell}\nb,{cell}\n", names, TWO, **given)
    assert text == f"id,flag\na,{expected[0]}\nb,{expected[1]}\n"
    assert "its classes are spelled" in said


def test_true_and_false_of_two_names_that_do_not_tell_are_asked_for(tmp_path: Path) -> None:
    """Neither a cat nor a dog is true: the option that settles it is named."""
    with pytest.raises(EnsError) as caught:
        written(tmp_path, "id,flag\na,TRUE\nb,FALSE\n", ["cat", "dog"], TWO)
    assert caught.value.code == "E542"
    assert "--positive" in caught.value.hint


@pytest.mark.parametrize(
    ("cells", "expected"),
    [
        ('"[""cat"", ""owl""]"', ['"[""cat""]"', '"[""dog"", ""owl""]"']),
        ("\"['cat','owl']\"", ["['cat']", "\"['dog','owl']\""]),
        ('"[0, 2]"', ["[0]", '"[1, 2]"']),
        ('"(cat, owl)"', ["(cat)", '"(dog, owl)"']),
        ("{cat owl}", ["{cat}", "{dog owl}"]),
        ("Cat|Owl", ["Cat", "Dog|Owl"]),
        ("cat | owl", ["cat", "dog | owl"]),
    ],
)
def test_lists_of_names_in_a_cell_keep_their_form(tmp_path: Path, cells: str, expected: list[str]) -> None:
    """Brackets, quotes and what is between the names are the sample's."""
    p = np.array([[0.9, 0.1, 0.2], [0.1, 0.8, 0.5]])
    text, _ = written(tmp_path, f"id,labels\na,{cells}\nb,{cells}\n", PETS, p, several=True)
    assert text == f"id,labels\na,{expected[0]}\nb,{expected[1]}\n"


def test_a_list_in_another_form_is_a_fault(tmp_path: Path) -> None:
    """A file without the sample's brackets is not what a contest parses."""
    (tmp_path / "s.csv").write_text('id,labels\na,"[1, 2]"\n')
    (tmp_path / "bad.csv").write_text("id,labels\na,1 2\n")
    labels = LabelSpace.flat(PETS)
    sheet = read_sheet(tmp_path / "s.csv", labels, independent=True)
    assert {fault.what for fault in check_submission(tmp_path / "bad.csv", sheet, labels)} & {"list", "name"}
    (tmp_path / "truth.csv").write_text("id,labels\na,\"['cat', 'owl']\"\n")
    truth = read_truth(tmp_path / "truth.csv", labels, independent=True)
    assert truth.applies is not None
    assert truth.applies.tolist() == [[True, False, True]]


@pytest.mark.parametrize(
    ("sample", "expected"),
    [
        ("id,cat,dog,owl\na,33.3,33.3,33.4\nb,0,0,100\n", "id,cat,dog,owl\na,60,10,30\nb,25,50,25\n"),
        ("id,owl (%),dog (%),cat (%)\na,0,0,0\nb,0,0,0\n", "id,owl (%),dog (%),cat (%)\na,30,10,60\nb,25,50,25\n"),
    ],
)
def test_percentages_are_written_as_such(tmp_path: Path, sample: str, expected: str) -> None:
    """Rows that sum to 100, or columns called so, are percentages; decimals are rounded to a sum of 100."""
    text, said = written(tmp_path, sample, PETS, P)
    assert text == expected
    assert "percentages" in said
    uneven = np.array([[1 / 3, 1 / 3, 1 / 3], [0.2, 0.7, 0.1]])
    rounded, _ = written(tmp_path, sample, PETS, uneven, digits=1)
    cells = rounded.splitlines()[1].split(",")[1:]
    assert sorted(cells) == ["33.3", "33.3", "33.4"]


def test_numbers_that_are_no_probabilities_are_refused(tmp_path: Path) -> None:
    """Columns of counts or measurements are not those of probabilities, which were written before."""
    for row in ("7,2,1", "-1,0,1", "250,250,500"):
        with pytest.raises(EnsError) as caught:
            written(tmp_path, f"id,cat,dog,owl\na,{row}\nb,{row}\n", PETS, P)
        assert caught.value.code == "E564"
    text, _ = written(tmp_path, "id,cat,dog,owl\na,7,2,1\nb,0,0,0\n", PETS, P, answers="probabilities")
    assert text == "id,cat,dog,owl\na,0.6,0.1,0.3\nb,0.25,0.5,0.25\n"


def test_decisions_of_exclusive_classes_have_one_1_in_each_row(tmp_path: Path) -> None:
    """The most probable class is decided for, also where its probability is below one half."""
    p = np.array([[0.4, 0.35, 0.25], [0.2, 0.3, 0.5]])
    text, _ = written(tmp_path, "id,cat,dog,owl\na,0,0,1\nb,0,0,1\n", PETS, p, answers="decisions")
    assert text == "id,cat,dog,owl\na,1,0,0\nb,0,0,1\n"
    _, said = written(tmp_path, "id,cat,dog,owl\na,0.0,0.0,1.0\nb,1.0,0.0,0.0\n", PETS, p)
    assert "--answers decisions writes 0 and 1" in said


def test_probabilities_are_read_as_exclusive_whatever_the_sample_sums_to(tmp_path: Path) -> None:
    """Rows of 0.9 in a sample do not make several labels of a submission whose rows all sum to one."""
    text, _ = written(tmp_path, "id,cat,dog,owl\na,0.9,0.9,0.9\nb,0.9,0.9,0.9\n", PETS, P)
    assert text == "id,cat,dog,owl\na,0.6,0.1,0.3\nb,0.25,0.5,0.25\n"


def test_ranks_may_have_a_column_each(tmp_path: Path) -> None:
    """Columns prediction1 and prediction2 with a class each have the most probable classes in order."""
    text, said = written(tmp_path, "id,prediction1,prediction2\na,owl,cat\nb,owl,cat\n", PETS, P)
    assert text == "id,prediction1,prediction2\na,cat,owl\nb,dog,cat\n"
    assert "most probable" in said
    sheet = read_sheet(tmp_path / "s.csv", LabelSpace.flat(PETS))
    (tmp_path / "bad.csv").write_text("id,prediction1,prediction2\na,cat,cat\nb,,ow\n")
    faults = check_submission(tmp_path / "bad.csv", sheet, LabelSpace.flat(PETS))
    assert {fault.what for fault in faults} == {"repeated", "empty"}


@pytest.mark.parametrize("beside", ["Unnamed: 0", "patient_id", "index", "site"])
def test_columns_beside_the_classes_are_copied(tmp_path: Path, beside: str) -> None:
    """An index or a group beside one column per class stays as it is; another column of numbers does not."""
    sample = f"{beside},image_id,cat,dog,owl\n7,a,0.3,0.3,0.4\n7,b,0.3,0.3,0.4\n"
    text, said = written(tmp_path, sample, PETS, P)
    assert text == f"{beside},image_id,cat,dog,owl\n7,a,0.6,0.1,0.3\n7,b,0.25,0.5,0.25\n"
    assert beside in said
    with pytest.raises(EnsError, match="column 'fox' is not a class"):
        written(tmp_path, sample.replace(beside, "fox"), PETS, P)


def test_a_score_beside_the_class_is_not_copied_unasked(tmp_path: Path) -> None:
    """The sample's confidences would be those of no prediction: the options are named."""
    sample = "id,label,confidence\na,cat,0.5\nb,cat,0.5\n"
    with pytest.raises(EnsError) as caught:
        written(tmp_path, sample, PETS, P)
    assert caught.value.code == "E565"
    assert "--label-column label" in caught.value.hint
    with pytest.raises(EnsError, match="E565"):
        check_submission(tmp_path / "s.csv", None, LabelSpace.flat(PETS))
    with pytest.raises(EnsError, match="answers in column cat, dog, owl, and others in column predicted"):
        written(tmp_path, "id,predicted,cat,dog,owl\na,cat,1,0,0\nb,cat,1,0,0\n", PETS, P)
    text, said = written(tmp_path, sample, PETS, P, label_column="label")
    assert text == "id,label,confidence\na,cat,0.5\nb,dog,0.5\n"
    assert "beside ids and answers, confidence:" in said


@pytest.mark.parametrize(
    ("columns", "names"),
    [
        (["lpd_vote", "gpd_vote"], ["LPD", "GPD"]),
        (["cat (%)", "dog (%)"], ["cat", "dog"]),
        (["r50: cat", "r50: dog"], ["cat", "dog"]),
        (["p_red_cat_x", "p_red_dog_x"], ["red cat", "red dog"]),
    ],
)
def test_columns_match_but_for_what_all_have(columns: list[str], names: list[str]) -> None:
    """What all columns begin or end with is no part of the classes' names, up to a mark between words."""
    found = match_columns(columns, names)
    assert isinstance(found, ColumnMatch)
    assert found.classes == (0, 1)
    assert not isinstance(match_columns(["m1_cat", "m2_dog"], names), ColumnMatch)


def test_a_sample_without_a_header_is_refused(tmp_path: Path) -> None:
    """The first image would be lost with the line that is taken for the header."""
    for first in ("a.jpg,0", "00012,0"):
        with pytest.raises(EnsError, match="the first line must name the columns"):
            written(tmp_path, f"{first}\nb.jpg,0\n", PETS, P)


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        ("id,labels\na,[]\nb,[]\n", "neither a class nor"),
        ('id,labels\na,"[0, 1, 0]"\nb,"[1, 0, 1]"\n', "a 0 or 1 per class"),
        ("id,labels\na,0 1 0\nb,0 1 0\n", "a 0 or 1 per class"),
        ("id,cat,dog,owl\na,TRUE,FALSE,FALSE\nb,TRUE,FALSE,FALSE\n", "cells such as 'TRUE'"),
        ("id,label\na,-1\nb,-1\n", "the answer -1"),
    ],
)
def test_answers_of_no_known_kind_are_refused(tmp_path: Path, rows: str, said: str) -> None:
    """Empty lists, flags in a cell and words in columns of classes are named, and nothing else is written for them."""
    for several in (False, True):
        with pytest.raises(EnsError) as caught:
            written(tmp_path, rows, PETS, P, several=several)
        assert caught.value.code == "E540"
        assert said in caught.value.message


def test_class_numbers_may_be_counted_from_one(tmp_path: Path) -> None:
    """The number of classes itself is not a number counted from 0, which is said."""
    text, said = written(tmp_path, "id,label\na,1\nb,3\n", PETS, P)
    assert text == "id,label\na,1\nb,2\n"
    assert ", not from 0" in said
    assert written(tmp_path, "id,label\na,1\nb,3\n", PETS, P, answers="number") == (text, said)
    named, _ = written(tmp_path, "id,label\na,1\nb,3\n", PETS, P, answers="name")
    assert named == "id,label\na,cat\nb,dog\n"


@pytest.mark.parametrize("rows", ["a,1\nb,2\n", "a,1\nb,1\n", "a,2\nb,2\n"])
def test_numbers_that_do_not_tell_where_they_begin_are_said(tmp_path: Path, rows: str) -> None:
    """Without 0 and the number of classes they are counted from 0, which is said, or as an option says."""
    text, said = written(tmp_path, f"id,label\n{rows}", PETS, P)
    assert text == "id,label\na,0\nb,1\n"
    assert "they are counted from 0 (--answers number:1 counts from 1)" in said
    text, said = written(tmp_path, f"id,label\n{rows}", PETS, P, answers="number:1")
    assert text == "id,label\na,1\nb,2\n"
    assert "count from 1 to 3" in said
    text, said = written(tmp_path, f"id,label\n{rows}", PETS, P, answers="number:0")
    assert text == "id,label\na,0\nb,1\n"
    assert "from 0" not in said


def test_an_answer_of_0_contradicts_a_count_from_one(tmp_path: Path) -> None:
    """The answer that the option excludes is named; a sample with empty answers has none."""
    with pytest.raises(EnsError, match="the answer 0, and the classes would be 1 to 3") as caught:
        written(tmp_path, "id,label\na,0\nb,1\n", PETS, P, answers="number:1")
    assert caught.value.code == "E204"
    assert written(tmp_path, "id,label\na,\nb,\n", PETS, P, answers="number:1")[0] == "id,label\na,1\nb,2\n"


def test_lists_of_numbers_may_be_counted_from_one(tmp_path: Path) -> None:
    """The numbers in a ranking are those of single answers: the number of classes among them says where they begin."""
    text, said = written(tmp_path, "id,label\na,1 2 3\nb,1 2 3\n", PETS, P)
    assert text.splitlines()[1:] == ["a,1 3 2", "b,2 1 3"]
    assert "count from 1 to 3" in said
    text, said = written(tmp_path, "id,label\na,1 2\nb,1 2\n", PETS, P)
    assert text.splitlines()[1:] == ["a,0 2", "b,1 0"]
    assert "they are counted from 0 (3 in one of its cells counts from 1)" in said


def test_a_submission_without_a_sample_counts_from_one_if_it_is_told_to(tmp_path: Path) -> None:
    """Without a sample class numbers are from 0, and an option changes that."""
    labels = LabelSpace.flat(PETS)
    answers = Submission(("a", "b"), P.argmax(axis=1), labels, P)
    sheet = default_sheet(answers.ids, labels, options=SheetOptions(answers="number:1"))
    write_submission(tmp_path / "out.csv", answers, sheet=sheet)
    assert (tmp_path / "out.csv").read_text().splitlines()[1:] == ["a,1", "b,2"]


def test_one_percentage_of_two_classes(tmp_path: Path) -> None:
    """A column called one of percentages has whole numbers that are not classes."""
    text, _ = written(tmp_path, "id,risk (%)\na,50\nb,50\n", ["benign", "malignant"], TWO)
    assert text == "id,risk (%)\na,25\nb,87.5\n"
