"""The architecture is given, named in the metadata, or identified by keys and shapes; never guessed."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import timm
import torch

from checkpoints.loading.architectures import compare_body, describe, nearest_twins, twins_of
from checkpoints.loading.open import build_model, open_checkpoint
from checkpoints.loading.outline import outline_checkpoint
from checkpoints.loading.read import read_content
from checkpoints.loading.timm_tables import default_config, digest_of, row_of, table_rows, table_version
from ensemble.errors import EnsError, OptionError
from ensemble.events import Recorder
from tests.harness.timm_tables import sort_twins
from tests.support.weights import TINY, State, codes, make_model, refused, save

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def resnet18(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save(tmp_path_factory.mktemp("resnet18") / "a.pth", make_model("resnet18").state_dict())


def test_an_unknown_architecture_is_refused_with_its_neighbors(resnet18: Path) -> None:
    """A misspelled --arch is E204 with similar names, and so is a wrong tag."""
    for name, close in (("resnt18", "resnet18"), ("resnet18.a1_in1", "resnet18.a1_in1k")):
        error = refused(resnet18, arch=name)
        assert isinstance(error, OptionError)
        assert (error.code, close in error.hint) == ("E204", True)


def test_a_name_of_timms_past_is_understood(tmp_path: Path) -> None:
    """A deprecated name opens under the current one."""
    path = save(tmp_path / "a.pth", make_model("tf_efficientnet_b0").state_dict())
    assert open_checkpoint(path, arch="tf_efficientnet_b0_ns").arch == "tf_efficientnet_b0.ns_jft_in1k"


@pytest.fixture(scope="module")
def lite0_state() -> State:
    return dict(make_model("tf_efficientnet_lite0", 3).state_dict())


def test_twins_are_not_told_apart_by_guessing(tmp_path: Path, lite0_state: State) -> None:
    """Weights that fit a network and its tf_ variant get E416 with both names; the file name is only a hint."""
    error = refused(save(tmp_path / "my_tf_efficientnet_lite0.pth", lite0_state))
    assert error.code == "E416"
    assert "efficientnet_lite0 and tf_efficientnet_lite0" in error.message
    assert "--arch tf_efficientnet_lite0" in error.hint
    assert "suggests" not in refused(save(tmp_path / "a.pth", lite0_state)).hint


@pytest.mark.parametrize("name", ["resnetblur18_f0.pth", "resnetblur18/best.pth"])
def test_the_usual_twin_is_not_taken_for_a_file_of_another_name(tmp_path: Path, resnet18: Path, name: str) -> None:
    """Weights of resnet18 in a file or folder that names resnetblur18 are E416, unless --arch tells."""
    path = tmp_path / name
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(resnet18.read_bytes())
    error = refused(path)
    assert (error.code, "--arch resnetblur18" in error.hint) == ("E416", True)
    with pytest.raises(EnsError) as caught:
        outline_checkpoint(
            read_content(path, with_values=False), path, arch=None, weights=None, labels=None, listener=Recorder()
        )
    assert (caught.value.code, caught.value.hint) == (error.code, error.hint)
    assert open_checkpoint(path, arch="resnet18").arch == "resnet18"


@pytest.mark.parametrize("arch", ["efficientnet_lite0", "tf_efficientnet_lite0"])
@pytest.mark.parametrize(
    "claim",
    [
        lambda arch: {"arch": arch},
        lambda arch: {"arch": "efficientnet", "args": argparse.Namespace(model=arch)},
        lambda arch: {"args": {"model": arch}},
        lambda arch: {"hyper_parameters": {"lr": 0.1, "model_name": arch}},
    ],
)
def test_twins_are_told_apart_by_the_files_own_word(
    tmp_path: Path, lite0_state: State, claim: Callable[[str], dict[str, Any]], arch: str
) -> None:
    """timm's args.model, an arch entry and Lightning's hyperparameters each decide, and I419 says which did."""
    heard = Recorder()
    path = save(tmp_path / "tf_efficientnet_lite0.pth", {"state_dict": lite0_state} | claim(arch))
    assert open_checkpoint(path, listener=heard).arch == arch
    assert codes(heard) == ["I419"]


def test_a_false_claim_is_refused(tmp_path: Path, lite0_state: State) -> None:
    """An architecture in the metadata that the weights do not fit is refused, with both named."""
    error = refused(save(tmp_path / "a.pth", {"state_dict": lite0_state, "arch": "efficientnet_lite1"}))
    assert error.code == "E410"
    assert "efficientnet_lite1 (arch), but its weights are those of efficientnet_lite0" in error.message


def test_weights_of_no_known_network_need_a_name(tmp_path: Path) -> None:
    """Weights of other widths than any of timm's get E415 without --arch, and open with it and its option."""
    user = timm.create_model(TINY, pretrained=False, num_classes=3, stem_width=24)
    path = save(tmp_path / "a.pth", user.state_dict())
    assert refused(path).code == "E415"
    assert open_checkpoint(path, arch=TINY, arch_options={"stem_width": 24}).arch == TINY


