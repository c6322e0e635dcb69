"""The layers of a network: what int8 computes on integers or leaves in float32."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping
from dataclasses import dataclass

import numpy as np
import onnx

from ensemble.runtime.int8_weights import Pairs, groups_of, pairs_of
from exporters.int8_schemes import Array

# the operators that start a layer, and those that belong to the layer before them
WEIGHTED = frozenset({"Conv", "Gemm", "MatMul"})
BOUNDED = frozenset({"Relu", "Clip"})
# onnxruntime has no integer kernels for a convolution with one of them; it computes a Relu or Clip with the convolution
ACTIVATIONS = frozenset(
    {
        *("Celu", "Elu", "Erf", "Gelu", "HardSigmoid", "HardSwish", "LeakyRelu", "Mish", "PRelu", "Selu", "Sigmoid"),
        *("Softplus", "Softsign", "Swish", "Tanh", "ThresholdedRelu"),
    }
)
_POOLS = {"GlobalAveragePool", "ReduceMean", "GlobalMaxPool", "ReduceMax"}
_SHAPES = {"Shape", "Size"}
_SCALES = {"Add", "Sub", "Mul", "Div"}
# OpenVINO computes them by themselves: what follows a normalization that is not part of the weights gains nothing there
_NORMALIZATIONS = {"GroupNormalization", "InstanceNormalization", "LayerNormalization", "RMSNormalization"}
_ALONE_IN_OPENVINO = {"Selu"}  # nor is it fused: 1.2 to 3 times the time of onnxruntime with rounded values
_DEEPEST = 24  # nodes between the pooling and the product with the gate
_PAIRED = {"Add", "Mul"}
_COUNTING = {"ArgMax", "ArgMin", "NonZero", "Shape", "Size"}  # they make whole numbers of any input
_MOVED = {"Expand", "Reshape", "Squeeze", "Transpose", "Unsqueeze"}
_POOLED = {"GlobalAveragePool", "MaxPool"}


@dataclass(frozen=True, slots=True)
class Layer:
    """A convolution or matrix product and the nodes that follow it up to the next one; ``nodes`` are their indices.

    It is named after its weight in the checkpoint; of layers that share one, the second is ``name (2)``, and so on.
    """

    name: str
    nodes: tuple[int, ...]


def prepare(proto: onnx.ModelProto) -> onnx.ModelProto:
    """Return a copy whose means over a whole map are GlobalAveragePool, which onnxruntime computes on integers."""
    model = onnx.ModelProto()
    model.CopyFrom(proto)
    weights = {tensor.name: tensor for tensor in model.graph.initializer}
    for node in model.graph.node:
        if node.op_type == "ReduceMean" and len(node.input) == 2 and node.input[1] in weights:
            axes = sorted(onnx.numpy_helper.to_array(weights[node.input[1]]).tolist())
            keeps = all(attribute.i == 1 for attribute in node.attribute if attribute.name == "keepdims")
            if keeps and axes in ([2, 3], [-2, -1]):
                node.op_type = "GlobalAveragePool"
                del node.input[1:], node.attribute[:]
    drop_unused(model.graph)
    return model


def find_layers(graph: onnx.GraphProto, *, with_gates: bool = True) -> tuple[Layer, ...]:
    """Return the layers in the order of computation, those of gates (squeeze-and-excitation) only if asked for."""
    gates: frozenset[int] = frozenset() if with_gates else find_gates(graph)
    weights = {tensor.name for tensor in graph.initializer if tensor.data_type == onnx.TensorProto.FLOAT}
    indices = _find_indices(graph)
    soft = _find_soft(graph)
    found: list[tuple[str, list[int]]] = []
    for i, node in enumerate(graph.node):
        if i in gates or indices.issuperset(node.output):
            continue
        if _is_weighted(node, weights):
            name = node.input[1].removeprefix("model.").removesuffix(".weight")
            # torch.onnx names transposed weights with numbers
            found.append((node.name if name.startswith("val_") else name, [i]))
        elif found and _is_quantizable(node, weights) and not (node.op_type == "Mul" and soft.intersection(node.input)):
            found[-1][1].append(i)
    times: Counter[str] = Counter()
    layers = []
    for name, nodes in found:
        times[name] += 1
        layers.append(Layer(name if times[name] == 1 else f"{name} ({times[name]})", tuple(nodes)))
    return tuple(layers)


def find_gates(graph: onnx.GraphProto) -> frozenset[int]:
    """Return the nodes between pooled maps and the products with the gates that are made of them.

    A gate is an input of a Mul that depends on the image by means or maxima of maps alone, as in
    squeeze-and-excitation, and the other input is a map: a product of two such inputs, as in a head with SiLU after the
    pooling, has no gate.
    """
    maker = {name: i for i, node in enumerate(graph.node) for name in node.output}
    constants = {tensor.name for tensor in graph.initializer}
    # what depends on the image by more than pooled maps; the shape that a gate is expanded to depends on no value
    maps = {value.name for value in graph.input} - constants
    for node in graph.node:
        if node.op_type not in _POOLS | _SHAPES and not maps.isdisjoint(node.input):
            maps.update(node.output)
    found: set[int] = set()
    for node in graph.node:
        if node.op_type == "Mul" and constants.isdisjoint(node.input):
            gates = [name for name in node.input if name not in maps]
            if len(gates) == 1:
                found |= _nodes_since_pools(graph, gates[0], maker)
    return frozenset(found)


def _nodes_since_pools(graph: onnx.GraphProto, name: str, maker: Mapping[str, int]) -> set[int]:
    """Return the nodes that a tensor depends on, after the pooling; none where they are too many for a gate."""
    found: set[int] = set()
    left = [name]
    while left:
        i = maker.get(left.pop())
        if i is None or i in found or graph.node[i].op_type in _POOLS | _SHAPES:
            continue
        found.add(i)
        left += graph.node[i].input
    return found if len(found) <= _DEEPEST else set()


def has_activations(graph: onnx.GraphProto) -> bool:
    """Return True if a layer's output goes through an activation function that OpenVINO computes as it sums up.

    It may be added or moved before. A function is one of `ACTIVATIONS`, or is written as the product of a tensor with a
    bounded function of it, such as x * relu6(x + 3) / 6 or a squared ReLU. A ReLU is none, nor are those of gates.
    """
    gates = find_gates(graph)
    gate_outputs = {name for i in gates for name in graph.node[i].output}
    constants = {tensor.name for tensor in graph.initializer}
    behind = _layers_behind(graph)
    bounded: set[str] = set()  # what Relu and Clip make, with constants added and multiplied
    for i, node in enumerate(graph.node):
        inputs = [name for name in node.input if name not in constants]
        if i in gates or not any(behind.get(name) for name in inputs):
            continue
        if node.op_type in ACTIVATIONS - _ALONE_IN_OPENVINO:
            return True
        from_bounded = not bounded.isdisjoint(inputs)
        if node.op_type in BOUNDED or (from_bounded and len(inputs) == 1 and node.op_type in _SCALES):
            bounded.update(node.output)
        if from_bounded and node.op_type == "Pow":
            return True
        if from_bounded and node.op_type == "Mul" and len(inputs) == 2 and gate_outputs.isdisjoint(inputs):
            first, second = (behind.get(name, frozenset()) for name in inputs)
            if first & second:
                return True
    return False


def _layers_behind(graph: onnx.GraphProto) -> dict[str, frozenset[str]]:
    """Return of each tensor the outputs of layers that it is made of, without a normalization between, or by shape."""
    found: dict[str, frozenset[str]] = {}
    for node in graph.node:
        if node.op_type in WEIGHTED:
            found[node.output[0]] = frozenset(node.output[:1])
        elif node.op_type not in _SHAPES | _NORMALIZATIONS:
            behind = frozenset[str]().union(*(found.get(name, frozenset()) for name in node.input))
            found |= dict.fromkeys(node.output, behind)
    return found


def count_products(proto: onnx.ModelProto, layers: Collection[Layer]) -> dict[str, int]:
    """Return the multiplications per image of each layer, by name."""
    graph = onnx.shape_inference.infer_shapes(proto).graph
    shapes = {value.name: [side.dim_value for side in value.type.tensor_type.shape.dim] for value in graph.value_info}
    shapes |= {value.name: [side.dim_value for side in value.type.tensor_type.shape.dim] for value in graph.output}
    weights = {tensor.name: int(np.prod(tensor.dims)) for tensor in proto.graph.initializer}
    found = {}
    for layer in layers:
        node = proto.graph.node[layer.nodes[0]]
        places = int(np.prod(shapes.get(node.output[0], [])[2:])) if node.op_type == "Conv" else 1
        found[layer.name] = places * weights[node.input[1]]
    return found


def channel_axis(node: onnx.NodeProto, weight: Array) -> int:
    """Return the axis of the output channels of a layer's weight."""
    transposed = any(attribute.i for attribute in node.attribute if attribute.name == "transB")
    return 0 if node.op_type == "Conv" or transposed else weight.ndim - 1


