"""The inputs of a run: its images, the face boxes that its models need, and the views."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ensemble.errors import DataError, OptionError
from ensemble.events import Listener, Notice
from ensemble.images.decode import name_image, read_size
from ensemble.images.face_alignment import require_points
from ensemble.images.face_boxes import Box, Boxes
from ensemble.images.listing import Listing
from ensemble.images.views import View
from ensemble.runtime.model_file import ModelFile

_TRIED = 32  # boxes that are compared with their images at the start


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
        DataError: E351 when an image has no entry, E354 when a box was made for another image, E380 when a
            face has no points and a model aligns faces.
    """
    wanting = [model for model in models if model.card.preprocess.face is not None]
    if not wanting:
        if boxes is not None:
            listener.notice(Notice("I352", "no model uses the face boxes"))
        return None
    if boxes is None:
        raise OptionError("E206", f"{wanting[0].card.member} was trained on face crops and needs face boxes")
    found = boxes.select(listing.ids)
    for model in wanting:
        require_points(model.card.preprocess.face, listing.ids, found)
    _try_some(found, listing, listener)
    return found


def _try_some(boxes: Sequence[Box | None], listing: Listing, listener: Listener) -> None:
    """Compare some boxes with their images before anything is computed; each is compared again when it is used."""
    unsized = sum(box is not None and box.size is None for box in boxes)
    if unsized:
        message = f"{unsized:,} face boxes do not say how large their images were; only their place is checked"
        listener.notice(Notice("W355", message))
    if listing.remote:
        return
    faces = [row for row, box in enumerate(boxes) if box is not None]
    for row in faces[:: max(1, len(faces) // _TRIED)]:
        path, box = listing.paths[row], boxes[row]
        size = read_size(path) if path.is_file() else None
        if box is None or size is None:
            continue
        try:
            box.require_fits(*size)
        except DataError as err:
            if not box.fits(*size[::-1]):  # the header does not say whether the image is turned
                raise name_image(err, path) from err
