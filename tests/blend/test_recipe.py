"""Making, writing and reading recipes, and refusing invalid ones."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ensemble.blend.decision_rules import MacroF1Rule, PriorRule, Rule, decide
from ensemble.blend.pooling import LINEAR, parse_pool
from ensemble.blend.recipe import Group, Recipe, make_recipe, parse_weights, read_recipe, render_recipe
from ensemble.errors import FileError, PredictionError
from ensemble.labels import MASK18, LabelSpace
from tests.support.members import draw_logits, make_member

TWO_VIEWS = {"identity": draw_logits(0), "hflip": draw_logits(1)}
FOLDS = [
    make_member("b3_f0", TWO_VIEWS, group="b3"),
    make_member("b3_f1", TWO_VIEWS, group="b3"),
    make_member("r18_f0", TWO_VIEWS, group="r18"),
]
THIRDS = np.array([1, 2, 4, 5]) / 12


def code_of(action: Callable[[], object]) -> tuple[str, str]:
    with pytest.raises(PredictionError) as caught:
        action()
    return caught.value.code, caught.value.message


def test_by_default_all_weights_are_equal() -> None:
    """Groups have weight 1 whatever their number of folds, views too, and the pool is linear."""
    recipe = make_recipe(FOLDS)
    assert recipe.pool == LINEAR
    assert recipe.views == {"hflip": 1.0, "identity": 1.0}
    assert {name: (group.weight, list(group.members)) for name, group in recipe.groups.items()} == {
        "b3": (1.0, ["b3_f0", "b3_f1"]),
        "r18": (1.0, ["r18_f0"]),
    }
    assert recipe.inputs == {member.member: member.sha256 for member in FOLDS}


def test_the_order_of_the_members_does_not_matter() -> None:
    """Another order of members, weights and views gives a recipe with the same text."""
    a = make_recipe(FOLDS, weights={"b3": 2, "r18": 1}, view_weights={"identity": 1, "hflip": 3})
    b = make_recipe(FOLDS[::-1], weights={"r18": 1, "b3": 2}, view_weights={"hflip": 3, "identity": 1})
    assert a.to_json() == b.to_json()


def test_classes_are_in_the_order_of_the_first_member_by_name() -> None:
    """The order on the command line does not decide which class is 0."""
    names = [*MASK18.names[1:], MASK18.names[0]]
    a = make_member("a", draw_logits(0, classes=18), labels=MASK18)
    b = make_member("b", draw_logits(1, classes=18), labels=LabelSpace.flat(names))
    assert make_recipe([a, b]).labels == make_recipe([b, a]).labels == MASK18


def test_a_group_of_one_goes_by_its_members_name() -> None:
    """Weights may name the only fold of a group instead of the group."""
    by_member = make_recipe(FOLDS, weights={"b3": 2, "r18_f0": 1})
    assert by_member == make_recipe(FOLDS, weights={"b3": 2, "r18": 1})


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        ({"b3": -1, "r18": 1}, "weights must be finite and not negative, got b3=-1"),
        ({"b3": float("nan"), "r18": 1}, "weights must be finite and not negative, got b3=nan"),
        ({"b3": 0, "r18": 0}, "at least one of the 2 weights must be positive"),
        ({"b3": 1}, "weights must name 2 groups, got 1; missing: r18"),
        ({"b3": 1, "r18": 1, "r19": 1}, "weights for unknown groups: r19; known: b3, r18"),
        ({"b3_f0": 1, "b3_f1": 1, "r18": 1}, "weights for unknown groups: b3_f0, b3_f1; known: b3, r18"),
        ({"b3": 1, "r18": 1, "r18_f0": 1}, "weights name both a group and its only member; known: b3, r18"),
        ({}, "weights must name 2 groups, got 0; missing: b3, r18"),
    ],
)
def test_fault_83_weights_that_do_not_fit(weights: dict[str, float], message: str) -> None:
    """Negative, NaN, all-zero, missing, unknown and repeated weights are E508 with the reason."""
    assert code_of(lambda: make_recipe(FOLDS, weights=weights)) == ("E508", message)


def test_members_with_other_views_need_a_choice() -> None:
    """Different sets of views are E516 unless view weights are given."""
    members = [*FOLDS, make_member("x", draw_logits(5))]
    code, message = code_of(lambda: make_recipe(members))
    assert code == "E516"
    assert message == "b3_f0 and x were predicted with different views: only b3_f0 has hflip"
    assert make_recipe(members, view_weights={"identity": 1}).views == {"identity": 1}


def test_a_repeated_member_is_refused() -> None:
    """A repeated member name is E515, and no members are E517."""
    assert code_of(lambda: make_recipe([*FOLDS, FOLDS[0]])) == ("E515", "b3_f0 occurs more than once among 4 members")
    assert code_of(lambda: make_recipe([]))[0] == "E517"


@given(
    st.dictionaries(
        st.text(min_size=1), st.tuples(st.floats(0, 1e300), st.integers(1, 3)), min_size=1, max_size=4
    ).filter(lambda groups: any(weight > 0 for weight, _ in groups.values())),
    st.dictionaries(st.text(), st.floats(1e-300, 1e300), min_size=1, max_size=3),
    st.sampled_from(["linear", "hard", "power:0.1"]),
)
@settings(deadline=None)
def test_a_recipe_survives_its_file(groups: dict[str, tuple[float, int]], views: dict[str, float], pool: str) -> None:
    """A recipe read from its text is equal, to the last bit of its weights, and has the same text."""
    made = {n: Group(w, {f"{n}/{i}": f"{i:064}" for i in range(count)}) for n, (w, count) in groups.items()}
    recipe = Recipe(parse_pool(pool), views, made, MASK18)
    again = Recipe.from_json(recipe.to_json())
    assert again == recipe
    assert again.to_json() == recipe.to_json()


def test_the_text_of_a_recipe_is_fixed() -> None:
    """The file format is part of the interface; a change needs a new schema version."""
    recipe = make_recipe([make_member("a", [[0, 1]])], pool=parse_pool("power:0.5"), weights={"a": 2})
    assert json.loads(recipe.to_json()) == {
        "schema": 1,
        "pool": "power:0.5",
        "rule": "argmax",
        "views": {"identity": 1.0},
        "groups": {"a": {"weight": 2, "members": {"a": recipe.inputs["a"]}}},
        "labels": {"axes": [{"name": "class", "values": ["0", "1"]}]},
    }
    assert recipe.to_json().endswith("}\n")


def test_what_is_not_learned_is_not_written() -> None:
    """A recipe without sharpness, bias and group views has the same bytes as in earlier versions."""
    text = make_recipe([make_member("a", [[0, 1]])], weights={"a": 2}).to_json()
    sha256 = json.loads(text)["groups"]["a"]["members"]["a"]
    assert text == (
        '{\n  "schema": 1,\n  "pool": "linear",\n  "rule": "argmax",\n  "views": {\n    "identity": 1.0\n  },\n'
        '  "groups": {\n    "a": {\n      "weight": 2,\n      "members": {\n        "a": "' + sha256 + '"\n'
        '      }\n    }\n  },\n  "labels": {\n    "axes": [\n      {\n        "name": "class",\n        "values": [\n'
        '          "0",\n          "1"\n        ]\n      }\n    ]\n  }\n}\n'
    )


@pytest.mark.parametrize("rule", [MacroF1Rule(THIRDS, THIRDS / 7), PriorRule(0.35, THIRDS)])
def test_learned_parts_survive_their_file(rule: Rule) -> None:
    """Rule, sharpness, bias, group views and reasons round-trip to the last bit."""
    recipe = replace(
        make_recipe(FOLDS),
        rule=rule,
        sharpness=1 / 3,
        bias=(0.1, -1 / 7, 0.0, 2.0),
        groups={"a": Group(1, {"x": ""}, {"identity": 1 / 3, "hflip": 0.0}), "b": Group(0, {"y": ""})},
        learned={"why": "because"},
    )
    again = Recipe.from_json(recipe.to_json())
    assert again.to_json() == recipe.to_json()
    assert replace(again, rule="argmax") == replace(recipe, rule="argmax")
    p = np.random.default_rng(0).dirichlet(np.ones(4), size=50)
    assert decide(p, again.rule).tolist() == decide(p, rule).tolist()


def damage(**changes: object) -> str:
    value: dict[str, Any] = json.loads(make_recipe(FOLDS).to_json()) | changes
    return json.dumps({key: part for key, part in value.items() if part is not None})


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "null",
        '"text"',
        "[" * 100_000,
        damage(schema=2),
        damage(schema=None),
        damage(schema=True),
        damage(views={"identity": True}),
        damage(bias=[0, 0, 0, True]),
        damage(sharpness=True),
        damage(groups={"a": {"weight": True, "members": {"x": ""}}}),
        damage(groups={"a": {"weight": 1, "members": {"x": ""}, "temperature": True}}),
        damage(groups={"a": {"weight": 1, "members": {"x": ""}, "class_weights": [1, 1, 1, True]}}),
        damage(smoothing={"kernel": [1, True, 1]}),
        damage(pool="mean"),
        damage(pool=None),
        damage(pool=3),
        damage(rule="guess"),
        damage(labels={"axes": 3}),
        damage(views={}),
        damage(views={"identity": -1}),
        damage(views={"identity": "1"}),
        damage(views={"identity": 10**400}),
        damage(views=["identity"]),
        damage(groups={}),
        damage(groups={"b3": {"weight": 1, "members": {}}}),
        damage(groups={"b3": {"weight": 1, "wieght": 1, "members": {"a": ""}}}),
        damage(groups={"b3": {"weight": float("nan"), "members": {"a": ""}}}),
        damage(groups={"b3": {"weight": 1, "members": ["a"]}}),
        damage(groups={"a": {"weight": 1, "members": {"x": ""}}, "b": {"weight": 1, "members": {"x": ""}}}),
        damage(bias=[0.0]),
        damage(bias=["0"] * 4),
        damage(bias=[float("inf"), 0, 0, 0]),
        damage(sharpness=-1),
        damage(sharpness="2"),
        damage(sharpness=float("nan")),
        damage(sharpness=10**400),
        damage(rule={"name": "per-axis", "shape": [float("inf"), 2]}),
        damage(learned=[]),
        damage(rule={"name": "guess"}),
        damage(rule={"name": "macro-f1"}),
        damage(rule={"name": "macro-f1", "f1": [0.5] * 3, "occurrences": [0.1] * 4}),
        damage(rule={"name": "macro-f1", "f1": [0.5] * 4, "occurrences": [0.1, 0.1, 0.1, 0]}),
        damage(rule={"name": "macro-f1", "f1": [float("nan")] * 4, "occurrences": [0.1] * 4}),
        damage(rule={"name": "macro-f1", "f1": ["0.5"] * 4, "occurrences": [0.1] * 4}),
        damage(rule={"name": "macro-f1", "f1": [True] * 4, "occurrences": [0.1] * 4}),
        damage(rule={"name": "prior", "tau": float("inf"), "prior": [0.25] * 4}),
        damage(rule={"name": "prior", "tau": "1", "prior": [0.25] * 4}),
        damage(rule={"name": "per-axis", "shape": ["2", "2"]}),
        damage(rule={"name": "per-axis", "shape": [2.5, 2]}),
        damage(rule={"name": "prior", "tau": 1, "prior": [0.5, 0.5, 0, 0]}),
        damage(groups={"a": {"weight": 1, "members": {"x": ""}, "views": {}}}),
        damage(groups={"a": {"weight": 1, "members": {"x": ""}, "views": {"identity": -1}}}),
        damage(schema=1.0),
        damage(groups={"a": {"weight": 1, "members": {"x": 12345}}}),
        damage(groups={"a": {"weight": 1, "members": {"x": None}}}),
        damage(groups={"a": {"weight": 1, "members": {"x": ["f" * 64]}}}),
        damage(groups={"a": {"weight": 1, "members": {"x": ""}, "temperature": "2"}}),
        damage(groups={"a": {"weight": 1, "members": {"x": ""}, "class_weights": ["1", "1", "1", "1"]}}),
        damage(groups={"a": {"weight": 1, "members": {"x": ""}, "class_weights": {"0": "1"}}}),
        damage(groups={"a": "x"}),
        damage(transductive="no", rule={"name": "macro-f1", "f1": [0.5] * 4, "occurrences": [0.1] * 4}),
        damage(transductive=1, rule={"name": "macro-f1", "f1": [0.5] * 4, "occurrences": [0.1] * 4}),
        damage(rule={"name": "prior", "tau": 1, "prior": [0.25] * 4, "tua": 2}),
        damage(rule={"name": "prior", "tau": [1], "prior": [0.25] * 4}),
        damage(smoothing={"kernel": [1, 2, 1], "group": 5}),
        damage(smoothing={"kernel": [1, 2, 1], "group": "file", "order": ["second"]}),
        damage(learned={"metric": 5}),
        damage(learned={"table": "linear"}),
    ],
)
def test_what_is_not_a_recipe_is_refused(text: str, tmp_path: Path) -> None:
    """Damage of any kind, a newer schema and unknown fields are E518 with the file's name, never another exception."""
    path = tmp_path / "blend.json"
    path.write_text(text)
    code, message = code_of(lambda: read_recipe(path))
    assert code == "E518"
    assert message.startswith("blend.json: not a recipe: ")


