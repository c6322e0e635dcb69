"""Learning for several labels: the mean of the folds, other shares of labels among the new images, gains of views."""

from __future__ import annotations

import re
from dataclasses import replace

import numpy as np
import pytest
from scipy.special import expit, logit
from sklearn.metrics import f1_score, log_loss

from ensemble.arrays import Floats
from ensemble.blend.blend import blend
from ensemble.events import Recorder
from ensemble.learn.class_mix import compare_label_mix
from ensemble.learn.fold_average import simulate_label_averages
from ensemble.learn.label_learning import learn_labels
from ensemble.learn.learned_recipe import learned_recipe
from ensemble.learn.table import render_learned
from ensemble.predictions.dataset import Predictions
from ensemble.predictions.truth import Truth
from ensemble.submission.sheet import Decisions
from tests.support.members import make_member

LABELS, FOLDS = 3, 4
RATES = np.array([0.15, 0.3, 0.5])


def folds_of(rng: np.random.Generator, applies: Decisions, *, noise: float = 1.5) -> Floats:
    """The log-odds ``(k, N, C)`` of all folds: evidence and errors that they share, and errors of their own."""
    shared = 1.2 * (2.0 * applies - 1) + rng.normal(0, 1, applies.shape) + logit(RATES)
    return np.asarray(shared + rng.normal(0, noise, (FOLDS, *applies.shape)))


def test_the_simulated_mean_of_folds_is_as_good_as_the_real_one() -> None:
    """Out of fold, the simulated mean has nearly the log loss of the mean of all folds, which no image has there.

    So has the mean of two members, whose own errors average out and whose common ones do not.
    """
    rng = np.random.default_rng(0)
    applies, others = rng.random((4000, LABELS)) < RATES, rng.random((2000, LABELS)) < RATES
    held_out = [folds_of(np.random.default_rng(5), applies)]
    held_out.append(held_out[0].mean(axis=0) + rng.normal(0, 1.5, held_out[0].shape))
    new = [folds_of(rng, others)]
    new.append(new[0].mean(axis=0) + rng.normal(0, 1.5, new[0].shape))
    found = simulate_label_averages([one[:1] for one in held_out], applies, new, seed=0)

    def losses(p: Floats) -> Floats:
        return np.array([log_loss(applies[:, c], p[:, c]) for c in range(LABELS)])

    for single, simulated, real in (
        (expit(held_out[0][0]), expit(found[0].of_probabilities), expit(held_out[0]).mean(axis=0)),
        (
            expit([one[0] for one in held_out]).mean(axis=0),
            expit([one.of_probabilities for one in found]).mean(axis=0),
            expit(held_out).mean(axis=(0, 1)),
        ),
    ):
        gain = losses(single) - losses(real)
        assert (gain > 0.02).all()
        assert (np.abs(losses(simulated) - losses(real)) < 0.3 * gain).all()
    assert 0.25 < found[0].factor < 1
    # the mean of two fold splits is moved by less, for the same models
    (two,) = simulate_label_averages([held_out[0][:2]], applies, new[:1], seed=0)
    (one,) = simulate_label_averages([held_out[0][:1]], applies, new[:1], seed=0)
    assert one.factor < two.factor < 1


def new_labels(rates: Floats) -> Decisions:
    """The labels of the new images, as `contest` draws them."""
    rng = np.random.default_rng(1)
    rng.random((400, LABELS))
    return np.asarray(rng.random((900, LABELS)) < rates)


