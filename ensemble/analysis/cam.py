"""The classifier behind a model's pooled features, found in its graph: what a class-activation map is made of."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from ensemble.arrays import Classes, Floats, Logits
from ensemble.card import ModelCard
from ensemble.errors import ModelError
from ensemble.runtime.model_file import FEATURES, LOGITS, ModelFile

# what changes the form of the scores and not their values, and what lies behind one head for each axis
_PASSED = {"Cast", "Flatten", "Identity", "Reshape", "Squeeze"}
_AXES = {"Expand", "LogSoftmax", "Slice", "Split", "Unsqueeze"}
# of the sum of what is added, as rounded in the model's precision
_TOLERANCE = {"fp32": 1e-3, "fp16": 2e-2}


@dataclass(frozen=True, slots=True, eq=False)
class Classifier:
    """A linear layer on averaged features: ``weights`` ``(O, F)`` and ``bias`` ``(O,)``, float64.

    It has one score a class, or, for ``by_axis``, one for each value of each axis, whose log-probabilities are added.
    """

    card: ModelCard
    weights: Floats
    bias: Floats
    by_axis: bool

    def maps(self, features: NDArray[np.float32], classes: Classes) -> Floats:
        """Each image's class-activation map ``(B, h, w)``: its class's weights times ``features`` ``(B, F, h, w)``.

        The mean of a map is the class's score less the bias (Zhou et al. 2016, Learning Deep Features for
        Discriminative Localization, equation 2). A class of several axes has the sum of its values' scores, as they
        are before the softmax.
        """
        weights = (self._values_of_classes() @ self.weights)[classes]
        found: Floats = np.einsum("bf,bfhw->bhw", weights, features.astype(np.float64))
        return found

    def require_explains(self, features: NDArray[np.float32], logits: Logits) -> None:
        """Refuse a model whose logits ``(B, C)`` are not those of this layer on the mean of the features.

        Raises:
            ModelError: E432 when they differ by more than rounding.
        """
        if features.shape[1] != self.weights.shape[1]:
            raise _refusal(self.card.member, f"it weighs {self.weights.shape[1]} values, not {features.shape[1]} maps")
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
            raise _refusal(self.card.member, f"its logits differ from that by {error:.1e} of what is added")

    def _values_of_classes(self) -> Floats:
        """Which scores ``(C, O)`` a class adds up: its own, or that of its value on each axis."""
        labels = self.card.labels
        if not self.by_axis:
            return np.eye(len(labels))
        classes = np.arange(len(labels))
        return np.concatenate(
            [np.eye(len(axis.values))[labels.along(axis.name, classes)] for axis in labels.axes], axis=1
        )


def find_classifier(model: ModelFile) -> Classifier:
    """The last linear layer before the logits; whether it sees pooled features, `Classifier.require_explains` says.

    Raises:
        ModelError: E431 when the model has no output ``features``, E432 when there is no such layer.
    """
    member = model.card.member
    if FEATURES not in model.outputs:
        raise ModelError("E431", f"{model.path.name} has no output {FEATURES!r}", path=model.path)
    graph = onnx.load_model_from_string(model.data).graph
    constants = _Constants(graph)
    made_by = {output: node for node in graph.node for output in node.output}
    added: list[Floats | None] = []
    name, by_axis = LOGITS, False
    while (node := made_by.get(name)) is not None and node.op_type in {"Add", *_PASSED, *_AXES}:
        name = node.input[0]
        by_axis |= node.op_type == "LogSoftmax"
        if node.op_type == "Add":
            values = {other: constants.read(other) for other in node.input}
            name = next((other for other, value in values.items() if value is None), name)
            added += [value for value in values.values() if value is not None]
    weights = constants.read(node.input[1]) if node is not None and node.op_type in {"Gemm", "MatMul"} else None
    if node is None or weights is None or weights.ndim != 2:
        raise _refusal(member, f"{'its input' if node is None else node.op_type} gives its logits")
    settings: Mapping[str, Any] = {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute}
    if not settings.get("transB", 0):
        weights = weights.T
    if len(node.input) > 2:
        added.append(constants.read(node.input[2]))
    labels = model.card.labels
    wanted = sum(labels.shape) if by_axis else len(labels)
    terms = [term.reshape(-1) for term in added if term is not None and term.size in {1, wanted}]
    if len(weights) != wanted or len(terms) != len(added):
        raise _refusal(member, f"its last layer gives {len(weights)} scores, not {wanted}")
    return Classifier(model.card, weights, np.zeros(wanted) + sum(terms), by_axis)


class _Constants:
    """The values that a graph holds, also behind a change of their type or a transposition."""

    def __init__(self, graph: onnx.GraphProto) -> None:
        self._stored = {tensor.name: tensor for tensor in graph.initializer}
        self._made_by = {node.output[0]: node for node in graph.node if len(node.output) == 1}

    def read(self, name: str) -> Floats | None:
        """A constant as float64; None for what depends on the image."""
        if name in self._stored:
            return onnx.numpy_helper.to_array(self._stored[name]).astype(np.float64)
        node = self._made_by.get(name)
        if node is None or node.op_type not in {"Cast", "Identity", "Transpose"}:
            return None
        value = self.read(node.input[0])
        return value.T if value is not None and node.op_type == "Transpose" else value


def _refusal(member: str, why: str) -> ModelError:
    return ModelError("E432", f"the classes of {member} are not weighted sums of its averaged features: {why}")
