"""The container format of a checkpoint file, and checks that the file is complete and undamaged."""

from __future__ import annotations

import stat
import struct
import zipfile
import zlib
from pathlib import Path
from typing import Literal

from checkpoints.loading.pickle_allowlist import list_globals, refusal
from ensemble.errors import FileError, ModelError

Container = Literal["safetensors", "zip", "legacy"]

# the magic number of torch.save's format before 1.6, a pickled integer
_LEGACY_MAGIC = b"\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."
_MAX_SAFETENSORS_HEADER = 100_000_000  # bytes; the limit of the format
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


def detect_container(path: Path) -> Container:
    """Return the format of a checkpoint by its content, not its name, after checking that the file is complete.

    Raises:
        FileError: E707 when the file cannot be read.
        ModelError: E403 when it is incomplete, E404 when it is something else, E405 when a checksum is wrong, E401,
            E402 and E417 when it has no weights that may be read.
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
            if not head.startswith(b"PK\x03\x04"):  # torch would read the data before the archive
                raise ModelError("E417", f"{path.name} is a zip archive behind something else", path=path)
            return "zip"
    except OSError as err:
        raise FileError("E707", f"{path} cannot be read: {err.strerror or err}", path=path) from err
    if _LEGACY_MAGIC in head[:32]:
        return "legacy"
    if head.startswith(b"\x80"):
        plain = ModelError("E417", f"{path.name} is a pickle that torch.save did not write", path=path)
        raise refusal(list_checkpoint_globals(path, "plain"), path) or plain
    raise ModelError("E404", f"{path.name} is not a checkpoint but {_describe(head)}", path=path)


def format_size(size: int) -> str:
    """Return a size in bytes as text."""
    return f"{size / 1e6:,.1f} MB" if size >= 1e5 else f"{size:,} bytes"


def list_checkpoint_globals(path: Path, container: Container | Literal["plain"]) -> list[str]:
    """Return the globals that a checkpoint's pickles refer to, without importing them.

    Raises:
        ModelError: E401, E402 or E444, as `list_globals`.
    """
    if container == "zip":
        with zipfile.ZipFile(path) as archive:
            # by entry, as a name may occur twice; torch ignores case when it looks it up
            parts = [part for part in archive.infolist() if part.filename.lower().rpartition("/")[2] == "data.pkl"]
            return [name for part in parts for name in list_globals(archive.read(part), 1, path)]
    with open(path, "rb") as f:
        # torch.save writes its magic number, a version, the system, the content and the keys of the storages
        return list_globals(f, 5 if container == "legacy" else 1, path)


def _starts_safetensors(head: bytes) -> bool:
    """Check for the length of the header (eight bytes, little-endian) and the JSON header after it."""
    return head[8:9] == b"{" and struct.unpack("<Q", head[:8])[0] <= _MAX_SAFETENSORS_HEADER


def _is_zip(path: Path) -> bool:
    """Return True if there is a central directory at the end of the file, damaged or not."""
    try:
        return zipfile.is_zipfile(path)
    except zipfile.BadZipFile:
        return True


def _check_zip(path: Path, size: int) -> None:
    """Read every entry of the archive and compare its checksum, which torch does not do."""
    try:
        with zipfile.ZipFile(path) as archive:
            parts = archive.infolist()
            unpacked = sum(part.file_size for part in parts)
            # torch does not compress; a compressed entry could exhaust the memory
            if unpacked > size:
                raise ModelError(
                    "E417",
                    f"{path.name} is a compressed archive ({format_size(unpacked)} in {format_size(size)}), "
                    "which torch.save does not write",
                    hint="unpack it; the checkpoint may be inside",
                    path=path,
                )
            damaged = archive.testzip() or next((part.filename for part in parts if _is_hollow(part)), None)
    # an offset before the start of the file is an OSError
    except (zipfile.BadZipFile, zlib.error, struct.error, EOFError, ValueError, RuntimeError, OSError) as err:
        # the central directory is at the end: without it the file was not written or downloaded to its end
        if not _is_zip(path):
            raise ModelError(
                "E403", f"{path.name} is incomplete: it ends after {format_size(size)}", path=path
            ) from err
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
    """Return True if an entry with content is marked as a folder: torch would return uninitialized memory."""
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
