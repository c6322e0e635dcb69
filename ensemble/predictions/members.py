"""Several members' predictions side by side: names, common views, common images."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from ensemble.errors import PredictionError, enumerate_some
from ensemble.predictions.dataset import Predictions


def members_by_name(members: Sequence[Predictions]) -> dict[str, Predictions]:
    """The members in the order of their names, whatever order they came in.

    Raises:
        PredictionError: E515 when two have the same name, E517 when there are none.
    """
    if not members:
        raise PredictionError("E517", "there is nothing to blend: no members")
    by_name = {member.member: member for member in sorted(members, key=lambda member: member.member)}
    if len(by_name) != len(members):
        names = [member.member for member in members]
        repeated = sorted({name for name in names if names.count(name) > 1})
        raise PredictionError("E515", f"{enumerate_some(repeated)} comes more than once among {len(names)} members")
    return by_name


def common_views(members: Sequence[Predictions]) -> list[str]:
    """The views of the first member, which all the others must have.

    Raises:
        PredictionError: E516 when another member has others.
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
                hint="name views that all members have with --views identity=1, or predict the others with --tta too",
            )
    return list(first.logits)


def shared_images(members: Sequence[Predictions], *, allow_missing: bool) -> tuple[list[Predictions], tuple[str, ...]]:
    """The members with the images that none of them lacks, and the ids of the others, sorted.

    Raises:
        PredictionError: E534 when images are missing, as they could not be read, and that is not allowed.
    """
    missing = tuple(sorted({name for member in members for name in member.missing}))
    if missing and not allow_missing:
        lacking = enumerate_some(sorted(member.member for member in members if member.missing))
        raise PredictionError(
            "E534", f"{len(missing):,} images are missing in {lacking}: {enumerate_some(list(missing))}"
        )
    return [_without(member, set(missing)) for member in members], missing


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
