"""Export a checkpoint to one self-describing .onnx file, verified before it is put in place."""

from __future__ import annotations

import json
import time
import warnings
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from functools import cache, partial
from importlib.metadata import version
from pathlib import Path
from typing import Any, cast

import numpy as np
import onnx
import torch
from google.protobuf.message import Message

from checkpoints.loading.channels import network_channels
from checkpoints.loading.open import Checkpoint, build_model
from ensemble.arrays import Logits, Pixels
from ensemble.card import METADATA_KEY, ModelCard, Preprocess
from ensemble.errors import ModelError, OptionError, cut_text
from ensemble.events import SILENT, Listener, Notice
from ensemble.files import require_writable, write_atomic
from ensemble.images.face_crop import prepare_image
from ensemble.images.planes import as_planes
from ensemble.runtime.machine import processor_name
from ensemble.runtime.model_file import INPUT, LOGITS
from ensemble.runtime.parity import record_logits
from ensemble.runtime.zero_padding import keep_padded_zeros
from exporters.accuracy_gate import ImageSet, Verdict, judge, load_images, predict_logits
from exporters.conditional_convolutions import with_plain_convolutions
from exporters.export_steps import NO_STEPS, Arrays, Steps
from exporters.fp16 import to_half, with_rounding
from exporters.gate_inputs import GateInputs, read_gate
from exporters.int8 import choose_scheme, to_int8
from exporters.int8_engines import start_engine
from exporters.int8_layers import count_products, find_layers
from exporters.int8_schemes import ASYMMETRIC, OPENVINO, Scheme
from exporters.int8_select import Judges, Quantized, Samples
from exporters.make_card import DEFAULTS, ExportOptions, describe_settings, make_card
from exporters.synthetic_images import render_pictures
from exporters.verify import FEATURES, Checks, ExportedModel, run_torch, verify

__all__ = ["DEFAULTS", "ExportOptions", "Exported", "ImageSet", "export"]

OPSET = 20
MOST_PICTURES = 64


@dataclass(frozen=True, slots=True)
class Exported:
    """An exported model: its file, its card, the figures of the verification, and the seconds that the export took.

    ``verdict`` is that of the accuracy gate on real images; None without one.
    """

    path: Path
    card: ModelCard
    checks: Checks
    seconds: float
    verdict: Verdict | None = None

    def describe(self) -> str:
        """Return one line: the file, its architecture, on how many images it was verified and how near it came."""
        checks = self.checks
        judged = f"; {self.verdict}" if self.verdict else ""
        same = "the same classes" if not checks.classes_changed else f"{checks.classes_changed} other classes"
        verified = f"verified on {checks.pictures} images: logits within {checks.logits_error:.1e} of PyTorch's, {same}"
        return f"{self.path}  {self.card.arch}  {verified}{judged}  {self.seconds:.1f} s"

    def as_dict(self) -> dict[str, object]:
        """Return JSON-ready values."""
        return {
            "verified": {
                "images": self.checks.pictures,
                "relative_error_of_logits": self.checks.logits_error,
                "classes_changed": self.checks.classes_changed,
            },
            "path": str(self.path),
            "card": json.loads(self.card.to_json()),
            "checks": self.card.checks,
            "seconds": self.seconds,
        }


