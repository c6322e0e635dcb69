"""What is rewritten for GPUs, counted or looked for in a graph is so in its branches, too."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from ensemble.arrays import Logits, Pixels
from ensemble.images.views import parse_views
from ensemble.predict.memory_budget import layers_of
from ensemble.runtime.front import TENSOR, split_front
from ensemble.runtime.fused_views import POOL, ROWS, SOURCES, fit_for_cudnn, fuse_pool, fuse_views, pixel_sources
from ensemble.runtime.model_file import INPUT, LOGITS
from ensemble.runtime.separate_rows import prove_rows
from ensemble.runtime.subgraphs import names_read, rename_reads, with_inner

Array = NDArray[Any]
SIZE = (9, 9)
WIDE = 32  # channels in the branch
VIEWS = parse_views("hflip,shift:2:left")


def network() -> bytes:
    """Two networks: where a logit of the first is below 0, the second answers for these images, in a branch.

    The second pads by one pixel more at the end, once by ``auto_pad``, and has an If inside that reads the image again.
    """
    rng = np.random.default_rng(0)
    make = helper.make_node
    weights = {
        "w": rng.normal(size=(2, 3)).astype(np.float32),
        "v": rng.normal(scale=0.01, size=(WIDE, 3, 3, 3)).astype(np.float32),
        "u": rng.normal(size=(2, WIDE, 2, 2)).astype(np.float32),
    }
    innermost = helper.make_graph(
        [make("Gather", [INPUT, "rows"], ["taken"], axis=0), make("Cast", ["taken"], ["numbers"], to=1)],
        "innermost",
        [],
        [helper.make_tensor_value_info("numbers", TensorProto.FLOAT, None)],
    )
    nothing = helper.make_graph(
        [make("Gather", [INPUT, "rows"], ["same"], axis=0), make("Cast", ["same"], ["none"], to=1)],
        "nothing",
        [],
        [helper.make_tensor_value_info("none", TensorProto.FLOAT, None)],
    )
    second = helper.make_graph(
        [
            make("If", ["any"], ["again"], then_branch=innermost, else_branch=nothing),
            make("Transpose", ["again"], ["again_planes"], perm=[0, 3, 1, 2]),
            make("Conv", ["again_planes", "v"], ["wide"], strides=[2, 2], pads=[0, 0, 1, 1]),
            make("Conv", ["wide", "u"], ["narrow"], auto_pad="SAME_UPPER"),
            make("GlobalAveragePool", ["narrow"], ["mean"]),
            make("Flatten", ["mean"], ["flat"]),
            make("ScatterND", ["first", "places", "flat"], ["joined"]),
        ],
        "second",
        [],
        [helper.make_tensor_value_info("joined", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(weights[name], name) for name in ("v", "u")],
    )
    first = helper.make_graph(
        [make("Identity", ["first"], ["unchanged"])],
        "else",
        [],
        [helper.make_tensor_value_info("unchanged", TensorProto.FLOAT, None)],
    )
    nodes = [
        make("Transpose", [INPUT], ["planes"], perm=[0, 3, 1, 2]),
        make("Cast", ["planes"], ["pixels"], to=1),
        make("Sub", ["pixels", "half"], ["centered"]),
        make("GlobalAveragePool", ["centered"], ["means"]),
        make("Flatten", ["means"], ["features"]),
        make("Gemm", ["features", "w"], ["first"], transB=1),
        make("Gather", ["first", "zero"], ["one"], axis=1),
        make("Less", ["one", "level"], ["low"]),
        make("NonZero", ["low"], ["found"]),
        make("Reshape", ["found", "flat_shape"], ["rows"]),
        make("Reshape", ["found", "column"], ["places"]),
        make("Size", ["rows"], ["count"]),
        make("Greater", ["count", "zero"], ["any"]),
        make("If", ["any"], [LOGITS], then_branch=second, else_branch=first),
    ]
    constants = {
        "w": weights["w"],
        "half": np.float32(127.5),
        "zero": np.array(0),
        "level": np.float32(0),
        "flat_shape": np.array([-1]),
        "column": np.array([-1, 1]),
    }
    graph = helper.make_graph(
        nodes,
        "both",
        [helper.make_tensor_value_info(INPUT, TensorProto.UINT8, ["batch", *SIZE, 3])],
        [helper.make_tensor_value_info(LOGITS, TensorProto.FLOAT, ["batch", 2])],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    onnx.checker.check_model(model, full_check=True)
    return bytes(model.SerializeToString())


@pytest.fixture(scope="module")
def data() -> bytes:
    return network()


@pytest.fixture(scope="module")
def pixels() -> Pixels:
    """Images of which some take the branch."""
    return np.random.default_rng(1).integers(0, 256, (24, *SIZE, 3), dtype=np.uint8)


def run(data: bytes, **feed: Array) -> Array:
    settings = onnxruntime.SessionOptions()
    settings.log_severity_level = 4
    settings.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(data, settings, providers=["CPUExecutionProvider"])
    (found,) = session.run(None, feed)
    return np.asarray(found)


def expected(data: bytes, pixels: Pixels) -> Logits:
    return np.stack([run(data, image=np.ascontiguousarray(view.apply(pixels))) for view in VIEWS], axis=1)


def convolutions(data: bytes) -> Iterator[onnx.NodeProto]:
    graph = onnx.load_model_from_string(data).graph
    return (node for node in with_inner(graph.node) if node.op_type == "Conv")


@pytest.mark.parametrize("for_cudnn", [False, True])
def test_a_branch_sees_the_views(data: bytes, pixels: Pixels, for_cudnn: bool) -> None:
    """The image that a branch reads is that of the view, at any depth, with one view and with three."""
    both = expected(data, pixels)
    fused = fuse_views(data, VIEWS, rows=24, size=SIZE, for_cudnn=for_cudnn)
    np.testing.assert_allclose(run(fused, image=pixels).reshape(both.shape), both, rtol=1e-5, atol=1e-4)
    alone = fuse_views(data, VIEWS[:1], rows=24, size=SIZE, for_cudnn=for_cudnn)
    np.testing.assert_allclose(run(alone, image=pixels), both[:, 0], rtol=1e-5, atol=1e-4)


def test_a_branch_sees_the_rows_of_a_chunk(data: bytes, pixels: Pixels) -> None:
    """Of a chunk in the device's memory, a branch reads the rows and the view that are asked for."""
    fused = fuse_pool(data, pool=24, rows=7, size=SIZE)
    table = pixel_sources(VIEWS[1], SIZE)
    assert table is not None
    feed: dict[str, Array] = {POOL: pixels, ROWS: np.arange(9, 16), SOURCES: table.reshape(-1)}
    np.testing.assert_allclose(run(fused, **feed), expected(data, pixels)[9:16, 1], rtol=1e-5, atol=1e-4)


