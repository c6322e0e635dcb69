"""The inputs of a run: its images, the face boxes that its models need, and the views."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ensemble.errors import OptionError
from ensemble.events import Listener, Notice
from ensemble.images.face_boxes import Box, Boxes
from ensemble.images.listing import Listing
from ensemble.images.views import View
from ensemble.runtime.model_file import ModelFile


@dataclass(frozen=True, slots=True)
class Inputs:
    """The inputs of a run: every view of every listed image.

    ``boxes[i]`` is the face in image i, for models with a face crop; None where no model has one.
    """

    listing: Listing
    boxes: tuple[Box | None, ...] | None = None
    views: tuple[View, ...] = ()


def select_boxes(
    models: Sequence[ModelFile], boxes: Boxes | None, listing: Listing, listener: Listener
) -> tuple[Box | None, ...] | None:
    """Return the face in each listed image, if a model needs it.

    Raises:
        OptionError: E206 when a model needs it and there are no boxes.
        DataError: E351 when an image has no entry.
    """
    wanting = [model for model in models if model.card.preprocess.face is not None]
    if not wanting:
        if boxes is not None:
            listener.notice(Notice("I352", "no model uses the face boxes"))
        return None
    if boxes is None:
        raise OptionError("E206", f"{wanting[0].card.member} was trained on face crops and needs face boxes")
    return boxes.select(listing.ids)
