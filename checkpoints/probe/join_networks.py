"""Join several networks of features to one: each takes its own part of a common image, and their features are a row.

The common image is the whole one, or the smallest upright square around the face that has the squares of all networks.
Each network's part is cut and resized in the graph, by the triangle filter of Pillow's bilinear resize.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper, version_converter

from checkpoints.probe.feature_network import ROW, FeatureNetwork
from checkpoints.probe.open_network import OpenNetwork
from ensemble.adopt.foreign import ForeignModel, ImageInput
from ensemble.adopt.make_card import AdoptOptions
from ensemble.arrays import Floats
from ensemble.card import Align, FaceCrop, ModelCard
from ensemble.errors import ModelError, OptionError, cut_text
from ensemble.events import SILENT, Listener, Notice
from ensemble.images.face_alignment import square_in_template
from ensemble.images.face_boxes import Face
from ensemble.images.face_crop import fallback_crop

_IMAGE = "ens.join.image"
_MOST_PIXELS = 2048


@dataclass(frozen=True, slots=True)
class _OwnSquare:
    """The part of the common image that a network takes, as shares of its sides: left, top, and both sides."""

    left: float
    top: float
    side: float

    @property
    def is_whole(self) -> bool:
        return self == _OwnSquare(0.0, 0.0, 1.0)


def join_networks(
    opened: Sequence[OpenNetwork], faces: Sequence[Face] | None = None, *, listener: Listener = SILENT
) -> OpenNetwork:
    """Return the network that gives the features of all, one behind the other; a single one is returned as it is.

    ``faces`` are those of the boxes file, where the networks take face crops.

    Raises:
        OptionError: E204 when the networks cannot share an image: they are resized in different ways, some align faces
            and others do not, margins differ without alignment, one takes grey images, or fixed batches differ.
        ModelError: E424 when onnx cannot convert a graph to the opset of another.
    """
    if len(opened) == 1:
        return opened[0]
    _require_common(opened)
    crop, parts = _common_crop(opened, faces)
    cards = [one.card for one in opened]
    sides = [(_at_least(cards, parts, axis)) for axis in range(2)]
    size = (sides[0], sides[1])
    if max(size) > _MOST_PIXELS:
        message = f"the networks together need images of {size[0]} x {size[1]} px; {_MOST_PIXELS} are allowed"
        raise OptionError("E204", message, hint="give margins that are nearer to each other")
    batch = _common_batch(opened)
    proto = _merge(opened, parts, size, batch)
    sha256 = hashlib.sha256(proto.SerializeToString(deterministic=True)).hexdigest()
    path = Path(" + ".join(dict.fromkeys(one.network.model.path.name for one in opened)))
    image = ImageInput(_IMAGE, TensorProto.FLOAT, "nchw", 3, size, batch)
    source = " + ".join(f"{one.network.model.path.name}:{one.network.source}" for one in opened)
    network = FeatureNetwork(ForeignModel(path, proto, sha256), image, source, sum(one.network.count for one in opened))
    card = replace(
        cards[0],
        preprocess=replace(cards[0].preprocess, size=size, channels="rgb", face=crop),
        mean=(0.0, 0.0, 0.0),
        std=(1 / 255, 1 / 255, 1 / 255),
        checkpoint_sha256=sha256,
        precision=next((card.precision for card in cards if card.precision != "fp32"), cards[0].precision),
    )
    listener.notice(Notice("I386", _say(opened, parts, size, crop)))
    return OpenNetwork(network, AdoptOptions(), card)


def _require_common(opened: Sequence[OpenNetwork]) -> None:
    first = opened[0].card.preprocess
    for one in opened:
        name, found = one.network.model.path.name, one.card.preprocess
        for field in ("resize", "interpolation", "resizer", "crop_pct", *(["fill"] if first.resize == "pad" else [])):
            if getattr(found, field) != getattr(first, field):
                message = f"{name} and {opened[0].network.model.path.name} differ in {field.replace('_', '-')}"
                raise OptionError("E204", message, hint="networks that are joined take the same image: give one value")
        if first.resize != "squash" and found.size[0] * first.size[1] != found.size[1] * first.size[0]:
            raise OptionError(
                "E204", f"{name} takes another aspect ratio", hint="join such networks with --resize squash"
            )
        if one.network.image.channels != 3 or found.channels not in {"rgb", "bgr"}:
            hint = "probe it alone: a member of its own, which ens blend combines with the others"
            raise OptionError("E204", f"{name} takes grey images, and cannot be joined", hint=hint)


def _common_crop(
    opened: Sequence[OpenNetwork], faces: Sequence[Face] | None
) -> tuple[FaceCrop | None, list[_OwnSquare]]:
    """Return the crop of the common image, and the part of it that each network takes."""
    crops = [one.card.preprocess.face for one in opened]
    first = crops[0]
    if all(crop == first for crop in crops):
        return first, [_OwnSquare(0.0, 0.0, 1.0)] * len(crops)
    given = [crop for crop in crops if crop is not None]
    aligned = [crop for crop in given if crop.align is not None]
    if len(given) < len(crops) or (aligned and len(aligned) < len(crops)):
        message = "some of the networks take aligned faces, and others the whole image or the box"
        raise OptionError("E204", message, hint="give --align for all networks that are joined")
    if not aligned:
        message = "the networks have different margins: a crop without --align is shifted at the border of its image"
        raise OptionError("E204", message, hint="give --align, or one margin")
    align: Align = "arcface" if any(crop.align == "arcface" for crop in aligned) else "dlib"
    squares = [square_in_template(crop) for crop in aligned]
    x, y, side = square_in_template(FaceCrop(0.0, align=align))
    half = max(max(abs(a - x), abs(b - y)) + own / 2 for a, b, own in squares)
    margin = round(max(0.0, (2 * half / side - 1) / 2), 6)
    crop = fallback_crop(faces, margin, align) if faces else FaceCrop(margin, align=align)
    side *= 1 + 2 * margin
    parts = []
    for a, b, own in squares:
        left, top = (a - own / 2 - (x - side / 2)) / side, (b - own / 2 - (y - side / 2)) / side
        # a rounded margin may leave a part 1e-7 outside
        parts.append(_OwnSquare(round(max(0.0, left), 6), round(max(0.0, top), 6), round(min(1.0, own / side), 6)))
    return crop, parts


def _at_least(cards: Sequence[ModelCard], parts: Sequence[_OwnSquare], axis: int) -> int:
    """Return the side of the common image, px, at which no network's part is enlarged."""
    return max(
        math.ceil(round(card.preprocess.size[axis] / part.side, 3)) for card, part in zip(cards, parts, strict=True)
    )


