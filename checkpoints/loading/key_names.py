"""Names of tensors: the marks of wrappers inside them, and the tensors that belong to no network."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

from ensemble.text.plain_numbers import is_count

# Parts of a name that a wrapper adds: DataParallel and AveragedModel, torch.compile, FSDP, activation checkpointing,
# Lightning Fabric and DeepSpeed, PEFT. They stand in front, or anywhere inside where single layers were wrapped.
_MARKS = (
    "module",
    "_orig_mod",
    "_fsdp_wrapped_module",
    "_checkpoint_wrapped_module",
    "_forward_module",
    "_original_module",
    "_wrapped_module",
    "_module",
)
_MARK = re.compile(rf"(?:^|(?<=\.))(?:{'|'.join(_MARKS)})\.")

# the number of batches has no effect on predictions, and old versions of torch do not save it: never compared
COUNTER = ".num_batches_tracked"

# Words of names that belong to the training and not to the network: losses and their weights, metrics, counters.
_TRAINING_WORDS = re.compile(
    r"((loss|losses|criteri(on|a)|metrics?)(_?(fn|func|function|module|state|state_?dict|params))?|accuracy|(train|val|valid|test)_?(acc|accuracy|auroc|auc|f1|loss|metrics?)\w*"
    r"|auroc|confmat|confusion_matrix|class_?weights?|pos_?weights?|sample_?weights?|priors?|class_?priors?"
    r"|class_?counts?|class_?freq\w*|logit_?adjust\w*|num_?updates|n_averaged|initted|total_(ops|params)|global_step"
    r"|steps?|epoch|decay|ema_decay|optimizer\w*|scheduler\w*|centers?|center_?loss|queue|queue_ptr|memory_?bank"
    r"|prototypes?_?ema|mixup\w*|cutmix\w*|augment\w*|_extra_state|dummy|device_indicator\w*)"
)
# whole numbers of a network itself; EfficientFormer saves the places of its attention's biases
_WHOLE_WEIGHTS = {"weight", "bias", "attention_bias_idxs"}
_NORMALIZATION = re.compile(r"(\w*_)?(mean|std|pixel_mean|pixel_std|image_mean|image_std)(_\w*)?")


@dataclass(frozen=True, slots=True, eq=False)
class CleanNames:
    """Tensors without the marks of wrappers in their names, and those marks in order of appearance."""

    tensors: Mapping[str, torch.Tensor]
    marks: tuple[str, ...]


def remove_marks(tensors: Mapping[str, torch.Tensor]) -> CleanNames:
    """Remove the marks of wrappers from every name, unless two tensors would get the same name."""
    renamed = {key: _MARK.sub("", key) for key in tensors}
    if len(set(renamed.values())) < len(renamed):
        return CleanNames(tensors, ())
    marks = dict.fromkeys(mark for key in tensors for mark in _MARK.findall(key))
    return CleanNames({renamed[key]: tensor for key, tensor in tensors.items()}, tuple(marks))


def without_marks(name: str) -> str:
    """Return the name of a module or tensor without the marks of wrappers."""
    return _MARK.sub("", f"{name}.").rstrip(".")


def is_training_state(key: str, tensor: torch.Tensor) -> bool:
    """Return True for a tensor that belongs to a loss, a metric or a counter, by its name or its type."""
    parts = key.split(".")
    if any(_TRAINING_WORDS.fullmatch(part.lower()) for part in parts):
        return True
    # by its text, which a tensor without values has too
    whole = str(tensor.dtype).removeprefix("torch.") in {"int64", "int32", "int16", "bool", "uint8"}
    return whole and not key.endswith(COUNTER) and tensor.ndim <= 2 and parts[-1] not in _WHOLE_WEIGHTS


def is_normalization(key: str, tensor: torch.Tensor) -> bool:
    """Return True for the mean or standard deviation of the image's channels, kept as a buffer."""
    last = key.rpartition(".")[2].lower()
    return tensor.numel() in {1, 3} and last != "running_mean" and _NORMALIZATION.fullmatch(last) is not None


def shared_start(first: str, second: str) -> int:
    """Return the number of leading parts that two dotted names share."""
    count = 0
    for one, other in zip(first.split("."), second.split("."), strict=False):
        if one != other:
            break
        count += 1
    return count


def natural_key(name: str) -> tuple[tuple[bool, int, str], ...]:
    """Return a sort key that puts ``head.2`` before ``head.10``."""
    return tuple((is_count(part), int(part) if is_count(part) else 0, part) for part in name.split("."))


def prefixes_before(anchor: str, names: Iterable[str]) -> tuple[str, ...]:
    """Return what stands before ``anchor`` in the names that end in it, shortest first."""
    found = {name[: -len(anchor)] for name in names if name.endswith(anchor)}
    return tuple(sorted((p for p in found if not p or p.endswith(".")), key=lambda p: (p.count("."), p)))
