"""What an exported model says about itself, and whether an option, the checkpoint or timm decided it."""

from __future__ import annotations

import re
from dataclasses import dataclass, fields
from importlib.metadata import version
from pathlib import Path
from typing import Any, get_args

import onnx
import onnxruntime
import onnxscript
import timm
import torch

from checkpoints.loading.open import Checkpoint
from ensemble.card import Interpolation, ModelCard, Precision, Preprocess, Resize
from ensemble.errors import ModelError, OptionError
from ensemble.labels import LabelSpace

_CROP_MODES = {"center": "center", "squash": "squash", "border": "pad"}
_WEIGHT_ENDINGS = {".safetensors", ".pth", ".pt", ".ckpt", ".tar", ".bin"}
# resnet18_f3, resnet18_fold3, resnet18-fold12; but _f16 is a precision
_FOLD = re.compile(r"(?P<group>.+)[-_](?:f(?=\d$)|fold)(?P<fold>\d+)")

Settings = dict[str, Any]


@dataclass(frozen=True, slots=True)
class ExportOptions:
    """What the user decides; None leaves a setting to the checkpoint's card, and then to timm.

    ``size`` is ``(height, width)`` in pixels; ``mean`` and ``std`` are those of RGB in 0..1. ``features`` adds the
    output that class-activation maps are made from.

    Raises:
        OptionError: E204 when mean or std is out of range.
    """

    labels: LabelSpace | None = None
    size: tuple[int, int] | None = None
    resize: Resize | None = None
    interpolation: Interpolation | None = None
    crop_pct: float | None = None
    mean: tuple[float, float, float] | None = None
    std: tuple[float, float, float] | None = None
    member: str | None = None
    group: str | None = None
    fold: int | None = None
    precision: Precision = "fp32"
    features: bool = False

    def __post_init__(self) -> None:
        hint = "give them for RGB in 0..1: values for 0..255 divided by 255"
        if self.mean is not None and not (len(self.mean) == 3 and all(0 <= value <= 1 for value in self.mean)):
            raise OptionError("E204", f"mean must be three values of 0 to 1, got {self.mean}", hint=hint)
        if self.std is not None and not (len(self.std) == 3 and all(0 < value <= 1 for value in self.std)):
            raise OptionError("E204", f"std must be three values above 0 and up to 1, got {self.std}", hint=hint)


DEFAULTS = ExportOptions()


def describe(checkpoint: Checkpoint, model: torch.nn.Module, options: ExportOptions) -> ModelCard:
    """The card of a model that is to be exported; its ``sources`` say who decided each setting.

    An option beats the checkpoint's own card, which beats the name of the member (``resnet18_f3`` is fold 3 of the
    group ``resnet18``), which beats timm's pretrained configuration of ``model``. A member is called like its file
    where neither an option nor a card names it.

    Raises:
        ModelError: E411 when the label space does not fit the network's outputs.
        OptionError: E204 when a value is out of range.
    """
    card = checkpoint.card
    member = options.member or (card.member if card else _member_of(checkpoint.path))
    settings: Settings = {}
    sources: dict[str, str] = {}
    for source, layer in (
        ("default", _from_convention(checkpoint)),
        ("timm", _from_timm(model)),
        ("name", _from_name(member)),
        ("checkpoint", _from_card(card) if card else {}),
        ("option", _from_options(options)),
    ):
        given = {setting: value for setting, value in layer.items() if value is not None}
        settings |= given
        sources |= dict.fromkeys(given, source)
    labels = settings["labels"]
    if len(labels) != checkpoint.num_classes:
        raise ModelError(
            "E411",
            f"{checkpoint.path.name}: the head has {checkpoint.num_classes} outputs, the label space {len(labels)}",
            path=checkpoint.path,
        )
    return ModelCard(
        member=settings["member"],
        arch=checkpoint.arch,
        labels=labels,
        preprocess=Preprocess(
            size=settings["size"],
            resize=settings["resize"],
            interpolation=settings["interpolation"],
            crop_pct=settings["crop_pct"],
            face=card.preprocess.face if card else None,
            fill=card.preprocess.fill if card and sources["resize"] == "checkpoint" else _grey(settings["mean"]),
        ),
        mean=settings["mean"],
        std=settings["std"],
        checkpoint_sha256=checkpoint.sha256,
        group=settings.get("group"),
        fold=settings.get("fold"),
        holdout_sha256=card.holdout_sha256 if card else None,
        class_counts=card.class_counts if card and card.labels == labels else None,
        precision=options.precision,
        weights=checkpoint.weights,
        sources=sources,
        tools=_tools(),
    )


def _from_options(options: ExportOptions) -> Settings:
    given = {field.name: getattr(options, field.name) for field in fields(options)}
    del given["precision"], given["features"]  # nobody else has a say in these
    if options.crop_pct is None and options.resize in {"squash", "pad"}:
        # who asks for these means the whole image; timm's percentage belongs to its centre crop
        given["crop_pct"] = 1.0
    return given


def _from_card(card: ModelCard) -> Settings:
    own = {name: getattr(card, name) for name in ("labels", "mean", "std", "member", "group", "fold")}
    wanted = card.preprocess
    return own | {name: getattr(wanted, name) for name in ("size", "resize", "interpolation", "crop_pct")}


def _from_name(member: str) -> Settings:
    parts = _FOLD.fullmatch(member)
    return {"member": member} | ({"group": parts["group"], "fold": int(parts["fold"])} if parts else {})


def _from_timm(model: torch.nn.Module) -> Settings:
    network: Any = model
    found: Settings = network.pretrained_cfg
    interpolation = found.get("interpolation")
    return {
        "size": found["input_size"][1:] if found.get("input_size") else None,
        "resize": _CROP_MODES.get(found.get("crop_mode") or ""),
        # timm also knows "random", and predicts with bicubic then
        "interpolation": interpolation if interpolation in get_args(Interpolation) else None,
        "crop_pct": found.get("crop_pct"),
        "mean": found.get("mean"),
        "std": found.get("std"),
    }


def _from_convention(checkpoint: Checkpoint) -> Settings:
    """Numbers for class names, and what timm assumes where an architecture has no pretrained configuration."""
    return {
        "labels": LabelSpace.flat(checkpoint.num_classes),
        "size": (224, 224),
        "resize": "center",
        "interpolation": "bicubic",
        "crop_pct": 0.875,
        "mean": (0.485, 0.456, 0.406),
        "std": (0.229, 0.224, 0.225),
    }


def _member_of(path: Path) -> str:
    """The file's name without the endings of weight files, and without what a member's name must not hold."""
    name = path.name
    while Path(name).suffix.lower() in _WEIGHT_ENDINGS:
        name = Path(name).stem
    # Lightning calls its files epoch=3-step=120.ckpt
    return re.sub(r'[\x00-\x1f/\\=,:*?"<>|]', "-", name).lstrip(".-")[:100]


def _grey(mean: tuple[float, float, float]) -> tuple[int, int, int]:
    """The colour that normalisation turns into zero, as timm fills borders."""
    red, green, blue = (round(255 * channel) for channel in mean)
    return red, green, blue


def _tools() -> dict[str, str]:
    modules = (onnx, onnxruntime, onnxscript, timm, torch)
    # without +cu130 and the like: every build of one version writes the same file
    return {m.__name__: m.__version__.split("+")[0] for m in modules} | {"ens": version("ens-onnx")}
