"""Build the card of a model that is to be exported, and record where each setting comes from.

A setting comes from an option, the checkpoint's own card, the member's name, timm's pretrained configuration or a
convention; the first of these that knows it wins.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeAlias, get_args

from checkpoints.loading.metadata import Found
from ensemble.card import Channels, Interpolation, ModelCard, Precision, Preprocess, Quantization, Resize, Resizer
from ensemble.errors import ModelError, OptionError
from ensemble.events import Notice
from ensemble.fold_names import fold_in_name
from ensemble.labels import LabelSpace
from exporters.request import require_share

if TYPE_CHECKING:
    import torch

    from checkpoints.loading.open import Checkpoint
    from checkpoints.loading.outline import Outline

# what a card is made from: a checkpoint that was opened, or its outline, which has the same settings
Opened: TypeAlias = "Checkpoint | Outline"
_INTERPOLATIONS: Mapping[str, Interpolation] = {name: name for name in get_args(Interpolation)}
_CROP_MODES: Mapping[str, Resize] = {"center": "center", "squash": "squash", "border": "pad"}
_EIGHT_BITS = (0.0, 255.0)
_WEIGHT_ENDINGS = {".safetensors", ".pth", ".pt", ".ckpt", ".tar", ".bin"}


@dataclass(frozen=True, slots=True)
class CardSettings:
    """The card's settings as one source gives them; None where it gives none."""

    labels: LabelSpace | None = None
    size: tuple[int, int] | None = None
    resize: Resize | None = None
    interpolation: Interpolation | None = None
    crop_pct: float | None = None
    resizer: Resizer | None = None
    channels: Channels | None = None
    scale: tuple[float, float] | None = None
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    member: str | None = None
    group: str | None = None
    fold: int | None = None

    @classmethod
    def sources(cls, layers: Mapping[str, CardSettings]) -> dict[str, str]:
        """Name the last of ``layers`` that knows each setting."""
        found: dict[str, str] = {}
        for field in fields(cls):
            knowing = [name for name, known in layers.items() if getattr(known, field.name) is not None]
            if knowing:
                found[field.name] = knowing[-1]
        return found

    def updated(self, other: CardSettings) -> CardSettings:
        """Return these settings, overridden by those of ``other`` that are set."""
        given = {field.name: getattr(other, field.name) for field in fields(CardSettings)}
        return replace(self, **{name: value for name, value in given.items() if value is not None})


@dataclass(frozen=True, slots=True)
class ExportOptions(CardSettings):
    """The settings that the caller chooses; None leaves one to the checkpoint's card, and then to timm.

    ``size`` is ``(height, width)`` in pixels; ``mean`` and ``std`` are in 0..1, in the order of the network's channels.
    ``quantization`` is that of int8, and ``near_ties`` the precision that may answer its near ties. ``least_agreement``
    is the share of the answers that must stay those of float32 (None: the usual one of the precision). ``features``
    adds the output of class-activation maps. ``taken`` are the names of members that the model must not have.

    Raises:
        OptionError: E204 when mean, std or the least agreement is out of range.
    """

    precision: Precision = "fp32"
    quantization: Quantization | None = None
    least_agreement: float | None = None
    near_ties: Literal["fp32", "int8"] = "fp32"
    features: bool = False
    taken: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        require_share(self.least_agreement)
        hint = "give them for channels in 0..1: values for 0..255 divided by 255"
        if self.channels is not None and self.channels.isdecimal():
            return  # they are of values of any range
        if self.mean is not None and not (len(self.mean) in {1, 3} and all(0 <= value <= 1 for value in self.mean)):
            raise OptionError("E204", f"mean must be three values of 0 to 1 (grey: one), got {self.mean}", hint=hint)
        if self.std is not None and not (len(self.std) in {1, 3} and all(0 < value <= 1 for value in self.std)):
            raise OptionError("E204", f"std must be three values above 0, to 1 (grey: one), got {self.std}", hint=hint)


@dataclass(frozen=True, slots=True)
class TimmDefaults:
    """The default preprocessing of an architecture in timm, in the place of a network that has it."""

    pretrained_cfg: Mapping[str, Any]