def _common_batch(opened: Sequence[OpenNetwork]) -> int | None:
    fixed = {one.network.image.batch for one in opened} - {None}
    if len(fixed) > 1:
        listed = ", ".join(f"{one.network.model.path.name} {one.network.image.batch or 'any'}" for one in opened)
        message = f"the networks take batches of different sizes: {listed}"
        raise OptionError("E204", message, hint="save them with a free batch, or one batch size")
    return next(iter(fixed), None)


def _merge(
    opened: Sequence[OpenNetwork], parts: Sequence[_OwnSquare], size: tuple[int, int], batch: int | None
) -> onnx.ModelProto:
    """Return one graph; weights of a file that is given twice are in it once."""
    opset = max(one.network.model.opset for one in opened)
    protos = [_with_opset(one.network.model, opset) for one in opened]
    shape = [batch or "batch", 3, *size]
    inputs = [helper.make_tensor_value_info(_IMAGE, TensorProto.FLOAT, shape)]
    outputs = [helper.make_tensor_value_info(ROW, TensorProto.FLOAT, [None, sum(one.network.count for one in opened)])]
    graph = helper.make_graph([], "joined", inputs, outputs)
    files: dict[tuple[str, str], int] = {}
    rows = []
    for number, (one, part, proto) in enumerate(zip(opened, parts, protos, strict=True)):
        key = (one.network.model.sha256, one.network.source)
        is_new = key not in files
        file = files.setdefault(key, len(files))
        rename = _renaming(proto.graph, f"ens.file{file}.", f"ens.net{number}.")
        _take_part(graph, one, part, size, rename(one.network.image.name))
        copy = onnx.GraphProto()
        copy.CopyFrom(proto.graph)
        _rename(copy, rename)
        graph.node.extend(copy.node)
        if is_new:
            graph.initializer.extend(copy.initializer)
            graph.sparse_initializer.extend(copy.sparse_initializer)
        rows.append(rename(ROW))
    graph.node.append(helper.make_node("Concat", rows, [ROW], axis=1))
    domains = {found.domain: found.version for proto in protos for found in proto.opset_import}
    opsets = [
        helper.make_opsetid(domain, version)
        for domain, version in (domains | {"": opset}).items()
        if domain != "ai.onnx"
    ]
    model = helper.make_model(graph, opset_imports=opsets)
    model.ir_version = max(proto.ir_version for proto in protos)
    return model


