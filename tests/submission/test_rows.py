"""Several images become one row: their probabilities are combined by mean, max or noisy-or."""

from __future__ import annotations

import time
from math import prod
from pathlib import Path

import numpy as np
import pytest

from ensemble.__main__ import run
from ensemble.errors import EnsError
from ensemble.events import Recorder
from ensemble.submission.rows import Combination, RowMap, combine_rows, read_row_map

P = np.array([[0.2, 0.8], [0.6, 0.4], [0.9, 0.1], [0.5, 0.5]])
IDS = ("a.png", "b.png", "c.png", "d.png")
WEIGHTS = np.array([1.0, 3.0, 2.0, 1.0])
MAP = (("a", "b", "c", "d"), ("x", "x", "y", "x"))


def by_hand(how: Combination, row: list[int]) -> list[float]:
    weights = [WEIGHTS[i] for i in row]
    if how == "mean":
        return [sum(w * P[i, c] for w, i in zip(weights, row, strict=True)) / sum(weights) for c in (0, 1)]
    if how == "max":
        return [max(P[i, c] for i in row) for c in (0, 1)]
    return [1 - prod((1 - P[i, c]) ** w for w, i in zip(weights, row, strict=True)) for c in (0, 1)]


@pytest.mark.parametrize("how", ["mean", "max", "noisy-or"])
def test_rows_are_combined_as_the_formula_says(how: Combination) -> None:
    """Labels are combined one by one; exclusive classes are normalized; of a positive class the other gets the rest."""
    row_map = RowMap(*MAP, WEIGHTS, how)
    wanted = np.array([by_hand(how, [0, 1, 3]), by_hand(how, [2])])
    heard = Recorder()
    found = combine_rows(IDS, P, row_map, independent=True, listener=heard)
    np.testing.assert_allclose(found, wanted, rtol=1e-12)
    assert [notice.code for notice in heard.notices] == ["I381", "I547"]
    exclusive = combine_rows(IDS, P, row_map)
    np.testing.assert_allclose(exclusive, wanted / wanted.sum(axis=1, keepdims=True), rtol=1e-12)
    positive = combine_rows(IDS, P, row_map, positive=1)
    np.testing.assert_allclose(positive, np.stack([1 - wanted[:, 1], wanted[:, 1]], axis=1), rtol=1e-12)


def test_certain_images_make_a_certain_row() -> None:
    """A probability of 1 among others gives exactly 1 by noisy-or, and weights of 0 leave an image out."""
    p = np.array([[1.0, 0.0], [0.3, 0.7]])
    for how in ("max", "noisy-or"):
        found = combine_rows(("a", "b"), p, RowMap(("a", "b"), ("x", "x"), np.array([1.0, 0.0]), how), independent=True)
        assert found.tolist() == [[1.0, 0.0]]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("image,group\na,x\n", "expected image,row"),
        ("image,row\na,x\na,x\n", "more than once"),
        ("image,row,weight\na,x,-1\n", "line 2: '-1' is not a weight"),
        ("image,row,weight\na,x,lots\n", "line 2: 'lots' is not a weight"),
        ("image,row,weight\na,x,0\n", "all weights of row x are 0"),
        ("image,row\n,x\n", "empty"),
    ],
)
def test_a_map_that_is_none_is_refused(tmp_path: Path, text: str, said: str) -> None:
    """Other columns, repeated pairs, weights that are none, and rows without weight are E384."""
    (tmp_path / "map.csv").write_text(text)
    with pytest.raises(EnsError, match=f"E384.*{said}"):
        read_row_map(tmp_path / "map.csv")


def test_blend_writes_a_row_per_patient(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The sample lists patients, and the map says whose images they are; classes are decided per patient."""
    monkeypatch.chdir(tmp_path)
    lines = "".join(f"{name},{a},{b}\n" for name, (a, b) in zip(IDS, P.tolist(), strict=True))
    Path("m.csv").write_text("id,0,1\n" + lines)
    Path("map.csv").write_text("image,row\na.png,x\nb.png,x\nc.png,y\nd.png,x\n")
    Path("sample.csv").write_text("patient,no,yes\ny,0,1\nx,0,1\n")
    Path("labels.json").write_text('["no", "yes"]')
    common = [
        "blend",
        "m.csv",
        "--as",
        "probabilities",
        "--labels",
        "labels.json",
        "--rows",
        "map.csv",
        "-o",
        "out.csv",
    ]
    assert run([*common, "--like", "sample.csv"]) == 0
    header, first, second = (line.split(",") for line in Path("out.csv").read_text().splitlines())
    assert (header, first[0], second[0]) == (["patient", "no", "yes"], "y", "x")
    np.testing.assert_allclose([float(v) for v in second[1:]], P[[0, 1, 3]].mean(axis=0), atol=1e-6)
    assert run([*common, "--answers", "name"]) == 0
    assert Path("out.csv").read_text() == "ImageID,ans\nx,yes\ny,no\n"


def test_a_pair_that_is_repeated_at_the_end_is_found_in_linear_time(tmp_path: Path) -> None:
    """The message names the pair; looking for it does not take the square of the lines."""
    lines = [f"i{i},r{i // 2}" for i in range(60_000)]
    path = tmp_path / "map.csv"
    path.write_text("\n".join(["image,row", *lines, lines[-1]]) + "\n")
    began = time.process_time()
    with pytest.raises(EnsError, match="image i59999 is in row r29999 more than once"):
        read_row_map(path)
    assert time.process_time() - began < 5
