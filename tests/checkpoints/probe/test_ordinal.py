"""`ens probe --ordinal`: cumulative links are the model of the textbook, and answer the same in a file."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper
from scipy.optimize import approx_fprime, minimize
from scipy.special import expit, log_softmax
from sklearn.linear_model import LogisticRegression

from checkpoints.data.dataset import Dataset, read_dataset
from checkpoints.data.mask_contest import Row
from checkpoints.probe.choose_strength import InnerFit, choose_strengths
from checkpoints.probe.head_nodes import add_head
from checkpoints.probe.linear_head import STRENGTHS, LinearHead, Target, fit_path, make_targets
from checkpoints.probe.ordered_axes import find_levels
from checkpoints.probe.ordinal_head import Levels, OrdinalBlock, fit_ordinal_path
from ensemble.errors import OptionError
from ensemble.events import Recorder
from ensemble.labels import MASK18, Axis, LabelSpace
from ensemble.ordinal import require_ordinal, require_told_order
from ensemble.runtime.model_file import read_model
from tests.checkpoints.probe.test_probe import COLORS, make_job, probed, write_network, write_table


def drawn(count: int, *, values: int = 3, seed: int = 0) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Standardized features of which two tell the value, and values by cuts through a noisy score."""
    generator = np.random.default_rng(seed)
    features = generator.normal(0, 1, (count, 5))
    score = features[:, 0] - 0.7 * features[:, 1] + generator.logistic(0, 0.7, count)
    found = np.digitize(score, np.linspace(-1.2, 1.5, values - 1))
    return (features - features.mean(axis=0)) / features.std(axis=0), found


def even(count: int) -> NDArray[np.float64]:
    return np.full(count, 1 / count)


def test_two_ordered_values_are_a_logistic_regression() -> None:
    """With one cut the model is scikit-learn's LogisticRegression with C = 1 / (rows * strength)."""
    features, values = drawn(300, values=2)
    *_, block = fit_ordinal_path(features, Levels(values, np.array([1])), even(300), (1.0, 0.01))
    oracle = LogisticRegression(C=1 / (300 * 0.01), tol=1e-9, max_iter=5000).fit(features, values)
    assert np.abs(np.exp(block.logits(features)) - oracle.predict_proba(features)).max() < 2e-3


def test_the_fit_is_the_minimum_of_the_textbook_s_loss() -> None:
    """No other weights and cuts have a lower loss: sigmoid differences, minimized without our parameters or slopes."""
    features, values = drawn(120, values=4)
    *_, block = fit_ordinal_path(features, Levels(values, np.arange(1, 4)), even(120), (1.0, 0.03))

    def loss(given: NDArray[np.float64]) -> float:
        above = expit((features @ given[:5])[:, np.newaxis] + given[5:])
        edges = np.concatenate([np.ones((120, 1)), above, np.zeros((120, 1))], axis=1)
        chances = (edges[:, :-1] - edges[:, 1:])[np.arange(120), values]
        return float(-np.log(np.maximum(chances, 1e-300)).mean() + 0.03 * (given[:5] ** 2).sum() / 2)

    ours = np.concatenate([block.weights, block.cuts])
    best = minimize(loss, ours + 0.05, method="Nelder-Mead", options={"maxiter": 6000, "maxfev": 6000}).fun
    assert loss(ours) <= best + 1e-4
    assert np.abs(approx_fprime(ours, loss, 1e-6)).max() < 5e-3


def test_log_probabilities_add_up_to_one_however_far_the_score_is() -> None:
    """Rows sum to 1, and scores of hundreds give finite logarithms."""
    block = OrdinalBlock(np.array([1.0]), np.array([2.0, 1.999, -3.0]))
    found = block.logits(np.array([[-500.0], [-1.0], [0.0], [700.0]]))
    assert np.isfinite(found).all()
    assert np.allclose(np.exp(found).sum(axis=1), 1)
    assert found.argmax(axis=1).tolist() == [0, 2, 2, 3]


