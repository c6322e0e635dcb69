"""The nodes of a linear head in a graph: from a row of features to the logits of the classes."""

from __future__ import annotations

import numpy as np
import onnx
from onnx import helper, numpy_helper

from checkpoints.probe.linear_head import Block, LinearHead
from checkpoints.probe.ordinal_head import OrdinalBlock
from ensemble.arrays import Floats


def add_head(graph: onnx.GraphProto, head: LinearHead, row: str, answers: str, *, center: Floats | None = None) -> None:
    """Add a head on the value ``row`` ``(batch, F)``, which gives the value ``answers`` ``(batch, classes)``.

    With a ``center`` ``(F,)`` the graph subtracts it from the features first, and the head is moved there: products of
    features that differ by far less than they are large cancel in float32.
    """
    parts = []
    if center is not None:
        near = center.astype(np.float32).astype(np.float64)
        _add_values(graph, "ens.probe.center", near)
        graph.node.append(helper.make_node("Sub", [row, "ens.probe.center"], ["ens.probe.centered"]))
        head, row = head.moved(near), "ens.probe.centered"
    for number, block in enumerate(head.blocks):
        name = f"ens.probe.{number}"
        if isinstance(block, OrdinalBlock):
            _add_ordinal(graph, block, row, name)
        else:
            _add_linear(graph, block, row, name)
        parts.append(f"{name}.logits")
    if len(head.blocks) > 1:
        for number, spread in enumerate(head.spreads()):
            name = f"ens.probe.{number}"
            _add_values(graph, f"{name}.spread", spread)
            graph.node.append(helper.make_node("LogSoftmax", [f"{name}.logits"], [f"{name}.shares"], axis=1))
            graph.node.append(helper.make_node("MatMul", [f"{name}.shares", f"{name}.spread"], [f"{name}.classes"]))
        parts = [f"ens.probe.{number}.classes" for number in range(len(head.blocks))]
    graph.node.append(helper.make_node("Sum", parts, [answers]))


def _add_linear(graph: onnx.GraphProto, block: Block, row: str, name: str) -> None:
    _add_values(graph, f"{name}.weights", block.weights)
    _add_values(graph, f"{name}.bias", block.bias)
    graph.node.append(helper.make_node("MatMul", [row, f"{name}.weights"], [f"{name}.products"]))
    graph.node.append(helper.make_node("Add", [f"{name}.products", f"{name}.bias"], [f"{name}.logits"]))


def _add_ordinal(graph: onnx.GraphProto, block: OrdinalBlock, row: str, name: str) -> None:
    """Add log-probabilities by softplus, as ``log sigmoid(z)`` is ``-softplus(-z)``: no difference of probabilities."""
    cuts = len(block.cuts)
    _add_values(graph, f"{name}.weights", block.weights[:, np.newaxis])
    _add_values(graph, f"{name}.cuts", block.cuts)
    _add_values(graph, f"{name}.shifts", np.pad(block.gaps(), 1))
    # column k of the values has the cut k - 1 below it and the cut k above it
    _add_values(graph, f"{name}.below", -np.eye(cuts, cuts + 1, 1))
    _add_values(graph, f"{name}.above", -np.eye(cuts, cuts + 1))
    for kind, inputs, output in (
        ("MatMul", [row, f"{name}.weights"], "score"),
        ("Add", [f"{name}.score", f"{name}.cuts"], "links"),
        ("Neg", [f"{name}.links"], "negative"),
        ("Softplus", [f"{name}.negative"], "reached"),
        ("Softplus", [f"{name}.links"], "passed"),
        ("MatMul", [f"{name}.reached", f"{name}.below"], "lower"),
        ("MatMul", [f"{name}.passed", f"{name}.above"], "upper"),
        ("Add", [f"{name}.lower", f"{name}.upper"], "sums"),
        ("Add", [f"{name}.sums", f"{name}.shifts"], "logits"),
    ):
        graph.node.append(helper.make_node(kind, inputs, [f"{name}.{output}"]))


def _add_values(graph: onnx.GraphProto, name: str, values: Floats) -> None:
    graph.initializer.append(numpy_helper.from_array(values.astype(np.float32), name))
