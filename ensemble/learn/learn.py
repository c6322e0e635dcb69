"""Learn: which way of blending is worth it, judged on people it has not seen, and only if it clearly beats the mean."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial

import numpy as np
from threadpoolctl import threadpool_limits

from ensemble.arrays import Floats
from ensemble.blend.pooling import log_softmax
from ensemble.errors import DataError, OptionError, TooLittleTruthError, enumerate_some
from ensemble.events import SILENT, Listener, Notice
from ensemble.ids import join_rows
from ensemble.labels import LabelSpace
from ensemble.learn.candidates import Fitted, candidates_for, fit_candidates
from ensemble.learn.cross_validation import FOLDS, Answers, Ballots, answer, cross_validate, resample, score
from ensemble.learn.likelihood import FEW
from ensemble.learn.objective import Measure, parse_measure
from ensemble.learn.selection import choose, expected_gain
from ensemble.learn.view_gains import ViewGain, measure_views, render_views
from ensemble.metrics import interval
from ensemble.predictions.dataset import Predictions, require_finite
from ensemble.predictions.members import members_by_name
from ensemble.predictions.truth import Truth
from ensemble.text_table import render_columns

AUTO = "auto"
_NO_WEIGHT = 1e-6


@dataclass(frozen=True, slots=True)
class Voter:
    """One view of one member."""

    member: str
    view: str

    def __str__(self) -> str:
        return f"{self.member}/{self.view}"


@dataclass(frozen=True, slots=True)
class Row:
    """How one candidate did.

    ``nested`` is its mean score over repeated cross-validation, in which everything about it was fitted to other people
    than it was scored on, and ``low`` to ``high`` the 95 % bootstrap interval. ``gain`` is over the mean of
    probabilities and ``error`` its standard error, from the same resamples for both. ``in_sample`` is the score on the
    images it was fitted to, and ``optimism`` what that is too good by. For the metric ``nll`` every score is the mean
    log-likelihood, so that higher is always better. ``weights`` are the shares of members, together one.
    """

    candidate: str
    nested: float
    low: float
    high: float
    gain: float
    error: float
    in_sample: float
    weights: Mapping[str, float]

    @property
    def optimism(self) -> float:
        """How much better it looks on its own images than on others."""
        return self.in_sample - self.nested


@dataclass(frozen=True, slots=True, eq=False)
class Learned:
    """What was learned: the candidate ``method``, fitted to all images, and the table that justifies it.

    ``fitted`` belongs to the voters in the order of ``voters`` and to the classes in the order of ``labels``. ``views``
    says what each view beside the first is worth in the plain mean. ``expected`` is the gain over the mean that `auto`
    promises on other people (see `ensemble.learn.selection`): less than that of the chosen row, which was chosen for
    its gain.
    """

    method: str
    metric: Measure
    fitted: Fitted
    voters: tuple[Voter, ...]
    labels: LabelSpace
    table: tuple[Row, ...]
    expected: float
    views: tuple[ViewGain, ...]
    why: str
    images: int
    persons: int | None
    folds: int
    repeats: int
    seed: int

    def table_as_dicts(self) -> list[dict[str, object]]:
        """The table as JSON-ready values."""
        return [asdict(row) | {"optimism": row.optimism} for row in self.table]

    def render(self) -> str:
        """The table of all candidates and the reason for the choice, for people."""
        basis = f"{self.images:,} images" + ("" if self.persons is None else f" of {self.persons:,} persons")
        header = ("  candidate", self.metric.title, "gain", "in sample", "optimism", "weights")
        rows = [
            (
                f"{'*' if row.candidate == self.method else ' '} {row.candidate}",
                f"{row.nested:.4f} [{row.low:.3f}, {row.high:.3f}]",
                f"{row.gain:+.4f} ± {row.error:.4f}",
                row.in_sample,
                f"{row.optimism:+.4f}",
                render_weights(row.weights),
            )
            for row in self.table
        ]
        return (
            f"{basis}; {self.folds} folds, {self.repeats} times; 95 % intervals, gains ± one standard error\n"
            + render_columns(header, rows)
            + f"\n{self.why}\n"
            + (render_views(self.views, self.metric.title) + "\n") * bool(self.views)
        )


def learn(
    members: Sequence[Predictions],
    truth: Truth,
    *,
    method: str = AUTO,
    metric: str = "macro-f1",
    repeats: int = 2,
    seed: int = 0,
    listener: Listener = SILENT,
) -> Learned:
    """Learn how to blend members from their predictions of images that none of them was trained on.

    ``auto`` compares all candidates for the metric (see `ensemble.learn.candidates`) by cross-validation in which no
    person is on both sides, and takes the one whose gain over the mean of probabilities, less one standard error, is
    largest; where none is above 0 it keeps the mean. A named method is taken as it is, and compared with the mean
    all the same. The result depends on no order of members, views or rows, and not on the number of cores.

    Raises:
        DataError: E330 when the truth is not of the members' images.
        OptionError: E204 when the method or the metric is not known.
        PredictionError: E501 when classes differ, E505 when a prediction is not finite, E515 when a member comes twice,
            E525 when there are fewer than five people, or images where people are not known.
    """
    measure = parse_measure(metric, truth.labels)
    names = _candidates(method, candidates_for(measure, truth.labels), metric)
    by_name = members_by_name(members)
    voters = tuple(Voter(name, view) for name, member in by_name.items() for view in sorted(member.logits))
    ballots = _collect(by_name, voters, truth)
    _notice_weak_truth(truth, listener)
    shares = _equal_shares(by_name, voters)
    fit = partial(
        fit_candidates,
        names,
        mean=shares,
        labels=truth.labels,
        owners=np.unique([voter.member for voter in voters], return_inverse=True)[1],
        score=None if measure.score is None else measure.of_answers,
        seed=seed,
    )
    # on such matrices more threads take three times the processor time and longer, and round in another order
    with threadpool_limits(limits=1, user_api="blas"):
        nested = cross_validate(fit, ballots, repeats=repeats, seed=seed, listener=listener)
        fitted = fit(ballots.log_p, ballots.truth)
        table, expected = _tabulate(nested, fitted, ballots, voters, measure, seed)
    chosen = _best(table).candidate if method == AUTO else method
    return Learned(
        method=chosen,
        metric=measure,
        fitted=fitted[chosen],
        voters=voters,
        labels=truth.labels,
        table=table,
        expected=expected,
        views=measure_views(ballots, [v.view for v in voters], shares, measure, seed=seed),
        why=_explain(table, chosen, measure, expected=None if method != AUTO else expected),
        images=len(ballots.truth),
        persons=None if truth.persons is None else int(ballots.owner.max()) + 1,
        folds=FOLDS,
        repeats=repeats,
        seed=seed,
    )


def _candidates(method: str, names: tuple[str, ...], metric: str) -> tuple[str, ...]:
    if method == AUTO:
        return names
    if method not in names:
        raise OptionError("E204", f"the method {method!r} is none of {AUTO}, {', '.join(names)}, for {metric}")
    return names[:1] if method == names[0] else (names[0], method)


def _collect(by_name: Mapping[str, Predictions], voters: Sequence[Voter], truth: Truth) -> Ballots:
    """Everything in the order of the sorted ids and the truth's classes, so that no other order is of consequence."""
    order = sorted(range(len(truth.ids)), key=truth.ids.__getitem__)
    ids = [truth.ids[row] for row in order]
    owners = np.array(ids if truth.persons is None else [truth.persons[row] for row in order])
    owner = np.unique(owners, return_inverse=True)[1]
    count = len(np.unique(owner))
    if count < FOLDS:
        kind = "images" if truth.persons is None else "persons"
        raise TooLittleTruthError(
            "E525", f"learning needs {kind} to fit to and others to judge by, at least {FOLDS}; got {count}"
        )
    log_p = np.empty((len(voters), len(ids), len(truth.labels)))
    for i, voter in enumerate(voters):
        member = by_name[voter.member]
        rows = join_rows(ids, member.ids, complain=partial(_not_the_truth, voter.member))
        columns = truth.labels.permutation(member.labels, owner=voter.member)
        require_finite(member, voter.view)
        log_p[i] = log_softmax(member.logits[voter.view][rows[:, np.newaxis], columns])
    return Ballots(log_p, truth.classes[order], owner)


