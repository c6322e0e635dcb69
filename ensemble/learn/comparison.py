"""Score all candidates and all members on the same images, and select a candidate."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from ensemble.arrays import Floats
from ensemble.learn.candidates import FitOptions, Fitted, weighted_mean
from ensemble.learn.class_mix import ClassMix, compare_class_mix
from ensemble.learn.cross_validation import (
    CandidateAnswers,
    LearningData,
    apply_candidate,
    bootstrap_scores,
    score_answers,
)
from ensemble.learn.objective import Metric
from ensemble.learn.result import CandidateScore, MemberScore, MemberView
from ensemble.learn.selection import ResampledScores, bias_corrected_gain, demanded_errors, select_candidate
from ensemble.metrics import interval


@dataclass(frozen=True, slots=True)
class Comparison:
    """The scores of all candidates, and the one that `auto` selects.

    ``expected_gain`` is the gain over the mean that is expected of it on other people: 0 where the mean is kept.
    ``without_mix`` is what would be selected if the class mix of the images to be blended were not regarded;
    ``elsewhere`` has the gain of each candidate on that mix, and is empty where it does not differ.
    """

    table: tuple[CandidateScore, ...]
    selected: str
    expected_gain: float
    without_mix: str
    elsewhere: Mapping[str, float]

    def gains_of(self, name: str) -> tuple[float, float]:
        """Return the gain of a candidate over the mean: on the images learned from, and on the other class mix."""
        gain = next(row.gain for row in self.table if row.candidate == name)
        return gain, self.elsewhere.get(name, gain)


@dataclass(frozen=True, slots=True, eq=False)
class NestedScores:
    """The scores of K candidates in nested cross-validation, by name, the mean first as the baseline of the gains.

    ``score`` is the metric, ``likelihood`` the mean log-likelihood, and ``elsewhere`` the metric on the other class
    mix, None where it does not differ. ``score_left_out`` returns the metric ``(K, R)`` on the people left out of each
    of the R resamples: it takes as long as the others together, and is called only if a candidate beats the mean.
    """

    names: Sequence[str]
    score: ResampledScores
    likelihood: ResampledScores
    elsewhere: ResampledScores | None
    score_left_out: Callable[[], Floats]


def select_and_tabulate(
    nested: NestedScores,
    fitted: Mapping[str, Fitted],
    member_views: Sequence[MemberView],
    *,
    in_sample: Callable[[Fitted], float],
    by_score: bool,
    people: int,
) -> Comparison:
    """Select a candidate as `ensemble.learn.selection` says, and tabulate the scores of all.

    ``in_sample`` scores a fitted candidate on the images that it was fitted to; ``by_score`` is that of the metric.
    """
    names, score, likelihood, elsewhere = nested.names, nested.score, nested.likelihood, nested.elsewhere
    errors = demanded_errors(people)
    selected = select_candidate(names, score, likelihood, elsewhere=elsewhere, by_score=by_score, errors=errors)
    expected = 0.0
    if selected:
        left_out = nested.score_left_out()
        expected = bias_corrected_gain(
            names, score, likelihood, left_out, elsewhere=elsewhere, by_score=by_score, errors=errors
        )
        if expected <= 0:
            selected, expected = 0, 0.0
    table = [
        CandidateScore(
            candidate=name,
            nested=float(score.value[i]),
            low=interval(score.resampled[i])[0],
            high=interval(score.resampled[i])[1],
            gain=float(score.value[i] - score.value[0]),
            error=score.error(i, 0),
            in_sample=in_sample(fitted[name]),
            weights={str(v): float(w) for v, w in zip(member_views, fitted[name].weights, strict=True)},
        )
        for i, name in enumerate(names)
    ]
    gains = [] if elsewhere is None else [float(value - elsewhere.value[0]) for value in elsewhere.value]
    return Comparison(
        table=tuple(table),
        selected=names[selected],
        expected_gain=expected,
        without_mix=names[select_candidate(names, score, likelihood, by_score=by_score, errors=errors)],
        elsewhere=dict(zip(names, gains, strict=False)),
    )


def score_each_member(
    member_views: Sequence[MemberView], score: Callable[[Floats], tuple[float, Floats]]
) -> tuple[MemberScore, ...]:
    """Score each member alone: the mean of its views' probabilities, with a 95 % bootstrap interval over people.

    ``score`` returns the score of the mean with weights ``(V,)``, and that in each resample.
    """
    found = []
    for name in dict.fromkeys(one.member for one in member_views):
        used = np.array([one.member == name for one in member_views])
        value, resampled = score(used / used.sum())
        found.append(MemberScore(name, value, *interval(resampled)))
    return tuple(found)


def compare_candidates(
    nested: Mapping[str, CandidateAnswers],
    fitted: Mapping[str, Fitted],
    data: LearningData,
    member_views: Sequence[MemberView],
    metric: Metric,
    *,
    mix: ClassMix | None,
    seed: int,
) -> Comparison:
    """Score every candidate, the mean first as the baseline of the gains, and select one."""
    weights = mix.weights if mix is not None and mix.differs and metric.needs_decisions else None

    def score_left_out() -> Floats:
        return np.stack([bootstrap_scores(metric, data, one, seed=seed, out_of_bag=True) for one in nested.values()])

    scores = NestedScores(
        list(nested),
        _scores(nested, metric, data, seed),
        _scores(nested, replace(metric, score=None, contest=None), data, seed, resamples=metric.resamples),
        None if weights is None else _scores(nested, metric, data, seed, class_weights=weights),
        score_left_out,
    )
    return select_and_tabulate(
        scores,
        fitted,
        member_views,
        in_sample=lambda one: score_answers(metric, data, apply_candidate(one, data)),
        by_score=metric.by_score,
        people=int(data.person.max()) + 1,
    )


def score_members(
    data: LearningData, member_views: Sequence[MemberView], metric: Metric, *, seed: int
) -> tuple[MemberScore, ...]:
    """Score each member alone, as `score_each_member`."""

    def score(weights: Floats) -> tuple[float, Floats]:
        answers = apply_candidate(weighted_mean(weights, data.log_p.shape[-1]), data)
        return score_answers(metric, data, answers), bootstrap_scores(metric, data, answers, seed=seed)

    return score_each_member(member_views, score)


def mix_of(
    data: LearningData, new: Sequence[Floats], fitted: Mapping[str, Fitted], options: FitOptions, *, seed: int
) -> ClassMix:
    """Compare the class mix of the plain mean on the images learned from with that on the images to be blended.

    ``new`` are the folds' log-probabilities ``(k, M, C)`` of each member view.
    """
    log_p = np.stack([np.log(np.maximum(np.exp(folds).mean(axis=0), np.finfo(np.float64).tiny)) for folds in new])
    log_g = np.stack([folds.mean(axis=0) for folds in new])
    mean = weighted_mean(options.mean_weights, log_p.shape[-1])
    calibrated = next((fitted[name] for name in ("calibrated", "pool", "mean") if name in fitted), mean)
    return compare_class_mix(
        np.exp(mean.apply(data.log_p)),
        data.person,
        data.truth,
        np.exp(mean.apply(log_p)),
        calibrated=np.exp(calibrated.apply(log_p, log_g)),
        seed=seed,
    )


def _scores(
    nested: Mapping[str, CandidateAnswers],
    metric: Metric,
    data: LearningData,
    seed: int,
    *,
    class_weights: Floats | None = None,
    resamples: int = 500,
) -> ResampledScores:
    return ResampledScores(
        np.array([score_answers(metric, data, answers, class_weights=class_weights) for answers in nested.values()]),
        np.stack(
            [
                bootstrap_scores(metric, data, answers, seed=seed, class_weights=class_weights, resamples=resamples)
                for answers in nested.values()
            ]
        ),
    )
