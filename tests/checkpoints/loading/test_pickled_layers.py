"""Whole pickled networks: their layers decide what weights cannot show, and others than timm's are refused."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import pytest
import timm
import torch
from torch import nn
from torch.ao.nn.quantized import dynamic as quantized

from checkpoints.loading.head_options import HeadRequest
from checkpoints.loading.open import build_model, open_checkpoint
from checkpoints.loading.outline import NeedsTorchError, outline_checkpoint
from checkpoints.loading.read import read_content
from ensemble.errors import EnsError
from ensemble.events import SILENT, Recorder
from tests.support.user_networks import WIDTH, Apart, GeM, body, settle
from tests.support.weights import TINY, save

pytestmark = pytest.mark.slow

Change = Callable[[Any], object]


def opened(path: Path, **options: Any) -> nn.Module:
    return build_model(open_checkpoint(path, **({"arch": TINY} | options)))


def images() -> torch.Tensor:
    return torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))


def assert_equal(found: nn.Module, user: nn.Module) -> None:
    with torch.no_grad():
        expected = user(images())
        assert float((found(images()) - expected).abs().max()) <= 1e-5 * float(expected.abs().max())


def head_of(*layers: nn.Module) -> Change:
    def change(net: Any) -> None:
        torch.manual_seed(3)
        net.fc = settle(nn.Sequential(*layers))

    return change


def other_epsilon(net: Any) -> None:
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.eps = 1e-2


SHOWN: dict[str, Change] = {
    "nothing": lambda net: None,
    "an activation in the head": head_of(nn.Linear(WIDTH, 8), nn.GELU(), nn.Dropout(0.2), nn.Linear(8, 5)),
    "an activation behind a normalization": head_of(nn.BatchNorm1d(WIDTH), nn.ReLU(), nn.Linear(WIDTH, 5)),
    "two linear layers around dropout": head_of(nn.Linear(WIDTH, 8), nn.Dropout(0.2), nn.Linear(8, 5)),
    "the epsilon of the normalizations": other_epsilon,
}


@pytest.mark.parametrize("name", SHOWN)
def test_a_pickled_network_is_exported_as_its_layers_are(tmp_path: Path, name: str) -> None:
    """Activations of the head and epsilons, which a state dict does not have, are taken from the pickled modules."""
    net = body()
    SHOWN[name](net)
    net.eval()
    path = save(tmp_path / "model.pth", {"model": net, "epoch": 3})
    assert_equal(opened(path), net)


@pytest.mark.parametrize("options", [{"global_pool": "max", "output_stride": 16}])
def test_options_that_the_layers_show_are_used_and_said(tmp_path: Path, options: dict[str, Any]) -> None:
    """Pooling and dilation of a pickled network are found by comparing its layers with timm's, and said."""
    net, said = body(**options), Recorder()
    path = save(tmp_path / "model.pth", net)
    assert_equal(opened(path, listener=said), net)
    for name, value in options.items():
        assert any(f"{name}={value}" in notice.message for notice in said.notices)


class Activated(nn.Identity):
    """A pooling of the user's own, of which a pickle has the name alone."""


OTHERS: dict[str, tuple[Change, str]] = {
    "no pooling behind the stem": (lambda net: setattr(net, "maxpool", nn.Identity()), "maxpool is Identity"),
    "another stride": (lambda net: setattr(net.layer2[0].conv1, "stride", (3, 3)), "conv1 has stride (3, 3)"),
    "a dilation of one layer": (lambda net: setattr(net.layer1[0].conv2, "dilation", (2, 2)), "has dilation"),
    "another activation": (lambda net: setattr(net.layer1[0], "act2", nn.SiLU()), "act2 is SiLU, not ReLU"),
    "a pooling with an exponent": (lambda net: setattr(net, "global_pool", Activated()), "global_pool is Activated"),
}


@pytest.mark.parametrize("name", OTHERS)
def test_other_layers_than_timms_are_refused_by_name(tmp_path: Path, name: str) -> None:
    """A network with timm's weights and another layer is not exported as timm's: E450 names the layer."""
    net = body()
    change, shown = OTHERS[name]
    change(net)
    with pytest.raises(EnsError) as caught:
        open_checkpoint(save(tmp_path / "model.pth", net), arch=TINY)
    assert caught.value.code == "E450"
    assert shown in caught.value.message
    assert "ens adopt" in str(caught.value.hint)


