"""The only module that writes files: atomic writes, and the lock on a run's folder."""

from __future__ import annotations

import contextlib
import errno
import functools
import hashlib
import os
import platform
import re
import secrets
import sys
import time
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path

from ensemble.errors import DiskFullError, FileError, LockedError, OptionError

_AGAIN = "and run the same command again"
_NO_ROOM = {  # what happened and what to do, by the number of the error
    errno.ENOSPC: ("the disk is full", f"free some space {_AGAIN}"),
    errno.EDQUOT: (
        "your quota of disk space is used up",
        f"remove files of yours, or ask for a larger quota, {_AGAIN}",
    ),
    errno.EFBIG: (
        "the limit on the size of a file is reached",
        f"raise it (ulimit -f unlimited), or write to another file system, {_AGAIN}",
    ),
}
_NO_MORE_FILES = (
    "the disk has no room for another file (its inodes are used up)",
    f"remove files, however small (df -i counts them), {_AGAIN}",
)
_PREFIX = ".ens-"


def write_atomic(path: Path, data: bytes | memoryview, *, sync: bool = True) -> Path:
    """Write ``data`` to ``path`` atomically: a reader sees either the old file or the whole new one.

    The bytes go to a temporary file in the same folder, are synced to the disk, and take the final name in one step.
    Missing parent folders are created, and temporary files of killed processes there are removed. ``sync=False`` skips
    that and leaves the syncing to the system: ten times as fast, for thousands of small files that can be recomputed
    after a power failure. A symbolic link stays, and the file it leads to is replaced.

    Raises:
        FileError: E701 when the disk is full, E702 when the path cannot be written. Neither leaves a file behind.
    """
    if os.path.islink(path):  # and not path.is_symlink(), which raises for names that are too long
        return _write_through(path, data, sync=sync)
    temporary = _temporary(path.parent)
    try:
        if path.exists() and not path.is_file():  # /dev/null must not be replaced by a file
            raise FileError("E702", f"{path} is not a regular file", path=path)
        path.parent.mkdir(parents=True, exist_ok=True)
        if sync:
            _clear_leftovers(path.parent)
        try:
            with open(temporary, "xb") as f:
                f.write(data)
                if sync:
                    f.flush()
                    os.fsync(f.fileno())
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)
        if sync:
            _sync_folder(path.parent)
    except OSError as err:
        raise _file_error(err, path, size=len(data)) from err
    return path


def _write_through(link: Path, data: bytes | memoryview, *, sync: bool) -> Path:
    target = Path(os.path.realpath(link))
    try:
        exists = link.exists()
    except OSError as err:  # the name it leads to is too long, or in a folder without permission
        raise _file_error(err, link) from err
    if exists and not link.is_file():  # /dev/stdout into a pipe, whose real path is no path
        raise FileError("E702", f"{link} is not a regular file", path=link)
    if os.path.islink(target):
        raise FileError("E702", f"{link} is a symbolic link that leads to itself", path=link)
    write_atomic(target, data, sync=sync)
    return link


def remove(path: Path) -> None:
    """Remove a file if it is there.

    Raises:
        FileError: E702 when there is no permission to remove it.
    """
    try:
        path.unlink(missing_ok=True)
    except OSError as err:
        raise _file_error(err, path) from err


def remove_folder(folder: Path, names: re.Pattern[str]) -> None:
    """Remove the files of a folder whose names match, temporary files there, and the folder if nothing else is in it.

    Raises:
        FileError: E702 when there is no permission to remove them.
    """
    try:
        with os.scandir(folder) as entries:
            found = [entry for entry in entries if not entry.is_dir(follow_symlinks=False)]
        for entry in found:
            if names.fullmatch(entry.name) or (entry.name.startswith(_PREFIX) and entry.name.endswith(".tmp")):
                os.unlink(entry.path)
        with contextlib.suppress(OSError):  # somebody else's files are in it
            folder.rmdir()
    except FileNotFoundError:
        return
    except OSError as err:
        raise _file_error(err, folder) from err


