"""Calibrated early exit: at least the share that was asked for keeps its answer, on rows that were not seen."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from ensemble.blend.blend import blend
from ensemble.blend.pooling import parse_pool
from ensemble.blend.recipe import Group, Recipe
from ensemble.errors import DataError, OptionError, PredictionError
from ensemble.events import Recorder
from ensemble.labels import LabelSpace
from ensemble.learn.objective import parse_metric
from ensemble.predictions.dataset import Predictions
from ensemble.submit.early_exit import Running, in_order, passes_of
from ensemble.submit.exit_thresholds import (
    ExitThresholds,
    Keep,
    Lose,
    RunningAnswers,
    calibrate,
    choose_by_score,
    choose_stops,
    parse_goal,
    replay,
)
from tests.support.members import make_member

C = 5


def draw_members(seed: int, rows: int) -> list[Predictions]:
    """Three groups that mostly agree; the rows of two seeds are of one kind."""
    rng = np.random.default_rng(seed)
    truth = 6 * np.eye(C)[rng.integers(C, size=rows)] * rng.uniform(0, 1.5, (rows, 1))
    return [
        make_member(name, {"identity": truth + rng.normal(size=(rows, C)), "hflip": truth + rng.normal(size=(rows, C))})
        for name in "abc"
    ]


def make(pool: str = "linear") -> Recipe:
    """A recipe of three groups and two views."""
    return Recipe(
        pool=parse_pool(pool),
        views={"identity": 2.0, "hflip": 1.0},
        groups={name: Group(weight, {name: ""}) for name, weight in zip("abc", (3.0, 2.0, 1.0), strict=True)},
        labels=LabelSpace.flat(C),
    )


@pytest.mark.parametrize("pool", ["linear", "logit"])
def test_other_rows_keep_their_answers_as_often_as_asked(pool: str) -> None:
    """ExitThresholds from 2,000 rows: of 4,000 new ones at least 99 % have the answer of `blend`, with passes saved."""
    recipe = make(pool)
    passes = in_order(passes_of(recipe), dict.fromkeys("abc", 1.0), whole_groups=True)
    heard = Recorder()
    found = calibrate(recipe, passes, draw_members(0, 2000), Keep(0.99), listener=heard)
    assert (found.certified, heard.notices) == (True, [])
    assert found.kept >= 0.99
    new = {member.member: member for member in draw_members(1, 4000)}
    expected = blend(list(new.values()), recipe, ids=new["a"].ids).classes
    running, left, count = Running(recipe, passes, 4000), np.arange(4000), 0
    answers = np.full(4000, -1)
    for one in passes:
        running.add(new[one.member].logits[one.view][left])
        count += len(left)
        now = running.leaders()
        gone = now.leads >= found.stops.get(running.seen, 0.0)
        answers[left[gone]] = now.classes[gone]
        left = left[~gone]
        running.keep(~gone)
    assert (answers == expected).mean() >= 0.99
    assert 0.2 < 1 - count / (4000 * len(passes)) == pytest.approx(found.saved, abs=0.1)  # halves may change fewer rows


@pytest.mark.parametrize("allowed", [0, 1, 5])
def test_no_more_rows_change_than_are_allowed(allowed: int) -> None:
    """On the rows it was chosen on, the thresholds change at most that many, and lower ones would change more."""
    rng = np.random.default_rng(allowed)
    answers = np.where(rng.uniform(size=(4, 300)) < 0.2, 1, 0)
    answers[-1] = 0
    course = RunningAnswers((1, 2, 3, 4), np.array([3.0, 1.0, 1 / 3]), rng.uniform(size=(4, 300)), answers)
    stops = choose_stops(course, allowed)
    early = replay(course, stops)
    assert (early.classes != 0).sum() <= allowed
    # every row by itself, in the plainest way
    for row in range(300):
        end, answer = next(
            (k, answers[k - 1, row]) for k in (1, 2, 3, 4) if k == 4 or course.leads[k - 1, row] >= stops[k]
        )
        assert (early.classes[row], early.passes[row]) == (answer, end)
    needed = [max([course.leads[k, i] / course.scale[k] for k in range(3) if answers[k, i]] or [0]) for i in range(300)]
    assert sum(need >= stops[2] for need in needed) == allowed


def test_too_few_rows_certify_nothing_and_that_is_said() -> None:
    """By the rule of three, 100 rows bound the rate of changes by 3 % at best."""
    recipe = make()
    passes = in_order(passes_of(recipe), dict.fromkeys("abc", 1.0), whole_groups=True)
    heard = Recorder()
    assert not calibrate(recipe, passes, draw_members(0, 100), Keep(0.999), listener=heard).certified
    assert [(n.code, "97.000%" in n.message) for n in heard.notices] == [("W533", True)]
    assert calibrate(recipe, passes, draw_members(0, 100), Keep(0.97)).certified


def test_out_of_fold_predictions_must_be_of_the_recipes_groups_and_views(tmp_path: Path) -> None:
    """E517 for a missing group, E516 for a missing view, E330 for a truth of other images."""
    recipe = make()
    passes = in_order(passes_of(recipe), dict.fromkeys("abc", 1.0), whole_groups=True)
    members = draw_members(0, 30)
    with pytest.raises(PredictionError, match="out-of-fold predictions of c") as caught:
        calibrate(recipe, passes, members[:2], Keep(0.9))
    assert caught.value.code == "E517"
    bare = [replace(member, logits={"identity": member.logits["identity"]}) for member in members]
    with pytest.raises(PredictionError, match="hflip") as caught:
        calibrate(recipe, passes, bare, Keep(0.9))
    assert caught.value.code == "E516"
    (tmp_path / "truth.csv").write_text("ImageID,ans,person\n000.jpg,1,x\n")
    with pytest.raises(DataError) as fault:
        calibrate(recipe, passes, members, Keep(0.9), truth=tmp_path / "truth.csv")
    assert fault.value.code == "E330"


def test_without_scipy_a_goal_is_refused_before_anything_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    """In a Kaggle bundle, which has no scipy, --early-exit 0.99 is E205 with the command that installs it."""
    monkeypatch.setitem(sys.modules, "scipy", None)
    with pytest.raises(OptionError, match=r"--early-exit 0\.99 needs scipy, which is not installed") as caught:
        calibrate(make(), (), (), Keep(0.99))
    assert caught.value.code == "E205"


def test_the_halves_share_no_person(tmp_path: Path) -> None:
    """Where each person's rows are copies, halves by person leave other figures than halves by row."""
    recipe = make()
    passes = in_order(passes_of(recipe), dict.fromkeys("abc", 1.0), whole_groups=True)
    members = [
        replace(
            member,
            ids=tuple(f"{i:04d}.jpg" for i in range(600)),
            logits={view: np.repeat(values, 20, axis=0) for view, values in member.logits.items()},
        )
        for member in draw_members(3, 30)
    ]
    lines = [f"{i:04d}.jpg,0,{i // 20}" for i in range(600)]
    (tmp_path / "truth.csv").write_text("\n".join(["ImageID,ans,person", *lines]) + "\n")
    by_row = calibrate(recipe, passes, members, Keep(0.99))
    by_person = calibrate(recipe, passes, members, Keep(0.99), truth=tmp_path / "truth.csv")
    assert by_row.stops == by_person.stops
    assert by_row.kept > by_person.kept


