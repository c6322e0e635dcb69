"""Stopped by a signal anywhere, a command ends as it must, and run again ends as if nothing had been."""

from __future__ import annotations

import signal
import subprocess
from pathlib import Path

import pytest

from tests.harness import stops as harness
from tests.harness.kills import Command
from tests.harness.stops import hear, stop, stop_often

pytestmark = pytest.mark.slow


def test_stopped_commands_end_with_the_status_of_the_signal_and_resume_to_the_same_bytes(tmp_path: Path) -> None:
    """SIGINT and SIGTERM at random moments; `python -m tests.harness.stops` does it for all commands and longer."""
    stops = stop_often(tmp_path, times=2, names=("fuse",))
    assert len(stops.seconds["fuse"]) + stops.ended["fuse"] == 2, stops.render()


def test_a_signal_that_the_shell_ignores_is_heard() -> None:
    """A shell starts what is in its background with SIGINT ignored; the commands that get it must not inherit that."""
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        for number in before:
            signal.signal(number, signal.SIG_IGN)
        hear(("SIGINT", "SIGTERM", "SIGKILL"))
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
        assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


class Deaf:
    """A process that gets a signal and goes on to its usual end."""

    returncode: int | None = None

    def communicate(self, timeout: float) -> tuple[str, None]:
        if timeout < 1:
            raise subprocess.TimeoutExpired("deaf", timeout)
        self.returncode = 0
        return "done", None

    def send_signal(self, number: int) -> None:
        assert number == signal.SIGTERM


@pytest.mark.parametrize("longest", [-1.0, 1e9])
def test_a_command_that_goes_on_after_a_signal_had_not_ended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, longest: float
) -> None:
    """Status 0 is that of a command that was about to end, unless it comes long after the signal."""
    monkeypatch.setattr(harness, "start", lambda command, out: Deaf())
    monkeypatch.setattr(harness, "LONGEST", longest)
    if longest > 0:
        assert stop(Command("deaf", ()), tmp_path, signal.SIGTERM, 0.5) is None
    else:
        with pytest.raises(AssertionError, match="went on"):
            stop(Command("deaf", ()), tmp_path, signal.SIGTERM, 0.5)
