"""Members from paths: folders of predictions, folders of such folders, and files made elsewhere."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path

from ensemble.errors import PredictionError, enumerate_some
from ensemble.foreign import SUFFIXES, Kind, read_foreign
from ensemble.labels import LabelSpace
from ensemble.predictions import Predictions, find_predictions, read_predictions


def read_members(paths: Iterable[Path], labels: LabelSpace, *, kind: Kind | None) -> list[Predictions]:
    """Read every member that the paths stand for; ``labels`` and ``kind`` are those of files made elsewhere.

    Raises:
        EnsError: as `read_foreign`, `find_predictions` and `read_predictions` do.
    """
    members: list[Predictions] = []
    for path in paths:
        if path.suffix.lower() in SUFFIXES and path.is_file():
            members.append(read_foreign(path, labels, kind=kind))
        else:
            members += [read_predictions(folder) for folder in find_predictions(path)]
    return members


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
