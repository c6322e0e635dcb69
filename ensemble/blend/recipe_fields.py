"""The fields of a recipe's JSON: names and types are checked before any is read, so that an error can name them."""

from __future__ import annotations

import difflib
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from ensemble.errors import PredictionError
from ensemble.text.json_types import require_field_types, require_type

_NUMBER, _TEXT, _OBJECT, _LIST = "a number", "text", "an object", "a list"
_RECIPE = {
    "schema": (_NUMBER,),
    "pool": (_TEXT,),
    "views": (_OBJECT,),
    "groups": (_OBJECT,),
    "labels": (_OBJECT, _LIST, _NUMBER),
    "rule": (_TEXT, _OBJECT),
    "sharpness": (_NUMBER,),
    "bias": (_LIST,),
    "learned": (_OBJECT,),
    "transductive": ("true or false",),
    "activation": (_TEXT,),
    "smoothing": (_OBJECT,),
    "positive": (_TEXT,),
}
_GROUP = {
    "weight": (_NUMBER,),
    "members": (_OBJECT,),
    "views": (_OBJECT,),
    "temperature": (_NUMBER,),
    "class_weights": (_LIST, _OBJECT),
}
_SMOOTHING = {"kernel": (_LIST,), "ids": (_TEXT,), "edges": (_TEXT,), "group": (_TEXT,), "order": (_TEXT,)}
_RULES = {
    "macro-f1": {"f1": (_LIST,), "occurrences": (_LIST,)},
    "prior": {"tau": (_NUMBER,), "prior": (_LIST,)},
    "per-axis": {"shape": (_LIST,)},
    "ordinal": {"cuts": (_LIST,)},
    "thresholds": {"thresholds": (_LIST,)},
}
_LEARNED: Mapping[str, Any] = {
    "method": str,
    "metric": str,
    "seed": int,
    "why": str,
    "expected_gain": float,
    "table": tuple[Mapping[str, Any], ...],
    "views": tuple[Mapping[str, Any], ...],
}
_MOST = 1e12
_NUMBERS = {"views", "bias", "class_weights", "kernel", "f1", "occurrences", "prior", "shape", "cuts", "thresholds"}
"""Fields of which all values are numbers."""


def require_fields(value: Any) -> None:
    """Check the fields of a recipe: all that are needed are there, none is unknown, and each has a type it may have.

    Raises:
        ValueError: with the place of the first fault, such as ``groups.r18.weight``.
    """
    _require(value, _RECIPE, ("schema", "pool", "views", "groups", "labels", "rule"), "")
    for name, group in value["groups"].items():
        _require(group, _GROUP, ("weight", "members"), f"groups.{name[:60]}")
    rule = value["rule"]
    if isinstance(rule, Mapping) and isinstance(rule.get("name"), str) and rule["name"] in _RULES:
        fields = _RULES[rule["name"]]
        _require(rule, {"name": (_TEXT,), **fields}, tuple(fields), "rule")
    elif isinstance(rule, Mapping):
        _require(rule, {"name": (_TEXT,), **dict.fromkeys(rule, ())}, ("name",), "rule")
    if value.get("smoothing") is not None:
        _require(value["smoothing"], _SMOOTHING, ("kernel",), "smoothing")
    _require_inner_types(value)


def _require_inner_types(value: Mapping[str, Any]) -> None:
    """Check the types of what the fields hold: hashes are texts, and the record of learning is what it says."""
    require_type(value["schema"], int, "schema")
    for name, group in value["groups"].items():
        require_type(group["members"], Mapping[str, str], f"groups.{name[:60]}.members")
    require_field_types(value.get("learned") or {}, _LEARNED, "learned")
    if isinstance(value["rule"], Mapping):
        require_field_types(value["rule"], {"shape": tuple[int, ...]}, "rule")


def require_bias(bias: Sequence[float] | None, classes: int) -> None:
    """Check a bias of the logarithms of probabilities.

    Raises:
        PredictionError: E518 when there is not one number per class, or one is so large that sums overflow.
    """
    if bias is not None and (len(bias) != classes or not all(abs(one) <= _MOST for one in bias)):  # NaN is not
        raise PredictionError("E518", f"the bias needs {classes} numbers from {-_MOST:g} to {_MOST:g}, one per class")


def _require(value: Any, fields: Mapping[str, tuple[str, ...]], needed: Collection[str], place: str) -> None:
    what = place or "the recipe"
    if not isinstance(value, Mapping):
        raise _fault(f"{what} must be an object, got {_kind(value)}")
    for name in value:
        if name not in fields:
            near = difflib.get_close_matches(name, list(fields), n=1)
            raise _fault(f"{what} has an unknown field {name[:60]!r}" + (f"; did you mean {near[0]}?" if near else ""))
    for name in needed:
        if name not in value:
            raise _fault(f"{what} lacks the field {name!r}")
    for name, found in value.items():
        where = f"{place}.{name}".lstrip(".")
        if found is None and name not in needed:
            continue
        if fields[name] and _kind(found) not in fields[name]:
            raise _fault(f"{where} must be {' or '.join(fields[name])}, got {_kind(found)}")
        if name in _NUMBERS:
            for inner in found.values() if isinstance(found, Mapping) else found:
                if _kind(inner) != _NUMBER:
                    raise _fault(f"{where} must hold numbers alone, got {_kind(inner)}")


def _kind(value: Any) -> str:
    if isinstance(value, bool):
        return "true or false"
    if isinstance(value, int | float):
        return _NUMBER
    if isinstance(value, str):
        return _TEXT
    if isinstance(value, Mapping):
        return _OBJECT
    return _LIST if isinstance(value, list) else "null"


def _fault(message: str) -> ValueError:
    return ValueError(message)
