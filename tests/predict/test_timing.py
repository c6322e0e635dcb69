"""What a run is waiting for, from its stopwatch."""

from __future__ import annotations

import pytest

from ensemble.predict.timing import Pace, Stopwatch


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def watch(**elapsed: float) -> Stopwatch:
    watch = Stopwatch()
    watch.elapsed |= elapsed
    return watch


@pytest.mark.parametrize(
    ("elapsed", "on_cpu", "on_gpu"),
    [
        ({"decode": 1, "resize": 2, "a": 9, "read": 1, "full": 5, "idle": 4}, "device", "device"),
        ({"decode": 6, "resize": 6, "a": 9, "read": 1, "full": 2, "copy": 3, "idle": 4}, "decode", "device"),
        ({"decode": 1, "resize": 2, "a": 3, "read": 7, "full": 3, "idle": 2}, "disk", "device"),
        ({"decode": 1, "resize": 2, "a": 9, "read": 7, "full": 1, "idle": 8}, "device", "disk"),
        ({"decode": 4, "resize": 4, "a": 3, "read": 7, "full": 1, "idle": 8}, "decode", "decode"),
        ({"decode": 1, "resize": 1, "a": 3, "full": 1, "blocked": 5, "idle": 4}, "disk", "disk"),
    ],
)
def test_what_a_run_waits_for(elapsed: dict[str, float], on_cpu: str, on_gpu: str) -> None:
    """On the CPU it is where the workers spend most of their time, on a GPU what the thread that feeds it waits for."""
    for expected, gpu in ((on_cpu, False), (on_gpu, True)):
        assert Pace(watch(**elapsed), ["a"], workers=2, on_gpu=gpu).waiting_for() == expected


def test_only_the_last_seconds_count() -> None:
    """A disk that was slow at the beginning is forgotten with the next window."""
    clock, seen = Clock(), watch(read=100.0, a=1.0)
    pace = Pace(seen, ["a"], workers=1, on_gpu=False, clock=clock)
    found = []
    for _ in range(3):
        clock.now += 6
        found.append(pace.waiting_for())
        seen.elapsed["a"] += 6.0
    assert found == ["disk", "device", "device"]


def test_rates_are_those_of_all_workers() -> None:
    """Ten images, two workers: 2 s of decoding are 10 images/s, 20 s of two members 1; on a GPU there is one device."""
    seen = watch(a=12.0, b=8.0)
    seen.seconds |= {"decode": 1.5, "resize": 0.5, "a": 12.0, "b": 8.0}
    seen.rows |= {"decode": 10, "a": 20, "b": 20}
    assert Pace(seen, ["a", "b"], workers=2, on_gpu=False).tell() == "waiting for device, decode 10/s, forward 1/s"
    seen.seconds |= {"a": 0.2, "b": 0.3}
    assert "forward 20/s" in Pace(seen, ["a", "b"], workers=2, on_gpu=True).tell()


def test_a_run_that_has_only_begun_tells_no_rates() -> None:
    """Before the first batch there is nothing to divide by."""
    assert "/s" not in Pace(Stopwatch(), ["a"], workers=2, on_gpu=False).tell()
