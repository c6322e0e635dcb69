"""A graph in two gives the logits of the whole, and equal beginnings are recognized."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import numpy_helper

from ensemble.images.views import parse_views
from ensemble.runtime.front import TENSOR, SplitGraph, split_front
from ensemble.runtime.fused_views import HOST_VIEWS, fuse_views, split_views, stack_views
from ensemble.runtime.model_file import INPUT, LOGITS
from tests.support import toys

VIEWS = parse_views("hflip,scale:1.25")
SIZE = (16, 12)


def fused(proto: onnx.ModelProto, *, rows: int = 3) -> bytes:
    return fuse_views(proto.SerializeToString(), VIEWS, rows=rows, size=SIZE, for_cudnn=True)


def split(proto: onnx.ModelProto, *, rows: int = 3) -> SplitGraph:
    found = split_front(fused(proto, rows=rows))
    assert found is not None
    return found


def run(data: bytes, output: str, feed: dict[str, np.ndarray]) -> np.ndarray:
    session = onnxruntime.InferenceSession(data, providers=["CPUExecutionProvider"])
    found = session.run([output], feed)[0]
    assert isinstance(found, np.ndarray)
    return found


@pytest.mark.parametrize("kind", ["linear", "resnet", "efficientnet"])
def test_both_parts_give_the_logits_of_the_whole(kind: str) -> None:
    """The front's tensor has the shape and type that it says, and what the body makes of it has the whole's bits."""
    proto = toys.model_proto() if kind == "linear" else toys.convolutional_proto(kind=kind)
    pixels = np.random.default_rng(0).integers(0, 256, (3, *SIZE, 3), dtype=np.uint8)
    feed = {INPUT: pixels, HOST_VIEWS: stack_views(split_views(VIEWS, SIZE)[1], pixels)}
    found = split(proto)
    tensor = run(found.front, TENSOR, feed)
    assert (tensor.shape, tensor.dtype) == (found.shape, found.dtype)
    kinds = {node.op_type for node in onnx.load_from_string(found.body).graph.node}
    assert not kinds & {"Gather", "Cast", "Transpose", "Mul"} or kind == "efficientnet"
    np.testing.assert_array_equal(run(found.body, LOGITS, {TENSOR: tensor}), run(fused(proto), LOGITS, feed))


def test_folds_begin_alike_and_others_do_not() -> None:
    """Other weights behind the front and other names keep its key; another scale, size of batch or type change it."""
    proto = toys.convolutional_proto()
    key = split(proto).key
    weights = toys.convolutional_proto()
    for tensor in weights.graph.initializer:
        if len(tensor.dims) == 4:
            tensor.CopyFrom(numpy_helper.from_array(2 * numpy_helper.to_array(tensor), tensor.name))
    renamed = toys.convolutional_proto()
    for node in renamed.graph.node:
        for names in (node.input, node.output):
            names[:] = [f"other.{name}" if name.startswith("t") else name for name in names]
    assert split(weights).key == split(renamed).key == key
    scaled = toys.convolutional_proto(seed=1)
    assert key not in {split(scaled).key, split(proto, rows=4).key}


def test_what_has_no_front_stays_whole(tmp_path: Path) -> None:
    """A graph that computes at once, or that reads its pixels again later, is not split."""
    proto = toys.model_proto()
    proto.graph.node.append(onnx.helper.make_node("Shape", ["scaled"], ["again"]))
    assert split_front(fused(proto)) is not None
    proto.graph.node.append(onnx.helper.make_node("Shape", ["float"], ["before"]))
    assert split_front(fused(proto)) is None
    flat = toys.model_proto()
    assert split_front(split(flat).body) is None
