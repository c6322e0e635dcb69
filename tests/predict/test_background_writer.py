"""The writer's thread: in order, bounded, and no error is lost."""

from __future__ import annotations

import threading

import pytest

from ensemble.errors import DiskFullError
from ensemble.predict.background_writer import Writer
from tests.support.limits import HANG


def test_writings_are_done_in_order_and_counted() -> None:
    """Twenty writings happen in the order they came, and their rows add up."""
    done: list[int] = []
    with Writer() as writer:
        for i in range(20):
            writer.write(lambda i=i: done.append(i), rows=3)  # type: ignore[misc]
        writer.finish()
    assert done == list(range(20))
    assert writer.rows == 60


def fail() -> None:
    raise DiskFullError("E701", "the disk is full")


def test_an_error_stops_what_follows_and_comes_out() -> None:
    """What was asked for after a writing that failed is not done, and the error is raised by `finish`."""
    done: list[int] = []
    with Writer() as writer:
        writer.write(fail, rows=1)
        writer.write(lambda: done.append(1), rows=1)
        assert writer.settle() == 0
        with pytest.raises(DiskFullError, match="E701"):
            writer.finish()
    assert not done


def test_an_error_comes_out_while_more_is_asked_for() -> None:
    """A run that has much to write does not go on to its end with a full disk."""
    with Writer() as writer:
        writer.write(fail, rows=1)
        writer.write(fail, rows=1)
        with pytest.raises(DiskFullError, match="E701"):
            writer.write(fail, rows=1)


def test_at_most_two_writings_wait() -> None:
    """A third writing is not taken on before the first is finished."""
    gate, taken = threading.Event(), threading.Semaphore(0)

    def ask(writer: Writer) -> None:
        for _ in range(3):
            writer.write(gate.wait, rows=1)  # type: ignore[arg-type]
            taken.release()

    with Writer() as writer:
        thread = threading.Thread(target=ask, args=(writer,))
        thread.start()
        assert taken.acquire(timeout=HANG)
        assert taken.acquire(timeout=HANG)
        assert not taken.acquire(timeout=0.2)
        gate.set()
        thread.join()
        assert writer.settle() == 3


def test_leaving_waits_for_what_is_under_way() -> None:
    """Nobody has to ask for it: after the block, the writing is done."""
    done: list[int] = []
    gate = threading.Event()
    with Writer() as writer:
        writer.write(lambda: done.append(gate.wait()), rows=1)
        assert not done
        gate.set()
    assert done == [1]
