"""The calls in a pickle that make tensors and plain containers, done by functions of our own.

This module needs the standard library alone, as the sandboxed process imports it.
"""

from __future__ import annotations

from checkpoints.loading.pickle_objects import Name, Record, Storage, StoredTensor


class PickleError(ValueError):
    """The pickle is damaged, or written in a way that no pickler writes."""


# torch.FloatStorage and its relatives: the type of a storage's elements
_STORAGE_DTYPES = {
    "Double": "float64",
    "Float": "float32",
    "Half": "float16",
    "BFloat16": "bfloat16",
    "Long": "int64",
    "Int": "int32",
    "Short": "int16",
    "Char": "int8",
    "Byte": "uint8",
    "Bool": "bool",
    "ComplexDouble": "complex128",
    "ComplexFloat": "complex64",
    "Untyped": "uint8",
    "QInt8": "qint8",
    "QUInt8": "quint8",
    "QInt32": "qint32",
}
_DICTIONARIES = {"collections.OrderedDict", "collections.Counter", "builtins.dict"}
_SAME = {"builtins.str": str, "builtins.int": int, "builtins.float": float, "builtins.bool": bool}


def call(function: object, arguments: object) -> object:
    """Return the value of a call where it makes a tensor or a plain container, else a record of it."""
    given = arguments if type(arguments) is tuple else (arguments,)
    if type(function) is not Name:
        # the result of another call, such as a bound method
        return Record(function.made if type(function) is Record else Name("builtins", "object"), given)
    match str(function), given:
        # the base is a builtin type, whose value would be the third argument
        case "copyreg._reconstructor", (Name() as made, _, None):
            return call(made, ())
        case "copyreg._reconstructor", (Name() as made, _, value):
            return call(made, (value,))
        case "copyreg.__newobj__", (Name() as made, *rest):
            return call(made, tuple(rest))
        case "copyreg.__newobj_ex__", (Name() as made, tuple() as rest, dict()):
            return call(made, rest)
        case name, _:
            found = _container(name, given) if function.module in _CONTAINER_MODULES else _tensor(name, given)
            return Record(function, given) if found is None else found


_CONTAINER_MODULES = {"builtins", "collections", "_codecs"}


def _container(name: str, given: tuple[object, ...]) -> object | None:
    match name, given:
        case _, () if name in _DICTIONARIES:
            return {}
        case _, (dict() as entries,) if name in _DICTIONARIES:
            return dict(entries)
        case _, (list() as pairs,) if name == "collections.Counter":
            return dict.fromkeys(map(as_key, pairs), 1)
        case _, (list() as pairs,) if name in _DICTIONARIES:
            return dict(map(_pair, pairs))
        case "collections.defaultdict", (_,) | ():
            return {}
        case "collections.defaultdict", (_, dict() as entries):
            return dict(entries)
        case "collections.deque", (list() as items, *_):
            return list(items)
        case "collections.deque", ((), *_) | ():
            return []
        case "builtins.list" | "builtins.tuple", (list() | tuple() as items,):
            return list(items) if name == "builtins.list" else tuple(items)
        case "builtins.list", ():
            return []
        case "builtins.set", (list() | tuple() | set() as items,):
            return set(map(as_key, items))
        case "builtins.set", ():
            return set()
        case "builtins.frozenset", (list() | tuple() | set() as items,):
            return frozenset(map(as_key, items))
        case "builtins.bytearray" | "builtins.bytes", ():
            return b""
        case "builtins.bytearray" | "builtins.bytes", (bytes() as data,):
            return data
        case "builtins.bytearray" | "_codecs.encode", (str() as text, "latin-1" | "latin1"):
            return text.encode("latin-1")
        case "builtins.complex", (int() | float() as real, int() | float() as imaginary):
            return complex(real, imaginary)
        case _, (value,) if name in _SAME and type(value) is _SAME[name]:
            return value
    return None


def _pair(pair: object) -> tuple[object, object]:
    match pair:
        case [key, value]:
            return as_key(key), value
    raise ValueError("a dictionary of something else than pairs")


