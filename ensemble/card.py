"""ModelCard: the metadata of a model, stored as JSON inside the .onnx file."""

from __future__ import annotations

import functools
import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, is_dataclass
from types import NoneType, UnionType
from typing import Any, Literal, get_args, get_origin, get_type_hints

from ensemble.errors import EnsError, ModelError, OptionError, cut_text
from ensemble.labels import LabelSpace
from ensemble.ordinal import ordered_positions
from ensemble.text.json_text import parse_json, require_names
from ensemble.text.json_types import require_record_types
from ensemble.text.plain_numbers import is_count, to_float

SCHEMA = 1
METADATA_KEY = "ens.card"
_MOST_IMAGES, _MOST_FOLDS = 10**12, 10**6
_NEEDED = ("member", "arch", "labels", "preprocess", "mean", "std", "checkpoint_sha256")
MAX_CARD = 20_000_000  # letters; the card of 100,000 classes has a tenth

Resize = Literal["squash", "center", "pad"]
Interpolation = Literal["nearest", "bilinear", "bicubic", "lanczos", "area"]
Resizer = Literal["pillow", "opencv", "torch", "torch-antialias", "torch-uint8", "torch-uint8-antialias"]
Channels = Literal["rgb", "bgr", "grey", "1", "2", "3", "4"]
Precision = Literal["fp32", "fp16", "int8"]
NearTies = Literal["fp32", "int8"]
Quantization = Literal["asymmetric", "symmetric", "openvino"]
Weights = Literal["raw", "ema"]
Head = Literal["flat", "axes"]
Activation = Literal["softmax", "sigmoid"]
Align = Literal["arcface", "dlib"]

_FILTERS: Mapping[Resizer, tuple[Interpolation, ...]] = {
    "pillow": ("nearest", "bilinear", "bicubic", "lanczos"),
    "opencv": ("nearest", "bilinear", "bicubic", "lanczos", "area"),
    "torch": ("nearest", "bilinear", "bicubic"),
    "torch-antialias": ("nearest", "bilinear", "bicubic"),
    "torch-uint8": ("nearest", "bilinear", "bicubic"),
    "torch-uint8-antialias": ("nearest", "bilinear", "bicubic"),
}
_PLANES: Mapping[Channels, int] = {"rgb": 3, "bgr": 3, "grey": 1, "1": 1, "2": 2, "3": 3, "4": 4}
_EIGHT_BITS = (0.0, 255.0)


@dataclass(frozen=True, slots=True)
class FaceCrop:
    """The square that is cropped around a face before an image is resized, see `ensemble.images.face_crop.face_square`.

    ``margin`` is the share of the box's longer side that is added on every side. ``fallback`` is the square where no
    face was found: its center as shares of the image's width and height, its side as a share of the shorter one.
    With ``align`` the square is turned and placed by the face's five points, as the networks of ArcFace or of dlib
    expect (`ensemble.images.face_alignment`), and ``margin`` is added to the square they use.

    Raises:
        OptionError: E204 when a value is out of range.
    """

    margin: float
    fallback: tuple[float, float, float] = (0.5, 0.5, 1.0)
    align: Align | None = None

    def __post_init__(self) -> None:
        if self.align is not None and self.align not in get_args(Align):
            raise OptionError("E204", f"align must be {' or '.join(get_args(Align))}, got {self.align!r}")
        if not _is_finite(self.margin) or not 0 <= self.margin <= 4:
            raise OptionError("E204", f"the margin of a face crop must be between 0 and 4, got {self.margin}")
        shares = self.fallback
        if len(shares) != 3 or not all(_is_finite(v) and 0 <= v <= 1 for v in shares) or shares[2] < 0.01:
            raise OptionError(
                "E204", f"the fallback of a face crop must be center x, center y and side in 0..1, got {shares}"
            )


