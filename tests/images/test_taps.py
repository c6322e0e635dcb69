"""Resizing without scipy adds the same products in the same order: the pixels are equal to the last bit."""

from __future__ import annotations

import builtins
from typing import Any

import numpy as np
import pytest
from scipy.sparse import csr_array

from ensemble.images.taps import PlainTaps, keep_used, make_taps, resize_columns, resize_rows


def hide_scipy(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let imports of scipy fail."""
    real = builtins.__import__

    def without(name: str, *arguments: Any, **options: Any) -> Any:
        if name.partition(".")[0] == "scipy":
            raise ModuleNotFoundError(name)
        return real(name, *arguments, **options)

    monkeypatch.setattr(builtins, "__import__", without)


@pytest.mark.parametrize("kind", [np.float32, np.float64, np.int32, np.int64])
def test_the_product_is_scipys(kind: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of rows with no, one and many weights, also where rows of pixels are left out."""
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (23, 9, 3), np.uint8)
    for most in (1, 2, 7):
        weights = (rng.normal(0, 300, (most, 11)) * (rng.random((most, 11)) < 0.7)).astype(kind)
        places = np.sort(rng.integers(0, 17, (most, 11)), axis=0)
        expected = make_taps(places, weights, 23)
        with monkeypatch.context() as without:
            hide_scipy(without)
            found = make_taps(places, weights, 23)
            kept = keep_used(pixels, found)
        assert isinstance(expected, csr_array)
        assert isinstance(found, PlainTaps)
        assert isinstance(kept[1], PlainTaps)
        for one, other in (((pixels, found), (pixels, expected)), (kept, keep_used(pixels, expected))):
            rows, wanted = resize_rows(*one), resize_rows(*other)
            assert rows.dtype == wanted.dtype
            assert np.array_equal(rows, wanted)
        turned = pixels.transpose(1, 0, 2)
        assert np.array_equal(resize_columns(turned, found), resize_columns(turned, expected))
