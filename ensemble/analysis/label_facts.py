"""The facts about members of several labels per image that their report shows, each computed by its own constructor."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from ensemble.analysis.disagreements import make_thumbnails
from ensemble.analysis.evaluate_labels import LABEL_METRICS
from ensemble.analysis.metric_estimates import Estimate, MetricScore, score_metrics
from ensemble.arrays import Floats
from ensemble.blend.blend import Blended, blend
from ensemble.blend.decision_rules import ThresholdRule
from ensemble.blend.held_out import BlendedMembers
from ensemble.blend.pooling import normalize
from ensemble.blend.recipe import Recipe, make_recipe
from ensemble.ids import join_rows
from ensemble.learn.label_candidates import best_f1_threshold
from ensemble.metrics import Reliability, interval, reliability_of
from ensemble.predictions.truth import Truth, predictions_mismatch
from ensemble.scoring import curves, probabilistic
from ensemble.scoring.answers import ScoredAnswers, resample_weights
from ensemble.scoring.catalog import Score, find_metric
from ensemble.submission.sheet import Decisions
from ensemble.submission.write import THRESHOLD

_RESAMPLES = 200
_TINY = np.finfo(np.float64).tiny
_MOST = 12
_CONTESTED = 4
"""Labels of an image whose votes are listed."""


@dataclass(frozen=True, slots=True)
class LabelQuality:
    """One label in the ground truth: how well its probabilities order the images, and its decisions at ``threshold``.

    The average precision and the ROC AUC are None where the label applies to no image, or the latter to all.
    ``best`` is the threshold with the best F1 on these very images, ``best_f1``.
    """

    name: str
    images: int
    average_precision: Estimate | None
    auc: Estimate | None
    f1: Estimate
    threshold: float
    precision: float
    recall: float
    best: float
    best_f1: float


@dataclass(frozen=True, slots=True, eq=False)
class LabelsQuality:
    """The blend of N images and C labels against the ground truth: overall ``scores`` by metric, and each label.

    ``together`` ``(C, C)`` counts the images to which both labels apply, and those of one label on its diagonal.
    ``instead`` ``(C, C)`` counts the images that lack the row's label and got the column's, which does not apply.
    """

    images: int
    persons: int | None
    scores: Mapping[str, MetricScore]
    labels: tuple[LabelQuality, ...]
    together: Floats
    instead: Floats
    reliability: Reliability

    @property
    def calibration_error(self) -> float:
        """The mean distance between the probability of a label and the share of images it applies to, in 15 bins."""
        found = self.reliability
        return float(np.abs(found.confidence - found.right).sum() / found.images.sum())

    @classmethod
    def of(cls, blended: Blended, recipe: Recipe, truth: Truth) -> LabelsQuality:
        """Compare a blend with the ground truth of the same images.

        Raises:
            DataError: E330 when the images are not the same.
        """
        answers, persons = _answers_of(blended, truth)
        true, decided = answers.applies(), answers.chosen()
        missed, wrong = (true & ~decided).astype(np.float64), (decided & ~true).astype(np.float64)
        together = true.astype(np.float64)
        return cls(
            images=answers.rows,
            persons=None if persons is None else len(set(persons)),
            scores=_overall(answers, persons),
            labels=_each_label(answers, persons, blended.labels.names, _thresholds_of(recipe)),
            together=together.T @ together,
            instead=missed.T @ wrong,
            reliability=reliability_of(answers.known().reshape(-1), true.reshape(-1)),
        )


@dataclass(frozen=True, slots=True)
class LabelMember:
    """A member or group of folds: its weight in the blend, and its scores by metric where the ground truth is known."""

    name: str
    weight: float
    views: tuple[str, ...]
    scores: Mapping[str, MetricScore]

    @classmethod
    def of_each(cls, scored: BlendedMembers, truth: Truth | None) -> tuple[LabelMember, ...]:
        """Summarize the members of a recipe; a group's weight is divided equally among its members."""
        groups = scored.recipe.groups
        shares = normalize({name: group.weight for name, group in groups.items()})
        weights = {m: shares[name] / len(group.members) for name, group in groups.items() for m in group.members}
        found = []
        for one in scored.members:
            scores: Mapping[str, MetricScore] = {}
            if truth is not None:
                scores = _overall(*_answers_of(blend([one], make_recipe([one])), truth))
            found.append(cls(one.member, weights[one.member], tuple(one.logits), scores))
        return tuple(found)


