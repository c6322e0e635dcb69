"""What ends a run for good: a decoder that crashes, memory and disks that are full, files that are torn."""

from __future__ import annotations

import csv
import errno
import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ensemble import files
from ensemble.__main__ import run as run_command
from ensemble.analysis.report import report
from ensemble.card import Preprocess
from ensemble.errors import DataError, DeviceError, EnsError, FileError, PredictionError
from ensemble.events import Recorder
from ensemble.images import sandbox
from ensemble.images.decode import DecodedImage, decode_file, decode_image
from ensemble.images.listing import list_images
from ensemble.images.planes import DecodedPlanes, decode_for
from ensemble.images.sandbox import find_faults
from ensemble.images.views import parse_views
from ensemble.predict import pipeline as pipeline_module
from ensemble.predict.crash_note import NOTE, note, read_note
from ensemble.predict.predict import RUN, predict
from ensemble.predict.result import Predicted
from ensemble.predictions.dataset import COMPLETE, part_path, read_predictions
from ensemble.runtime.device import CPU
from ensemble.runtime.model_file import read_model
from ensemble.runtime.session import Session, start_session
from tests.support import toys
from tests.support.limits import HANG
from tests.support.runs import StopAfter, run_predict

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("small_parts")]

ROOT = Path(__file__).parents[2]
NAMES = [f"{i:02d}.jpg" for i in range(30)]
# in every Python that finds it: a decoder that dies over a comment in the file, and one that takes all memory
SITE = """
import os, signal
from PIL import JpegImagePlugin

plain = JpegImagePlugin.JpegImageFile.load

def load(self, *arguments):
    told = self.info.get("comment", b"")
    if told.startswith(b"SIG"):
        os.kill(os.getpid(), getattr(signal, told.decode()))
    if told == b"memory":
        raise MemoryError
    return plain(self, *arguments)

JpegImagePlugin.JpegImageFile.load = load
"""
# `ens`, with small parts
ENS = """
import sys
from ensemble.predict import parts
from ensemble.submit import chunks
parts.PART_ROWS = 8
chunks.CHUNK_ROWS = {"cpu": 8}
from ensemble.__main__ import run
sys.exit(run(sys.argv[1:]))
"""


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """Thirty pictures: three full parts and one of six rows; a model beside them."""
    toys.write_pictures(tmp_path / "images", NAMES)
    toys.write_model(tmp_path / "models", toys.card("a"))
    return tmp_path / "images"


def comment(path: Path, text: bytes) -> None:
    """Put a comment into a JPEG; its pixels stay as they are."""
    jpeg = path.read_bytes()
    path.write_bytes(jpeg[:2] + b"\xff\xfe" + (len(text) + 2).to_bytes(2, "big") + text + jpeg[2:])


def ens(tmp_path: Path, *arguments: object) -> subprocess.CompletedProcess[str]:
    """Run a command where decoders crash."""
    (tmp_path / "site").mkdir(exist_ok=True)
    (tmp_path / "site" / "sitecustomize.py").write_text(SITE)
    environment = os.environ | {"PYTHONPATH": f"{tmp_path / 'site'}{os.pathsep}{ROOT}"}
    command = [sys.executable, "-c", ENS, *map(str, arguments)]
    return subprocess.run(
        command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False, timeout=HANG
    )


def make_blend(tmp_path: Path, predictions: str) -> None:
    """Write the recipe that blends predictions, in this process."""
    sheet, recipe = (str(tmp_path / name) for name in ("first.csv", "blend.json"))
    assert run_command(["blend", str(tmp_path / predictions), "-o", sheet, "--save", recipe]) == 0


def predict_command(*more: str) -> list[str]:
    return ["predict", "models", "--images", "images", "--device", "cpu", "-b", "2", "-j", "2", "-o", "out", *more]


def run(tmp_path: Path, to: str = "out", **options: Any) -> Predicted:
    settings: dict[str, Any] = {"views": parse_views("identity"), "device": "cpu", "batch": 2, "workers": 2}
    return run_predict([tmp_path / "models" / "a.onnx"], tmp_path / "images", tmp_path / to, **settings | options)


def contents(folder: Path) -> dict[str, bytes]:
    """Every file below a folder but for records of what ran, and locks."""
    kept = [path for path in sorted(folder.rglob("*")) if path.is_file() and path.name not in {RUN, ".lock"}]
    return {str(path.relative_to(folder)): path.read_bytes() for path in kept}


