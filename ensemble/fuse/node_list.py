"""Write ONNX nodes by calling functions: names of tensors are made here, and equal constants are stored once."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any, TypeAlias

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper, numpy_helper

Values: TypeAlias = NDArray[Any] | np.generic
Tensor: TypeAlias = str


class NodeList:
    """The nodes and constants of a graph that is being written; a tensor is known by its name.

    A list made by `inside` is that of a subgraph: it has nodes of its own, and shares names and constants.
    """

    def __init__(self, parent: NodeList | None = None) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.initializers: list[onnx.TensorProto] = [] if parent is None else parent.initializers
        self._stored: dict[tuple[str, tuple[int, ...], bytes], str] = {} if parent is None else parent._stored
        self._counter: itertools.count[int] = itertools.count() if parent is None else parent._counter

    def inside(self) -> NodeList:
        """Return the list of a subgraph."""
        return NodeList(self)

    def name(self, word: str) -> Tensor:
        """Return a name that no other tensor has."""
        return f"ens.{word}_{next(self._counter)}"

    def constant(self, values: Values | float | Sequence[int], dtype: type[np.generic] | None = None) -> Tensor:
        """Store a constant, once however often it is asked for; whole numbers are int64 unless ``dtype`` is given."""
        array = np.asarray(values, dtype=dtype)
        key = (array.dtype.str, array.shape, array.tobytes())
        if key not in self._stored:
            self._stored[key] = self.name("constant")
            self.initializers.append(numpy_helper.from_array(array.copy(), self._stored[key]))
        return self._stored[key]

    def add(self, operator: str, *inputs: Tensor, output: Tensor | None = None, **attributes: Any) -> Tensor:
        """Add a node with one output, and return the output's name."""
        made = output or self.name(operator.lower())
        self.nodes.append(helper.make_node(operator, list(inputs), [made], name=made, **attributes))
        return made

    def add_split(self, tensor: Tensor, parts: int, *, axis: int) -> list[Tensor]:
        """Split a tensor into equal parts along an axis."""
        if parts == 1:
            return [tensor]
        made = [self.name("split") for _ in range(parts)]
        self.nodes.append(helper.make_node("Split", [tensor], made, name=made[0], axis=axis, num_outputs=parts))
        return made

    def whole(self, tensor: Tensor) -> Tensor:
        """Cast to int64."""
        return self.add("Cast", tensor, to=onnx.TensorProto.INT64)

    def double(self, tensor: Tensor) -> Tensor:
        """Cast to float64."""
        return self.add("Cast", tensor, to=onnx.TensorProto.DOUBLE)
