"""A recipe as a teacher: no answer depends on its own label, and each fold is answered by its own models."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from sklearn.metrics import f1_score

from ensemble.blend.blend import blend
from ensemble.blend.pooling import parse_pool
from ensemble.blend.recipe import Recipe, make_recipe
from ensemble.blend.smoothing import Smoothing
from ensemble.errors import DataError, EnsError, PredictionError
from ensemble.events import Recorder
from ensemble.labels import LabelSpace
from ensemble.learn.learn import learn
from ensemble.learn.learned_recipe import learned_recipe
from ensemble.learn.student import compare_student
from ensemble.learn.teacher import answer_by_own_models, count_passes, make_teacher
from ensemble.predictions.dataset import Predictions, hash_ids
from ensemble.predictions.members import select_images
from ensemble.predictions.truth import Truth
from tests.support.members import make_member

LABELS = LabelSpace.flat(["a", "b", "c"])
COUNT = 240
IDS = tuple(f"{i:03d}.jpg" for i in range(COUNT))
FOLD = np.arange(COUNT) // 4 % 3  # four images of each person
RNG = np.random.default_rng(5)
CLASSES = RNG.integers(3, size=COUNT)
TRUTH = Truth(IDS, CLASSES, tuple(str(i // 4) for i in range(COUNT)), LABELS)


def models(group: str, *, noise: float, seed: int, classes: np.ndarray = CLASSES) -> list[Predictions]:
    """Return a group's model per fold, with predictions of all images, in two views; nearly sure of what it saw."""
    rng = np.random.default_rng(seed)
    found = []
    for fold in range(3):
        views = {}
        for view in ("identity", "hflip"):
            logits = 2 * np.eye(3)[classes] + rng.normal(0, noise, (COUNT, 3))
            logits[fold != FOLD] += 6 * np.eye(3)[classes[fold != FOLD]]
            views[view] = logits
        one = make_member(f"{group}_f{fold}", views, ids=IDS, labels=LABELS, group=group)
        held = [IDS[i] for i in np.flatnonzero(fold == FOLD)]
        found.append(replace(one, fold=fold, holdout_sha256=hash_ids(held)))
    return found


def out_of_fold(members: list[Predictions]) -> list[Predictions]:
    return [select_images(one, [IDS[i] for i in np.flatnonzero(one.fold == FOLD)]) for one in members]


EVERY = models("g", noise=1.5, seed=1) + models("h", noise=2.5, seed=2)
OOF = out_of_fold(EVERY)


def learned(method: str, metric: str = "macro-f1") -> Recipe:
    done = learn([gathered(name) for name in "gh"], TRUTH, method=method, metric=metric, repeats=1)
    return learned_recipe(done, EVERY)


def gathered(group: str) -> Predictions:
    own = [one for one in OOF if one.group == group]
    ids = [name for one in own for name in one.ids]
    views = {view: np.concatenate([one.logits[view] for one in own]) for view in own[0].logits}
    return select_images(make_member(group, views, ids=ids, labels=LABELS), IDS)


@pytest.mark.parametrize("method", ["mean", "pool+f1", "greedy"])
def test_a_fold_is_answered_by_what_the_others_have_learned(method: str) -> None:
    """For each fold, answers are those of `learn` without its images: equal classes and probabilities."""
    teacher = make_teacher(learned(method), OOF, TRUTH, FOLD)
    for fold in range(3):
        rest, own = ([IDS[i] for i in np.flatnonzero(mask)] for mask in (fold != FOLD, fold == FOLD))
        rows = np.flatnonzero(fold != FOLD)
        part = Truth(tuple(rest), CLASSES[rows], tuple(TRUTH.persons[i] for i in rows), LABELS)  # type: ignore[index]
        members = [gathered(name) for name in "gh"]
        done = learn([select_images(one, rest) for one in members], part, method=method, repeats=1)
        held = [select_images(one, own) for one in members]
        expected = blend(held, learned_recipe(done, held), ids=own)
        np.testing.assert_allclose(teacher.answers.probabilities[fold == FOLD], expected.probabilities, rtol=1e-9)
        assert teacher.answers.decided[fold == FOLD].tolist() == expected.classes.tolist()


