"""Little address space (ulimit -v): refused before a library asks for memory without end."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest

from ensemble import address_space
from ensemble.__main__ import run
from ensemble.errors import OptionError
from ensemble.install import require_module

resource = pytest.importorskip("resource")


def limited(monkeypatch: pytest.MonkeyPatch, *, limit: int, status: int) -> list[list[str]]:
    """Let this process have a limit, and the one that tries the import end with a status; the commands that ran."""
    ran: list[list[str]] = []
    limits = {resource.RLIMIT_AS: limit, resource.RLIMIT_DATA: resource.RLIM_INFINITY}
    monkeypatch.setattr(resource, "getrlimit", lambda kind: (limits[kind], limits[kind]))

    def start(command: list[str], **_: object) -> SimpleNamespace:
        ran.append(command)
        return SimpleNamespace(returncode=status)

    monkeypatch.setattr("ensemble.address_space.subprocess.run", start)
    return ran


def test_without_a_limit_nothing_is_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    """A process of its own for the import costs a second, which only a limit is worth."""
    ran = limited(monkeypatch, limit=resource.RLIM_INFINITY, status=1)
    address_space.require_address_space()
    assert ran == []


def test_too_little_room_is_said_before_the_work(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """E603 names the limit; what needs no library, such as the help, runs."""
    limited(monkeypatch, limit=300 * 2**20, status=-24)
    assert run(["doctor"]) == 6
    assert "error[E603] the address space is limited to 300 MiB" in capsys.readouterr().err
    assert run(["doctor", "--help"]) == 0
    assert run(["explain-error", "E603"]) == 0


def test_the_process_that_tries_has_less_room_than_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    """It gets the limit less what this process has in use and what its threads reserve."""
    ran = limited(monkeypatch, limit=2**33, status=0)
    monkeypatch.setattr(address_space, "_own_size", lambda: 2**30)
    address_space.require_address_space()
    ((_, _, _, _, space, data, *_),) = ran
    assert int(space) == 2**33 - 2**30 - 160 * 2**20
    assert data == "-1"


@pytest.mark.skipif(sys.platform != "linux", reason="RLIMIT_AS is not enforced elsewhere")
@pytest.mark.parametrize(("room", "fits"), [(150 * 2**20, False), (2**35, True)], ids=["150 MiB", "32 GiB"])
def test_the_libraries_are_tried_under_the_limit(room: int, fits: bool) -> None:
    """The import fails in little room, with an error or at the limit of processor time, and passes in enough."""
    command = [sys.executable, "-I", "-c", address_space._IMPORT, f"{room}", "-1"]
    assert (subprocess.run(command, capture_output=True, timeout=300).returncode == 0) is fits


@pytest.mark.skipif(sys.platform != "linux", reason="RLIMIT_AS is not enforced elsewhere")
def test_the_packages_of_this_process_are_those_that_are_tried(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Libraries in the user's folder or on PYTHONPATH are no part of an isolated interpreter, and no lack of room."""
    (tmp_path / "on_pythonpath.py").write_text("")
    monkeypatch.syspath_prepend(tmp_path)
    ran = limited(monkeypatch, limit=2**35, status=0)
    address_space.require_address_space()
    monkeypatch.undo()
    ((_, _, _, _, _, _, *paths),) = ran
    assert str(tmp_path) in paths
    assert str(Path.cwd()) not in paths
    tried = address_space._IMPORT.partition("import numpy")[0] + "import on_pythonpath"
    command = [sys.executable, "-I", "-c", tried, "-1", "-1"]
    assert [subprocess.run([*command, *more], capture_output=True).returncode for more in ((), paths)] == [1, 0]


def raising(err: Exception) -> Callable[..., None]:
    def fail(*_: object, **__: object) -> None:
        raise err

    return fail


def test_a_library_without_room_is_no_bug(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """What the loader says when it cannot map a file (glibc, elf/dl-load.c) is E603; any other failure stays a bug."""
    err = ImportError("/lib/pyarrow/_compute.so: failed to map segment from shared object")
    monkeypatch.setattr("ensemble.__main__.ens.main", raising(err))
    assert run(["doctor"]) == 6
    assert "error[E603]" in capsys.readouterr().err
    monkeypatch.setattr("ensemble.__main__.ens.main", raising(ImportError("undefined symbol: PyX")))
    assert run(["doctor"]) == 1


def test_a_package_that_cannot_be_loaded_is_not_called_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    """E205 is for one that is not installed; the error of a damaged one, or of one without room, stays."""
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(OptionError, match="E205"):
        require_module("pyarrow", "a.parquet")
    err = ImportError("libarrow.so: cannot allocate memory in static TLS block")
    monkeypatch.setattr("ensemble.install.importlib.import_module", raising(err))
    with pytest.raises(ImportError, match="static TLS"):
        require_module("pyarrow", "a.parquet")
