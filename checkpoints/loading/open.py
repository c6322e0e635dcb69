"""Open trained weights in any common format, without running code from the file."""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

import safetensors.torch
import torch

from checkpoints.loading.arch_options import settle_options, why_not
from checkpoints.loading.architectures import current_name, is_same_layer, resolve_architecture
from checkpoints.loading.axes_head import LOG_GAPS, count_outputs, count_rows
from checkpoints.loading.bodies import Wanted
from checkpoints.loading.head_build import FoundHead
from checkpoints.loading.head_options import HeadRequest
from checkpoints.loading.heads import HeadFinder
from checkpoints.loading.identify import identify, unknown_network
from checkpoints.loading.lora import find_scale
from checkpoints.loading.metadata import NO_METADATA, Metadata
from checkpoints.loading.metadata_files import claims_of, read_all_metadata
from checkpoints.loading.name_notices import say_layout, say_names
from checkpoints.loading.network import (
    ArchOptions,
    HeadLayers,
    add_zero_logit,
    fix_padding,
    make_network,
    set_head,
)
from checkpoints.loading.networks import Network, choose_network
from checkpoints.loading.other_networks import require_no_caffe_style
from checkpoints.loading.pickle_objects import PickledLayer
from checkpoints.loading.pickled_layers import collect_layers, paths_inside, require_float_layers
from checkpoints.loading.read import Content, read_content
from checkpoints.loading.reparametrized import merge_parts
from checkpoints.loading.same_network import ToldByLayers, absorb_epsilons, require_no_other_layers, told_by_layers
from checkpoints.loading.searches import search_networks
from checkpoints.loading.state_dicts import AllTensors, Claim, collect_tensors, is_schedule_free_training
from checkpoints.loading.torchvision_names import absorb_epsilon
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
from ensemble.ordinal import ordered_positions

__all__ = ["Checkpoint", "HeadRequest", "build_model", "open_checkpoint", "save_checkpoint"]

_ANY_HEAD = HeadRequest()


@dataclass(frozen=True, slots=True, eq=False)
class Checkpoint:
    """Weights that fit their architecture: float32 tensors under timm's key names.

    ``num_classes`` is the number of logits. ``card`` is the one that `ens train` wrote, and None for other checkpoints.
    ``in_channels`` is the number of channels of an image. ``size`` is the ``(height, width)`` that the weights fit
    alone, None where they fit any. ``head`` are the layers in place of the classifier. ``padded_for`` is the side of
    square images for which a library fixes its padding. ``arch_options`` are options that the network is built with,
    and ``metadata`` is what the file says beside its weights.
    """

    path: Path
    arch: str
    state_dict: Mapping[str, torch.Tensor]
    num_classes: int
    sha256: str
    weights: Weights
    card: ModelCard | None = None
    in_channels: int = 3
    size: tuple[int, int] | None = None
    head: HeadLayers = field(default_factory=HeadLayers)
    padded_for: int | None = None
    arch_options: ArchOptions = field(default_factory=dict)
    metadata: Metadata = NO_METADATA


def open_checkpoint(
    path: Path,
    *,
    arch: str | None = None,
    arch_options: ArchOptions | None = None,
    weights: str | None = None,
    head: HeadRequest = _ANY_HEAD,
    listener: Listener = SILENT,
) -> Checkpoint:
    """Read a checkpoint of any common format, and check that its weights are complete, finite and fit one architecture.

    ``arch`` is a name of timm's; without it, the metadata of the file decides, then the names and shapes of the
    weights. ``arch_options`` are options of timm's ``create_model`` that the weights cannot show; those that the
    metadata of the file has are used too. ``weights`` chooses between several networks in the file: ``raw``, ``ema``,
    or a part of a path such as ``fold1``; the default are averaged (EMA) ones. ``head`` says what the weights do not
    tell about the head.

    Raises:
        FileError: E707 when the file cannot be read.
        OptionError: E204 when timm does not know ``arch``, or it does not take one of ``arch_options``.
        ModelError: E401 to E405 for a file that is refused, damaged or something else, E410 for another architecture,
            E411 for heads that do not fit the card's labels, E412 for NaN, E415 and E416 when the architecture cannot
            be determined, E450 when a whole pickled network has other layers, E417, E430, E448 and E452 when there are
            no (such) weights or several, E449 when the weights do not tell the head, E427 for a card that cannot be
            read, E444 for a pickle that takes too much memory or time.
    """
    content = read_content(path, listener=listener)
    card, layers = content.card, collect_layers(content.payload)
    require_float_layers(layers, path)
    found = _merge(collect_tensors(content.payload, path), content, path, listener)
    metadata = NO_METADATA if card else read_all_metadata(content.payload, path)
    named = arch or (card.arch if card else None)
    resolved = None if named is None else resolve_architecture(named)
    if resolved is not None and arch_options:
        settle_options(resolved, arch_options, {}, path, SILENT)
    wanted = Wanted(
        arch=resolved,
        size=card.preprocess.size if card else None,
        # without an architecture they are those of the one that is found
        arch_options=(arch_options or None) if resolved is not None else None,
    )
    for entry in metadata.unused:
        message = f"{entry.place} = {entry.value!r} makes no sense there and is not used"
        listener.notice(Notice("W452", message, path))
    claims = claims_of(metadata)
    result = search_networks(found, claims, metadata, wanted, path)
    search = result.search
    if not search.bodies:
        raise unknown_network(search.nearest, wanted, found, path)
    network = choose_network(found, search, weights, card, path, listener)
    if weights is None and network.weights == "raw" and is_schedule_free_training(content.payload):
        raise ModelError(
            "E452", f"{path.name} was saved while its schedule-free optimizer was in training mode", path=path
        )
    _say_names(network, found, path, listener)
    told = _told(layers, network, wanted, claims, arch_options or {}, metadata, head, path) if layers else None
    body = identify(network, wanted, claims, path, listener, told=None if told is None else told.arch)
    network = replace(network, body=body)
    require_no_caffe_style(metadata, body.match.architecture.body, path)
    options = settle_options(network.body.match.arch, arch_options or {}, metadata.arch_options, path, listener)
    if result.options:
        _say_options(result.options, "the names of the weights show that it averages its tokens", path, listener)
        options |= result.options
    if told is not None:
        options |= told.options
        options.pop("bn_eps", None)  # the layers have it
        more = {"the epsilon of batch normalizations": len(told.epsilons)} if told.epsilons else {}
        _say_options(dict(told.options) | more, "taken from the pickled layers", path, listener)
    request = replace(head, labels=None) if card else head
    rest, gaps = _without_gaps(network.rest, card, path)
    behind = HeadFinder(network.body, rest, request, path, margin=metadata.margin, layers=layers).find()
    if card is not None and card.ordinal:
        behind = replace(behind.of_scores(), tensors={**behind.tensors, **gaps})
    _say_head(behind, path, listener)
    if behind.layers.pool:
        options.pop("global_pool", None)
    checkpoint = _assemble(network, behind, content, told, path, listener)
    return replace(checkpoint, arch_options=options | dict(checkpoint.arch_options), metadata=metadata)


