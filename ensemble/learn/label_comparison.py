"""Score candidates, members and views of independent labels on the same images, and select a candidate."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from ensemble.arrays import Floats, Mask
from ensemble.learn.candidates import Fitted
from ensemble.learn.class_mix import LabelMix, compare_label_mix
from ensemble.learn.comparison import Comparison
from ensemble.learn.label_candidates import LabelOptions, apply_labels, decided_by
from ensemble.learn.label_data import LabelData
from ensemble.learn.objective import Metric
from ensemble.learn.result import CandidateScore, MemberScore, MemberView
from ensemble.learn.selection import ResampledScores, bias_corrected_gain, demanded_errors, select_candidate
from ensemble.learn.view_gains import ViewGain, first_view
from ensemble.metrics import interval
from ensemble.predictions.out_of_fold import mean_logits
from ensemble.scoring.answers import ScoredAnswers, resample_weights
from ensemble.scoring.catalogue import ContestMetric, find_metric
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
    names = list(nested)
    score = _scores(nested, metric, data, seed)
    likelihood = _scores(nested, _likelihood_of(metric), data, seed)
    weights = mix.weights if mix is not None and mix.differs and metric.needs_decisions else None
    elsewhere = None if weights is None else _scores(nested, metric, data, seed, image_weights=weights)
    errors = demanded_errors(int(data.person.max()) + 1)
    selected = select_candidate(names, score, likelihood, elsewhere=elsewhere, by_score=metric.by_score, errors=errors)
    expected = 0.0
    if selected:
        left_out = np.stack([_resampled(each, metric, data, seed, left_out=True) for each in nested.values()])
        expected = bias_corrected_gain(
            names, score, likelihood, left_out, elsewhere=elsewhere, by_score=metric.by_score, errors=errors
        )
        selected, expected = (selected, expected) if expected > 0 else (0, 0.0)
    table = [
        CandidateScore(
            candidate=name,
            nested=float(score.value[i]),
            low=interval(score.resampled[i])[0],
            high=interval(score.resampled[i])[1],
            gain=float(score.value[i] - score.value[0]),
            error=score.error(i, 0),
            in_sample=_once([answers_of(fitted[name], data)], metric, data),
            weights={str(view): float(w) for view, w in zip(views, fitted[name].weights, strict=True)},
        )
        for i, name in enumerate(names)
    ]
    return Comparison(
        table=tuple(table),
        selected=names[selected],
        expected_gain=expected,
        without_mix=names[select_candidate(names, score, likelihood, by_score=metric.by_score, errors=errors)],
        elsewhere={}
        if elsewhere is None
        else {name: float(elsewhere.value[i] - elsewhere.value[0]) for i, name in enumerate(names)},
    )


def label_mix_of(
    data: LabelData, new: Sequence[Floats], fitted: Mapping[str, Fitted], options: LabelOptions, *, seed: int
) -> LabelMix:
    """Compare the labels' mean probabilities, by the plain mean of members, on images learned from and to be blended.

    ``new`` are the folds' log-odds ``(k, M, C)`` of each member view.
    """
    mean = Fitted("linear", options.mean_weights, 1.0, np.zeros(data.odds.shape[-1]))
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
    """Score each member alone, the mean of its views' probabilities, with a 95 % bootstrap interval over people."""
    found = []
    for name in dict.fromkeys(one.member for one in views):
        used = np.array([one.member == name for one in views])
        alone = [answers_of(Fitted("linear", used / used.sum(), 1.0, np.zeros(data.applies.shape[1])), data)]
        low, high = interval(_resampled(alone, options.metric, data, options.seed))
        found.append(MemberScore(name, _once(alone, options.metric, data), low, high))
    return tuple(found)


def measure_label_views(data: LabelData, views: Sequence[MemberView], options: LabelOptions) -> tuple[ViewGain, ...]:
    """Measure each view in addition to the first, as `measure_views`: decisions of labels are counted, not images."""
    names = np.array([one.view for one in views])
    first = first_view(names.tolist())
    before = _mean_of_views(data, options, names == first)
    resampled = _resampled([before], options.metric, data, options.seed)
    gains = []
    for view in sorted(set(names.tolist()) - {first}):
        after = _mean_of_views(data, options, (names == first) | (names == view))
        error = _resampled([after], options.metric, data, options.seed) - resampled
        right, then = before.decided == data.applies, after.decided == data.applies
        gains.append(
            ViewGain(
                view=view,
                gain=_once([after], options.metric, data) - _once([before], options.metric, data),
                error=float(error.std(ddof=1)),
                right_to_wrong=int((right & ~then).sum()),
                wrong_to_right=int((~right & then).sum()),
                cost=float(1 + (names == view).sum() / (names == first).sum()),
            )
        )
    return tuple(gains)


def _mean_of_views(data: LabelData, options: LabelOptions, used: Mask) -> LabelAnswers:
    weights = np.where(used, options.mean_weights, 0.0)
    return answers_of(Fitted("linear", weights / weights.sum(), 1.0, np.zeros(data.applies.shape[1])), data)


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
        log_loss.name, log_loss.title, log_loss.kind, log_loss.score, False, vectorised=metric.contest.vectorised
    )
    return Metric("log-loss", "likelihood", "contest", metric.value_of_class, metric.values, None, contest)
