"""Write a folder that hands an ensemble over."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from ensemble.blend.recipe import Recipe
from ensemble.bundle.hub import HubFacts, hub_files, require_scores_of
from ensemble.bundle.kaggle import KaggleFacts, kaggle_files
from ensemble.bundle.run_script import run_script
from ensemble.bundle.triton import MODEL, triton_files
from ensemble.bundle.wheels import PYTHONS, fetch_wheels, packages_to_run
from ensemble.errors import DataError, DeployError
from ensemble.events import SILENT, Listener, Notice
from ensemble.files import require_writable, write_atomic
from ensemble.fuse.fuse import Fused, FuseOptions, fuse
from ensemble.fuse.verify import CheckImages
from ensemble.install import install_command
from ensemble.runtime.run_device import warn_of_onnxruntime
from ensemble.submit.early_exit import used_part
from ensemble.submit.submit import find_members
from ensemble.submit.time_budget import parse_budget

BundleKind = Literal["folder", "hub", "kaggle", "triton"]
ENSEMBLE, LABELS, RUN = "ensemble.onnx", "labels.txt", "run.py"
RECIPE, MODELS, WHEELS = "blend.json", "models", "wheels"


@dataclass(frozen=True, slots=True)
class BundleOptions:
    """``license`` is that of the ensemble; ``scores`` are those of ``ens evaluate --json``, for the model card.

    For Kaggle, ``name`` is ``USER/NAME``, ``budget`` the time limit of the notebook, and ``pythons`` are the versions
    that wheels are fetched for. With ``gpu`` onnxruntime is the package for CUDA; a Triton server uses its GPUs.
    """

    license: str | None = None
    scores: Mapping[str, Any] | None = None
    title: str | None = None
    name: str | None = None
    budget: str | None = None
    pythons: tuple[str, ...] = PYTHONS
    gpu: bool = False


@dataclass(frozen=True, slots=True)
class Bundle:
    """A written folder: the bytes of each file by name, and the fused file in it, if there is one."""

    folder: Path
    kind: BundleKind
    files: Mapping[str, int]
    fused: Fused | None = field(default=None, repr=False)

    def as_dict(self) -> dict[str, Any]:
        """Return JSON-ready values."""
        files = dict(sorted(self.files.items()))
        return {"path": str(self.folder), "for": self.kind, "bytes": sum(files.values()), "files": files}

    def __str__(self) -> str:
        lines = [f"{self.folder}  {sum(self.files.values()) / 1e6:.1f} MB"]
        width = max(map(len, self.files))
        lines += [f"  {name:{width}}  {size:>12,} bytes" for name, size in sorted(self.files.items())]
        return "\n".join(lines if self.fused is None else [*lines, str(self.fused)])


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
    """Write what its reader needs to run an ensemble: the fused file, or for Kaggle the models and all packages.

    Raises:
        DeployError: E811 when the folder holds other files, E812 when the scores are not the ensemble's, E814 when pip
            does not find the packages.
        DataError: E331 when a class has a line break.
        OptionError: E204 when a name, a version of Python or a budget has another form.
        EnsError: see `fuse` and `find_members`.
    """
    require_bundle_folder(folder)
    if kind == "kaggle":
        return _write_kaggle(recipe, models, folder, options, listener)
    if kind == "hub" and options.scores is not None:
        require_scores_of(recipe, options.scores)
    names = recipe.labels.names
    if broken := next((name for name in names if name.splitlines() != [name]), None):
        raise DataError(
            "E331",
            f"the class {broken!r} has a line break, and {LABELS} has one class per line",
            hint="rename the class in the labels, and export the models again",
        )
    place = f"{MODEL}/1/model.onnx" if kind == "triton" else ENSEMBLE
    fused = fuse(
        recipe,
        models,
        folder / place,
        images=images,
        options=FuseOptions(license=options.license),
        listener=listener,
    )
    labels = "".join(f"{name}\n" for name in names)
    if kind == "triton":
        texts = triton_files(fused.card, labels, gpu=options.gpu)
    else:
        texts = {LABELS: labels, RUN: run_script(fused.card)}
    if kind == "hub":
        texts |= hub_files(HubFacts(fused, texts[RUN], options.scores, options.title or folder.name), listener)
    for name, text in texts.items():
        write_atomic(folder / name, text.encode())
    sizes = {name: len(text.encode()) for name, text in texts.items()}
    return Bundle(folder, kind, sizes | {place: fused.size}, fused)


def require_bundle_folder(folder: Path) -> None:
    """Create the folder of a bundle, or check that it is empty or one that `bundle` wrote.

    Raises:
        DeployError: E811 when it holds other files.
    """
    require_writable(folder)
    if any(folder.iterdir()) and not any((folder / name).exists() for name in (ENSEMBLE, RECIPE, MODEL)):
        raise DeployError("E811", f"{folder} holds other files, and no {ENSEMBLE} or {RECIPE}", path=folder)


def _write_kaggle(
    recipe: Recipe, models: Sequence[Path], folder: Path, options: BundleOptions, listener: Listener
) -> Bundle:
    """Write the members, the recipe, the wheels, and the script that installs and runs them."""
    recipe = used_part(recipe)
    if options.budget is not None:
        parse_budget(options.budget)
    facts = KaggleFacts(options.title or folder.name, options.name, options.license, options.budget)
    texts = {RECIPE: recipe.to_json(), **kaggle_files(facts, listener)}
    found = find_members(recipe, models, listener)
    contents = {f"{MODELS}/{name}.onnx": model.data for name, model in found.items()}
    contents |= {name: text.encode() for name, text in texts.items()}
    cards = [model.card for model in found.values()]
    packages = packages_to_run(cards, gpu=options.gpu)
    if not options.gpu and "openvino" not in packages:
        cause = (
            f"OpenVINO, which is not installed here, is not among the packages ({install_command(extra='openvino')})"
        )
        warn_of_onnxruntime(cards, cause, listener=listener)
    wheels = fetch_wheels(folder / WHEELS, options.pythons, packages=packages, gpu=options.gpu)
    for name, data in contents.items():
        write_atomic(folder / name, data)
    sizes = {name: len(data) for name, data in contents.items()}
    sizes |= {f"{WHEELS}/{name}": size for name, size in wheels.items()}
    message = f"{sum(wheels.values()) / 1e6:.0f} MB are packages for Python {', '.join(options.pythons)}"
    message += "; pyarrow is there for the boxes of face crops" if "pyarrow" in packages else ""
    message += "; OpenVINO is there for int8 models that are quantized for it" if "openvino" in packages else ""
    listener.notice(Notice("I811", f"{message}; fewer versions are smaller (--python)"))
    return Bundle(folder, "kaggle", sizes)
