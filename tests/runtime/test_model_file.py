"""Hostile, damaged and foreign ONNX files are refused before onnxruntime sees them."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import onnx
import pytest
from google.protobuf.descriptor import Descriptor
from google.protobuf.message import Message
from onnx import TensorProto, helper, numpy_helper

from ensemble.card import METADATA_KEY
from ensemble.errors import FileError, ModelError
from ensemble.runtime.model_file import read_model
from tests.support import toys


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


def test_fault_52_a_model_without_layers_is_refused(tmp_path: Path) -> None:
    """An empty file is a valid protobuf of nothing, and a graph may have inputs and outputs alone."""
    model = toys.model_proto()
    del model.graph.node[:]
    for content in (b"", model.SerializeToString()):
        (tmp_path / "m.onnx").write_bytes(content)
        with pytest.raises(ModelError, match=r"E420.*contains no network"):
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


def places(kind: Descriptor, path: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    """Every chain of fields that leads from a message to a tensor, through each kind of message once."""
    for field in kind.fields:
        if field.message_type is TensorProto.DESCRIPTOR:
            yield (*path, field.name)
        elif field.message_type is not None and len(path) < 6:
            yield from places(field.message_type, (*path, field.name))


EVERYWHERE = sorted(places(onnx.ModelProto.DESCRIPTOR))


def test_fault_54_no_place_is_overlooked(tmp_path: Path) -> None:
    """In every place that the format has for a tensor, up to the branches of a branch, data outside is E422."""
    assert len(EVERYWHERE) > 50
    for path in EVERYWHERE:
        model = toys.model_proto(toys.card(size=(8, 8)))
        message: Message = model
        for name in path:
            value = getattr(message, name)
            message = value if isinstance(value, Message) else value.add()
        message.CopyFrom(outside("w"))
        with pytest.raises(ModelError, match=r"E422.*\.\./secret"):
            read_model(write(tmp_path / "m.onnx", model))


@pytest.mark.parametrize("link", ["file", "symlink", "hardlink"])
def test_fault_54_data_beside_the_file_is_refused(tmp_path: Path, link: str) -> None:
    """Weights in a real file beside the model, a symbolic link or a hard link are E422: a model is one file."""
    (tmp_path / "secret").write_bytes(bytes(64))
    beside = tmp_path / "weights.bin"
    match link:
        case "file":
            beside.write_bytes(bytes(64))
        case "symlink":
            beside.symlink_to("secret")
        case _:
            os.link(tmp_path / "secret", beside)
    model = toys.model_proto()
    tensor = outside("w")
    tensor.external_data[0].value = beside.name
    model.graph.initializer.append(tensor)
    with pytest.raises(ModelError, match=r"E422.*weights\.bin"):
        read_model(write(tmp_path / "m.onnx", model))


def test_fault_54_a_compiled_program_is_refused(tmp_path: Path) -> None:
    """onnxruntime's own operator that loads a compiled network from another file is E422, in a branch as well."""
    model = toys.model_proto()
    node = helper.make_node("EPContext", ["logits"], ["y"], domain="com.microsoft", ep_cache_context="../x.engine")
    inner = helper.make_graph([node], "inner", [], [])
    model.graph.node.append(helper.make_node("If", ["c"], ["y"], then_branch=inner, else_branch=inner))
    with pytest.raises(ModelError, match=r"E422.*EPContext"):
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


def test_fault_57_a_custom_operator_hides_nowhere(tmp_path: Path) -> None:
    """A node of a domain that is not even declared is E425, inside a branch as well."""
    model = toys.model_proto()
    inner = helper.make_graph([helper.make_node("Run", ["x"], ["y"], domain="com.evil")], "inner", [], [])
    model.graph.node.append(helper.make_node("If", ["c"], ["y"], then_branch=inner, else_branch=inner))
    with pytest.raises(ModelError, match=r"E425.*com\.evil"):
        read_model(write(tmp_path / "m.onnx", model))


def test_fault_57_operators_that_multiply_are_refused(tmp_path: Path) -> None:
    """A model that defines operators is E425: thirty that call one another twice take all memory in onnxruntime."""
    model = toys.model_proto()
    model.opset_import.append(helper.make_opsetid("local", 1))
    for i in range(30):
        twice = [helper.make_node(f"f{i + 1}", ["x"], ["y"], domain="local") for _ in range(2)]
        imports = [helper.make_opsetid("local", 1)]
        model.functions.append(helper.make_function("local", f"f{i}", ["x"], ["y"], twice, imports))
    with pytest.raises(ModelError, match=r"E425.*local\.f0, .* and 25 more"):
        read_model(write(tmp_path / "m.onnx", model))


@pytest.mark.parametrize("text", [METADATA_KEY.encode(), b"logits", b"com.evil", b"MatMul"])
def test_a_name_that_is_not_utf_8_is_damage(tmp_path: Path, text: bytes) -> None:
    """A string that is not UTF-8 is E420, wherever it occurs, and no exception of Python's or protobuf's."""
    model = toys.model_proto()
    model.opset_import.append(helper.make_opsetid("com.evil", 1))
    (tmp_path / "m.onnx").write_bytes(model.SerializeToString().replace(text, b"\xff" + text[1:]))
    with pytest.raises(ModelError, match="E420"):
        read_model(tmp_path / "m.onnx")


def test_a_number_type_that_does_not_exist_is_shown(tmp_path: Path) -> None:
    """An input of a type that no version knows is E424 with its number."""
    model = toys.model_proto()
    model.graph.input[0].type.tensor_type.elem_type = 99
    with pytest.raises(ModelError, match=r"E424.*takes image 99 \("):
        read_model(write(tmp_path / "m.onnx", model))


def test_fault_28_what_is_no_file_is_not_opened(tmp_path: Path) -> None:
    """A folder, a FIFO and a device are E707; opening the FIFO would wait for ever."""
    os.mkfifo(tmp_path / "fifo.onnx")
    (tmp_path / "zero.onnx").symlink_to("/dev/zero")
    for path in (tmp_path, tmp_path / "fifo.onnx", tmp_path / "zero.onnx"):
        with pytest.raises(FileError, match=r"E707.*not a regular file"):
            read_model(path)