def test_finer_levels_teach_where_the_values_are_coarse() -> None:
    """Fitted to ten levels, the three values have a lower loss on other rows than fitted to the three values."""
    features, fine = drawn(4000, values=10, seed=3)
    borders = np.array([1, 9])
    values = np.digitize(fine, borders)
    known = np.arange(4000) < 80
    losses = {}
    for name, levels in (("fine", Levels(fine[known], borders)), ("coarse", Levels(values[known], np.array([1, 2])))):
        *_, block = fit_ordinal_path(features[known], levels, even(80), (1.0, 0.1))
        losses[name] = -block.logits(features[~known])[np.arange(3920), values[~known]].mean()
    assert losses["fine"] < losses["coarse"]


@pytest.mark.parametrize("absent", [0, 1, 2])
def test_a_value_that_no_row_has_gets_no_share(absent: int) -> None:
    """A training part without the lowest, middle or highest value gives finite logits, and almost never that value."""
    features, values = drawn(200)
    rows = values != absent
    *_, block = fit_ordinal_path(features[rows], Levels(values[rows], np.array([1, 2])), even(rows.sum()), (1.0, 0.01))
    found = block.logits(features)
    assert np.isfinite(found).all()
    assert np.exp(found[:, absent]).max() < 2e-3


def test_the_path_standardizes_and_weighs_as_for_other_heads() -> None:
    """Scaled and shifted features give the same answers; balanced rows are rows repeated until all values are even."""
    features, values = drawn(150)
    rows, space = np.arange(150) < 120, LabelSpace.flat(3)
    ordered = {"class": Levels(values, np.array([1, 2]))}
    (target,) = make_targets(space, "flat", "softmax", values, values, ordered=ordered)
    *_, plain = fit_path(features, target, rows, (1.0, 0.01))
    *_, moved = fit_path(features * [1, 5, 0.1, 3, 2] + 7, target, rows, (1.0, 0.01))
    assert np.allclose(plain.logits(features), moved.logits(features * [1, 5, 0.1, 3, 2] + 7), atol=2e-3)
    counts = np.bincount(values[rows])
    shares = 1 / (3 * counts[values[rows]])
    *_, wanted = fit_path(features, replace(target, balanced=True), rows, (1.0, 0.01))
    chosen = features[rows]
    scaled = (chosen - chosen.mean(axis=0)) / chosen.std(axis=0)
    *_, oracle = fit_ordinal_path(scaled, Levels(values[rows], np.array([1, 2])), shares, (1.0, 0.01))
    assert np.allclose(wanted.logits(chosen), oracle.logits(scaled), atol=1e-6)


def test_a_graph_answers_as_the_head() -> None:
    """An ordinal axis between two multinomial ones: onnxruntime gives the logits of the 18 classes within 1e-4."""
    generator = np.random.default_rng(5)
    features = generator.normal(0, 2, (300, 4))
    classes = generator.integers(0, 18, 300)
    ordered = {"age": Levels(np.asarray(MASK18.along("age", classes)), np.array([1, 2]))}
    targets = make_targets(MASK18, "axes", "softmax", classes, classes, ordered=ordered)
    every = np.ones(300, dtype=np.bool_)
    head = LinearHead(MASK18, tuple([*fit_path(features, target, every, (0.01,))][-1] for target in targets))
    assert [isinstance(block, OrdinalBlock) for block in head.blocks] == [False, False, True]
    graph = helper.make_graph(
        [],
        "g",
        [helper.make_tensor_value_info("row", TensorProto.FLOAT, ["n", 4])],
        [helper.make_tensor_value_info("out", TensorProto.FLOAT, ["n", 18])],
    )
    add_head(graph, head, "row", "out")
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)])
    model.ir_version = 8
    onnx.checker.check_model(model)
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    far = np.concatenate([features, 60 * features[:20]])
    (found,) = session.run(["out"], {"row": far.astype(np.float32)})
    assert np.allclose(found, head.logits(far), rtol=1e-5, atol=1e-3)
    assert np.allclose(log_softmax(found[:300], axis=1), log_softmax(head.logits(features), axis=1), atol=1e-4)


def test_the_strength_is_chosen_for_ordered_values_too() -> None:
    """On features of noise the strongest penalty wins; on features that tell the value, a weaker one."""
    features, values = drawn(400)
    half = np.arange(400) % 2 == 0
    fits = [InnerFit(half, ((0, ~half),))]
    target = Target("class", values, values, 3, "softmax", levels=Levels(values, np.array([1, 2])))
    noise = np.random.default_rng(1).normal(0, 1, (400, 40))
    ((of_noise,),) = choose_strengths(noise, [target], fits, 1)
    ((of_signal,),) = choose_strengths(features, [target], fits, 1)
    assert of_noise == STRENGTHS[0]
    assert of_signal < of_noise


