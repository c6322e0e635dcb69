"""Bring the outputs of a foreign network to one row of answers: undo decisions, join the heads of axes."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
import onnx
import onnx.shape_inference
from onnx import TensorProto, helper, numpy_helper

from ensemble.adopt.cut import cut_network
from ensemble.adopt.foreign import ForeignModel, Output, find_last_layer
from ensemble.adopt.graph import SMALLEST
from ensemble.adopt.make_card import AdoptOptions
from ensemble.errors import OptionError
from ensemble.events import Listener, Notice
from ensemble.labels import Axis

JOINED = "ens.joined"
NAMES_KEY = "classlabels_strings"
# layers that keep only which class is the first, or some of the values
_DECISIONS = {"ArgMax", "TopK", "ZipMap", "Greater", "GreaterOrEqual", "Round"}
_PASSED = {"Identity", "Flatten", "Reshape", "Squeeze", "Unsqueeze", "Cast", "LabelEncoder"}
_LOOKED_UP = {"Gather", "ArrayFeatureExtractor"}  # names by their numbers
_SQUEEZING = {"Softmax", "LogSoftmax", "Sigmoid"}
_TYPES = {TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.DOUBLE}


def settle_outputs(model: ForeignModel, options: AdoptOptions, listener: Listener) -> tuple[ForeignModel, AdoptOptions]:
    """Return the network with one output, where its outputs tell which, and the options with that output's name.

    - what ArgMax, TopK or ZipMap decide on is the output in their place, with the class names of ZipMap;
    - of logits and their softmax the logits are the output;
    - heads for the axes of ``options.labels`` are joined: their log-probabilities are added.

    Raises:
        OptionError: E204 when it is not known whether heads of axes give logits or probabilities.
    """
    values = _OutputValues(model.proto)
    outputs = [str(value.name) for value in model.proto.graph.output]
    named = [options.output_name] if options.output_name in outputs else outputs
    sources = {name: values.before_decision(name) for name in named}
    undone = {name: source for name, source in sources.items() if source is not None}
    if undone and len(undone) == len(named):
        listener.notice(Notice("I487", f"{_shown(undone)}, which are taken as the answers", model.path))
        model = _with_outputs(_with_names(model, values), list(dict.fromkeys(undone.values())), values)
    elif undone:
        left = [name for name in named if name not in undone]
        listener.notice(Notice("I487", f"{_shown(undone)}: {', '.join(undone)} left out", model.path))
        model = _with_outputs(_with_names(model, values), left, values)
    else:
        left = named
    names = [str(value.name) for value in model.proto.graph.output]
    if options.output_name is not None:
        return model, replace(options, output_name=names[0]) if options.output_name in undone else options
    if len(names) > 1:
        squeezed = {name: last.before for name in names if (last := find_last_layer(model, name)).kind in _SQUEEZING}
        logits = [name for name in names if name not in squeezed or squeezed[name] not in names]
        if len(logits) < len(names):
            gone = ", ".join(name for name in names if name not in logits)
            listener.notice(Notice("I487", f"{gone} are made of {', '.join(logits)} and left out", model.path))
            model, names = _with_outputs(model, logits, values), logits
    if len(names) > 1 and options.labels is not None and len(options.labels.axes) > 1:
        heads = _heads(names, options.labels.axes, values)
        if heads is not None:
            return _join(model, heads, options, listener), replace(options, output_name=JOINED, output="logits")
    return model, options


class _OutputValues:
    """The values of a graph: what makes them, which are constant, and their types as far as they can be inferred."""

    def __init__(self, proto: onnx.ModelProto) -> None:
        self.makers = {made: node for node in proto.graph.node for made in node.output}
        self.constants = {tensor.name for tensor in proto.graph.initializer}
        self.constants |= {name for node in proto.graph.node if node.op_type == "Constant" for name in node.output}
        try:
            inferred = onnx.shape_inference.infer_shapes(proto).graph
        except Exception:  # noqa: BLE001 - a graph that cannot be inferred has the types it declares
            inferred = proto.graph
        self.known = {value.name: value for value in (*inferred.value_info, *inferred.output, *proto.graph.output)}

    def before_decision(self, name: str) -> str | None:
        """Return the value of which an output keeps only a decision; None for any other output."""
        node = self.makers.get(name)
        while node is not None and node.input:
            if node.op_type in _DECISIONS:
                # a threshold in front of the values: the comparison with it is the other way round
                return None if node.input[0] in self.constants else str(node.input[0])
            if node.op_type in _PASSED:
                node = self.makers.get(node.input[0])
            elif node.op_type in _LOOKED_UP and len(node.input) > 1 and node.input[0] in self.constants:
                node = self.makers.get(node.input[1])
            else:
                return None
        return None

    def width(self, name: str) -> int | None:
        """Return the number of values per image; None where it is not known."""
        value = self.known.get(name)
        dims = [] if value is None else value.type.tensor_type.shape.dim
        sides = [dim.dim_value for dim in dims[1:]]
        return int(np.prod(sides)) if sides and all(side > 0 for side in sides) else None

    def info(self, name: str) -> onnx.ValueInfoProto:
        """Return the declaration of a value as an output."""
        value = self.known.get(name)
        if value is not None and value.type.tensor_type.elem_type:
            copy = onnx.ValueInfoProto()
            copy.CopyFrom(value)
            return copy
        return helper.make_tensor_value_info(name, TensorProto.FLOAT, None)


def _shown(undone: Mapping[str, str]) -> str:
    groups: dict[str, list[str]] = {}
    for name, source in undone.items():
        groups.setdefault(source, []).append(name)
    return "; ".join(f"{' and '.join(names)} decide on the values of {source}" for source, names in groups.items())


def _with_outputs(model: ForeignModel, names: Sequence[str], values: _OutputValues) -> ForeignModel:
    proto = cut_network(model.proto, names)
    proto.graph.output.extend(values.info(name) for name in names)
    return replace(model, proto=proto)


def _with_names(model: ForeignModel, values: _OutputValues) -> ForeignModel:
    """Return the model with the class names of a ZipMap in its metadata."""
    maps = [node for node in values.makers.values() if node.op_type == "ZipMap"]
    found = [a.strings for node in maps for a in node.attribute if a.name == NAMES_KEY and a.strings]
    if not found or any(entry.key == NAMES_KEY for entry in model.proto.metadata_props):
        return model
    proto = onnx.ModelProto()
    proto.CopyFrom(model.proto)
    names = [name.decode("utf-8", "replace") for name in found[0]]
    proto.metadata_props.append(onnx.StringStringEntryProto(key=NAMES_KEY, value=json.dumps(names)))
    return replace(model, proto=proto)


def _heads(names: Sequence[str], axes: Sequence[Axis], values: _OutputValues) -> list[tuple[Axis, str]] | None:
    """Return the output of each axis: by its name, or in their order if each is as wide as its axis."""
    by_name = [[name for name in names if axis.name.lower() in name.lower()] for axis in axes]
    if all(len(found) == 1 for found in by_name) and len({found[0] for found in by_name}) == len(axes):
        chosen = [found[0] for found in by_name]
    elif len(names) == len(axes):
        chosen = list(names)
    else:
        return None
    fits = all(values.width(name) == len(axis.values) for name, axis in zip(chosen, axes, strict=True))
    return list(zip(axes, chosen, strict=True)) if fits else None


def _join(
    model: ForeignModel, heads: Sequence[tuple[Axis, str]], options: AdoptOptions, listener: Listener
) -> ForeignModel:
    """Add the nodes that spread the log-probabilities of each head over the classes, and add them."""
    labels = options.labels
    assert labels is not None
    proto = cut_network(model.proto, [name for _, name in heads])
    classes = np.arange(len(labels))
    parts = []
    for number, (axis, name) in enumerate(heads):
        kind = _kind(model, name, options)
        mark, width = f"{JOINED}.{number}", len(axis.values)
        spread = np.eye(width, dtype=np.float32)[:, labels.along(axis.name, classes)]
        constants: dict[str, np.ndarray] = {"shape": np.array([-1, width], dtype=np.int64), "spread": spread}
        nodes = [
            helper.make_node("Cast", [name], [f"{mark}.floats"], to=TensorProto.FLOAT),
            helper.make_node("Reshape", [f"{mark}.floats", f"{mark}.shape"], [f"{mark}.row"]),
        ]
        if kind == "logits":
            nodes.append(helper.make_node("LogSoftmax", [f"{mark}.row"], [f"{mark}.log"], axis=1))
        else:
            constants["smallest"] = np.array(SMALLEST, dtype=np.float32)
            nodes.append(helper.make_node("Max", [f"{mark}.row", f"{mark}.smallest"], [f"{mark}.above_0"]))
            nodes.append(helper.make_node("Log", [f"{mark}.above_0"], [f"{mark}.log"]))
        nodes.append(helper.make_node("MatMul", [f"{mark}.log", f"{mark}.spread"], [f"{mark}.classes"]))
        proto.graph.node.extend(nodes)
        proto.graph.initializer.extend(
            numpy_helper.from_array(v, f"{mark}.{suffix}") for suffix, v in constants.items()
        )
        parts.append(f"{mark}.classes")
    last = parts[0]
    for number, part in enumerate(parts[1:], 1):
        total = JOINED if number == len(parts) - 1 else f"{JOINED}.total{number}"
        proto.graph.node.append(helper.make_node("Add", [last, part], [total]))
        last = total
    proto.graph.output.append(helper.make_tensor_value_info(JOINED, TensorProto.FLOAT, [None, len(labels)]))
    shown = ", ".join(f"{axis.name} {name}" for axis, name in heads)
    taken = {name for _, name in heads}
    others = [str(value.name) for value in model.proto.graph.output if value.name not in taken]
    if others:
        shown += f"; {', '.join(others)} left out"
    listener.notice(Notice("I487", f"one head per axis, whose log-probabilities are added: {shown}", model.path))
    return replace(model, proto=proto)


def _kind(model: ForeignModel, name: str, options: AdoptOptions) -> Output:
    layer = find_last_layer(model, name)
    kind = options.output or layer.proves
    if kind is None:
        raise OptionError(
            "E204",
            f"{model.path.name} does not tell if {name} are logits or probabilities: its last layer is {layer.kind}",
            hint="say it with --output logits or --output probabilities",
        )
    return kind
