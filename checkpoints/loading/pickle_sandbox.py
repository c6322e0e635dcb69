"""Read a pickle once with stand-ins, in a process that may be lost, before torch reads it in this one.

torch's weights_only reader runs no code of a file. It has no limit, though: three hundred bytes that nest a tuple in
itself sixty times and make it a key keep it busy for ever, and others take all memory or overflow the stack. Here a
child process follows the same instructions under limits of memory and time, with no file or socket to be opened. It
needs no torch, so it costs a fraction of a second and not the seconds that importing torch takes. It reads with
Python's own unpickler in Python, which is about as slow as torch's: what ends in time here will end in time there.

Run as a program, this file is the child: ``rehearse.py COUNT MEMORY SECONDS`` reads as many pickles from standard
input, writes a JSON list ``[module, name]`` a line for everything they name, and last a line with how it ended.
"""

from __future__ import annotations

import codecs
import collections
import json
import os
import pickle
import signal
import subprocess
import sys
from dataclasses import dataclass
from typing import BinaryIO

_MEMORY = 1 << 30  # bytes of address space; the interpreter itself takes a twentieth
_SECONDS = 10  # of processor time; an honest checkpoint needs hundredths
_WALL_SECONDS = 120  # for a busy machine, and for one that knows no limits of processor time
_NO_MEMORY = "no memory"

# what torch itself calls for a file; the rest of what it knows takes time and memory in proportion to the file
_REAL = {
    ("builtins", "set"): set,
    ("builtins", "bytearray"): bytearray,
    ("builtins", "complex"): complex,
    ("collections", "OrderedDict"): collections.OrderedDict,
    ("collections", "Counter"): collections.Counter,
    ("_codecs", "encode"): codecs.encode,
}


@dataclass(frozen=True, slots=True)
class Rehearsal:
    """What pickles name, as ``(module, name)`` in order of appearance, and which limit stopped the reading, if any."""

    names: tuple[tuple[str, str], ...]
    exceeded: str | None


def rehearse(pickles: BinaryIO | bytes, count: int) -> Rehearsal:
    """Follow ``count`` pickles in a child process; a pickle that is damaged ends the reading without complaint."""
    command = [sys.executable, "-I", "-S", __file__, str(count), str(_MEMORY), str(_SECONDS)]
    try:
        if isinstance(pickles, bytes):
            done = subprocess.run(command, input=pickles, capture_output=True, timeout=_WALL_SECONDS, check=False)
        else:
            done = subprocess.run(command, stdin=pickles, capture_output=True, timeout=_WALL_SECONDS, check=False)
    except subprocess.TimeoutExpired as err:
        return Rehearsal(_names_in(err.stdout or b"")[0], f"more than {_WALL_SECONDS} s")
    names, ending = _names_in(done.stdout)
    if ending == _NO_MEMORY:
        return Rehearsal(names, f"more than {_MEMORY / 2**30:g} GB of memory")
    if ending is None:  # the child did not live to say how it ended
        out_of_time = -done.returncode in {signal.SIGKILL, signal.SIGXCPU} if os.name == "posix" else False
        return Rehearsal(names, f"more than {_SECONDS} s" if out_of_time else "a deeper stack than there is")
    return Rehearsal(names, None)


def _names_in(output: bytes) -> tuple[tuple[tuple[str, str], ...], str | None]:
    """The names in what a child wrote, and how it said it ended; None where it did not."""
    names: dict[tuple[str, str], None] = {}
    for line in output.splitlines():
        try:
            value = json.loads(line)
        except ValueError:  # it was stopped while it wrote
            break
        if isinstance(value, str):
            return tuple(names), value
        names[value[0], value[1]] = None
    return tuple(names), None


class _StandIn:
    """Takes whatever a pickle does to an object, and does nothing."""

    def __new__(cls, *_: object, **__: object) -> _StandIn:
        return object.__new__(cls)

    def _ignore(self, *_: object, **__: object) -> _StandIn:
        return self

    __call__ = append = extend = add = __setitem__ = __setstate__ = _ignore


class _Follower(pickle._Unpickler):
    """Imports nothing: what a pickle names is written down and replaced."""

    def find_class(self, module: str, name: str) -> object:
        _tell([module, name])
        return _REAL.get((module, name), _StandIn)

    def persistent_load(self, _: object) -> object:
        return _StandIn()


class _Input:
    """Standard input, of which a pickle may ask for more than there is without memory being set aside for it."""

    def read(self, size: int) -> bytes:
        parts: list[bytes] = []
        while size > 0 and (part := sys.stdin.buffer.read(min(size, 1 << 20))):
            parts.append(part)
            size -= len(part)
        return b"".join(parts)

    def readline(self) -> bytes:
        return sys.stdin.buffer.readline()


def _tell(value: object) -> None:
    os.write(1, json.dumps(value).encode() + b"\n")


def _limit_ourselves(memory: int, seconds: int) -> None:
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
            if sys.platform != "darwin":  # which refuses some limits of memory; those of time are left
                raise


def _follow(count: int, memory: int, seconds: int) -> None:
    _limit_ourselves(memory, seconds)
    ending = "done"
    try:
        for _ in range(count):
            _Follower(_Input()).load()
    except MemoryError:
        ending = _NO_MEMORY
    except Exception as err:  # noqa: BLE001 - a damaged pickle can raise anything, and torch will say so
        ending = type(err).__name__
    _tell(ending)


if __name__ == "__main__":
    _follow(*map(int, sys.argv[1:4]))