@pytest.mark.parametrize("layer", [nn.ReLU(), nn.AdaptiveMaxPool2d(1), Activated()])
def test_a_layer_beside_the_body_is_not_guessed(tmp_path: Path, layer: nn.Module) -> None:
    """What a layer without weights does between body and head is known to the code alone: --leave-out decides."""
    user = Apart(lambda s, x: s.fc(s.net(x)), net=body(0), mine=layer, fc=settle(nn.Linear(WIDTH, 5))).eval()
    del user._run
    path = save(tmp_path / "model.pth", user)
    with pytest.raises(EnsError, match="E450") as caught:
        open_checkpoint(path, arch=TINY)
    assert f"mine ({type(layer).__name__})" in caught.value.message
    assert open_checkpoint(path, arch=TINY, head=HeadRequest(leave_out=("mine",))).num_classes == 5


def test_idle_layers_and_losses_beside_the_body_are_passed_over(tmp_path: Path) -> None:
    """Dropout, flattening, averaging pools and losses leave the logits as they are."""
    user = Apart(
        lambda s, x: s.fc(s.drop(s.net(x))),
        net=body(0),
        pool=nn.AdaptiveAvgPool2d(1),
        flat=nn.Flatten(),
        drop=nn.Dropout(0.5),
        fc=settle(nn.Linear(WIDTH, 5)),
        criterion=nn.CrossEntropyLoss(),
    ).eval()
    run = user._run
    del user._run
    path = save(tmp_path / "model.pth", user)
    user._run = run
    assert_equal(opened(path), user)


def test_generalized_means_of_a_pickled_network_are_exported(tmp_path: Path) -> None:
    """A pooling whose exponent is a weight is known by it, pickled or not."""
    user = Apart(
        lambda s, x: s.fc(s.pool(s.net(x))), net=body(0, global_pool=""), pool=GeM(), fc=settle(nn.Linear(WIDTH, 5))
    ).eval()
    run = user._run
    del user._run
    path = save(tmp_path / "model.pth", user)
    user._run = run
    assert_equal(opened(path), user)


def test_layers_tell_twins_apart(tmp_path: Path) -> None:
    """A pickled resnetblur18 has resnet18's weights and opens as what it is; --arch resnet18 is refused for it."""
    net = settle(timm.create_model("resnetblur18", num_classes=5))
    path = save(tmp_path / "model.pth", net)
    assert_equal(opened(path, arch=None), net)
    with pytest.raises(EnsError, match="E450"):
        open_checkpoint(path, arch="resnet18")


class Trap:
    """An object that leaves a mark when it is made again, compared, hashed, printed or asked for a number."""

    sprung: ClassVar[list[str]] = []

    def __setstate__(self, state: object) -> None:
        self.sprung.append("made")

    def __eq__(self, other: object) -> bool:
        self.sprung.append("compared")
        return True

    def __hash__(self) -> int:
        self.sprung.append("hashed")
        return 0

    def __str__(self) -> str:
        self.sprung.append("printed")
        return "trap"

    __repr__ = __str__


@pytest.mark.parametrize("place", ["stride", "eps", "kind of pooling", "module", "beside"])
def test_objects_in_the_place_of_settings_and_layers_run_nothing(tmp_path: Path, place: str) -> None:
    """What stands where a layer has a number, or in the place of a layer, is compared with nothing and not printed."""
    net, trap = body(), Trap()
    vars(trap)["value"] = 1
    match place:
        case "stride":
            net.layer1[0].conv1.stride = trap
        case "eps":
            net.layer1[0].bn1.eps = trap
        case "kind of pooling":
            net.global_pool.pool_type = trap
        case "module":
            net.layer1[0]._modules["act1"] = trap
        case "beside":
            net.mine = trap
    path = save(tmp_path / "model.pth", net)
    Trap.sprung.clear()
    with contextlib.suppress(EnsError):
        open_checkpoint(path, arch=TINY)
    assert not Trap.sprung


def test_a_dry_run_compares_the_layers_too(tmp_path: Path) -> None:
    """Names and shapes alone do not tell what a whole pickled network is."""
    path = save(tmp_path / "model.pth", body())
    content = read_content(path, with_values=False)
    with pytest.raises(NeedsTorchError, match="whole pickled network"):
        outline_checkpoint(content, path, arch=TINY, weights=None, labels=None, listener=SILENT)


@pytest.mark.filterwarnings("ignore:torch.quantize_per_tensor:UserWarning")
def test_quantized_layers_are_refused_by_name(tmp_path: Path) -> None:
    """Their weights are packed and no tensors of the file; the network is not said to lack its head."""
    net = timm.create_model(TINY, num_classes=5).eval()
    net.fc = quantized.Linear(WIDTH, 5)
    with pytest.raises(EnsError, match=r"quantized layers \(fc, fc._packed_params\)") as caught:
        open_checkpoint(save(tmp_path / "a.pth", net))
    assert caught.value.code == "E417"
