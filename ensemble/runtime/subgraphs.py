"""Nodes inside other nodes: the branches of an If, the bodies of a Loop and a Scan.

They read tensors of the graphs around them by name. An int8 file that answers near ties in float32 reads its image in a
branch. ONNX allows no name twice, so that what is read inside needs no look at where it was made.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

import onnx


def subgraphs(node: onnx.NodeProto) -> Iterator[onnx.GraphProto]:
    """Yield the graphs that a node holds itself."""
    for attribute in node.attribute:
        for graph in (attribute.g, *attribute.graphs):
            if graph.node or graph.output:
                yield graph


def with_inner(nodes: Iterable[onnx.NodeProto]) -> Iterator[onnx.NodeProto]:
    """Yield nodes, each before those inside it, at any depth."""
    for node in nodes:
        yield node
        for graph in subgraphs(node):
            yield from with_inner(graph.node)


def names_read(node: onnx.NodeProto) -> Iterator[str]:
    """Yield the names that a node and the nodes inside it read."""
    yield from node.input
    for graph in subgraphs(node):
        for inner in graph.node:
            yield from names_read(inner)
        yield from (value.name for value in graph.output)


def rename_reads(node: onnx.NodeProto, renamed: Mapping[str, str]) -> None:
    """Rename what a node and the nodes inside it read, in place."""
    for i, name in enumerate(node.input):
        node.input[i] = renamed.get(name, name)
    for graph in subgraphs(node):
        for inner in graph.node:
            rename_reads(inner, renamed)
        for value in graph.output:
            value.name = renamed.get(value.name, value.name)
