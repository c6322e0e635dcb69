"""Learn how to blend: compare candidates by nested cross-validation, and keep the mean unless one clearly beats it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
from threadpoolctl import threadpool_limits

from ensemble.arrays import Floats
from ensemble.blend.odd_members import find_odd
from ensemble.errors import OptionError, enumerate_some
from ensemble.events import SILENT, Listener, Notice
from ensemble.labels import LabelSpace
from ensemble.learn.candidates import FitOptions, Fitted, candidates_for, fit_candidates
from ensemble.learn.class_mix import ClassMix, LabelMix
from ensemble.learn.comparison import Comparison, compare_candidates, mix_of, score_members
from ensemble.learn.cross_validation import FOLDS, LearningData, cross_validate
from ensemble.learn.learning_data import average_folds, stack_members, stack_new
from ensemble.learn.likelihood import FEW_IMAGES
from ensemble.learn.objective import Metric, parse_metric
from ensemble.learn.result import Learned, MemberView
from ensemble.learn.table import explain_selection
from ensemble.learn.view_gains import measure_views
from ensemble.predictions.dataset import Predictions
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
    by person, and selects one as `ensemble.learn.selection` says; if none clearly gains, or the expected gain is not
    above 0, it keeps the mean. A named method is taken as it is, and compared with the mean. The result does not depend
    on the order of members, views or rows, nor on the number of CPU cores.

    ``applied_to`` are the predictions that will be blended. Where a group has several folds there, which are averaged,
    learning is for that average (see `ensemble.learn.fold_average`); where their class mix differs from that of the
    ground truth, a candidate must gain on both mixes (see `ensemble.learn.class_mix`).

    Raises:
        DataError: E330 when the ground truth is not for the members' images.
        OptionError: E204 when the method or the metric is unknown, or a positive class is named for other than two.
        PredictionError: E501 when classes differ, E504 when the folds to be averaged predict other images, E505 when a
            prediction is not finite, E515 when a member name is repeated, E516 when a view is missing, E525 when there
            are fewer than five persons (or images, if persons are unknown).
    """
    parsed = _parse_metric(metric, truth, listener)
    names = _candidate_names(method, candidates_for(parsed, truth.labels), metric)
    by_name = members_by_name(members)
    member_views = tuple(MemberView(name, view) for name, member in by_name.items() for view in sorted(member.logits))
    new = stack_new(applied_to, member_views, truth.labels)
    given = replace(stack_members(by_name, member_views, truth), keep=parsed.needs_probabilities)
    _notice_weak_truth(truth, listener)
    alone = score_members(given, member_views, parsed, seed=seed)
    _notice_odd_members(given, member_views, truth.labels, listener)
    options = fit_options(by_name, member_views, parsed, truth.labels, seed)

    def fit(part: LearningData) -> dict[str, Fitted]:
        return fit_candidates(names, options, part.log_p, part.truth, part.log_g)

    # with matrices of this size, more BLAS threads are slower, use three times the CPU time, and round differently
    with threadpool_limits(limits=1, user_api="blas"):
        data = average_folds(given, member_views, new, seed=seed, listener=listener)
        nested = cross_validate(fit, data, repeats=repeats, seed=seed, listener=listener)
        fitted = fit(data)
        mix = None if not new else mix_of(data, new, fitted, options, seed=seed)
        comparison = compare_candidates(nested, fitted, data, member_views, parsed, mix=mix, seed=seed)
    table = comparison.table
    selected = comparison.selected if method == AUTO else method
    if mix is not None and mix.differs:
        notice_other_mix(mix, comparison, truth.labels, parsed, listener)
    views = [one.view for one in member_views]
    return Learned(
        method=selected,
        metric=parsed,
        fitted=fitted[selected],
        candidates=fitted,
        member_views=member_views,
        labels=truth.labels,
        table=table,
        expected_gain=comparison.expected_gain,
        members=alone,
        view_gains=measure_views(data, views, options.mean_weights, parsed, seed=seed),
        reason=explain_selection(
            table, selected, parsed, expected_gain=comparison.expected_gain if method == AUTO else None
        ),
        images=len(data.truth),
        persons=None if truth.persons is None else int(data.person.max()) + 1,
        folds=FOLDS,
        repeats=repeats,
        seed=seed,
    )


