"""Quantize a float32 model to int8, with as few layers left in float32 as the accuracy gate needs."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import onnx

from ensemble.arrays import Logits, Pixels
from ensemble.card import ModelCard, NearTies, Quantization
from ensemble.errors import ModelError, OptionError
from ensemble.events import SILENT, Listener, Notice
from ensemble.runtime.machine import processor_name
from ensemble.runtime.openvino import openvino_version
from exporters.accuracy_gate import MARGIN, WIDE_MARGIN, Verdict, predict_logits
from exporters.export_steps import NO_STEPS, Steps
from exporters.int8_calibration import measure_activations
from exporters.int8_engines import Engines, start_engine, time_network
from exporters.int8_equalize import equalize
from exporters.int8_layers import Layer, count_products, find_layers, has_activations, prepare
from exporters.int8_near_ties import MOST_AGAIN
from exporters.int8_qdq import find_tensors, quantize, suits_scheme
from exporters.int8_rounding import round_weights
from exporters.int8_schemes import ASYMMETRIC, OPENVINO, SCHEMES, Scheme
from exporters.int8_select import FASTER, Quantized, Samples, Selector, serialize
from exporters.int8_timing import Times, time_layers

MOST_LEADING = 0.1  # of the multiplications: of the first layers, which stay in float where that is faster
_PROBES = 16
_LEADING = 4  # layers at most
# of one core: that float32 may take for further images
_SECONDS_OTHERS = 10
_SECONDS_OTHERS_OPENVINO = 5  # whose networks are large, and judged on fewer images


def choose_scheme(
    proto: onnx.ModelProto, card: ModelCard, quantization: Quantization | None, listener: Listener
) -> Scheme:
    """Return the scheme that the user names; else OpenVINO's, where the network gains by it and OpenVINO runs it.

    Raises:
        OptionError: E204 when OpenVINO's is named and the model takes images that ens runs in ONNX Runtime alone.
    """
    kept = card.preprocess.kept
    if quantization == "openvino" and kept:
        message = (
            f"{card.member} takes images of {card.preprocess.planes} channels as they are, "
            "in ONNX Runtime alone: --quantization openvino is for OpenVINO"
        )
        raise OptionError("E204", message, hint="give --quantization asymmetric")
    if quantization is not None:
        return SCHEMES[quantization]
    if not has_activations(proto.graph):
        return ASYMMETRIC
    cause = "takes the channels of the files as they are, in ONNX Runtime alone" if kept else ""
    if not cause and openvino_version() == "missing":
        cause = "is not quantized for OpenVINO (--quantization openvino), which is not installed"
    if not cause:
        try:
            start_engine(serialize(proto), card, OPENVINO)
        except ModelError as err:
            cause = f"is not quantized for OpenVINO, which does not run it ({err.message})"
    if cause:
        rest = f"this file {cause}"
    else:
        rest = "this file is quantized for OpenVINO (--device openvino); --quantization asymmetric is for onnxruntime"
    slow = f"{card.member}: onnxruntime computes activation functions such as SiLU on rounded values, and slowly"
    listener.notice(Notice("I477", f"{slow}; {rest}"))
    return ASYMMETRIC if cause else OPENVINO


def to_int8(
    proto: onnx.ModelProto,
    card: ModelCard,
    samples: Samples,
    *,
    scheme: Scheme = ASYMMETRIC,
    near_ties: NearTies = "int8",
    steps: Steps = NO_STEPS,
    listener: Listener = SILENT,
) -> Quantized:
    """Quantize a verified float32 model with images that calibrate, and judge it on others.

    Where the whole network on integers changes too many answers of the images that choose, near ties are answered in
    float32 if ``near_ties`` says so (`exporters.int8_near_ties`), up to a tenth of images. If this is too little,
    more of the network is exact, in this order: the sums of residual branches and their terms are computed in float32;
    inputs are stored in two terms, those first that gain most; layers return to float32, in the order of their error
    for the time that they save, from the first one on, or in blocks, whichever leaves the fastest model
    (`exporters.int8_search`). It is as little as is enough, and at most half of the multiplications are in float32. The
    first layers stay in float32 where onnxruntime is faster so.

    Too many are more than two thirds of what the gate allows; with spare images more than three quarters. If the gate
    refuses the model then, its images choose the next one as well, which the spare ones judge: no image that has chosen
    judges. ``steps`` keeps what a run that does not end has computed.

    Raises:
        ModelError: E436 when the gate does not pass, or when there is nothing to quantize.
    """
    work = _prepare(proto, card, samples.calibration, scheme, steps, listener)
    gate, spare = samples.gate, samples.spare
    if near_ties == "fp32" and scheme.integer_bias and len(proto.graph.output) == 1:
        work = replace(work, most_again=MOST_AGAIN)
    choose = replace(samples.choose, margin=MARGIN if spare is None else WIDE_MARGIN)
    found = work.select(choose)
    judged = work.judge_on(gate, found)
    if judged.verdict.faults and spare is not None:
        listener.notice(Notice("I489", f"{card.member}: {judged.verdict.faults[0]}; the int8 layers are chosen again"))
        found = work.select(replace(choose.joined(gate), margin=MARGIN))
        judged = work.judge_on(spare(), found)
    if judged.verdict.faults:
        raise work.failed(judged)
    return work.tell_in_float(judged)


def _prepare(
    proto: onnx.ModelProto, card: ModelCard, calibration: Pixels, scheme: Scheme, steps: Steps, listener: Listener
) -> Selector:
    """Measure the activations of a float32 model, round its weights, choose the ranges and time its layers."""
    plain = prepare(proto)
    model = equalize(plain, calibration, nonlinear=scheme.inputs_only, steps=steps, listener=listener)
    layers = find_layers(model.graph, with_gates=not scheme.inputs_only)
    if not layers:
        raise _nothing_to_quantize(card, "")
    suited = tuple(layer for layer in layers if suits_scheme(model.graph, layer, scheme))
    if not suited:
        raise _nothing_to_quantize(card, f" in {scheme.name} quantization on TensorRT")
    engines = Engines(card, scheme)
    predict = partial(_predict, engines=engines, steps=steps)
    reference = serialize(plain)
    tensors = find_tensors(model.graph, suited, scheme=scheme)
    activations = measure_activations(model, tensors, calibration, steps=steps, listener=listener)
    products = count_products(model, layers)
    rounded = round_weights(model, suited, calibration, scheme=scheme, steps=steps, listener=listener)
    build = partial(quantize, model, scheme=scheme, rounded=rounded)
    few = calibration[:_PROBES]
    expected = predict(reference, few, stage="probe")
    error = partial(_error, predict=predict, pixels=few, expected=expected)
    time_model = partial(_time_model, engines=engines, pixels=few, steps=steps)
    # the range of all values comes first, so that it wins on ties
    candidates = {"extremes": activations.extremes(), "least squares": activations.least_squares(scheme=scheme)}
    chosen, ranges = min(candidates.items(), key=lambda one: error(build(one[1], suited)))
    timed = _Timed((), products, 0.0)
    if scheme.inputs_only:
        whole = partial(build, ranges, layers)
        timed = replace(timed, plain=_time_whole(plain, whole, time_model, few, card, steps, listener))
    elif scheme.integer_bias:
        timed = _time(model, layers, partial(build, ranges), products, time_model, card, listener)
    seconds = _SECONDS_OTHERS_OPENVINO if scheme.inputs_only else _SECONDS_OTHERS
    fixed = tuple(layer.name for layer in layers if layer not in suited)
    return Selector(
        card,
        model,
        layers,
        tuple(layer for layer in suited if layer.name not in timed.leading),
        fixed,
        (*fixed, *timed.leading),
        timed.saved,
        products,
        ranges,
        Quantized(model, Verdict("int8", 0, 0), len(layers), (), 0.0, len(calibration), chosen, scheme=scheme),
        partial(build, ranges),
        error,
        time_model,
        partial(predict, listener=listener),
        reference,
        plain,
        timed.plain,
        int(seconds * 1e6 / timed.plain) if timed.plain else 0,
        0.0,
        listener,
    )


@dataclass(frozen=True, slots=True)
class _Timed:
    """The first layers, which are faster in float, and what integers save in each layer: microseconds, where timed.

    ``plain`` is the time of the network in float32.
    """

    leading: tuple[str, ...]
    saved: Mapping[str, float]
    plain: float


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
    if tried[best].total > FASTER * tried[0].total:
        best = 0
    leading = tuple(layer.name for layer in layers[:best])
    if leading:
        message = (
            f"{', '.join(leading)} in float is faster: {tried[best].total / 1000:.2f} ms an image against "
            f"{tried[0].total / 1000:.2f} with all layers on integers and {plain.total / 1000:.2f} with none "
            f"({processor_name()}, one core)"
        )
        listener.notice(Notice("I496", f"{card.member}: {message}"))
    if tried[best].total > FASTER * plain.total:
        listener.notice(
            Notice(
                "W490",
                f"{card.member}: {tried[best].total / 1000:.3g} ms an image on integers against "
                f"{plain.total / 1000:.3g} in float32 ({processor_name()}, one core)",
            )
        )
    slow, fast = (time_layers(model, layers, times) for times in (plain, tried[best]))
    return _Timed(leading, {name: max(0.0, slow[name] - fast[name]) for name in slow}, plain.total)


def _time_whole(
    plain: onnx.ModelProto,
    build: Callable[[], onnx.ModelProto],
    time_model: Callable[[onnx.ModelProto], Times],
    pixels: Pixels,
    card: ModelCard,
    steps: Steps,
    listener: Listener,
) -> float:
    """Time the network in float32 and on integers, say both times, and return the first in microseconds."""
    model = build()
    before, after = time_model(plain).total, time_model(model).total
    elsewhere = _time_model(model, engines=Engines(card, ASYMMETRIC), pixels=pixels, steps=steps).total
    text = (
        f"{card.member}: in OpenVINO {after / 1000:.3g} ms an image on integers against {before / 1000:.3g} in "
        f"float32, in ONNX Runtime {elsewhere / 1000:.3g} ({processor_name()}, one core)"
    )
    listener.notice(Notice("W490" if after > FASTER * before else "I476", text))
    return before


def _nothing_to_quantize(card: ModelCard, where: str) -> ModelError:
    message = f"{card.arch} has no convolution or matrix product to quantize{where}"
    return ModelError("E436", f"{card.member} (int8): {message}")


def _error(model: onnx.ModelProto, *, predict: Callable[..., Logits], pixels: Pixels, expected: Logits) -> float:
    """Return the root mean square error of the logits over their standard deviation; infinite if one is not finite."""
    found = predict(serialize(model), pixels, stage="probe").astype(np.float64)
    error = float(np.sqrt(np.mean((found - expected) ** 2)) / (np.std(expected) + np.finfo(np.float32).tiny))
    return error if np.isfinite(error) else float("inf")


def _predict(
    model: bytes,
    pixels: Pixels,
    *,
    engines: Engines,
    steps: Steps,
    stage: str = "evaluate",
    listener: Listener = SILENT,
) -> Logits:
    """Return the logits ``(N, C)`` of a serialized model, which is started unless all of them are kept."""

    def run(batch: Pixels) -> Logits:
        return engines.start(model)(batch)

    return predict_logits(
        run, pixels, model=model, steps=steps, stage=stage, parallel=engines.parallel, listener=listener
    )


def _time_model(proto: onnx.ModelProto, *, engines: Engines, pixels: Pixels, steps: Steps) -> Times:
    """Return the times of a model: those that an earlier run has measured, so that it decides as that one."""
    parts = (proto, pixels, engines.scheme.name)
    return Times(steps.values("timings", parts, lambda: dict(time_network(proto, engines, pixels).by_node)))