def _with_opset(model: ForeignModel, opset: int) -> onnx.ModelProto:
    if model.opset == opset:
        return model.proto
    try:
        return version_converter.convert_version(model.proto, opset)
    except Exception as err:  # the converter raises RuntimeError and its own kinds
        last = cut_text((str(err).strip().splitlines() or [type(err).__name__])[-1], 200)
        message = f"{model.path.name} of opset {model.opset} cannot be converted to the other networks' {opset}: {last}"
        hint = "save it with the opset of the other networks"
        raise ModelError("E424", message, hint=hint, path=model.path) from err


def _renaming(graph: onnx.GraphProto, of_weights: str, of_values: str) -> Callable[[str], str]:
    weights = {tensor.name for tensor in graph.initializer}
    weights |= {tensor.values.name for tensor in graph.sparse_initializer}

    def rename(name: str) -> str:
        if not name:
            return name  # an optional input that is left out
        return (of_weights if name in weights else of_values) + name

    return rename


def _rename(graph: onnx.GraphProto, rename: Callable[[str], str]) -> None:
    """Rename all values of a graph and of those inside its nodes, in place."""
    for node in graph.node:
        node.input[:] = [rename(name) for name in node.input]
        node.output[:] = [rename(name) for name in node.output]
        if node.name:
            node.name = rename(node.name)
        for attribute in node.attribute:
            for inner in (*attribute.graphs, *([attribute.g] if attribute.HasField("g") else [])):
                _rename(inner, rename)
    for value in (*graph.input, *graph.output, *graph.initializer):
        value.name = rename(value.name)
    for sparse in graph.sparse_initializer:
        sparse.values.name = rename(sparse.values.name)
    del graph.value_info[:]


def _take_part(graph: onnx.GraphProto, one: OpenNetwork, part: _OwnSquare, size: tuple[int, int], name: str) -> None:
    """Add the nodes from the common image, RGB in 0..255, to the input ``name`` of a network."""
    card, image = one.card, one.network.image
    wanted = card.preprocess.size
    last = _IMAGE

    def add(kind: str, inputs: list[str], word: str, **attributes: Any) -> str:
        graph.node.append(helper.make_node(kind, inputs, [f"{name}.{word}"], **attributes))
        return f"{name}.{word}"

    def constant(values: Floats, word: str) -> str:
        graph.initializer.append(numpy_helper.from_array(values.astype(np.float32), f"{name}.{word}"))
        return f"{name}.{word}"

    if not (part.is_whole and size == wanted):
        down = constant(resize_matrix(size[0], part.top, part.side, wanted[0]), "down")
        across = constant(resize_matrix(size[1], part.left, part.side, wanted[1]).T, "across")
        last = add("MatMul", [add("MatMul", [down, last], "rows"), across], "part")
    if card.preprocess.channels == "bgr":
        order = numpy_helper.from_array(np.array([2, 1, 0], dtype=np.int64), f"{name}.order")
        graph.initializer.append(order)
        last = add("Gather", [last, order.name], "bgr", axis=1)
    if image.type == TensorProto.UINT8:
        last = add("Floor", [add("Add", [last, constant(np.array(0.5), "half")], "above")], "whole")
    else:
        mean, std = (np.array(values).reshape(1, 3, 1, 1) for values in (card.mean, card.std))
        scaled = add("Mul", [last, constant(1 / (255 * std), "scale")], "scaled")
        last = add("Add", [scaled, constant(-mean / std, "shift")], "normalized")
    if image.layout == "nhwc":
        last = add("Transpose", [last], "nhwc", perm=[0, 2, 3, 1])
    graph.node.append(helper.make_node("Cast", [last], [name], to=image.type))


def resize_matrix(old: int, start: float, share: float, new: int) -> Floats:
    """Return the matrix ``(new, old)`` that resizes the part ``start`` to ``start + share`` of a side of ``old`` px.

    It is the triangle filter of Pillow's ``resize`` with ``BILINEAR`` and a ``box``: as wide as a pixel of the result.
    """
    scale = share * old / new
    centers = start * old + (np.arange(new) + 0.5) * scale
    distances = np.abs(np.arange(old) + 0.5 - centers[:, np.newaxis]) / max(1.0, scale)
    weights = np.maximum(0.0, 1 - distances)
    found: Floats = weights / weights.sum(axis=1, keepdims=True)
    return found


def _say(
    opened: Sequence[OpenNetwork], parts: Sequence[_OwnSquare], size: tuple[int, int], crop: FaceCrop | None
) -> str:
    image = "the whole image"
    if crop is not None:
        image = f"the face aligned to {crop.align} with margin {crop.margin:g}" if crop.align else "the face"
    shares = ", ".join(
        f"{one.network.model.path.name} takes {part.side:.0%} of its side at {one.card.preprocess.size[0]} px"
        for one, part in zip(opened, parts, strict=True)
    )
    return f"{len(opened)} networks share {image} at {size[0]} x {size[1]} px: {shares}"
