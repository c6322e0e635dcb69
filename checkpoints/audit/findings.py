"""The findings of an audit: one row of the table each, and the label fixes that they suggest."""

from __future__ import annotations

import csv
import io
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from checkpoints.audit.label_errors import ABSENT_PRESENT
from checkpoints.data.dataset import Dataset
from checkpoints.data.mask_contest import Row
from ensemble.labels import SEPARATOR

FindingKind = Literal["label", "leak", "folds", "duplicate", "outlier", "unreadable"]
KINDS: tuple[FindingKind, ...] = ("label", "leak", "folds", "duplicate", "outlier", "unreadable")
SOURCE = "audit"
SAME_FILE = "the same file"
_HEADER = ("kind", "score", "id", "group", "axis", "given", "suggested", "other", "why")


@dataclass(frozen=True, slots=True)
class Finding:
    """One finding about the image ``id``.

    ``label``: ``given`` on ``axis`` is probably ``suggested``. ``leak``: a copy of the evaluation image ``other``.
    ``folds``: a copy of ``other``, which another fold holds out. ``duplicate``: another copy of the training
    image ``other``. ``sure`` findings become label fixes.
    """

    kind: FindingKind
    score: float
    id: str
    group: str = ""
    axis: str = ""
    given: str = ""
    suggested: str = ""
    other: str = ""
    why: str = ""
    sure: bool = False


def findings_table(findings: Sequence[Finding]) -> bytes:
    """Return the findings as a CSV table, one row each."""
    sink = io.StringIO()
    writer = csv.writer(sink, lineterminator="\n")
    writer.writerow(_HEADER)
    for one in findings:
        cells = (
            one.kind,
            f"{one.score:.4f}",
            one.id,
            one.group,
            one.axis,
            one.given,
            one.suggested,
            one.other,
            one.why,
        )
        writer.writerow(cells)
    return sink.getvalue().encode()


def fixes_table(data: Dataset, findings: Sequence[Finding]) -> tuple[bytes, int]:
    """Return the sure findings as a CSV of label fixes, and how many there are; the surest come first.

    A gender that is wrong for a person, and a person's images without a mask and with a badly worn one that are
    exchanged, are one fix; everything else is the class of one image. Copies are dropped.
    """
    rows = {row.id: row for row in data.rows}
    lines: dict[tuple[str, str], tuple[str, float, str]] = {}
    wrong: dict[str, dict[str, Finding]] = defaultdict(dict)
    for one in findings:
        if one.sure and one.kind == "label":
            wrong[one.id][one.axis] = one
        elif one.sure:
            lines.setdefault(
                (one.id, "drop"), ("", one.score, f"{one.why} {'as' if one.why == SAME_FILE else 'of'} {one.other}")
            )
    of_person: dict[str, list[str]] = defaultdict(list)
    for name in wrong:
        of_person[rows[name].person].append(name)
    images = Counter(row.person for row in data.rows)
    for person, names in of_person.items():
        left = _person_fixes(data, person, names, wrong, lines, images[person]) if data.is_contest else names
        for name in left:
            mine = wrong[name]
            why = ", ".join(f"{axis}: {one.given} -> {one.suggested}" for axis, one in mine.items())
            score = max(one.score for one in mine.values())
            lines[name, "label"] = (_new_label(data, rows[name], mine), score, why)
    sink = io.StringIO()
    writer = csv.writer(sink, lineterminator="\n")
    writer.writerow(("id", "field", "value", "source", "score", "why"))
    for (name, field), (value, score, why) in sorted(lines.items(), key=lambda item: (-item[1][1], item[0])):
        writer.writerow((name, field, value, SOURCE, f"{score:.4f}", why))
    return sink.getvalue().encode(), len(lines)


def _person_fixes(
    data: Dataset,
    person: str,
    names: Sequence[str],
    wrong: Mapping[str, Mapping[str, Finding]],
    lines: dict[tuple[str, str], tuple[str, float, str]],
    images: int,
) -> list[str]:
    """Add the fixes of a whole person, and return the images that need one of their own."""
    if any("age" in wrong[name] for name in names):
        return list(names)  # a class replaces all other fixes of an image, so it has to hold all of them
    genders = {wrong[name]["gender"].suggested for name in names if "gender" in wrong[name]}
    whole = sum("gender" in wrong[name] for name in names) == images and len(genders) == 1
    masks = {
        (wrong[n]["mask"].given, wrong[n]["mask"].suggested): wrong[n]["mask"] for n in names if "mask" in wrong[n]
    }
    _, incorrect, none = data.labels.axes[0].values
    swapped = set(masks) == {(incorrect, none), (none, incorrect)}
    if (genders and not whole) or (masks and not swapped):
        return list(names)
    if whole:
        one = next(wrong[name]["gender"] for name in names if "gender" in wrong[name])
        lines[person, "gender"] = (one.suggested, one.score, f"gender: {one.given} -> {one.suggested}")
    if swapped:
        score = min(one.score for one in masks.values())
        lines[person, "swap"] = ("normal<->incorrect_mask", score, "the two images are exchanged")
    return []


def _new_label(data: Dataset, row: Row, wrong: Mapping[str, Finding]) -> str:
    if row.present is not None:
        present = {data.labels.names[label] for label in row.present}
        for name, one in wrong.items():
            present = present | {name} if one.suggested == ABSENT_PRESENT[1] else present - {name}
        return "|".join(sorted(present))
    values = (
        data.labels.names[row.label].split(SEPARATOR) if len(data.labels.axes) > 1 else [data.labels.names[row.label]]
    )
    for place, axis in enumerate(data.labels.axes):
        if axis.name in wrong:
            values[place] = wrong[axis.name].suggested
    return SEPARATOR.join(values)
