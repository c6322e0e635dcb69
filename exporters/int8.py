"""Quantize a float32 model to int8, with as few layers left in float32 as the accuracy gate needs."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
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
from exporters.int8_qdq import Layer, count_products, find_layers, find_tensors, prepare, quantize, suits_scheme
from exporters.int8_rounding import round_weights
from exporters.int8_schemes import ASYMMETRIC, Scheme
from exporters.int8_search import Harm, LayerOrder, find_blocks, rank_layers, search
from exporters.int8_timing import Times, time_layers, time_nodes
from exporters.training_record import Familiar
from exporters.verify import ExportedModel

CALIBRATION = 256
MOST_IN_FLOAT = 0.5  # of the multiplications
MOST_LEADING = 0.1  # of the multiplications: of the first layers, which stay in float where that is faster
_PROBES = 16
_LEADING = 4  # layers at most
_FASTER = 0.97  # of the time: a smaller gain is noise


@dataclass(frozen=True, slots=True, eq=False)
class Quantized:
    """A quantized model and its verdict.

    ``in_float`` are the layers that stayed in float32: those that do not suit the ``scheme``, the first ones where
    float32 is faster, then the one with the largest error for the time that it saves first. ``in_float_share`` is their
    share of the multiplications; ``ranges`` names how the ranges were chosen. The layers were chosen by ``chosen_on``
    images, and none of them is among those of the verdict, which are ``judged_on``. With ``float_sums`` the sums of
    residual branches are in float32.
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
    float_sums: bool = False

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
            **({"residual_sums": "float32"} if self.float_sums else {}),
            **({} if self.scheme is ASYMMETRIC else {"scheme": self.scheme.name}),
        }


@dataclass(frozen=True, slots=True, eq=False)
class Judges:
    """Images ``(N, H, W, 3)`` to evaluate on, and their true classes ``(N,)`` where they are known.

    ``least`` is the share of the answers that must stay those of float32; None is the usual one.
    """

    pixels: Pixels
    truth: Classes | None = None
    least: float | None = None

    def compare(self, reference: Logits, found: Logits) -> Verdict:
        """Compare logits ``(N, C)`` of these images with those of float32."""
        return replace(judge("int8", reference, found, self.truth), least=self.least)


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
) -> Quantized:
    """Quantize a verified float32 model with ``calibration`` images ``(N, H, W, 3)``, and judge it on ``gate``.

    If the whole network on integers changes more answers on ``choose`` than half of what the gate allows, the sums of
    residual branches are computed in float32, and if this is not enough, layers return to float32: in the order of
    their error for the time that they save, from the first one on, or in blocks, whichever leaves the fastest model
    (`exporters.int8_search`). They are the fewest that are enough, up to half of the multiplications. The first layers
    stay in float32 where onnxruntime is faster so. The images of the gate choose nothing. ``steps`` keeps what a run
    that does not end has computed.

    Raises:
        ModelError: E436 when the gate does not pass, or when there is nothing to quantize.
    """
    plain = prepare(proto)
    model = equalize(plain, calibration, steps=steps, listener=listener)
    layers = find_layers(model.graph)
    if not layers:
        raise _nothing_to_quantize(card, "")
    suited = tuple(layer for layer in layers if suits_scheme(model.graph, layer, scheme))
    if not suited:
        raise _nothing_to_quantize(card, f" in {scheme.name} quantization on TensorRT")
    fixed = tuple(layer.name for layer in layers if layer not in suited)
    predict = partial(_predict, card=card, steps=steps)
    reference = _serialize(plain)
    tensors = find_tensors(model.graph, suited)
    activations = measure_activations(model, tensors, calibration, steps=steps, listener=listener)
    products = count_products(model, layers)
    rounded = round_weights(model, suited, calibration, scheme=scheme, steps=steps, listener=listener)
    build = partial(quantize, model, scheme=scheme, rounded=rounded)
    few = calibration[:_PROBES]
    expected = predict(reference, few, stage="probe")
    error = partial(_error, predict=predict, pixels=few, expected=expected)
    time_model = partial(_time_model, pixels=few, steps=steps)
    # the range of all values comes first, so that it wins on ties
    candidates = {"extremes": activations.extremes(), "least squares": activations.least_squares(scheme=scheme)}
    chosen, ranges = min(candidates.items(), key=lambda one: error(build(one[1], suited)))
    timed = _Timed((), products)
    if scheme.integer_bias:
        timed = _time(model, layers, partial(build, ranges), products, time_model, card, listener)
    unsuited, fixed = len(fixed), (*fixed, *timed.leading)
    suited = tuple(layer for layer in suited if layer.name not in timed.leading)
    answers = predict(reference, choose.pixels, listener=listener)

    has_sums = scheme.integer_bias and any(model.graph.node[i].op_type == "Add" for one in suited for i in one.nodes)

    def attempt(returned: tuple[str, ...], *, float_sums: bool = has_sums) -> Quantized:
        in_float = (*fixed, *returned)
        found = build(ranges, [layer for layer in layers if layer.name not in in_float], float_sums=float_sums)
        verdict = choose.compare(answers, predict(_serialize(found), choose.pixels, listener=listener))
        share = sum(products[name] for name in in_float) / sum(products.values())
        counts = (len(layers), in_float, share, len(calibration), chosen, len(choose.pixels))
        return Quantized(found, verdict, *counts, scheme=scheme, float_sums=float_sums)

    def pass_gate(found: Quantized, harms: Sequence[Harm] = ()) -> Quantized:
        judged = replace(found, verdict=_judge_on(gate, reference, found.proto, predict, listener))
        if judged.verdict.faults:
            raise _failed(card, judged, harms)
        return _tell_in_float(judged, card, unsuited, listener)

    for float_sums in (False, True) if has_sums else (False,):
        whole = attempt((), float_sums=float_sums)
        if whole.verdict.is_safe:
            return pass_gate(whole)
    alone = partial(build, ranges, float_sums=has_sums)
    harms, orders = _orders(model, suited, timed.saved, lambda some: error(alone(some)), scheme, listener)
    found, most = search(orders, fixed, products, attempt, most_in_float=MOST_IN_FLOAT)
    if not found:
        raise _failed(card, most, harms)
    return pass_gate(_fastest(found, time_model), harms)


