"""The fused ensemble of a page: a file that was fused before, or a recipe and its models, which are fused here."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from ensemble.blend.recipe import Recipe
from ensemble.errors import DeployError, FileError, enumerate_some
from ensemble.events import SILENT, Listener, Notice
from ensemble.fuse.fuse import FuseOptions, fuse
from ensemble.fuse.verify import CheckImages
from ensemble.page.facts import FusedFile, read_fused, require_no_faces
from ensemble.submit.early_exit import used_part
from ensemble.submit.submit import find_members
from ensemble.text.input_file import read_input

_NAME = "ensemble.onnx"
_NO_MAPS = "E808"


def is_recipe(path: Path) -> bool:
    """Return whether a file's content begins as JSON does, and not as an ONNX file.

    Raises:
        FileError: E707 when it cannot be read.
    """
    try:
        with open(path, "rb") as file:
            return file.read(100).removeprefix(b"\xef\xbb\xbf").lstrip().startswith(b"{")
    except OSError as err:
        raise FileError("E707", f"{path} cannot be read: {err.strerror}", path=path) from err


def read_fused_file(path: Path) -> FusedFile:
    """Read a fused file and check that a page can run it.

    Raises:
        FileError: E707 when it cannot be read.
        DeployError: the codes of `ensemble.page.facts.read_fused`.
    """
    data = read_input(path)
    return read_fused(data, path)


def require_page_members(recipe: Recipe, models: Sequence[Path]) -> None:
    """Check that the recipe's members are there and take whole images, before anything is fetched or fused.

    Raises:
        DeployError: E830 when a member takes face crops.
        PredictionError, ModelError, FileError: see `find_members`.
    """
    found = find_members(used_part(recipe), models)
    cropped = [name for name, model in found.items() if model.card.preprocess.face is not None]
    require_no_faces(bool(cropped), enumerate_some(cropped))


def fuse_for_page(
    recipe: Recipe,
    models: Sequence[Path],
    *,
    images: CheckImages = CheckImages(),  # noqa: B008 - frozen
    license_name: str | None = None,
    listener: Listener = SILENT,
) -> FusedFile:
    """Fuse a recipe and its models, with each member's probabilities, and compare the result with `ens submit`.

    The maps of the strongest member that gives them are part of it; where none does, I830 says why.

    Raises:
        DeployError: the codes of `fuse` and of `ensemble.page.facts.read_fused`.
        EnsError: the others that `fuse` names.
    """
    with tempfile.TemporaryDirectory(prefix="ens-page-") as folder:
        target = Path(folder) / _NAME
        options = FuseOptions(members=True, maps=True, license=license_name)
        try:
            fuse(recipe, models, target, images=images, options=options, listener=listener)
        except DeployError as err:
            if err.code != _NO_MAPS:
                raise
            listener.notice(Notice("I830", f"there is no map of evidence: {'; '.join(err.details)}"))
            options = replace(options, maps=False)
            fuse(recipe, models, target, images=images, options=options, listener=listener)
        return read_fused_file(target)
