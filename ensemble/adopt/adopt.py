"""Adopt a ready-made ONNX classifier: one self-describing .onnx file, checked against the original."""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

import numpy as np
import onnx

from ensemble.adopt.check import BATCHES, Original, compare
from ensemble.adopt.foreign import (
    ForeignModel,
    ImageInput,
    Layout,
    Output,
    class_names,
    find_input,
    find_last_layer,
    find_output,
    read_foreign,
)
from ensemble.adopt.graph import BatchWay, WrapPlan, build_graph
from ensemble.arrays import Floats, Pixels
from ensemble.card import (
    METADATA_KEY,
    Activation,
    Channels,
    Interpolation,
    ModelCard,
    Precision,
    Preprocess,
    Resize,
    Resizer,
)
from ensemble.errors import ModelError, OptionError
from ensemble.events import SILENT, Listener, Notice
from ensemble.files import require_writable, write_atomic
from ensemble.images.decode import read_image
from ensemble.images.face_crop import prepare_image
from ensemble.labels import LabelSpace
from ensemble.runtime.model_file import check_model
from ensemble.runtime.parity import LIMITS, draw_pictures

InputRange = Literal["0..1", "-1..1", "0..255"]
MOST_PICTURES = 16
_DEFAULTS: dict[str, object] = {
    "resize": "center",
    "interpolation": "bilinear",
    "resizer": "pillow",
    "crop_pct": 0.875,
}
_IMAGENET: tuple[tuple[float, ...], tuple[float, ...]] = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
_RANGES: dict[InputRange, tuple[float, float]] = {"0..1": (0.0, 1.0), "-1..1": (0.5, 0.5), "0..255": (0.0, 1 / 255)}
_QUANTIZED = {"QuantizeLinear", "DynamicQuantizeLinear", "ConvInteger", "MatMulInteger", "QLinearConv", "QLinearMatMul"}


@dataclass(frozen=True, slots=True)
class AdoptOptions:
    """Settings that the file does not tell; None leaves one to the file, then to a default that a notice names.

    ``size`` is ``(height, width)`` in pixels; ``mean`` and ``std`` are those of the network's channels, in its order
    and in 0..1; ``input_range`` is short for those that scale pixels to it.
    ``activation`` is sigmoid for independent labels, of which an image may have several.

    Raises:
        OptionError: E204 when options contradict each other or are out of range.
    """

    output: Output | None = None
    output_name: str | None = None
    layout: Layout | None = None
    labels: LabelSpace | None = None
    size: tuple[int, int] | None = None
    resize: Resize | None = None
    interpolation: Interpolation | None = None
    crop_pct: float | None = None
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    input_range: InputRange | None = None
    resizer: Resizer | None = None
    channels: Channels | None = None
    activation: Activation | None = None
    member: str | None = None

    def __post_init__(self) -> None:
        if self.input_range is not None and (self.mean is not None or self.std is not None):
            raise OptionError("E204", "--input-range stands for --mean and --std; give one or the other")
        if (self.mean is None) != (self.std is None):
            raise OptionError("E204", "--mean and --std belong together; give both or neither")
        if self.std is not None and not all(value > 0 for value in self.std):
            raise OptionError("E204", f"--std must be values above 0, got {self.std}")
        if self.mean is not None and not all(-1 <= value <= 1.5 for value in self.mean):
            raise OptionError(
                "E204", f"--mean must be for channels in 0..1, got {self.mean}", hint="divide values for 0..255 by 255"
            )


@dataclass(frozen=True, slots=True)
class AdoptChecks:
    """The comparison with the original file: images, largest relative error, and how the batch became free."""

    pictures: int
    error: float
    batch: BatchWay

    def as_dict(self, limit: float) -> dict[str, Any]:
        """Return what the card keeps: the limits that were met, which are the same on every machine."""
        return {
            "original": {
                "pictures": self.pictures,
                "batches": list(BATCHES),
                "relative_error_at_most": limit,
                "classes_changed_at_most": 0,
                "batch": self.batch,
            }
        }