def test_timms_miniatures_are_told_by_their_weights(tmp_path: Path) -> None:
    """A network named test_ is found without --arch like any other, where names and shapes are those of one alone."""
    for arch in ("test_resnet", "test_convnext"):
        assert open_checkpoint(save(tmp_path / f"{arch}.pth", make_model(arch).state_dict())).arch == arch
    path = save(tmp_path / "twin.pth", make_model("test_efficientnet_gn").state_dict())
    assert refused(path).code == "E416"
    assert open_checkpoint(path, arch="test_efficientnet_gn").arch == "test_efficientnet_gn"


def test_a_network_without_its_classifier_is_named(tmp_path: Path, resnet18: Path) -> None:
    """A ResNet-18 without its classifier is refused, with its name and what is missing."""
    state = dict(open_checkpoint(resnet18).state_dict)
    error = refused(save(tmp_path / "a.pth", {k: t for k, t in state.items() if not k.startswith("fc.")}))
    assert error.code == "E415"
    assert "resnet18 without a classifier: no linear layer takes its 512 features" in error.message


@torch.no_grad()
def test_an_encoder_that_was_given_classes_opens(tmp_path: Path) -> None:
    """timm's default has no classes (num_classes 0 in pretrained_cfg): a head inside or beside is still found."""
    arch = "vit_tiny_patch16_dinov3_qkvb"
    user = timm.create_model(arch, pretrained=False, num_classes=5).eval()
    state = user.state_dict()
    beside = {f"fc.{k[5:]}" if k.startswith("head.") else f"backbone.{k}": tensor for k, tensor in state.items()}
    images = torch.randn(1, 3, 256, 256, generator=torch.Generator().manual_seed(0))
    for content in (state, beside):
        opened = open_checkpoint(save(tmp_path / "a.pth", content), arch=arch)
        assert torch.allclose(build_model(opened)(images), user(images), atol=1e-5)
    error = refused(save(tmp_path / "a.pth", {k: t for k, t in state.items() if not k.startswith("head.")}), arch=arch)
    assert (error.code, f"takes its {user.num_features} features" in error.message) == ("E415", True)


def test_an_encoder_that_takes_no_classes_is_refused(tmp_path: Path) -> None:
    """An encoder that timm builds without a classifier, whatever num_classes, is no member."""
    arch = "qwen3_vit_88m_enc"
    small: dict[str, Any] = {"depth": 1, "num_heads": 2, "embed_dim": 64}
    user = timm.create_model(arch, pretrained=False, num_classes=5, **small)
    error = refused(save(tmp_path / "a.pth", user.state_dict()), arch=arch, arch_options=small)
    assert (error.code, "without a classifier" in error.message) == ("E415", True)


def test_nearly_a_known_network_is_not_that_network(tmp_path: Path, resnet18: Path) -> None:
    """A ResNet-18 without one of its normalizations is refused, naming what is missing."""
    state = dict(open_checkpoint(resnet18).state_dict)
    error = refused(save(tmp_path / "a.pth", {k: t for k, t in state.items() if not k.startswith("bn1.")}))
    assert error.code == "E415"
    state["bn1.weight"] = torch.ones(65)
    error = refused(save(tmp_path / "a.pth", state))
    assert "closest is resnet18 (99 %)" in error.message
    assert error.details == ("1 of another shape: bn1.weight",)


@pytest.mark.parametrize(
    "arch", ["resnet50", "resnetblur50", "tf_efficientnetv2_b1", "convnext_atto", "vit_tiny_patch16_224", "regnetx_002"]
)
def test_the_table_of_architectures_is_what_timm_builds(arch: str) -> None:
    """The nearest entry of the table for an architecture's own tensors names it, and fits in full."""
    nearest = nearest_twins(describe(arch).state)[0]
    assert nearest.names == twins_of(arch)
    assert arch in nearest.names
    assert compare_body(nearest.names[0], describe(arch).state).is_full


@pytest.mark.parametrize(
    "arch",
    [
        "resnet50",
        "vit_tiny_patch16_224",
        "tf_efficientnet_b3",
        "swin_tiny_patch4_window7_224",
        "vit_tiny_patch16_dinov3_qkvb",
        "aimv2_large_patch14_224",
        "resnet50_clip",
    ],
)
def test_the_tables_have_timms_shapes_and_defaults(arch: str) -> None:
    """Digest, width of the classifier and default preprocessing are those of the installed timm."""
    row, known = row_of(arch), describe(arch)
    assert row is not None
    assert row.digest == digest_of({key: tuple(shape) for key, shape in known.body.items()})
    assert row.features == known.features
    config = timm.get_pretrained_cfg(arch, allow_unregistered=True)
    assert default_config(arch) == {name: getattr(config, name) for name in default_config(arch)}
    assert table_version() == timm.__version__


@pytest.mark.parametrize("arch", ["efficientnet_b0", "tf_efficientnet_lite0", "tf_efficientnetv2_s", "resnet50"])
def test_twins_share_every_name_and_shape(arch: str) -> None:
    """Weights of a network fit all that the table lists with it, so the weights cannot tell them apart."""
    shapes = [describe(name).body for name in twins_of(arch)]
    assert len(shapes) >= 2
    assert all(shape == shapes[0] for shape in shapes)


def test_the_table_has_twins_in_the_order_that_the_harness_writes() -> None:
    """The plain names come first, in one order that does not depend on timm's lists."""
    assert [list(row.names) for row in table_rows()] == [sort_twins(reversed(row.names)) for row in table_rows()]
