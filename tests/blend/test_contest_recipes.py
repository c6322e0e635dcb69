"""Ranks, weights per class, smoothing over the rows of a file and thresholds, against plain numpy."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from scipy.ndimage import convolve1d
from scipy.special import expit, softmax
from scipy.stats import rankdata

from ensemble.arrays import Floats
from ensemble.blend.blend import blend
from ensemble.blend.decision_rules import OrdinalRule, ThresholdRule, decide
from ensemble.blend.pooling import parse_pool, pool, pool_by_class
from ensemble.blend.recipe import Recipe, make_recipe
from ensemble.blend.smoothing import Smoothing, smooth_rows
from ensemble.cli import ens
from ensemble.errors import OptionError, PredictionError
from ensemble.predictions.dataset import Predictions
from ensemble.submit.early_exit import require_early_exit
from tests.support.members import draw_logits, make_member


def several(name: str, seed: int, ids: list[str], classes: int) -> Predictions:
    """Return a member of independent labels, with ties among its logits."""
    logits = np.round(draw_logits(seed, len(ids), classes), 1)
    return replace(make_member(name, logits, ids=ids), activation="sigmoid")


def test_the_inference_half_of_a_medal_solution_is_a_short_recipe(tmp_path: Path) -> None:
    """Seven tables of labels, ranked with weights per class and smoothed within files, equal numpy within 1e-6."""
    rng = np.random.default_rng(0)
    files, segments, labels = 20, 12, 234
    ids = [f"soundscape_{file}_{5 * (i + 1)}" for file in range(files) for i in range(segments)]
    names = [f"bird{c}" for c in range(labels)]
    tables = [np.round(rng.random((len(ids), labels)), 3 if t < 3 else 15) for t in range(7)]
    weights = rng.random((7, labels)) + 0.1
    (tmp_path / "labels.json").write_text(json.dumps(names))
    paths = []
    for t, table in enumerate(tables):
        paths.append(tmp_path / f"model{t}.csv")
        rows = [",".join([name, *map(repr, row.tolist())]) for name, row in zip(ids, table, strict=True)]
        paths[-1].write_text("\n".join([",".join(["row_id", *names]), *rows]) + "\n")
    (tmp_path / "weights.csv").write_text(
        "\n".join(
            [
                "class," + ",".join(path.stem for path in paths),
                *(f"{name}," + ",".join(map(repr, weights[:, c].tolist())) for c, name in enumerate(names)),
            ]
        )
    )
    (tmp_path / "sample.csv").write_text(
        "\n".join([",".join(["row_id", *names]), *(f"{i}," + ",".join(["0.1"] * labels) for i in ids)])
    )
    common = ["--as", "probabilities", "--activation", "sigmoid", "--labels", tmp_path / "labels.json"]
    common += ["--like", tmp_path / "sample.csv"]
    made = ["--pool", "rank", "--class-weights", tmp_path / "weights.csv", "--smooth", "0.1,0.2,0.4,0.2,0.1"]
    for arguments, out in (
        ([*made, "--save", tmp_path / "blend.json"], "a"),
        (["--apply", tmp_path / "blend.json"], "b"),
    ):
        words = ["blend", *paths, *common, *arguments, "-o", tmp_path / f"{out}.csv"]
        done = CliRunner().invoke(ens, [str(word) for word in words], catch_exceptions=False)
        assert done.exit_code == 0, done.output
    assert len((tmp_path / "blend.json").read_text().splitlines()) < 40

    share = weights / weights.sum(axis=0)
    ranks = sum(share[t] * rankdata(tables[t], axis=0) / len(ids) for t in range(7))
    kernel = np.array([0.1, 0.2, 0.4, 0.2, 0.1])
    cube = np.asarray(ranks).reshape(files, segments, labels)
    expected = convolve1d(cube, kernel, axis=1, mode="nearest").reshape(-1, labels)
    for out in ("a", "b"):
        found = np.genfromtxt(tmp_path / f"{out}.csv", delimiter=",", skip_header=1)[:, 1:]
        np.testing.assert_allclose(found, expected, atol=1e-6)


def test_ranks_average_ties_and_pool_views_before() -> None:
    """Views are pooled linearly, then each group is ranked per column: scipy's rankdata over N, weighted."""
    ids = [f"{i}.png" for i in range(40)]
    one, two = several("a", 1, ids, 3), several("b", 2, ids, 3)
    order = np.array(sorted(range(40), key=ids.__getitem__))
    found = blend([one, two], make_recipe([one, two], pool=parse_pool("rank"), weights={"a": 3, "b": 1}))
    ranks = [rankdata(member.logits["identity"], axis=0) / 40 for member in (one, two)]
    np.testing.assert_allclose(found.probabilities, (0.75 * ranks[0] + 0.25 * ranks[1])[order], atol=1e-12)
    views = {"identity": one.logits["identity"], "hflip": two.logits["identity"]}
    member = replace(one, logits=views)
    p = np.round((expit(np.float64(views["identity"])) + expit(np.float64(views["hflip"]))) / 2, 9)
    alone = blend([member], make_recipe([member], pool=parse_pool("rank")))
    np.testing.assert_allclose(alone.probabilities, (rankdata(p, axis=0) / 40)[order], atol=1e-12)


