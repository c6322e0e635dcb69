"""Images whose own channels a model takes, one to four of them, instead of RGB: grey, RGBA, arrays in ``.npy`` files.

The values stay as they are stored, in float32: 8 or 16 bits of an image file, any number of an array. The card's
``scale`` and its mean and std normalize them, in the graph.
"""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ensemble.arrays import Pixels
from ensemble.card import Preprocess
from ensemble.errors import DataError
from ensemble.images.decode import (
    DecodedImage,
    decode_file,
    open_image,
    read_file,
)
from ensemble.images.deep_color import read_deep_colors
from ensemble.images.metadata import turn_of
from ensemble.images.resize import resize_with
from ensemble.images.size_limits import MAX_PIXELS, MAX_SIDE, require_room
from ensemble.images.storage import RemoteImage

_MAGIC = b"\x93NUMPY"
Planes = NDArray[np.float32]

_MODES = {  # Pillow's modes by the number of channels that they hold
    1: ("L", "1", "I;16", "I;16B", "I;16L", "I", "F"),
    2: ("LA",),
    3: ("RGB",),
    4: ("RGBA",),
}
_KINDS = "biuf"


@dataclass(frozen=True, slots=True, eq=False)
class DecodedPlanes:
    """An upright image of its own channels: ``image`` is ``(H, W, channels)`` float32; ``notices`` as `DecodedImage`.

    ``kind`` is the type of the stored values, such as uint16.
    """

    image: Planes
    notices: tuple[str, ...]
    kind: str


def read_for(path: Path | RemoteImage, preprocess: Preprocess) -> DecodedImage | DecodedPlanes:
    """Read one image as a model with this preprocessing takes it.

    Raises:
        DataError: the codes of `read_file` and `decode_for`.
    """
    return decode_for(read_file(path), path, preprocess)


def decode_for(data: bytes, path: Path | RemoteImage, preprocess: Preprocess) -> DecodedImage | DecodedPlanes:
    """Decode what `read_file` read from ``path``: to RGB, or to the file's own channels where the card says so.

    Raises:
        DataError: the codes of `decode_file`, and of `decode_planes` for a card that keeps channels; E362 when an array
            is given to a model that takes RGB.
    """
    if not preprocess.kept:
        if is_array(data):
            hint = "models of arrays are trained and exported with --channels 1 to 4"
            raise DataError("E362", f"{path.name}: an array, and the model takes RGB", hint=hint, path=_place(path))
        return decode_file(data, path)
    try:
        return decode_planes(data, preprocess.planes)
    except DataError as err:
        raise DataError(err.code, f"{path.name}: {err.message}", hint=err.hint, path=_place(path)) from err


def decode_planes(data: bytes, channels: int) -> DecodedPlanes:
    """Decode an image file or ``.npy`` array of ``channels`` channels, without any conversion of its values.

    An array is ``(H, W)``, ``(H, W, channels)`` or ``(channels, H, W)``, of whole or floating-point numbers.

    Raises:
        DataError: E301, E302, E303, E307 and E309 as `ensemble.images.decode.decode_image`; E362 when the file has
            another number of channels or another shape, E363 when a value is not finite.
    """
    if is_array(data):
        return planes_of(_load_array(data), channels)
    return _require_finite(_decode_image(data, channels))


def planes_of(values: NDArray[np.generic], channels: int) -> DecodedPlanes:
    """Return an array ``(H, W)``, ``(H, W, channels)`` or ``(channels, H, W)`` as a decoded image.

    Raises:
        DataError: E362 and E363 as `decode_planes`.
    """
    if values.dtype.kind not in _KINDS:
        raise DataError("E362", f"an array of {values.dtype}, which are not real numbers")
    planes = _channels_last(values, channels)
    return _require_finite(DecodedPlanes(np.ascontiguousarray(planes, dtype=np.float32), (), values.dtype.name))


def describe_array(data: bytes) -> tuple[int, int, str]:
    """Return height, width and a description of a ``.npy`` array, whose shortest outer side of up to 4 are channels.

    Raises:
        DataError: E301, E307 and E362 when it cannot be read or is not an image.
    """
    values = _load_array(data)
    if values.ndim not in {2, 3} or 0 in values.shape:
        raise DataError("E362", f"an array of shape {values.shape}, which is no image")
    channels = 1 if values.ndim == 2 else min(values.shape[0], values.shape[-1])
    if channels > max(_MODES):
        raise DataError("E362", f"an array of shape {values.shape}: images have 1 to 4 channels")
    height, width = _channels_last(values, channels).shape[:2]
    return height, width, f"{channels} x {values.dtype}"


def is_array(data: bytes) -> bool:
    """Return True if a file's bytes are those of a ``.npy`` array."""
    return data.startswith(_MAGIC)


def resize_planes(image: Planes, preprocess: Preprocess) -> Planes:
    """Resize and cut an image of its own channels ``(H, W, C)`` to ``(*preprocess.size, C)``, channel by channel.

    Every channel is resized by Pillow in its 32-bit mode, which has the filters of the 8-bit modes and no rounding.
    Borders that ``pad`` adds are ``fill``, as a share of 255 of the scale; the fourth channel's are the low end.
    """
    low, high = preprocess.scale
    levels = [low + level / 255 * (high - low) for level in (*preprocess.fill, 0)]
    return np.stack(
        [
            np.asarray(resize_with(Image.fromarray(np.ascontiguousarray(image[..., c])), preprocess, fill=levels[c]))
            for c in range(image.shape[-1])
        ],
        axis=-1,
    )


