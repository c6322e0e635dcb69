"""Convert a network to float16, and emulate a device that computes in it."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import onnx
import torch
from timm.layers.conv2d_same import Conv2dSame

FLOAT, FLOAT16 = onnx.TensorProto.FLOAT, onnx.TensorProto.FLOAT16


def to_half(model: torch.nn.Module, size: tuple[int, int], planes: int = 3) -> torch.nn.Module:
    """Return a float16 copy of a network that takes ``(B, planes, *size)``.

    The scale of every batch normalization is folded into the preceding convolution first, in float64. The exporter
    would fold it in float16, with three times the error.
    """
    half = copy.deepcopy(model)
    for conv, norm in _convs_before_norms(half, (planes, *size)):
        _fold(conv, norm)
    return half.half()


def _convs_before_norms(model: torch.nn.Module, shape: tuple[int, ...]) -> list[tuple[Any, Any]]:
    """Return the pairs of a convolution and the normalization that reads its output, traced with one image."""
    made: dict[
        int, tuple[torch.nn.Module, torch.Tensor]
    ] = {}  # the tensors are kept alive: an id is unique only among live objects
    pairs: list[tuple[Any, Any]] = []

    def after_conv(conv: torch.nn.Module, _: Any, output: torch.Tensor) -> None:
        made[id(output)] = (conv, output)

    def before_norm(norm: torch.nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
        if id(inputs[0]) in made:
            pairs.append((made[id(inputs[0])][0], norm))

    hooks = []
    for module in model.modules():
        # no other subclasses: those that standardize their weights would undo the scale
        if type(module) in {torch.nn.Conv2d, Conv2dSame}:
            hooks.append(module.register_forward_hook(after_conv))
        elif isinstance(module, torch.nn.BatchNorm2d) and module.affine:
            hooks.append(module.register_forward_pre_hook(before_norm))
    with torch.inference_mode():
        model(torch.zeros(1, *shape))
    for hook in hooks:
        hook.remove()
    return pairs


def _fold(conv: Any, norm: Any) -> None:
    """Scale the convolution's weights by ``weight / sqrt(var + eps)``; the normalization keeps only its shift."""
    with torch.no_grad():
        scale = norm.weight.double() / (norm.running_var.double() + norm.eps).sqrt()
        shift = norm.bias.double() - norm.running_mean.double() * scale
        conv.weight.copy_(conv.weight.double() * scale.reshape(-1, 1, 1, 1))
        if conv.bias is not None:
            conv.bias.copy_(conv.bias.double() * scale)
        norm.bias.copy_(shift)
        norm.weight.fill_(1)
        norm.running_mean.zero_()
        norm.running_var.fill_(1)
        norm.eps = 0.0


def with_rounding(exported: bytes) -> bytes:
    """Emulate a float16 model in float32, rounding every stored activation to float16.

    On the CPU onnxruntime computes float16 networks in float32 from end to end: neither an overflow nor the loss of
    precision would show.
    """
    model = onnx.shape_inference.infer_shapes(onnx.load_model_from_string(exported))
    half = {value.name for value in model.graph.value_info if value.type.tensor_type.elem_type == FLOAT16}
    nodes: list[onnx.NodeProto] = []
    for node in model.graph.node:
        nodes.append(node)
        for i, name in enumerate(node.output):
            if name in half:
                node.output[i] = f"{name}/exact"
                nodes.append(onnx.helper.make_node("Cast", [f"{name}/exact"], [f"{name}/half"], to=FLOAT16))
                nodes.append(onnx.helper.make_node("Cast", [f"{name}/half"], [name], to=FLOAT))
    weights = [
        onnx.numpy_helper.from_array(onnx.numpy_helper.to_array(tensor).astype(np.float32), tensor.name)
        if tensor.data_type == FLOAT16
        else tensor
        for tensor in model.graph.initializer
    ]
    graph = onnx.helper.make_graph(nodes, "rounded", model.graph.input, model.graph.output, weights)
    rounded = onnx.helper.make_model(graph, opset_imports=model.opset_import, ir_version=model.ir_version)
    data: bytes = rounded.SerializeToString()
    return data