@dataclass(frozen=True, slots=True)
class Adopted:
    """An adopted model: its file, its card and the figures of the comparison."""

    path: Path
    card: ModelCard
    checks: AdoptChecks

    def as_dict(self) -> dict[str, object]:
        """Return JSON-ready values."""
        return {"path": str(self.path), "card": json.loads(self.card.to_json()), "checks": self.card.checks}

    def __str__(self) -> str:
        checks = self.checks
        return (
            f"{self.path}  as the original on {checks.pictures} images in batches of 1 and 3: "
            f"same classes, relative error {checks.error:.1e} at most"
        )


def adopt(
    path: Path,
    folder: Path,
    *,
    options: AdoptOptions,
    check_images: Sequence[Path] = (),
    taken: Collection[str] = (),
    listener: Listener = SILENT,
) -> Adopted:
    """Write ``<folder>/<member>.onnx``: the network of ``path`` with its preprocessing in front and a card inside.

    It is compared with the original file in plain onnxruntime on up to 16 of ``check_images``, or on eight drawn ones
    when there are none, in batches of 1 and 3. The file appears whole and checked, or not at all.

    Raises:
        OptionError: E204 when an option is needed to tell what the file does not, or contradicts it.
        ModelError: E411 when labels and answers differ in number, E414 when the answers differ from the original's,
            E420 to E429 when the file cannot be used, E428 when the member's name is taken.
        DataError: when an image cannot be read.
        FileError: E701, E702 or E707 when a file cannot be read or written.
    """
    require_writable(folder)
    model = read_foreign(path)
    if any(entry.key == METADATA_KEY for entry in model.proto.metadata_props):
        raise ModelError("E424", f"{path.name} is a model of ens already", hint="use it as it is", path=path)
    image = find_input(model, options.layout)
    card = _make_card(model, image, options, listener)
    if card.member in taken:
        raise ModelError("E428", f"{path} would be another {card.member!r}", path=path)
    name = find_output(model, options.output_name)
    pixels = _pixels(check_images, card.preprocess)
    original = Original(model, image, card, name)
    reference = original.run(pixels)
    plan = _make_plan(model, image, name, card, options, reference, listener)
    card = _with_labels(model, card, plan.classes, options, listener)
    if plan.answers > 1 and (options.activation or ("sigmoid" if plan.independent else "softmax")) == "sigmoid":
        card = replace(card, activation="sigmoid")
    data, checks = _build(model, plan, card, pixels, reference, listener)
    card = replace(card, checks=checks.as_dict(LIMITS[card.precision]))
    proto = onnx.load_from_string(data)
    onnx.helper.set_model_props(proto, {METADATA_KEY: card.to_json()})
    final = proto.SerializeToString(deterministic=True)
    target = folder / f"{card.member}.onnx"
    check_model(final, target)
    return Adopted(write_atomic(target, final), card, checks)


def _make_card(model: ForeignModel, image: ImageInput, options: AdoptOptions, listener: Listener) -> ModelCard:
    """Return the card without labels: what is known before the network has run."""
    size = _size(model, image, options)
    channels = _channels(model, image, options)
    mean, std, source = _normalisation(model, image, channels, options)
    defaults = [
        f"{name.replace('_', '-')} {value}"
        for name, value in _DEFAULTS.items()
        if getattr(options, name) is None and not (name == "crop_pct" and options.resize in {"squash", "pad"})
    ]
    if source == "default":
        defaults.append("the mean and std of ImageNet")
    if defaults:
        message = (
            f"{', '.join(defaults)} are defaults, which the file does not tell: name them if you trained otherwise"
        )
        listener.notice(Notice("W483", message, model.path))
    centred = options.resize in {None, "center"}
    return ModelCard(
        member=options.member or _member_of(model.path),
        arch="onnx",
        labels=LabelSpace.flat(2),
        preprocess=Preprocess(
            size=size,
            resize=options.resize or "center",
            interpolation=options.interpolation or "bilinear",
            crop_pct=options.crop_pct if options.crop_pct is not None else (0.875 if centred else 1.0),
            fill=_fill(mean, channels),
            resizer=options.resizer or "pillow",
            channels=channels,
        ),
        mean=mean,
        std=std,
        checkpoint_sha256=model.sha256,
        precision=_precision(model, image),
        sources={
            "size": "option" if options.size else "model",
            "resize": "option" if options.resize else "default",
            "interpolation": "option" if options.interpolation else "default",
            "resizer": "option" if options.resizer else "default",
            "channels": "option" if options.channels else "default",
            "crop_pct": "option" if options.crop_pct is not None else "default",
            "mean": source,
            "std": source,
        },
        tools={"onnx": onnx.__version__, "ens": version("ens-onnx")},
    )


