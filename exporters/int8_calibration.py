"""Measure the ranges of a network's activations on real images, for quantization."""

from __future__ import annotations

import functools
from collections.abc import MutableMapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
import onnxruntime
from numpy.typing import NDArray

from ensemble.arrays import Floats, Pixels
from ensemble.events import SILENT, Listener
from ensemble.runtime.model_file import INPUT
from exporters.export_steps import NO_STEPS, Arrays, Steps, spans_of
from exporters.int8_schemes import ASYMMETRIC, Range, Scheme

# all tensors of the network are in memory at once: 8 images of 300 px took an EfficientNet-B3 to 7 GB
BATCH = 1
_BINS = 2048
_COUNTED = 32  # images in the histograms; the extremes are those of all images
_SAMPLED = 3  # every third value of a large tensor is enough for its histogram
_LARGE = 5000


@dataclass(frozen=True, slots=True, eq=False)
class Activations:
    """The lowest and highest value ``(T,)`` of each tensor, zero included, and a histogram ``(T, B)`` between them."""

    tensors: tuple[str, ...]
    low: Floats
    high: Floats
    counts: Floats

    def extremes(self) -> dict[str, Range]:
        """Return the ranges of all values."""
        ends = zip(self.tensors, self.low.tolist(), self.high.tolist(), strict=True)
        return {name: Range(low, high) for name, low, high in ends}

    def least_squares(self, *, scheme: Scheme = ASYMMETRIC) -> dict[str, Range]:
        """Return the ranges whose quantization has the least mean square error.

        A narrower range has finer steps but clips the values outside. Sung et al., "Resiliency of Deep Neural Networks
        under Quantization" (arXiv 1511.06488), choose steps by this error.
        """
        return {name: self._best(i, scheme) for i, name in enumerate(self.tensors)}

    def _best(self, i: int, scheme: Scheme) -> Range:
        low, high = float(self.low[i]), float(self.high[i])
        if not high > low:
            return Range(low, high)
        values = low + (np.arange(_BINS) + 0.5) * ((high - low) / _BINS)
        return scheme.fit(Range(low, high), values, self.counts[i])


def measure_activations(
    proto: onnx.ModelProto,
    tensors: Sequence[str],
    pixels: Pixels,
    *,
    steps: Steps = NO_STEPS,
    listener: Listener = SILENT,
) -> Activations:
    """Run a network on ``(N, H, W, 3)`` uint8 and record the extremes and the histogram of each of these tensors."""
    low, high = _measure_extremes(proto, tensors, pixels, steps, listener)
    start = functools.cache(lambda: start_session(with_outputs(proto, tensors)))
    scale = _BINS / np.where(high > low, high - low, 1.0)
    some = pixels[:_COUNTED]

    def count(sums: MutableMapping[str, NDArray[Any]], number: int) -> None:
        counts = sums.setdefault("counts", np.zeros((len(tensors), _BINS)))
        for i, values in enumerate(start().run(None, {INPUT: some[number : number + 1]})):
            taken = values.ravel()[:: _SAMPLED if values.size > _LARGE else 1]
            bins = ((taken - low[i]) * scale[i]).astype(np.intp).clip(0, _BINS - 1)
            counts[i] += np.bincount(bins, minlength=_BINS)
        listener.progress("count", number + 1, len(some))

    counts = steps.fold("histograms", (proto, repr(tensors), pixels), len(some), count)["counts"]
    return Activations(tuple(tensors), low, high, counts)


def _measure_extremes(
    proto: onnx.ModelProto, tensors: Sequence[str], pixels: Pixels, steps: Steps, listener: Listener
) -> tuple[Floats, Floats]:
    """Return the least and the greatest value of each tensor ``(T,)``, zero included."""

    @functools.cache
    def start() -> Any:
        model = with_outputs(proto, ())
        graph, make = model.graph, onnx.helper.make_node
        graph.initializer.append(onnx.numpy_helper.from_array(np.array([1]), "extremes/axes"))
        for name in tensors:
            graph.node.append(make("Flatten", [name], [f"{name}/flat"], axis=1))
            # several rows per image where its parts are computed as images, as the patches of MobileViT
            for kind in ("ReduceMin", "ReduceMax"):
                output = f"{name}/{kind}"
                graph.node.append(make(kind, [f"{name}/flat", "extremes/axes"], [output], keepdims=0))
                graph.output.append(onnx.helper.make_tensor_value_info(output, onnx.TensorProto.FLOAT, ["rows"]))
        return start_session(model)

    def measure(begin: int, end: int) -> Arrays:
        ends = [rows.reshape(end - begin, -1) for rows in start().run(None, {INPUT: pixels[begin:end]})]
        found = [rows.max(axis=1) if i % 2 else rows.min(axis=1) for i, rows in enumerate(ends)]
        listener.progress("calibrate", end, len(pixels))
        return {"ends": np.stack(found, axis=1)}

    kept = steps.rows("extremes", (proto, repr(tensors), pixels), spans_of(len(pixels), BATCH), measure)["ends"]
    found = kept.T.astype(np.float64)
    return np.minimum(found[0::2].min(axis=1), 0.0), np.maximum(found[1::2].max(axis=1), 0.0)


def with_outputs(proto: onnx.ModelProto, names: Sequence[str]) -> onnx.ModelProto:
    """Return a copy with these outputs only."""
    model = onnx.ModelProto()
    model.CopyFrom(proto)
    del model.graph.output[:]
    for name in names:
        model.graph.output.append(onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None))
    return model


def start_session(model: onnx.ModelProto) -> Any:
    """Return a session of onnxruntime on the CPU."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    # between two images other work is done, during which its threads would wait busily
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    return onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
