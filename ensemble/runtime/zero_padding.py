"""Keep zeros that a network pads before a maximum: ONNX Runtime takes them for a border that the maximum ignores.

Its PadFusion (onnxruntime/core/optimizer/pad_fusion.cc, 1.17 to 1.31) moves the padding of ``Pad`` with 0 into a
following ``MaxPool``, whose own padding counts for nothing. Where all values in a window are below 0 the maximum is
that of the values then, and not 0: the stems of BiT's and Keras' ResNet v2. It leaves any other padding alone.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

_VALUE = "ens.above_zero"
_TYPES: Mapping[int, Any] = {
    TensorProto.FLOAT: np.float32,
    TensorProto.FLOAT16: np.float16,
    TensorProto.DOUBLE: np.float64,
}
_NOT_NEGATIVE = {"Relu", "Sigmoid", "Softmax", "Abs"}


def keep_padded_zeros(proto: onnx.ModelProto) -> int:
    """Pad with the smallest normal number above 0 where a maximum follows; return how many paddings were changed."""
    graph = proto.graph
    makers = {made: node for node in graph.node for made in node.output}
    constants = {tensor.name: tensor for tensor in graph.initializer}
    for node in graph.node:
        if node.op_type == "Constant":
            constants.update((str(node.output[0]), part.t) for part in node.attribute if part.name == "value")
    pooled = {node.input[0] for node in graph.node if node.op_type == "MaxPool"}
    changed = 0
    for node in graph.node:
        if node.op_type != "Pad" or node.output[0] not in pooled or not _is_zero(node, constants):
            continue
        before = makers.get(node.input[0])
        if before is not None and before.op_type in _NOT_NEGATIVE:
            continue  # the maximum of such values and 0 is that of the values
        _pad_above_zero(graph, node, constants)
        changed += 1
    return changed


def _settings(node: onnx.NodeProto) -> dict[str, Any]:
    return {part.name: helper.get_attribute_value(part) for part in node.attribute}


def _is_zero(node: onnx.NodeProto, constants: Mapping[str, TensorProto]) -> bool:
    settings = _settings(node)
    if settings.get("mode", b"constant") != b"constant":
        return False
    if len(node.input) > 2 and node.input[2]:
        value = constants.get(node.input[2])
        return value is not None and value.data_type in _TYPES and not numpy_helper.to_array(value).any()
    return float(settings.get("value", 0.0)) == 0


def _pad_above_zero(graph: onnx.GraphProto, node: onnx.NodeProto, constants: Mapping[str, TensorProto]) -> None:
    if len(node.input) < 2:  # before opset 11 both are attributes
        kept = [part for part in node.attribute if part.name != "value"]
        del node.attribute[:]
        node.attribute.extend([*kept, helper.make_attribute("value", float(np.finfo(np.float32).tiny))])
        return
    given = constants.get(node.input[2]) if len(node.input) > 2 and node.input[2] else None
    kind = given.data_type if given is not None else _type_of(graph, node.input[0])
    name = f"{_VALUE}.{node.output[0]}"
    tiny = np.finfo(_TYPES[kind]).tiny
    graph.initializer.append(numpy_helper.from_array(np.array(tiny, dtype=_TYPES[kind]), name))
    inputs = [node.input[0], node.input[1], name, *node.input[3:]]
    del node.input[:]
    node.input.extend(inputs)


def _type_of(graph: onnx.GraphProto, name: str) -> int:
    """Return the type of a value that the graph declares, else that of most weights."""
    for value in (*graph.value_info, *graph.input):
        if value.name == name and value.type.tensor_type.elem_type in _TYPES:
            return int(value.type.tensor_type.elem_type)
    kinds = [tensor.data_type for tensor in graph.initializer if tensor.data_type in _TYPES]
    return max(kinds, key=kinds.count, default=int(TensorProto.FLOAT))