def test_a_value_of_another_type_is_named_with_its_place(tmp_path: Path) -> None:
    """The message says where the value stands, what it is and what belongs there."""
    path = tmp_path / "blend.json"
    path.write_text(damage(groups={"a": {"weight": 1, "members": {"x": 12345}}}))
    message = code_of(lambda: read_recipe(path))[1]
    assert message == "blend.json: not a recipe: groups.a.members.x is 12345, expected text"


def test_a_recipe_file_that_cannot_be_read(tmp_path: Path) -> None:
    """A missing file is E707, a binary file is E518."""
    with pytest.raises(FileError) as caught:
        read_recipe(tmp_path / "none.json")
    assert caught.value.code == "E707"
    (tmp_path / "binary.json").write_bytes(b"\xff\xfe\x00")
    assert code_of(lambda: read_recipe(tmp_path / "binary.json"))[0] == "E518"


@pytest.mark.parametrize(
    ("name", "data", "kind", "hint"),
    [
        ("e.onnx", b"\x08\x08r\x10\x0a\x09ens.fused\x12\x03{}}", "a fused ensemble", "ens predict e.onnx"),
        ("m.onnx", b"\x08\x08", "a model", "--models"),
        ("empty.onnx", b"", "a model", "--models"),
        ("s.csv", b"ImageID,ans\n", "a table", "ens blend --save"),
        ("p.npz", b"PK", "a file of predictions", "ens blend PREDICTIONS --save"),
        ("r18.pth", b"PK", "a checkpoint", "ens export"),
    ],
)
def test_a_file_of_another_kind_is_named(tmp_path: Path, name: str, data: bytes, kind: str, hint: str) -> None:
    """E518 says what was given in place of a recipe, and what to do with it."""
    path = tmp_path / name
    path.write_bytes(data)
    with pytest.raises(PredictionError, match=f"E518.*{name} is {kind}") as caught:
        read_recipe(path)
    assert hint in caught.value.hint


