"""The examples run: the demo and what follows it, what each page opens with, and the Python."""

from __future__ import annotations

import functools
import glob
import os
import re
import shlex
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from ensemble import errors
from ensemble.cli import ens
from tests.docs.pages import DOCS, README, Page
from tests.support import toys

# the steps that follow the demo: those whose every path is one that the demo or an earlier step wrote
STEPS = [line for line in README.commands if "runs/" in line]
# and those of the pages, without those of the files of a reader (r18, spec, face, sface, seen); trainings and web
# pages have their own tests
FOLLOWING = [
    line
    for page in DOCS
    for block in page.blocks
    if block.language == "bash"
    for line in block.commands
    if "runs/" in line
    and not re.search("runs/(r18|spec|s?face|seen)|^ens (bench|page|train) ", line)
    and line not in STEPS
]


@pytest.mark.slow
def test_the_demo_and_the_steps_after_it_run_as_they_stand(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`ens demo`, each step of the README and then each command of a page about runs/ end with status 0.

    What the demo prints is what the README shows, whatever the numbers; its networks are trained for two epochs here.
    """
    from exporters.demo import run as demo
    from tests.support.exports import each_network_once

    monkeypatch.chdir(tmp_path)
    shorter = tuple(replace(one, settings=replace(one.settings, epochs=2)) for one in demo.MEMBERS)
    monkeypatch.setattr(demo, "demo", functools.partial(demo.demo, members=shorter))
    assert [shlex.split(line)[1] for line in STEPS] == ["export", "predict", "blend", "check", "evaluate"]
    following = [shlex.split(line)[1] for line in FOLLOWING]
    assert set(following) == {"submit", "fuse", "bundle", "evaluate", "report", "export", "explain", "data", "-c"}
    assert following.index("export") < following.index("explain")
    shown = next(block.text for block in README.blocks if block.text.startswith("member "))
    with each_network_once():
        assert _shape(_run("ens demo")).startswith(_shape(shown))
        for line in (*STEPS, *FOLLOWING):
            _run(line)
    submission = (tmp_path / "runs/demo/submission.csv").read_bytes()
    assert (tmp_path / "runs/submission.csv").read_bytes() == submission
    assert (tmp_path / "runs/submitted.csv").read_bytes() == submission
    assert (tmp_path / "runs/report.html").stat().st_size > 10_000


def _run(line: str) -> str:
    """Run a command line in the current folder: in this process, or in a shell if it is no plain call of `ens`.

    `ens check` is run in a shell too, so that the installed command is what answers.
    """
    command, *words = shlex.split(line)
    if command == "ens" and ">" not in words and words[0] != "check":
        given = [path for word in words for path in (sorted(glob.glob(word)) or [word])]
        found = CliRunner().invoke(ens, given)
        assert found.exit_code == 0, f"{line}\n{found.output}"
        return found.stdout
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    done = subprocess.run(
        line, shell=True, env=os.environ | {"PATH": path}, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, f"{line}\n{done.stderr}"
    return done.stdout


def _shape(text: str) -> str:
    """A table without its numbers, and with single spaces."""
    return re.sub(r" +", " ", re.sub(r"\d+", "0", text)).strip()


def test_the_python_of_the_readme_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The README's Python, executed as it stands, answers an image with one of the model's classes."""
    names = _execute([block.text for block in README.blocks if block.text.startswith("import ")], tmp_path, monkeypatch)
    assert names["model"]("images/b.jpg").label in toys.CARD.labels.names


def test_the_python_of_the_page_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The blocks of the page on Python, executed in turn as they stand, give probabilities and a class per image."""
    blocks = [block.text for block in Page("docs/python.md").blocks if block.language == "python"]
    names = _execute(blocks, tmp_path, monkeypatch)
    assert names["blended"].ids == ("a.jpg", "b.jpg")
    assert names["blended"].probabilities.shape == (2, 18)


def test_the_functions_of_the_page_on_python_exist() -> None:
    """Everything in the page's table of supported functions can be imported from where the page says."""
    found = re.findall(r"^\| `(ensemble[\w.]*)\.(\w+)", Page("docs/python.md").text, re.MULTILINE)
    assert len(found) > 4, "the search finds the rows"
    for module, function in found:
        assert hasattr(__import__(module, fromlist=[function]), function), function


def test_the_errors_of_the_page_on_python_have_their_codes() -> None:
    """Each class of the page's table of errors is in the library's tree of errors, with that code."""
    rows = re.findall(r"^\| `(\w+Error)` \| .*\((E\d{3})\) \|$", Page("docs/python.md").text, re.MULTILINE)
    assert len(rows) > 4, "the search finds the rows"
    for name, code in rows:
        kind = getattr(errors, name)
        assert issubclass(kind, errors.EnsError)
        assert re.search(f"{name} +{code} ", errors.__doc__ or "")


def _execute(blocks: list[str], folder: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    toys.write_model(folder, toys.card("r18"))
    toys.write_pictures(folder / "images", ["a.jpg", "b.jpg"])
    monkeypatch.chdir(folder)
    names: dict[str, Any] = {}
    for block in blocks:
        exec(compile(block, "page", "exec"), names)
    return names