def _orders(
    model: onnx.ModelProto,
    layers: Sequence[Layer],
    saved: Mapping[str, float],
    error_of: Callable[[Collection[Layer]], float],
    scheme: Scheme,
    listener: Listener,
) -> tuple[tuple[Harm, ...], list[LayerOrder]]:
    """Return what each layer alone changes, and the orders in which layers return to float32: for TensorRT only one."""
    rank = partial(rank_layers, saved=saved, error_of=error_of, listener=listener)
    harms = rank([(layer,) for layer in layers])
    # from the first layer on there is one border to integers, where conversions take time; errors of early layers pass
    # through all others
    forward = tuple((layer.name,) for layer in layers)
    blocks = rank(find_blocks(model.graph, layers), stage="rank blocks") if scheme.integer_bias else ()
    orders = [tuple(harm.names for harm in harms), forward, tuple(harm.names for harm in blocks)]
    return harms, [order for order in orders if order][: None if scheme.integer_bias else 1]


def _fastest(found: Sequence[Quantized], time_model: Callable[[onnx.ModelProto], Times]) -> Quantized:
    """Return the model that takes the least time, the first one unless another is faster by more than the noise."""
    if len(found) == 1:
        return found[0]
    spent = [time_model(one.proto).total for one in found]
    best = min(range(len(found)), key=spent.__getitem__)
    return found[best if spent[best] < _FASTER * spent[0] else 0]


@dataclass(frozen=True, slots=True)
class _Timed:
    """The first layers, which are faster in float, and what integers save in each layer: microseconds, where timed."""

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


def _tell_in_float(found: Quantized, card: ModelCard, fixed: int, listener: Listener) -> Quantized:
    parts = []
    if found.in_float:
        without = f" (TensorRT has no kernels for the first {fixed})" if fixed else ""
        parts.append(
            f"{len(found.in_float)} of {found.layers} layers with {found.in_float_share:.1%} of the multiplications "
            f"stay in float: {', '.join(found.in_float)}{without}"
        )
    if found.float_sums:
        parts.append("the sums of residual branches are in float")
    if parts:
        listener.notice(Notice("I437", f"{card.member}: {'; '.join(parts)}"))
    return found


def _nothing_to_quantize(card: ModelCard, where: str) -> ModelError:
    message = f"{card.arch} has no convolution or matrix product to quantize{where}"
    return ModelError("E436", f"{card.member} (int8): {message}")


def _judge_on(
    gate: Judges, reference: bytes, proto: onnx.ModelProto, predict: Callable[..., Logits], listener: Listener
) -> Verdict:
    """Compare the chosen model with float32 on images that have chosen nothing."""
    expected = predict(reference, gate.pixels, listener=listener)
    found = predict(_serialize(proto), gate.pixels, listener=listener)
    return gate.compare(expected, found)


def _failed(card: ModelCard, tried: Quantized, harms: Sequence[Harm]) -> ModelError:
    return ModelError(
        "E436",
        f"{card.member} (int8): {'; '.join(tried.verdict.faults)}, with {len(tried.in_float)} of "
        f"{tried.layers} layers and {tried.in_float_share:.0%} of the multiplications in float",
        hint=tried.verdict.hint,
        details=tuple(
            f"{harm.names[0]}: alone on integers, it changes the logits by {harm.error:.1%}" for harm in harms
        ),
    )


def _error(model: onnx.ModelProto, *, predict: Callable[..., Logits], pixels: Pixels, expected: Logits) -> float:
    """Return the root mean square error of the logits over their standard deviation; infinite if one is not finite."""
    found = predict(_serialize(model), pixels, stage="probe").astype(np.float64)
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


def _serialize(proto: onnx.ModelProto) -> bytes:
    data: bytes = proto.SerializeToString(deterministic=True)
    return data
