"""Compare several members' predictions: unique names, common views, common images; select some images."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from ensemble.errors import PredictionError, enumerate_some
from ensemble.predictions.dataset import Predictions


def members_by_name(members: Sequence[Predictions]) -> dict[str, Predictions]:
    """Return the members by name, sorted by name.

    Raises:
        PredictionError: E501 when classes exclude each other for some members and not for others, E515 when two have
            the same name, E517 when there are none.
    """
    if not members:
        raise PredictionError("E517", "there are no members to blend")
    by_name = {member.member: member for member in sorted(members, key=lambda member: member.member)}
    if len(by_name) != len(members):
        names = [member.member for member in members]
        repeated = sorted({name for name in names if names.count(name) > 1})
        raise PredictionError("E515", f"{enumerate_some(repeated)} occurs more than once among {len(names)} members")
    several = [member.member for member in members if member.independent]
    one = [member.member for member in members if not member.independent]
    if several and one:
        raise PredictionError(
            "E501", f"{enumerate_some(several)} have a probability per label, {enumerate_some(one)} exclusive classes"
        )
    return by_name


_SELECT = "select views that all members have, such as --views identity=1, or predict the missing view"


def common_views(members: Sequence[Predictions], *, hint: str = _SELECT) -> list[str]:
    """Return the views of the first member, after checking that all members have the same views.

    Raises:
        PredictionError: E516 when the views of two members differ.
    """
    first, *others = members
    for other in others:
        difference = sorted(first.logits.keys() ^ other.logits.keys())
        if difference:
            owner = first if difference[0] in first.logits else other
            raise PredictionError(
                "E516",
                f"{first.member} and {other.member} were predicted with different views: only {owner.member} has "
                f"{difference[0]}",
                hint=hint,
            )
    return list(first.logits)


@dataclass(frozen=True, slots=True)
class CommonImages:
    """Members restricted to the images that none of them lacks, and the sorted ids of the images left out."""

    members: tuple[Predictions, ...]
    missing: tuple[str, ...]

    @property
    def independent(self) -> bool:
        """True if several labels may apply to an image."""
        return self.members[0].independent


def common_images(members: Sequence[Predictions], *, allow_missing: bool) -> CommonImages:
    """Restrict the members to the images that none of them lacks because it was unreadable.

    Raises:
        PredictionError: E534 when an image is missing and ``allow_missing`` is false.
    """
    missing = tuple(sorted({name for member in members for name in member.missing}))
    if missing and not allow_missing:
        names = enumerate_some(sorted(member.member for member in members if member.missing))
        raise PredictionError(
            "E534", f"{len(missing):,} images are missing in {names}: {enumerate_some(list(missing))}"
        )
    return CommonImages(tuple(_without(member, set(missing)) for member in members), missing)


def _without(member: Predictions, missing: set[str]) -> Predictions:
    if missing.isdisjoint(member.ids):
        return member
    rows = [row for row, name in enumerate(member.ids) if name not in missing]
    return replace(
        member,
        ids=tuple(member.ids[row] for row in rows),
        logits={view: values[rows] for view, values in member.logits.items()},
        filled=tuple(name for name in member.filled if name not in missing),
    )


def select_images(member: Predictions, ids: Sequence[str]) -> Predictions:
    """Return the predictions of some images, in their order.

    Raises:
        PredictionError: E504 when some have none.
    """
    place = {name: row for row, name in enumerate(member.ids)}
    lost = [name for name in ids if name not in place]
    if lost:
        message = f"{member.member} has no predictions of {len(lost):,} of {len(ids):,} images: {enumerate_some(lost)}"
        raise PredictionError("E504", message)
    rows = np.array([place[name] for name in ids], dtype=np.intp)
    return replace(
        member,
        ids=tuple(ids),
        logits={view: values[rows] for view, values in member.logits.items()},
        looks=None,
        filled=tuple(name for name in member.filled if name in set(ids)),
    )