@dataclass(frozen=True, slots=True, eq=False)
class LabelAgreement:
    """``shares`` ``(M, M)``: of the labels that either of two members predicts for an image, the share of both."""

    members: tuple[str, ...]
    shares: Floats

    @classmethod
    def of(cls, decided: Mapping[str, Decisions]) -> LabelAgreement:
        """Compare the decisions ``(N, C)`` of members, whose images and labels are in the same order."""
        flat = np.stack([one.reshape(-1) for one in decided.values()]).astype(np.float64)
        both, own = flat @ flat.T, flat.sum(axis=1)
        either = own[:, np.newaxis] + own - both
        return cls(tuple(decided), np.where(either > 0, both / np.maximum(either, 1), 1.0))


@dataclass(frozen=True, slots=True)
class ContestedLabel:
    """A label that members disagree about: its probability in the blend, and the members that predict it."""

    name: str
    probability: float
    members: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class LabelDispute:
    """An image on which members disagree: their mutual information in nats, summed over the labels.

    ``blend`` are the labels that the blend predicts, ``truth`` the ones that apply where that is known, ``contested``
    the labels with the highest mutual information, and ``thumbnail`` the content of a JPEG file.
    """

    image: str
    information: float
    blend: tuple[str, ...]
    contested: tuple[ContestedLabel, ...]
    truth: tuple[str, ...] | None
    thumbnail: bytes | None


def find_disputes(
    alone: Mapping[str, Blended], blended: Blended, truth: Truth | None, images: Path | None
) -> tuple[LabelDispute, ...]:
    """Return the images with the highest mutual information between members, as `find_disagreements` does for classes.

    Every label is a choice between two. Images that could not be read are skipped.

    Raises:
        DataError: E330 when the ground truth is of other images, E3xx when an image is missing or cannot be read.
    """
    names = blended.labels.names
    aligned = {name: _aligned(one, blended, name) for name, one in alone.items()}
    mean = sum(aligned.values(), np.zeros_like(blended.probabilities)) / len(aligned)
    information = _entropy(mean) - sum((_entropy(p) for p in aligned.values()), np.zeros_like(mean)) / len(aligned)
    total = information.sum(axis=1)
    filled = set(blended.filled)  # images that could not be read have the same probabilities from all members
    read = np.array([row for row, name in enumerate(blended.ids) if name not in filled], dtype=np.intp)
    rows = read[np.argsort(-total[read], kind="stable")[:_MOST]].tolist()
    decided = decisions_of(blended)
    applies = None if truth is None else _answers_of(blended, truth, order=blended.ids)[0].applies()
    pictures = make_thumbnails([blended.ids[row] for row in rows], images)

    def named(flags: Decisions) -> tuple[str, ...]:
        return tuple(name for name, yes in zip(names, flags, strict=True) if yes)

    found = []
    for row, picture in zip(rows, pictures, strict=True):
        labels = np.argsort(-information[row], kind="stable")[:_CONTESTED].tolist()
        contested = tuple(
            ContestedLabel(
                names[label],
                float(blended.probabilities[row, label]),
                tuple(name for name, p in aligned.items() if p[row, label] >= THRESHOLD),
            )
            for label in labels
            if information[row, label] > _TINY
        )
        true = None if applies is None else named(applies[row])
        found.append(LabelDispute(blended.ids[row], float(total[row]), named(decided[row]), contested, true, picture))
    return tuple(found)


def decisions_of(blended: Blended) -> Decisions:
    """Return which labels apply ``(N, C)``: by the thresholds of the recipe, or from a probability of 0.5."""
    found = blended.decisions
    return np.asarray(blended.probabilities >= THRESHOLD) if found is None else found


