"""Read a network that dlib serialized (a ``.dat`` file) and write it as ONNX.

The format is that of ``serialize`` in dlib's ``dnn/core.h``, ``layers.h``, ``input.h`` and ``loss.h``: the versions of
all layers from the outermost to the innermost, the input layer, and then what each layer holds, from the innermost out.
Layers of a residual network are known: convolutions, affine layers, ReLU, factors, pooling, sums, fully connected ones.

The file does not tell which tag a sum or a skip refers to. They are taken as dlib's own residual blocks have them: a
sum adds the nearest tag that no other sum has used, and a skip behind a tag continues from the tag before that.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from ensemble.errors import ModelError

EMBEDDING = "embedding"
"""The output of a network that was trained to tell faces apart, whose numbers are no classes."""
_LOGITS = "logits"
_INPUT = "images"
_OPSET = 17
_PRODUCER = "dlib"
_MOST = 500_000_000  # numbers of a tensor
_LOSSES: Mapping[str, tuple[int, str]] = {"loss_metric_2": (2, EMBEDDING), "loss_multiclass_log_": (0, _LOGITS)}
_LAYER, _TAG = 2, 1  # the versions by which the kinds of nesting are told apart
_WITH_INPUT = (2, 3)
_LOWEST = 4  # above it, a number is the length of a name


class _Damaged(Exception):
    """A fault of the file, in words."""


def is_dlib_network(data: bytes) -> bool:
    """Return whether a file begins as a network of dlib does."""
    return data[:1] == b"\x01" and b"input" in data[:65536]


def is_dlib(proto: onnx.ModelProto) -> bool:
    """Return whether a network is one that `convert_dlib` made."""
    return bool(proto.producer_name == _PRODUCER)


def convert_dlib(data: bytes, name: str) -> onnx.ModelProto:
    """Return the network in a ``.dat`` file of dlib as ONNX; ``name`` is the file's, for messages.

    Its input are RGB images ``(batch, 3, H, W)`` uint8, whose normalization is part of the network.

    Raises:
        ModelError: E470 when the file is damaged, or holds a layer that is not known.
    """
    try:
        return _read_network(_Stream(data))
    except (_Damaged, struct.error, OverflowError) as err:
        reason = str(err) if isinstance(err, _Damaged) else "it ends too early"
        raise ModelError("E470", f"{name} cannot be read as a network of dlib: {reason}") from err


@dataclass(slots=True)
class _Stream:
    """The bytes of a file, read from the front."""

    data: bytes
    place: int = 0

    def take(self, count: int) -> bytes:
        """Return the next bytes."""
        if count < 0 or self.place + count > len(self.data):
            raise _Damaged("it ends too early")
        self.place += count
        return self.data[self.place - count : self.place]

    def whole(self) -> int:
        """Return a whole number: a byte with sign and length, and so many bytes."""
        head = self.take(1)[0]
        if head & 0x7F > 8:
            raise _Damaged(f"at byte {self.place - 1:,} there is no number")
        value = int.from_bytes(self.take(head & 0x7F), "little")
        return -value if head & 0x80 else value

    def peek(self) -> int:
        """Return the next whole number, and stay in front of it."""
        place = self.place
        found = self.whole()
        self.place = place
        return found

    def wholes(self, count: int) -> list[int]:
        """Return several whole numbers."""
        return [self.whole() for _ in range(count)]

    def real(self) -> float:
        """Return a fraction: a mantissa and the power of two that it is multiplied by."""
        mantissa, power = self.whole(), self.whole()
        if abs(power) > 2000:  # 32000 and more stand for infinity and no number
            raise _Damaged("a number is not finite")
        return math.ldexp(mantissa, power)

    def flag(self) -> bool:
        """Return a truth value."""
        found = self.take(1)
        if found not in {b"0", b"1"}:
            raise _Damaged(f"at byte {self.place - 1:,} there is no truth value")
        return found == b"1"

    def name(self) -> str:
        """Return the name of a layer, with its version."""
        length = self.whole()
        found = self.take(length if 0 < length <= 100 else -1)
        return found.decode("latin-1")

    def tensor(self) -> NDArray[np.float32]:
        """Return a tensor as a row of its numbers."""
        version, sides = self.whole(), self.wholes(4)
        if version != 2 or min(sides) < 0 or math.prod(sides) > _MOST:
            raise _Damaged(f"a tensor of version {version} and {sides} is not known")
        return np.frombuffer(self.take(4 * math.prod(sides)), dtype="<f4").copy()

    def part(self) -> tuple[int, ...]:
        """Return the shape of a part of a layer's numbers."""
        if self.whole() != 1:
            raise _Damaged("a part of a tensor is of a version that is not known")
        sides = tuple(self.wholes(4))
        if min(sides) < 0:
            raise _Damaged(f"a part of a tensor has the sides {sides}")
        return sides


