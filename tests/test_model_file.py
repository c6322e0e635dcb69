"""Hostile, damaged and foreign ONNX files are refused before onnxruntime sees them."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from ensemble.card import METADATA_KEY
from ensemble.errors import FileError, ModelError
from ensemble.model_file import read_model
from tests import toys


def write(path: Path, model: onnx.ModelProto) -> Path:
    path.write_bytes(model.SerializeToString())
    return path


def test_a_model_of_the_contract_is_read_with_its_card(tmp_path: Path) -> None:
    """Reading a model gives back the card that was written into it, and the file's own bytes."""
    path = toys.write_model(tmp_path, toys.card("r18"))
    model = read_model(path)
    assert model.card == toys.card("r18")
    assert model.data == path.read_bytes()
    assert model.outputs == ("logits",)


def test_a_missing_file_is_an_error_of_the_file_system(tmp_path: Path) -> None:
    """A path that does not exist is E707, not a traceback."""
    with pytest.raises(FileError, match="E707"):
        read_model(tmp_path / "none.onnx")


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n",
        b"<html>quota exceeded</html>",
        os.urandom(512),
    ],
    ids=["zero", "lfs", "html", "random"],
)
def test_fault_52_what_is_not_onnx_is_refused(tmp_path: Path, content: bytes) -> None:
    """A zero-byte file, a pointer, a web page and random bytes are E420."""
    (tmp_path / "m.onnx").write_bytes(content)
    with pytest.raises(ModelError, match="E420"):
        read_model(tmp_path / "m.onnx")


def test_fault_52_a_truncated_model_is_refused(tmp_path: Path) -> None:
    """Half a model is E420."""
    data = toys.model_proto().SerializeToString()
    (tmp_path / "m.onnx").write_bytes(data[: len(data) // 2])
    with pytest.raises(ModelError, match="E420"):
        read_model(tmp_path / "m.onnx")


def too_new_opset(model: onnx.ModelProto) -> None:
    model.opset_import[0].version = 99


def too_new_ir(model: onnx.ModelProto) -> None:
    model.ir_version = 50


@pytest.mark.parametrize("change", [too_new_opset, too_new_ir])
def test_fault_53_a_model_from_the_future_is_refused(tmp_path: Path, change: Callable[[onnx.ModelProto], None]) -> None:
    """An opset or IR version that is not known is E421."""
    model = toys.model_proto()
    change(model)
    with pytest.raises(ModelError, match="E421"):
        read_model(write(tmp_path / "m.onnx", model))


def outside(name: str) -> TensorProto:
    tensor = numpy_helper.from_array(np.zeros(1, dtype=np.float32), name)
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value="../secret")
    return tensor


def in_initializer(model: onnx.ModelProto) -> None:
    model.graph.initializer.append(outside("w"))


def in_sparse_initializer(model: onnx.ModelProto) -> None:
    model.graph.sparse_initializer.add().values.CopyFrom(outside("w"))


def in_attribute(model: onnx.ModelProto) -> None:
    model.graph.node.append(helper.make_node("Constant", [], ["c"], value=outside("w")))


def in_subgraph(model: onnx.ModelProto) -> None:
    inner = helper.make_graph([], "inner", [], [], [outside("w")])
    model.graph.node.append(helper.make_node("If", ["c"], ["y"], then_branch=inner, else_branch=inner))


def in_function(model: onnx.ModelProto) -> None:
    node = helper.make_node("Constant", [], ["c"], value=outside("w"))
    model.functions.append(helper.make_function("local", "f", [], ["c"], [node], [helper.make_opsetid("", 20)]))


def without_location_flag(model: onnx.ModelProto) -> None:
    tensor = outside("w")
    tensor.data_location = TensorProto.DEFAULT
    model.graph.initializer.append(tensor)


@pytest.mark.parametrize(
    "hide", [in_initializer, in_sparse_initializer, in_attribute, in_subgraph, in_function, without_location_flag]
)
def test_fault_54_data_outside_the_file_is_refused_wherever_it_hides(
    tmp_path: Path, hide: Callable[[onnx.ModelProto], None]
) -> None:
    """A tensor that points to another file is E422 and the file is named, in every place a tensor can stand."""
    model = toys.model_proto()
    hide(model)
    with pytest.raises(ModelError, match=r"E422.*\.\./secret"):
        read_model(write(tmp_path / "m.onnx", model))


def test_fault_55_a_model_without_card_is_refused(tmp_path: Path) -> None:
    """A foreign model is E423: what its classes and pixels mean is never guessed."""
    model = toys.model_proto()
    del model.metadata_props[:]
    with pytest.raises(ModelError, match="E423"):
        read_model(write(tmp_path / "m.onnx", model))


@pytest.mark.parametrize("card", ["", "[]", '{"schema": 99}', '{"schema": 1}'])
def test_a_card_that_cannot_be_read_names_the_file(tmp_path: Path, card: str) -> None:
    """A card that is not JSON, of a newer schema or without fields is E427."""
    model = toys.model_proto()
    helper.set_model_props(model, {METADATA_KEY: card})
    with pytest.raises(ModelError, match=r"E427.*m\.onnx"):
        read_model(write(tmp_path / "m.onnx", model))


def of_another_size(model: onnx.ModelProto) -> None:
    model.graph.input[0].type.tensor_type.shape.dim[1].dim_value = 99


def of_a_fixed_batch(model: onnx.ModelProto) -> None:
    model.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 4


def of_floats(model: onnx.ModelProto) -> None:
    model.graph.input[0].type.tensor_type.elem_type = TensorProto.FLOAT


def of_another_name(model: onnx.ModelProto) -> None:
    model.graph.output[0].name = "probabilities"


def of_other_classes(model: onnx.ModelProto) -> None:
    card = json.loads(model.metadata_props[0].value)
    card["labels"]["axes"].pop()
    model.metadata_props[0].value = json.dumps(card)


@pytest.mark.parametrize("change", [of_another_size, of_a_fixed_batch, of_floats, of_another_name, of_other_classes])
def test_fault_56_inputs_and_outputs_must_be_as_the_card_says(
    tmp_path: Path, change: Callable[[onnx.ModelProto], None]
) -> None:
    """Another shape, type, name or number of classes than the card's is E424."""
    model = toys.model_proto()
    change(model)
    with pytest.raises(ModelError, match="E424"):
        read_model(write(tmp_path / "m.onnx", model))


def test_fault_57_custom_operators_are_refused(tmp_path: Path) -> None:
    """A domain that onnxruntime does not bring is E425 and named."""
    model = toys.model_proto()
    model.opset_import.append(helper.make_opsetid("com.evil", 1))
    with pytest.raises(ModelError, match=r"E425.*com\.evil"):
        read_model(write(tmp_path / "m.onnx", model))
