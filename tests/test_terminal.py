"""The progress bar, on a terminal only."""

from __future__ import annotations

import io
import os
import re
import sys

import pytest

from ensemble.errors import DataError
from ensemble.events import Notice
from ensemble.terminal import Terminal, shorten_detail, show_bug, show_error


class Screen(io.StringIO):
    """A stderr that is, or is not, a terminal."""

    def __init__(self, *, terminal: bool) -> None:
        super().__init__()
        self.terminal = terminal

    def isatty(self) -> bool:
        return self.terminal

    def fileno(self) -> int:
        return 2


@pytest.mark.parametrize("terminal", [True, False])
def test_the_bar_says_what_the_run_waits_for(monkeypatch: pytest.MonkeyPatch, terminal: bool) -> None:
    """The words of the stage stand behind its bar; where there is no terminal, nothing is written."""
    screen = Screen(terminal=terminal)
    monkeypatch.setattr(sys, "stderr", screen)
    shown = Terminal()
    shown.detail("before any bar")
    shown.progress("predict", 0, 10)
    shown.detail("waiting for disk, decode 10/s")
    shown.progress("predict", 10, 10)
    assert ("waiting for disk" in screen.getvalue()) == terminal
    assert ("predict" in screen.getvalue()) == terminal
    assert "before" not in screen.getvalue()


def test_a_narrow_line_keeps_the_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    """At 80 columns the reason is shown in full before the bar, and what has no room is left out as a whole."""
    screen = Screen(terminal=True)
    monkeypatch.setattr(sys, "stderr", screen)
    monkeypatch.setattr(os, "get_terminal_size", lambda _fd: os.terminal_size((80, 24)))
    shown = Terminal()
    shown.progress("predict", 0, 12_600)
    shown.detail("waiting for device, decode 1,234/s, forward 1,234/s")
    shown.progress("predict", 12_600, 12_600)
    line = screen.getvalue().split("\r")[-1].strip()
    assert line.startswith("predict 100% 12600/12600, ")
    assert ", waiting for device, decode 1,234/s |" in line
    assert "forward" not in line
    assert line.endswith("|")
    assert len(line) <= 80


@pytest.mark.parametrize(
    ("room", "shown"), [(100, "a b, c, d"), (9, "a b, c, d"), (8, "a b, c"), (5, "a b"), (0, "a b")]
)
def test_a_detail_is_left_out_by_parts(room: int, shown: str) -> None:
    """Parts are dropped from the end, never cut in the middle, and the first one stays."""
    assert shorten_detail("a b, c, d", room) == shown


@pytest.mark.parametrize(
    ("terminal", "environment", "coloured"),
    [
        (True, {}, True),
        (False, {}, False),
        (True, {"NO_COLOR": "1"}, False),
        (True, {"NO_COLOR": ""}, True),
        (True, {"TERM": "dumb"}, False),
        (False, {"FORCE_COLOR": "1"}, True),
        (True, {"FORCE_COLOR": "1", "NO_COLOR": "1"}, False),
    ],
    ids=str,
)
def test_colour_is_for_terminals(
    monkeypatch: pytest.MonkeyPatch, terminal: bool, environment: dict[str, str], coloured: bool
) -> None:
    """Errors, notices and bugs have colour on a terminal only, unless NO_COLOR or FORCE_COLOR say otherwise."""
    screen = Screen(terminal=terminal)
    monkeypatch.setattr(sys, "stderr", screen)
    for name in ("NO_COLOR", "FORCE_COLOR"):
        monkeypatch.delenv(name, raising=False)
    for name, value in ({"TERM": "xterm"} | environment).items():
        monkeypatch.setenv(name, value)
    Terminal().notice(Notice("W301", "odd"))
    show_error(DataError("E302", "empty", details=tuple("x" * 22)), as_json=False)
    show_bug(ValueError("no"), "report.txt")
    text = screen.getvalue()
    assert text.count("\x1b[0m") == (4 if coloured else 0)
    assert re.sub(r"\x1b\[\d+m", "", text).splitlines() == [
        "warning[W301] odd",
        "error[E302] empty",
        *["  x"] * 20,
        "  ... and 2 more",
        "  hint: copy or download the file again",
        "bug: ValueError: no",
        "  hint: please report it with report.txt",
    ]


@pytest.mark.parametrize(("level", "expected"), [(-1, []), (0, ["note[I304] odd", "epoch 1"])])
def test_quiet_leaves_warnings_and_errors(monkeypatch: pytest.MonkeyPatch, level: int, expected: list[str]) -> None:
    """With -q notes and lines of progress are not written, and warnings are."""
    screen = Screen(terminal=False)
    monkeypatch.setattr(sys, "stderr", screen)
    shown = Terminal()
    shown.begin("train", level=level)
    shown.notice(Notice("I304", "odd"))
    shown.step_done("epoch 1")
    shown.notice(Notice("W301", "end"))
    shown.close()
    assert screen.getvalue().splitlines() == [*expected, "warning[W301] end"]


def test_another_stage_has_a_bar_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """A stage within a stage replaces the bar: its counts are not those of the stage around it."""
    screen = Screen(terminal=True)
    monkeypatch.setattr(sys, "stderr", screen)
    shown = Terminal()
    shown.progress("export", 0, 2)
    shown.progress("verify", 30, 40)
    shown.progress("export", 1, 2)
    shown.close()
    assert "verify  75% 30/40" in screen.getvalue()
    assert "export  50% 1/2" in screen.getvalue()
