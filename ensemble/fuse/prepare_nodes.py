"""Nodes that prepare images as `ensemble.images.face_crop.prepare_image` does: crop the face, resize, cut or pad.

Sizes and places are computed in float64 and rounded as Python rounds them, so they are those of the program. Resizing
itself is onnxruntime's antialiased ``Resize`` of 8-bit pixels, which is Pillow's but for the precision of its weights:
at most about one value of 100 differs, by one level.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from onnx import TensorProto, helper

from ensemble.card import FaceCrop, Preprocess
from ensemble.errors import DeployError
from ensemble.fuse.node_list import NodeList, Tensor
from ensemble.images.decode import MAX_ASPECT

_MODES = {"bilinear": "linear", "bicubic": "cubic"}


@dataclass(frozen=True, slots=True)
class Sides:
    """The tensors ``(1,)`` int64 of a height and a width."""

    height: Tensor
    width: Tensor


def require_resizable(preprocess: Preprocess, *, member: str) -> None:
    """Check that a graph can resize as the program does.

    Raises:
        DeployError: E804 when it cannot.
    """
    if preprocess.face is not None and preprocess.face.align is not None:
        raise DeployError("E804", f"{member} aligns faces by their points, which is not written as a graph")
    if preprocess.resizer != "pillow" or preprocess.interpolation not in {"nearest", *_MODES}:
        raise DeployError(
            "E804",
            f"{member} is resized by {preprocess.resizer} with {preprocess.interpolation}, which is not written as a "
            "graph; pillow's nearest, bilinear and bicubic are",
        )


def prepare_nodes(nodes: NodeList, images: Tensor, boxes: Tensor, preprocess: Preprocess) -> Tensor:
    """Add what turns ``images`` ``(N, H, W, 3)`` uint8 into a model's input ``(N, *preprocess.size, 3)`` uint8.

    ``boxes`` ``(N, 4)`` float32 are read by models of face crops only, whose images are prepared one by one.
    """
    if preprocess.face is None:
        return _fit(nodes, images, preprocess)
    height, width = preprocess.size
    body = nodes.inside()
    image, box = body.name("image"), body.name("box")
    square = _cut_square(body, body.add("Unsqueeze", image, body.constant([0])), box, preprocess.face)
    fitted = _fit(body, square, preprocess)
    row = body.add("Squeeze", fitted, body.constant([0]))
    graph = helper.make_graph(
        body.nodes,
        "one_image",
        [
            helper.make_tensor_value_info(image, TensorProto.UINT8, ["H", "W", 3]),
            helper.make_tensor_value_info(box, TensorProto.FLOAT, [4]),
        ],
        [helper.make_tensor_value_info(row, TensorProto.UINT8, [height, width, 3])],
    )
    return nodes.add("Scan", images, boxes, body=graph, num_scan_inputs=2)


def _cut_square(nodes: NodeList, image: Tensor, box: Tensor, crop: FaceCrop) -> Tensor:
    """Cut the square of `ensemble.images.face_crop.face_square` out of one image ``(1, H, W, 3)``."""
    sides = _sides(nodes, image)
    height, width = nodes.double(sides.height), nodes.double(sides.width)
    shorter = nodes.add("Min", height, width)
    left, top, right, bottom = nodes.add_split(nodes.double(box), 4, axis=0)
    across, down = nodes.add("Sub", right, left), nodes.add("Sub", bottom, top)
    # a box that is not a number, or has no area, is not a face
    larger = nodes.add("Min", across, down)
    found = nodes.add("Greater", larger, nodes.constant(np.zeros(1)))
    enlarged = nodes.add("Mul", nodes.add("Max", across, down), nodes.constant(np.array([1 + 2 * crop.margin])))
    x, y, wanted = (
        nodes.add("Where", found, of_box, nodes.add("Mul", of_image, nodes.constant(np.array([float(share)]))))
        for of_box, of_image, share in zip(
            (_middle(nodes, left, right), _middle(nodes, top, bottom), enlarged),
            (width, height, shorter),
            crop.fallback,
            strict=True,
        )
    )
    side = nodes.add("Max", nodes.add("Round", nodes.add("Min", wanted, shorter)), nodes.constant(np.ones(1)))
    half = nodes.add("Mul", side, nodes.constant(np.array([0.5])))
    start_x, start_y = (
        nodes.add(
            "Min",
            nodes.add("Max", nodes.add("Round", nodes.add("Sub", place, half)), nodes.constant(np.zeros(1))),
            nodes.add("Sub", whole, side),
        )
        for place, whole in ((x, width), (y, height))
    )
    ends = [nodes.whole(nodes.add("Add", start, side)) for start in (start_y, start_x)]
    return _slice(nodes, image, [nodes.whole(start_y), nodes.whole(start_x)], ends)


def _middle(nodes: NodeList, low: Tensor, high: Tensor) -> Tensor:
    return nodes.add("Mul", nodes.add("Add", low, high), nodes.constant(np.array([0.5])))


def _fit(nodes: NodeList, images: Tensor, preprocess: Preprocess) -> Tensor:
    """Add what `ensemble.images.resize.resize_image` does."""
    if preprocess.resize == "center":
        images = _without_far_ends(nodes, images, preprocess)
    inner = _inner_sides(nodes, _sides(nodes, images), preprocess)
    resized = _resize(nodes, images, inner, preprocess)
    if preprocess.resize != "squash" or preprocess.crop_pct != 1:
        resized = _cut_or_pad(nodes, resized, inner, preprocess)
    return nodes.add("Reshape", resized, nodes.constant([-1, *preprocess.size, 3]))


def _sides(nodes: NodeList, images: Tensor) -> Sides:
    shape = nodes.add("Shape", images)
    return Sides(*(nodes.add("Gather", shape, nodes.constant([axis])) for axis in (1, 2)))


def _slice(nodes: NodeList, images: Tensor, starts: list[Tensor], ends: list[Tensor]) -> Tensor:
    """Cut rows and columns out of images ``(N, H, W, 3)``."""
    start, end = nodes.add("Concat", *starts, axis=0), nodes.add("Concat", *ends, axis=0)
    return nodes.add("Slice", images, start, end, nodes.constant([1, 2]))


def _without_far_ends(nodes: NodeList, images: Tensor, preprocess: Preprocess) -> Tensor:
    sides = _sides(nodes, images)
    aspect = nodes.constant(np.array([preprocess.size[0] / preprocess.size[1]]))
    starts, ends = [], []
    for side, other, scale in ((sides.height, sides.width, "Mul"), (sides.width, sides.height, "Div")):
        most = nodes.double(nodes.add("Mul", other, nodes.constant([MAX_ASPECT])))
        kept = nodes.whole(nodes.add("Ceil", nodes.add(scale, most, aspect)))
        beyond = nodes.add("Max", nodes.add("Sub", side, kept), nodes.constant([0]))
        start = nodes.add("Div", beyond, nodes.constant([2]))
        starts.append(start)
        ends.append(nodes.add("Sub", side, start))
    return _slice(nodes, images, starts, ends)


def _inner_sides(nodes: NodeList, sides: Sides, preprocess: Preprocess) -> Sides:
    """Add what `ensemble.images.resize._inner_size` computes."""
    target = [math.floor(side / preprocess.crop_pct) for side in preprocess.size]
    if preprocess.resize == "squash":
        return Sides(nodes.constant([target[0]]), nodes.constant([target[1]]))
    height, width = nodes.double(sides.height), nodes.double(sides.width)
    goal = [nodes.constant(np.array([float(side)])) for side in target]
    if preprocess.resize == "center" and target[0] == target[1]:
        short, long = nodes.add("Min", height, width), nodes.add("Max", height, width)
        longer = nodes.whole(nodes.add("Floor", nodes.add("Div", nodes.add("Mul", goal[0], long), short)))
        upright = nodes.add("Greater", sides.height, sides.width)
        shorter = nodes.constant([target[0]])
        return Sides(nodes.add("Where", upright, longer, shorter), nodes.add("Where", upright, shorter, longer))
    ratios = [nodes.add("Div", side, of) for side, of in zip((height, width), goal, strict=True)]
    ratio = nodes.add("Min" if preprocess.resize == "center" else "Max", *ratios)
    rounded = [nodes.whole(nodes.add("Round", nodes.add("Div", side, ratio))) for side in (height, width)]
    return Sides(*(nodes.add("Max", side, nodes.constant([1])) for side in rounded))


def _resize(nodes: NodeList, images: Tensor, inner: Sides, preprocess: Preprocess) -> Tensor:
    sides = _sides(nodes, images)
    if preprocess.interpolation == "nearest":
        rows = nodes.add("Gather", images, _nearest(nodes, sides.height, inner.height), axis=1)
        return nodes.add("Gather", rows, _nearest(nodes, sides.width, inner.width), axis=2)
    count, channels = nodes.add("Gather", nodes.add("Shape", images), nodes.constant([0])), nodes.constant([3])
    # Pillow 13 resizes rows or columns first, whichever leaves less, with 8 bits in between
    shrunk = nodes.add("Sub", sides.height, inner.height)
    narrowed = nodes.add("Mul", nodes.add("Sub", sides.width, inner.width), nodes.constant([2]))
    down_first = nodes.add(
        "And",
        nodes.add("Greater", shrunk, nodes.constant([0])),
        nodes.add("Greater", shrunk, narrowed),
    )
    height = nodes.add("Where", down_first, inner.height, sides.height)
    width = nodes.add("Where", down_first, sides.width, inner.width)
    settings: dict[str, Any] = {
        "mode": _MODES[preprocess.interpolation],
        "antialias": 1,
        "exclude_outside": 1,
        "coordinate_transformation_mode": "half_pixel",
        "cubic_coeff_a": -0.5,
    }
    for size in ((height, width), (inner.height, inner.width)):
        shape = nodes.add("Concat", count, *size, channels, axis=0)
        images = nodes.add("Resize", images, "", "", shape, **settings)
    return images


def _nearest(nodes: NodeList, old: Tensor, new: Tensor) -> Tensor:
    """Return which old row or column each new one is, as Pillow's affine transform finds it.

    It adds up the distance between two of them, whose rounding decides where a sum is nearly whole.
    """
    scale = nodes.add("Div", nodes.double(old), nodes.double(new))
    zero, one = (nodes.constant(np.array(value)) for value in (0, 1))
    places = nodes.double(nodes.add("Range", zero, nodes.add("Squeeze", new, nodes.constant([0])), one))
    first = nodes.add("Equal", places, nodes.constant(np.array([0.0])))
    steps = nodes.add("Where", first, nodes.add("Mul", scale, nodes.constant(np.array([0.5]))), scale)
    found = nodes.whole(nodes.add("Floor", nodes.add("CumSum", steps, nodes.constant(np.array(0)))))
    return nodes.add("Min", found, nodes.add("Sub", old, nodes.constant([1])))


def _cut_or_pad(nodes: NodeList, images: Tensor, inner: Sides, preprocess: Preprocess) -> Tensor:
    """Cut or pad images of ``inner`` size around their middle, as `ensemble.images.resize._offset` places it."""
    zero, half = nodes.constant([0]), nodes.constant(np.array([0.5]))
    starts, ends, before, after = [], [], [], []
    for side, outer in zip((inner.height, inner.width), preprocess.size, strict=True):
        size = nodes.constant([outer])
        beyond = nodes.add("Max", nodes.add("Sub", side, size), zero)
        start = nodes.whole(nodes.add("Round", nodes.add("Mul", nodes.double(beyond), half)))
        kept = nodes.add("Min", side, size)
        lacking = nodes.add("Sub", size, kept)
        margin = nodes.add("Div", lacking, nodes.constant([2]))
        starts.append(start)
        ends.append(nodes.add("Add", start, kept))
        before.append(margin)
        after.append(nodes.add("Sub", lacking, margin))
    images = _slice(nodes, images, starts, ends)
    if preprocess.resize != "pad":
        return images
    pads = nodes.add("Concat", zero, *before, zero, zero, *after, zero, axis=0)
    planes = nodes.add_split(images, 3, axis=3)
    padded = [
        nodes.add("Pad", plane, pads, nodes.constant(np.array(value, np.uint8)))
        for plane, value in zip(planes, preprocess.fill, strict=True)
    ]
    return nodes.add("Concat", *padded, axis=3)
