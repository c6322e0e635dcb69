"""One resumable run: `predict` and `submit` with early exit resume, refuse and report alike.

Each test of a run is done with both stores: parts of predictions and chunks of an early exit.
"""

from __future__ import annotations

import errno
import json
import os
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from ensemble import files
from ensemble.blend.pooling import parse_pool
from ensemble.blend.recipe import Group, Recipe
from ensemble.errors import FileError, Interrupted, UnreadableImagesError
from ensemble.events import Listener, Recorder
from ensemble.images.views import parse_views
from ensemble.labels import MASK18
from ensemble.predict import resumable
from ensemble.predict.background_writer import Writer
from ensemble.predict.fingerprint import Fingerprint, Origin
from ensemble.predictions.dataset import read_part, write_part
from ensemble.submit.chunk_file import read_chunk, write_chunk
from ensemble.submit.submit import EarlyExit
from tests.support import toys
from tests.support.runs import StopAfter, run_predict, run_submit

pytestmark = pytest.mark.usefixtures("small_parts")

NAMES = [f"{i:02d}.jpg" for i in range(21)]
RECIPE = Recipe(parse_pool("linear"), {"identity": 1.0}, {"a": Group(1.0, {"a": ""})}, MASK18)


class Run:
    """A command of one kind on 21 images, in three slices: two of eight rows and one of five."""

    def __init__(self, root: Path, prefix: str) -> None:
        self.root, self.prefix = root, prefix
        self.folder = root / ("preds/a" if prefix == "part" else "work/early")

    def __call__(self, **options: Any) -> list[str]:
        """Run it and return the codes of its notices."""
        recorder = Recorder(options.pop("listener", Listener()))
        settings: dict[str, Any] = {"device": "cpu", "workers": 2, "listener": recorder} | options
        models, images = [self.root / "models/a.onnx"], self.root / "images"
        if self.prefix == "part":
            run_predict(models, images, self.root / "preds", views=parse_views("identity"), **settings)
        else:
            run_submit(
                RECIPE,
                images,
                models,
                self.root / "out.csv",
                work=self.root / "work",
                early_exit=EarlyExit(),
                **settings,
            )
        return [notice.code for notice in recorder.notices]

    def path(self, index: int) -> Path:
        """The file of a slice."""
        return self.folder / f"{self.prefix}-{index:05d}.parquet"

    def record(self, path: Path, change: Callable[[str], str]) -> None:
        """Change what a file records about itself."""
        if self.prefix == "part":
            part = read_part(path)
            write_part(path, replace(part, origin=change(part.origin)))
        else:
            chunk = read_chunk(path)
            write_chunk(path, replace(chunk, origin=change(chunk.origin)))

    def contents(self) -> dict[str, bytes]:
        """The slices by name."""
        return {path.name: path.read_bytes() for path in sorted(self.folder.glob("*.parquet"))}


@pytest.fixture(params=["part", "chunk"])
def run(tmp_path: Path, request: pytest.FixtureRequest) -> Run:
    """Twenty-one images and a model."""
    toys.write_pictures(tmp_path / "images", NAMES)
    toys.write_model(tmp_path / "models", toys.card("a"))
    return Run(tmp_path, request.param)


def copy(run: Run, name: str) -> None:
    (run.folder / name).write_bytes(run.path(0).read_bytes())


def empty(run: Run, name: str) -> None:
    (run.folder / name).write_bytes(b"")


def folder(run: Run, name: str) -> None:
    (run.folder / name).mkdir()


@pytest.mark.parametrize("make", [copy, empty, folder])
@pytest.mark.parametrize(
    "name",
    ["{}-00000 (1).parquet", "{}-00007.parquet", "{}-3.parquet", "Copy of {}-00000.parquet", "{}-00001.PARQUET"],
)
def test_a_stray_file_is_refused_and_named(run: Run, make: Callable[[Run, str], None], name: str) -> None:
    """A copy, another number, another case or a folder is E704 with the path and what to do, whatever it holds; nothing
    is changed, and without it the run is finished.
    """
    run()
    before = run.contents()
    stray = name.format(run.prefix)
    make(run, stray)
    with pytest.raises(FileError, match="E704") as caught:
        run()
    assert caught.value.path == run.folder / stray
    assert caught.value.hint == f"move it out of {run.folder}"
    stray_path = run.folder / stray
    stray_path.rmdir() if make is folder else stray_path.unlink()
    assert run.contents() == before
    assert run() == []


def test_a_folder_in_the_place_of_a_slice_is_refused_before_anything_is_computed(run: Run) -> None:
    """E704 at the start, also with fresh, which removes no folder and so no slice either."""
    run()
    run.path(1).unlink()
    run.path(1).mkdir()
    for fresh in (False, True):
        with pytest.raises(FileError, match=r"E704.*is not a file"):
            run(fresh=fresh)
        assert run.path(0).exists()


