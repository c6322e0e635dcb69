"""`ens blend --positive`: which of two classes the metric of learning is about."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner

from ensemble.blend.recipe import Recipe
from ensemble.cli import ens
from ensemble.errors import EnsError

ROWS = 60


@pytest.fixture
def contest(tmp_path: Path) -> list[str]:
    """Write predictions, out-of-fold predictions and the truth of two classes; return the command that learns."""
    rng = np.random.default_rng(3)
    truth = rng.integers(2, size=ROWS)
    p = 1 / (1 + np.exp(-(2 * truth - 1 + rng.normal(0, 1.5, ROWS))))
    rows = [f"a{i},{1 - one},{one}" for i, one in enumerate(p)]
    for folder in ("oof", "test"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "net.csv").write_text("\n".join(["id,cat,dog", *rows]) + "\n")
    names = ["cat", "dog"]
    (tmp_path / "classes.json").write_text(json.dumps(names))
    (tmp_path / "truth.csv").write_text(
        "\n".join(["id,label", *(f"a{i},{names[one]}" for i, one in enumerate(truth))]) + "\n"
    )
    for column in ("target", "cat"):
        (tmp_path / f"{column}.csv").write_text("\n".join([f"id,{column}", *(f"a{i},0.5" for i in range(ROWS))]) + "\n")
    command = ["blend", str(tmp_path / "test" / "net.csv"), "--as", "probabilities", "--method", "mean"]
    command += ["--labels", str(tmp_path / "classes.json"), "--oof", str(tmp_path / "oof")]
    return [*command, "--truth", str(tmp_path / "truth.csv"), "-o", str(tmp_path / "out.csv")]


def learned_score(command: list[str], *more: str, saved: Path) -> float:
    """Run the command and return the score that the saved recipe records."""
    done = CliRunner().invoke(ens, [*command, *more, "--save", str(saved)], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return float(json.loads(saved.read_text())["learned"]["table"][0]["nested"])


def test_a_sample_of_one_probability_and_the_option_say_which_class_is_scored(
    contest: list[str], tmp_path: Path
) -> None:
    """The class of the option, or of the sample's column, or without a sample the class of the option."""
    contest += ["--metric", "average-precision"]
    saved = tmp_path / "blend.json"

    def score(*more: str) -> float:
        return learned_score(contest, *more, saved=saved)

    like = ["--like", str(tmp_path / "target.csv")]
    cat, dog = (score(*like, "--positive", name) for name in ("cat", "dog"))
    assert cat != pytest.approx(dog, abs=1e-6)
    assert score("--like", str(tmp_path / "cat.csv")) == cat
    assert score("--positive", "cat") == cat


def test_a_class_that_matters_neither_to_the_sheet_nor_to_the_metric_is_refused(contest: list[str]) -> None:
    """Macro F1 is of both classes, and class numbers need no positive one."""
    done: Any = CliRunner().invoke(ens, [*contest, "--metric", "macro-f1", "--positive", "cat"])
    assert isinstance(done.exception, EnsError)
    assert done.exception.code == "E204"
    assert "--positive does not fit" in str(done.exception)


def test_smoothing_is_added_to_the_recipe_that_was_learned(contest: list[str], tmp_path: Path) -> None:
    """Learning refuses --smooth, and the line that the message names smooths when the recipe is applied."""
    refused: Any = CliRunner().invoke(ens, [*contest, "--smooth", "0.2,0.6,0.2"])
    assert refused.exception.code == "E204"
    line = '"smoothing": {"kernel": [0.2, 0.6, 0.2]}'
    assert line in refused.exception.message
    saved = tmp_path / "blend.json"
    learned_score(contest, saved=saved)
    saved.write_text(json.dumps(json.loads(saved.read_text()) | json.loads(f"{{{line}}}")))
    command = [*contest[: contest.index("--method")], "--labels", str(tmp_path / "classes.json")]
    done = CliRunner().invoke(
        ens, [*command, "--apply", str(saved), "-o", str(tmp_path / "smooth.csv")], catch_exceptions=False
    )
    assert done.exit_code == 0, done.output
    assert (tmp_path / "smooth.csv").read_bytes() != (tmp_path / "out.csv").read_bytes()


def test_the_recipe_records_the_class_for_what_comes_later(contest: list[str], tmp_path: Path) -> None:
    """A saved recipe writes and scores the class it was learned for, unless the column is named after the other."""
    saved, out = tmp_path / "blend.json", tmp_path / "out.csv"
    like = ["--like", str(tmp_path / "target.csv")]
    learned_score(contest, "--metric", "average-precision", "--positive", "cat", *like, saved=saved)
    assert json.loads(saved.read_text())["positive"] == "cat"
    first = out.read_bytes()
    apply = [*contest[: contest.index("--as") + 2], *contest[contest.index("--labels") : contest.index("--oof")]]
    apply += ["--apply", str(saved), "-o", str(out)]

    def run_ok(*command: str) -> str:
        done = CliRunner().invoke(ens, list(command), catch_exceptions=False)
        assert done.exit_code == 0, done.output
        return done.stdout

    run_ok(*apply, *like)
    assert out.read_bytes() == first
    dog = tmp_path / "dog.csv"
    dog.write_text((tmp_path / "target.csv").read_text().replace("target", "dog"))
    run_ok(*apply, "--like", str(dog))
    pair = [path.splitlines()[1].split(",") for path in (first.decode(), out.read_text())]
    assert float(pair[0][1]) + float(pair[1][1]) == pytest.approx(1)
    scoring = ["evaluate", str(tmp_path / "test" / "net.csv"), *contest[2:4]]
    scoring += [*contest[contest.index("--labels") : contest.index("--oof")], "--truth", str(tmp_path / "truth.csv")]
    (named,) = json.loads(run_ok(*scoring, "--metric", "average-precision", "--positive", "cat", "--json"))["scores"]
    (found,) = json.loads(run_ok(*scoring, "--recipe", str(saved), "--json"))["scores"]
    assert found["metrics"] == named["metrics"]


def test_a_sample_of_one_probability_is_recorded_without_learning(contest: list[str], tmp_path: Path) -> None:
    """The class that the option named for the sample is in the recipe, and a recipe of three classes refuses one."""
    saved = tmp_path / "blend.json"
    start = [*contest[: contest.index("--method")], *contest[contest.index("--labels") : contest.index("--oof")]]
    start += ["-o", str(tmp_path / "out.csv"), "--like", str(tmp_path / "target.csv")]
    done = CliRunner().invoke(ens, [*start, "--positive", "dog", "--save", str(saved)], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    value = json.loads(saved.read_text())
    assert value["positive"] == "dog"
    value["positive"] = "owl"
    with pytest.raises(EnsError, match="none of two classes"):
        Recipe.from_json(json.dumps(value))
