"""Answer near ties of an int8 network in float32.

Rounding changes the class of an image only where its two highest logits are near each other, and these images are few:
on a trained EfficientNet-Lite0 3 % of them were 45 % of the changed classes, and 5 % were 70 %. Computed again in
float32 they cost as many hundredths of the time of float32, while layers that return to float32 cost theirs for every
image. The file holds both networks; a batch without a near tie runs the first one alone.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
import onnx.compose

from ensemble.arrays import Floats, Logits
from ensemble.runtime.model_file import INPUT, LOGITS
from exporters.int8_schemes import Array

MOST_AGAIN = 0.1  # of the images
_PREFIX = "float32/"
_OWN = "near_ties"


@dataclass(frozen=True, slots=True)
class Fallback:
    """Images whose two highest logits are less than ``below`` apart, a ``share`` of all, are answered in float32."""

    below: float
    share: float

    def as_dict(self) -> dict[str, float]:
        """Return what the card keeps."""
        return {"below": self.below, "share": round(self.share, 4)}


NO_FALLBACK = Fallback(0.0, 0.0)


def distances(logits: Logits) -> Floats:
    """Return how far apart the two highest logits ``(N, C)`` of each image are ``(N,)``; infinitely for one class."""
    if logits.shape[1] < 2:
        return np.full(len(logits), np.inf)
    highest = np.partition(logits, logits.shape[1] - 2, axis=1)[:, -2:]
    found: Floats = np.abs(highest[:, 1] - highest[:, 0])
    return found


def joined_logits(found: Logits, reference: Logits, fallback: Fallback) -> Logits:
    """Return the logits of int8 with those of float32 (``reference``) in the place of near ties."""
    near = distances(found) < np.float32(fallback.below)
    joined: Logits = np.where(near[:, np.newaxis], reference, found)
    return joined


def join(integers: onnx.ModelProto, floats: onnx.ModelProto, fallback: Fallback) -> onnx.ModelProto:
    """Return one model of both networks, which answers near ties of the first by the second.

    Each takes ``image`` and gives ``logits``.
    """
    model = onnx.ModelProto()
    model.CopyFrom(integers)
    graph, make = model.graph, onnx.helper.make_node
    first = f"{_OWN}/int8"
    for node in graph.node:
        node.output[:] = [first if name == LOGITS else name for name in node.output]

    def constant(word: str, values: Array) -> str:
        name = f"{_OWN}/{word}"
        graph.initializer.append(onnx.numpy_helper.from_array(values, name))
        return name

    def add(word: str, op: str, *inputs: str, **attributes: Any) -> str:
        name = f"{_OWN}/{word}"
        graph.node.append(make(op, list(inputs), [name], name, **attributes))
        return name

    highest = f"{_OWN}/highest"
    graph.node.append(make("TopK", [first, constant("two", np.array([2]))], [highest, f"{highest}/classes"], highest))
    ends = [add(f"logit{i}", "Gather", highest, constant(f"column{i}", np.array(i)), axis=1) for i in range(2)]
    near = add("near", "Less", add("distance", "Sub", *ends), constant("below", np.array(fallback.below, np.float32)))
    found = add("found", "NonZero", near)
    rows = add("rows", "Reshape", found, constant("flat", np.array([-1])))
    places = add("places", "Reshape", found, constant("upright", np.array([-1, 1])))
    is_any = add("any", "Greater", add("count", "Size", rows), constant("none", np.array(0)))
    branches: dict[str, Any] = {
        "then_branch": _answer_again(floats, rows, places, first),
        "else_branch": _branch("int8", [make("Identity", [first], [f"{_OWN}/same"], f"{_OWN}/same")]),
    }
    graph.node.append(make("If", [is_any], [LOGITS], f"{_OWN}/logits", **branches))
    return model


def _answer_again(floats: onnx.ModelProto, rows: str, places: str, logits: str) -> onnx.GraphProto:
    """Return the network in float32 on some of the images, whose answers replace those of ``logits`` at ``places``."""
    make = onnx.helper.make_node
    inner = onnx.compose.add_prefix(floats, _PREFIX).graph
    gather = make("Gather", [INPUT, rows], [_PREFIX + INPUT], f"{_OWN}/images", axis=0)
    replace = make("ScatterND", [logits, places, _PREFIX + LOGITS], [f"{_OWN}/joined"], f"{_OWN}/joined")
    # onnxruntime lays out weights ahead of time only where they are constants of the same graph
    return _branch("float32", [gather, *inner.node, replace], list(inner.initializer))


def _branch(name: str, nodes: list[onnx.NodeProto], weights: list[onnx.TensorProto] | None = None) -> onnx.GraphProto:
    (last,) = nodes[-1].output
    output = onnx.helper.make_tensor_value_info(last, onnx.TensorProto.FLOAT, None)
    return onnx.helper.make_graph(nodes, name, [], [output], weights)
