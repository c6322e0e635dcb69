"""Transparent images are put on white in strips, with the pixels of the whole image at once."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from ensemble.images import on_white
from ensemble.images.on_white import composite_on_white
from tests.support.corpus import picture

RNG = np.random.default_rng(0)


def transparent(mode: str) -> Image.Image:
    """A picture in this mode, transparent in places."""
    image = Image.fromarray(picture())
    if mode in {"RGBA", "LA"}:
        image.putalpha(Image.fromarray(RNG.integers(0, 256, (image.height, image.width), dtype=np.uint8)))
        return image.convert(mode)
    image = image.convert(mode)
    pixel = image.getpixel((3, 3))
    image.info["transparency"] = bytes(range(256)) if mode == "P" else pixel
    return image


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P", "L", "RGB"])
def test_strips_give_the_pixels_of_the_whole(mode: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where the last strip is lower than the others, and one row is more than a strip."""
    image = transparent(mode)
    assert image.has_transparency_data
    shown = image.convert("RGBA")
    whole = Image.alpha_composite(Image.new("RGBA", shown.size, (255, 255, 255, 255)), shown).convert("RGB")
    for pixels in (1, 3 * image.width, 7 * image.width + 1, 10**9):
        monkeypatch.setattr(on_white, "_STRIP", pixels)
        assert np.array_equal(np.asarray(composite_on_white(image)), np.asarray(whole))
