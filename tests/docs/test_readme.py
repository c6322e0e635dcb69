"""The README is true: every command is in it, every option of it exists, and what it shows runs as it stands."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from ensemble.cli import ens
from tests.support import toys

README = (Path(__file__).parents[2] / "README.md").read_text(encoding="utf-8")
LINES = [line.strip() for line in README.replace("\\\n", " ").splitlines() if line.startswith("    ens ")]
# the steps that follow the demo: those whose every path is one that the demo or an earlier step wrote
STEPS = [line for line in LINES if "runs/" in line and line in README.partition("## Installing")[0]]


@pytest.mark.parametrize("command", ens.commands)
def test_every_command_is_documented(command: str) -> None:
    """The README shows the command with what it is for."""
    assert any(line.startswith(f"ens {command} ") or line == f"ens {command}" for line in LINES)


@pytest.mark.parametrize("line", LINES)
def test_every_option_that_is_shown_exists(line: str) -> None:
    """A command line of the README names a command and options that are there."""
    words = shlex.split(re.split(r"\s{2,}(?!-)", line)[0])
    known = {option for parameter in ens.commands[words[1]].params for option in parameter.opts}
    assert {word for word in words if re.match(r"-\w|--\w", word)} <= known


def test_the_codes_of_the_exit_statuses_are_those_of_the_errors() -> None:
    """The README's table gives each kind of error the status that it has."""
    from ensemble import errors

    shown = dict(re.findall(r"^\| (\d+) \|.*\| (E\dxx) \|$", README, re.MULTILINE))
    kinds = (
        errors.OptionError,
        errors.DataError,
        errors.ModelError,
        errors.PredictionError,
        errors.DeviceError,
        errors.FileError,
    )
    assert shown == {str(kind.exit_status): f"E{kind.exit_status}xx" for kind in kinds}


def test_the_demo_and_the_steps_after_it_run_as_they_stand(tmp_path: Path) -> None:
    """`ens demo` and then each step of the README, copied from it, end with status 0 and leave what they say."""
    assert [shlex.split(line)[1] for line in STEPS] == ["export", "predict", "blend", "check", "evaluate"]
    environment = os.environ | {"PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}
    for line in ("ens demo", *STEPS):
        done = subprocess.run(
            line, shell=True, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, f"{line}\n{done.stderr}"
    assert (tmp_path / "runs/submission.csv").read_bytes() == (tmp_path / "runs/demo/submission.csv").read_bytes()
    assert (tmp_path / "runs/blend.json").exists()


def test_the_python_example_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The README's Python, executed as it stands, gives probabilities and a class for each image."""
    toys.write_model(tmp_path, toys.card("r18"))
    toys.write_pictures(tmp_path / "images", ["a.jpg", "b.jpg"])
    monkeypatch.chdir(tmp_path)
    block = README.partition("## From Python")[2].partition("## ")[0]
    code = "\n".join(line.removeprefix("    ") for line in block.splitlines())
    names: dict[str, Any] = {}
    exec(compile(code, "README.md", "exec"), names)
    blended = names["blended"]
    assert blended.ids == ("a.jpg", "b.jpg")
    assert blended.probabilities.shape == (2, 18)
