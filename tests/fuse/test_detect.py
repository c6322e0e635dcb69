"""A fused file is told by its metadata, and nothing else is taken for one."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest

from ensemble.fuse.detect import FUSED_KEY, is_fused
from tests.support.fused import fused_proto
from tests.support.toys import model_proto


def test_the_key_counts_in_the_metadata_only(tmp_path: Path) -> None:
    """A model that has the word among its weights, its names or as a value is none; other metadata does not hide it."""
    path = tmp_path / "model.onnx"
    path.write_bytes(fused_proto().SerializeToString())
    assert is_fused(path)
    plain = model_proto()
    tensor = onnx.numpy_helper.from_array(np.frombuffer(f"r\r{FUSED_KEY}".encode(), np.uint8), FUSED_KEY)
    plain.graph.initializer.append(tensor)
    plain.doc_string = FUSED_KEY
    onnx.helper.set_model_props(plain, {"x": FUSED_KEY, f"{FUSED_KEY}2": "", "ens.fuse": FUSED_KEY})
    path.write_bytes(plain.SerializeToString())
    assert not is_fused(path)
    plain.metadata_props.add(key=FUSED_KEY, value="{}")
    path.write_bytes(plain.SerializeToString())
    assert is_fused(path)


def test_fields_may_come_in_any_order(tmp_path: Path) -> None:
    """The metadata may lie before the weights, as other writers put it."""
    model = fused_proto()
    first = onnx.ModelProto(metadata_props=model.metadata_props).SerializeToString()
    model.ClearField("metadata_props")
    path = tmp_path / "model.onnx"
    path.write_bytes(first + model.SerializeToString())
    assert is_fused(path)


@pytest.mark.parametrize(
    "content", [b"", b"{}", b"\xff" * 40, b"r\xff\xff\xff\xff\x0f\n", b"PK\x03\x04", bytes(range(256)), b"r\x0c\n"]
)
def test_anything_else_is_none(tmp_path: Path, content: bytes) -> None:
    """Damaged and foreign files, folders, and what does not exist."""
    path = tmp_path / "file"
    path.write_bytes(content)
    assert not is_fused(path)
    assert not is_fused(tmp_path)
    assert not is_fused(tmp_path / "none")


def test_a_file_that_was_cut_off_is_never_a_failure(tmp_path: Path) -> None:
    """Whatever the length that is left, the answer is one or the other."""
    whole = fused_proto().SerializeToString()
    path = tmp_path / "cut.onnx"
    for length in range(0, len(whole), max(1, len(whole) // 60)):
        path.write_bytes(whole[:length])
        assert not is_fused(path)