DEFAULTS = ExportOptions()


def make_card(checkpoint: Opened, model: torch.nn.Module | TimmDefaults, options: ExportOptions) -> ModelCard:
    """Build the card of a model that is to be exported; its ``sources`` record where each setting comes from.

    An option overrides the checkpoint's own card or other metadata, which overrides the member's name
    (``resnet18_f3`` is fold 3 of the group ``resnet18``), which overrides timm's pretrained configuration of ``model``.
    A member is named after its file where neither an option nor a card names it.

    Raises:
        ModelError: E411 when the label space, or the class names in the checkpoint, do not fit the network's outputs.
        OptionError: E204 when a value is out of range.
    """
    card = checkpoint.card
    member = options.member or (card.member if card else member_of(checkpoint.path))
    layers = {
        "default": _from_convention(checkpoint),
        "timm": _from_timm(model),
        "name": _from_name(member),
        "checkpoint": _from_card(card) if card else _from_metadata(checkpoint, options),
        "option": _from_options(options),
    }
    sources = CardSettings.sources(layers)
    known = _fit_grey(functools.reduce(CardSettings.updated, layers.values()), sources)
    assert known.labels is not None, "known by convention, as all but the fold"
    assert known.size is not None
    assert known.resize is not None
    assert known.interpolation is not None
    assert known.crop_pct is not None
    assert known.mean is not None
    assert known.std is not None
    assert known.member is not None
    if len(known.labels) != checkpoint.num_classes:
        raise ModelError(
            "E411",
            f"{checkpoint.path.name}: the head has {checkpoint.num_classes} outputs, the label space "
            f"{len(known.labels)}",
            path=checkpoint.path,
        )
    preprocess = Preprocess(
        size=known.size,
        resize=known.resize,
        interpolation=known.interpolation,
        resizer=known.resizer or "pillow",
        channels=known.channels or "rgb",
        scale=known.scale or _EIGHT_BITS,
        crop_pct=known.crop_pct,
        face=card.preprocess.face if card else None,
        fill=card.preprocess.fill if card and sources["resize"] == "checkpoint" else _grey(known),
    )
    _require_channels(preprocess, checkpoint)
    _require_own_normalization(preprocess, sources)
    return ModelCard(
        member=known.member,
        arch=checkpoint.arch,
        labels=known.labels,
        preprocess=preprocess,
        mean=known.mean,
        std=known.std,
        checkpoint_sha256=checkpoint.sha256,
        group=known.group,
        fold=known.fold,
        holdout_sha256=card.holdout_sha256 if card else None,
        activation=card.activation if card else "softmax",
        class_counts=card.class_counts if card and card.labels == known.labels else None,
        repeat=card.repeat if card else 0,
        precision=options.precision,
        weights=checkpoint.weights,
        sources=sources,
        tools=_tools(),
    )


def _require_own_normalization(preprocess: Preprocess, sources: Mapping[str, str]) -> None:
    """Check that mean and std of channels that are kept as they are do not come from timm, whose are of photographs."""
    missing = [f"--{name}" for name in ("mean", "std") if sources[name] in {"timm", "default"}]
    if preprocess.kept and missing:
        low, high = preprocess.scale
        raise OptionError(
            "E210",
            f"--channels {preprocess.channels} takes values as they are stored, and the checkpoint does not say their "
            "mean and standard deviation",
            hint=f"name {' and '.join(missing)}, one value per channel, of values scaled from {low:g}..{high:g} to "
            "0..1 (--scale LOW,HIGH)",
        )


def _require_channels(preprocess: Preprocess, checkpoint: Opened) -> None:
    if preprocess.planes != checkpoint.in_channels:
        raise OptionError(
            "E204",
            f"{checkpoint.path.name} takes images of {checkpoint.in_channels} channels, not the {preprocess.planes} of "
            f"{preprocess.channels}",
            hint="rgb and bgr are for networks of three channels, grey for those of one; --channels 1 to 4 are as many "
            "of the image file's own, with --scale, --mean and --std",
        )


