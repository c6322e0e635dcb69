"""Collect every tensor of a checkpoint under one dotted name, whatever dictionaries and lists it is in."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, TypeGuard

import numpy as np

from checkpoints.loading.key_names import remove_marks
from checkpoints.loading.pickle_objects import InertObject
from ensemble.errors import ModelError, enumerate_some

if TYPE_CHECKING:
    import torch

_DEEPEST = 12
_NAMES_OF_THE_MODEL = {"model", "arch", "architecture", "model_name", "timm_model", "model_arch"}
# states of the training, which hold tensors of the same shapes as the network
_TRAINING = re.compile(r".*(optim|sched|scaler|rng|loops?$|lightning_sam|amp$).*", re.IGNORECASE)
_AVERAGED = re.compile(
    r"(^|.*[^a-z])(ema\d*|emas|swa|swag|avg|averaged?|averaging|moving_?average|shadow\w*|polyak|lookahead|slow|wma"
    r"|mean_?teacher|ema(model|net|weights|params|parameters|state\w*)|(model|net|weights|params|parameters|sd)ema"
    r"|average_?model\w*|averagedmodel)([^a-z].*|$)"
)
_MOMENTS = re.compile(r"(exp|square|grad|sq|step|running|loss|val|train)_avg.*|avg_?(pool|loss|acc).*")
_LOSS = re.compile(r"torch\.nn\.modules\.loss\..*|.*(Loss|Criterion|Metric|CrossEntropy)")
# copies of the raw weights that an average keeps while the network has its values
_COPIES = re.compile(
    r"(collected|temp_stored|stored|saved|backup)_?(params|parameters|weights|state)?|(param|weight)s?_backup"
)


@dataclass(frozen=True, slots=True)
class TensorOrigin:
    """The dictionary that a tensor was in, such as ``model_ema.module``, and its name there."""

    place: str
    key: str


@dataclass(frozen=True, slots=True, eq=False)
class TensorList:
    """Tensors without names, such as ``shadow_params`` of torch_ema, and the path of their list."""

    place: str
    tensors: Sequence[torch.Tensor]


@dataclass(frozen=True, slots=True, eq=False)
class AllTensors:
    """All tensors of a checkpoint that may be weights.

    ``tensors`` maps path and name, without the marks of wrappers, to each; ``averaged_at`` and ``raw_at`` are paths
    that are known to be one or the other, whatever their names.
    """

    tensors: Mapping[str, torch.Tensor]
    origins: Mapping[str, TensorOrigin]
    marks: tuple[str, ...]
    lists: tuple[TensorList, ...] = ()
    averaged_at: frozenset[str] = frozenset()
    raw_at: frozenset[str] = frozenset()

    def is_averaged(self, prefix: str) -> bool:
        """Return True if a network at this path is an average over the training."""
        for length in range(prefix.count(".") + 1, -1, -1):
            start = ".".join(prefix.split(".")[:length]).rstrip(".")
            if start in self.averaged_at:
                return True
            if start in self.raw_at:
                return False
        return is_averaged_name(prefix)


@dataclass(frozen=True, slots=True)
class Claim:
    """An architecture named in a checkpoint's metadata, and the path of that entry."""

    arch: str
    place: str

    @property
    def is_model(self) -> bool:
        """True if the entry's name says that it is the architecture of the whole network."""
        return self.place.rpartition(".")[2] in _NAMES_OF_THE_MODEL


def is_schedule_free_training(payload: object) -> bool:
    """Return True for a checkpoint with the state of a schedule-free optimizer in its training mode.

    The parameters are the points y of the gradients then, not the averages x that ``optimizer.eval()`` puts in their
    place (facebookresearch/schedule_free, schedulefree/adamw_schedulefree.py).
    """
    if not isinstance(payload, Mapping):
        return False
    for value in payload.values():
        for state in value if isinstance(value, list) else (value,):
            groups = state.get("param_groups") if isinstance(state, Mapping) else None
            if isinstance(groups, list) and any(isinstance(g, Mapping) and g.get("train_mode") is True for g in groups):
                return True
    return False


def is_averaged_name(name: str) -> bool:
    """Return True for the name of averaged weights, such as ``state_dict_ema`` or ``swa_model.module``."""
    spaced = re.sub(r"(?<=[a-z])(?=[A-Z])", "_", name).lower()
    return any(_AVERAGED.fullmatch(part) is not None and _MOMENTS.fullmatch(part) is None for part in spaced.split("."))


def is_tensor(value: object) -> TypeGuard[torch.Tensor]:
    """Return True for a tensor, with or without values; numpy's arrays and numbers beside tensors are metadata."""
    return hasattr(value, "ndim") and not isinstance(value, (Mapping, np.ndarray, np.generic))


def key_text(key: object) -> str:
    """Return the text of a dictionary's key; a tuple of tuples may be a short file and an endless text."""
    return str(key)[:1000] if isinstance(key, str | int | float) else f"<{type(key).__name__}>"


