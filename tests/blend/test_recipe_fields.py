"""A recipe with a wrong field is refused with a sentence that names the field, not with Python's own."""

from __future__ import annotations

import json
from typing import Any

import pytest

from ensemble.blend.recipe import Recipe
from ensemble.errors import PredictionError

RECIPE: dict[str, Any] = {
    "schema": 1,
    "pool": "linear",
    "rule": "argmax",
    "views": {"identity": 1},
    "groups": {"a": {"weight": 1, "members": {"a": ""}}},
    "labels": ["cat", "dog", "owl"],
}
A = RECIPE["groups"]["a"]


def refusal(value: object) -> str:
    text = value if isinstance(value, str) else json.dumps(value)
    with pytest.raises(PredictionError) as caught:
        Recipe.from_json(text)
    assert caught.value.code == "E518"
    return caught.value.message


def test_the_recipe_itself_is_read() -> None:
    """Without a fault nothing is refused; null stands for a field that is not set."""
    assert (
        Recipe.from_json(json.dumps(RECIPE)).to_json()
        == Recipe.from_json(json.dumps(RECIPE | {"bias": None})).to_json()
    )


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ([RECIPE], "the recipe is a list of 1, expected an object"),
        (None, "the recipe is null, expected an object"),
        ({k: v for k, v in RECIPE.items() if k != "schema"}, "the recipe lacks the field 'schema'"),
        ({k: v for k, v in RECIPE.items() if k != "groups"}, "the recipe lacks the field 'groups'"),
        (RECIPE | {"schema": "1"}, "it has schema '1'"),
        (RECIPE | {"poool": "x"}, "the recipe has an unknown field 'poool'; did you mean pool?"),
        (RECIPE | {"pool": 5}, "pool is 5, expected text"),
        (RECIPE | {"groups": []}, "groups is a list of 0, expected an object"),
        (RECIPE | {"groups": {"a": 1}}, "groups.a is 1, expected an object"),
        (RECIPE | {"groups": {"a": A | {"weight": "1"}}}, "groups.a.weight is the text '1', expected a number"),
        (RECIPE | {"groups": {"a": A | {"wieght": 1}}}, "groups.a has an unknown field 'wieght'; did you mean weight?"),
        (RECIPE | {"groups": {"a": {"weight": 1}}}, "groups.a lacks the field 'members'"),
        (RECIPE | {"groups": {"a": A | {"members": ["a"]}}}, "groups.a.members is a list of 1, expected an object"),
        (RECIPE | {"views": {"identity": None}}, "views.identity is null, expected a number"),
        (RECIPE | {"bias": [1, "2", 3]}, "bias[1] is the text '2', expected a number"),
        (RECIPE | {"rule": {"name": "prior"}}, "rule lacks the field 'tau'"),
        (RECIPE | {"rule": {}}, "rule lacks the field 'name'"),
        (RECIPE | {"rule": {"name": ["prior"]}}, "rule.name is a list of 1, expected text"),
        (RECIPE | {"smoothing": [1, 2, 1]}, "smoothing is a list of 3, expected an object or null"),
        (RECIPE | {"smoothing": {"kernel": [1], "id": "x"}}, "smoothing has an unknown field 'id'; did you mean ids?"),
    ],
)
def test_a_wrong_field_is_named(value: object, message: str) -> None:
    """The place, what belongs there, and what is there."""
    assert message in refusal(value)


@pytest.mark.parametrize(
    "part",
    [
        {"bias": [1e308, -1e308, 0]},
        {"rule": {"name": "prior", "tau": 1e308, "prior": [0.3, 0.3, 0.4]}},
        {"rule": {"name": "prior", "tau": -1e308, "prior": [0.3, 0.3, 0.4]}},
        {"rule": {"name": "macro-f1", "f1": [1, 1, 1], "occurrences": [1e-320, 1, 1]}},
        {"smoothing": {"kernel": [1e308, 1e308, 1e308]}},
    ],
)
def test_numbers_whose_sums_overflow_are_refused(part: dict[str, Any]) -> None:
    """They made all images one class, or ended in a bug report."""
    assert (
        "overflow" in refusal(RECIPE | part)
        or "from -1e+12 to 1e+12" in refusal(RECIPE | part)
        or "at most" in refusal(RECIPE | part)
    )


def test_a_pattern_that_never_ends_is_refused_when_it_is_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    """A recipe of 1 KB could hold a blend for years."""
    import numpy as np

    from ensemble.blend.smoothing import Smoothing, smooth_rows
    from ensemble.text import patterns

    monkeypatch.setattr(patterns, "LIMIT", 0.5)
    ids = [f"{'a' * 40}{i}" for i in range(3)]
    with pytest.raises(PredictionError, match="more than") as caught:
        smooth_rows(np.ones((3, 2)), ids, Smoothing((1.0, 2.0, 1.0), ids=r"((?:a+)+)(x)"))
    assert caught.value.code == "E518"
