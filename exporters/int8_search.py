"""Search which layers of an int8 network return to float32: as few as the accuracy check allows.

Layers return in several orders, and the fewest of each are found by bisection: one after the other by the harm that
each does alone, from the first one on, and block by block. A block ends where a linear activation is made, as in
EfficientNets and MobileNets. On a trained EfficientNet-Lite0, rounding the activations between two stages, which no
residual branch bypasses, caused most of the error: blocks at the beginning of stages in float removed more of it for
the same time than the first layers did.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol, TypeVar

import numpy as np
import onnx

from ensemble.events import Listener
from exporters.accuracy_gate import Verdict
from exporters.int8_equalize import find_linear_tensors
from exporters.int8_layers import Layer

_OVERHEAD = 0.005  # of all layers: the cost of converting to and from integers around one that returns to float

_WORTH = 0.015  # of the squared errors of all layers

# names of layers that return to float together, the first ones first
LayerOrder = tuple[tuple[str, ...], ...]


class Tried(Protocol):
    """A network of which some layers are in float, and what its answers on the choosing images are worth."""

    @property
    def verdict(self) -> Verdict:
        """The comparison with float32."""


Attempt = TypeVar("Attempt", bound=Tried)


@dataclass(frozen=True, slots=True)
class Harm:
    """The error of the logits when only these layers are quantized, relative to their standard deviation.

    ``saved`` is what integers save in them, in any unit: microseconds per image, or multiplications where the time on
    this machine says nothing, as for TensorRT.
    """

    layers: tuple[Layer, ...]
    error: float
    saved: float

    @property
    def names(self) -> tuple[str, ...]:
        """The names of the layers."""
        return tuple(layer.name for layer in self.layers)


def find_blocks(graph: onnx.GraphProto, layers: Sequence[Layer]) -> tuple[tuple[Layer, ...], ...]:
    """Split layers after each one that makes a linear activation; empty where none does."""
    ends = {i for group in find_linear_tensors(graph) for i, _ in group.made}
    if not ends:
        return ()
    blocks: list[list[Layer]] = [[]]
    for layer in layers:
        blocks[-1].append(layer)
        if layer.nodes[0] in ends:
            blocks.append([])
    return tuple(tuple(block) for block in blocks if block)


def rank_layers(
    groups: Sequence[tuple[Layer, ...]],
    saved: Mapping[str, float],
    error_of: Callable[[Collection[Layer]], float],
    listener: Listener,
    stage: str = "rank layers",
) -> tuple[Harm, ...]:
    """Sort groups of layers by squared error for what they save, highest first.

    Errors of independent layers add up as squares, so groups return to float by their squared error per microsecond, as
    in the greedy solution of a knapsack problem.
    """
    harms, least = [], _OVERHEAD * max(sum(saved.values()), 1.0)
    for number, group in enumerate(groups):
        harms.append(Harm(group, error_of(group), sum(saved[layer.name] for layer in group)))
        listener.progress(stage, number + 1, len(groups))
    return tuple(sorted(harms, key=lambda harm: harm.error**2 / (harm.saved + least), reverse=True))


def order_two_terms(
    harms: Sequence[Harm],
    candidates: Collection[Layer],
    products: Mapping[str, int],
    error_of: Callable[[Layer], float],
    listener: Listener,
) -> tuple[str, ...]:
    """Return the names of layers whose input is worth two terms, the one that gains most for its products first.

    ``harms`` are those of single layers, and ``error_of`` is the error when only this layer is quantized, with its
    input in two terms. Layers that take less than `_WORTH` of all squared errors away are left out.
    """
    alone = {harm.names[0]: harm.error**2 for harm in harms}
    finite = sum(value for value in alone.values() if np.isfinite(value))
    every = sum(products.values())
    found = []
    for number, layer in enumerate(candidates):
        gain = alone[layer.name] - error_of(layer) ** 2
        if np.isfinite(gain) and gain >= _WORTH * finite:
            found.append((gain / (products[layer.name] / every + _OVERHEAD), layer.name))
        listener.progress("rank inputs", number + 1, len(candidates))
    return tuple(name for _, name in sorted(found, key=lambda one: -one[0]))


def search(
    orders: Sequence[LayerOrder],
    fixed: Sequence[str],
    products: Mapping[str, int],
    attempt: Callable[[tuple[str, ...]], Attempt],
    *,
    most_in_float: float,
) -> tuple[list[Attempt], Attempt]:
    """Return the network with the fewest layers in float by each order in which they return, and the last with most.

    An order is left out if the gate refuses it with ``most_in_float`` of the multiplications in float; the ``fixed``
    layers are among them. ``attempt`` makes and judges a network whose layers of these names are in float.
    """
    found = []
    for order in orders:
        so_far = sum(products[name] for name in fixed) + np.cumsum([_total(products, group) for group in order])
        count = int(np.searchsorted(so_far, most_in_float * sum(products.values()), side="right"))
        most = attempt(_joined(order[:count]))
        if not most.verdict.faults:
            found.append(fewest(order[:count], most, attempt))
    return found, most


def fewest(order: LayerOrder, passing: Attempt, attempt: Callable[[tuple[str, ...]], Attempt]) -> Attempt:
    """Return the network that is safe with the fewest groups of an order, by bisection below all (``passing``)."""
    fails, passes = 0, len(order)
    while passes - fails > 1:
        middle = (fails + passes) // 2
        tried = attempt(_joined(order[:middle]))
        if not tried.verdict.is_safe:
            fails = middle
        else:
            passing, passes = tried, middle
    return passing


def alone(names: Sequence[str]) -> LayerOrder:
    """Return an order of single layers."""
    return tuple((name,) for name in names)


def _joined(order: LayerOrder) -> tuple[str, ...]:
    return tuple(name for group in order for name in group)


def _total(products: Mapping[str, int], group: Sequence[str]) -> int:
    return sum(products[name] for name in group)