def contest(ages: list[int | None], *, moved: int | None = None) -> Dataset:
    def label(age: int) -> int:
        return int(np.digitize(age, [30, 60]))

    rows = tuple(
        Row(f"{i}.jpg", str(i), 0, 0, age, label(age or 0), Path(f"{i}.jpg"), moved if age == 59 else None)
        for i, age in enumerate(ages)
    )
    return Dataset(rows, MASK18, Path(), is_contest=True)


def test_years_of_age_are_the_levels_of_the_contest() -> None:
    """Years as they are, those that --age-cut moves at 60; without every year the three ages; both are said."""
    recorder = Recorder()
    found = find_levels(contest([18, 29, 30, 59, 60]), ("age",), listener=recorder)["age"]
    assert (found.of_row.tolist(), found.borders.tolist()) == ([18, 29, 30, 59, 60], [30, 60])
    assert find_levels(contest([18, 59, 60], moved=2), ("age",))["age"].of_row.tolist() == [18, 60, 60]
    coarse = find_levels(contest([18, None, 60]), ("age",), listener=recorder)["age"]
    assert (coarse.of_row.tolist(), coarse.borders.tolist()) == ([0, 0, 2], [1, 2])
    assert [notice.code for notice in recorder.notices] == ["I385", "I385"]
    assert "under 30 < 30 to 59 < 60 and over; it is learned from years of age, 18 to 60" in recorder.notices[0].message
    assert recorder.notices[1].message.endswith("the order of the labels")


@pytest.mark.parametrize(
    ("activation", "head", "name", "words"),
    [
        ("softmax", "axes", "years", "no axis"),
        ("softmax", "axes", "gender", "has the values male, female"),
        ("softmax", "flat", "age", "one output per class"),
        ("sigmoid", "axes", "age", "several labels"),
    ],
)
def test_an_order_that_cannot_be_is_refused(activation: str, head: str, name: str, words: str) -> None:
    """An unknown axis, an axis of two values, one head for several axes, several labels per image."""
    with pytest.raises(OptionError, match=words) as caught:
        require_ordinal(MASK18, (name,), head=head, activation=activation)
    assert caught.value.code == "E204"


@pytest.mark.parametrize(
    ("values", "told"),
    [
        (("middle", "old", "young"), False),
        (("mild", "moderate", "severe"), False),
        (("30-59", "60+", "<30"), False),
        (("0-9", "10-19", "100-109", "20-29"), False),
        (("10-19", "20-29", "30-39"), True),
        (("grade 0.5", "grade 1", "grade 1.5"), True),
        (("0", "1", "10"), True),
        (("young", "middle", "old"), True),
        (("<30", "30-59", "60+"), True),
    ],
)
def test_the_alphabet_is_no_order(values: tuple[str, ...], told: bool) -> None:
    """Sorted names say an order only by numbers that ascend; names in another order were put into it."""
    labels = LabelSpace((Axis("age", values), Axis("gender", ("female", "male"))))
    if told:
        require_told_order(labels, ["age"])
    else:
        with pytest.raises(OptionError, match=re.escape(" < ".join(values))) as caught:
            require_told_order(labels, ["age"])
        assert "--labels names.txt" in str(caught.value.hint)
    require_told_order(labels, [])


def test_a_member_of_ordered_classes_answers_as_its_file(tmp_path: Path) -> None:
    """The out-of-fold predictions are those of the files, and the card says which axis is ordered."""
    data = read_dataset(write_table(tmp_path / "train"), labels=LabelSpace.flat(list(COLORS)))
    assert probed(data, tmp_path, end="row", ordinal=("class",)) > 0.2
    card = read_model(tmp_path / "runs" / "p" / "p_f0.onnx").card
    assert card.checks["probe"]["ordinal"] == ["class"]
    job = make_job(data, write_network(tmp_path / "net.onnx", end="row"), tmp_path / "runs", ordinal=("class",))
    assert replace(job, ordinal=()).fingerprint() != job.fingerprint()