def test_padding_in_a_branch_is_symmetric_for_cudnn(data: bytes, pixels: Pixels) -> None:
    """Both convolutions of the branch get a Pad before them, and answer as before."""
    fixed = fuse_views(data, VIEWS[:1], rows=24, size=SIZE, for_cudnn=True)
    for found in (fit_for_cudnn(data), fixed):
        onnx.checker.check_model(onnx.load_model_from_string(found), full_check=True)
        np.testing.assert_allclose(run(found, image=pixels), run(data, image=pixels), rtol=1e-5, atol=1e-4)
        (first, second) = convolutions(found)
        assert [list(one.ints) for one in first.attribute if one.name == "pads"] == [[0, 0, 0, 0]]
    assert [list(one.ints) for one in second.attribute if one.name == "pads"] == [[0, 0, 0, 0]]


def test_a_front_that_a_branch_reads_is_not_split_off(data: bytes, pixels: Pixels) -> None:
    """The branch reads the images of the views: without it the front would be all up to the centered pixels."""
    fused = fuse_views(data, VIEWS, rows=24, size=SIZE)
    assert split_front(fused) is None
    model = onnx.load_model_from_string(fused)
    (last,) = [node for node in model.graph.node if node.op_type == "If"]
    plain = onnx.ModelProto.FromString(model.SerializeToString())
    plain.graph.node[-1].CopyFrom(helper.make_node("Identity", ["first"], [LOGITS]))
    assert split_front(plain.SerializeToString()) is not None
    # a branch that reads the end of the front reads it by its new name
    rename_reads(last, {"ens.seen": "centered"})
    del last.attribute[:]
    reads = helper.make_graph(
        [
            helper.make_node("ReduceMean", ["centered", "sides"], ["colors"], keepdims=0),
            helper.make_node("MatMul", ["colors", "turned"], ["other"]),
        ],
        "reads",
        [],
        [helper.make_tensor_value_info("other", TensorProto.FLOAT, None)],
        [
            numpy_helper.from_array(np.array([2, 3]), "sides"),
            numpy_helper.from_array(np.eye(3, 2, dtype=np.float32), "turned"),
        ],
    )
    last.attribute.append(helper.make_attribute("then_branch", reads))
    same = [helper.make_node("Identity", ["first"], ["unchanged"])]
    output = helper.make_tensor_value_info("unchanged", TensorProto.FLOAT, None)
    last.attribute.append(helper.make_attribute("else_branch", helper.make_graph(same, "else", [], [output])))
    split = split_front(model.SerializeToString())
    assert split is not None
    whole = run(model.SerializeToString(), image=pixels)
    np.testing.assert_allclose(run(split.body, **{TENSOR: run(split.front, image=pixels)}), whole, rtol=1e-6)


def test_the_layers_of_a_branch_are_held_beside_the_others(data: bytes) -> None:
    """The image in float32 and a map of 4 x 4 x 32 in the branch come on top of the image outside."""
    inside, image = (9 * 9 * 3 + 4 * 4 * WIDE) * 4, 9 * 9 * 3
    assert inside + image <= layers_of(data) < inside + image + 100


def test_what_a_branch_reads_is_read() -> None:
    """Names at any depth; a result of a branch may be a tensor around it, and so is what answers depend on."""
    graph = onnx.load_model_from_string(network()).graph
    read = set(names_read(graph.node[-1]))
    assert {"any", INPUT, "rows", "places", "first", "v", "u"} <= read
    output = helper.make_tensor_value_info("drawn", TensorProto.FLOAT, None)
    branches = {name: helper.make_graph([], name, [], [output]) for name in ("then_branch", "else_branch")}
    nodes = [
        helper.make_node("RandomNormal", [], ["drawn"], shape=[1, 2]),
        helper.make_node("If", ["yes"], [LOGITS], **branches),
    ]
    outputs = [helper.make_tensor_value_info(LOGITS, TensorProto.FLOAT, [1, 2])]
    constant = numpy_helper.from_array(np.array(True), "yes")
    drawing = helper.make_model(helper.make_graph(nodes, "draws", [], outputs, [constant]))
    assert prove_rows(drawing, LOGITS).chance == ("RandomNormal drawn",)
