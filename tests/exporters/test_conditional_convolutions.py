"""Networks of CondConv layers, whose weights differ between images, are exported."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from timm.layers.cond_conv2d import CondConv2d
from timm.models import efficientnet
from torch import nn

from exporters.conditional_convolutions import SummedExperts, with_plain_convolutions
from exporters.export import ExportOptions, export
from tests.support.networks import make_checkpoint

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("groups", [1, 2, 6])
@pytest.mark.parametrize("padding", ["", "same"])
@pytest.mark.parametrize("bias", [False, True])
def test_the_sum_of_the_experts_is_the_mixed_convolution(groups: int, padding: str, bias: bool) -> None:
    """With any groups, padding and bias the outputs equal those of timm's layer, image by image."""
    torch.manual_seed(0)
    layer = CondConv2d(6, 12, 3, stride=2, padding=padding, groups=groups, bias=bias, num_experts=3)
    images, routing = torch.randn(4, 6, 9, 10), torch.rand(4, 3)
    with torch.inference_mode():
        torch.testing.assert_close(SummedExperts(layer)(images, routing), layer(images, routing), rtol=1e-4, atol=1e-5)


def test_a_network_is_copied_only_if_it_has_such_layers() -> None:
    """The network that the export is compared with keeps its own layers."""
    plain = nn.Sequential(nn.Conv2d(3, 8, 3))
    assert with_plain_convolutions(plain) is plain
    mixed = nn.ModuleList([CondConv2d(3, 8, 3)])
    assert isinstance(with_plain_convolutions(mixed)[0], SummedExperts)  # type: ignore[index]
    assert isinstance(mixed[0], CondConv2d)


def test_an_efficientnet_with_conditional_convolutions_is_exported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The export of timm's smallest one, at half its depth and a quarter of its channels, is verified against the
    network as timm builds it.
    """
    build: Callable[..., nn.Module] = efficientnet._gen_efficientnet_condconv

    def smaller(variant: str, **given: Any) -> nn.Module:
        return build(variant, **given | {"depth_multiplier": 0.5, "channel_multiplier": 0.25})

    monkeypatch.setattr(efficientnet, "_gen_efficientnet_condconv", smaller)
    assert any(isinstance(m, CondConv2d) for m in timm.create_model("efficientnet_cc_b0_4e").modules())
    checkpoint = make_checkpoint("efficientnet_cc_b0_4e", classes=3)
    exported = export(checkpoint, tmp_path, options=ExportOptions(size=(32, 32)))
    assert not exported.checks.faults