def _without_gaps(
    rest: Mapping[str, torch.Tensor], card: ModelCard | None, path: Path
) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    """Return the rest of a checkpoint without the thresholds of its ordinal axes, and these by their names.

    Raises:
        ModelError: E411 when they do not fit the axes of the card.
    """
    if card is None or not card.ordinal:
        return dict(rest), {}
    gaps = {key: tensor for key, tensor in rest.items() if key.rpartition(".")[2] == LOG_GAPS}
    wanted = sum(card.labels.shape[position] - 2 for position in ordered_positions(card.labels, card.ordinal))
    if [tuple(tensor.shape) for tensor in gaps.values()] != [(wanted,)]:
        found = ", ".join(str(tuple(tensor.shape)) for tensor in gaps.values()) or "none"
        message = f"{path.name}: the thresholds of {', '.join(card.ordinal)} are {found}, not ({wanted},)"
        raise ModelError("E411", message, path=path)
    return {key: tensor for key, tensor in rest.items() if key not in gaps}, gaps


def _told(
    layers: Mapping[str, PickledLayer],
    network: Network,
    wanted: Wanted,
    claims: tuple[Claim, ...],
    given: ArchOptions,
    metadata: Metadata,
    head: HeadRequest,
    path: Path,
) -> ToldByLayers | None:
    """Return what the layers of a whole pickled network tell; None where the network is not one of those pickled."""
    body = network.body
    if not paths_inside(layers, body.prefix):
        return None
    claimed = [name for claim in claims if (name := current_name(claim.arch)) in body.twins]
    names = (
        (wanted.arch,) if wanted.arch else tuple(dict.fromkeys((*claimed, body.usual or body.twins[0], *body.twins)))
    )
    stored = {name: one.value for name, one in metadata.arch_options.items() if name != "bn_eps"}
    base = {name: value for name, value in given.items() if name != "bn_eps"}
    both = stored | base  # what is given overrules what is stored, as in `settle_options`
    usable = both if why_not(names[0], both) is None else base
    require_no_other_layers(layers, body, tuple(network.tensors), head.leave_out, path)
    is_ordered = bool(wanted.arch or claimed or body.usual)
    return told_by_layers(layers, body, names, usable, path, is_ordered=is_ordered)


def _say_options(options: ArchOptions, why: str, path: Path, listener: Listener) -> None:
    shown = ", ".join(f"{name}={value}" for name, value in options.items())
    if shown:
        listener.notice(Notice("I418", f"{why}: {shown}", path))


def _merge(found: AllTensors, content: Content, path: Path, listener: Listener) -> AllTensors:
    require_plausible_sizes(found.tensors, content.size, path)
    scale = find_scale(content.payload, path) if any("lora_" in key for key in found.tensors) else None
    merged = merge_parts(found.tensors, path, scale=scale)
    for note in merged.notes:
        listener.notice(Notice("I418", note, path))
    return replace(found, tensors=merged.tensors)


