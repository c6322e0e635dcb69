"""Give every convolution symmetric padding, which cuDNN's graph interface needs: the rest becomes a ``Pad`` before it.

TensorFlow pads a convolution of stride 2 by one pixel more at the end than at the beginning, and so do timm's ``tf_``
networks. For such a convolution cuDNN's heuristics find no engine: HEURISTIC_QUERY_FAILED, see onnxruntime's issue
26274. onnxruntime would fuse the ``Pad`` into the convolution again; `DISABLED_OPTIMIZERS` keeps it from doing so.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx
from onnx import helper, numpy_helper, shape_inference

from ensemble.runtime.subgraphs import subgraphs, with_inner

# as onnxruntime's rewrite rule calls itself, which is not the name of its class
DISABLED_OPTIMIZERS = "Pad_Fusion"
_PADS_AS_INPUT = 11  # since this opset, Pad takes its pads as an input


def split_asymmetric_pads(model: onnx.ModelProto) -> int:
    """Split the padding of asymmetric convolutions, in place; return how many there were.

    ``auto_pad`` is resolved where the shapes of the graph are known, and left as it is elsewhere.
    """
    sizes = _sizes(model) if any(_auto_pad(node).startswith("SAME") for node in with_inner(model.graph.node)) else {}
    opset = max((one.version for one in model.opset_import if one.domain in {"", "ai.onnx"}), default=0)
    return _split_in(model.graph, sizes, opset, "ens.padded")


def _split_in(graph: onnx.GraphProto, sizes: dict[str, list[int]], opset: int, prefix: str) -> int:
    """Split the padding in a graph and in those inside its nodes; the name of each ``Pad`` begins with ``prefix``."""
    nodes: list[onnx.NodeProto] = []
    count = 0
    for number, node in enumerate(graph.node):
        for place, inner in enumerate(subgraphs(node)):
            count += _split_in(inner, sizes, opset, f"{prefix}.{number}.{place}")
        pads = _pads(node, sizes) if node.op_type == "Conv" else ()
        half = len(pads) // 2
        begin, end = pads[:half], pads[half:]
        if begin != end:
            both = [min(pair) for pair in zip(begin, end, strict=True)]
            rest = [0, 0, *(b - m for b, m in zip(begin, both, strict=True))]
            rest += [0, 0, *(e - m for e, m in zip(end, both, strict=True))]
            name = f"{prefix}.{number}"
            nodes.append(_pad(graph, node.input[0], name, rest, opset))
            node.input[0] = name
            for attribute in [one for one in node.attribute if one.name in {"pads", "auto_pad"}]:
                node.attribute.remove(attribute)
            node.attribute.append(helper.make_attribute("pads", both + both))
            count += 1
        nodes.append(node)
    if count:
        copies = [onnx.NodeProto.FromString(node.SerializeToString()) for node in nodes]
        del graph.node[:]
        graph.node.extend(copies)
    return count


def _pad(graph: onnx.GraphProto, source: str, name: str, pads: Sequence[int], opset: int) -> onnx.NodeProto:
    if opset < _PADS_AS_INPUT:
        return helper.make_node("Pad", [source], [name], name=name, pads=list(pads))
    graph.initializer.append(numpy_helper.from_array(np.array(pads, dtype=np.int64), f"{name}.pads"))
    return helper.make_node("Pad", [source, f"{name}.pads"], [name], name=name)


def _attributes(node: onnx.NodeProto) -> dict[str, object]:
    return {one.name: helper.get_attribute_value(one) for one in node.attribute}


def _auto_pad(node: onnx.NodeProto) -> str:
    value = _attributes(node).get("auto_pad", b"") if node.op_type == "Conv" else b""
    return value.decode() if isinstance(value, bytes) else str(value)


def _pads(node: onnx.NodeProto, sizes: dict[str, list[int]]) -> list[int]:
    """Return the pads of a convolution, all beginnings before all ends; nothing where they are not known."""
    attributes, auto = _attributes(node), _auto_pad(node)
    if not auto.startswith("SAME"):
        found = attributes.get("pads", ())
        return [int(pad) for pad in found] if isinstance(found, Sequence) else []
    image, kernel = sizes.get(node.input[0], [])[2:], sizes.get(node.input[1], [])[2:]
    if not image or len(image) != len(kernel) or 0 in image:
        return []
    strides, dilations = attributes.get("strides", [1] * len(image)), attributes.get("dilations", [1] * len(image))
    assert isinstance(strides, Sequence)
    assert isinstance(dilations, Sequence)
    begin, end = [], []
    for size, width, stride, dilation in zip(image, kernel, strides, dilations, strict=True):
        # the definition of auto_pad in ONNX: as many outputs as strides fit into the image
        total = max(0, (-(-size // stride) - 1) * stride + (width - 1) * dilation + 1 - size)
        small, large = total // 2, total - total // 2
        begin.append(small if auto == "SAME_UPPER" else large)
        end.append(large if auto == "SAME_UPPER" else small)
    return begin + end


def _sizes(model: onnx.ModelProto) -> dict[str, list[int]]:
    """Return the shapes of all tensors by name, with 0 for a side that is not known."""
    whole = shape_inference.infer_shapes(model).graph
    graphs = [whole, *(inner for node in with_inner(whole.node) for inner in subgraphs(node))]
    values = [value for graph in graphs for value in (*graph.value_info, *graph.input, *graph.output)]
    shapes = {one.name: [side.dim_value for side in one.type.tensor_type.shape.dim] for one in values}
    return shapes | {one.name: list(one.dims) for graph in graphs for one in graph.initializer}
