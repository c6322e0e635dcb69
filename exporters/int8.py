"""Quantise a float32 model to int8, with as few layers left in float32 as the accuracy gate needs."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache, partial
from typing import Any

import numpy as np
import onnx

from ensemble.arrays import Classes, Logits, Pixels
from ensemble.card import ModelCard
from ensemble.errors import ModelError
from ensemble.events import SILENT, Listener, Notice
from ensemble.runtime.machine import processor_name
from ensemble.runtime.model_file import LOGITS
from exporters.accuracy_gate import Verdict, judge, predict_logits
from exporters.export_steps import NO_STEPS, Steps
from exporters.int8_calibration import measure_activations
from exporters.int8_equalize import equalize
from exporters.int8_qdq import Layer, count_products, find_layers, find_tensors, prepare, quantise, suits_scheme
from exporters.int8_rounding import round_weights
from exporters.int8_schemes import ASYMMETRIC, Scheme
from exporters.int8_timing import Times, time_layers, time_nodes
from exporters.training_record import Familiar
from exporters.verify import ExportedModel

CALIBRATION = 256
MOST_IN_FLOAT = 0.5  # of the multiplications
MOST_LEADING = 0.1  # of the multiplications: of the first layers, which stay in float where that is faster
_PROBES = 16
_LEADING = 4  # layers at most
_FASTER = 0.97  # of the time: a smaller gain is noise
_OVERHEAD = 0.005  # of all layers: the cost of converting to and from integers around one that returns to float


@dataclass(frozen=True, slots=True, eq=False)
class Quantised:
    """A quantised model and its verdict.

    ``in_float`` are the layers that stayed in float32: those that do not suit the ``scheme``, the first ones where
    float32 is faster, then the one with the largest error for the time that it saves first. ``in_float_share`` is their
    share of the multiplications; ``ranges`` names how the ranges were chosen. The layers were chosen by ``chosen_on``
    images, and none of them is among those of the verdict, which are ``judged_on``.
    """

    proto: onnx.ModelProto
    verdict: Verdict
    layers: int
    in_float: tuple[str, ...]
    in_float_share: float
    calibration: int
    ranges: str
    chosen_on: int = 0
    judged_on: Familiar | None = None
    scheme: Scheme = ASYMMETRIC

    def as_dict(self) -> dict[str, Any]:
        """Return what the card keeps."""
        return {
            "gate": self.verdict.as_dict() | ({} if self.judged_on is None else {"seen": self.judged_on.as_dict()}),
            "calibration_images": self.calibration,
            "choosing_images": self.chosen_on,
            "ranges": self.ranges,
            "rounding": "second order, biases corrected",
            "layers": self.layers,
            "layers_in_float": list(self.in_float),
            "multiplications_in_float": round(self.in_float_share, 4),
            **({} if self.scheme is ASYMMETRIC else {"scheme": self.scheme.name}),
        }


@dataclass(frozen=True, slots=True, eq=False)
class Judges:
    """Images ``(N, H, W, 3)`` to evaluate on, and their true classes ``(N,)`` where they are known."""

    pixels: Pixels
    truth: Classes | None = None


@dataclass(frozen=True, slots=True)
class Harm:
    """The error of the logits when only this layer is quantised, relative to their standard deviation.

    ``saved`` is what integers save in this layer, in any unit: microseconds per image, or multiplications where the
    time on this machine says nothing, as for TensorRT.
    """

    layer: Layer
    error: float
    saved: float


def to_int8(
    proto: onnx.ModelProto,
    card: ModelCard,
    *,
    calibration: Pixels,
    choose: Judges,
    gate: Judges,
    scheme: Scheme = ASYMMETRIC,
    steps: Steps = NO_STEPS,
    listener: Listener = SILENT,
) -> Quantised:
    """Quantise a verified float32 model with ``calibration`` images ``(N, H, W, 3)``, and judge it on ``gate``.

    If the whole network on integers changes more answers on ``choose`` than half of what the gate allows, layers return
    to float32: in the order of their error for the time that they save, or from the first one on, whichever leaves the
    faster model. They are the fewest that are enough, found by bisection up to half of the multiplications. The first
    layers stay in float32 where onnxruntime is faster so. The images of the gate choose nothing. ``steps`` keeps what a
    run that does not end has computed.

    Raises:
        ModelError: E436 when the gate does not pass, or when there is nothing to quantise.
    """
    plain = prepare(proto)
    model = equalize(plain, calibration, steps=steps, listener=listener)
    layers = find_layers(model.graph)
    if not layers:
        raise _nothing_to_quantise(card, "")
    suited = tuple(layer for layer in layers if suits_scheme(model.graph, layer, scheme))
    if not suited:
        raise _nothing_to_quantise(card, f" in {scheme.name} quantization on TensorRT")
    fixed = tuple(layer.name for layer in layers if layer not in suited)
    predict = partial(_predict, card=card, steps=steps)
    reference = _serialise(plain)
    tensors = find_tensors(model.graph, suited)
    activations = measure_activations(model, tensors, calibration, steps=steps, listener=listener)
    products = count_products(model, layers)
    rounded = round_weights(model, suited, calibration, scheme=scheme, steps=steps, listener=listener)
    build = partial(quantise, model, scheme=scheme, rounded=rounded)
    few = calibration[:_PROBES]
    expected = predict(reference, few, stage="probe")
    error = partial(_error, predict=predict, pixels=few, expected=expected)
    time_model = partial(_time_model, pixels=few, steps=steps)
    candidates = {"extremes": activations.extremes(), "least squares": activations.least_squares(scheme=scheme)}
    # the range of all values comes first, so that it wins on ties
    chosen = min(candidates, key=lambda one: error(build(candidates[one], suited)))
    ranges = candidates[chosen]
    leading: tuple[str, ...] = ()
    saved: Mapping[str, float] = products
    if scheme.integer_bias:
        timed = _time(model, layers, partial(build, ranges), products, time_model, card, listener)
        leading, saved = timed.leading, timed.saved
    unsuited, fixed = len(fixed), (*fixed, *leading)
    suited = tuple(layer for layer in suited if layer.name not in leading)
    answers = predict(reference, choose.pixels, listener=listener)

    def attempt(returned: tuple[str, ...]) -> Quantised:
        in_float = (*fixed, *returned)
        found = build(ranges, [layer for layer in layers if layer.name not in in_float])
        verdict = judge("int8", answers, predict(_serialise(found), choose.pixels, listener=listener), choose.truth)
        share = sum(products[name] for name in in_float) / sum(products.values())
        counts = (len(calibration), chosen, len(choose.pixels))
        return Quantised(found, verdict, len(layers), in_float, share, *counts, scheme=scheme)

    def pass_gate(found: Quantised, harms: Sequence[Harm] = ()) -> Quantised:
        judged = replace(found, verdict=_judge_on(gate, reference, found.proto, predict, listener))
        if judged.verdict.faults:
            raise _failed(card, judged, harms)
        return judged

    whole = attempt(())
    if whole.verdict.is_safe:
        return _tell_in_float(pass_gate(whole), card, unsuited, listener)
    harms = _rank(partial(build, ranges), saved, suited, error, listener)
    # from the first layer on there is one border to integers, where conversions take time; errors of early layers pass
    # through all others
    orders = [tuple(harm.layer.name for harm in harms), tuple(layer.name for layer in suited)]
    found, most = _search(orders if scheme.integer_bias else orders[:1], fixed, products, attempt)
    if not found:
        raise _failed(card, most, harms)
    return _tell_in_float(pass_gate(_fastest(found, time_model), harms), card, unsuited, listener)


def _search(
    orders: Sequence[tuple[str, ...]],
    fixed: Sequence[str],
    products: Mapping[str, int],
    attempt: Callable[[tuple[str, ...]], Quantised],
) -> tuple[list[Quantised], Quantised]:
    """Return the model with the fewest layers in float by each order in which they return, and the last one with most.

    An order is left out if the gate refuses it with `MOST_IN_FLOAT` of the multiplications in float.
    """
    found = []
    for order in orders:
        so_far = sum(products[name] for name in fixed) + np.cumsum([products[name] for name in order])
        most = attempt(order[: int(np.searchsorted(so_far, MOST_IN_FLOAT * sum(products.values()), side="right"))])
        if not most.verdict.faults:
            found.append(_fewest_in_float(order, most, attempt, fixed=len(fixed)))
    return found, most


def _fastest(found: Sequence[Quantised], time_model: Callable[[onnx.ModelProto], Times]) -> Quantised:
    """Return the model that takes the least time, the first one unless another is faster by more than the noise."""
    if len(found) == 1:
        return found[0]
    spent = [time_model(one.proto).total for one in found]
    best = min(range(len(found)), key=spent.__getitem__)
    return found[best if spent[best] < _FASTER * spent[0] else 0]


@dataclass(frozen=True, slots=True)
class _Timed:
    """The first layers, which are faster in float, and the microseconds that integers save in each layer."""

    leading: tuple[str, ...]
    saved: Mapping[str, float]


def _time(
    model: onnx.ModelProto,
    layers: Sequence[Layer],
    build: Callable[[Sequence[Layer]], onnx.ModelProto],
    products: Mapping[str, int],
    time_model: Callable[[onnx.ModelProto], Times],
    card: ModelCard,
    listener: Listener,
) -> _Timed:
    """Time the network in float32, on integers, and with its first layers in float32."""
    plain = time_model(model)
    tried = [time_model(build(layers))]
    so_far = np.cumsum([products[layer.name] for layer in layers]) / sum(products.values())
    for count in range(1, 1 + min(_LEADING, int(np.searchsorted(so_far, MOST_LEADING, side="right")))):
        tried.append(time_model(build(layers[count:])))
        listener.progress("time layers", count, _LEADING)
    best = min(range(len(tried)), key=lambda count: tried[count].total)
    if tried[best].total > _FASTER * tried[0].total:
        best = 0
    leading = tuple(layer.name for layer in layers[:best])
    if leading:
        message = (
            f"{', '.join(leading)} in float is faster: {tried[best].total / 1000:.2f} ms an image against "
            f"{tried[0].total / 1000:.2f} with all layers on integers and {plain.total / 1000:.2f} with none "
            f"({processor_name()}, one core)"
        )
        listener.notice(Notice("I496", f"{card.member}: {message}"))
    slow, fast = (time_layers(model, layers, times) for times in (plain, tried[best]))
    return _Timed(leading, {name: max(0.0, slow[name] - fast[name]) for name in slow})


def _fewest_in_float(
    order: tuple[str, ...], passing: Quantised, attempt: Callable[[tuple[str, ...]], Quantised], *, fixed: int
) -> Quantised:
    """Return the model that is safe with the fewest layers of ``order`` in float, by bisection below ``passing``.

    The first ``fixed`` layers of each stay in float in any case.
    """
    fails, passes = 0, len(passing.in_float) - fixed
    while passes - fails > 1:
        middle = (fails + passes) // 2
        tried = attempt(order[:middle])
        if not tried.verdict.is_safe:
            fails = middle
        else:
            passing, passes = tried, middle
    return passing


def _tell_in_float(found: Quantised, card: ModelCard, fixed: int, listener: Listener) -> Quantised:
    if found.in_float:
        kept = (
            f"{len(found.in_float)} of {found.layers} layers with {found.in_float_share:.1%} of the multiplications "
            f"stay in float: {', '.join(found.in_float)}"
        )
        without = f" (TensorRT has no kernels for the first {fixed})" if fixed else ""
        listener.notice(Notice("I437", f"{card.member}: {kept}{without}"))
    return found


def _nothing_to_quantise(card: ModelCard, where: str) -> ModelError:
    message = f"{card.arch} has no convolution or matrix product to quantize{where}"
    return ModelError("E436", f"{card.member} (int8): {message}")


def _judge_on(
    gate: Judges, reference: bytes, proto: onnx.ModelProto, predict: Callable[..., Logits], listener: Listener
) -> Verdict:
    """Compare the chosen model with float32 on images that have chosen nothing."""
    expected = predict(reference, gate.pixels, listener=listener)
    found = predict(_serialise(proto), gate.pixels, listener=listener)
    return judge("int8", expected, found, gate.truth)


def _failed(card: ModelCard, tried: Quantised, harms: Sequence[Harm]) -> ModelError:
    return ModelError(
        "E436",
        f"{card.member} (int8): {'; '.join(tried.verdict.faults)}, with {len(tried.in_float)} of "
        f"{tried.layers} layers and {tried.in_float_share:.0%} of the multiplications in float",
        details=tuple(
            f"{harm.layer.name}: alone on integers, it changes the logits by {harm.error:.1%}" for harm in harms
        ),
    )


def _rank(
    build: Callable[[Sequence[Layer]], onnx.ModelProto],
    saved: Mapping[str, float],
    layers: Sequence[Layer],
    error_of: Callable[[onnx.ModelProto], float],
    listener: Listener,
) -> tuple[Harm, ...]:
    """Sort the layers by squared error for what each one saves, highest first.

    Errors of independent layers add up as squares, so layers return to float by their squared error per microsecond, as
    in the greedy solution of a knapsack problem.
    """
    harms, least = [], _OVERHEAD * max(sum(saved.values()), 1.0)
    for number, layer in enumerate(layers):
        harms.append(Harm(layer, error_of(build([layer])), saved[layer.name]))
        listener.progress("rank layers", number + 1, len(layers))
    return tuple(sorted(harms, key=lambda harm: harm.error**2 / (harm.saved + least), reverse=True))


def _error(model: onnx.ModelProto, *, predict: Callable[..., Logits], pixels: Pixels, expected: Logits) -> float:
    """Return the root mean square error of the logits over their standard deviation; infinite if one is not finite."""
    found = predict(_serialise(model), pixels, stage="probe").astype(np.float64)
    error = float(np.sqrt(np.mean((found - expected) ** 2)) / (np.std(expected) + np.finfo(np.float32).tiny))
    return error if np.isfinite(error) else float("inf")


def _predict(
    model: bytes, pixels: Pixels, *, card: ModelCard, steps: Steps, stage: str = "gate", listener: Listener = SILENT
) -> Logits:
    """Return the logits ``(N, C)`` of a serialized model, whose session is started unless all of them are kept."""
    start = cache(lambda: ExportedModel(model, card))
    return predict_logits(
        lambda batch: start().run(batch)[LOGITS], pixels, model=model, steps=steps, stage=stage, listener=listener
    )


def _time_model(proto: onnx.ModelProto, *, pixels: Pixels, steps: Steps) -> Times:
    """Return the times of a model: those that an earlier run has measured, so that it decides as that one."""
    return Times(steps.values("timings", (proto, pixels), lambda: dict(time_nodes(proto, pixels).by_node)))


def _serialise(proto: onnx.ModelProto) -> bytes:
    data: bytes = proto.SerializeToString(deterministic=True)
    return data
