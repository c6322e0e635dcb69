"""Read what a checkpoint says about its network beside the weights: architecture, options, images and class names.

Trainers keep it in ``args`` (timm, torchvision), ``hyper_parameters`` (Lightning), ``config``, ``cfg``, ``hparams``,
``meta``, ``pretrained_cfg`` (timm's config.json), as objects, dictionaries or JSON. Every entry is read by its name
wherever it is; what does not have the form of its name is no setting, and is left alone.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Generic, TypeVar

from checkpoints.loading.image_processor import crop_share, is_image_processor, read_image_processor
from checkpoints.loading.pickle_objects import InertObject

_CAFFE = re.compile(r"""["']?style["']?\s*[=:]\s*["']caffe["']""")
T = TypeVar("T")
_DEEPEST = 5
_MOST_ENTRIES = 5000

# dictionaries of the trained network's settings; what is elsewhere is read too, but after these
_ARCH = ("model", "arch", "model_name", "architecture", "architectures", "encoder", "encoder_name", "backbone",
         "backbone_name", "timm_model", "model_arch", "network", "net", "base_model")  # fmt: skip
_SIZE = ("img_size", "image_size", "imgsz", "input_size", "resolution", "img_dim", "input_resolution", "crop_size",
         "image_resolution", "im_size", "sz", "val_crop_size")  # fmt: skip
_CLASSES = ("classes", "class_names", "names", "label_names", "labels", "vocab", "categories", "classes_",
            "target_names", "class_list", "label_list")  # fmt: skip
_INDEX_OF = ("class_to_idx", "label2id", "label_to_index", "class_to_index", "label_to_idx", "name_to_idx", "cls2idx",
             "label2idx", "class2idx", "label_map", "class_map", "name2id")  # fmt: skip
_NAME_OF = ("idx_to_class", "id2label", "index_to_class", "idx2label", "idx_to_label", "id_to_label", "idx2class",
            "label_num_to_name", "index_to_label", "id2name", "class_indices")  # fmt: skip
_COUNTS = ("num_classes", "n_classes", "num_labels", "nb_classes", "num_class", "n_class")
_PILLOW = {0: "nearest", 1: "lanczos", 2: "bilinear", 3: "bicubic"}
_INTERPOLATIONS = {
    "nearest": "nearest", "bilinear": "bilinear", "linear": "bilinear", "bicubic": "bicubic", "cubic": "bicubic",
    "lanczos": "lanczos", "antialias": "lanczos",
}  # fmt: skip
_MARGIN = re.compile(
    r"arc_?face|cos_?face|arc_?margin|add_?margin|sphere_?face|adacos|curricular|sub_?center|norm_?face|elastic_?face",
    re.IGNORECASE,
)
_CROP_MODES = {"center", "squash", "border"}
_POOLS = {"avg", "max", "avgmax", "catavgmax", "fast", "fastavg", "token", "map", "avgmaxc", ""}


@dataclass(frozen=True, slots=True)
class Found(Generic[T]):
    """A value and the path of its entry in the checkpoint, such as ``args.img_size``."""

    value: T
    place: str


@dataclass(frozen=True, slots=True)
class Metadata:
    """The settings that a checkpoint has beside its weights; None or empty for what it does not say.

    ``archs`` are all names under which an architecture could be named. ``size`` is ``(height, width)`` in pixels;
    ``mean`` and ``std`` are for channels in 0..1. ``arch_options`` are options of timm's ``create_model``. ``unused``
    are entries of these names whose values make no sense. ``margin`` is an entry that names a loss of cosines,
    ``caffe_style`` one by which a ResNet has the strides of Caffe's.
    """

    archs: tuple[Found[str], ...] = ()
    arch_options: Mapping[str, Found[Any]] = field(default_factory=dict)
    size: Found[tuple[int, int]] | None = None
    crop_pct: Found[float] | None = None
    resize: Found[str] | None = None
    interpolation: Found[str] | None = None
    mean: Found[tuple[float, ...]] | None = None
    std: Found[tuple[float, ...]] | None = None
    classes: Found[tuple[str, ...]] | None = None
    class_count: Found[int] | None = None
    unused: tuple[Found[Any], ...] = ()
    in_channels: Found[int] | None = None
    margin: Found[str] | None = None
    caffe_style: Found[str] | None = None


NO_METADATA = Metadata()


