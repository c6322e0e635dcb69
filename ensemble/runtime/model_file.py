"""Read an .onnx file and refuse anything but a single, self-describing model, before onnxruntime sees it."""

from __future__ import annotations

import hashlib
import stat
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import onnx
from google.protobuf.message import DecodeError, Message

from ensemble.card import METADATA_KEY, ModelCard
from ensemble.errors import FileError, ModelError, OptionError, cut_text, enumerate_some
from ensemble.runtime.constant_sizes import find_oversized
from ensemble.runtime.protobuf_limits import MAX_BYTES, TooLarge, WireError, measure

INPUT, LOGITS, FEATURES = "image", "logits", "features"
# built into every onnxruntime; any other domain needs a library of its own
_DOMAINS = {"", "ai.onnx", "ai.onnx.ml", "com.microsoft"}
# an operator of com.microsoft that refers to a file, or holds a binary compiled for some device
_COMPILED = "EPContext"


@dataclass(frozen=True, slots=True, eq=False)
class ModelFile:
    """A checked model: ``data`` is the file's content, ``outputs`` the names of its outputs."""

    path: Path
    card: ModelCard
    data: bytes
    sha256: str
    outputs: tuple[str, ...]


def find_models(paths: Iterable[Path]) -> list[Path]:
    """Return the models at ``paths``, where a folder stands for the .onnx files in it.

    Raises:
        OptionError: E204 when a folder holds none.
    """
    models: list[Path] = []
    for path in paths:
        found = sorted(path.glob("*.onnx")) if path.is_dir() else [path]
        if not found:
            raise OptionError("E204", f"{path} holds no .onnx files", hint="name the models that ens export wrote")
        models += found
    return models


def read_model(path: Path) -> ModelFile:
    """Read and check one model: uint8 ``image`` ``(batch, H, W, 3)`` in, float32 ``logits`` out, a card inside.

    Raises:
        FileError: E707 when the file cannot be read.
        ModelError: E420 not ONNX, E421 too new, E422 data outside the file, E423 no card, E424 other inputs or
            outputs, E425 custom operators, E427 an invalid card, E429 too large.
    """
    return check_model(_read_bytes(path), path)


def check_model(data: bytes, path: Path) -> ModelFile:
    """Check the content of a model's file, as `read_model`; ``path`` is for messages.

    Raises:
        ModelError: as `read_model`.
    """
    model = _parse(data, path)
    _refuse_external_data(model, path)
    _refuse_unknown_operators(model, path)
    refuse_oversized(model, path)
    card = _read_card(model, path)
    _require_contract(model, card, path)
    outputs = tuple(output.name for output in model.graph.output)
    return ModelFile(path, card, data, hashlib.sha256(data).hexdigest(), outputs)


def _read_bytes(path: Path) -> bytes:
    try:
        status = path.stat()
        if not stat.S_ISREG(status.st_mode):  # before opening it: a FIFO would block forever
            raise FileError("E707", f"{path} is not a regular file", path=path)
        if status.st_size > MAX_BYTES:
            raise ModelError("E429", f"{path.name} has {status.st_size:,} bytes, more than {MAX_BYTES:,}", path=path)
        return path.read_bytes()
    except OSError as err:
        raise FileError("E707", f"{path} cannot be read: {err.strerror}", path=path) from err


def _parse(data: bytes, path: Path) -> onnx.ModelProto:
    model = onnx.ModelProto()
    try:
        measure(data, model.DESCRIPTOR)
        model.ParseFromString(data)
    except TooLarge as err:
        raise ModelError("E429", f"{path.name} holds {err}", path=path) from err
    except (WireError, DecodeError) as err:
        start = data[:16].decode("ascii", "backslashreplace")
        message = f"{path.name} is damaged, or not an ONNX file (starts with {start!r})"
        raise ModelError("E420", message, path=path) from err
    if not model.graph.node:
        raise ModelError("E420", f"{path.name} contains no network ({len(data)} bytes)", path=path)
    return model


def _refuse_external_data(model: onnx.ModelProto, path: Path) -> None:
    for part in messages_in(model):
        if isinstance(part, onnx.TensorProto):
            if part.data_location == onnx.TensorProto.EXTERNAL or part.external_data:
                place = {entry.key: entry.value for entry in part.external_data}.get("location", "?")
                raise ModelError("E422", f"{path.name} refers to data in another file, {place!r}", path=path)
        elif isinstance(part, onnx.NodeProto) and part.op_type == _COMPILED:
            raise ModelError("E422", f"{path.name} contains {_COMPILED}, which may refer to another file", path=path)


def messages_in(message: Message) -> Iterator[Message]:
    """Iterate over every message in a model: tensors, nodes, attributes, subgraphs, functions."""
    yield message
    if isinstance(message, onnx.TensorProto):
        return
    for descriptor, value in message.ListFields():
        if descriptor.type == descriptor.TYPE_MESSAGE:
            for child in [value] if isinstance(value, Message) else value:
                yield from messages_in(child)


