"""Build the card of an adopted model: the options, what the file tells, and defaults that a notice names."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Literal

import onnx

from ensemble.adopt.dlib_network import is_dlib
from ensemble.adopt.foreign import ForeignModel, ImageInput, Output, PixelLayout, class_names
from ensemble.card import (
    Activation,
    Channels,
    FaceCrop,
    Interpolation,
    ModelCard,
    Precision,
    Preprocess,
    Resize,
    Resizer,
)
from ensemble.errors import ModelError, OptionError
from ensemble.events import Listener, Notice
from ensemble.fold_names import fold_in_name
from ensemble.labels import LabelSpace

InputRange = Literal["0..1", "-1..1", "0..255"]
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
    ``activation`` is sigmoid for independent labels, of which an image may have several. ``fold`` is the one that the
    network was not trained on, by default the one that ends the member's name. With ``features`` the pooled maps
    become an output, for `ens explain`. ``face`` is the crop of a network that was trained on faces.

    Raises:
        OptionError: E204 when options contradict each other or are out of range.
    """

    output: Output | None = None
    output_name: str | None = None
    layout: PixelLayout | None = None
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
    fold: int | None = None
    features: bool = False
    face: FaceCrop | None = None

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


def make_card(model: ForeignModel, image: ImageInput, options: AdoptOptions, listener: Listener) -> ModelCard:
    """Return the card without labels: what is known before the network has run."""
    size = _size(model, image, options)
    channels = _channels(model, image, options)
    mean, std, source = _normalization(model, image, channels, options)
    _tell_choices(model, options, source, listener)
    centered = options.resize in {None, "center"}
    member = options.member or _member_of(model.path)
    fold = options.fold
    if fold is None and (named := fold_in_name(member)) is not None:
        fold = named.fold
        message = f"{member} was not trained on fold {fold}, as its name says; --fold names another one"
        listener.notice(Notice("I482", message, model.path))
    return ModelCard(
        member=member,
        arch="onnx",
        labels=LabelSpace.flat(2),
        preprocess=Preprocess(
            size=size,
            resize=options.resize or "center",
            interpolation=options.interpolation or "bilinear",
            crop_pct=options.crop_pct if options.crop_pct is not None else (0.875 if centered else 1.0),
            fill=_fill(mean, channels),
            resizer=options.resizer or "pillow",
            channels=channels,
            face=options.face,
        ),
        mean=mean,
        std=std,
        checkpoint_sha256=model.sha256,
        fold=fold,
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


def _tell_choices(model: ForeignModel, options: AdoptOptions, source: str, listener: Listener) -> None:
    """Say which settings are defaults; ``source`` is that of mean and std."""
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
    if is_dlib(model.proto):
        message = (
            "a network of dlib: the file does not tell what its sums add; they are taken as those of residual blocks"
        )
        listener.notice(Notice("I482", message, model.path))
    if options.face is not None:
        x, y, side = options.face.fallback
        message = (
            f"faces are cropped with a margin of {options.face.margin:g} of the box; without a face, {side:.0%} of the "
            f"shorter side around ({x:.2f}, {y:.2f})"
        )
        listener.notice(Notice("I486", message, model.path))


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


def _normalization(
    model: ForeignModel, image: ImageInput, channels: Channels, options: AdoptOptions
) -> tuple[tuple[float, ...], tuple[float, ...], str]:
    count = image.channels
    if image.type == onnx.TensorProto.UINT8:
        if options.mean is not None or options.input_range is not None:
            message = (
                f"{model.path.name} normalizes by itself (it takes uint8), without --mean, --std and --input-range"
            )
            hint = "leave them out; if they are for another network of ens probe, name them behind its file: "
            raise OptionError("E204", message, hint=f"{hint}--features other.onnx,input-range=0..255")
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
    """Return the RGB color that normalization maps to zero, as far as there is one."""
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


def with_labels(
    model: ForeignModel, card: ModelCard, classes: int, options: AdoptOptions, listener: Listener
) -> ModelCard:
    """Return the card with the class names of the option, of the file's metadata, or numbers.

    Raises:
        ModelError: E411 when the label space has another number of classes.
    """
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
