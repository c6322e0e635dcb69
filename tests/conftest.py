"""What all tests share: the examples that property tests draw, their order, and fixtures that several files use.

Property tests draw the same examples on every machine and are not timed: a busy machine is no fault.
"""

from __future__ import annotations

import functools
import importlib
import os
import re
import signal
import sys
import tempfile
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
from hypothesis import HealthCheck, settings

# read when torch and numpy are first imported: a pool of threads in each of pytest's processes would mostly wait for
# the cores that the others have, and a small training takes ten times as long
os.environ.setdefault("OMP_NUM_THREADS", "1")

# where the environment forbids bytecode beside the sources (PYTHONDONTWRITEBYTECODE), each of the hundreds of processes
# that tests start would compile all that it imports, which for torch takes longer than to run it: they share a folder
# that is removed at the end
if sys.dont_write_bytecode and sys.pycache_prefix is None:
    _compiled = tempfile.TemporaryDirectory(prefix="ens-tests-", ignore_cleanup_errors=True)
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
    os.environ["PYTHONPYCACHEPREFIX"] = sys.pycache_prefix = _compiled.name
    sys.dont_write_bytecode = False

# a shell starts what runs in its background with SIGINT ignored, and tests send it
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


def _check_descriptor(fd: Any) -> None:
    os.fstat(fd)


# a sync waits for the disk, thousands of times, and leaves nothing that a test can see: what tests kill is processes,
# and those that they start sync as ever
os.fsync = _check_descriptor

settings.register_profile("suite", deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("suite")

_LONGEST = {
    "test_mypy_strict_finds_nothing",
    "test_the_demo_and_the_steps_after_it_run_as_they_stand",
}
_SLOW_FILE = re.compile(r"^pytestmark = \[?pytest\.mark\.slow\b", re.MULTILINE)


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """With ``-m "not slow"`` do not even import the files that are slow as a whole: most of them import torch."""
    if config.option.markexpr != "not slow" or not collection_path.name.startswith("test_"):
        return None
    return True if _SLOW_FILE.search(collection_path.read_text(encoding="utf-8")) else None


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with the two longest tests: begun near the end, they would leave the other processes without work."""
    items.sort(key=lambda item: item.name not in _LONGEST)


@pytest.fixture(scope="session", autouse=True)
def torchlib_once() -> Iterator[None]:
    """Where torch is loaded, read the signatures of the functions of its exporter once, not at every export: it takes
    them from their source, a thousand of them.
    """
    if "torch" not in sys.modules:
        yield
        return
    registration: Any = importlib.import_module("torch.onnx._internal.exporter._registration")
    apis = registration.onnxscript_apis

    @functools.cache
    def get_torchlib_ops() -> list[Any]:
        found: list[Any] = apis.get_torchlib_ops()  # imports onnxscript
        return found

    once = types.SimpleNamespace(get_torchlib_ops=get_torchlib_ops)
    with mock.patch.object(registration, "onnxscript_apis", once):
        yield


@pytest.fixture(scope="module")
def one_thread() -> Iterator[None]:
    """One thread for torch: on networks as small as those of tests, more would mostly wait for each other."""
    import torch  # most tests do without

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Parts and chunks of eight rows, so that a few pictures make several."""
    monkeypatch.setattr("ensemble.predict.parts.PART_ROWS", 8)
    monkeypatch.setattr("ensemble.submit.chunks.CHUNK_ROWS", {"cpu": 8})
