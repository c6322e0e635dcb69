"""Learning a blend: the table against scikit-learn, and the gain on unseen people."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.special import softmax
from sklearn.metrics import accuracy_score, balanced_accuracy_score, f1_score, log_loss
from threadpoolctl import threadpool_info, threadpool_limits

from ensemble.blend.blend import blend
from ensemble.blend.pooling import log_softmax
from ensemble.blend.recipe import make_recipe
from ensemble.errors import EnsError
from ensemble.events import Recorder
from ensemble.labels import LabelSpace
from ensemble.learn.candidates import CANDIDATES, candidates_for, fit_candidates
from ensemble.learn.learn import learn
from ensemble.learn.objective import parse_metric
from ensemble.learn.result import CandidateScore, Learned
from ensemble.predictions.dataset import Predictions
from ensemble.predictions.truth import Truth
from tests.support.members import make_member, reorder
from tests.support.simulation import Scenario, make_contest

PEOPLE, IMAGES = 60, 4


def contest(
    *, seed: int = 0, classes: int = 3, quality: float = 1.5, members: int = 4, groups: dict[str, str] | None = None
) -> tuple[list[Predictions], Truth]:
    """Members with two views of four images of each of 60 people, and the ground truth."""
    rng = np.random.default_rng(seed)
    person = np.repeat(np.arange(PEOPLE), IMAGES)
    truth = (rng.integers(classes, size=PEOPLE)[person] + (rng.random(len(person)) < 0.5)) % classes
    labels = LabelSpace.flat(classes)
    made = []
    for name in "abcdefgh"[:members]:
        seen = quality * np.eye(classes)[truth] + rng.normal(size=(len(person), classes)) + rng.normal(size=classes) / 2
        views = {view: seen + 0.5 * rng.normal(size=seen.shape) for view in ("hflip", "identity")}
        made.append(make_member(name, views, labels=labels, group=(groups or {}).get(name)))
    return made, Truth(made[0].ids, truth, tuple(f"p{i}" for i in person), labels)


def row_of(learned: Learned, candidate: str) -> CandidateScore:
    return next(row for row in learned.table if row.candidate == candidate)


def code_of(action: Callable[[], object]) -> tuple[str, str]:
    with pytest.raises(EnsError) as caught:
        action()
    return caught.value.code, caught.value.message


@pytest.mark.parametrize("metric", list(CANDIDATES))
def test_the_baseline_is_the_score_of_soft_voting(metric: str) -> None:
    """For every metric the mean's nested score is scikit-learn's for `blend` with equal weights of groups."""
    members, truth = contest(groups={"a": "x", "b": "x"})
    p = blend(members, make_recipe(members), ids=truth.ids).probabilities
    answers = p.argmax(axis=1)
    expected = {
        "macro-f1": f1_score(truth.classes, answers, average="macro"),
        "accuracy": accuracy_score(truth.classes, answers),
        "balanced-accuracy": balanced_accuracy_score(truth.classes, answers),
        "nll": -log_loss(truth.classes, p),
    }
    learned = learn(members, truth, method="logit", metric=metric, repeats=1)
    bar = learned.table[0]
    assert bar.candidate == "mean"
    assert bar.nested == pytest.approx(expected[metric], rel=1e-12)
    assert (bar.gain, bar.error, bar.optimism) == (0, 0, 0)
    assert bar.low < bar.nested < bar.high


def test_the_standard_error_counts_people_and_not_images() -> None:
    """The standard error of a gain in accuracy is clustered by person, not over independent images."""
    members, truth = contest(seed=3, quality=0.8)
    learned = learn(members, truth, method="logit", metric="accuracy")
    log_p = np.stack([log_softmax(member.logits[view]) for member in members for view in ("hflip", "identity")])
    gain = (log_p.mean(axis=0).argmax(axis=1) == truth.classes) * 1.0
    gain -= np.exp(log_p).mean(axis=0).argmax(axis=1) == truth.classes
    of_person = gain.reshape(PEOPLE, IMAGES).mean(axis=1)
    row = row_of(learned, "logit")
    assert row.gain == pytest.approx(gain.mean(), abs=1e-12)
    assert row.error == pytest.approx(of_person.std() / np.sqrt(PEOPLE), rel=0.12)


def test_candidates_are_scored_on_images_they_were_not_fitted_to() -> None:
    """With random labels, tuned candidates are above chance in sample and at chance in the table."""
    rng = np.random.default_rng(0)
    members, truth = contest(quality=0, members=8)
    learned = learn(members, replace(truth, classes=rng.integers(3, size=len(truth.ids))), metric="accuracy")
    tuned = [row for row in learned.table if row.candidate not in ("mean", "logit")]
    assert np.mean([row.in_sample for row in tuned]) > 0.37
    assert np.mean([row.nested for row in tuned]) == pytest.approx(1 / 3, abs=0.04)


@pytest.mark.parametrize("metric", ["nll", "accuracy"])
def test_the_mean_is_kept_where_nothing_is_better(metric: str) -> None:
    """The mean is kept if all members are the distribution that the ground truth was drawn from."""
    rng = np.random.default_rng(0)
    logits = rng.normal(size=(PEOPLE * IMAGES, 3)).astype(np.float32) * 2
    classes = (rng.random((len(logits), 1)) > softmax(logits, axis=-1).cumsum(axis=1)).sum(axis=1).clip(max=2)
    members = [make_member(name, logits) for name in "abc"]
    truth = Truth(members[0].ids, classes, tuple(f"p{i % PEOPLE}" for i in range(len(logits))), members[0].labels)
    learned = learn(members, truth, metric=metric)
    assert learned.method == "mean"
    assert learned.reason.startswith("The mean of probabilities is kept: no candidate clearly gains on other people")


@pytest.mark.slow
def test_auto_never_adopts_an_expected_loss() -> None:
    """What is adopted has an expected gain above 0; where the mean is kept it is 0; both occur."""
    kept = set()
    for seed in range(4):
        members, truth = contest(seed=seed, members=2, quality=0.5 * seed)
        learned = learn(members, truth, repeats=1)
        assert (learned.expected_gain > 0) == (learned.method != "mean")
        kept.add(learned.method == "mean")
    assert kept == {True, False}


def test_members_have_their_own_scores() -> None:
    """Each member's score is that of the mean of its views alone, within its interval."""
    members, truth = contest(members=2)
    learned = learn(members, truth, method="mean", metric="accuracy", repeats=1)
    for found, member in zip(learned.members, members, strict=True):
        p = np.mean([softmax(logits, axis=-1) for logits in member.logits.values()], axis=0)
        assert found.member == member.member
        assert found.score == pytest.approx(accuracy_score(truth.classes, p.argmax(axis=1)), abs=1e-12)
        assert found.low < found.score < found.high


