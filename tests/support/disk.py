"""Disks that fail: at one chosen step of writing, where the process dies or from where on it is full, and full ones."""

from __future__ import annotations

import contextlib
import errno
import os
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal
from unittest import mock

from ensemble import files

Fault = Literal["dies before", "dies after", "dies in the middle", "is full"]
FAULTS: tuple[Fault, ...] = ("dies before", "dies after", "dies in the middle", "is full")
_GONE = 9_999_999  # no system numbers its processes so high
_FREE = 4096  # bytes that a full disk has left


class Died(BaseException):
    """The process has been killed: nothing that it does afterwards reaches the disk."""


@dataclass(slots=True)
class Disk:
    """Notes the ``names`` of the steps it is asked for, and fails at step ``at``.

    Steps are to open a file for writing, to write, sync, rename and remove.
    """

    fault: Fault | None = None
    at: int = -1
    names: list[str] = field(default_factory=list)
    failed: bool = False

    def steps_for(self, fault: Fault) -> list[int]:
        """Return the steps at which a fault leaves a disk that no other fault leaves.

        What dies after a step leaves what dies before the next one, and only a write has a middle.
        """
        numbers = range(len(self.names))
        if fault == "dies after":
            return list(numbers[-1:])
        return [at for at in numbers if fault != "dies in the middle" or self.names[at] == "write"]

    def step(self, name: str, do: Callable[[], Any], half: Callable[[], Any] | None = None) -> Any:
        """Do one step, or fail in it; ``half`` does a part of it, where it has parts."""
        struck = len(self.names) == self.at
        self.names.append(name)
        if struck and self.fault == "dies after":
            with contextlib.suppress(FileNotFoundError):  # nothing to remove
                done = do()
                if name == "open":
                    done.close()
        elif struck and self.fault == "dies in the middle" and half is not None:
            half()
        self.failed = self.failed or struck
        if self.failed and self.fault != "is full":
            raise Died
        if self.failed and name != "unlink":  # a full disk can be freed
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return do()


class _File:
    """An open file whose writes are steps; it holds nothing back, so that what was written is on the disk."""

    def __init__(self, disk: Disk, file: Any) -> None:
        self._disk, self._file = disk, file

    def __enter__(self) -> _File:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)

    def write(self, data: bytes | memoryview) -> Any:
        half = memoryview(data)[: len(data) // 2]
        return self._disk.step("write", lambda: self._file.write(data), lambda: self._file.write(half))


@contextlib.contextmanager
def through(disk: Disk) -> Iterator[None]:
    """Let all that `ensemble.files` does to the disk go through this one, in the name of a process that is gone."""

    def stepping(name: str) -> Callable[..., Any]:
        real = getattr(os, name)
        return lambda *arguments, **options: disk.step(name, lambda: real(*arguments, **options))

    def opening(path: Any, mode: str = "r", **options: Any) -> Any:
        if "r" in mode:
            return open(path, mode, **options)
        return _File(disk, disk.step("open", lambda: open(path, mode, **{"buffering": 0} | options)))

    with (
        mock.patch.object(files, "open", opening, create=True),
        mock.patch.object(os, "getpid", return_value=_GONE),
        mock.patch.object(os, "fsync", stepping("fsync")),
        mock.patch.object(os, "replace", stepping("replace")),
        mock.patch.object(os, "unlink", stepping("unlink")),
    ):
        yield


@contextlib.contextmanager
def small_disk(folder: Path, *, mount: bool) -> Iterator[bool]:
    """A disk of 64 MB in a folder, if one may be mounted there; whether it is one."""
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=64m", "tmpfs", f"{folder}"]
    mounted = mount and os.geteuid() == 0 and subprocess.run(command, capture_output=True).returncode == 0
    try:
        yield mounted
    finally:
        if mounted:
            subprocess.run(["umount", f"{folder}"], check=True)


@contextlib.contextmanager
def full_disk(folder: Path, *, mounted: bool) -> Iterator[int]:
    """Fill the disk for a while; where it is not one of ours, how many bytes a file may have instead."""
    if not mounted:
        yield _FREE
        return
    ballast = folder / "ballast"
    with open(ballast, "wb", buffering=0) as file:
        with contextlib.suppress(OSError):
            while True:
                file.write(bytes(1 << 16))
        file.truncate(file.tell() - _FREE)
    try:
        yield 0
    finally:
        ballast.unlink()
