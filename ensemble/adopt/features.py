"""Find the feature maps that a foreign network pools before its last linear layer, for `ens explain`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import onnx

from ensemble.adopt.check import run_outputs
from ensemble.adopt.foreign import ForeignModel, PixelLayout
from ensemble.adopt.graph import PooledMaps
from ensemble.analysis.cam import find_classifier
from ensemble.arrays import Pixels
from ensemble.errors import ModelError
from ensemble.runtime.model_file import FEATURES, INPUT, LOGITS, ModelFile

# what stands behind the linear layer, and between it and the pooling
_BEHIND = {"Softmax", "LogSoftmax", "Sigmoid", "Add"}
_SHAPE_ONLY = {"Identity", "Flatten", "Reshape", "Squeeze", "Unsqueeze", "Cast", "Dropout"}
_LAYOUTS: Mapping[frozenset[int], PixelLayout] = {frozenset({2, 3}): "nchw", frozenset({1, 2}): "nhwc"}


def find_pooled_maps(model: ForeignModel, name: str) -> PooledMaps:
    """Return the value whose mean over height and width goes into the linear layer of the output ``name``.

    Raises:
        ModelError: E432 when the output does not come from a linear layer on averaged maps.
    """
    graph = model.proto.graph
    makers = {made: node for node in graph.node for made in node.output}
    constants = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in graph.initializer}
    for node in graph.node:
        if node.op_type == "Constant" and node.attribute[0].name == "value":
            constants[node.output[0]] = onnx.numpy_helper.to_array(node.attribute[0].t)

    def back(start: str, passed: set[str]) -> onnx.NodeProto | None:
        found = makers.get(start)
        while found is not None and found.op_type in passed:
            found = next((makers[value] for value in found.input if value in makers and value not in constants), None)
        return found

    linear = back(name, _BEHIND | _SHAPE_ONLY)
    if linear is None or linear.op_type not in {"Gemm", "MatMul"}:
        raise _refusal(model, f"{name} comes from {'no layer' if linear is None else linear.op_type}, not a linear one")
    pool = back(linear.input[0], _SHAPE_ONLY)
    layout: PixelLayout | None = None
    if pool is not None and pool.op_type in {"GlobalAveragePool", "AveragePool"}:
        layout = "nchw"
    elif pool is not None and pool.op_type == "ReduceMean":
        layout = _LAYOUTS.get(_axes(pool, constants))
    if pool is None or layout is None:
        raise _refusal(model, f"its last layer takes what {'no layer' if pool is None else pool.op_type} gives")
    return PooledMaps(pool.input[0], layout)


def require_explainable(model: ModelFile, pixels: Pixels) -> None:
    """Check on ``pixels`` ``(N, H, W, 3)`` that the logits are those of a linear layer on the mean of the features.

    Raises:
        ModelError: E432 when they are not.
    """
    classifier = find_classifier(model)
    features, logits = run_outputs(model.data, model.path, [FEATURES, LOGITS], {INPUT: pixels})
    if features.ndim != 4:
        raise ModelError("E432", f"{model.path.name}: what it pools has the shape {features.shape}", path=model.path)
    classifier.require_explains(features, logits)


def _axes(pool: onnx.NodeProto, constants: Mapping[str, np.ndarray]) -> frozenset[int]:
    settings: Mapping[str, Any] = {a.name: onnx.helper.get_attribute_value(a) for a in pool.attribute}
    given = settings.get("axes", constants.get(pool.input[1]) if len(pool.input) > 1 else None)
    return frozenset() if given is None else frozenset(int(axis) % 4 for axis in given)


def _refusal(model: ForeignModel, why: str) -> ModelError:
    return ModelError(
        "E432",
        f"{model.path.name} has no features for ens explain: {why}",
        hint="leave out --features",
        path=model.path,
    )
