"""Test-time augmentation (TTA): the views of a batch that a model predicts.

A view maps a resized batch ``(B, H, W, 3)`` uint8 to another of the same shape; or, for models that take the file's own
channels, ``(B, H, W, C)`` float32. ``identity`` is always the first one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace

import numpy as np
from PIL import Image

from ensemble.arrays import Logits, Pixels
from ensemble.errors import OptionError
from ensemble.images.label_swaps import Swaps, parse_swaps, restore, swapped_columns
from ensemble.labels import LabelSpace
from ensemble.text.plain_numbers import to_float, to_int

_CROP5_SHARE = 0.875
_CORNERS = {"tl": (0.0, 0.0), "tr": (0.0, 1.0), "bl": (1.0, 0.0), "br": (1.0, 1.0), "c": (0.5, 0.5)}


@dataclass(frozen=True, slots=True)
class View:
    """One augmentation of a batch: ``apply`` maps ``(B, H, W, 3)`` uint8 to the same shape.

    The result is a new array, except for ``identity``, which returns the batch itself. ``swaps`` are pairs of labels
    that the view exchanges, such as left and right.
    """

    name: str
    apply: Callable[[Pixels], Pixels]
    square_only: bool = False
    swaps: Swaps = ()

    def restore(self, logits: Logits, labels: LabelSpace, *, member: str) -> Logits:
        """Return the logits ``(N, C)`` of the view as those of the image: the labels that it exchanges, back."""
        return restore(self.swaps, logits, labels, member=member)

    def require_fits(self, size: tuple[int, int], labels: LabelSpace, *, member: str) -> None:
        """Check that the view applies to images of ``size`` (height, width) and to these classes.

        Raises:
            OptionError: E201 when the view would change the shape of a rectangle, or exchange labels that do not exist.
        """
        swapped_columns(self.swaps, labels, member=member)
        if self.square_only and size[0] != size[1]:
            raise OptionError("E201", f"{self.name} needs square images; {member} takes {size[0]}x{size[1]}")


def parse_views(text: str) -> tuple[View, ...]:
    """Parse a comma-separated list of views; ``identity`` comes first, named or not, and duplicates are dropped.

    - ``hflip``, ``vflip``: mirrored left to right, top to bottom;
    - ``rot90``: rotated by 90 degrees counter-clockwise (square images only);
    - ``shift:<px>``: four views, moved left, right, up and down, with the edge repeated;
    - ``scale:<factor>``: the center enlarged (factor above 1), or the image shrunk with its edge repeated;
    - ``crop5``: five views, 7/8 of each side at the corners and the center, enlarged to the full size.

    Each may exchange labels that know sides, back and forth: ``hflip:left=right``, see `ensemble.images.label_swaps`.

    A single view of a family can be named as it is in the predictions: ``shift:4:left``, ``crop5:tl``.

    Raises:
        OptionError: E201 when a view is not known or its number is out of range.
    """
    views = {"identity": View("identity", _identity)}
    for name in text.split(","):
        for view in _parse(name.strip()):
            views.setdefault(view.name, view)
    return tuple(views.values())


def views_by_name(names: Iterable[str]) -> dict[str, View]:
    """Return the views of a recipe by the names that it has for them.

    Raises:
        OptionError: E201 when a name is that of no view, or of a family such as ``crop5``.
    """
    wanted = sorted(set(names))
    found = {view.name: view for view in parse_views(",".join(wanted))}
    for name in wanted:
        if name not in found:
            raise OptionError("E201", f"the recipe's view {name!r} is written as {', '.join(_family(name))}")
    return {name: found[name] for name in wanted}


def expand_views(weights: Mapping[str, float]) -> dict[str, float]:
    """Return weights by single view: a family such as ``crop5`` passes its weight to each of its views."""
    return {view: weight for name, weight in weights.items() for view in _family(name)}


def _family(name: str) -> tuple[str, ...]:
    """Return the names of the views in a family: five for ``crop5``, the name itself if it is unknown."""
    try:
        return tuple(view.name for view in _parse(name.strip()))
    except OptionError:
        return (name,)


def _parse(text: str) -> tuple[View, ...]:
    parts = text.split(":")
    pairs = [part.strip() for part in parts if "=" in part]
    name = ":".join(part for part in parts if "=" not in part)
    if not pairs:
        return _parse_pixels(name)
    if not name:
        raise OptionError("E201", f"{text!r} is not a view: labels are exchanged as in hflip:left=right:up=down")
    swaps, suffix = parse_swaps(pairs, view=text), ":".join(pairs)
    return tuple(replace(view, name=f"{view.name}:{suffix}", swaps=swaps) for view in _parse_pixels(name))


def _parse_pixels(name: str) -> tuple[View, ...]:
    kind, _, rest = name.partition(":")
    match kind:
        case "identity" | "hflip" | "vflip" | "rot90" if not rest and ":" not in name:
            return (_SIMPLE[kind],)
        case "shift":
            pixels, _, side = rest.partition(":")
            distance = int(_number(name, pixels, low=1, high=512, whole=True))
            sides = {"left": (0, -distance), "right": (0, distance), "up": (-distance, 0), "down": (distance, 0)}
            chosen = _choose(name, sides, side)
            return tuple(View(f"shift:{distance}:{s}", _shift(*sides[s])) for s in chosen)
        case "scale":
            factor = f"{_number(name, rest, low=0.5, high=2.0):g}"
            return (View(f"scale:{factor}", _scale(float(factor))),)  # the factor as the name shows it
        case "crop5":
            return tuple(View(f"crop5:{c}", _crop(*_CORNERS[c], _CROP5_SHARE)) for c in _choose(name, _CORNERS, rest))
    raise OptionError("E201", f"{name!r} is not a view")


def _number(name: str, text: str, *, low: float, high: float, whole: bool = False) -> float:
    try:
        value = to_int(text) if whole else to_float(text)
    except ValueError:
        value = float("nan")
    if not low <= value <= high:
        raise OptionError(
            "E201", f"{name!r} needs a {'whole ' if whole else ''}number of {low:g} to {high:g}, got {text!r}"
        )
    return value


def _choose(name: str, known: Mapping[str, object], part: str) -> tuple[str, ...]:
    if not part:
        return tuple(known)
    if part not in known:
        raise OptionError("E201", f"{name!r} is not a view: {part!r} is none of {', '.join(known)}")
    return (part,)


def _identity(batch: Pixels) -> Pixels:
    return batch


def _hflip(batch: Pixels) -> Pixels:
    if batch.dtype != np.uint8 or batch.shape[-1] != 3:
        return batch[:, :, ::-1].copy()
    # moves whole pixels, not bytes: twice as fast
    return np.ascontiguousarray(batch).view("V3")[:, :, ::-1].copy().view(np.uint8)


def _vflip(batch: Pixels) -> Pixels:
    return batch[:, ::-1].copy()


def _rot90(batch: Pixels) -> Pixels:
    return np.rot90(batch, axes=(1, 2)).copy()


_SIMPLE = {
    "identity": View("identity", _identity),
    "hflip": View("hflip", _hflip),
    "vflip": View("vflip", _vflip),
    "rot90": View("rot90", _rot90, square_only=True),
}


def _shift(down: int, right: int) -> Callable[[Pixels], Pixels]:
    def apply(batch: Pixels) -> Pixels:
        height, width = batch.shape[1:3]
        rows = np.clip(np.arange(height) - down, 0, height - 1)
        columns = np.clip(np.arange(width) - right, 0, width - 1)
        return np.ascontiguousarray(batch[:, rows][:, :, columns])

    return apply


def _scale(factor: float) -> Callable[[Pixels], Pixels]:
    if factor >= 1:
        return _crop(0.5, 0.5, 1 / factor)

    def apply(batch: Pixels) -> Pixels:
        height, width = batch.shape[1:3]
        inner_height, inner_width = max(1, round(height * factor)), max(1, round(width * factor))
        top, left = (height - inner_height) // 2, (width - inner_width) // 2
        around = ((0, 0), (top, height - inner_height - top), (left, width - inner_width - left), (0, 0))
        return np.pad(_resize(batch, (0.0, 0.0, width, height), (inner_height, inner_width)), around, mode="edge")

    return apply


def _crop(down: float, right: float, share: float) -> Callable[[Pixels], Pixels]:
    """Cut ``share`` of each side at a position from 0 (top, left) to 1 (bottom, right), and enlarge it to full size."""

    def apply(batch: Pixels) -> Pixels:
        height, width = batch.shape[1:3]
        top, left = (1 - share) * height * down, (1 - share) * width * right
        box = (left, top, min(width, left + share * width), min(height, top + share * height))
        return _resize(batch, box, (height, width))

    return apply


def _resize(batch: Pixels, box: tuple[float, float, float, float], size: tuple[int, int]) -> Pixels:
    """Resize the part of each image inside ``box`` (left, top, right, bottom) to ``size`` (height, width)."""
    resized = np.empty((len(batch), *size, batch.shape[-1]), batch.dtype)
    for i, image in enumerate(batch):
        if batch.dtype == np.uint8:
            resized[i] = np.asarray(Image.fromarray(image).resize(size[::-1], Image.Resampling.BILINEAR, box=box))
            continue
        for c in range(batch.shape[-1]):
            plane = Image.fromarray(np.ascontiguousarray(image[..., c]))
            resized[i, ..., c] = np.asarray(plane.resize(size[::-1], Image.Resampling.BILINEAR, box=box))
    return resized
