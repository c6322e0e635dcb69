"""The folds in which the members of out-of-fold predictions were trained."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from checkpoints.data.folds import Folds
from checkpoints.data.mask_contest import Row
from ensemble.arrays import Classes
from ensemble.errors import DataError, enumerate_some
from ensemble.predictions.dataset import Predictions

_SAME_FOLDS = "leave one of them out of the recipe, or train it again in the folds of the other: --folds folds.csv"


def fold_of_images(members: Sequence[Predictions]) -> tuple[str, dict[str, int]]:
    """Return the first group of members that say their folds, and the fold of each of its images.

    Raises:
        DataError: E392 when no member has a fold number, when two groups have other folds, or when a fold is missing.
    """
    found: dict[str, dict[str, int]] = {}
    for member in members:
        if member.fold is not None and member.repeat == 0:
            found.setdefault(member.group, {}).update(dict.fromkeys(member.ids, member.fold))
    if not found:
        message = "no member of the out-of-fold predictions says its fold"
        raise DataError("E392", message, hint="name the folds of the members with --folds")
    (first, expected), *others = found.items()
    for group, folds in others:
        if folds != expected:
            message = f"{first} and {group} have other folds, so no fold is unseen by both"
            raise DataError("E392", message, hint=_SAME_FOLDS)
    _require_all(first, expected.values())
    return first, expected


def _require_all(group: str, folds: Iterable[int]) -> int:
    """Return the number of folds, none of which may be missing."""
    known = sorted(set(folds))
    count = known[-1] + 1 if known else 0
    if count < 2 or len(known) != count:
        message = f"{group} has the folds {', '.join(map(str, known))}, and a student needs all of them, two or more"
        raise DataError("E392", message, hint="give the folders of all folds with --oof, such as runs/a/oof")
    return count


def folds_of_members(members: Sequence[Predictions], rows: Sequence[Row]) -> Folds:
    """Return the folds in which the members of out-of-fold predictions were trained.

    Raises:
        DataError: E392 when no member has a fold number, when two groups have other folds, when a fold is missing, or
            when two images of a person (or other group) are in two folds.
    """
    first, expected = fold_of_images(members)
    of_person: dict[str, int] = {}
    lost = [row.id for row in rows if row.id not in expected]
    if lost:
        message = f"{first} has no fold for {len(lost):,} images: {enumerate_some(lost)}"
        hint = "give the out-of-fold predictions of every fold with --oof, and the TRAIN_DIR that the members had"
        raise DataError("E392", message, hint=hint)
    for row in rows:
        if of_person.setdefault(row.person, expected[row.id]) != expected[row.id]:
            hint = "train the members again in folds by person (or group), or name such folds with --folds"
            raise DataError("E392", f"{row.person} is in more than one fold of {first}", hint=hint)
    return Folds(_require_all(first, of_person.values()), of_person)


def folds_of_images(folds: Folds, rows: Sequence[Row]) -> Classes:
    """Return the fold ``(N,)`` of each row."""
    return np.array([folds.of_person[row.person] for row in rows], dtype=np.intp)


def require_same_folds(folds: Folds, members: Sequence[Predictions], rows: Sequence[Row]) -> None:
    """Check that members which say their fold held out what ``folds`` holds out.

    Raises:
        DataError: E392 when one did not.
    """
    fold_of: Mapping[str, int] = {row.id: folds.of_person[row.person] for row in rows}
    for member in members:
        if member.fold is None or member.repeat:
            continue
        if any(fold_of.get(name, member.fold) != member.fold for name in member.ids):
            message = f"{member.member} held out other images than fold {member.fold}"
            raise DataError("E392", message, hint="leave out --folds: the folds are then those of the members")
