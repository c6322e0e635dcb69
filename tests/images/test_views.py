"""Views: what each does to the pixels, worked out a second time without the code under test."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from ensemble.arrays import Floats, Pixels
from ensemble.errors import OptionError
from ensemble.images.views import View, parse_views
from ensemble.labels import LabelSpace

ALL = "hflip,vflip,rot90,shift:3,scale:1.25,scale:0.8,crop5"
SHIFTS = {"left": (0, -3), "right": (0, 3), "up": (-3, 0), "down": (3, 0)}


def batch(count: int = 2, height: int = 16, width: int = 16) -> Pixels:
    """Noise ``(B, H, W, 3)``: no view leaves it as it is."""
    return np.random.default_rng(0).integers(0, 256, (count, height, width, 3), dtype=np.uint8)


def only(text: str) -> View:
    """The one view that the text names besides the identity."""
    _, view = parse_views(text)
    return view


def test_identity_comes_first_and_nothing_twice() -> None:
    """Views keep the order they are named in, behind `identity`, and a repeated one counts once."""
    names = [view.name for view in parse_views("vflip, shift:2:up ,identity,scale:1.50,vflip,shift:2")]
    assert names == ["identity", "vflip", "shift:2:up", "scale:1.5", "shift:2:left", "shift:2:right", "shift:2:down"]


@given(st.lists(st.sampled_from([view.name for view in parse_views(ALL)])))
def test_names_name_their_views(names: list[str]) -> None:
    """Every view can be requested by its name in the predictions."""
    asked = list(dict.fromkeys(["identity", *names]))
    assert [view.name for view in parse_views(",".join(names) or "identity")] == asked


@pytest.mark.parametrize(
    "text",
    [
        *["", "flip", "HFLIP", "hflip,", "hflip:1", "identity:", "crop", "crop5:x"],
        *["shift", "shift:0", "shift:513", "shift:1.5", "shift:2:sideways"],
        *["scale", "scale:0.4", "scale:2.1", "scale:nan", "scale:inf", "scale:x"],
    ],
)
def test_unknown_views_are_refused(text: str) -> None:
    """A view that is misspelled or out of range is E201, and the hint lists what there is."""
    with pytest.raises(OptionError, match="E201") as caught:
        parse_views(text)
    assert "hflip" in caught.value.hint


@pytest.mark.parametrize("view", parse_views(ALL), ids=lambda view: view.name)
@pytest.mark.parametrize(("count", "height", "width"), [(2, 16, 16), (1, 8, 8), (0, 9, 9), (3, 17, 11)])
def test_views_keep_shape_and_leave_the_batch_alone(view: View, count: int, height: int, width: int) -> None:
    """A view has the batch's shape and type, is a contiguous array of its own, and changes nothing in the batch."""
    given_batch = batch(count, height, height if view.square_only else width)
    seen = view.apply(given_batch)
    assert seen.shape == given_batch.shape
    assert seen.dtype == np.uint8
    assert np.array_equal(given_batch, batch(*given_batch.shape[:3]))
    if view.name == "identity":
        assert seen is given_batch
    else:
        assert seen.flags.c_contiguous
        assert not np.shares_memory(seen, given_batch)


@pytest.mark.parametrize("view", parse_views(ALL), ids=lambda view: view.name)
def test_views_do_not_depend_on_the_memory_layout(view: View) -> None:
    """A batch that is a strided window into another array, and read-only, gives the same as its copy."""
    wide = batch(4, 16, 32)
    window = wide[::2, :, ::2]
    window.flags.writeable = False
    assert np.array_equal(view.apply(window), view.apply(window.copy()))


def test_images_of_a_batch_are_seen_one_by_one() -> None:
    """What a view makes of an image does not depend on the others in the batch."""
    images = batch(3)
    for view in parse_views(ALL):
        together = view.apply(images)
        for i in range(3):
            assert np.array_equal(together[i], view.apply(images[i : i + 1])[0]), view.name


@pytest.mark.parametrize(("name", "times"), [("hflip", 2), ("vflip", 2), ("rot90", 4)])
def test_flips_and_turns_come_back(name: str, times: int) -> None:
    """Mirrored twice, or turned four times and not earlier, a picture is itself again."""
    view, start = only(name), batch()
    seen = view.apply(start)
    for _ in range(times - 1):
        assert not np.array_equal(seen, start)
        seen = view.apply(seen)
    assert np.array_equal(seen, start)


