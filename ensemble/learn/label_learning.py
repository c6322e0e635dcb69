"""Learn how to blend members of several labels per image: nested cross-validation, and the mean unless it is beaten."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from threadpoolctl import threadpool_limits

from ensemble.errors import OptionError
from ensemble.events import SILENT, Listener, Notice
from ensemble.learn.cross_validation import FOLDS, split_by_person
from ensemble.learn.label_candidates import (
    LabelOptions,
    apply_labels,
    decided_by,
    fit_label_candidates,
    label_candidates,
)
from ensemble.learn.label_comparison import (
    LabelAnswers,
    compare_label_candidates,
    label_mix_of,
    measure_label_views,
    score_label_members,
)
from ensemble.learn.label_data import LabelData, average_label_folds, stack_labels, stack_new_labels
from ensemble.learn.learn import AUTO, mean_weights, notice_no_persons, notice_other_mix
from ensemble.learn.objective import parse_contest_metric
from ensemble.learn.result import Learned, MemberView
from ensemble.learn.table import explain_selection
from ensemble.predictions.dataset import Predictions
from ensemble.predictions.members import members_by_name
from ensemble.predictions.truth import Truth

_MANY = 500_000
"""Images times labels from which cross-validation is not repeated."""


def learn_labels(
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
    """Learn how to blend members of independent labels from their out-of-fold predictions, as `learn` does for classes.

    Thresholds are learned where the metric depends on decisions. With the predictions ``applied_to``, which will be
    blended, the folds of a group are learned for as their mean, and where the shares of labels differ from those of the
    ground truth, a candidate must gain on both. The result does not depend on the order of members, views or rows.

    Raises:
        DataError: E330 when the ground truth is not for the members' images, or has one class per image.
        OptionError: E204 when the method or the metric is unknown.
        PredictionError: E501 when labels differ, E504 when the folds to be averaged predict other images, E505 when a
            prediction is not finite, E515 when a member name is repeated, E516 when a view is missing, E525 when there
            are fewer than five persons (or images, if persons are unknown).
    """
    parsed = parse_contest_metric(metric, truth.labels, exclusive=False)
    names = label_candidates(parsed)
    if method != AUTO and method not in names:
        raise OptionError("E204", f"the method {method!r} is none of {AUTO}, {', '.join(names)}, for {metric}")
    names = names if method == AUTO else tuple(dict.fromkeys((names[0], method)))
    by_name = members_by_name(members)
    views = tuple(MemberView(name, view) for name, member in by_name.items() for view in sorted(member.logits))
    new = stack_new_labels(applied_to, views, truth.labels)
    given = stack_labels(by_name, views, truth)
    repeats = 1 if given.applies.size > _MANY else repeats
    _notice_weak_truth(truth, listener)
    member_of = np.unique([one.member for one in views], return_inverse=True)[1]
    options = LabelOptions(mean_weights(by_name, views), parsed, seed, member_of)
    alone = score_label_members(options, views, given)
    with threadpool_limits(limits=1, user_api="blas"):
        data = average_label_folds(given, views, new, seed=seed, listener=listener)
        nested = _cross_validate(names, options, data, repeats, listener)
        fitted = fit_label_candidates(names, options, data)
        mix = label_mix_of(data, new, fitted, options, seed=seed) if new else None
        comparison = compare_label_candidates(nested, fitted, data, views, parsed, mix=mix, seed=seed)
    selected = comparison.selected if method == AUTO else method
    if mix is not None and mix.differs:
        notice_other_mix(mix, comparison, truth.labels, parsed, listener)
    expected = comparison.expected_gain
    return Learned(
        method=selected,
        metric=parsed,
        fitted=fitted[selected],
        candidates=fitted,
        member_views=views,
        labels=truth.labels,
        table=comparison.table,
        expected_gain=expected,
        members=alone,
        view_gains=measure_label_views(data, [one.view for one in views], options),
        reason=explain_selection(
            comparison.table, selected, parsed, expected_gain=expected if method == AUTO else None
        ),
        images=len(data.applies),
        persons=None if truth.persons is None else int(data.person.max()) + 1,
        folds=FOLDS,
        repeats=repeats,
        seed=seed,
    )


def _cross_validate(
    names: Sequence[str], options: LabelOptions, data: LabelData, repeats: int, listener: Listener
) -> dict[str, list[LabelAnswers]]:
    """Return each candidate's out-of-fold answers to all images, ``repeats`` times with other folds."""
    # stratified by the rarest label that applies: the folds of a frequent one are even anyway
    rarity = np.where(data.applies, data.applies.sum(axis=0), len(data.applies) + 1)
    strata = np.where(data.applies.any(axis=1), rarity.argmin(axis=1), data.applies.shape[1])
    found: dict[str, list[LabelAnswers]] = {name: [] for name in names}
    for repeat in range(repeats):
        p = {name: np.empty(data.applies.shape) for name in names}
        decided = {name: np.empty(data.applies.shape, dtype=bool) for name in names}
        for fold, (train, test) in enumerate(split_by_person(strata, data.person, seed=options.seed + repeat)):
            listener.progress("learn", repeat * FOLDS + fold, repeats * FOLDS)
            holdout = data.take(test)
            for name, fitted in fit_label_candidates(names, options, data.take(train)).items():
                p[name][test] = apply_labels(fitted, holdout.odds, holdout.logits)
                decided[name][test] = decided_by(fitted, p[name][test])
        for name in names:
            found[name].append(LabelAnswers(p[name], decided[name]))
    listener.progress("learn", repeats * FOLDS, repeats * FOLDS)
    return found


def _notice_weak_truth(truth: Truth, listener: Listener) -> None:
    notice_no_persons(truth, listener)
    assert truth.applies is not None
    absent = [name for name, count in zip(truth.labels.names, truth.applies.sum(axis=0), strict=True) if not count]
    if absent:
        some = f"{len(absent)} labels, such as {absent[0]}" if len(absent) > 1 else absent[0]
        listener.notice(Notice("I524", f"no images, so the bias stays 0: {some}"))
