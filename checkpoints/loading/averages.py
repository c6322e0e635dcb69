"""Averaged weights that are no state dict of their own: without buffers, without names, or under other names."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch

from checkpoints.loading.bodies import Body
from checkpoints.loading.key_names import COUNTER, is_normalization
from checkpoints.loading.state_dicts import AllTensors, is_averaged_name

_BUFFERS = (".running_mean", ".running_var", COUNTER)


@dataclass(frozen=True, slots=True, eq=False)
class Average:
    """Averaged values of a network's parameters, by their names in the checkpoint; its buffers stay those of the raw.

    ``values`` is None for an average that does not fit the network.
    """

    place: str
    values: Mapping[str, torch.Tensor] | None


def find_averages(found: AllTensors, raw: Body, partial: Sequence[Body]) -> tuple[Average, ...]:
    """Return the averages of one network: lists in the order of its parameters, and dictionaries without buffers.

    ``partial`` are bodies without running statistics.
    """
    return (
        *_from_lists(found, raw),
        *(_from_partial(found, raw, body) for body in partial),
        *_from_squeezed_names(found, raw),
    )


def _place(found: AllTensors, body: Body) -> str:
    key = next(iter(body.sources.values()))
    return found.origins[key].place if key in found.origins else ""


def _parameters(found: AllTensors, raw: Body) -> dict[str, torch.Tensor]:
    """Return the parameters in the raw network's dictionary, in the order of ``network.parameters()``."""
    place = _place(found, raw)
    buffers = {raw.sources[name] for name in raw.match.architecture.buffers if name in raw.sources}
    return {
        key: tensor
        for key, tensor in found.tensors.items()
        if key in found.origins
        and found.origins[key].place == place
        and key not in buffers
        and not key.endswith(_BUFFERS)
        and tensor.is_floating_point()
    }


def _from_lists(found: AllTensors, raw: Body) -> Iterator[Average]:
    """Read ``shadow_params`` of torch_ema (torch_ema/ema.py) and diffusers, and like lists of a callback."""
    parameters = _parameters(found, raw)
    trained = {key: tensor for key, tensor in parameters.items() if not is_normalization(key, tensor)}
    network = {key: tensor for key, tensor in parameters.items() if key.startswith(raw.prefix)}
    for item in found.lists:
        if not is_averaged_name(item.place) or not any(tensor.ndim >= 2 for tensor in item.tensors):
            continue
        shapes = [tensor.shape for tensor in item.tensors]
        fitting = next(
            (own for own in (parameters, trained, network) if [tensor.shape for tensor in own.values()] == shapes), None
        )
        values = None if fitting is None else dict(zip(fitting, item.tensors, strict=True))
        yield Average(item.place, values)


def _from_partial(found: AllTensors, raw: Body, partial: Body) -> Average:
    """Read a dictionary of parameters alone, such as ``shadow`` of the usual EMA class."""
    name = partial.prefix.rstrip(".")
    if partial.match.arch != raw.match.arch:
        return Average(name, None)
    values = {}
    for key, tensor in found.tensors.items():
        if key.startswith(partial.prefix):
            own = raw.prefix + key.removeprefix(partial.prefix)
            if own in found.tensors and found.tensors[own].shape == tensor.shape:
                values[own] = tensor
    wanted = [raw.sources[n] for n in raw.match.architecture.body if n not in raw.match.architecture.buffers]
    # a head under another prefix than the body's: both dictionaries have it at the same place
    there, here = _place(found, partial), _place(found, raw)
    for key, origin in found.origins.items():
        if origin.place == there and key in found.tensors:
            own = f"{here}.{origin.key}" if here else origin.key
            if own in found.tensors and own not in values and found.tensors[own].shape == found.tensors[key].shape:
                values[own] = found.tensors[key]
    return Average(name, values if set(wanted) <= values.keys() else None)


def _from_squeezed_names(found: AllTensors, raw: Body) -> Iterator[Average]:
    """Read buffers named after the parameters without their dots.

    LitEma of latent diffusion (ldm/modules/ema.py) removes the dots, ``model_ema.conv1weight``.
    """
    wanted = {_squeeze(key): key for key in _parameters(found, raw) if not is_averaged_name(key)}
    own = {_squeeze(key.removeprefix(raw.prefix)): key for key in wanted.values() if key.startswith(raw.prefix)}
    groups: dict[str, dict[str, torch.Tensor]] = {}
    for key, tensor in found.tensors.items():
        parent, _, last = key.rpartition(".")
        if not is_averaged_name(parent.rpartition(".")[2]):
            continue
        squeezed = _squeeze(last)
        target = own.get(squeezed) or next((k for s, k in wanted.items() if s.endswith(squeezed)), None)
        if target is not None and found.tensors[target].shape == tensor.shape:
            groups.setdefault(parent, {})[target] = tensor
    body = [raw.sources[n] for n in raw.match.architecture.body if n not in raw.match.architecture.buffers]
    for parent, values in groups.items():
        if set(body) <= values.keys():
            yield Average(parent, values)


def _squeeze(name: str) -> str:
    return re.sub(r"[._]", "", name)
