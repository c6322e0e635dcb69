"""`ens data` as it is typed: the table of the images, and the ground truth that other commands read."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner, Result
from PIL import Image

from ensemble.cli import ens
from ensemble.labels import LabelSpace
from ensemble.predictions.truth import read_truth
from tests.support.toys import picture

pytestmark = pytest.mark.slow

NAMES = ("cat", "dog")


@pytest.fixture
def table(tmp_path: Path) -> Path:
    (tmp_path / "images").mkdir()
    lines = ["image,label,person"]
    for number in range(8):
        Image.fromarray(picture(number)).save(tmp_path / "images" / f"{number}.png")
        lines.append(f"{number}.png,{NAMES[number % 2]},p{number // 4}")
    (tmp_path / "train.csv").write_text("\n".join(lines))
    return tmp_path


def run(root: Path, *words: object) -> Result:
    given = ("data", root / "train.csv", "--images", root / "images", "-o", root / "data.parquet", *words)
    return CliRunner().invoke(ens, [str(word) for word in given])


def test_the_ground_truth_has_classes_groups_and_folds(table: Path) -> None:
    """The CSV is one that --truth reads: with the folds of a file where they are given."""
    (table / "folds.csv").write_text("id,fold\np0,1\np1,0\n")
    labels = LabelSpace.flat(NAMES)
    for words, folds in (((), None), (("--folds", table / "folds.csv"), (1,) * 4 + (0,) * 4)):
        done = run(table, "--truth", table / "truth.csv", *words)
        assert done.exit_code == 0, done.output
        assert str(table / "truth.csv") in done.stdout
        found = read_truth(table / "truth.csv", labels)
        assert (found.ids, found.folds) == (tuple(f"{i}.png" for i in range(8)), folds)
        assert found.persons == ("p0",) * 4 + ("p1",) * 4
        np.testing.assert_array_equal(found.classes, np.arange(8) % 2)


def test_folds_without_a_ground_truth_and_files_of_one_name_are_refused(table: Path) -> None:
    """--folds alone, a truth in place of the training table, and folds of other people end with their codes."""
    (table / "folds.csv").write_text("id,fold\np0,1\nsomeone,0\n")
    for words, code in (
        (("--folds", table / "folds.csv"), "E204"),
        (("--truth", table / "train.csv"), "E204"),
        (("--truth", table / "truth.csv", "--folds", table / "folds.csv"), "E341"),
    ):
        assert getattr(run(table, *words).exception, "code", None) == code
        assert not (table / "data.parquet").exists()