@dataclass(frozen=True, slots=True)
class Preprocess:
    """The preprocessing that turns a decoded image into the model's input.

    ``size`` is ``(height, width)`` in pixels. The image is first resized to ``size / crop_pct`` and then cut to
    ``size`` around its center; ``resize`` says how it gets there:

    - ``squash``: both sides are set, the aspect ratio is lost;
    - ``center``: the shorter side is set, the aspect ratio is kept, the longer side is cut;
    - ``pad``: the longer side is set, the aspect ratio is kept, the rest is filled with ``fill`` (R, G, B).

    ``resizer`` is the library whose arithmetic is used: ``pillow`` is antialiased, ``opencv`` is not; ``torch`` is
    torchvision's resize of tensors, see `ensemble.images.torch_resize`. ``channels`` are those of the network's input,
    which the graph makes from RGB: ``bgr`` reverses them, ``grey`` is Pillow's mode L. ``1`` to ``4`` are as many
    channels of the file itself, kept in float32 as they are stored (`ensemble.images.planes`); ``scale`` are the values
    that become 0 and 1 then. With ``face`` all this happens to the square around the face.

    Raises:
        OptionError: E204 when a value is out of range, or the resizer does not have the interpolation; E209 when a
            setting is not possible for channels of the file itself.
    """

    size: tuple[int, int]
    resize: Resize = "squash"
    interpolation: Interpolation = "bilinear"
    crop_pct: float = 1.0
    fill: tuple[int, int, int] = (128, 128, 128)
    face: FaceCrop | None = None
    resizer: Resizer = "pillow"
    channels: Channels = "rgb"
    scale: tuple[float, float] = _EIGHT_BITS

    @property
    def planes(self) -> int:
        """The number of channels of the network's input."""
        return _PLANES[self.channels]

    @property
    def kept(self) -> bool:
        """True if the model takes the file's own channels, in float32, and not RGB in 8 bits."""
        return self.channels.isdecimal()

    @property
    def shape(self) -> tuple[int, int, int]:
        """The shape of one image of the graph's input: ``(height, width, channels)``."""
        return (*self.size, self.planes if self.kept else 3)

    @property
    def dtype(self) -> Literal["uint8", "float32"]:
        """The type of the graph's input."""
        return "float32" if self.kept else "uint8"

    def __post_init__(self) -> None:
        if len(self.size) != 2 or not all(isinstance(side, int) and 8 <= side <= 4096 for side in self.size):
            raise OptionError("E204", f"size must be two whole sides of 8 to 4096 px, got {self.size}")
        if self.resize not in get_args(Resize):
            raise OptionError("E204", f"resize must be one of {', '.join(get_args(Resize))}, got {self.resize!r}")
        if self.interpolation not in get_args(Interpolation):
            raise OptionError(
                "E204", f"interpolation must be one of {', '.join(get_args(Interpolation))}, got {self.interpolation!r}"
            )
        for name, kinds in (("resizer", Resizer), ("channels", Channels)):
            if getattr(self, name) not in get_args(kinds):
                raise OptionError(
                    "E204", f"{name} must be one of {', '.join(get_args(kinds))}, got {getattr(self, name)!r}"
                )
        if self.interpolation not in _FILTERS[self.resizer]:
            raise OptionError(
                "E204",
                f"the resizer {self.resizer} has no interpolation {self.interpolation!r}, only "
                f"{', '.join(_FILTERS[self.resizer])}",
                hint="area is OpenCV's: --resizer opencv" if self.interpolation == "area" else None,
            )
        self._require_scale()
        if not 0.1 <= self.crop_pct <= 1.0:
            raise OptionError("E204", f"crop-pct must be between 0.1 and 1, got {self.crop_pct}")
        if len(self.fill) != 3 or not all(isinstance(value, int) and 0 <= value <= 255 for value in self.fill):
            raise OptionError("E204", f"fill must be three whole values of 0 to 255, got {self.fill}")

    def _require_scale(self) -> None:
        if len(self.scale) != 2 or not all(map(_is_finite, self.scale)) or not self.scale[0] < self.scale[1]:
            raise OptionError("E204", f"scale must be two numbers, the lower one first, got {self.scale}")
        if not self.kept:
            if self.scale != _EIGHT_BITS:
                hint = "name the number of channels too, such as --channels 1"
                raise OptionError("E209", "a scale is only for channels that are kept as they are", hint=hint)
        elif self.resizer != "pillow" or (self.face is not None and self.face.align is not None):
            what, hint = f"the resizer {self.resizer} is", "leave out --resizer"
            if self.face is not None and self.face.align is not None:
                what, hint = "faces turned upright are", "leave out --align: faces are cut out as they are"
            raise OptionError("E209", f"{what} not supported for channels that are kept as they are", hint=hint)


