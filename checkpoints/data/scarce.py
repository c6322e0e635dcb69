"""Say what a training set has too little of to be learned or scored: classes, images of a class, people."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence

from checkpoints.data.columns import IMAGES, Unit
from checkpoints.data.mask_contest import Row
from ensemble.card import Activation
from ensemble.errors import cut_text, enumerate_some
from ensemble.events import SILENT, Listener, Notice
from ensemble.labels import LabelSpace

_LIMIT = 3
_NOTHING = "nothing can be learned from them"


def tell_one_class(
    rows: Sequence[Row], labels: LabelSpace, activation: Activation, *, listener: Listener = SILENT
) -> None:
    """Say (W368) that all images are of one class, of one value on an axis, or have the same labels, if that is so."""
    for message in _all_alike(rows, labels, activation):
        listener.notice(Notice("W368", message))


def tell_scarce(rows: Sequence[Row], labels: LabelSpace, unit: Unit, *, listener: Listener = SILENT) -> None:
    """Say (W368) which classes have no image, one image or one person, and where all images are of one person.

    That all are of one class is said by `tell_one_class`.
    """
    for message in (*_of_classes(rows, labels), *_of_people(rows, labels, unit)):
        listener.notice(Notice("W368", message))


def _all_alike(rows: Sequence[Row], labels: LabelSpace, activation: Activation) -> Iterator[str]:
    every = f"all {len(rows):,} images"
    if activation == "sigmoid":
        sets = {row.present for row in rows}
        if len(sets) == 1:
            names = [labels.names[label] for label in next(iter(sets)) or ()]
            yield f"{every} have the same labels ({cut_text(', '.join(names), 80) or 'none'}): {_NOTHING}"
        return
    classes = {row.label for row in rows}
    if len(classes) == 1:
        yield f"{every} are of one class, {labels.names[classes.pop()]}: {_NOTHING}"
        return
    for axis in labels.axes if len(labels.axes) > 1 else ():
        values = set(labels.along(axis.name, [row.label for row in rows]).tolist())
        if len(values) == 1:
            yield f"{every} are {axis.values[values.pop()]} on the axis {axis.name}: {_NOTHING} about it"


def _of_classes(rows: Sequence[Row], labels: LabelSpace) -> Iterator[str]:
    several = rows[0].present is not None
    word = "labels" if several else "classes"
    count = Counter(label for row in rows for label in _labels(row))
    if len(count) < 2 and not several:
        return  # that is said already
    for images, what in ((0, "no image"), (1, "one image, which cannot be both trained on and held out")):
        found = [name for label, name in enumerate(labels.names) if count[label] == images]
        if found:
            yield f"{len(found):,} of {len(labels):,} {word} have {what}: {enumerate_some(found, limit=_LIMIT)}"
    everywhere = [labels.names[label] for label, images in sorted(count.items()) if images == len(rows)]
    if several and everywhere and len(everywhere) < len(labels):
        yield f"labels that all images have: {enumerate_some(everywhere, limit=_LIMIT)}"


def _of_people(rows: Sequence[Row], labels: LabelSpace, unit: Unit) -> Iterator[str]:
    people = {row.person for row in rows}
    if unit == IMAGES:
        return
    if len(people) == 1:
        yield f"all {len(rows):,} images are of one {unit.singular}: no fold can hold out others"
        return
    of_class: dict[int, set[str]] = defaultdict(set)
    images = Counter(label for row in rows for label in _labels(row))
    for row in rows:
        for label in _labels(row):
            of_class[label].add(row.person)
    # a class of one image is said already
    found = [name for i, name in enumerate(labels.names) if len(of_class[i]) == 1 and images[i] > 1]
    if found:
        word = "classes" if rows[0].present is None else "labels"
        yield (
            f"{len(found):,} of {len(labels):,} {word} have images of one {unit.singular} only, which cannot be both "
            f"trained on and held out: {enumerate_some(found, limit=_LIMIT)}"
        )


def _labels(row: Row) -> tuple[int, ...]:
    return (row.label,) if row.present is None else row.present
