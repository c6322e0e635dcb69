"""Learn how to blend: compare candidates by nested cross-validation, and keep the mean unless one clearly beats it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
from threadpoolctl import threadpool_limits

from ensemble.arrays import Floats
from ensemble.blend.pooling import log_softmax
from ensemble.errors import DataError, OptionError, PredictionError, TooLittleTruthError, enumerate_some
from ensemble.events import SILENT, Listener, Notice
from ensemble.ids import join_rows
from ensemble.labels import LabelSpace
from ensemble.learn.candidates import FitOptions, Fitted, candidates_for, fit_candidates
from ensemble.learn.cross_validation import (
    FOLDS,
    CandidateAnswers,
    LearningData,
    apply_candidate,
    bootstrap_scores,
    cross_validate,
    score_answers,
)
from ensemble.learn.fold_average import simulate_fold_average
from ensemble.learn.likelihood import FEW_IMAGES
from ensemble.learn.objective import Metric, parse_metric
from ensemble.learn.result import CandidateScore, Learned, MemberView
from ensemble.learn.selection import bias_corrected_gain, select_candidate
from ensemble.learn.table import explain_selection
from ensemble.learn.view_gains import measure_views
from ensemble.metrics import interval
from ensemble.predictions.dataset import Predictions, require_finite
from ensemble.predictions.members import members_by_name
from ensemble.predictions.truth import Truth

AUTO = "auto"


def learn(
    members: Sequence[Predictions],
    truth: Truth,
    *,
    method: str = AUTO,
    metric: str = "macro-f1",
    repeats: int = 2,
    seed: int = 0,
    applied_to: Sequence[Predictions] = (),
    listener: Listener = SILENT,
) -> Learned:
    """Learn how to blend members from their out-of-fold predictions and the ground truth.

    ``auto`` compares all candidates for the metric (see `ensemble.learn.candidates`) by nested cross-validation grouped
    by person, and selects the one with the largest gain over the mean of probabilities minus one standard error; if
    none of these is above 0 it keeps the mean. A named method is taken as it is, and compared with the mean. The
    result does not depend on the order of members, views or rows, nor on the number of CPU cores.

    Raises:
        DataError: E330 when the ground truth is not for the members' images.
        OptionError: E204 when the method or the metric is unknown.
        PredictionError: E501 when classes differ, E505 when a prediction is not finite, E515 when a member name is
            repeated, E525 when there are fewer than five persons (or images, if persons are unknown).
    """
    parsed = parse_metric(metric, truth.labels)
    names = _candidate_names(method, candidates_for(parsed, truth.labels), metric)
    by_name = members_by_name(members)
    member_views = tuple(MemberView(name, view) for name, member in by_name.items() for view in sorted(member.logits))
    data = _stack(by_name, member_views, truth)
    data = _average_folds(data, member_views, applied_to, truth.labels, seed, listener)
    _notice_weak_truth(truth, listener)
    options = FitOptions(
        mean_weights=_mean_weights(by_name, member_views),
        labels=truth.labels,
        score=None if parsed.score is None else parsed.score_classes,
        seed=seed,
        member_of=np.unique([one.member for one in member_views], return_inverse=True)[1],
    )

    def fit(part: LearningData) -> dict[str, Fitted]:
        return fit_candidates(names, options, part.log_p, part.truth, part.log_g)

    # with matrices of this size, more BLAS threads are slower, use three times the CPU time, and round differently
    with threadpool_limits(limits=1, user_api="blas"):
        nested = cross_validate(fit, data, repeats=repeats, seed=seed, listener=listener)
        fitted = fit(data)
        comparison = _compare(nested, fitted, data, member_views, parsed, seed)
    table, expected_gain = comparison.table, comparison.expected_gain
    selected = _select(table).candidate if method == AUTO else method
    views = [one.view for one in member_views]
    return Learned(
        method=selected,
        metric=parsed,
        fitted=fitted[selected],
        candidates=fitted,
        member_views=member_views,
        labels=truth.labels,
        table=table,
        expected_gain=expected_gain,
        view_gains=measure_views(data, views, options.mean_weights, parsed, seed=seed),
        reason=explain_selection(table, selected, parsed, expected_gain=expected_gain if method == AUTO else None),
        images=len(data.truth),
        persons=None if truth.persons is None else int(data.person.max()) + 1,
        folds=FOLDS,
        repeats=repeats,
        seed=seed,
    )


def _candidate_names(method: str, names: tuple[str, ...], metric: str) -> tuple[str, ...]:
    if method == AUTO:
        return names
    if method not in names:
        raise OptionError("E204", f"the method {method!r} is none of {AUTO}, {', '.join(names)}, for {metric}")
    return names[:1] if method == names[0] else (names[0], method)


def _stack(by_name: Mapping[str, Predictions], member_views: Sequence[MemberView], truth: Truth) -> LearningData:
    """Stack all predictions, sorted by id and in the ground truth's class order, so that no input order matters."""
    order = sorted(range(len(truth.ids)), key=truth.ids.__getitem__)
    ids = [truth.ids[row] for row in order]
    persons = np.array(ids if truth.persons is None else [truth.persons[row] for row in order])
    person = np.unique(persons, return_inverse=True)[1]
    count = len(np.unique(person))
    if count < FOLDS:
        unit = "images" if truth.persons is None else "persons"
        raise TooLittleTruthError("E525", f"learning needs at least {FOLDS} {unit} for cross-validation, got {count}")
    log_p = np.empty((len(member_views), len(ids), len(truth.labels)))
    for i, one in enumerate(member_views):
        member = by_name[one.member]
        rows = join_rows(ids, member.ids, complain=partial(_other_images, one.member))
        columns = truth.labels.permutation(member.labels, owner=one.member)
        require_finite(member, one.view)
        log_p[i] = log_softmax(member.logits[one.view][rows[:, np.newaxis], columns])
    return LearningData(log_p, truth.classes[order], person)


