"""Parquet and numpy files are measured before they are unpacked, and rewritten or damaged ones have a code."""

from __future__ import annotations

import io
import os
import time
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from checkpoints.data.table_file import read_training_table
from ensemble.errors import DataError, EnsError, PredictionError
from ensemble.images.face_boxes import read_boxes
from ensemble.labels import LabelSpace
from ensemble.predictions.dataset import (
    COMPLETE,
    Part,
    find_predictions,
    part_path,
    read_part,
    read_predictions,
    write_complete,
    write_part,
)
from ensemble.predictions.external import ExternalOptions, read_external
from ensemble.submit.chunk_file import read_chunk
from ensemble.text.bounded_tables import load_arrays, read_parquet
from tests.support import toys

CLASSES = len(toys.CARD.labels)
IDS = ("a.jpg", "b.jpg", "c.jpg")


def a_folder(folder: Path) -> Path:
    """A member's complete predictions."""
    folder.mkdir(parents=True)
    logits = {"identity": np.arange(3 * CLASSES, dtype=np.float32).reshape(3, CLASSES)}
    write_part(part_path(folder, 0), Part(IDS, logits, "{}", toys.CARD))
    write_complete(folder, [part_path(folder, 0)], 3)
    return folder


def a_long_table() -> pa.Table:
    return pa.table({"id": ["a"] * 3_000_000, "x": np.zeros(3_000_000)})


def a_table_of_one_text() -> pa.Table:
    return pa.table(
        {"id": pa.DictionaryArray.from_arrays(pa.array(np.zeros(40_000, np.int32)), pa.array(["a" * 50_000]))}
    )


def a_table_without_values() -> pa.Table:
    return pa.table({"id": ["a"] * 1_900_000} | {f"c{i}": pa.nulls(1_900_000, pa.float64()) for i in range(40)})


@pytest.mark.parametrize("make", [a_long_table, a_table_of_one_text, a_table_without_values])
def test_a_table_that_unpacks_to_far_more_is_not_unpacked(tmp_path: Path, make: Callable[[], pa.Table]) -> None:
    """Rows, columns and repeated texts are counted in the file's own description: every reader refuses it at once."""
    path = tmp_path / "bomb.parquet"
    pq.write_table(make(), path, compression="zstd")
    assert path.stat().st_size < 1_000_000
    began = time.process_time()
    with pytest.raises(ValueError, match=r"bomb\.parquet has [0-9,]+ bytes"):
        read_parquet(path)
    readers: list[Callable[[Path], object]] = [
        read_boxes,
        read_part,
        read_chunk,
        lambda p: read_external(p, LabelSpace.flat(2), options=ExternalOptions("logits")),
    ]
    for read in readers:
        with pytest.raises(EnsError):
            read(path)
    assert time.process_time() - began < 3


def test_usual_tables_are_read_as_they_are(tmp_path: Path) -> None:
    """Texts, numbers, lists and no rows at all."""
    for table in (
        pa.table({"id": IDS, "x": [1.0, None, 3.0], "t": ["x", None, ""], "b": [b"1", b"2", None]}),
        pa.table({"id": IDS, "x": [[1], [], [2, 3]]}),
        pa.table({"id": pa.array([], pa.string()), "x": pa.array([], pa.float32())}),
    ):
        pq.write_table(table.replace_schema_metadata({"k": "v"}), tmp_path / "t.parquet")
        found = read_parquet(tmp_path / "t.parquet")
        assert found.to_pylist() == table.to_pylist()
        assert found.schema.metadata[b"k"] == b"v"


def test_arrays_that_unpack_to_far_more_are_not_unpacked(tmp_path: Path) -> None:
    """Of a .npz the sizes in its directory count, and of an array the bytes behind its header."""
    path = tmp_path / "a.npz"
    np.savez_compressed(path, ids=np.array(IDS), identity=np.zeros((30_000_000, 3)))
    for read in (load_arrays, lambda p: read_external(p, LabelSpace.flat(3), options=ExternalOptions("logits"))):
        with pytest.raises((ValueError, EnsError), match="would take"):
            read(path)
    np.savez(path, ids=np.array(IDS), identity=np.zeros((3, 3)))
    path.write_bytes(path.read_bytes().replace(b"(3, 3), }   ", b"(3, 99999), }"[:12].ljust(12)))
    with pytest.raises(PredictionError):
        read_external(path, LabelSpace.flat(3), options=ExternalOptions("logits"))


def test_an_array_that_declares_far_more_than_it_has_is_not_made(tmp_path: Path) -> None:
    """The shape in a header is compared with the bytes behind it before numpy makes room for it."""
    header = io.BytesIO()
    declared = {"descr": "<f8", "fortran_order": False, "shape": (10**9, 3)}
    np.lib.format.write_array_header_1_0(header, declared)
    with zipfile.ZipFile(path := tmp_path / "a.npz", "w") as archive:
        archive.writestr("identity.npy", header.getvalue() + b"\0" * 24)
    with pytest.raises(ValueError, match=r"bytes for an array of \(1000000000, 3\)"):
        load_arrays(path)


