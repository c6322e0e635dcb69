"""Layers of an ONNX file that make tensors of a size the file itself names, which a few bytes can make enormous.

ONNX Runtime computes such tensors when it loads the file: a ``ConstantOfShape`` of 3,000,000,000 takes 12 GB.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import onnx
from onnx import numpy_helper

MAX_NUMBERS = 2**28
"""Of one tensor: 1 GiB of float32. A picture of 4096 x 4096 has 50 million numbers in three channels."""
_SHAPES = {"ConstantOfShape": 0, "Expand": 1, "Tile": 1, "Resize": 3, "OneHot": 1}
"""The input with the sizes, by operator: their product is what the layer makes at least, or how often it repeats."""
_FEW = 64  # sizes; no tensor has more dimensions


@dataclass(frozen=True, slots=True)
class Oversized:
    """A layer that makes ``numbers`` numbers."""

    operator: str
    name: str
    numbers: int


def find_oversized(model: onnx.ModelProto) -> Oversized | None:
    """Return the first layer that would make more than `MAX_NUMBERS` numbers by its constant inputs; None if none."""
    constants: dict[str, list[float]] = {}
    for node in _nodes(model.graph, constants):
        numbers = _numbers(node, constants)
        if numbers > MAX_NUMBERS:
            return Oversized(node.op_type, node.name or (node.output[0] if node.output else ""), numbers)
    return None


def _nodes(graph: onnx.GraphProto, constants: dict[str, list[float]]) -> Iterable[onnx.NodeProto]:
    """Yield the nodes of a graph and of its branches, after what is constant before them is known."""
    for tensor in graph.initializer:
        _remember(tensor.name, tensor, constants)
    for node in graph.node:
        if node.op_type == "Constant" and node.output:
            for attribute in node.attribute:
                if attribute.name == "value":
                    _remember(node.output[0], attribute.t, constants)
                elif attribute.name in {"value_int", "value_ints"}:
                    constants[node.output[0]] = [attribute.i] if attribute.name == "value_int" else [*attribute.ints]
        yield node
        for attribute in node.attribute:
            for inner in (attribute.g, *attribute.graphs):
                if inner.node:
                    yield from _nodes(inner, constants)


def _remember(name: str, tensor: onnx.TensorProto, constants: dict[str, list[float]]) -> None:
    if tensor.data_type in {onnx.TensorProto.INT64, onnx.TensorProto.INT32} and math.prod(tensor.dims) <= _FEW:
        try:
            constants[name] = np.atleast_1d(numpy_helper.to_array(tensor)).ravel().tolist()
        except ValueError:  # damaged: ONNX Runtime refuses it
            return


def _numbers(node: onnx.NodeProto, constants: dict[str, list[float]]) -> int:
    if node.op_type == "Range" and len(node.input) == 3:
        ends = [constants.get(name, []) for name in node.input]
        if all(len(end) == 1 for end in ends) and ends[2][0]:
            return max(0, int((ends[1][0] - ends[0][0]) // ends[2][0]))
    place = _SHAPES.get(node.op_type)
    if place is None or len(node.input) <= place:
        return 0
    sizes = constants.get(node.input[place], [])
    return math.prod(max(1, abs(int(size))) for size in sizes)