def _average_folds(
    data: LearningData,
    member_views: Sequence[MemberView],
    members: Sequence[Predictions],
    labels: LabelSpace,
    seed: int,
    listener: Listener,
) -> LearningData:
    """Return the data as if the folds of each group had been averaged, as they are in the members' blend."""
    groups: dict[str, list[Predictions]] = {}
    for member in sorted(members, key=lambda one: one.member):
        groups.setdefault(member.group, []).append(member)
    if all(len(groups.get(one.member, ())) < 2 for one in member_views):
        return data
    log_p, log_g, factors = data.log_p.copy(), data.log_p.copy(), {}
    for i, one in enumerate(member_views):
        folds = groups.get(one.member, [])
        if len(folds) > 1:
            stacked = _stack_folds(folds, one.view, labels)
            found = simulate_fold_average(data.log_p[i], data.truth, stacked, seed=seed)
            log_p[i], log_g[i], factors[one.member] = found.of_probabilities, found.of_logits, found.factor
    shrunk = enumerate_some([f"{name} x{factor:.2f}" for name, factor in factors.items()])
    message = f"learned for the mean of the folds, whose errors are smaller than those of one fold: {shrunk}"
    listener.notice(Notice("I526", message))
    return replace(data, log_p=log_p, log_g=log_g)


def _stack_folds(folds: Sequence[Predictions], view: str, labels: LabelSpace) -> Floats:
    """Return the folds' log-probabilities ``(k, M, C)`` of the images that they are applied to."""
    ids = sorted(folds[0].ids)
    stacked = []
    for fold in folds:
        if view not in fold.logits:
            raise PredictionError("E516", f"{fold.member} has no view {view}; it has {', '.join(sorted(fold.logits))}")
        rows = join_rows(ids, fold.ids, complain=partial(_not_the_images, fold.member))
        columns = labels.permutation(fold.labels, owner=fold.member)
        require_finite(fold, view)
        stacked.append(log_softmax(fold.logits[view][rows[:, np.newaxis], columns]))
    return np.stack(stacked)


def _not_the_images(owner: str, difference: str) -> PredictionError:
    return PredictionError("E504", f"{owner} has predictions of other images: it {difference}")


def _mean_weights(by_name: Mapping[str, Predictions], member_views: Sequence[MemberView]) -> Floats:
    """Return weights ``(V,)``: equal for groups, for members within a group, and for views within a member."""
    groups = [member.group for member in by_name.values()]
    members = (by_name[one.member] for one in member_views)
    return np.array([1 / (len(set(groups)) * groups.count(m.group) * len(m.logits)) for m in members])


def _notice_weak_truth(truth: Truth, listener: Listener) -> None:
    if truth.persons is None:
        listener.notice(Notice("W523", "the ground truth has no column person: images are split and resampled singly"))
    images = np.bincount(truth.classes, minlength=len(truth.labels))
    counted = list(zip(truth.labels.names, images.tolist(), strict=True))
    few = [f"{name} ({count})" for name, count in counted if 0 < count < FEW_IMAGES]
    none = [name for name, count in counted if count == 0]
    if few:
        some = enumerate_some(few)
        listener.notice(Notice("I524", f"fewer than {FEW_IMAGES} images, so the bias is regularized more: {some}"))
    if none:
        listener.notice(Notice("I524", f"no images, so the bias stays 0: {enumerate_some(none)}"))


@dataclass(frozen=True, slots=True)
class _Comparison:
    table: tuple[CandidateScore, ...]
    expected_gain: float


def _compare(
    nested: Mapping[str, CandidateAnswers],
    fitted: Mapping[str, Fitted],
    data: LearningData,
    member_views: Sequence[MemberView],
    metric: Metric,
    seed: int,
) -> _Comparison:
    """Score every candidate, the mean first as the baseline of the gains, and the gain of selecting among them."""
    table: list[CandidateScore] = []
    in_bag, out_of_bag = (
        np.stack([bootstrap_scores(metric, data, answers, seed=seed, out_of_bag=out) for answers in nested.values()])
        for out in (False, True)
    )
    for (name, answers), resampled in zip(nested.items(), in_bag, strict=True):
        low, high = interval(resampled)
        nested_score = score_answers(metric, data, answers)
        table.append(
            CandidateScore(
                candidate=name,
                nested=nested_score,
                low=low,
                high=high,
                gain=nested_score - (table[0].nested if table else nested_score),
                error=float((resampled - in_bag[0]).std(ddof=1)),
                in_sample=score_answers(metric, data, apply_candidate(fitted[name], data)),
                weights={str(v): float(w) for v, w in zip(member_views, fitted[name].weights, strict=True)},
            )
        )
    return _Comparison(tuple(table), bias_corrected_gain(in_bag, out_of_bag))


def _select(table: Sequence[CandidateScore]) -> CandidateScore:
    return table[select_candidate([row.gain for row in table], [row.error for row in table])]


def _other_images(owner: str, difference: str) -> DataError:
    return DataError("E330", f"{owner}: its images are not those of the ground truth: it {difference}")
