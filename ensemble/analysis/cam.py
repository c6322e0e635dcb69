"""Find the linear classifier on the pooled features in a model's graph, which class-activation maps are made of."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from ensemble.arrays import Classes, Floats, Logits
from ensemble.card import ModelCard
from ensemble.errors import ModelError
from ensemble.runtime.model_file import FEATURES, LOGITS, ModelFile

# operators that change the shape of the scores but not their values, and those after one head per axis
_PASSED = {"Cast", "Flatten", "Identity", "Reshape", "Squeeze"}
_AXES = {"Expand", "LogSoftmax", "Slice", "Split", "Unsqueeze"}
# rounding in the model's precision, relative to the sum of the absolute terms
_TOLERANCE = {"fp32": 1e-3, "fp16": 2e-2}


@dataclass(frozen=True, slots=True, eq=False)
class Classifier:
    """A linear layer on averaged features: ``weights`` ``(O, F)`` and ``bias`` ``(O,)``, float64.

    It has one score per class or, with ``by_axis``, one per value of each axis, whose log-probabilities are added.
    """

    card: ModelCard
    weights: Floats
    bias: Floats
    by_axis: bool

    def maps(self, features: NDArray[np.float32], classes: Classes) -> Floats:
        """Return each image's class-activation map ``(B, h, w)``: the weights of its class times the features.

        ``features`` are ``(B, F, h, w)``. The mean of a map is the score of the class minus the bias (Zhou et al. 2016,
        Learning Deep Features for Discriminative Localization, equation 2). A class of several axes has the sum of the
        scores of its values, before the softmax.
        """
        weights = self.class_weights[classes]
        found: Floats = np.einsum("bf,bfhw->bhw", weights, features.astype(np.float64))
        return found

    @property
    def class_weights(self) -> Floats:
        """The weights of each class ``(C, F)``: of a class of several axes, the sum of those of its values."""
        weights: Floats = self._values_of_classes() @ self.weights
        return weights

    def require_explains(self, features: NDArray[np.float32], logits: Logits) -> None:
        """Check that the logits ``(B, C)`` are those of this layer on the mean of the features.

        Raises:
            ModelError: E432 when they differ by more than rounding.
        """
        if features.shape[1] != self.weights.shape[1]:
            raise _refusal(
                self.card.member, f"its last layer takes {self.weights.shape[1]} values, not {features.shape[1]} maps"
            )
        pooled = features.mean(axis=(2, 3), dtype=np.float64)
        scores = pooled @ self.weights.T + self.bias
        if self.by_axis:
            ends = np.cumsum(self.card.labels.shape)[:-1]
            parts = np.split(scores, ends, axis=1)
            scores = np.concatenate([part - np.logaddexp.reduce(part, axis=1, keepdims=True) for part in parts], axis=1)
        found = scores @ self._values_of_classes().T
        added = np.abs(pooled) @ np.abs(self.weights).T + np.abs(self.bias)
        error = float(np.max(np.abs(found - logits)) / max(float(added.max()), 1e-6))
        if error > _TOLERANCE.get(self.card.precision, max(_TOLERANCE.values())):
            raise _refusal(self.card.member, f"the relative error of its logits would be {error:.1e}")

    def _values_of_classes(self) -> Floats:
        """Return which scores each class adds up, ``(C, O)``: its own, or that of its value on each axis."""
        labels = self.card.labels
        if not self.by_axis:
            return np.eye(len(labels))
        classes = np.arange(len(labels))
        return np.concatenate(
            [np.eye(len(axis.values))[labels.along(axis.name, classes)] for axis in labels.axes], axis=1
        )


def find_classifier(model: ModelFile) -> Classifier:
    """Find the last linear layer before the logits; `Classifier.require_explains` checks that its input is pooled.

    Raises:
        ModelError: E431 when the model has no output ``features``, E432 when it lacks that layer.
    """
    member = model.card.member
    if FEATURES not in model.outputs:
        adopted = "adopt the network again with ens adopt --features"
        hint = adopted if model.card.arch == "onnx" else None
        raise ModelError("E431", f"{model.path.name} has no output {FEATURES!r}", hint=hint, path=model.path)
    graph = onnx.load_model_from_string(model.data).graph
    name, nodes = _enter_scan(graph)
    constants = _GraphConstants(graph, nodes)
    made_by = {output: node for node in nodes for output in node.output}
    added: list[Floats | None] = []
    by_axis = False
    while (node := made_by.get(name)) is not None and node.op_type in {"Add", *_PASSED, *_AXES}:
        name = node.input[0]
        by_axis |= node.op_type == "LogSoftmax"
        if node.op_type == "Add":
            values = {other: constants.read(other) for other in node.input}
            name = next((other for other, value in values.items() if value is None), name)
            added += [value for value in values.values() if value is not None]
    weights = constants.read(node.input[1]) if node is not None and node.op_type in {"Gemm", "MatMul"} else None
    if node is None or weights is None or weights.ndim != 2:
        raise _refusal(member, f"its logits come from {'its input' if node is None else node.op_type}")
    settings: Mapping[str, Any] = {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute}
    if not settings.get("transB", 0):
        weights = weights.T
    if len(node.input) > 2:
        added.append(constants.read(node.input[2]))
    labels = model.card.labels
    wanted = sum(labels.shape) if by_axis else len(labels)
    terms = [term.reshape(-1) for term in added if term is not None and term.size in {1, wanted}]
    if len(weights) != wanted or len(terms) != len(added):
        raise _refusal(member, f"its last layer has {len(weights)} outputs, not {wanted}")
    return Classifier(model.card, weights, np.zeros(wanted) + sum(terms), by_axis)


def _enter_scan(graph: onnx.GraphProto) -> tuple[str, list[onnx.NodeProto]]:
    """Return the value of the logits and the nodes it is made by: inside the Scan, where images run one by one."""
    made_by = {output: node for node in graph.node for output in node.output}
    last = made_by.get(LOGITS)
    if last is None or last.op_type != "Scan":
        return LOGITS, list(graph.node)
    body: onnx.GraphProto = onnx.helper.get_node_attr_value(last, "body")
    name, nodes = str(body.output[list(last.output).index(LOGITS)].name), [*graph.node, *body.node]
    row = next((node for node in body.node if name in node.output), None)
    if row is not None and row.op_type == "Gather":  # the row of the one image
        name = row.input[0]
    return name, nodes


class _GraphConstants:
    """The constants of a graph and its ``nodes``, also those behind a cast, a transposition or in 8 bits."""

    def __init__(self, graph: onnx.GraphProto, nodes: Iterable[onnx.NodeProto]) -> None:
        self._stored = {tensor.name: tensor for tensor in graph.initializer}
        self._made_by = {node.output[0]: node for node in nodes if len(node.output) == 1}

    def read(self, name: str) -> Floats | None:
        """Read a constant as float64; None for a value that depends on the image."""
        if name in self._stored:
            return onnx.numpy_helper.to_array(self._stored[name]).astype(np.float64)
        node = self._made_by.get(name)
        if node is not None and node.op_type == "DequantizeLinear":
            return self._dequantize(node)
        if node is None or node.op_type not in {"Cast", "Identity", "Transpose"}:
            return None
        value = self.read(node.input[0])
        return value.T if value is not None and node.op_type == "Transpose" else value

    def _dequantize(self, node: onnx.NodeProto) -> Floats | None:
        """Read a constant that is stored in integers, with one scale or one for each place of an axis."""
        parts = [self.read(name) for name in node.input]
        if any(part is None for part in parts):
            return None
        values, scale, zero = (np.asarray(part) for part in (*parts, np.zeros(()))[:3])
        axis = next((one.i for one in node.attribute if one.name == "axis"), 1)
        wide = [-1 if place == axis % values.ndim else 1 for place in range(values.ndim)]
        scale, zero = (one.reshape(wide) if one.ndim == 1 else one for one in (scale, zero))
        found: Floats = (values - zero) * scale
        return found


def _refusal(member: str, why: str) -> ModelError:
    return ModelError("E432", f"the classes of {member} are not weighted sums of its averaged features: {why}")