def _from_options(options: ExportOptions) -> CardSettings:
    if options.crop_pct is None and options.resize in {"squash", "pad"}:
        # these modes keep the whole image; timm's percentage belongs to its center crop
        return replace(options, crop_pct=1.0)
    return options


def _from_card(card: ModelCard) -> CardSettings:
    own, wanted = card, card.preprocess
    return CardSettings(
        labels=own.labels,
        size=wanted.size,
        resize=wanted.resize,
        interpolation=wanted.interpolation,
        # a default is not a setting: the sources in a card of before these settings keep their bytes
        resizer=wanted.resizer if wanted.resizer != "pillow" else None,
        channels=wanted.channels if wanted.channels != "rgb" else None,
        scale=wanted.scale if wanted.scale != _EIGHT_BITS else None,
        crop_pct=wanted.crop_pct,
        mean=own.mean,
        std=own.std,
        member=own.member,
        group=own.group,
        fold=own.fold,
    )


def _from_metadata(checkpoint: Opened, options: ExportOptions) -> CardSettings:
    """Return what the checkpoint says beside its weights; its classes must fit the head, unless an option has them."""
    found = checkpoint.metadata
    if options.labels is None:
        _require_class_count(checkpoint)
    planes = checkpoint.in_channels
    mean, std = (one.value if one is not None and len(one.value) == planes else None for one in (found.mean, found.std))
    return CardSettings(
        labels=None if found.classes is None else LabelSpace.flat(found.classes.value),
        size=checkpoint.size if found.size is None else found.size.value,
        resize=None if found.resize is None else _CROP_MODES[found.resize.value],
        interpolation=None if found.interpolation is None else _INTERPOLATIONS[found.interpolation.value],
        crop_pct=None if found.crop_pct is None else found.crop_pct.value,
        mean=mean,
        std=std,
    )


def _require_class_count(checkpoint: Opened) -> None:
    """Check that the number of classes that the file names is that of its head."""
    found, outputs = checkpoint.metadata, checkpoint.num_classes
    counts = [(len(found.classes.value), found.classes.place)] if found.classes is not None else []
    if found.class_count is not None and not (checkpoint.head.one_logit and found.class_count.value == 1):
        counts.append((found.class_count.value, found.class_count.place))
    for count, place in counts:
        if count != outputs:
            raise ModelError(
                "E411",
                f"{checkpoint.path.name}: {place} says {count} classes, but the head has {outputs} outputs",
                hint=f"name the classes of the head with --labels, or number them with --labels {outputs}",
                path=checkpoint.path,
            )


def describe_settings(card: ModelCard, checkpoint: Opened) -> list[Notice]:
    """Say which settings come from the checkpoint's metadata, and which are timm's defaults for want of better."""
    if checkpoint.card is not None:
        return []
    height, width = card.preprocess.size
    shown = {
        "size": f"size {height}x{width}",
        "resize": f"resize {card.preprocess.resize}",
        "interpolation": card.preprocess.interpolation,
        "crop_pct": f"crop {card.preprocess.crop_pct:g}",
        "mean": f"mean {','.join(f'{value:.4g}' for value in card.mean)}",
        "std": f"std {','.join(f'{value:.4g}' for value in card.std)}",
        "labels": f"{len(card.labels)} class names",
    }
    by_source: dict[str, list[str]] = {}
    for name, text in shown.items():
        by_source.setdefault(card.sources[name], []).append(text)
    notices, path = [], checkpoint.path
    if stored := by_source.get("checkpoint"):
        names = [name for name in shown if card.sources[name] == "checkpoint"]
        message = f"as the checkpoint says ({', '.join(_places(checkpoint, names))}): {', '.join(stored)}"
        notices.append(Notice("I451", message, path))
    assumed = [text for source in ("timm", "default") for text in by_source.get(source, ())]
    assumed = [text for text in assumed if text != shown["labels"]]
    if assumed:
        message = f"timm's defaults, not the checkpoint's: {', '.join(assumed)}; name what you trained with otherwise"
        notices.append(Notice("I450", message, path))
    if card.sources["labels"] == "default":
        message = f"the classes are numbered 0 to {len(card.labels) - 1}: name them with --labels"
        notices.append(Notice("I450", message, path))
    return notices


