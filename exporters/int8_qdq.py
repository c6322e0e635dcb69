"""Rewrite a float32 graph so that layers compute on 8-bit integers, as QuantizeLinear and DequantizeLinear (QDQ).

Activations have one scale per tensor, weights one per output channel; the types are those of a `Scheme`. By default
activations are uint8 with a zero point and weights int8: the pair for which x86 processors have an instruction (VNNI).
Scales follow Jacob et al., "Quantization and Training of Neural Networks for Efficient Integer-Arithmetic-Only
Inference" (arXiv 1712.05877), section 2.1.

Without VNNI such products are added two at a time in 16 bits and saturate: with weights of up to 127 the answers would
differ from one processor to another. `Scheme.weight_scales` keeps every sum of two within 16 bits.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from types import MappingProxyType

import numpy as np
import onnx

from exporters.int8_layers import BOUNDED, WEIGHTED, Layer, channel_axis, drop_unused, layer_pairs
from exporters.int8_linear import (
    find_float_outputs,
    multiply_rows,
    read_in_two_terms,
    suits_two_terms,
    weights_of_two_terms,
)
from exporters.int8_schemes import ASYMMETRIC, Array, Range, Scheme

# Where such a node reads a DequantizeLinear of one scale, onnxruntime rounds its float weights to int8, with one scale
# for all of them (WeightBiasQuantization in onnxruntime/core/optimizer/qdq_transformer/weight_bias_quantization.cc)
_ROUNDED_BY_ONNXRUNTIME = {"Conv", "ConvTranspose", "Gemm"}


@dataclass(frozen=True, slots=True, eq=False)
class RoundedWeights:
    """The weights of a layer in steps of ``scales`` ``(O,)``; ``shift`` ``(O,)`` is what they add to a mean output."""

    integers: Array
    scales: Array
    shift: Array


def suits_scheme(graph: onnx.GraphProto, layer: Layer, scheme: Scheme) -> bool:
    """Return True if the layer may be quantized by the scheme."""
    node = graph.node[layer.nodes[0]]
    (dims,) = (tuple(tensor.dims) for tensor in graph.initializer if tensor.name == node.input[1])
    return scheme.suits(node, dims)


def find_two_terms(graph: onnx.GraphProto, layers: Collection[Layer], ranges: Mapping[str, Range]) -> tuple[Layer, ...]:
    """Return the layers whose input could be stored in two terms when all of these layers are quantized."""
    shapes = {tensor.name: tuple(tensor.dims) for tensor in graph.initializer}

    def suits(layer: Layer) -> bool:
        node, made = graph.node[layer.nodes[0]], _QdqPlan(graph, layers, float_sums=True, two_terms={layer.name}).made
        name = node.input[0]
        return name in ranges and name not in made and suits_two_terms(node, shapes, ranges[name])

    return tuple(layer for layer in layers if suits(layer))


def find_tensors(graph: onnx.GraphProto, layers: Collection[Layer], *, scheme: Scheme = ASYMMETRIC) -> tuple[str, ...]:
    """Return the activations that are stored in 8 bits when these layers are quantized, in the order of computation."""
    plan = _QdqPlan(graph, layers, inputs_only=scheme.inputs_only)
    return tuple(plan.stored)


def quantize(
    proto: onnx.ModelProto,
    ranges: Mapping[str, Range],
    layers: Collection[Layer],
    *,
    scheme: Scheme = ASYMMETRIC,
    rounded: Mapping[str, RoundedWeights] = MappingProxyType({}),
    float_sums: bool = False,
    two_terms: Collection[str] = (),
) -> onnx.ModelProto:
    """Return a copy whose given layers compute on integers; ``ranges`` has an entry per tensor of `find_tensors`.

    The weights of nodes that ``rounded`` does not name are rounded to the nearest step. With ``float_sums`` the sums of
    residual branches are in float32, as are the terms that convolutions of 1x1 make, and rounded only for the layers
    that read them: rounding errors do not add up along a stage. The layers named by ``two_terms`` read such a tensor
    with more than 8 bits (`exporters.int8_linear`).
    """
    model = onnx.ModelProto()
    model.CopyFrom(proto)
    graph = model.graph
    plan = _QdqPlan(proto.graph, layers, float_sums=float_sums, two_terms=two_terms, inputs_only=scheme.inputs_only)
    constants = _Constants(graph, scheme, rounded)
    nodes: list[onnx.NodeProto] = []
    stored = {name: ranges[source] for name, source in plan.stored.items()}
    for name in (value.name for value in graph.input):
        nodes += _round_trip(name, stored, constants)
    for i, node in enumerate(graph.node):
        outputs = list(node.output)
        for place, name in enumerate(node.input):
            if name in stored and name not in plan.shown and (i in plan.nodes or name in plan.made):
                node.input[place] = f"{name}/real"
        if i not in plan.nodes and node.op_type in _ROUNDED_BY_ONNXRUNTIME:
            nodes += _read_by_channel(node, proto.graph.node[i].input[0], stored, plan.made, constants)
        if i in plan.nodes and node.op_type in WEIGHTED:
            nodes += _compute_on_integers(i, node, proto.graph.node[i].input[0], stored, plan, constants)
        else:
            nodes.append(node)
        for place, name in enumerate(outputs):
            if name in plan.shown:
                node.output[place] = f"{name}/exact"
            nodes += _round_trip(name, stored, constants, shown=name in plan.shown)
    copies = [onnx.NodeProto.FromString(node.SerializeToString()) for node in nodes]
    del graph.node[:], graph.value_info[:]
    graph.node.extend(copies)
    graph.initializer.extend(constants.made.values())
    drop_unused(graph)
    return model


class _QdqPlan:
    """The nodes that are quantized, the tensors that are stored in 8 bits, and the tensor whose range each one takes.

    ``made`` are the outputs of quantized nodes: every reader gets the stored values. The output of a float node is
    rounded only for the readers that compute on integers. ``shown`` are those of ``made`` that are also outputs of the
    graph: without rounding them, onnxruntime would compute their layer in float. The outputs of ``float_outputs`` are
    not stored; the inputs of ``two_terms`` are stored twice. With ``inputs_only`` nothing is stored but the inputs of
    layers.
    """

    def __init__(
        self,
        graph: onnx.GraphProto,
        layers: Collection[Layer],
        *,
        float_sums: bool = False,
        two_terms: Collection[str] = (),
        inputs_only: bool = False,
    ) -> None:
        weights = {tensor.name for tensor in graph.initializer}
        results = {value.name for value in graph.output}
        readers = Counter(name for node in graph.node for name in node.input)
        bounded = {node.input[0]: node.output[0] for node in graph.node if node.op_type in BOUNDED}
        in_float = BOUNDED | ({"Add"} if float_sums else set())
        self.nodes = {i for layer in layers for i in layer.nodes if graph.node[i].op_type not in in_float}
        self.two_terms = {layer.nodes[0] for layer in layers if layer.name in two_terms} if float_sums else set()
        self.float_outputs = find_float_outputs(graph, self.nodes, self.two_terms) if float_sums else frozenset()
        self.stored: dict[str, str] = {}
        self.made: set[str] = set()
        self.shown: set[str] = set()
        if inputs_only:
            self.nodes = {layer.nodes[0] for layer in layers}
            self.two_terms = {layer.nodes[0] for layer in layers if layer.name in two_terms}
            self.float_outputs = frozenset()
            self.stored = {name: name for name in (graph.node[i].input[0] for i in sorted(self.nodes))}
            return
        for i in sorted(self.nodes):
            node = graph.node[i]
            inputs = [name for name in node.input if name not in weights]
            output = node.output[0]
            # a Relu or Clip that follows is part of the quantization: the range ends at its bounds
            while output in bounded and readers[output] == 1 and output not in results:
                output = bounded[output]
            for name in inputs:
                self.stored.setdefault(name, name)
            if i in self.float_outputs:
                continue
            if output not in results or readers[output]:
                if output in results:
                    self.shown.add(output)
                # MaxPool returns one of its inputs, so it keeps their scale
                same = node.op_type == "MaxPool" and output == node.output[0]
                self.stored[output] = self.stored[inputs[0]] if same else output
                self.made.add(output)


class _Constants:
    """New initializers, each added once, in the types of a scheme."""

    def __init__(self, graph: onnx.GraphProto, scheme: Scheme, rounded: Mapping[str, RoundedWeights]) -> None:
        self.scheme, self.rounded = scheme, rounded
        self.weights = {tensor.name: tensor for tensor in graph.initializer}
        self.made: dict[str, onnx.TensorProto] = {}
        self.read_by_channel: set[str] = set()

    def read(self, name: str) -> Array:
        values: Array = onnx.numpy_helper.to_array(self.weights[name])
        return values

    def add(self, name: str, values: Array) -> str:
        self.made[name] = onnx.numpy_helper.from_array(np.array(values, order="C"), name)
        return name


def _round_trip(
    name: str, stored: Mapping[str, Range], constants: _Constants, *, shown: bool = False
) -> Iterator[onnx.NodeProto]:
    """Yield the nodes that store a tensor in 8 bits and read it back, as ``<name>/real``.

    An output of the graph is ``shown``: it keeps its name for what is read back, and ``<name>/exact`` is stored.
    """
    if name not in stored:
        return
    scale = constants.add(f"{name}/scale", np.asarray(constants.scheme.scale(stored[name])))
    zero = constants.add(f"{name}/zero", constants.scheme.zeros(stored[name]))
    make, kept = onnx.helper.make_node, f"{name}/int8"
    source, result = (f"{name}/exact", name) if shown else (name, f"{name}/real")
    yield make("QuantizeLinear", [source, scale, zero], [kept], f"{name}/quantize")
    yield make("DequantizeLinear", [kept, scale, zero], [result], f"{name}/dequantize")


def _read_by_channel(
    node: onnx.NodeProto, name: str, stored: Mapping[str, Range], made: Collection[str], constants: _Constants
) -> Iterator[onnx.NodeProto]:
    """Let a float node read a stored tensor with one scale per channel, all of them equal, so that its weights stay.

    Not for TensorRT, which takes one scale per activation and does not round weights.
    """
    if name not in stored or name not in made or node.input[1] not in constants.weights:
        return
    if not constants.scheme.integer_bias:
        return
    given = {attribute.name: attribute.i for attribute in node.attribute}
    dims = constants.weights[node.input[1]].dims
    if node.op_type == "Gemm":
        channels = dims[1 if given.get("transB") else 0]
    else:
        channels = dims[0] if node.op_type == "ConvTranspose" else dims[1] * given.get("group", 1)
    result = f"{name}/channels"
    if result not in constants.read_by_channel:
        constants.read_by_channel.add(result)
        scale = constants.add(f"{result}/scale", np.full(channels, constants.scheme.scale(stored[name])))
        zeros = constants.scheme.zeros(stored[name])
        zero = constants.add(f"{result}/zero", np.full(channels, zeros, dtype=zeros.dtype))
        inputs = [f"{name}/int8", scale, zero]
        yield onnx.helper.make_node("DequantizeLinear", inputs, [result], f"{result}/dequantize", axis=1)
    node.input[0] = result


def _compute_on_integers(
    i: int,
    node: onnx.NodeProto,
    source: str,
    stored: Mapping[str, Range],
    plan: _QdqPlan,
    constants: _Constants,
) -> Iterator[onnx.NodeProto]:
    """Yield node ``i``, which reads the tensor ``source``, with int8 weights and the bias of the scheme."""
    scheme, image = constants.scheme, stored[source]
    in_rows = i in plan.float_outputs
    steps = _round_weights(node, image, constants, has_integer_bias=scheme.integer_bias and not in_rows)
    integers = steps.integers
    if i in plan.two_terms:
        yield from read_in_two_terms(node, source, scheme.scale(image), scheme.zeros(image), constants.add)
        integers = weights_of_two_terms(integers, constants.read(node.input[1]), steps.scale)
    if in_rows:
        yield from multiply_rows(node, integers, steps.scale, steps.bias, constants.add)
        return
    yield _read_back(node, 1, integers, steps.scale, steps.axis, constants)
    if steps.bias is not None and scheme.integer_bias:
        unit = steps.scale * scheme.scale(image)
        yield _read_back(node, 2, np.rint(steps.bias.astype(np.float64) / unit).astype(np.int32), unit, 0, constants)
    elif steps.bias is not None and node.name in constants.rounded:
        node.input[2] = constants.add(f"{node.name}/bias", steps.bias)
    yield node


@dataclass(frozen=True, slots=True, eq=False)
class _WeightSteps:
    """The weights of a node in steps of ``scale`` ``(O,)``; ``axis`` is that of the output channels."""

    integers: Array
    scale: Array
    axis: int
    bias: Array | None


def _round_weights(
    node: onnx.NodeProto, image: Range, constants: _Constants, *, has_integer_bias: bool
) -> _WeightSteps:
    """Return the int8 weights and the bias of a node whose input has the range ``image``."""
    scheme, rounded = constants.scheme, constants.rounded.get(node.name)
    weight = constants.read(node.input[1])
    bias = constants.read(node.input[2]) if len(node.input) > 2 else None
    axis = channel_axis(node, weight)
    if rounded is None:
        rows = np.moveaxis(weight, axis, 0).reshape(weight.shape[axis], -1)
        scale = scheme.weight_scales(rows, layer_pairs(node, weight), inputs=weight.shape[1])
    else:
        scale = rounded.scales
        bias = None if bias is None else (bias - rounded.shift).astype(bias.dtype)
    if bias is not None and has_integer_bias:
        # the bias is int32 in units of both scales; where all weights of a channel are tiny it might overflow
        scale = np.maximum(scale, np.abs(bias) / (float(scheme.scale(image)) * 2**30))
    scale = np.where(scale > 0, scale, 1.0).astype(np.float32)
    others = tuple(i for i in range(weight.ndim) if i != axis)
    integers = np.rint(weight / np.expand_dims(scale, others)).clip(-127, 127).astype(np.int8)
    if rounded is not None:
        same = np.expand_dims(scale == rounded.scales.astype(np.float32), others)
        integers = np.where(same, rounded.integers, integers)
    return _WeightSteps(integers, scale, axis, bias)


def _read_back(
    node: onnx.NodeProto, place: int, integers: Array, scale: Array, axis: int, constants: _Constants
) -> onnx.NodeProto:
    # named after the node: two nodes may share a weight and need different scales
    name = f"{node.name}/{'weight' if place == 1 else 'bias'}"
    inputs = [
        constants.add(f"{name}/int{8 * integers.itemsize}", integers),
        constants.add(f"{name}/scale", scale),
        constants.add(f"{name}/zero", np.zeros(scale.shape, dtype=integers.dtype)),
    ]
    node.input[place] = f"{name}/real"
    return onnx.helper.make_node("DequantizeLinear", inputs, [f"{name}/real"], f"{name}/dequantize", axis=axis)
