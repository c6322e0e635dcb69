"""Stochastic weight averaging: the mean of the weights after each of the last epochs.

Izmailov et al. 2018, "Averaging Weights Leads to Wider Optima and Better Generalization".
"""

from __future__ import annotations

import copy
from collections.abc import Collection, Iterable, Mapping

import torch

_Norm = torch.nn.modules.batchnorm._BatchNorm


@torch.no_grad()
def add_to_mean(
    mean: Mapping[str, torch.Tensor] | None, model: torch.nn.Module, number: int
) -> dict[str, torch.Tensor]:
    """Return the mean of ``number`` states, of which ``mean`` is that of all but the last, the model's.

    That is ``w_mean + (w - w_mean) / n`` of algorithm 1; counters of batches are those of the model.
    """
    state = model.state_dict()
    if mean is None or number == 1:
        return {name: tensor.detach().clone() for name, tensor in state.items()}
    return {
        name: mean[name].to(tensor.device).lerp(tensor, 1 / number) if tensor.is_floating_point() else tensor.clone()
        for name, tensor in state.items()
    }


@torch.no_grad()
def averaged_model(
    model: torch.nn.Module,
    mean: Mapping[str, torch.Tensor],
    batches: Iterable[torch.Tensor],
    *,
    frozen: Collection[torch.nn.Module] = (),
) -> torch.nn.Module:
    """Return a copy of the model with the mean of the weights and the batch statistics that these give.

    The statistics of the states belong to other weights, so their mean would be wrong: they are the means over
    ``batches``, normalized images ``(B, C, H, W)``. All else is in eval mode: dropout would change what
    later layers see. Layers in ``frozen`` never changed, and keep their statistics.
    """
    is_frozen = {id(module) for module in frozen}
    kept = {name for name, module in model.named_modules() if id(module) in is_frozen}
    found = copy.deepcopy(model)
    found.load_state_dict(mean)
    found.eval()
    norms = [
        module
        for name, module in found.named_modules()
        if isinstance(module, _Norm) and module.track_running_stats and name not in kept
    ]
    if not norms:
        return found
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # torch: a cumulative mean of the batches
        norm.train()
    for images in batches:
        found(images)
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
    return found.eval()
