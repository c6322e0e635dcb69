"""Members from paths: folders of predictions, folders of such folders, and files made elsewhere."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

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
