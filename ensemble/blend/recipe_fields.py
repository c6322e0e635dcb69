"""The fields of a recipe's JSON: names and types are checked before any is read, so that an error can name them."""

from __future__ import annotations

import difflib
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from ensemble.errors import PredictionError, cut_text
from ensemble.text.json_types import require_field_types, require_type

Numbers = tuple[float, ...]
_RECIPE: Mapping[str, Any] = {
    "schema": int,
    "pool": str,
    "views": Mapping[str, float],
    "groups": Mapping[str, Any],
    "labels": Mapping[str, Any] | tuple[Any, ...] | int,
    "rule": str | Mapping[str, Any],
    "sharpness": float | None,
    "bias": Numbers | None,
    "learned": Mapping[str, Any] | None,
    "transductive": bool | None,
    "activation": str | None,
    "smoothing": Mapping[str, Any] | None,
    "positive": str | None,
}
_GROUP: Mapping[str, Any] = {
    "weight": float,
    "members": Mapping[str, str],
    "views": Mapping[str, float] | None,
    "temperature": float | None,
    "class_weights": Numbers | Mapping[str, float] | None,
}
_SMOOTHING: Mapping[str, Any] = {
    "kernel": Numbers,
    "ids": str | None,
    "edges": str | None,
    "group": str | None,
    "order": str | None,
}
_RULES: Mapping[str, Mapping[str, Any]] = {
    "macro-f1": {"f1": Numbers, "occurrences": Numbers},
    "prior": {"tau": float, "prior": Numbers},
    "per-axis": {"shape": tuple[int, ...]},
    "ordinal": {"cuts": Numbers},
    "thresholds": {"thresholds": Numbers},
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


def require_fields(value: Any) -> None:
    """Check the fields of a recipe: all that are needed are there, none is unknown, and each has a type it may have.

    Raises:
        ValueError: with the place of the first fault, such as ``groups.r18.weight``.
    """
    _require(value, _RECIPE, ("schema", "pool", "views", "groups", "labels", "rule"), "")
    for name, group in value["groups"].items():
        _require(group, _GROUP, ("weight", "members"), f"groups.{cut_text(name, 60)}")
    rule = value["rule"]
    if isinstance(rule, Mapping):
        name = rule.get("name")
        fields = _RULES.get(name) if isinstance(name, str) else None
        # an unknown rule is refused by its reader, which names those that there are
        _require(rule, {**(fields or dict.fromkeys(rule, Any)), "name": str}, ("name", *(fields or ())), "rule")
    if value.get("smoothing") is not None:
        _require(value["smoothing"], _SMOOTHING, ("kernel",), "smoothing")
    require_field_types(value.get("learned") or {}, _LEARNED, "learned")


def require_bias(bias: Sequence[float] | None, classes: int) -> None:
    """Check a bias of the logarithms of probabilities.

    Raises:
        PredictionError: E518 when there is not one number per class, or one is so large that sums overflow.
    """
    if bias is not None and (len(bias) != classes or not all(abs(one) <= _MOST for one in bias)):  # NaN is not
        raise PredictionError("E518", f"the bias needs {classes} numbers from {-_MOST:g} to {_MOST:g}, one per class")


def _require(value: Any, fields: Mapping[str, Any], needed: Collection[str], place: str) -> None:
    what = place or "the recipe"
    require_type(value, Mapping[str, Any], what)
    for name in value:
        if name not in fields:
            near = difflib.get_close_matches(name, list(fields), n=1)
            raise ValueError(
                f"{what} has an unknown field {cut_text(name, 60)!r}" + (f"; did you mean {near[0]}?" if near else "")
            )
    for name in needed:
        if name not in value:
            raise ValueError(f"{what} lacks the field {name!r}")
    require_field_types(value, fields, place)
