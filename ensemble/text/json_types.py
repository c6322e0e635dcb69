"""Check the types of JSON values from files: text is not a number, true is not 1, a number is not a name."""

from __future__ import annotations

import functools
from collections.abc import Collection, Mapping
from dataclasses import is_dataclass
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from ensemble.errors import cut_text

_WORDS = {str: "text", int: "a whole number", float: "a number", bool: "true or false", NoneType: "null"}


def require_type(value: Any, kind: Any, place: str) -> None:
    """Check a JSON value against a type annotation; ``place`` names the value in messages.

    ``float`` takes whole numbers as well; a tuple is a JSON list, and a mapping or a dataclass an object. Fields
    that an object lacks, or that a dataclass does not have, are left to its constructor.

    Raises:
        ValueError: the value, or one inside it, has another type.
    """
    origin, arguments = get_origin(kind), get_args(kind)
    if kind is Any:
        return
    is_record: bool = is_dataclass(kind)
    if is_record:
        _require(isinstance(value, Mapping), value, "an object", place)
        require_field_types(value, _fields(kind), place)
    elif origin in {Union, UnionType}:
        _require_one_of(value, arguments, place)
    elif origin is Literal:
        expected = " or ".join(repr(one) for one in arguments)
        _require(any(type(value) is type(one) and value == one for one in arguments), value, expected, place)
    elif origin is tuple:
        _require(isinstance(value, list), value, "a list", place)
        kinds = arguments[:1] * len(value) if arguments[1:] == (...,) else arguments
        _require(len(value) == len(kinds), value, f"a list of {len(kinds)}", place)
        for number, (one, of_one) in enumerate(zip(value, kinds, strict=True)):
            require_type(one, of_one, f"{place}[{number}]")
    elif origin is Mapping:
        _require(isinstance(value, Mapping), value, "an object", place)
        for name, one in value.items():
            require_type(one, arguments[1], f"{place}.{name}")
    else:
        number = kind is float and type(value) is int
        _require(type(value) is kind or number, value, _WORDS[kind], place)


def require_field_types(value: Mapping[str, Any], kinds: Mapping[str, Any], place: str = "") -> None:
    """Check those fields of a JSON object that have a type in ``kinds``; others are not looked at.

    Raises:
        ValueError: a field has another type.
    """
    for name, kind in kinds.items():
        if name in value:
            require_type(value[name], kind, f"{place}.{name}".lstrip("."))


def require_record_types(value: Mapping[str, Any], kind: type, *, besides: Collection[str] = ()) -> None:
    """Check the fields of a JSON object that a dataclass has, but for those ``besides``, which check their own.

    Raises:
        ValueError: a field has another type.
    """
    require_field_types(value, {name: one for name, one in _fields(kind).items() if name not in besides})


def _require_one_of(value: Any, kinds: tuple[Any, ...], place: str) -> None:
    faults = []
    for kind in kinds:
        try:
            return require_type(value, kind, place)
        except ValueError as err:
            faults.append(err)
    # of a text or a null beside an object, what is wrong inside the object is the message
    inner = [fault for fault in faults if not str(fault).startswith(f"{place} is ")]
    if inner:
        raise inner[0]
    raise ValueError(f"{place} is {_shown(value)}, expected {' or '.join(_words(kind) for kind in kinds)}")


def _words(kind: Any) -> str:
    origin = get_origin(kind)
    if origin is tuple:
        return "a list"
    if origin is Mapping or is_dataclass(kind):
        return "an object"
    if origin is Literal:
        return " or ".join(repr(one) for one in get_args(kind))
    return _WORDS[kind]


def _require(holds: bool, value: Any, expected: str, place: str) -> None:
    if not holds:
        raise ValueError(f"{place} is {_shown(value)}, expected {expected}")


def _shown(value: Any) -> str:
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, Mapping | list):
        return f"{'an object' if isinstance(value, Mapping) else 'a list'} of {len(value):,}"
    if isinstance(value, int) and abs(value) >= 10**40:  # its digits take long, and may be more than Python prints
        return "a number of more than 40 digits"
    return f"the text {cut_text(value, 40)!r}" if isinstance(value, str) else repr(value)


@functools.cache
def _fields(kind: Any) -> Mapping[str, Any]:
    return get_type_hints(kind)
