"""Without pyarrow parts are numpy arrays: as exact, as resumable, and as well guarded as those of Parquet."""

from __future__ import annotations

import io
import sys
from pathlib import Path

import numpy as np
import pytest

from ensemble.errors import EnsError, FileError, OptionError, PredictionError
from ensemble.images.face_boxes import read_boxes
from ensemble.images.views import parse_views
from ensemble.predict import parts
from ensemble.predict.options import RunOptions
from ensemble.predict.predict import predict
from ensemble.predictions import part_file
from ensemble.predictions.dataset import read_part, read_predictions
from ensemble.submit.chunk_file import OPEN, Chunk, read_chunk, write_chunk
from tests.support import toys

NAMES = [f"{i:02d}.jpg" for i in range(11)]


@pytest.fixture
def images(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Eleven pictures: two parts of four rows and one of three."""
    monkeypatch.setattr(parts, "PART_ROWS", 4)
    toys.write_pictures(tmp_path / "images", NAMES)
    return tmp_path / "images"


def hide(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the program find no pyarrow."""
    monkeypatch.setitem(sys.modules, "pyarrow", None)


def run(images: Path, folder: Path) -> int:
    """Predict with one model and a mirrored view, and return how many rows were computed."""
    model = toys.write_model(images.parent / "models", toys.card("a"))
    done = predict([model], images, folder, views=parse_views("hflip"), options=RunOptions(device="cpu"))
    return done.members[0].computed


def test_the_predictions_are_those_of_parquet(images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ids, logits and hash are equal to the last bit, and pyarrow makes no difference to reading them."""
    run(images, tmp_path / "parquet")
    with monkeypatch.context() as without:
        hide(without)
        run(images, tmp_path / "arrays")
        found = read_predictions(tmp_path / "arrays" / "a")
    expected = read_predictions(tmp_path / "parquet" / "a")
    assert sorted(path.suffix for path in (tmp_path / "arrays/a").glob("part-*")) == [".npz"] * 3
    assert (found.ids, found.sha256) == (expected.ids, expected.sha256)
    assert all(np.array_equal(found.logits[view], expected.logits[view]) for view in ("identity", "hflip"))
    assert read_predictions(tmp_path / "arrays" / "a").sha256 == expected.sha256


@pytest.mark.parametrize("later", [True, False])
def test_a_run_resumes_with_and_without_pyarrow(
    images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, later: bool
) -> None:
    """Finished parts are kept, the lost one is computed again in the same form, with the same bytes."""
    with monkeypatch.context() as without:
        hide(without)
        assert run(images, tmp_path / "out") == 11
    lost = tmp_path / "out/a/part-00001.npz"
    before = lost.read_bytes()
    lost.unlink()
    if not later:
        hide(monkeypatch)
    assert run(images, tmp_path / "out") == 4
    assert lost.read_bytes() == before
    assert not list((tmp_path / "out").rglob("*.parquet"))


@pytest.mark.parametrize("place", [0.1, 0.4, 0.7, 0.99])
def test_a_flipped_bit_is_found(images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: float) -> None:
    """A damaged part is E514 for a reader, and computed again by the run."""
    hide(monkeypatch)
    run(images, tmp_path / "out")
    part = tmp_path / "out/a/part-00000.npz"
    whole = part.read_bytes()
    data = bytearray(whole)
    data[int(place * len(data))] ^= 0x10
    part.write_bytes(bytes(data))
    with pytest.raises(PredictionError) as caught:
        read_predictions(tmp_path / "out" / "a")
    assert caught.value.code == "E514"
    run(images, tmp_path / "out")
    assert part.read_bytes() == whole


def test_what_another_program_wrote_is_refused(tmp_path: Path) -> None:
    """Arrays without the program's own record, of another shape, or none at all are E514."""
    path = tmp_path / "part-00000.npz"
    np.save(encoded := io.BytesIO(), np.zeros(3))
    about = {"ids": ["a"], "filled": [], "ens.card": toys.card().to_json(), "ens.origin": "{}"}
    for write in (
        lambda: np.savez(path, ids=np.array(["a"]), identity=np.zeros((1, 18))),
        lambda: path.write_bytes(encoded.getvalue()),
        lambda: path.write_bytes(b"PK"),
        lambda: part_file.write_arrays(path, {"identity": np.zeros((1, 17), np.float32)}, about, sync=False),
        lambda: part_file.write_arrays(path, {"identity": np.zeros((1, 18))}, about, sync=False),
        lambda: part_file.write_arrays(path, {}, about, sync=False),
    ):
        write()
        with pytest.raises(PredictionError, match=r"part-00000\.npz cannot be read as predictions"):
            read_part(path)


def test_parquet_is_asked_for_by_its_package(images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Parts and boxes of Parquet are E205 with the command that installs pyarrow, not a damaged file."""
    run(images, tmp_path / "out")
    (tmp_path / "boxes.parquet").write_bytes(b"PAR1")
    hide(monkeypatch)
    reads = (lambda: read_boxes(tmp_path / "boxes.parquet"), lambda: read_predictions(tmp_path / "out" / "a"))
    for read in reads:
        with pytest.raises(OptionError, match="needs pyarrow, which is not installed") as caught:
            read()
        assert caught.value.code == "E205"
        assert str(caught.value.hint).endswith(" pyarrow")
    with pytest.raises(EnsError, match="needs pyarrow"):
        run(images, tmp_path / "out")


def test_chunks_are_the_same_rows(tmp_path: Path) -> None:
    """A chunk of an early exit is read as it was written; one whose columns do not fit is refused."""
    logits = np.arange(12, dtype=np.float32).reshape(1, 2, 6)
    chunk = Chunk(("a", "b"), np.array([3, OPEN]), np.array([1, 2]), logits, "origin")
    write_chunk(tmp_path / "chunk-00000.npz", chunk)
    found = read_chunk(tmp_path / "chunk-00000.npz")
    assert (found.ids, found.origin) == (chunk.ids, chunk.origin)
    for one, other in ((found.classes, chunk.classes), (found.passes, chunk.passes), (found.logits, logits)):
        assert np.array_equal(one, other)
    write_chunk(tmp_path / "chunk-00001.npz", Chunk(("a",), chunk.classes, chunk.passes, logits))
    with pytest.raises(PredictionError, match="other lengths"):
        read_chunk(tmp_path / "chunk-00001.npz")


def test_parts_of_both_kinds_are_not_mixed(images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A Parquet part beside those of arrays would be taken for results by other tools: E704."""
    with monkeypatch.context() as without:
        hide(without)
        run(images, tmp_path / "out")
    (tmp_path / "out/a/part-00000.parquet").write_bytes(b"PAR1")
    with pytest.raises(FileError, match=r"part-00000\.parquet is not a part of this run") as caught:
        run(images, tmp_path / "out")
    assert caught.value.code == "E704"
