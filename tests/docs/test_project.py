"""The files around the code agree with each other: versions, the workflow and the changelog."""

from __future__ import annotations

import re
import tomllib

from tests.docs.pages import ROOT

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
HOOKS = (ROOT / ".pre-commit-config.yaml").read_text(encoding="utf-8")


def test_the_hooks_have_the_versions_of_the_tests() -> None:
    """pre-commit runs ruff in the version of the tests, and mypy from the project's environment, which pins it."""
    pinned = dict(line.split("==") for line in PROJECT["tool"]["uv"]["constraint-dependencies"])
    hooks = dict(re.findall(r'additional_dependencies: \["([\w-]+)==([\d.]+)"\]', HOOKS))
    assert hooks.keys() == {"ruff", "pre-commit-hooks"}
    assert hooks["ruff"] == pinned["ruff"]
    assert HOOKS.count("ruff==") == 2
    assert "entry: uv run mypy\n" in HOOKS
    assert re.fullmatch(r"[\d.]+", pinned["mypy"]), "the version of mypy is pinned exactly"


def test_the_workflow_runs_what_the_check_runs() -> None:
    """Each command of the check's script is in the workflow: the whole suite, and the install without torch."""
    workflow = (ROOT / ".github" / "workflows" / "ci.yml").read_text(encoding="utf-8")
    script = (ROOT / ".ci" / "run").read_text(encoding="utf-8")
    commands = [line for line in script.splitlines() if line.startswith("uv run") and "<<" not in line]
    assert len(commands) == 2
    for command in commands:
        assert f"- run: {command}\n" in workflow
    assert "find_spec('torch') is None" in workflow


def test_the_changelog_has_the_version() -> None:
    """The version of the package is a dated section of the changelog, below the unreleased one."""
    sections = re.findall(r"^## \[(.+?)\](.*)$", (ROOT / "CHANGELOG.md").read_text(encoding="utf-8"), re.MULTILINE)
    assert sections[0] == ("Unreleased", "")
    dated = dict(sections[1:])
    assert re.fullmatch(r" - \d{4}-\d\d-\d\d", dated[PROJECT["project"]["version"]])


def test_the_package_names_its_authors() -> None:
    """The package's authors are those of the license."""
    (author,) = PROJECT["project"]["authors"]
    assert author["name"] in (ROOT / "LICENSE").read_text(encoding="utf-8")