def _places(checkpoint: Opened, names: Sequence[str]) -> list[str]:
    found = checkpoint.metadata
    entries: dict[str, Found[Any] | None] = {
        "labels": found.classes,
        "size": found.size,
        "resize": found.resize,
        "interpolation": found.interpolation,
        "crop_pct": found.crop_pct,
        "mean": found.mean,
        "std": found.std,
    }
    return list(dict.fromkeys(entry.place for name in names if (entry := entries[name]) is not None))


def _from_name(member: str) -> CardSettings:
    parts = fold_in_name(member)
    if parts is None:
        return CardSettings(member=member)
    return CardSettings(member=member, group=parts.group, fold=parts.fold)


def _from_timm(model: torch.nn.Module | TimmDefaults) -> CardSettings:
    network: Any = model
    found: Mapping[str, Any] = network.pretrained_cfg
    interpolation, resize = found.get("interpolation"), _CROP_MODES.get(found.get("crop_mode") or "")
    return CardSettings(
        size=tuple(found["input_size"][1:]) if found.get("input_size") else None,
        resize=resize,
        # timm also has "random", and predicts with bicubic then
        interpolation=interpolation if interpolation in get_args(Interpolation) else None,
        crop_pct=found.get("crop_pct"),
        mean=found.get("mean"),
        std=found.get("std"),
    )


def _from_convention(checkpoint: Opened) -> CardSettings:
    """Number the classes, and assume what timm assumes where an architecture has no pretrained configuration."""
    return CardSettings(
        labels=LabelSpace.flat(checkpoint.num_classes),
        channels="grey" if checkpoint.in_channels == 1 else None,
        size=(224, 224),
        resize="center",
        interpolation="bicubic",
        crop_pct=0.875,
        mean=(0.485, 0.456, 0.406),
        std=(0.229, 0.224, 0.225),
    )


def member_of(path: Path) -> str:
    """Return the file's name without the suffixes of weight files and characters that a member's name must not have."""
    name = path.name
    while Path(name).suffix.lower() in _WEIGHT_ENDINGS:
        name = Path(name).stem
    # Lightning calls its files epoch=3-step=120.ckpt
    return re.sub(r'[\x00-\x1f/\\=,:*?"<>|]', "-", name).lstrip(".-")[:100]


def _fit_grey(known: CardSettings, sources: Mapping[str, str]) -> CardSettings:
    """Average timm's mean and std of RGB for a network that takes grey; those of an option are left alone."""
    if known.channels != "grey":
        return known
    mean, std = (
        (sum(values) / len(values),) if values is not None and sources[name] in {"timm", "default"} else values
        for name, values in (("mean", known.mean), ("std", known.std))
    )
    return replace(known, mean=mean, std=std)


def _grey(known: CardSettings) -> tuple[int, int, int]:
    """Return the RGB color that normalization maps to zero, with which timm fills borders."""
    mean = known.mean or ()
    levels = [round(255 * channel) for channel in (mean[::-1] if known.channels == "bgr" else mean)]
    levels = [min(255, max(0, level)) for level in levels]
    red, green, blue = levels[:3] if len(levels) >= 3 else (*levels, *levels[:1] * 2)[:3]
    return red, green, blue


def _tools() -> dict[str, str]:
    # without +cu130 and the like: every build of one version writes the same file
    names = ("onnx", "onnxruntime", "onnxscript", "timm", "torch")
    return {name: _version(name).split("+")[0] for name in names} | {"ens": version("ens-onnx")}


def _version(module: str) -> str:
    """Return the version of a module without importing it."""
    if (loaded := sys.modules.get(module)) is not None:
        return str(loaded.__version__)
    for distribution in (module, f"{module}-gpu"):
        with contextlib.suppress(PackageNotFoundError):
            return version(distribution)
    return str(importlib.import_module(module).__version__)
