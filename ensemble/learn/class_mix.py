"""Compare the class mix of the images that were learned from with that of the images to be blended.

A weight, a bias or a rule that gains on one mix of classes may lose on another. The mixes of true classes cannot be
compared, as the second is unknown; the mixes of the pooled predictions can. Where they differ by more than chance, the
mix of the new images is estimated by expectation maximization (Saerens, Latinne and Decaestecker, "Adjusting the
outputs of a classifier to new a priori probabilities", Neural Computation 14, 2002), and every candidate is scored once
more with the images of each class weighted accordingly. The estimate serves that comparison alone: predictions are
never re-weighted by it, because it loses more than it gains where the probabilities are not calibrated.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ensemble.arrays import Classes, Floats, Mask
from ensemble.labels import LabelSpace

_RESAMPLES = 200
_ITERATIONS = 200
_ERRORS = 5.0
"""Standard errors that a class's share must differ by; with 18 classes chance gives four in about one of 900 cases."""
_DIFFERENCE = 0.02
"""The difference of a class's share that matters, whatever its standard error."""
_LIMIT = 20.0


@dataclass(frozen=True, slots=True, eq=False)
class ClassMix:
    """The mean predicted probabilities ``(C,)`` of the images learned from and of those to be blended.

    ``errors`` ``(C,)`` are the standard errors of their differences. ``weights`` ``(C,)`` is the estimated frequency of
    each class among the images to be blended, divided by that among the images learned from.
    """

    learned: Floats
    applied: Floats
    errors: Floats
    weights: Floats

    @property
    def changed(self) -> Mask:
        """The classes ``(C,)`` whose shares differ by more than chance, and by enough to matter."""
        gap = np.abs(self.learned - self.applied)
        return np.asarray((gap > _ERRORS * self.errors) & (gap > _DIFFERENCE))

    @property
    def differs(self) -> bool:
        """True if the mixes differ by more than chance, and by enough to matter."""
        return bool(self.changed.any())

    def describe(self, labels: LabelSpace, *, limit: int = 4) -> str:
        """Name the classes whose shares differ most, with both shares."""
        order = np.argsort(-np.abs(self.learned - self.applied), kind="stable")[:limit]
        return ", ".join(f"{labels.names[c]} {self.learned[c]:.1%} -> {self.applied[c]:.1%}" for c in order)


def compare_class_mix(
    learned: Floats, person: Classes, truth: Classes, applied: Floats, *, calibrated: Floats, seed: int
) -> ClassMix:
    """Compare the pooled probabilities of images learned from ``(N, C)`` with those of images to be blended ``(M, C)``.

    ``person`` ``(N,)`` is the person on each image learned from: people are resampled, not images; the images to be
    blended are taken to be as dependent. ``truth`` ``(N,)`` are the true classes, and ``calibrated`` ``(M, C)`` the
    calibrated probabilities of the images to be blended, from which their class frequencies are estimated.
    """
    classes = learned.shape[1]
    error = _errors_of_shares(learned, person, len(applied), seed)
    prior = (np.bincount(truth, minlength=classes) + 1) / (len(truth) + classes)
    estimated = estimate_frequencies(calibrated, prior)
    return ClassMix(learned.mean(axis=0), applied.mean(axis=0), error, np.clip(estimated / prior, 1 / _LIMIT, _LIMIT))


@dataclass(frozen=True, slots=True, eq=False)
class LabelMix:
    """The shares of independent labels, and the weight ``(N,)`` of each image learned from on the other mix.

    ``shares.weights`` are those of the labels where they apply. The weight of an image is the product over the labels
    whose shares differ by more than chance, as if these did not depend on each other.
    """

    shares: ClassMix
    weights: Floats

    @property
    def differs(self) -> bool:
        """True if the mixes differ by more than chance, and by enough to matter."""
        return self.shares.differs

    def describe(self, labels: LabelSpace) -> str:
        """Name the labels whose shares differ most, with both shares."""
        return self.shares.describe(labels)


def compare_label_mix(
    learned: Floats, person: Classes, applies: Mask, applied: Floats, *, calibrated: Floats, seed: int
) -> LabelMix:
    """Compare the probabilities of labels of images learned from ``(N, C)`` with those of images to be blended.

    As `compare_class_mix`, with each label ``applies`` ``(N, C)`` a choice of its own between two classes.
    """
    error = _errors_of_shares(learned, person, len(applied), seed)
    prior = (applies.sum(axis=0) + 1) / (len(applies) + 2)
    pairs = [
        estimate_frequencies(np.stack([1 - p, p], axis=1), np.array([1 - share, share]))
        for p, share in zip(calibrated.T, prior, strict=True)
    ]
    estimated = np.array([pair[1] for pair in pairs])
    present = np.clip(estimated / prior, 1 / _LIMIT, _LIMIT)
    absent = np.clip((1 - estimated) / (1 - prior), 1 / _LIMIT, _LIMIT)
    shares = ClassMix(learned.mean(axis=0), applied.mean(axis=0), error, present)
    each = np.where(applies, present, absent)[:, shares.changed]
    return LabelMix(shares, np.asarray(np.clip(each.prod(axis=1), 1 / _LIMIT, _LIMIT)))


def _errors_of_shares(learned: Floats, person: Classes, applied: int, seed: int) -> Floats:
    """Return the standard errors ``(C,)`` of the differences of mean probabilities ``(N, C)``, by people."""
    rows, classes = learned.shape
    count = int(person.max()) + 1
    totals = np.stack([np.bincount(person, weights=column, minlength=count) for column in learned.T], axis=1)
    images = np.bincount(person, minlength=count)
    rng = np.random.default_rng(seed)
    resampled = np.empty((_RESAMPLES, classes))
    for i in range(_RESAMPLES):
        people = rng.integers(count, size=count)
        resampled[i] = totals[people].sum(axis=0) / images[people].sum()
    return np.asarray(resampled.std(axis=0, ddof=1) * np.sqrt(1 + rows / applied))


def estimate_frequencies(probabilities: Floats, prior: Floats) -> Floats:
    """Return the maximum-likelihood class frequencies ``(C,)`` of images with calibrated probabilities ``(M, C)``.

    ``prior`` ``(C,)`` are the frequencies for which the probabilities are calibrated. The fixed-point iteration of
    Saerens et al. (2002), equation 2.5.
    """
    found = prior
    for _ in range(_ITERATIONS):
        posterior = probabilities * (found / prior)
        posterior /= np.maximum(posterior.sum(axis=1, keepdims=True), np.finfo(np.float64).tiny)
        before, found = found, posterior.mean(axis=0)
        if np.abs(found - before).max() < 1e-7:
            break
    return np.asarray(found)