def test_fault_32_a_spreadsheet_computes_nothing_in_errors_csv(tmp_path: Path) -> None:
    """Ids and messages that begin like formulas have an apostrophe before them; others, and all content, stay."""
    names = ["=cmd|' !A1.jpg", "+1.jpg", "-1.jpg", "@x.jpg", "a=b.jpg", "ok.jpg"]
    toys.write_pictures(tmp_path / "images", names)
    toys.write_model(tmp_path / "models", toys.card("a"))
    for name in names[:-1]:
        (tmp_path / "images" / name).write_bytes(b"")
    with pytest.raises(DataError, match="5 of 6"):
        run(tmp_path)
    with open(tmp_path / "out" / "errors.csv", encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert sorted(row["id"] for row in rows) == sorted(f"'{name}" if name[0] in "=+-@" else name for name in names[:-1])
    assert all(row["message"].startswith(f"{row['id']}: ") for row in rows)
    assert not any(cell.startswith(("=", "+", "-", "@")) for row in rows for cell in row.values())


def test_fault_65_a_decoder_that_crashes_costs_its_image_alone(tmp_path: Path, images: Path) -> None:
    """The run dies with the decoder; the same command finds both files that do it, names them with E325, and does all
    others; no other image is lost, and none is decoded in the run again that crashed.
    """
    run(tmp_path, "good")
    comment(images / "13.jpg", b"SIGSEGV")
    comment(images / "14.jpg", b"SIGABRT")
    first = ens(tmp_path, *predict_command())
    assert first.returncode in {-signal.SIGSEGV, -signal.SIGABRT}
    assert (tmp_path / "out" / "a" / NOTE).exists()
    second = ens(tmp_path, *predict_command())
    assert second.returncode == 3, second.stderr
    assert "warning[W325]" in second.stderr
    assert "[E325] 13.jpg: crashes the decoder (SIGSEGV)" in second.stderr
    assert "[E325] 14.jpg: crashes the decoder (SIGABRT)" in second.stderr
    assert not (tmp_path / "out" / "a" / NOTE).exists()
    # what is known stays known: nothing crashes any more, and the policy can be chosen without computing
    third = ens(tmp_path, *predict_command("--on-bad-image", "skip", "--json"))
    assert third.returncode == 0, third.stderr
    shown = json.loads(third.stdout)
    assert (shown["missing"], shown["members"][0]["computed"]) == (["13.jpg", "14.jpg"], 0)
    found, whole = (read_predictions(tmp_path / folder / "a") for folder in ("out", "good"))
    assert found.ids == tuple(name for name in NAMES if name not in {"13.jpg", "14.jpg"})
    for name, logits in zip(found.ids, found.logits["identity"], strict=True):
        assert (logits == whole.logits["identity"][whole.ids.index(name)]).all()
    for name in ("13.jpg", "14.jpg"):
        (images / name).write_bytes(toys.encode(toys.picture(NAMES.index(name))))
    assert ens(tmp_path, *predict_command()).returncode == 0
    assert contents(tmp_path / "out") == contents(tmp_path / "good")


@pytest.mark.parametrize("early", [[], ["--early-exit", "exact"], ["--budget", "1h", "--early-exit", "exact"]])
def test_fault_65_submit_gets_past_a_crash_too(tmp_path: Path, images: Path, early: list[str]) -> None:
    """After the run that crashed (two of them where a budget is measured first) the submission is written."""
    comment(images / "05.jpg", b"SIGSEGV")
    predictions = tmp_path / "recipe"
    (tmp_path / "few").mkdir()
    (tmp_path / "few" / "00.jpg").write_bytes((images / "00.jpg").read_bytes())
    predict([tmp_path / "models" / "a.onnx"], tmp_path / "few", predictions, views=parse_views("identity"))
    make_blend(tmp_path, "recipe")
    command = ["submit", "blend.json", "--images", "images", "--models", "models", "-o", "out.csv", "--device", "cpu"]
    command += ["--work", "work", "-j", "1", "--on-bad-image", "fill", *early]
    crashes = 2 if "--budget" in early else 1
    statuses = [ens(tmp_path, *command).returncode for _ in range(crashes + 1)]
    assert statuses == [-signal.SIGSEGV] * crashes + [0]
    assert len((tmp_path / "out.csv").read_text().splitlines()) == 1 + len(NAMES)
    assert ens(tmp_path, *command).returncode == 0


@pytest.mark.parametrize("submits", [False, True])
def test_fault_65_a_crash_stays_known_when_images_beside_it_change(tmp_path: Path, images: Path, submits: bool) -> None:
    """A part that is done again, as another of its images has been mended, decodes the image that crashes nowhere but
    in a process of its own.
    """
    command = predict_command()
    if submits:
        run(tmp_path, "preds")
        make_blend(tmp_path, "preds")
        command = ["submit", "blend.json", "--images", "images", "--models", "models", "-o", "out.csv"]
        command += ["--device", "cpu", "--work", "work", "--early-exit", "exact", "-j", "1"]
    comment(images / "13.jpg", b"SIGSEGV")
    (images / "14.jpg").write_bytes(b"")
    assert [ens(tmp_path, *command).returncode for _ in range(2)] == [-signal.SIGSEGV, 3]
    (images / "14.jpg").write_bytes(toys.encode(toys.picture(14)))
    again = ens(tmp_path, *command)
    assert again.returncode == 3, again.stderr
    assert "error[E326] 1 of 30 images" in again.stderr
    assert "[E325] 13.jpg: crashes the decoder (SIGSEGV)" in again.stderr


def test_fault_65_a_killed_run_is_no_crash(tmp_path: Path, images: Path) -> None:
    """Where a run was killed, the images that it was at are tried alone, nothing is found, and it goes on to the bytes
    of an undisturbed run; nothing is noted any more when that has ended.
    """
    run(tmp_path, "good")
    comment(images / "13.jpg", b"SIGKILL")
    assert ens(tmp_path, *predict_command()).returncode == -signal.SIGKILL
    (images / "13.jpg").write_bytes(toys.encode(toys.picture(13)))
    recorder = Recorder()
    assert run(tmp_path, listener=recorder).missing == ()
    assert [notice.code for notice in recorder.notices] == ["W325"]
    assert contents(tmp_path / "out") == contents(tmp_path / "good")
    assert not list(tmp_path.rglob(NOTE))


def test_in_the_normal_path_no_process_is_started(
    tmp_path: Path, images: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither a run, nor one that goes on after Ctrl-C, nor a finished one tries images alone."""
    monkeypatch.setattr(sandbox, "DecoderProcess", None)
    with pytest.raises(EnsError, match="E801"):
        run(tmp_path, listener=Recorder(StopAfter(6)))
    assert not list(tmp_path.rglob(NOTE))
    for computed in (18, 0):
        assert run(tmp_path).members[0].computed == computed


def test_images_are_tried_one_by_one_in_one_process(
    tmp_path: Path, images: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whole images pass, damaged ones get the error that they always get, and one process does for all of them."""
    (images / "04.jpg").write_bytes(b"")
    (images / "05.jpg").write_bytes((images / "05.jpg").read_bytes()[:300])
    listing = list_images(images)
    (images / "06.jpg").unlink()
    started: list[object] = []
    original = sandbox.DecoderProcess.__init__

    def count(self: sandbox.DecoderProcess) -> None:
        started.append(self)
        original(self)

    monkeypatch.setattr(sandbox.DecoderProcess, "__init__", count)
    faults = find_faults(listing, range(len(listing)))
    assert {listing.ids[row]: fault.code for row, fault in faults.items()} == {
        "04.jpg": "E302",
        "05.jpg": "E301",
        "06.jpg": "E314",
    }
    with pytest.raises(DataError) as caught:
        decode_file((images / "05.jpg").read_bytes(), images / "05.jpg")
    assert vars(faults[5]) == vars(caught.value)
    assert len(started) == 1
    assert find_faults(listing, []) == {}


def test_a_process_that_does_not_start_blames_no_image(images: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where Python itself fails there, that is said, and no image is called a crasher."""
    monkeypatch.setattr(sandbox, "_SERVE", "raise SystemExit(1)")
    with pytest.raises(RuntimeError, match="does not start"):
        find_faults(list_images(images), [0])


def test_no_room_for_a_process_is_no_bug(images: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A limit on processes, or of memory, is E603 and says what to do; any other error of the system is left alone."""

    def refuse(number: int) -> None:
        def start(*_: object, **__: object) -> None:
            raise OSError(number, os.strerror(number))

        monkeypatch.setattr(subprocess, "Popen", start)

    for number in (errno.EAGAIN, errno.ENOMEM):
        refuse(number)
        with pytest.raises(DeviceError, match="no room for the process") as caught:
            find_faults(list_images(images), [0])
        assert caught.value.code == "E603"
    refuse(errno.ENOENT)
    with pytest.raises(FileNotFoundError):
        find_faults(list_images(images), [0])


def test_the_process_finds_the_package_where_the_run_did(images: Path, tmp_path: Path) -> None:
    """Also where that is the working folder, which Python writes as an empty entry of its path."""
    code = "import sys; sys.path[0] = ''; from ensemble.images.sandbox import DecoderProcess; DecoderProcess().close()"
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    (tmp_path / "here").mkdir()
    (tmp_path / "here" / "ensemble").symlink_to(ROOT / "ensemble")
    subprocess.run([sys.executable, "-c", code], cwd=tmp_path / "here", env=environment, check=True, timeout=HANG)


def test_a_stop_ends_the_process(images: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ctrl-C while it starts, or while it decodes, leaves no child behind."""
    real, children = subprocess.Popen, list[Any]()

    def start(*arguments: Any, **options: Any) -> Any:
        children.append(real(*arguments, **options))
        return children[-1]

    monkeypatch.setattr(subprocess, "Popen", start)
    for at in (1, 2):
        asked = iter(range(1, 9))

        def stop(process: sandbox.DecoderProcess, at: int = at, asked: Any = asked) -> bytes:
            if next(asked) == at:
                raise KeyboardInterrupt
            assert process._child.stdout is not None
            return bytes(process._child.stdout.readline())

        monkeypatch.setattr(sandbox.DecoderProcess, "_read", stop)
        with pytest.raises(KeyboardInterrupt):
            find_faults(list_images(images), [0])
        assert children[-1].poll() == -signal.SIGKILL
    assert len(children) == 2


@pytest.mark.parametrize("text", [b"", b"x y\n", b"3", b"0 99999999999\n", b"5 2\n", b"\xff"])
def test_fault_74_a_torn_note_is_no_note(tmp_path: Path, images: Path, text: bytes) -> None:
    """A note that the power failed over, or of parts that there are not, keeps nothing from going on."""
    run(tmp_path, "good")
    (tmp_path / "out" / "a").mkdir(parents=True)
    (tmp_path / "out" / "a" / NOTE).write_bytes(text)
    run(tmp_path)
    assert contents(tmp_path / "out") == contents(tmp_path / "good")


@pytest.mark.parametrize("name", ["part-00001.parquet", COMPLETE, RUN])
@pytest.mark.parametrize("share", [0.0, 0.5, 0.99])
def test_fault_74_whatever_file_is_torn_the_same_command_mends_it(
    tmp_path: Path, images: Path, name: str, share: float
) -> None:
    """There is no journal whose last line could be torn: parts, marker and record are files of their own. One that is
    cut short anywhere is never believed by a reader, and the same command leaves what an undisturbed run leaves.
    """
    run(tmp_path, "good")
    run(tmp_path)
    torn = tmp_path / "out" / "a" / name
    data = torn.read_bytes()
    torn.write_bytes(data[: int(share * len(data))])
    readers: list[Callable[[], Any]] = [lambda: report([tmp_path / "out"])]
    if name != RUN:
        readers.append(lambda: read_predictions(tmp_path / "out" / "a"))
    for read in readers:
        with pytest.raises(PredictionError, match="E514"):
            read()
    run(tmp_path)
    assert contents(tmp_path / "out") == contents(tmp_path / "good")
    assert json.loads((tmp_path / "out" / "a" / RUN).read_text())["member"] == "a"
    for read in readers:
        read()


def test_fault_63_memory_that_runs_out_while_decoding_keeps_what_is_done(
    tmp_path: Path, images: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """MemoryError is E603 with status 6 and says what to lower; finished parts are kept; the images concerned are first
    tried alone by the next run, which ends with the bytes of an undisturbed one.
    """
    run(tmp_path, "good")

    def fail(data: bytes, path: Path, preprocess: Preprocess) -> DecodedImage | DecodedPlanes:
        if path.name == "13.jpg":
            raise MemoryError
        return decode_for(data, path, preprocess)

    with monkeypatch.context() as patch:
        patch.setattr(pipeline_module, "decode_for", fail)
        with pytest.raises(DeviceError, match="E603") as caught:
            run(tmp_path)
    assert caught.value.exit_status == 6
    assert all(option in caught.value.hint for option in ("--memory", "--batch", "--workers"))
    assert part_path(tmp_path / "out" / "a", 0).exists()
    recorder = Recorder()
    again = run(tmp_path, listener=recorder)
    assert (again.members[0].computed, [notice.code for notice in recorder.notices]) == (22, ["W325"])
    assert contents(tmp_path / "out") == contents(tmp_path / "good")


def test_fault_63_an_image_that_takes_all_memory_even_alone_is_a_bad_image(tmp_path: Path, images: Path) -> None:
    """The first run ends with E603; the second tries it alone, names it with E325, and does the others."""
    comment(images / "13.jpg", b"memory")
    first = ens(tmp_path, *predict_command())
    assert (first.returncode, first.stderr[:11]) == (6, "error[E603]")
    second = ens(tmp_path, *predict_command("--on-bad-image", "skip"))
    assert second.returncode == 0, second.stderr
    assert "13.jpg: decoding it takes more memory than there is" in (tmp_path / "out" / "errors.csv").read_text()


def test_fault_63_too_little_memory_is_not_called_damage(monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither Python's MemoryError nor Pillow's own words for it make a whole image a damaged one."""
    from PIL import ImageFile

    for error in (MemoryError(), OSError("out of memory error when reading image file")):

        def load(self: ImageFile.ImageFile, error: Exception = error) -> None:
            raise error

        monkeypatch.setattr(ImageFile.ImageFile, "load", load)
        with pytest.raises(MemoryError):
            decode_image(toys.encode(toys.picture(0)))


class Full:
    """A model that needs more than the machine has."""

    def run(self, outputs: Any, feed: Any) -> Any:
        raise RuntimeError("[ONNXRuntimeError] : 6 : RUNTIME_EXCEPTION : Non-zero status code: std::bad_alloc")


def test_fault_63_memory_that_runs_out_in_a_model_is_the_machines(
    tmp_path: Path, images: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The batch is halved as on a GPU; where one image is too much, or the model itself, that is E603 on the CPU."""

    def start_full(*args: Any, **options: Any) -> Session:
        session = start_session(*args, **options)
        return Session(session.card, session.sha256, session.device, Full())

    recorder = Recorder()
    with monkeypatch.context() as patch:
        patch.setattr("ensemble.runtime.start.start_session", start_full)
        with pytest.raises(DeviceError, match="E603") as caught:
            run(tmp_path, listener=recorder)
    assert "--batch" in caught.value.hint
    assert {notice.code for notice in recorder.notices} == {"W602"}

    def fail(*_: Any, **__: Any) -> Any:
        raise MemoryError("std::bad_alloc")

    monkeypatch.setattr("ensemble.runtime.session.create_session", fail)
    with pytest.raises(DeviceError, match=r"E603.*to load a"):
        start_session(read_model(tmp_path / "models" / "a.onnx"), device=CPU)


def test_fault_63_memory_that_runs_out_anywhere_is_no_bug(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A command that has no memory left for anything else ends with E603 and status 6, not with a crash report."""

    def fail(*_: Any, **__: Any) -> Any:
        raise MemoryError

    monkeypatch.setattr("ensemble.cli.ens.main", fail)
    assert run_command(["doctor"]) == 6
    assert "error[E603]" in capsys.readouterr().err


LIMITED = """
import resource, sys
from pathlib import Path
import numpy as np
from ensemble.predict import parts, pipeline
from ensemble.images.planes import decode_for
from ensemble.__main__ import run
parts.PART_ROWS = 8
def limited(data, path, preprocess):
    if path.name == "29.jpg":  # everything has started: from here on there is room for no large picture
        pages = int(Path("/proc/self/statm").read_text().split()[0])
        resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + (8 << 20), resource.RLIM_INFINITY))
    return decode_for(data, path, preprocess)
pipeline.decode_for = limited
sys.exit(run(sys.argv[1:]))
"""


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="the limit is set by what /proc tells")
def test_fault_63_a_real_limit_of_memory_is_told(tmp_path: Path, images: Path) -> None:
    """A picture of 48 MP under a limit that leaves 8 MB of address space is E603; without the limit the run goes on."""
    from PIL import Image

    Image.new("RGB", (8000, 6000), (10, 20, 30)).save(images / "29.jpg", quality=20)
    command = [sys.executable, "-c", LIMITED, *predict_command("--memory", "4G")]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    ended = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=HANG)
    assert (ended.returncode, ended.stderr[:11]) == (6, "error[E603]"), ended.stderr
    assert part_path(tmp_path / "out" / "a", 0).exists()
    run(tmp_path)
    run(tmp_path, "good")
    assert contents(tmp_path / "out") == contents(tmp_path / "good")


@pytest.mark.parametrize("step", ["fsync", "replace"])
@pytest.mark.parametrize("name", ["part-00000.parquet", "part-00002.parquet", "part-00003.parquet", COMPLETE, RUN])
def test_fault_66_a_disk_that_is_full_at_any_file_is_told(
    tmp_path: Path, images: Path, monkeypatch: pytest.MonkeyPatch, step: str, name: str
) -> None:
    """ENOSPC at the sync or the rename of any file is E701 with status 7; for parts it says how much is done and how
    much room to make. The same command then leaves the bytes of an undisturbed run.
    """
    run(tmp_path, "good")
    at = threading.local()  # the note of what is under way is written beside the writer's thread
    plain_write, plain_step = files.write_atomic, getattr(os, step)

    def write(path: Path, *args: Any, **options: Any) -> Path:
        at.name = path.name
        return plain_write(path, *args, **options)

    def fail(*args: Any) -> Any:
        if getattr(at, "name", "") == name:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return plain_step(*args)

    with monkeypatch.context() as patch:
        patch.setattr(files, "write_atomic", write)
        patch.setattr("ensemble.predictions.dataset.write_atomic", write)
        patch.setattr(os, step, fail)
        with pytest.raises(FileError, match=r"E701.*takes [\d,]+ bytes") as caught:
            run(tmp_path)
    assert caught.value.exit_status == 7
    if name.startswith("part"):
        done = int(name[9]) * 8
        assert f"{done} of 30 images are done and kept" in caught.value.message
        assert caught.value.hint == "free 1 MB and run the same command again: it resumes where it stopped"
    assert not list(tmp_path.rglob("*.tmp"))
    run(tmp_path)
    assert contents(tmp_path / "out") == contents(tmp_path / "good")
    assert (tmp_path / "out" / "a" / RUN).exists()


FULL = """
import resource, sys
from ensemble.predict import parts
from ensemble.__main__ import run
parts.PART_ROWS = 8
plain = parts.write_part
def write_part(path, *arguments):
    if path.name == "part-00002.parquet":
        resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
    plain(path, *arguments)
parts.write_part = write_part
sys.exit(run(sys.argv[1:]))
"""


def test_fault_66_a_real_limit_is_told_by_the_command(tmp_path: Path, images: Path) -> None:
    """A real EFBIG in the third part: E701, what is done, how much is left, status 7; the command goes on the same."""
    run(tmp_path, "good")
    command = [sys.executable, "-c", FULL, *predict_command()]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    ended = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=HANG)
    assert ended.returncode == 7, ended.stderr
    told, hint = ended.stderr.splitlines()[-2:]
    assert told.startswith(
        "error[E701] the limit on the size of a file is reached: out/a/part-00002.parquet was not written"
    )
    assert told.endswith("16 of 30 images are done and kept")
    assert "raise it (ulimit -f unlimited)" in hint
    assert hint.endswith("run the same command again, which takes 1 MB and resumes where it stopped")
    assert run(tmp_path).members[0].computed == 14
    assert contents(tmp_path / "out") == contents(tmp_path / "good")


def test_notes_are_read_as_they_are_written(tmp_path: Path) -> None:
    """The first and the last part that are under way, and all between; without a file, none."""
    assert list(read_note(tmp_path)) == []
    note(tmp_path, 2, 4)
    assert list(read_note(tmp_path)) == [2, 3, 4]