def export(
    checkpoint: Checkpoint,
    folder: Path,
    *,
    options: ExportOptions = DEFAULTS,
    check_images: ImageSet | None = None,
    gate_images: ImageSet | None = None,
    truth: Path | None = None,
    steps: Steps = NO_STEPS,
    listener: Listener = SILENT,
) -> Exported:
    """Write ``<folder>/<member>.onnx``: uint8 images ``(batch, H, W, 3)`` in, float32 logits ``(batch, C)`` out.

    A model of the file's own channels takes ``(batch, H, W, channels)`` float32, without any conversion before.

    The file is verified on up to 64 of ``check_images``, or on rendered images when there are none; for a model with a
    face crop the rendered images take its fallback. It appears whole and verified, or not at all; an older file of that
    name is replaced only then. ``steps`` keeps those of an export that does not end: the next one with the same resumes
    it.

    int8 needs ``gate_images``: it is calibrated on some and evaluated on others (see `exporters.accuracy_gate`), by
    macro F1 too where ``truth``, a CSV, has their classes. fp16 is evaluated on those that ``truth`` names, if given.

    Raises:
        OptionError: E204 when an option does not fit the network, E206 when the images lack face boxes.
        ModelError: E411 when labels and outputs differ in number, E414 when the verification fails, E426 when torch
            cannot export the architecture, E428 when the member's name is taken, E436 when the gate does not pass.
        DataError: when an image or the truth cannot be read, or they do not belong together.
        FileError: E701 or E702 when the file cannot be written.
    """
    started = time.perf_counter()
    require_writable(folder)
    model = build_model(checkpoint)
    card = make_card(checkpoint, model, options)
    for notice in describe_settings(card, checkpoint):
        listener.notice(notice)
    if card.member in options.taken:
        raise ModelError("E428", f"{checkpoint.path} would be another {card.member!r}", path=checkpoint.path)
    _tell_grey(card, checkpoint, listener)
    _require_images(card, gate_images, truth)
    gate = read_gate(checkpoint, card, gate_images, truth, listener)
    without_boxes = any(images is not None and images.boxes is None for images in (check_images, gate_images))
    if without_boxes and card.preprocess.face is not None:
        raise OptionError("E206", f"{card.member} was trained on face crops: the images need face boxes")
    _require_fit(model, card, features=options.features)
    steps.open(card.member, card.to_json(), repr(replace(options, taken=())), checkpoint.sha256, processor_name())
    pixels = cache(lambda: _check_pixels(check_images, card.preprocess))
    proto = _graph(model, card, options, steps, pixels)
    # an int8 model is compared with this float32 graph, which must be right first
    plain = replace(card, precision="fp32") if card.precision == "int8" else card

    def check() -> dict[str, Any]:
        return asdict(verify(model, _serialize(proto), pixels(), card=plain, steps=steps, listener=listener))

    checks = Checks(**steps.values("verification", (proto,), check))
    kept, verdict = checks.as_dict(), None
    if card.precision == "int8":
        assert gate is not None, "see _require_images"
        found = _quantize(proto, card, gate, options, steps, listener)
        proto, verdict = found.proto, found.verdict
        recorded = _record(_serialize(proto), card, found.scheme)
        kept = {"fp32": kept} | found.as_dict() | recorded
    elif gate is not None:
        verdict = _judge_half(model, _serialize(proto), card, gate, options, steps, listener)
        kept |= {"gate": verdict.as_dict()}
    card = replace(card, checks=kept)
    onnx.helper.set_model_props(proto, {METADATA_KEY: card.to_json()})
    path = write_atomic(folder / f"{card.member}.onnx", _serialize(proto))
    return Exported(path, card, checks, time.perf_counter() - started, verdict)


def _record(model: bytes, card: ModelCard, scheme: Scheme) -> dict[str, Any]:
    """Return the logits of test images for the card: onnxruntime's, and OpenVINO's if it judged the model."""
    found: dict[str, Any] = {}
    for one in (ASYMMETRIC, OPENVINO) if scheme.inputs_only else (ASYMMETRIC,):
        run = partial(_logits_of, start_engine(model, card, one), card.preprocess)
        found |= record_logits(run, card.preprocess.size, openvino=one.inputs_only)
    return found


def _logits_of(run: Callable[[Pixels], Logits], preprocess: Preprocess, pictures: Pixels) -> Logits:
    """Return the logits of test images in RGB, which are made into those that the model takes.

    They run several at once: alone, an image has other roundings in OpenVINO (see `Session.run`).
    """
    taken = cast("Pixels", as_planes(pictures, preprocess)) if preprocess.kept else pictures
    return predict_logits(run, taken)