@dataclass(frozen=True, slots=True)
class _Value:
    """A value of the graph: its name, channels, height and width; sides are None where the network takes any size."""

    name: str
    channels: int
    height: int | None
    width: int | None


@dataclass(slots=True)
class _Graph:
    """The nodes and constants so far, the value that the next layer reads, and the tags that no sum has used."""

    value: _Value
    nodes: list[onnx.NodeProto] = field(default_factory=list)
    constants: list[TensorProto] = field(default_factory=list)
    tags: list[_Value] = field(default_factory=list)

    def add(self, kind: str, inputs: list[str], **settings: Any) -> str:
        """Add a node; return the name of its value."""
        name = f"v{len(self.nodes)}"
        self.nodes.append(helper.make_node(kind, inputs, [name], **settings))
        return name

    def constant(self, value: NDArray[Any]) -> str:
        """Add a constant; return its name."""
        name = f"c{len(self.constants)}"
        self.constants.append(numpy_helper.from_array(np.ascontiguousarray(value), name))
        return name

    def skip(self) -> None:
        """Continue from the tag before the last one, as a skip layer does."""
        if len(self.tags) < 2:
            raise _Damaged("a skip layer has no tag to continue from")
        self.value = self.tags.pop(-2)

    def add_previous(self) -> None:
        """Add the value of the last tag; sides that differ are filled with zeros at their ends."""
        if not self.tags:
            raise _Damaged("a sum has no tag that it adds")
        one, two = self.value, self.tags.pop()
        sides = tuple(_larger(a, b) for a, b in ((one.height, two.height), (one.width, two.width)))
        wanted = _Value("", max(one.channels, two.channels), *sides)
        parts = [self._fill(one, wanted), self._fill(two, wanted)]
        self.value = _Value(self.add("Add", parts), wanted.channels, *sides)

    def _fill(self, value: _Value, wanted: _Value) -> str:
        lacking = [
            (right or 0) - (left or 0)
            for left, right in (
                (value.channels, wanted.channels),
                (value.height, wanted.height),
                (value.width, wanted.width),
            )
        ]
        if not any(lacking):
            return value.name
        return self.add("Pad", [value.name, self.constant(np.array([0, 0, 0, 0, 0, *lacking], dtype=np.int64))])


def _larger(one: int | None, two: int | None) -> int | None:
    return None if one is None or two is None else max(one, two)


def _read_network(stream: _Stream) -> onnx.ModelProto:
    nesting: list[int] = []
    output = _LOGITS
    first = stream.whole()
    if first == 1 and stream.peek() > _LOWEST:  # a loss has its name behind its version
        loss = stream.name()
        if loss not in _LOSSES:
            raise _Damaged(f"the loss {loss} is not known")
        count, output = _LOSSES[loss]
        for _ in range(count):
            stream.real()
        first = stream.whole()
    nesting.append(first)
    while stream.peek() <= _LOWEST:
        nesting.append(stream.whole())
    innermost = nesting.pop()
    if innermost not in _WITH_INPUT or not set(nesting) <= {_LAYER, _TAG}:
        raise _Damaged(f"its layers are nested as {sorted({*nesting, innermost})}, which is not known")
    graph, image = _read_input(stream)
    _read_layer(stream, graph)
    if innermost == _WITH_INPUT[1]:
        stream.whole()  # how many images the input layer makes of one
    kinds = list(reversed(nesting))
    for place, kind in enumerate(kinds):
        if kind == _LAYER:
            _read_layer(stream, graph)
        elif place and kinds[place - 1] == _TAG:
            _require(kinds[place - 2 : place] != [_TAG, _TAG], "which tags its skips refer to is not known")
            graph.skip()
        else:
            graph.tags.append(graph.value)
    if graph.tags:
        raise _Damaged("it has a tag that no sum uses")
    return _to_model(graph, image, output)


