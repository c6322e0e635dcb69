"""The progress bar, on a terminal only."""

from __future__ import annotations

import io
import sys

import pytest

from ensemble.terminal import Terminal


class Screen(io.StringIO):
    """A stderr that is, or is not, a terminal."""

    def __init__(self, *, terminal: bool) -> None:
        super().__init__()
        self.terminal = terminal

    def isatty(self) -> bool:
        return self.terminal


@pytest.mark.parametrize("terminal", [True, False])
def test_the_bar_says_what_the_run_waits_for(monkeypatch: pytest.MonkeyPatch, terminal: bool) -> None:
    """The words of the stage stand behind its bar; where there is no terminal, nothing is written."""
    screen = Screen(terminal=terminal)
    monkeypatch.setattr(sys, "stderr", screen)
    shown = Terminal()
    shown.detail("before any bar")
    shown.progress("predict", 0, 10)
    shown.detail("decode 10/s, waiting for disk")
    shown.progress("predict", 10, 10)
    assert ("waiting for disk" in screen.getvalue()) == terminal
    assert ("predict" in screen.getvalue()) == terminal
    assert "before" not in screen.getvalue()
