"""Writing submissions in the sample's format, and comparing them."""

from __future__ import annotations

import tempfile
import unicodedata
from collections.abc import Callable, Sequence
from dataclasses import astuple
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ensemble.errors import EnsError, FileError
from ensemble.events import Recorder
from ensemble.labels import MASK18
from ensemble.submission.diff import diff_submissions, render_agreement, render_diff
from ensemble.submission.lint import check_submission, read_submission
from ensemble.submission.recognize import read_sheet
from ensemble.submission.sheet import AnswerSheet, Submission
from ensemble.submission.write import write_submission

SAMPLE = b"ImageID,ans\r\nc.jpg,0\r\na.jpg,0\r\nb.jpg,0\r\n"
ABC = ("a.jpg", "b.jpg", "c.jpg")


def classes(*values: int) -> np.ndarray[tuple[int, ...], np.dtype[np.intp]]:
    return np.array(values, dtype=np.intp)


def answers(ids: Sequence[str], *values: int) -> Submission:
    return Submission(tuple(ids), classes(*values), MASK18)


def write(path: Path, data: bytes) -> Path:
    path.write_bytes(data)
    return path


def code_of(action: Callable[[], object]) -> tuple[str, str]:
    with pytest.raises(EnsError) as caught:
        action()
    return caught.value.code, caught.value.message


@pytest.mark.parametrize(
    "sample",
    [
        SAMPLE,
        SAMPLE.replace(b"\r\n", b"\n"),
        b"\xef\xbb\xbf" + SAMPLE,
        SAMPLE.replace(b"ImageID,ans", b"id,label"),
        SAMPLE.replace(b"c.jpg", b'"c, d.jpg"'),
    ],
    ids=["CRLF", "LF", "BOM", "other columns", "quotes"],
)
def test_the_sample_itself_is_reproduced(tmp_path: Path, sample: bytes) -> None:
    """Class 0 for every image writes the sample's own bytes."""
    form = read_sheet(write(tmp_path / "info.csv", sample), MASK18)
    ids = sorted(form.ids)
    path = write_submission(tmp_path / "out.csv", answers(ids, 0, 0, 0), sheet=form)
    assert path.read_bytes() == sample


def test_rows_are_in_the_samples_order(tmp_path: Path) -> None:
    """Each image keeps its class, and the rows are in the sample's order."""
    form = read_sheet(write(tmp_path / "info.csv", SAMPLE), MASK18)
    path = write_submission(tmp_path / "out.csv", answers(ABC, 1, 2, 3), sheet=form)
    assert path.read_bytes() == b"ImageID,ans\r\nc.jpg,3\r\na.jpg,1\r\nb.jpg,2\r\n"


def test_without_a_sample_the_ids_are_sorted(tmp_path: Path) -> None:
    """The default is ImageID,ans with sorted ids and LF line endings."""
    path = write_submission(tmp_path / "out.csv", answers(ABC[::-1], 3, 2, 1))
    assert path.read_bytes() == b"ImageID,ans\na.jpg,1\nb.jpg,2\nc.jpg,3\n"


def test_fault_18_the_samples_spelling_is_kept(tmp_path: Path) -> None:
    """Ids in decomposed Unicode are written in the sample's composed form, with a notice."""
    heard = Recorder()
    sample = write(tmp_path / "info.csv", "ImageID,ans\n한글.jpg,0\n".encode())
    form = read_sheet(sample, MASK18, listener=heard)
    decomposed = [unicodedata.normalize("NFD", "한글.jpg")]
    path = write_submission(tmp_path / "out.csv", answers(decomposed, 5), sheet=form, listener=heard)
    assert path.read_bytes() == "ImageID,ans\n한글.jpg,5\n".encode()
    assert [notice.code for notice in heard.notices] == ["I543", "I310"]


def test_fault_79_other_images_than_the_samples_are_refused(tmp_path: Path) -> None:
    """Missing and additional images are E504, and nothing is written."""
    form = read_sheet(write(tmp_path / "info.csv", SAMPLE), MASK18)
    code, message = code_of(lambda: write_submission(tmp_path / "out.csv", answers(["a.jpg", "x"], 0, 1), sheet=form))
    assert code == "E504"
    assert message.endswith("lacks 2 of 3 ids: b.jpg, c.jpg; has 1 others: x")
    assert not (tmp_path / "out.csv").exists()


def test_fault_32_ids_like_formulas_are_written_unchanged(tmp_path: Path) -> None:
    """An id that a spreadsheet would treat as a formula is written unchanged, with W324."""
    heard = Recorder()
    path = write_submission(tmp_path / "out.csv", answers(["=1+1.jpg", "a.jpg"], 0, 1), listener=heard)
    assert path.read_bytes() == b"ImageID,ans\n=1+1.jpg,0\na.jpg,1\n"
    assert [notice.code for notice in heard.notices] == ["W324"]