def _equal_shares(by_name: Mapping[str, Predictions], voters: Sequence[Voter]) -> Floats:
    """Shares ``(V,)`` that count groups alike, members alike in their group, and views alike in their member."""
    groups = [member.group for member in by_name.values()]
    members = (by_name[voter.member] for voter in voters)
    return np.array([1 / (len(set(groups)) * groups.count(m.group) * len(m.logits)) for m in members])


def _notice_weak_truth(truth: Truth, listener: Listener) -> None:
    if truth.persons is None:
        listener.notice(Notice("W523", "the truth has no column person: images are split and resampled one by one"))
    images = np.bincount(truth.classes, minlength=len(truth.labels))
    counted = list(zip(truth.labels.names, images.tolist(), strict=True))
    few = [f"{name} ({count})" for name, count in counted if 0 < count < FEW]
    none = [name for name, count in counted if count == 0]
    if few:
        listener.notice(Notice("I524", f"fewer than {FEW} images, so their bias is held back: {enumerate_some(few)}"))
    if none:
        listener.notice(Notice("I524", f"no image, so their bias stays 0: {enumerate_some(none)}"))


def _tabulate(
    nested: Mapping[str, Answers],
    fitted: Mapping[str, Fitted],
    ballots: Ballots,
    voters: Sequence[Voter],
    measure: Measure,
    seed: int,
) -> tuple[tuple[Row, ...], float]:
    """A row for every candidate, the mean first, as the others' gains are over it; and the gain of choosing."""
    value = partial(score, measure, ballots)
    rows: list[Row] = []
    drawn, left_out = (
        np.stack([resample(measure, ballots, answers, seed=seed, left_out=out) for answers in nested.values()])
        for out in (False, True)
    )
    for (name, answers), resampled in zip(nested.items(), drawn, strict=True):
        low, high = interval(resampled)
        nested_score = value(answers)
        rows.append(
            Row(
                candidate=name,
                nested=nested_score,
                low=low,
                high=high,
                gain=nested_score - (rows[0].nested if rows else nested_score),
                error=float((resampled - drawn[0]).std(ddof=1)),
                in_sample=value(answer(fitted[name], ballots)),
                weights={str(v): float(share) for v, share in zip(voters, fitted[name].weights, strict=True)},
            )
        )
    return tuple(rows), expected_gain(drawn, left_out)