def test_ranks_of_two_exclusive_classes_keep_their_order() -> None:
    """The probability of the second class is ordered as the mean of its ranks, and rows sum to one."""
    members = [make_member(name, draw_logits(seed, 50, 2)) for seed, name in enumerate("ab")]
    found = blend(members, make_recipe(members, pool=parse_pool("rank")))
    ranks = sum(rankdata(softmax(np.float64(m.logits["identity"]), axis=1)[:, 1]) for m in members)
    np.testing.assert_array_equal(rankdata(np.round(found.probabilities[:, 1], 12)), rankdata(ranks))
    np.testing.assert_allclose(found.probabilities.sum(axis=1), 1)


@pytest.mark.parametrize("kind", ["linear", "logit", "power:2"])
def test_equal_weights_per_class_are_one_weight(kind: str) -> None:
    """With the same weights in all classes, the pool per class is the ordinary one."""
    logits = np.stack([draw_logits(seed, 20, 4) for seed in range(3)])
    weights = np.array([1.0, 0.0, 2.5])
    expected = pool(logits, weights.tolist(), kind=parse_pool(kind))
    found = pool_by_class(logits, np.repeat(weights[:, np.newaxis], 4, axis=1), kind=parse_pool(kind))
    np.testing.assert_allclose(found, expected, atol=1e-12)


def test_weights_per_class_of_labels_and_of_classes() -> None:
    """A label takes the mean by its own weights; of exclusive classes the result is normalized."""
    ids = [f"{i}.png" for i in range(10)]
    one, two = several("a", 1, ids, 2), several("b", 2, ids, 2)
    given = {"a": {"0": 1.0, "*": 0.0}, "b": {"0": 0.0}}
    recipe = make_recipe([one, two], class_weights=given)
    found = blend([one, two], recipe).probabilities
    expected = expit(np.stack([one.logits["identity"][:, 0], two.logits["identity"][:, 1]], axis=1).astype(np.float64))
    np.testing.assert_allclose(found, expected, atol=1e-12)
    assert Recipe.from_json(recipe.to_json()) == recipe

    members = [make_member(name, draw_logits(seed, 10, 3)) for seed, name in enumerate("ab")]
    found = blend(members, make_recipe(members, class_weights={"a": {"0": 3.0}})).probabilities
    p = [softmax(np.float64(m.logits["identity"]), axis=1) for m in members]
    weights = np.array([[0.75, 0.5, 0.5], [0.25, 0.5, 0.5]])
    expected = weights[0] * p[0] + weights[1] * p[1]
    np.testing.assert_allclose(found, expected / expected.sum(axis=1, keepdims=True), atol=1e-12)


def test_weights_per_class_are_checked() -> None:
    """Unknown groups and classes, a class without weight and a list of another length are errors."""
    members = [make_member(name, draw_logits(seed, 10, 3)) for seed, name in enumerate("ab")]
    for given in ({"c": {"0": 1.0}}, {"a": {"cat": 1.0}}, {"a": {"0": 0.0}, "b": {"0": 0.0}}, {"a": {"0": -1.0}}):
        with pytest.raises(PredictionError) as caught:
            make_recipe(members, class_weights=given)
        assert caught.value.code == "E508"
    recipe = make_recipe(members, class_weights={"a": {"0": 2.0}})
    value = json.loads(recipe.to_json())
    value["groups"]["a"]["class_weights"] = [1.0]
    with pytest.raises(PredictionError, match="1 weights per class, expected 3"):
        Recipe.from_json(json.dumps(value))
    value["groups"]["a"]["class_weights"] = {"0": 2.0}
    assert Recipe.from_json(json.dumps(value)) == recipe
    with pytest.raises(OptionError, match="weights per class"):
        require_early_exit(recipe, exact=True)


