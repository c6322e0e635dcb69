"""Networks that timm does not have are called by their names, with the line that leads to a member."""

from __future__ import annotations

from pathlib import Path

import pytest
import timm
import torch
import torchvision.models

from checkpoints.loading.metadata import read_metadata
from checkpoints.loading.other_networks import find_other_network, require_no_caffe_style
from ensemble.errors import ModelError
from tests.support.weights import refused, save

pytestmark = pytest.mark.slow

# the names are those of the installed torchvision
NETWORKS = {
    "alexnet": "AlexNet or VGG",
    "vgg11": "AlexNet or VGG",
    "vgg13_bn": "AlexNet or VGG",
    "squeezenet1_1": "SqueezeNet",
    "shufflenet_v2_x0_5": "ShuffleNet",
    "mnasnet0_5": "MNASNet",
    "swin_v2_t": "Swin v2",
    "maxvit_t": "MaxViT",
}


@pytest.mark.parametrize("name", NETWORKS)
def test_networks_of_torchvision_without_an_equal_are_named(name: str) -> None:
    """They are found behind any prefix, and by nothing but their own names."""
    with torch.device("meta"):
        network = getattr(torchvision.models, name)(weights=None)
    keys = [f"module.net.{key}" for key in network.state_dict()]
    found = find_other_network(keys)
    assert found is not None
    assert NETWORKS[name] in found.name
    assert "ens adopt" in found.hint


@pytest.mark.parametrize(
    "name", ["resnet18", "vit_tiny_patch16_224", "swin_tiny_patch4_window7_224", "mobilenetv3_small_050"]
)
def test_networks_of_timm_are_no_others(name: str) -> None:
    """Names of timm's networks are none of theirs."""
    with torch.device("meta"):
        network = timm.create_model(name)
    assert find_other_network(network.state_dict()) is None


def test_other_libraries_are_named_by_their_prefixes() -> None:
    """A classifier of ultralytics and a model of transformers have the command of their own program."""
    yolo = find_other_network(["model.0.conv.weight", "model.0.bn.weight", "model.9.linear.weight"])
    assert yolo is not None
    assert "yolo export" in yolo.hint
    dino = find_other_network(["dinov2.embeddings.cls_token", "classifier.weight"])
    assert dino is not None
    assert (dino.name, "optimum-cli" in dino.hint) == ("dinov2 of transformers", True)


def test_a_checkpoint_says_which_network_it_is(tmp_path: Path) -> None:
    """The message names SqueezeNet whether an architecture is given or not, and leads to ens adopt."""
    path = save(
        tmp_path / "best.pth", {"model": torchvision.models.squeezenet1_1(weights=None, num_classes=3).state_dict()}
    )
    for arch, code in ((None, "E415"), ("resnet18", "E410")):
        error = refused(path, arch=arch)
        assert (error.code, "SqueezeNet of torchvision" in error.message, "ens adopt" in error.hint) == (
            code,
            True,
            True,
        )


@pytest.mark.parametrize(
    "content",
    [
        {"meta": {"config": "model = dict(\n    backbone=dict(type='ResNet', depth=50, style='caffe'))"}},
        {"meta": {"cfg": '{"style": "caffe"}'}},
        {"cfg": {"model": {"backbone": {"depth": 50, "style": "caffe"}}}},
    ],
)
def test_strides_of_caffe_are_refused_where_the_file_tells(content: dict[str, object]) -> None:
    """A configuration with style caffe is E453 for bottlenecks; other blocks have one place for the stride."""
    found = read_metadata(content)
    with pytest.raises(ModelError, match="E453"):
        require_no_caffe_style(found, ["layer2.0.conv3.weight"], Path("a.pth"))
    require_no_caffe_style(found, ["layer2.0.conv2.weight"], Path("a.pth"))
    require_no_caffe_style(read_metadata({"meta": {"config": "style='pytorch'"}}), ["layer2.0.conv3.weight"], Path("a"))


def test_a_checkpoint_with_strides_of_caffe_is_refused(tmp_path: Path) -> None:
    """The refusal happens when the checkpoint is opened, as OpenMMLab writes it."""
    state = timm.create_model("resnet14t", num_classes=3).state_dict()
    moved = {(f"head.{key}" if key.startswith("fc.") else f"backbone.{key}"): tensor for key, tensor in state.items()}
    content = {"meta": {"config": "dict(depth=14, style='caffe')"}, "state_dict": moved}
    assert refused(save(tmp_path / "latest.pth", content), arch="resnet14t").code == "E453"
