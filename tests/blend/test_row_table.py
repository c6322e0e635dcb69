"""Smoothing over the rows of a group that a table names, where the ids do not."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner, Result

from ensemble.__main__ import run
from ensemble.blend.recipe import Recipe
from ensemble.blend.row_table import RowColumns, read_row_table, with_row_table
from ensemble.blend.smoothing import Smoothing, smooth_rows
from ensemble.cli import ens
from ensemble.errors import EnsError
from ensemble.events import Recorder
from ensemble.labels import LabelSpace
from tests.support.toys import card, write_model, write_pictures

IDS = ("q", "x", "a", "m", "z")
TABLE = "row,clip,frame,weather\nz,one,10,wet\nq,one,2,dry\nx,two,1,dry\na,one,3,dry\nm,two,0,wet\n"
VALUES = np.arange(10, dtype=np.float64).reshape(5, 2) ** 2


def smoothed(folder: Path, columns: RowColumns, ids: tuple[str, ...] = IDS) -> np.ndarray:
    """The values smoothed over the groups of the table."""
    (folder / "rows.csv").write_text(TABLE)
    table = read_row_table(folder / "rows.csv", columns)
    return smooth_rows(VALUES, ids, Smoothing((1, 2, 1), group=table.group, order=table.order, table=table))


def test_rows_are_smoothed_in_the_order_of_a_column(tmp_path: Path) -> None:
    """Frames 2, 3 and 10 of clip one follow each other; the rows of the table would be in another order."""
    found = smoothed(tmp_path, RowColumns())
    q, x, a, m, z = VALUES
    np.testing.assert_allclose(
        found, [(3 * q + a) / 4, (3 * x + m) / 4, (q + 2 * a + z) / 4, (3 * m + x) / 4, (a + 3 * z) / 4]
    )
    chosen = smoothed(tmp_path, RowColumns(group="weather", order="frame"))
    np.testing.assert_allclose(
        chosen, [(x + 2 * q + a) / 4, (3 * x + q) / 4, (3 * a + q) / 4, (3 * m + z) / 4, (3 * z + m) / 4]
    )
    np.testing.assert_allclose(smoothed(tmp_path, RowColumns(), tuple(f"{name}.png" for name in IDS)), found)


def test_without_a_column_of_order_the_table_has_it_and_says_so(tmp_path: Path) -> None:
    """The rows follow each other as they are written, which a notice says with the column of the groups."""
    (tmp_path / "rows.csv").write_text("id;patient\nb;p\na;p\nc;p\n")
    heard = Recorder()
    table = read_row_table(tmp_path / "rows.csv", RowColumns(), listener=heard)
    assert heard.notices[-1].message.endswith("groups of the column patient, in the order of the table's rows")
    found = smooth_rows(VALUES[:3], "abc", Smoothing((1, 2, 1), group="patient", table=table))
    a, b, c = VALUES[:3]
    np.testing.assert_allclose(found, [(b + 2 * a + c) / 4, (3 * b + a) / 4, (a + 3 * c) / 4])


@pytest.mark.parametrize(
    ("table", "columns", "code", "said"),
    [
        ("id,a,b\nq,1,2\n", RowColumns(), "E365", "beside id it has a, b"),
        ("id,clip,video\nq,1,2\n", RowColumns(), "E365", "more than one"),
        ("id,clip\nq,1\n", RowColumns(group="none"), "E322", '"none" not found'),
        ("id,clip,frame\nq,1,first\n", RowColumns(), "E365", "'first' in column frame is not a number"),
        ("id,clip\nq,1\nq,1\n", RowColumns(), "E313", "duplicate"),
    ],
)
def test_what_the_table_does_not_tell_is_an_error(
    tmp_path: Path, table: str, columns: RowColumns, code: str, said: str
) -> None:
    """Groups are never guessed among several columns, nor is an order that is not a number."""
    (tmp_path / "rows.csv").write_text(table)
    with pytest.raises(EnsError) as caught:
        read_row_table(tmp_path / "rows.csv", columns)
    assert caught.value.code == code
    assert said in caught.value.message


def test_a_recipe_names_the_columns_and_asks_for_the_table(tmp_path: Path) -> None:
    """The stored recipe has the columns, not the rows: other images have a table of their own."""
    (tmp_path / "rows.csv").write_text(TABLE)
    value = {"kernel": [1, 2, 1], "group": "clip", "order": "frame"}
    assert Smoothing.from_json(value).to_json() == value
    plain = {"schema": 1, "pool": "linear", "rule": "argmax", "views": {"identity": 1}, "labels": ["a", "b"]}
    plain["groups"] = {"m": {"weight": 1, "members": {"m": ""}}}
    recipe = Recipe.from_json(json.dumps(plain | {"smoothing": value}))
    assert recipe.smoothing is not None
    with pytest.raises(EnsError, match="a column of a table") as caught:
        smooth_rows(VALUES, IDS, recipe.smoothing)
    assert "--smooth-table" in caught.value.hint
    with pytest.raises(EnsError, match="lacks 1 of 2 ids: nowhere"):
        with_row_table(recipe, tmp_path / "rows.csv", ids=["q", "nowhere"])
    given = with_row_table(recipe, tmp_path / "rows.csv", ids=IDS)
    assert given == recipe
    assert given.to_json() == recipe.to_json()
    with pytest.raises(EnsError, match="does not"):
        with_row_table(replace(recipe, smoothing=None), tmp_path / "rows.csv")


def test_blend_and_submit_take_the_table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A recipe with groups of a table gives the same file by blend, by --apply and by submit, and none without it."""
    monkeypatch.chdir(tmp_path)
    write_pictures(tmp_path / "images", [f"{name}.jpg" for name in IDS])
    write_model(tmp_path / "models", card("net", labels=LabelSpace.flat(("cat", "dog"))))
    (tmp_path / "rows.csv").write_text(TABLE)
    (tmp_path / "like.csv").write_text("id,cat,dog\n" + "".join(f"{name},0.5,0.5\n" for name in IDS))
    assert run(["predict", "models", "--images", "images", "-o", "preds"]) == 0

    def call(*words: str) -> Result:
        return CliRunner().invoke(ens, list(words))

    blend, table = ["blend", "preds/net", "--like", "like.csv", "-o", "out.csv"], ["--smooth-table", "rows.csv"]
    submit = ["submit", "blend.json", "--images", "images", "--models", "models", "--like", "like.csv", "-o", "s.csv"]
    assert call(*blend, "--smooth", "1,2,1", *table, "--save", "blend.json").exit_code == 0
    first = (tmp_path / "out.csv").read_bytes()
    assert json.loads((tmp_path / "blend.json").read_text())["smoothing"]["group"] == "clip"
    assert call(*blend, "--apply", "blend.json", *table).exit_code == 0
    assert (tmp_path / "out.csv").read_bytes() == first
    assert call(*submit, *table).exit_code == 0
    assert (tmp_path / "s.csv").read_bytes() == first
    for command in (submit, [*blend, "--apply", "blend.json"], [*blend, *table], [*blend, "--smooth-group", "clip"]):
        failed = call(*command).exception
        assert isinstance(failed, EnsError)
        assert failed.code == "E204"
