"""The provider that the finished parts of a run were computed with, which a resumed run keeps."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path

from ensemble.errors import EnsError
from ensemble.predict.fingerprint import Origin
from ensemble.predictions.dataset import read_part


def _origin_of_part(path: Path) -> str:
    return read_part(path).origin


def begun_providers(
    folders: Iterable[Path], *, prefix: str = "part", origin_of: Callable[[Path], str] = _origin_of_part
) -> tuple[str, ...]:
    """Return the providers that the parts in the folders record, of one readable part per folder; each name once."""
    found: dict[str, None] = {}
    for folder in folders:
        paths = sorted(folder.glob(f"{prefix}-*")) or sorted(folder.glob(f"_{prefix}-*"))
        for path in paths:
            try:
                provider = Origin.parse(origin_of(path), path).run.values.get("provider")
            except EnsError:
                continue  # resuming says what is wrong with it
            if isinstance(provider, str):
                found[provider] = None
            break
    return tuple(found)
