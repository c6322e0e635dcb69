"""A session gives the model's logits, and says what went wrong in terms of the model and the device."""

from __future__ import annotations

import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
from onnx import helper, numpy_helper

from ensemble.errors import DeviceError, ModelError
from ensemble.events import Recorder
from ensemble.runtime.device import CPU, Device, DeviceKind
from ensemble.runtime.model_file import read_model
from ensemble.runtime.session import Session, provider_options, start_session
from tests.support import toys
from tests.support.gpus import fake_gpus


def batch(count: int) -> Any:
    return np.stack([toys.picture(seed, size=(16, 12)) for seed in range(count)])


def test_logits_are_those_of_the_network(tmp_path: Path) -> None:
    """The toy model's logits are its pixels times its weights, computed here by numpy."""
    session = start_session(read_model(toys.write_model(tmp_path, seed=3)))
    pixels = batch(5)
    expected = pixels.reshape(5, -1).astype(np.float64) / 255 @ toys.linear_weights(toys.CARD, 3)
    np.testing.assert_allclose(session.run(pixels), expected, rtol=1e-5, atol=1e-5)


def test_sessions_may_run_in_several_threads_at_once(tmp_path: Path) -> None:
    """Forty runs from four threads give what one thread gives."""
    session = start_session(read_model(toys.write_model(tmp_path)))
    pixels = batch(3)
    expected = session.run(pixels)
    with ThreadPoolExecutor(4) as pool:
        answers = list(pool.map(session.run, [pixels] * 40))
    assert all(np.array_equal(answer, expected) for answer in answers)


def test_sessions_with_one_arena_answer_as_with_their_own(tmp_path: Path) -> None:
    """Networks of three sizes, in four threads with batches of changing size, give what a default session gives."""
    sessions, alone = [], []
    one_core = onnxruntime.SessionOptions()
    one_core.intra_op_num_threads = 1
    for seed, size in enumerate([(16, 12), (40, 32), (24, 48)]):
        proto = toys.convolutional_proto(toys.card(size=size), kind=["resnet", "efficientnet"][seed % 2], seed=seed)
        path = toys.write_model(tmp_path / str(seed), proto=proto)
        sessions.append(start_session(read_model(path)))
        alone.append(onnxruntime.InferenceSession(path, one_core, providers=["CPUExecutionProvider"]))
    work = [(k, rows, seed) for seed in range(5) for rows in (1, 8, 3) for k in range(3)]

    def look(k: int, rows: int, seed: int) -> tuple[Any, Any]:
        size = sessions[k].card.preprocess.size
        pixels = np.random.default_rng(seed).integers(0, 256, (rows, *size, 3), dtype=np.uint8)
        return sessions[k].run(pixels), alone[k].run(["logits"], {"image": pixels})[0]

    with ThreadPoolExecutor(4) as pool:
        answers = list(pool.map(lambda one: look(*one), work))
    assert all(np.array_equal(ours, theirs) for ours, theirs in answers)


ARENA = """
import os
import sys
from pathlib import Path
import numpy as np
from ensemble.runtime.model_file import read_model
from ensemble.runtime.session import start_session

def held():
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")

sessions = [start_session(read_model(Path(path))) for path in sys.argv[1:]]
before = held()
for session in sessions:
    session.run(np.zeros((16, 128, 128, 3), np.uint8))
print(held() - before)
"""


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="only Linux tells what a process holds")
def test_more_models_need_no_more_memory_for_their_layers(tmp_path: Path) -> None:
    """Six networks that run one after the other hold less than twice what one of them does."""
    proto = toys.convolutional_proto(toys.card(size=(128, 128)))
    paths = [str(toys.write_model(tmp_path / str(k), proto=proto)) for k in range(6)]
    one, six = (
        int(subprocess.run([sys.executable, "-c", ARENA, *some], capture_output=True, text=True, check=True).stdout)
        for some in (paths[:1], paths)
    )
    assert six < 2 * one


