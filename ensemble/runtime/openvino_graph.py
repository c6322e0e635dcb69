"""Write int8 graphs as OpenVINO computes them right: other nodes for the same answers, in memory alone.

Two faults of OpenVINO 2026.4 on x86 were found with networks of timm; each gave answers that were off by more than the
standard deviation of the logits.

- Its reader of ONNX asks for the shape of a convolution's output to add the bias. Where the network needs the size of
  the batch (the Expand of ECA's gates), the reader's ShapeOf stays in the graph, so that the output without bias has
  two readers; fused with the rounding that follows, the bias gets lost. A bias that is an Add of its own has no
  ShapeOf, and is fused with the convolution all the same.
- A stride of a 1x1 convolution is moved to the nodes before it (``StridesOptimization``), and a MaxPool between the
  8-bit values and their DequantizeLinear hides that the convolution could compute on integers. Its weights are then
  computed in float32 as the network runs, and with several streams and batches of any size its answers are wrong. As
  a MaxPool of its own the stride stays where it is, and the convolution computes on integers.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from ensemble.runtime.int8_products import with_convolutions

_CONVOLUTIONS = frozenset({"Conv", "ConvTranspose"})


def for_openvino(data: bytes) -> bytes:
    """Return an int8 model in the form that OpenVINO computes right and fast; others are returned as given."""
    if b"DequantizeLinear" not in data:
        return data
    model = onnx.load_model_from_string(with_convolutions(data))
    graph = model.graph
    constants = {tensor.name: tensor for tensor in graph.initializer}
    made = {name: node for node in graph.node for name in node.output}
    nodes: list[onnx.NodeProto] = []
    for node in graph.node:
        if _has_stride_alone(node) and _is_int8(node.input[1], made, constants):
            nodes.append(_take_stride(node))
        nodes.append(node)
        if node.op_type in _CONVOLUTIONS and len(node.input) > 2 and node.input[2]:
            bias = _read_constant(node.input[2], made, constants)
            weight = _find_constant(node.input[1], made, constants)
            if bias is not None and weight is not None:
                nodes.append(_take_bias(node, bias, len(weight.dims), graph))
    copies = [onnx.NodeProto.FromString(node.SerializeToString()) for node in nodes]
    del graph.node[:]
    graph.node.extend(copies)
    found: bytes = model.SerializeToString()
    return found


def computes_weights(compiled: Any) -> bool:
    """Return True if a compiled network computes a convolution's weights from constants each time it runs."""
    for node in compiled.get_runtime_model().get_ordered_ops():
        info = node.get_rt_info()
        if "layerType" in info and info["layerType"].astype(str) == "Convolution" and len(node.inputs()) > 1:
            weight = node.input_value(1).get_node()
            if weight.get_type_name() != "Constant" and _layer_type(weight) != "Const" and _is_constant(weight):
                return True
    return False


def _is_constant(node: Any) -> bool:
    """Return True if a node depends on no input of the network."""
    seen, left = set(), [node]
    while left:
        one = left.pop()
        if _layer_type(one) == "Input":
            return False
        if one.get_friendly_name() not in seen:
            seen.add(one.get_friendly_name())
            left += [value.get_node() for value in one.input_values()]
    return True


def _layer_type(node: Any) -> str:
    info = node.get_rt_info()
    return str(info["layerType"].astype(str)) if "layerType" in info else ""


def _has_stride_alone(node: onnx.NodeProto) -> bool:
    """Return True for a convolution of 1x1 with a stride and no padding."""
    if node.op_type != "Conv":
        return False
    given = {attribute.name: attribute for attribute in node.attribute}
    sides = {name: list(given[name].ints) if name in given else [] for name in ("kernel_shape", "strides", "pads")}
    padded = "auto_pad" in given and given["auto_pad"].s not in {b"", b"NOTSET", b"VALID"}
    small = set(sides["kernel_shape"]) == {1} and max(sides["strides"], default=1) > 1
    return small and not any(sides["pads"]) and not padded


def _take_stride(node: onnx.NodeProto) -> onnx.NodeProto:
    """Take the stride from a convolution of 1x1, and return the MaxPool of single values that has it instead."""
    (strides,) = (attribute for attribute in node.attribute if attribute.name == "strides")
    name = f"{node.output[0]}/strided"
    steps = list(strides.ints)
    pool = onnx.helper.make_node("MaxPool", [node.input[0]], [name], name, kernel_shape=[1] * len(steps), strides=steps)
    node.input[0] = name
    strides.ints[:] = [1] * len(steps)
    return pool


def _take_bias(node: onnx.NodeProto, bias: NDArray[Any], rank: int, graph: onnx.GraphProto) -> onnx.NodeProto:
    """Take the bias ``(C,)`` from a convolution whose output has ``rank`` axes, and return the Add that has it."""
    (name,) = node.output
    plain, added = f"{name}/plain", f"{name}/bias"
    graph.initializer.append(onnx.numpy_helper.from_array(bias.reshape(1, -1, *[1] * (rank - 2)), added))
    node.output[0] = plain
    del node.input[2]
    return onnx.helper.make_node("Add", [plain, added], [name], added)


def _is_int8(name: str, made: Mapping[str, onnx.NodeProto], constants: Mapping[str, onnx.TensorProto]) -> bool:
    return name in made and made[name].op_type == "DequantizeLinear" and made[name].input[0] in constants


def _find_constant(
    name: str, made: Mapping[str, onnx.NodeProto], constants: Mapping[str, onnx.TensorProto]
) -> onnx.TensorProto | None:
    """Return the constant of this name, or the integers that a DequantizeLinear makes it of."""
    return constants.get(made[name].input[0] if _is_int8(name, made, constants) else name)


def _read_constant(
    name: str, made: Mapping[str, onnx.NodeProto], constants: Mapping[str, onnx.TensorProto]
) -> NDArray[Any] | None:
    """Return the float32 values ``(C,)`` of a bias; None where they are not constant, or have a zero point."""
    if name in constants:
        values: NDArray[Any] = onnx.numpy_helper.to_array(constants[name])
        return values if values.dtype == np.float32 and values.ndim == 1 else None
    if not _is_int8(name, made, constants) or not all(part in constants for part in made[name].input):
        return None
    integers, scale, *zero = (onnx.numpy_helper.to_array(constants[part]) for part in made[name].input)
    if integers.ndim != 1 or scale.dtype != np.float32 or any(part.any() for part in zero):
        return None
    found: NDArray[Any] = integers.astype(np.float32) * scale
    return found
