"""Images are prepared in the graph as the program prepares them."""

from __future__ import annotations

import numpy as np
import onnx
import onnxruntime
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper

from ensemble.card import FaceCrop, Preprocess
from ensemble.errors import DeployError
from ensemble.fuse.fused_session import box_array
from ensemble.fuse.node_list import NodeList
from ensemble.fuse.prepare_nodes import prepare_nodes, require_resizable
from ensemble.images.face_boxes import Box
from ensemble.images.face_crop import prepare_image
from ensemble.runtime.parity import draw_pictures

SIZES = ((64, 48), (33, 201), (201, 9), (24, 24), (1, 1), (130, 128))


def run(preprocess: Preprocess, images: NDArray[np.uint8], boxes: NDArray[np.float32]) -> NDArray[np.uint8]:
    """What the graph makes of images of one size."""
    nodes = NodeList()
    made = prepare_nodes(nodes, "images", "boxes", preprocess)
    nodes.add("Identity", made, output="prepared")
    graph = helper.make_graph(
        nodes.nodes,
        "prepare",
        [
            helper.make_tensor_value_info("images", TensorProto.UINT8, ["N", "H", "W", 3]),
            helper.make_tensor_value_info("boxes", TensorProto.FLOAT, ["N", 4]),
        ],
        [helper.make_tensor_value_info("prepared", TensorProto.UINT8, ["N", *preprocess.size, 3])],
        nodes.initializers,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    onnx.checker.check_model(model, full_check=True)
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    found: NDArray[np.uint8] = session.run(None, {"images": images, "boxes": boxes})[0]
    return found


PREPROCESSES = {
    "squash": Preprocess((16, 16)),
    "squash to a rectangle": Preprocess((12, 20)),
    "squash and cut": Preprocess((16, 12), crop_pct=0.875),
    "bicubic": Preprocess((16, 16), interpolation="bicubic"),
    "nearest": Preprocess((16, 16), interpolation="nearest"),
    "center": Preprocess((16, 16), resize="center", crop_pct=0.9),
    "center of a rectangle": Preprocess((20, 12), resize="center"),
    "pad": Preprocess((16, 16), resize="pad"),
    "pad with a color and cut": Preprocess((17, 14), resize="pad", crop_pct=0.8, fill=(1, 120, 255)),
    "face": Preprocess((16, 16), face=FaceCrop(0.2)),
    "face, fallback above the middle": Preprocess((14, 16), face=FaceCrop(0.0, (0.4, 0.3, 0.6)), resize="center"),
}


@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("name", PREPROCESSES)
def test_prepared_pixels_are_the_program_s(name: str, size: tuple[int, int]) -> None:
    """Of every image size, at most 4 % of the values differ from `prepare_image`, and by one level."""
    preprocess = PREPROCESSES[name]
    images = np.concatenate(
        [draw_pictures(size)[:2], np.random.default_rng(1).integers(0, 256, (2, *size, 3), np.uint8)]
    )
    height, width = size
    faces = [
        None,
        Box(0.25 * width, 0.125 * height, 0.5 * width, 0.875 * height),
        Box(-0.25 * width, -0.5 * height, 0.5 * width, 0.75 * height),
        None,
    ]
    expected = np.stack(
        [prepare_image(image, preprocess, face) for image, face in zip(images, faces, strict=True)]
    ).astype(int)
    difference = np.abs(run(preprocess, images, box_array(faces)) - expected)
    assert difference.max() <= 1
    assert (difference > 0).mean() <= 0.04


@pytest.mark.parametrize("size", [(9, 9), (18, 8), (128, 112)], ids=str)
def test_nearest_pixels_are_pillows_to_the_last_one(size: tuple[int, int]) -> None:
    """Also where a place is a whole number but for rounding: Pillow adds up steps, a product rounds otherwise."""
    preprocess = Preprocess(size, interpolation="nearest")
    for side in range(1, 400, 13):
        images = np.random.default_rng(side).integers(0, 256, (1, side, 400 - side, 3), np.uint8)
        expected = prepare_image(images[0], preprocess, None)
        assert np.array_equal(run(preprocess, images, box_array([None]))[0], expected)


def test_a_box_without_an_area_is_no_face() -> None:
    """A box whose right side is left of its left one gives the card's fallback, as NaN does."""
    preprocess = Preprocess((16, 16), face=FaceCrop(0.2))
    images = np.repeat(draw_pictures((40, 30))[:1], 3, axis=0)
    boxes = np.array([[np.nan] * 4, [20, 5, 10, 15], [5, 5, 15, 15]], np.float32)
    none, reversed_box, face = run(preprocess, images, boxes)
    assert np.array_equal(none, reversed_box)
    assert not np.array_equal(none, face)


@pytest.mark.parametrize(
    "preprocess",
    [
        Preprocess((16, 16), interpolation="lanczos"),
        Preprocess((16, 16), resizer="opencv"),
        Preprocess((16, 16), resizer="torch"),
    ],
    ids=["lanczos", "opencv", "torch"],
)
def test_a_resizer_that_is_not_written_is_refused_by_name(preprocess: Preprocess) -> None:
    """The message names the member, the resizer and those that there are."""
    with pytest.raises(DeployError, match=rf"m is resized by {preprocess.resizer} .*bicubic") as caught:
        require_resizable(preprocess, member="m")
    assert caught.value.code == "E804"
