"""Refuse to start where a limit on the address space leaves no room for the libraries of linear algebra.

OpenBLAS, which numpy and scipy each bring, asks for its buffers while it is loaded. Where it gets none it asks again
without end (driver/others/memory.c, blas_memory_alloc), inside of dlopen with the interpreter locked: no signal is
heard, and only SIGKILL ends the process.
"""

from __future__ import annotations

import importlib
import os
import subprocess
import sys
from pathlib import Path

from ensemble.errors import DeviceError

_LIBRARIES = ("numpy", "scipy.linalg", "scipy.special")
# of the loader: elf/dl-load.c and dl-minimal.c of glibc, and of macOS
_NO_ROOM = ("failed to map segment", "cannot allocate memory", "cannot map", "cannot create shared object descriptor")
_SPARE = 160 * 2**20  # bytes: a thread of a command reserves up to 136 MiB, its stack and heap
_CPU_SECONDS = 5  # that importing takes at most; a library that asks without end uses all of them
_IMPORT = f"""
import resource, sys
taken = [int(one) for one in sys.argv[1:3]]
sys.path += sys.argv[3:]
for kind, limit in zip((resource.RLIMIT_AS, resource.RLIMIT_DATA), taken):
    if limit >= 0:
        resource.setrlimit(kind, (limit, limit))
resource.setrlimit(resource.RLIMIT_CPU, ({_CPU_SECONDS}, {_CPU_SECONDS}))
import {", ".join(_LIBRARIES)}
"""


def require_address_space() -> None:
    """Import the libraries, where ``ulimit -v`` or ``-d`` limits this process, first in one of its own.

    Raises:
        DeviceError: E603 when they cannot be loaded.
    """
    limits = _limits()
    if not limits:
        return
    taken = _own_size()
    given = [max(0, limit - taken - _SPARE) if limit >= 0 else -1 for limit in limits]
    # isolated: no file of the working folder is imported; PYTHONPATH and the user's packages count all the same
    folder = os.getcwd()
    paths = [path for path in sys.path if path not in {"", folder}]
    child = [sys.executable, "-I", "-c", _IMPORT, *map(str, given), *paths]
    done = subprocess.run(
        child, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, check=False
    )
    if done.returncode:
        least = min(limit for limit in limits if limit >= 0)
        raise DeviceError(
            "E603",
            f"the address space is limited to {least // 2**20:,} MiB, and numpy and scipy cannot be loaded in it",
            hint="raise the limit with ulimit -v and ulimit -d, or set OPENBLAS_NUM_THREADS=1, which takes less",
        )
    for name in _LIBRARIES:  # before others take the room
        importlib.import_module(name)


def is_lack_of_memory(err: BaseException) -> bool:
    """Return True for an ImportError of a library that is there, but for which there is no memory."""
    said = str(err).lower()
    return isinstance(err, ImportError) and any(words in said for words in _NO_ROOM)


def _limits() -> tuple[int, ...]:
    """Return the limits of the address space and of data in bytes, -1 for one that is unlimited; () without any."""
    try:
        import resource
    except ImportError:  # Windows
        return ()
    found = [resource.getrlimit(kind)[0] for kind in (resource.RLIMIT_AS, resource.RLIMIT_DATA)]
    known = tuple(-1 if limit == resource.RLIM_INFINITY else limit for limit in found)
    return known if any(limit >= 0 for limit in known) else ()


def _own_size() -> int:
    """Return the bytes of address space in use, beyond those of a process that has just started."""
    try:
        pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[0])
    except (OSError, ValueError, IndexError):
        return 0
    return max(0, pages * 4096 - 32 * 2**20)
