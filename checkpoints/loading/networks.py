"""Choose one of the networks in a checkpoint: averaged or raw, student or teacher, one of several folds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from checkpoints.loading.averages import find_averages
from checkpoints.loading.bodies import Body, Search
from checkpoints.loading.key_names import shared_start
from checkpoints.loading.state_dicts import AllTensors, is_averaged_name
from ensemble.card import ModelCard, Weights
from ensemble.errors import ModelError
from ensemble.events import Listener, Notice


@dataclass(frozen=True, slots=True, eq=False)
class Network:
    """A network in a checkpoint: its body, where it is, and its tensors beside the body.

    ``tensors`` are all tensors of the checkpoint, in which those of this network have its values.
    """

    body: Body
    weights: Weights
    name: str
    tensors: Mapping[str, torch.Tensor]
    rest: Mapping[str, torch.Tensor]


def choose_network(
    found: AllTensors, search: Search, wanted: str | None, card: ModelCard | None, path: Path, listener: Listener
) -> Network:
    """Return the network that ``wanted`` names; by default the averaged one, if there is one.

    ``wanted`` is ``raw``, ``ema`` or a part of a path, such as ``fold1``.

    Raises:
        ModelError: E430 when no network is of that name, E448 when it could be several, E417 for averaged weights that
            do not fit.
    """
    networks = _distinct(_networks(found, search, wanted, path))
    if card is not None:  # a file of ens train has one set of weights, and its card says which
        (network, *_) = networks
        networks = [Network(network.body, card.weights, network.name, network.tensors, network.rest)]
    chosen = _select(networks, wanted, path)
    others = [network for network in networks if network is not chosen]
    if others:
        shown = ", ".join(sorted({_shown(network) for network in others}))
        listener.notice(Notice("I408", f"{_shown(chosen)} are used, not the {shown}", path))
    return chosen


def _networks(found: AllTensors, search: Search, wanted: str | None, path: Path) -> list[Network]:
    whole = [body for body in search.bodies if body.match.is_full]
    partial = [body for body in search.bodies if not body.match.is_full]
    networks = [
        Network(body, "ema" if found.is_averaged(body.prefix) else "raw", body.prefix.rstrip("."), found.tensors, {})
        for body in whole
    ]
    raw = [network for network in networks if network.weights == "raw"]
    unfit: list[str] = []
    if len(raw) == 1:
        base = raw[0]
        for average in find_averages(found, base.body, partial):
            if average.values is None:
                unfit.append(average.place)
            else:
                tensors = {**found.tensors, **average.values}
                networks.append(Network(base.body, "ema", average.place, tensors, {}))
    elif partial or any(is_averaged_name(item.place) and len(item.tensors) > 1 for item in found.lists):
        unfit += [body.prefix.rstrip(".") for body in partial]
        unfit += [item.place for item in found.lists if is_averaged_name(item.place) and len(item.tensors) > 1]
    if not networks:
        (body, *_) = partial
        raise ModelError(
            "E417",
            f"{path.name} holds the parameters of {body.match.arch} in {body.prefix.rstrip('.') or 'it'}, without the "
            "running statistics of its normalizations",
            hint="save the state dict of the whole network: model.state_dict() has its buffers too",
            path=path,
        )
    if unfit and wanted is None and not any(network.weights == "ema" for network in networks):
        raise ModelError(
            "E430",
            f"{path.name} holds averaged weights in {', '.join(unfit)} that do not fit the network",
            hint="export the other weights with --weights raw",
            path=path,
        )
    bodies = [network.body for network in networks]
    return [Network(n.body, n.weights, n.name, n.tensors, _rest_of(n, bodies, partial)) for n in networks]


def _rest_of(network: Network, bodies: Sequence[Body], partial: Sequence[Body]) -> dict[str, torch.Tensor]:
    """Return the tensors that no body has, and that are no further from this network than from another one."""
    used = {key for body in (*bodies, *partial) for key in body.used}
    own = network.body.prefix
    others = [body.prefix for body in (*bodies, *partial) if body.prefix != own]
    rest, shared = {}, set()
    for key, tensor in network.tensors.items():
        if key in used:
            continue
        nearness = shared_start(key, own)
        nearest = max((shared_start(key, other) for other in others), default=-1)
        if nearness < nearest or (nearness == nearest and key.startswith(tuple(other for other in others if other))):
            continue
        rest[key] = tensor
        if nearness == nearest:
            shared.add(key)
    # beside two bodies, ema_head.weight belongs to the averaged one and head.weight to the other
    averaged = {key for key in shared if is_averaged_name(".".join(key.split(".")[shared_start(key, own) :]))}
    wrong = averaged if network.weights == "raw" else shared - averaged if averaged else set()
    return {key: tensor for key, tensor in rest.items() if key not in wrong}


def _distinct(networks: Sequence[Network]) -> list[Network]:
    """Leave out a network that is the same as another one of its kind, under a second name."""
    kept: list[Network] = []
    for network in networks:
        if not any(network.weights == other.weights and _is_same(network, other) for other in kept):
            kept.append(network)
    return kept


def _is_same(one: Network, other: Network) -> bool:
    first, second = _values(one), _values(other)
    return len(first) == len(second) and all(
        a.shape == b.shape and torch.equal(a, b) for a, b in zip(first, second, strict=True)
    )


def _values(network: Network) -> list[torch.Tensor]:
    body = [key for name, key in network.body.sources.items() if name in network.body.match.architecture.body]
    rest = sorted(network.rest, key=lambda key: key.split(".")[-2:])
    return [network.tensors[key] for key in (*body, *rest)]


def _select(networks: Sequence[Network], wanted: str | None, path: Path) -> Network:
    if wanted is None:
        kind = "ema" if any(network.weights == "ema" for network in networks) else "raw"
        fitting = [network for network in networks if network.weights == kind]
    else:
        fitting = [network for network in networks if f".{wanted}." in f".{network.name}."]
        if not fitting:
            fitting = [network for network in networks if network.weights == wanted]
    if not fitting:
        held = ", ".join(dict.fromkeys(f"{n.weights} ones{_place(n)}" for n in networks))
        raise ModelError("E430", f"{path.name} holds no {wanted} weights, only {held}", path=path)
    if len(fitting) > 1:
        names = ", ".join(network.name or "the outermost dictionary" for network in fitting)
        raise ModelError(
            "E448",
            f"{path.name} holds {len(fitting)} networks: {names}",
            hint=f"choose with --weights and one of these names, such as --weights {_telling_name(fitting)}",
            path=path,
        )
    return fitting[0]


def _telling_name(networks: Sequence[Network]) -> str:
    """Return the shortest part of the first network's name that no other network has."""
    first, *others = networks
    parts = first.name.split(".")
    alone = [part for part in parts if part and all(f".{part}." not in f".{other.name}." for other in others)]
    return min(alone, key=len, default=first.name or "NAME")


def _place(network: Network) -> str:
    return f" (in {network.name})" if network.name else ""


def _shown(network: Network) -> str:
    return f"{network.weights} weights{f' ({network.name})' if network.name else ''}"
