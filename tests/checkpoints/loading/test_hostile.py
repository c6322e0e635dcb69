"""Hostile checkpoints: none of them runs code, which would leave a canary file."""

from __future__ import annotations

import io
import pickle
import sys
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

from ensemble.errors import OptionError
from tests.support.pickled import LEGACY_HEAD, Canary, archive, calling, short, text
from tests.support.weights import TINY, assert_same, open_tiny, refused, save, tiny_state

pytestmark = pytest.mark.slow


def inst(canary: Canary) -> bytes:
    return archive(b"(" + text(canary.command) + b"iposix\nsystem\n.")


def obj(canary: Canary) -> bytes:
    return archive(b"(cposix\nsystem\n" + text(canary.command) + b"o.")


def newobj(canary: Canary) -> bytes:
    return archive(b"\x80\x02csubprocess\nPopen\n" + text(canary.command) + b"\x85\x81.")


def newobj_ex(canary: Canary) -> bytes:
    return archive(b"\x80\x04csubprocess\nPopen\n)}" + text("args") + text(canary.command) + b"s\x92.")


def build(canary: Canary) -> bytes:
    """BUILD gives an object the state that makes its destructor or first use run code."""
    state = b"}" + text("__setstate__") + b"cposix\nsystem\ns"
    return archive(b"\x80\x02cargparse\nNamespace\n)R" + state + b"b" + text(canary.command) + b"b.")


def stack_global(canary: Canary) -> bytes:
    return archive(b"\x80\x04" + short("posix") + short("system") + b"\x93" + text(canary.command) + b"\x85R.")


def stack_global_from_the_memo(canary: Canary) -> bytes:
    """Return a pickle that memoizes, drops and fetches its names in another order, with decoys."""
    kept = short("system") + b"\x940" + short("posix") + b"\x940" + short("decoy") + b"\x940"
    return archive(b"\x80\x04" + kept + b"h\x01h\x00\x93" + text(canary.command) + b"\x85R.")


def stack_global_through_a_module(canary: Canary) -> bytes:
    """Return a pickle with a dotted name from a torch module to the operating system."""
    walk = short("torch.serialization") + short("os.system")
    return archive(b"\x80\x04" + walk + b"\x93" + text(canary.command) + b"\x85R.")


def global_through_a_module(canary: Canary) -> bytes:
    return archive(calling("torch.serialization", "os.system", canary.command))


def python_2_name(canary: Canary) -> bytes:
    return archive(calling("__builtin__", "eval", canary.code))


def another_pickle_inside(canary: Canary) -> bytes:
    return archive(
        calling("torch.storage", "_load_from_bytes", calling("os", "system", canary.command).decode("latin1"))
    )


def nested_archive(canary: Canary) -> bytes:
    return archive(archive(calling("posix", "system", canary.command)))


def second_entry_of_one_name(canary: Canary) -> bytes:
    """Return an archive with two entries named data.pkl: reading by name gives one, reading in order the other."""
    file = io.BytesIO(archive(pickle.dumps({}, protocol=2)))
    with zipfile.ZipFile(file, "a") as opened, pytest.warns(UserWarning, match="Duplicate"):
        opened.writestr("archive/data.pkl", calling("posix", "system", canary.command))
    return file.getvalue()


def first_entry_of_one_name(canary: Canary) -> bytes:
    file = io.BytesIO(archive(calling("posix", "system", canary.command)))
    with zipfile.ZipFile(file, "a") as opened, pytest.warns(UserWarning, match="Duplicate"):
        opened.writestr("archive/data.pkl", pickle.dumps({}, protocol=2))
    return file.getvalue()


def in_capitals(canary: Canary) -> bytes:
    return archive(calling("posix", "system", canary.command), name="DATA.PKL")


def in_capitals_beside(canary: Canary) -> bytes:
    """Return an archive with a good data.pkl, and an upper-case twin that a case-insensitive reader finds first."""
    hostile = calling("posix", "system", canary.command)
    return archive(hostile, name="DATA.PKL", data_pkl=pickle.dumps({}, protocol=2))


def legacy(canary: Canary) -> bytes:
    return LEGACY_HEAD + calling("posix", "system", canary.command) + pickle.dumps([], protocol=2)


def legacy_with_an_archive_behind(canary: Canary) -> bytes:
    """Return a good archive with the legacy format in front of it, where torch starts to read."""
    return legacy(canary) + archive(pickle.dumps({}, protocol=2))


def legacy_version(canary: Canary) -> bytes:
    """Return a legacy file with the command in one of the small pickles before the content."""
    return LEGACY_HEAD[:15] + calling("posix", "system", canary.command)


def tar(canary: Canary, name: str = "pickle") -> bytes:
    """Return a file in torch's format of 2016: a tar archive of pickles."""
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as opened:
        for part in (name, "storages", "tensors", "pickle"):
            data = calling("posix", "system", canary.command)
            entry = tarfile.TarInfo(part)
            entry.size = len(data)
            opened.addfile(entry, io.BytesIO(data))
    return file.getvalue()


def tar_like_the_legacy_format(canary: Canary) -> bytes:
    """Return a tar archive whose first file is named like torch's magic number."""
    data = bytearray(tar(canary))
    data[:15] = LEGACY_HEAD[:15]
    checksum = sum(data[:148]) + 8 * 32 + sum(data[156:512])
    data[148:156] = f"{checksum:06o}\0 ".encode()
    return bytes(data)


