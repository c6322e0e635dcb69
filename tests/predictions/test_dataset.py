"""Predictions are Parquet files that other tools open, and damage is always detected."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from ensemble.errors import PredictionError
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
from tests.support import toys


def logits(rows: int, *, seed: int = 0) -> dict[str, np.ndarray]:
    generator = np.random.default_rng(seed)
    return {view: generator.normal(size=(rows, 18)).astype(np.float32) for view in ("identity", "hflip")}


def write_member(folder: Path, *, member: str = "toy", rows: tuple[int, ...] = (3, 2)) -> Path:
    """A member's finished predictions in ``len(rows)`` parts."""
    start = 0
    for index, count in enumerate(rows):
        ids = tuple(f"{i}.jpg" for i in range(start, start + count))
        write_part(part_path(folder, index), Part(ids, logits(count, seed=index), "{}", toys.card(member)))
        start += count
    write_complete(folder, [part_path(folder, i) for i in range(len(rows))], start)
    return folder


def test_predictions_are_read_as_they_were_written(tmp_path: Path) -> None:
    """Two parts are read as one member: ids in order, bit-identical logits, read-only arrays."""
    found = read_predictions(write_member(tmp_path / "toy"))
    assert found.ids == ("0.jpg", "1.jpg", "2.jpg", "3.jpg", "4.jpg")
    assert (found.member, found.group, found.fold) == ("toy", "toy", None)
    expected = np.concatenate([logits(3, seed=0)["hflip"], logits(2, seed=1)["hflip"]])
    assert np.array_equal(found.logits["hflip"], expected)
    assert not found.logits["identity"].flags.writeable


def test_other_tools_open_the_folder_as_it_is(tmp_path: Path) -> None:
    """pyarrow reads the folder as one table with an id column and a list of 18 floats per view."""
    table = pq.read_table(write_member(tmp_path / "toy"))
    assert table.column_names == ["id", "identity", "hflip"]
    assert str(table.schema.field("hflip").type) == "fixed_size_list<element: float not null>[18]"
    assert len(table) == 5


def test_a_part_always_has_the_same_bytes(tmp_path: Path) -> None:
    """Writing the same rows twice gives identical files."""
    one, other = (write_member(tmp_path / name) for name in ("a", "b"))
    assert part_path(one, 0).read_bytes() == part_path(other, 0).read_bytes()
    assert (one / COMPLETE).read_bytes() == (other / COMPLETE).read_bytes()


def test_unfinished_predictions_are_refused(tmp_path: Path) -> None:
    """Parts without ``_complete.json`` are E513."""
    folder = write_member(tmp_path / "toy")
    (folder / COMPLETE).unlink()
    with pytest.raises(PredictionError, match="E513") as caught:
        read_predictions(folder)
    assert caught.value.hint == "run the command that wrote them again: it resumes"


@pytest.mark.parametrize("place", [40, 200, -200])
def test_a_flipped_bit_is_detected_anywhere(tmp_path: Path, place: int) -> None:
    """A part with one changed byte in data, page or footer is E514."""
    folder = write_member(tmp_path / "toy")
    data = bytearray(part_path(folder, 0).read_bytes())
    data[place] ^= 1
    part_path(folder, 0).write_bytes(data)
    with pytest.raises(PredictionError, match="E514"):
        read_predictions(folder)


def test_a_missing_or_repeated_part_is_detected(tmp_path: Path) -> None:
    """A missing part, and one that is listed twice, are both E514."""
    folder = write_member(tmp_path / "toy")
    complete = json.loads((folder / COMPLETE).read_text())
    complete["parts"][1] = complete["parts"][0]
    (folder / COMPLETE).write_text(json.dumps(complete))
    with pytest.raises(PredictionError, match=r"E514.*5 images"):
        read_predictions(folder)
    part_path(folder, 0).unlink()
    with pytest.raises(PredictionError, match=r"E514.*is missing") as caught:
        read_predictions(folder)
    # ens train, distil and submit write such folders too
    assert caught.value.hint.startswith("run the command that wrote it again")


def test_images_without_a_row_that_are_one_text_are_no_list_of_letters(tmp_path: Path) -> None:
    """``"missing": "abc"`` was read as the three images a, b and c."""
    folder = write_member(tmp_path / "toy")
    complete = json.loads((folder / COMPLETE).read_text())
    (folder / COMPLETE).write_text(json.dumps(complete | {"missing": "abc"}))
    with pytest.raises(PredictionError, match="missing is the text 'abc', expected a list"):
        read_predictions(folder)
    (folder / COMPLETE).write_text(json.dumps(complete | {"missing": ["abc"]}))
    assert read_predictions(folder).missing == ("abc",)


@pytest.mark.parametrize(
    "content",
    [
        *("", "{}", "[]", '{"parts": [{}], "rows": 1}', '{"schema": true}'),
        '{"parts": [{"name": "part-00000.parquet", "sha256": "x"}], "rows": 2.5}',
        '{"parts": [{"name": "part-00000.parquet", "sha256": "x"}], "rows": "2"}',
        '{"parts": [{"name": "part-00000.parquet", "sha256": "x"}], "rows": 2, "missing": [3]}',
        '{"parts": [{"name": "a\\u0000b", "sha256": "x"}], "rows": 2}',
        '{"parts": [{"name": "part-00000.parquet", "sha256": "x"}], "rows": 2, "missing": "abc"}',
        '{"parts": [{"name": "part-00000.parquet", "sha256": "x"}], "rows": 2, "missing": {"a": 1}}',
        '{"parts": [{"name": "part-00000.parquet", "sha256": 3}], "rows": 2}',
        '{"parts": [{"name": 0, "sha256": "x"}], "rows": 2}',
        '{"parts": {"name": "part-00000.parquet", "sha256": "x"}, "rows": 2}',
    ],
)
def test_a_broken_marker_is_not_a_traceback(tmp_path: Path, content: str) -> None:
    """Any invalid content of ``_complete.json`` is E514."""
    folder = write_member(tmp_path / "toy")
    (folder / COMPLETE).write_text(content)
    with pytest.raises(PredictionError, match=r"E514.*_complete\.json cannot be read"):
        read_predictions(folder)


def test_a_parquet_file_of_something_else_is_refused(tmp_path: Path) -> None:
    """A Parquet file without a card is E514."""
    import pyarrow as pa

    pq.write_table(pa.table({"id": ["a"]}), tmp_path / "part-00000.parquet")
    with pytest.raises(PredictionError, match="E514"):
        read_part(tmp_path / "part-00000.parquet")


def test_a_folder_is_resolved_to_the_members_in_it(tmp_path: Path) -> None:
    """A member's folder is found as itself, and the folder above it as all of its members, by name."""
    second, first = write_member(tmp_path / "b", member="b"), write_member(tmp_path / "a", member="a")
    assert find_predictions(first) == (first,)
    assert find_predictions(tmp_path) == (first, second)
    with pytest.raises(PredictionError, match="E514"):
        find_predictions(tmp_path / "none")
