"""The rendered check pictures."""

from __future__ import annotations

import numpy as np

from exporters.synthetic_images import COUNT, render_pictures


def test_the_pictures_are_always_the_same() -> None:
    """Rendering again gives the same pixels."""
    first = render_pictures(3)
    render_pictures.cache_clear()
    assert all(np.array_equal(a, b) for a, b in zip(first, render_pictures(3), strict=True))


def test_the_pictures_differ_in_shape_brightness_and_contrast() -> None:
    """No two pictures are alike: several shapes, dark and bright ones, pale and hard ones."""
    pictures = render_pictures()
    means = [picture.mean() for picture in pictures]
    contrasts = [picture.std() for picture in pictures]
    assert len(pictures) == COUNT >= 16
    assert len({picture.tobytes() for picture in pictures}) == COUNT
    assert len({picture.shape for picture in pictures}) >= 3
    assert max(means) - min(means) > 60
    assert max(contrasts) > 1.5 * min(contrasts)


def test_the_pictures_are_like_photographs_and_not_like_noise() -> None:
    """Neighboring pixels are alike, as in photographs; in noise they are not. No picture is flat."""
    for picture in render_pictures():
        grey = picture.mean(axis=2)
        assert np.corrcoef(grey[:, 1:].ravel(), grey[:, :-1].ravel())[0, 1] > 0.8
        assert grey.std() > 10
