"""Learn how to blend members of several labels per image: nested cross-validation, and the mean unless it is beaten."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
from threadpoolctl import threadpool_limits

from ensemble.arrays import Floats
from ensemble.errors import DataError, OptionError
from ensemble.events import SILENT, Listener, Notice
from ensemble.ids import join_rows
from ensemble.learn.candidates import Fitted
from ensemble.learn.cross_validation import FOLDS, split_by_person
from ensemble.learn.label_candidates import (
    LabelData,
    LabelOptions,
    apply_labels,
    decided_by,
    fit_label_candidates,
    label_candidates,
)
from ensemble.learn.learn import AUTO, mean_weights
from ensemble.learn.learning_data import sort_images
from ensemble.learn.objective import Metric, parse_contest_metric
from ensemble.learn.result import CandidateScore, Learned, MemberScore, MemberView
from ensemble.learn.selection import ResampledScores, bias_corrected_gain, select_candidate
from ensemble.learn.table import explain_selection
from ensemble.metrics import interval
from ensemble.predictions.dataset import Predictions, require_finite
from ensemble.predictions.members import members_by_name
from ensemble.predictions.truth import Truth
from ensemble.scoring.answers import ScoredAnswers, resample_weights
from ensemble.scoring.catalogue import ContestMetric, find_metric
from ensemble.submission.sheet import Decisions

_MANY = 500_000
"""Images times labels from which cross-validation is not repeated."""


@dataclass(frozen=True, slots=True, eq=False)
class _Answers:
    """A candidate's probabilities and decisions ``(N, C)``, one repeat."""

    probabilities: Floats
    decided: Decisions


def learn_labels(
    members: Sequence[Predictions],
    truth: Truth,
    *,
    method: str = AUTO,
    metric: str = "macro-f1",
    repeats: int = 2,
    seed: int = 0,
    listener: Listener = SILENT,
) -> Learned:
    """Learn how to blend members of independent labels from their out-of-fold predictions, as `learn` does for classes.

    Thresholds are learned where the metric depends on decisions. The result does not depend on the order of members,
    views or rows.

    Raises:
        DataError: E330 when the ground truth is not for the members' images, or has one class per image.
        OptionError: E204 when the method or the metric is unknown.
        PredictionError: E501 when labels differ, E505 when a prediction is not finite, E515 when a member name is
            repeated, E525 when there are fewer than five persons (or images, if persons are unknown).
    """
    parsed = parse_contest_metric(metric, truth.labels, exclusive=False)
    names = label_candidates(parsed)
    if method != AUTO and method not in names:
        raise OptionError("E204", f"the method {method!r} is none of {AUTO}, {', '.join(names)}, for {metric}")
    names = names if method == AUTO else tuple(dict.fromkeys((names[0], method)))
    by_name = members_by_name(members)
    views = tuple(MemberView(name, view) for name, member in by_name.items() for view in sorted(member.logits))
    data = _stack(by_name, views, truth)
    repeats = 1 if data.applies.size > _MANY else repeats
    _notice_weak_truth(truth, listener)
    member_of = np.unique([one.member for one in views], return_inverse=True)[1]
    options = LabelOptions(mean_weights(by_name, views), parsed, seed, member_of)
    with threadpool_limits(limits=1, user_api="blas"):
        nested = _cross_validate(names, options, data, repeats, listener)
        fitted = fit_label_candidates(names, options, data)
    score = _scores(nested, parsed, data, seed)
    likelihood = _scores(nested, _likelihood_of(parsed), data, seed)
    table = _table(names, score, fitted, views, parsed, data)
    chosen, expected = select_candidate(names, score, likelihood, by_score=parsed.by_score), 0.0
    if chosen:
        left_out = np.stack([_resampled(each, parsed, data, seed, left_out=True) for each in nested.values()])
        expected = bias_corrected_gain(names, score, likelihood, left_out, by_score=parsed.by_score)
        chosen, expected = (chosen, expected) if expected > 0 else (0, 0.0)
    selected = names[chosen] if method == AUTO else method
    return Learned(
        method=selected,
        metric=parsed,
        fitted=fitted[selected],
        candidates=fitted,
        member_views=views,
        labels=truth.labels,
        table=table,
        expected_gain=expected,
        members=_score_members(options, views, data),
        view_gains=(),
        reason=explain_selection(table, selected, parsed, expected_gain=expected if method == AUTO else None),
        images=len(data.applies),
        persons=None if truth.persons is None else int(data.person.max()) + 1,
        folds=FOLDS,
        repeats=repeats,
        seed=seed,
    )


def _stack(by_name: Mapping[str, Predictions], views: Sequence[MemberView], truth: Truth) -> LabelData:
    """Stack all log-odds, sorted by id and in the ground truth's order of labels."""
    if truth.applies is None:
        raise DataError("E330", "the ground truth has one class per image, and the predictions several labels")
    images = sort_images(truth)
    odds = np.empty((len(views), len(images.ids), len(truth.labels)))
    for i, one in enumerate(views):
        member = by_name[one.member]
        rows = join_rows(images.ids, member.ids, complain=partial(_other_images, one.member))
        columns = truth.labels.permutation(member.labels, owner=one.member)
        require_finite(member, one.view)
        odds[i] = member.logits[one.view][rows[:, np.newaxis], columns]
    return LabelData(odds, truth.applies[images.order], images.person)