def draw_course(seed: int, rows: int) -> tuple[RunningAnswers, np.ndarray[tuple[int], np.dtype[np.intp]]]:
    """Two looks and the truth of two classes: what the first changes is right as often as what the last says."""
    rng = np.random.default_rng(seed)
    truth = rng.integers(2, size=rows)
    lead = rng.uniform(size=rows)
    last = np.where(rng.uniform(size=rows) < 0.75, truth, 1 - truth)
    doubtful = rng.uniform(size=rows) < 0.4 * (1 - lead)
    first = np.where(doubtful, np.where(rng.uniform(size=rows) < 0.75, truth, 1 - truth), last)
    return RunningAnswers((1, 2), np.array([1.0]), np.stack([lead, lead]), np.stack([first, last])), truth


@pytest.mark.slow
def test_a_metric_may_lose_what_is_allowed_and_no_more() -> None:
    """Answers that change and are as good as before cost nothing, so that nearly all rows leave early though one in
    eight changes. Where what changes is always wrong, only so many leave as cost what is allowed.
    """
    measure = parse_metric("accuracy", LabelSpace.flat(2))
    course, truth = draw_course(0, 20_000)
    people = [str(i) for i in range(20_000)]
    chosen = choose_by_score(course, truth, people, measure, 0.01)
    early = replay(course, chosen.stops)
    assert chosen.certified
    assert early.passes.mean() < 1.1
    assert (early.classes != course.answers[-1]).mean() > 0.06
    wrong = replace(course, answers=np.stack([np.where(course.answers[0] == course.answers[-1], truth, 1 - truth)] * 2))
    wrong = replace(wrong, answers=np.stack([wrong.answers[0], truth]))
    chosen = choose_by_score(wrong, truth, people, measure, 0.01)
    early = replay(wrong, chosen.stops)
    assert chosen.certified
    assert 0.005 < (early.classes != truth).mean() < 0.01
    assert 1.3 < early.passes.mean() < 1.9


