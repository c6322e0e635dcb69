"""The settings of a training; their defaults are those of ``ens train``.

The command line imports this module for its help, so it imports neither torch nor numpy at module level.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from ensemble.errors import OptionError
from ensemble.events import Listener, Notice

if TYPE_CHECKING:
    from ensemble.card import Activation, Head, Preprocess
    from ensemble.labels import LabelSpace

CutMix = Literal["none", "plain", "half"]
KeepEpoch = Literal["best", "last"]
Optimizer = Literal["adamw", "adam", "sgd"]
Schedule = Literal["onecycle", "cosine", "constant"]


def _squashed_to_224() -> Preprocess:
    from ensemble.card import Preprocess

    return Preprocess((224, 224))


def _mask18() -> LabelSpace:
    from ensemble.labels import MASK18

    return MASK18


_MEAN, _STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


@dataclass(frozen=True, slots=True)
class TrainSettings:
    """The settings of a training run.

    Data: ``mean`` and ``std`` are those of the network's channels in 0..1; `fit_channels` converts those for 0..255.
    ``fallback_share`` of the detected faces are trained with the crop for images without a face, so that a missing box
    carries no information. ``balanced`` samples all classes equally often.

    Optimization: ``learning_rate`` is the highest one and ``warm_up`` a share of all steps. ``accumulate`` batches make
    one optimizer step, and the schedule and the weight average count these steps. ``ema`` is the decay of the weight
    average per step (None: no average). ``freeze`` counts the frozen layer groups. ``patience`` is the number of epochs
    without a better score before the training stops (None: never), and ``keep`` selects the weights: those of the epoch
    with the best macro F1 on the hold-out part, or of the last. ``fp16`` scales the gradients, unlike ``bf16``.

    With the activation ``sigmoid`` an image has any number of labels: the loss ``ce`` is then the binary cross-entropy
    per label, ``pos_weight`` weights an image with a label against one without it, and ``gamma_negative``,
    ``gamma_positive`` and ``clip_negative`` are the parameters of the asymmetric loss. The best epoch is then the one
    with the highest mean average precision.

    The axes in ``ordinal`` have one score and ordered thresholds in place of an output per value.
    ``swa`` counts the last epochs whose weights are averaged (None: no average).
    ``label_distribution`` has texts of `label_distribution.parse_spread`.

    Augmentation: ``augment`` is a policy of `augment.parse_policy`, ``cutmix`` the region that `augment.cutmix` pastes,
    ``mixup`` the alpha of `augment.mixup` (None: off), and ``erasing`` the share of images with an erased rectangle.

    Raises:
        OptionError: E204 when a number is out of range.
    """

    arch: str
    preprocess: Preprocess = field(default_factory=_squashed_to_224)
    epochs: int = 10
    learning_rate: float = 1e-3
    batch: int = 32
    weight_decay: float = 0.05
    label_smoothing: float = 0.0
    labels: LabelSpace = field(default_factory=_mask18)
    mean: tuple[float, ...] = _MEAN
    std: tuple[float, ...] = _STD
    loss: str = "ce"
    gamma: float = 2.0
    class_weights: str = "none"
    augment: str = "default"
    cutmix: CutMix = "none"
    optimizer: Optimizer = "adamw"
    schedule: Schedule = "cosine"
    warm_up: float = 0.1
    layer_decay: float | None = None
    ema: float | None = None
    clip: float | None = None
    freeze: int = 0
    patience: int | None = None
    keep: KeepEpoch = "best"
    bf16: bool = False
    fallback_share: float = 0.1
    init: Path | None = None
    pretrained: bool = False
    head: Head = "flat"
    mixup: float | None = None
    erasing: float = 0.0
    balanced: bool = False
    accumulate: int = 1
    fp16: bool = False
    activation: Activation = "softmax"
    pos_weight: str = "none"
    gamma_negative: float = 4.0
    gamma_positive: float = 0.0
    clip_negative: float = 0.05
    ordinal: tuple[str, ...] = ()
    label_distribution: tuple[str, ...] = ()
    swa: int | None = None

    def __post_init__(self) -> None:
        self._require_channels()
        numbers = (self.learning_rate, self.weight_decay, self.gamma, self.clip or 0.0)
        if not all(map(math.isfinite, numbers)) or min(numbers) < 0 or self.clip == 0:
            raise OptionError(
                "E204", "learning rate, weight decay, gamma and clip must be finite, not negative, and clip above 0"
            )
        if self.freeze < 0 or (self.patience is not None and self.patience < 1):
            raise OptionError("E204", "--freeze must be 0 or more, and --patience 1 or more")
        if self.swa is not None and not 2 <= self.swa <= self.epochs:
            raise OptionError("E204", f"--swa must be 2 to the number of epochs, {self.epochs}, got {self.swa}")
        if self.swa is not None and self.patience is not None:
            hint = "leave one of them out"
            raise OptionError("E204", "--swa averages the last epochs, and --patience may end before them", hint=hint)
        if not 0 <= self.label_smoothing < 1:
            raise OptionError("E204", f"--smoothing must be 0 or more and below 1, got {self.label_smoothing}")
        if self.init is not None and self.pretrained:
            raise OptionError("E204", "--init and --pretrained exclude each other")
        if min(self.epochs, self.batch, self.accumulate) < 1 or not self.learning_rate > 0 or not 0 < self.warm_up < 1:
            raise OptionError("E204", "epochs, batches and learning rate must be above 0, and warm-up between 0 and 1")
        if not 0 <= self.fallback_share <= 1 or not 0 <= self.erasing <= 1:
            raise OptionError(
                "E204", f"fallback share and erasing must be 0 to 1, got {self.fallback_share} and {self.erasing}"
            )
        if self.mixup is not None and not 0 < self.mixup <= 100:
            raise OptionError("E204", f"the alpha of mixup must be above 0 and up to 100, got {self.mixup}")
        if self.bf16 and self.fp16:
            raise OptionError("E204", "--bf16 and --fp16 exclude each other")
        if any(share is not None and not 0 < share < 1 for share in (self.ema, self.layer_decay)):
            given = f"{self.ema} and {self.layer_decay}"
            raise OptionError("E204", f"ema and layer decay must be between 0 and 1, got {given}")

    def _require_channels(self) -> None:
        if self.preprocess.kept:
            if not all(map(math.isfinite, (*self.mean, *self.std))) or min(self.std) <= 0:
                raise OptionError("E204", f"--mean must be finite and --std above 0, got {self.mean} and {self.std}")
            return
        for name, values, least in (("--mean", self.mean, 0.0), ("--std", self.std, 1e-3)):
            if not all(least <= value <= 255 for value in values) or 1 < max(values, default=0) <= 1.5:
                raise OptionError(
                    "E204",
                    f"{name} takes values of {least:g} to 1, or up to 255, got {','.join(map(str, values))}",
                    hint="give both for channels in 0..1, or both for channels in 0..255",
                )


def fit_channels(settings: TrainSettings, preprocess: Preprocess, *, listener: Listener) -> TrainSettings:
    """Return the settings with a preprocessing, with mean and std for channels in 0..1.

    Values for 0..255 are divided by 255, which I451 says; those of kept channels are left alone; for grey, mean and std
    of RGB are averaged, which I470 says.

    Raises:
        OptionError: E204 when mean and std do not have one value per channel, or are not for the same range.
    """
    from ensemble.channel_values import scale_channel_values

    if preprocess.kept:
        return replace(settings, preprocess=preprocess)  # `own_channels.fit_own_channels` needs the images
    # a default is in 0..1, and goes with either range of the other
    means, stds, scaled = scale_channel_values(
        None if settings.mean == _MEAN else settings.mean, None if settings.std == _STD else settings.std
    )
    mean, std = means or settings.mean, stds or settings.std
    if scaled:
        listener.notice(Notice("I451", "--mean and --std are for channels in 0..255: they are divided by 255"))
    if preprocess.channels == "grey" and len(mean) == len(std) == 3:
        mean, std = (sum(mean) / 3,), (sum(std) / 3,)
        message = f"grey is normalized with mean {mean[0]:.3g} and std {std[0]:.3g}, the averages of those of RGB"
        listener.notice(Notice("I470", message))
    if not len(mean) == len(std) == preprocess.planes:
        raise OptionError(
            "E204", f"--channels {preprocess.channels} needs {preprocess.planes} values of --mean and --std each"
        )
    return replace(settings, preprocess=preprocess, mean=mean, std=std)


# settings added later are left out at these values, so that a folder of an earlier version still resumes
_ADDED_LATER: Mapping[str, Any] = {
    "head": "flat",
    "mixup": None,
    "erasing": 0.0,
    "balanced": False,
    "accumulate": 1,
    "fp16": False,
    "activation": "softmax",
    "pos_weight": "none",
    "gamma_negative": 4.0,
    "gamma_positive": 0.0,
    "clip_negative": 0.05,
    "ordinal": (),
    "label_distribution": (),
    "swa": None,
}
_PREPROCESS_ADDED_LATER: Mapping[str, Any] = {"resizer": "pillow", "channels": "rgb", "scale": (0.0, 255.0)}


def settings_dict(settings: TrainSettings) -> dict[str, Any]:
    """Return JSON-ready values, with files by their hashes."""
    from ensemble.files import sha256_file

    value = asdict(replace(settings, init=None)) | {
        "labels": settings.labels.to_dict(),
        "init": None if settings.init is None else sha256_file(settings.init),
    }
    for name, default in _PREPROCESS_ADDED_LATER.items():
        if value["preprocess"][name] == default:
            del value["preprocess"][name]
    if settings.preprocess.face is not None and settings.preprocess.face.align is None:
        del value["preprocess"]["face"]["align"]
    if settings.augment.endswith(".toml"):
        value["augment"] = sha256_file(Path(settings.augment))
    return {key: setting for key, setting in value.items() if key not in _ADDED_LATER or setting != _ADDED_LATER[key]}
