"""Say what a checkpoint is by its names and shapes alone, without torch: where that is as sure as with it."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, cast

from checkpoints.loading.key_names import COUNTER, is_normalization, is_training_state, prefixes_before, shared_start
from checkpoints.loading.layouts import LAYOUTS, TIMM, Layout
from checkpoints.loading.metadata import NO_METADATA, Metadata
from checkpoints.loading.metadata_files import claims_of, read_all_metadata
from checkpoints.loading.name_notices import (
    ambiguous,
    require_no_other_name,
    say_claimed,
    say_layout,
    say_names,
    say_usual,
)
from checkpoints.loading.other_networks import require_no_caffe_style
from checkpoints.loading.pickle_objects import StoredTensor
from checkpoints.loading.pickled_layers import collect_layers
from checkpoints.loading.read import Content
from checkpoints.loading.state_dicts import (
    AllTensors,
    Claim,
    collect_tensors,
    is_averaged_name,
    is_schedule_free_training,
)
from checkpoints.loading.timm_tables import TableRow, digest_of, is_known_name, row_of, table_rows, table_version
from ensemble.card import ModelCard, Weights
from ensemble.events import Listener, Notice
from ensemble.labels import LabelSpace

if TYPE_CHECKING:
    import torch


# weights in parts, and quantized ones
_IN_PARTS = re.compile(
    r".*(_orig|_mask|_[guv]|zero_point|qweight|SCB)|.*(lora_|parametrizations|_packed_params|quant_state).*"
)
# buffers whose values are settings
_SETTINGS = re.compile(r"(.*[._])?(mean|std|size|resolution|crop_pct)")
_FLOATS = {"float16", "bfloat16", "float32", "float64"}


class NeedsTorchError(Exception):
    """A checkpoint that only torch can tell, and why."""


@dataclass(frozen=True, slots=True)
class HeadOutline:
    """The head of an outlined network: one linear layer, ``name`` in the checkpoint."""

    name: str
    one_logit: bool


@dataclass(frozen=True, slots=True, eq=False)
class Outline:
    """A checkpoint by its names and shapes: what `open_checkpoint` would find in it, but for the values.

    ``twins`` are the architectures that fit, ``networks`` what the file holds, ``tensors`` and ``parameters`` the
    numbers of the network's tensors and values without the counters of batches.
    """

    path: Path
    arch: str
    num_classes: int
    sha256: str
    weights: Weights
    card: ModelCard | None
    metadata: Metadata
    head: HeadOutline
    twins: tuple[str, ...]
    networks: tuple[str, ...]
    tensors: int
    parameters: int
    in_channels: int = 3
    size: tuple[int, int] | None = None


@dataclass(frozen=True, slots=True, eq=False)
class _Whole:
    """A network that is whole by the digest of its body; ``sources`` maps timm's names to those in the checkpoint."""

    layout: Layout
    prefix: str
    row: TableRow
    sources: Mapping[str, str]

    @property
    def names(self) -> tuple[str, ...]:
        return self.layout.accepted(self.row.names)


def outline_checkpoint(
    content: Content,
    path: Path,
    *,
    arch: str | None,
    weights: str | None,
    labels: LabelSpace | None,
    listener: Listener,
) -> Outline:
    """Return what `open_checkpoint` would find in a checkpoint whose ``content`` was read without values.

    Raises:
        NeedsTorchError: when the values, or timm, are needed to tell. Nothing was said to ``listener`` then.
        ModelError: E416 for several architectures that fit, and as `collect_tensors`.
    """
    _require_tables()
    if collect_layers(content.payload):
        raise NeedsTorchError("the layers of a whole pickled network are compared with timm's")
    if is_schedule_free_training(content.payload):
        raise NeedsTorchError("the weights are those of an optimizer in training mode")
    found = collect_tensors(content.payload, path)
    tensors = cast("Mapping[str, StoredTensor]", found.tensors)
    _require_plain(tensors, found)
    card = content.card
    metadata = NO_METADATA if card else read_all_metadata(content.payload, path)
    if metadata.arch_options:
        raise NeedsTorchError(f"{path.name} names options of its architecture")
    wanted = arch or (card.arch if card else None)
    bodies = _find(tensors, wanted)
    chosen, kinds = _choose(bodies, found, weights, card)
    require_no_caffe_style(metadata, chosen.sources, path)
    layer = _head(chosen, bodies, tensors)
    name, claim = _name(chosen, wanted, claims_of(metadata), path)
    outputs = tensors[f"{layer}.weight"].shape[0]
    classes = _count_classes(outputs, card, labels)
    for entry in metadata.unused:
        message = f"{entry.place} = {entry.value!r} makes no sense there and is not used"
        listener.notice(Notice("W452", message, path))
    _say_choice(path, chosen, kinds, bodies, listener)
    say_names(found, next(iter(chosen.sources.values())), chosen.prefix, path, listener)
    say_layout(chosen.layout, name, path, listener)
    own = [key for key in chosen.sources.values() if not key.endswith(COUNTER) and not key.startswith(f"{layer}.")]
    own += [f"{layer}.weight", f"{layer}.bias"]
    if wanted is None and claim is not None:
        say_claimed(name, claim, path, listener)
    elif wanted is None:
        say_usual(name, chosen.names, len(own), path, listener)
    if layer != f"{chosen.prefix}{chosen.row.classifier[0]}":
        listener.notice(Notice("I418", f"{layer} is the head ({chosen.row.classifier[0]} in timm)", path))
    return Outline(
        path=path,
        arch=name,
        num_classes=classes,
        sha256=content.sha256,
        weights=kinds[chosen.prefix] if card is None else card.weights,
        card=card,
        metadata=metadata,
        head=HeadOutline(layer, one_logit=outputs == 1),
        twins=chosen.names,
        networks=tuple(f"{kinds[body.prefix]} weights{_at(body)}" for body in bodies),
        tensors=len(own),
        parameters=sum(tensors[key].numel() for key in own),
    )


