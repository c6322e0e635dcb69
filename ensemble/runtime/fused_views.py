"""Fuse test-time augmentation into the graph: one copy of a batch to the device gives the logits of every view.

A view that only moves pixels (a flip, a rotation, a shift) becomes one ``Gather`` over a table of source pixels. A view
that computes pixels (a scale, an enlarged crop) is made on the host, so that its pixels are the same on every device,
and enters through a second input, `HOST_VIEWS`.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from ensemble.arrays import Pixels
from ensemble.images.views import View
from ensemble.runtime.model_file import INPUT, LOGITS
from ensemble.runtime.subgraphs import rename_reads, with_inner
from ensemble.runtime.symmetric_pads import split_asymmetric_pads

HOST_VIEWS = "ens.views_made"
POOL, ROWS, SOURCES = "ens.pool", "ens.rows", "ens.sources"  # the inputs of `fuse_pool`
_OURS = "ens."


def split_views(views: Sequence[View], size: tuple[int, int]) -> tuple[tuple[View, ...], tuple[View, ...]]:
    """Split views of ``size`` (height, width) images into those the device can gather and those the host must make."""
    exact = [view for view in views if pixel_sources(view, size) is not None]
    return tuple(exact), tuple(view for view in views if view not in exact)


def stack_views(views: Sequence[View], pixels: Pixels) -> Pixels:
    """Return the input `HOST_VIEWS`, ``(B, views, H, W, 3)`` uint8, for a batch ``(B, H, W, 3)``."""
    return np.stack([view.apply(pixels) for view in views], axis=1)


@functools.lru_cache(64)
def pixel_sources(view: View, size: tuple[int, int]) -> NDArray[np.int64] | None:
    """Return the flat index of the source of each pixel ``(H, W)`` of a view; None if it computes new values.

    The view is applied to an image whose three channels hold each pixel's own index; noise then confirms the table.
    """
    height, width = size
    numbers = np.arange(height * width, dtype="<u4").reshape(height, width)
    marked = np.ascontiguousarray(numbers[..., np.newaxis]).view(np.uint8)[..., :3]
    seen = view.apply(np.ascontiguousarray(marked)[np.newaxis])[0].astype(np.int64)
    table = seen[..., 0] + (seen[..., 1] << 8) + (seen[..., 2] << 16)
    noise = np.random.default_rng(0).integers(0, 256, (2, height, width, 3), dtype=np.uint8)
    if table.max(initial=0) >= height * width:
        return None
    moved = noise.reshape(2, -1, 3)[:, table]
    return table if np.array_equal(moved, view.apply(noise)) else None


def fuse_views(
    data: bytes, views: Sequence[View], *, rows: int, size: tuple[int, int], for_cudnn: bool = False
) -> bytes:
    """Return the model with a fixed batch of ``rows`` images and all views inside.

    ``logits`` become ``(rows * views, C)``, all views of the first image before those of the second, in the order of
    `split_views`: the device's views, then the host's. ``image`` stays ``(rows, H, W, 3)`` uint8; the input
    `HOST_VIEWS` is added if the host makes any. ``for_cudnn`` splits asymmetric padding, see `split_asymmetric_pads`.
    """
    model = onnx.ModelProto()
    model.ParseFromString(data)
    graph = model.graph
    (image,) = (value for value in graph.input if value.name == INPUT)
    image.type.tensor_type.shape.dim[0].dim_value = rows
    cut, made = split_views(views, size)
    # onnxruntime infers the shapes again, now that all are fixed
    del graph.value_info[:]
    (classes,) = (value.type.tensor_type.shape.dim[1].dim_value for value in graph.output if value.name == LOGITS)
    del graph.output[:]
    graph.output.append(helper.make_tensor_value_info(LOGITS, TensorProto.FLOAT, [rows * len(views), classes]))
    if [view.name for view in views] != ["identity"]:
        as_float = not for_cudnn and _may_be_float(graph)
        _insert(graph, _front(graph, cut, made, rows=rows, size=size, as_float=as_float))
    elif not for_cudnn:
        _cast(graph)
    if for_cudnn:
        split_asymmetric_pads(model)
    return bytes(model.SerializeToString())


def fuse_pool(data: bytes, *, pool: int, rows: int, size: tuple[int, int]) -> bytes:
    """Return the model with other inputs: the images of a chunk, the rows to take of them, and one view.

    `POOL` is ``(pool, H, W, 3)`` uint8, `ROWS` ``(rows,)`` and `SOURCES` ``(H * W,)`` int64, the source of each pixel
    of the view (see `pixel_sources`). ``logits`` become ``(rows, C)``. The padding of convolutions is split.
    """
    model = onnx.ModelProto()
    model.ParseFromString(data)
    graph = model.graph
    height, width = size
    del graph.value_info[:]
    (classes,) = (value.type.tensor_type.shape.dim[1].dim_value for value in graph.output if value.name == LOGITS)
    del graph.output[:]
    graph.output.append(helper.make_tensor_value_info(LOGITS, TensorProto.FLOAT, [rows, classes]))
    del graph.input[:]
    graph.input.extend(
        [
            helper.make_tensor_value_info(POOL, TensorProto.UINT8, [pool, height, width, 3]),
            helper.make_tensor_value_info(ROWS, TensorProto.INT64, [rows]),
            helper.make_tensor_value_info(SOURCES, TensorProto.INT64, [height * width]),
        ]
    )
    _constant(graph, "flat_shape", np.array([rows, height * width, 3]))
    _constant(graph, "seen_shape", np.array([rows, height, width, 3]))
    front = [
        helper.make_node("Gather", [POOL, ROWS], [_OURS + "taken"], axis=0),
        helper.make_node("Reshape", [_OURS + "taken", _OURS + "flat_shape"], [_OURS + "flat"]),
        helper.make_node("Gather", [_OURS + "flat", SOURCES], [_OURS + "cut"], axis=1),
        helper.make_node("Reshape", [_OURS + "cut", _OURS + "seen_shape"], [_OURS + "seen"]),
    ]
    _insert(graph, front)
    split_asymmetric_pads(model)
    return bytes(model.SerializeToString())


def fit_for_cudnn(data: bytes) -> bytes:
    """Return the model with symmetric padding in every convolution; the model itself if it has no other."""
    model = onnx.ModelProto()
    model.ParseFromString(data)
    return bytes(model.SerializeToString()) if split_asymmetric_pads(model) else data


def cast_first(data: bytes) -> bytes:
    """Return the model with a Cast directly behind its image: TensorRT accepts uint8 nowhere else."""
    model = onnx.ModelProto()
    model.ParseFromString(data)
    del model.graph.value_info[:]
    _cast(model.graph)
    return bytes(model.SerializeToString())


def _cast(graph: onnx.GraphProto) -> None:
    if _may_be_float(graph):
        _insert(graph, [helper.make_node("Cast", [INPUT], [_OURS + "seen"], to=TensorProto.FLOAT)])


def _front(
    graph: onnx.GraphProto,
    cut: Sequence[View],
    made: Sequence[View],
    *,
    rows: int,
    size: tuple[int, int],
    as_float: bool,
) -> list[onnx.NodeProto]:
    """Return the nodes from the inputs to ``ens.seen``, ``(rows * views, H, W, 3)``.

    With ``as_float`` the pixels are cast first, as in `cast_first`; else they are moved as bytes, a quarter of the
    traffic, and the network casts them.
    """
    height, width = size
    nodes: list[onnx.NodeProto] = []
    parts = []
    if cut:
        _constant(graph, "sources", np.stack([_table(view, (height, width)) for view in cut]))
        _constant(graph, "flat_shape", np.array([rows, height * width, 3]))
        parts.append(_OURS + "cut")
        nodes += [
            *([helper.make_node("Cast", [INPUT], [_OURS + "cast"], to=TensorProto.FLOAT)] if as_float else []),
            helper.make_node(
                "Reshape", [_OURS + "cast" if as_float else INPUT, _OURS + "flat_shape"], [_OURS + "flat"]
            ),
            helper.make_node("Gather", [_OURS + "flat", _OURS + "sources"], [_OURS + "cut"], axis=1),
        ]
    if made:
        shape = [rows, len(made), height, width, 3]
        graph.input.append(helper.make_tensor_value_info(HOST_VIEWS, TensorProto.UINT8, shape))
        parts.append(_OURS + "made" if as_float else HOST_VIEWS)
        if as_float:
            nodes.append(helper.make_node("Cast", [HOST_VIEWS], [_OURS + "made"], to=TensorProto.FLOAT))
    _constant(graph, "seen_shape", np.array([-1, height, width, 3]))
    if len(parts) > 1:
        nodes.append(helper.make_node("Concat", parts, [_OURS + "all"], axis=1))
    whole = _OURS + "all" if len(parts) > 1 else parts[0]
    return [*nodes, helper.make_node("Reshape", [whole, _OURS + "seen_shape"], [_OURS + "seen"])]


def _table(view: View, size: tuple[int, int]) -> NDArray[np.int64]:
    table = pixel_sources(view, size)
    assert table is not None
    return table


def _constant(graph: onnx.GraphProto, name: str, values: NDArray[np.int64]) -> None:
    graph.initializer.append(numpy_helper.from_array(values.astype(np.int64), _OURS + name))


def _may_be_float(graph: onnx.GraphProto) -> bool:
    """Return True if the network itself casts its image and only moves pixels before: floats then change nothing."""
    names = {INPUT}
    for node in with_inner(graph.node):
        if names.isdisjoint(node.input):
            continue
        if node.op_type in {"Transpose", "Identity"} or (node.op_type == "Gather" and node.input[0] in names):
            names |= set(node.output)
        elif node.op_type != "Cast":
            return False
    return names.isdisjoint(output.name for output in graph.output)


def _insert(graph: onnx.GraphProto, front: Sequence[onnx.NodeProto]) -> None:
    """Prepend the nodes, and connect every consumer of the image to their output."""
    for node in graph.node:
        rename_reads(node, {INPUT: _OURS + "seen"})
    rest = list(graph.node)
    del graph.node[:]
    graph.node.extend([*front, *rest])
