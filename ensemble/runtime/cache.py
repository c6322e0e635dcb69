"""The folder of what outlives a run: measured provider options, TensorRT's engines, the texts of long errors."""

from __future__ import annotations

import os
from pathlib import Path


def cache_folder() -> Path:
    """Return the folder of caches that outlive a run."""
    return Path(os.environ.get("XDG_CACHE_HOME", "~/.cache")).expanduser() / "ens"
