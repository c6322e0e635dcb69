"""The progress bar, on a terminal only."""

from __future__ import annotations

import io
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from ensemble.errors import DataError
from ensemble.events import Notice
from ensemble.terminal import Terminal, shorten_detail, show, show_bug, show_error

ROOT = Path(__file__).parents[1]


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
    ("terminal", "environment", "colored"),
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
def test_color_is_for_terminals(
    monkeypatch: pytest.MonkeyPatch, terminal: bool, environment: dict[str, str], colored: bool
) -> None:
    """Errors, notices and bugs have color on a terminal only, unless NO_COLOR or FORCE_COLOR say otherwise."""
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
    assert text.count("\x1b[0m") == (4 if colored else 0)
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


def test_a_bar_that_comes_back_goes_on_with_its_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """Behind the verification of a model, what is left of an export is told by all models so far and their time."""
    screen, now = Screen(terminal=True), [0.0]
    monkeypatch.setattr(sys, "stderr", screen)
    monkeypatch.setattr("tqdm.std.time", lambda: now[0])
    shown = Terminal()
    for model in range(3):
        shown.progress("export", model, 3)
        now[0] += 15
        for done in (16, 64):
            shown.progress("verify", done, 64)
            now[0] += 2.5
    shown.progress("export", 2, 3)
    shown.close()
    # the bar has seen two models in 60 seconds
    assert re.findall(r"export +\d+% (\d)/3, (\S+) left", screen.getvalue())[-1] == ("2", "00:30")


HOSTILE = "a\x1b[31mb\rc\x07d\u202ee\u2066f\x9bg\udc80h\u2028i"
ESCAPED = r"a\x1b[31mb\rc\x07d\u202ee\u2066f\x9bg\udc80h\u2028i"


def test_nothing_from_a_file_drives_the_terminal(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Escape sequences, control characters, marks of direction and half characters are shown as escapes everywhere."""
    monkeypatch.setenv("NO_COLOR", "1")
    shown = Terminal()
    shown.notice(Notice("W301", HOSTILE))
    show_error(DataError("E302", HOSTILE, details=(HOSTILE,), hint=HOSTILE), as_json=False)
    show_bug(ValueError(HOSTILE), "report.txt")
    shown.begin("train")
    shown.step_done(HOSTILE)
    shown.close()
    show(None, f"한글\t{HOSTILE}\nnext", as_json=False)
    said = capsys.readouterr()
    assert said.err.count(ESCAPED) == 6
    assert said.out == f"한글\t{ESCAPED}\nnext\n"


def test_json_is_the_same_value_without_raw_characters(capsys: pytest.CaptureFixture[str]) -> None:
    """In JSON they are JSON's own escapes: a program reads the name as it is."""
    show({HOSTILE: "한글"}, "", as_json=True)
    text = capsys.readouterr().out
    assert not re.search("[\x1b\x9b\u202e\udc80]", text)
    assert "한글" in text
    assert json.loads(text) == {HOSTILE: "한글"}


def test_long_messages_are_cut(capsys: pytest.CaptureFixture[str]) -> None:
    """A message of megabytes is cut at 2,000 characters, its details too, with what was left out."""
    error = DataError("E302", "x" * 1_000_000, details=("y" * 3000,))
    for as_json in (False, True):
        show_error(error, as_json=as_json)
        said = "".join(capsys.readouterr())
        assert "x... and 998,000 more characters" in said
        assert "y... and 1,000 more characters" in said
        assert len(said) < 6000


@pytest.mark.parametrize("broken", [None, "full", "closed"])
def test_a_broken_stderr_stops_no_work(monkeypatch: pytest.MonkeyPatch, broken: str | None) -> None:
    """Where stderr is missing, full or closed, notices and progress are lost and nothing is raised."""

    class Full(Screen):
        def write(self, text: str) -> int:
            raise OSError(28, "No space left on device")

    screen = None if broken is None else Full(terminal=False)
    if screen is not None and broken == "closed":
        screen.close()
    monkeypatch.setattr(sys, "stderr", screen)
    shown = Terminal()
    shown.begin("train")
    shown.notice(Notice("W301", "odd"))
    shown.progress("train", 0, 1)
    shown.step_done("epoch 1")
    shown.close()
    show_error(DataError("E302", "empty"), as_json=False)


@pytest.mark.parametrize("closed", ["2>&-", ">&-", "<&- >&- 2>&-"])
def test_closed_streams_stop_no_work(tmp_path: Path, closed: str) -> None:
    """With standard streams closed by the shell the work is done and the status is right."""
    code = "from ensemble.__main__ import main; main()"
    sample = tmp_path / "sample.csv"
    sample.write_text("ImageID,ans\na.jpg,0\n")
    for ids, status in (("a.jpg", 0), ("b.jpg", 5)):
        answers = tmp_path / "answers.csv"
        answers.write_text(f"ImageID,ans\n{ids},1\n")
        command = f'"{sys.executable}" -c "{code}" check "{answers}" --like "{sample}" {closed}'
        assert subprocess.run(["/bin/sh", "-c", command], cwd=ROOT, check=False).returncode == status
