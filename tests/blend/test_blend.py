"""Blending against explicitly computed sums, and its errors and notices."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy.special import softmax

from ensemble.blend.blend import blend
from ensemble.blend.decision_rules import MacroF1Rule, fit_macro_f1_rule
from ensemble.blend.pooling import parse_pool
from ensemble.blend.recipe import Group, Recipe, make_recipe, render_recipe
from ensemble.errors import EnsError, PredictionError
from ensemble.events import Recorder
from ensemble.labels import MASK18, LabelSpace
from ensemble.predictions.dataset import Predictions
from ensemble.predictions.external import ExternalOptions, read_external
from ensemble.submit.early_exit import Running, passes_of
from tests.support.members import draw_logits, make_member, reorder

POOLS = ["linear", "logit", "geometric", "power:-1", "hard"]


def ensemble(count: int = 30) -> list[Predictions]:
    """Two folds of one model and two single models, with two views each."""
    groups = {"b3_f0": "b3", "b3_f1": "b3", "r18": "r18", "r50": "r50"}
    return [
        make_member(name, {"identity": draw_logits(2 * i, count), "hflip": draw_logits(2 * i + 1, count)}, group=group)
        for i, (name, group) in enumerate(groups.items())
    ]


def code_of(action: Callable[[], object]) -> tuple[str, str]:
    with pytest.raises(PredictionError) as caught:
        action()
    return caught.value.code, caught.value.message


def notices(members: list[Predictions], recipe: Recipe | None = None) -> list[str]:
    heard = Recorder()
    blend(members, recipe or make_recipe(members), listener=heard)
    return [f"{notice.code} {notice.message}" for notice in heard.notices]


def test_groups_may_have_their_own_view_weights() -> None:
    """A group's own views, sharpness and bias are applied by the formula; it does not need other groups' views."""
    a, b = ensemble()[2:]
    b = replace(b, logits={"hflip": b.logits["hflip"]})
    recipe = Recipe(
        pool=parse_pool("linear"),
        views={"identity": 1, "hflip": 3},
        groups={"r18": Group(1, {"r18": a.sha256}), "r50": Group(2, {"r50": b.sha256}, {"hflip": 1})},
        labels=a.labels,
        sharpness=1.5,
        bias=(0.5, 0, -1, 0),
    )
    p = {v: softmax(logits.astype(np.float64), axis=-1) for v, logits in a.logits.items()}
    of_a = (p["identity"] + 3 * p["hflip"]) / 4
    pooled = (of_a + 2 * softmax(b.logits["hflip"].astype(np.float64), axis=-1)) / 3
    expected = softmax(1.5 * np.log(pooled) + [0.5, 0, -1, 0], axis=-1)
    blended = blend([a, b], recipe)
    np.testing.assert_allclose(blended.probabilities, expected, rtol=1e-10)
    assert blended.classes.tolist() == expected.argmax(axis=-1).tolist()
    swapped = replace(recipe, groups={"r18": recipe.groups["r18"], "r50": replace(recipe.groups["r50"], views=None)})
    assert code_of(lambda: blend([a, b], swapped)) == ("E516", "r50 has no view identity; it has hflip")


def test_levels_are_averaged_as_the_recipe_says() -> None:
    """Views are averaged by weight within a member, folds equally within a group, and groups by weight."""
    members = ensemble()
    recipe = make_recipe(members, weights={"b3": 3, "r18": 1, "r50": 0}, view_weights={"identity": 2, "hflip": 1})

    def views(member: Predictions) -> NDArray[np.float64]:
        p = {view: softmax(logits.astype(np.float64), axis=-1) for view, logits in member.logits.items()}
        return np.asarray((2 * p["identity"] + p["hflip"]) / 3)

    expected = (3 * (views(members[0]) + views(members[1])) / 2 + views(members[2])) / 4
    blended = blend(members, recipe)
    np.testing.assert_allclose(blended.probabilities, expected, rtol=1e-12)
    assert blended.classes.tolist() == expected.argmax(axis=-1).tolist()
    assert (blended.ids, blended.labels, len(blended)) == (members[0].ids, members[0].labels, 30)


def test_logit_levels_are_the_mean_of_all_logits() -> None:
    """With the logit pool a blend of folds and views is the softmax of the weighted mean of the logits."""
    members = ensemble()
    mean = [(m.logits["identity"].astype(np.float64) + m.logits["hflip"]) / 2 for m in members]
    expected = softmax(((mean[0] + mean[1]) / 2 + mean[2] + mean[3]) / 3, axis=-1)
    blended = blend(members, make_recipe(members, pool=parse_pool("logit")))
    np.testing.assert_allclose(blended.probabilities, expected, rtol=1e-12)


def test_a_vote_is_one_per_group() -> None:
    """With the hard pool a group of two folds has one vote, that of its linear mean."""
    folds = [make_member(f"a_f{i}", [[5, 0, 0]], group="a") for i in range(2)]
    others = [make_member(name, [[0, 4, 0]]) for name in "bc"]
    blended = blend([*folds, *others], make_recipe([*folds, *others], pool=parse_pool("hard")))
    np.testing.assert_allclose(blended.probabilities, [[1 / 3, 2 / 3, 0]], atol=1e-5)
    swayed = [folds[0], make_member("a_f1", [[0, 9, 0]], group="a"), make_member("b", [[3, 0, 0]])]
    recipe = make_recipe(swayed, pool=parse_pool("hard"), weights={"a": 2, "b": 1})
    assert blend(swayed, recipe).classes.tolist() == [1]


@given(st.data(), st.sampled_from(POOLS))
@settings(deadline=None, max_examples=50)
def test_no_order_changes_the_result(data: st.DataObject, name: str) -> None:
    """Any order of members, and of the rows of each member, gives identical bytes."""
    members = ensemble(17)
    recipe = make_recipe(members, pool=parse_pool(name))
    shuffled = [
        reorder(member, np.random.default_rng(data.draw(st.integers(0, 999))).permutation(17))
        for member in data.draw(st.permutations(members))
    ]
    one = blend(members, recipe)
    other = blend(shuffled, make_recipe(shuffled, pool=parse_pool(name)))
    assert one.ids == other.ids
    assert one.probabilities.tobytes() == other.probabilities.tobytes()
    assert one.classes.tobytes() == other.classes.tobytes()


@given(st.integers(0, 2**32 - 1), st.sampled_from(["linear", "logit", "power:0.5"]), st.sampled_from([0.1, 20.0]))
@settings(deadline=None, max_examples=50)
def test_blending_one_member_returns_it(seed: int, name: str, scale: float) -> None:
    """Blending one member with one view returns its softmax."""
    member = make_member("a", draw_logits(seed, scale=scale))
    blended = blend([member], make_recipe([member], pool=parse_pool(name)))
    expected = softmax(member.logits["identity"].astype(np.float64), axis=-1)
    np.testing.assert_allclose(blended.probabilities, expected, rtol=1e-11)


@pytest.mark.parametrize("name", POOLS)
def test_equal_weights_are_no_weights(name: str) -> None:
    """Equal weights of any size, for groups and views, give identical bits to no weights."""
    members = ensemble()
    plain = blend(members, make_recipe(members, pool=parse_pool(name)))
    weighted = make_recipe(
        members,
        pool=parse_pool(name),
        weights=dict.fromkeys(("b3", "r18", "r50"), 0.1),
        view_weights=dict.fromkeys(("identity", "hflip"), 7.0),
    )
    assert plain.probabilities.tobytes() == blend(members, weighted).probabilities.tobytes()


def test_a_recipe_from_its_file_gives_the_same_bytes() -> None:
    """Weights without a short decimal representation round-trip through the file."""
    members = ensemble()
    recipe = make_recipe(members, weights={"b3": 1 / 3, "r18": 0.1 + 0.2, "r50": 2**-0.5})
    again = blend(members[::-1], Recipe.from_json(recipe.to_json()))
    assert blend(members, recipe).probabilities.tobytes() == again.probabilities.tobytes()


def test_fault_78_the_result_has_the_requested_order() -> None:
    """With ids the rows are in their order, bit-identical to the sorted result."""
    members = ensemble()
    recipe = make_recipe(members)
    order = np.random.default_rng(0).permutation(30)
    ids = [members[0].ids[i] for i in order]
    asked, plain = blend(members, recipe, ids=ids), blend(members, recipe)
    assert asked.ids == tuple(ids)
    np.testing.assert_array_equal(asked.probabilities, plain.probabilities[order])
    np.testing.assert_array_equal(asked.classes, plain.classes[order])


def test_the_result_is_read_only() -> None:
    """Probabilities and classes are read-only, in either order."""
    members = ensemble()
    for ids in (None, members[0].ids[::-1]):
        blended = blend(members, make_recipe(members), ids=ids)
        assert not blended.probabilities.flags.writeable
        assert not blended.classes.flags.writeable


def test_fault_59_classes_are_matched_by_name() -> None:
    """A member with another column order is permuted by class name, with a notice."""
    plain = make_member("a", draw_logits(0, classes=18), labels=MASK18)
    columns = np.random.default_rng(1).permutation(18)
    names = [MASK18.names[c] for c in columns]
    turned = make_member("b", draw_logits(1, classes=18)[:, columns], labels=LabelSpace.flat(names))
    straight = make_member("b", draw_logits(1, classes=18), labels=MASK18)
    one, other = ([plain, b] for b in (straight, turned))
    np.testing.assert_array_equal(
        blend(one, make_recipe(one)).probabilities, blend(other, make_recipe(other)).probabilities
    )
    assert notices(other) == ["W519 b has the classes in another order; they are matched by name"]
    assert notices(one) == []


def test_fault_59_other_classes_are_refused() -> None:
    """Members of different classes are E501."""
    members = [make_member("a", draw_logits(0)), make_member("b", draw_logits(1, classes=5))]
    assert code_of(lambda: blend(members, make_recipe(members)))[0] == "E501"


def test_fault_79_other_images_are_refused() -> None:
    """Different images are E504 with the member, their number and their names."""
    a, b = make_member("a", draw_logits(0, 30)), make_member("b", draw_logits(1, 27))
    message = "b has predictions of other images: it lacks 3 of 30 ids: 027.jpg, 028.jpg, 029.jpg"
    assert code_of(lambda: blend([b, a], make_recipe([a, b]))) == ("E504", message)
    code, message = code_of(lambda: blend([a], make_recipe([a]), ids=["x.jpg", *a.ids[1:]]))
    assert code == "E504"
    assert message.startswith("the blend has predictions of other images: it lacks 1 of 30 ids: x.jpg")


def test_members_without_an_image_in_common_may_be_folds() -> None:
    """E504 then says where out-of-fold predictions belong."""
    a, b = make_member("a", draw_logits(0, 3)), make_member("b", draw_logits(1, 3), ids=("x", "y", "z"))
    with pytest.raises(PredictionError, match="E504") as caught:
        blend([a, b], make_recipe([a, b]))
    assert "--oof and --truth" in caught.value.hint


def test_an_image_predicted_twice_is_refused() -> None:
    """A member that repeats an id is E504, even if it is the only member."""
    doubled = make_member("a", draw_logits(0, 3), ids=["x", "y", "x"])
    assert code_of(lambda: blend([doubled], make_recipe([doubled])))[0] == "E504"


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_fault_80_nan_names_its_row_and_member(value: float) -> None:
    """A NaN or infinite logit is E505 with the member, the view and the image."""
    logits = draw_logits(1)
    logits[4, 2] = value
    members = [make_member("a", draw_logits(0)), make_member("b", logits)]
    expected = "b, view identity: 1 of 30 rows are NaN or infinite: 004.jpg"
    assert code_of(lambda: blend(members, make_recipe(members))) == ("E505", expected)


def test_nan_in_a_view_that_is_not_used_is_no_fault() -> None:
    """NaN in a view that the recipe does not use is ignored."""
    member = make_member("a", {"identity": draw_logits(0), "hflip": draw_logits(0) * np.nan})
    assert len(blend([member], make_recipe([member], view_weights={"identity": 1}))) == 30


def test_a_view_that_was_not_predicted_is_refused() -> None:
    """A view of the recipe that a member lacks is E516 with both names."""
    member = make_member("a", draw_logits(0))
    recipe = make_recipe([member], view_weights={"identity": 1, "hflip": 1})
    assert code_of(lambda: blend([member], recipe)) == ("E516", "a has no view hflip; it has identity")


def test_members_are_matched_with_the_recipe_by_name() -> None:
    """Members missing from the recipe or from the predictions are E517."""
    members = ensemble()
    recipe = make_recipe(members)
    stranger = make_member("x", members[0].logits)
    code, message = code_of(lambda: blend([*members[1:], stranger], recipe))
    assert code == "E517"
    assert message == "the members are not the 4 of the recipe; missing: b3_f0; not in the recipe: x"
    assert code_of(lambda: blend(members[1:], recipe))[1] == "the members are not the 4 of the recipe; missing: b3_f0"


def test_a_repeated_member_is_refused() -> None:
    """A repeated member name is E515 before anything is computed."""
    members = ensemble()
    assert code_of(lambda: blend([*members, members[0]], make_recipe(members)))[0] == "E515"


def test_applying_a_recipe_to_other_predictions_of_some_members_is_noticed() -> None:
    """Some predictions with another hash than the recipe's give I522; all of them, as of new images, do not."""
    members = ensemble()
    other = [replace(members[0], sha256="0" * 64), *members[1:]]
    assert notices(members, make_recipe(members)) == []
    assert notices(other, make_recipe(members)) == [
        "I522 1 of 4 members have other predictions than the recipe was made from: b3_f0"
    ]
    new = [replace(member, sha256=str(number) * 64) for number, member in enumerate(members)]
    assert notices(new, make_recipe(members)) == []


