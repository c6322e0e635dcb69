"""ONNX files larger than any honest model: in bytes, parts, nodes and depth."""

from __future__ import annotations

from pathlib import Path

import onnx
import pytest
from onnx import helper

from ensemble.errors import ModelError
from ensemble.runtime import model_file, protobuf_limits
from ensemble.runtime.model_file import read_model
from tests.support import toys


def field(number: int, content: bytes) -> bytes:
    """A message inside another one, as protobuf writes it."""
    size, length = len(content), b""
    while size >= 128:
        length, size = length + bytes([size & 127 | 128]), size >> 7
    return bytes([number << 3 | 2]) + length + bytes([size]) + content


def test_too_many_parts_are_refused_unparsed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two bytes a part that take a hundred in memory are E429 before protobuf builds the first of them."""
    monkeypatch.setattr(onnx.ModelProto, "ParseFromString", None)
    (tmp_path / "m.onnx").write_bytes(field(7, field(5, b"") * 1_000_000))
    with pytest.raises(ModelError, match=r"E429.*more than 1,000,000 parts"):
        read_model(tmp_path / "m.onnx")


def test_too_many_nodes_are_refused(tmp_path: Path) -> None:
    """A network of more than 100,000 nodes is E429."""
    (tmp_path / "m.onnx").write_bytes(field(7, field(1, b"") * 100_001))
    with pytest.raises(ModelError, match=r"E429.*more than 100,000 nodes"):
        read_model(tmp_path / "m.onnx")


@pytest.mark.parametrize(("branches", "code"), [(5, "E420.*names no opset"), (13, "E429"), (2_000, "E429")])
def test_branches_inside_branches_are_bounded(tmp_path: Path, branches: int, code: str) -> None:
    """A few branches inside one another are read on; more than a dozen are E429, and thousands overflow no stack."""
    graph = b""
    for _ in range(branches):
        graph = field(1, field(5, field(6, graph)))  # a node with an attribute that is a graph
    (tmp_path / "m.onnx").write_bytes(field(7, graph))
    with pytest.raises(ModelError, match=code):
        read_model(tmp_path / "m.onnx")


def test_too_many_bytes_are_refused_unread(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file of more than 2 GiB, which protobuf cannot hold, is E429 without being read."""
    monkeypatch.setattr(Path, "read_bytes", None)
    with open(tmp_path / "m.onnx", "wb") as f:
        f.truncate(protobuf_limits.MAX_BYTES + 1)
    with pytest.raises(ModelError, match=r"E429.*2,147,483,648 bytes"):
        read_model(tmp_path / "m.onnx")


def test_measuring_agrees_with_protobuf() -> None:
    """As many parts and nodes are counted on the bytes as there are in the parsed model."""
    model = toys.model_proto()
    inner = helper.make_graph([helper.make_node("Identity", ["c"], ["y"])], "inner", [], [])
    model.graph.node.append(helper.make_node("If", ["c"], ["y"], then_branch=inner, else_branch=inner))
    counts = protobuf_limits.measure(model.SerializeToString(), model.DESCRIPTOR)
    everything = list(model_file.messages_in(model))
    assert counts.parts == len(everything)
    assert counts.nodes == sum(isinstance(part, onnx.NodeProto) for part in everything)


@pytest.mark.parametrize(
    "data",
    [
        field(7, b"")[:1],
        b"\x3a\x7f\x0a",
        b"\x3a\x02\x0a\x7f" + bytes(20),
        b"\xff" * 20,
        b"\x0b",
        b"\x0d\0",
        b"\x09\0",
        b"\x08",
    ],
)
def test_bytes_that_are_no_protobuf_are_told(data: bytes) -> None:
    """Lengths beyond the end, endless numbers, groups and cut-off values are refused, never an error of Python's."""
    with pytest.raises(protobuf_limits.WireError):
        protobuf_limits.measure(data, onnx.ModelProto.DESCRIPTOR)
