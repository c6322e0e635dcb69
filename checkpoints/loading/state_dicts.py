"""Find the state dict in a checkpoint, and strip the prefixes of wrappers from its keys."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch

from checkpoints.loading.pickle_objects import InertObject
from ensemble.card import Weights
from ensemble.errors import ModelError, enumerate_some

_RAW_PLACES = ("state_dict", "model_state_dict", "model", "net", "module")
_EMA_PLACES = ("state_dict_ema", "model_ema", "ema")
_PREFIXES = ("module.", "_orig_mod.", "model.", "net.", "backbone.")
# saved in the same dictionary: the update counter of AveragedModel, and Lightning's class weights of the loss
_NOT_THE_MODEL = ("n_averaged", "criterion.", "loss.", "loss_fn.")


@dataclass(frozen=True, slots=True, eq=False)
class StateDict:
    """One dictionary of tensors in a checkpoint; ``place`` is its path, such as ``model_ema.module``."""

    tensors: Mapping[str, torch.Tensor]
    weights: Weights
    place: str


@dataclass(frozen=True, slots=True, eq=False)
class Stripped:
    """Tensors without the common prefix of their keys, and the keys that are not part of the model."""

    tensors: Mapping[str, torch.Tensor]
    prefix: str
    left_out: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Claim:
    """An architecture named in a checkpoint's metadata, and the path of that entry."""

    arch: str
    place: str


def find_state_dicts(payload: object, path: Path) -> tuple[StateDict, ...]:
    """Return the sets of weights in a checkpoint: at most one raw and one averaged (EMA).

    Raises:
        ModelError: E417 when there is none, or when there are several of one kind.
    """
    found = list(_search(payload, ()))
    if not found and (tensors := _as_weights(payload)) is not None:
        found = [StateDict(tensors, "raw", "")]
    if not found:
        raise ModelError("E417", f"{path.name} holds no weights: it is {_describe(payload)}", path=path)
    for kind in ("raw", "ema"):
        places = [state.place for state in found if state.weights == kind]
        if len(places) > 1:
            raise ModelError(
                "E417",
                f"{path.name} holds several sets of {kind} weights: {', '.join(places)}",
                hint="save the one you mean on its own",
                path=path,
            )
    return tuple(found)


def _search(value: object, place: tuple[str, ...]) -> Iterator[StateDict]:
    if not isinstance(value, dict) or len(place) > 3:
        return
    for key in (*_RAW_PLACES, *_EMA_PLACES):
        here = (*place, key)
        inner = list(_search(value.get(key), here))
        if not inner and (tensors := _as_weights(value.get(key))) is not None:
            inner = [StateDict(tensors, "ema" if set(here) & set(_EMA_PLACES) else "raw", ".".join(here))]
        yield from inner


def _as_weights(value: object) -> dict[str, torch.Tensor] | None:
    """Return the tensors of a dictionary if at least one could be the weight of a layer."""
    if not isinstance(value, dict):
        return None
    tensors = {key: item for key, item in value.items() if isinstance(key, str) and isinstance(item, torch.Tensor)}
    return tensors if any(tensor.ndim >= 2 for tensor in tensors.values()) else None


def _describe(payload: object) -> str:
    if isinstance(payload, dict):
        return f"a dictionary of {enumerate_some([str(key) for key in payload])}" if payload else "an empty dictionary"
    return f"a {type(payload).__name__}"


def strip_prefixes(tensors: Mapping[str, torch.Tensor]) -> Stripped:
    """Remove the chain of wrapper prefixes that all keys share."""
    left_out = tuple(key for key in tensors if key.startswith(_NOT_THE_MODEL))
    kept = {key: tensor for key, tensor in tensors.items() if key not in left_out}
    prefix = ""
    while kept and (shared := next((p for p in _PREFIXES if all(key.startswith(p) for key in kept)), None)):
        prefix += shared
        kept = {key.removeprefix(shared): tensor for key, tensor in kept.items()}
    return Stripped(kept, prefix, left_out)


def claimed_architectures(payload: object) -> tuple[Claim, ...]:
    """Return the architectures in the metadata: timm's ``args.model``, ``arch``, Lightning's hyperparameters."""
    if not isinstance(payload, dict):
        return ()
    holders = {"args.": payload.get("args"), "hyper_parameters.": payload.get("hyper_parameters"), "": payload}
    claims = []
    for place, holder in holders.items():
        values = vars(holder) if isinstance(holder, InertObject) else holder
        if isinstance(values, dict):
            named = {key: values.get(key) for key in ("model", "arch", "model_name")}
            claims += [Claim(name, f"{place}{key}") for key, name in named.items() if isinstance(name, str)]
    return tuple(claims)
