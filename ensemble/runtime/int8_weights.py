"""int8 weights that the kernels of some x86 processors cannot add up.

Without VNNI, onnxruntime multiplies uint8 activations by int8 weights with VPMADDUBSW, which adds two products in 16
bits and saturates. Which weights are paired depends on the kernel.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

# 255 * 128 = 32,640 fits into 16 bits, 255 * 129 does not
LARGEST_PAIR = 128


def sum_pairs(rows: NDArray[Any]) -> NDArray[Any]:
    """Return the largest magnitude ``(O,)`` of a sum of two weights of one sign in each row ``(O, K)``.

    Activations are not negative: weights of both signs make a smaller sum.
    """
    second = max(rows.shape[1] - 2, 0)
    sums = [np.partition(np.maximum(signed, 0), second, axis=1)[:, second:].sum(axis=1) for signed in (rows, -rows)]
    largest: NDArray[Any] = np.maximum(*sums)
    return largest


def may_saturate(data: bytes) -> bool:
    """Return True if two products of one channel of int8 weights in an ONNX model may leave 16 bits.

    Raises:
        ValueError: a weight's values or axis do not fit its shape.
    """
    model = onnx.load_model_from_string(data)
    weights = {t.name: t for t in model.graph.initializer if t.data_type == onnx.TensorProto.INT8 and len(t.dims) > 1}
    for node in model.graph.node:
        if node.op_type == "DequantizeLinear" and node.input[0] in weights:
            values = onnx.numpy_helper.to_array(weights[node.input[0]]).astype(np.int16)
            # without an axis one scale is that of all channels
            for axis in [attribute.i for attribute in node.attribute if attribute.name == "axis"]:
                values = np.moveaxis(values, axis, 0).reshape(values.shape[axis], -1)
            if sum_pairs(values.reshape(len(values), -1)).max(initial=0) > LARGEST_PAIR:
                return True
    return False