@dataclass(frozen=True, slots=True)
class ModelCard:
    """The metadata of a model: what it is, its preprocessing, and the results of its verification.

    ``mean`` and ``std`` are those of the network's input channels, in its order and in 0..1; they are applied inside
    the graph, and recorded here for reference.
    ``group`` names the member that several folds belong to; ``holdout_sha256`` is the hash of the ids that the fold
    was not trained on. ``repeat`` counts the fold splits of a member that was trained on several. ``head`` is the
    layout of the weights' last layer: one output per class, or (``axes``) per value of each axis, from which the
    network computes the log-probabilities of the classes. An axis in ``ordinal`` has one output and thresholds instead
    (`checkpoints.loading.axes_head`). ``activation`` is that which turns the logits into probabilities: softmax
    for one class per image, sigmoid for any number of labels.
    ``class_counts`` is the number of training images per class or label, if known. ``sources`` records for each setting
    if it comes from an option, the checkpoint or timm. ``checks`` has the results of the verification, and ``tools``
    the versions that wrote the file.

    Raises:
        OptionError: E204 when a value is out of range.
    """

    member: str
    arch: str
    labels: LabelSpace
    preprocess: Preprocess
    mean: tuple[float, ...]
    std: tuple[float, ...]
    checkpoint_sha256: str
    group: str | None = None
    fold: int | None = None
    holdout_sha256: str | None = None
    precision: Precision = "fp32"
    weights: Weights = "raw"
    head: Head = "flat"
    activation: Activation = "softmax"
    class_counts: tuple[int, ...] | None = None
    repeat: int = 0
    ordinal: tuple[str, ...] = ()
    sources: Mapping[str, str] = field(default_factory=dict)
    checks: Mapping[str, Any] = field(default_factory=dict)
    tools: Mapping[str, str] = field(default_factory=dict)
    schema: int = SCHEMA

    def __post_init__(self) -> None:
        validate_member(self.member)
        if self.group is not None:
            validate_member(self.group)
        planes = self.preprocess.planes
        if not all(len(values) == planes and all(map(_is_finite, values)) for values in (self.mean, self.std)):
            raise OptionError(
                "E204",
                f"mean and std must be {planes} numbers each, one per channel ({self.preprocess.channels}), got "
                f"{self.mean} and {self.std}",
            )
        for name, kinds in (
            ("precision", Precision),
            ("weights", Weights),
            ("head", Head),
            ("activation", Activation),
        ):
            if getattr(self, name) not in get_args(kinds):
                raise OptionError("E204", f"{name} {getattr(self, name)!r} is not known")
        counts = self.class_counts
        if counts is not None and not (
            len(counts) == len(self.labels)
            and all(isinstance(count, int) and 0 <= count <= _MOST_IMAGES for count in counts)
        ):
            raise OptionError(
                "E204", f"class_counts must be {len(self.labels)} numbers of images, got {cut_text(str(counts), 80)}"
            )
        if self.fold is not None and not 0 <= self.fold < _MOST_FOLDS:
            raise OptionError("E204", f"fold must be a number from 0, got {cut_text(str(self.fold), 40)}")
        if self.activation == "sigmoid" and (self.head == "axes" or len(self.labels.axes) > 1):
            raise OptionError("E204", "labels that exclude nothing have no axes")
        if self.head == "axes" and len(self.labels.axes) < 2:
            raise OptionError("E204", "a head for each axis needs labels with two axes or more")
        ordered_positions(self.labels, self.ordinal, option="ordinal")
        if self.ordinal and (self.activation == "sigmoid" or (self.head == "flat" and len(self.labels.axes) > 1)):
            raise OptionError("E204", "an ordinal axis needs a head for each axis, and one class per image")

    def require_rgb(self, what: str) -> None:
        """Check that the model takes images made from RGB, for something that is only done with those.

        Raises:
            OptionError: E209 when it keeps the channels of the file.
        """
        if self.preprocess.kept:
            message = (
                f"{self.member} takes {self.preprocess.planes} channels as a file has them: {what} is not supported"
            )
            raise OptionError("E209", message)

    def to_json(self) -> str:
        """Return one line of JSON with sorted keys; equal cards give equal text."""
        value = asdict(self) | {"labels": self.labels.to_dict()}
        # settings that came later are left out at their defaults: cards from before keep their bytes
        for name, default in (("face", None), ("resizer", "pillow"), ("channels", "rgb"), ("scale", _EIGHT_BITS)):
            if value["preprocess"][name] == default:
                del value["preprocess"][name]
        if self.preprocess.face is not None and self.preprocess.face.align is None:
            del value["preprocess"]["face"]["align"]
        if self.head == "flat":
            del value["head"]
        if self.activation == "softmax":
            del value["activation"]
        if self.class_counts is None:
            del value["class_counts"]
        if self.repeat == 0:
            del value["repeat"]
        if not self.ordinal:
            del value["ordinal"]
        return json.dumps(value, ensure_ascii=False, sort_keys=True, separators=(",", ":"))

    @classmethod
    def from_json(cls, text: str) -> ModelCard:
        """Read a card from its JSON.

        Raises:
            ModelError: E427 when the text is not a card, or is one of a newer schema.
        """
        try:
            if len(text) > MAX_CARD:
                raise ModelError("E427", f"the card has {len(text):,} letters; {MAX_CARD:,} are allowed")
            value = parse_json(text)
            require_names(value, "it", needed=("schema",))
            schema = value["schema"]
        except ValueError as err:
            raise ModelError("E427", f"the card is not JSON with a schema ({err}): {cut_text(text, 60)!r}") from err
        if type(schema) is not int or not 1 <= schema <= SCHEMA:
            raise ModelError("E427", f"the card has schema {schema}; this version of ens reads up to {SCHEMA}")
        odd = sorted(name for name in value if type(value[name]) not in _json_types().get(name, ()))
        if odd:
            raise ModelError("E427", f"the card has fields that are unknown or of another type: {', '.join(odd)}")
        try:
            require_names(value, "it", needed=_NEEDED)
            require_record_types(value, cls, besides=("labels",))  # a list of names will do for these
            preprocess = value.pop("preprocess")
            counts = value.pop("class_counts", None)
            return cls(
                preprocess=_preprocess_from(preprocess),
                labels=LabelSpace.from_dict(value.pop("labels")),
                mean=tuple(value.pop("mean")),
                std=tuple(value.pop("std")),
                class_counts=None if counts is None else tuple(counts),
                ordinal=tuple(value.pop("ordinal", ())),
                **value,
            )
        except (TypeError, KeyError, ValueError, OverflowError, EnsError) as err:
            why = err.message if isinstance(err, EnsError) else err
            raise ModelError("E427", f"the card does not have the fields of schema {schema}: {why}") from err