def test_few_people_certify_no_loss() -> None:
    """Of forty rows of four people no early exit is certain to cost at most a thousandth: nobody leaves early."""
    measure = parse_metric("accuracy", LabelSpace.flat(2))
    course, truth = draw_course(1, 40)
    course = replace(course, answers=np.stack([1 - truth, truth]))
    chosen = choose_by_score(course, truth, [str(i // 10) for i in range(40)], measure, 0.001)
    assert chosen == ExitThresholds({1: np.inf}, certified=False)
    assert (replay(course, chosen.stops).classes == truth).all()


def test_a_metric_needs_the_truth_and_reports_its_score(tmp_path: Path) -> None:
    """E204 without a truth or for an unknown metric; with one the whole score and the early one are told."""
    recipe = make()
    passes = in_order(passes_of(recipe), dict.fromkeys("abc", 1.0), whole_groups=True)
    members = draw_members(0, 2000)
    with pytest.raises(OptionError, match="needs --truth"):
        calibrate(recipe, passes, members, Lose("macro-f1", 0.01))
    with pytest.raises(OptionError, match="unknown metric 'f7'"):
        calibrate(recipe, passes, members, Lose("f7", 0.01))
    with pytest.raises(OptionError, match="no early exit for mcc"):
        calibrate(recipe, passes, members, Lose("mcc", 0.01), truth=tmp_path / "truth.csv")
    whole = blend(members, recipe, ids=members[0].ids).classes
    lines = [f"{name},{answer},{i // 2}" for i, (name, answer) in enumerate(zip(members[0].ids, whole, strict=True))]
    (tmp_path / "truth.csv").write_text("\n".join(["ImageID,ans,person", *lines]) + "\n")
    found = calibrate(recipe, passes, members, Lose("macro-f1", 0.02), truth=tmp_path / "truth.csv")
    assert found.certified
    assert found.score is not None
    assert found.score[0] == 1.0
    assert 0.98 <= found.score[1] < 1.0
    assert found.saved > 0.3
    assert "macro F1 1.0000 -> 0.9" in found.render()
    assert "(asked: macro-f1:0.02)" in found.render()


@pytest.mark.parametrize(
    ("text", "goal"),
    [
        ("0.999", Keep(0.999)),
        ("macro-f1:0.003", Lose("macro-f1", 0.003)),
        ("accuracy:mask:0.01", Lose("accuracy:mask", 0.01)),
    ],
)
def test_goals_are_parsed_and_written_alike(text: str, goal: Keep | Lose) -> None:
    """A goal reads as it is written."""
    assert parse_goal(text) == goal
    assert str(goal) == text


@pytest.mark.parametrize(
    "text", ["", "1", "0.4", "nan", "soon", "macro-f1", "macro-f1:", "macro-f1:0", "macro-f1:3", "nll:0.1"]
)
def test_what_is_no_goal_is_refused(text: str) -> None:
    """E204 says what forms there are."""
    with pytest.raises(OptionError, match=r"exact, a share .* macro-f1:0\.003") as caught:
        parse_goal(text)
    assert caught.value.code == "E204"
