"""The three sources of a recipe, and the conflicts between them on the command line."""

from __future__ import annotations

from pathlib import Path

import pytest

from ensemble.__main__ import run
from ensemble.blend.pooling import parse_pool
from ensemble.blend.recipe import make_recipe
from ensemble.learn.choose_recipe import GivenWeights, choose_recipe
from tests.support.members import make_member


def test_given_weights_are_those_of_make_recipe(tmp_path: Path) -> None:
    """Given weights make the recipe that `make_recipe` makes, and a saved one comes back from its path."""
    members = [make_member("a", [[1.0, 0.0]]), make_member("b", [[0.0, 1.0]])]
    pool = parse_pool("geometric")
    chosen = choose_recipe(members, GivenWeights(pool, weights={"a": 2.0, "b": 1.0}))
    assert chosen.recipe == make_recipe(members, pool=pool, weights={"a": 2.0, "b": 1.0})
    assert chosen.learned is None
    (tmp_path / "blend.json").write_text(chosen.recipe.to_json())
    assert choose_recipe(members, tmp_path / "blend.json").recipe.to_json() == chosen.recipe.to_json()


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--oof", "x"], "--oof and --truth need each other"),
        (["--truth", "x"], "--oof and --truth need each other"),
        (["--seed", "0", "--transductive"], "--transductive, --seed can only be used with --oof and --truth"),
        (["--apply", "x", "--oof", "y", "--truth", "z"], "--apply and --oof exclude each other"),
        (
            ["--apply", "x", "--weights", "a=1"],
            "--apply brings its own pool, weights, views and rule; leave out --weights",
        ),
        (["--oof", "x", "--truth", "y", "--pool", "linear"], "--oof learns its own pool, weights, views and rule"),
    ],
)
def test_two_sources_are_refused_with_the_usage(
    options: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """Options that contradict each other are E204 before anything is read, with the command's usage line."""
    assert run(["blend", "preds", "-o", "submission.csv", *options]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert lines[0].startswith(f"error[E204] {said}")
    assert lines[1] == "  Usage: ens blend [OPTIONS] PREDICTIONS..."
