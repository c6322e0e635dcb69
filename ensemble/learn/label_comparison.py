"""Score candidates, members and views of independent labels on the same images, and select a candidate."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from ensemble.arrays import Floats
from ensemble.learn.candidates import Fitted, weighted_mean
from ensemble.learn.class_mix import LabelMix, compare_label_mix
from ensemble.learn.comparison import Comparison, NestedScores, score_each_member, select_and_tabulate
from ensemble.learn.label_candidates import LabelOptions, apply_labels, decided_by
from ensemble.learn.label_data import LabelData
from ensemble.learn.objective import Metric
from ensemble.learn.result import MemberScore, MemberView
from ensemble.learn.selection import ResampledScores
from ensemble.learn.view_gains import MeanOfViews, ViewGain, measure_gains
from ensemble.predictions.out_of_fold import mean_logits
from ensemble.scoring.answers import ScoredAnswers, resample_weights
from ensemble.scoring.catalog import ContestMetric, find_metric
from ensemble.submission.sheet import Decisions


@dataclass(frozen=True, slots=True, eq=False)
class LabelAnswers:
    """A candidate's probabilities and decisions ``(N, C)``, one repeat."""

    probabilities: Floats
    decided: Decisions


def answers_of(fitted: Fitted, data: LabelData) -> LabelAnswers:
    """Return a candidate's answers to all images."""
    p = apply_labels(fitted, data.odds, data.logits)
    return LabelAnswers(p, decided_by(fitted, p))


def compare_label_candidates(
    nested: Mapping[str, Sequence[LabelAnswers]],
    fitted: Mapping[str, Fitted],
    data: LabelData,
    views: Sequence[MemberView],
    metric: Metric,
    *,
    mix: LabelMix | None,
    seed: int,
) -> Comparison:
    """Score every candidate, the mean first as the baseline of the gains, and select one; see `compare_candidates`."""
    weights = mix.weights if mix is not None and mix.differs and metric.needs_decisions else None

    def score_left_out() -> Floats:
        return np.stack([_resampled(each, metric, data, seed, left_out=True) for each in nested.values()])

    scores = NestedScores(
        list(nested),
        _scores(nested, metric, data, seed),
        _scores(nested, _likelihood_of(metric), data, seed),
        None if weights is None else _scores(nested, metric, data, seed, image_weights=weights),
        score_left_out,
    )
    return select_and_tabulate(
        scores,
        fitted,
        views,
        in_sample=lambda one: _once([answers_of(one, data)], metric, data),
        by_score=metric.by_score,
        people=int(data.person.max()) + 1,
    )


def label_mix_of(
    data: LabelData, new: Sequence[Floats], fitted: Mapping[str, Fitted], options: LabelOptions, *, seed: int
) -> LabelMix:
    """Compare the labels' mean probabilities, by the plain mean of members, on images learned from and to be blended.

    ``new`` are the folds' log-odds ``(k, M, C)`` of each member view.
    """
    mean = weighted_mean(options.mean_weights, data.odds.shape[-1])
    odds = np.stack([mean_logits(folds, independent=True) for folds in new])
    logits = np.stack([folds.mean(axis=0) for folds in new])
    calibrated = next((fitted[name] for name in ("calibrated", "pool", "mean") if name in fitted), mean)
    return compare_label_mix(
        apply_labels(mean, data.odds),
        data.person,
        data.applies,
        apply_labels(mean, odds),
        calibrated=apply_labels(calibrated, odds, logits),
        seed=seed,
    )


def score_label_members(options: LabelOptions, views: Sequence[MemberView], data: LabelData) -> tuple[MemberScore, ...]:
    """Score each member alone, as `score_each_member`."""

    def score(weights: Floats) -> tuple[float, Floats]:
        alone = [answers_of(weighted_mean(weights, data.applies.shape[1]), data)]
        return _once(alone, options.metric, data), _resampled(alone, options.metric, data, options.seed)

    return score_each_member(views, score)


def measure_label_views(data: LabelData, views: Sequence[str], options: LabelOptions) -> tuple[ViewGain, ...]:
    """Measure each view in addition to the first, as `measure_gains`: decisions of labels are counted, not images."""

    def score(weights: Floats) -> MeanOfViews:
        answers = answers_of(weighted_mean(weights, data.applies.shape[1]), data)
        return MeanOfViews(
            answers.decided == data.applies,
            _once([answers], options.metric, data),
            _resampled([answers], options.metric, data, options.seed),
        )

    return measure_gains(views, options.mean_weights, score)


def _scored(answers: LabelAnswers, data: LabelData) -> ScoredAnswers:
    return ScoredAnswers(data.applies, answers.decided, answers.probabilities, data.applies.shape[1])


def _once(
    repeats: Sequence[LabelAnswers], metric: Metric, data: LabelData, *, image_weights: Floats | None = None
) -> float:
    weights = np.ones((1, len(data.applies))) if image_weights is None else image_weights[np.newaxis]
    return float(np.mean([metric.score_answers(_scored(one, data), weights)[0] for one in repeats]))


def _resampled(
    repeats: Sequence[LabelAnswers],
    metric: Metric,
    data: LabelData,
    seed: int,
    *,
    left_out: bool = False,
    image_weights: Floats | None = None,
) -> Floats:
    """Return the score in each bootstrap resample of people, averaged over the repeats."""
    drawn = resample_weights(len(data.applies), data.person, resamples=metric.resamples, seed=seed, left_out=left_out)
    each = (weights if image_weights is None else weights * image_weights for weights in drawn)
    return np.concatenate(
        [np.mean([metric.score_answers(_scored(one, data), w) for one in repeats], axis=0) for w in each]
    )


def _scores(
    nested: Mapping[str, Sequence[LabelAnswers]],
    metric: Metric,
    data: LabelData,
    seed: int,
    *,
    image_weights: Floats | None = None,
) -> ResampledScores:
    return ResampledScores(
        np.array([_once(each, metric, data, image_weights=image_weights) for each in nested.values()]),
        np.stack([_resampled(each, metric, data, seed, image_weights=image_weights) for each in nested.values()]),
    )


def _likelihood_of(metric: Metric) -> Metric:
    """Return the log-likelihood, with as many resamples as the metric."""
    log_loss = find_metric("log-loss")
    assert metric.contest is not None
    contest = ContestMetric(
        log_loss.name, log_loss.title, log_loss.kind, log_loss.score, False, vectorized=metric.contest.vectorized
    )
    return Metric("log-loss", "likelihood", "contest", metric.value_of_class, metric.values, None, contest)