def contest(rates: Floats = RATES) -> tuple[list[Predictions], list[Predictions], Truth]:
    """Two views of a model: out-of-fold predictions, those of its folds on new images, and the truth of the former."""
    rng = np.random.default_rng(1)
    applies, others = rng.random((400, LABELS)) < RATES, rng.random((900, LABELS)) < rates
    held_out, mirrored = folds_of(rng, applies)[0], folds_of(rng, applies)[0]
    member = replace(make_member("net", held_out), activation="sigmoid")
    member = replace(member, logits={**member.logits, "hflip": mirrored.astype(np.float32)})
    new, again = folds_of(rng, others), folds_of(rng, others)
    folds = []
    for fold, (one, other) in enumerate(zip(new, again, strict=True)):
        made = replace(make_member(f"net_f{fold}", one), activation="sigmoid", group="net", fold=fold)
        folds.append(replace(made, logits={**made.logits, "hflip": other.astype(np.float32)}))
    persons = tuple(str(i // 2) for i in range(len(applies)))
    return [member], folds, Truth(member.ids, applies.argmax(axis=1), persons, member.labels, applies)


def test_folds_are_learned_for_as_their_mean_and_views_are_measured() -> None:
    """With the folds' predictions of new images the mean scores higher, the factor is said, and the view has a gain."""
    held_out, folds, truth = contest()
    heard = Recorder()
    alone = learn_labels(held_out, truth, method="mean", repeats=1)
    learned = learn_labels(held_out, truth, method="mean", repeats=1, applied_to=folds, listener=heard)
    assert [notice.code for notice in heard.notices] == ["I526"]
    assert "by these factors: net 0." in heard.notices[0].message
    assert learned.table[0].nested > alone.table[0].nested
    assert learned.members == alone.members
    (gain,) = alone.view_gains
    assert truth.applies is not None
    odds = [held_out[0].logits[view].astype(np.float64) for view in ("identity", "hflip")]
    before, after = odds[0] > 0, expit(odds).mean(axis=0) >= 0.5
    macro = [f1_score(truth.applies, one, average="macro") for one in (before, after)]
    assert gain.view == "hflip"
    assert gain.gain == pytest.approx(macro[1] - macro[0])
    assert gain.wrong_to_right == int(((before != truth.applies) & (after == truth.applies)).sum())
    assert gain.right_to_wrong == int(((before == truth.applies) & (after != truth.applies)).sum())
    assert gain.cost == 2
    assert "hflip" in render_learned(alone)


def test_other_shares_of_labels_are_seen_and_weighed() -> None:
    """A label that is rare among the images learned from and frequent among the new ones gets its frequency back."""
    rng = np.random.default_rng(2)
    applies, others = rng.random((3000, LABELS)) < RATES, rng.random((3000, LABELS)) < [0.6, 0.3, 0.5]
    here, there = (folds_of(rng, one, noise=0.2)[0] for one in (applies, others))
    sharp = 1.6  # of evidence and errors alike: what calibrates them
    p = [expit(logit(RATES) + sharp * (odds - logit(RATES))) for odds in (here, there)]
    person = np.arange(len(applies)) // 3
    mix = compare_label_mix(p[0], person, applies, p[1], calibrated=p[1], seed=0)
    assert mix.shares.changed.tolist() == [True, False, False]
    assert np.average(applies[:, 0], weights=mix.weights) == pytest.approx(0.6, abs=0.06)
    assert np.average(applies[:, 1], weights=mix.weights) == pytest.approx(applies[:, 1].mean(), abs=0.03)
    same = compare_label_mix(p[0], person, applies, p[0], calibrated=p[0], seed=0)
    assert not same.differs
    assert (same.weights == 1).all()


def test_thresholds_that_lose_on_the_new_shares_are_not_used() -> None:
    """Among images with few labels the thresholds learned from many lose, which is said, and the mean is kept."""
    rare = np.array([0.02, 0.02, 0.02])
    held_out, folds, truth = contest(rare)
    heard = Recorder()
    learned = learn_labels(held_out, truth, repeats=1, applied_to=folds, listener=heard)
    said = [notice.message for notice in heard.notices if notice.code == "W527"]
    assert learned.method == "mean"
    assert re.search(r"\+thresholds? would change macro F1 by \+0\.1", said[0])
    blind = learn_labels(held_out, truth, repeats=1)
    assert "+threshold" in blind.method
    applies = new_labels(rare)
    scores = []
    for found in (learned, blind):
        blended = blend(folds, learned_recipe(found, folds), ids=folds[0].ids)
        decided = blended.probabilities >= 0.5 if blended.decisions is None else blended.decisions
        scores.append(f1_score(applies, decided, average="macro", zero_division=0))
    assert scores[0] > scores[1]
