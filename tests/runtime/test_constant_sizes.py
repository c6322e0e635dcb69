"""ONNX files of a few bytes whose constants ask for gigabytes are refused before ONNX Runtime computes them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from ensemble.adopt.foreign import read_foreign
from ensemble.errors import ModelError
from ensemble.runtime.constant_sizes import find_oversized
from ensemble.runtime.model_file import read_model
from tests.support import toys


def ending(nodes: list[onnx.NodeProto], **constants: object) -> onnx.ModelProto:
    """The toy network, of whose answers ``plain`` nodes make ``more``, which is added to them."""
    model = toys.model_proto()
    model.graph.node[-1].output[0] = "plain"
    model.graph.node.extend([*nodes, helper.make_node("Add", ["plain", "more"], ["logits"])])
    for name, value in constants.items():
        model.graph.initializer.append(numpy_helper.from_array(np.asarray(value), name))
    return model


def reduced(node: onnx.NodeProto, **constants: object) -> onnx.ModelProto:
    return ending([node, helper.make_node("ReduceMax", ["big"], ["more"], keepdims=0)], **constants)


def constant(values: list[int]) -> onnx.NodeProto:
    return helper.make_node("Constant", [], ["size"], value_ints=values)


def branched(size: int) -> onnx.ModelProto:
    """The layer is in a branch, and its size outside."""
    made = helper.make_node("ConstantOfShape", ["size"], ["big"])
    branch = helper.make_graph(
        [made, helper.make_node("ReduceMax", ["big"], ["m"], keepdims=0)],
        "branch",
        [],
        [helper.make_tensor_value_info("m", TensorProto.FLOAT, [])],
    )
    node = helper.make_node("If", ["yes"], ["more"], then_branch=branch, else_branch=branch)
    return ending([node], yes=np.array(True), size=np.array([size]))


HUGE = 3_000_000_000
MODELS = {
    "ConstantOfShape": reduced(helper.make_node("ConstantOfShape", ["size"], ["big"]), size=np.array([HUGE])),
    "Expand": reduced(helper.make_node("Expand", ["plain", "size"], ["big"]), size=np.array([60_000, 60_000, 1, 1])),
    "Tile": reduced(helper.make_node("Tile", ["plain", "size"], ["big"]), size=np.array([HUGE, 1])),
    "Range": ending(
        [
            helper.make_node("Range", ["a", "b", "c"], ["whole"]),
            helper.make_node("Cast", ["whole"], ["big"], to=TensorProto.FLOAT),
            helper.make_node("ReduceMax", ["big"], ["more"], keepdims=0),
        ],
        a=np.int64(0),
        b=np.int64(HUGE),
        c=np.int64(1),
    ),
    "in a branch": branched(HUGE),
}


@pytest.mark.parametrize("name", MODELS)
def test_a_tensor_of_gigabytes_is_refused(tmp_path: Path, name: str) -> None:
    """By predict and by adopt, with the layer and its size."""
    path = toys.write_model(tmp_path, proto=MODELS[name])
    assert path.stat().st_size < 100_000
    for read in (read_model, read_foreign):
        with pytest.raises(ModelError, match=r"makes 3,[06]00,000,000 numbers|makes 3,000,000,000") as caught:
            read(path)
        assert caught.value.code == "E429"


def test_usual_sizes_are_accepted(tmp_path: Path) -> None:
    """Positions, masks and scores of zero in a network are made the same way."""
    nodes = [constant([1, 18]), helper.make_node("ConstantOfShape", ["size"], ["more"])]
    assert find_oversized(ending(nodes)) is None
    assert find_oversized(branched(1000)) is None
    assert find_oversized(toys.convolutional_proto()) is None
    read_model(toys.write_model(tmp_path, proto=ending(nodes)))