def _tensor(name: str, given: tuple[object, ...]) -> object | None:
    match name, given:
        case "torch.Size", (list() | tuple() as sizes,):
            return tuple(sizes)
        case "torch.device", (str() as kind, *rest):
            return ":".join([kind, *(str(number) for number in rest)])
        case "torch._utils._rebuild_tensor_v3", (Storage() as storage, offset, size, stride, _, _, Name() as dtype, *_):
            return _view(storage, dtype.name, offset, size, stride)
        case "torch._utils._rebuild_qtensor", (Storage() as storage, offset, size, stride, *_):
            return _view(storage, storage.dtype, offset, size, stride, is_quantized=True)
        case (
            "torch._utils._rebuild_tensor" | "torch._utils._rebuild_tensor_v2",
            (Storage() as storage, offset, size, stride, *_),
        ):
            return _view(storage, storage.dtype, offset, size, stride)
        case "torch._utils._rebuild_meta_tensor_no_storage", (Name() as dtype, size, stride, *_):
            return _view(None, dtype.name, 0, size, stride)
        case (
            "torch.nn.parameter.Parameter"
            | "torch.nn.parameter.Buffer"
            | "torch._utils._rebuild_parameter"
            | "torch._utils._rebuild_parameter_with_state"
            | "torch._utils._rebuild_device_tensor_from_cpu_tensor",
            (StoredTensor() as tensor, *_),
        ):
            return tensor
        # a tensor of another class, or with attributes: both are left out
        case (
            "torch._tensor._rebuild_from_type_v2" | "torch._tensor._rebuild_from_type",
            (Name() as function, Name() as kind, tuple() as arguments, state),
        ):
            made = call(function, arguments)
            if type(made) is Record:
                made = Record(kind, arguments)
                made.build(state)
                return _whole_local_tensor(made)
            return made
    return None


def _whole_local_tensor(made: Record) -> object:
    """Return the tensor of a DTensor of one process, which holds all of it; other wrappers remain records."""
    local = made.attributes.get("_local_tensor")
    match made.arguments:
        case (_, _, size, *_) if type(local) is StoredTensor and _whole(size) == local.shape:
            return local
    return made


def _view(
    storage: Storage | None, dtype: str, offset: object, size: object, stride: object, *, is_quantized: bool = False
) -> StoredTensor:
    shape, strides = _whole(size), _whole(stride)
    if len(shape) != len(strides) or type(offset) is not int or offset < 0:
        raise ValueError("a tensor whose shape and strides differ")
    start = offset if storage is None else offset + storage.start
    return StoredTensor(storage, dtype, start, shape, strides, is_quantized)


def _whole(values: object) -> tuple[int, ...]:
    if not isinstance(values, list | tuple) or not all(type(value) is int and value >= 0 for value in values):
        raise ValueError("a tensor whose shape is not made of whole numbers")
    return tuple(values)


def storage_of(identity: object) -> object:
    """Return the storage that torch's persistent id names; any other id becomes a record."""
    match identity:
        case ("module", Name() as made, *_):  # the class of a whole module, with its source code
            return made
        case ("storage", Name() as kind, str() | int() as key, _, int() as count, *rest):
            dtype = _STORAGE_DTYPES.get(kind.name.removesuffix("Storage"))
            match rest:  # the format before torch 1.6 has views: key, first element, number of elements
                case [] | [None] if dtype:
                    return Storage(str(key), dtype, count)
                case [(_, int() as start, int())] if dtype and start >= 0:
                    return Storage(str(key), dtype, count, start)
    return Record(Name("pickle", "persistent_load"), (identity,))


def pairs(items: list[object]) -> dict[object, object]:
    """Return the dictionary of keys and values in turn."""
    if len(items) % 2:
        raise PickleError("a key without a value")
    return dict(zip(map(as_key, items[::2]), items[1::2], strict=True))


_LARGEST_KEY, _DEEPEST_KEY = 1000, 50


def as_key(value: object) -> object:
    """Return a dictionary's key or a set's member; a stand-in for a tuple whose hash may take endless.

    A tuple of tuples may be written once and contained twice at every level: Python hashes it 2^depth times.
    """
    if type(value) is tuple and _count(value, {}, _DEEPEST_KEY) > _LARGEST_KEY:
        return Record(Name("builtins", "tuple"))
    return value


def _count(value: object, known: dict[int, int], depth: int) -> int:
    """Return the number of values in nested tuples, each as often as it is contained."""
    if type(value) is not tuple:
        return 1
    if id(value) not in known:
        known[id(value)] = 1 + (_LARGEST_KEY if depth == 0 else sum(_count(item, known, depth - 1) for item in value))
    return known[id(value)]


def extend(holder: object, items: list[object]) -> None:
    """Append items to a list or record, or add them to a set."""
    if type(holder) is list or type(holder) is Record:
        holder.extend(items)
    elif type(holder) is set:
        holder.update(map(as_key, items))
    else:
        raise PickleError(f"items for a {type(holder).__name__}")


def set_items(holder: object, entries: dict[object, object]) -> None:
    """Set entries of a dictionary or record."""
    if type(holder) is dict:
        holder.update(entries)
    elif type(holder) is Record:
        holder.set_items(entries)
    else:
        raise PickleError(f"entries for a {type(holder).__name__}")