def _require_tables() -> None:
    try:
        installed = version("timm")
    except PackageNotFoundError:
        installed = "none"
    if installed != table_version():
        raise NeedsTorchError(f"the table of names and shapes is that of timm {table_version()}, not {installed}")


def _require_plain(tensors: Mapping[str, StoredTensor], found: AllTensors) -> None:
    """Refuse what is merged, averaged or set by values."""
    for key, tensor in tensors.items():
        if _IN_PARTS.fullmatch(key) or tensor.storage is None or tensor.is_quantized:
            raise NeedsTorchError(f"{key} is not a plain weight")
        if (
            _SETTINGS.fullmatch(key.lower())
            and not key.endswith(("running_mean", "running_std"))
            and tensor.numel() < 5
        ):
            raise NeedsTorchError(f"{key} may be a setting")
    if any(is_averaged_name(item.place) for item in found.lists):
        raise NeedsTorchError("averaged weights are in a list without names")


def _find(tensors: Mapping[str, StoredTensor], wanted: str | None) -> tuple[_Whole, ...]:
    """Return the whole networks in the checkpoint, none of which shares a tensor with another."""
    known = {
        key: tensor
        for key, tensor in tensors.items()
        if not is_training_state(key, _torch(tensor)) and not is_normalization(key, _torch(tensor))
    }
    rows = table_rows() if wanted is None else tuple(row for row in (row_of(wanted),) if row is not None)
    anchors = tuple(dict.fromkeys(f"{row.first_conv}.weight" for row in rows if row.first_conv))
    by_digest = {row.digest: row for row in rows if row.first_conv and len(row.classifier) == 1}
    shapes = {(row.tops, row.classifier) for row in by_digest.values()}
    whole: dict[str, _Whole] = {}
    for layout, names in ((TIMM, anchors), *((layout, layout.anchors) for layout in LAYOUTS)):
        for prefix in dict.fromkeys(prefix for anchor in names for prefix in prefixes_before(anchor, known)):
            bodies = list(_under(known, layout, prefix, shapes, by_digest))
            if len(bodies) > 1:
                raise NeedsTorchError("the names and shapes fit several architectures in part")
            if bodies:
                whole.setdefault(prefix, bodies[0])
    used = [key for body in whole.values() for key in body.sources.values()]
    if not whole or len(set(used)) < len(used):
        raise NeedsTorchError("names and shapes alone do not tell the architecture")
    return tuple(whole.values())


def _under(
    known: Mapping[str, StoredTensor],
    layout: Layout,
    prefix: str,
    shapes: set[tuple[tuple[str, ...], tuple[str, ...]]],
    by_digest: Mapping[str, TableRow],
) -> Iterator[_Whole]:
    inside = {key.removeprefix(prefix): _torch(tensor) for key, tensor in known.items() if key.startswith(prefix)}
    renamed = layout.rename(inside)
    sources = {name: prefix + key for key, name in renamed.items()}
    if len(sources) < len(renamed):
        return
    present = {name.partition(".")[0] for name in sources}
    for tops, classifier in shapes:
        if not present.issuperset(tops):
            continue
        own, wanted = tuple(f"{name}." for name in classifier), set(tops)
        body = {
            name: key
            for name, key in sources.items()
            if name.partition(".")[0] in wanted and not name.startswith(own) and not name.endswith(COUNTER)
        }
        row = by_digest.get(digest_of({name: layout.shape(name, known[key].shape) for name, key in body.items()}))
        if row is not None and (row.tops, row.classifier) == (tops, classifier):
            if not all(known[key].dtype in _FLOATS for key in body.values()):
                raise NeedsTorchError("a weight is not of a floating-point type")
            counters = {n: k for n, k in sources.items() if n.endswith(COUNTER) and n.partition(".")[0] in wanted}
            yield _Whole(layout, prefix, row, body | counters)


