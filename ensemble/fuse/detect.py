"""Tell a fused file from a member's model, without what blending needs."""

from __future__ import annotations

from pathlib import Path

FUSED_KEY = "ens.fused"  # of the card in the file's metadata


def is_fused(path: Path) -> bool:
    """Return True if a file names the card of a fused file; reading that card tells if it has one."""
    with path.open("rb") as file:
        return FUSED_KEY.encode() in file.read()