@dataclass(frozen=True, slots=True)
class _Entry:
    place: str
    holder: str
    name: str
    value: Any


def read_metadata(payload: object) -> Metadata:
    """Return the settings in the content of a checkpoint, or of a ``config.json`` beside one."""
    entries = list(_entries(payload))
    processor = next((Found(e.value, e.place) for e in entries if is_image_processor(e.value)), None)
    return _with_processor(_read_entries(entries), processor)


def _with_processor(found: Metadata, processor: Found[Any] | None) -> Metadata:
    """Return the settings with those of an image processor of transformers, which decides how images become input."""
    if processor is None:
        return found
    does, place = read_image_processor(processor.value), processor.place
    return replace(
        found,
        size=Found(does.size, f"{place}.size") if does.size else found.size,
        resize=Found(does.resize, place) if does.resize else found.resize,
        crop_pct=Found(does.crop_pct, place) if does.crop_pct else found.crop_pct,
        mean=Found(does.mean, f"{place}.image_mean") if does.mean else found.mean,
        std=Found(does.std, f"{place}.image_std") if does.std else found.std,
    )


def _read_entries(entries: Sequence[_Entry]) -> Metadata:
    def first(names: Sequence[str], read: Callable[[Any], T | None]) -> Found[T] | None:
        for name in names:  # the names in the order of their weight, then the entries from the outside in
            for entry in entries:
                if entry.name == name and (value := read(entry.value)) is not None:
                    return Found(value, entry.place)
        return None

    archs = [Found(e.value, e.place) for name in _ARCH for e in entries if e.name == name and _is_word(e.value)]
    mean = first(("mean", "image_mean", "img_mean", "norm_mean", "data_mean", "pixel_mean", "normalize_mean"), _mean)
    std = first(("std", "image_std", "img_std", "norm_std", "data_std", "pixel_std", "normalize_std"), _std)
    buffers = {entry.place for entry in entries if hasattr(entry.value, "ndim")}
    changes = mean is None or std is None or {*mean.value} != {0.0} or {*std.value} != {1.0}
    if mean is not None and mean.place in buffers and not changes:
        mean = std = None  # buffers that nobody has set
    archs += [
        Found(e.value, e.place)
        for e in entries
        if e.name in {"name", "type", "variant"} and e.holder in _ARCH and _is_word(e.value)
    ]
    return Metadata(
        archs=tuple(archs),
        arch_options=_arch_options(entries),
        size=first(("input_size",), _triple_size) or first(_SIZE, _size) or _size_of_processor(entries),
        crop_pct=first(("crop_pct", "test_crop_pct"), _fraction) or _crop_of_torchvision(entries),
        resize=first(("crop_mode",), lambda value: value if isinstance(value, str) and value in _CROP_MODES else None),
        interpolation=first(("interpolation", "test_interpolation", "resample"), _interpolation),
        mean=mean,
        std=std,
        classes=first(_INDEX_OF, _names_by_index) or first(_NAME_OF, _names_of_index) or first(_CLASSES, _names),
        class_count=first(_COUNTS, _count),
        unused=tuple(
            Found(entry.value, entry.place)
            for entry in entries
            if isinstance(entry.value, int | float | str | list | tuple)
            and not isinstance(entry.value, bool)
            and ((entry.name in _SIZE and _size(entry.value) is None) or _is_no_fraction(entry))
        ),
        in_channels=first(("in_chans", "in_channels", "input_channels"), _count),
        margin=_margin(entries),
        caffe_style=next((Found(e.name, e.place) for e in entries if _is_caffe_style(e)), None),
    )


def _entries(value: object, place: str = "", holder: str = "", depth: int = 0) -> Iterator[_Entry]:
    """Yield the named entries from the outside in; tensors are passed over."""
    level: list[tuple[str, str, object]] = [(place, holder, value)]
    seen, count = set(), 0
    for _ in range(_DEEPEST - depth):
        inner: list[tuple[str, str, object]] = []
        for here, name, item in level:
            mapping = _as_mapping(item)
            if mapping is None or id(item) in seen:
                continue
            seen.add(id(item))
            for key, content in mapping.items():
                if not isinstance(key, str) or (count := count + 1) > _MOST_ENTRIES:
                    continue
                path = f"{here}.{key}" if here else key
                plain = key.lower().replace("-", "_").lstrip("_")
                if hasattr(content, "ndim"):  # a buffer such as normalize.mean
                    plain = plain.rpartition(".")[2]
                yield _Entry(path, name, plain, content)
                inner.append((path, plain, content))
        level = inner