def test_odd_members_are_named() -> None:
    """A member of noise and one with its columns in another order are each named, and good ones are not."""
    members, truth = contest(members=3, quality=3.0)
    rng = np.random.default_rng(1)
    noise = {view: rng.normal(size=values.shape) for view, values in members[1].logits.items()}
    moved = {view: values[:, [1, 2, 0]] for view, values in members[2].logits.items()}
    heard = Recorder()
    learn([members[0], make_member("noise", noise), make_member("moved", moved)], truth, method="mean", listener=heard)
    said = [notice.message for notice in heard.notices if notice.code == "W508"]
    assert [text.partition(" ")[0] for text in said] == ["moved", "noise"]
    assert "'0' is in the column of '2', '1' is in the column of '0'" in said[0]
    assert "no more than chance" in said[1]


@pytest.mark.slow
def test_no_order_changes_the_result() -> None:
    """Any order of members, rows and ground truth gives the same table, weights and bias."""
    members, truth = contest()
    rng = np.random.default_rng(1)
    rows = rng.permutation(len(truth.ids))
    assert truth.persons is not None
    turned = Truth(
        tuple(truth.ids[row] for row in rows),
        truth.classes[rows],
        tuple(truth.persons[row] for row in rows),
        truth.labels,
    )
    one = learn(members, truth, repeats=1)
    other = learn([reorder(member, rng.permutation(len(rows))) for member in members[::-1]], turned, repeats=1)
    assert one.table == other.table
    assert one.member_views == other.member_views
    assert one.fitted.weights.tobytes() == other.fitted.weights.tobytes()
    assert one.fitted.bias.tobytes() == other.fitted.bias.tobytes()


def test_classes_are_matched_by_name() -> None:
    """Another column order of a member changes nothing."""
    members, truth = contest()
    columns = [2, 0, 1]
    turned = replace(
        members[1],
        logits={view: values[:, columns] for view, values in members[1].logits.items()},
        labels=LabelSpace.flat([truth.labels.names[c] for c in columns]),
    )
    one, other = learn(members, truth, method="pool"), learn([members[0], turned, *members[2:]], truth, method="pool")
    assert one.table == other.table


