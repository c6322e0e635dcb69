"""float16: folding before rounding, and the rounding of a device."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from numpy.typing import NDArray
from timm.layers.std_conv import StdConv2d

from exporters.fp16 import to_half, with_rounding

pytestmark = pytest.mark.slow


def make_block(conv: torch.nn.Module | None = None) -> torch.nn.Sequential:
    """A convolution and a normalization whose scales span four powers of ten."""
    generator = torch.Generator().manual_seed(3)
    norm = torch.nn.BatchNorm2d(8)
    with torch.no_grad():
        norm.weight.copy_(torch.rand(8, generator=generator) + 0.5)
        norm.bias.copy_(torch.rand(8, generator=generator))
        norm.get_buffer("running_mean").copy_(torch.rand(8, generator=generator))
        norm.get_buffer("running_var").copy_(torch.logspace(-4, 0, 8))
    return torch.nn.Sequential(conv or torch.nn.Conv2d(3, 8, 3, bias=True), norm).eval()


def test_weights_are_scaled_before_they_are_rounded() -> None:
    """A half network's convolution holds float16(weight * gamma / sqrt(var + eps)), rounded once."""
    block = make_block()
    conv, norm = (vars(module) for module in block)
    half: Any = to_half(block, (16, 16))
    weight, gamma = (
        p.detach().numpy().astype(np.float64) for p in (conv["_parameters"]["weight"], norm["_parameters"]["weight"])
    )
    scale = gamma / np.sqrt(norm["_buffers"]["running_var"].numpy().astype(np.float64) + 1e-5)
    expected = (weight * scale[:, None, None, None]).astype(np.float32).astype(np.float16)
    assert np.array_equal(half[0].weight.detach().numpy(), expected)


def test_folding_changes_no_answer() -> None:
    """Apart from rounding, the half network answers as the original, which is left as it was."""
    block = make_block()
    before = {name: values.clone() for name, values in block.state_dict().items()}
    image = torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(4))
    with torch.inference_mode():
        expected = block(image)
        found = to_half(block, (16, 16)).float()(image)
    assert float((found - expected).abs().max() / expected.abs().max()) < 1e-3
    assert all(torch.equal(values, before[name]) for name, values in block.state_dict().items())


def test_a_convolution_that_standardizes_its_weights_is_not_scaled() -> None:
    """Scaling such a weight would be undone at once, so the normalization keeps its scale."""
    block = make_block(StdConv2d(3, 8, 3))
    image = torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(4))
    with torch.inference_mode():
        expected = block(image)
        found = to_half(block, (16, 16)).float()(image)
    assert float((found - expected).abs().max() / expected.abs().max()) < 5e-3


def make_products(factors: list[float]) -> bytes:
    """A float16 model that multiplies its float32 input by one factor after the other."""
    half, single = onnx.TensorProto.FLOAT16, onnx.TensorProto.FLOAT
    names = [f"x{i}" for i in range(len(factors) + 1)]
    graph = onnx.helper.make_graph(
        [
            onnx.helper.make_node("Cast", ["x"], ["x0"], to=half),
            *(onnx.helper.make_node("Mul", [a, f"by_{a}"], [b]) for a, b in pairwise(names)),
            onnx.helper.make_node("Cast", [names[-1]], ["y"], to=single),
        ],
        "products",
        [onnx.helper.make_tensor_value_info("x", single, ["n"])],
        [onnx.helper.make_tensor_value_info("y", single, ["n"])],
        [onnx.numpy_helper.from_array(np.array(f, dtype=np.float16), f"by_x{i}") for i, f in enumerate(factors)],
    )
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 20)], ir_version=10)
    data: bytes = model.SerializeToString()
    return data


def run(model: bytes, x: NDArray[np.float32]) -> NDArray[np.float32]:
    found: NDArray[np.float32] = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"]).run(
        None, {"x": x}
    )[0]
    return found


def test_a_rounded_model_answers_as_float16_arithmetic_does() -> None:
    """Every product is rounded to float16, as numpy's float16 does it, bit by bit."""
    x = np.linspace(0.1, 9, 50, dtype=np.float32)
    expected = x.astype(np.float16)
    for factor in (1.3, 0.7, 3.1):
        expected = expected * np.float16(factor)
    assert np.array_equal(run(with_rounding(make_products([1.3, 0.7, 3.1])), x), expected.astype(np.float32))


def test_an_overflow_on_the_way_shows_in_the_rounded_model() -> None:
    """300 * 300 * 0.001 overflows in float16, and the rounded model says so."""
    x = np.array([300], dtype=np.float32)
    assert np.isinf(run(with_rounding(make_products([300, 0.001])), x)).all()
