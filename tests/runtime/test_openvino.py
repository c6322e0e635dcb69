"""OpenVINO returns onnxruntime's logits within its limits, or it is not used."""

from __future__ import annotations

import importlib.metadata
import json
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, quantize_static

from ensemble.card import METADATA_KEY
from ensemble.errors import DeviceError, ModelError
from ensemble.events import Recorder
from ensemble.images.views import parse_views
from ensemble.install import install_command
from ensemble.predict.options import RunOptions
from ensemble.predict.predict import predict
from ensemble.predictions.dataset import read_predictions
from ensemble.runtime import parity
from ensemble.runtime.device import CPU, Device, parse_device
from ensemble.runtime.model_file import read_model
from ensemble.runtime.openvino import OpenVINORuntime, build_runtime, shared_core
from ensemble.runtime.parity import LIMITS, compare_logits, draw_pictures, require_parity
from ensemble.runtime.providers import choose_device, try_device
from ensemble.runtime.session import start_session
from tests.support import toys

openvino = pytest.importorskip("openvino", reason="OpenVINO is not installed")
OPENVINO, BF16 = Device("openvino"), Device("openvino", bf16=True)
HAS_BF16 = "BF16" in shared_core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")
needs_bf16 = pytest.mark.skipif(not HAS_BF16, reason="this CPU does not compute in bf16")


