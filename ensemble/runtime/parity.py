"""Parity: compare the logits of GPUs and other runtimes with onnxruntime's on the CPU, on every machine, before use.

An int8 model is compared with its own logits on the machine that exported it, which its card keeps.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
from PIL import Image

from ensemble.arrays import Floats, Logits, Pixels
from ensemble.card import ModelCard
from ensemble.errors import DeviceError, ModelError
from ensemble.events import SILENT, Listener, Notice

Run = Callable[[Pixels], Logits]
# The largest relative error of a row. Measured on photographs and on the test images below, with ResNet-18 and
# EfficientNet-Lite0: float32 3e-6; bfloat16 0.014 and 0.12; int8 0.05 and 0.22, because each runtime rounds at
# different places. A broken kernel is off by 1.
LIMITS = {"fp32": 1e-4, "fp16": 0.02, "bf16": 0.15, "int8": 0.3}
# GPUs compute in real float16, and may use Winograd's algorithm in float32. Estimated from the figures above by the
# length of the mantissa, not measured: TF32, with an eighth of bfloat16's rounding, still exceeds the float32 limit.
ON_GPUS = LIMITS | {"fp32": 1e-3, "fp16": 0.05}
_COARSE = (2, 3, 4, 6, 8, 12, 16, 24)  # cells per side of a grid of random colors, enlarged
PICTURES = len(_COARSE)  # of `draw_pictures`
_NEAR_TIES = 2  # of the test images
_ROUNDING = 1e-3  # of five digits, and of float layers between those on integers
_SAME = 1e-6  # of the largest answer
# in a card's checks: of onnxruntime, and of OpenVINO where the model was judged there
_RECORDED = "logits_of_test_images"
_RECORDED_OPENVINO = "logits_of_test_images_openvino"
# there if near ties are answered in float32; the second one in cards before it had the name of the option
_IN_FLOAT32 = frozenset({"near_ties", "fp32_fallback"})


@dataclass(frozen=True, slots=True)
class Parity:
    """The difference of two runtimes over ``pictures`` images: the largest relative error, and equal top classes.

    The error and the ``clear_changes`` are those without ``near_ties`` images, see `compare_logits`.
    """

    pictures: int
    error: float
    same_class: int
    limit: float
    clear_changes: int
    near_ties: int = 0

    @property
    def holds(self) -> bool:
        """True if within the limit, and no top class changed whose lead in the reference exceeds the limit."""
        return self.error <= self.limit and not self.clear_changes

    def __str__(self) -> str:
        text = f"relative error {self.error:.1e} at most, {self.same_class} of {self.pictures} classes the same"
        return text + (f", without {self.near_ties} near a tie" if self.near_ties else "")


def require_parity(
    run: Run,
    reference: Run,
    size: tuple[int, int],
    *,
    who: str,
    precision: str,
    limits: Mapping[str, float] = LIMITS,
    near_ties: int = 0,
) -> Parity:
    """Compare two runtimes on the same test images of ``size`` (height, width) px.

    Raises:
        DeviceError: E606 when the logits differ by more than the limit of ``precision``.
    """
    pictures = draw_pictures(size)
    return require_close(reference(pictures), run(pictures), who=who, limit=limits[precision], near_ties=near_ties)


def require_close(expected: Logits, found: Logits, *, who: str, limit: float, near_ties: int = 0) -> Parity:
    """Compare logits ``(N, C)`` of a device with those of onnxruntime on the CPU.

    Raises:
        DeviceError: E606 when they differ by more than ``limit``.
    """
    parity = compare_logits(expected, found, limit=limit, near_ties=near_ties)
    if not parity.holds:
        raise DeviceError("E606", f"{who} differs from onnxruntime on the CPU: {parity}; {parity.limit:g} is allowed")
    return parity


def record_logits(run: Run, size: tuple[int, int], *, openvino: bool = False) -> dict[str, list[list[float]]]:
    """Return the logits of the test images of ``size`` (height, width) px, rounded, as an entry of a card's checks."""
    key = _RECORDED_OPENVINO if openvino else _RECORDED
    return {key: [[float(f"{value:.5g}") for value in row] for row in run(draw_pictures(size)).tolist()]}


def has_recorded_openvino(card: ModelCard) -> bool:
    """Return True if a card has the logits of test images that OpenVINO gave where the model was exported."""
    return _RECORDED_OPENVINO in card.checks