def decisions_of_each(alone: Mapping[str, Blended], blended: Blended) -> dict[str, Decisions]:
    """Return each member's own decisions ``(N, C)`` from a probability of 0.5, in the blend's order of labels."""
    return {name: _aligned(one, blended, name) >= THRESHOLD for name, one in alone.items()}


def _aligned(one: Blended, blended: Blended, name: str) -> Floats:
    return np.asarray(one.probabilities[:, blended.labels.permutation(one.labels, owner=name)])


def _answers_of(
    blended: Blended, truth: Truth, order: Sequence[str] | None = None
) -> tuple[ScoredAnswers, list[str] | None]:
    """Return the answers beside the ground truth and the persons, by default sorted by id.

    The order is fixed, so that that of the ground truth does not change an interval.
    """
    assert truth.applies is not None
    ids = sorted(truth.ids) if order is None else list(order)
    known = join_rows(ids, truth.ids, complain=predictions_mismatch)
    rows = join_rows(ids, blended.ids, complain=predictions_mismatch)
    columns = truth.labels.permutation(blended.labels, owner="the blend")
    true = np.empty((len(ids), len(columns)), dtype=bool)
    true[:, columns] = truth.applies[known]
    answers = ScoredAnswers(true, decisions_of(blended)[rows], blended.probabilities[rows], len(columns))
    return answers, None if truth.persons is None else [truth.persons[row] for row in known.tolist()]


def _overall(answers: ScoredAnswers, persons: Sequence[str] | None) -> dict[str, MetricScore]:
    return score_metrics(LABEL_METRICS, answers, persons, resamples=_RESAMPLES, seed=0)


def _thresholds_of(recipe: Recipe) -> Floats:
    rule = recipe.rule
    return rule.thresholds if isinstance(rule, ThresholdRule) else np.full(len(recipe.labels), THRESHOLD)


def _each_label(
    answers: ScoredAnswers, persons: Sequence[str] | None, names: Sequence[str], thresholds: Floats
) -> tuple[LabelQuality, ...]:
    """Score each label, with intervals from the same resamples of persons, or of images without persons."""
    precision = _estimates(partial(probabilistic.per_column, area=curves.average_precision), answers, persons)
    area = _estimates(partial(probabilistic.per_column, area=curves.roc_auc), answers, persons)
    of_f1 = find_metric("macro-f1").by_class
    assert of_f1 is not None
    f1 = _estimates(of_f1, answers, persons)
    true, decided = answers.applies(), answers.chosen()
    right = (true & decided).sum(axis=0)
    found = []
    for label, name in enumerate(names):
        p = answers.known()[:, label]
        best = best_f1_threshold(p, true[:, label])
        found.append(
            LabelQuality(
                name=name,
                images=int(true[:, label].sum()),
                average_precision=precision[label],
                auc=area[label],
                f1=f1[label] or Estimate(0.0, 0.0, 0.0),
                threshold=float(thresholds[label]),
                precision=float(right[label] / max(1, decided[:, label].sum())),
                recall=float(right[label] / max(1, true[:, label].sum())),
                best=best,
                best_f1=_f1(p >= best, true[:, label]),
            )
        )
    return tuple(found)


def _estimates(score: Score, answers: ScoredAnswers, persons: Sequence[str] | None) -> list[Estimate | None]:
    """Return each label's value with its interval; None where it is undefined."""
    value = score(answers, np.ones((1, answers.rows)))[0]
    drawn = resample_weights(answers.rows, persons, resamples=_RESAMPLES, seed=0)
    again = np.concatenate([score(answers, weights) for weights in drawn])
    found: list[Estimate | None] = []
    for label, one in enumerate(value.tolist()):
        known = again[np.isfinite(again[:, label]), label]
        found.append(Estimate(one, *interval(known)) if np.isfinite(one) and len(known) else None)
    return found


def _f1(decided: Decisions, true: Decisions) -> float:
    return float(2 * (decided & true).sum() / max(1, decided.sum() + true.sum()))


def _entropy(p: Floats) -> Floats:
    """Return the entropy of a choice between two of each probability, in nats."""
    return np.asarray(-(p * np.log(np.maximum(p, _TINY)) + (1 - p) * np.log(np.maximum(1 - p, _TINY))))
