"""CSV files as people have them."""

from __future__ import annotations

import csv
import io
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ensemble.errors import DataError, FileError
from ensemble.events import Recorder
from ensemble.text.csv_table import Table, parse_table, read_table, render_table

INFO = Path("info.csv")
# a NUL is not text, a lone surrogate no Unicode; a BOM in front of the header would be taken for the file's own
cells = st.text(st.characters(exclude_characters="\0\ufeff", exclude_categories=["Cs"]), max_size=8)
tables = st.integers(1, 4).flatmap(
    lambda width: st.tuples(
        st.lists(cells, min_size=width, max_size=width, unique=True),
        st.lists(st.lists(cells, min_size=width, max_size=width), max_size=5),
    )
)


@given(tables, st.sampled_from(["\n", "\r\n"]))
def test_fault_17_what_is_written_is_read_back(table: tuple[list[str], list[list[str]]], newline: str) -> None:
    """Commas, quotes, line breaks, emoji and empty cells come back as they were, here and in Python's own reader."""
    header, rows = table
    data = render_table(header, rows, newline=newline)
    found = parse_table(data, INFO)
    assert found.header == tuple(header)
    assert found.rows == tuple(map(tuple, rows))
    assert list(csv.reader(io.StringIO(data.decode(), newline=""))) == [header, *rows]


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "cp949", "utf-16"])
@pytest.mark.parametrize("newline", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize("end", ["", "\n", "\n\n\n"])
def test_fault_30_tables_from_other_programs(tmp_path: Path, encoding: str, newline: str, end: str) -> None:
    """With or without BOM, in Korean encoding, with any line ends and empty lines, the cells are the same."""
    path = tmp_path / "info.csv"
    path.write_bytes(("ImageID,ans\n한글.jpg,0\n\nb.jpg,1" + end).replace("\n", newline).encode(encoding))
    recorder = Recorder()
    table = read_table(path, listener=recorder)
    assert table.header == ("ImageID", "ans")
    assert table.rows == (("한글.jpg", "0"), ("b.jpg", "1"))
    assert table.lines == (2, 4)
    assert [notice.code for notice in recorder.notices] == ([] if encoding.startswith("utf-8") else ["I328"])


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"", "the file is empty"),
        (b"\n\n", "the file is empty"),
        (b"\xef\xbb\xbf", "the file is empty"),
        (b"a,b\n1,2\n\n1,2,3\n", "line 4 has 3 cells, the header has 2"),
        (b"a,b\n1\n", "line 2 has 1 cells, the header has 2"),
        (b"a,b,a\n", "a column name is repeated: a, b, a"),
        (b'a\n"1\n', "line 2: unexpected end of data"),
        (b'a\n"1"2\n', "line 2: "),
        (b"a\n\0\n", "not a text file"),
        (b"\xff\xfea\0,\0b\0\n\0\0", "neither UTF-8 nor cp949 text"),
        (b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR\xff", "it is a PNG image, not text"),
        (b"PAR1\x15\x04", "it is a Parquet file, not text"),
        (b"PK\x03\x04\x14", "it is a zip archive, such as .xlsx and .npz, not text"),
        (b"\x81\xff\xff", "neither UTF-8 nor cp949 text"),
        (b"a\n" + b"x" * 200_000, "line 2: field larger than field limit"),
    ],
    ids=lambda value: repr(value)[:20],
)
def test_fault_30_broken_tables_are_told_by_line(data: bytes, said: str) -> None:
    """Every way to be no table is E322, which names the file, what is wrong and the line as an editor counts it."""
    with pytest.raises(DataError, match="E322") as caught:
        parse_table(data, INFO)
    assert caught.value.message.startswith(f"info.csv: {said}")
    assert caught.value.path == INFO


@pytest.mark.parametrize("name", ["PAR1", "PAR10_score", "PK", "GIF89a", "BM"])
def test_a_column_may_begin_with_the_letters_of_a_binary_format(name: str) -> None:
    """A text is a table whatever its first letters are: the bytes after them tell, not these alone."""
    table = parse_table(f"{name},ans\na,0\n".encode(), INFO)
    assert table.header == (name, "ans")
    assert table.column(name) == ("a",)


def test_fault_30_a_missing_column_lists_those_there_are() -> None:
    """Asking for a column that is not there is E322, which lists the columns there are."""
    with pytest.raises(DataError, match=r'E322.*"ImageID" not found; have: image_id, ans'):
        parse_table(b"image_id,ans\na,0\n", INFO).column("ImageID")


def test_fault_21_repeated_ids_are_told_by_line() -> None:
    """A repeated value is E313 with both line numbers; an empty one is E322."""
    table = parse_table(b"id,n\na,1\nb,2\na,3\nc,4\nb,5\na,6\n", INFO)
    with pytest.raises(DataError, match=r"E313.*2 duplicate ids: a \(lines 2, 4, 7\); b \(lines 3, 6\)"):
        table.without_duplicates("id")
    assert table.without_duplicates("n") == ("1", "2", "3", "4", "5", "6")
    with pytest.raises(DataError, match=r"E322.*column id is empty in line 3"):
        parse_table(b"id,n\na,1\n,2\n", INFO).without_duplicates("id")


def test_unreadable_tables_are_file_errors(tmp_path: Path) -> None:
    """A table that is missing, or is a folder, is E707."""
    for path in (tmp_path, tmp_path / "missing.csv"):
        with pytest.raises(FileError, match="E707"):
            read_table(path)


