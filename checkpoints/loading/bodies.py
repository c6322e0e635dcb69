"""Find networks among all tensors of a checkpoint: every prefix and naming under which an architecture is whole."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace

import torch

from checkpoints.loading.architectures import (
    Architecture,
    BodyMatch,
    compare_body,
    describe,
    first_convolutions,
    nearest_twins,
)
from checkpoints.loading.key_names import is_normalization, is_training_state, prefixes_before
from checkpoints.loading.layouts import LAYOUTS, TIMM, Layout, number_children
from checkpoints.loading.network import ArchOptions
from checkpoints.loading.state_dicts import AllTensors

# what is usually put into a Sequential without naming the architecture: the children of timm's and torchvision's
_USUAL_CHILDREN = (
    ("conv1", "bn1", "act1", "maxpool", "layer1", "layer2", "layer3", "layer4", "global_pool", "fc"),
    ("conv_stem", "bn1", "blocks", "conv_head", "bn2", "global_pool", "classifier"),
)
_LEAST_PERCENT = 50


@dataclass(frozen=True, slots=True, eq=False)
class Body:
    """A network without its classifier: ``sources`` maps timm's names to the names in the checkpoint.

    ``prefix`` stands before all of those. ``twins`` are the architectures of the same names and shapes, of which
    ``match`` compares one; ``usual`` is the one that most such networks are, if there is one. ``match`` was made with
    ``arch_options``.
    """

    layout: Layout
    prefix: str
    match: BodyMatch
    sources: Mapping[str, str]
    twins: tuple[str, ...]
    usual: str | None
    arch_options: ArchOptions | None = None

    @property
    def used(self) -> frozenset[str]:
        """The names in the checkpoint of this body's tensors."""
        architecture = self.match.architecture
        own = tuple(f"{name}." for name in architecture.classifier)
        return frozenset(
            key
            for name, key in self.sources.items()
            if name in architecture.state and not (own and name.startswith(own))
        )


@dataclass(frozen=True, slots=True)
class Wanted:
    """The architecture that is looked for, if it is known, with the size of its images and its options."""

    arch: str | None = None
    size: tuple[int, int] | None = None
    arch_options: ArchOptions | None = None


@dataclass(frozen=True, slots=True)
class Search:
    """The networks that were found, and the nearest one when there is none."""

    bodies: tuple[Body, ...]
    nearest: Body | None


def find_bodies(found: AllTensors, wanted: Wanted) -> Search:
    """Return every network in the checkpoint, whole or without its running statistics."""
    tensors = {
        key: tensor
        for key, tensor in found.tensors.items()
        if not is_training_state(key, tensor) and not is_normalization(key, tensor)
    }
    whole: dict[str, Body] = {}
    nearest: Body | None = None
    for body in _candidates(tensors, wanted):
        if body.match.is_full or body.match.has_parameters:
            if body.prefix not in whole:
                whole[body.prefix] = body
        elif nearest is None or body.match.percent > nearest.match.percent:
            nearest = body
    return Search(tuple(_outermost(whole.values())), nearest)


def _outermost(bodies: Iterable[Body]) -> Iterator[Body]:
    """Leave out a body whose tensors belong to another one with a longer list."""
    kept: list[Body] = []
    for body in sorted(bodies, key=lambda body: (-len(body.match.matching), len(body.prefix))):
        used = set(body.used)
        if not any(used & other.used for other in kept):
            kept.append(body)
    order = {body.prefix: number for number, body in enumerate(bodies)}
    yield from sorted(kept, key=lambda body: order[body.prefix])


def _candidates(tensors: Mapping[str, torch.Tensor], wanted: Wanted) -> Iterator[Body]:
    architecture = None
    if wanted.arch is not None:
        architecture = describe(wanted.arch, size=wanted.size, arch_options=wanted.arch_options)
    anchors = first_convolutions() if architecture is None else _anchors(architecture)
    yield from _under_prefixes(tensors, TIMM, anchors, wanted)
    for layout in LAYOUTS:
        yield from _under_prefixes(tensors, layout, layout.anchors, wanted)
    children = _USUAL_CHILDREN if architecture is None else (architecture.children,)
    for names in children:
        layout = _numbered(names)
        yield from _under_prefixes(tensors, layout, ("0.weight", *_inside_first_child(architecture)), wanted)


def _anchors(architecture: Architecture) -> tuple[str, ...]:
    """Return names of which every whole network has one: the longest are the least ambiguous."""
    own = max(architecture.body, key=lambda key: (key.count("."), len(key)), default="")
    first = architecture.first_conv
    return (own,) if first is None or first not in architecture.body else (own, first)


def _inside_first_child(architecture: Architecture | None) -> tuple[str, ...]:
    """Return the numbered name of the architecture's first tensor, where its first child is not a single layer."""
    if architecture is None or not architecture.body:
        return ()
    first = next(iter(architecture.body))
    child, _, rest = first.partition(".")
    return (f"{architecture.children.index(child)}.{rest}",) if child in architecture.children and rest else ()


def _numbered(children: tuple[str, ...]) -> Layout:
    return Layout(
        "nn.Sequential",
        (),
        lambda tensors: number_children(children, tensors),
        changes=f"the numbers of nn.Sequential to {', '.join(children[:3])}, ...",
    )


def _under_prefixes(
    tensors: Mapping[str, torch.Tensor], layout: Layout, anchors: tuple[str, ...], wanted: Wanted
) -> Iterator[Body]:
    prefixes = dict.fromkeys(prefix for anchor in anchors for prefix in prefixes_before(anchor, tensors))
    for prefix in prefixes:
        inside = {key.removeprefix(prefix): tensor for key, tensor in tensors.items() if key.startswith(prefix)}
        renamed = layout.rename(inside)
        sources = {name: prefix + key for key, name in renamed.items()}
        if len(sources) < len(renamed):
            continue  # two tensors would get one name
        known = {name: layout.shaped(name, tensors[key]) for name, key in sources.items()}
        if wanted.arch is not None:
            yield _compare(layout, prefix, known, sources, wanted, ())
            continue
        for twins in nearest_twins(known):
            body = _compare(layout, prefix, known, sources, wanted, _named_by(prefix, layout.accepted(twins.names)))
            yield body
            if body.match.is_full:
                break


def _named_by(prefix: str, names: tuple[str, ...]) -> tuple[str, ...]:
    """Return those of ViT and DeiT that transformers' own prefix names: they differ in the usual mean and std alone."""
    is_deit = f".{prefix}".endswith(".deit.")
    return tuple(name for name in names if name.startswith("deit")) or names if is_deit else names


def _compare(
    layout: Layout,
    prefix: str,
    known: Mapping[str, torch.Tensor],
    sources: Mapping[str, str],
    wanted: Wanted,
    twins: tuple[str, ...],
) -> Body:
    arch = wanted.arch or twins[0]
    match = compare_body(arch, known, size=wanted.size, arch_options=wanted.arch_options)
    usual = arch if len(twins) <= 1 else layout.usual(twins)
    return Body(layout, prefix, match, sources, twins or (arch,), usual, wanted.arch_options)


def as_architecture(
    body: Body, arch: str, arch_options: ArchOptions | None, tensors: Mapping[str, torch.Tensor]
) -> Body:
    """Return the body as another one of its twins, with its own options unless others are given."""
    known = {name: body.layout.shaped(name, tensors[key]) for name, key in body.sources.items()}
    return replace(
        body, match=compare_body(arch, known, size=body.match.size, arch_options=arch_options or body.arch_options)
    )