def _parse_metric(text: str, truth: Truth, listener: Listener) -> Metric:
    """Parse the metric, and say which of two classes it is about where that is not named (I549)."""
    labels = truth.labels
    if truth.positive is not None and len(labels) != 2:
        raise OptionError("E204", f"--positive names one of two classes, and there are {len(labels)}")
    metric = parse_metric(text, labels, positive=truth.positive)
    if metric.contest is not None and len(labels) == 2 and truth.positive is None:
        name = labels.names[metric.positive]
        listener.notice(Notice("I549", f"{metric.title} is about {name!r} where it is about one of two classes"))
    return metric


def fit_options(
    by_name: Mapping[str, Predictions],
    member_views: Sequence[MemberView],
    metric: Metric,
    labels: LabelSpace,
    seed: int,
) -> FitOptions:
    """Return the inputs of a fit besides the data, for members by name and their views."""
    return FitOptions(
        mean_weights=mean_weights(by_name, member_views),
        labels=labels,
        score=metric.score_classes if metric.needs_decisions else None,
        score_probabilities=metric.score_probabilities if metric.needs_probabilities else None,
        seed=seed,
        member_of=np.unique([one.member for one in member_views], return_inverse=True)[1],
    )


def _candidate_names(method: str, names: tuple[str, ...], metric: str) -> tuple[str, ...]:
    if method == AUTO:
        return names
    if method not in names:
        raise OptionError("E204", f"the method {method!r} is none of {AUTO}, {', '.join(names)}, for {metric}")
    return names[:1] if method == names[0] else (names[0], method)


def mean_weights(by_name: Mapping[str, Predictions], member_views: Sequence[MemberView]) -> Floats:
    """Return weights ``(V,)``: equal for groups, for members within a group, and for views within a member."""
    groups = [member.group for member in by_name.values()]
    members = (by_name[one.member] for one in member_views)
    return np.array([1 / (len(set(groups)) * groups.count(m.group) * len(m.logits)) for m in members])


def notice_no_persons(truth: Truth, listener: Listener) -> None:
    """Warn where the ground truth does not say which images are of one person."""
    if truth.persons is None:
        listener.notice(Notice("W523", "the ground truth has no column person: images are split and resampled singly"))


def _notice_weak_truth(truth: Truth, listener: Listener) -> None:
    notice_no_persons(truth, listener)
    images = np.bincount(truth.classes, minlength=len(truth.labels))
    counted = list(zip(truth.labels.names, images.tolist(), strict=True))
    few = [f"{name} ({count})" for name, count in counted if 0 < count < FEW_IMAGES]
    none = [name for name, count in counted if count == 0]
    if few:
        some = enumerate_some(few)
        listener.notice(Notice("I524", f"fewer than {FEW_IMAGES} images, so the bias is regularized more: {some}"))
    if none:
        listener.notice(Notice("I524", f"no images, so the bias stays 0: {enumerate_some(none)}"))


def _notice_odd_members(
    data: LearningData, member_views: Sequence[MemberView], labels: LabelSpace, listener: Listener
) -> None:
    """Name the members that are constant, near chance, or right after a permutation of their columns (W508)."""
    for name in dict.fromkeys(one.member for one in member_views):
        log_p = data.log_p[[one.member == name for one in member_views]]
        answers = np.exp(log_p).mean(axis=0).argmax(axis=1)
        odd = find_odd(data.truth, answers, classes=len(labels))
        if odd is not None:
            listener.notice(Notice("W508", f"{name} {odd.describe(labels.names, reference='the ground truth')}"))


def notice_other_mix(
    mix: ClassMix | LabelMix, comparison: Comparison, labels: LabelSpace, metric: Metric, listener: Listener
) -> None:
    """Warn where the other class mix of the predictions to be blended has changed what is selected."""
    if comparison.selected == comparison.without_mix:
        return
    gain, there = comparison.gains_of(comparison.without_mix)
    listener.notice(
        Notice(
            "W527",
            f"the predictions to be blended have another class mix than the out-of-fold ones ({mix.describe(labels)}): "
            f"{comparison.without_mix} would change {metric.title} by {gain:+.4f} on the latter, and by about "
            f"{there:+.4f} on the former, so {comparison.selected} is used",
        )
    )