def _as_mapping(value: object) -> Mapping[object, object] | None:
    if isinstance(value, str) and value.lstrip()[:1] == "{" and len(value) < 1_000_000:
        try:
            value = json.loads(value)
        except (ValueError, RecursionError):
            return None
    if isinstance(value, InertObject):
        # OmegaConf keeps the values of a config in _content, each in a node with _val
        content = dict(value.items())
        inner = content.get("_content")
        return _without_nodes(inner) if isinstance(inner, Mapping) else content
    return {key: item for key, item in value.items() if not _is_tensor(item)} if isinstance(value, Mapping) else None


def _without_nodes(content: Mapping[object, object]) -> dict[object, object]:
    return {
        key: node.get("_val") if isinstance(node, InertObject) and "_val" in node else node
        for key, node in content.items()
    }


def _is_tensor(value: object) -> bool:
    """Return True for a tensor that is no mean or standard deviation of channels."""
    has_shape = hasattr(value, "ndim") and hasattr(value, "dtype")
    return has_shape and getattr(value, "ndim", 0) > 1 and math.prod(getattr(value, "shape", ())) not in {1, 3}


def _is_word(value: object) -> bool:
    return isinstance(value, str) and re.fullmatch(r"[\w./:-]{2,100}", value) is not None


def _arch_options(entries: Sequence[_Entry]) -> dict[str, Found[Any]]:
    found: dict[str, Found[Any]] = {}
    for entry in entries:
        if entry.name in {"gp", "global_pool"} and isinstance(entry.value, str) and entry.value in _POOLS:
            found.setdefault("global_pool", Found(entry.value, entry.place))
        elif entry.name in {"bn_eps", "output_stride"} and _is_number(entry.value) and entry.value > 0:
            found.setdefault(entry.name, Found(entry.value, entry.place))
        elif entry.name in {"model_kwargs", "model_args", "timm_kwargs"} and isinstance(entry.value, Mapping):
            for key, value in entry.value.items():
                if isinstance(key, str) and key.isidentifier() and isinstance(value, str | int | float | bool):
                    found[key] = Found(value, f"{entry.place}.{key}")
    # what the weights decide, and what concerns training alone
    for name in ("num_classes", "in_chans", "pretrained", "checkpoint_path", "img_size", "drop_rate", "drop_path_rate"):
        found.pop(name, None)
    return found


def _margin(entries: Sequence[_Entry]) -> Found[str] | None:
    """Return the first entry that says that the network was trained with a loss of cosines, such as ArcFace."""
    for entry in entries:
        named = _MARGIN.search(entry.name) and (entry.value is True or (_is_number(entry.value) and entry.value > 0))
        text = entry.value.type_name if isinstance(entry.value, InertObject) else entry.value
        if named or (isinstance(text, str) and len(text) < 100 and _MARGIN.search(text)):
            return Found(str(text), entry.place)
    return None


def _is_caffe_style(entry: _Entry) -> bool:
    """Return True for the style of a ResNet of OpenMMLab, also in the text of a whole configuration."""
    if entry.name == "style":
        return str(entry.value) == "caffe"
    return entry.name in {"config", "cfg"} and isinstance(entry.value, str) and _CAFFE.search(entry.value) is not None


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _numbers(value: object) -> tuple[float, ...] | None:
    if hasattr(value, "tolist") and not isinstance(value, Mapping):
        value = value.reshape(-1).tolist() if hasattr(value, "reshape") else value.tolist()
    if isinstance(value, str):
        value = re.split(r"[\s,]+", value.strip("()[] "))
        try:
            value = [float(part) for part in value]
        except ValueError:
            return None
    if not isinstance(value, list | tuple) or not value or not all(_is_number(item) for item in value):
        return None
    return tuple(float(item) for item in value)


def _side(value: float) -> int | None:
    return int(value) if value == int(value) and 8 <= value <= 4096 else None


def _size(value: object) -> tuple[int, int] | None:
    if isinstance(value, Mapping):
        return _size_of(value)
    numbers = (float(value),) if _is_number(value) else _numbers(value)  # type: ignore[arg-type]
    if numbers is None or len(numbers) > 3 or (len(numbers) == 3 and numbers[0] > 4):
        return None
    sides = [_side(number) for number in numbers[-2:]]
    if None in sides or not sides:
        return None
    return sides[0] or 0, sides[-1] or 0


