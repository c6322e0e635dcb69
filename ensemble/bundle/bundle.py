"""Write a folder that hands an ensemble over."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from ensemble.blend.recipe import Recipe
from ensemble.bundle.hub import HubFacts, hub_files
from ensemble.bundle.run_script import run_script
from ensemble.errors import DeployError
from ensemble.events import SILENT, Listener
from ensemble.files import require_writable, write_atomic
from ensemble.fuse.fuse import Fused, FuseOptions, fuse
from ensemble.fuse.verify import CheckImages

BundleKind = Literal["folder", "hub"]
ENSEMBLE, LABELS, RUN = "ensemble.onnx", "labels.txt", "run.py"


@dataclass(frozen=True, slots=True)
class BundleOptions:
    """``licence`` is that of the ensemble; ``scores`` are those of ``ens evaluate --json``, for the model card."""

    licence: str | None = None
    scores: Mapping[str, Any] | None = None
    title: str | None = None


@dataclass(frozen=True, slots=True)
class Bundle:
    """A written folder: the bytes of each file by name, and the fused file in it."""

    folder: Path
    kind: BundleKind
    files: Mapping[str, int]
    fused: Fused = field(repr=False)

    def as_dict(self) -> dict[str, Any]:
        """Return JSON-ready values."""
        files = dict(sorted(self.files.items()))
        return {"path": str(self.folder), "for": self.kind, "bytes": sum(files.values()), "files": files}

    def __str__(self) -> str:
        lines = [f"{self.folder}  {sum(self.files.values()) / 1e6:.1f} MB"]
        width = max(map(len, self.files))
        lines += [f"  {name:{width}}  {size:>12,} bytes" for name, size in sorted(self.files.items())]
        return "\n".join([*lines, str(self.fused)])


def bundle(
    recipe: Recipe,
    models: Sequence[Path],
    folder: Path,
    kind: BundleKind,
    *,
    images: CheckImages = CheckImages(),  # noqa: B008 - frozen
    options: BundleOptions = BundleOptions(),
    listener: Listener = SILENT,
) -> Bundle:
    """Fuse a recipe and its models into ``folder/ensemble.onnx``, and write what its reader needs beside it.

    Raises:
        DeployError: E811 when the folder holds other files.
        EnsError: see `fuse`.
    """
    require_bundle_folder(folder)
    fused = fuse(
        recipe,
        models,
        folder / ENSEMBLE,
        images=images,
        options=FuseOptions(licence=options.licence),
        listener=listener,
    )
    labels = "".join(f"{name}\n" for name in fused.card.recipe.labels.names)
    texts = {LABELS: labels, RUN: run_script(fused.card)}
    if kind == "hub":
        texts |= hub_files(HubFacts(fused, texts[RUN], options.scores, options.title or folder.name), listener)
    for name, text in texts.items():
        write_atomic(folder / name, text.encode())
    sizes = {name: len(text.encode()) for name, text in texts.items()}
    return Bundle(folder, kind, sizes | {ENSEMBLE: fused.size}, fused)


def require_bundle_folder(folder: Path) -> None:
    """Create the folder of a bundle, or check that it is empty or one that `bundle` wrote.

    Raises:
        DeployError: E811 when it holds other files.
    """
    require_writable(folder)
    if any(folder.iterdir()) and not (folder / ENSEMBLE).exists():
        raise DeployError("E811", f"{folder} holds other files, and no {ENSEMBLE}", path=folder)
