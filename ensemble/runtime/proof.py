"""Prove that a device computes: tiny networks whose answers are known, of the kinds that real networks are made of.

An addition alone proves little on a GPU: onnxruntime's CUDA provider starts without cuDNN, and fails at the first
convolution. So CUDA and TensorRT also compute a convolution of 3 x 3 with stride 2 and asymmetric padding, in float32
and in float16, as the networks of timm's ``tf_`` family do.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from ensemble.runtime.device import Device
from ensemble.runtime.symmetric_pads import split_asymmetric_pads

_CHANNELS = 8  # as many as tensor cores take at once
_SIDE = 8
# of a kernel of 3 x 3 ones over ones padded by one pixel at the bottom and at the right: pixels under the kernel
_UNDER = np.outer([3, 3, 3, 2], [3, 3, 3, 2])


@dataclass(frozen=True, slots=True, eq=False)
class Proof:
    """A network, its inputs and its expected answer; all values are exact in float16."""

    name: str
    model: bytes
    inputs: Mapping[str, NDArray[np.float32]]
    expected: NDArray[np.float32]
    provider_options: Mapping[str, str] = field(default_factory=dict)

    def fault(self, answer: Any) -> str:
        """Return what is wrong with an answer, or nothing."""
        found = np.asarray(answer, dtype=np.float32)
        if found.shape == self.expected.shape and np.allclose(found, self.expected, rtol=1e-3):
            return ""
        return f"{self.name} gave {_show(found)}, not {_show(self.expected)}"


def proofs_of(device: Device) -> tuple[Proof, ...]:
    """Return the proofs of a device, the simplest first."""
    addition = Proof("1 + 1", _addition(), {"x": np.ones(1, dtype=np.float32)}, np.full(1, 2, dtype=np.float32))
    if device.kind == "plugin":
        return (addition, replace(_convolution(device, "float32"), provider_options={}))
    if not device.is_gpu:
        return (addition,)
    return (addition, _convolution(device, "float32"), _convolution(device, "float16"))


def _show(values: NDArray[np.float32]) -> str:
    return str(float(values.flat[0])) if values.size == 1 else f"{float(values.mean()):g} on average"


@functools.cache
def _addition() -> bytes:
    value = helper.make_tensor_value_info
    graph = helper.make_graph(
        [helper.make_node("Add", ["x", "x"], ["y"])],
        "one_addition",
        [value("x", TensorProto.FLOAT, [1])],
        [value("y", TensorProto.FLOAT, [1])],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    return bytes(model.SerializeToString())


def _convolution(device: Device, precision: str) -> Proof:
    half = precision == "float16"
    if device.kind == "cuda":
        options = {"use_tf32": str(int(half)), "cudnn_conv_algo_search": "HEURISTIC"}
    else:
        options = {"trt_fp16_enable": str(int(half))}
    return Proof(
        name=f"a convolution in {precision}",
        model=convolution_model(precision, split=device.kind == "cuda"),
        inputs={"x": np.ones((1, _CHANNELS, _SIDE, _SIDE), dtype=np.float32)},
        expected=np.broadcast_to(_UNDER * _CHANNELS, (1, _CHANNELS, 4, 4)).astype(np.float32),
        provider_options=options,
    )


@functools.cache
def convolution_model(precision: str, *, split: bool) -> bytes:
    """Return a convolution with pads ``(0, 0, 1, 1)``, float32 outside and ``precision`` inside.

    With ``split`` its padding is taken out, as it is in every network that CUDA runs.
    """
    kind = TensorProto.FLOAT16 if precision == "float16" else TensorProto.FLOAT
    dtype = helper.tensor_dtype_to_np_dtype(kind)
    value = helper.make_tensor_value_info
    name = f"3x3 convolution in {precision}"
    graph = helper.make_graph(
        [
            helper.make_node("Cast", ["x"], ["inside"], to=kind),
            helper.make_node("Conv", ["inside", "w"], ["z"], name=name, strides=[2, 2], pads=[0, 0, 1, 1]),
            helper.make_node("Cast", ["z"], ["y"], to=TensorProto.FLOAT),
        ],
        "one_convolution",
        [value("x", TensorProto.FLOAT, [1, _CHANNELS, _SIDE, _SIDE])],
        [value("y", TensorProto.FLOAT, [1, _CHANNELS, 4, 4])],
        [numpy_helper.from_array(np.ones((_CHANNELS, _CHANNELS, 3, 3), dtype=dtype), "w")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    onnx.checker.check_model(model)
    if split:
        split_asymmetric_pads(model)
    return bytes(model.SerializeToString())
