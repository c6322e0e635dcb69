"""Be somebody without rights for a while: root may read and write whatever the modes say."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_NOBODY = 65_534


@contextmanager
def as_nobody(folder: Path) -> Iterator[None]:
    """Work inside ``folder`` with relative paths, since its parents may be closed to others; files stay as they are."""
    home = Path.cwd()
    os.chdir(folder)
    root = os.geteuid() == 0
    if root:
        os.seteuid(_NOBODY)
    try:
        yield
    finally:
        if root:
            os.seteuid(0)
        os.chdir(home)
