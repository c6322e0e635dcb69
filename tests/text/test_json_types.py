"""The types of JSON values are those of the annotations, and a fault is named with its place."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import pytest

from ensemble.text.json_types import require_field_types, require_type


@dataclass(frozen=True)
class Inner:
    count: int
    share: float = 0.5


@dataclass(frozen=True)
class Outer:
    name: str
    inner: Inner | None
    shape: tuple[int, int] = (1, 1)


@pytest.mark.parametrize(
    ("value", "kind"),
    [
        ("a", str),
        (3, float),
        (3.5, float),
        (float("nan"), float),
        (10**400, int),
        (None, str | None),
        ([], tuple[int, ...]),
        ([1, 2], tuple[int, int]),
        ({"a": [1.5]}, Mapping[str, tuple[float, ...]]),
        ("x", Literal["x", "y"]),
        ({"anything": [True, None]}, Mapping[str, Any]),
        ({"name": "a", "inner": {"count": 1}, "shape": [2, 3]}, Outer),
        ({"name": "a", "inner": None}, Outer),
        ({}, Outer),
    ],
)
def test_values_of_the_type_pass(value: Any, kind: Any) -> None:
    """Whole numbers are numbers, lists are tuples, objects are mappings and dataclasses; what lacks is not checked."""
    require_type(value, kind, "it")


@pytest.mark.parametrize(
    ("value", "kind", "message"),
    [
        (3, str, "it is 3, expected text"),
        ("3", int, "it is the text '3', expected a whole number"),
        (3.0, int, "it is 3.0, expected a whole number"),
        (True, int, "it is true, expected a whole number"),
        (False, float, "it is false, expected a number"),
        (1, bool, "it is 1, expected true or false"),
        (None, str, "it is null, expected text"),
        (3, str | None, "it is 3, expected text or null"),
        ("abc", tuple[str, ...], "it is the text 'abc', expected a list"),
        ([1], tuple[int, int], "it is a list of 1, expected a list of 2"),
        ([1, "2"], tuple[int, ...], "it[1] is the text '2', expected a whole number"),
        ([], Mapping[str, int], "it is a list of 0, expected an object"),
        ({"a": "b"}, Mapping[str, float] | None, "it.a is the text 'b', expected a number"),
        ("z", Literal["x", "y"], "it is the text 'z', expected 'x' or 'y'"),
        (1, Literal["x"] | tuple[int, ...] | Inner, "it is 1, expected 'x' or a list or an object"),
        (-(10**400), str, "it is a number of more than 40 digits, expected text"),
        ({"name": 5}, Outer, "it.name is 5, expected text"),
        ({"inner": {"count": "1"}}, Outer, "it.inner.count is the text '1', expected a whole number"),
        ("a", Outer, "it is the text 'a', expected an object"),
    ],
)
def test_values_of_another_type_are_refused_by_their_place(value: Any, kind: Any, message: str) -> None:
    """The message names the place, shows the value and says what was expected."""
    with pytest.raises(ValueError, match=r"it.* is ") as caught:
        require_type(value, kind, "it")
    assert str(caught.value) == message


def test_fields_without_a_type_are_not_looked_at() -> None:
    """Only the named fields are checked; a missing one is left to the caller."""
    require_field_types({"a": 1, "b": object()}, {"a": int, "c": str})
    with pytest.raises(ValueError, match=r"^x\.a is 1, expected text$"):
        require_field_types({"a": 1}, {"a": str}, "x")
