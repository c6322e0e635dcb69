"""Identify the architecture of a set of weights by the names and shapes of its tensors."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import timm
import torch
from timm.models import get_deprecated_models

from checkpoints.loading.network import classifiers, size_options
from checkpoints.loading.state_dicts import Claim
from checkpoints.loading.torchvision_names import Renamed
from ensemble.errors import ModelError, OptionError, enumerate_some
from ensemble.events import Listener, Notice

# Number of values outside the classifier (weights and running statistics) -> architectures with that number. A tf_
# variant has the same names and shapes, but TensorFlow's padding and another epsilon.
FAMILIES: dict[int, tuple[str, ...]] = {
    11_186_112: ("resnet18",),
    21_301_696: ("resnet34",),
    23_561_152: ("resnet50",),
    42_605_504: ("resnet101",),
    58_295_232: ("resnet152",),
    4_049_564: ("efficientnet_b0", "tf_efficientnet_b0"),
    6_575_232: ("efficientnet_b1", "tf_efficientnet_b1"),
    7_768_562: ("efficientnet_b2", "tf_efficientnet_b2"),
    10_783_528: ("efficientnet_b3", "tf_efficientnet_b3"),
    17_673_816: ("efficientnet_b4", "tf_efficientnet_b4"),
    28_513_520: ("efficientnet_b5", "tf_efficientnet_b5"),
    40_960_136: ("efficientnet_b6", "tf_efficientnet_b6"),
    64_097_680: ("efficientnet_b7", "tf_efficientnet_b7"),
    3_413_024: ("efficientnet_lite0", "tf_efficientnet_lite0"),
    4_189_344: ("efficientnet_lite1", "tf_efficientnet_lite1"),
    4_869_168: ("efficientnet_lite2", "tf_efficientnet_lite2"),
    6_992_768: ("efficientnet_lite3", "tf_efficientnet_lite3"),
    11_837_936: ("efficientnet_lite4", "tf_efficientnet_lite4"),
    20_331_360: ("efficientnetv2_s", "tf_efficientnetv2_s"),
    53_150_388: ("efficientnetv2_m", "tf_efficientnetv2_m"),
    117_746_848: ("efficientnetv2_l", "tf_efficientnetv2_l"),
    5_919_312: ("tf_efficientnetv2_b0",),
    6_931_124: ("tf_efficientnetv2_b1",),
    8_769_374: ("tf_efficientnetv2_b2",),
    12_930_622: ("tf_efficientnetv2_b3",),
}
# the number of batches has no effect on predictions, and old versions of torch do not save it: never compared
_COUNTER = ".num_batches_tracked"


@dataclass(frozen=True, slots=True, eq=False)
class ArchitectureMatch:
    """A comparison of weights with an architecture; ``wanted`` has its tensors in its order, on the meta device."""

    arch: str
    num_classes: int
    classifier: tuple[str, ...]
    wanted: Mapping[str, torch.Tensor]
    matching: tuple[str, ...]
    missing: tuple[str, ...]
    unexpected: tuple[str, ...]
    misshaped: tuple[str, ...]

    @property
    def total(self) -> int:
        """The number of keys of the architecture."""
        return len(self.matching) + len(self.missing) + len(self.misshaped)

    @property
    def is_full(self) -> bool:
        """True if all keys are present with their shapes, and there are no others."""
        return len(self.matching) == self.total and not self.unexpected

    @property
    def percent(self) -> int:
        """Matching keys among the keys of both sides, 0 to 100; 100 only for a full match."""
        return 100 * len(self.matching) // (self.total + len(self.unexpected))


def find_architecture(
    renamed: Renamed,
    *,
    given: str | None,
    claims: tuple[Claim, ...],
    path: Path,
    size: tuple[int, int] | None = None,
    listener: Listener,
) -> ArchitectureMatch:
    """Return the architecture of weights: the given one, else the one in the file's metadata, else by the weights.

    ``size`` is the ``(height, width)`` of the images that a given architecture was trained on, if it is known.

    Raises:
        ModelError: E410 when the given one does not fit, E415 when none fits, E416 when several do.
    """
    if given is not None:
        fit = compare_architecture(given, renamed.tensors, size=size)
        if fit.is_full and not _pads_differently(given, renamed):
            return fit
        raise _does_not_fit(fit, renamed, path)
    claimed = [(current, claim.place) for claim in claims if (current := _current_name(claim.arch)) is not None]
    for arch, place in claimed:
        fit = compare_architecture(arch, renamed.tensors)
        if fit.is_full and not _pads_differently(arch, renamed):
            listener.notice(Notice("I419", f"{path.name} is {arch}, as {place} in the file says", path))
            return fit
    fit, names = _closest(renamed)
    if not fit.is_full:
        raise (
            _does_not_fit(compare_architecture(claimed[0][0], renamed.tensors), renamed, path)
            if claimed
            else _unknown(fit, path)
        )
    if len(names) > 1:
        raise _ambiguous(names, path)
    listener.notice(Notice("I419", f"{path.name} is {fit.arch}: all {fit.total} keys and shapes fit", path))
    return fit


def resolve_architecture(name: str) -> str:
    """Return the name by which timm builds an architecture, which is another one if the name is deprecated.

    Raises:
        OptionError: E204 when timm does not know it, with similar names in the hint.
    """
    if (current := _current_name(name)) is not None:
        return current
    arch = name.partition(".")[0]
    known = timm.list_models()
    close = difflib.get_close_matches(name, timm.list_pretrained(arch) if arch in known else known, n=4)
    raise OptionError(
        "E204",
        f"timm has no architecture {name!r}",
        hint=f"did you mean {', '.join(close)}?" if close else "timm.list_models() lists them all",
    )


def _current_name(name: str) -> str | None:
    name = get_deprecated_models().get(name) or name
    arch, _, tag = name.partition(".")
    is_known = arch in timm.list_models() and (not tag or name in timm.list_pretrained(arch))
    return name if is_known else None


def compare_architecture(
    arch: str, tensors: Mapping[str, torch.Tensor], *, size: tuple[int, int] | None = None
) -> ArchitectureMatch:
    """Compare weights with an architecture of timm that has the same number of classes."""
    classifier = classifiers(arch)
    heads = [tensors[f"{name}.weight"] for name in classifier if f"{name}.weight" in tensors]
    options: dict[str, Any] = {"num_classes": heads[0].shape[0]} if heads and heads[0].ndim else {}
    options |= size_options(arch, size)
    with torch.device("meta"):  # names and shapes only: nothing is allocated or drawn at random
        model: Any = timm.create_model(arch, pretrained=False, **options)
    wanted = model.state_dict()
    compared = {key: tensor.shape for key, tensor in wanted.items() if not key.endswith(_COUNTER)}
    return ArchitectureMatch(
        arch=arch,
        num_classes=model.num_classes,
        classifier=classifier,
        wanted=wanted,
        matching=tuple(key for key, shape in compared.items() if key in tensors and tensors[key].shape == shape),
        missing=tuple(key for key in compared if key not in tensors),
        unexpected=tuple(key for key in tensors if key not in compared and not key.endswith(_COUNTER)),
        misshaped=tuple(key for key, shape in compared.items() if key in tensors and tensors[key].shape != shape),
    )


def count_values(tensors: Mapping[str, torch.Tensor]) -> int:
    """Return the number of values outside the classifier."""
    return sum(
        tensor.numel()
        for key, tensor in tensors.items()
        if not key.endswith(_COUNTER) and not key.startswith(("fc.", "classifier."))
    )


def _closest(renamed: Renamed) -> tuple[ArchitectureMatch, tuple[str, ...]]:
    """Return the known architecture of the nearest size, and the names of all with its keys and padding."""
    size = count_values(renamed.tensors)
    names = FAMILIES[min(FAMILIES, key=lambda known: abs(known - size))]
    return compare_architecture(names[0], renamed.tensors), tuple(
        name for name in names if not _pads_differently(name, renamed)
    )


def _pads_differently(arch: str, renamed: Renamed) -> bool:
    return renamed.is_torchvision and arch.startswith("tf_")


def _does_not_fit(fit: ArchitectureMatch, renamed: Renamed, path: Path) -> ModelError:
    near, names = _closest(renamed)
    looks = f". Looks like {' or '.join(names)} ({near.percent} %)" if near.percent >= 50 and names else ""
    if fit.is_full:
        return ModelError(
            "E410", f"{path.name} is torchvision's, which does not pad as {fit.arch} does{looks}", path=path
        )
    return ModelError(
        "E410",
        f"{path.name} is not {fit.arch}: {len(fit.matching)} of {fit.total} keys fit"
        + ("" if fit.arch in names else looks),
        path=path,
        details=_differences(fit),
    )


def _unknown(fit: ArchitectureMatch, path: Path) -> ModelError:
    if fit.percent < 50:
        return ModelError("E415", f"{path.name} is no ResNet and no EfficientNet that is known by its keys", path=path)
    return ModelError(
        "E415",
        f"{path.name} fits no known architecture; the closest is {fit.arch} ({fit.percent} %)",
        path=path,
        details=_differences(fit),
    )


def _ambiguous(names: tuple[str, ...], path: Path) -> ModelError:
    named = max((name for name in names if name in path.name), key=len, default=None)
    hint = f"the file's name suggests --arch {named}, but a name proves nothing" if named else None
    both = " and ".join(names)
    return ModelError(
        "E416", f"{path.name} fits {both}, which differ in padding and epsilon only", hint=hint, path=path
    )


def _differences(fit: ArchitectureMatch) -> tuple[str, ...]:
    return tuple(
        f"{len(keys):,} {what}: {enumerate_some(list(keys))}"
        for what, keys in (
            ("missing", fit.missing),
            ("unexpected", fit.unexpected),
            ("of another shape", fit.misshaped),
        )
        if keys
    )