@functools.cache
def _json_types() -> Mapping[str, tuple[type, ...]]:
    """Return which types the JSON value of each field of a card may have, from the fields' annotations."""
    return {name: _json_types_of(annotation) for name, annotation in get_type_hints(ModelCard).items()}


def _json_types_of(annotation: Any) -> tuple[type, ...]:
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is UnionType:
        return tuple(found for argument in arguments for found in _json_types_of(argument))
    if origin is Literal:
        return tuple({type(argument) for argument in arguments})
    if origin is tuple:
        return (list,)
    if origin is Mapping or is_dataclass(annotation):
        return (dict,)
    assert annotation in {str, int, NoneType}, f"a card's field cannot have the type {annotation}"
    return (annotation,)


def _preprocess_from(value: dict[str, Any]) -> Preprocess:
    require_names(value, "preprocess", known=Preprocess.__dataclass_fields__, needed=("size",))
    settings = value | {key: tuple(value[key]) for key in ("size", "fill", "scale") if key in value}
    if "face" in value:
        face = value["face"]
        require_names(face, "face", known=FaceCrop.__dataclass_fields__, needed=("margin", "fallback"))
        settings["face"] = FaceCrop(**face | {"fallback": tuple(face["fallback"])})
    return Preprocess(**settings)


def _is_finite(value: object) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)


def validate_member(name: str) -> str:
    """Return the name if it is valid: as a folder's name, and in ``--weights a=2``.

    Raises:
        OptionError: E204 otherwise.
    """
    if (
        not name
        or name.startswith((".", "-"))
        or any(c in '/\\=,:*?"<>|' for c in name)
        or not name.isprintable()
        or len(name) > 60  # up to 240 bytes: file systems allow 255
    ):
        raise OptionError(
            "E204",
            f'{name!r} cannot name a member: up to 60 characters, not starting with . or -, no / \\ = , : * ? " < > |',
            hint="choose another name with --member",
        )
    return name


def parse_size(text: str) -> tuple[int, int]:
    """Parse ``224`` or ``HEIGHTxWIDTH`` from the command line.

    Raises:
        OptionError: E204 when the text has a different form.
    """
    sides = text.lower().split("x")
    if len(sides) not in (1, 2) or not all(map(is_count, sides)):
        raise OptionError("E204", f"--size takes 224 or HEIGHTxWIDTH, got {text!r}")
    return int(sides[0]), int(sides[-1])


def parse_triple(text: str, option: str) -> tuple[float, float, float]:
    """Parse three numbers from the command line.

    Raises:
        OptionError: E204 when the text has a different form.
    """
    try:
        first, second, third = (to_float(part) for part in text.split(","))
    except ValueError as err:
        raise OptionError("E204", f"{option} takes three numbers, got {text!r}") from err
    return first, second, third