def _best(table: Sequence[Row]) -> Row:
    return table[choose([row.gain for row in table], [row.error for row in table])]


def _explain(table: Sequence[Row], chosen: str, measure: Measure, *, expected: float | None) -> str:
    """What was chosen, why, why members have no weight, and the gain to expect unless the choice was the user's."""
    row = next(row for row in table if row.candidate == chosen)
    gain = f"{row.gain:+.4f} ± {row.error:.4f}"
    if expected is None:
        text = f"{chosen} was asked for; on people it was not fitted to its {measure.title} is {row.nested:.4f}"
        text += f", {gain} against the mean of probabilities" * (chosen != table[0].candidate)
    elif chosen == table[0].candidate:
        best = max(table[1:], key=lambda row: row.gain - row.error)
        text = (
            f"The mean of probabilities is kept: no candidate's gain exceeds its standard error, and the best, "
            f"{best.candidate}, changes {measure.title} by {best.gain:+.4f} ± {best.error:.4f}"
        )
    else:
        text = (
            f"{chosen} is chosen: on people it was not fitted to it changes {measure.title} by {gain} against the "
            "mean of probabilities, more than its standard error"
        )
    text = f"{text}{_explain_idle(row)}."
    if expected is not None and chosen != table[0].candidate:
        text += (
            f" The best of {len(table)} is also the luckiest: chosen by some people and judged by others, the gain is "
            f"{expected:+.4f}."
        )
    return text


def _explain_idle(row: Row) -> str:
    """Which members have no weight in any view, and why."""
    share_of: dict[str, float] = {}
    for name, share in row.weights.items():
        member = name.rpartition("/")[0]
        share_of[member] = share_of.get(member, 0) + share
    idle = [member for member, share in share_of.items() if share < _NO_WEIGHT]
    if not idle:
        return ""
    cause = "adding it never helped" if row.candidate == "greedy" else "any weight would lower the likelihood"
    return f"; {enumerate_some(idle)} {'has' if len(idle) == 1 else 'have'} no weight, as beside the others {cause}"


def render_weights(weights: Mapping[str, float]) -> str:
    """The largest shares, or that all are equal, for people."""
    if max(weights.values()) - min(weights.values()) < _NO_WEIGHT:
        return "equal"
    largest = sorted(weights.items(), key=lambda item: (-item[1], item[0]))
    return enumerate_some([f"{name} {share:.2f}" for name, share in largest if share > _NO_WEIGHT], limit=4)


def _not_the_truth(owner: str, difference: str) -> DataError:
    return DataError("E330", f"{owner} does not predict the truth's images: it {difference}")
