"""Zeros that are padded in front of a max pooling, kept from onnxruntime's fusion."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping

import numpy as np
import onnx
from onnx import numpy_helper

# the smallest normal number, in float16 the smallest of all: it cannot be told from zero in a sum with weights
_NEARLY_ZERO = {np.dtype(kind): np.finfo(kind).smallest_normal for kind in (np.float32, np.float64)}
_NEARLY_ZERO[np.dtype(np.float16)] = np.finfo(np.float16).smallest_subnormal
_NEVER_NEGATIVE = frozenset({"Relu", "Sigmoid", "HardSigmoid", "Softplus", "Abs"})
_SAME_VALUES = frozenset({"Identity", "Dropout", "Transpose", "Squeeze", "Unsqueeze"})


def keep_padded_zeros(proto: onnx.ModelProto) -> int:
    """Replace the zeros that a ``Pad`` puts in front of a ``MaxPool`` by the smallest positive number, in place.

    onnxruntime (1.31.1, Pad_Fusion in core/optimizer/pad_fusion.cc) moves such a padding into the pooling, whose own
    padding counts as minus infinity: where all values of a window are negative, its maximum is no longer zero. It does
    so for zeros alone. Padding of values that are never negative stays as it is, since there the fusion is right. BiT
    ResNets of timm and Keras' ResNetV2 pool values of either sign.

    Returns how many paddings were changed.
    """
    return _in_graph(proto, proto.graph, {})


def _in_graph(proto: onnx.ModelProto, graph: onnx.GraphProto, outer: Mapping[str, onnx.TensorProto]) -> int:
    constants = {**outer, **{tensor.name: tensor for tensor in graph.initializer}}
    constants |= {
        node.output[0]: attribute.t
        for node in graph.node
        if node.op_type == "Constant" and node.output
        for attribute in node.attribute
        if attribute.name == "value"
    }
    producers = {name: node for node in graph.node for name in node.output}
    readers: defaultdict[str, list[onnx.NodeProto]] = defaultdict(list)
    for node in graph.node:
        for name in node.input:
            readers[name].append(node)
    changed = 0
    for node in list(graph.node):
        changed += sum(
            _in_graph(proto, inner, constants)
            for attribute in node.attribute
            for inner in (attribute.g, *attribute.graphs)
            if inner.node
        )
        # onnxruntime refuses malformed nodes by name
        pads = node.op_type == "Pad" and node.domain in {"", "ai.onnx"} and node.input and node.output
        if pads and _reaches_pooling(node, readers) and not _is_never_negative(node, producers):
            changed += _replace_zero(proto, node, graph, constants)
    return changed


def _reaches_pooling(node: onnx.NodeProto, readers: Mapping[str, list[onnx.NodeProto]]) -> bool:
    """Return True if a max pooling takes the output, or only its shape is changed on the way to one."""
    names, seen = [node.output[0]], set()
    while names:
        seen.add(name := names.pop())
        for reader in readers.get(name, ()):
            if reader.op_type == "MaxPool":
                return True
            if reader.op_type in _SAME_VALUES:
                names += [output for output in reader.output[:1] if output not in seen]
    return False


def _is_never_negative(node: onnx.NodeProto, producers: Mapping[str, onnx.NodeProto]) -> bool:
    source = producers.get(node.input[0])
    seen: set[str] = set()
    while source is not None and source.op_type in _SAME_VALUES and source.input and source.input[0] not in seen:
        seen.add(source.input[0])
        source = producers.get(source.input[0])
    return source is not None and source.op_type in _NEVER_NEGATIVE


def _replace_zero(
    proto: onnx.ModelProto, node: onnx.NodeProto, graph: onnx.GraphProto, constants: Mapping[str, onnx.TensorProto]
) -> int:
    """Change one ``Pad`` if it pads a constant zero, and return 1 if so."""
    attributes = {attribute.name: attribute for attribute in node.attribute}
    if "mode" in attributes and attributes["mode"].s != b"constant":
        return 0
    if len(node.input) == 1:  # before opset 11 the value is an attribute
        if "value" in attributes and attributes["value"].f != 0:
            return 0
        value = attributes["value"] if "value" in attributes else node.attribute.add(name="value")
        value.type, value.f = onnx.AttributeProto.FLOAT, float(_NEARLY_ZERO[np.dtype(np.float32)])
        return 1
    name = node.input[2] if len(node.input) > 2 else ""
    if name and name not in constants:
        return 0
    try:
        zero = numpy_helper.to_array(constants[name]) if name else np.zeros((), _kind_of(node.input[0], proto))
    except ValueError:  # fewer values than its shape says
        return 0
    if zero.size != 1 or zero.item() != 0 or zero.dtype not in _NEARLY_ZERO:
        return 0
    given = f"{node.output[0]}:padding"
    graph.initializer.append(numpy_helper.from_array(np.full_like(zero, _NEARLY_ZERO[zero.dtype]), given))
    inputs = [node.input[0], node.input[1], given, *node.input[3:]]
    del node.input[:]
    node.input.extend(inputs)
    return 1


def _kind_of(name: str, proto: onnx.ModelProto) -> np.dtype[np.generic]:
    """Return the element type of a value, as inferred from the whole graph; float32 where it cannot be."""
    try:
        graph = onnx.shape_inference.infer_shapes(proto).graph
    except onnx.shape_inference.InferenceError:  # as for an operator of an unknown domain
        return np.dtype(np.float32)
    for value in (*graph.input, *graph.value_info, *graph.output):
        if value.name == name and value.type.tensor_type.elem_type:
            return np.dtype(onnx.helper.tensor_dtype_to_np_dtype(value.type.tensor_type.elem_type))
    return np.dtype(np.float32)
