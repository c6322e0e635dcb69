"""Evaluation: the truth read, joined and scored."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.special import softmax
from sklearn.metrics import f1_score, log_loss

from ensemble.analysis.evaluate import evaluate, side_by_side
from ensemble.blend.blend import blend
from ensemble.blend.recipe import make_recipe
from ensemble.errors import DataError, EnsError, PredictionError
from ensemble.labels import MASK18, LabelSpace
from ensemble.predictions.truth import Truth, read_truth
from ensemble.submission.sheet import Submission
from tests.support.members import draw_logits, make_member, reorder

COUNT = 60


def truth_of(ids: tuple[str, ...], *, persons: bool = True) -> Truth:
    classes: NDArray[np.intp] = np.random.default_rng(7).integers(18, size=len(ids))
    return Truth(ids, classes, tuple(f"p{i // 7}" for i in range(len(ids))) if persons else None, MASK18)


def code_of(action: Callable[[], object]) -> tuple[str, str]:
    with pytest.raises(EnsError) as caught:
        action()
    return caught.value.code, caught.value.message


def macro(truth: Truth, classes: NDArray[np.intp]) -> float:
    return float(f1_score(truth.classes, classes, average="macro", labels=range(18), zero_division=0))


def test_a_members_views_and_their_mean_are_scored() -> None:
    """Each view has its own scores, and the mean is that of the views' probabilities."""
    views = {view: draw_logits(seed, COUNT, 18) for seed, view in enumerate(("identity", "hflip"))}
    member = make_member("a", views, labels=MASK18)
    truth = truth_of(member.ids)
    evaluation = evaluate(member, truth, resamples=50)
    p = {view: softmax(logits.astype(np.float64), axis=-1) for view, logits in views.items()}
    p["mean"] = (p["identity"] + p["hflip"]) / 2
    assert [scores.name for scores in evaluation.scores] == list(p)
    for scores in evaluation.scores:
        answered = p[scores.name].argmax(axis=-1)
        assert scores.macro_f1.value == pytest.approx(macro(truth, answered))
        assert scores.axes["gender"].value == pytest.approx((truth.classes // 3 % 2 == answered // 3 % 2).mean())
        assert scores.nll == pytest.approx(log_loss(truth.classes, p[scores.name], labels=range(18)))
        assert scores.macro_f1.low <= scores.macro_f1.value <= scores.macro_f1.high
    assert evaluation.support == tuple(np.bincount(truth.classes, minlength=18))
    assert (evaluation.images, evaluation.persons) == (COUNT, 9)


def test_a_blend_and_its_submission_have_the_same_scores() -> None:
    """A blend scores as the submission with its classes, which has no probabilities to score."""
    members = [make_member(name, draw_logits(i, COUNT, 18), labels=MASK18) for i, name in enumerate("ab")]
    blended = blend(members, make_recipe(members))
    truth = truth_of(members[0].ids)
    (of_blend,) = evaluate(blended, truth, resamples=50).scores
    (of_csv,) = evaluate(Submission(blended.ids, blended.classes, MASK18), truth, resamples=50).scores
    assert of_blend.macro_f1 == of_csv.macro_f1
    assert of_blend.macro_f1.value == pytest.approx(macro(truth, blended.classes))
    assert (of_blend.accuracy, of_blend.axes, of_blend.class_f1) == (of_csv.accuracy, of_csv.axes, of_csv.class_f1)
    assert of_blend.nll == pytest.approx(log_loss(truth.classes, blended.probabilities, labels=range(18)))
    assert of_csv.nll is None
    assert of_csv.calibration_error is None


@pytest.mark.parametrize("persons", [True, False])
def test_no_order_changes_a_score(persons: bool) -> None:
    """The rows of the answers and of the truth in any order give the same scores and intervals."""
    member = make_member(
        "a", {"identity": draw_logits(0, COUNT, 18), "hflip": draw_logits(1, COUNT, 18)}, labels=MASK18
    )
    truth = truth_of(member.ids, persons=persons)
    order = np.random.default_rng(0).permutation(COUNT)
    turned = Truth(
        tuple(truth.ids[i] for i in order),
        truth.classes[order],
        tuple(truth.persons[i] for i in order) if truth.persons else None,
        MASK18,
    )
    one = evaluate(member, truth, resamples=30)
    assert one == evaluate(reorder(member, order[::-1]), truth, resamples=30)
    assert one == evaluate(member, turned, resamples=30)


def test_classes_meet_by_name() -> None:
    """Answers whose classes stand in another order score the same: predictions, blends and submissions alike."""
    columns = np.random.default_rng(1).permutation(18)
    labels = LabelSpace.flat([MASK18.names[c] for c in columns])
    logits = draw_logits(0, COUNT, 18)
    straight, turned = make_member("a", logits, labels=MASK18), make_member("a", logits[:, columns], labels=labels)
    truth = truth_of(straight.ids)
    blends = [blend([member], make_recipe([member])) for member in (straight, turned)]
    submissions = [Submission(b.ids, b.classes, b.labels) for b in blends]
    assert evaluate(straight, truth, resamples=5) == evaluate(turned, truth, resamples=5)
    assert evaluate(blends[0], truth, resamples=5) == evaluate(blends[1], truth, resamples=5)
    assert evaluate(submissions[0], truth, resamples=5) == evaluate(submissions[1], truth, resamples=5)
    other = Truth(truth.ids, truth.classes % 3, None, LabelSpace.flat(3))
    assert code_of(lambda: evaluate(straight, other))[0] == "E501"


def test_a_perfect_answer_scores_one() -> None:
    """The truth itself has accuracy 1 on every axis, with an interval of no width."""
    truth = truth_of(tuple(f"{i}.jpg" for i in range(COUNT)))
    (scores,) = evaluate(Submission(truth.ids, truth.classes, MASK18), truth, resamples=20).scores
    for estimate in (scores.accuracy, *scores.axes.values()):
        assert (estimate.value, estimate.low, estimate.high) == (1, 1, 1)


def test_a_truth_of_other_images_is_refused() -> None:
    """Images that are only in the truth or only in the answers are E330, named."""
    member = make_member("a", draw_logits(0, 5, 18), labels=MASK18)
    code, message = code_of(lambda: evaluate(member, truth_of((*member.ids[1:], "x.jpg", "y.jpg"))))
    assert code == "E330"
    assert "lacks 2 of 6 ids: x.jpg, y.jpg; has 1 others: 000.jpg" in message


def test_fault_80_nan_is_not_scored() -> None:
    """A NaN logit is E505 and no wrong answer."""
    logits = draw_logits(0, 5, 18)
    logits[3, 3] = np.nan
    member = make_member("a", logits, labels=MASK18)
    message = "a, view identity: 1 of 5 rows are NaN or infinite: 003.jpg"
    assert code_of(lambda: evaluate(member, truth_of(member.ids))) == ("E505", message)


def write(path: Path, text: str) -> Path:
    path.write_text(text, encoding="utf-8")
    return path


def test_a_truth_is_read_with_and_without_persons(tmp_path: Path) -> None:
    """ImageID and ans in any order of columns, person where there is one."""
    truth = read_truth(write(tmp_path / "t.csv", "person,ans,ImageID\nanna,17,a.jpg\nbert,0,b.jpg\n"), MASK18)
    assert (truth.ids, truth.classes.tolist(), truth.persons) == (("a.jpg", "b.jpg"), [17, 0], ("anna", "bert"))
    assert read_truth(write(tmp_path / "t.csv", "ImageID,ans\na.jpg,3\n"), MASK18).persons is None


@pytest.mark.parametrize(
    ("text", "code", "message"),
    [
        ("ImageID,ans\na,0\nb,18\n", "E330", "t.csv: line 3: '18' is not a class of 0 to 17"),
        ("ImageID,ans\na,-1\n", "E330", "t.csv: line 2: '-1' is not a class of 0 to 17"),
        ("ImageID,ans\na,3.0\n", "E330", "t.csv: line 2: '3.0' is not a class of 0 to 17"),
        ("ImageID,ans\na,\n", "E330", "t.csv: line 2: '' is not a class of 0 to 17"),
        ("ImageID,ans\n", "E330", "t.csv: the ground truth has a header but no rows"),
        (
            "ImageID,ans,person\na,1,x\nb,1,\n",
            "E330",
            "t.csv: line 3: the person is empty; fill in all or drop the column",
        ),
        ("ImageID,ans\na,0\na,0\n", "E313", "t.csv: 1 duplicate ids: a (lines 2, 3)"),
        ("ImageID,x,y2\na,0,0\n", "E322", 't.csv: column "ans" not found; have: ImageID, x, y2'),
    ],
)
def test_a_truth_that_is_none_is_refused(tmp_path: Path, text: str, code: str, message: str) -> None:
    """Missing columns, repeated ids and answers that are not classes each get their error, with the line."""
    path = write(tmp_path / "t.csv", text)
    assert code_of(lambda: read_truth(path, MASK18)) == (code, message)
    with pytest.raises(DataError) as caught:
        read_truth(path, MASK18)
    assert caught.value.path == path


def test_an_evaluation_is_json() -> None:
    """as_dict survives JSON and holds every score by name."""
    member = make_member("a", draw_logits(0, 20, 18), labels=MASK18)
    value = json.loads(json.dumps(evaluate(member, truth_of(member.ids), resamples=10).as_dict()))
    assert value["images"] == 20
    scores = {"name", "macro_f1", "accuracy", "axes", "nll", "calibration_error", "class_f1", "metrics"}
    assert set(value["scores"][0]) == scores
    assert set(value["scores"][0]["axes"]["mask"]) == {"value", "low", "high"}


def test_an_evaluation_is_a_table_for_people(monkeypatch: pytest.MonkeyPatch) -> None:
    """The tables name each view, each axis and each class, and the basis of the intervals; they fit 80 columns."""
    member = make_member("a", {"identity": draw_logits(0, 20, 18), "hflip": draw_logits(1, 20, 18)}, labels=MASK18)
    assert max(map(len, evaluate(member, truth_of(member.ids), resamples=10).render().splitlines())) <= 80
    monkeypatch.setenv("COLUMNS", "200")
    lines = evaluate(member, truth_of(member.ids), resamples=10).render().splitlines()
    assert lines[0] == "20 images of 3 persons; 95 % intervals in brackets"
    assert lines[1].split() == ["identity", "hflip", "mean"]
    assert [line.split()[0] for line in lines[2:9]] == ["macro", "accuracy", "mask", "gender", "age", "NLL", "ECE"]
    assert lines[10] == "F1 per class"
    assert lines[11].split() == ["class", "images", "identity", "hflip", "mean"]
    assert all(name in line for name, line in zip(MASK18.names, lines[12:], strict=True))
    assert max(map(len, lines)) <= 80
    without = evaluate(
        Submission(member.ids, np.zeros(20, np.intp), MASK18), truth_of(member.ids, persons=False), resamples=5
    )
    assert without.render().startswith("20 images; 95 % intervals in brackets\n")
    assert [line.split() for line in without.render().splitlines()[7:9]] == [["NLL", "-"], ["ECE", "-"]]


def test_many_sets_of_predictions_are_tables_of_80_columns(monkeypatch: pytest.MonkeyPatch) -> None:
    """Four members with two views each, under long names, are twelve columns in tables that are at most 80 wide."""
    monkeypatch.setenv("COLUMNS", "80")
    members = [
        make_member(
            f"efficientnet_b3_f{i}",
            {view: draw_logits(9 * i + j, 20, 18) for j, view in enumerate(("identity", "hflip"))},
            labels=MASK18,
        )
        for i in range(4)
    ]
    truth = truth_of(members[0].ids)
    table = side_by_side({m.member: evaluate(m, truth, resamples=5) for m in members})
    lines = table.render().splitlines()
    assert max(map(len, lines)) <= 80
    words = [word for line in lines for word in line.split()]
    assert [word for word in words if word in {"identity", "hflip", "mean"}] == ["identity", "hflip", "mean"] * 4
    assert table.scores[0].name == "efficientnet_b3_f0: identity"
    one = side_by_side({"a": evaluate(members[0], truth, resamples=5)}).render().splitlines()
    assert one[0] == "a: 20 images of 3 persons; 95 % intervals in brackets"
    assert one[1].split() == ["identity", "hflip", "mean"]


def test_evaluations_stand_side_by_side_under_their_owners_names() -> None:
    """Two members' scores become one table of the same numbers; members of other classes do not fit in it."""
    one, other = (make_member(name, draw_logits(i, COUNT, 18), labels=MASK18) for i, name in enumerate("ab"))
    parts = {m.member: evaluate(m, truth_of(m.ids), resamples=10) for m in (one, other)}
    table = side_by_side(parts)
    assert [s.name for s in table.scores] == ["a", "b"]
    assert [s.macro_f1 for s in table.scores] == [part.scores[0].macro_f1 for part in parts.values()]
    with pytest.raises(PredictionError, match="E501"):
        side_by_side(parts | {"odd": replace(parts["a"], classes=("x", "y"))})
