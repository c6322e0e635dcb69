"""Progress as lines: when one is written, and what it says."""

from __future__ import annotations

import pytest

from ensemble.progress_lines import ProgressLines, duration


class Clock:
    """A clock that a test sets."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def test_a_line_is_written_every_half_minute() -> None:
    """Before 30 seconds nothing is written, at 30 and 60 one line each, with what the rate so far leaves to do."""
    clock, lines = Clock(), list[str]()
    shown = ProgressLines(lines.append, name="predict", clock=clock)
    shown.progress("predict", 100, 1300)
    for second in range(61):
        clock.now = 100 + second
        shown.progress("predict", 100 + 4 * second, 1300)
        shown.tick()
        assert len(lines) == second // 30
        assert shown.until_next() == 30 - second % 30
    assert lines == [
        "predict: 220 of 1,300 done (17%), about 4 min 30 s left",
        "predict: 340 of 1,300 done (26%), about 4 min 00 s left",
    ]


def test_a_stage_that_reports_nothing_shows_that_it_runs() -> None:
    """Before the first progress and while a stage stands still, the lines say for how long."""
    clock, lines = Clock(), list[str]()
    shown = ProgressLines(lines.append, name="predict", clock=clock)
    clock.now += 30
    shown.tick()
    shown.progress("forward", 0, 10)
    clock.now += 45
    shown.tick()
    assert lines == ["predict: running for 30 s", "forward: 0 of 10 done (0%), running for 45 s"]


def test_short_stages_write_nothing_and_long_ones_their_end() -> None:
    """A stage without a line ends without one; after a line, its last says how long it took."""
    clock, lines = Clock(), list[str]()
    shown = ProgressLines(lines.append, name="export", clock=clock)
    shown.progress("verify", 0, 2)
    shown.progress("verify", 2, 2)
    assert lines == []
    shown.progress("export", 0, 2)
    clock.now += 31
    shown.progress("export", 1, 2)
    clock.now += 9
    shown.progress("export", 2, 2)
    assert lines == ["export: 1 of 2 done (50%), about 31 s left", "export: 2 of 2 done in 40 s"]


def test_a_stage_that_begins_again_counts_its_own_time() -> None:
    """The same work for a second view has the rate of its own, and the end of each is said once."""
    clock, lines = Clock(), list[str]()
    shown = ProgressLines(lines.append, name="probe", clock=clock)
    for _ in range(2):
        for done in (0, 35, 70, 70):
            shown.progress("features", done, 70)
            clock.now += 35 if done < 70 else 0
    between = "features: 35 of 70 done (50%), about 35 s left"
    assert lines == [between, "features: 70 of 70 done in 1 min 10 s"] * 2


def test_a_stage_with_others_inside_goes_on_behind_them() -> None:
    """An export of three models, each of which is verified: time and rate of the models are those since the command's
    begin and the first model, and not since the last verification.
    """
    clock, lines = Clock(), list[str]()
    shown = ProgressLines(lines.append, name="export", clock=clock)
    clock.now += 30  # torch is loaded
    shown.tick()
    for model in range(3):
        shown.progress("export", model, 3)
        clock.now += 31
        shown.tick()
        shown.progress("verify", 32, 64)
        clock.now += 20
        shown.progress("verify", 64, 64)
    shown.progress("export", 3, 3)
    assert lines == [
        "export: running for 30 s",
        "export: 0 of 3 done (0%), running for 1 min 01 s",
        "export: 1 of 3 done (33%), about 2 min 44 s left",
        "export: 2 of 3 done (67%), about 1 min 06 s left",
        "export: 3 of 3 done in 3 min 03 s",
    ]


@pytest.mark.parametrize(("with_details", "shown"), [(False, "waiting for disk"), (True, "waiting for disk, 9/s")])
def test_details_are_for_the_verbose(with_details: bool, shown: str) -> None:
    """A line has the first part of the stage's text, with -v all of it and after 10 seconds."""
    clock, lines = Clock(), list[str]()
    progress = ProgressLines(lines.append, name="predict", with_details=with_details, clock=clock)
    progress.progress("predict", 0, 10)
    progress.detail("waiting for disk, 9/s")
    clock.now += 10
    progress.tick()
    assert len(lines) == with_details
    clock.now += 20
    progress.tick()
    assert lines[-1] == f"predict: 0 of 10 done (0%), running for 30 s, {shown}"


def test_each_epoch_has_its_line_at_once() -> None:
    """The end of a step is written when it comes, and the next line of the clock is half a minute later."""
    clock, lines = Clock(), list[str]()
    shown = ProgressLines(lines.append, name="train", clock=clock)
    clock.now += 29
    shown.step_done("train a_f0: epoch 1 of 2")
    clock.now += 29
    shown.tick()
    assert lines == ["train a_f0: epoch 1 of 2"]


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0 s"),
        (59.4, "59 s"),
        (59.6, "1 min 00 s"),
        (3599, "59 min 59 s"),
        (7500, "2 h 05 min"),
        (4e6, "1,111 h 06 min"),
    ],
)
def test_durations_are_read_at_a_glance(seconds: float, text: str) -> None:
    """Below a minute seconds, below an hour minutes and seconds, above it hours and minutes."""
    assert duration(seconds) == text