def test_a_named_method_is_taken_and_compared_with_the_mean() -> None:
    """A named method is the result whatever its gain, and the table contains only it and the mean."""
    members, truth = contest(quality=0)
    learned = learn(members, truth, method="greedy", repeats=1)
    assert learned.method == "greedy"
    assert [row.candidate for row in learned.table] == ["mean", "greedy"]
    assert learned.reason.startswith("greedy was requested")
    assert [row.candidate for row in learn(members, truth, method="mean", repeats=1).table] == ["mean"]


def test_the_fitted_candidate_has_the_in_sample_score_of_the_table() -> None:
    """Applied to the images it was fitted to, the result has the in-sample score of its row."""
    members, truth = contest()
    for method in ("linear", "calibrated+f1", "pool+tau"):
        learned = learn(members, truth, method=method, repeats=1)
        log_p = np.stack(
            [log_softmax(m.logits[one.view]) for one in learned.member_views for m in members if m.member == one.member]
        )
        answers = learned.fitted.decide(learned.fitted.apply(log_p))
        assert f1_score(truth.classes, answers, average="macro") == pytest.approx(learned.table[1].in_sample, rel=1e-12)


def test_fitted_pools_equal_their_formula() -> None:
    """A fitted pool is the softmax of sharpness times the logarithm of the mean, arithmetic or geometric, plus bias."""
    members, truth = contest()
    log_p = np.stack([log_softmax(values) for member in members for values in member.logits.values()])
    for method, mean in (("calibrated", np.log(np.exp(log_p).mean(axis=0))), ("pool", None)):
        fitted = learn(members, truth, method=method, repeats=1).fitted
        pooled = np.tensordot(fitted.weights, log_p, axes=1) if mean is None else mean
        assert fitted.weights.sum() == pytest.approx(1, rel=1e-12)
        expected = softmax(fitted.sharpness * pooled + fitted.bias, axis=-1)
        np.testing.assert_allclose(np.exp(fitted.apply(log_p)), expected, rtol=1e-9)


def test_a_member_without_weight_is_explained() -> None:
    """A member that is systematically wrong gets no weight, and the reason names it."""
    members, truth = contest()
    lies = -3 * np.eye(3)[truth.classes] + np.random.default_rng(0).normal(size=(len(truth.ids), 3))
    learned = learn([*members, make_member("liar", lies, labels=truth.labels)], truth, method="log-linear", repeats=1)
    assert row_of(learned, "log-linear").weights["liar/identity"] == 0
    assert "liar has no weight: given the others, any weight would lower the likelihood." in learned.reason


def test_the_table_lists_every_candidate() -> None:
    """The JSON-ready table has the candidates of the metric in their order, the mean first."""
    members, truth = contest()
    learned = learn(members, truth, repeats=1)
    expected = candidates_for(parse_metric("macro-f1", truth.labels), truth.labels)
    assert [row["candidate"] for row in learned.table_as_dicts()] == list(expected)


def test_a_ground_truth_without_persons_is_noticed() -> None:
    """Without persons the images are split individually, with W523."""
    members, truth = contest()
    heard = Recorder()
    learned = learn(members, replace(truth, persons=None), method="linear", repeats=1, listener=heard)
    assert learned.persons is None
    assert [notice.code for notice in heard.notices] == ["W523"]


def test_fault_85_small_classes_are_noticed() -> None:
    """Classes with fewer than 30 images, and with none, are named; a class with none keeps its bias at 0."""
    members, truth = contest(classes=4)
    classes = np.where(truth.classes == 3, 2, truth.classes)
    classes[np.flatnonzero(classes == 0)[7:]] = 1
    heard = Recorder()
    learned = learn(members, replace(truth, classes=classes), method="pool", repeats=1, listener=heard)
    assert [(notice.code, notice.message) for notice in heard.notices] == [
        ("I524", "fewer than 30 images, so the bias is regularized more: 0 (7)"),
        ("I524", "no images, so the bias stays 0: 3"),
    ]
    assert learned.fitted.bias[3] == 0
    assert (learned.fitted.bias[:3] != 0).all()


def test_a_class_with_fewer_images_than_folds_is_supported() -> None:
    """A class with two images, both of one person, gives no warning."""
    members, truth = contest()
    classes = np.where(truth.classes == 0, 1, truth.classes)
    classes[:2] = 0
    assert learn(members, replace(truth, classes=classes), method="pool+f1", repeats=1).method == "pool+f1"


