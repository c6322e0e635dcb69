"""Hostile checkpoints: none runs code, none takes the run down; each would leave a canary or never end."""

from __future__ import annotations

import io
import os
import pickle
import re
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from checkpoints import rehearse
from checkpoints.pickles import names_in
from ensemble.errors import ModelError
from tests.weights import TINY, make_model, refused, save, tiny_state

ROOT = Path(__file__).parents[1]
LEGACY_HEAD = b"".join(
    pickle.dumps(part, protocol=2) for part in (0x1950A86A20F9469CFC6C, 1001, {"little_endian": True})
)


def text(value: str) -> bytes:
    """BINUNICODE: push a string."""
    return b"X" + len(value.encode()).to_bytes(4, "little") + value.encode()


def short(value: str) -> bytes:
    """SHORT_BINUNICODE: push a string in protocol 4."""
    return b"\x8c" + bytes([len(value)]) + value.encode()


def archive(data: bytes, *, folder: str = "archive", name: str = "data.pkl", **parts: bytes) -> bytes:
    """A file as torch.save writes it, around any pickle."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as opened:
        opened.writestr(f"{folder}/{name}", data)
        opened.writestr(f"{folder}/byteorder", b"little")
        opened.writestr(f"{folder}/version", b"3\n")
        for part, content in parts.items():
            opened.writestr(f"{folder}/{part.replace('__', '/').replace('_pkl', '.pkl')}", content)
    return file.getvalue()


def calling(module: str, name: str, argument: str) -> bytes:
    """GLOBAL, a tuple of one string, REDUCE: the call that every malicious pickle makes in the end."""
    return b"\x80\x02c" + f"{module}\n{name}\n".encode() + text(argument) + b"\x85R."


class Canary:
    """Builds hostile files whose command would leave a file behind."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.command = f"touch {path}"
        self.code = f"open({str(path)!r}, 'w')"


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
    """The names are pushed, kept, dropped and fetched again in another order, past decoys."""
    kept = short("system") + b"\x940" + short("posix") + b"\x940" + short("decoy") + b"\x940"
    return archive(b"\x80\x04" + kept + b"h\x01h\x00\x93" + text(canary.command) + b"\x85R.")


def stack_global_through_a_module(canary: Canary) -> bytes:
    """A dotted name that walks from a module of torch's to the operating system."""
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
    """Two parts called data.pkl: whoever reads by name sees one, whoever reads by place the other."""
    file = io.BytesIO(archive(pickle.dumps({}, protocol=2)))
    with zipfile.ZipFile(file, "a") as opened, pytest.warns(UserWarning, match="Duplicate"):
        opened.writestr("archive/data.pkl", calling("posix", "system", canary.command))
    return file.getvalue()


def in_capitals(canary: Canary) -> bytes:
    return archive(calling("posix", "system", canary.command), name="DATA.PKL")


def in_capitals_beside(canary: Canary) -> bytes:
    """A good data.pkl, and a twin in capitals that a reader without regard for case finds first."""
    hostile = calling("posix", "system", canary.command)
    return archive(hostile, name="DATA.PKL", data_pkl=pickle.dumps({}, protocol=2))


def legacy(canary: Canary) -> bytes:
    return LEGACY_HEAD + calling("posix", "system", canary.command) + pickle.dumps([], protocol=2)


def legacy_with_an_archive_behind(canary: Canary) -> bytes:
    """A good archive at the end, and in front of it, where torch begins to read, the other format."""
    return legacy(canary) + archive(pickle.dumps({}, protocol=2))


def legacy_version(canary: Canary) -> bytes:
    """The command stands in one of the small pickles before the content."""
    return LEGACY_HEAD[:15] + calling("posix", "system", canary.command)


def tar(canary: Canary, name: str = "pickle") -> bytes:
    """torch's format of 2016: a tar archive of pickles."""
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as opened:
        for part in (name, "storages", "tensors", "pickle"):
            data = calling("posix", "system", canary.command)
            entry = tarfile.TarInfo(part)
            entry.size = len(data)
            opened.addfile(entry, io.BytesIO(data))
    return file.getvalue()


def tar_like_the_legacy_format(canary: Canary) -> bytes:
    """A tar archive whose first file's name is torch's own mark."""
    data = bytearray(tar(canary))
    data[:15] = LEGACY_HEAD[:15]
    checksum = sum(data[:148]) + 8 * 32 + sum(data[156:512])
    data[148:156] = f"{checksum:06o}\0 ".encode()
    return bytes(data)


def program(canary: Canary) -> bytes:
    """A TorchScript archive, with a command where its attributes are."""
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
    """A hostile file is refused for what it is, whatever it is called."""
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
    """Python's, torch's, numpy's and our own functions are refused by their names; none is even imported for it."""
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