def _choose(
    bodies: tuple[_Whole, ...], found: AllTensors, wanted: str | None, card: ModelCard | None
) -> tuple[_Whole, Mapping[str, Weights]]:
    """Return the network that an export takes: the only one, or the averaged one of two."""
    kinds: dict[str, Weights] = {body.prefix: "ema" if found.is_averaged(body.prefix) else "raw" for body in bodies}
    if wanted not in {None, "raw", "ema"} or len(bodies) > 2 or (card is not None and len(bodies) > 1):
        raise NeedsTorchError("the file holds several networks")
    kind = wanted or ("ema" if "ema" in kinds.values() else "raw")
    fitting = [body for body in bodies if kinds[body.prefix] == kind]
    if len(fitting) != 1 or (card is not None and wanted is not None):
        raise NeedsTorchError("the file holds several networks, or none of these")
    return fitting[0], kinds


def _head(chosen: _Whole, bodies: tuple[_Whole, ...], tensors: Mapping[str, StoredTensor]) -> str:
    """Return the name of the one linear layer beside the network that is chosen; every other tensor must be idle."""
    used = {key for body in bodies for key in body.sources.values()}
    layers: dict[str, dict[str, dict[str, StoredTensor]]] = {body.prefix: {} for body in bodies}
    for key, tensor in tensors.items():
        if key in used or is_training_state(key, _torch(tensor)) or is_normalization(key, _torch(tensor)):
            continue
        nearness = {body.prefix: shared_start(key, body.prefix) for body in bodies}
        best = max(nearness.values())
        owners = [prefix for prefix, near in nearness.items() if near == best]
        if len(owners) > 1:
            raise NeedsTorchError(f"{key} may belong to several networks")
        layer, _, leaf = key.rpartition(".")
        layers[owners[0]].setdefault(layer, {})[leaf] = tensor
    for body in bodies:
        if len(layers[body.prefix]) != 1:
            raise NeedsTorchError("there are other layers beside the network than one head")
    ((name, parts),) = layers[chosen.prefix].items()
    weight, bias = parts.get("weight"), parts.get("bias")
    if parts.keys() != {"weight", "bias"} or weight is None or bias is None or not name:
        raise NeedsTorchError("the head is no linear layer with a bias")
    flat = len(weight.shape) == 2 or (len(weight.shape) == 4 and weight.shape[2:] == (1, 1))
    fits = flat and weight.shape[1] == chosen.row.features and bias.shape == weight.shape[:1]
    if not fits or not {weight.dtype, bias.dtype} <= _FLOATS:
        raise NeedsTorchError("the head does not take the features of the network")
    return name


def _name(chosen: _Whole, wanted: str | None, claims: tuple[Claim, ...], path: Path) -> tuple[str, Claim | None]:
    """Return the architecture, as `identify` does, and the entry of the file that names it."""
    if wanted is not None:
        if wanted not in chosen.row.names or not chosen.layout.accepts(wanted):
            raise NeedsTorchError(f"{wanted} is not one of {', '.join(chosen.names)}")
        return wanted, None
    for claim in claims:
        if claim.arch in chosen.names:
            return claim.arch, claim
        if is_known_name(claim.arch) and (row_of(claim.arch) is None or claim.is_model):
            raise NeedsTorchError(f"{claim.place} names {claim.arch}")
    usual = chosen.layout.usual(chosen.names) if len(chosen.names) > 1 else chosen.names[0]
    if usual is None:
        raise ambiguous(chosen.names, path)
    require_no_other_name(usual, chosen.names, path)
    return usual, None


def _count_classes(outputs: int, card: ModelCard | None, labels: LabelSpace | None) -> int:
    if card is not None:
        if card.ordinal:
            raise NeedsTorchError("the head has thresholds of ordinal axes")
        wanted = sum(card.labels.shape) if card.head == "axes" else len(card.labels)
        if outputs != wanted:
            raise NeedsTorchError("the head does not fit the labels of the card")
        return len(card.labels)
    if labels is not None and len(labels.axes) > 1 and outputs != len(labels):
        raise NeedsTorchError("the head may have one part per axis")
    return 2 if outputs == 1 else outputs


def _say_choice(
    path: Path, chosen: _Whole, kinds: Mapping[str, Weights], bodies: tuple[_Whole, ...], listener: Listener
) -> None:
    others = [body for body in bodies if body is not chosen]
    if others:
        shown = ", ".join(f"{kinds[body.prefix]} weights{_at(body)}" for body in others)
        message = f"{kinds[chosen.prefix]} weights{_at(chosen)} are used, not the {shown}"
        listener.notice(Notice("I408", message, path))


def _at(body: _Whole) -> str:
    return f" ({body.prefix.rstrip('.')})" if body.prefix else ""


def _torch(tensor: StoredTensor) -> torch.Tensor:
    """Return a tensor without values as what asks for shape and type alone takes."""
    return cast("torch.Tensor", tensor)
