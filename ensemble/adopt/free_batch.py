"""Rewrite the constants that fix a network's batch size, where the graph allows."""

from __future__ import annotations

import numpy as np
import onnx
import onnx.shape_inference
from onnx import TensorProto, helper, numpy_helper

_SIZE = "ens.batch_size"


def free_batch(model: onnx.ModelProto, image: str, batch: int) -> None:
    """Let constant shapes and constants of one batch take the size of the input ``image`` instead of ``batch``.

    It is a rewriting by what such constants mostly are: the first side of a Reshape, of an Expand, and of a token that
    is put in front of each image's. The caller has to run the result.
    """
    graph = model.graph
    constants = _constants(graph)
    fixed = _fixed_values(graph, constants)
    shapes = _inferred_shapes(model)
    added: list[onnx.NodeProto] = []

    def sized(name: str, tail: tuple[int, ...]) -> str:
        """Return the name of a shape: the batch size, then ``tail``."""
        rest = numpy_helper.from_array(np.array(tail, dtype=np.int64), f"ens.tail.{len(added)}")
        graph.initializer.append(rest)
        added.append(helper.make_node("Concat", [_SIZE, rest.name], [f"ens.shape.{name}.{len(added)}"], axis=0))
        return str(added[-1].output[0])

    for node in graph.node:
        if node.op_type == "Reshape" and len(node.input) == 2 and node.input[1] in constants:
            _free_reshape(graph, node, constants[node.input[1]], batch)
        elif node.op_type == "Expand" and node.input[1] in constants:
            shape = numpy_helper.to_array(constants[node.input[1]])
            if shape.ndim == 1 and len(shape) > 1 and shape[0] == batch:
                node.input[1] = sized(node.output[0], tuple(int(side) for side in shape[1:]))
        elif node.op_type == "Concat" and helper.get_node_attr_value(node, "axis") != 0:
            for place, name in enumerate(node.input):
                dims = shapes.get(name, ()) if name in fixed else ()
                if len(dims) > 2 and dims[0] == batch == 1:
                    # an Expand leaves sides alone where its shape has 1
                    shape_name = sized(name, (1,) * (len(dims) - 1))
                    added.append(helper.make_node("Expand", [name, shape_name], [f"{shape_name}.expanded"]))
                    node.input[place] = added[-1].output[0]
    if not added:
        return
    zero = numpy_helper.from_array(np.array([0], dtype=np.int64), "ens.zero")
    graph.initializer.append(zero)
    before = [
        helper.make_node("Shape", [image], ["ens.image_shape"]),
        helper.make_node("Gather", ["ens.image_shape", zero.name], [_SIZE], axis=0),
        # values of the graph that are fixed must come before what uses them
        *[node for node in graph.node if fixed.issuperset(node.output)],
        *added,
    ]
    after = [node for node in graph.node if not fixed.issuperset(node.output)]
    nodes = [onnx.NodeProto.FromString(node.SerializeToString()) for node in (*before, *after)]
    del graph.node[:]
    graph.node.extend(nodes)


def _free_reshape(graph: onnx.GraphProto, node: onnx.NodeProto, tensor: TensorProto, batch: int) -> None:
    """Copy the first side from the Reshape's input, in a shape of its own: others may share the constant."""
    shape = numpy_helper.to_array(tensor).copy()
    if shape.ndim == 1 and len(shape) > 1 and shape[0] == batch:
        shape[0] = 0
        own = numpy_helper.from_array(shape, f"{tensor.name or node.input[1]}.of.{node.output[0]}")
        graph.initializer.append(own)
        node.input[1] = own.name
        for attribute in node.attribute:
            if attribute.name == "allowzero":  # by which 0 would be an empty side
                attribute.i = 0


def _constants(graph: onnx.GraphProto) -> dict[str, TensorProto]:
    found = {str(tensor.name): tensor for tensor in graph.initializer}
    for node in graph.node:
        if node.op_type == "Constant":
            found |= {str(node.output[0]): part.t for part in node.attribute if part.name == "value"}
    return found


def _fixed_values(graph: onnx.GraphProto, constants: dict[str, TensorProto]) -> set[str]:
    """Return the names of all values that do not depend on an input."""
    fixed = {*constants, ""}
    for node in graph.node:
        if not any(attribute.HasField("g") for attribute in node.attribute) and fixed.issuperset(node.input):
            fixed.update(node.output)
    return fixed


def _inferred_shapes(model: onnx.ModelProto) -> dict[str, tuple[int, ...]]:
    """Return the shapes of values, as far as they can be inferred, with 0 for a side that cannot."""
    found = {str(tensor.name): tuple(tensor.dims) for tensor in model.graph.initializer}
    inferred = onnx.shape_inference.infer_shapes(model, data_prop=True).graph
    for value in (*inferred.value_info, *inferred.output):
        if value.type.tensor_type.HasField("shape"):
            found[str(value.name)] = tuple(dim.dim_value for dim in value.type.tensor_type.shape.dim)
    for node in model.graph.node:
        # a token for a batch of one is expanded to what it is already, by a shape that is computed
        if node.op_type == "Expand" and node.input[0] in found and not all(found.get(node.output[0], (0,))):
            found[str(node.output[0])] = found[node.input[0]]
    return found
