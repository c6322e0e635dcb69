"""Build a member's graph around a foreign network: uint8 RGB ``(batch, H, W, 3)`` in, float32 logits out."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import onnx
import onnx.compose
import onnx.version_converter
from onnx import TensorProto, helper, numpy_helper

from ensemble.adopt.foreign import ForeignModel, ImageInput, Output, PixelLayout
from ensemble.adopt.free_batch import free_batch
from ensemble.card import Channels
from ensemble.runtime.model_file import FEATURES, INPUT, LOGITS

# Pillow's weights of red, green and blue in a grey image, in 65536ths
_GREY = (19595, 38470, 7471)
_PREFIX = "net."
SMALLEST = 1.2e-38  # above the smallest normal float32, as OpenVINO takes others for zero; its logarithm is -87
_WITH_SCAN = 9  # the opset of Scan as it is today
BatchWay = Literal["free", "freed", "in turn"]


@dataclass(frozen=True, slots=True)
class PooledMaps:
    """The value that a network averages over height and width before its last layer, and where its channels are."""

    name: str
    layout: PixelLayout


@dataclass(frozen=True, slots=True)
class WrapPlan:
    """The way that a network is wrapped: its input and output, normalization and number of answers.

    ``answers`` is the length of a row of the network's output, with 1 for a single logit or probability. ``mean`` and
    ``std`` are those of the network's channels, in its order. ``size`` is ``(height, width)``. ``independent`` are
    probabilities whose sum is not 1; ``before`` is the value before the softmax or sigmoid, if the network ends in one.
    ``maps`` become one more output, if they are wanted.
    """

    image: ImageInput
    output_name: str
    output: Output
    answers: int
    size: tuple[int, int]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    channels: Channels = "rgb"
    independent: bool = False
    before: str | None = None
    maps: PooledMaps | None = None

    @property
    def classes(self) -> int:
        """The number of classes: a single answer tells two apart."""
        return max(2, self.answers)

    def without_last_layer(self) -> WrapPlan:
        """Return the same with the logits that go into the softmax or sigmoid as its output."""
        assert self.before is not None
        return replace(self, output_name=self.before, output="logits", before=None)


def build_graph(model: ForeignModel, plan: WrapPlan, batch: BatchWay) -> onnx.ModelProto:
    """Return the member's graph, without its card.

    With ``freed`` the constants of a fixed batch size are rewritten; with ``in turn`` the network runs once per image,
    inside a Scan. Whether the result is right must be tested by running it.
    """
    proto = _modern(model.proto, at_least=_WITH_SCAN if batch == "in turn" else 0)
    if batch == "freed":
        free_batch(proto, plan.image.name, plan.image.batch or 1)
    network = onnx.compose.add_prefix(proto, _PREFIX).graph
    opset = max(found.version for found in proto.opset_import if found.domain in {"", "ai.onnx"})
    parts = _Parts(plan, opset)
    height, width = plan.size
    image = helper.make_tensor_value_info(INPUT, TensorProto.UINT8, ["batch", height, width, 3])
    logits = helper.make_tensor_value_info(LOGITS, TensorProto.FLOAT, ["batch", plan.classes])
    inner = [*parts.front("pixels"), *network.node, *parts.back()]
    if batch == "in turn":
        one = helper.make_tensor_value_info("one", TensorProto.UINT8, [height, width, 3])
        rows = [helper.make_tensor_value_info("row", TensorProto.FLOAT, [plan.classes]), *parts.one_map()]
        steps = [*parts.one_image(), *inner, *parts.features("all_maps"), *parts.one_row()]
        body = helper.make_graph(steps, "one_image", [one], rows)
        outputs = [LOGITS, *(value.name for value in parts.more_outputs())]
        nodes = [helper.make_node("Scan", [INPUT], outputs, body=body, num_scan_inputs=1, name="images")]
    else:
        nodes = [
            helper.make_node("Identity", [INPUT], ["pixels"], name="pixels"),
            *inner,
            helper.make_node("Identity", ["answers"], [LOGITS], name="logits"),
            *parts.features(FEATURES),
        ]
    graph = helper.make_graph(
        nodes,
        "adopted",
        [image],
        [logits, *parts.more_outputs()],
        initializer=[*network.initializer, *parts.constants],
        sparse_initializer=list(network.sparse_initializer),
    )
    built = helper.make_model(graph, opset_imports=list(proto.opset_import), producer_name="ens")
    built.ir_version = max(proto.ir_version, 4)
    return built


class _Parts:
    """The nodes in front of and behind the network, and their constants."""

    def __init__(self, plan: WrapPlan, opset: int) -> None:
        self._plan = plan
        self._opset = opset
        self.constants: list[TensorProto] = []

    def front(self, pixels: str) -> list[onnx.NodeProto]:
        """Return nodes from uint8 ``(batch, H, W, 3)`` to the network's input."""
        plan, image = self._plan, self._plan.image
        # in channels-last order, as the constants are; rounded once each, as an export does
        mean, std = (np.array(values, dtype=np.float64) for values in (plan.mean, plan.std))
        nodes = [self._node("Cast", [pixels], "floats", to=TensorProto.FLOAT)]
        if image.channels == 1:
            weights = np.array(_GREY, dtype=np.float32).reshape(3, 1)
            nodes += [
                # whole numbers below 2 ** 24, so exact in float32: (sum + 32768) >> 16
                self._node("MatMul", ["floats", self._constant("grey_weights", weights)], "weighted"),
                self._node("Add", ["weighted", self._constant("half", np.float32(32768))], "raised"),
                self._node("Mul", ["raised", self._constant("shift_right", np.float32(1 / 65536))], "shifted"),
                self._node("Floor", ["shifted"], "colors"),
            ]
        elif plan.channels == "bgr":
            order = self._constant("blue_first", np.array([2, 1, 0], dtype=np.int64))
            nodes.append(self._node("Gather", ["floats", order], "colors", axis=3))
        else:
            nodes.append(self._node("Identity", ["floats"], "colors"))
        last = "colors"
        if image.type != TensorProto.UINT8:
            scale = self._constant("scale", (1 / (255 * std)).astype(np.float32))
            shift = self._constant("shift", (-mean / std).astype(np.float32))
            nodes += [
                self._node("Mul", [last, scale], "scaled"),
                self._node("Add", ["scaled", shift], "normalized"),
            ]
            last = "normalized"
        if image.layout == "nchw":
            nodes.append(self._node("Transpose", [last], "planes", perm=[0, 3, 1, 2]))
            last = "planes"
        # the same type again, for float32
        return [*nodes, self._node("Cast", [last], _PREFIX + image.name, to=image.type)]

    def back(self) -> list[onnx.NodeProto]:
        """Return nodes from the network's output to ``answers``, the logits ``(batch, classes)``."""
        plan = self._plan
        shape = self._constant("row_shape", np.array([-1, plan.answers], dtype=np.int64))
        nodes = [
            self._node("Cast", [_PREFIX + plan.output_name], "found", to=TensorProto.FLOAT),
            self._node("Reshape", ["found", shape], "rows"),
        ]
        if plan.output == "probabilities":
            if plan.answers == 1 or plan.independent:
                one = self._constant("one_probability", np.float32(1))
                nodes.append(self._node("Sub", [one, "rows"], "others"))
                nodes += [*self._log("rows", "log_rows"), *self._log("others", "log_others")]
            else:
                nodes += self._log("rows", "log_rows")
        match plan.output, plan.answers, plan.independent:
            case "probabilities", _, True:
                last = self._node("Sub", ["log_rows", "log_others"], "answers")
            case "probabilities", 1, _:
                last = self._node("Concat", ["log_others", "log_rows"], "answers", axis=1)
            case "probabilities", _, _:
                last = self._node("Identity", ["log_rows"], "answers")
            case _, 1, _:
                # two classes whose softmax is the sigmoid of the one logit
                nodes.append(self._node("Sub", ["rows", "rows"], "zeros"))
                last = self._node("Concat", ["zeros", "rows"], "answers", axis=1)
            case _:
                last = self._node("Identity", ["rows"], "answers")
        return [*nodes, last]

    def features(self, result: str) -> list[onnx.NodeProto]:
        """Return nodes from the maps, if they are wanted, to ``result``, float32 ``(batch, F, h, w)``."""
        maps = self._plan.maps
        if maps is None:
            return []
        name, nodes = _PREFIX + maps.name, []
        if maps.layout == "nhwc":
            nodes.append(self._node("Transpose", [name], "turned_maps", perm=[0, 3, 1, 2]))
            name = "turned_maps"
        return [*nodes, self._node("Cast", [name], result, to=TensorProto.FLOAT)]

    def more_outputs(self) -> list[onnx.ValueInfoProto]:
        """Return the outputs beside the logits."""
        if self._plan.maps is None:
            return []
        return [helper.make_tensor_value_info(FEATURES, TensorProto.FLOAT, ["batch", "F", "h", "w"])]

    def one_image(self) -> list[onnx.NodeProto]:
        """Return nodes from one image of the Scan to a batch of the network's size, which repeats it."""
        height, width = self._plan.size
        shape = self._constant("batch_shape", np.array([1, height, width, 3], dtype=np.int64))
        nodes = [self._node("Reshape", ["one", shape], "single")]
        repeats = self._constant("repeats", np.array([self._plan.image.batch or 1, 1, 1, 1], dtype=np.int64))
        return [*nodes, self._node("Tile", ["single", repeats], "pixels")]

    def one_row(self) -> list[onnx.NodeProto]:
        """Return nodes from the network's answers and maps to those of the one image."""
        first = self._constant("first", np.array(0, dtype=np.int64))
        nodes = [self._node("Gather", ["answers", first], "row", axis=0)]
        if self._plan.maps is not None:
            nodes.append(self._node("Gather", ["all_maps", first], "maps", axis=0))
        return nodes

    def one_map(self) -> list[onnx.ValueInfoProto]:
        """Return the output of the Scan's body beside the row of answers."""
        if self._plan.maps is None:
            return []
        return [helper.make_tensor_value_info("maps", TensorProto.FLOAT, ["F", "h", "w"])]

    def _log(self, name: str, result: str) -> list[onnx.NodeProto]:
        if self._opset >= 11:
            smallest = self._constant("smallest", np.float32(SMALLEST))
            clip = self._node("Clip", [name, smallest], f"{name}_above_0")
        else:
            clip = self._node("Clip", [name], f"{name}_above_0", min=SMALLEST, max=1.0)
        return [clip, self._node("Log", [f"{name}_above_0"], result)]

    def _node(self, kind: str, inputs: list[str], result: str, **options: Any) -> onnx.NodeProto:
        return helper.make_node(kind, inputs, [result], name=f"ens.{result}", **options)

    def _constant(self, name: str, value: np.ndarray | np.generic) -> str:
        if name not in {tensor.name for tensor in self.constants}:
            self.constants.append(numpy_helper.from_array(np.asarray(value), name))
        return name


def _modern(proto: onnx.ModelProto, *, at_least: int) -> onnx.ModelProto:
    """Return a copy whose weights are no inputs, converted to a later opset if it must be."""
    copy = onnx.ModelProto()
    copy.CopyFrom(proto)
    opset = max((found.version for found in copy.opset_import if found.domain in {"", "ai.onnx"}), default=1)
    if opset < at_least:
        copy = onnx.version_converter.convert_version(copy, at_least)
    weights = {tensor.name for tensor in copy.graph.initializer}
    kept = [value for value in copy.graph.input if value.name not in weights]
    del copy.graph.input[:]
    copy.graph.input.extend(kept)
    # shapes of one batch size, which would contradict another
    del copy.graph.value_info[:]
    return copy
