"""Columns of tables from elsewhere are joined with classes by name only, and arrays with ids by a list."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from ensemble.errors import EnsError
from ensemble.events import Recorder
from ensemble.labels import LabelSpace
from ensemble.predictions.dataset import Predictions
from ensemble.predictions.external import ExternalOptions, read_external

PETS = LabelSpace.flat(["cat", "wild dog", "fox"])
FOLDERS = LabelSpace.flat(["0", "1", "10", "2"])
VALUES = np.array([[0.5, 0.25, 0.25], [0.0, 0.125, 0.875]])
SHARES = ExternalOptions("probabilities")


def table(path: Path, header: str, values: Any = VALUES) -> Path:
    path.write_text(f"{header}\n" + "".join(f"{i}.jpg,{','.join(map(str, row))}\n" for i, row in enumerate(values)))
    return path


def shares(found: Predictions) -> list[list[float]]:
    return [[round(float(v), 6) for v in row] for row in np.exp(found.logits["identity"].astype(np.float64))]


@pytest.mark.parametrize(
    "header",
    [
        "id,cat,wild dog,fox",
        "image, Cat ,WILD_DOG,Fox",
        "filename,0,1,2",
        "id,class_0,class_1,class_2",
        "id,p0,p1,p2",
        "id,prob_cat,prob_wild_dog,prob_fox",
        "id,cat_prob,wild dog_prob,fox_prob",
        'id,"P(cat)","P(wild dog)","P(fox)"',
        "id,logit_0,logit_1,logit_2",
        "id,Class_1,Class_2,Class_3",
    ],
)
@pytest.mark.parametrize("order", [(0, 1, 2), (2, 0, 1)])
def test_columns_are_found_by_name_in_any_order(tmp_path: Path, header: str, order: tuple[int, ...]) -> None:
    """Numbers, prefixes, suffixes, letter case and spaces name the same classes wherever the columns are."""
    first, *names = header.split(",")
    moved = ",".join([first, *(names[i] for i in order)])
    found = read_external(table(tmp_path / "a.csv", moved, VALUES[:, order]), PETS, options=SHARES)
    assert shares(found) == VALUES.tolist()


@pytest.mark.parametrize(
    ("header", "said"),
    [
        ("id,cat,wild dog,fux", "column 'fux' is not a class (did you mean 'fox'?)"),
        ("id,0,1,3", "column '3' is not a class; no column for the class 'fox'"),
        ("id,1,2,4", "column '4' is not a class; no column for the class 'cat'"),
        ("id,cat,class_1,fox", "column 'class_1' is not a class; no column for the class 'wild dog'"),
    ],
)
def test_a_column_of_no_class_is_named(tmp_path: Path, header: str, said: str) -> None:
    """One unknown name is E541 that quotes it, and a table is never read by position in its stead."""
    with pytest.raises(EnsError, match="E541") as caught:
        read_external(table(tmp_path / "a.csv", header), PETS, options=SHARES)
    assert caught.value.message.endswith(said)


def test_the_index_of_pandas_is_named(tmp_path: Path) -> None:
    """An index that to_csv wrote has an empty name, which the message shows, and the hint says how to leave it out."""
    path = tmp_path / "a.csv"
    path.write_text(",id,cat,wild dog,fox\n0,a.jpg,1,0,0\n")
    with pytest.raises(EnsError, match=r"E541.*column '' is not a class") as caught:
        read_external(path, PETS, options=SHARES)
    assert "index=False" in caught.value.hint


def test_numbers_are_names_where_the_classes_are_numbers(tmp_path: Path) -> None:
    """Columns 0, 1, 2, 10 belong to the folders of these names, and not to their places in the sorted list."""
    values = np.array([[0.1, 0.2, 0.3, 0.4]])
    for header in ("id,0,1,2,10", "id,class_0,class_1,class_2,class_10"):
        found = read_external(table(tmp_path / "a.csv", header, values), FOLDERS, options=SHARES)
        assert shares(found) == [[0.1, 0.2, 0.4, 0.3]]


def test_only_a_table_that_is_told_so_is_read_in_order(tmp_path: Path) -> None:
    """Without a header, or with other names, columns are in the order of the classes only with in_order."""
    headless = tmp_path / "headless.csv"
    headless.write_text("a.jpg,0.5,0.5,0.0\nb.jpg,0.25,0.5,0.25\n")
    other = table(tmp_path / "other.csv", "id,x,y,z")
    for path in (headless, other):
        with pytest.raises(EnsError, match="E541") as caught:
            read_external(path, PETS, options=SHARES)
        assert "--in-order" in caught.value.hint
        heard = Recorder()
        found = read_external(path, PETS, options=ExternalOptions("probabilities", in_order=True), listener=heard)
        assert len(found) == 2
        assert [notice.code for notice in heard.notices] == ["I544"]


def test_columns_beside_the_classes_of_an_out_of_fold_table_are_left_out(tmp_path: Path) -> None:
    """label, fold and patient_id are not classes: they are not read, and a notice says so; another name is an error."""
    path, heard = tmp_path / "a.csv", Recorder()
    path.write_text("image_id,label,fold,cat,wild dog,fox,patient_id\na.jpg,fox,1,0.25,0.25,0.5,p\n")
    assert shares(read_external(path, PETS, options=SHARES, listener=heard)) == [[0.25, 0.25, 0.5]]
    assert [notice.message for notice in heard.notices] == [
        "a.csv: columns that are not classes were not read: label, fold, patient_id"
    ]
    path.write_text(path.read_text().replace("fold", "color"))
    with pytest.raises(EnsError, match=r"E541.*'color' is not a class"):
        read_external(path, PETS, options=SHARES)


def test_semicolons_and_decimal_commas_are_read(tmp_path: Path) -> None:
    """A table of a European spreadsheet has the same numbers."""
    (tmp_path / "a.csv").write_text("id;cat;wild dog;fox\na.jpg;0,5;0,25;0,25\n")
    assert shares(read_external(tmp_path / "a.csv", PETS, options=SHARES)) == [[0.5, 0.25, 0.25]]


def test_ids_of_npz_files_may_be_bytes(tmp_path: Path) -> None:
    """Byte strings are text, and ids of shape (N, 1) are an error that names the shape."""
    np.savez(tmp_path / "a.npz", ids=np.array(["가.jpg".encode(), b"b.jpg"]), identity=VALUES)
    assert read_external(tmp_path / "a.npz", PETS, options=SHARES).ids == ("가.jpg", "b.jpg")
    np.savez(tmp_path / "b.npz", ids=np.array([["a"], ["b"]]), identity=VALUES)
    with pytest.raises(EnsError, match=r"E514.*ids is \(2, 1\), expected \(2,\)"):
        read_external(tmp_path / "b.npz", PETS, options=SHARES)


def test_an_npy_file_takes_its_ids_from_a_list(tmp_path: Path) -> None:
    """Without a list a bare array is E514; with one its rows are those of the list, zeros in front kept."""
    np.save(tmp_path / "a.npy", VALUES)
    (tmp_path / "list.csv").write_text("image,label\n007,0\n010,0\n")
    with pytest.raises(EnsError, match=r"E514.*no ids"):
        read_external(tmp_path / "a.npy", PETS, options=SHARES)
    options = ExternalOptions("probabilities", ids=tmp_path / "list.csv")
    found = read_external(tmp_path / "a.npy", PETS, options=options)
    assert (found.ids, shares(found)) == (("007", "010"), VALUES.tolist())
    (tmp_path / "list.csv").write_text("image,label\n007,0\n")
    with pytest.raises(EnsError, match=r"E514.*\(2, 3\), expected numbers \(1, 3\)"):
        read_external(tmp_path / "a.npy", PETS, options=options)


@pytest.mark.parametrize(
    ("columns", "index", "ids"),
    [
        # polars, and pandas with a range as index, write columns only
        ({"image_id": ["a", "b"], "cat": 0, "wild dog": 1, "fox": 2}, [], ("a", "b")),
        # pandas.DataFrame.set_index("image_id")
        ({"cat": 0, "wild dog": 1, "fox": 2, "image_id": ["a", "b"]}, ["image_id"], ("a", "b")),
        # an index without a name, of ids; and of row numbers that a filter left
        ({"cat": 0, "wild dog": 1, "fox": 2, "__index_level_0__": ["a", "b"]}, ["__index_level_0__"], ("a", "b")),
        ({"id": [7, 8], "0": 0, "1": 1, "2": 2, "__index_level_0__": [3, 9]}, ["__index_level_0__"], ("7", "8")),
    ],
)
def test_parquet_tables_of_pandas_and_polars(
    tmp_path: Path, columns: dict[str, Any], index: list[str], ids: tuple[str, ...]
) -> None:
    """Ids are a column or the index of pandas, whose metadata has the layout that pandas writes."""
    arrays = {name: VALUES[:, part] if isinstance(part, int) else part for name, part in columns.items()}
    stored = pa.table(arrays).replace_schema_metadata({"pandas": json.dumps({"index_columns": index})})
    pq.write_table(stored, tmp_path / "a.parquet")
    found = read_external(tmp_path / "a.parquet", PETS, options=SHARES)
    assert (found.ids, shares(found)) == (ids, VALUES.tolist())


@pytest.mark.parametrize(
    "odd", [pa.array([0, 1], pa.timestamp("s")), pa.array([0, 1], pa.date32()), pa.array([False, True])]
)
def test_a_parquet_column_of_dates_is_no_column_of_numbers(tmp_path: Path, odd: pa.Array) -> None:
    """numpy would give the seconds since 1970, which are logits like any others."""
    columns = {"id": ["a", "b"], "cat": odd, "wild dog": [0.5, 1], "fox": [0.5, 1]}
    pq.write_table(pa.table(columns), tmp_path / "a.parquet")
    with pytest.raises(EnsError, match=r"E514.*cat is .*, expected numbers"):
        read_external(tmp_path / "a.parquet", PETS, options=ExternalOptions("logits"))
