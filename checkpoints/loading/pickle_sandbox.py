"""Scan a pickle in a sandboxed subprocess, before this process interprets it in the same way.

The interpreter calls nothing that a file names, but it has no limits: three hundred bytes that nest a tuple sixty times
and use it as a key keep it busy forever, and others exhaust the memory or overflow the stack. The child process here
executes the same instructions under limits of memory and time, and cannot open a file or socket. It does not import
torch, so it takes a fraction of a second. A pickle that ends in time there ends in time here.

The child reads COUNT pickles from standard input, and writes one JSON list ``[module, name]`` per line for each global,
and a last line with how it ended.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from checkpoints.loading.pickle_reader import PickleReader

_MEMORY = 1 << 30  # bytes of address space; the interpreter itself takes 5 %
_SECONDS = 10  # of CPU time; a normal checkpoint needs hundredths
_WALL_SECONDS = 120  # for a busy machine, and for systems without a limit on CPU time
_NO_MEMORY = "no memory"
_ROOT = Path(__file__).parents[2]
_PROGRAM = """
import sys
sys.path.insert(0, sys.argv[1])
from checkpoints.loading.pickle_sandbox import run_child
run_child(*map(int, sys.argv[2:5]))
"""


@dataclass(frozen=True, slots=True)
class PickleScan:
    """The globals of pickles, as ``(module, name)`` in order of appearance, and the limit that was exceeded, if any."""

    names: tuple[tuple[str, str], ...]
    exceeded: str | None


def scan_pickles(pickles: BinaryIO | bytes, count: int, *, size: int = 0) -> PickleScan:
    """Scan ``count`` pickles in a child process; a damaged pickle ends the scan without an error.

    ``size`` are the bytes of weights in the pickles themselves, which come on top of the limit of memory.
    """
    limits = [str(_MEMORY + 4 * size), str(_SECONDS + size // 50_000_000)]
    command = [sys.executable, "-I", "-S", "-c", _PROGRAM, str(_ROOT), str(count), *limits]
    try:
        if isinstance(pickles, bytes):
            done = subprocess.run(command, input=pickles, capture_output=True, timeout=_WALL_SECONDS, check=False)
        else:
            done = subprocess.run(command, stdin=pickles, capture_output=True, timeout=_WALL_SECONDS, check=False)
    except subprocess.TimeoutExpired as err:
        return PickleScan(_parse_output(err.stdout or b"")[0], f"more than {_WALL_SECONDS} s")
    names, ending = _parse_output(done.stdout)
    if ending == _NO_MEMORY:
        return PickleScan(names, f"more than {_MEMORY / 2**30:g} GB of memory")
    if ending is None:  # the child died before it could write how it ended
        out_of_time = -done.returncode in {signal.SIGKILL, signal.SIGXCPU} if os.name == "posix" else False
        return PickleScan(names, f"more than {_SECONDS} s" if out_of_time else "a deeper stack than there is")
    return PickleScan(names, None)


def _parse_output(output: bytes) -> tuple[tuple[tuple[str, str], ...], str | None]:
    """Return the globals in the child's output, and how it ended; None if it did not write that."""
    names: dict[tuple[str, str], None] = {}
    for line in output.splitlines():
        try:
            value = json.loads(line)
        except ValueError:  # it was stopped while writing
            break
        if isinstance(value, str):
            return tuple(names), value
        names[value[0], value[1]] = None
    return tuple(names), None


def _write_line(value: object) -> None:
    os.write(1, json.dumps(value).encode() + b"\n")


def _limit_process(memory: int, seconds: int) -> None:
    if sys.platform == "win32":
        return
    import resource

    limits = {
        resource.RLIMIT_AS: memory,
        resource.RLIMIT_CPU: seconds,
        resource.RLIMIT_CORE: 0,
        resource.RLIMIT_NOFILE: 3,
    }
    for kind, most in limits.items():
        hard = resource.getrlimit(kind)[1]
        allowed = most if hard == resource.RLIM_INFINITY else min(most, hard)
        try:
            resource.setrlimit(kind, (allowed, allowed))
        except ValueError:
            if sys.platform != "darwin":  # which refuses some memory limits; the time limits remain
                raise


def run_child(count: int, memory: int, seconds: int) -> None:
    """Interpret the pickles on standard input under the limits: the main function of the child process."""
    _limit_process(memory, seconds)
    ending = "done"
    reader = PickleReader(sys.stdin.buffer, on_name=lambda name: _write_line([name.module, name.name]))
    try:
        for _ in range(count):
            reader.load()
    except MemoryError:
        ending = _NO_MEMORY
    except Exception as err:  # noqa: BLE001 - a damaged pickle can raise anything, and the parent will report it
        ending = type(err).__name__
    _write_line(ending)
