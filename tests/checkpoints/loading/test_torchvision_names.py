"""torchvision networks give the same logits after their weights are mapped to timm's names."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import timm
import torch
import torchvision

from checkpoints.loading.open import build_model, open_checkpoint
from checkpoints.loading.torchvision_names import EPSILON_DIFFERENCE, OTHER_EPSILON
from ensemble.events import Recorder
from tests.support.weights import codes, make_model, refused, save, shake

pytestmark = pytest.mark.slow

TORCHVISION = {
    "resnet18": "resnet18",
    "efficientnet_b0": "efficientnet_b0",
    "efficientnet_v2_s": "efficientnetv2_s",
}


@pytest.mark.parametrize(("theirs", "ours"), TORCHVISION.items())
def test_torchvisions_networks_give_the_same_logits(tmp_path: Path, theirs: str, ours: str) -> None:
    """A torchvision network gives the same logits, to five digits, after its weights are mapped to timm's names."""
    torch.manual_seed(0)
    model = shake(getattr(torchvision.models, theirs)(num_classes=18))
    heard = Recorder()
    checkpoint = open_checkpoint(save(tmp_path / "a.pth", {"model": model.state_dict()}), listener=heard)
    assert checkpoint.arch == ours
    assert set(codes(heard)) == ({"I419"} if theirs == "resnet18" else {"I418", "I419"})
    images = torch.rand(2, 3, 65, 65)  # an odd size, for which another padding changes the result
    with torch.no_grad():
        expected, got = model(images), build_model(checkpoint)(images)
    assert float((got - expected).abs().max()) <= 1e-5 * float(expected.abs().max())


def _tiny_vit() -> Any:
    """torchvision's ViT in the size of timm's vit_tiny_patch16_224."""
    return torchvision.models.VisionTransformer(
        image_size=224, patch_size=16, num_layers=12, num_heads=3, hidden_dim=192, mlp_dim=768, num_classes=6
    )


@pytest.mark.parametrize(
    ("theirs", "ours", "side"),
    [
        ("mobilenet_v2", "mobilenetv2_100", 65),
        ("mobilenet_v3_small", "mobilenetv3_small_100", 65),
        ("mobilenet_v3_large", "mobilenetv3_large_100", 65),
        ("regnet_x_400mf", "regnetx_004_tv", 65),
        ("regnet_y_400mf", "regnety_004", 65),
        ("densenet121", "densenet121", 65),
        ("convnext_tiny", "convnext_tiny", 65),
        ("swin_t", "swin_tiny_patch4_window7_224", 224),
        ("vit", "vit_tiny_patch16_224", 224),
    ],
)
@torch.no_grad()
def test_every_family_of_torchvision_opens_as_its_twin(tmp_path: Path, theirs: str, ours: str, side: int) -> None:
    """A network with values as after a training gives the same logits through timm's twin, others for other images."""
    torch.manual_seed(0)
    model = _tiny_vit() if theirs == "vit" else getattr(torchvision.models, theirs)(num_classes=6)
    for module in model.modules():
        if isinstance(module, torch.nn.Linear):
            torch.nn.init.normal_(module.weight, std=module.in_features**-0.5)
    if theirs != "densenet121":  # whose sums of many layers overflow with small variances
        shake(model)
    for parameter in model.parameters():
        if parameter.ndim in {1, 3}:
            parameter.add_(0.1 * torch.randn_like(parameter))
    checkpoint = open_checkpoint(save(tmp_path / "a.pth", {"net": model.eval().state_dict()}))
    assert checkpoint.arch == ours
    images = torch.rand(2, 3, side, side)
    expected, got = model(images), build_model(checkpoint)(images)
    assert float((expected[0] - expected[1]).abs().max()) > 0.01 * float(expected.abs().max())
    assert float((got - expected).abs().max()) <= 1e-5 * float(expected.abs().max())


@pytest.mark.parametrize("theirs", ["efficientnet_b4", "efficientnet_b5", "efficientnet_v2_m"])
def test_the_epsilons_are_those_of_both_libraries(theirs: str) -> None:
    """torchvision's epsilon exceeds timm's by the absorbed difference in the listed networks, and in no other."""
    ours = theirs.replace("t_v2", "tv2")
    with torch.device("meta"):
        networks = getattr(torchvision.models, theirs)(), timm.create_model(ours, pretrained=False)
    there, here = ({m.eps for m in n.modules() if isinstance(m, torch.nn.BatchNorm2d)} for n in networks)
    (difference,) = {a - b for a in there for b in here}
    assert difference == pytest.approx(EPSILON_DIFFERENCE if ours in OTHER_EPSILON else 0, abs=1e-12)


def test_a_classifier_in_a_sequential_is_mapped(tmp_path: Path) -> None:
    """A linear layer behind a dropout, in place of the classifier, is taken as the classifier."""
    torch.manual_seed(0)
    model = torchvision.models.resnet18()
    model.fc = torch.nn.Sequential(torch.nn.Dropout(0.5), torch.nn.Linear(512, 7))
    heard = Recorder()
    checkpoint = open_checkpoint(save(tmp_path / "a.pth", shake(model).state_dict()), listener=heard)
    images = torch.rand(1, 3, 40, 40)
    assert torch.allclose(build_model(checkpoint)(images), model(images), rtol=1e-5)
    assert (checkpoint.num_classes, codes(heard)) == (7, ["I419", "I418"])


def test_a_deeper_classifier_is_not_guessed(tmp_path: Path) -> None:
    """Two linear layers in place of the classifier get E449, as the weights do not tell the activation between."""
    state = dict(make_model("resnet18").state_dict())
    weight, bias = state.pop("fc.weight"), state.pop("fc.bias")
    state |= {"fc.0.weight": torch.eye(512), "fc.0.bias": torch.zeros(512), "fc.2.weight": weight, "fc.2.bias": bias}
    assert refused(save(tmp_path / "a.pth", state), arch="resnet18").code == "E449"


def test_torchvisions_weights_are_not_put_into_the_tf_twin(tmp_path: Path) -> None:
    """torchvision's weights are refused for a tf_ network, which pads differently; the error names the right one."""
    path = save(tmp_path / "a.pth", torchvision.models.efficientnet_b0(num_classes=3).state_dict())
    error = refused(path, arch="tf_efficientnet_b0")
    assert error.code == "E410"
    assert "Looks like efficientnet_b0 (100 %)" in error.message
