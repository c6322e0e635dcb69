"""The labels of a student: its own out-of-fold score is honest where the models of its fold are the teachers."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from checkpoints.data.dataset import Dataset
from checkpoints.data.folds import Folds
from checkpoints.data.mask_contest import NO_CLASS, Row
from checkpoints.data.member_folds import folds_of_images, folds_of_members, require_same_folds
from checkpoints.data.truth_table import training_truth
from checkpoints.training.distillation import Distillation
from checkpoints.training.distributed import SINGLE_PROCESS
from checkpoints.training.job import TrainJob
from checkpoints.training.preflight import check_job
from checkpoints.training.settings import TrainSettings
from checkpoints.training.teacher_labels import Unlabeled, teacher_labels
from ensemble.arrays import Floats
from ensemble.blend.recipe import make_recipe
from ensemble.error_codes import CODES
from ensemble.errors import DataError, OptionError, PredictionError
from ensemble.events import Recorder
from ensemble.labels import LabelSpace
from ensemble.learn.teacher import make_teacher
from ensemble.predictions.dataset import Predictions
from ensemble.predictions.members import select_images
from tests.support.members import make_member

pytestmark = pytest.mark.slow  # torch is imported

LABELS = LabelSpace.flat(["cat", "dog"])
COUNT, WIDTH = 240, 60
RNG = np.random.default_rng(0)
FEATURES = RNG.normal(size=(COUNT, WIDTH))
NOISE = RNG.integers(2, size=COUNT)
"""Labels that the features say nothing about."""
ROWS = tuple(Row(f"{i:03d}.png", str(i), None, None, None, int(NOISE[i]), Path(f"{i:03d}.png")) for i in range(COUNT))
FOLDS = Folds(2, {row.person: int(row.person) % 2 for row in ROWS})
DATA = Dataset(ROWS, LABELS, Path(), is_contest=False)


def ridge(features: Floats, wanted: Floats) -> Floats:
    solved = np.linalg.solve(np.matmul(features.T, features) + np.eye(WIDTH), np.matmul(features.T, wanted))
    return np.asarray(solved, dtype=np.float64)


def linear_models() -> list[Predictions]:
    """Return a linear model per fold, fitted to the labels of the others, with its predictions of all images."""
    found = []
    for fold in (0, 1):
        kept = ~FOLDS.holdout(ROWS, fold)
        scores = FEATURES @ ridge(FEATURES[kept], np.asarray(2.0 * NOISE[kept] - 1, dtype=np.float64))
        logits = 2 * np.stack([-scores, scores], axis=1)
        one = make_member(f"m_f{fold}", logits, ids=[row.id for row in ROWS], labels=LABELS, group="m")
        found.append(replace(one, fold=fold))
    return found


def held_out(members: list[Predictions]) -> list[Predictions]:
    return [
        select_images(one, [row.id for row, out in zip(ROWS, FOLDS.holdout(ROWS, one.fold or 0), strict=True) if out])
        for one in members
    ]


def score_student(soft: tuple[Floats, ...]) -> float:
    """Return the out-of-fold accuracy of linear students of the probabilities."""
    right = np.zeros(COUNT, dtype=bool)
    for fold in (0, 1):
        held = FOLDS.holdout(ROWS, fold)
        log_odds = np.log(soft[fold][:, 1] / soft[fold][:, 0])
        student = ridge(FEATURES[~held], log_odds[~held])
        right[held] = (FEATURES[held] @ student > 0) == NOISE[held]
    return float(right.mean())


def test_labels_that_cannot_be_learned_are_not_learned_from_a_folds_own_models() -> None:
    """Of random labels a student knows nothing that it did not see, unless others' models bring it: that is W391.

    A model that held out an image was trained on the student's hold-out part, where there are two folds. A student
    that answers like it has its knowledge of these labels.
    """
    models = linear_models()
    teacher = make_teacher(make_recipe(models), held_out(models), training_truth(DATA), folds_of_images(FOLDS, ROWS))
    heard = Recorder()
    own = teacher_labels(teacher, ROWS, Distillation(), predictions=models, listener=heard)
    assert [one.code for one in heard.notices] == ["I393"]
    assert not own.optimistic
    assert 0.4 < score_student(own.soft.labeled) < 0.6
    unread = [replace(one, filled=one.ids[:1]) for one in models]
    teacher_labels(teacher, ROWS, Distillation(), predictions=unread, listener=heard)
    assert [one.code for one in heard.notices] == ["I393", "W535", "I393"]

    heard = Recorder()
    others = teacher_labels(teacher, ROWS, Distillation(), listener=heard)
    assert [one.code for one in heard.notices] == ["W391", "I393"]
    assert others.optimistic
    assert score_student(others.soft.labeled) > 0.8


def test_images_without_labels_have_the_probabilities_of_each_folds_models(tmp_path: Path) -> None:
    """They are listed by name with the class of the folds' mean; training images among them are refused."""
    names = ("b.png", "a.png")
    for name in names:
        Image.fromarray(np.zeros((8, 8, 3), dtype=np.uint8)).save(tmp_path / name)
    models = linear_models()
    teacher = make_teacher(make_recipe(models), held_out(models), training_truth(DATA), folds_of_images(FOLDS, ROWS))
    logits = np.log([[[0.9, 0.1], [0.4, 0.6]], [[0.7, 0.3], [0.2, 0.8]]])
    predicted = [
        replace(make_member(f"m_f{fold}", logits[fold], ids=names, labels=LABELS, group="m"), fold=fold)
        for fold in (0, 1)
    ]
    found = teacher_labels(teacher, ROWS, Distillation(), predictions=models, unlabeled=Unlabeled(predicted, tmp_path))
    assert found.pseudo is not None
    assert [(row.id, row.target, row.path) for row in found.pseudo.rows] == [
        ("a.png", 1, tmp_path / "a.png"),
        ("b.png", 0, tmp_path / "b.png"),
    ]
    assert found.soft.pseudo is not None
    np.testing.assert_allclose(found.soft.pseudo, np.exp(logits)[:, ::-1], rtol=1e-6)
    part = [select_images(predicted[0], ["a.png"]), predicted[1]]
    with pytest.raises(PredictionError, match=r"m_f0 has no predictions of 1 of 2 images: b\.png"):
        teacher_labels(teacher, ROWS, Distillation(), unlabeled=Unlabeled(part, tmp_path))
    rows = (replace(ROWS[0], path=tmp_path / "a.png"), *ROWS[1:])
    with pytest.raises(DataError) as caught:
        teacher_labels(teacher, rows, Distillation(), unlabeled=Unlabeled(predicted, tmp_path))
    assert caught.value.code == "E346"
    several = [replace(one, activation="sigmoid") for one in models]
    with pytest.raises(PredictionError, match="how many labels"):
        teacher_labels(teacher, ROWS, Distillation(), predictions=several)