def test_an_array_is_what_its_content_says(tmp_path: Path) -> None:
    """A .npy that is called .npz and the reverse are told as what they are."""
    np.save(tmp_path / "x.npy", np.zeros((3, 2)))
    np.savez(tmp_path / "y.npz", ids=np.array(IDS), identity=np.zeros((3, 2)))
    (tmp_path / "x.npy").rename(tmp_path / "one.npz")
    (tmp_path / "y.npz").rename(tmp_path / "several.npy")
    (tmp_path / "ids.csv").write_text("id\n" + "\n".join(IDS) + "\n")
    for name, words in (("one.npz", "one array"), ("several.npy", "several arrays")):
        options = ExternalOptions("logits", ids=tmp_path / "ids.csv")
        with pytest.raises(PredictionError, match=words) as caught:
            read_external(tmp_path / name, LabelSpace.flat(2), options=options)
        assert caught.value.code == "E514"


def rewritten(change: Callable[[pa.Table], pa.Table]) -> Callable[[Path], None]:
    """Write a part again as another program would."""

    def rewrite(folder: Path) -> None:
        path = part_path(folder, 0)
        table = pq.read_table(path)
        pq.write_table(change(table).replace_schema_metadata(table.schema.metadata), path)

    return rewrite


def column(name: str, values: pa.Array) -> Callable[[pa.Table], pa.Table]:
    return lambda table: table.set_column(table.column_names.index(name), name, values)


@pytest.mark.parametrize(
    "change",
    [
        lambda t: t.append_column("extra", pa.array([1, 2, 3])),
        lambda t: t.append_column("words", pa.array(["x", "y", "z"])),
        lambda t: t.append_column("identity", t.column("identity")),
        lambda t: t.drop_columns(["id"]),
        lambda t: t.drop_columns(["identity"]),
        column("id", pa.array([1, 2, 3])),
        column("id", pa.array(["a.jpg", None, "c.jpg"])),
        column("id", pa.array([["a"], ["b"], ["c"]])),
        column("identity", pa.array([[0.0] * CLASSES] * 3)),
        column("identity", pa.array([[0.0] * CLASSES] * 3, pa.list_(pa.float64(), CLASSES))),
        column("identity", pa.array([[0.0] * CLASSES, None, [0.0] * CLASSES], pa.list_(pa.float32(), CLASSES))),
        column("identity", pa.array([[0.0] * (CLASSES - 1)] * 3, pa.list_(pa.float32(), CLASSES - 1))),
        column("identity", pa.array([[None] * CLASSES] * 3, pa.list_(pa.float32(), CLASSES))),
        column("identity", pa.array([1.0, 2.0, 3.0])),
    ],
)
def test_a_part_that_another_program_wrote_is_refused(tmp_path: Path, change: Callable[[pa.Table], pa.Table]) -> None:
    """Another column, other types and empty values are E514: predict computes the part again."""
    folder = a_folder(tmp_path / "toy")
    rewritten(change)(folder)
    write_complete(folder, [part_path(folder, 0)], 3)
    with pytest.raises(PredictionError) as caught:
        read_predictions(folder)
    assert caught.value.code == "E514"


@pytest.mark.parametrize(
    "text",
    [
        *("", "{", "[]", "null", "3", '{"rows": 3}', '{"rows": 3, "parts": []}', '{"rows": 3, "parts": 7}'),
        '{"rows": 3, "rows": 4, "parts": []}',
        '{"rows": 1e999, "parts": [{"name": "part-00000.parquet", "sha256": "0"}]}',
        '{"rows": 3, "parts": [{"name": "../x/part-00000.parquet", "sha256": "0"}]}',
        '{"rows": 3, "parts": [{"name": "/etc/passwd", "sha256": "0"}]}',
        '{"rows": 3, "parts": ["part-00000.parquet"]}',
        '{"rows": 3, "parts": [{"name": "part-00000.parquet", "sha256": "0"}], "missing": 4}',
    ],
)
def test_a_damaged_list_of_parts_has_a_code(tmp_path: Path, text: str) -> None:
    """Whatever is in _complete.json: E514, and no file elsewhere is opened."""
    folder = a_folder(tmp_path / "toy")
    (folder / COMPLETE).write_text(text)
    with pytest.raises(PredictionError) as caught:
        read_predictions(folder)
    assert caught.value.code == "E514"


@pytest.mark.parametrize("make", [os.mkfifo, os.mkdir, lambda p: os.symlink("nowhere", p)])
def test_a_list_of_parts_that_is_no_file_has_a_code(tmp_path: Path, make: Callable[[Path], None]) -> None:
    """A FIFO is not waited for; a folder and a link that leads nowhere are named."""
    folder = a_folder(tmp_path / "toy")
    (folder / COMPLETE).unlink()
    make(folder / COMPLETE)
    assert find_predictions(tmp_path) == (folder,)
    with pytest.raises(PredictionError) as caught:
        read_predictions(folder)
    assert caught.value.code == "E514"