def test_fresh_removes_strays_too(run: Run) -> None:
    """A fresh start leaves the slices of the new run and no copy of an old one."""
    run()
    before = run.contents()
    for name in (f"{run.prefix}-00000 (1).parquet", f"{run.prefix}-00007.parquet"):
        copy(run, name)
    run(fresh=True)
    assert run.contents() == before


@pytest.mark.parametrize("name", ["._{}-00000.parquet", "notes.txt", "{}-00000.txt"])
def test_other_files_are_left_alone(run: Run, name: str) -> None:
    """What a file system keeps beside files, and files that are not Parquet, stay and change nothing."""
    run()
    (run.folder / name.format(run.prefix)).write_bytes(b"x")
    assert run() == []
    assert (run.folder / name.format(run.prefix)).read_bytes() == b"x"


def cut(run: Run) -> None:
    run.path(1).write_bytes(run.path(1).read_bytes()[:-40])


def truncate(run: Run) -> None:
    run.path(1).write_bytes(b"")


def forget_origin(run: Run) -> None:
    run.record(run.path(1), lambda _: "unknown")


def record_a_list(run: Run) -> None:
    run.record(run.path(1), lambda _: "[1, 2]")


@pytest.mark.parametrize("damage", [cut, truncate, forget_origin, record_a_list])
def test_a_damaged_slice_is_computed_again(run: Run, damage: Callable[[Run], None]) -> None:
    """A slice that is cut short, empty, or does not say what it was computed from is W705, and ends with its bytes."""
    run()
    before = run.contents()
    damage(run)
    assert run() == ["W705"]
    assert run.contents() == before


@pytest.mark.parametrize(
    ("key", "named"),
    [("ids", "image list"), ("provider", "device"), ("versions", "versions of onnxruntime or Pillow")],
)
def test_a_slice_of_another_run_is_refused_in_the_same_words(run: Run, key: str, named: str) -> None:
    """One slice of another run under the right name is E704 in both commands, and says in what the runs differ."""
    run()
    run.record(run.path(1), lambda origin: json.dumps(json.loads(origin) | {key: "other"}))
    with pytest.raises(FileError, match="E704") as caught:
        run()
    assert caught.value.message == f"{run.folder} holds another run: it differs in {named}"
    assert run(fresh=True) == []


def test_more_slices_of_another_list_are_another_run(run: Run) -> None:
    """With fewer images than before, what is told is that the list is another one, not that a file is stray."""
    run()
    for name in NAMES[8:]:
        (run.root / "images" / name).unlink()
    with pytest.raises(FileError, match=r"E704.*another run: it differs in image list"):
        run()