@pytest.mark.parametrize("row", [[0.0, 0.0, 0.0], [1.0, 2.0, 3.0]])
def test_fault_81_a_constant_member_is_noticed(row: list[float]) -> None:
    """A member with equal logits for all images, zeros or not, gives W506."""
    members = [make_member("a", draw_logits(0, classes=3)), make_member("b", [row] * 30)]
    assert notices(members) == ["W506 b has the same probabilities for all images"]


@pytest.mark.parametrize(
    "change",
    [
        {"identity": lambda x: x},
        {"identity": lambda x: x.astype(np.float16)},
        {"identity": lambda x: 2 * x + 100},
    ],
    ids=["the same file", "half precision", "another scale"],
)
def test_fault_82_a_copy_is_noticed(change: Mapping[str, Callable[[NDArray[np.float32]], NDArray[np.float32]]]) -> None:
    """The same predictions under two names give W507, even in half precision or at another temperature."""
    logits = draw_logits(0)
    members = [make_member("a", logits), make_member("b", draw_logits(1)), make_member("c", change["identity"](logits))]
    assert [notice[:19] for notice in notices(members)] == ["W507 c is a copy of"]


def test_members_that_only_agree_are_no_copies() -> None:
    """Two members with equal classes but noise in their logits give no notice."""
    logits = draw_logits(0)
    noisy = logits + 0.1 * draw_logits(1)
    members = [make_member("a", logits), make_member("b", noisy)]
    assert notices(members) == []