def program(canary: Canary) -> bytes:
    """Return a TorchScript archive with a command in place of its attributes."""
    return archive(calling("posix", "system", canary.command), constants_pkl=b"\x80\x02).", code__net=b"def f(): pass")


def wrong_checksum(canary: Canary) -> bytes:
    data = archive(calling("posix", "system", canary.command + " -r"))
    return data.replace(b" -r", b" -f", 1)


CODES_BY_FILE: dict[Callable[[Canary], bytes], str] = {
    inst: "E401",
    obj: "E401",
    newobj: "E401",
    newobj_ex: "E401",
    build: "E401",
    stack_global: "E401",
    stack_global_from_the_memo: "E401",
    stack_global_through_a_module: "E401",
    global_through_a_module: "E401",
    python_2_name: "E401",
    another_pickle_inside: "E401",
    nested_archive: "E417",
    second_entry_of_one_name: "E401",
    first_entry_of_one_name: "E401",
    in_capitals: "E417",
    in_capitals_beside: "E401",
    legacy: "E401",
    legacy_with_an_archive_behind: "E417",
    legacy_version: "E401",
    tar: "E404",
    tar_like_the_legacy_format: "E403",
    program: "E402",
    wrong_checksum: "E405",
}


@pytest.mark.parametrize("make", CODES_BY_FILE, ids=lambda make: str(make.__name__))
def test_fault_35_no_hostile_file_runs_code(tmp_path: Path, make: Callable[[Canary], bytes]) -> None:
    """Every way to call a function from a file is refused with its code and leaves no canary."""
    canary = Canary(tmp_path / "canary")
    path = tmp_path / "best.pth"
    path.write_bytes(make(canary))
    error = refused(path, arch=TINY)
    assert error.code == CODES_BY_FILE[make]
    assert not canary.path.exists()


@pytest.mark.parametrize("suffix", [".safetensors", ".pt", ".onnx", ".jpg"])
@pytest.mark.parametrize("make", [stack_global, legacy])
def test_fault_35_a_wrong_suffix_hides_nothing(tmp_path: Path, make: Callable[[Canary], bytes], suffix: str) -> None:
    """A hostile file is refused for its content, whatever its name."""
    path = tmp_path / f"best{suffix}"
    path.write_bytes(make(Canary(tmp_path / "canary")))
    assert refused(path, arch=TINY).code == "E401"
    assert not (tmp_path / "canary").exists()


@pytest.mark.parametrize(
    "name",
    [
        "builtins exec",
        "builtins eval",
        "builtins getattr",
        "builtins __import__",
        "posix execv",
        "subprocess getoutput",
        "runpy _run_code",
        "importlib import_module",
        "pty spawn",
        "timeit timeit",
        "_posixsubprocess fork_exec",
        "code InteractiveInterpreter",
        "operator attrgetter",
        "functools partial",
        "shutil rmtree",
        "socket create_connection",
        "torch.hub load",
        "torch.jit load",
        "torch.serialization load",
        "torch.storage _load_from_bytes",
        "torch._dynamo.guards GuardBuilder.get",
        "torch.fx.experimental.symbolic_shapes ShapeEnv.evaluate_guards_expression",
        "numpy.testing._private.utils runstring",
        "numpy f2py",
        "ensemble.files remove",
        "no.such module",
    ],
)
def test_fault_35_what_is_not_weights_is_named_and_refused(tmp_path: Path, name: str) -> None:
    """Functions of Python, torch, numpy and our own packages are refused by name, and not even imported."""
    module, function = name.split()
    canary = Canary(tmp_path / "canary")
    path = tmp_path / "best.pth"
    path.write_bytes(archive(calling(module, function, canary.code)))
    imported = set(sys.modules)
    error = refused(path, arch=TINY)
    assert error.code == "E401"
    assert error.message == f"best.pth wants to run {module}.{function}; refused. There is no override."
    assert module in imported or module not in sys.modules
    assert not canary.path.exists()


def test_fault_35_a_command_beside_good_weights_is_refused(tmp_path: Path) -> None:
    """A command after a complete state dict is refused."""
    canary = Canary(tmp_path / "canary")
    path = save(tmp_path / "good.pth", tiny_state())
    with zipfile.ZipFile(path) as opened:
        parts = {part.filename: opened.read(part) for part in opened.infolist()}
    with zipfile.ZipFile(path, "w") as opened:
        for name, data in parts.items():
            # the state dict is popped from the stack after the command
            tail = b"cposix\nsystem\n" + text(canary.command) + b"\x85R0."
            opened.writestr(name, data[:-1] + tail if name.endswith("data.pkl") else data)
    assert refused(path, arch=TINY).code == "E401"
    assert not canary.path.exists()


@pytest.mark.parametrize("name", ["hf-hub:evil/resnet18", "local-dir:/tmp/evil"])
def test_no_name_in_a_file_leads_elsewhere(tmp_path: Path, name: str) -> None:
    """An architecture name that timm would load from the network or a folder is ignored in a file."""
    state = tiny_state()
    checkpoint = open_tiny(save(tmp_path / "a.pth", {"arch": name, "state_dict": state}))
    assert_same(checkpoint, state)
    with pytest.raises(OptionError, match="E204"):
        open_tiny(tmp_path / "a.pth", arch=name)


def test_fault_35_an_archive_hides_nothing_before_it(tmp_path: Path) -> None:
    """An archive that starts later than the file is refused, as torch reads from the start of the file."""
    path = tmp_path / "best.pth"
    path.write_bytes(legacy_with_an_archive_behind(Canary(tmp_path / "canary")))
    assert "a zip archive behind something else" in refused(path, arch=TINY).message