def test_flips_and_turns_go_the_right_way() -> None:
    """The upper left corner goes to the upper right, the lower left, and, turned counter-clockwise, the lower left."""
    corner = np.zeros((1, 8, 8, 3), np.uint8)
    corner[0, 0, 0] = 255
    for name, place in (("hflip", (0, -1)), ("vflip", (-1, 0)), ("rot90", (-1, 0))):
        assert only(name).apply(corner)[0][place].tolist() == [255] * 3
    edge = np.zeros((1, 8, 8, 3), np.uint8)
    edge[0, :, -1] = 255  # the right edge, counter-clockwise, is the upper one
    assert (only("rot90").apply(edge)[0, 0] == 255).all()


@pytest.mark.parametrize("side", SHIFTS)
@pytest.mark.parametrize(("height", "width"), [(9, 12), (2, 2)])
def test_shift_moves_and_repeats_the_edge(side: str, height: int, width: int) -> None:
    """Each pixel comes from as far away as the view says, or from the nearest edge where nothing is there."""
    images = batch(2, height, width)
    seen = only(f"shift:3:{side}").apply(images)
    down, right = SHIFTS[side]
    for row in range(height):
        for column in range(width):
            source = min(max(row - down, 0), height - 1), min(max(column - right, 0), width - 1)
            assert np.array_equal(seen[:, row, column], images[:, source[0], source[1]])


def bilinear(image: Pixels, box: tuple[float, float, float, float], size: tuple[int, int]) -> Floats:
    """Interpolate inside ``box`` (top, left, bottom, right) by hand, when it is not made smaller."""
    top, left, bottom, right = box
    rows = top + (np.arange(size[0]) + 0.5) * (bottom - top) / size[0] - 0.5
    columns = left + (np.arange(size[1]) + 0.5) * (right - left) / size[1] - 0.5
    down = _weights(rows, image.shape[0])
    across = _weights(columns, image.shape[1])
    found: Floats = np.einsum("ih,hwc,jw->ijc", down, image.astype(float), across)
    return found


def _weights(places: Floats, length: int) -> Floats:
    """How much of each of ``length`` pixels is in a value at each place; the sum is one."""
    weights = np.clip(1 - np.abs(places[:, None] - np.arange(length)), 0, None)
    normalized: Floats = weights / weights.sum(axis=1, keepdims=True)
    return normalized


@pytest.mark.parametrize(
    ("name", "box"),
    [
        ("crop5:tl", (0, 0, 0.875, 0.875)),
        ("crop5:tr", (0, 0.125, 0.875, 1)),
        ("crop5:bl", (0.125, 0, 1, 0.875)),
        ("crop5:br", (0.125, 0.125, 1, 1)),
        ("crop5:c", (0.0625, 0.0625, 0.9375, 0.9375)),
        ("scale:1.25", (0.1, 0.1, 0.9, 0.9)),
        ("scale:2", (0.25, 0.25, 0.75, 0.75)),
        ("scale:1", (0, 0, 1, 1)),
    ],
)
@pytest.mark.parametrize(("height", "width"), [(16, 16), (24, 17)])
def test_crops_are_enlarged(name: str, box: tuple[float, float, float, float], height: int, width: int) -> None:
    """A crop shows its part of the picture, bilinearly enlarged to the whole; ``scale`` crops the center."""
    images = batch(2, height, width)
    part = (box[0] * height, box[1] * width, box[2] * height, box[3] * width)
    seen = only(name).apply(images)
    for image, shown in zip(images, seen, strict=True):
        assert np.abs(shown - bilinear(image, part, (height, width))).max() < 1.1  # Pillow rounds twice


def test_scaling_down_repeats_the_edge() -> None:
    """A factor below one shrinks the whole image to the center and repeats its edge around it."""
    image = batch(1, 16, 20)
    (seen,) = only("scale:0.5").apply(image)
    small = np.asarray(Image.fromarray(image[0]).resize((10, 8), Image.Resampling.BILINEAR))
    assert np.array_equal(seen[4:12, 5:15], small)
    assert (seen[:4, 5:15] == small[0]).all()
    assert (seen[4:12, :5] == small[:, :1]).all()
    assert (seen[12:, 15:] == small[-1, -1]).all()


def test_only_squares_are_turned() -> None:
    """`rot90` refuses a model with a rectangular input by name; every other view fits every size."""
    for view in parse_views(ALL):
        view.require_fits((8, 8), LabelSpace.flat(2), member="r18")
        if view.name != "rot90":
            view.require_fits((8, 9), LabelSpace.flat(2), member="r18")
    with pytest.raises(OptionError, match=r"E201.*rot90.*r18 takes 8x9"):
        only("rot90").require_fits((8, 9), LabelSpace.flat(2), member="r18")
