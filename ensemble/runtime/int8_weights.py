"""int8 weights that the kernels of some x86 processors cannot add up.

Without VNNI, onnxruntime and OpenVINO multiply uint8 activations by int8 weights with VPMADDUBSW, which adds two
products in 16 bits and saturates. It takes values four by four, and adds the first to the second and the third to the
fourth. A convolution takes the channels of one place (``ComputeBlock`` in onnxruntime/core/mlas/lib/x86_64/
ConvSymKernelAvx2.S), so that with a multiple of four channels a weight is paired with one neighbor only. So does a
product of rows (``ComputeBlockBy1Loop``, by four values at a time, in lib/amd64/QgemmU8X8KernelAvx2.asm). Depthwise
convolutions add in 32 bits (``DepthwiseMultiplyAccumulateCellAvx2`` there, and mlas/lib/intrinsics/avx2/
qdwconv_avx2.cpp). The same was measured of OpenVINO's kernels with ONEDNN_MAX_CPU_ISA=AVX2.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import onnx
from numpy.typing import NDArray

# 255 * 128 = 32,640 fits into 16 bits, 255 * 129 does not
LARGEST_PAIR = 128

# which weights of an output channel a kernel may pair: none, each with one neighbor among the input channels, any two
Pairs = Literal["none", "neighbors", "any"]


def pairs_of(op_type: str, dims: Sequence[int], groups: int) -> Pairs:
    """Return which weights are paired in a layer whose weight has these ``dims``: ``(O, I, h, w)`` of a convolution."""
    if op_type != "Conv":
        return "any"
    if dims[1] == 1 and groups == dims[0] > 1:
        return "none"
    return "neighbors" if dims[1] % 4 == 0 else "any"


def groups_of(node: onnx.NodeProto) -> int:
    """Return the number of groups of a convolution; 1 of any other node."""
    return next((attribute.i for attribute in node.attribute if attribute.name == "group"), 1)


def sum_pairs(rows: NDArray[Any], pairs: Pairs = "any", *, inputs: int = 1) -> NDArray[Any]:
    """Return the largest magnitude ``(O,)`` of a sum of two weights of one sign in each row ``(O, K)``.

    ``pairs`` are those that count; of ``neighbors`` a row has ``inputs`` channels with ``K / inputs`` places each.
    Activations are not negative: weights of both signs make a smaller sum. Without pairs it is the largest weight.
    """
    if pairs == "none":
        alone: NDArray[Any] = np.abs(rows).max(axis=1)
        return alone
    parts = [np.maximum(signed, 0) for signed in (rows, -rows)]
    if pairs == "neighbors":
        places = rows.shape[1] // inputs
        sums = [part.reshape(len(rows), -1, 2, places).sum(axis=2).reshape(len(rows), -1).max(axis=1) for part in parts]
    else:
        second = max(rows.shape[1] - 2, 0)
        sums = [np.partition(part, second, axis=1)[:, second:].sum(axis=1) for part in parts]
    largest: NDArray[Any] = np.maximum(*sums)
    return largest


def may_saturate(data: bytes) -> bool:
    """Return True if two products of one channel of int8 weights in an ONNX model may leave 16 bits.

    Raises:
        ValueError: a weight's values or axis do not fit its shape.
    """
    model = onnx.load_model_from_string(data)
    weights = {t.name: t for t in model.graph.initializer if t.data_type == onnx.TensorProto.INT8 and len(t.dims) > 1}
    readers = {name: node for node in model.graph.node for name in node.input}
    for node in model.graph.node:
        if node.op_type == "DequantizeLinear" and node.input[0] in weights:
            values = onnx.numpy_helper.to_array(weights[node.input[0]]).astype(np.int16)
            reader = readers.get(node.output[0])
            pairs = _pairs_in(reader, values.shape)
            place = _outputs_in(reader, values.ndim)
            if place is None:  # a scale per channel tells; without an axis one scale is that of all channels
                place = next((attribute.i for attribute in node.attribute if attribute.name == "axis"), 0)
            inputs = values.shape[1 - place] if place in {0, 1} else 1
            rows = np.moveaxis(values, place, 0).reshape(values.shape[place], -1)
            if sum_pairs(rows, pairs, inputs=inputs).max(initial=0) > LARGEST_PAIR:
                return True
    return False


def _pairs_in(reader: onnx.NodeProto | None, dims: Sequence[int]) -> Pairs:
    """Return which weights are paired in the node that reads them."""
    if reader is None:
        return "any"
    if reader.op_type == "MatMul" and len(dims) == 2 and dims[0] % 4 == 0:
        return "neighbors"
    return pairs_of(reader.op_type, dims, groups_of(reader))


def _outputs_in(reader: onnx.NodeProto | None, rank: int) -> int | None:
    """Return the axis of output channels in a weight of these layers; None for others."""
    match None if reader is None else reader.op_type:
        case "Conv":
            return 0
        case "MatMul":
            return rank - 1
        case "Gemm":
            assert reader is not None
            return 0 if any(attribute.name == "transB" and attribute.i for attribute in reader.attribute) else 1
        case _:
            return None
