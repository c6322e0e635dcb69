"""What a training starts from: random weights, timm's pretrained ones, or those of a file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from checkpoints.loading.network import classifiers, count_outputs, make_network
from checkpoints.loading.open import open_checkpoint
from ensemble.card import Head
from ensemble.errors import ModelError, OptionError
from ensemble.events import Listener, Notice
from ensemble.labels import LabelSpace


def start_model(
    arch: str,
    *,
    labels: LabelSpace,
    size: tuple[int, int] | None = None,
    head: Head = "flat",
    init: Path | None = None,
    pretrained: bool = False,
    listener: Listener,
) -> torch.nn.Module:
    """A model of timm's with a new head for ``labels``; all else comes from ``init`` where that is given.

    Raises:
        OptionError: E204 when both ``init`` and ``pretrained`` are asked for, or the head does not fit.
        ModelError: the codes of `open_checkpoint`; E410 when the weights are of another shape.
    """
    if init is not None and pretrained:
        raise OptionError("E204", "--init and --pretrained exclude each other")
    shape = labels.shape if head == "axes" else None
    model: Any = make_network(arch, outputs=count_outputs(labels, head), size=size, shape=shape, pretrained=pretrained)
    if init is None:
        plain: torch.nn.Module = model
        return plain
    found = dict(open_checkpoint(init, arch=arch, listener=listener).state_dict)
    heads = classifiers(arch)
    wanted = model.state_dict()
    taken = {key: tensor for key, tensor in found.items() if not key.startswith(tuple(f"{name}." for name in heads))}
    odd = [key for key, tensor in taken.items() if key not in wanted or wanted[key].shape != tensor.shape]
    if odd:
        raise ModelError("E410", f"{init.name}: {len(odd)} tensors do not fit {arch}: {odd[0]}", path=init)
    model.load_state_dict(taken, strict=False)
    listener.notice(
        Notice("I441", f"{len(taken)} of {len(wanted)} tensors are those of {init.name}; the head is new", init)
    )
    started: torch.nn.Module = model
    return started


def freeze(model: torch.nn.Module, stages: int) -> tuple[torch.nn.Module, ...]:
    """Keep the first ``stages`` of timm's layer groups as they are; the modules that are frozen wholly.

    Raises:
        OptionError: E204 when no group would be left to train.
    """
    if stages == 0:
        return ()
    from timm.models import group_parameters

    matcher = getattr(model, "group_matcher", None)
    if matcher is None:
        raise OptionError("E204", "--freeze: timm knows no layer groups of this architecture")
    groups = group_parameters(model, matcher(coarse=True))
    kept = sorted(groups)[:stages]
    if len(kept) >= len(groups) - 1:
        raise OptionError("E204", f"--freeze must leave layers to train: below {len(groups) - 1}, got {stages}")
    names = {name for key in kept for name in groups[key]}
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name not in names)
    return tuple(
        module
        for module in model.modules()
        if (own := list(module.parameters())) and not any(parameter.requires_grad for parameter in own)
    )
