"""Run a foreign network as it is, and compare the member that was made of it."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from ensemble.adopt.foreign import ForeignModel, ImageInput
from ensemble.adopt.graph import WrapPlan
from ensemble.arrays import Floats, Logits, Pixels
from ensemble.card import ModelCard
from ensemble.errors import ModelError
from ensemble.runtime.error_text import explain_error
from ensemble.runtime.independence import require_independent
from ensemble.runtime.model_file import INPUT, LOGITS
from ensemble.runtime.parity import relative_error

BATCHES = (1, 3)


class Original:
    """The original file in plain onnxruntime, with a preprocessing written independently of the graph's."""

    def __init__(self, model: ForeignModel, image: ImageInput, card: ModelCard, output: str) -> None:
        self._model, self._image, self._card, self._output = model, image, card, output
        self._runtime = _start(model.proto.SerializeToString(), model.path)

    def run(self, pixels: Pixels) -> Floats:
        """Return the answers of each image, ``(N, C)``."""
        count = self._image.batch or 1
        rows = []
        for one in pixels:
            found = self.values(one)
            if found.size % count:
                raise self._unfit(found)
            answers = found.astype(np.float64).reshape(count, -1)[0]
            if found.ndim > 2 and answers.size != max(found.shape[1:]):
                raise self._unfit(found)
            rows.append(answers)
        return np.stack(rows)

    def values(self, pixels: Pixels) -> NDArray[Any]:
        """Return the output as it is, for a batch of the network's size that repeats one image ``(H, W, 3)``."""
        batch = np.repeat(self._prepared(pixels)[np.newaxis], self._image.batch or 1, axis=0)
        return _run(self._runtime, self._output, {self._image.name: batch}, self._model.path)

    def _prepared(self, pixels: Pixels) -> NDArray[Any]:
        if self._image.channels == 1:
            weighted = pixels.astype(np.int64) @ np.array([19595, 38470, 7471])
            pixels = ((weighted + 32768) >> 16).astype(np.uint8)[:, :, np.newaxis]
        mean, std = np.array(self._card.mean), np.array(self._card.std)
        if self._card.preprocess.channels == "bgr":
            pixels = pixels[:, :, ::-1]
        kind = onnx.helper.tensor_dtype_to_np_dtype(self._image.type)
        values = pixels if kind == np.uint8 else (pixels / 255 - mean) / std
        planes = values.transpose(2, 0, 1) if self._image.layout == "nchw" else values
        return np.ascontiguousarray(planes).astype(kind)

    def _unfit(self, found: NDArray[Any]) -> ModelError:
        return ModelError(
            "E424",
            f"{self._model.path.name} gives {self._output} of shape {found.shape}, not a row of answers for each image",
            hint="name the output with the answers with --output-name",
            path=self._model.path,
        )


def compare(data: bytes, path: Path, plan: WrapPlan, pixels: Pixels, reference: Floats, limit: float) -> float:
    """Return the largest error of a member's graph over batches of 1 and 3, against the ``reference`` ``(N, answers)``.

    Logits are compared by `relative_error`, probabilities by their difference: near 0 and 1, rounding changes their
    logarithms.

    Raises:
        ModelError: E414 when the error exceeds the limit, or a class changes whose lead exceeds it.
    """
    runtime = _start(data, path)
    error = 0.0
    for size in BATCHES:
        rows = np.arange(-(-len(pixels) // size) * size) % len(pixels)
        parts = [
            _run(runtime, LOGITS, {INPUT: pixels[rows[start : start + size]]}, path)
            for start in range(0, len(rows), size)
        ]
        logits, wanted = np.concatenate(parts), reference[rows]
        if logits.shape != (len(rows), plan.classes):
            raise ModelError("E414", f"{len(rows)} images give {logits.shape}, expected {(len(rows), plan.classes)}")
        found = _as_answers(logits, plan)
        if plan.output == "probabilities":
            worst, scale = float(np.abs(found - wanted).max()), np.ones(len(rows))
        else:
            worst, scale = (
                relative_error(wanted.astype(np.float32), found.astype(np.float32)),
                np.abs(wanted).max(axis=1),
            )
        changed = _changed_classes(found, wanted, limit * scale)
        if not worst <= limit or changed:
            raise ModelError(
                "E414", f"error {worst:.1e} in batches of {size}, {limit:.0e} is allowed; {changed} changes"
            )
        error = max(error, worst)
    return error


def require_separate(data: bytes, path: Path, card: ModelCard) -> None:
    """Refuse a member's graph whose answers depend on chance or on the other images of the batch.

    Raises:
        ModelError: E414 when there is not one row for each image.
        DeviceError: E612, E613.
    """
    runtime = _start(data, path)

    def run(pixels: Pixels) -> Logits:
        logits: Logits = _run(runtime, LOGITS, {INPUT: pixels}, path)
        if len(logits) != len(pixels):
            raise ModelError("E414", f"{len(pixels)} images give {len(logits)} rows of answers")
        return logits

    require_independent(data, run, card.preprocess.size, member=path.name, precision=card.precision)


def _as_answers(logits: Logits, plan: WrapPlan) -> Floats:
    """Return what the original would have given for these logits, in double precision."""
    values = logits.astype(np.float64)
    if plan.answers == 1:  # the second class against the first
        values = values[:, 1:] - values[:, :1]
    if plan.output == "logits":
        return values
    if plan.answers == 1 or plan.independent:
        odds: Floats = 1 / (1 + np.exp(-values))
        return odds
    powers = np.exp(values - values.max(axis=1, keepdims=True))
    shares: Floats = powers / powers.sum(axis=1, keepdims=True)
    return shares


def _changed_classes(found: Floats, wanted: Floats, limit: Floats) -> int:
    """Return the number of rows with another top class whose lead in the original exceeds the limit."""
    if wanted.shape[1] == 1:
        return 0  # a single answer has no order
    ordered = np.partition(wanted, -2, axis=1)
    lead = ordered[:, -1] - ordered[:, -2]
    return int(((found.argmax(axis=1) != wanted.argmax(axis=1)) & (lead > limit)).sum())


def _start(data: bytes, path: Path) -> Any:
    import onnxruntime

    settings = onnxruntime.SessionOptions()
    settings.log_severity_level = 4
    # one image at a time: threads would wait for each other, with twice the processor time for SFace's small layers
    settings.intra_op_num_threads = 1
    try:
        return onnxruntime.InferenceSession(data, settings, providers=["CPUExecutionProvider"])
    except Exception as err:
        text = explain_error(err)
        code = "E421" if re.search(r"IR version|opset", text) else "E420"
        raise ModelError(code, f"{path.name}: onnxruntime cannot build it: {text}", path=path) from err


def run_outputs(
    data: bytes, path: Path, outputs: Sequence[str], inputs: dict[str, NDArray[Any]]
) -> tuple[NDArray[Any], ...]:
    """Return several outputs of a model's file for ``inputs``.

    Raises:
        ModelError: E414 when it fails.
    """
    runtime = _start(data, path)
    return tuple(_run(runtime, output, inputs, path) for output in outputs)


def _run(runtime: Any, output: str, inputs: dict[str, NDArray[Any]], path: Path) -> NDArray[Any]:
    try:
        found = runtime.run([output], inputs)[0]
    except Exception as err:
        text = explain_error(err)
        raise ModelError("E414", f"{path.name} fails on an image: {text}", path=path) from err
    if not isinstance(found, np.ndarray):
        raise ModelError("E424", f"{path.name} gives {output} as a {type(found).__name__}, not a tensor", path=path)
    return found