@pytest.mark.parametrize("step", ["fsync", "replace"])
@pytest.mark.parametrize("index", [0, 2])
def test_a_full_disk_is_told_with_what_is_kept_and_what_to_free(
    run: Run, monkeypatch: pytest.MonkeyPatch, step: str, index: int
) -> None:
    """ENOSPC while a slice is written is E701 with the images that are kept and the room to make; the same command then
    leaves the bytes of an undisturbed run.
    """
    run()
    before = run.contents()
    for path in run.folder.glob("*.parquet"):
        path.unlink()
    at = threading.local()  # the note of what is being processed is written beside the writer's thread
    plain_write, plain_step = files.write_atomic, getattr(os, step)

    def write(path: Path, *arguments: Any, **options: Any) -> Path:
        at.name = path.name
        return plain_write(path, *arguments, **options)

    def fail(*arguments: Any) -> Any:
        if getattr(at, "name", "") == run.path(index).name:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return plain_step(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(files, "write_atomic", write)
        patch.setattr("ensemble.predictions.dataset.write_atomic", write)
        patch.setattr(os, step, fail)
        with pytest.raises(FileError, match="E701") as caught:
            run()
    assert caught.value.message.endswith(f"; {index * 8} of 21 images are done and kept")
    assert caught.value.hint == "free 1 MB and run the same command again: it resumes where it stopped"
    assert caught.value.path == run.path(index)
    run()
    assert run.contents() == before


@pytest.mark.parametrize("stop", [0, 8, 16])
def test_an_interrupted_run_says_how_much_is_kept(run: Run, stop: int) -> None:
    """Ctrl-C at any slice is E801 with the images that are kept; run again, the bytes are those of a quiet run."""
    with pytest.raises(Interrupted, match=f"stopped; {stop} of 21 images are done") as caught:
        run(listener=StopAfter(stop // 8, signal_number=15))
    assert caught.value.status == 143
    run()
    resumed = run.contents()
    run(fresh=True)
    assert run.contents() == resumed


def early_files(run: Run) -> list[str]:
    return sorted(path.name for path in run.folder.glob("*.early"))


@pytest.mark.parametrize("answers", [1, 2, 4])
def test_rows_of_an_unfinished_slice_are_kept(run: Run, answers: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Stopped within a slice, its rows so far are stored and not computed again, and the slice has the same bytes."""
    monkeypatch.setattr("ensemble.submit.chunks._AT_ONCE_SECONDS", 0.0)
    done = min(8 * (answers // 3) + 3 * (answers % 3), 21)
    with pytest.raises(Interrupted, match=f"stopped; {done} of 21 images are done"):
        run(batch=3, listener=StopAfter(answers))
    assert early_files(run) == [f"_{run.prefix}-{done // 8:05d}.early"]
    counts: list[int] = []

    class Ear(Listener):
        def progress(self, stage: str, done: int, total: int) -> None:
            counts.append(done)

    run(batch=3, listener=Ear())
    assert counts[0] == done
    assert counts[-1] == 21
    assert early_files(run) == []
    resumed = run.contents()
    run(fresh=True)
    assert run.contents() == resumed


def test_a_killed_run_has_lost_the_last_seconds_only(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """After every answer that comes when it is time, the rows so far are on the disk, and the count says so."""
    monkeypatch.setattr(resumable, "EARLY_SECONDS", 0.0)
    monkeypatch.setattr(Writer, "write", lambda self, write, *, rows: self._run(write, rows))

    class Killed(Exception):
        pass

    class Kill(StopAfter):
        def progress(self, stage: str, done: int, total: int) -> None:
            if self.left == 0:
                assert done == 6
                raise Killed
            self.left -= 1

    with pytest.raises(Killed):
        run(batch=3, listener=Kill(2))
    assert early_files(run) == [f"_{run.prefix}-00000.early"]
    with pytest.raises(Interrupted, match="stopped; 6 of 21"):
        run(batch=3, listener=StopAfter(0))


@pytest.mark.parametrize("harm", ["torn", "other run", "changed image", "fresh"])
def test_rows_that_do_not_belong_to_the_run_are_computed_again(run: Run, harm: str) -> None:
    """What is damaged, of another run or of changed images is removed without a word, and every row computed."""
    with pytest.raises(Interrupted):
        run(batch=3, listener=StopAfter(1))
    path = run.folder / early_files(run)[0]
    if harm == "torn":
        path.write_bytes(path.read_bytes()[:-9])
    elif harm == "other run":
        run.record(path, lambda text: text.replace("CPUExecutionProvider", "Other"))
    elif harm == "changed image":
        with (run.root / "images" / NAMES[5]).open("ab") as file:
            file.write(b"\0")
    with pytest.raises(Interrupted, match="stopped; 0 of 21"):
        run(batch=3, fresh=harm == "fresh", listener=StopAfter(0))
    assert early_files(run) == []


def test_an_unreadable_image_among_the_first_rows_is_named_again(run: Run) -> None:
    """The rows around an unreadable image are kept, and the next run still reports that image."""
    (run.root / "images" / NAMES[1]).write_bytes(b"")
    with pytest.raises(Interrupted, match="stopped; 3 of 21"):
        run(batch=3, listener=StopAfter(1))
    with pytest.raises(UnreadableImagesError, match="1 of 21 images"):
        run(batch=3)
    toys.write_pictures(run.root / "images", NAMES)
    run(batch=3)
    resumed = run.contents()
    run(fresh=True)
    assert run.contents() == resumed


def test_what_earlier_versions_recorded_is_written_as_before() -> None:
    """The keys of an origin and their order are those of every version so far: a chunk says what it lacks only where
    it lacks something, a part always.
    """
    run = Fingerprint({"model": "m", "views": ["identity"], "ids": "i", "provider": "p", "versions": "v"})
    start = '{"model": "m", "views": ["identity"], "ids": "i", "provider": "p", "versions": "v", "sizes": "s"'
    assert Origin(run, "s", 0).to_json() == start + ', "missing": 0}'
    assert Origin(run, "s").to_json() == start + "}"
    for text in (start + "}", start + ', "missing": 0}'):
        assert Origin.parse(text, Path("x")) == Origin(run, "s", 0)


def test_differences_are_named_once_and_in_one_order() -> None:
    """Fingerprints differ by the settings' names; a setting that one of them lacks differs from any value."""
    one = Fingerprint({"ids": "a", "boxes": "b", "views": ["identity"]})
    assert one.differences(one) == ()
    assert one.differences(Fingerprint({"ids": "c", "views": ["identity"]})) == ("image list", "face boxes")
