"""A fused file as a model whose answers are explained."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ensemble.analysis.map_source import Evidence, MapInput
from ensemble.card import Activation, Preprocess
from ensemble.errors import DeployError
from ensemble.events import SILENT, Listener, Notice
from ensemble.fuse.fused_session import FusedSession, start_fused
from ensemble.labels import LabelSpace
from ensemble.runtime.machine import available_cores


@dataclass(frozen=True, slots=True, eq=False)
class FusedMapSource:
    """A fused file with maps as a `MapSource`: its answers are the ensemble's, its maps those of one member."""

    session: FusedSession
    name: str
    preprocess: Preprocess
    device: str = "cpu"

    @property
    def labels(self) -> LabelSpace:
        """The classes, in the order of the columns."""
        return self.session.card.recipe.labels

    @property
    def activation(self) -> Activation:
        """``sigmoid`` if several labels may apply."""
        return self.session.card.recipe.activation

    @property
    def takes_boxes(self) -> bool:
        """True if a member needs the face in each image."""
        return self.session.card.takes_boxes

    def predict(self, inputs: Sequence[MapInput]) -> Evidence:
        """Answer for images of any size, one after the other."""
        found = [self.session.run(one.photo[np.newaxis], [one.box]) for one in inputs]
        p = np.concatenate([one.probabilities for one in found]).astype(np.float64)
        chosen = np.concatenate([one.classes for one in found]).astype(np.intp)
        applies = None
        if self.activation == "sigmoid":
            stated = [one.applies for one in found if one.applies is not None]
            applies = np.concatenate(stated) if stated else p >= 0.5  # without thresholds as for a member
        maps = np.concatenate([one.maps for one in found if one.maps is not None]).astype(np.float64)
        return Evidence(p, chosen, applies, lambda places, classes: maps[places, classes])


def start_fused_maps(path: Path, *, listener: Listener = SILENT) -> FusedMapSource:
    """Start a fused file that gives maps.

    Raises:
        DeployError: E807 when the file is not a fused one, E840 when it has no maps.
    """
    session = start_fused(path.read_bytes(), path, threads=available_cores())
    maps = session.card.maps
    if maps is None:
        raise DeployError("E840", f"{path.name} gives no class-activation maps", path=path)
    (member,) = (one for one in session.card.members if one.name == maps.member)
    said = f"the answers are those of {path.name}, the maps those of {maps.member} ({member.share:.0%} of the vote)"
    listener.notice(Notice("I840", said))
    return FusedMapSource(session, path.stem, member.card.preprocess)
