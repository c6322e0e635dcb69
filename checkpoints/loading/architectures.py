"""The architectures of timm: their tensors, and which of them a set of names and shapes fits."""

from __future__ import annotations

import difflib
import functools
import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import timm
import torch
from timm.models import get_deprecated_models

from checkpoints.loading.key_names import COUNTER
from checkpoints.loading.network import ArchOptions, classifiers, size_options
from checkpoints.loading.timm_tables import table_rows, usual_name
from ensemble.errors import OptionError, enumerate_some


@dataclass(frozen=True, slots=True, eq=False)
class Architecture:
    """The tensors of an architecture in its order, on the meta device.

    ``body`` are the shapes of all tensors outside the classifier that a file must have. ``first_conv`` is the weight
    that the image's channels meet, ``features`` the number of values that the classifier takes.
    """

    arch: str
    classifier: tuple[str, ...]
    state: Mapping[str, torch.Tensor]
    body: Mapping[str, torch.Size]
    buffers: frozenset[str]
    children: tuple[str, ...]
    first_conv: str | None
    features: int | None


@dataclass(frozen=True, slots=True, eq=False)
class BodyMatch:
    """A comparison of tensors with an architecture's body; ``in_channels`` is that of the images."""

    architecture: Architecture
    matching: tuple[str, ...]
    missing: tuple[str, ...]
    unexpected: tuple[str, ...]
    misshaped: tuple[str, ...]
    in_channels: int = 3
    size: tuple[int, int] | None = None

    @property
    def arch(self) -> str:
        """The name by which timm builds it."""
        return self.architecture.arch

    @property
    def total(self) -> int:
        """The number of keys of the body."""
        return len(self.matching) + len(self.missing) + len(self.misshaped)

    @property
    def is_full(self) -> bool:
        """True if every key of the body is there with its shape."""
        return len(self.matching) == self.total

    @property
    def has_parameters(self) -> bool:
        """True if nothing but buffers, such as running statistics, is missing."""
        return not self.misshaped and bool(self.matching) and set(self.missing) <= self.architecture.buffers

    @property
    def percent(self) -> int:
        """Matching keys among the keys of both sides, 0 to 100; 100 only for a full match."""
        return 100 * len(self.matching) // max(1, self.total + len(self.unexpected))

    def differences(self) -> tuple[str, ...]:
        """Return one line for each kind of difference."""
        return tuple(
            f"{len(keys):,} {what}: {enumerate_some(list(keys))}"
            for what, keys in (
                ("missing", self.missing),
                ("unexpected", self.unexpected),
                ("of another shape", self.misshaped),
            )
            if keys
        )


def resolve_architecture(name: str) -> str:
    """Return the name by which timm builds an architecture, which is another one if the name is deprecated.

    Raises:
        OptionError: E204 when timm does not know it, with similar names in the hint.
    """
    if (current := current_name(name)) is not None:
        return current
    arch = name.partition(".")[0]
    known = timm.list_models()
    close = difflib.get_close_matches(name, timm.list_pretrained(arch) if arch in known else known, n=4)
    raise OptionError(
        "E204",
        f"timm has no architecture {name!r}",
        hint=f"did you mean {', '.join(close)}?" if close else "timm.list_models() lists them all",
    )


def current_name(name: str) -> str | None:
    """Return the name by which timm builds an architecture; None if timm does not know it."""
    name = get_deprecated_models().get(name) or name
    arch, _, tag = name.partition(".")
    is_known = arch in timm.list_models() and (not tag or name in timm.list_pretrained(arch))
    return name if is_known else None


def describe(
    arch: str, *, size: tuple[int, int] | None = None, in_channels: int = 3, arch_options: ArchOptions | None = None
) -> Architecture:
    """Return the tensors of an architecture."""
    options = tuple(sorted((arch_options or {}).items()))
    return _describe(arch, size, in_channels, options)


@functools.lru_cache(maxsize=64)
def _describe(
    arch: str, size: tuple[int, int] | None, in_channels: int, arch_options: tuple[tuple[str, Any], ...]
) -> Architecture:
    classifier = classifiers(arch)
    options = size_options(arch, size) | dict(arch_options)
    if in_channels != 3:
        options["in_chans"] = in_channels
    model = _build_meta(arch, options)
    if len(classifier) == 1 and f"{classifier[0]}.weight" not in model.state_dict():
        model = _build_meta(arch, options | {"num_classes": 1})  # timm's default is no classes: an encoder
    state = model.state_dict()
    parameters = {name for name, _ in model.named_parameters()}
    own = tuple(f"{name}." for name in classifier)
    config = timm.get_pretrained_cfg(arch, allow_unregistered=True)
    first = config.first_conv if config else None
    heads = [state[f"{name}.weight"] for name in classifier if f"{name}.weight" in state]
    return Architecture(
        arch=arch,
        classifier=classifier,
        state=state,
        body={
            key: tensor.shape
            for key, tensor in state.items()
            if not (own and key.startswith(own)) and not key.endswith(COUNTER)
        },
        buffers=frozenset(state.keys() - parameters),
        children=tuple(name for name, _ in model.named_children()),
        first_conv=f"{first}.weight" if isinstance(first, str) else None,
        features=heads[0].shape[1] if heads and heads[0].ndim >= 2 else None,
    )


def _build_meta(arch: str, options: Mapping[str, Any]) -> Any:
    with torch.device("meta"):  # names and shapes only: nothing is allocated or drawn at random
        return timm.create_model(arch, pretrained=False, **options)


