"""Draw class-activation maps: the input of a model beside its map, with a caption, and contact sheets of many."""

from __future__ import annotations

import io
import math
import re
from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageColor, ImageDraw, ImageFont

from ensemble.analysis.html import PALETTE
from ensemble.arrays import Floats, Pixels
from ensemble.text.unicode_text import compose

COLUMNS, ROWS = 4, 6
_LARGE, _SMALL = 320, 160  # px of the longer side, in a file of its own and on a sheet
_GAP = 8
_HEAT = 0.55  # opacity of the colors
_DIMMED = [value * 3 // 4 for value in range(256)]  # on white the colors would look pale
_COLORS = {  # those of the pages, in light mode: the first value of each name
    name: ImageColor.getrgb(color) for name, color in reversed(re.findall(r"--(\w+): (#[0-9a-f]{6})", PALETTE))
}
_PAPER, _INK, _MUTED = _COLORS["paper"], _COLORS["ink"], _COLORS["muted"]
_RIGHT, _WRONG = _COLORS["accent"], _COLORS["second"]
_BAR = (160, 10)  # px of the scale of the heat
# matplotlib's color map inferno (CC0) at nine equally spaced points; its lightness rises evenly
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


def color_heat(heat: Floats) -> Pixels:
    """Return the colors ``(H, W, 3)`` of heat ``(H, W)`` from 0 to 1, dark to light."""
    anchors = np.linspace(0, 1, len(_INFERNO))
    return np.stack([np.interp(heat, anchors, _INFERNO[:, c]) for c in range(3)], axis=-1).round().astype(np.uint8)


def draw_pair(
    pixels: Pixels, heat: Floats, caption: Sequence[str], *, small: bool = False, right: bool | None = None
) -> Image.Image:
    """Draw the model's input ``(H, W, 3)``, beside it the same in grey under its ``heat`` ``(h, w)``, and a caption.

    A line above the caption has the color of right or wrong answers, where that is known. Large pictures have the
    columns of the input in px as an axis, and the scale of the heat.
    """
    side = _SMALL if small else _LARGE
    factor = side / max(pixels.shape[:2])
    if not small:
        factor = max(1.0, factor)  # nothing that the model saw is lost
    width, height = (max(1, round(pixels.shape[axis] * factor)) for axis in (1, 0))
    seen = Image.fromarray(pixels).resize((width, height), Image.Resampling.BICUBIC)
    font = _font(small=small)
    line = 16 if small else 20
    axis = 0 if small else line
    below = height + axis + 4 + line * len(caption)
    tile = Image.new("RGB", (2 * width + _GAP // 2, below + (0 if small else line)), _PAPER)
    tile.paste(seen, (0, 0))
    tile.paste(_under_heat(seen, heat), (width + _GAP // 2, 0))
    pen = ImageDraw.Draw(tile)
    if not small:
        for left in (0, width + _GAP // 2):
            _draw_axis(pen, (left, height), width, pixels.shape[1])
        _draw_scale(tile, (1, below + 2))
    if right is not None:
        pen.rectangle((0, height + axis, tile.width, height + axis + 3), fill=_RIGHT if right else _WRONG)
    for number, text in enumerate(caption):
        place = (1, height + axis + 3 + line * number)
        pen.text(place, _shorten(_plain(text), font, tile.width - 2), font=font, fill=_INK)
    return tile


def _font(*, small: bool) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(12 if small else 15)


def _draw_axis(pen: ImageDraw.ImageDraw, corner: tuple[int, int], width: int, columns: int) -> None:
    """Write 0, the middle and the number of columns below an image of ``width`` px, with a tick each."""
    left, top = corner
    for part, anchor, text in ((0.0, "la", "0"), (0.5, "ma", str(columns // 2)), (1.0, "ra", f"{columns} px")):
        x = left + round(part * (width - 1))
        pen.line((x, top, x, top + 3), fill=_MUTED)
        pen.text((x, top + 4), text, font=_font(small=True), fill=_MUTED, anchor=anchor)


def _draw_scale(image: Image.Image, corner: tuple[int, int]) -> int:
    """Draw the colors of the heat with their values at ``corner``, and return where the text behind them ends."""
    left, top = corner
    pen, font = ImageDraw.Draw(image), _font(small=True)
    warm = color_heat(np.tile(np.linspace(0, 1, _BAR[0]), (_BAR[1], 1)))
    pen.text((left, top), "0", font=font, fill=_MUTED)
    image.paste(Image.fromarray(warm), (left + 12, top + 2))
    text = "1: most evidence in the image"
    pen.text((left + 12 + _BAR[0] + 6, top), text, font=font, fill=_MUTED)
    return left + 12 + _BAR[0] + 6 + math.ceil(font.getlength(text))


def overlay_heat(pixels: Pixels, heat: Floats, side: int) -> Image.Image:
    """Draw an image ``(H, W, 3)`` in grey under its ``heat`` ``(h, w)``; ``side`` is the longer side in px."""
    factor = side / max(pixels.shape[:2])
    width, height = (max(1, round(pixels.shape[axis] * factor)) for axis in (1, 0))
    return _under_heat(Image.fromarray(pixels).resize((width, height), Image.Resampling.BICUBIC), heat)


def _under_heat(seen: Image.Image, heat: Floats) -> Image.Image:
    warm = Image.fromarray(color_heat(resize_heat(heat, (seen.height, seen.width))))
    return Image.blend(seen.convert("L").point(_DIMMED).convert("RGB"), warm, _HEAT)


def draw_sheet(tiles: Sequence[Image.Image], title: str = "", *, answers: bool = False) -> Image.Image:
    """Arrange up to ``COLUMNS * ROWS`` tiles of one size in rows, below a title and above a legend.

    With ``answers`` the legend has the colors of right and wrong ones.
    """
    columns = min(COLUMNS, len(tiles))
    width, height = (max(tile.size[axis] for tile in tiles) + _GAP for axis in (0, 1))
    head, rows = 26, math.ceil(len(tiles) / columns)
    sheet = Image.new("RGB", (columns * width + _GAP, head + rows * height + _GAP + 24 * (1 + answers)), _PAPER)
    for number, tile in enumerate(tiles):
        sheet.paste(tile, (_GAP + number % columns * width, head + number // columns * height))
    pen, font = ImageDraw.Draw(sheet), _font(small=False)
    pen.text((_GAP, 4), _shorten(_plain(title), font, sheet.width - 2 * _GAP), font=font, fill=_INK)
    foot = head + rows * height + 4
    _draw_scale(sheet, (_GAP, foot))
    if answers:
        for left, color, text in ((_GAP, _RIGHT, "right answer"), (_GAP + 130, _WRONG, "wrong answer")):
            pen.rectangle((left, foot + 30, left + 14, foot + 33), fill=color)
            pen.text((left + 20, foot + 24), text, font=_font(small=True), fill=_MUTED)
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
