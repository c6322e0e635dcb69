"""Options that texts speak of: each one exists, and where a command is named with it, on that command."""

from __future__ import annotations

import re

import pytest

from ensemble.cli import ens
from ensemble.error_codes import CODES
from ensemble.images.size_limits import MAX_PIXELS
from tests.support.sources import SOURCES, strings

OPTION = re.compile(r"(?<![\w-])--[a-z][a-z0-9_-]*")
COMMAND = re.compile(r"\bens ([a-z-]+)((?:(?!\bens )[^,;:()])*)")
OPTIONS = {
    name: {text for parameter in command.params for text in parameter.opts} | {"--help"}
    for name, command in ens.commands.items()
}
EVERYWHERE = {text for parameter in ens.params for text in parameter.opts} | {"--help", "--version"}
OTHERS = {
    "install.py": {"--python", "--project", "--inexact", "--extra"},  # uv's
    "retinaface.py": {"--no-deps"},  # pip's
    "machine.py": {"--query-gpu", "--format"},  # nvidia-smi's
    "process_meter.py": {"--query-gpu", "--format"},
    "wheels.py": {
        "--only-binary",
        "--implementation",
        "--python-version",
        "--dest",
        "--platform",
        "--disable-pip-version-check",
    },  # pip's
    "runtime.py": {"--prefer-offline", "--ignore-scripts", "--loglevel", "--pack-destination"},  # npm's
    "distributed.py": {"--multi_gpu"},  # accelerate's
    "config_file.py": {"--no-tta", "--no-"},  # the opposites of flags
}
STYLES = {"html.py", "matrix.py", "plots.py", "summary_html.py"}  # whose --words are variables of CSS


def unknown(text: str, others: set[str]) -> list[str]:
    """Options in a text that no command has, or that the command named before them lacks."""
    known = set().union(EVERYWHERE, others, *OPTIONS.values())
    wrong = [option for option in OPTION.findall(text) if option not in known]
    for name, rest in COMMAND.findall(text):
        if name in OPTIONS:
            wrong += [f"ens {name} {option}" for option in OPTION.findall(rest) if option not in OPTIONS[name]]
    return wrong


def test_every_option_in_a_text_exists() -> None:
    """Messages, hints, help texts and docstrings name no option that no command has."""
    found = {
        f"{path.name}:{line}": wrong
        for path in SOURCES
        if path.name not in STYLES
        for line, text in strings(path)
        if (wrong := unknown(text, OTHERS.get(path.name, set())))
    }
    assert found == {}


@pytest.mark.parametrize("code", CODES)
def test_every_option_in_the_catalog_exists(code: str) -> None:
    """Causes and cures name options that exist, each on the command that it is named with."""
    assert unknown(CODES[code].cause, set()) == unknown(CODES[code].cure, set()) == []


def test_the_search_finds_what_is_wrong() -> None:
    """An option of no command, and one of another command, are both found."""
    assert unknown("raise --max-pixels", set()) == ["--max-pixels"]
    assert unknown("run ens check --tta", set()) == ["ens check --tta"]
    assert unknown("run ens predict --tta; then --like", set()) == []


def test_the_limit_of_pixels_is_the_one_in_the_catalog() -> None:
    """The number in E307's cause is the constant."""
    assert f"{MAX_PIXELS // 1_000_000} million pixels" in CODES["E307"].cause