def _read_input(stream: _Stream) -> tuple[_Graph, list[int | None]]:
    """Return a graph that normalizes images, and the height and width that it takes."""
    kind = stream.name()
    if kind not in {"input_rgb_image", "input_rgb_image_sized"}:
        raise _Damaged(f"the input layer {kind} is not known")
    means = np.array([stream.real() for _ in range(3)], dtype=np.float32).reshape(1, 3, 1, 1)
    sides: list[int | None] = [None, None]
    if kind.endswith("_sized"):
        sides = [*stream.wholes(2)]
    graph = _Graph(_Value(_INPUT, 3, *sides))
    floats = graph.add("Cast", [_INPUT], to=TensorProto.FLOAT)
    centered = graph.add("Sub", [floats, graph.constant(means)])
    graph.value = _Value(graph.add("Mul", [centered, graph.constant(np.array([1 / 256], dtype=np.float32))]), 3, *sides)
    return graph, sides


def _read_layer(stream: _Stream, graph: _Graph) -> None:
    name = stream.name()
    if name not in _LAYERS:
        raise _Damaged(f"the layer {name} is not known")
    _LAYERS[name](stream, graph, name)
    for _ in range(3):
        stream.flag()  # what is set up, and which gradients are stale
    for _ in range(3):
        stream.tensor()  # gradients and outputs of the last run


def _convolution(stream: _Stream, graph: _Graph, name: str) -> None:
    numbers, filters = stream.tensor(), stream.whole()
    height, width, down, across, top, left = stream.wholes(6)
    shape, bias_shape = stream.part(), stream.part()
    for _ in range(4):
        stream.real()  # learning rates and weight decays
    has_bias = math.prod(bias_shape) > 0 and (name == "con_4" or stream.flag())
    if name == "con_6" and stream.flag():
        raise _Damaged("a convolution contains its ReLU")
    value = graph.value
    _require(shape == (filters, value.channels, height, width), f"a convolution of {shape} reads {value.channels}")
    _require(len(numbers) == math.prod(shape) + math.prod(bias_shape), "a convolution lacks weights")
    split = math.prod(shape)
    inputs = [value.name, graph.constant(numbers[:split].reshape(shape))]
    if has_bias:
        inputs.append(graph.constant(numbers[split:]))
    made = graph.add("Conv", inputs, strides=[down, across], pads=[top, left, top, left])
    graph.value = _slide(made, value, filters, (height, width), (down, across), (top, left))


def _pooling(stream: _Stream, graph: _Graph, name: str) -> None:
    height, width, down, across, top, left = stream.wholes(6)
    kind, value = ("Max" if name.startswith("max") else "Average"), graph.value
    if height == 0 and width == 0:
        graph.value = _Value(graph.add(f"Global{kind}Pool", [value.name]), value.channels, 1, 1)
        return
    _require(kind == "Max" or top == left == 0, "an average over windows beyond the border is not known")
    made = graph.add(
        f"{kind}Pool", [value.name], kernel_shape=[height, width], strides=[down, across], pads=[top, left, top, left]
    )
    graph.value = _slide(made, value, value.channels, (height, width), (down, across), (top, left))