def test_invalid_inputs_are_refused() -> None:
    """Unknown methods and metrics, other images or classes, NaN, repeated members and too few people are refused."""
    members, truth = contest()
    assert code_of(lambda: learn(members, truth, method="magic"))[0] == "E204"
    assert "none of auto, mean" in code_of(lambda: learn(members, truth, method="magic"))[1]
    assert code_of(lambda: learn(members, truth, method="pool+f1", metric="nll"))[0] == "E204"
    assert code_of(lambda: learn(members, truth, metric="magic"))[0] == "E204"
    assert code_of(lambda: learn([reorder(members[0], range(9))], truth))[0] == "E330"
    assert code_of(lambda: learn([replace(members[0], labels=LabelSpace.flat(["x", "y", "z"]))], truth))[0] == "E501"
    broken = {view: np.where(np.eye(240, 3) > 0, np.nan, values) for view, values in members[0].logits.items()}
    assert code_of(lambda: learn([replace(members[0], logits=broken)], truth))[0] == "E505"
    assert code_of(lambda: learn([members[0], members[0]], truth))[0] == "E515"
    few = replace(truth, persons=tuple(f"p{i % 4}" for i in range(240)))
    assert code_of(lambda: learn(members, few)) == (
        "E525",
        "learning needs at least 5 persons for cross-validation, got 4",
    )


def test_learning_uses_one_blas_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    """BLAS uses one thread while learning, and as many as before afterwards."""
    members, truth = contest()
    seen: set[int] = set()

    def counting(*arguments: Any, **options: Any) -> Any:
        seen.update(one["num_threads"] for one in threadpool_info() if one["user_api"] == "blas")
        return fit_candidates(*arguments, **options)

    monkeypatch.setattr(importlib.import_module("ensemble.learn.learn"), "fit_candidates", counting)
    with threadpool_limits(limits=2, user_api="blas"):
        before = threadpool_info()
        learn(members, truth, method="linear", repeats=1)
        assert threadpool_info() == before
    assert seen == {1}


def test_progress_is_reported_and_completes() -> None:
    """Every fold of every repeat is one step of progress, and the last report is complete."""
    told: list[tuple[str, int, int]] = []

    class Heard(Recorder):
        def progress(self, stage: str, done: int, total: int) -> None:
            told.append((stage, done, total))

    learn(*contest(), method="logit", repeats=2, listener=Heard())
    assert told == [("learn", done, 10) for done in range(11)]


@dataclass(frozen=True, slots=True)
class Outcome:
    """The result of `auto` on 540 people, and its gain in points of macro F1 over the mean on 3,000 new ones."""

    learned: Learned
    gain: float


@cache
def outcome(scenario: Scenario, seed: int) -> Outcome:
    contest = make_contest(scenario, seed=seed)
    learned = learn(*contest.draw(540, seed=1000 + seed), repeats=1)
    members, truth = contest.draw(3000, seed=2000 + seed)
    log_p = np.stack([log_softmax(member.logits["identity"]) for member in members])

    def points(answers: NDArray[np.intp]) -> float:
        return 100 * float(f1_score(truth.classes, answers, average="macro", labels=range(18), zero_division=0))

    ours = points(learned.fitted.decide(learned.fitted.apply(log_p)))
    return Outcome(learned, ours - points(np.exp(log_p).mean(axis=0).argmax(axis=1)))


@pytest.mark.slow
@pytest.mark.parametrize(("scenario", "points"), [("A", 6), ("B", 10)])
def test_on_new_people_auto_gains_where_the_mean_is_biased(scenario: Scenario, points: float) -> None:
    """If members prefer the frequent classes, `auto` gains 6 points on new people, and 10 if some are weak."""
    assert outcome(scenario, 0).gain > points


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_on_new_people_auto_does_no_harm_where_the_mean_is_good(seed: int) -> None:
    """If members were trained on balanced classes, `auto` loses at most 0.3 points on new people."""
    assert outcome("C", seed).gain > -0.3


@pytest.mark.slow
def test_the_table_predicts_the_gain() -> None:
    """The nested gain of the selected candidate is within three standard errors of the gain on new people."""
    for scenario, seed in (("A", 0), ("B", 0), ("C", 0), ("C", 1)):
        found = outcome(scenario, seed)
        row = row_of(found.learned, found.learned.method)
        assert abs(100 * row.gain - found.gain) <= 3 * 100 * row.error


@pytest.mark.slow
def test_a_hundred_members_are_learned_from() -> None:
    """A hundred members with two views each can be learned from."""
    members, truth = contest()
    many = [replace(members[i % 4], member=f"m{i:03d}", group=f"m{i:03d}") for i in range(100)]
    learned = learn(many, truth, repeats=1)
    assert len(learned.member_views) == 200
    assert all(sum(row.weights.values()) == pytest.approx(1) for row in learned.table)
