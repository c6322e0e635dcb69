"""SplitGraph the front off a fused graph: from the images to the normalized tensor that the first layer takes.

Networks of one preprocessing, such as the folds of a member, begin with the same nodes: views are gathered, pixels are
transposed, cast and normalized. SplitGraph off, these run once for all of them.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import numpy as np
import onnx
from onnx import helper, shape_inference

from ensemble.runtime.fused_views import HOST_VIEWS, POOL, ROWS, SOURCES
from ensemble.runtime.model_file import INPUT
from ensemble.runtime.subgraphs import names_read, rename_reads

_MOVES = {"Gather", "Reshape", "Concat", "Transpose", "Cast", "Identity", "Unsqueeze"}
_ARITHMETIC = {"Mul", "Add", "Sub", "Div"}
TENSOR = "ens.front"


@dataclass(frozen=True, slots=True)
class SplitGraph:
    """A graph in two: ``front`` gives the tensor `TENSOR` of ``shape`` and ``dtype``, which ``body`` takes as input.

    ``key`` is equal for fronts that compute the same, whatever their tensors are called.
    """

    front: bytes
    body: bytes
    shape: tuple[int, ...]
    dtype: np.dtype[np.generic]
    key: str


def split_front(data: bytes) -> SplitGraph | None:
    """SplitGraph a graph whose shapes are all fixed; return None where there is nothing worth splitting off."""
    model = onnx.load_from_string(data)
    graph = model.graph
    constants = {one.name for one in graph.initializer}
    made: set[str] = {value.name for value in graph.input}
    frontier = set(made)  # tensors that came from the images and were not consumed yet
    count = 0
    last = ""
    for node in graph.node:
        read = [name for name in node.input if name and name not in constants]
        if node.op_type not in _MOVES | _ARITHMETIC or not read or not set(read) <= made:
            break
        frontier = (frontier - set(read)) | set(node.output)
        made |= set(node.output)
        count += 1
        last = node.output[0]
    behind = {name for node in graph.node[count:] for name in names_read(node)}
    # the front ends in one tensor, and nothing of it is read behind that
    if not count or frontier != {last} or behind & (made - {last}):
        return None
    if any(one.name in made for one in graph.output):
        return None
    inferred = shape_inference.infer_shapes(model).graph
    (value,) = (one for one in inferred.value_info if one.name == last)
    tensor = value.type.tensor_type
    shape = tuple(side.dim_value for side in tensor.shape.dim)
    if not shape or 0 in shape:
        return None
    front = _part(model, list(graph.node[:count]), list(graph.input), {last: TENSOR})
    front.graph.output.append(helper.make_tensor_value_info(TENSOR, tensor.elem_type, shape))
    body_input = helper.make_tensor_value_info(TENSOR, tensor.elem_type, shape)
    body = _part(model, list(graph.node[count:]), [body_input], {last: TENSOR})
    body.graph.output.extend(graph.output)
    dtype = np.dtype(helper.tensor_dtype_to_np_dtype(tensor.elem_type))
    return SplitGraph(front.SerializeToString(), body.SerializeToString(), shape, dtype, _key(front))


def _part(
    model: onnx.ModelProto, nodes: list[onnx.NodeProto], inputs: list[onnx.ValueInfoProto], renamed: dict[str, str]
) -> onnx.ModelProto:
    """Return a model of some of the nodes, with the weights that they read and without outputs."""
    copies = [onnx.NodeProto.FromString(node.SerializeToString()) for node in nodes]
    for node in copies:
        rename_reads(node, renamed)
        for i, name in enumerate(node.output):
            node.output[i] = renamed.get(name, name)
    read = {name for node in copies for name in names_read(node)}
    weights = [one for one in model.graph.initializer if one.name in read]
    graph = helper.make_graph(copies, model.graph.name, inputs, [], weights)
    return helper.make_model(graph, opset_imports=model.opset_import, ir_version=model.ir_version)


def _key(front: onnx.ModelProto) -> str:
    """Return a hash of what a front computes: its nodes, weights and shapes, with tensors by their order."""
    graph = onnx.GraphProto.FromString(front.graph.SerializeToString())
    names: dict[str, str] = {name: name for name in (INPUT, HOST_VIEWS, POOL, ROWS, SOURCES, TENSOR)}

    def rename(name: str) -> str:
        return names.setdefault(name, str(len(names))) if name else name

    for node in graph.node:
        node.name = ""
        node.doc_string = ""
        del node.metadata_props[:]
        for listed in (node.input, node.output):
            for i, name in enumerate(listed):
                listed[i] = rename(name)
    weights = sorted((rename(one.name), one) for one in graph.initializer)
    parts = [node.SerializeToString() for node in graph.node]
    parts += [
        f"{name} {one.data_type} {list(one.dims)}".encode() + onnx.numpy_helper.to_array(one).tobytes()
        for name, one in weights
    ]
    parts += [value.type.SerializeToString() for value in (*graph.input, *graph.output)]
    return hashlib.sha256(b"\0".join(parts)).hexdigest()
