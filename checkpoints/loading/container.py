"""The file around the weights: which format its content is, and whether all of it is there and undamaged."""

from __future__ import annotations

import stat
import struct
import zipfile
import zlib
from pathlib import Path
from typing import Literal

from checkpoints.loading.pickle_allowlist import names_in, refusal
from ensemble.errors import FileError, ModelError

Container = Literal["safetensors", "zip", "legacy"]

# torch.save's own mark, an integer at the start of its format before 1.6, as any pickle protocol writes it
_LEGACY_MARK = b"\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."
_MAX_SAFETENSORS_HEADER = 100_000_000  # bytes; the format's own limit
_OTHER_FILES = {
    b"version https://git-lfs": "a Git-LFS pointer, not the file it points to",
    b"\xff\xd8\xff": "a JPEG image",
    b"\x89PNG": "a PNG image",
    b"\x1f\x8b": "a gzip archive; unpack it first",
    b"7z\xbc\xaf": "a 7z archive; unpack it first",
    b"Rar!": "a RAR archive; unpack it first",
    b"\x89HDF": "an HDF5 file (Keras?)",
    b"\x93NUMPY": "a numpy array",
    b"\x08": "probably an ONNX model, which needs no export",
}


def recognise(path: Path) -> Container:
    """The format of a checkpoint by its content, whatever its name, after proving that the file is whole.

    Raises:
        FileError: E707 when there is no file that can be read.
        ModelError: E403 when it is incomplete, E404 when it is something else, E405 when a checksum is wrong, E401,
            E402 and E417 when it holds no weights that may be read.
    """
    try:
        status = path.stat()
        if not stat.S_ISREG(status.st_mode):
            kind = "a folder" if stat.S_ISDIR(status.st_mode) else "not a regular file"
            raise FileError("E707", f"{path} is {kind}; name the checkpoint's file", path=path)
        with open(path, "rb") as f:
            head = f.read(512)
        if not head:
            raise ModelError("E403", f"{path.name} is empty (0 bytes)", path=path)
        if _starts_safetensors(head):
            return "safetensors"
        if head.startswith(b"PK") or _is_zip(path):
            _check_zip(path, status.st_size)
            if not head.startswith(b"PK\x03\x04"):  # torch would read what stands before the archive
                raise ModelError("E417", f"{path.name} is a zip archive behind something else", path=path)
            return "zip"
    except OSError as err:
        raise FileError("E707", f"{path} cannot be read: {err.strerror or err}", path=path) from err
    if _LEGACY_MARK in head[:32]:
        return "legacy"
    if head.startswith(b"\x80"):
        plain = ModelError("E417", f"{path.name} is a pickle that torch.save did not write", path=path)
        raise refusal(names_of(path, "plain"), path) or plain
    raise ModelError("E404", f"{path.name} is not a checkpoint but {_describe(head)}", path=path)


def megabytes(size: int) -> str:
    """A size in bytes, for people."""
    return f"{size / 1e6:,.1f} MB" if size >= 1e5 else f"{size:,} bytes"


def names_of(path: Path, container: Container | Literal["plain"]) -> list[str]:
    """The globals that a checkpoint's pickles name, found without importing one.

    Raises:
        ModelError: E401, E402 or E444, see `names_in`.
    """
    if container == "zip":
        with zipfile.ZipFile(path) as archive:
            # by entry, for a name may stand there twice; torch finds it in capital letters too
            parts = [part for part in archive.infolist() if part.filename.lower().rpartition("/")[2] == "data.pkl"]
            return [name for part in parts for name in names_in(archive.read(part), 1, path)]
    with open(path, "rb") as f:
        # torch.save wrote its mark, a version, the machine's kind, the content and the list of what follows
        return names_in(f, 5 if container == "legacy" else 1, path)


def _starts_safetensors(head: bytes) -> bool:
    """Eight bytes with the header's length, little-endian, then the header: JSON."""
    return head[8:9] == b"{" and struct.unpack("<Q", head[:8])[0] <= _MAX_SAFETENSORS_HEADER


def _is_zip(path: Path) -> bool:
    """Whether a zip archive's table of contents stands at the end, damaged or not."""
    try:
        return zipfile.is_zipfile(path)
    except zipfile.BadZipFile:
        return True


def _check_zip(path: Path, size: int) -> None:
    """Read every part of the archive and compare its checksum, which torch does not do."""
    try:
        with zipfile.ZipFile(path) as archive:
            parts = archive.infolist()
            unpacked = sum(part.file_size for part in parts)
            # torch stores its parts as they are; a packed one could fill the memory
            if unpacked > size:
                raise ModelError(
                    "E417",
                    f"{path.name} is a compressed archive ({megabytes(unpacked)} in {megabytes(size)}), "
                    "which torch.save does not write",
                    hint="unpack it; the checkpoint may be inside",
                    path=path,
                )
            damaged = archive.testzip() or next((part.filename for part in parts if _is_hollow(part)), None)
    # an offset before the file's start is an OSError
    except (zipfile.BadZipFile, zlib.error, struct.error, EOFError, ValueError, RuntimeError, OSError) as err:
        # the table of contents stands at the end: without it the rest was never written or downloaded
        if not _is_zip(path):
            raise ModelError("E403", f"{path.name} is incomplete: it ends after {megabytes(size)}", path=path) from err
        raise ModelError("E405", f"{path.name} is damaged: {err}", path=path) from err
    if damaged is not None:
        raise ModelError("E405", f"{path.name} is damaged: CRC error in {damaged}", path=path)
    names = {part.filename.rpartition("/")[2] for part in parts}
    if "constants.pkl" in names:
        raise ModelError(
            "E402",
            f"{path.name} is a TorchScript program, not its weights",
            hint="torch.save(torch.jit.load('model.pt').state_dict(), 'weights.pth')",
            path=path,
        )
    if "data.pkl" not in names:
        raise ModelError("E417", f"{path.name} is a zip archive that torch.save did not write", path=path)


def _is_hollow(part: zipfile.ZipInfo) -> bool:
    """Whether a part with content is marked as a folder: torch would read nothing and return unset memory."""
    return part.file_size > 0 and bool(part.external_attr & 0x10)


def _describe(head: bytes) -> str:
    text = head.lstrip().lower()
    if text.startswith(b"<"):
        return "a web page (a download that asked for a login or ran into a quota?)"
    for start, description in _OTHER_FILES.items():
        if head.startswith(start):
            return description
    if head[257:262] == b"ustar":
        return "a tar archive; unpack it first"
    return f"a file that starts with {head[:16]!r}"
