"""Run a fused file on the CPU."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from ensemble.arrays import Classes, Mask, Pixels
from ensemble.errors import DeployError, OptionError
from ensemble.fuse.fused_card import FusedCard, fused_card_of
from ensemble.fuse.graph import APPLIES, BOXES, CLASSES, IMAGES, MAPS, MEMBERS, PROBABILITIES
from ensemble.images.face_boxes import Box


@dataclass(frozen=True, slots=True, eq=False)
class FusedAnswers:
    """The answers for N images: ``probabilities`` ``(N, C)``, ``classes`` ``(N,)``, what ``applies`` ``(N, C)``.

    ``members`` ``(N, M, C)`` are the probabilities of each member, and ``maps`` ``(N, C, h, w)`` the class-activation
    maps of one, where the file has them.
    """

    probabilities: NDArray[np.float32]
    classes: Classes
    applies: Mask | None = None
    members: NDArray[np.float32] | None = None
    maps: NDArray[np.float32] | None = None


@dataclass(frozen=True, slots=True, eq=False)
class FusedSession:
    """A started fused file."""

    card: FusedCard
    runtime: Any = field(repr=False)

    def run(self, images: Pixels, boxes: Sequence[Box | None] | None = None) -> FusedAnswers:
        """Answer for upright RGB images of one size, ``(N, H, W, 3)`` uint8, with one box each if members need them.

        Raises:
            OptionError: E206 when members need the faces and there are no boxes.
        """
        feed: dict[str, NDArray[Any]] = {IMAGES: np.ascontiguousarray(images)}
        if self.card.takes_boxes:
            if boxes is None:
                raise OptionError("E206", "members of this file were trained on face crops and need face boxes")
            feed[BOXES] = box_array(boxes)
        names = [value.name for value in self.runtime.get_outputs()]
        found = dict(zip(names, self.runtime.run(None, feed), strict=True))
        return FusedAnswers(
            found[PROBABILITIES], found[CLASSES], found.get(APPLIES), found.get(MEMBERS), found.get(MAPS)
        )


def box_array(boxes: Sequence[Box | None]) -> NDArray[np.float32]:
    """Return the input ``boxes`` ``(N, 4)`` of a fused file: left, top, right, bottom in px, NaN without a face."""
    rows = [[np.nan] * 4 if box is None else [box.left, box.top, box.right, box.bottom] for box in boxes]
    return np.array(rows, dtype=np.float32).reshape(-1, 4)


def start_fused(data: bytes, path: Path, *, threads: int = 1) -> FusedSession:
    """Start the content of a fused file; ``path`` is for messages.

    Raises:
        DeployError: E807 when it is not a fused file, or onnxruntime cannot run it.
    """
    card = fused_card_of(data, path)
    settings = onnxruntime.SessionOptions()
    settings.intra_op_num_threads = threads
    settings.inter_op_num_threads = 1
    settings.log_severity_level = 3
    try:
        runtime = onnxruntime.InferenceSession(data, settings, providers=["CPUExecutionProvider"])
    except Exception as err:
        reason = (str(err).strip().splitlines() or [type(err).__name__])[0]
        raise DeployError("E807", f"{path.name}: onnxruntime cannot build it: {reason}", path=path) from err
    return FusedSession(card, runtime)