@pytest.mark.parametrize(("count", "expected"), [(1, 0), (9, 0), (10, 2), (5000, 2)])
def test_few_images_are_no_evidence(count: int, expected: int) -> None:
    """Constant members and copies are reported from ten images on, and never for fewer."""
    logits = draw_logits(0, count)
    members = [make_member("a", logits), make_member("b", 2 * logits), make_member("c", np.zeros((count, 4)))]
    assert len(notices(members)) == expected


def test_a_hundred_members_blend() -> None:
    """A hundred members are averaged to the mean of their probabilities."""
    members = [make_member(f"m{i:03d}", draw_logits(i)) for i in range(100)]
    expected = np.mean([softmax(m.logits["identity"].astype(np.float64), axis=-1) for m in members], axis=0)
    np.testing.assert_allclose(blend(members, make_recipe(members)).probabilities, expected, rtol=1e-12)


def test_per_axis_votes_of_submissions(tmp_path: Path) -> None:
    """Three submissions vote on each axis separately: the result can be a class that none of them has."""
    answers = {"a": 0, "b": 7, "c": 4}  # worn male young, incorrect male adult, worn female adult
    for name, answer in answers.items():
        (tmp_path / f"{name}.csv").write_text(f"ImageID,ans\nx.jpg,{answer}\n")
    members = [read_external(tmp_path / f"{name}.csv", MASK18, options=ExternalOptions("classes")) for name in answers]
    recipe = make_recipe(members, per_axis=True)
    assert blend(members, recipe).classes.tolist() == [1]  # worn, male, adult
    assert Recipe.from_json(recipe.to_json()) == recipe


