"""The submission check reports every fault in one pass."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ensemble.errors import FileError, PredictionError
from ensemble.events import Recorder
from ensemble.labels import MASK18, LabelSpace
from ensemble.submission.lint import (
    MEANING,
    Fault,
    check_and_read,
    check_submission,
    read_submission,
    render_faults,
)
from ensemble.submission.recognize import read_sheet
from ensemble.submission.sheet import AnswerSheet
from ensemble.text.input_file import read_input

FORM = AnswerSheet(("a", "b", "c", "d"))
GOOD = "ImageID,ans\na,0\nb,17\nc,3\nd,3\n"


def faults_of(path: Path, text: str | bytes, like: AnswerSheet | None = FORM) -> dict[str, tuple[int, tuple[str, ...]]]:
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return {fault.what: (fault.count, fault.examples) for fault in check_submission(path, like, MASK18)}


@pytest.mark.parametrize("text", [GOOD, GOOD.replace("\n", "\r\n"), GOOD.rstrip("\n")])
def test_a_good_submission_has_no_faults(tmp_path: Path, text: str) -> None:
    """Both line endings are valid, and the last one may be missing."""
    assert faults_of(tmp_path / "s.csv", text) == {}


@pytest.mark.parametrize(
    ("text", "what", "count", "example"),
    [
        (GOOD.replace("d,3\n", ""), "missing", 1, "d"),
        (GOOD + "e,1\n", "extra", 1, "line 6: 'e'"),
        (GOOD + "a,1\n", "duplicate", 1, "lines 2 and 6: a"),
        (GOOD.replace("a,0\nb,17", "b,17\na,0"), "order", 2, "line 2: b, where the sample has a"),
        (GOOD.replace("ImageID", "image_id"), "header", 1, "line 1: 'image_id,ans' instead of 'ImageID,ans'"),
        (GOOD.replace("ImageID,ans\n", ""), "header", 1, "line 1: 'a,0' instead of 'ImageID,ans'"),
        (GOOD.replace("c,3", "c,3,3"), "cells", 1, "line 4: 3 instead of 2"),
        (GOOD.replace("c,3\n", "\nc,3\n"), "blank", 1, "line 4"),
        (GOOD.replace("c,3", "c,3.0"), "float", 1, "line 4: '3.0'"),
        (GOOD.replace("c,3", "c,3e0"), "float", 1, "line 4: '3e0'"),
        (GOOD.replace("c,3", "c,03"), "float", 1, "line 4: '03'"),
        (GOOD.replace("c,3", "c,３"), "text", 1, "line 4: '３'"),
        (GOOD.replace("c,3", "c,"), "empty", 1, "line 4: ''"),
        (GOOD.replace("c,3", "c,NaN"), "nan", 1, "line 4: 'NaN'"),
        (GOOD.replace("c,3", "c,None"), "nan", 1, "line 4: 'None'"),
        (GOOD.replace("c,3", "c,-inf"), "nan", 1, "line 4: '-inf'"),
        (GOOD.replace("c,3", "c,worn"), "text", 1, "line 4: 'worn'"),
        (GOOD.replace("c,3", "c,18"), "range", 1, "line 4: '18'"),
        (GOOD.replace("c,3", "c,-1"), "range", 1, "line 4: '-1'"),
        (GOOD.replace("c,3", f"c,{'9' * 5000}"), "range", 1, f"line 4: '{'9' * 5000}'"),
        (GOOD.replace("c,3", "c,3 "), "spaces", 1, "line 4: '3 '"),
        (GOOD.replace("c,3", " c,3"), "spaces", 1, "line 4: ' c'"),
        ("\ufeff" + GOOD, "bom", 1, "line 1"),
        (GOOD.replace("c,3\n", "c,3\r\n"), "line-ends", 1, "1 CRLF, 4 LF"),
        (GOOD.replace("\n", "\r"), "line-ends", 1, "5 CR"),
    ],
)
def test_fault_88_each_fault_by_itself(tmp_path: Path, text: str, what: str, count: int, example: str) -> None:
    """One change to a valid file is reported as one kind of fault with its line."""
    found = faults_of(tmp_path / "s.csv", text)
    assert list(found) == [what]
    assert (found[what][0], found[what][1][0]) == (count, example)


def test_fault_88_all_faults_at_once(tmp_path: Path) -> None:
    """A file with fifteen kinds of faults gets all of them, in the order of the table, with their counts."""
    text = "\ufeffimage,ans\r\nb,1\na,NaN\n\nb,2.0\nc ,18\ne,worn\nf,\ng,1,2\nd,3"  # and the order of b and a
    found = faults_of(tmp_path / "s.csv", text, AnswerSheet(("a", "b", "c", "d", "z")))
    assert {what: count for what, (count, _) in found.items()} == {
        "bom": 1,
        "line-ends": 1,
        "header": 1,
        "blank": 1,
        "cells": 1,
        "missing": 1,
        "extra": 3,
        "duplicate": 1,
        "order": 2,
        "spaces": 1,
        "empty": 1,
        "nan": 1,
        "float": 1,
        "text": 1,
        "range": 1,
    }
    assert list(found) == [what for what in MEANING if what in found]


def test_a_header_of_many_columns_is_shown_in_part(tmp_path: Path) -> None:
    """One of 200,000 columns filled the terminal with 1.5 MB."""
    found = faults_of(tmp_path / "s.csv", "ImageID," + ",".join(f"c{i}" for i in range(200_000)) + "\n")
    (example,) = found["header"][1]
    assert len(example) < 1000
    assert "(1,488,897 characters)" in example


def test_fault_88_text_that_is_not_utf_8(tmp_path: Path) -> None:
    """Bytes of another encoding are reported with their line, and the rest is still checked."""
    found = faults_of(tmp_path / "s.csv", GOOD.replace("c,3", "\ud55c,99").encode("cp949"))
    assert found["encoding"] == (1, ("line 4: byte 0xc7",))
    assert found["range"] == (1, ("line 4: '99'",))
    assert found["missing"] == (1, ("c",))


def test_fault_88_a_quote_that_does_not_end(tmp_path: Path) -> None:
    """An unclosed quote is reported with the line where it begins."""
    found = faults_of(tmp_path / "s.csv", GOOD.replace("c,3", '"c,3'))
    assert found["quoting"][1][0].startswith("line 4: ")
    assert found["missing"] == (2, ("c", "d"))
    assert faults_of(tmp_path / "s.csv", '"' + GOOD)["quoting"][1][0].startswith("line 1: ")


def test_fault_88_an_index_column_is_only_a_wrong_header(tmp_path: Path) -> None:
    """An extra index column, as pandas writes it, is only a wrong header: the rest is read by name."""
    lines = GOOD.splitlines()
    text = "\n".join(["," + lines[0], *(f"{i},{line}" for i, line in enumerate(lines[1:]))])
    assert list(faults_of(tmp_path / "s.csv", text)) == ["header"]


def test_fault_88_swapped_columns_are_only_a_wrong_header(tmp_path: Path) -> None:
    """ans before ImageID is only a wrong header."""
    text = "\n".join(",".join(reversed(line.split(","))) for line in GOOD.splitlines())
    assert list(faults_of(tmp_path / "s.csv", text)) == ["header"]


def test_fault_88_an_empty_file(tmp_path: Path) -> None:
    """An empty file has a wrong header and all rows missing."""
    found = faults_of(tmp_path / "s.csv", b"")
    assert {what: count for what, (count, _) in found.items()} == {"header": 1, "missing": 4}


def test_fault_88_many_cases_are_counted_and_five_shown(tmp_path: Path) -> None:
    """A thousand missing rows are counted, and the first five are named."""
    form = AnswerSheet(tuple(f"{i:04d}" for i in range(1004)))
    text = "ImageID,ans\n" + "".join(f"{i:04d},0\n" for i in range(4))
    assert faults_of(tmp_path / "s.csv", text, form) == {"missing": (1000, ("0004", "0005", "0006", "0007", "0008"))}


def test_fault_18_another_unicode_form_is_a_spelling(tmp_path: Path) -> None:
    """An id in decomposed Unicode is reported as spelling, not as missing and extra."""
    form = AnswerSheet(("é",))
    assert list(faults_of(tmp_path / "s.csv", "ImageID,ans\ne\u0301,1\n", form)) == ["spelling"]


def test_a_byte_order_mark_like_the_samples_is_valid(tmp_path: Path) -> None:
    """If the sample begins with a byte-order mark, the submission may too."""
    form = AnswerSheet(FORM.ids, bom=True)
    assert faults_of(tmp_path / "s.csv", "\ufeff" + GOOD, form) == {}


def test_without_a_sample_any_ids_are_valid(tmp_path: Path) -> None:
    """Without a sample only duplicates, the header and the answers are checked."""
    assert faults_of(tmp_path / "s.csv", "ImageID,ans\nz,1\ny,2\n", None) == {}
    assert list(faults_of(tmp_path / "s.csv", "ImageID,ans\nz,1\nz,20\n", None)) == ["duplicate", "range"]


def test_a_submission_with_faults_is_not_read(tmp_path: Path) -> None:
    """Reading an invalid submission raises E520 with all faults in the details."""
    (tmp_path / "s.csv").write_text(GOOD.replace("c,3", "c,18").replace("a,0", "a,x"))
    with pytest.raises(PredictionError) as caught:
        read_submission(tmp_path / "s.csv", MASK18, like=FORM)
    assert caught.value.code == "E520"
    assert caught.value.message == "s.csv has faults of 2 kinds: text, range"
    assert caught.value.details == ("text (1): line 2: 'x'", "range (1): line 4: '18'")


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    """A missing file is E707, not a fault of the submission."""
    with pytest.raises(FileError) as caught:
        check_submission(tmp_path / "none.csv", FORM, MASK18)
    assert caught.value.code == "E707"


def test_faults_are_rendered_as_a_table() -> None:
    """Each fault has its count and meaning, with its cases below it."""
    faults = (Fault("missing", 1200, ("a", "b")), Fault("nan", 1, ("line 4: 'NaN'",)))
    assert render_faults(faults).splitlines() == [
        "fault    count  meaning",
        "missing  1,200  an image of the sample has no row",
        "    a",
        "    b",
        "nan          1  an answer is NaN, infinite or null",
        "    line 4: 'NaN'",
    ]


@given(
    st.one_of(st.binary(), st.lists(st.sampled_from([*'abcd019,"\n\r \0.', "ImageID,ans\n", "nan", "é"])).map("".join))
)
@settings(deadline=None, max_examples=300)
def test_no_file_breaks_the_check(tmp_path_factory: pytest.TempPathFactory, data: bytes | str) -> None:
    """Any bytes give a list of known faults, and only a file without faults is read."""
    path = tmp_path_factory.getbasetemp() / "any.csv"
    found = faults_of(path, data)
    assert set(found) <= set(MEANING)
    if found:
        with pytest.raises(PredictionError):
            read_submission(path, MASK18, like=FORM)
    else:
        assert read_submission(path, MASK18, like=FORM).ids == FORM.ids


def test_what_is_said_of_a_submission_without_a_sample_is_how_it_is_read(tmp_path: Path) -> None:
    """A table that is a submission itself is read, and nothing will be written like it."""
    labels, heard = LabelSpace.flat(["cat", "dog", "owl"]), Recorder()
    texts = {
        "all 1": "id,label\na,1\nb,1\n",
        "beside": "id,site,label\na,north,cat\nb,south,dog\n",
        "names each": "id,labels\na,cat dog\nb,dog owl\n",
    }
    for seen, text in texts.items():
        path = tmp_path / "sub.csv"
        path.write_text(text)
        check_submission(path, None, labels, listener=heard)
        said = next(one.message for one in heard.notices if seen in one.message)
        assert "written" not in said
        assert "sample" not in said


def test_a_check_reads_the_file_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The answers come with the faults: of a million rows the second reading would take as long as the first."""
    path = tmp_path / "s.csv"
    path.write_text("ImageID,ans\n" + "".join(f"{name},{i % 18}\n" for i, name in enumerate(FORM.ids)))
    reads: list[Path] = []
    read = read_input

    def count(path: Path) -> bytes:
        reads.append(path)
        return read(path)

    monkeypatch.setattr("ensemble.submission.lint.read_input", count)
    found = check_and_read(path, FORM, MASK18)
    assert found.faults == ()
    assert found.answers is not None
    assert found.answers.classes.tolist() == [i % 18 for i in range(len(FORM.ids))]
    assert reads == [path]
    path.write_text("ImageID,ans\n" + "".join(f"{name},18\n" for name in FORM.ids))
    assert check_and_read(path, FORM, MASK18).answers is None