class Exportable(torch.nn.Module):
    """The network with transposition and normalization in front and a cast to float32 behind.

    It maps ``(B, H, W, 3)`` uint8 RGB, or the file's own channels in float32, to logits ``(B, C)``, and with
    ``features`` also to the features before pooling ``(B, F, h, w)``, both float32. The channels that the network takes
    are made from RGB first. With the card's precision fp16 the network in between computes in float16.
    """

    scale: torch.Tensor
    shift: torch.Tensor

    def __init__(self, model: torch.nn.Module, card: ModelCard, *, features: bool) -> None:
        super().__init__()
        half = card.precision == "fp16"
        self.model: Any = to_half(model, card.preprocess.size, card.preprocess.planes) if half else model
        self.dtype = torch.float16 if half else torch.float32
        self.features = features
        # ((x - low) / (high - low) - mean) / std in one multiplication and one addition, rounded once each
        mean, std = (np.array(values, dtype=np.float64).reshape(1, -1, 1, 1) for values in (card.mean, card.std))
        self.channels = card.preprocess.channels
        low, high = card.preprocess.scale
        self.register_buffer("scale", torch.tensor(1 / ((high - low) * std), dtype=torch.float32))
        self.register_buffer("shift", torch.tensor(-(mean + low / (high - low)) / std, dtype=torch.float32))

    def forward(self, image: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Return the logits, and the features if wanted."""
        # contiguous: from a channels-last tensor torch exports global pooling as a gather over computed indices
        planes = network_channels(image.permute(0, 3, 1, 2).contiguous(), self.channels)
        planes = (planes * self.scale + self.shift).to(self.dtype)
        if not self.features:
            return (self.model(planes).to(torch.float32),)
        features = self.model.forward_features(planes)
        return self.model.forward_head(features).to(torch.float32), features.to(torch.float32)


def _tell_grey(card: ModelCard, checkpoint: Checkpoint, listener: Listener) -> None:
    if card.sources.get("channels") == "default":
        mean, std = (", ".join(f"{value:.3g}" for value in values) for values in (card.mean, card.std))
        message = (
            f"{card.member} takes one channel: grey, which the graph makes from RGB as Pillow's mode L "
            f"(--channels grey), with mean {mean} and std {std}"
        )
        listener.notice(Notice("I470", message, checkpoint.path))


def _require_images(card: ModelCard, images: ImageSet | None, truth: Path | None) -> None:
    if card.precision == "int8" and images is None:
        raise OptionError("E204", "int8 is calibrated on real images", hint="name a folder of them with --calibrate")
    if card.precision == "fp32" and (images is not None or truth is not None):
        raise OptionError("E204", "float32 is the reference: it is neither calibrated nor judged by a ground truth")
    if truth is not None and images is None:
        raise OptionError("E204", "the ground truth needs its images", hint="name their folder with --check-images")


def _quantize(
    proto: onnx.ModelProto, card: ModelCard, gate: GateInputs, options: ExportOptions, steps: Steps, listener: Listener
) -> Quantized:
    """Quantize the float32 graph, calibrated on some images, chosen on others and judged on the rest."""
    scheme = choose_scheme(proto, card, options.quantization, listener)
    if scheme.inputs_only:
        products = sum(count_products(proto, find_layers(proto.graph)).values())
        gate = replace(gate, split=gate.split.for_products(products))
    seen = gate.tell_judges(card, listener)
    load = partial(load_images, gate.images, preprocess=card.preprocess, steps=steps, listener=listener)

    def judges(places: tuple[int, ...]) -> Judges:
        return Judges(load(places), gate.classes(places), options.least_agreement)

    def judge_again() -> Judges:
        nonlocal seen
        seen = gate.tell_judges(card, listener, again=True)
        return judges(gate.split.spare)

    choose = judges(gate.split.choose)
    if gate.split.others:
        choose = replace(choose, others=lambda most: load(gate.split.others[:most]))
    samples = Samples(
        load(gate.split.calibration),
        choose,
        judges(gate.split.gate),
        judge_again if gate.split.spare else None,
    )
    found = to_int8(proto, card, samples, scheme=scheme, near_ties=options.near_ties, steps=steps, listener=listener)
    return replace(found, judged_on=seen)


def _judge_half(
    model: torch.nn.Module,
    exported: bytes,
    card: ModelCard,
    gate: GateInputs,
    options: ExportOptions,
    steps: Steps,
    listener: Listener,
) -> Verdict:
    """Evaluate float16, with the rounding of a float16 device, against torch on images with a ground truth."""
    gate.tell_judges(card, listener)
    pixels = load_images(gate.images, gate.split.gate, card.preprocess, steps=steps, listener=listener)
    predict = partial(predict_logits, pixels=pixels, steps=steps, listener=listener)
    reference = predict(lambda batch: run_torch(model, card, False, batch)[LOGITS], model="torch")
    rounding = with_rounding(exported)
    start = cache(lambda: ExportedModel(rounding, card))
    found = predict(lambda batch: start().run(batch)[LOGITS], model=rounding)
    verdict = judge("fp16", reference, found, gate.classes(gate.split.gate))
    verdict = replace(verdict, least=options.least_agreement)
    if verdict.faults:
        raise ModelError("E436", f"{card.member} (fp16): {'; '.join(verdict.faults)}", hint=verdict.hint)
    return verdict


def _check_pixels(images: ImageSet | None, preprocess: Preprocess) -> Pixels:
    """Return the images ``(N, H, W, 3)`` to verify on, from the whole list: folders are often sorted by class."""
    if images is None:
        pictures = (as_planes(one, preprocess) if preprocess.kept else one for one in render_pictures())
        return np.stack([prepare_image(picture, preprocess, None) for picture in pictures])
    chosen = np.linspace(0, len(images.paths) - 1, min(len(images.paths), MOST_PICTURES)).round().astype(int)
    return load_images(images, chosen.tolist(), preprocess)


def _require_fit(model: Any, card: ModelCard, *, features: bool) -> None:
    height, width = card.preprocess.size
    try:
        with torch.inference_mode():
            found = model.forward_features(torch.zeros(1, card.preprocess.planes, height, width))
    except (AssertionError, RuntimeError, ValueError) as err:
        # a wrong size raises any of the three, depending on the first layer that it does not fit
        raise OptionError(
            "E204",
            f"{card.arch} does not take images of {height}x{width} px: {_reason(err)}",
            hint="give another --size",
        ) from err
    wanted = (1, model.num_features)
    if features and (found.ndim != 4 or tuple(found.shape[:2]) != wanted):
        raise OptionError(
            "E204",
            f"{card.arch} has no feature maps {(*wanted, 'h', 'w')}, it gives {tuple(found.shape)}",
            hint="leave out --features",
        )


def _graph(
    model: torch.nn.Module, card: ModelCard, options: ExportOptions, steps: Steps, pixels: Callable[[], Pixels]
) -> onnx.ModelProto:
    """Return the graph that torch exports, or the one that an earlier run has exported."""

    def make() -> Arrays:
        pixels()  # an image that cannot be read is said before the seconds of torch's exporter
        exportable = Exportable(with_plain_convolutions(model), card, features=options.features)
        try:
            proto = _to_onnx(exportable, card)
        except ModelError:
            if not _unfuse_attention(exportable):
                raise
            proto = _to_onnx(exportable, card)
        return {"graph": np.frombuffer(_serialize(proto), dtype=np.uint8)}

    proto: onnx.ModelProto = onnx.ModelProto.FromString(steps.arrays("graph", (), make)["graph"].tobytes())
    return proto


def _to_onnx(exportable: Exportable, card: ModelCard) -> onnx.ModelProto:
    # a batch of one would be exported as a constant
    example = torch.zeros(2, *card.preprocess.shape, dtype=getattr(torch, card.preprocess.dtype))
    with warnings.catch_warnings():
        # they concern the exporter's internals; whether the result is right is verified afterwards
        warnings.simplefilter("ignore")
        try:
            program = torch.onnx.export(
                exportable.eval(),
                (example,),
                dynamo=True,
                external_data=False,
                opset_version=OPSET,
                input_names=[INPUT],
                output_names=[LOGITS, FEATURES] if exportable.features else [LOGITS],
                dynamic_shapes=({0: "batch"},),
                verbose=False,
            )
        except RuntimeError as err:
            raise ModelError("E426", f"{card.arch} cannot be exported: {_reason(err.__cause__ or err)}") from err
    assert program is not None
    proto: onnx.ModelProto = program.model_proto
    _strip(proto)
    keep_padded_zeros(proto)
    proto.producer_name, proto.producer_version = "ens", version("ens-onnx")
    return proto


def _unfuse_attention(model: torch.nn.Module) -> bool:
    """Let timm's layers compute attention as plain products; False if none of them is fused.

    torch.onnx.export (2.15) cannot trace the view of a fused attention's result that MaxViT and BEiT take with a
    dynamic batch: scaled_dot_product_attention returns other strides (timm/models/beit.py, timm/models/maxxvit.py).
    """
    fused: list[Any] = [module for module in model.modules() if getattr(module, "fused_attn", False)]
    for module in fused:
        module.fused_attn = False
    return bool(fused)


def _strip(message: Message) -> None:
    """Strip the exporter's debug metadata from a model: stack traces, local paths, class names."""
    for field, value in message.ListFields():
        if field.name in {"doc_string", "metadata_props"}:
            message.ClearField(field.name)
        elif field.type == field.TYPE_MESSAGE:
            for child in [value] if isinstance(value, Message) else value:
                _strip(child)


def _reason(err: BaseException) -> str:
    return cut_text((str(err).strip() or type(err).__name__).splitlines()[0], 300)


def _serialize(proto: onnx.ModelProto) -> bytes:
    data: bytes = proto.SerializeToString(deterministic=True)
    return data