def convolution(folder: Path, name: str = "conv") -> Path:
    """A small network with what real ones have: two convolutions, a depthwise one, a residual, pooling, a head."""
    card = toys.card(name, size=(24, 20))
    generator = np.random.default_rng(5)

    def weights(name: str, *shape: int) -> onnx.TensorProto:
        values = generator.normal(0, 1 / np.sqrt(np.prod(shape[1:])), shape).astype(np.float32)
        return numpy_helper.from_array(values, name)

    scale = numpy_helper.from_array(np.array(1 / 64, dtype=np.float32), "scale")
    nodes = [
        helper.make_node("Cast", ["image"], ["float"], to=TensorProto.FLOAT),
        helper.make_node("Mul", ["float", "scale"], ["scaled"]),
        helper.make_node("Transpose", ["scaled"], ["planes"], perm=[0, 3, 1, 2]),
        helper.make_node("Conv", ["planes", "w1"], ["c1"], strides=[2, 2], pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["c1"], ["r1"]),
        helper.make_node("Conv", ["r1", "w2"], ["c2"], group=16, pads=[1, 1, 1, 1]),
        helper.make_node("Sigmoid", ["c2"], ["s2"]),
        helper.make_node("Mul", ["c2", "s2"], ["silu"]),
        helper.make_node("Add", ["silu", "r1"], ["sum"]),
        helper.make_node("GlobalAveragePool", ["sum"], ["pooled"]),
        helper.make_node("Flatten", ["pooled"], ["flat"], axis=1),
        helper.make_node("MatMul", ["flat", "w3"], ["logits"]),
    ]
    graph = helper.make_graph(
        nodes,
        name,
        [helper.make_tensor_value_info("image", TensorProto.UINT8, ["batch", 24, 20, 3])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", len(card.labels)])],
        [scale, weights("w1", 16, 3, 3, 3), weights("w2", 16, 1, 3, 3), weights("w3", 16, len(card.labels))],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    helper.set_model_props(model, {METADATA_KEY: card.to_json()})
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{name}.onnx").write_bytes(model.SerializeToString())
    return folder / f"{name}.onnx"


def photographs(count: int) -> Any:
    return np.stack([toys.picture(seed, size=(24, 20)) for seed in range(count)])


def test_openvino_is_named_with_its_precision() -> None:
    """openvino is float32, openvino:bf16 is another device, and their predictions are distinguished."""
    assert parse_device("openvino") == OPENVINO
    assert parse_device("openvino:bf16") == BF16
    assert [str(device) for device in (OPENVINO, BF16)] == ["openvino", "openvino:bf16"]
    assert len({device.provider for device in (CPU, OPENVINO, BF16)}) == 3
    assert importlib.metadata.version("openvino") in OPENVINO.provider


def test_float32_answers_are_those_of_onnxruntime(tmp_path: Path) -> None:
    """The same logits as on the CPU provider to float32's rounding; a notice gives the figures at the model's start."""
    recorder = Recorder()
    path = convolution(tmp_path)
    pixels = photographs(20)
    assert choose_device("openvino") == OPENVINO
    from ensemble.runtime.model_file import read_model
    from ensemble.runtime.session import start_session

    found = start_session(read_model(path), device=OPENVINO, listener=recorder).run(pixels)
    np.testing.assert_allclose(found, start_session(read_model(path)).run(pixels), rtol=1e-5, atol=1e-5)
    assert [notice.code for notice in recorder.notices] == ["I606"]
    assert "8 of 8 classes the same" in recorder.notices[0].message


@needs_bf16
def test_bf16_is_another_precision_and_close(tmp_path: Path) -> None:
    """bf16 really changes the logits, by less than its limit."""
    path, pixels = convolution(tmp_path), photographs(20)
    expected, found = (
        start_session(read_model(path)).run(pixels),
        start_session(read_model(path), device=BF16).run(pixels),
    )
    assert 1e-5 < compare_logits(expected, found, limit=1).error < LIMITS["bf16"]


def test_bf16_is_refused_where_the_cpu_has_none(monkeypatch: pytest.MonkeyPatch) -> None:
    """A CPU without bf16 is E601 that names it; it is not emulated, nor replaced by float32."""
    real = shared_core()

    class Old:
        def get_property(self, device: str, name: str) -> Any:
            return ["FP32", "INT8"] if name == "OPTIMIZATION_CAPABILITIES" else real.get_property(device, name)

    monkeypatch.setattr("ensemble.runtime.openvino.shared_core", Old)
    try_device.cache_clear()
    with pytest.raises(DeviceError, match=r"E601. openvino:bf16 .*does not compute in bf16") as caught:
        choose_device("openvino:bf16")
    try_device.cache_clear()
    assert "--device openvino" in caught.value.hint


def test_without_the_package_the_line_that_installs_it_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where openvino cannot be imported, both choosing it and starting a model on it are E601 with the extra."""
    monkeypatch.setitem(sys.modules, "openvino", None)
    try_device.cache_clear()
    for start in (
        lambda: choose_device("openvino"),
        lambda: start_session(read_model(convolution(tmp_path)), device=OPENVINO),
    ):
        with pytest.raises(DeviceError, match=r"E601.*not installed") as caught:
            start()
        assert install_command(extra="openvino") in caught.value.hint
    try_device.cache_clear()


def test_threads_share_a_model_and_requests_are_used_again(tmp_path: Path) -> None:
    """Forty batches from four threads give what one thread gives, and leave at most four requests."""
    session = start_session(read_model(convolution(tmp_path)), device=OPENVINO)
    pixels = photographs(5)
    batches = [pixels[: 1 + k % 5] for k in range(40)]
    expected = session.run(pixels)
    with ThreadPoolExecutor(4) as pool:
        answers = list(pool.map(session.run, batches))
    assert all(np.array_equal(answer, expected[: len(answer)]) for answer in answers)
    assert isinstance(session.runtime, OpenVINORuntime)
    assert 1 <= len(session.runtime.idle_requests) <= 4


def test_batches_of_another_memory_layout_are_the_same_pictures(tmp_path: Path) -> None:
    """A mirrored view of an array, whose steps in memory are negative, is read as what it shows."""
    session = start_session(read_model(convolution(tmp_path)), device=OPENVINO)
    mirrored = photographs(4)[:, :, ::-1]
    assert np.array_equal(session.run(mirrored), session.run(mirrored.copy()))


@pytest.mark.skipif(sys.platform != "linux", reason="OpenVINO sets a stack for signals on Linux alone")
@pytest.mark.parametrize("order", ["first, second", "second, first", "in a thread"])
def test_a_signal_is_heard_after_networks_are_freed(tmp_path: Path, order: str) -> None:
    """OpenVINO frees the stack that the main thread hears signals on; a signal then was SIGSEGV."""
    script = """
import gc, signal, sys, threading
from pathlib import Path
from ensemble.runtime.openvino import build_runtime

model = Path(sys.argv[1]).read_bytes()
built = {name: build_runtime(model, bf16=False) for name in ("first", "second")}
if sys.argv[2] == "in a thread":
    thread = threading.Thread(target=built.clear)
    thread.start()
    thread.join()
else:
    for name in sys.argv[2].split(", "):
        del built[name]
gc.collect()
try:
    signal.raise_signal(signal.SIGINT)
except KeyboardInterrupt:
    print("heard")
"""
    model = convolution(tmp_path / "models")
    done = subprocess.run(
        [sys.executable, "-c", script, f"{model}", order], capture_output=True, text=True, timeout=300
    )
    assert (done.returncode, done.stdout) == (0, "heard\n"), done.stderr


@pytest.mark.parametrize("device", ["openvino", pytest.param("openvino:bf16", marks=needs_bf16)])
def test_batch_size_and_workers_do_not_change_a_byte(tmp_path: Path, device: str) -> None:
    """Any batch size and number of workers give the same parts, whose record names the device and the figures."""
    toys.write_pictures(tmp_path / "images", [f"{i:02d}.jpg" for i in range(23)])
    model = convolution(tmp_path)
    parts = []
    for batch, workers in ((16, 2), (1, 1), (5, 4)):
        out = tmp_path / f"{batch}-{workers}"
        predict(
            [model],
            tmp_path / "images",
            out,
            views=parse_views("hflip"),
            options=RunOptions(device=device, batch=batch, workers=workers),
        )
        parts.append((out / "conv" / "part-00000.parquet").read_bytes())
    assert parts[0] == parts[1] == parts[2]
    record = json.loads((out / "conv" / "_run.json").read_text())
    assert record["device"] == device
    assert [notice["code"] for notice in record["notices"]] == ["I606"]
    assert len(read_predictions(out / "conv")) == 23


def test_int8_models_run(tmp_path: Path) -> None:
    """A model quantized to int8 (QDQ) with weights that do not saturate in 16 bits runs, and its answers are
    onnxruntime's within the limit for int8.
    """

    class Reader(CalibrationDataReader):  # type: ignore[misc]
        def __init__(self) -> None:
            self.left = [photographs(16)]

        def get_next(self) -> dict[str, Any] | None:
            return {"image": self.left.pop()} if self.left else None

    source, path = convolution(tmp_path, "q"), tmp_path / "quantized.onnx"
    quantize_static(source, path, Reader(), quant_format=QuantFormat.QDQ, per_channel=True, reduce_range=True)
    proto = onnx.load(path)
    assert any(node.op_type == "QuantizeLinear" for node in proto.graph.node)
    card = replace(read_model(source).card, precision="int8")
    helper.set_model_props(proto, {METADATA_KEY: card.to_json()})
    onnx.save(proto, path)
    pixels = photographs(20)
    expected, found = (start_session(read_model(path), device=device).run(pixels) for device in (CPU, OPENVINO))
    assert compare_logits(expected, found, limit=1).error < LIMITS["int8"]


def test_fault_64_answers_that_are_not_finite_are_an_error(tmp_path: Path) -> None:
    """A weight that is NaN is E604 on OpenVINO too."""
    model = toys.model_proto()
    weights = toys.linear_weights(toys.CARD, 0)
    weights[0, 0] = np.nan
    model.graph.initializer[0].CopyFrom(numpy_helper.from_array(weights, "weights"))
    (tmp_path / "m.onnx").write_bytes(model.SerializeToString())
    with pytest.raises(DeviceError, match="E604"):
        start_session(read_model(tmp_path / "m.onnx"), device=OPENVINO)


def test_a_network_that_openvino_cannot_build_is_refused(tmp_path: Path) -> None:
    """An operator that OpenVINO does not know is E420 and names OpenVINO."""
    model = toys.model_proto()
    model.graph.node.insert(0, helper.make_node("NoSuchOperator", ["image"], ["x"]))
    model.graph.node[1].input[0] = "x"
    (tmp_path / "m.onnx").write_bytes(model.SerializeToString())
    with pytest.raises(ModelError, match=r"E420.*m\.onnx: OpenVINO"):
        start_session(read_model(tmp_path / "m.onnx"), device=OPENVINO)


def test_a_runtime_that_computes_something_else_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A compiled model of other weights is E606 when the model starts, with the figures."""
    other = toys.model_proto(seed=1).SerializeToString()
    monkeypatch.setattr("ensemble.runtime.openvino.build_runtime", lambda _, **options: build_runtime(other, **options))
    with pytest.raises(DeviceError, match=r"E606. toy on openvino.*relative error .* of 8 classes"):
        start_session(read_model(toys.write_model(tmp_path, seed=0)), device=OPENVINO)


@pytest.mark.parametrize(("noise", "holds"), [(0.0, True), (0.9 * LIMITS["bf16"], True), (1.2 * LIMITS["bf16"], False)])
def test_the_limit_is_on_the_largest_error_of_a_row(noise: float, holds: bool) -> None:
    """One logit off by less than the limit passes, by more it does not; the figures say how much."""
    expected = np.tile(np.array([[4.0, 1.0, -2.0]], dtype=np.float32), (8, 1))
    found = expected.copy()
    found[3, 1] += 4 * noise
    parity_found = compare_logits(expected, found, limit=LIMITS["bf16"])
    assert parity_found.holds == holds
    assert parity_found.error == pytest.approx(noise, abs=1e-6)


def test_a_class_may_change_only_between_near_equals() -> None:
    """Two logits almost alike may change places; a class that led by more than the limit may not."""
    expected = np.array([[2.0, 1.99, 0.0], [2.0, 1.0, 0.0]], dtype=np.float32)
    near, clear = expected.copy(), expected.copy()
    near[0, 1] = 2.01
    clear[1] = [1.49, 1.5, 0.0]
    assert compare_logits(expected, near, limit=0.3).holds
    found = compare_logits(expected, clear, limit=0.4)
    assert (found.error < 0.4, found.clear_changes, found.holds) == (True, 1, False)


def test_the_pictures_of_the_check_differ_and_are_always_the_same() -> None:
    """Eight images of the given size, none constant, no two alike, the same at every call."""
    pictures = draw_pictures((24, 20))
    assert pictures.shape == (8, 24, 20, 3)
    assert np.array_equal(pictures, draw_pictures((24, 20)))
    assert len({picture.tobytes() for picture in pictures}) == 8
    assert (pictures.std(axis=(1, 2, 3)) > 10).all()


def test_an_answer_that_is_not_a_number_is_no_parity(monkeypatch: pytest.MonkeyPatch) -> None:
    """NaN compares as neither more nor less than a limit, and is refused all the same."""
    good = np.ones((8, 3), dtype=np.float32)
    with pytest.raises(DeviceError, match="E606"):
        require_parity(lambda _: good * np.nan, lambda _: good, (4, 4), who="x", precision="fp32")
    assert parity.LIMITS["fp32"] < parity.LIMITS["bf16"]