def test_every_row_of_one_faulty_answer_counts(tmp_path: Path) -> None:
    """Answers that were seen before are looked up only where they have no fault."""
    path = tmp_path / "s.csv"
    path.write_text("ImageID,ans\n" + "".join(f"{name},{(0, 99)[i % 2]}\n" for i, name in enumerate(FORM.ids)))
    faults = {fault.what: fault.count for fault in check_submission(path, FORM, MASK18)}
    assert faults == {"range": len(FORM.ids) // 2}


@pytest.mark.parametrize("line", ["sep=;", '"sep=;"', "SEP=;"])
@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_the_line_for_excel_is_read_as_in_the_sample(tmp_path: Path, line: str, end: str) -> None:
    """A sample is a valid submission, with that line and without it; line numbers are those of an editor."""
    bare = GOOD.replace(",", ";").replace("\n", end)
    sample = tmp_path / "sample.csv"
    sample.write_bytes((line + end + bare).encode())
    like = read_sheet(sample, MASK18)
    assert faults_of(tmp_path / "s.csv", line + end + bare, like) == {}
    assert faults_of(tmp_path / "s.csv", bare, like) == {}
    assert faults_of(tmp_path / "s.csv", line + end + bare, None) == {}
    found = faults_of(tmp_path / "s.csv", line + end + bare.replace("ImageID", "x").replace("c;3", f"{end}c;18"), like)
    assert found == {
        "header": (1, ("line 2: 'x;ans' instead of 'ImageID;ans'",)),
        "blank": (1, ("line 5",)),
        "range": (1, ("line 6: '18'",)),
    }
    comma = faults_of(tmp_path / "s.csv", "sep=," + end + bare, like)
    assert comma == {"header": (1, ("line 1: 'sep=,' is for Excel, the sample's says ';'",))}


def test_a_line_for_excel_that_the_sample_lacks_is_the_only_fault(tmp_path: Path) -> None:
    """It was the header, and the header a row with faults of its own."""
    found = faults_of(tmp_path / "s.csv", "sep=,\n" + GOOD)
    assert found == {"header": (1, ("line 1: 'sep=,' is for Excel, which the sample does not have",))}