def test_fault_35_a_command_beside_good_weights_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A whole, loadable state dict does not make the command that follows it acceptable, and torch is not asked."""
    asked: list[object] = []
    monkeypatch.setattr(torch, "load", lambda *_, **__: asked.append(1))
    canary = Canary(tmp_path / "canary")
    path = save(tmp_path / "good.pth", tiny_state())
    with zipfile.ZipFile(path) as opened:
        parts = {part.filename: opened.read(part) for part in opened.infolist()}
    with zipfile.ZipFile(path, "w") as opened:
        for name, data in parts.items():
            # the state dict is dropped from the stack again once the command has run
            tail = b"cposix\nsystem\n" + text(canary.command) + b"\x85R0."
            opened.writestr(name, data[:-1] + tail if name.endswith("data.pkl") else data)
    assert refused(path, arch=TINY).code == "E401"
    assert asked == []
    assert not canary.path.exists()


DOUBLED = b"\x80\x02}K\x01\x85q\x00" + b"h\x00\x86q\x00" * 60 + b"K\x01s."
ENDLESS = {
    "a key of 2^60 parts": (DOUBLED, "1 s"),
    "a set of 2^60 parts": (
        b"\x80\x02cbuiltins\nset\n]K\x01\x85q\x00" + b"h\x00\x86q\x00" * 60 + b"a\x85R.",
        "1 s",
    ),
    "a count of 2^60 parts": (
        b"\x80\x02ccollections\nCounter\n]K\x01\x85q\x00" + b"h\x00\x86q\x00" * 60 + b"a\x85R.",
        "1 s",
    ),
    "100 GB of zeros": (b"\x80\x02cbuiltins\nbytearray\nI100000000000\n\x85R.", "0.25 GB"),
    "a key 300,000 levels deep": (b"\x80\x02}K\x01" + b"\x85" * 300_000 + b"K\x01s.", "a deeper stack"),
    "four million lists": (b"\x80\x02" + b"]" * 4_000_000 + b".", ""),  # the time or the memory, whichever comes first
}


@pytest.mark.parametrize(("name", "form"), [*((name, "zip") for name in ENDLESS), ("100 GB of zeros", "legacy")])
def test_fault_35_what_would_never_end_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, form: str
) -> None:
    """A few bytes that would keep torch's reader busy for ever, or take all memory or the stack, are E444."""
    monkeypatch.setattr(rehearse, "_SECONDS", 1)
    monkeypatch.setattr(rehearse, "_MEMORY", 1 << 28)
    data, limit = ENDLESS[name]
    path = tmp_path / "best.pth"
    path.write_bytes(archive(data) if form == "zip" else LEGACY_HEAD + data)
    error = refused(path, arch=TINY)
    assert isinstance(error, ModelError)
    assert error.code == "E444"
    assert re.search(f"reading best.pth takes (more than )?{limit}", error.message)


def test_fault_38_a_piece_longer_than_its_file_is_damage(tmp_path: Path) -> None:
    """A damaged length, of which torch reads as far as there is, is no attack: the file is E403 and not E444."""
    path = tmp_path / "a.pth"
    path.write_bytes(LEGACY_HEAD + b"\x80\x02X\xff\xff\xff\x7fabc")
    assert refused(path, arch=TINY).code == "E403"


def test_fault_35_a_command_before_what_never_ends_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a pickle named before it ran into the limit is what it is refused for."""
    monkeypatch.setattr(rehearse, "_SECONDS", 1)
    with pytest.raises(ModelError, match=r"E401.*posix\.system"):
        names_in(b"cposix\nsystem\n0" + DOUBLED, 1, Path("best.pth"))


def test_a_clock_ends_what_no_other_limit_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where processor time is not limited, a child that does not answer is ended by the clock."""
    monkeypatch.setattr(rehearse, "_WALL_SECONDS", 1)
    assert rehearse.rehearse(DOUBLED, 1).exceeded == "more than 1 s"


def test_a_child_opens_nothing() -> None:
    """Under the child's limits neither a file nor a socket can be opened."""
    code = """
import socket
from checkpoints import rehearse
rehearse._limit_ourselves(1 << 30, 10)
for open_something in (lambda: open("/etc/hosts"), lambda: socket.socket()):
    try:
        open_something()
    except OSError as err:
        print(err.strerror)
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout == "Too many open files\n" * 2


def test_a_rehearsal_names_what_weights_need(tmp_path: Path) -> None:
    """The names of an honest file are found in both formats, each once and in order."""
    state = make_model().state_dict()
    expected = [
        "collections.OrderedDict",
        "torch._utils._rebuild_tensor_v2",
        "torch.FloatStorage",
        "torch.LongStorage",
    ]
    with zipfile.ZipFile(save(tmp_path / "a.pth", state)) as opened:
        assert names_in(opened.read("a/data.pkl"), 1, tmp_path) == expected
    with open(save(tmp_path / "b.pth", state, _use_new_zipfile_serialization=False), "rb") as f:
        assert names_in(f, 5, tmp_path) == expected


def test_odd_pickles_cause_no_warnings(tmp_path: Path) -> None:
    """Where torch warns of a pickle's protocol, the user is not told to report it to torch."""
    path = tmp_path / "a.pth"
    path.write_bytes(archive(b"\x80\x05" + pickle.dumps({"a": 1}, protocol=2)[2:]))
    assert refused(path, arch=TINY).message.endswith("it is a dictionary of a")
    with pytest.warns(UserWarning, match="protocol 5"), open(path, "rb") as f:
        torch.load(f, weights_only=True)


def test_nobody_else_unpickles() -> None:
    """The one unpickler gives out six harmless functions and stand-ins, whatever it is asked for."""
    follower = rehearse._Follower(io.BytesIO())
    real, other = os.dup(1), os.open(os.devnull, os.O_WRONLY)
    os.dup2(other, 1)
    try:
        found = {follower.find_class(module, name) for module, name in [*rehearse._REAL, ("os", "system"), ("x", "y")]}
    finally:
        os.dup2(real, 1)
        os.close(real)
        os.close(other)
    assert found == {*rehearse._REAL.values(), rehearse._StandIn}
