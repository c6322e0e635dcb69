"""Early exit: what is called certain is certain, whatever the members to come may say."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ensemble.blend.blend import blend
from ensemble.blend.decision_rules import AxisRule, MacroF1Rule, PriorRule, Rule, decide
from ensemble.blend.pooling import log_softmax, parse_pool
from ensemble.blend.recipe import Group, Recipe
from ensemble.errors import OptionError
from ensemble.labels import LabelSpace
from ensemble.submit.early_exit import (
    ForwardPass,
    Running,
    certain,
    ends_of_units,
    in_order,
    keep_members,
    passes_of,
    require_early_exit,
    used_part,
)
from tests.support.members import draw_logits, make_member

C = 6
RULES = ("argmax", "prior", "macro-f1", "per-axis")


def draw_rule(name: str, rng: np.random.Generator) -> Rule:
    """A rule of this kind for six classes."""
    if name == "prior":
        return PriorRule(float(rng.uniform(-0.5, 1.5)), rng.dirichlet(np.ones(C)))
    if name == "macro-f1":
        return MacroF1Rule(rng.uniform(0, 1, C), rng.uniform(0.02, 0.6, C))
    return AxisRule((2, 3)) if name == "per-axis" else "argmax"


def draw_recipe(rule: str, seed: int, *, shaped: bool, pool: str = "linear") -> Recipe:
    """Three groups, one of two folds and one with views of its own, under a rule that is drawn too."""
    rng = np.random.default_rng(seed)
    return Recipe(
        pool=parse_pool(pool),
        views={"identity": 2.0, "hflip": 1.0},
        groups={
            "a": Group(float(rng.uniform(0.2, 4)), {"a-f0": "", "a-f1": ""}),
            "b": Group(float(rng.uniform(0.2, 4)), {"b": ""}, {"identity": 1.0}),
            "c": Group(float(rng.uniform(0.2, 4)), {"c": ""}),
        },
        labels=LabelSpace.flat(C),
        rule=draw_rule(rule, rng),
        sharpness=float(rng.uniform(0.3, 2.5)) if shaped else 1.0,
        bias=tuple(rng.normal(0, 0.7, C)) if shaped else None,
    )


def completed(total: np.ndarray, rest: float, points: np.ndarray, recipe: Recipe) -> np.ndarray:
    """The answers ``(S, N)`` when the passes to come say each of ``points`` ``(S, C)``: the recipe's definition."""
    pooled = total[np.newaxis] + rest * points[:, np.newaxis]
    bias = 0 if recipe.bias is None else np.array(recipe.bias)
    shaped = np.exp(log_softmax(recipe.sharpness * np.log(np.maximum(pooled, 1e-300)) + bias))
    return decide(shaped.reshape(-1, C), recipe.rule).reshape(len(points), len(total))


@settings(max_examples=150, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    rule=st.sampled_from(RULES),
    shaped=st.booleans(),
    rest=st.floats(0.01, 0.9),
)
def test_no_completion_changes_an_answer_that_is_certain(seed: int, rule: str, shaped: bool, rest: float) -> None:
    """Neither a corner of the simplex, nor an edge, nor a point inside it gives a certain row another answer."""
    rng = np.random.default_rng(seed)
    recipe = draw_recipe(rule, seed, shaped=shaped)
    total = (1 - rest) * rng.dirichlet(np.full(C, 0.15), size=60)
    settled = certain(total, rest, recipe)
    edges = (np.eye(C)[:, np.newaxis] + np.eye(C)) / 2
    points = np.concatenate([edges.reshape(-1, C), rng.dirichlet(np.full(C, 0.3), size=40)])
    found = completed(total, rest, points, recipe)
    assert (found[:, settled.rows] == settled.classes[settled.rows]).all()


