"""Small networks and their files, for the tests that open checkpoints."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import timm
import torch

from checkpoints.loading.open import Checkpoint, open_checkpoint
from ensemble.errors import EnsError
from ensemble.events import Recorder

# timm's own miniature networks keep the files of these tests at 2 MB
TINY = "test_resnet"
State = dict[str, torch.Tensor]


def make_model(arch: str = TINY, classes: int = 18) -> torch.nn.Module:
    """A network whose normalizations have seen data, so that an epsilon or a lost statistic shows."""
    torch.manual_seed(0)
    model: torch.nn.Module = timm.create_model(arch, pretrained=False, num_classes=classes)
    return shake(model)


def shake(model: torch.nn.Module) -> torch.nn.Module:
    for name, buffer in model.named_buffers():
        if name.endswith("running_var"):
            buffer.uniform_(0.02, 0.06)
        elif name.endswith("running_mean"):
            buffer.normal_(0, 0.05)
    return model.eval()


def tiny_state() -> State:
    return dict(make_model().state_dict())


def save(path: Path, content: object, **options: Any) -> Path:
    torch.save(content, path, **options)
    return path


def open_tiny(path: Path, **options: Any) -> Checkpoint:
    return open_checkpoint(path, **{"arch": TINY} | options)


def codes(heard: Recorder) -> list[str]:
    return [notice.code for notice in heard.notices]


def assert_same(checkpoint: Checkpoint, state: Mapping[str, torch.Tensor]) -> None:
    assert checkpoint.state_dict.keys() == state.keys()
    for key, tensor in state.items():
        assert torch.equal(checkpoint.state_dict[key], tensor), key


def refused(path: Path, **options: Any) -> EnsError:
    with pytest.raises(EnsError) as caught:
        open_checkpoint(path, **options)
    return caught.value