def _cross_validate(
    names: Sequence[str], options: LabelOptions, data: LabelData, repeats: int, listener: Listener
) -> dict[str, list[_Answers]]:
    """Return each candidate's out-of-fold answers to all images, ``repeats`` times with other folds."""
    # stratified by the rarest label that applies: the folds of a frequent one are even anyway
    rarity = np.where(data.applies, data.applies.sum(axis=0), len(data.applies) + 1)
    strata = np.where(data.applies.any(axis=1), rarity.argmin(axis=1), data.applies.shape[1])
    found: dict[str, list[_Answers]] = {name: [] for name in names}
    for repeat in range(repeats):
        p = {name: np.empty(data.applies.shape) for name in names}
        decided = {name: np.empty(data.applies.shape, dtype=bool) for name in names}
        for fold, (train, test) in enumerate(split_by_person(strata, data.person, seed=options.seed + repeat)):
            listener.progress("learn", repeat * FOLDS + fold, repeats * FOLDS)
            for name, fitted in fit_label_candidates(names, options, data.take(train)).items():
                p[name][test] = apply_labels(fitted, data.odds[:, test])
                decided[name][test] = decided_by(fitted, p[name][test])
        for name in names:
            found[name].append(_Answers(p[name], decided[name]))
    listener.progress("learn", repeats * FOLDS, repeats * FOLDS)
    return found


def _scored(answers: _Answers, data: LabelData) -> ScoredAnswers:
    return ScoredAnswers(data.applies, answers.decided, answers.probabilities, data.applies.shape[1])


def _once(repeats: Sequence[_Answers], metric: Metric, data: LabelData) -> float:
    weights = np.ones((1, len(data.applies)))
    return float(np.mean([metric.score_answers(_scored(one, data), weights)[0] for one in repeats]))


def _resampled(
    repeats: Sequence[_Answers], metric: Metric, data: LabelData, seed: int, *, left_out: bool = False
) -> Floats:
    """Return the score in each bootstrap resample of people, averaged over the repeats."""
    drawn = resample_weights(len(data.applies), data.person, resamples=metric.resamples, seed=seed, left_out=left_out)
    return np.concatenate(
        [np.mean([metric.score_answers(_scored(one, data), w) for one in repeats], axis=0) for w in drawn]
    )


def _scores(nested: Mapping[str, Sequence[_Answers]], metric: Metric, data: LabelData, seed: int) -> ResampledScores:
    return ResampledScores(
        np.array([_once(each, metric, data) for each in nested.values()]),
        np.stack([_resampled(each, metric, data, seed) for each in nested.values()]),
    )


def _likelihood_of(metric: Metric) -> Metric:
    """Return the log-likelihood, with as many resamples as the metric."""
    log_loss = find_metric("log-loss")
    assert metric.contest is not None
    contest = ContestMetric(
        log_loss.name, log_loss.title, log_loss.kind, log_loss.score, False, vectorised=metric.contest.vectorised
    )
    return Metric("log-loss", "likelihood", "contest", metric.value_of_class, metric.values, None, contest)


def _table(
    names: Sequence[str],
    score: ResampledScores,
    fitted: Mapping[str, Fitted],
    views: Sequence[MemberView],
    metric: Metric,
    data: LabelData,
) -> tuple[CandidateScore, ...]:
    return tuple(
        CandidateScore(
            candidate=name,
            nested=float(score.value[i]),
            low=interval(score.resampled[i])[0],
            high=interval(score.resampled[i])[1],
            gain=float(score.value[i] - score.value[0]),
            error=score.error(i, 0),
            in_sample=_once([_apply(fitted[name], data)], metric, data),
            weights={str(view): float(w) for view, w in zip(views, fitted[name].weights, strict=True)},
        )
        for i, name in enumerate(names)
    )


def _apply(fitted: Fitted, data: LabelData) -> _Answers:
    p = apply_labels(fitted, data.odds)
    return _Answers(p, decided_by(fitted, p))


def _score_members(options: LabelOptions, views: Sequence[MemberView], data: LabelData) -> tuple[MemberScore, ...]:
    """Score each member alone, the mean of its views' probabilities, with a 95 % bootstrap interval over people."""
    found = []
    for name in dict.fromkeys(one.member for one in views):
        used = np.array([one.member == name for one in views])
        alone = [_apply(Fitted("linear", used / used.sum(), 1.0, np.zeros(data.applies.shape[1])), data)]
        low, high = interval(_resampled(alone, options.metric, data, options.seed))
        found.append(MemberScore(name, _once(alone, options.metric, data), low, high))
    return tuple(found)


def _notice_weak_truth(truth: Truth, listener: Listener) -> None:
    if truth.persons is None:
        listener.notice(Notice("W523", "the ground truth has no column person: images are split and resampled singly"))
    assert truth.applies is not None
    absent = [name for name, count in zip(truth.labels.names, truth.applies.sum(axis=0), strict=True) if not count]
    if absent:
        some = f"{len(absent)} labels, such as {absent[0]}" if len(absent) > 1 else absent[0]
        listener.notice(Notice("I524", f"no images, so the bias stays 0: {some}"))


def _other_images(owner: str, difference: str) -> DataError:
    return DataError("E330", f"{owner}: its images are not those of the ground truth: it {difference}")
