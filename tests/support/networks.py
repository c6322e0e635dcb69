"""Checkpoints that tests make for themselves: timm's smallest networks with drawn weights."""

from __future__ import annotations

import hashlib
from pathlib import Path

import timm
import torch

from checkpoints.loading.open import Checkpoint
from ensemble.card import ModelCard


def make_checkpoint(
    arch: str = "test_resnet",
    *,
    classes: int = 18,
    name: str = "model.pth",
    seed: int = 0,
    card: ModelCard | None = None,
) -> Checkpoint:
    """A network whose batch normalizations are not trivial, so that an exporter that drops one is found out."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = timm.create_model(arch, pretrained=False, num_classes=classes)
        for module in model.modules():
            if isinstance(module, torch.nn.BatchNorm2d):
                torch.nn.init.uniform_(module.weight, 0.5, 1.5)
                torch.nn.init.uniform_(module.bias, -0.3, 0.3)
                module.get_buffer("running_mean").uniform_(-0.3, 0.3)
                module.get_buffer("running_var").uniform_(0.5, 2.0)
    sha256 = hashlib.sha256(f"{arch} {classes} {seed}".encode()).hexdigest()
    return Checkpoint(Path(name), arch, model.state_dict(), classes, sha256, "raw", card)