def test_no_answer_depends_on_the_label_of_its_image() -> None:
    """With other labels in a fold its answers stay, to the last bit; those of the other folds do not."""
    recipe = learned("pool+f1")
    before = make_teacher(recipe, OOF, TRUTH, FOLD).answers
    classes = np.where(FOLD == 1, (CLASSES + 1) % 3, CLASSES)
    after = make_teacher(recipe, OOF, replace(TRUTH, classes=classes), FOLD).answers
    same = (before.probabilities == after.probabilities).all(axis=1)
    assert same[FOLD == 1].all()
    assert not same[FOLD != 1].any()


def test_given_weights_are_those_of_every_fold_in_any_order_of_the_classes() -> None:
    """A recipe that was not learned is applied as it is; its classes in another order are matched by name."""
    turned = LabelSpace.flat(["c", "a", "b"])
    order = [2, 0, 1]
    odd = [
        replace(one, labels=turned, logits={view: values[:, order] for view, values in one.logits.items()})
        for one in EVERY
    ]
    given = make_recipe(odd, weights={"g": 3, "h": 1}, view_weights={"identity": 1, "hflip": 0})
    found = make_teacher(given, OOF, TRUTH, FOLD)
    p = [np.exp(gathered(name).logits["identity"].astype(float)) for name in "gh"]
    p = [one / one.sum(axis=1, keepdims=True) for one in p]
    mean = 0.75 * p[0] + 0.25 * p[1]
    np.testing.assert_allclose(found.answers.probabilities, mean, rtol=1e-6)
    assert found.answers.decided.tolist() == mean.argmax(axis=1).tolist()
    assert count_passes(given) == 6
    assert count_passes(make_recipe(EVERY, weights={"g": 1, "h": 0})) == 6
    assert count_passes(make_recipe(EVERY)) == 12


def test_a_folds_own_models_answer_about_what_they_trained_on() -> None:
    """Only the models that held out the fold's images answer; without a hash in the card the fold number says which."""
    teacher = make_teacher(make_recipe(EVERY), OOF, TRUTH, FOLD)
    own = [one for one in EVERY if one.fold == 2]
    expected = blend(own, make_recipe(own), ids=IDS).probabilities
    for members in (EVERY, [replace(one, holdout_sha256=None) for one in EVERY]):
        np.testing.assert_allclose(answer_by_own_models(teacher, members, 2, IDS), expected, rtol=1e-12)
    # a further fold split has the same numbers and other folds
    repeated = replace(EVERY[0], repeat=1, fold=2, holdout_sha256=hash_ids(IDS[:7]), member="g_r1_f2")
    np.testing.assert_allclose(answer_by_own_models(teacher, [*EVERY, repeated], 2, IDS), expected, rtol=1e-12)
    with pytest.raises(DataError, match=r"no model of h held out .* h_f0 \(0\)") as caught:
        answer_by_own_models(teacher, [one for one in EVERY if one.member != "h_f2"], 2, IDS)
    assert caught.value.code == "E393"
    with pytest.raises(PredictionError, match="no predictions of 1 of 241 images"):
        answer_by_own_models(teacher, EVERY, 2, [*IDS, "new.jpg"])


def test_what_cannot_teach_is_refused_and_what_is_left_out_is_said() -> None:
    """Ranks, a metric of the user and unknown methods are E391, a group without predictions is E517."""
    plain = make_recipe(EVERY)
    refused: list[tuple[Recipe, str]] = [
        (replace(plain, pool=parse_pool("rank")), "E391"),
        (replace(plain, learned={"method": "pool", "metric": "mine.py:score"}), "E391"),
        (replace(plain, learned={"method": "nothing", "metric": "macro-f1"}), "E391"),
        (replace(plain, learned={"method": 3}), "E391"),
    ]
    for recipe, code in refused:
        with pytest.raises(EnsError) as caught:
            make_teacher(recipe, OOF, TRUTH, FOLD)
        assert caught.value.code == code
    with pytest.raises(PredictionError, match="without out-of-fold predictions: h") as missing:
        make_teacher(plain, OOF[:3], TRUTH, FOLD)
    assert missing.value.code == "E517"

    heard = Recorder()
    smoothed = replace(make_recipe(EVERY[:3]), smoothing=Smoothing((0.2, 0.6, 0.2)))
    found = make_teacher(smoothed, OOF, TRUTH, FOLD, listener=heard)
    assert [(one.code, one.message.endswith("left out: h")) for one in heard.notices] == [
        ("I391", False),
        ("I392", True),
    ]
    plain = make_recipe(EVERY[:3])
    np.testing.assert_array_equal(
        found.answers.probabilities, make_teacher(plain, OOF[:3], TRUTH, FOLD).answers.probabilities
    )


