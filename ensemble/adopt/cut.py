"""Cut a network at some of its values."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import onnx

from ensemble.adopt.foreign import names_read


def cut_network(proto: onnx.ModelProto, names: Sequence[str]) -> onnx.ModelProto:
    """Return a copy without outputs, and without what the values ``names`` do not need."""
    copy = onnx.ModelProto()
    copy.CopyFrom(proto)
    graph = copy.graph
    needed, kept = set(names), []
    for node in reversed(graph.node):
        if needed.intersection(node.output):
            kept.append(node)
            needed.update(_read_by(node))
    nodes = [onnx.NodeProto.FromString(node.SerializeToString()) for node in reversed(kept)]
    weights = [tensor for tensor in graph.initializer if tensor.name in needed]
    sparse = [tensor for tensor in graph.sparse_initializer if tensor.values.name in needed]
    taken = {tensor.name for tensor in graph.initializer}
    inputs = [value for value in graph.input if value.name not in taken or value.name in needed]
    for field, values in (("node", nodes), ("initializer", weights), ("sparse_initializer", sparse), ("input", inputs)):
        copies = [type(value).FromString(value.SerializeToString()) for value in values]
        graph.ClearField(field)
        getattr(graph, field).extend(copies)
    del graph.output[:]
    return copy


def _read_by(node: onnx.NodeProto) -> Iterator[str]:
    """Yield the names that a node reads, those inside its subgraphs too."""
    yield from names_read(onnx.GraphProto(node=[node]))
