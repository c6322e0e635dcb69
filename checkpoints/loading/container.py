"""The container format of a checkpoint file, and checks that the file is complete and undamaged."""

from __future__ import annotations

import re
import stat
import struct
import zipfile
import zlib
from pathlib import Path
from typing import Literal

from checkpoints.loading.other_files import describe_archive, describe_file
from checkpoints.loading.pickle_allowlist import list_globals
from checkpoints.loading.pickle_objects import Name
from checkpoints.loading.pickle_reader import LEGACY_PICKLES
from ensemble.errors import FileError, ModelError

Container = Literal["safetensors", "zip", "legacy", "plain", "npz"]

# the magic number of torch.save's format before 1.6, a pickled integer
_ZIP = (b"PK\x03\x04", b"PK\x05\x06", b"PK\x07\x08")
_LEGACY_MAGIC = b"\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."
_MAX_SAFETENSORS_HEADER = 100_000_000  # bytes; the limit of the format
# the beginning of a pickle of protocols 0 and 1, which have no mark of their own
_OLD_PICKLE = re.compile(rb"\((dp?|lp?|i)[\w.]*\n|c[A-Za-z_][\w.]*\n\w+\n|[}\]](q|\.|\()|\((d|l)(q|\.)")


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
        # a tar archive may end like the zip archive inside it
        if head.startswith(_ZIP) or (head[257:262] != b"ustar" and _is_zip(path)):
            found = _check_zip(path, status.st_size)
            if not head.startswith(b"PK\x03\x04"):  # torch would read the data before the archive
                raise ModelError("E417", f"{path.name} is a zip archive behind something else", path=path)
            return found
    except OSError as err:
        raise FileError("E707", f"{path} cannot be read: {err.strerror or err}", path=path) from err
    if _LEGACY_MAGIC in head[:32]:
        return "legacy"
    if re.match(rb"\x80[\x02-\x05][^\x80-\xff]|\x80[\x04\x05]\x95", head) or _OLD_PICKLE.match(head):
        return "plain"
    other = describe_file(path, head)
    raise ModelError("E404", f"{path.name} is not a checkpoint but {other.description}", hint=other.hint, path=path)


def format_size(size: int) -> str:
    """Return a size in bytes as text."""
    return f"{size / 1e6:,.1f} MB" if size >= 1e5 else f"{size:,} bytes"


def list_checkpoint_globals(path: Path, container: Container) -> list[Name]:
    """Return the globals that a checkpoint's pickles refer to, without importing them.

    Raises:
        ModelError: E401 or E444, as `list_globals`.
    """
    if container == "zip":
        with zipfile.ZipFile(path) as archive:
            # by entry, as a name may occur twice; torch ignores case when it looks it up
            parts = [part for part in archive.infolist() if part.filename.lower().rpartition("/")[2] == "data.pkl"]
            return [name for part in parts for name in list_globals(archive.read(part), 1, path)]
    with open(path, "rb") as f:
        if container == "legacy":
            return list_globals(f, LEGACY_PICKLES, path)
        return list_globals(f, 1, path, size=path.stat().st_size)


def _starts_safetensors(head: bytes) -> bool:
    """Check for the length of the header (eight bytes, little-endian) and the JSON header after it."""
    return head[8:9] == b"{" and struct.unpack("<Q", head[:8])[0] <= _MAX_SAFETENSORS_HEADER


def _is_zip(path: Path) -> bool:
    """Return True if there is a central directory at the end of the file, damaged or not."""
    try:
        return zipfile.is_zipfile(path)
    except zipfile.BadZipFile:
        return True


def _check_zip(path: Path, size: int) -> Container:
    """Read every entry of the archive and compare its checksum, which torch does not do; return what it holds."""
    try:
        with zipfile.ZipFile(path) as archive:
            parts = archive.infolist()
            is_npz = _require_known_archive(path, [part.filename for part in parts])
            unpacked = sum(part.file_size for part in parts)
            # torch does not compress; a compressed entry could exhaust the memory. numpy may, and weights hardly shrink
            if unpacked > size * (100 if is_npz else 1):
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
    return "npz" if is_npz else "zip"


def _require_known_archive(path: Path, names: list[str]) -> bool:
    """Return True for an archive of numpy arrays, False for one of torch.save.

    Raises:
        ModelError: E402 for a program, E417 for any other archive.
    """
    last = {name.rpartition("/")[2] for name in names}
    if "constants.pkl" in last or any("/code/" in f"/{name}" and name.endswith(".py") for name in names):
        raise ModelError(
            "E402",
            f"{path.name} is a TorchScript program, not its weights",
            hint=f"torch.save(torch.jit.load({path.name!r}).state_dict(), 'weights.pth')",
            path=path,
        )
    if names and all(name.endswith(".npy") for name in names):
        return True
    if (other := describe_archive(names)) is not None:
        code = "E402" if "program" in other.description else "E417"
        raise ModelError(code, f"{path.name} is {other.description}", hint=other.hint, path=path)
    return False


def _is_hollow(part: zipfile.ZipInfo) -> bool:
    """Return True if an entry with content is marked as a folder: torch would return uninitialized memory."""
    return part.file_size > 0 and bool(part.external_attr & 0x10)