def test_several_labels_are_taught_each_for_itself() -> None:
    """Learned thresholds and biases of labels are refitted per fold, and a label's answers need not its own truth."""
    applies = np.stack([CLASSES == 0, CLASSES != 1], axis=1)
    labels = LabelSpace.flat(["x", "y"])
    truth = Truth(IDS, applies.argmax(axis=1), TRUTH.persons, labels, applies)
    rng = np.random.default_rng(0)
    oof = []
    for fold in range(3):
        ids = [IDS[i] for i in np.flatnonzero(fold == FOLD)]
        logits = 2 * applies[fold == FOLD] - 1 + rng.normal(0, 1, (len(ids), 2))
        one = make_member(f"m_f{fold}", logits, ids=ids, labels=labels, group="m")
        oof.append(replace(one, fold=fold, activation="sigmoid"))
    given = replace(make_recipe(oof), learned={"method": "pool+thresholds", "metric": "macro-f1", "seed": 0})
    before = make_teacher(given, oof, truth, FOLD)
    assert before.answers.decided.shape == (COUNT, 2)
    assert np.mean(before.answers.decided == applies) > 0.75
    flipped = replace(truth, applies=np.where((FOLD == 0)[:, np.newaxis], ~applies, applies))
    after = make_teacher(given, oof, flipped, FOLD)
    assert (before.answers.probabilities == after.answers.probabilities)[FOLD == 0].all()
    assert not (before.answers.probabilities == after.answers.probabilities)[FOLD == 1].any()
    compared = compare_student(before, oof)
    assert (compared.student, compared.difference) == (compared.teacher, 0)


def test_the_comparison_has_both_scores_and_the_interval_of_their_difference() -> None:
    """Scores are scikit-learn's macro F1; people are resampled for both at once, and images where no one is known."""
    recipe = make_recipe(EVERY[:3], view_weights={"identity": 1, "hflip": 0})
    teacher = make_teacher(recipe, OOF[:3], TRUTH, FOLD)
    student = OOF[3:]
    found = compare_student(teacher, student)
    answers = [gathered(name).logits["identity"].argmax(axis=1) for name in "hg"]
    scores = [f1_score(CLASSES, one, average="macro") for one in answers]
    assert found.student == pytest.approx(scores[0])
    assert found.teacher == pytest.approx(scores[1])
    assert found.difference == pytest.approx(scores[0] - scores[1])
    assert found.low < found.difference < found.high < 0.05
    assert (found.units, found.people, found.student_passes, found.teacher_passes) == (60, True, 3, 3)
    assert "3 passes per image, the blend has 3 (100 %)" in found.render()
    assert "over 60 people" in found.render()
    assert found.render().startswith("student and blend, macro F1 out of fold, decided by the most probable class: ")
    assert "W391" not in found.render()
    assert "optimistic: see W391" in compare_student(teacher, student, optimistic=True).render()

    same = compare_student(teacher, OOF[:3])
    assert (same.difference, same.low, same.high) == (0, 0, 0)
    alone = compare_student(replace(teacher, truth=replace(TRUTH, persons=None)), student)
    assert (alone.units, alone.people) == (COUNT, False)


def test_a_recipe_that_was_learned_teaches_the_rule_to_both() -> None:
    """A student decides by a rule of its own that was learned without the fold, not by the blend's."""
    teacher = make_teacher(learned("pool+f1"), OOF, TRUTH, FOLD)
    one_view = [replace(one, logits={"identity": one.logits["identity"]}) for one in (gathered("h"), *OOF[3:])]
    done = learn(one_view[:1], TRUTH, method="pool+f1", repeats=1)
    alone = make_teacher(learned_recipe(done, EVERY[3:]), one_view[1:], TRUTH, FOLD)
    expected = f1_score(CLASSES, alone.answers.decided, average="macro")
    found = compare_student(teacher, OOF[3:])
    assert found.student == pytest.approx(expected)
    assert "decided by what the recipe learned, learned again per fold for each: " in found.render()