def compare_body(
    arch: str,
    tensors: Mapping[str, torch.Tensor],
    *,
    size: tuple[int, int] | None = None,
    arch_options: ArchOptions | None = None,
) -> BodyMatch:
    """Compare tensors with the body of an architecture, which may take images of any number of channels.

    Without ``size``, that of a square image is taken from the number of position embeddings, if there are any.
    """
    plain = describe(arch, size=size, arch_options=arch_options)
    in_channels = 3
    first = plain.first_conv
    if first is not None and first in tensors and first in plain.body:
        found, wanted = tensors[first].shape, plain.body[first]
        if len(found) == len(wanted) == 4 and found[1] != wanted[1] == 3 and found[2:] == wanted[2:]:
            in_channels = found[1]
    if size is None:
        size = _square_size(plain, tensors)
    architecture = plain
    if in_channels != 3 or size is not None:
        try:
            architecture = describe(arch, size=size, in_channels=in_channels, arch_options=arch_options)
        except (AssertionError, RuntimeError, TypeError, ValueError):  # it cannot be built so: the shapes differ
            in_channels, size = 3, None
    own = tuple(f"{name}." for name in architecture.classifier)
    body = architecture.body
    return BodyMatch(
        architecture=architecture,
        matching=tuple(
            key for key, shape in body.items() if key in tensors and is_same_layer(tensors[key].shape, shape)
        ),
        missing=tuple(key for key in body if key not in tensors),
        unexpected=tuple(
            key for key in tensors if key not in body and not key.endswith(COUNTER) and not key.startswith(own)
        ),
        misshaped=tuple(
            key for key, shape in body.items() if key in tensors and not is_same_layer(tensors[key].shape, shape)
        ),
        in_channels=in_channels,
        size=size,
    )


def is_same_layer(found: Sequence[int], wanted: Sequence[int]) -> bool:
    """Return True for equal shapes, and for those of a linear layer and a convolution of one pixel."""
    if tuple(found) == tuple(wanted):
        return True
    sides = sorted((tuple(found), tuple(wanted)), key=len)
    return (len(sides[0]), len(sides[1])) == (2, 4) and (*sides[0], 1, 1) == sides[1]


def _square_size(plain: Architecture, tensors: Mapping[str, torch.Tensor]) -> tuple[int, int] | None:
    """Return the sides of a square image by the number of position embeddings; None for the architecture's own."""
    name, first = "pos_embed", plain.first_conv
    if name not in plain.body or name not in tensors or first is None or first not in plain.body:
        return None
    wanted, found = plain.body[name], tensors[name].shape
    if len(wanted) != 3 or len(found) != 3 or wanted == found:
        return None
    patch = plain.body[first][-1]
    config = timm.get_pretrained_cfg(plain.arch, allow_unregistered=True)
    extra = wanted[1] - (config.input_size[1] // patch) ** 2 if config else 0
    side = math.isqrt(max(0, found[1] - extra))
    return (side * patch, side * patch) if side and side * side == found[1] - extra else None


# the table of all architectures


@dataclass(frozen=True, slots=True)
class Twins:
    """Architectures with the same names and shapes outside the classifier."""

    names: tuple[str, ...]
    values: int
    tops: tuple[str, ...]
    classifier: tuple[str, ...]
    first_conv: str | None

    @property
    def usual(self) -> str | None:
        """The one that most networks with these names and shapes are; None if none is."""
        return usual_name(self.names)


@dataclass(slots=True)
class _KnownArchitectures:
    groups: list[Twins] = field(default_factory=list)
    by_layout: dict[tuple[tuple[str, ...], tuple[str, ...], str | None], list[Twins]] = field(
        default_factory=lambda: defaultdict(list)
    )


@functools.cache
def _table() -> _KnownArchitectures:
    """Read the table of all architectures that timm knows; those that the installed timm lacks are left out."""
    table, known = _KnownArchitectures(), set(timm.list_models())
    for row in table_rows():
        names = tuple(name for name in row.names if name in known)
        if names:
            twins = Twins(names, row.values, row.tops, row.classifier, row.first_conv)
            table.groups.append(twins)
            table.by_layout[twins.tops, twins.classifier, twins.first_conv].append(twins)
    return table


def first_convolutions() -> tuple[str, ...]:
    """Return the names that the first weight of an architecture can have."""
    return tuple(dict.fromkeys(f"{twins.first_conv}.weight" for twins in _table().groups if twins.first_conv))


def twins_of(arch: str) -> tuple[str, ...]:
    """Return the architectures with the names and shapes of ``arch``, itself included."""
    name = arch.partition(".")[0]
    return next((twins.names for twins in _table().groups if name in twins.names), (name,))


def nearest_twins(tensors: Mapping[str, torch.Tensor], *, most: int = 3) -> tuple[Twins, ...]:
    """Return the architectures with the names of ``tensors`` at the top, those of the nearest size first.

    A full match is always among them: the size is the number of values outside the classifier. timm's miniatures for
    tests (`test_resnet`) count at their exact size only: they are nobody's nearest network.
    """
    present = {key.partition(".")[0] for key in tensors}
    found: list[tuple[int, Twins]] = []
    for (tops, classifier, first), groups in _table().by_layout.items():
        if not present.issuperset(tops):
            continue
        own, wanted = tuple(f"{name}." for name in classifier), set(tops)
        size = 0
        for key, tensor in tensors.items():
            if key.partition(".")[0] in wanted and not key.startswith(own) and not key.endswith(COUNTER):
                values = tensor.numel()
                if first is not None and key == f"{first}.weight" and tensor.ndim == 4 and tensor.shape[1] != 3:
                    values = 3 * values // max(1, tensor.shape[1])  # the table counts three channels
                size += values
        apart = [(abs(twins.values - size), twins) for twins in groups]
        found += [(far, twins) for far, twins in apart if not far or not twins.names[0].startswith("test_")]
    found.sort(key=lambda pair: pair[0])
    return tuple(twins for _, twins in found[:most])