@pytest.mark.parametrize(("edges", "mode"), [("nearest", "nearest"), ("zero", "constant"), ("reflect", "mirror")])
def test_smoothing_is_a_convolution_within_each_file(edges: str, mode: str) -> None:
    """Rows are ordered by number, not by text, and no value crosses from one file into another."""
    ids = [f"{file}_{5 * i}.ogg" for file in ("a", "b_1") for i in (2, 0, 1, 20, 3)]
    values = np.random.default_rng(0).random((10, 3))
    found = smooth_rows(values, ids, Smoothing((1, 2, 1), edges=edges))  # type: ignore[arg-type]
    order = np.array([1, 2, 0, 4, 3])
    for start in (0, 5):
        rows = start + order
        expected = convolve1d(values[rows], [0.25, 0.5, 0.25], axis=0, mode=mode)
        np.testing.assert_allclose(found[rows], expected, atol=1e-12)
    shrunk = smooth_rows(values, ids, Smoothing((1, 2, 1), edges="shrink"))
    np.testing.assert_allclose(shrunk[1], (2 * values[1] + values[2]) / 3)


def test_smoothing_names_what_it_cannot_do() -> None:
    """Ids without a number, equal numbers, one row per file, and kernels that are none."""
    values = np.ones((2, 1))
    for ids in (["a", "b"], ["a_1", "a_01"], ["a_1", "b_1"]):
        with pytest.raises(PredictionError) as caught:
            smooth_rows(values, ids, Smoothing((1, 2, 1)))
        assert caught.value.code == "E504"
    kernels: list[tuple[float, ...]] = [(), (1.0, 1.0), (1.0, 0.0, 1.0), (-1.0, 3.0, -1.0), (float("nan"),)]
    for kernel in kernels:
        with pytest.raises(PredictionError, match="kernel") as caught:
            Smoothing(kernel)
        assert "--smooth 0.1,0.2,0.4,0.2,0.1" in (caught.value.hint or "")
    with pytest.raises(PredictionError, match="two groups"):
        Smoothing((1,), ids="(.*)")
    spelled = Smoothing((1, 1, 1), ids=r"f(\d+)-(\d+)")
    np.testing.assert_allclose(smooth_rows(values, ["f1-1", "f1-2"], spelled), 1)
    assert Smoothing.from_json(spelled.to_json()) == spelled


def test_thresholds_decide_labels_and_are_part_of_the_recipe() -> None:
    """One threshold for all or by name; decisions are those probabilities reach, and exclusive classes refuse them."""
    ids = [f"{i}.png" for i in range(10)]
    member = several("a", 3, ids, 3)
    recipe = make_recipe([member], thresholds={"1": 0.9})
    found = blend([member], recipe)
    np.testing.assert_array_equal(found.decisions, found.probabilities >= [0.5, 0.9, 0.5])
    again = Recipe.from_json(recipe.to_json())
    assert again.to_json() == recipe.to_json()
    assert isinstance(again.rule, ThresholdRule)
    with pytest.raises(PredictionError, match="exclusive") as caught:
        make_recipe([make_member("b", draw_logits(0))], thresholds=0.3)
    assert "leave out the thresholds" in (caught.value.hint or "")
    with pytest.raises(PredictionError, match="unknown labels"):
        make_recipe([member], thresholds={"cat": 0.3})


def test_the_ordinal_rule_cuts_the_expected_class() -> None:
    """A row is of class k when its expected class number has reached k cuts; cuts must ascend."""
    p: Floats = np.array([[0.6, 0.2, 0.2], [0.2, 0.5, 0.3], [0.0, 0.1, 0.9]])
    rule = OrdinalRule(np.array([0.7, 1.5]))
    np.testing.assert_array_equal(decide(p, rule), [0, 1, 2])
    member = make_member("a", draw_logits(0, classes=3))
    recipe = replace(make_recipe([member]), rule=rule)
    assert Recipe.from_json(recipe.to_json()).to_json() == recipe.to_json()
    with pytest.raises(PredictionError, match="ascending"):
        replace(recipe, rule=OrdinalRule(np.array([2.0, 1.0])))