def test_a_transductive_rule_is_that_of_the_images_themselves() -> None:
    """The macro-F1 rule is fitted to the blend's own probabilities and replaces the recipe's rule."""
    rng = np.random.default_rng(0)
    member = make_member("a", 2 * rng.normal(size=(300, 18)) + np.linspace(0, 3, 18), labels=MASK18)
    some = MacroF1Rule(np.full(18, 0.5), np.linspace(0.1, 1, 18))
    recipe = replace(make_recipe([member]), rule=some, transductive=True)
    blended = blend([member], recipe)
    expected = fit_macro_f1_rule(blended.probabilities).decide(blended.probabilities)
    assert blended.classes.tolist() == expected.tolist()
    assert blended.classes.tolist() != blend([member], replace(recipe, transductive=False)).classes.tolist()
    turned = blend([member], recipe, ids=member.ids[::-1])
    assert turned.classes.tolist() == [blended.classes[blended.ids.index(name)] for name in member.ids[::-1]]
    assert '"transductive": true' in recipe.to_json()
    with pytest.raises(EnsError) as caught:
        replace(recipe, rule="argmax")
    assert caught.value.code == "E518"


def test_a_groups_temperature_divides_its_logits() -> None:
    """Each group's logits are divided by its temperature before averaging; 1 and None change nothing."""
    rng = np.random.default_rng(0)
    members = [make_member(name, 3 * rng.normal(size=(40, 18)), labels=MASK18) for name in "ab"]
    plain = make_recipe(members)
    groups = {name: replace(plain.groups[name], temperature=value) for name, value in (("a", 2.5), ("b", 0.5))}
    recipe = replace(plain, groups=groups)
    blended = blend(members, recipe)
    a, b = (softmax(m.logits["identity"].astype(float) / t, axis=1) for m, t in zip(members, (2.5, 0.5), strict=True))
    order = [members[0].ids.index(name) for name in blended.ids]
    np.testing.assert_allclose(blended.probabilities, ((a + b) / 2)[order], rtol=1e-12)
    assert Recipe.from_json(recipe.to_json()) == recipe
    assert "temperature" not in plain.to_json()
    assert [line.split()[-1] for line in render_recipe(recipe).splitlines()[1:]] == ["temperature", "2.5", "0.5"]
    for wrong in (0.0, -1.0, float("nan")):
        with pytest.raises(EnsError) as caught:
            replace(plain, groups={**groups, "a": replace(groups["a"], temperature=wrong)})
        assert caught.value.code == "E518"
    running = Running(recipe, passes_of(recipe), 40)
    for one in passes_of(recipe):
        running.add(next(m for m in members if m.member == one.member).logits["identity"])
    np.testing.assert_allclose(running.total[order], blended.probabilities, rtol=1e-12)
