"""Pickles written instruction by instruction, and the files that torch keeps them in."""

from __future__ import annotations

import io
import pickle
import zipfile
from pathlib import Path

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
