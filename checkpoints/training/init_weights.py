"""The initial weights: random, timm's pretrained ones, or those of a file; and frozen layers."""

from __future__ import annotations

from typing import Any

import timm
import torch

from checkpoints.loading.axes_head import count_outputs
from checkpoints.loading.network import classifiers, make_network
from checkpoints.loading.open import open_checkpoint
from checkpoints.training.settings import TrainSettings
from ensemble.errors import EnsError, ModelError, OptionError, cut_text
from ensemble.events import Listener, Notice
from ensemble.ordinal import ordered_positions


def init_model(arch: str, settings: TrainSettings, *, listener: Listener) -> torch.nn.Module:
    """Return a timm model with a new head for the labels; all other weights come from ``settings.init`` if it is given.

    ``arch`` is the name by which timm builds the architecture.

    Raises:
        OptionError: E204 when the head does not fit, or timm has no pretrained weights.
        ModelError: the codes of `open_checkpoint`; E410 when the weights have another shape; E460 when pretrained
            weights cannot be loaded.
    """
    init = settings.init
    model: Any = _pretrained_network(arch, settings) if settings.pretrained else _new_network(arch, settings)
    if init is None:
        initialized: torch.nn.Module = model
        return initialized
    found = dict(open_checkpoint(init, arch=arch, listener=listener).state_dict)
    heads = classifiers(arch)
    wanted = model.state_dict()
    taken = {key: tensor for key, tensor in found.items() if not key.startswith(tuple(f"{name}." for name in heads))}
    odd = [key for key, tensor in taken.items() if key not in wanted or wanted[key].shape != tensor.shape]
    if odd:
        raise ModelError("E410", f"{init.name}: {len(odd)} tensors do not fit {arch}: {odd[0]}", path=init)
    model.load_state_dict(taken, strict=False)
    listener.notice(
        Notice("I441", f"{len(taken)} of {len(wanted)} tensors were loaded from {init.name}; the head is new", init)
    )
    loaded: torch.nn.Module = model
    return loaded


def _new_network(arch: str, settings: TrainSettings, *, pretrained: bool = False) -> Any:
    labels, ordered = settings.labels, ordered_positions(settings.labels, settings.ordinal)
    return make_network(
        arch,
        outputs=count_outputs(labels, settings.head, ordered),
        size=settings.preprocess.size,
        shape=labels.shape if settings.head == "axes" or ordered else None,
        ordered=ordered,
        pretrained=pretrained,
        in_channels=settings.preprocess.planes,
    )


def _pretrained_network(arch: str, settings: TrainSettings) -> Any:
    config = timm.get_pretrained_cfg(arch, allow_unregistered=True)
    if config is None or not config.has_weights:
        hint = "leave out --pretrained, or give a file with --init"
        raise OptionError("E204", f"timm has no pretrained weights for {arch}", hint=hint)
    try:
        return _new_network(arch, settings, pretrained=True)
    except EnsError:
        raise
    except Exception as err:
        # the download can fail in the ways of urllib, requests, httpx and huggingface_hub
        reason = cut_text((str(err).strip() or type(err).__name__).splitlines()[0], 300)
        where = config.hf_hub_id or config.url or config.file
        raise ModelError("E460", f"{arch}: the pretrained weights ({where}) cannot be loaded: {reason}") from err


def freeze(model: torch.nn.Module, groups: int) -> tuple[torch.nn.Module, ...]:
    """Freeze the first ``groups`` of timm's layer groups, and return the modules without a trainable parameter.

    Raises:
        OptionError: E204 when no group besides the head would be left to train.
    """
    if groups == 0:
        return ()
    from timm.models import group_parameters

    matcher = getattr(model, "group_matcher", None)
    if matcher is None:
        raise OptionError("E204", "--freeze: timm defines no layer groups for this architecture")
    names_of = group_parameters(model, matcher(coarse=True))
    kept = sorted(names_of)[:groups]
    if len(kept) >= len(names_of) - 1:
        raise OptionError("E204", f"--freeze must leave layers to train: below {len(names_of) - 1}, got {groups}")
    names = {name for key in kept for name in names_of[key]}
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name not in names)
    return tuple(
        module
        for module in model.modules()
        if (own := list(module.parameters())) and not any(parameter.requires_grad for parameter in own)
    )
