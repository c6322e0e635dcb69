"""`ens check --train` with the mask contest's own table, which lists people and no images."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from ensemble.cli import ens
from ensemble.errors import DataError

HEADER = "id,gender,race,age,path"


def answers(path: Path, classes: list[int]) -> Path:
    path.write_text("\n".join(["ImageID,ans", *(f"{i}.jpg,{one}" for i, one in enumerate(classes))]) + "\n")
    return path


def people(root: Path, *lines: str) -> Path:
    root.mkdir(parents=True, exist_ok=True)
    (root / "train.csv").write_text("\n".join([HEADER, *lines]) + "\n")
    return root / "train.csv"


@pytest.mark.parametrize("as_folder", [False, True])
def test_the_images_of_the_people_are_counted(tmp_path: Path, *, as_folder: bool) -> None:
    """Two people of two images each: a quarter of each class, as the folders say."""
    table = people(tmp_path / "train", "1,male,x,20,a", "2,female,x,60,b")
    for name in ("a", "b"):
        folder = tmp_path / "train" / "images" / name
        folder.mkdir(parents=True)
        for stem in ("mask1", "normal"):
            (folder / f"{stem}.jpg").write_bytes(b"")
    given = table.parent if as_folder else table
    sheet = answers(tmp_path / "out.csv", [0, 5, 12, 17] * 5)
    done = CliRunner().invoke(ens, ["check", str(sheet), "--train", str(given), "--json"], catch_exceptions=False)
    spread = json.loads(done.stdout)["spread"]
    assert spread["distance"] == 0
    assert spread["training"] == 0.25
    moved = answers(tmp_path / "moved.csv", [0] * 20)
    done = CliRunner().invoke(ens, ["check", str(moved), "--train", str(given), "--json"], catch_exceptions=False)
    assert np.isclose(json.loads(done.stdout)["spread"]["distance"], 0.75)
    told = CliRunner().invoke(ens, ["check", str(moved), "--train", str(given)], catch_exceptions=False).output
    assert told.count("0.750 from those of the training images (total variation distance)") == 1


def test_without_the_folders_the_error_says_what_would_do(tmp_path: Path) -> None:
    """The table alone is E322, and the hint names what has images and classes; so for other ground truths."""
    table = people(tmp_path, "1,male,x,20,a", "2,female,x,60,b")
    sheet = answers(tmp_path / "out.csv", [0, 5])
    for command in (["check", str(sheet), "--train", str(table)], ["evaluate", str(sheet), "--truth", str(table)]):
        caught = CliRunner().invoke(ens, command).exception
        assert isinstance(caught, DataError)
        assert caught.code == "E322"
        assert "lists people" in caught.message
        assert "truth.csv that ens train writes" in caught.hint
