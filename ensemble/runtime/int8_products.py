"""Read products of rows in an int8 file as the convolutions of 1x1 that they are, for runtimes that prefer those.

`ens export` writes some convolutions as Transpose, MatMul, Add, Transpose, because onnxruntime returns such a product
in float32. OpenVINO returns a convolution on integers in float32 by itself, and would transpose in memory: an
EfficientNet-Lite0 at 128 px took it 2.7 ms with products and 1.6 ms with convolutions.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence

import numpy as np
import onnx

from ensemble.runtime.subgraphs import names_read

_LAST, _FIRST = [0, 2, 3, 1], [0, 3, 1, 2]  # where channels are

Readers = Mapping[str, Sequence[onnx.NodeProto]]


def with_convolutions(data: bytes) -> bytes:
    """Return the model with a convolution for each product of rows with int8 weights; others are returned as given."""
    if b"DequantizeLinear" not in data or b"MatMul" not in data:
        return data
    model = onnx.load_model_from_string(data)
    graph = model.graph
    made = {name: node for node in graph.node for name in node.output}
    readers: dict[str, list[onnx.NodeProto]] = defaultdict(list)
    for node in graph.node:
        for name in names_read(node):
            readers[name].append(node)
    weights = {tensor.name: tensor for tensor in graph.initializer}
    results = {value.name for value in graph.output}
    kernels: list[onnx.NodeProto] = []
    for product in [node for node in graph.node if node.op_type == "MatMul"]:
        before, weight = (made.get(name) for name in product.input)
        after = _only_reader(product, readers, results)
        bias: list[str] = []
        if after is not None and after.op_type == "Add":
            bias = [name for name in after.input if name in weights]
            after = _only_reader(after, readers, results) if bias else None
        if (
            before is None
            or after is None
            or not (_is_transposition(before, _LAST) and _is_transposition(after, _FIRST))
            or weight is None
            or weight.op_type != "DequantizeLinear"
            or [one.i for one in weight.attribute if one.name == "axis"] != [1]
            or not weights.keys() >= set(weight.input)
            or not _are_by_channel(weights, weight, bias)
        ):
            continue
        # nodes of other programs may have no names
        kernel = _turn_weight(graph, weight, weights[weight.input[0]], f"{product.output[0]}/kernel")
        kernels.append(kernel)
        inputs = [before.input[0], kernel.output[0], *bias]
        after.CopyFrom(onnx.helper.make_node("Conv", inputs, list(after.output), after.name))
    if not kernels:
        return data
    _keep_read(graph, [*kernels, *graph.node])
    found: bytes = model.SerializeToString()
    return found


def _only_reader(node: onnx.NodeProto, readers: Readers, results: Collection[str]) -> onnx.NodeProto | None:
    (name,) = node.output
    return readers[name][0] if len(readers[name]) == 1 and name not in results else None


def _is_transposition(node: onnx.NodeProto, order: Sequence[int]) -> bool:
    return node.op_type == "Transpose" and [list(one.ints) for one in node.attribute if one.name == "perm"] == [order]


def _are_by_channel(weights: Mapping[str, onnx.TensorProto], read: onnx.NodeProto, bias: Collection[str]) -> bool:
    """Return True for a matrix with one scale per column, or one for all, and a bias of one value per column."""
    dims, scale = (list(weights[name].dims) for name in read.input[:2])
    return len(dims) == 2 and len(scale) < 2 and all(list(weights[name].dims) == dims[1:] for name in bias)


def _turn_weight(graph: onnx.GraphProto, read: onnx.NodeProto, tensor: onnx.TensorProto, name: str) -> onnx.NodeProto:
    """Return the node that reads a weight ``(I, O)`` with a scale per column as ``(O, I, 1, 1)``."""
    values = np.ascontiguousarray(onnx.numpy_helper.to_array(tensor).T)[:, :, np.newaxis, np.newaxis]
    graph.initializer.append(onnx.numpy_helper.from_array(values, name))
    return onnx.helper.make_node("DequantizeLinear", [name, *read.input[1:]], [f"{name}/real"], f"{name}/read", axis=0)


def _keep_read(graph: onnx.GraphProto, nodes: Sequence[onnx.NodeProto]) -> None:
    """Give the graph those of these nodes that a result depends on, and the constants that they read."""
    read = {value.name for value in graph.output}
    kept = []
    for node in reversed(nodes):
        if read.intersection(node.output):
            kept.append(onnx.NodeProto.FromString(node.SerializeToString()))
            read.update(names_read(node))
    tensors = [tensor for tensor in graph.initializer if tensor.name in read]
    copies = [onnx.TensorProto.FromString(tensor.SerializeToString()) for tensor in tensors]
    del graph.node[:], graph.initializer[:]
    graph.node.extend(reversed(kept))
    graph.initializer.extend(copies)