def _slide(
    name: str, value: _Value, channels: int, window: tuple[int, int], step: tuple[int, int], border: tuple[int, int]
) -> _Value:
    sides: list[int | None] = []
    for side, size, stride, more in zip((value.height, value.width), window, step, border, strict=True):
        _require(min(size, stride) > 0 <= more, "a window has no size")
        sides.append(None if side is None else 1 + (side + 2 * more - size) // stride)
    _require(all(side is None or side > 0 for side in sides), "its images are smaller than its windows")
    return _Value(name, channels, *sides)


def _affine(stream: _Stream, graph: _Graph, name: str) -> None:
    numbers, factors, _, mode = stream.tensor(), stream.part(), stream.part(), stream.whole()
    if name == "affine_2" and stream.flag():
        return  # it is switched off
    half, value = len(numbers) // 2, graph.value
    whole = (value.channels, value.height, value.width)
    shape = (1, value.channels, 1, 1) if mode == 0 else (1, *(side or 0 for side in whole))
    _require(half == math.prod(factors) == math.prod(shape), f"an affine layer of {factors} reads {whole}")
    scaled = graph.add("Mul", [value.name, graph.constant(numbers[:half].reshape(shape))])
    shifted = graph.add("Add", [scaled, graph.constant(numbers[half:].reshape(shape))])
    graph.value = _Value(shifted, *whole)


def _fully_connected(stream: _Stream, graph: _Graph, name: str) -> None:
    outputs, inputs = stream.wholes(2)
    numbers, shape, bias_shape, mode = stream.tensor(), stream.part(), stream.part(), stream.whole()
    for _ in range(4):
        stream.real()
    has_bias = mode == 0 and (name == "fc_2" or stream.flag())
    value, split = graph.value, inputs * outputs
    whole = value.channels * (value.height or 0) * (value.width or 0)
    _require(whole == inputs and math.prod(shape) == split, f"a layer of {inputs} numbers reads {whole}")
    _require(len(numbers) == split + math.prod(bias_shape), "a fully connected layer lacks weights")
    row = graph.add("Flatten", [value.name])
    made = graph.add("MatMul", [row, graph.constant(numbers[:split].reshape(inputs, outputs))])
    if has_bias:
        made = graph.add("Add", [made, graph.constant(numbers[split:].reshape(1, outputs))])
    place = graph.constant(np.array([0, outputs, 1, 1], dtype=np.int64))
    graph.value = _Value(graph.add("Reshape", [made, place]), outputs, 1, 1)


def _factor(stream: _Stream, graph: _Graph, _: str) -> None:
    factor, value = np.array([stream.real()], dtype=np.float32), graph.value
    made = graph.add("Mul", [value.name, graph.constant(factor)])
    graph.value = _Value(made, value.channels, value.height, value.width)


def _relu(_: _Stream, graph: _Graph, __: str) -> None:
    value = graph.value
    graph.value = _Value(graph.add("Relu", [value.name]), value.channels, value.height, value.width)


def _sum(_: _Stream, graph: _Graph, __: str) -> None:
    graph.add_previous()


_LAYERS: Mapping[str, Callable[[_Stream, _Graph, str], None]] = {
    **dict.fromkeys(("con_4", "con_5", "con_6"), _convolution),
    **dict.fromkeys(("max_pool_2", "avg_pool_2"), _pooling),
    **dict.fromkeys(("affine_", "affine_2"), _affine),
    **dict.fromkeys(("fc_2", "fc_3"), _fully_connected),
    "multiply_": _factor,
    "relu_": _relu,
    "add_prev_": _sum,
}


def _require(holds: bool, fault: str) -> None:
    if not holds:
        raise _Damaged(fault)


def _to_model(graph: _Graph, sides: list[int | None], output: str) -> onnx.ModelProto:
    value = graph.value
    _require(value.height == value.width == 1, "it ends in a map, not in numbers per image")
    # through a MatMul and a Flatten the answers are seen to be linear
    graph.nodes.append(helper.make_node("Flatten", [value.name], [output]))
    shape = ["batch", 3, *(side or name for side, name in zip(sides, ("height", "width"), strict=True))]
    made = helper.make_graph(
        graph.nodes,
        "dlib",
        [helper.make_tensor_value_info(_INPUT, TensorProto.UINT8, shape)],
        [helper.make_tensor_value_info(output, TensorProto.FLOAT, ["batch", value.channels])],
        initializer=graph.constants,
    )
    return helper.make_model(
        made, opset_imports=[helper.make_opsetid("", _OPSET)], ir_version=8, producer_name=_PRODUCER
    )
