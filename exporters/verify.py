"""Compare an exported model's logits in onnxruntime with the checkpoint's in torch, on images.

The reference is the checkpoint's own network in float32 on the CPU, with a normalization written independently. A check
on random tensors would prove little: on noise every network gives nearly the same answer, and nothing overflows.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from itertools import cycle
from typing import Any

import numpy as np
import onnx
import onnxruntime
import torch
from PIL import Image

from ensemble.arrays import Logits, Pixels
from ensemble.card import ModelCard, Precision
from ensemble.errors import ModelError, cut_text
from ensemble.events import SILENT, Listener
from ensemble.runtime.model_file import INPUT, LOGITS
from ensemble.runtime.parity import notice_constant, relative_error
from exporters.export_steps import NO_STEPS, Arrays, Steps
from exporters.fp16 import with_rounding

FEATURES = "features"
BATCHES = (1, 2, 5)
ERROR_LIMIT: dict[Precision, float] = {"fp32": 1e-4, "fp16": 2e-2}

Outputs = dict[str, Logits]


@dataclass(frozen=True, slots=True)
class Checks:
    """The worst value of each metric over ``pictures`` images.

    ``logits_error`` and ``features_error`` are those of `relative_error`; ``batch_error`` is the one between the same
    images in batches of different sizes. ``classes_changed`` counts the images with another argmax.
    """

    precision: Precision
    pictures: int
    logits_error: float
    batch_error: float
    classes_changed: int
    features_error: float | None = None

    @property
    def changes_allowed(self) -> int:
        """None in float32; one in 200 in float16, at least one: one of 64 is compatible with 99.5 %, two are not."""
        return 0 if self.precision == "fp32" else max(1, self.pictures // 200)

    @property
    def faults(self) -> tuple[str, ...]:
        """The figures that are worse than allowed; empty when the model may be used."""
        limit = ERROR_LIMIT[self.precision]
        errors = {
            "relative error of the logits": self.logits_error,
            "relative error of the features": self.features_error or 0.0,
            "relative difference between batch sizes": self.batch_error,
        }
        found = [
            f"{name} {error:.1e} > {limit:.0e}" if np.isfinite(error) else f"{name}: infinite values or NaN"
            for name, error in errors.items()
            if not error <= limit  # so that NaN is a fault
        ]
        if self.classes_changed > self.changes_allowed:
            found.append(
                f"another class on {self.classes_changed} of {self.pictures} pictures > {self.changes_allowed}"
            )
        return tuple(found)

    def as_dict(self) -> dict[str, Any]:
        """Return what the card keeps: the limits that were met, and on how many images.

        The figures themselves are left out: they depend on the processor, and the same checkpoint must give the same
        file on every machine.
        """
        return {
            "pictures": self.pictures,
            "batches": list(BATCHES),
            "relative_error_at_most": ERROR_LIMIT[self.precision],
            "classes_changed_at_most": self.changes_allowed,
        }


def verify(
    model: torch.nn.Module,
    exported: bytes,
    pixels: Pixels,
    *,
    card: ModelCard,
    steps: Steps = NO_STEPS,
    listener: Listener = SILENT,
) -> Checks:
    """Compare an exported model with its network, which takes ``(B, planes, H, W)``, on ``pixels`` ``(N, H, W, 3)``.

    The images run in batches of 1, 2 and 5 in turn. A float16 model has to pass twice: as onnxruntime computes it on
    the CPU, and with the rounding of a device that computes in float16 (see `with_rounding`), whose figures are
    returned.

    Raises:
        ModelError: E414 when the file violates the ONNX specification or the answers differ by more than the limits.
    """
    sessions = [ExportedModel(exported, card)]
    if card.precision == "fp16":
        sessions.append(ExportedModel(with_rounding(exported), card))
    features = FEATURES in sessions[0].outputs
    runs: list[Callable[[Pixels], Outputs]] = [session.run for session in sessions]
    runs.insert(0, partial(run_torch, model, card, features))
    rows = pixels[np.arange(max(len(pixels), sum(BATCHES))) % len(pixels)]

    def answer(start: int, stop: int) -> Arrays:
        answers = [run(rows[start:stop]) for run in runs]
        listener.progress("verify", stop, len(rows))
        return {f"{i}/{name}": values for i, outputs in enumerate(answers) for name, values in outputs.items()}

    answers = steps.rows("verified images", (exported, rows), list(_batches(len(rows))), answer)
    reference, *found = ({name: answers[f"{i}/{name}"] for name in sessions[0].outputs} for i in range(len(runs)))
    together = [session.run(rows[: max(BATCHES)]) for session in sessions]
    checks = [
        _compare(reference, mixed, alike, card.precision, pictures=len(pixels))
        for mixed, alike in zip(found, together, strict=True)
    ]
    for result in checks:
        if result.faults:
            hint = "export it with --precision fp32" if card.precision == "fp16" else None
            raise ModelError("E414", f"{card.member} ({card.precision}): {'; '.join(result.faults)}", hint=hint)
    notice_constant(reference[LOGITS][: len(pixels)], card.member, listener)
    return checks[-1]


class ExportedModel:
    """An exported model in onnxruntime on the CPU, checked against the ONNX specification first.

    Raises:
        ModelError: E414 when it violates the specification, or fails on a batch.
    """

    def __init__(self, exported: bytes, card: ModelCard) -> None:
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3
        self._member = card.member
        try:
            onnx.checker.check_model(exported, full_check=True)
            self._runtime = onnxruntime.InferenceSession(exported, options, providers=["CPUExecutionProvider"])
        except Exception as err:
            raise ModelError(
                "E414", f"{card.member}: the exported model is not valid: {cut_text(str(err), 300)}"
            ) from err
        self.outputs = [output.name for output in self._runtime.get_outputs()]

    def run(self, batch: Pixels) -> Outputs:
        """Return all outputs for ``(B, H, W, 3)`` uint8, by name."""
        try:
            return dict(zip(self.outputs, self._runtime.run(self.outputs, {INPUT: batch}), strict=True))
        except Exception as err:
            message = f"{self._member} fails on a batch of {len(batch)}: {cut_text(str(err), 300)}"
            raise ModelError("E414", message) from err


def _batches(count: int) -> Iterator[tuple[int, int]]:
    start = 0
    for size in cycle(BATCHES):
        if start >= count:
            return
        yield start, min(start + size, count)
        start += size


def run_torch(model: torch.nn.Module, card: ModelCard, features: bool, batch: Pixels) -> Outputs:
    """Return the outputs of the network itself, with channels and a normalization written independently."""
    mean, std = (torch.tensor(values, dtype=torch.float32).reshape(-1, 1, 1) for values in (card.mean, card.std))
    if card.preprocess.channels == "bgr":
        batch = np.ascontiguousarray(batch[..., ::-1])
    elif card.preprocess.channels == "grey":
        batch = np.stack([np.asarray(Image.fromarray(one).convert("L")) for one in batch])[..., np.newaxis]
    network: Any = model
    with torch.inference_mode():
        low, high = card.preprocess.scale
        image = ((torch.from_numpy(batch).permute(0, 3, 1, 2).float() - low) / (high - low) - mean) / std
        found = {LOGITS: network(image)}
        if features:
            found[FEATURES] = network.forward_features(image)
    return {name: values.numpy() for name, values in found.items()}


def _compare(reference: Outputs, mixed: Outputs, alike: Outputs, precision: Precision, *, pictures: int) -> Checks:
    """Compare one model: ``mixed`` are logits from batches of several sizes, ``alike`` from one batch."""
    classes, expected = (outputs[LOGITS][:pictures].argmax(axis=1) for outputs in (mixed, reference))
    return Checks(
        precision=precision,
        pictures=pictures,
        logits_error=relative_error(reference[LOGITS], mixed[LOGITS]),
        batch_error=relative_error(alike[LOGITS], mixed[LOGITS][: len(alike[LOGITS])]),
        classes_changed=int(np.count_nonzero(classes != expected)),
        features_error=relative_error(reference[FEATURES], mixed[FEATURES]) if FEATURES in reference else None,
    )
