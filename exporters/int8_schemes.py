"""Schemes of int8: asymmetric for CPUs, symmetric for TensorRT, and one for OpenVINO alone.

onnxruntime computes a convolution on integers only where its output is stored in 8 bits, so that an activation function
reads rounded values. OpenVINO computes the activation function in float32 as it sums up, and rounds once: for it, the
inputs of layers alone are stored.

TensorRT's parser takes int8 with zero points of zero alone, and no uint8 ("Non-zero zero point is not supported",
``QuantDequantLinearHelper`` in onnx-tensorrt 10). Which layers it has kernels for follows NVIDIA's own tool
(``find_nodes_from_convs_to_exclude`` in modelopt.onnx.quantization.graph_utils).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import onnx
from numpy.typing import NDArray

from ensemble.card import Quantization
from ensemble.runtime.int8_weights import LARGEST_PAIR, Pairs, groups_of, sum_pairs

Array = NDArray[Any]
Doubles = NDArray[np.float64]

STEPS = 255  # between the ends of an asymmetric range
_SIDE = 127  # steps on either side of zero of a symmetric one
_CUTS = np.linspace(1, 0.2, 33)  # candidate clipping thresholds, as fractions of the extreme; the first wins on ties
_CHANNELS = 16  # with fewer, TensorRT has kernels for some shapes only


@dataclass(frozen=True, slots=True)
class Range:
    """The smallest and the largest value of a tensor, zero included."""

    low: float
    high: float

    @property
    def scale(self) -> np.float32:
        """The scale of uint8 quantization."""
        return np.float32((self.high - self.low) / STEPS or 1.0)

    @property
    def zero(self) -> np.uint8:
        """The zero point of uint8 quantization."""
        return np.uint8(np.clip(np.rint(-self.low / self.scale), 0, STEPS))

    @property
    def reach(self) -> float:
        """The largest magnitude."""
        return max(-self.low, self.high)


class Scheme(ABC):
    """A rule for storing activations, weights and biases in 8 bits; ``name`` is what a card says."""

    name: ClassVar[Quantization]
    integer_bias: ClassVar[bool]
    inputs_only: ClassVar[bool] = False  # what layers make is stored where a layer reads it, and nowhere else

    @abstractmethod
    def scale(self, span: Range, /) -> np.float32:
        """Return the scale of an activation."""

    @abstractmethod
    def zeros(self, span: Range, /) -> Array:
        """Return the zero point of an activation, a scalar of the type that it is stored in."""

    @abstractmethod
    def fit(self, span: Range, values: Array, counts: Array, /) -> Range:
        """Return the range whose rounding has the least mean square error for ``counts[i]`` values ``values[i]``."""

    @staticmethod
    def weight_scales(rows: Array, pairs: Pairs = "any", *, inputs: int = 1) -> NDArray[np.float64]:
        """Return the scale of each output channel ``(O,)`` of weights ``(O, K)``: the finest that nothing saturates.

        The weights that a kernel pairs (see `sum_pairs`) may add up to `LARGEST_PAIR`. A large weight beside a small
        one keeps up to 127 steps: this loses far less than 7 bits for all weights, onnxruntime's remedy
        (``reduce_range``).
        """
        # rounding adds 1/2 to each of the two at most
        return sum_pairs(rows, pairs, inputs=inputs).astype(np.float64) / (LARGEST_PAIR - 1)

    def suits(self, _node: onnx.NodeProto, _dims: Sequence[int], /) -> bool:
        """Return True if a convolution or matrix product with weights of this shape may compute in 8 bits."""
        return True


class _Unsigned(Scheme):
    """uint8 with zero points for activations, int8 for weights, int32 for biases: the pair of x86 processors."""

    integer_bias = True

    def scale(self, span: Range, /) -> np.float32:
        """See `Scheme.scale`."""
        return span.scale

    def zeros(self, span: Range, /) -> Array:
        """See `Scheme.zeros`."""
        return np.asarray(span.zero)

    def fit(self, span: Range, values: Array, counts: Array, /) -> Range:
        """Search the upper end first, then the lower one."""

        def error(low: float, high: float) -> float:
            return _squared_error(values, counts, low, high, (high - low) / STEPS)

        high = min((float(cut) * span.high for cut in _CUTS), key=lambda end: error(span.low, end))
        low = min((float(cut) * span.low for cut in _CUTS), key=lambda end: error(end, high))
        return Range(low, high)


class Asymmetric(_Unsigned):
    """The outputs of layers are stored as well, as onnxruntime needs it to compute them on integers."""

    name = "asymmetric"


class InputsOnly(_Unsigned):
    """The inputs of layers alone are stored; their outputs are float32."""

    name = "openvino"
    inputs_only = True


class Symmetric(Scheme):
    """int8 with zero points of zero for activations and weights, and float32 for biases."""

    name = "symmetric"
    integer_bias = False

    def scale(self, span: Range, /) -> np.float32:
        """See `Scheme.scale`."""
        return np.float32(span.reach / _SIDE or 1.0)

    def zeros(self, _span: Range, /) -> Array:
        """See `Scheme.zeros`."""
        return np.asarray(np.int8(0))

    def fit(self, span: Range, values: Array, counts: Array, /) -> Range:
        """Search the magnitude beyond which values are clipped."""

        def error(end: float) -> float:
            return _squared_error(values, counts, -end, end, end / _SIDE)

        end = min((float(cut) * span.reach for cut in _CUTS), key=error)
        return Range(max(span.low, -end), min(span.high, end)) if span.reach > end else span

    def suits(self, node: onnx.NodeProto, dims: Sequence[int], /) -> bool:
        """Return True if TensorRT has int8 kernels for the layer."""
        if node.op_type != "Conv" or min(dims[:2]) >= _CHANNELS:
            return True
        made, taken, *kernel = dims
        if groups_of(node) > 1:
            return made % 8 == 0 and min(kernel) >= 3
        eighths = made % 8 == 0 or taken % 8 == 0
        return eighths and max(made, taken) >= _CHANNELS and len(set(kernel)) == 1


ASYMMETRIC, SYMMETRIC, OPENVINO = Asymmetric(), Symmetric(), InputsOnly()
SCHEMES: Mapping[Quantization, Scheme] = {one.name: one for one in (ASYMMETRIC, SYMMETRIC, OPENVINO)}


def _squared_error(values: Array, counts: Array, low: float, high: float, step: float) -> float:
    inside = (values >= low) & (values <= high)
    outside = np.where(values < low, low - values, values - high) ** 2
    return float((counts * np.where(inside, step**2 / 12, outside)).sum())