def layer_pairs(node: onnx.NodeProto, weight: Array) -> Pairs:
    """Return which weights of a layer a kernel adds up in pairs."""
    return pairs_of(node.op_type, weight.shape, groups_of(node))


def drop_unused(graph: onnx.GraphProto) -> None:
    """Remove the initializers that no node reads."""
    used = {name for node in graph.node for name in node.input}
    kept = [tensor for tensor in graph.initializer if tensor.name in used]
    copies = [onnx.TensorProto.FromString(tensor.SerializeToString()) for tensor in kept]
    del graph.initializer[:]
    graph.initializer.extend(copies)


def _find_indices(graph: onnx.GraphProto) -> frozenset[str]:
    """Return the tensors of whole numbers, such as those that torch computes a gather of channels-last pooling with."""
    wide = {onnx.TensorProto.INT64, onnx.TensorProto.INT32, onnx.TensorProto.BOOL}
    found = {tensor.name for tensor in graph.initializer if tensor.data_type in wide}
    for node in graph.node:
        given = [name for name in node.input if name]
        if node.op_type == "Cast":
            is_index = next(one.i for one in node.attribute if one.name == "to") in wide
        elif node.op_type == "ConstantOfShape":
            is_index = False  # float32 by default
        else:
            is_index = node.op_type in _COUNTING or (bool(given) and found.issuperset(given))
        if is_index:
            found.update(node.output)
    return frozenset(found)


def _find_soft(graph: onnx.GraphProto) -> frozenset[str]:
    """Return what a Softmax makes, also in another shape: attention over branches (SKNet, ResNeSt).

    onnxruntime 1.31 computes a Softmax between stored tensors on integers, and in a skresnet34 wrong: the error of the
    logits was 1.1 standard deviations, and 0.3 where the product with it was in float32.
    """
    found: set[str] = set()
    for node in graph.node:
        if node.op_type == "Softmax" or (node.op_type in _MOVED and node.input[0] in found):
            found.update(node.output)
    return frozenset(found)


def _is_weighted(node: onnx.NodeProto, weights: Collection[str]) -> bool:
    plain = all(attribute.f == 1 for attribute in node.attribute if attribute.name in {"alpha", "beta"})
    transposed = any(attribute.i for attribute in node.attribute if attribute.name == "transA")
    known = len(node.input) > 1 and all(name in weights for name in node.input[1:])
    return node.op_type in WEIGHTED and known and plain and not transposed and node.input[0] not in weights


def _is_quantizable(node: onnx.NodeProto, weights: Collection[str]) -> bool:
    if node.op_type in _PAIRED:
        return not any(name in weights for name in node.input)
    return node.op_type in _POOLED | BOUNDED