def test_fault_64_answers_that_are_not_finite_are_an_error(tmp_path: Path) -> None:
    """A weight that is NaN makes a NaN answer, which is E604 when the model is opened, not a class."""
    model = toys.model_proto()
    weights = toys.linear_weights(toys.CARD, 0)
    weights[0, 0] = np.nan
    model.graph.initializer[0].CopyFrom(numpy_helper.from_array(weights, "weights"))
    (tmp_path / "m.onnx").write_bytes(model.SerializeToString())
    with pytest.raises(DeviceError, match="E604"):
        start_session(read_model(tmp_path / "m.onnx"))


def test_a_network_that_onnxruntime_cannot_build_is_refused(tmp_path: Path) -> None:
    """A valid file whose graph makes no sense is E420 and names the file."""
    model = toys.model_proto()
    model.graph.node.insert(0, helper.make_node("NoSuchOperator", ["image"], ["x"]))
    (tmp_path / "m.onnx").write_bytes(model.SerializeToString())
    with pytest.raises(ModelError, match=r"E420.*m\.onnx"):
        start_session(read_model(tmp_path / "m.onnx"))


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ("BFCArena::AllocateRawInternal Failed to allocate memory for requested buffer of size 4096", "E602"),
        ("CUDA failure 2: out of memory", "E602"),
        ("CUDNN failure 8: CUDNN_STATUS_EXECUTION_FAILED", "E605"),
    ],
)
def test_fault_62_memory_is_told_apart_from_other_failures(text: str, code: str) -> None:
    """onnxruntime has no type for a full device: its text decides between E602 and E605."""

    class Failing:
        def run(self, outputs: Any, feed: Any) -> Any:
            raise RuntimeError(text)

    session = Session(toys.CARD, "", Device("cuda"), Failing())
    with pytest.raises(DeviceError, match=f"{code}.*cuda:0"):
        session.run(batch(2))


def test_tf32_is_off_and_tensorrt_engines_are_kept_by_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """CUDA never rounds float32 to TF32; TensorRT's engines lie in a folder that another model does not share."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    first = read_model(toys.write_model(tmp_path, toys.card("a")))
    second = read_model(toys.write_model(tmp_path, replace(toys.card("b"), precision="fp16")))
    assert provider_options(first.card, first.sha256, CPU) == {}
    assert provider_options(first.card, first.sha256, Device("cuda"))["use_tf32"] == "0"
    one, other = (provider_options(model.card, model.sha256, Device("tensorrt")) for model in (first, second))
    assert one["trt_engine_cache_path"] != other["trt_engine_cache_path"]
    assert Path(one["trt_engine_cache_path"]).is_relative_to(tmp_path)
    assert (one["trt_fp16_enable"], other["trt_fp16_enable"]) == ("0", "1")
    assert one["trt_profile_max_shapes"] == "image:256x16x12x3"


@pytest.mark.parametrize("kind", ["cuda", "tensorrt"])
def test_a_model_without_a_fixed_shape_is_compared_with_the_cpu_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: DeviceKind
) -> None:
    """It starts on a GPU with the figures, in a folder for its engine that exists, and not with layers elsewhere."""
    model = read_model(toys.write_model(tmp_path, toys.card("a")))
    with fake_gpus(monkeypatch, tmp_path) as gpus:
        recorder = Recorder()
        session = start_session(model, device=Device(kind), listener=recorder)
        assert [n.code for n in recorder.notices] == ["I608", "I608", "I606"][-1 if kind == "cuda" else 0 :]
        np.testing.assert_allclose(
            session.run(batch(3)), start_session(read_model(model.path)).run(batch(3)), rtol=1e-5, atol=1e-6
        )
        if kind == "tensorrt":
            assert Path(gpus.started[-1][1]["trt_engine_cache_path"]).is_dir()
        gpus.refused = frozenset({"MatMul"})
        with pytest.raises(DeviceError, match=r"E608.*MatMul"):
            start_session(model, device=Device(kind))
