"""Checks of the weights: plausible in size, float32, finite, and trained."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch

from checkpoints.loading.architectures import Architecture
from checkpoints.loading.key_names import COUNTER
from ensemble.errors import ModelError, enumerate_some
from ensemble.events import Listener, Notice


def require_plausible_sizes(tensors: Mapping[str, torch.Tensor], size: int, path: Path) -> None:
    """Refuse a tensor that takes more memory than the ``size`` bytes of the files, before its values are read.

    Raises:
        ModelError: E403 for such a tensor, E417 for tensors that are sparse, quantized or without values.
    """
    for key, tensor in tensors.items():
        if tensor.layout != torch.strided or tensor.is_quantized or tensor.device.type != "cpu":
            raise ModelError("E417", f"{path.name}: {key} is sparse, quantized or without values", path=path)
        if tensor.numel() * tensor.element_size() > size:
            raise ModelError(
                "E403", f"{path.name}: {key} has shape {tuple(tensor.shape)}, more than the file", path=path
            )


def cast_to_architecture(
    tensors: Mapping[str, torch.Tensor],
    architecture: Architecture,
    head: Mapping[str, torch.Tensor],
    path: Path,
    listener: Listener,
) -> dict[str, torch.Tensor]:
    """Return copies in the architecture's order and precision (float32), the head last; missing counters are zero.

    Raises:
        ModelError: E417 when a weight is not of a floating-point type.
    """
    own = tuple(f"{name}." for name in architecture.classifier)
    wanted = {key: tensor for key, tensor in architecture.state.items() if not (own and key.startswith(own))}
    order = _with_head(list(architecture.state), list(wanted), list(head))
    converted: list[str] = []
    found = {}
    for key in order:
        like = wanted[key] if key in wanted else head[key]
        dtype = torch.float32 if key in head and not key.endswith(COUNTER) else like.dtype
        tensor = tensors[key].detach() if key in tensors else torch.zeros(like.shape, dtype=dtype)
        if dtype.is_floating_point and not tensor.is_floating_point():
            raise ModelError("E417", f"{path.name}: {key} is {_name(tensor.dtype)}, expected float32", path=path)
        if dtype.is_floating_point and tensor.dtype != dtype:
            converted.append(_name(tensor.dtype))
        found[key] = tensor.to(dtype, copy=True, memory_format=torch.contiguous_format)
    if converted:
        kinds = " and ".join(sorted(set(converted)))
        listener.notice(Notice("I409", f"{len(converted)} tensors in {kinds} were converted to float32", path))
    return found


def _with_head(state: list[str], body: list[str], head: list[str]) -> list[str]:
    """Return the keys of body and head, with the head where the architecture has it."""
    known = set(body)
    after = next((number for number, key in enumerate(state) if key not in known), len(state))
    first = [key for key in state[:after] if key in known]
    return [*first, *(key for key in head if key not in known), *(key for key in body if key not in set(first))]


def require_finite_weights(tensors: Mapping[str, torch.Tensor], path: Path) -> None:
    """Refuse weights that are NaN or infinite.

    Raises:
        ModelError: E412 with the first such tensor and the number of its NaN and infinite values.
    """
    broken = [key for key, tensor in tensors.items() if not tensor.isfinite().all()]
    if broken:
        first = tensors[broken[0]]
        nans = int(first.isnan().sum())
        infinite = int(first.isinf().sum())
        counts = " and ".join(f"{n:,} {what}" for n, what in ((nans, "NaN"), (infinite, "infinite")) if n)
        others = f"; so have {len(broken) - 1:,} other tensors" if len(broken) > 1 else ""
        raise ModelError("E412", f"{path.name}: {broken[0]} has {counts}{others}", path=path)


def warn_if_untrained(
    tensors: Mapping[str, torch.Tensor], classifier: tuple[str, ...], path: Path, listener: Listener
) -> None:
    """Warn with W413 about impossible running variances, and about a classifier whose weights are all equal.

    Single variances of zero do not count: in trained networks they belong to dead channels.
    """
    variances = {key: tensor for key, tensor in tensors.items() if key.endswith(".running_var")}
    odd = [key for key, tensor in variances.items() if bool((tensor < 0).any() or (tensor == 0).all())]
    if odd:
        message = f"running variances are below zero, or zero throughout a layer: {enumerate_some(odd)}"
        listener.notice(Notice("W413", message, path))
    for name in classifier:
        weight = tensors.get(f"{name}.weight")
        if weight is not None and bool((weight == weight.flatten()[0]).all()):
            message = f"every value of {name}.weight is {float(weight.flatten()[0]):g}: the classifier is untrained"
            listener.notice(Notice("W413", message, path))


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
