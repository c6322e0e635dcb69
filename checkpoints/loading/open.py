"""Open trained weights in any common format, without running code from the file."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import safetensors.torch
import torch

from checkpoints.loading.architectures import find_architecture, resolve_architecture
from checkpoints.loading.network import count_outputs, make_network
from checkpoints.loading.read import read_content
from checkpoints.loading.state_dicts import StateDict, claimed_architectures, find_state_dicts, strip_prefixes
from checkpoints.loading.torchvision_names import Renamed, absorb_epsilon, timm_names
from checkpoints.loading.weight_checks import (
    cast_to_architecture,
    require_finite_weights,
    require_plausible_sizes,
    warn_if_untrained,
)
from ensemble.card import METADATA_KEY, ModelCard, Weights
from ensemble.errors import ModelError, enumerate_some
from ensemble.events import SILENT, Listener, Notice
from ensemble.files import write_atomic

__all__ = ["Checkpoint", "build_model", "open_checkpoint", "save_checkpoint"]


@dataclass(frozen=True, slots=True, eq=False)
class Checkpoint:
    """Weights that fit their architecture: float32 tensors under timm's key names.

    ``num_classes`` is the number of logits. ``card`` is the one that `ens train` wrote, and None for other checkpoints.
    """

    path: Path
    arch: str
    state_dict: Mapping[str, torch.Tensor]
    num_classes: int
    sha256: str
    weights: Weights
    card: ModelCard | None = None


def open_checkpoint(
    path: Path, *, arch: str | None = None, weights: Weights | None = None, listener: Listener = SILENT
) -> Checkpoint:
    """Read a checkpoint of any common format, and check that its weights are complete, finite and fit one architecture.

    ``arch`` is a name of timm's; without it, the metadata of the file decides, then the names and shapes of the
    weights. ``weights`` chooses between raw and averaged (EMA) ones if the file has both; the default is averaged.

    Raises:
        FileError: E707 when the file cannot be read.
        OptionError: E204 when timm does not know ``arch``.
        ModelError: E401 to E405 for a file that is refused, damaged or something else, E410 for another architecture,
            E411 for heads that do not fit the card's labels, E412 for NaN, E415 and E416 when the architecture
            cannot be determined, E417 and E430 when there are no (such) weights, E427 for a card that cannot be read,
            E444 for a pickle that takes too much memory or time.
    """
    content = read_content(path, listener=listener)
    state = _choose(find_state_dicts(content.payload, path), content.card, weights, path, listener)
    require_plausible_sizes(state.tensors, content.size, path)
    renamed = _rename_to_timm(state, path, listener)
    named = arch or (content.card.arch if content.card else None)
    fit = find_architecture(
        renamed,
        given=None if named is None else resolve_architecture(named),
        claims=claimed_architectures(content.payload),
        path=path,
        size=content.card.preprocess.size if content.card else None,
        listener=listener,
    )
    if content.card is not None and content.card.head == "axes":
        _require_head(fit.num_classes, content.card, path)
    tensors = cast_to_architecture(renamed.tensors, fit, path, listener)
    require_finite_weights(tensors, path)
    warn_if_untrained(tensors, fit, path, listener)
    if renamed.is_torchvision:
        tensors = absorb_epsilon(fit.arch, tensors)
    return Checkpoint(
        path=path,
        arch=fit.arch,
        state_dict=tensors,
        num_classes=len(content.card.labels) if content.card and content.card.head == "axes" else fit.num_classes,
        sha256=content.sha256,
        weights=state.weights,
        card=content.card,
    )


def build_model(checkpoint: Checkpoint) -> torch.nn.Module:
    """Return the network with the checkpoint's weights: ``(B, 3, H, W)`` to logits, eval mode, float32, on the CPU."""
    card = checkpoint.card
    size = card.preprocess.size if card else None
    if card is not None and card.head == "axes":
        outputs, shape = count_outputs(card.labels, card.head), card.labels.shape
        model: torch.nn.Module = make_network(checkpoint.arch, outputs=outputs, size=size, shape=shape)
    else:
        model = make_network(checkpoint.arch, outputs=checkpoint.num_classes, size=size)
    model.load_state_dict(checkpoint.state_dict, strict=True)
    return model.eval()


def save_checkpoint(path: Path, state_dict: Mapping[str, torch.Tensor], card: ModelCard) -> Path:
    """Write the weights as safetensors with the card in the metadata, where `open_checkpoint` finds it.

    Raises:
        FileError: E701 when the disk is full, E702 when the file cannot be written.
    """
    tensors = {
        key: tensor.detach().cpu().clone(memory_format=torch.contiguous_format) for key, tensor in state_dict.items()
    }
    return write_atomic(path, safetensors.torch.save(tensors, metadata={METADATA_KEY: card.to_json()}))


def _choose(
    found: tuple[StateDict, ...], card: ModelCard | None, wanted: Weights | None, path: Path, listener: Listener
) -> StateDict:
    by_kind = {state.weights: state for state in found}
    if card is not None:  # a file of ens train has one set of weights, and its card says which
        by_kind = {card.weights: StateDict(found[0].tensors, card.weights, "")}
    kind = wanted or ("ema" if "ema" in by_kind else "raw")
    if kind not in by_kind:
        (state,) = by_kind.values()
        place = f" (in {state.place})" if state.place else ""
        raise ModelError("E430", f"{path.name} holds no {kind} weights, only {state.weights} ones{place}", path=path)
    if len(by_kind) > 1:
        other = by_kind["raw" if kind == "ema" else "ema"]
        message = f"{kind} weights ({by_kind[kind].place}) are used, not the {other.weights} ones ({other.place})"
        listener.notice(Notice("I408", message, path))
    return by_kind[kind]


def _require_head(outputs: int, card: ModelCard, path: Path) -> None:
    wanted = count_outputs(card.labels, card.head)
    if outputs != wanted:
        raise ModelError("E411", f"{path.name}: the heads have {outputs} outputs, the axes {wanted} values", path=path)


def _rename_to_timm(state: StateDict, path: Path, listener: Listener) -> Renamed:
    stripped = strip_prefixes(state.tensors)
    if stripped.prefix:
        listener.notice(Notice("I407", f"the prefix {stripped.prefix!r} was removed from every key", path))
    if stripped.left_out:
        message = f"keys that are not part of the model were left out: {enumerate_some(list(stripped.left_out))}"
        listener.notice(Notice("I407", message, path))
    renamed = timm_names(stripped.tensors)
    if renamed.changes:
        listener.notice(Notice("I418", f"keys were renamed: {', '.join(renamed.changes)}", path))
    return renamed