def collect_tensors(payload: object, path: Path) -> AllTensors:
    """Return every tensor of a checkpoint that may be a weight; states of optimizers are left out.

    Raises:
        ModelError: E417 when there is none.
    """
    named: dict[str, torch.Tensor] = {}
    origins: dict[str, TensorOrigin] = {}
    lists = []
    for item in _search(payload, (), frozenset()):
        if isinstance(item, TensorList):
            lists.append(item)
        else:
            origin, tensor = item
            whole = f"{origin.place}.{origin.key}" if origin.place else origin.key
            named[whole] = tensor
            origins[whole] = origin
    if not any(tensor.ndim >= 2 for tensor in named.values()):
        hint = None
        if isinstance(payload, Mapping) and "ds_version" in payload:  # ZeRO 3 leaves empty tensors under the names
            hint = (
                "run zero_to_fp32.py, which DeepSpeed writes beside its checkpoints: it joins the parts of the weights"
            )
        raise ModelError("E417", f"{path.name} holds no weights: it is {_describe(payload)}", hint=hint, path=path)
    cleaned = remove_marks(named)
    averaged, raw = _known_kinds(payload, named)
    renamed = dict(zip(cleaned.tensors, origins.values(), strict=True))
    return AllTensors(cleaned.tensors, renamed, cleaned.marks, tuple(lists), averaged, raw)


def _search(
    value: object, place: tuple[str, ...], above: frozenset[int]
) -> Iterator[tuple[TensorOrigin, torch.Tensor] | TensorList]:
    if id(value) in above or len(place) > _DEEPEST:
        return
    above |= {id(value)}
    if isinstance(value, InertObject) and _LOSS.fullmatch(value.type_name):
        return
    if isinstance(value, Mapping):
        for key, item in value.items():
            name = key_text(key)
            if is_tensor(item):
                yield TensorOrigin(".".join(place), name), item
            elif _COPIES.fullmatch(name):
                continue
            elif is_averaged_name(name) or not _TRAINING.fullmatch(name):
                yield from _search(item, (*place, name), above)
            else:
                yield from _averages_in(item, (*place, name), above)
    elif isinstance(value, (list, tuple)):
        if (pairs := _named_pairs(value)) is not None:
            yield from _search(pairs, place, above)
            return
        tensors = [item for item in value if is_tensor(item)]
        if tensors and len(tensors) == len(value):
            yield TensorList(".".join(place), tensors)
            return
        for number, item in enumerate(value):
            yield from _search(item, (*place, str(number)), above)


def _named_pairs(value: Sequence[object]) -> dict[str, object] | None:
    """Return the dictionary that a list of names and tensors is, such as ``list(model.state_dict().items())``."""
    pairs: dict[str, object] = {}
    for item in value:
        if not (isinstance(item, (list, tuple)) and len(item) == 2 and isinstance(item[0], str) and is_tensor(item[1])):
            return None
        pairs[item[0]] = item[1]
    return pairs if pairs and len(pairs) == len(value) else None


def _averages_in(
    value: object, place: tuple[str, ...], above: frozenset[int]
) -> Iterator[tuple[TensorOrigin, torch.Tensor] | TensorList]:
    """Yield averaged weights in the state of an optimizer, where NeMo's callback has them; moments are no weights."""
    start = len(".".join(place)) + 1
    for item in _search(value, place, above):
        found = item.place if isinstance(item, TensorList) else item[0].place
        if is_averaged_name(found[start:]):
            yield item


def _known_kinds(payload: object, named: Mapping[str, torch.Tensor]) -> tuple[frozenset[str], frozenset[str]]:
    """Return the paths of averaged and of raw weights where a library puts them against their names.

    torch's AveragedModel counts in ``n_averaged``. Lightning's WeightAveraging saves the average as ``state_dict`` and
    the rest as ``current_model_state`` (lightning/pytorch/callbacks/weight_averaging.py). mmengine's EMAHook swaps both
    before it saves (mmengine/hooks/ema_hook.py, before_save_checkpoint), and mmcv's keeps the raw weights in buffers.
    """
    counters = {key.rpartition("n_averaged")[0] for key in named if key.rpartition(".")[2] == "n_averaged"}
    averaged = {start.rstrip(".") for start in counters if any(key.startswith(f"{start}module.") for key in named)}
    raw: set[str] = set()
    averaged |= _swapped_by_mmcv(named)
    if not isinstance(payload, Mapping):
        return frozenset(averaged), frozenset(raw)
    meta = payload.get("meta")
    if "averaging_state" in payload and "current_model_state" in payload:
        averaged, raw = {"state_dict"}, {"current_model_state"}
    is_mmengine = "message_hub" in payload or (isinstance(meta, Mapping) and "mmengine_version" in meta)
    if is_mmengine and "ema_state_dict" in payload:
        averaged, raw = {"state_dict"}, {"ema_state_dict"}
    return frozenset(averaged), frozenset(raw)


def _swapped_by_mmcv(named: Mapping[str, torch.Tensor]) -> set[str]:
    """Return the paths of dictionaries with buffers such as ``ema_conv1_weight``.

    EMAHook of mmcv (mmcv/runner/hooks/ema.py) registers them beside the parameters, and swaps both at the end of an
    epoch, before they are saved: the buffers hold the raw weights.
    """
    found: dict[str, int] = {}
    for key in named:
        parent, _, last = key.rpartition(".ema_") if ".ema_" in key else ("", "", key.removeprefix("ema_"))
        if last != key and "." not in last:
            found[parent] = found.get(parent, 0) + 1
    return {
        parent
        for parent, count in found.items()
        if count > 2
        and sum(
            f"{parent}.ema_{own}".lstrip(".") in named
            for key in named
            if key.startswith(parent) and (own := key.removeprefix(parent).lstrip(".").replace(".", "_")) != key
        )
        >= count - 1
    }


def _describe(payload: object) -> str:
    if isinstance(payload, dict):
        names = [key_text(key) for key in payload]
        return f"a dictionary of {enumerate_some(names)}" if names else "an empty dictionary"
    return f"a {type(payload).__name__}"