def _refuse_unknown_operators(model: onnx.ModelProto, path: Path) -> None:
    # thirty functions that each call the next one twice expand to a billion nodes inside onnxruntime
    own = [f"{function.domain}.{function.name}" for function in model.functions]
    if own:
        raise ModelError("E425", f"{path.name} defines operators of its own: {enumerate_some(own)}", path=path)
    needed = {opset.domain for opset in model.opset_import}
    needed |= {part.domain for part in messages_in(model.graph) if isinstance(part, onnx.NodeProto)}
    if foreign := sorted(needed - _DOMAINS):
        raise ModelError("E425", f"{path.name} needs custom operators from {enumerate_some(foreign)}", path=path)
    if not model.opset_import:
        raise ModelError("E420", f"{path.name} names no opset, so that its operators have no meaning", path=path)
    newest = onnx.defs.onnx_opset_version()
    opset = max((o.version for o in model.opset_import if o.domain in {"", "ai.onnx"}), default=0)
    if opset > newest or model.ir_version > onnx.IR_VERSION:
        raise ModelError(
            "E421",
            f"{path.name} has opset {opset} and IR {model.ir_version}; up to {newest} and {onnx.IR_VERSION} are known",
            path=path,
        )


def refuse_oversized(model: onnx.ModelProto, path: Path) -> None:
    """Refuse a model with a layer whose constant inputs make a tensor of gigabytes.

    Raises:
        ModelError: E429.
    """
    found = find_oversized(model)
    if found is not None:
        layer = f"{found.operator} {cut_text(found.name, 60)}"
        raise ModelError("E429", f"{path.name}: {layer} makes {found.numbers:,} numbers", path=path)


def find_card(model: onnx.ModelProto, path: Path) -> ModelCard | None:
    """Return the card in the metadata of a model, or None where it has none; ``path`` is for messages.

    Raises:
        ModelError: E427 when it has several cards, or one that cannot be read.
    """
    found = [entry.value for entry in model.metadata_props if entry.key == METADATA_KEY]
    if len(found) > 1:  # readers differ in which of them counts
        raise ModelError(
            "E427", f"{path.name} has {len(found)} cards: {METADATA_KEY} is in its metadata twice", path=path
        )
    try:
        return ModelCard.from_json(found[0]) if found else None
    except ModelError as err:
        raise ModelError(err.code, f"{path.name}: {err.message}", path=path) from err


def _read_card(model: onnx.ModelProto, path: Path) -> ModelCard:
    found = find_card(model, path)
    if found is not None:
        return found
    if any(entry.key == "ens.fused" for entry in model.metadata_props):
        hint = "ens predict, bench, explain and page take it alone; others take the models that it was fused from"
        raise ModelError("E423", f"{path.name} is a fused ensemble, not one model", hint=hint, path=path)
    raise ModelError("E423", f"{path.name} has no {METADATA_KEY} in its metadata", path=path)


def _require_contract(model: onnx.ModelProto, card: ModelCard, path: Path) -> None:
    height, width, channels = card.preprocess.shape
    weights = {tensor.name for tensor in model.graph.initializer}
    inputs = {value.name: _signature(value) for value in model.graph.input if value.name not in weights}
    outputs = {value.name: _signature(value) for value in model.graph.output}
    float32 = onnx.TensorProto.FLOAT
    taken = float32 if card.preprocess.kept else onnx.TensorProto.UINT8
    if inputs != {INPUT: (taken, (None, height, width, channels))}:
        raise ModelError(
            "E424",
            f"{path.name} takes {_show(inputs)}; its card says {INPUT} {card.preprocess.dtype} "
            f"(batch, {height}, {width}, {channels})",
            path=path,
        )
    if outputs.get(LOGITS) != (float32, (None, len(card.labels))):
        raise ModelError(
            "E424",
            f"{path.name} gives {_show(outputs)}; its card says {LOGITS} float (batch, {len(card.labels)})",
            path=path,
        )


def _signature(value: onnx.ValueInfoProto) -> tuple[int, tuple[int | None, ...]]:
    tensor = value.type.tensor_type
    return tensor.elem_type, tuple(d.dim_value if d.HasField("dim_value") else None for d in tensor.shape.dim)


def _show(signatures: dict[str, tuple[int, tuple[int | None, ...]]]) -> str:
    shown = []
    for name, (kind, shape) in signatures.items():
        sides = ", ".join("batch" if side is None else str(side) for side in shape)
        known = kind in onnx.TensorProto.DataType.values()
        shown.append(f"{name} {onnx.TensorProto.DataType.Name(kind).lower() if known else kind} ({sides})")
    return "; ".join(shown) or "nothing"
