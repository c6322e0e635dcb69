"""A folder with base weights and a LoRA adapter is one network, whose scale the adapter's configuration tells."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import safetensors.torch
import torch

from checkpoints.loading.open import open_checkpoint
from tests.support.weights import TINY, refused, tiny_state

pytestmark = pytest.mark.slow


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """The files that a base network and peft's save_pretrained leave: the head was trained whole."""
    state = tiny_state()
    safetensors.torch.save_file(state, tmp_path / "model.safetensors")
    torch.manual_seed(0)
    shape = state["layer1.0.conv1.weight"].shape
    adapter = {
        "base_model.model.layer1.0.conv1.lora_A.weight": torch.randn(2, *shape[1:]),
        "base_model.model.layer1.0.conv1.lora_B.weight": torch.randn(shape[0], 2, 1, 1),
        "base_model.model.fc.bias": state["fc.bias"] + 1,
    }
    safetensors.torch.save_file(adapter, tmp_path / "adapter_model.safetensors")
    (tmp_path / "adapter_config.json").write_text(json.dumps({"r": 2, "lora_alpha": 3, "use_rslora": True}))
    return tmp_path


def test_a_folder_with_an_adapter_is_merged(folder: Path) -> None:
    """The update is scaled by alpha over the root of the rank, and layers of the adapter replace those of the base."""
    base, adapter = (safetensors.torch.load_file(folder / f"{name}.safetensors") for name in ("model", "adapter_model"))
    opened = open_checkpoint(folder, arch=TINY)
    down, up = (adapter[f"base_model.model.layer1.0.conv1.lora_{part}.weight"] for part in "AB")
    update = torch.einsum("or,rihw->oihw", up[:, :, 0, 0], down) * 3 / 2**0.5
    expected = base["layer1.0.conv1.weight"] + update
    assert torch.allclose(opened.state_dict["layer1.0.conv1.weight"], expected, rtol=1e-5, atol=1e-6)
    assert torch.equal(opened.state_dict["fc.bias"], adapter["base_model.model.fc.bias"])
    assert torch.equal(opened.state_dict["layer1.0.conv2.weight"], base["layer1.0.conv2.weight"])


def test_an_adapter_whose_scale_is_not_known_is_refused(folder: Path) -> None:
    """Without its configuration the scale is unknown, and without the base there is nothing to add to: E417."""
    (folder / "adapter_config.json").unlink()
    assert "alpha, which scales them" in refused(folder, arch=TINY).message
    (folder / "model.safetensors").unlink()
    error = refused(folder, arch=TINY)
    assert (error.code, "not its base weights" in error.message) == ("E417", True)
