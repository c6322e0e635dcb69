"""`ens evaluate` of submissions under column names of their own, without a sample."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner

from ensemble.blend.recipe import make_recipe
from ensemble.cli import ens
from ensemble.errors import EnsError
from ensemble.labels import LabelSpace
from ensemble.predictions.dataset import Part, part_path, read_predictions, write_complete, write_part
from tests.support import toys

ANSWERS = ["cat", "dog", "dog", "cat"]


@pytest.fixture
def evaluating(tmp_path: Path) -> list[str]:
    """Write the classes and the truth of four images; return the command without the submission."""
    (tmp_path / "classes.json").write_text('["cat", "dog"]')
    (tmp_path / "truth.csv").write_text("id,label\n" + "".join(f"t{i},{one}\n" for i, one in enumerate(ANSWERS)))
    return ["evaluate", "--truth", str(tmp_path / "truth.csv"), "--labels", str(tmp_path / "classes.json"), "--json"]


def written(folder: Path, header: str, row: str, name: str = "sub.csv") -> str:
    """Write a submission, one row per image; ``row`` is formatted with what is known of it."""
    rows = [
        row.format(
            i=i, name=one, number=int(one == "dog"), p=0.9 if one == "dog" else 0.2, q=0.1 if one == "dog" else 0.8
        )
        for i, one in enumerate(ANSWERS)
    ]
    (folder / name).write_text("\n".join([header, *rows]) + "\n")
    return str(folder / name)


def accuracy(command: list[str]) -> float:
    """Run the command and return the accuracy that it prints."""
    done = CliRunner().invoke(ens, command, catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return float(json.loads(done.stdout)["scores"][0]["accuracy"]["value"])


@pytest.mark.parametrize(
    ("header", "row", "more"),
    [
        ("picture_ref,verdict", "t{i},{name}", []),
        ("ref,code", "t{i},{number}", []),
        ("ref,dog,cat", "t{i},{p},{q}", []),
        ("ref,chance", "t{i},{p}", ["--positive", "dog", "--answers", "probability"]),
        ("verdict,ref", "{name},t{i}", ["--id-column", "ref", "--label-column", "verdict"]),
        ("number,ref,verdict", "{i},t{i},{name}", ["--id-column", "ref", "--label-column", "verdict"]),
    ],
)
def test_columns_are_recognized_or_named(
    header: str, row: str, more: list[str], evaluating: list[str], tmp_path: Path
) -> None:
    """Names, numbers, probabilities; columns that an option names need not be in the ground truth."""
    assert accuracy([*evaluating, written(tmp_path, header, row), *more]) == 1.0


@pytest.mark.parametrize(
    ("header", "row", "code", "said"),
    [
        ("ref,chance", "t{i},{p}", "E542", "'cat' or 'dog': the names do not tell"),
        ("ref,verdict", "t{i},cow", "E540", "its answer 'cow' is neither a class"),
        ("verdict,ref", "{name},t{i}", "E313", "duplicate ids: "),
        ("number,ref,verdict", "{i},t{i},{name}", "E541", "column 'ref' is not a class"),
    ],
)
def test_what_is_not_recognized_is_said_with_the_options(
    header: str, row: str, code: str, said: str, evaluating: list[str], tmp_path: Path
) -> None:
    """The cause is named, not a header that nobody asked for, and the hint has the options that settle it."""
    done: Any = CliRunner().invoke(ens, [*evaluating, written(tmp_path, header, row)])
    assert isinstance(done.exception, EnsError)
    assert done.exception.code == code
    assert said in done.exception.message
    assert "--id-column and --label-column name its columns" in done.exception.hint


def test_classes_are_those_of_the_predictions_beside(evaluating: list[str], tmp_path: Path) -> None:
    """Without --labels a submission has the classes of the predictions that are evaluated with it, or of the recipe; a
    submission alone has those of mask18.
    """
    without = [word for word in evaluating if word not in ("--labels", str(tmp_path / "classes.json"))]
    submission = written(tmp_path, "id,label", "t{i},{name}")
    ids = [f"t{i}" for i in range(len(ANSWERS))]
    card = toys.card("net", labels=LabelSpace.flat(["cat", "dog"]))
    logits = np.array([[0.0, 4.0] if one == "dog" else [4.0, 0.0] for one in ANSWERS], dtype=np.float32)
    folder = tmp_path / "preds" / "net"
    folder.mkdir(parents=True)
    write_part(part_path(folder, 0), Part(tuple(ids), {"identity": logits}, "toy", card))
    write_complete(folder, [part_path(folder, 0)], len(ids))
    for given in ([submission, str(folder)], [str(tmp_path / "preds"), submission]):
        done = CliRunner().invoke(ens, [*without, *given], catch_exceptions=False)
        assert [one["accuracy"]["value"] for one in json.loads(done.stdout)["scores"]] == [1.0, 1.0]
    recipe = make_recipe([read_predictions(folder)]).to_json()
    (tmp_path / "blend.json").write_text(recipe)
    assert accuracy([*without, submission, "--recipe", str(tmp_path / "blend.json")]) == 1.0
    alone: Any = CliRunner().invoke(ens, [*without, submission])
    assert isinstance(alone.exception, EnsError)


def test_a_column_that_no_file_has_is_refused(evaluating: list[str], tmp_path: Path) -> None:
    """A misspelled column is an error, not left to be recognized."""
    done: Any = CliRunner().invoke(
        ens, [*evaluating, written(tmp_path, "ref,verdict", "t{i},{name}"), "--id-column", "reff"]
    )
    assert isinstance(done.exception, EnsError)
    assert done.exception.code == "E322"
    assert "reff" in done.exception.message


@pytest.mark.parametrize(
    ("sample", "cells"),
    [
        *(
            (sample, cells)
            for sample in (None, "a b c", "a", "b c")
            for cells in (("a b", "b a", "c d"), ("a", "b", "c"))
        ),
        *((sample, ("a;b", "b", "c;d")) for sample in (None, "a")),
    ],
)
def test_a_truth_of_several_labels_makes_cells_of_names_labels(
    cells: tuple[str, ...], sample: str | None, tmp_path: Path
) -> None:
    """Also where each cell has equally many names, or one; no notice speaks of the most probable classes."""
    (tmp_path / "classes.json").write_text('["a", "b", "c", "d"]')
    (tmp_path / "truth.csv").write_text("id,tags\n0,a b c\n1,b\n2,c d\n")
    (tmp_path / "sub.csv").write_text("id,tags\n" + "".join(f"{i},{cell}\n" for i, cell in enumerate(cells)))
    command = ["evaluate", str(tmp_path / "sub.csv"), "--truth", str(tmp_path / "truth.csv")]
    command += ["--labels", str(tmp_path / "classes.json"), "--json"]
    if sample is not None:
        (tmp_path / "sample.csv").write_text("id,tags\n" + "".join(f"{i},{sample}\n" for i in range(3)))
        command += ["--like", str(tmp_path / "sample.csv")]
    done = CliRunner().invoke(ens, command, catch_exceptions=False)
    assert done.exit_code == 0, done.output
    assert "most probable classes" not in done.stderr
    named = [set(cell.replace(";", " ").split()) for cell in cells]
    true = [{"a", "b", "c"}, {"b"}, {"c", "d"}]
    hits = sum(len(one & other) for one, other in zip(named, true, strict=True))
    expected = 2 * hits / (sum(map(len, named)) + sum(map(len, true)))
    assert json.loads(done.stdout)["scores"][0]["micro_f1"]["value"] == pytest.approx(expected, abs=1e-12)


def test_a_truth_of_fractions_is_refused(evaluating: list[str], tmp_path: Path) -> None:
    """Soft labels are not scored: E364 names the cell."""
    (tmp_path / "truth.csv").write_text("id,cat,dog\n" + "".join(f"t{i},0.7,0.3\n" for i in range(4)))
    done: Any = CliRunner().invoke(ens, [*evaluating, written(tmp_path, "ref,verdict", "t{i},{name}")])
    assert isinstance(done.exception, EnsError)
    assert done.exception.code == "E364"
    assert "0.7" in done.exception.message