def as_planes(pictures: Pixels, preprocess: Preprocess) -> Planes:
    """Return test images ``(..., 3)`` uint8 with the channels of the card, in the range of its scale."""
    low, high = preprocess.scale
    both = np.concatenate([pictures, 255 - pictures[..., ::-1]], axis=-1)[..., : preprocess.planes]
    return np.asarray(low + both.astype(np.float32) / 255 * (high - low), dtype=np.float32)


def scale_of(kinds: Sequence[str]) -> tuple[float, float] | None:
    """Return the range of the stored values by their types; None for floating-point numbers and mixed types."""
    ranges = {"uint8": (0.0, 255.0), "uint16": (0.0, 65535.0), "bool": (0.0, 1.0)}
    found = {ranges.get(kind) for kind in kinds}
    return found.pop() if len(found) == 1 else None


def _require_finite(found: DecodedPlanes) -> DecodedPlanes:
    if not np.isfinite(found.image).all():
        raise DataError("E363", "it has values that are not finite", hint="replace NaN and infinity before")
    return found


def _place(path: Path | RemoteImage) -> Path | None:
    return None if isinstance(path, RemoteImage) else path


def _load_array(data: bytes) -> NDArray[np.generic]:
    try:
        header = io.BytesIO(data)
        version = np.lib.format.read_magic(header)
        read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape, _, dtype = read(header)
        if dtype.kind not in _KINDS:  # objects, whose data would be a pickle
            raise DataError("E362", f"an array of {dtype}, which are not real numbers")
        if math.prod(shape) > 4 * MAX_PIXELS or max(shape, default=0) > MAX_SIDE:
            most = f"{MAX_PIXELS / 1e6:g} MP of 4 channels, or {MAX_SIDE:,} px on a side"
            raise DataError("E307", f"an array of shape {shape} exceeds {most}")
        values: NDArray[np.generic] = np.load(io.BytesIO(data), allow_pickle=False)
    except (ValueError, OSError, EOFError) as err:
        raise DataError("E301", f"the array is cut off or damaged: {err}") from err
    return values


def _channels_last(values: NDArray[np.generic], channels: int) -> NDArray[np.generic]:
    shape = values.shape
    takes = f"the model takes {channels} channel{'s' if channels > 1 else ''}"
    if 0 in shape:
        raise DataError("E362", f"an array of shape {shape}, which is empty")
    if values.ndim == 2 and channels == 1:
        return values[..., np.newaxis]
    if values.ndim == 3:
        last, first = shape[-1] == channels, shape[0] == channels
        if last and first:
            hint = "save arrays as (height, width, channels) of other sides than the channels"
            raise DataError("E362", f"an array of shape {shape}, whose first and last side are {channels}", hint=hint)
        if last:
            return values
        if first:
            return values.transpose(1, 2, 0)
    raise DataError("E362", f"an array of shape {shape}, and {takes}")


def _decode_image(data: bytes, channels: int) -> DecodedPlanes:
    image, notices = open_image(data)
    # float32 of the whole image and of a channel twice, the values as they are stored, and Pillow's image
    require_room(image.size, 6 * channels + 12, len(data), what=f"{channels} channels")
    deep = read_deep_colors(data)
    if deep is not None and deep.shape[-1] == 3 and channels == 4 and "transparency" not in image.info:
        deep = np.concatenate([deep, np.full((*deep.shape[:2], 1), 65535, np.uint16)], axis=-1)
        notices.append("I560")
    if deep is not None and deep.shape[-1] == channels:
        return DecodedPlanes(_turned(deep.astype(np.float32), image, notices), tuple(notices), "uint16")
    if image.mode == "P":
        image = image.convert("RGBA" if image.has_transparency_data else "RGB")
    if image.mode == "RGB" and channels == 4 and "transparency" not in image.info:
        image = image.convert("RGBA")
        notices.append("I560")
    if image.mode not in _MODES[channels]:
        stored = next((str(count) for count, modes in _MODES.items() if image.mode in modes), "other")
        stored = stored if deep is None else str(deep.shape[-1])
        only_grey = "--channels grey makes one channel from colors" if channels == 1 else None
        raise DataError(
            "E362",
            f"it has {stored} channels ({image.mode}), and the model takes {channels} of the file's",
            hint=only_grey,
        )
    values = np.asarray(image)
    kind = "uint8" if values.dtype == np.bool_ else values.dtype.name
    planes = values.astype(np.float32).reshape(*values.shape[:2], channels)
    if image.mode == "1":
        planes *= 255
    if image.mode.startswith("I;16") and getattr(image, "tag_v2", {}).get(262) == 0:
        planes = 65535 - planes  # a TIFF that stores white as zero, which Pillow inverts in 8 bits only
    return DecodedPlanes(_turned(planes, image, notices), tuple(notices), kind)


def _turned(planes: Planes, image: Image.Image, notices: list[str]) -> Planes:
    """Return the channels ``(H, W, C)`` upright, as the orientation of the image says."""
    turn = turn_of(image, notices)
    if turn is not None:
        each = np.moveaxis(planes, -1, 0)
        flipped = [Image.fromarray(np.ascontiguousarray(one)).transpose(turn) for one in each]
        planes = np.stack([np.asarray(one) for one in flipped], axis=-1)
    return np.ascontiguousarray(planes)