def test_a_folder_in_place_of_a_recipe(tmp_path: Path) -> None:
    """E518 names the recipe in it, if there is one."""
    (tmp_path / "blend.json").write_text("{}")
    with pytest.raises(PredictionError, match=r"E518.*is a folder") as caught:
        read_recipe(tmp_path)
    assert "blend.json" in caught.value.hint


def test_what_a_recipe_keeps_of_learning_may_have_true_in_it() -> None:
    """Only where numbers and names belong is true refused: ``learned`` and ``transductive`` may be or have one."""
    recipe = replace(make_recipe(FOLDS), learned={"nested": {"is_mean": True, "list": [False]}})
    assert Recipe.from_json(recipe.to_json()) == recipe


def test_a_recipe_edited_by_hand_is_put_in_order(tmp_path: Path) -> None:
    """Groups, members and views in another order in the file are the same recipe."""
    recipe = make_recipe(FOLDS)
    value = json.loads(recipe.to_json())
    value["groups"] = dict(reversed(value["groups"].items()))
    value["groups"]["b3"]["members"] = dict(reversed(value["groups"]["b3"]["members"].items()))
    value["views"] = dict(reversed(value["views"].items()))
    (tmp_path / "blend.json").write_text(json.dumps(value), encoding="utf-8-sig")
    assert read_recipe(tmp_path / "blend.json").to_json() == recipe.to_json()


def test_weights_from_the_command_line() -> None:
    """Weights are name=number, a name alone has weight 1, and view names keep their colons."""
    assert parse_weights("a=2,b=1") == {"a": 2.0, "b": 1.0}
    assert parse_weights(" identity , shift:4:left = 0.5") == {"identity": 1.0, "shift:4:left": 0.5}


@pytest.mark.parametrize("text", ["", "a=", "a=x", "=1", "a=1,,b=1", "a=1,a=2", "a=1=2"])
def test_weights_of_another_form_are_refused(text: str) -> None:
    """Weights of another form than name=number, and repeated names, are E508."""
    assert code_of(lambda: parse_weights(text))[0] == "E508"


def test_weights_are_shown_normalized() -> None:
    """The table shows the weights scaled to sum to one."""
    text = render_recipe(replace(make_recipe(FOLDS, weights={"b3": 6, "r18": 2}), pool=parse_pool("hard")))
    assert text.splitlines() == [
        "pool hard; views hflip 0.5, identity 0.5",
        "group  weight  members",
        "b3     0.7500  b3_f0, b3_f1",
        "r18    0.2500  r18_f0",
    ]