@pytest.mark.parametrize("make", [os.mkfifo, os.mkdir, lambda p: os.symlink("nowhere", p)])
def test_a_part_that_is_no_file_has_a_code(tmp_path: Path, make: Callable[[Path], None]) -> None:
    """As the list of parts."""
    folder = a_folder(tmp_path / "toy")
    part_path(folder, 0).unlink()
    make(part_path(folder, 0))
    with pytest.raises(PredictionError) as caught:
        read_predictions(folder)
    assert caught.value.code == "E514"


def test_numbers_beyond_float32_are_refused(tmp_path: Path) -> None:
    """They would become infinite without a word."""
    (tmp_path / "m.csv").write_text("id,0,1\na,1e300,2\nb,1,2\n")
    with pytest.raises(PredictionError) as caught:
        read_external(tmp_path / "m.csv", LabelSpace.flat(2), options=ExternalOptions("logits"))
    assert caught.value.code == "E505"


def _not_utf8(values: list[bytes]) -> pa.Array:
    return pa.array(values, pa.binary()).view(pa.string())


def test_text_that_is_not_utf8_is_refused(tmp_path: Path) -> None:
    """pyarrow reads any bytes as text, and fails only where Python asks for them."""
    path = tmp_path / "m.parquet"
    pq.write_table(pa.table({"id": _not_utf8([b"a", b"\xf9"]), "0": [0.1, 0.2], "1": [0.3, 0.4]}), path)
    with pytest.raises(pa.ArrowInvalid, match="UTF8"):
        read_parquet(path)
    with pytest.raises(PredictionError) as raised:
        read_external(path, LabelSpace.flat(2), options=ExternalOptions("logits"))
    assert raised.value.code == "E514"
    with pytest.raises(DataError) as refused:
        read_training_table(path)
    assert refused.value.code == "E322"
    with pytest.raises(DataError) as faces:
        read_boxes(path)
    assert faces.value.code == "E350"


def test_a_date_that_python_does_not_have_is_refused(tmp_path: Path) -> None:
    """The year 292277 is in Arrow's range, not in that of datetime."""
    path = tmp_path / "m.parquet"
    late = pa.array([2**62, 2**61], pa.timestamp("us"))
    pq.write_table(pa.table({"id": late, "0": [0.1, 0.2], "1": [0.3, 0.4]}), path)
    with pytest.raises(DataError) as raised:
        read_external(path, LabelSpace.flat(2), options=ExternalOptions("logits"))
    assert raised.value.code == "E322"
    with pytest.raises(DataError) as refused:
        read_training_table(path)
    assert refused.value.code == "E322"


def test_a_training_table_that_unpacks_to_far_more_is_not_unpacked(tmp_path: Path) -> None:
    """Parquet's dictionary stores a repeated text once."""
    path = tmp_path / "train.parquet"
    pq.write_table(pa.table({"id": ["x" * 10_000] * 100_000, "label": [1] * 100_000}), path)
    assert path.stat().st_size < 1_000_000
    with pytest.raises(DataError, match="in memory") as raised:
        read_training_table(path)
    assert raised.value.code == "E322"


def test_an_array_that_is_twice_in_an_archive_is_refused(tmp_path: Path) -> None:
    """The last one was taken without a word."""
    path = tmp_path / "a.npz"
    with warnings.catch_warnings(), zipfile.ZipFile(path, "w") as archive:
        warnings.simplefilter("ignore", UserWarning)  # of the name that is there twice
        for values in (np.array(IDS), np.zeros((3, 3)), np.ones((3, 3))):
            sink = io.BytesIO()
            np.save(sink, values)
            archive.writestr("ids.npy" if values.ndim == 1 else "identity.npy", sink.getvalue())
    with pytest.raises(PredictionError, match=r"identity\.npy is in it 2 times") as caught:
        read_external(path, LabelSpace.flat(3), options=ExternalOptions("logits"))
    assert caught.value.code == "E514"


def test_a_text_of_megabytes_is_refused(tmp_path: Path) -> None:
    """An id of 200 MB takes a file of 7 KB, and took minutes; an image in a cell is no text."""
    pq.write_table(pa.table({"id": ["x" * 2_000_000], "image": [bytes(2_000_000)]}), tmp_path / "a.parquet")
    with pytest.raises(ValueError, match="a text of column id has 2,000,000 bytes"):
        read_parquet(tmp_path / "a.parquet")
    pq.write_table(pa.table({"id": ["x" * 1000], "image": [bytes(2_000_000)]}), tmp_path / "a.parquet")
    assert read_parquet(tmp_path / "a.parquet").num_rows == 1


def test_a_column_that_is_there_twice_is_called_so(tmp_path: Path) -> None:
    """It was said to be no class."""
    names = ["id", "cat", "dog", "owl", "cat"]
    columns = [pa.array(IDS), *(pa.array([0.1, 0.2, 0.3]) for _ in names[1:])]
    pq.write_table(pa.table(columns, names=names), tmp_path / "a.parquet")
    with pytest.raises(PredictionError, match="column 'cat' is there twice"):
        read_external(tmp_path / "a.parquet", LabelSpace.flat(["cat", "dog", "owl"]), options=ExternalOptions("logits"))