@pytest.mark.parametrize("sharpness", [None, 0.8, 1.6])
@pytest.mark.parametrize("rule", RULES)
def test_the_bound_is_exact_where_it_is_said_to_be(rule: str, sharpness: float | None) -> None:
    """Every row that no corner changes is certain; below sharpness 1, where two rules are bounded, most are."""
    rng = np.random.default_rng(5)
    shaped = sharpness is not None
    recipe = replace(draw_recipe(rule, 5, shaped=shaped), sharpness=sharpness or 1.0)
    total = 0.6 * rng.dirichlet(np.full(C, 0.2), size=4000)
    sure = certain(total, 0.4, recipe).rows
    found = completed(total, 0.4, np.eye(C), recipe)
    truly = (found == found[0]).all(axis=0)
    assert (sure <= truly).all()
    if rule in ("macro-f1", "per-axis") and recipe.sharpness < 1:
        assert 0.8 * truly.sum() < sure.sum() <= truly.sum()
    else:
        assert sure.sum() == truly.sum() > 100


def test_a_tie_to_the_last_bit_is_never_certain() -> None:
    """A leader whose lead is just what is outstanding can still be met, and argmax would take the first class."""
    total = np.array([[0.25, 0.5, 0.0, 0.0, 0.0, 0.0]])
    recipe = draw_recipe("argmax", 0, shaped=False)
    assert not certain(total, 0.25, recipe).rows.any()
    assert certain(total / 0.75 * 0.76, 0.24, recipe).rows.all()


def test_without_sharpness_nothing_is_certain() -> None:
    """Sharpness 0 makes all probabilities equal: the answer is decided by rounding alone."""
    recipe = replace(draw_recipe("argmax", 0, shaped=False), sharpness=0.0)
    assert not certain(np.array([[0.9, 0, 0, 0, 0, 0]]), 0.1, recipe).rows.any()


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), rule=st.sampled_from(RULES), shaped=st.booleans())
def test_rows_that_leave_have_the_answer_of_the_blend(seed: int, rule: str, shaped: bool) -> None:
    """Pass after pass, in order of weight per cost, each certain answer is the one that `blend` gives."""
    recipe = draw_recipe(rule, seed, shaped=shaped)
    truth = 3 * np.eye(C)[np.arange(50) % C]
    members = {
        name: make_member(
            name,
            {v: draw_logits(seed % 1000 + 10 * k + j, 50, C) + truth for j, v in enumerate(("identity", "hflip"))},
            group=name[0],
        )
        for k, name in enumerate(recipe.inputs)
    }
    expected = blend(list(members.values()), recipe).classes
    passes = in_order(passes_of(recipe), {name: 1.0 + k for k, name in enumerate(members)})
    running = Running(recipe, passes, 50)
    for one in passes:
        running.add(members[one.member].logits[one.view])
        if running.seen < len(passes):
            settled = running.certain()
            assert (settled.classes[settled.rows] == expected[settled.rows]).all()
    assert (running.leaders().classes == expected).mean() > 0.97  # of the same sums in another order


def test_the_running_mean_of_a_log_linear_pool_ends_at_the_blend() -> None:
    """All passes of a logit pool together answer as `blend` does, bias included."""
    recipe = draw_recipe("argmax", 3, shaped=True, pool="logit")
    members = [
        make_member(n, {v: draw_logits(7 * k + j, 50, C) for j, v in enumerate(("identity", "hflip"))}, group=n[0])
        for k, n in enumerate(recipe.inputs)
    ]
    by_name = {member.member: member for member in members}
    passes = passes_of(recipe)
    running = Running(recipe, passes, 50)
    for one in passes:
        running.add(by_name[one.member].logits[one.view])
    np.testing.assert_array_equal(running.leaders().classes, blend(members, recipe).classes)


def test_the_cells_weigh_what_the_blend_weighs() -> None:
    """Group share x 1 / folds x view share, and together one."""
    recipe = replace(
        draw_recipe("argmax", 0, shaped=False),
        groups={
            "a": Group(3.0, {"a-f0": "", "a-f1": ""}),
            "b": Group(1.0, {"b": ""}, {"identity": 1.0, "hflip": 0.0}),
        },
    )
    found = {(one.member, one.view): one.weight for one in passes_of(recipe)}
    assert found == pytest.approx(
        {
            ("a-f0", "identity"): 0.25,
            ("a-f0", "hflip"): 0.125,
            ("a-f1", "identity"): 0.25,
            ("a-f1", "hflip"): 0.125,
            ("b", "identity"): 0.25,
        }
    )


