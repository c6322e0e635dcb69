"""Assign several heads to the axes of a label space."""

from __future__ import annotations

from collections.abc import Sequence

from checkpoints.loading.head_modules import HeadLayer
from ensemble.labels import MASK18, LabelSpace


def heads_of_axes(
    chains: Sequence[tuple[HeadLayer, ...]], given: LabelSpace | None
) -> tuple[LabelSpace, tuple[HeadLayer, ...]] | None:
    """Return the label space whose axes the heads belong to, and the heads in its order."""
    if any(len(chain) != 1 for chain in chains):
        return None
    heads = [chain[0] for chain in chains]
    labels = given or MASK18
    if len(heads) != len(labels.axes) or len(heads) < 2:
        return None
    by_name = []
    for axis in labels.axes:
        named = [layer for layer in heads if axis.name.lower() in layer.name.lower().removeprefix(_shared(heads))]
        by_name += named if len(named) == 1 and named[0].returns == len(axis.values) else []
    if len({layer.name for layer in by_name}) == len(heads):
        return labels, tuple(by_name)
    if given is None:
        return None
    sizes = [layer.returns for layer in heads]
    if len(set(sizes)) == len(sizes) and sorted(sizes) == sorted(labels.shape):
        return labels, tuple(heads[sizes.index(size)] for size in labels.shape)
    numbered = all(layer.number is not None for layer in heads)
    return (labels, tuple(heads)) if numbered and tuple(sizes) == labels.shape else None


def _shared(heads: Sequence[HeadLayer]) -> str:
    names = [layer.name.lower() for layer in heads]
    length = next(
        (i for i, letters in enumerate(zip(*names, strict=False)) if len(set(letters)) > 1), min(map(len, names))
    )
    return names[0][:length].rpartition(".")[0]
