"""Between which values do the activations of a network lie? Measured on real images."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import onnx
import onnxruntime
from numpy.typing import NDArray

from ensemble.events import SILENT, Listener
from ensemble.images import Pixels
from ensemble.model_file import INPUT
from exporters.quantise import Range

# every tensor of a network lives at once: 8 images of 300 px took an EfficientNet-B3 to 7 GB
BATCH = 1


@dataclass(frozen=True, slots=True, eq=False)
class Extremes:
    """The smallest and largest value of each tensor in each image: ``low`` and ``high`` are ``(T, N)`` float32."""

    tensors: tuple[str, ...]
    low: NDArray[np.float32]
    high: NDArray[np.float32]

    def ranges(self, share: float) -> dict[str, Range]:
        """Ranges that hold all values of that share of the images on either side; the others are cut there."""
        low = np.quantile(self.low, 1 - share, axis=1, method="lower")
        high = np.quantile(self.high, share, axis=1, method="higher")
        return {name: Range(min(float(low[i]), 0.0), max(float(high[i]), 0.0)) for i, name in enumerate(self.tensors)}


def measure_extremes(
    proto: onnx.ModelProto, tensors: Sequence[str], pixels: Pixels, *, listener: Listener = SILENT
) -> Extremes:
    """Run a network on ``(N, H, W, 3)`` uint8 and note the extremes of these tensors; nothing else is kept of them."""
    model = onnx.ModelProto()
    model.CopyFrom(proto)
    graph, make = model.graph, onnx.helper.make_node
    graph.initializer.append(onnx.numpy_helper.from_array(np.array([1]), "extremes/axes"))
    del graph.output[:]
    for name in tensors:
        graph.node.append(make("Flatten", [name], [f"{name}/flat"], axis=1))
        for kind in ("ReduceMin", "ReduceMax"):
            output = f"{name}/{kind}"
            graph.node.append(make(kind, [f"{name}/flat", "extremes/axes"], [output], keepdims=0))
            graph.output.append(onnx.helper.make_tensor_value_info(output, onnx.TensorProto.FLOAT, ["batch"]))
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    parts = []
    for start in range(0, len(pixels), BATCH):
        parts.append(np.stack(session.run(None, {INPUT: pixels[start : start + BATCH]})))
        listener.progress("calibrate", min(start + BATCH, len(pixels)), len(pixels))
    found = np.concatenate(parts, axis=1)
    return Extremes(tuple(tensors), found[0::2], found[1::2])