def test_cells_run_by_weight_for_their_cost_and_folds_together_where_asked() -> None:
    """A cheap member goes before a heavier one, and of equals every view has its turn; with whole groups no other pass
    comes between two folds, and no group looks twice before all have looked once.
    """
    recipe = draw_recipe("argmax", 1, shaped=False)
    passes = passes_of(recipe)
    cost = {"a-f0": 1.0, "a-f1": 100.0, "b": 1.0, "c": 10.0}
    worth = [one.weight / cost[one.member] for one in in_order(passes, cost)]
    assert worth == sorted(worth, reverse=True)
    units = [(one.group, one.view) for one in in_order(passes, cost, whole_groups=True)]
    seen = [unit for k, unit in enumerate(units) if k == 0 or units[k - 1] != unit]
    assert len(seen) == len(set(seen)) == len(ends_of_units(in_order(passes, cost, whole_groups=True)))
    views = [view for _, view in seen]
    assert views == sorted(views, key=lambda view: (view != "identity", view))
    alike = tuple(ForwardPass(member, view, 0.25, member) for member in "ab" for view in ("hflip", "identity"))
    places = [(one.view, one.member) for one in in_order(alike, {"a": 1.0, "b": 1.0})]
    assert places == [("identity", "a"), ("identity", "b"), ("hflip", "a"), ("hflip", "b")]


def test_the_used_part_blends_to_the_same_bits() -> None:
    """Views and groups of weight zero can be left out; not one bit of a probability changes."""
    recipe = replace(
        draw_recipe("argmax", 2, shaped=True),
        views={"identity": 0.3, "hflip": 0.0},
        groups={"a": Group(0.7, {"a": ""}), "b": Group(0.0, {"b": ""}), "c": Group(0.4, {"c": ""})},
    )
    members = [
        make_member(n, {v: draw_logits(k + j, 50, C) for j, v in enumerate(("identity", "hflip"))})
        for k, n in enumerate("abc")
    ]
    part = used_part(recipe)
    assert set(part.inputs) == {"a", "c"}
    assert set(part.views) == {"identity"}
    np.testing.assert_array_equal(
        blend([members[0], members[2]], part).probabilities, blend(members, recipe).probabilities
    )


def test_a_group_that_loses_a_fold_loses_its_weight() -> None:
    """What is kept of a recipe weighs in the same proportions as before."""
    recipe = draw_recipe("argmax", 4, shaped=False)
    before = {(one.member, one.view): one.weight for one in passes_of(recipe)}
    after = {(one.member, one.view): one.weight for one in passes_of(keep_members(recipe, {"a-f1", "c"}))}
    ratios = [weight / before[one] for one, weight in after.items()]
    assert {member for member, _ in after} == {"a-f1", "c"}
    assert ratios == pytest.approx([ratios[0]] * len(ratios))


@pytest.mark.parametrize(
    ("changes", "exact", "refused"),
    [
        ({}, True, False),
        ({"pool": parse_pool("logit")}, True, True),
        ({"pool": parse_pool("logit")}, False, False),
        ({"pool": parse_pool("hard")}, True, True),
        ({"pool": parse_pool("power:2")}, False, True),
        ({"rule": MacroF1Rule(np.ones(C), np.ones(C)), "transductive": True}, False, True),
    ],
)
def test_recipes_whose_answers_cannot_be_known_early_are_refused(
    changes: dict[str, Any], exact: bool, refused: bool
) -> None:
    """Exact exits need a linear pool; a share needs a mean of some kind; no exit where all images count."""
    recipe = replace(draw_recipe("argmax", 0, shaped=False), **changes)
    if refused:
        with pytest.raises(OptionError) as caught:
            require_early_exit(recipe, exact=exact)
        assert caught.value.code == "E207"
    else:
        require_early_exit(recipe, exact=exact)
