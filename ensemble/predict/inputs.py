"""The face boxes that the models of a run need."""

from __future__ import annotations

from collections.abc import Sequence

from ensemble.errors import OptionError
from ensemble.events import Listener, Notice
from ensemble.images.face_boxes import Box, Boxes
from ensemble.images.listing import Listing
from ensemble.runtime.model_file import ModelFile


def select_boxes(
    models: Sequence[ModelFile], boxes: Boxes | None, listing: Listing, listener: Listener
) -> tuple[Box | None, ...] | None:
    """The face in each listed image, when a model wants it.

    Raises:
        OptionError: E206 when a model wants it and there are no boxes.
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
