"""Parity: GPUs and other runtimes must give the answers of onnxruntime on the CPU, on every machine, before use."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
from PIL import Image

from ensemble.arrays import Floats, Logits, Pixels
from ensemble.errors import DeviceError
from ensemble.events import SILENT, Listener, Notice

Run = Callable[[Pixels], Logits]
# The largest relative error of a row. Measured on photographs and on the pictures below, with ResNet-18 and
# EfficientNet-Lite0: float32 3e-6; bfloat16 0.014 and 0.12; int8 0.05 and 0.22, as each runtime rounds in places of
# its own. A broken kernel is off by 1.
LIMITS = {"fp32": 1e-4, "fp16": 0.02, "bf16": 0.15, "int8": 0.3}
# GPUs really compute in float16, and may take Winograd's algorithm for float32. Estimated from the figures above by the
# length of the mantissa, not measured: TF32, with an eighth of bfloat16's rounding, is still found out in float32.
ON_GPUS = LIMITS | {"fp32": 1e-3, "fp16": 0.05}
_COARSE = (2, 3, 4, 6, 8, 12, 16, 24)  # random colours on a grid of so many cells a side, enlarged


@dataclass(frozen=True, slots=True)
class Parity:
    """How far two runtimes differ over ``pictures``: the largest relative error, and how many classes are the same."""

    pictures: int
    error: float
    same_class: int
    limit: float
    clear_changes: int

    @property
    def holds(self) -> bool:
        """Within the limit, and no class changed where the reference leads by more than the limit."""
        return self.error <= self.limit and not self.clear_changes

    def __str__(self) -> str:
        return f"relative error {self.error:.1e} at most, {self.same_class} of {self.pictures} classes the same"


def require_parity(
    run: Run,
    reference: Run,
    size: tuple[int, int],
    *,
    who: str,
    precision: str,
    limits: Mapping[str, float] = LIMITS,
) -> Parity:
    """Ask both about the same pictures of ``size`` (height, width) px.

    Raises:
        DeviceError: E606 when the answers differ by more than ``precision`` explains.
    """
    pictures = draw_pictures(size)
    parity = compare_logits(reference(pictures), run(pictures), limit=limits[precision])
    if not parity.holds:
        raise DeviceError("E606", f"{who} differs from onnxruntime on the CPU: {parity}; {parity.limit:g} is allowed")
    return parity


def tell_parity(parity: Parity, *, who: str, listener: Listener = SILENT) -> None:
    """Give the figures as a notice, which a run keeps in its record."""
    listener.notice(Notice("I606", f"{who} against onnxruntime on the CPU: {parity}"))


def compare_logits(expected: Logits, found: Logits, *, limit: float) -> Parity:
    """Compare logits ``(N, C)``, by `relative_error` and by their classes."""
    a, classes = expected.astype(np.float64), found.argmax(axis=1)
    same = a.argmax(axis=1) == classes
    lead = (a.max(axis=1) - np.take_along_axis(a, classes[:, np.newaxis], axis=1)[:, 0]) / row_scales(expected)
    return Parity(len(a), relative_error(expected, found), int(same.sum()), limit, int((lead > limit).sum()))


def draw_pictures(size: tuple[int, int]) -> Pixels:
    """Eight pictures ``(8, H, W, 3)`` uint8, from two blurred colours to fine grain; always the same."""
    generator = np.random.default_rng(0)
    grids = [generator.integers(0, 256, (side, side, 3), dtype=np.uint8) for side in _COARSE]
    enlarged = [Image.fromarray(grid).resize((size[1], size[0]), Image.Resampling.BICUBIC) for grid in grids]
    return np.stack([np.asarray(image) for image in enlarged])


def relative_error(wanted: Logits, found: Logits) -> float:
    """The largest difference over rows ``(N, ...)``, relative to `row_scales`; NaN if any value is not finite."""
    a, b = (values.reshape(len(values), -1).astype(np.float64) for values in (wanted, found))
    if not (np.isfinite(a).all() and np.isfinite(b).all()):
        return float("nan")
    return float((np.abs(a - b).max(axis=1) / row_scales(wanted)).max())


def row_scales(wanted: Logits) -> Floats:
    """By what the errors of each row of ``(N, ...)`` are measured: its largest magnitude, at least the median of those.

    So logits near zero (a binary classifier in doubt) are not blown up, and one row of huge values does not hide the
    errors of the others.
    """
    largest = np.abs(wanted.reshape(len(wanted), -1).astype(np.float64)).max(axis=1)
    scales: Floats = np.maximum(largest, np.median(largest)) + np.finfo(np.float32).tiny
    return scales
