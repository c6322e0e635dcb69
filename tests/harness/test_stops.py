"""Stopped by a signal anywhere, a command ends as it must, and run again ends as if nothing had been."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.harness.stops import stop_often

pytestmark = pytest.mark.slow


def test_stopped_commands_end_with_the_status_of_the_signal_and_resume_to_the_same_bytes(tmp_path: Path) -> None:
    """SIGINT and SIGTERM at random moments; `python -m tests.harness.stops` does it for all commands and longer."""
    stops = stop_often(tmp_path, times=2, names=("fuse",))
    assert len(stops.seconds["fuse"]) + stops.ended["fuse"] == 2, stops.render()
