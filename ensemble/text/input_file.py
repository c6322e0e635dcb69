"""Read a file that a user names whole, with a limit: a device such as /dev/zero has no end."""

from __future__ import annotations

import os
import stat
from pathlib import Path

from ensemble.errors import FileError

MAX_BYTES = 16 * 2**30
"""A table of a million rows and 234 columns of probabilities has 2 to 5 GB."""


def read_input(path: Path, *, limit: int = MAX_BYTES) -> bytes:
    """Return the bytes of a regular file, or of a pipe, such as ``<(zcat ids.csv.gz)`` in a shell.

    Raises:
        FileError: E707 when it cannot be read, is a device, or has more than ``limit`` bytes.
    """
    try:
        status = os.stat(path)
        if not (stat.S_ISREG(status.st_mode) or stat.S_ISFIFO(status.st_mode) or stat.S_ISDIR(status.st_mode)):
            raise FileError("E707", f"{path} is neither a file nor a pipe", path=path)
        if status.st_size > limit:
            raise FileError("E707", f"{path} has {status.st_size:,} bytes; {limit:,} are allowed", path=path)
        with open(path, "rb") as f:  # of a folder: "Is a directory"
            data = f.read(limit + 1) if stat.S_ISFIFO(status.st_mode) else f.read()
    except OSError as err:
        raise FileError("E707", f"{path} cannot be read: {err.strerror or err}", path=path) from err
    if len(data) > limit:
        raise FileError("E707", f"{path} has more than the {limit:,} bytes that are allowed", path=path)
    return data
