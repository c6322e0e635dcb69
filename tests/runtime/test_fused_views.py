"""Views inside the network are the views of the host, pixel for pixel."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper

from ensemble.arrays import Pixels
from ensemble.images.views import View, parse_views
from ensemble.runtime.fused_views import HOST_VIEWS, cast_first, fuse_views, pixel_sources, split_views, stack_views
from ensemble.runtime.model_file import INPUT, LOGITS, read_model
from tests.support import toys

ALL = parse_views("hflip,vflip,rot90,shift:3,scale:1.25,scale:0.8,crop5")
SIZE = (16, 16)


def noise(count: int, size: tuple[int, int] = SIZE) -> Pixels:
    return np.random.default_rng(3).integers(0, 256, (count, *size, 3), dtype=np.uint8)


def pixel_model(kind: int) -> bytes:
    """A network whose logits are its pixels, in the order it is given them; ``kind`` is what it turns them into."""
    nodes = [
        helper.make_node("Transpose", ["image"], ["planes"], perm=[0, 3, 1, 2]),
        helper.make_node("Cast", ["planes"], ["numbers"], to=kind),
        helper.make_node("Transpose", ["numbers"], ["back"], perm=[0, 2, 3, 1]),
        helper.make_node("Flatten", ["back"], ["flat"], axis=1),
        helper.make_node("Cast", ["flat"], [LOGITS], to=TensorProto.FLOAT),
    ]
    image = helper.make_tensor_value_info(INPUT, TensorProto.UINT8, ["batch", *SIZE, 3])
    logits = helper.make_tensor_value_info(LOGITS, TensorProto.FLOAT, ["batch", 16 * 16 * 3])
    inside = helper.make_tensor_value_info("planes", TensorProto.UINT8, ["batch", 3, *SIZE])
    graph = helper.make_graph(nodes, "pixels", [image], [logits], value_info=[inside])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    return bytes(model.SerializeToString())


def test_only_views_that_move_pixels_are_cut_on_the_device() -> None:
    """Flips, turns and shifts go to the device; what is resized, or interpolated by a hair, stays on the host."""
    cut, made = split_views((*ALL, View("dim", lambda batch: batch // 2)), SIZE)
    assert [view.name for view in cut[:4]] == ["identity", "hflip", "vflip", "rot90"]
    assert [view.name.split(":")[0] for view in cut[4:]] == ["shift"] * 4
    assert [view.name.split(":")[0] for view in made] == ["scale"] * 2 + ["crop5"] * 5 + ["dim"]


def test_a_table_says_where_each_pixel_comes_from() -> None:
    """The upper left pixel of a mirrored image of 4 columns is number 3; shifted right, the edge is repeated."""
    hflip, right = parse_views("hflip,shift:2:right")[1:]
    table = pixel_sources(hflip, (2, 4))
    assert table is not None
    assert table.tolist() == [[3, 2, 1, 0], [7, 6, 5, 4]]
    moved = pixel_sources(right, (1, 4))
    assert moved is not None
    assert moved.tolist() == [[0, 0, 0, 1]]


@pytest.mark.parametrize("kind", [TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.UINT8])
def test_the_network_sees_the_hosts_pixels(kind: int) -> None:
    """Every view in the graph has the bytes of the view that numpy cuts, also where the network casts to half."""
    pixels = noise(3)
    cut, made = split_views(ALL, SIZE)
    runtime = onnxruntime.InferenceSession(
        fuse_views(pixel_model(kind), ALL, rows=3, size=SIZE), providers=["CPUExecutionProvider"]
    )
    seen = runtime.run([LOGITS], {INPUT: pixels, HOST_VIEWS: stack_views(made, pixels)})[0]
    seen = seen.reshape(3, len(ALL), *SIZE, 3)
    for place, view in enumerate((*cut, *made)):
        assert np.array_equal(seen[:, place], view.apply(pixels)), view.name


@pytest.mark.parametrize("views", [parse_views("hflip")[1:], parse_views("scale:1.25")[1:]], ids=["hflip", "scale"])
def test_a_single_view_is_not_the_image_as_it_is(views: tuple[View, ...]) -> None:
    """A model with a single view, gathered on the device or made on the host, sees that view."""
    pixels = noise(3)
    made = split_views(views, SIZE)[1]
    feed = {INPUT: pixels} | ({HOST_VIEWS: stack_views(made, pixels)} if made else {})
    runtime = onnxruntime.InferenceSession(fuse_views(pixel_model(TensorProto.FLOAT), views, rows=3, size=SIZE))
    seen = runtime.run([LOGITS], feed)[0].reshape(3, *SIZE, 3)
    assert np.array_equal(seen, views[0].apply(pixels))


@pytest.mark.parametrize("views", [parse_views("identity"), ALL], ids=["identity", "all"])
def test_the_image_goes_straight_into_a_cast(views: tuple[View, ...]) -> None:
    """Whatever the views, no uint8 is moved about, which TensorRT refuses; the numbers stay the same."""
    data, pixels = pixel_model(TensorProto.FLOAT), noise(2)
    for changed in (cast_first(data), fuse_views(data, views, rows=2, size=SIZE)):
        takers = [
            node.op_type for node in onnx.load_from_string(changed).graph.node if {INPUT, HOST_VIEWS} & set(node.input)
        ]
        assert set(takers) == {"Cast"}
    seen = onnxruntime.InferenceSession(cast_first(data)).run([LOGITS], {INPUT: pixels})[0]
    assert np.array_equal(seen.reshape(pixels.shape), pixels)


def test_a_network_that_computes_with_whole_numbers_gets_whole_numbers() -> None:
    """Where the image is not cast first, the views stay uint8: an uint8 operator runs on the fused graph too."""
    nodes = [
        helper.make_node("Max", ["image", "image"], ["same"]),
        helper.make_node("Cast", ["same"], ["numbers"], to=TensorProto.FLOAT),
        helper.make_node("Flatten", ["numbers"], [LOGITS], axis=1),
    ]
    graph = helper.make_graph(
        nodes,
        "whole",
        [helper.make_tensor_value_info(INPUT, TensorProto.UINT8, ["batch", *SIZE, 3])],
        [helper.make_tensor_value_info(LOGITS, TensorProto.FLOAT, ["batch", 16 * 16 * 3])],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    views = parse_views("hflip")
    fused = fuse_views(model.SerializeToString(), views, rows=2, size=SIZE)
    pixels = noise(2)
    seen = onnxruntime.InferenceSession(fused).run([LOGITS], {INPUT: pixels})[0].reshape(2, 2, *SIZE, 3)
    assert np.array_equal(seen[:, 1], pixels[:, :, ::-1])


def test_all_shapes_of_a_fused_graph_are_known(tmp_path: Path) -> None:
    """The batch is a number, also without views: nothing in the graph is left to be computed from shapes."""
    model = read_model(toys.write_model(tmp_path, toys.card(size=SIZE)))
    for views, rows in ((parse_views("identity"), 5), (ALL, 5)):
        fused = onnx.load_from_string(fuse_views(model.data, views, rows=rows, size=SIZE))
        onnx.checker.check_model(fused, full_check=True)
        for value in fused.graph.input:
            assert all(dim.HasField("dim_value") for dim in value.type.tensor_type.shape.dim)
        runtime = onnxruntime.InferenceSession(fused.SerializeToString())
        assert runtime.get_outputs()[0].shape == [rows * len(views), 18]
