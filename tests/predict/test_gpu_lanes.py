"""Batches go through lanes in order, whatever computes them, and nothing is left behind."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager

import pytest

from ensemble.predict.gpu_lanes import LANES, through_lanes
from ensemble.runtime.device import Device
from ensemble.runtime.io_binding import DeviceBuffers, buffers_on
from tests.support.limits import HANG

TWO = Device("cuda", 0, others=(1,))
OURS = ("ens-read", "ens-copy", "ens-cuda")


def test_answers_come_in_order_from_two_devices() -> None:
    """Forty pieces over two devices come back in order, each computed on its own device's one thread."""
    threads: dict[int, set[str]] = {0: set(), 1: set()}
    both = threading.Barrier(2, timeout=HANG)

    def compute(lane: DeviceBuffers, item: int) -> tuple[int, int]:
        if item < 2:
            both.wait()  # nobody goes on before both devices have something to do
        with buffers_on(TWO) as here:
            assert here is lane
        threads[lane.device.index].add(threading.current_thread().name)
        return item, lane.device.index

    work = through_lanes(range(40), lambda n: n, lambda *_: None, compute, device=TWO, workers=3, ahead=5)
    done = list(work)
    assert [item for item, _ in done] == list(range(40))
    assert {index for _, index in done} == {0, 1}
    assert all(len(names) == 1 for names in threads.values())


def test_a_lane_holds_one_piece_at_a_time() -> None:
    """While a piece is computed the next one is loaded, and a lane is loaded again only when it is free."""
    held: set[DeviceBuffers] = set()
    seen: set[DeviceBuffers] = set()

    def load(lane: DeviceBuffers, item: int) -> None:
        assert lane not in held
        held.add(lane)
        seen.add(lane)

    def compute(lane: DeviceBuffers, item: int) -> int:
        held.remove(lane)
        return item

    one = Device("cuda")
    assert list(through_lanes(range(20), lambda n: n, load, compute, device=one, workers=2, ahead=4)) == list(range(20))
    assert len(seen) == LANES


@pytest.mark.parametrize(("slow", "expected"), [("read", "idle"), ("compute", "full")])
def test_what_the_feeding_thread_waits_for_is_timed(slow: str, expected: str) -> None:
    """It waits for a piece while nothing is read, and for a lane while all are taken."""
    now, seen, pause = "", "", threading.Event()

    @contextmanager
    def waiting(reason: str) -> Iterator[None]:
        nonlocal now
        now = reason
        yield
        now = ""

    def hold(stage: str, item: int) -> int:
        nonlocal seen
        if stage == slow and item == 0:
            for _ in range(20_000):
                if (seen := now) == expected:
                    break
                pause.wait(0.001)
        return item

    def compute(_: DeviceBuffers, item: int) -> int:
        return hold("compute", item)

    work = through_lanes(
        range(20),
        lambda item: hold("read", item),
        lambda *_: None,
        compute,
        device=Device("cuda"),
        workers=1,
        ahead=4,
        waiting=waiting,
    )
    assert list(work) == list(range(20))
    assert seen == expected


@pytest.mark.parametrize("stage", ["read", "load", "compute"])
def test_an_error_anywhere_comes_out_and_stops_all(stage: str) -> None:
    """What a stage raises is raised at its place in the order, and no thread is left."""

    def fail(name: str, item: int) -> int:
        if name == stage and item == 5:
            raise ValueError(name)
        return item

    got: list[int] = []
    with pytest.raises(ValueError, match=stage):
        got += through_lanes(
            range(100),
            lambda item: fail("read", item),
            lambda _, item: (fail("load", item), None)[1],
            lambda _, item: fail("compute", item),
            device=TWO,
            workers=2,
            ahead=4,
        )
    assert not [thread for thread in threading.enumerate() if thread.name.startswith(OURS)]


def test_whoever_stops_early_leaves_no_thread() -> None:
    """A generator that is closed after one answer shuts all its threads down, though batches were waiting."""
    with closing(
        through_lanes(range(100), lambda n: n, lambda *_: None, lambda _, n: n, device=TWO, workers=2, ahead=4)
    ) as work:
        assert next(work) == 0
    assert not [thread for thread in threading.enumerate() if thread.name.startswith(OURS)]