def test_fault_89_one_class_for_all_images_is_noticed(tmp_path: Path) -> None:
    """One class for all images gives W521 when writing and when checking; two classes do not."""
    for values, expected in (((4, 4, 4), ["W521"]), ((4, 4, 5), [])):
        written, checked = Recorder(), Recorder()
        path = write_submission(tmp_path / "out.csv", answers(ABC, *values), listener=written)
        assert check_submission(path, None, MASK18, listener=checked) == ()
        assert [n.code for n in written.notices] == [n.code for n in checked.notices if n.code != "I543"] == expected


@given(
    st.lists(
        st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), min_size=1), min_size=1, unique=True
    ),
    st.sampled_from(["\n", "\r\n"]),
    st.booleans(),
    st.integers(0, 2**32 - 1),
)
@settings(deadline=None, max_examples=50)
def test_fault_17_any_id_survives_the_file(ids: list[str], newline: str, bom: bool, seed: int) -> None:
    """Quotes, commas, line breaks and emoji in ids round-trip through a valid file."""
    form = AnswerSheet(tuple(ids), ("ImageID", "ans"), newline, bom)
    drawn = np.random.default_rng(seed).integers(18, size=len(ids)).tolist()
    with tempfile.TemporaryDirectory() as folder:
        path = write_submission(Path(folder) / "out.csv", answers(ids, *drawn), sheet=form)
        submission = read_submission(path, MASK18, like=form)
        assert read_sheet(path, MASK18) == form
    assert submission.ids == tuple(ids)
    assert submission.classes.tolist() == drawn


@pytest.mark.parametrize(
    ("data", "code"),
    [
        (b"ImageID\na.jpg\n", "E322"),
        (b"ImageID,first,second\na.jpg,0,0\n", "E541"),
        (b"ImageID,ans\n", "E322"),
        (b"", "E322"),
        (b"ImageID,ans\na.jpg,0\na.jpg,0\n", "E313"),
    ],
)
def test_an_invalid_sample_is_refused(tmp_path: Path, data: bytes, code: str) -> None:
    """A sample needs two columns, rows, and each id once."""
    assert code_of(lambda: read_sheet(write(tmp_path / "info.csv", data), MASK18))[0] == code


def test_a_missing_sample_is_refused(tmp_path: Path) -> None:
    """A missing file is E707."""
    with pytest.raises(FileError) as caught:
        read_sheet(tmp_path / "none.csv", MASK18)
    assert caught.value.code == "E707"


def test_a_diff_counts_rows_axes_and_classes() -> None:
    """Two submissions in different orders are compared by id: rows, axes and class counts."""
    before = Submission(ABC, classes(0, 7, 17), MASK18)
    after = Submission(("c.jpg", "b.jpg", "a.jpg"), classes(17, 4, 1), MASK18)
    diff = diff_submissions(before, after)
    assert (diff.rows, diff.changed) == (3, 2)
    # a: 0 -> 1 changes the age; b: 7 -> 4 changes the mask (1 -> 0) and the gender (0 -> 1)
    assert diff.axes == {"mask": 1, "gender": 1, "age": 1}
    assert [i for i, count in enumerate(diff.before) if count] == [0, 7, 17]
    assert [i for i, count in enumerate(diff.after) if count] == [1, 4, 17]
    lines = render_diff(diff).splitlines()
    assert lines[0] == "2 of 3 rows differ (66.67%); by axis: mask 1, gender 1, age 1"
    assert lines[3].split()[-3:] == ["1", "0", "-1"]


def test_a_diff_with_itself_is_empty() -> None:
    """A submission has no differences to itself."""
    one = Submission(ABC, classes(0, 7, 17), MASK18)
    diff = diff_submissions(one, one)
    assert (diff.changed, set(diff.axes.values())) == (0, {0})
    assert astuple(diff)[4] == astuple(diff)[5]


def test_a_diff_of_different_images_is_refused() -> None:
    """Submissions for different images are E504."""
    one, other = Submission(ABC, classes(0, 1, 2), MASK18), Submission(ABC[:2], classes(0, 1), MASK18)
    assert code_of(lambda: diff_submissions(one, other))[0] == "E504"


def test_agreement_lists_the_highest_first() -> None:
    """One line per submission with the agreement over rows and axes, the highest first."""
    one = Submission(("a", "b"), np.array([0, 1]), MASK18)
    near, far = Submission(("b", "a"), np.array([1, 3]), MASK18), Submission(("a", "b"), np.array([17, 17]), MASK18)
    lines = render_agreement({"far": diff_submissions(one, far), "near": diff_submissions(one, near)}).splitlines()
    assert lines[0].split() == ["agrees", "with", "rows", "mask", "gender", "age"]
    assert lines[1].split() == ["near", "50.00%", "100.00%", "50.00%", "100.00%"]
    assert lines[2].split() == ["far", "0.00%", "0.00%", "0.00%", "0.00%"]