def require_writable(folder: Path) -> Path:
    """Create the folder if needed and check that it is writable, before any work is done.

    Temporary files of killed processes there are removed.

    Raises:
        FileError: E701 or E702 when it cannot be.
    """
    probe = _temporary(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        _clear_leftovers(folder)
        try:
            with open(probe, "xb") as f:
                f.write(b"ens")
        finally:
            probe.unlink(missing_ok=True)
    except OSError as err:
        raise _file_error(err, folder) from err
    return folder


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold the folder's lock: one writer at a time. The kernel releases it when the process ends for any reason.

    Temporary files of killed writers, on any machine, are removed once the lock is held.

    Raises:
        LockedError: E703 when another process holds it.
        FileError: E701 or E702 when the lock file cannot be written.
    """
    require_writable(folder)
    path = folder / ".lock"
    with contextlib.ExitStack() as stack:
        try:
            # unbuffered, so that closing it has nothing left to write and cannot fail
            handle = stack.enter_context(open(path, "a+b", buffering=0))
            if not _try_lock(handle.fileno()):
                handle.seek(0)
                owner = handle.read(200).decode(errors="replace").strip() or "another process"
                raise LockedError("E703", f"{owner} is writing to {folder}", path=folder)
            handle.truncate(0)
            handle.write(f"pid {os.getpid()}, since {time.strftime('%H:%M:%S')},".encode())
            for leftover in folder.glob(f"{_PREFIX}*.tmp"):
                leftover.unlink(missing_ok=True)
        except OSError as err:
            raise _file_error(err, path) from err
        yield


def require_different(written: Mapping[str, Path | None], read: Mapping[str, Path | None]) -> None:
    """Check that no output overwrites an input or another output; the keys name the options.

    Raises:
        OptionError: E204 when two of them are the same file.
    """
    options = {os.path.realpath(path): option for option, path in read.items() if path is not None}
    for option, path in written.items():
        if path is not None:
            other = options.setdefault(os.path.realpath(path), option)
            if other != option:
                raise OptionError("E204", f"{option} and {other} are the same file, {path}", hint="give another path")


# what a file is by its suffix; CSV is any text in lines, and other suffixes say nothing
_FORMATS = {
    "CSV": (".csv", ".tsv", ".tab", ".txt", ".dat", ".psv"),
    "Parquet": (".parquet", ".pq"),
    "JSON": (".json",),
    "HTML": (".html", ".htm"),
    "ONNX": (".onnx",),
    "TOML": (".toml",),
    "a workbook": (".xlsx", ".xls", ".xlsm", ".xlsb", ".ods", ".numbers", ".gsheet"),
    "arrays": (".npz", ".npy", ".h5", ".hdf5", ".mat", ".pt", ".pth", ".safetensors"),
    "another table": (
        ".feather",
        ".arrow",
        ".orc",
        ".avro",
        ".dta",
        ".sav",
        ".rds",
        ".rdata",
        ".pkl",
        ".pickle",
        ".db",
    ),
    "an archive": (".zip", ".gz", ".bz2", ".xz", ".zst", ".tar", ".7z"),
    "a document": (".pdf", ".doc", ".docx", ".md", ".xhtml"),
    "lines of JSON": (".jsonl", ".ndjson"),
    "a model of another runtime": (".ort", ".pb", ".tflite", ".engine", ".plan"),
    "an image": (".png", ".jpg", ".jpeg", ".webp", ".svg"),
}
_FORMAT_OF = {suffix: kind for kind, suffixes in _FORMATS.items() for suffix in suffixes}


def require_format(written: Mapping[str, tuple[Path | None, str]]) -> None:
    """Check that no output is named as a file of another format than the one written; the keys name the options.

    Each value is a path and its format: CSV, Parquet, JSON, HTML, ONNX or TOML. A suffix that is not known is any of
    them.

    Raises:
        OptionError: E204 when a program that goes by the suffix could not open the file.
        FileError: E702 when it is a folder.
    """
    for option, (path, kind) in written.items():
        named = None if path is None else _FORMAT_OF.get(path.suffix.lower())
        if path is not None and named not in (None, kind):
            hint = f"name it {_without_formats(path.name)}{_FORMATS[kind][0]}"
            raise OptionError("E204", f"{option} writes {kind}, but {path.name} is named as {named}", hint=hint)
        if path is not None and os.path.isdir(path):
            message = f"{path} is a folder, and {option} writes a file"
            raise FileError("E702", message, hint="name a file in it", path=path)


def require_folder(option: str, path: Path) -> None:
    """Check that the folder that an option makes is not named as a file of some format; one that is there may be.

    Raises:
        OptionError: E204 when it is named so: the option was taken for that of a file.
        FileError: E702 when it is a file.
    """
    if os.path.isdir(path):
        return
    if os.path.exists(path):
        raise FileError("E702", f"{path} is a file, and {option} makes a folder", hint="name another path", path=path)
    named = _FORMAT_OF.get(path.suffix.lower())
    if named is not None:
        hint = f"name it {_without_formats(path.name)}"
        raise OptionError("E204", f"{option} makes a folder, but {path.name} is named as {named}", hint=hint)


def _without_formats(name: str) -> str:
    """Return a name without the suffixes of formats at its end."""
    while (suffix := Path(name).suffix.lower()) in _FORMAT_OF and name != suffix:
        name = name[: -len(suffix)]
    return name


def sha256_file(path: Path) -> str:
    """Return the SHA-256 of a file's bytes, in hex.

    Raises:
        FileError: E707 when it cannot be read.
    """
    try:
        with open(path, "rb") as f:
            return hashlib.file_digest(f, "sha256").hexdigest()
    except OSError as err:
        raise FileError("E707", f"{path} cannot be read: {err.strerror}", path=path) from err


def _temporary(folder: Path) -> Path:
    """Return a unique name for a temporary file."""
    return folder / f"{_PREFIX}{_where()}-{os.getpid()}-{secrets.token_hex(4)}.tmp"


@functools.cache
def _where() -> str:
    """Return an id of this machine or container, as process ids are unique only within one."""
    try:
        container = os.readlink("/proc/self/ns/pid")
    except OSError:
        container = ""
    return f"{zlib.crc32(f'{platform.node()} {container}'.encode()):08x}"


def _clear_leftovers(folder: Path) -> None:
    """Remove the temporary files of dead processes of this machine; others may be writing right now."""
    if sys.platform == "win32":  # there, asking for a process by os.kill would end it
        return
    own = re.compile(rf"{_PREFIX}{_where()}-(\d{{1,9}})-\w+\.tmp")
    try:
        names = os.listdir(folder)
    except PermissionError:  # a folder can be open for writing and not for reading
        return
    for name in names:
        match = own.fullmatch(name)
        if match and _is_gone(int(match[1])):
            with contextlib.suppress(PermissionError):  # somebody else's
                (folder / name).unlink(missing_ok=True)


def _is_gone(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return True
    except PermissionError:
        return False
    return False


def _try_lock(descriptor: int) -> bool:
    if sys.platform == "win32":
        import msvcrt

        os.lseek(descriptor, 1 << 20, os.SEEK_SET)  # locked bytes cannot be read: those that name the owner must be
        try:
            msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)
        except OSError:
            return False
        return True
    import fcntl

    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _sync_folder(folder: Path) -> None:
    if sys.platform == "win32":
        return
    try:
        descriptor = os.open(folder, os.O_RDONLY)
    except PermissionError:  # a folder can be open for writing and not for reading
        return
    try:
        os.fsync(descriptor)
    except OSError as err:
        # some network file systems cannot sync a folder; the rename itself has succeeded
        if err.errno not in {errno.EINVAL, errno.ENOTSUP}:
            raise
    finally:
        os.close(descriptor)


def write_error(err: OSError, what: str, *, path: Path | None = None) -> FileError:
    """Return the error to raise where the system refuses to write; ``what`` says what was not written."""
    found = _NO_ROOM.get(err.errno or 0)
    if err.errno == errno.ENOSPC and path is not None and _has_no_inodes(path):
        found = _NO_MORE_FILES
    if found is not None:
        return DiskFullError("E701", f"{found[0]}: {what}", hint=found[1], path=path)
    if err.errno == errno.EROFS:
        hint = "choose a path on another file system, or have this one mounted for writing"
        return FileError("E702", f"the file system is read-only: {what}", hint=hint, path=path)
    return FileError("E702", f"{what}: {err.strerror or err}", path=path)


def _has_no_inodes(path: Path) -> bool:
    """Return whether a file system that counts its files has no room for another one."""
    try:
        status = os.statvfs(path.parent)
    except (OSError, AttributeError):  # gone with the disk, or Windows
        return False
    return status.f_files > 0 and status.f_favail == 0 and status.f_bavail > 0


def _file_error(err: OSError, path: Path, *, size: int | None = None) -> FileError:
    if err.errno in _NO_ROOM or err.errno == errno.EROFS:
        needs = "" if size is None or err.errno == errno.EROFS else f", which takes {size:,} bytes"
        return write_error(err, f"{path} was not written{needs}", path=path)
    return FileError("E702", f"{path} cannot be written: {err.strerror or err}", path=path)