def test_the_folds_are_those_of_the_members_and_must_be_the_same_for_all() -> None:
    """Members without fold numbers, of other folds, or of a part of the folds are E392."""
    members = held_out(linear_models())
    assert folds_of_members(members, ROWS) == FOLDS
    further = replace(members[0], repeat=1, fold=7)
    assert folds_of_members([*members, further, replace(members[0], fold=None, group="n")], ROWS) == FOLDS
    require_same_folds(FOLDS, [*members, further], ROWS)

    nameless = [replace(one, fold=None) for one in members]
    swapped = [replace(one, fold=1 - (one.fold or 0), group="n") for one in members]
    together = tuple(replace(row, person="one") for row in ROWS)
    first = tuple(row for row in ROWS if FOLDS.of_person[row.person] == 0)
    for wrong, rows, message in (
        (nameless, ROWS, "says its fold"),
        (members + swapped, ROWS, "m and n have other folds"),
        (members[:1], ROWS, "m has the folds 0"),
        (members, (*ROWS, replace(ROWS[0], id="new.png")), r"no fold for 1 images: new\.png"),
        (members, together, "one is in more than one fold of m"),
        (members[:1], first, "m has the folds 0"),
    ):
        with pytest.raises(DataError, match=message) as caught:
            folds_of_members(wrong, rows)
        assert caught.value.code == "E392"
        assert caught.value.hint != CODES["E392"].cure
    with pytest.raises(DataError, match="m_f0 held out other images than fold 1"):
        require_same_folds(FOLDS, [replace(members[0], fold=1)], ROWS)


def test_a_fold_without_images_is_refused(tmp_path: Path) -> None:
    """A file of folds may have people of other images: a fold of them alone would be trained, and scored on nothing."""
    folds = Folds(3, {**FOLDS.of_person, "absent": 2})
    job = TrainJob(ROWS, folds, "m", TrainSettings("test_resnet", labels=LABELS), tmp_path)
    with pytest.raises(OptionError, match="no training image is in fold 2 of 3"):
        check_job(job, distributed=SINGLE_PROCESS)


def test_the_truth_of_a_dataset_has_its_true_classes_and_groups() -> None:
    """A class that is trained otherwise keeps its true one; several labels are flags."""
    moved = replace(DATA, rows=(replace(ROWS[0], moved=1 - ROWS[0].label), *ROWS[1:]))
    found = training_truth(moved)
    assert found.classes.tolist() == NOISE.tolist()
    assert found.persons == tuple(str(i) for i in range(COUNT))
    rows = (replace(ROWS[0], label=NO_CLASS, present=(1,)), replace(ROWS[1], label=NO_CLASS, present=()))
    several = training_truth(Dataset(rows, LABELS, Path(), is_contest=False, activation="sigmoid"))
    assert several.applies is not None
    assert several.applies.tolist() == [[False, True], [False, False]]