def _assemble(
    network: Network,
    behind: FoundHead,
    content: Content,
    told: ToldByLayers | None,
    path: Path,
    listener: Listener,
) -> Checkpoint:
    body, match, card = network.body, network.body.match, content.card
    layers = behind.layers
    if card is not None and (card.head == "axes" or card.ordinal):
        _require_head(behind.outputs, card, path)
        layers = replace(layers, axes=card.labels.shape, ordered=ordered_positions(card.labels, card.ordinal))
    named = {
        name: _fitting(body.layout.shaped(name, network.tensors[key]), match.architecture.state[name])
        for name, key in body.sources.items()
        if name in match.architecture.state
    }
    own = tuple(f"{name}." for name in match.architecture.classifier)
    named = {name: tensor for name, tensor in named.items() if not (own and name.startswith(own))}
    tensors = cast_to_architecture({**named, **behind.tensors}, match.architecture, behind.tensors, path, listener)
    require_finite_weights(tensors, path)
    warn_if_untrained(tensors, match.architecture.classifier, path, listener)
    if told is not None:
        tensors = absorb_epsilons(tensors, told.epsilons)
    elif body.layout.name == "torchvision":
        tensors = absorb_epsilon(match.arch, tensors)
    classes = 2 if layers.one_logit else behind.outputs
    return Checkpoint(
        path=path,
        arch=match.arch,
        state_dict=tensors,
        num_classes=math.prod(layers.axes) if layers.axes else classes,
        sha256=content.sha256,
        weights=network.weights,
        card=card,
        in_channels=match.in_channels,
        size=match.size,
        head=layers,
        padded_for=body.layout.padded_for(match.arch),
        arch_options=dict(behind.arch_options),
    )


def _fitting(tensor: torch.Tensor, wanted: torch.Tensor) -> torch.Tensor:
    """Return a tensor in the shape of the architecture's, which may be a convolution where it is a linear layer."""
    return tensor.reshape(wanted.shape) if is_same_layer(tensor.shape, wanted.shape) else tensor


def build_model(checkpoint: Checkpoint) -> torch.nn.Module:
    """Return the network with the checkpoint's weights: ``(B, C, H, W)`` to logits, eval mode, float32, on the CPU."""
    card, head = checkpoint.card, checkpoint.head
    size = card.preprocess.size if card else checkpoint.size
    outputs = checkpoint.num_classes if not head.axes else count_rows(head.axes, head.ordered)
    model: torch.nn.Module = make_network(
        checkpoint.arch,
        outputs=1 if head.one_logit else outputs,
        size=size,
        shape=head.axes or None,
        ordered=head.ordered,
        in_channels=checkpoint.in_channels,
        arch_options=checkpoint.arch_options,
    )
    set_head(model, checkpoint.arch, head)
    model.load_state_dict(checkpoint.state_dict, strict=True)
    if head.one_logit:
        add_zero_logit(model, checkpoint.arch)
    if checkpoint.padded_for is not None:
        fix_padding(model, checkpoint.padded_for)
    if checkpoint.in_channels != 3:
        model.register_forward_pre_hook(functools.partial(_require_channels, checkpoint.in_channels))
    return model.eval()


def _require_channels(count: int, _: torch.nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
    """Refuse images of other channels with a sentence in place of torch's error.

    Raises:
        ModelError: E451.
    """
    if inputs and inputs[0].shape[1] != count:
        raise ModelError("E451", f"the network takes images of {count} channel(s), got {inputs[0].shape[1]}")


def save_checkpoint(path: Path, state_dict: Mapping[str, torch.Tensor], card: ModelCard) -> Path:
    """Write the weights as safetensors with the card in the metadata, where `open_checkpoint` finds it.

    Raises:
        FileError: E701 when the disk is full, E702 when the file cannot be written.
    """
    tensors = {
        key: tensor.detach().cpu().clone(memory_format=torch.contiguous_format) for key, tensor in state_dict.items()
    }
    return write_atomic(path, safetensors.torch.save(tensors, metadata={METADATA_KEY: card.to_json()}))


def _require_head(outputs: int, card: ModelCard, path: Path) -> None:
    wanted = count_outputs(card.labels, card.head, ordered_positions(card.labels, card.ordinal))
    if outputs != wanted:
        raise ModelError(
            "E411", f"{path.name}: the heads have {outputs} outputs, those of the card {wanted}", path=path
        )


def _say_names(network: Network, found: AllTensors, path: Path, listener: Listener) -> None:
    """Say which prefix was removed, and which names were changed."""
    body = network.body
    say_names(found, next(iter(body.sources.values())), body.prefix, path, listener)
    if body.match.in_channels != 3:
        message = f"{body.match.architecture.first_conv} takes images of {body.match.in_channels} channels"
        listener.notice(Notice("I418", message, path))
    say_layout(body.layout, body.match.arch, path, listener)


def _say_head(head: FoundHead, path: Path, listener: Listener) -> None:
    for note in head.notes:
        listener.notice(Notice("I418", note, path))
    for warning in head.warnings:
        listener.notice(Notice("W484", warning, path))
    if head.left_out:
        message = f"keys that are not part of the model were left out: {enumerate_some(list(head.left_out))}"
        listener.notice(Notice("I407", message, path))
