"""From the records of a pickle to the content of a checkpoint: values, stand-ins, and the weights of modules."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field

import numpy as np

from checkpoints.loading.pickle_objects import InertObject, Name, PickledLayer, Record, Storage, StoredTensor

_DEEPEST = 150  # containers in one another; a pickled network nests them about 60 deep
_MOST_MODULES = 50_000  # of the largest networks of timm each has fewer than 10,000
_PLAIN = (str, int, float, bool, complex, bytes, type(None))
_PATHS = re.compile(r"pathlib(\._local)?\.(Pure)?(Posix|Windows)?Path")
_NUMPY_TYPE = re.compile(r"[|<>=]?[biufcSU]\d+")
_MODULE_PARTS = ("_parameters", "_buffers", "_modules")


@dataclass(slots=True)
class Findings:
    """Classes of whole modules and of other objects, and the places of values that are not plain weights.

    ``opaque`` are tensors that only code makes, with its name; ``quantized`` and ``without_values`` are names of
    tensors; ``too_deep`` is True when values were left out because they were nested too deeply.
    """

    modules: dict[str, None] = field(default_factory=dict)
    objects: dict[str, None] = field(default_factory=dict)
    opaque: dict[str, str] = field(default_factory=dict)
    quantized: list[str] = field(default_factory=list)
    without_values: list[str] = field(default_factory=list)
    tensors: int = 0
    too_deep: bool = False


def to_content(value: object) -> tuple[object, Findings]:
    """Return a pickle's value with stand-ins for records, and the weights of modules as one dictionary each.

    Tensors remain `StoredTensor`. No container holds itself: a reference back to a container that it is in becomes a
    stand-in without attributes.
    """
    converter = _Converter()
    return converter.convert(value, ""), converter.found


class _Converter:
    def __init__(self) -> None:
        self.found = Findings()
        self._done: dict[int, object] = {}
        self._within: set[int] = set()  # the containers around the current value

    def convert(self, value: object, place: str) -> object:
        if isinstance(value, StoredTensor):
            self._note(value, place)
        if isinstance(value, (*_PLAIN, StoredTensor, Storage)):
            return value
        if type(value) is Name:
            return InertObject(str(value))
        if id(value) in self._done:
            return self._done[id(value)]
        if id(value) in self._within:
            return InertObject(str(value.made) if type(value) is Record else type(value).__name__)
        if len(self._within) >= _DEEPEST:
            self.found.too_deep = True
            return InertObject("nested too deeply")
        self._within.add(id(value))
        made = self._container(value, place)
        self._within.remove(id(value))
        self._done[id(value)] = made
        return made

    def _note(self, tensor: StoredTensor, place: str) -> None:
        self.found.tensors += 1
        if tensor.is_quantized:
            self.found.quantized.append(place)
        if tensor.storage is None:
            self.found.without_values.append(place)

    def _container(self, value: object, place: str) -> object:
        if type(value) is dict:
            return dict(self._entries(value.items(), place))
        if type(value) is list or type(value) is tuple:
            items = [self.convert(item, f"{place}.{number}") for number, item in enumerate(value)]
            return items if type(value) is list else tuple(items)
        if type(value) is set or type(value) is frozenset:
            return value  # its members are keys, which are kept as they are
        assert type(value) is Record, type(value)
        return self._record(value, place)

    def _entries(self, entries: Iterable[tuple[object, object]], place: str) -> Iterator[tuple[object, object]]:
        for key, item in entries:
            name = self._key(key)
            where = f"{place}.{name}" if place else str(name)
            if type(item) is Record and _made_of_tensors(item):
                self.found.opaque[where] = str(item.made)
            yield name, self.convert(item, where)

    def _key(self, key: object) -> object:
        """Return the text or number that a key of numpy is; other keys are kept."""
        if type(key) is Record and (known := _known_value(key)) is not None:
            return known[0] if isinstance(known[0], str | int | float) else key
        return key

    def _record(self, record: Record, place: str) -> object:
        known = _known_value(record)
        if known is not None:
            return known[0]
        type_name = str(record.made)
        attributes = record.attributes
        if all(type(attributes.get(part)) in (dict, Record) for part in _MODULE_PARTS):
            rest = ((name, item) for name, item in attributes.items() if name not in _MODULE_PARTS)
            weights = self._weights(record, place)
            (self.found.modules if weights else self.found.objects)[type_name] = None
            return InertModule(type_name, weights, dict(self._texts(rest, place)), dict(_layers(record)))
        self.found.objects[type_name] = None
        if record.items and not attributes and not record.entries:
            return self.convert(record.items, place)
        if "_content" in attributes and type_name.startswith("omegaconf."):
            return self.convert(_omegaconf(record), place)
        entries: dict[object, object] = record.entries or dict(enumerate(record.items or ()))
        return InertObject(
            type_name,
            attributes=self._texts(attributes.items(), place),
            items=self._entries(entries.items(), place),
            arguments=tuple(item for item in record.arguments if isinstance(item, _PLAIN)),
        )

    def _weights(self, module: Record, place: str) -> dict[str, object]:
        weights: dict[str, object] = {}
        for name, tensor in _state_dict(module):
            where = f"{place}.{name}" if place else name
            if isinstance(tensor, StoredTensor):
                self._note(tensor, where)
                weights[name] = tensor
            elif type(tensor) is Record:
                self.found.opaque[where] = str(tensor.made)
        return weights

    def _texts(self, entries: Iterable[tuple[object, object]], place: str) -> Iterator[tuple[str, object]]:
        return ((str(key), item) for key, item in self._entries(entries, place))


class InertModule(InertObject):
    """The weights of a whole pickled module, under the names of its state dict; ``vars()`` has its attributes.

    Hooks of the module's own that rename its state dict are code, and do not run.
    """

    __slots__ = ("_layers",)

    def __init__(
        self,
        type_name: str,
        weights: Mapping[str, object],
        attributes: Mapping[str, object],
        layers: Mapping[str, PickledLayer],
    ) -> None:
        super().__init__(type_name, attributes=attributes.items())
        self.clear()
        self.update(weights)
        self._layers = layers

    @property
    def layers(self) -> Mapping[str, PickledLayer]:
        """Each module by its dotted name, itself under ``""``."""
        return self._layers


def _layers(module: Record) -> Iterator[tuple[str, PickledLayer]]:
    """Yield the modules in a module, itself first, in the order of its ``named_modules``."""
    for name, record in _modules(module):
        inner = _mapping(record.attributes.get("_modules"))
        settings = {
            key: item
            for key, item in record.attributes.items()
            if not key.startswith("_") and key != "training" and _is_setting(item)
        }
        yield name.rstrip("."), PickledLayer(str(record.made), settings, is_leaf=not inner)


def _is_setting(value: object) -> bool:
    if type(value) is tuple:
        return len(value) <= 6 and all(type(item) in (int, float, bool) for item in value)
    return type(value) in (int, float, bool, type(None)) or (type(value) is str and len(value) < 100)


def _state_dict(module: Record) -> Iterator[tuple[str, object]]:
    """Yield the parameters and buffers of a module and of those inside it, in the order of their state dict."""
    for prefix, record in _modules(module):
        parts = {part: _mapping(record.attributes.get(part)) for part in _MODULE_PARTS}
        passing = record.attributes.get("_non_persistent_buffers_set")
        passing = passing if isinstance(passing, set | frozenset | list) else ()
        for part in ("_parameters", "_buffers"):
            for name, tensor in parts[part].items():
                if not (part == "_buffers" and name in passing):
                    yield f"{prefix}{name}", tensor


def _modules(module: Record) -> Iterator[tuple[str, Record]]:
    """Yield a module and those inside it, each with the start of the names of its tensors.

    A module that is registered twice counts twice: a short file could name more than any memory holds.

    Raises:
        ValueError: for more modules than any network has.
    """
    waiting: list[tuple[str, Record, tuple[int, ...]]] = [("", module, ())]
    count = 0
    while waiting:
        prefix, record, around = waiting.pop()
        if (count := count + 1) > _MOST_MODULES:
            raise ValueError(f"a module holds more than {_MOST_MODULES:,} modules")
        yield prefix, record
        inner = [
            (f"{prefix}{name}.", child, (*around, id(record)))
            for name, child in _mapping(record.attributes.get("_modules")).items()
            if type(child) is Record and id(child) not in around and len(around) < _DEEPEST
        ]
        waiting += reversed(inner)


def _mapping(value: object) -> Mapping[object, object]:
    if type(value) is Record:  # a subclass of OrderedDict
        return value.entries or {}
    return value if type(value) is dict else {}


def _made_of_tensors(record: Record) -> bool:
    """Return True for a call with a tensor or storage: a tensor of a kind that only its own code can make."""
    if record.attributes:
        return isinstance(record.attributes.get("_local_tensor"), StoredTensor)
    parts = [part for item in record.arguments for part in (item if isinstance(item, tuple | list) else (item,))]
    return any(isinstance(part, StoredTensor | Storage) for part in parts)


def _omegaconf(record: Record) -> object:
    """Return the value of a node of omegaconf, which keeps nodes in ``_content``, and values in ``_val``."""
    content = record.attributes.get("_content", record.attributes.get("_val"))
    if type(content) is dict:
        return {key: _omegaconf(item) if type(item) is Record else item for key, item in content.items()}
    if type(content) is list:
        return [_omegaconf(item) if type(item) is Record else item for item in content]
    return content


def _known_value(record: Record) -> tuple[object] | None:
    """Return the value of a record of numpy, pathlib or the standard library in a tuple; None for all others."""
    name = str(record.made)
    if _PATHS.fullmatch(name) and all(type(part) is str for part in record.arguments):
        return ("/".join(str(part) for part in record.arguments).replace("//", "/"),)
    if not name.startswith(("numpy.", "torch.")):
        return None
    made = f"{record.made.module.rpartition('.')[2]}.{record.made.name}"
    match made, record.arguments, record.state:
        case "multiarray.scalar", (Record() as kind, bytes() as data), _:
            found = _array(_dtype(kind), (), data)
            return None if found is None else (found.item(),)
        case "multiarray._reconstruct", _, (int(), tuple() as shape, Record() as kind, bool() as fortran, data):
            return _one(_array_or_list(_dtype(kind), shape, data, fortran=fortran))
        case "numeric._frombuffer", (bytes() as data, Record() as kind, tuple() as shape, str() as order), _:
            return _one(_array_or_list(_dtype(kind), shape, data, fortran=order == "F"))
        case _, (), (Storage() as storage, int() as offset, tuple() as shape, tuple() as strides) if _is_tensor(name):
            return _one(StoredTensor(storage, storage.dtype, offset + storage.start, shape, strides))
    return None


def _is_tensor(name: str) -> bool:
    """Return True for the tensor classes of torch 0.1, such as torch.FloatTensor."""
    return re.fullmatch(r"torch(\.cuda)?\.\w+Tensor", name) is not None


def _one(value: object | None) -> tuple[object] | None:
    return None if value is None else (value,)


def _dtype(kind: Record) -> np.dtype[np.generic] | None:
    """Return numpy's type from its record: its name, and the byte order in its state."""
    match kind.arguments, kind.state:
        case (str() as name, *_), (_, str() as order, *_) if _NUMPY_TYPE.fullmatch(name):
            return np.dtype(f"{order}{name.lstrip('<>|=')}" if order in "<>" else name)
        case (str() as name, *_), None if _NUMPY_TYPE.fullmatch(name):
            return np.dtype(name)
    return None


def _array(dtype: np.dtype[np.generic] | None, shape: object, data: object) -> np.ndarray | None:
    if dtype is None or not isinstance(data, bytes) or not isinstance(shape, tuple):
        return None
    if not all(type(side) is int and side >= 0 for side in shape) or dtype.itemsize * math.prod(shape) != len(data):
        return None
    return np.frombuffer(data, dtype).reshape(shape)


def _array_or_list(dtype: np.dtype[np.generic] | None, shape: object, data: object, *, fortran: bool) -> object | None:
    if dtype is None and isinstance(data, list):  # an array of objects
        return data
    data = data.encode("latin-1") if isinstance(data, str) else data  # as Python 2 wrote it
    turned = tuple(reversed(shape)) if fortran and isinstance(shape, tuple) else shape
    found = _array(dtype, turned, data)
    return found if found is None or not fortran else found.transpose()
