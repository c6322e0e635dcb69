"""Compare two submissions row by row."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from ensemble.errors import PredictionError
from ensemble.ids import join_rows
from ensemble.labels import LabelSpace
from ensemble.submission.sheet import Decisions, Submission
from ensemble.submission.write import decide_labels
from ensemble.text.text_table import render_columns


@dataclass(frozen=True, slots=True)
class Diff:
    """The differences between two submissions.

    ``axes`` counts the rows that differ on each axis, ``before`` and ``after`` the images of each class.
    """

    rows: int
    changed: int
    axes: Mapping[str, int]
    classes: tuple[str, ...]
    before: tuple[int, ...]
    after: tuple[int, ...]


def diff_submissions(a: Submission, b: Submission) -> Diff:
    """Compare two submissions image by image: their classes, or label by label where several may apply.

    Raises:
        PredictionError: E504 when they are for different images.
    """
    rows = join_rows(
        a.ids, b.ids, complain=lambda d: PredictionError("E504", f"the two are for different images: the second {d}")
    )
    labels, count = a.labels, len(a.labels)
    if a.independent or b.independent:
        return _diff_labels(decide_labels(a, empty_cells=True), decide_labels(b, empty_cells=True)[rows], labels)
    before, after = a.classes, b.classes[rows]
    return Diff(
        rows=len(a),
        changed=int((before != after).sum()),
        axes={x.name: int((labels.along(x.name, before) != labels.along(x.name, after)).sum()) for x in labels.axes},
        classes=labels.names,
        before=tuple(np.bincount(before, minlength=count).tolist()),
        after=tuple(np.bincount(after, minlength=count).tolist()),
    )


def _diff_labels(before: Decisions, after: Decisions, labels: LabelSpace) -> Diff:
    """Return the rows whose labels differ, in all and per label."""
    differ = before != after
    return Diff(
        rows=len(before),
        changed=int(differ.any(axis=1).sum()),
        axes=dict(zip(labels.names, differ.sum(axis=0).tolist(), strict=True)),
        classes=labels.names,
        before=tuple(before.sum(axis=0).tolist()),
        after=tuple(after.sum(axis=0).tolist()),
    )


def render_diff(diff: Diff) -> str:
    """Render the number of changed rows, in total and per axis, and the class counts before and after."""
    share = f"{diff.changed:,} of {diff.rows:,} rows differ ({diff.changed / max(1, diff.rows):.2%})"
    axes = ", ".join(f"{name} {count:,}" for name, count in diff.axes.items())
    mix = [
        (number, name, before, after, f"{after - before:+,}")
        for number, (name, before, after) in enumerate(zip(diff.classes, diff.before, diff.after, strict=True))
    ]
    return f"{share}; by axis: {axes}\n\n" + render_columns(("class", "name", "before", "after", "change"), mix)


def render_agreement(diffs: Mapping[str, Diff]) -> str:
    """Render the agreement of one submission with each of several others, over all rows and per axis, best first."""
    axes = tuple(next(iter(diffs.values())).axes)
    rows = [
        (name, *(f"{1 - count / max(1, diff.rows):.2%}" for count in (diff.changed, *diff.axes.values())))
        for name, diff in sorted(diffs.items(), key=lambda item: item[1].changed)
    ]
    return render_columns(("agrees with", "rows", *axes), rows)