def test_columns_are_found_by_their_name_before_spaces_are_dropped() -> None:
    """The exact name comes first, then one without spaces around it; a name of two columns finds none."""
    header = ("a", " a", "b ", "c", " d", "d ")
    table = Table(INFO, header, (tuple("123456"),), (2,))
    assert [table.column(name) for name in ("a", " a", "b", "b ", "c")] == [("1",), ("2",), ("3",), ("3",), ("4",)]
    with pytest.raises(DataError, match="E322"):
        table.column("d")
    assert replace(table, header=tuple("fedcba")).column("a") == ("6",)
    assert Table(INFO, header, table.rows, (2,)) == table


def test_the_columns_of_a_wide_table_are_found_in_linear_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """The names are counted once, not for each column: 10,000 of them took seconds."""
    calls: list[int] = []

    class Counted(Counter[str]):
        def __init__(self, names: Sequence[str]) -> None:
            calls.append(len(names))
            super().__init__(names)

    monkeypatch.setattr("ensemble.text.csv_table.Counter", Counted)
    header = tuple(f"c{i}" for i in range(300))
    table = Table(INFO, header, (header,), (2,))
    assert [table.place(name) for name in header] == list(range(300))
    assert calls == [300, 300]


@pytest.mark.parametrize("line", ["sep=,", "sep=;", "SEP=;", '"sep=\t"', "sep=|"])
@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_the_line_that_tells_excel_the_separator_is_no_header(line: str, end: str) -> None:
    """The cells are separated as it says, it is told, and line numbers are those of an editor."""
    sign = line.strip('"')[4]
    text = end.join([line, f"id{sign}a", f"1{sign}2", ""])
    listener = Recorder()
    table = parse_table(text.encode("utf-8-sig"), Path("x.csv"), listener=listener)
    assert (table.header, table.rows, table.delimiter) == (("id", "a"), (("1", "2"),), sign)
    assert [notice.code for notice in listener.notices] == ["I380"]
    with pytest.raises(DataError, match="line 4 has 1 cells"):
        parse_table((text + "1" + end).encode(), Path("x.csv"))


def test_a_header_may_begin_with_sep() -> None:
    """A column called sep is one, with or without an equals sign, where cells follow."""
    assert parse_table(b"sep,a\n1,2\n", Path("x.csv")).header == ("sep", "a")
    assert parse_table(b"sep=,a\n1,2\n", Path("x.csv")).header == ("sep=", "a")


def test_cells_between_spaces_are_told() -> None:
    """write.table of R separates by spaces; the hint says so, and not that a quote does not end."""
    with pytest.raises(DataError) as caught:
        parse_table(b'"id" "a"\n"1" "x" 2\n', Path("x.csv"))
    assert "separated by spaces" in caught.value.hint
    with pytest.raises(DataError) as caught:
        parse_table(b'id,a\n"1"x,2\n', Path("x.csv"))
    assert "a quote that does not end" in caught.value.hint


@pytest.mark.parametrize(
    ("text", "hint"),
    [
        ("id,a\n1,2\n,\n,\n", "remove the rows of empty cells, 2 in all"),
        ("id,a\n1,2\n,3\n,4\n", "give these rows an id; 2 have none"),
        ("id,a\n1,2\n,3\n,\n", "give these rows an id; 2 have none"),
    ],
)
def test_rows_without_an_id_are_told_apart(text: str, hint: str) -> None:
    """Blank lines of a spreadsheet are rows of empty cells: they are to be removed, others to be given an id."""
    with pytest.raises(DataError, match="column id is empty in line") as caught:
        parse_table(text.encode(), Path("x.csv")).without_duplicates("id")
    assert caught.value.hint.startswith(hint)


def test_a_remark_before_the_header_is_told() -> None:
    """What pandas calls a comment is the header here; a header that is short for another reason has no such hint."""
    for text, told in (("# made by x\nid,a\n1,2\n", True), ("id\n1,2\n", False), ("# id,a\n1\n", False)):
        with pytest.raises(DataError, match="cells, the header has") as caught:
            parse_table(text.encode(), Path("x.csv"))
        assert ("remove the remark in line 1" in caught.value.hint) is told


@pytest.mark.parametrize("mark", [";", "\t", "|"])
def test_a_header_with_a_comma_in_a_name_is_divided_as_its_lines_are(mark: str) -> None:
    """Excel quotes a comma only where commas separate the cells; decimal commas do not change that."""
    text = mark.join(["id", "grass, dry", "leaf"]) + "\n" + mark.join(["a", "0,5", "0,5"]) + "\n"
    table = parse_table(text.encode(), Path("x.csv"))
    assert (table.header, table.rows) == (("id", "grass, dry", "leaf"), (("a", "0,5", "0,5"),))
    plain = parse_table(f"id,a{mark}b,c\n1,2,3\n".encode(), Path("x.csv"))
    assert plain.header == ("id", f"a{mark}b", "c")


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ('[{"id": "a.jpg", "label": 0}, {"id": "b.jpg", "label": 1}]', "JSON,"),
        ('{\n  "a.jpg": "cat",\n  "b.jpg": "dog"\n}\n', "JSON,"),
        ('{"a.jpg": "cat"}\n', "JSON,"),
        ('{"id": "a.jpg", "label": 0}\n{"id": "b.jpg", "label": 1}\n', "lines of JSON,"),
    ],
)
def test_json_is_called_so(text: str, kind: str) -> None:
    """Its first line is not taken for a header; a header in brackets is one."""
    with pytest.raises(DataError, match=f"it is {kind} not a table") as caught:
        parse_table(text.encode(), Path("x.csv"))
    assert ("lines=True" in caught.value.hint) is ("lines" in kind)
    assert parse_table(b"[id],{a}\n1,2\n", Path("x.csv")).header == ("[id]", "{a}")
