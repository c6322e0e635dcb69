"""Writing: all or nothing, one writer at a time, and nothing left behind."""

from __future__ import annotations

import errno
import hashlib
import os
import signal
import stat
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ensemble.errors import DiskFullError, FileError, LockedError
from ensemble.files import locked, remove, require_writable, sha256_file, write_atomic
from tests.support.limits import HANG
from tests.support.nobody import as_nobody

ROOT = Path(__file__).parents[1]


def content(folder: Path) -> dict[str, bytes]:
    """Every file in the folder, hidden ones too."""
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


def python(code: str, argument: Path) -> subprocess.CompletedProcess[str]:
    """Run the code in another Python process, from the project's folder."""
    command = [sys.executable, "-c", code, str(argument)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=HANG)


@pytest.mark.parametrize("sync", [True, False])
@pytest.mark.parametrize("name", ["x.csv", "한" * 85, "😷" * 63, ".hidden", "=1,\n"])
def test_a_file_is_written_whole(tmp_path: Path, name: str, sync: bool) -> None:
    """Bytes go in as they are, under names of up to 255 bytes, in folders that were not there, over an older file."""
    path = tmp_path / "new" / "folder" / name
    for data in (b"old, and longer", b"new", memoryview(b"view"), b""):
        assert write_atomic(path, data, sync=sync) == path
        assert content(path.parent) == {name: bytes(data)}


def test_written_files_have_the_usual_rights(tmp_path: Path) -> None:
    """A file gets the rights that the user's umask gives to new files, and not those of a private temporary file."""
    for mask, mode in ((0o022, 0o644), (0o077, 0o600)):
        before = os.umask(mask)
        try:
            path = write_atomic(tmp_path / f"{mask}", b"x")
        finally:
            os.umask(before)
        assert stat.S_IMODE(path.stat().st_mode) == mode


@pytest.mark.parametrize("step", ["fsync", "replace"])
@pytest.mark.parametrize(
    ("number", "code"),
    [
        (errno.ENOSPC, r"E701\] the disk is full: .*x\.csv was not written, which takes 3 bytes"),
        (errno.EDQUOT, r"E701\] your quota of disk space is used up: .*x\.csv was not written"),
        (errno.EFBIG, r"E701\] the limit on the size of a file is reached: .*x\.csv was not written"),
        (errno.EROFS, r"E702\] the file system is read-only: .*x\.csv was not written"),
        (errno.EIO, r"E702\] .*x\.csv cannot be written: Input/output error"),
    ],
    ids=lambda value: errno.errorcode.get(value, ""),
)
def test_fault_66_a_failed_write_leaves_the_old_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str, number: int, code: str
) -> None:
    """When the disk fills up or fails before the file has its name, the old file is unchanged and alone."""
    path = write_atomic(tmp_path / "x.csv", b"old")

    def fail(*_: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, step, fail)
    with pytest.raises(FileError, match=code):
        write_atomic(path, b"new")
    assert content(tmp_path) == {"x.csv": b"old"}