def require_recorded(run: Run, card: ModelCard, *, openvino: bool = False, listener: Listener = SILENT) -> None:
    """Compare a model's logits with those in its card, which were computed where it was exported; do nothing without.

    They are those of onnxruntime, or with ``openvino`` OpenVINO's. A difference that is allowed but larger than
    rounding is sent as a notice.

    Raises:
        DeviceError: E606 when they differ by more than the limit of the model's precision.
        ModelError: E427 when the entry of the card is not that of its classes.
    """
    key = _RECORDED_OPENVINO if openvino else _RECORDED
    if key not in card.checks:
        return
    try:
        expected = np.asarray(card.checks[key], dtype=np.float32)
    except (TypeError, ValueError) as err:
        raise ModelError("E427", f"{card.member}: the card's {key} are not numbers") from err
    if expected.shape != (PICTURES, len(card.labels)) or not np.isfinite(expected).all():
        wanted = f"{PICTURES} rows of {len(card.labels)} finite numbers"
        raise ModelError("E427", f"{card.member}: the card's {key} are not {wanted}")
    found, limit = run(draw_pictures(card.preprocess.size)), LIMITS[card.precision]
    parity = compare_logits(expected, found, limit=limit, near_ties=near_ties_of(card))
    if not parity.holds:
        message = f"{card.member} ({card.precision}) differs on this processor from its answers where it was exported"
        hint = "export it again on this machine" + (", or use --device cpu" if openvino else "")
        raise DeviceError("E606", f"{message}: {parity}; {parity.limit:g} is allowed", hint=hint)
    if parity.error > _ROUNDING or parity.near_ties:
        listener.notice(Notice("I606", f"{card.member} ({card.precision}) against its answers at export: {parity}"))


def notify_parity(parity: Parity, *, who: str, listener: Listener = SILENT) -> None:
    """Send the figures as a notice, which a run keeps in its record."""
    listener.notice(Notice("I606", f"{who} against onnxruntime on the CPU: {parity}"))


def near_ties_of(card: ModelCard) -> int:
    """Return how many test images may be near ties of a model that answers these in float32, see `compare_logits`."""
    return _NEAR_TIES if _IN_FLOAT32 & card.checks.keys() else 0


def compare_logits(expected: Logits, found: Logits, *, limit: float, near_ties: int = 0) -> Parity:
    """Compare logits ``(N, C)`` by `relative_error` and by their top classes.

    An int8 model that answers near ties in float32 has two networks: where rounding differs, an image at the threshold
    is answered by integers in one runtime and in float32 in the other, and these differed by up to 0.5 on test images
    of an EfficientNet-B3. Up to ``near_ties`` images beyond the limit are therefore left out, if no error is 1 or more.
    """
    a, classes = expected.astype(np.float64), found.argmax(axis=1)
    same = a.argmax(axis=1) == classes
    lead = (a.max(axis=1) - np.take_along_axis(a, classes[:, np.newaxis], axis=1)[:, 0]) / row_scales(expected)
    errors = row_errors(expected, found)
    beyond = (errors > limit) | (lead > limit)
    if not 0 < beyond.sum() <= near_ties or not (errors < 1).all():
        beyond[:] = False  # NaN is not below 1
    error, clear = float(errors[~beyond].max()), int((lead[~beyond] > limit).sum())
    return Parity(len(a), error, int(same.sum()), limit, clear, int(beyond.sum()))


def draw_pictures(size: tuple[int, int]) -> Pixels:
    """Return eight fixed test images ``(8, H, W, 3)`` uint8, from coarse color gradients to fine grain."""
    generator = np.random.default_rng(0)
    grids = [generator.integers(0, 256, (side, side, 3), dtype=np.uint8) for side in _COARSE]
    enlarged = [Image.fromarray(grid).resize((size[1], size[0]), Image.Resampling.BICUBIC) for grid in grids]
    return np.stack([np.asarray(image) for image in enlarged])


def relative_error(wanted: Logits, found: Logits) -> float:
    """Return the largest difference over rows ``(N, ...)``, relative to `row_scales`; NaN if a value is not finite."""
    return float(row_errors(wanted, found).max())


def row_errors(wanted: Logits, found: Logits) -> Floats:
    """Return the largest difference of each row of ``(N, ...)``, relative to `row_scales`.

    All are NaN if a value is not finite.
    """
    a, b = (values.reshape(len(values), -1).astype(np.float64) for values in (wanted, found))
    if not (np.isfinite(a).all() and np.isfinite(b).all()):
        return np.full(len(a), np.nan)
    errors: Floats = np.abs(a - b).max(axis=1) / row_scales(wanted)
    return errors


def row_scales(wanted: Logits) -> Floats:
    """Return the scale of each row of ``(N, ...)``: its largest magnitude, or the median of these if that is larger.

    So logits near zero (an undecided binary classifier) are not blown up, and one row of huge values does not hide the
    errors of the others.
    """
    largest = np.abs(wanted.reshape(len(wanted), -1).astype(np.float64)).max(axis=1)
    scales: Floats = np.maximum(largest, np.median(largest)) + np.finfo(np.float32).tiny
    return scales


def notice_constant(answers: Floats | Logits, member: str, listener: Listener) -> None:
    """Report a network that gives all of several pictures the same answers ``(N, C)``, up to rounding (W506)."""
    most = float(np.abs(answers).max())
    if len(answers) < 2 or float(np.ptp(answers, axis=0).max()) > _SAME * most:
        return
    what = "the same" if most else "all zero"
    message = f"{member}: the answers to {len(answers)} pictures are {what}, as of a network without its weights"
    listener.notice(Notice("W506", message))
