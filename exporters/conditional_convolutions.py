"""CondConv layers as plain convolutions: ONNX has none whose weights differ between the images of a batch."""

from __future__ import annotations

import copy
from typing import Any, cast

import torch
from timm.layers.cond_conv2d import CondConv2d
from timm.layers.conv2d_same import conv2d_same
from torch import nn


class SummedExperts(nn.Module):
    """The sum of the outputs of all experts, each times its routing weight.

    It equals one convolution with the sum of their weights, as a convolution is linear in them (Yang et al. 2019,
    arXiv:1904.04971, section 3), at the cost of a convolution per expert.
    """

    weight: torch.Tensor

    def __init__(self, layer: CondConv2d) -> None:
        super().__init__()
        self.layer = layer
        self.experts: int = layer.num_experts
        outputs, inputs, *sides = layer.weight_shape
        by_expert = layer.weight.detach().view(self.experts, layer.groups, outputs // layer.groups, inputs, *sides)
        # a group's outputs of all experts lie side by side
        self.register_buffer("weight", by_expert.transpose(0, 1).reshape(self.experts * outputs, inputs, *sides))

    def forward(self, x: torch.Tensor, routing: torch.Tensor) -> torch.Tensor:
        """Return ``(B, C, H, W)`` for images and routing weights ``(B, experts)``."""
        layer: Any = self.layer
        convolve: Any = conv2d_same if layer.dynamic_padding else nn.functional.conv2d
        each = convolve(
            x,
            self.weight,
            stride=layer.stride,
            padding=layer.padding,
            dilation=layer.dilation,
            groups=layer.groups,
        )
        height, width = each.shape[-2:]
        each = each.view(-1, layer.groups, self.experts, layer.out_channels // layer.groups, height, width)
        mixed = (each * routing[:, None, :, None, None, None]).sum(2).view(-1, layer.out_channels, height, width)
        if layer.bias is not None:
            mixed = mixed + torch.matmul(routing, layer.bias)[:, :, None, None]
        return cast("torch.Tensor", mixed)


def with_plain_convolutions(model: nn.Module) -> nn.Module:
    """Return a copy of the network with `SummedExperts` in place of CondConv layers, or itself if it has none."""
    if not any(isinstance(module, CondConv2d) for module in model.modules()):
        return model
    plain = copy.deepcopy(model)
    for parent in list(plain.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, CondConv2d):
                setattr(parent, name, SummedExperts(child))
    return plain