def _triple_size(value: object) -> tuple[int, int] | None:
    numbers = _numbers(value)
    return _size(value) if numbers is not None and len(numbers) == 3 else None


def _size_of(value: Mapping[Any, Any]) -> tuple[int, int] | None:
    """Return the size of transformers' ``{"height": 224, "width": 224}`` or ``{"shortest_edge": 224}``."""
    if "shortest_edge" in value:
        return _size(value["shortest_edge"])
    return _size([value["height"], value["width"]]) if {"height", "width"} <= value.keys() else None


def _size_of_processor(entries: Sequence[_Entry]) -> Found[tuple[int, int]] | None:
    for entry in entries:
        if entry.name == "size" and (size := _size(entry.value)) is not None:
            return Found(size, entry.place)
    return None


def _crop_of_torchvision(entries: Sequence[_Entry]) -> Found[float] | None:
    """Return the share that torchvision's reference training keeps of an image: ``val_crop_size / val_resize_size``."""
    sides = {entry.name: entry for entry in entries if entry.name in {"val_crop_size", "val_resize_size"}}
    if len(sides) < 2:
        return None
    inner, outer = (sides[name].value for name in ("val_crop_size", "val_resize_size"))
    if not (isinstance(inner, int) and isinstance(outer, int)) or not 8 <= inner <= outer <= 4096:
        return None
    share = crop_share(inner, outer)
    return None if share is None else Found(share, sides["val_resize_size"].place)


def _fraction(value: object) -> float | None:
    return float(value) if _is_number(value) and 0.1 <= value <= 1 else None  # type: ignore[arg-type, operator]


def _is_no_fraction(entry: _Entry) -> bool:
    return entry.name == "crop_pct" and _fraction(entry.value) is None


def _interpolation(value: object) -> str | None:
    if isinstance(value, int) and not isinstance(value, bool):
        return _PILLOW.get(value)
    if isinstance(value, InertObject):
        value = str(value.arguments[0]) if value.arguments else ""
    return _INTERPOLATIONS.get(str(value).rpartition(".")[2].lower())


def _mean(value: object) -> tuple[float, ...] | None:
    numbers = _numbers(value)
    if numbers is None or len(numbers) not in {1, 3} or min(numbers) < 0 or max(numbers) > 255:
        return None
    return tuple(number / 255 for number in numbers) if max(numbers) > 1.5 else numbers


def _std(value: object) -> tuple[float, ...] | None:
    numbers = _mean(value)
    return numbers if numbers is not None and min(numbers) > 0 else None


def _count(value: object) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) and 0 < value < 100_000 else None


def _names(value: object) -> tuple[str, ...] | None:
    if isinstance(value, InertObject) and not value:
        return None
    if hasattr(value, "tolist") and not isinstance(value, Mapping):
        value = value.tolist()
    if isinstance(value, Mapping):  # ultralytics' names: {0: "a", 1: "b"}
        return _names_of_index(value) or _names_by_index(value)
    if not isinstance(value, list | tuple) or len(value) < 2 or not all(isinstance(item, str) for item in value):
        return None
    names = tuple(str(item) for item in value)
    return names if len(set(names)) == len(names) and all(names) else None


def _names_by_index(value: object) -> tuple[str, ...] | None:
    """Return the names of ``{"cat": 0, "dog": 1}``, whose numbers must be 0 to n - 1."""
    if not isinstance(value, Mapping) or len(value) < 2:
        return None
    if not all(isinstance(index, int) and not isinstance(index, bool) for index in value.values()):
        return None
    by_index = {index: str(name) for name, index in value.items()}
    return tuple(by_index[i] for i in range(len(value))) if sorted(by_index) == list(range(len(value))) else None


def _names_of_index(value: object) -> tuple[str, ...] | None:
    """Return the names of ``{0: "cat", 1: "dog"}``, whose numbers may be text, as JSON has them."""
    if not isinstance(value, Mapping) or len(value) < 2 or not all(isinstance(name, str) for name in value.values()):
        return None
    try:
        by_index = {int(str(index)): name for index, name in value.items()}
    except ValueError:
        return None
    if sorted(by_index) != list(range(len(value))):
        return None
    return _names([by_index[i] for i in range(len(value))])
