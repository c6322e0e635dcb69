"""What an export keeps of its finished steps, when it writes them, and what becomes of damaged and foreign ones."""

from __future__ import annotations

import os
import random
from collections.abc import Callable, MutableMapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from ensemble.errors import DataError, DiskFullError, ModelError
from ensemble.events import Listener, Recorder
from exporters import export_steps
from exporters.export_steps import NO_STEPS, Arrays, KeptSteps, Steps, spans_of

ONES = np.ones(4, dtype=np.float32)


class Clock:
    """Seconds that pass only when a test says so."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now

    def after(self, seconds: float, made: Arrays) -> Callable[[], Arrays]:
        """A step that takes so long."""

        def make() -> Arrays:
            self.now += seconds
            return made

        return make


class Refuses(Listener):
    """Says nothing, and is told nothing."""

    def notice(self, notice: Any) -> None:
        raise AssertionError(notice)


@pytest.fixture
def clock() -> Clock:
    """The time of a test."""
    return Clock()


def start(folder: Path, clock: Clock, *, key: str = "key", listener: Listener | None = None) -> KeptSteps:
    steps = KeptSteps(folder, key, listener=listener or Recorder(), clock=clock)
    steps.open("net")
    return steps


def never() -> Arrays:
    raise AssertionError("it was computed again")


def files(folder: Path) -> list[str]:
    return sorted(f"{path.relative_to(folder)}" for path in folder.rglob("*"))


def test_a_step_is_written_after_ten_seconds_and_not_computed_again(tmp_path: Path, clock: Clock) -> None:
    """What takes less is not written; then all steps so far are in one file, and the next run has them and says so."""
    steps = start(tmp_path, clock, listener=Refuses())
    steps.arrays("a", ("x",), clock.after(9, {"one": ONES}))
    assert files(tmp_path) == []
    steps.values("b", ("x", ONES), lambda: clock.after(1, {"two": ONES})() and [1, 0.1])
    assert files(tmp_path) == [".export-net.state", ".export-net.state/0001.state"]
    heard = Recorder()
    again = start(tmp_path, clock, listener=heard)
    assert [(notice.code, notice.message.split("kept are: ")[1]) for notice in heard.notices] == [("I497", "a, b")]
    assert again.arrays("a", ("x",), never)["one"].dtype == np.float32
    assert again.values("b", ("x", ONES), never) == [1, 0.1]
    for parts in (("y",), ("x", ONES + 1), ("x", ONES.astype(np.float64)), ("x", ONES.reshape(2, 2))):
        assert again.values("b", parts, lambda: "another") == "another"


def test_rows_go_on_where_they_were(tmp_path: Path, clock: Clock) -> None:
    """Spans that are on disk are not computed again, those after them are; the rows are in their order."""
    asked: list[int] = []

    def make(begin: int, end: int) -> Arrays:
        if begin == 12 and len(asked) == 4:
            raise InterruptedError
        asked.append(begin)
        clock.now += 4
        return {"rows": np.arange(begin, end), "squares": np.arange(begin, end)[:, np.newaxis] ** 2}

    with pytest.raises(InterruptedError):
        start(tmp_path, clock).rows("rows", (), spans_of(14, 3), make)
    found = start(tmp_path, clock).rows("rows", (), spans_of(14, 3), make)
    assert asked == [0, 3, 6, 9, 9, 12]
    assert found["rows"].tolist() == list(range(14))
    assert found["squares"][:, 0].tolist() == [i**2 for i in range(14)]
    assert start(tmp_path, clock).rows("rows", (), spans_of(14, 7), lambda begin, end: {"n": np.zeros(end - begin)})


def test_sums_go_on_where_they_were(tmp_path: Path, clock: Clock) -> None:
    """Each row is added once to what is on disk, the sum is that of an undisturbed run, and one file holds it."""
    asked: list[int] = []

    def add(sums: MutableMapping[str, NDArray[Any]], i: int) -> None:
        if i == 5 and len(asked) == 5:
            raise InterruptedError
        asked.append(i)
        clock.now += 5
        if i == 0:
            sums["sum"] = np.zeros(2, dtype=np.float32)
        sums["sum"] += np.float32(0.1) * i

    with pytest.raises(InterruptedError):
        start(tmp_path, clock).fold("sums", (), 8, add)
    assert files(tmp_path) == [".export-net.state", ".export-net.state/0002.state"]
    again = start(tmp_path, clock)
    found = again.fold("sums", (), 8, add)["sum"].tobytes()
    assert asked == [0, 1, 2, 3, 4, 4, 5, 6, 7]
    assert found == NO_STEPS.fold("sums", (), 8, add)["sum"].tobytes()
    assert again.fold("sums", (), 8, add)["sum"].tobytes() == found
    assert len(asked) == 17


def test_what_was_made_from_sums_is_on_disk_before_they_go(tmp_path: Path, clock: Clock) -> None:
    """Steps that are forgotten leave their file, and what is not yet written is written first."""
    steps = start(tmp_path, clock)
    steps.arrays("sums", (), clock.after(10, {"one": ONES}))
    steps.arrays("rounded", (), clock.after(1, {"one": ONES}))
    assert len(files(tmp_path)) == 2
    steps.forget("sums")
    assert files(tmp_path) == [".export-net.state", ".export-net.state/0002.state"]
    again = start(tmp_path, clock)
    again.arrays("rounded", (), never)
    with pytest.raises(AssertionError):
        again.arrays("sums", (), never)


def test_what_is_computed_as_fast_as_it_is_written_is_not_kept(tmp_path: Path, clock: Clock) -> None:
    """48 MB in a second are computed again, in ten they are kept, in a file of their own."""
    steps, large = start(tmp_path, clock), np.zeros(6_000_000)
    clock.now += 20
    steps.arrays("images", (), clock.after(1, {"pixels": large}))
    assert files(tmp_path) == []
    clock.now -= 20
    steps.arrays("small", (), clock.after(1, {"one": ONES}))
    steps.arrays("images", (), clock.after(10, {"pixels": large}))
    assert files(tmp_path)[1:] == [".export-net.state/0001.state", ".export-net.state/0002.state"]
    again = start(tmp_path, clock)
    again.arrays("small", (), never)
    assert again.arrays("images", (), never)["pixels"].nbytes == large.nbytes


def test_a_time_is_measured_once(tmp_path: Path, clock: Clock) -> None:
    """Asked for twice, a small step gives the values of the first time, in the run that measured it and in the next."""
    steps, measured = start(tmp_path, clock), iter([1.5, 2.5])
    assert [steps.values("timings", (), lambda: next(measured)) for _ in range(2)] == [1.5, 1.5]


@pytest.mark.parametrize(
    ("error", "left"),
    [(None, 0), (ModelError("E436", "no"), 0), (DataError("E316", "no"), 2), (KeyboardInterrupt(), 2)],
)
def test_the_end_removes_all_steps_and_a_stop_writes_them(
    tmp_path: Path, clock: Clock, error: BaseException | None, left: int
) -> None:
    """Nothing stays of an export that ended, nor of one whose model cannot be made."""
    try:
        with KeptSteps(tmp_path, "key", clock=clock) as steps:
            steps.open("net")
            steps.arrays("a", (), clock.after(6, {"one": ONES}))
            if error is not None:
                raise error
    except (ModelError, DataError, KeyboardInterrupt):
        assert error is not None
    assert len(files(tmp_path)) == left


def test_the_end_leaves_what_others_put_there(tmp_path: Path, clock: Clock) -> None:
    """Temporary files of a killed process go, a foreign file stays."""
    with KeptSteps(tmp_path, "key", clock=clock) as steps:
        steps.open("net")
        steps.arrays("a", (), clock.after(20, {"one": ONES}))
        folder = tmp_path / ".export-net.state"
        (folder / ".ens-00000000-1-abcd.tmp").write_bytes(b"half")
        (folder / "notes.txt").write_bytes(b"mine")
    assert files(tmp_path) == [".export-net.state", ".export-net.state/notes.txt"]


def keep_three(folder: Path, clock: Clock) -> Path:
    """Three files of a step each; the folder they are in."""
    steps = start(folder, clock)
    for name in "abc":
        steps.arrays(name, (), clock.after(20, {"one": ONES, "two": np.arange(500.0)}))
    return folder / ".export-net.state"


def test_steps_of_another_export_are_replaced(tmp_path: Path, clock: Clock) -> None:
    """Of other options nothing is used, a line says so, and their files go: they never pile up."""
    keep_three(tmp_path, clock)
    heard = Recorder()
    other = start(tmp_path, clock, key="other", listener=heard)
    assert [notice.code for notice in heard.notices] == ["I498"]
    assert files(tmp_path) == [".export-net.state"]
    assert other.arrays("a", (), clock.after(20, {"one": -ONES}))["one"][0] == -1
    assert files(tmp_path) == [".export-net.state", ".export-net.state/0004.state"]


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-200] ^= 1
    path.write_bytes(data)


def fill(path: Path) -> None:
    path.write_bytes(random.Random(0).randbytes(3000))


def empty(path: Path) -> None:
    path.write_bytes(b"")


def pipe(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


def array(path: Path) -> None:
    with open(path, "wb") as file:
        np.save(file, ONES)


@pytest.mark.parametrize("damage", [cut, flip, fill, empty, pipe, folder, array])
def test_a_damaged_file_is_not_used_and_said(tmp_path: Path, clock: Clock, damage: Callable[[Path], None]) -> None:
    """The steps of the other files are used; the export ends as ever."""
    damage(keep_three(tmp_path, clock) / "0002.state")
    heard = Recorder()
    with KeptSteps(tmp_path, "key", listener=heard, clock=clock) as steps:
        steps.open("net")
        assert [notice.code for notice in heard.notices] == ["I498", "I497"]
        steps.arrays("a", (), never)
        steps.arrays("c", (), never)
        assert steps.arrays("b", (), clock.after(20, {"one": -ONES}))["one"][0] == -1
        assert start(tmp_path, clock).arrays("b", (), never)["one"][0] == -1
    assert len(files(tmp_path)) == (2 if damage is folder else 0)


@pytest.mark.parametrize("damage", [fill, os.mkfifo, lambda path: path.symlink_to("nowhere/at/all")])
def test_without_a_folder_nothing_is_kept_and_said(
    tmp_path: Path, clock: Clock, damage: Callable[[Path], None]
) -> None:
    """What stands in the place of the folder stays as it is, and the export goes on."""
    damage(tmp_path / ".export-net.state")
    heard = Recorder()
    with KeptSteps(tmp_path, "key", listener=heard, clock=clock) as steps:
        steps.open("net")
        assert steps.arrays("a", (), clock.after(20, {"one": ONES}))["one"] is ONES
        assert steps.values("b", (), lambda: 1) == 1
    assert [notice.code for notice in heard.notices] == ["W499"]
    assert files(tmp_path) == [".export-net.state"]


def test_a_full_disk_ends_the_keeping_alone(tmp_path: Path, clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    """One line says it, and the export goes on without."""

    def full(*_: Any, **__: Any) -> None:
        raise DiskFullError("E701", "the disk is full")

    heard = Recorder()
    steps = start(tmp_path, clock, listener=heard)
    monkeypatch.setattr(export_steps, "write_state", full)
    for name in "ab":
        assert steps.arrays(name, (), clock.after(20, {"one": ONES}))["one"] is ONES
    assert [notice.code for notice in heard.notices] == ["W499"]
    assert "the disk is full" in heard.notices[0].message


def test_before_it_is_opened_and_without_it_all_is_computed(tmp_path: Path, clock: Clock) -> None:
    """The two kinds of steps give the same rows, sums and values."""
    for steps in (NO_STEPS, KeptSteps(tmp_path, "key", clock=clock), start(tmp_path, clock)):
        assert isinstance(steps, Steps)
        rows = steps.rows("rows", (), spans_of(5, 2), lambda begin, end: {"n": np.arange(begin, end)})
        assert rows["n"].tolist() == [0, 1, 2, 3, 4]
        assert steps.values("values", (), lambda: {"a": 0.1}) == {"a": 0.1}
        assert steps.arrays("arrays", (), lambda: {"one": ONES})["one"] is ONES
        steps.forget("arrays")
    assert files(tmp_path) == []
