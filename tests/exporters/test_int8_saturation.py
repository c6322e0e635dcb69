"""int8 answers do not depend on the processor: no two products of a layer leave 16 bits, and kernels add up exactly.

x86 processors without VNNI multiply uint8 by int8 with an instruction that adds two products in 16 bits and saturates.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray

from exporters.int8_layers import find_layers
from exporters.int8_qdq import find_tensors, quantize
from exporters.int8_schemes import OPENVINO, Range

Array = NDArray[Any]
LARGEST_SUM = (2**15 - 1) // 255  # of two weights, at the largest activation
RANGE = Range(-1.0, 3.0)
KERNELS = ["QLinearConv", "QGemm"]


def build(op: str, weight: Array, bias: Array, **attributes: Any) -> onnx.ModelProto:
    """One layer with float32 weights; what it makes is read by another node, so that it is stored in 8 bits."""
    make = onnx.helper.make_node
    values = [("weight", weight.astype(np.float32)), ("bias", bias.astype(np.float32))]
    graph = onnx.helper.make_graph(
        [
            make(op, ["image", "weight", "bias"], ["made"], "layer", **attributes),
            make("Abs", ["made"], ["logits"], "abs"),
        ],
        "layer",
        [onnx.helper.make_tensor_value_info("image", onnx.TensorProto.FLOAT, ["batch", *[None] * (weight.ndim - 1)])],
        [onnx.helper.make_tensor_value_info("logits", onnx.TensorProto.FLOAT, None)],
        [onnx.numpy_helper.from_array(array, name) for name, array in values],
    )
    return onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 20)], ir_version=10)


def to_integers(proto: onnx.ModelProto, ends: Range) -> tuple[onnx.ModelProto, dict[str, Array]]:
    """The layer on integers, with ``ends`` as the range of what it makes, and its constants."""
    ranges = {name: RANGE if name == "image" else ends for name in find_tensors(proto.graph, find_layers(proto.graph))}
    model = quantize(proto, ranges, find_layers(proto.graph))
    return model, {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in model.graph.initializer}


def largest_pair(integers: Array) -> int:
    """The largest sum of two weights of one sign in a row of ``(O, K)``; of ``(O, I, h, w)`` of two channels in a row
    at one place, the first of which has an even number.
    """
    if integers.ndim == 4:
        pairs = np.moveaxis(integers.reshape(len(integers), -1, 2, *integers.shape[2:]), 2, -1)
        return largest_pair(pairs.reshape(-1, 2))
    rows = np.sort(integers.astype(np.int64), axis=1)
    return int(max(rows.clip(0)[:, -2:].sum(axis=1).max(), -rows.clip(None, 0)[:, :2].sum(axis=1).min()))


def accumulate(integers: Array, weight: Array, groups: int) -> Array:
    """The sums of products in integers that cannot overflow: `(N, C, H, W)`` by ``(O, C / groups, h, w)``, or rows."""
    stored, weight = integers.astype(np.int64), weight.astype(np.int64)
    if weight.ndim == 2:
        return stored @ weight.T
    windows = sliding_window_view(stored, weight.shape[2:], axis=(2, 3))
    parts = zip(np.split(windows, groups, axis=1), np.split(weight, groups), strict=True)
    return np.concatenate([np.einsum("nchwij,ocij->nohw", *part) for part in parts], axis=1)


ROWS = {
    "equal": np.ones(36),
    "negative": -np.ones(36),
    "falling": np.linspace(1, 0.01, 36),
    "outlier": np.append(np.full(35, 0.01), 1.0),
    "two outliers": np.append(np.full(34, 0.01), [1.0, 0.98]),
    "both signs": np.resize([1.0, -1.0], 36),
    "halves": np.resize([63.5, 63.5, -63.5], 36),
    "zero": np.zeros(36),
    "tiny": np.full(36, 1e-30),
}


@pytest.mark.parametrize("op", ["Conv", "Gemm", "MatMul"])
def test_no_two_products_leave_16_bits(op: str) -> None:
    """255 times the sum of two weights that a kernel pairs fits: any two of a matrix, and neighboring channels of a
    convolution, by the layout of onnxruntime's and OpenVINO's kernels. A large weight beside small ones reaches 127.
    """
    rng = np.random.default_rng(0)
    rows = np.concatenate([np.stack(list(ROWS.values())), rng.standard_cauchy((200, 36)), rng.normal(size=(200, 36))])
    weight = {"Conv": rows.reshape(-1, 4, 3, 3), "Gemm": rows, "MatMul": rows.T}[op]
    proto = build(op, weight, np.zeros(len(rows)), **({"transB": 1} if op == "Gemm" else {}))
    if op == "MatMul":
        del proto.graph.node[0].input[2:]
    _, constants = to_integers(proto, RANGE)
    integers = constants["layer/weight/int8"]
    integers = integers.T if op == "MatMul" else integers
    assert largest_pair(integers) <= LARGEST_SUM
    integers = integers.reshape(len(rows), -1)
    peaks = dict(zip(ROWS, np.abs(integers).max(axis=1).tolist(), strict=False))
    assert (peaks["equal"], peaks["outlier"], peaks["zero"]) == (64, 126, 0)
    scale = constants["layer/weight/scale"].astype(np.float64)
    assert (np.abs(integers - rows / scale[:, np.newaxis]).max(axis=1) < 0.501).all()


@pytest.mark.parametrize("side", [1, 3])
def test_depthwise_weights_use_all_steps(side: int) -> None:
    """Depthwise kernels multiply in 32 bits, so that nothing is paired: all equal weights are 127."""
    _, constants = to_integers(build("Conv", np.full((4, 1, side, side), 0.3), np.zeros(4), group=4), RANGE)
    assert set(constants["layer/weight/int8"].ravel().tolist()) == {127}


@pytest.mark.parametrize(("channels", "peak"), [(4, 127), (6, 64)])
def test_weights_without_a_large_neighbor_use_all_steps(channels: int, peak: int) -> None:
    """Large weights of every other channel are never paired, unless a kernel may begin in the middle of four."""
    weight = np.zeros((8, channels, 1, 1))
    weight[:, ::2] = 0.3
    _, constants = to_integers(build("Conv", weight, np.zeros(8)), RANGE)
    assert constants["layer/weight/int8"].max() == peak


@pytest.mark.parametrize(
    ("op", "shape", "groups"),
    [
        ("Conv", (16, 3, 3, 3), 1),
        ("Conv", (24, 64, 1, 1), 1),
        ("Conv", (33, 20, 3, 3), 1),
        ("Conv", (32, 4, 3, 3), 4),
        ("Conv", (32, 1, 3, 3), 32),
        ("Conv", (19, 1, 5, 5), 19),
        ("Gemm", (18, 64), 1),
        ("Gemm", (18, 1283), 1),
    ],
)
@pytest.mark.parametrize("row", ["equal", "falling", "two outliers", "both signs", "normal"])
def test_kernels_add_up_exactly(op: str, shape: tuple[int, ...], groups: int, row: str, tmp_path: Path) -> None:
    """Near the largest activations, onnxruntime's integer kernels on this processor give the sums of exact integers,
    within one step of the output's rounding.
    """
    rng = np.random.default_rng(1)
    count = int(np.prod(shape[1:]))
    rows = rng.normal(size=(shape[0], count)) if row == "normal" else np.resize(ROWS[row], (shape[0], count))
    bias = rng.normal(size=shape[0])
    attributes: dict[str, Any] = {"group": groups} if op == "Conv" else {"transB": 1}
    proto = build(op, rows.reshape(shape), bias, **attributes)
    channels = shape[1] * groups
    stored = rng.integers(225, 256, (4, channels, 9, 9) if op == "Conv" else (4, channels))
    image = (stored - int(RANGE.zero)).astype(np.float32) * RANGE.scale

    # once to learn the range of the sums, then with the range that holds them
    _, constants = to_integers(proto, RANGE)
    integers, steps = constants["layer/weight/int8"], constants["layer/bias/scale"]
    across = (1, -1, 1, 1) if op == "Conv" else (1, -1)
    sums = accumulate(stored - int(RANGE.zero), integers, groups) + constants["layer/bias/int32"].reshape(across)
    real = sums * steps.astype(np.float64).reshape(across)
    ends = Range(min(0.0, float(real.min())), max(0.0, float(real.max())))
    model, _ = to_integers(proto, ends)

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.optimized_model_filepath = str(tmp_path / "optimized.onnx")
    data = model.SerializeToString()
    session = onnxruntime.InferenceSession(data, options, providers=["CPUExecutionProvider"])
    used = {node.op_type for node in onnx.load(tmp_path / "optimized.onnx").graph.node}
    assert used & set(KERNELS), "the layer runs in float: this proves nothing"
    found = session.run(None, {"image": image})[0]
    expected = np.abs((np.clip(np.rint(real / ends.scale) + int(ends.zero), 0, 255) - int(ends.zero)) * ends.scale)
    assert np.abs(found - expected).max() <= 1.01 * ends.scale
    assert np.mean(np.abs(found - expected) > 0.01 * ends.scale) < 0.02


IN_OPENVINO = """
import sys, numpy
from ensemble.runtime.openvino import build_runtime, shared_core
from ensemble.runtime.int8_products import with_convolutions
image = numpy.load(sys.argv[1])
for path in sys.argv[2:]:
    data = open(path, "rb").read()
    numpy.save(path, build_runtime(data, bf16=False).run(["logits"], {"image": image})[0])
    network = shared_core().read_model(with_convolutions(data))
    request = shared_core().compile_model(network, "CPU", {"PERF_COUNT": True}).create_infer_request()
    request.infer({"image": image})
    print(*(one.exec_type for one in request.profiling_info if one.node_type == "Convolution"))
"""


def test_openvino_without_vnni_adds_up_exactly(tmp_path: Path) -> None:
    """Held to the instructions of older processors, oneDNN adds up as in float32, but not weights twice as large.

    ONEDNN_MAX_CPU_ISA is read once by a process (``get_max_cpu_isa`` in oneDNN's src/cpu/x64/cpu_isa_traits.cpp).
    """
    proto = build("Conv", np.resize(ROWS["equal"], (16, 32, 1, 1)), np.zeros(16))
    model = quantize(proto, {"image": RANGE}, find_layers(proto.graph), scheme=OPENVINO)
    image = np.full((2, 32, 9, 9), RANGE.high, dtype=np.float32)
    np.save(tmp_path / "image.npy", image)
    (tmp_path / "ours.onnx").write_bytes(model.SerializeToString())
    (weight,) = (one for one in model.graph.initializer if one.name == "layer/weight/int8")
    values = onnx.numpy_helper.to_array(weight)
    assert (values == 64).all()
    weight.CopyFrom(onnx.numpy_helper.from_array(np.full_like(values, 127), weight.name))
    (tmp_path / "large.onnx").write_bytes(model.SerializeToString())
    done = subprocess.run(
        [sys.executable, "-c", IN_OPENVINO, "image.npy", "ours.onnx", "large.onnx"],
        cwd=tmp_path,
        env=os.environ | {"ONEDNN_MAX_CPU_ISA": "AVX2", "PYTHONPATH": str(Path.cwd())},
        capture_output=True,
        text=True,
        check=True,
    )
    assert {kernel.rsplit("_", 1)[1] for kernel in done.stdout.split()} == {"I8"}, "in float this proves nothing"
    ours, large = (np.load(tmp_path / f"{name}.onnx.npy") for name in ("ours", "large"))
    np.testing.assert_allclose(ours, 32 * RANGE.high, rtol=0.01)
    assert large.max() < 0.8 * 32 * RANGE.high * 127 / 64
