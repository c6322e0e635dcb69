"""Draw class-activation maps: the input of a model beside its map, with a caption, and contact sheets of many."""

from __future__ import annotations

import io
import math
from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from ensemble.arrays import Floats, Pixels
from ensemble.unicode_text import compose

COLUMNS, ROWS = 4, 6
_LARGE, _SMALL = 320, 160  # px of the longer side, in a file of its own and on a sheet
_GAP = 8
_HEAT = 0.55  # opacity of the colours
_DIMMED = [value * 3 // 4 for value in range(256)]  # on white the colours would look pale
_PAPER, _INK = (255, 255, 255), (20, 20, 20)
# matplotlib's colour map inferno (CC0) at nine equally spaced points; its lightness rises evenly
_INFERNO = np.array(
    [
        (0, 0, 4),
        (33, 12, 74),
        (87, 16, 110),
        (138, 34, 106),
        (188, 55, 84),
        (228, 90, 49),
        (249, 142, 9),
        (249, 203, 53),
        (252, 255, 164),
    ],
    dtype=np.float64,
)


def colour_heat(heat: Floats) -> Pixels:
    """Return the colours ``(H, W, 3)`` of heat ``(H, W)`` from 0 to 1, dark to light."""
    anchors = np.linspace(0, 1, len(_INFERNO))
    return np.stack([np.interp(heat, anchors, _INFERNO[:, c]) for c in range(3)], axis=-1).round().astype(np.uint8)


def draw_pair(pixels: Pixels, heat: Floats, caption: Sequence[str], *, small: bool = False) -> Image.Image:
    """Draw the model's input ``(H, W, 3)``, beside it the same in grey under its ``heat`` ``(h, w)``, and a caption."""
    side = _SMALL if small else _LARGE
    factor = side / max(pixels.shape[:2])
    if not small:
        factor = max(1.0, factor)  # nothing that the model saw is lost
    width, height = (max(1, round(pixels.shape[axis] * factor)) for axis in (1, 0))
    seen = Image.fromarray(pixels).resize((width, height), Image.Resampling.BICUBIC)
    font = ImageFont.load_default(12 if small else 15)
    line = 16 if small else 20
    tile = Image.new("RGB", (2 * width + _GAP // 2, height + 4 + line * len(caption)), _PAPER)
    tile.paste(seen, (0, 0))
    tile.paste(_under_heat(seen, heat), (width + _GAP // 2, 0))
    pen = ImageDraw.Draw(tile)
    for number, text in enumerate(caption):
        pen.text((1, height + 3 + line * number), _shorten(_plain(text), font, tile.width - 2), font=font, fill=_INK)
    return tile


def overlay_heat(pixels: Pixels, heat: Floats, side: int) -> Image.Image:
    """Draw an image ``(H, W, 3)`` in grey under its ``heat`` ``(h, w)``; ``side`` is the longer side in px."""
    factor = side / max(pixels.shape[:2])
    width, height = (max(1, round(pixels.shape[axis] * factor)) for axis in (1, 0))
    return _under_heat(Image.fromarray(pixels).resize((width, height), Image.Resampling.BICUBIC), heat)


def _under_heat(seen: Image.Image, heat: Floats) -> Image.Image:
    warm = Image.fromarray(colour_heat(resize_heat(heat, (seen.height, seen.width))))
    return Image.blend(seen.convert("L").point(_DIMMED).convert("RGB"), warm, _HEAT)


def draw_sheet(tiles: Sequence[Image.Image]) -> Image.Image:
    """Arrange up to ``COLUMNS * ROWS`` tiles of one size in rows."""
    columns = min(COLUMNS, len(tiles))
    width, height = (max(tile.size[axis] for tile in tiles) + _GAP for axis in (0, 1))
    sheet = Image.new("RGB", (columns * width + _GAP, math.ceil(len(tiles) / columns) * height + _GAP), _PAPER)
    for number, tile in enumerate(tiles):
        sheet.paste(tile, (_GAP + number % columns * width, _GAP + number // columns * height))
    return sheet


def to_png(image: Image.Image) -> bytes:
    """Return the content of a PNG file; the same image always gives the same bytes."""
    sink = io.BytesIO()
    image.save(sink, "PNG")
    return sink.getvalue()


def resize_heat(heat: Floats, size: tuple[int, int]) -> Floats:
    """Resize heat ``(h, w)`` to ``(H, W)``, bilinearly."""
    image = Image.fromarray(heat.astype(np.float32))
    return np.asarray(image.resize((size[1], size[0]), Image.Resampling.BILINEAR), dtype=np.float64)


def _plain(text: str) -> str:
    """Replace characters outside ASCII, which Pillow's own font lacks."""
    return "".join(c if c.isascii() and c.isprintable() else "?" for c in compose(text))


def _shorten(text: str, font: ImageFont.FreeTypeFont | ImageFont.ImageFont, width: int) -> str:
    """Elide the middle of the text if it is more than ``width`` px wide."""
    kept, shown = len(text), text
    while font.getlength(shown) > width and kept > 2:
        kept -= 1
        shown = f"{text[: kept - kept // 2]}...{text[len(text) - kept // 2 :]}"
    return shown