def test_a_disk_without_inodes_is_not_called_full(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """ENOSPC with free blocks and no free inode: removing one large file would not help."""

    def fail(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", fail)
    for files, free, told in (
        (1000, 0, "inodes are used up"),
        (1000, 5, "the disk is full"),
        (0, 0, "the disk is full"),
    ):
        status = os.statvfs_result((4096, 4096, 1000, 500, 400, files, free, free, 0, 255))
        monkeypatch.setattr(os, "statvfs", lambda _, status=status: status)
        with pytest.raises(DiskFullError, match=told):
            write_atomic(tmp_path / "x.csv", b"new")


def test_fault_66_a_file_size_limit_keeps_the_old_file(tmp_path: Path) -> None:
    """A real EFBIG in the middle of the bytes is E701, with the old file whole and no temporary file."""
    write_atomic(tmp_path / "x.csv", b"old")
    code = """
import resource, sys
from pathlib import Path
from ensemble.errors import FileError
from ensemble.files import locked, write_atomic
folder = Path(sys.argv[1])
resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
for size in (1000, 1001, 10_000_000):
    try:
        write_atomic(folder / "x.csv", b"new" if size == 1000 else bytes(size))
    except FileError as err:
        print(err.code, err.exit_status)
resource.setrlimit(resource.RLIMIT_FSIZE, (0, 1000))
try:
    with locked(folder):
        pass
except FileError as err:
    print(err.code)
"""
    ended = python(code, tmp_path)
    assert (ended.stdout, ended.stderr) == ("E701 7\nE701 7\nE701\n", "")
    assert content(tmp_path) == {"x.csv": b"new"}


DIE = """
import os, signal, sys
from pathlib import Path
from ensemble.files import write_atomic
os.replace = lambda *_: os.kill(os.getpid(), signal.SIGKILL)
write_atomic(Path(sys.argv[1]), b"new")
"""


def test_fault_51_a_killed_writer_leaves_the_old_file(tmp_path: Path) -> None:
    """Killed after the bytes and before the name, a writer leaves the old file; the next lock clears its leftover."""
    write_atomic(tmp_path / "x.csv", b"old")
    (tmp_path / ".mine.tmp").write_bytes(b"somebody else's")
    assert python(DIE, tmp_path / "x.csv").returncode == -signal.SIGKILL
    assert (tmp_path / "x.csv").read_bytes() == b"old"
    assert len(content(tmp_path)) == 3
    with locked(tmp_path):
        assert content(tmp_path).keys() == {"x.csv", ".lock", ".mine.tmp"}


def test_what_a_killed_writer_left_goes_with_the_next_writing(tmp_path: Path) -> None:
    """Temporary files of dead processes are removed by the next writer in that folder; those of live ones are kept."""
    attempts: list[Callable[[], Path]] = [
        lambda: write_atomic(tmp_path / "x.csv", b"x"),
        lambda: require_writable(tmp_path),
    ]
    for attempt in attempts:
        assert python(DIE, tmp_path / "x.csv").returncode == -signal.SIGKILL
        (left,) = tmp_path.glob("*.tmp")
        others = [left.name.replace(f"-{left.name.split('-')[2]}-", f"-{os.getpid()}-"), ".ens-0-1-a.tmp", "own.tmp"]
        for name in others:
            (tmp_path / name).write_bytes(b"under way")
        attempt()
        assert content(tmp_path).keys() - {"x.csv"} == set(others)
        for name in others:
            (tmp_path / name).unlink()


def test_readers_see_the_old_or_the_new_file(tmp_path: Path) -> None:
    """While a file is replaced repeatedly, readers always get one complete version."""
    versions = [bytes([letter]) * 200_000 for letter in b"abc"]
    path = write_atomic(tmp_path / "x", versions[0])
    stop = threading.Event()

    def replace() -> None:
        while not stop.is_set():
            for version in versions:
                write_atomic(path, version, sync=False)

    writer = threading.Thread(target=replace)
    writer.start()
    try:
        seen = {path.read_bytes() for _ in range(300)}
    finally:
        stop.set()
        writer.join()
    assert seen <= set(versions)


def test_fault_67_places_that_cannot_be_written_are_told(tmp_path: Path) -> None:
    """A closed folder, a file where a folder should be, and a folder where the file should be are E702."""
    tmp_path.chmod(0o755)
    (tmp_path / "closed").mkdir(mode=0o555)
    (tmp_path / "file").touch()
    attempts: list[tuple[Callable[[Path], Any], str]] = [
        (lambda path: write_atomic(path, b"x"), "closed/x"),
        (lambda path: write_atomic(path, b"x"), "closed/new/x"),
        (lambda path: write_atomic(path, b"x"), "file/x"),
        (lambda path: write_atomic(path, b"x"), "closed"),
        (lambda path: write_atomic(path, b"x"), "."),
        (lambda path: write_atomic(path, b"x"), "x" * 256),
        (require_writable, "closed"),
        (require_writable, "closed/new"),
        (require_writable, "file"),
        (lambda path: locked(path).__enter__(), "closed"),
        (remove, "closed"),
    ]
    for attempt, name in attempts:
        with as_nobody(tmp_path), pytest.raises(FileError, match="E702") as caught:
            attempt(Path(name))
        assert caught.value.exit_status == 7
    assert content(tmp_path).keys() == {"file"}
    assert content(tmp_path / "closed") == {}


def test_devices_are_not_replaced(tmp_path: Path) -> None:
    """Writing to a device or a FIFO is E702: renaming over /dev/null would take it away from the whole system."""
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "link").symlink_to("/dev/null")  # never the device itself: were this test to fail, root would lose it
    for name in ("fifo", "link"):
        with pytest.raises(FileError, match=r"E702.*not a regular file"):
            write_atomic(tmp_path / name, b"x")
    assert (tmp_path / "fifo").is_fifo()
    assert (tmp_path / "link").is_symlink()


@pytest.mark.parametrize("sync", [True, False])
def test_a_symbolic_link_stays(tmp_path: Path, sync: bool) -> None:
    """Writing to a link, or to one that leads to another, replaces the file at its end, which may not be there yet."""
    (tmp_path / "there").mkdir()
    target = tmp_path / "there" / "file"
    (tmp_path / "link").symlink_to("there/file")
    (tmp_path / "second").symlink_to(tmp_path / "link")
    for name, data in (("second", b"one"), ("link", b"two")):
        assert write_atomic(tmp_path / name, data, sync=sync) == tmp_path / name
        assert target.read_bytes() == data
        assert (tmp_path / name).is_symlink()
    assert [path.name for path in (tmp_path / "there").iterdir()] == ["file"]


def test_a_loop_of_symbolic_links_is_an_error(tmp_path: Path) -> None:
    """A link that leads to itself, by way of another too, is E702, and both stay."""
    (tmp_path / "a").symlink_to("b")
    (tmp_path / "b").symlink_to("a")
    with pytest.raises(FileError, match=r"E702.*leads to itself"):
        write_atomic(tmp_path / "a", b"x")
    assert (tmp_path / "a").is_symlink()


def test_require_writable_leaves_nothing(tmp_path: Path) -> None:
    """Proving that a folder can be written makes the folder and leaves no file in it."""
    folder = require_writable(tmp_path / "a" / "b")
    assert folder.is_dir()
    assert list(folder.iterdir()) == []


HOLD = """
import sys
from pathlib import Path
from ensemble.files import locked
with locked(Path(sys.argv[1])):
    print("held", flush=True)
    sys.stdin.read()
"""


TRY = """
import sys
from pathlib import Path
from ensemble.errors import EnsError
from ensemble.files import locked
try:
    with locked(Path(sys.argv[1])):
        print("got it")
except EnsError as err:
    print(err)
    sys.exit(err.exit_status)
"""


def test_fault_70_one_writer_at_a_time(tmp_path: Path) -> None:
    """A second process is refused with E703 and exit status 75, and the message has the first one's process id."""
    with locked(tmp_path):
        second = python(TRY, tmp_path)
    assert second.returncode == 75
    assert second.stdout.startswith(f"[E703] pid {os.getpid()}, since ")
    assert python(TRY, tmp_path).stdout == "got it\n"


def test_fault_70_a_process_does_not_get_its_own_lock_twice(tmp_path: Path) -> None:
    """Within a process, the same folder is locked as well; other folders are not, and leaving frees it."""
    with locked(tmp_path / "a"):
        with locked(tmp_path / "b"), pytest.raises(LockedError, match=f"pid {os.getpid()}"), locked(tmp_path / "a"):
            pass
        with pytest.raises(LockedError), locked(tmp_path / "a"):
            pass
    with locked(tmp_path / "a"), pytest.raises(KeyError), locked(tmp_path / "b"):
        raise KeyError
    with locked(tmp_path / "a"), locked(tmp_path / "b"):
        pass


def test_errors_inside_a_lock_are_not_the_locks(tmp_path: Path) -> None:
    """An `OSError` of the work that is done under the lock comes out as it is."""
    with pytest.raises(FileNotFoundError), locked(tmp_path):
        (tmp_path / "missing").read_bytes()


def test_fault_71_a_killed_writer_frees_its_lock(tmp_path: Path) -> None:
    """The kernel frees the lock of a process that is killed; its lock file does not count."""
    command = [sys.executable, "-c", HOLD, str(tmp_path)]
    with subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        with pytest.raises(LockedError, match=f"pid {holder.pid}"), locked(tmp_path):
            pass
        holder.kill()
        holder.wait(timeout=HANG)
    assert str(holder.pid) in (tmp_path / ".lock").read_text()
    with locked(tmp_path):
        assert (tmp_path / ".lock").read_text().startswith(f"pid {os.getpid()}, since ")


def test_fault_75_file_systems_without_locks_are_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the file system has no locks, that is E702 and not a raw `OSError`."""
    import fcntl

    def refuse(*_: object) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "flock", refuse)
    with pytest.raises(FileError, match=r"E702.*[Nn]o locks"), locked(tmp_path):
        pass


def test_remove_is_content_with_nothing(tmp_path: Path) -> None:
    """Removing takes the file away, and does not mind when it is not there."""
    path = write_atomic(tmp_path / "x", b"x")
    remove(path)
    remove(path)
    assert content(tmp_path) == {}


def test_sha256_is_of_the_bytes(tmp_path: Path) -> None:
    """The hash is SHA-256 of the whole content, also of large files; what cannot be read is E707."""
    data = bytes(range(256)) * 5000
    assert sha256_file(write_atomic(tmp_path / "x", data)) == hashlib.sha256(data).hexdigest()
    for path in (tmp_path, tmp_path / "missing"):
        with pytest.raises(FileError, match="E707"):
            sha256_file(path)


def test_standard_output_is_no_file(tmp_path: Path) -> None:
    """/dev/stdout leads to a pipe, which has no path: the error names what was given, not the pipe's number."""
    code = """
import sys
from pathlib import Path
from ensemble.errors import FileError
from ensemble.files import write_atomic
try:
    write_atomic(Path("/dev/stdout"), b"x")
except FileError as err:
    print(err)
"""
    assert python(code, tmp_path).stdout == "[E702] /dev/stdout is not a regular file\n"


def test_a_link_that_cannot_be_followed_is_an_error(tmp_path: Path) -> None:
    """One to a name that is too long for the file system."""
    link = tmp_path / "link"
    link.symlink_to("x" * 300)
    with pytest.raises(FileError) as caught:
        write_atomic(link, b"")
    assert caught.value.code in {"E701", "E702"}
    assert link.is_symlink()
