"""A model repository is what Triton reads, and its client speaks Triton's protocol."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import numpy as np
import onnx
import pytest
from google.protobuf import text_format
from numpy.typing import NDArray

from ensemble.blend.decision_rules import ThresholdRule
from ensemble.bundle.bundle import BundleOptions, bundle
from ensemble.card import FaceCrop, Preprocess
from ensemble.fuse.fused_session import FusedSession, start_fused
from ensemble.images.face_boxes import Box
from ensemble.labels import LabelSpace
from tests.support.fused import LABELS, toy_recipe, write_members
from tests.support.toys import card, encode, picture


class _Triton(BaseHTTPRequestHandler):
    """The part of Triton that answers one request, see its protocol extension_binary_data.md."""

    session: FusedSession

    def do_POST(self) -> None:
        assert self.path == "/v2/models/ensemble/infer"
        body = self.rfile.read(int(self.headers["Content-Length"]))
        start = int(self.headers["Inference-Header-Content-Length"])
        asked = json.loads(body[:start])
        tensors = {}
        for one in asked["inputs"]:
            kind = {"UINT8": np.uint8, "FP32": np.float32}[one["datatype"]]
            size = one["parameters"]["binary_data_size"]
            tensors[one["name"]] = np.frombuffer(body[start : start + size], kind).reshape(one["shape"])
            start += size
        assert start == len(body)
        boxes = [None if np.isnan(row).any() else Box(*row.tolist()) for row in tensors.get("boxes", [])]
        found = self.session.run(tensors["images"], boxes)
        values: dict[str, NDArray[Any]] = {"probabilities": found.probabilities, "class": found.classes}
        outputs = [{"name": one["name"], "data": values[one["name"]].ravel().tolist()} for one in asked["outputs"]]
        data = json.dumps({"model_name": "ensemble", "outputs": outputs}).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - the name that http.server uses
        """Keep quiet."""


@pytest.fixture
def server() -> Iterator[str]:
    """A server on this machine; its address."""
    made = HTTPServer(("127.0.0.1", 0), _Triton)
    thread = Thread(target=made.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{made.server_port}"
    made.shutdown()
    made.server_close()
    thread.join()


@pytest.mark.parametrize("face", [None, FaceCrop(0.2, (0.5, 0.4, 0.5))], ids=["whole", "face"])
def test_the_client_gets_the_answer_of_the_file(face: FaceCrop | None, server: str, tmp_path: Path) -> None:
    """Pixels, and boxes where members take them, arrive as they are, and the label is printed."""
    cards = [card(f"m{i}", labels=LABELS) for i in range(3)]
    cards[0] = replace(cards[0], preprocess=Preprocess((16, 16), face=face))
    write_members(tmp_path / "models", cards)
    done = bundle(toy_recipe(), [tmp_path / "models"], tmp_path / "repository", "triton")
    assert {"client.py", "ensemble/1/model.onnx", "ensemble/config.pbtxt", "ensemble/labels.txt"} == set(done.files)
    path = tmp_path / "repository/ensemble/1/model.onnx"
    _Triton.session = start_fused(path.read_bytes(), path)
    (tmp_path / "a.png").write_bytes(encode(picture(1), "PNG"))
    command = [sys.executable, "-I", str(tmp_path / "repository/client.py"), server, str(tmp_path / "a.png")]
    answer = subprocess.run(command, capture_output=True, text=True, check=False)
    assert answer.returncode == 0, answer.stderr
    found = _Triton.session.run(picture(1)[np.newaxis], [None])
    _, label, probability = answer.stdout.strip().split("\t")
    assert label == LABELS.names[found.classes[0]]
    assert float(probability) == pytest.approx(found.probabilities[0].max(), abs=1e-4)


def model_config() -> Any:
    """Triton's own message for a configuration; without grpc, which its package imports."""
    spec = importlib.util.find_spec("tritonclient")
    if spec is None or not spec.submodule_search_locations:
        pytest.skip("tritonclient is not installed; it needs protobuf below 7")
    path = Path(spec.submodule_search_locations[0], "grpc", "model_config_pb2.py")
    found = importlib.util.spec_from_file_location("model_config_pb2", path)
    assert found is not None
    assert found.loader is not None
    module = importlib.util.module_from_spec(found)
    found.loader.exec_module(module)
    return module.ModelConfig()


@pytest.mark.filterwarnings("ignore:Protobuf gencode version")
@pytest.mark.parametrize("kind", ["plain", "face", "labels"])
def test_the_configuration_is_triton_s_and_fits_the_file(kind: str, tmp_path: Path) -> None:
    """Every tensor of the file is in it with its type and its dimensions but the batch."""
    labels = LabelSpace.flat(("cat", "dog")) if kind == "labels" else LABELS
    cards = [card(f"m{i}", labels=labels) for i in range(3)]
    changes: dict[str, Any] = {"labels": labels}
    if kind == "face":
        cards[0] = replace(cards[0], preprocess=Preprocess((16, 16), face=FaceCrop(0.2)))
    if kind == "labels":
        cards = [replace(one, activation="sigmoid") for one in cards]
        changes |= {"activation": "sigmoid", "rule": ThresholdRule(np.array([0.4, 0.6]))}
    write_members(tmp_path / "models", cards)
    options = BundleOptions(gpu=kind == "face")
    bundle(toy_recipe(**changes), [tmp_path / "models"], tmp_path / "r", "triton", options=options)
    text = (tmp_path / "r/ensemble/config.pbtxt").read_text()
    assert ("KIND_GPU" in text) == (kind == "face")
    config = text_format.Parse(text, model_config())
    graph = onnx.load(tmp_path / "r/ensemble/1/model.onnx").graph
    kinds = {onnx.TensorProto.UINT8: 2, onnx.TensorProto.FLOAT: 11, onnx.TensorProto.INT64: 9, onnx.TensorProto.BOOL: 1}
    for declared, real in ((config.input, graph.input), (config.output, graph.output)):
        assert {one.name: one.data_type for one in declared} == {
            one.name: kinds[one.type.tensor_type.elem_type] for one in real
        }
        for one, value in zip(declared, real, strict=True):
            sides = [side.dim_value or -1 for side in value.type.tensor_type.shape.dim[1:]]
            assert list(one.reshape.shape if one.HasField("reshape") else one.dims) == sides
    assert config.dynamic_batching.max_queue_delay_microseconds == 5000
    assert set(config.model_warmup[0].inputs) == {one.name for one in graph.input}
