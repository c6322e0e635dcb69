"""Arrays of a run that did not end: what the next one finds, and what it does not use."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

import numpy as np
import pytest

from ensemble.kept_arrays import KeptArrays


class Clock:
    """A clock that a test sets."""

    now = 0.0

    def __call__(self) -> float:
        return self.now


def states(folder: Path) -> list[Path]:
    return sorted(folder.glob(".toy-*.state"))


def killed(folder: Path, key: str = "a", *, count: int = 3) -> KeptArrays:
    """A run that added so many arrays, ten seconds apart, and then was killed."""
    clock = Clock()
    kept = KeptArrays(folder, "toy", key, clock=clock)
    for step in range(count):
        clock.now += 10
        kept.add(f"step {step}", np.arange(6.0).reshape(2, 3) + step)
    return kept


def stopped(folder: Path) -> int:
    """A run that adds one array and is stopped by a signal; how many it found."""
    resumed = -1
    with contextlib.suppress(KeyboardInterrupt), KeptArrays(folder, "toy", "a") as kept:
        resumed = kept.resumed
        kept.add("only", np.arange(3))
        raise KeyboardInterrupt
    return resumed


def test_a_killed_run_leaves_what_is_older_than_ten_seconds(tmp_path: Path) -> None:
    """The next run finds the arrays as they were, and removes the files at its end."""
    clock = Clock()
    kept = KeptArrays(tmp_path, "toy", "a", clock=clock)
    kept.add("first", np.array([[1.5, 2.5]]))
    clock.now = 10.0
    kept.add("second", np.zeros((0, 4), np.float32))
    clock.now = 19.0
    kept.add("lost", np.ones(3))
    assert len(states(tmp_path)) == 1
    with KeptArrays(tmp_path, "toy", "a") as again:
        assert again.resumed == 2
        first, second = again.get("first"), again.get("second")
        assert first is not None
        assert second is not None
        assert (first.tolist(), first.dtype.str) == ([[1.5, 2.5]], "<f8")
        assert (second.shape, second.dtype.str) == ((0, 4), "<f4")
        assert again.get("lost") is None
    assert states(tmp_path) == []


def test_a_stopped_run_leaves_all(tmp_path: Path) -> None:
    """An exception, such as that of a signal, writes what is not written yet."""
    stopped(tmp_path)
    again = KeptArrays(tmp_path, "toy", "a")
    found = again.get("only")
    assert found is not None
    assert found.tolist() == [0, 1, 2]


def test_arrays_of_another_run_are_removed(tmp_path: Path) -> None:
    """Files of another key are not used, even where they hold empty arrays, and do not pile up."""
    killed(tmp_path)
    clock = Clock()
    kept = KeptArrays(tmp_path, "toy", "a", clock=clock)
    clock.now = 10
    kept.add("empty", np.zeros((0, 3)))
    assert len(states(tmp_path)) == 4
    other = KeptArrays(tmp_path, "toy", "b")
    assert (other.resumed, states(tmp_path)) == (0, [])


def test_a_fresh_start_finds_nothing(tmp_path: Path) -> None:
    """Files of the same run are removed as well."""
    killed(tmp_path)
    assert KeptArrays(tmp_path, "toy", "a", fresh=True).resumed == 0
    assert states(tmp_path) == []


@pytest.mark.parametrize(
    "damage",
    [
        lambda data: b"",
        lambda data: data[:-1],
        lambda data: data[:40],
        lambda data: data[:-1] + bytes([data[-1] ^ 1]),
        lambda data: os.urandom(len(data)),
        lambda data: b"[]\n" + data,
        lambda data: b"[" * 100_000 + b"\n",
        lambda data: data.replace(b'"<f8"', b'"|O8"'),
        lambda data: data.replace(b"[2, 3]", b"[2, 9]"),
        lambda data: data.replace(b"[2, 3]", b'["a"]'),
    ],
)
def test_damaged_files_are_not_used(tmp_path: Path, damage: object) -> None:
    """What is cut, flipped or no file of ours is computed again, and the other files are used."""
    killed(tmp_path)
    broken = states(tmp_path)[1]
    broken.write_bytes(damage(broken.read_bytes()))  # type: ignore[operator]
    again = KeptArrays(tmp_path, "toy", "a")
    assert [again.get(f"step {step}") is not None for step in range(3)] == [True, False, True]
    assert broken not in states(tmp_path)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs FIFOs")
def test_what_is_no_file_is_no_obstacle(tmp_path: Path) -> None:
    """A folder or FIFO under the name of a file is not read, and another name is taken."""
    (tmp_path / ".toy-00000.state").mkdir()
    os.mkfifo(tmp_path / ".toy-00001.state")
    assert stopped(tmp_path) == 0
    assert KeptArrays(tmp_path, "toy", "a").resumed == 1
