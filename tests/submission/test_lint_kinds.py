"""A submission is judged by the kind of answers that its sample asks for."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ensemble.errors import PredictionError
from ensemble.events import Recorder
from ensemble.labels import LabelSpace
from ensemble.submission.diff import diff_submissions
from ensemble.submission.lint import MEANING, check_submission, read_submission
from ensemble.submission.sheet import AnswerKind, AnswerSheet, LongRow, Submission
from ensemble.submission.spread import compare_spread, notice_spread
from ensemble.submission.write import write_submission

PETS = LabelSpace.flat(["ant", "bee", "cat"])
IDS = ("a", "b", "c", "d")
NAMES = ("id", "ant", "bee", "cat")
NAME = AnswerSheet(IDS, ("id", "label"), kind="name", spelling=PETS.names)
COLUMNS = AnswerSheet(IDS, NAMES, kind="probabilities", classes=(0, 1, 2), independent=False)
LABELS = replace(COLUMNS, kind="label-columns", independent=True)
CELLS = replace(NAME, kind="label-cells", independent=True)
RANKING = replace(NAME, kind="ranking", at_most=2, independent=False)
LONG = AnswerSheet(
    IDS,
    ("id", "p"),
    kind="long",
    rows=tuple(LongRow((f"{name}_{pet}", "0"), i, j) for i, name in enumerate(IDS) for j, pet in enumerate(PETS.names)),
)
SHEETS: dict[AnswerKind, AnswerSheet] = {
    "number": AnswerSheet(IDS),
    "name": NAME,
    "probabilities": COLUMNS,
    "probability": AnswerSheet(IDS, ("id", "p"), kind="probability", positive=1),
    "label-columns": LABELS,
    "label-cells": CELLS,
    "ranking": RANKING,
    "long": LONG,
}


def faults(path: Path, sheet: AnswerSheet, *answers: str) -> dict[str, str]:
    """The kinds of faults with their first case; the first answer is replaced, the others are right."""
    rows = "".join(f"{name},{answer}\n" for name, answer in zip(IDS, answers, strict=True))
    path.write_text(",".join(sheet.columns) + "\n" + rows)
    return {one.what: one.examples[0] for one in check_submission(path, sheet, PETS)}


@pytest.mark.parametrize(
    ("sheet", "wrong", "right", "what", "said"),
    [
        (NAME, "Bee", "bee", "name", "line 2: 'Bee' (did you mean 'bee'?)"),
        (NAME, "1", "bee", "name", "line 2: '1'"),
        (NAME, "", "bee", "empty", "line 2: ''"),
        (COLUMNS, "0.5,0.5,0.1", "0.2,0.2,0.6", "sum", "line 2: 1.1"),
        (COLUMNS, "1.5,-0.5,0", "0.2,0.2,0.6", "probability", "line 2: '1.5'"),
        (COLUMNS, "nan,0.5,0.5", "0.2,0.2,0.6", "nan", "line 2: 'nan'"),
        (COLUMNS, "high,0.5,0.5", "0.2,0.2,0.6", "text", "line 2: 'high'"),
        (LABELS, "0.9,0.9,1.1", "0.9,0.9,0.9", "probability", "line 2: '1.1'"),
        (replace(LABELS, decisions=True), "0.5,0,1", "1,0,1", "decision", "line 2: '0.5'"),
        (CELLS, "ant bea", "ant cat", "name", "line 2: 'bea' (did you mean 'bee'?)"),
        (CELLS, "ant ant", "ant cat", "repeated", "line 2: 'ant ant'"),
        (CELLS, "", "ant cat", "empty", "line 2: ''"),
        (RANKING, "ant bee cat", "ant bee", "count", "line 2: 3 instead of at most 2"),
        (RANKING, "ant ant", "ant bee", "repeated", "line 2: 'ant ant'"),
    ],
)
def test_each_kind_has_its_faults(
    tmp_path: Path, sheet: AnswerSheet, wrong: str, right: str, what: str, said: str
) -> None:
    """One wrong answer is one fault with its line, and right ones are none."""
    assert faults(tmp_path / "s.csv", sheet, wrong, right, right, right) == {what: said}
    assert faults(tmp_path / "s.csv", sheet, right, right, right, right) == {}


@pytest.mark.parametrize("row", ["0.333,0.333,0.333", "0.1,0.1,0.8", "0.33333333,0.33333333,0.33333333", "0,1,0"])
def test_rounded_probabilities_sum_to_one(tmp_path: Path, row: str) -> None:
    """A sum may be off by half a unit of the last digit per column, and no more."""
    assert faults(tmp_path / "s.csv", COLUMNS, row, row, row, row) == {}


def test_cells_may_be_empty_if_those_of_the_sample_are(tmp_path: Path) -> None:
    """An image without a label is no fault then."""
    assert faults(tmp_path / "s.csv", replace(CELLS, empty_cells=True), "", "ant", "", "bee cat") == {}


@pytest.mark.parametrize(
    ("sheet", "answer", "kind"),
    [
        (replace(NAME, constant=True, independent=None), "ant bee", "label-cells"),
        (replace(COLUMNS, constant=True, independent=None), "0.9,0.8,0.9", "label-columns"),
        (replace(NAME, constant=True, independent=None, kind="number", spelling=()), "0 2", "label-cells"),
        (replace(RANKING, independent=None), "ant", "label-cells"),
    ],
)
def test_a_constant_sample_leaves_open_whether_several_labels_apply(
    tmp_path: Path, sheet: AnswerSheet, answer: str, kind: str
) -> None:
    """The submission tells then, and a line says how it is read; a sample that tells is never overruled."""
    path, heard = tmp_path / "s.csv", Recorder()
    path.write_text(",".join(sheet.columns) + "\n" + "".join(f"{name},{answer}\n" for name in IDS))
    assert check_submission(path, sheet, PETS, listener=heard) == ()
    assert [n.code for n in heard.notices if kind in n.message] == ["I543"]
    told = replace(sheet, independent=False)
    assert sheet.kind == "ranking" or check_submission(path, told, PETS) != ()


@pytest.mark.parametrize("kind", SHEETS)
@pytest.mark.parametrize("digits", [None, 4])
def test_what_is_written_is_read_back(tmp_path: Path, kind: AnswerKind, digits: int | None) -> None:
    """Every kind has no faults as written, and gives the classes, probabilities or labels that it can hold."""
    labels = LabelSpace.flat(["no", "yes"]) if kind == "probability" else PETS
    p = np.random.default_rng(0).dirichlet(np.ones(len(labels)), len(IDS))
    given = Submission(IDS, p.argmax(axis=1), labels, p)
    numeric = kind in {"probabilities", "probability", "label-columns", "long"}
    sheet = replace(SHEETS[kind], digits=digits if numeric else None)
    path = write_submission(tmp_path / "out.csv", given, sheet=sheet)
    assert check_submission(path, sheet, labels) == ()
    found = read_submission(path, labels, like=sheet)
    assert found.ids == IDS
    if kind != "label-cells":
        assert found.classes.tolist() == given.classes.tolist()
    if numeric and found.probabilities is not None:
        np.testing.assert_allclose(found.probabilities, p, atol=1e-8 if digits is None else 1e-4)
    assert diff_submissions(found, found).changed == 0


@given(st.integers(1, 40), st.integers(1, 9), st.integers(0, 2**32 - 1))
@settings(deadline=None, max_examples=50)
def test_rounded_rows_still_sum_to_one(classes: int, digits: int, seed: int) -> None:
    """Rounding by largest remainder keeps the sum within 1e-6, and each value within one unit of the last digit."""
    from ensemble.submission.write import round_to_one

    p = np.random.default_rng(seed).dirichlet(np.full(classes, 0.3), 5)
    rounded = round_to_one(p, digits)
    assert np.abs(rounded.sum(axis=1) - 1).max() < 1e-6
    assert np.abs(rounded - p).max() <= 10.0**-digits


CELL = st.sampled_from(
    ["ant", "bee", "Cat", "0", "0.5", "1", "", "nan", " ", "ant bee", "ant,bee", "a_ant", "1e999", '"']
)


@given(st.sampled_from(sorted(SHEETS)), st.lists(st.lists(CELL, max_size=5).map(",".join)).map("\n".join))
@settings(deadline=None, max_examples=200)
def test_no_file_breaks_the_check_of_any_kind(
    tmp_path_factory: pytest.TempPathFactory, kind: AnswerKind, text: str
) -> None:
    """Any table gives a list of known faults, and only one without faults is read."""
    path, sheet = tmp_path_factory.getbasetemp() / "any.csv", SHEETS[kind]
    labels = LabelSpace.flat(["no", "yes"]) if kind == "probability" else PETS
    for content in (text, ",".join(sheet.columns) + "\n" + text):
        path.write_text(content)
        found = check_submission(path, sheet, labels)
        assert {one.what for one in found} <= set(MEANING)
        if found:
            with pytest.raises(PredictionError, match="E520"):
                read_submission(path, labels, like=sheet)
        else:
            read_submission(path, labels, like=sheet)


def test_answers_unlike_the_training_classes_are_noticed() -> None:
    """A spread like that of training says nothing; the same answers in the order of other classes do (W546)."""
    training = np.array([0.7, 0.2, 0.1])
    drawn = np.random.default_rng(0).choice(3, size=400, p=training)
    ids = tuple(map(str, range(400)))
    for classes, codes in ((drawn, []), ((drawn + 1) % 3, ["W546"])):
        heard = Recorder()
        spread = compare_spread(Submission(ids, classes.astype(np.intp), PETS), training)
        notice_spread(spread, heard)
        assert [notice.code for notice in heard.notices] == codes
        shares = np.bincount(classes, minlength=3) / 400
        assert spread.distance == pytest.approx(np.abs(shares - training).sum() / 2)


def test_few_misspelled_names_are_compared_with_all_classes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a thousand wrong names five are shown, so that for few of them the nearest class is looked for."""
    asked: list[str] = []
    monkeypatch.setattr("ensemble.submission.lint_answers.nearest", lambda text, _: asked.append(text))
    path = tmp_path / "s.csv"
    path.write_text("id,label\n" + "".join(f"x{i},bea{i}\n" for i in range(1000)))
    (fault,) = check_submission(path, replace(NAME, ids=tuple(f"x{i}" for i in range(1000))), PETS)
    assert (fault.what, fault.count) == ("name", 1000)
    assert asked == [f"bea{i}" for i in range(5)]


@pytest.mark.parametrize(
    ("text", "label"),
    [("2", 2), ("0", 0), ("3", None), ("02", None), ("+1", None), ("-1", None), ("²", None), ("", None)],
)
def test_a_sheet_of_numbers_knows_its_classes(text: str, label: int | None) -> None:
    """A class number has one way to be written, as `str` writes it."""
    assert AnswerSheet(IDS).label_of(text, 3) == label


def test_a_name_given_twice_is_the_first_class() -> None:
    """A spelling that two classes share stands for the first, as a search through the names would find."""
    assert replace(NAME, spelling=("ant", "bee", "ant")).label_of("ant", 3) == 0
