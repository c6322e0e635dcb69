"""The pickle sandbox: endless pickles are refused, and no global is imported."""

from __future__ import annotations

import pickle
import re
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from checkpoints.loading import pickle_sandbox
from checkpoints.loading.pickle_allowlist import list_globals
from ensemble.errors import ModelError
from tests.support.pickled import LEGACY_HEAD, archive
from tests.support.weights import TINY, make_model, refused, save

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[3]


def colliding_item(number: int) -> bytes:
    data = pickle.encode_long(number * (2**61 - 1))
    return b"\x8a" + bytes([len(data)]) + data + b"K\x01"


DOUBLED = b"K\x01\x85q\x00" + b"h\x00\x86q\x00" * 60
NESTED = {
    "a key of 2^60 parts": b"\x80\x02}" + DOUBLED + b"K\x01s.",
    "a set of 2^60 parts": b"\x80\x02cbuiltins\nset\n]" + DOUBLED + b"a\x85R.",
    "a count of 2^60 parts": b"\x80\x02ccollections\nCounter\n]" + DOUBLED + b"a\x85R.",
    "a key 300,000 levels deep": b"\x80\x02}K\x01" + b"\x85" * 300_000 + b"K\x01s.",
}
# every multiple of 2^61 - 1 has the hash 0, so a dictionary compares each of these keys with all before it
COLLIDING = b"\x80\x02}(" + b"".join(map(colliding_item, range(60_000))) + b"u."
ENDLESS = {
    "a dictionary of 60,000 keys of one hash": (COLLIDING, "1 s"),
    "a thousand copies of a list": (
        b"\x80\x02]((" + b"K\x01" * 200_000 + b"lq\x01e" + b"(" + b"cbuiltins\nlist\nh\x01\x85R" * 1000 + b"e.",
        "0.25 GB",
    ),
    "four million lists": (
        b"\x80\x02" + b"]" * 4_000_000 + b".",
        "",
    ),  # time or memory, whichever limit is reached first
}


@pytest.mark.parametrize(
    ("name", "form"), [*((name, "zip") for name in ENDLESS), ("a thousand copies of a list", "legacy")]
)
def test_fault_35_what_would_never_end_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, form: str
) -> None:
    """A few bytes that would run forever in torch, or exhaust memory or stack, are E444."""
    monkeypatch.setattr(pickle_sandbox, "_SECONDS", 1)
    monkeypatch.setattr(pickle_sandbox, "_MEMORY", 1 << 28)
    data, limit = ENDLESS[name]
    path = tmp_path / "best.pth"
    path.write_bytes(archive(data) if form == "zip" else LEGACY_HEAD + data)
    error = refused(path, arch=TINY)
    assert isinstance(error, ModelError)
    assert error.code == "E444"
    assert re.search(f"reading best.pth takes (more than )?{limit}", error.message)


@pytest.mark.parametrize("name", NESTED)
def test_a_key_of_deeply_nested_tuples_is_read_at_once(tmp_path: Path, name: str) -> None:
    """Its hash, for which Python visits all its parts, is never computed: the file is named for what it holds."""
    path = tmp_path / "best.pth"
    path.write_bytes(archive(NESTED[name]))
    assert refused(path, arch=TINY).code == "E417"


def test_fault_38_a_piece_longer_than_its_file_is_damage(tmp_path: Path) -> None:
    """A damaged length, which torch reads to the end of the file, is E403 and not E444."""
    path = tmp_path / "a.pth"
    path.write_bytes(LEGACY_HEAD + b"\x80\x02X\xff\xff\xff\x7fabc")
    assert refused(path, arch=TINY).code == "E403"


def test_fault_35_a_command_before_what_never_ends_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """A pickle that exceeds a limit is refused for the globals that it referred to before."""
    monkeypatch.setattr(pickle_sandbox, "_SECONDS", 1)
    with pytest.raises(ModelError, match=r"E401.*posix\.system"):
        list_globals(b"cposix\nsystem\n0" + COLLIDING, 1, Path("best.pth"))


def test_a_clock_ends_what_no_other_limit_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a limit on CPU time, a child that does not respond is killed after the wall-clock limit."""
    monkeypatch.setattr(pickle_sandbox, "_WALL_SECONDS", 1)
    assert pickle_sandbox.scan_pickles(COLLIDING, 1).exceeded == "more than 1 s"


def test_a_child_opens_nothing() -> None:
    """Under the child's limits neither a file nor a socket can be opened."""
    code = """
import socket
from checkpoints.loading import pickle_sandbox
pickle_sandbox._limit_process(1 << 30, 10)
for open_something in (lambda: open("/etc/hosts"), lambda: socket.socket()):
    try:
        open_something()
    except OSError as err:
        print(err.strerror)
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout == "Too many open files\n" * 2


def test_a_rehearsal_names_what_weights_need(tmp_path: Path) -> None:
    """The globals of a normal file are found in both formats, each once and in order."""
    state = make_model().state_dict()
    expected = [
        "collections.OrderedDict",
        "torch._utils._rebuild_tensor_v2",
        "torch.FloatStorage",
        "torch.LongStorage",
    ]
    with zipfile.ZipFile(save(tmp_path / "a.pth", state)) as opened:
        assert [*map(str, list_globals(opened.read("a/data.pkl"), 1, tmp_path))] == expected
    with open(save(tmp_path / "b.pth", state, _use_new_zipfile_serialization=False), "rb") as f:
        assert [*map(str, list_globals(f, 5, tmp_path))] == expected


def test_odd_pickles_cause_no_warnings(tmp_path: Path) -> None:
    """A pickle of a protocol that torch.save does not write is read without torch's advice to report it."""
    path = tmp_path / "a.pth"
    path.write_bytes(archive(b"\x80\x05" + pickle.dumps({"a": 1}, protocol=2)[2:]))
    assert refused(path, arch=TINY).message.endswith("it is a dictionary of a")
