"""Prove by its layers that a network answers for each image alone, and find layers that draw at random.

Each tensor is a constant, or has one row per image on axis 0, or is not known. A network of convolutions, pools,
activations and fully connected layers is proved in a millisecond; what is not proved, such as a reshape by a computed
shape, is tried by `ensemble.runtime.independence`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import onnx
from onnx import numpy_helper

from ensemble.runtime.subgraphs import names_read, with_inner

_RANDOM = {"RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike", "Multinomial", "Bernoulli"}
_ONE_BY_ONE = {
    *("Abs", "Cast", "Ceil", "Celu", "Clip", "DequantizeLinear", "Elu", "Erf", "Exp", "Floor", "Gelu", "HardSigmoid"),
    *("HardSwish", "Identity", "LeakyRelu", "Log", "Mish", "Neg", "Not", "QuantizeLinear", "Reciprocal", "Relu"),
    *("Round", "Selu", "Sigmoid", "Sign", "Softplus", "Softsign", "Sqrt", "Tanh", "ThresholdedRelu"),
}
_BROADCAST = {"Add", "Sub", "Mul", "Div", "Pow", "Max", "Min", "Sum", "Mean", "PRelu", "Where", "Mod"}
_NORMALIZE = {"LRN", "InstanceNormalization"}
_POOLS = {"MaxPool", "AveragePool", "LpPool", "GlobalAveragePool", "GlobalMaxPool"}
_REDUCE = {
    *("ReduceMean", "ReduceSum", "ReduceMax", "ReduceMin", "ReduceL1", "ReduceL2", "ReduceProd", "ReduceLogSumExp"),
    "ReduceSumSquare",
}
_ALONG_AXIS = {"Softmax": -1, "LogSoftmax": -1, "Hardmax": -1, "LayerNormalization": -1}


@dataclass(frozen=True, slots=True)
class _ImageRows:
    """A tensor with a row per image: ``dims`` are its sides after axis 0, None where not known."""

    dims: tuple[int | None, ...]

    @property
    def rank(self) -> int:
        return 1 + len(self.dims)


_ConstantShape: TypeAlias = tuple[int, ...]  # of a constant
_Known: TypeAlias = _ImageRows | _ConstantShape | None


@dataclass(frozen=True, slots=True)
class RowProof:
    """``chance`` names the layers that draw at random, ``mixing`` those that are not known to treat images apart."""

    chance: tuple[str, ...]
    mixing: tuple[str, ...]


def prove_rows(model: onnx.ModelProto, output: str) -> RowProof:
    """Look at the layers that ``output`` depends on."""
    nodes = _reached(model.graph, output)
    constants = {tensor.name: tensor for tensor in model.graph.initializer}
    for node in nodes:
        if node.op_type == "Constant" and node.output and node.attribute and node.attribute[0].HasField("t"):
            constants[node.output[0]] = node.attribute[0].t
    chance = tuple(_name(node) for node in with_inner(nodes) if _draws(node, constants))
    reader = _RowReader(constants)
    for value in model.graph.input:
        if value.name not in constants:
            sides = value.type.tensor_type.shape.dim[1:]
            reader.known[value.name] = _ImageRows(tuple(side.dim_value or None for side in sides))
    mixing = [_name(node) for node in nodes if reader.mixes(node)]
    if not isinstance(reader.known.get(output), _ImageRows) and not mixing:
        mixing = [output]
    return RowProof(chance, tuple(mixing))


def _name(node: onnx.NodeProto) -> str:
    return f"{node.op_type} {node.name or (node.output[0] if node.output else '')}".strip()


def _reached(graph: onnx.GraphProto, output: str) -> list[onnx.NodeProto]:
    """Return the nodes that ``output`` depends on, in their order."""
    makers = {name: i for i, node in enumerate(graph.node) for name in node.output if name}
    wanted, seen = [output], set[int]()
    while wanted:
        place = makers.get(wanted.pop())
        if place is None or place in seen:
            continue
        seen.add(place)
        wanted += names_read(graph.node[place])
    return [graph.node[place] for place in sorted(seen)]


def _draws(node: onnx.NodeProto, constants: dict[str, onnx.TensorProto]) -> bool:
    if node.op_type in _RANDOM:
        return True
    if node.op_type != "Dropout" or len(node.input) < 3 or node.input[2] not in constants:
        return False
    training = numpy_helper.to_array(constants[node.input[2]])
    ratio = constants.get(node.input[1])
    return bool(training.any()) and (ratio is None or bool(numpy_helper.to_array(ratio).any()))


class _RowReader:
    """Follows the tensors from the input to the output."""

    def __init__(self, constants: dict[str, onnx.TensorProto]) -> None:
        self._tensors = constants
        self.known: dict[str, _Known] = {name: tuple(tensor.dims) for name, tensor in constants.items()}

    def mixes(self, node: onnx.NodeProto) -> bool:
        """Note the outputs of a node; return True if it is the first on its way that may mix images."""
        if node.op_type == "Constant":
            self.known.update({name: self.known.get(name) for name in node.output})
            return False
        given = [self.known.get(name) if name else () for name in node.input]
        try:
            found = None if None in given else self._result(node, given)
        except (ValueError, IndexError, KeyError, TypeError):  # of a form that is not looked at here
            found = None
        self.known.update(dict.fromkeys(node.output, found))
        return found is None and None not in given

    def _result(self, node: onnx.NodeProto, given: list[_Known]) -> _Known:
        kind = node.op_type
        options = {one.name: onnx.helper.get_attribute_value(one) for one in node.attribute}
        first, others = given[0], given[1:]
        fixed = all(isinstance(other, tuple) for other in others)
        if node.domain not in {"", "ai.onnx"}:
            return None
        if kind in _BROADCAST:
            return _broadcast(given)
        if not fixed:
            return _product(given) if kind == "MatMul" else None
        if isinstance(first, tuple):
            return first if kind in _ONE_BY_ONE else None
        assert isinstance(first, _ImageRows)
        if kind in _ONE_BY_ONE or (kind == "Dropout" and len(others) < 2):
            return first
        if kind in {"Conv", "ConvTranspose"}:
            channels = others[0][0] if kind == "Conv" and isinstance(others[0], tuple) else None
            return _ImageRows((channels, *[None] * (first.rank - 2)))
        if kind == "BatchNormalization":
            return None if options.get("training_mode") or len(node.output) > 1 else first
        if kind in _NORMALIZE:
            return first
        if kind in _POOLS:
            side = 1 if kind.startswith("Global") else None
            return _ImageRows((first.dims[0], *[side] * (first.rank - 2)))
        if kind in {"Gemm", "MatMul"}:
            return _times_weights(kind, first, others, options)
        if kind in _REDUCE:
            return self._reduced(node, first, options)
        if kind in _ALONG_AXIS:
            axis = options.get("axis", _ALONG_AXIS[kind])
            return first if axis % first.rank != 0 and len(node.output) == 1 else None
        return self._moved(node, first, options)

    def _moved(self, node: onnx.NodeProto, first: _ImageRows, options: dict[str, Any]) -> _Known:
        """Return what an operator makes that moves values without computing."""
        match node.op_type:
            case "Flatten" if options.get("axis", 1) == 1:
                return _ImageRows((_size(first.dims),))
            case "Transpose" if options.get("perm", [1])[0] == 0:
                return _ImageRows(tuple(first.dims[axis - 1] for axis in options["perm"][1:]))
            case "Reshape":
                shape = self._values(node.input[1])
                if options.get("allowzero") and 0 in shape:
                    return None
                size = _size(tuple(shape[1:])) if min(shape[1:], default=1) > 0 else None
                per_row = shape[0] == 0 or (shape[0] == -1 and size is not None and size == _size(first.dims))
                return _ImageRows(tuple(side if side > 0 else None for side in shape[1:])) if per_row else None
            case "Squeeze" | "Unsqueeze":
                return self._squeezed(node, first, options)
        return None

    def _squeezed(self, node: onnx.NodeProto, first: _ImageRows, options: dict[str, Any]) -> _Known:
        axes = self._values(node.input[1]) if len(node.input) > 1 else options.get("axes", [])
        out = first.rank + (len(axes) if node.op_type == "Unsqueeze" else 0)
        places = {axis % out for axis in axes}
        if not places or 0 in places:
            return None
        if node.op_type == "Squeeze":
            return _ImageRows(tuple(side for i, side in enumerate(first.dims, 1) if i not in places))
        left = iter(first.dims)
        return _ImageRows(tuple(1 if i in places else next(left) for i in range(1, out)))

    def _reduced(self, node: onnx.NodeProto, first: _ImageRows, options: dict[str, Any]) -> _Known:
        axes = self._values(node.input[1]) if len(node.input) > 1 and node.input[1] else options.get("axes", [])
        places = {axis % first.rank for axis in axes}
        if not places or 0 in places:
            return None
        if options.get("keepdims", 1):
            return _ImageRows(tuple(1 if i in places else side for i, side in enumerate(first.dims, 1)))
        return _ImageRows(tuple(side for i, side in enumerate(first.dims, 1) if i not in places))

    def _values(self, name: str) -> list[int]:
        values: list[int] = np.ravel(numpy_helper.to_array(self._tensors[name])).tolist()
        return values


def _size(sides: tuple[int | None, ...]) -> int | None:
    known = [side for side in sides if side is not None]
    return math.prod(known) if len(known) == len(sides) else None


def _broadcast(given: list[_Known]) -> _Known:
    """Return the result of numbers combined one by one: aligned from the right, so rows need one rank."""
    rows = [one for one in given if isinstance(one, _ImageRows)]
    constants = [one for one in given if isinstance(one, tuple)]
    if not rows:
        return None
    rank = rows[0].rank
    if any(one.rank != rank for one in rows) or any(
        len(one) > rank or (len(one) == rank and one[0] != 1) for one in constants
    ):
        return None
    sides: list[int | None] = []
    for i in range(1, rank):
        seen = [one.dims[i - 1] for one in rows]
        seen += [one[i - rank] for one in constants if len(one) >= rank - i]
        larger = [side for side in seen if side not in {None, 1}]
        sides.append(larger[0] if larger else None if None in seen else 1)
    return _ImageRows(tuple(sides))


def _product(given: list[_Known]) -> _Known:
    """Return the product of two tensors of rows: each image's matrices by its own."""
    a, b = given
    if not (isinstance(a, _ImageRows) and isinstance(b, _ImageRows) and a.rank == b.rank >= 3):
        return None
    return _ImageRows((*[None] * (a.rank - 3), a.dims[-2], b.dims[-1]))


def _times_weights(kind: str, first: _ImageRows, others: list[_Known], options: dict[str, Any]) -> _Known:
    weights = others[0]
    if not isinstance(weights, tuple) or len(weights) != 2 or first.rank < 2 or options.get("transA"):
        return None
    bias = others[1] if len(others) > 1 else ()
    if not isinstance(bias, tuple) or (len(bias) == 2 and bias[0] != 1):
        return None
    out = weights[0] if kind == "Gemm" and options.get("transB") else weights[1]
    return _ImageRows((*first.dims[:-1], out))