def _size(model: ForeignModel, image: ImageInput, options: AdoptOptions) -> tuple[int, int]:
    known = tuple(side for side in image.size if side is not None)
    if len(known) < 2 and options.size is None:
        raise OptionError(
            "E204", f"{model.path.name} takes images of any size", hint="give the one of its training with --size"
        )
    size = options.size or (known[0], known[1])
    if any(side not in {None, wanted} for side, wanted in zip(image.size, size, strict=True)):
        shown = "x".join("any" if side is None else str(side) for side in image.size)
        raise OptionError("E204", f"{model.path.name} takes images of {shown} px, not {size[0]}x{size[1]}")
    return size


def _channels(model: ForeignModel, image: ImageInput, options: AdoptOptions) -> Channels:
    fitting = {"grey"} if image.channels == 1 else {"rgb", "bgr"}
    if options.channels is not None and options.channels not in fitting:
        raise OptionError(
            "E204", f"{model.path.name} takes {image.channels} channels, which are not {options.channels}"
        )
    return options.channels or ("grey" if image.channels == 1 else "rgb")


def _normalisation(
    model: ForeignModel, image: ImageInput, channels: Channels, options: AdoptOptions
) -> tuple[tuple[float, ...], tuple[float, ...], str]:
    count = image.channels
    if image.type == onnx.TensorProto.UINT8:
        if options.mean is not None or options.input_range is not None:
            message = f"{model.path.name} normalises by itself (it takes uint8): leave out --mean, --std, --input-range"
            raise OptionError("E204", message)
        return (0.0,) * count, (1.0,) * count, "model"
    if options.mean is not None and options.std is not None:
        if len(options.mean) != count or len(options.std) != count:
            raise OptionError(
                "E204", f"{model.path.name} takes {count} channels: --mean and --std need {count} values each"
            )
        return options.mean, options.std, "option"
    if options.input_range is not None:
        mean, std = _RANGES[options.input_range]
        return (mean,) * count, (std,) * count, "option"
    means, stds = _IMAGENET
    match channels:
        case "bgr":
            means, stds = means[::-1], stds[::-1]
        case "grey":
            means, stds = (sum(means) / 3,), (sum(stds) / 3,)
    return means, stds, "default"


def _fill(mean: tuple[float, ...], channels: Channels) -> tuple[int, int, int]:
    """Return the RGB colour that normalisation maps to zero, as far as there is one."""
    ordered = {"rgb": mean, "bgr": mean[::-1], "grey": mean * 3}[channels]
    red, green, blue = (min(255, max(0, round(255 * channel))) for channel in ordered)
    return red, green, blue


def _precision(model: ForeignModel, image: ImageInput) -> Precision:
    if any(node.op_type in _QUANTIZED for node in model.proto.graph.node):
        return "int8"
    halves = sum(tensor.data_type == onnx.TensorProto.FLOAT16 for tensor in model.proto.graph.initializer)
    return (
        "fp16" if image.type == onnx.TensorProto.FLOAT16 or halves * 2 > len(model.proto.graph.initializer) else "fp32"
    )


def _member_of(path: Path) -> str:
    return re.sub(r'[\x00-\x1f/\\=,:*?"<>|]', "-", path.stem).lstrip(".-")[:60] or "model"


