"""Judge the globals that a checkpoint's pickle refers to: those of commands are refused, all others are read as data.

Nothing of a pickle is ever called, see `checkpoints.loading.pickle_reader`. A file that names a function of the
operating system is refused all the same: it was made to attack whoever opens it with another program.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import BinaryIO

from checkpoints.loading.pickle_objects import Name
from checkpoints.loading.pickle_sandbox import scan_pickles
from ensemble.errors import ModelError, enumerate_some

# Modules of the standard library that start programs, run code, or open files and connections.
_COMMAND_MODULES = frozenset(
    {
        "os",
        "posix",
        "nt",
        "sys",
        "subprocess",
        "_posixsubprocess",
        "pty",
        "runpy",
        "importlib",
        "imp",
        "codeop",
        "timeit",
        "shutil",
        "socket",
        "_socket",
        "ssl",
        "ctypes",
        "_ctypes",
        "multiprocessing",
        "_multiprocessing",
        "asyncio",
        "_thread",
        "threading",
        "tempfile",
        "pdb",
        "bdb",
        "cProfile",
        "doctest",
        "unittest",
        "pkgutil",
        "zipimport",
        "webbrowser",
        "ftplib",
        "smtplib",
        "telnetlib",
        "poplib",
        "imaplib",
        "nntplib",
        "xmlrpc",
        "socketserver",
        "sqlite3",
        "pickle",
        "_pickle",
        "cPickle",
        "marshal",
        "shelve",
        "dbm",
        "popen2",
        "venv",
        "ensurepip",
        "distutils",
        "py_compile",
        "compileall",
        "pydoc",
        "idlelib",
        "gc",
        "mmap",
        "fcntl",
        "fileinput",
        "linecache",
        "concurrent",
        "faulthandler",
        "antigravity",
    }
)
_COMMANDS = re.compile(
    r"builtins\.(exec|eval|compile|open|__import__|breakpoint|input|globals|locals|vars|delattr|setattr|help|exit|quit)"
    r"|builtins\.(__loader__|__spec__|memoryview)\..*"
    r"|_?io\.(open|open_code|FileIO)"
    r"|codecs\.open"
    r"|logging\.(config|handlers)\..*"
    r"|http\.(client|server)\..*"
    r"|urllib\.(request|robotparser)\..*"
    r"|types\.(FunctionType|CodeType)\..*"
)
# Modules whose objects are metadata of most checkpoints: their names would tell nobody anything.
_COMMON_MODULES = frozenset(
    {
        "argparse",
        "pathlib",
        "numpy",
        "collections",
        "builtins",
        "copyreg",
        "datetime",
        "_codecs",
        "functools",
        "enum",
        "types",
        "typing",
        "decimal",
        "uuid",
        "torch",
        "__main__",
    }
)


def list_globals(pickles: BinaryIO | bytes, count: int, path: Path, *, size: int = 0) -> list[Name]:
    """Return every global that ``count`` pickles refer to, in order of appearance.

    The pickles are read in a subprocess with limits of time and memory, and nothing is imported. ``size`` are the bytes
    of data in the pickles themselves, which the limit of memory does not count.

    Raises:
        ModelError: E444 when a limit is exceeded, or E401 when the pickles refer to commands.
    """
    found = scan_pickles(pickles, count, size=size)
    names = [Name(module, name) for module, name in found.names]
    refuse_commands(names, path)
    if found.exceeded is not None:
        raise ModelError("E444", f"reading {path.name} takes {found.exceeded}; it was refused", path=path)
    return names


def refuse_commands(names: list[Name], path: Path) -> None:
    """Refuse a pickle that refers to functions that start programs, run code or open files.

    Raises:
        ModelError: E401 with their names.
    """
    commands = [str(name) for name in names if _is_command(name)]
    if commands:
        raise refusal(commands, path)


def refusal(names: list[str], path: Path) -> ModelError:
    """Return E401 for a pickle whose content is the result of calling ``names``."""
    return ModelError(
        "E401", f"{path.name} wants to run {enumerate_some(names)}; refused. There is no override.", path=path
    )


def uncommon_names(names: list[str]) -> list[str]:
    """Return the names without those of torch, numpy and the standard library, which most checkpoints have."""
    return [name for name in names if name.partition(".")[0] not in _COMMON_MODULES]


def _is_command(name: Name) -> bool:
    """Return True for a command, also for one that is reached through another module, as ``os.system`` of torch.

    The name's own module counts by its root alone, as projects have modules such as ``net.signal`` of their own.
    """
    parts = {name.module.partition(".")[0], *name.name.split(".")[:-1]}
    return not _COMMAND_MODULES.isdisjoint(parts) or _COMMANDS.fullmatch(f"{name.module}.{name.name}") is not None
