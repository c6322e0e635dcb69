"""Images of their own channels: values as stored, resized without rounding, refusals that name what does not fit."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from ensemble.card import Channels, FaceCrop, Preprocess, Resize
from ensemble.errors import DataError, OptionError
from ensemble.images.decode import decode_image
from ensemble.images.listing import list_images
from ensemble.images.planes import decode_for, decode_planes, describe_array, resize_planes
from ensemble.images.views import parse_views

RNG = np.random.default_rng(0)


def npy(values: NDArray[np.generic]) -> bytes:
    sink = io.BytesIO()
    np.save(sink, values)
    return sink.getvalue()


def encoded(values: NDArray[np.generic], kind: str = "PNG", **options: object) -> bytes:
    sink = io.BytesIO()
    Image.fromarray(values).save(sink, kind, **options)
    return sink.getvalue()


@pytest.mark.parametrize("kind", ["uint8", "uint16", "int16", "float16", "float32", "float64"])
@pytest.mark.parametrize(("channels", "shape"), [(1, (9, 12)), (1, (9, 12, 1)), (2, (9, 12, 2)), (4, (4, 9, 12))])
def test_arrays_keep_their_values(kind: str, channels: int, shape: tuple[int, ...]) -> None:
    """Every type and place of the channels gives the stored numbers, channels last."""
    values = (RNG.random(shape) * 200).astype(kind)
    found = decode_planes(npy(values), channels)
    assert found.kind == kind
    assert found.image.dtype == np.float32
    expected = values.astype(np.float32)
    if values.ndim == 2:
        expected = expected[..., np.newaxis]
    elif shape[0] == channels:
        expected = expected.transpose(1, 2, 0)
    np.testing.assert_array_equal(found.image, expected)


def test_image_files_keep_grey_depth_and_alpha() -> None:
    """8 and 16 bits of grey, grey with alpha, RGB and RGBA are as stored; RGB is opaque RGBA, which I560 says."""
    deep = RNG.integers(0, 65536, (10, 14), dtype=np.uint16)
    for kind in ("PNG", "TIFF"):
        found = decode_planes(encoded(deep, kind), 1)
        np.testing.assert_array_equal(found.image[..., 0], deep)
        assert found.kind == "uint16"
    for channels in (1, 2, 3, 4):
        stored = RNG.integers(0, 256, (10, 14, channels), dtype=np.uint8)
        found = decode_planes(encoded(stored[..., 0] if channels == 1 else stored), channels)
        np.testing.assert_array_equal(found.image, stored)
        assert found.kind == "uint8"
    rgb = RNG.integers(0, 256, (10, 14, 3), dtype=np.uint8)
    opaque = decode_planes(encoded(rgb), 4)
    np.testing.assert_array_equal(opaque.image[..., :3], rgb)
    assert (opaque.image[..., 3] == 255).all()
    assert opaque.notices == ("I560",)


def test_the_orientation_is_applied_to_every_channel() -> None:
    """EXIF orientation 6 turns grey as it turns RGB."""
    grey = RNG.integers(0, 256, (10, 14), dtype=np.uint8)
    exif = Image.Exif()
    exif[0x0112] = 6
    data = encoded(grey, exif=exif)
    np.testing.assert_array_equal(decode_planes(data, 1).image[..., 0], decode_image(data).pixels[..., 0])


def test_what_has_other_channels_is_refused_by_name() -> None:
    """Shapes, modes, types and values that do not fit: each its code, and the model and the file are named."""
    cases = [
        (npy(np.zeros((9, 12), np.float32)), 2, "E362", r"\(9, 12\), and the model takes 2"),
        (npy(np.zeros((9, 12, 5), np.float32)), 2, "E362", r"\(9, 12, 5\)"),
        (npy(np.zeros((2, 9, 2), np.float32)), 2, "E362", "first and last side are 2"),
        (npy(np.zeros((0, 9), np.float32)), 1, "E362", "empty"),
        (npy(np.zeros((9, 9), np.complex64)), 1, "E362", "not real numbers"),
        (npy(np.full((9, 9), np.nan)), 1, "E363", "not finite"),
        (npy(np.zeros((9, 9)))[:-8], 1, "E301", "cut off"),
        (encoded(np.zeros((9, 9, 3), np.uint8)), 1, "E362", r"3 channels \(RGB\)"),
        (encoded(np.zeros((9, 9), np.uint8)), 4, "E362", r"1 channels \(L\)"),
        (b"hello", 1, "E303", "not an image"),
        (b"", 1, "E302", "empty"),
    ]
    for data, channels, code, text in cases:
        with pytest.raises(DataError, match=text) as caught:
            decode_planes(data, channels)
        assert caught.value.code == code
    with pytest.raises(DataError, match="takes RGB") as array:
        decode_for(npy(np.zeros((9, 9))), Path("a.npy"), Preprocess((8, 8)))
    assert array.value.code == "E362"


def test_pickled_arrays_are_refused_without_loading_them() -> None:
    """An array of objects is a pickle, which is never read."""
    sink = io.BytesIO()
    np.save(sink, np.array([{}], dtype=object), allow_pickle=True)
    with pytest.raises(DataError, match="not real numbers"):
        decode_planes(sink.getvalue(), 1)


@pytest.mark.parametrize("resize", ["squash", "center", "pad"])
def test_channels_are_resized_as_pillow_does_without_rounding(resize: Resize) -> None:
    """8-bit values resized in float are within one level of RGB's; a border has the fill's share of the scale."""
    rgb = RNG.integers(0, 256, (37, 52, 3), dtype=np.uint8)
    kept = Preprocess((20, 24), resize=resize, channels="3", fill=(51, 102, 204))
    plain = Preprocess((20, 24), resize=resize, fill=(51, 102, 204))
    from ensemble.images.resize import resize_image

    found = resize_planes(rgb.astype(np.float32), kept)
    assert found.shape == (20, 24, 3)
    assert np.abs(found - resize_image(rgb, plain)).max() <= 1
    assert found.dtype == np.float32
    deep = resize_planes(
        rgb.astype(np.float32) * 257,
        Preprocess(
            (20, 24),
            resize=resize,
            channels="3",
            scale=(0.0, 65535.0),
            fill=(51, 102, 204),
        ),
    )
    np.testing.assert_allclose(deep, found * 257, rtol=1e-5, atol=0.01)


def test_views_of_channels_are_those_of_rgb() -> None:
    """Each view of three float channels is the RGB view, to one level; of four channels it keeps the shape."""
    batch = RNG.integers(0, 256, (2, 16, 16, 3), dtype=np.uint8)
    for view in parse_views("hflip,vflip,rot90,shift:3,scale:1.2,scale:0.8,crop5"):
        expected = view.apply(batch).astype(np.float32)
        found = view.apply(batch.astype(np.float32))
        assert found.dtype == np.float32
        assert np.abs(found - expected).max() <= 1, view.name
        assert view.apply(np.zeros((2, 16, 16, 4), np.float32)).shape == (2, 16, 16, 4)


def test_a_card_refuses_what_kept_channels_do_not_have() -> None:
    """A scale without kept channels, another resizer and faces turned upright: E209; a scale of no width: E204."""
    size = (16, 16)
    cases: tuple[tuple[str, dict[str, Any]], ...] = (
        ("E209", {"scale": (0.0, 1.0)}),
        ("E209", {"channels": "1", "resizer": "opencv"}),
        ("E209", {"channels": "1", "face": FaceCrop(0.2, align="arcface")}),
        ("E204", {"channels": "1", "scale": (1.0, 1.0)}),
    )
    for code, settings in cases:
        with pytest.raises(OptionError) as caught:
            Preprocess(size, **settings)
        assert caught.value.code == code
    kinds: dict[Channels, tuple[int, int, int]] = {"rgb": (16, 16, 3), "grey": (16, 16, 3), "1": (16, 16, 1)}
    assert {name: Preprocess(size, channels=name).shape for name in kinds} == kinds


def test_arrays_are_listed_only_where_there_are_no_images(tmp_path: Path) -> None:
    """A folder of arrays is one of images, with ids with or without suffix; beside images arrays are passed over."""
    for name in ("a.npy", "b.npy"):
        (tmp_path / name).write_bytes(npy(np.zeros((9, 9))))
    assert list_images(tmp_path).ids == ("a.npy", "b.npy")
    assert [path.name for path in list_images(tmp_path, ["b", "a"]).paths] == ["b.npy", "a.npy"]
    (tmp_path / "c.png").write_bytes(encoded(np.zeros((9, 9), np.uint8)))
    assert list_images(tmp_path).ids == ("c.png",)


def test_arrays_are_described_for_the_summary_of_the_data() -> None:
    """Height, width and channels of arrays of either order."""
    assert describe_array(npy(np.zeros((9, 12), np.uint16))) == (9, 12, "1 x uint16")
    assert describe_array(npy(np.zeros((2, 9, 12), np.float32))) == (9, 12, "2 x float32")
    assert describe_array(npy(np.zeros((9, 12, 4), np.uint8))) == (9, 12, "4 x uint8")
    with pytest.raises(DataError, match="1 to 4 channels"):
        describe_array(npy(np.zeros((9, 12, 40))))