def _pixels(images: Sequence[Path], preprocess: Preprocess) -> Pixels:
    if not images:
        return draw_pictures(preprocess.size)
    chosen = images[:: max(1, len(images) // MOST_PICTURES)][:MOST_PICTURES]
    return np.stack([prepare_image(read_image(path).pixels, preprocess, None) for path in chosen])


def _make_plan(
    model: ForeignModel,
    image: ImageInput,
    name: str,
    card: ModelCard,
    options: AdoptOptions,
    reference: Floats,
    listener: Listener,
) -> WrapPlan:
    """Decide what the output is, from the option or the last layer, and compare that with what the network gives."""
    last = find_last_layer(model, name)
    layer = last.kind
    output = options.output or last.proves
    if output is None:
        raise OptionError(
            "E204",
            f"{model.path.name} does not tell if {name} are logits or probabilities: its last layer is {layer}",
            hint="say it with --output logits or --output probabilities",
        )
    within = bool((reference >= 0).all() and (reference <= 1 + 1e-3).all())
    sums = bool(np.allclose(reference.sum(axis=1), 1, atol=1e-2))
    answers = reference.shape[1]
    if output == "probabilities" and not within:
        low, high = reference.min(), reference.max()
        raise OptionError("E204", f"{name} has values from {low:.3g} to {high:.3g}, which are no probabilities")
    if output == "logits" and (layer in {"Softmax", "Sigmoid"} or (within and sums and answers > 1)):
        raise OptionError(
            "E204",
            f"{name} has values in 0..1 (its last layer is {layer}): probabilities, not logits",
            hint="give --output probabilities",
        )
    independent = output == "probabilities" and answers > 1 and not sums and options.activation != "softmax"
    if options.output is None:
        listener.notice(Notice("I482", f"{name} are taken as {output}: its last layer is {layer}", model.path))
    if independent:
        message = f"{name} are independent probabilities, whose sum is not 1: the card says activation sigmoid"
        listener.notice(Notice("W483", message, model.path))
    if answers == 1:
        message = f"{name} is a single value: two classes, of which it is the evidence for the second"
        listener.notice(Notice("I482", message, model.path))
    if image.channels == 1:
        listener.notice(Notice("I482", "the network takes one channel: images are made grey in the graph", model.path))
    return WrapPlan(
        image=image,
        output_name=name,
        output=output,
        answers=answers,
        size=card.preprocess.size,
        mean=card.mean,
        std=card.std,
        channels=card.preprocess.channels,
        independent=independent,
        before=last.before if layer in {"Softmax", "Sigmoid"} else None,
    )


def _with_labels(
    model: ForeignModel, card: ModelCard, classes: int, options: AdoptOptions, listener: Listener
) -> ModelCard:
    labels, source = options.labels, "option"
    if labels is None and (known := class_names(model)) is not None:
        key, names = known
        if len(names) == classes:
            labels, source = LabelSpace.flat(names), "model"
            listener.notice(Notice("I482", f"the class names are those under {key!r} in the file", model.path))
    if labels is None:
        labels, source = LabelSpace.flat(classes), "default"
        message = f"the file has no names of its {classes} classes: they are numbered; give them with --labels"
        listener.notice(Notice("W483", message, model.path))
    if len(labels) != classes:
        raise ModelError(
            "E411",
            f"{model.path.name} tells {classes} classes apart, the label space has {len(labels)}",
            path=model.path,
        )
    return replace(card, labels=labels, sources=dict(card.sources) | {"labels": source})


def _build(
    model: ForeignModel, plan: WrapPlan, card: ModelCard, pixels: Pixels, reference: Floats, listener: Listener
) -> tuple[bytes, AdoptChecks]:
    """Return the first graph that gives the original's answers in batches of 1 and 3, and the figures.

    Raises:
        ModelError: E414 when there is none.
    """
    ways: tuple[BatchWay, ...] = ("free", "freed", "in turn") if plan.image.batch is None else ("freed", "in turn")
    plans = [plan] if plan.before is None else [plan.without_last_layer(), plan]
    reasons: list[str] = []
    for way, tried in itertools.product(ways, plans):
        try:
            data = build_graph(model, tried, way).SerializeToString(deterministic=True)
            error = compare(data, model.path, plan, pixels, reference, LIMITS[card.precision])
        except Exception as err:  # noqa: BLE001 - a graph that does not fit a batch size fails in many ways
            reasons.append(f"batch {way}: {(str(err).strip().splitlines() or [type(err).__name__])[-1][:200]}")
            continue
        if tried is not plan:
            message = f"the logits are taken before the last layer, whose probabilities {plan.output_name} are"
            listener.notice(Notice("I482", message, model.path))
        if way == "freed":
            was = plan.image.batch or "fixed by its constants"
            listener.notice(Notice("I482", f"the batch size was {was}; it is free now", model.path))
        if way == "in turn":
            message = "the network is made for one batch size: images run one by one inside the graph, which is slower"
            listener.notice(Notice("W483", message, model.path))
        return data, AdoptChecks(len(pixels), error, way)
    message = f"{model.path.name} with its preprocessing in front does not answer as before"
    raise ModelError("E414", message, details=tuple(reasons), path=model.path)
