"""Transparent images on a white ground."""

from __future__ import annotations

from PIL import Image

_WHITE = (255, 255, 255, 255)
_STRIP = 4_000_000  # pixels


def composite_on_white(image: Image.Image) -> Image.Image:
    """Return an image with transparency as RGB on white.

    It is done in strips of rows: whole, an image of 64 megapixels would take four times 256 MB.

    Raises:
        ValueError: Pillow cannot convert its pixels.
    """
    width, height = image.size
    found = Image.new("RGB", image.size)
    rows = max(1, _STRIP // max(1, width))
    for top in range(0, height, rows):
        strip = (0, top, width, min(height, top + rows))
        shown = image.crop(strip).convert("RGBA")
        found.paste(Image.alpha_composite(Image.new("RGBA", shown.size, _WHITE), shown).convert("RGB"), strip)
    return found
