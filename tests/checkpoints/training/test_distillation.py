"""Distillation: the loss by its formula, the teacher's rows with their images, and a student that learns from them."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from checkpoints.data.folds import Folds
from checkpoints.data.image_cache import DecodedImages
from checkpoints.loading.open import build_model, open_checkpoint
from checkpoints.training.batches import LabeledImages, predict_pixels
from checkpoints.training.distillation import Distillation, SoftLabels, distillation_loss, soften, with_teacher
from checkpoints.training.job import TrainJob, load_job_images
from checkpoints.training.losses import parse_loss
from checkpoints.training.settings import TrainSettings
from checkpoints.training.train_fold import train_fold
from ensemble.card import Preprocess
from ensemble.errors import OptionError
from tests.support.bars import draw_bars

pytestmark = pytest.mark.slow

RNG = np.random.default_rng(0)
LOGITS = torch.tensor(RNG.normal(size=(5, 3)), requires_grad=True)
TEACHER = RNG.dirichlet(np.ones(3), size=5)
CLASSES = np.array([0, 1, 2, 1, 0])


def images(targets: np.ndarray[Any, np.dtype[np.int64]]) -> LabeledImages:
    pixels = np.zeros((len(targets), 4, 4, 3), dtype=np.uint8)
    return LabeledImages(DecodedImages(pixels, pixels[:0], np.full(len(targets), -1)), targets, targets)


def test_the_loss_is_that_of_the_paper() -> None:
    """It is the divergence at the temperature times its square, plus the labels' share; shares and T out of range fail.

    The cross-entropy differs from the divergence by the teacher's entropy, which has no gradient.
    """
    how = Distillation(temperature=3.0, share=0.7)
    targets = with_teacher(images(CLASSES), TEACHER, how, activation="softmax").loss_targets
    hard = parse_loss("ce", weights=torch.ones(3))
    found = distillation_loss(hard, how, activation="softmax")(LOGITS, torch.from_numpy(targets))

    p = torch.tensor(TEACHER) ** (1 / 3)
    p = p / p.sum(dim=1, keepdim=True)
    log_q = torch.log_softmax(LOGITS / 3, dim=1)
    divergence = torch.nn.functional.kl_div(log_q, p, reduction="batchmean")
    plain = torch.nn.functional.cross_entropy(LOGITS, torch.tensor(CLASSES))
    expected = 0.7 * 9 * divergence + 0.3 * plain
    gradients = [torch.autograd.grad(one, LOGITS, retain_graph=True)[0] for one in (found, expected)]
    torch.testing.assert_close(gradients[0], gradients[1], rtol=1e-4, atol=1e-6)
    entropy = -(p * p.log()).sum(dim=1).mean()
    assert found.item() == pytest.approx((expected + 0.7 * 9 * entropy).item(), rel=1e-5)
    for wrong in ({"temperature": 0.0}, {"temperature": float("nan")}, {"share": 0.0}, {"share": 1.1}):
        with pytest.raises(OptionError, match="the temperature"):
            Distillation(**wrong)


def test_several_labels_are_softened_each_for_itself() -> None:
    """At T the probability of a label is the sigmoid of its log-odds by T, and 0 and 1 stay finite."""
    odds = np.array([[2.0, -1.0], [0.0, 30.0]])
    p = 1 / (1 + np.exp(-odds))
    found = soften(p, 2.0, activation="sigmoid")
    np.testing.assert_allclose(found[:, 0], 1 / (1 + np.exp(-odds[:, 0] / 2)), rtol=1e-6)
    assert np.isfinite(np.log(soften(np.array([[0.0, 1.0]]), 2.0, activation="sigmoid"))).all()
    how = Distillation(temperature=2.0, share=1.0)
    hot = np.array([[1, 0], [1, 1]])
    targets = torch.from_numpy(with_teacher(images(hot), p, how, activation="sigmoid").loss_targets)
    logits = torch.tensor(odds).float()
    loss = distillation_loss(lambda *_: torch.tensor(torch.nan), how, activation="sigmoid")
    expected = 4 * torch.nn.functional.binary_cross_entropy_with_logits(logits / 2, torch.tensor(found).float())
    assert loss(logits, targets).item() == pytest.approx(expected.item(), rel=1e-5)


def test_a_student_answers_as_its_teacher_and_not_as_the_labels(tmp_path: Path) -> None:
    """A teacher that calls class c the next one is learned from fold by fold; its rows are those of the images.

    Rows of the hold-out part are not read: they are NaN here. The settings of a training with a teacher have a
    fingerprint of their own, and those without one keep theirs.
    """
    rows = tuple(replace(row, label=row.label // 6) for row in draw_bars(tmp_path) if row.label % 6 > 2)
    labels = TrainSettings("any").labels
    settings = TrainSettings(
        "test_efficientnet", Preprocess((32, 24)), epochs=12, learning_rate=0.01, batch=15, augment="none", keep="last"
    )
    folds = Folds(2, {str(person): person % 2 for person in range(9)})
    next_class = np.full((len(rows), len(labels)), 1e-4)
    next_class[np.arange(len(rows)), [(row.target + 1) % 3 for row in rows]] = 1
    held = folds.holdout(rows, 1)
    next_class[held] = np.nan
    plain = TrainJob(rows, folds, "s", settings, tmp_path / "runs")
    teacher = SoftLabels((next_class, next_class), how=Distillation(share=1.0))
    job = replace(plain, teacher=teacher)
    assert "teacher" not in json.loads(plain.fingerprint())
    warmer = replace(job, teacher=replace(teacher, how=Distillation(temperature=4.0, share=1.0)))
    assert len({plain.fingerprint(), job.fingerprint(), warmer.fingerprint()}) == 3

    trained = train_fold(job, 1)
    found = load_job_images(plain).labeled[held]
    model = build_model(open_checkpoint(trained.path))
    answers = predict_pixels(model, found.decoded.pixels, settings).argmax(axis=1)
    assert np.mean(answers == (found.labels + 1) % 3) > 0.9


def test_the_teacher_has_rows_for_the_pseudo_labeled_images_last() -> None:
    """The training part of a fold is its labeled images in their order, then the others."""
    labeled, pseudo = np.arange(12.0).reshape(2, 6, 1), 100 + np.arange(4.0).reshape(2, 2, 1)
    teacher = SoftLabels(tuple(labeled), tuple(pseudo))
    kept = np.array([True, False, True, True, False, False])
    assert teacher.of_fold(1, kept).ravel().tolist() == [6, 8, 9, 102, 103]
