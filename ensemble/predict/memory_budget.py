"""Memory budget: the memory of this machine, that of an image in progress, and the number of images in progress."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import onnx
from onnx import shape_inference

from ensemble.errors import DeviceError, OptionError
from ensemble.images.decode import count_pixels
from ensemble.images.listing import Listing
from ensemble.images.resize import plain_preprocess
from ensemble.runtime.device import Device
from ensemble.runtime.model_file import ModelFile
from ensemble.runtime.subgraphs import names_read, subgraphs, with_inner

_UNITS = {"K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}
_PROGRAM = 200 * 2**20  # Python, onnxruntime and the list of images
_MODEL = 4  # times its file: the file, its weights, and those weights packed for the processor
_ARENA = 2.25  # onnxruntime keeps blocks of unplanned runs and of other batches; measured 1.7 to 2.2
_PIXEL = 8  # bytes: Pillow's own four, and as much again while it decodes, turns or converts
_LOOKED_AT = 16  # of the largest files


@dataclass(frozen=True, slots=True)
class Need:
    """Bytes: ``fixed`` in any case, ``photo`` per worker, ``pixels`` and ``layers`` per image of a batch.

    ``pixels`` are all prepared sizes and one view of the largest; ``layers`` what the models hold while they compute.
    """

    fixed: int
    photo: int
    pixels: int
    layers: int


@dataclass(frozen=True, slots=True)
class Bounds:
    """The work that fits in memory: ``ahead`` batches of ``batch`` images, decoded by ``workers``."""

    workers: int
    batch: int
    ahead: int

    def __str__(self) -> str:
        return f"{self.workers} workers and batches of {self.batch}"


def parse_memory(text: str) -> int:
    """Parse bytes from ``4G`` or ``512M`` (powers of 1024).

    Raises:
        OptionError: E204 when the text has another form or is not above 0.
    """
    found = re.fullmatch(r"([0-9]+(?:\.[0-9]+)?)([KMGT])(?:i?B)?", text.strip(), re.IGNORECASE)
    if found is None or float(found[1]) <= 0:
        raise OptionError("E204", f"--memory takes an amount such as 4G or 512M, got {text!r}")
    return int(float(found[1]) * _UNITS[found[2].upper()])


def need_of(models: Sequence[ModelFile], listing: Listing, device: Device) -> Need:
    """Return the memory that the models need for the listed images, the largest files of which are inspected."""
    sizes = [
        math.prod(p.shape) * np.dtype(p.dtype).itemsize
        for p in {plain_preprocess(model.card.preprocess) for model in models}
    ]
    largest = sorted(range(len(listing)), key=lambda i: listing.sizes[i])[-_LOOKED_AT:]
    photo = max(_PIXEL * count_pixels(listing.place(i)) + listing.sizes[i] for i in largest)
    layers = [layers_of(model.data) for model in models]
    return Need(
        fixed=_PROGRAM + _MODEL * sum(len(model.data) for model in models),
        photo=photo,
        pixels=sum(sizes) + max(sizes),
        # on the CPU the sessions share an arena, and a worker runs one after the other; OpenVINO's keep what they had
        layers=int(_ARENA * (max(layers) if device.kind == "cpu" else sum(layers))),
    )


def layers_of(data: bytes) -> int:
    """Return the peak memory of a network's activations in bytes per image of a batch.

    Counted in the order of the nodes: a tensor is held from the node that makes it to the last one that reads it. What
    the branches of an If hold comes on top of that, as if all images of a batch took the larger one.
    """
    model = onnx.ModelProto.FromString(data)
    for graph in _graphs(model.graph):
        for weights in graph.initializer:
            if len(weights.raw_data) > 4096:  # only small ones are shapes
                weights.ClearField("raw_data")
    whole = shape_inference.infer_shapes(model).graph
    size = {
        value.name: _bytes_an_image(value)
        for graph in _graphs(whole)
        for value in (*graph.value_info, *graph.input, *graph.output)
        if value.type.tensor_type.HasField("shape")
    }
    return _most_held(whole, size)


def _graphs(graph: onnx.GraphProto) -> Iterator[onnx.GraphProto]:
    """Yield a graph and those inside its nodes."""
    yield graph
    for node in with_inner(graph.node):
        yield from subgraphs(node)


def _most_held(graph: onnx.GraphProto, size: dict[str, int]) -> int:
    """Return the peak of a graph whose tensors have these sizes, to which those not known are added."""
    read_by = [set(names_read(node)) for node in graph.node]
    last = {name: i for i, names in enumerate(read_by) for name in names}
    made = {value.name for value in graph.input}
    held = most = sum(size.get(name, 0) for name in made)
    for i, node in enumerate(graph.node):
        most = max([most, *(held + _most_held(inner, size) for inner in subgraphs(node))])
        for name in node.output:
            # where inference gives up, a layer is taken to be as large as what it reads
            size.setdefault(name, max((size.get(before, 0) for before in node.input), default=0))
            held += size[name]
        made.update(node.output)
        most = max(most, held)
        held -= sum(size.get(name, 0) for name in read_by[i] & made if last[name] == i)
    return most


def _bytes_an_image(value: onnx.ValueInfoProto) -> int:
    """Return 0 for a tensor that does not grow with the batch."""
    kind = value.type.tensor_type
    size = onnx.helper.tensor_dtype_to_np_dtype(kind.elem_type).itemsize if kind.elem_type else 4
    grows = False
    for side in kind.shape.dim:
        grows |= not side.HasField("dim_value")
        size *= side.dim_value if side.HasField("dim_value") else 1
    return size if grows else 0


def fit_memory(need: Need, memory: int, *, workers: int, batch: int, on_gpu: bool, what: str = "one image") -> Bounds:
    """Return as many workers and as large a batch as fit in ``memory`` bytes, at most those that are given.

    On the CPU a worker has one batch in hand, its pixels and layers. On a GPU ``ahead`` batches of pixels are held, and
    the one that is on the device. ``what`` is the least that a worker can have in hand, for the message.

    Raises:
        DeviceError: E603 when one image in one worker is too much.
    """
    left = memory - need.fixed
    image = need.pixels if on_gpu else need.pixels + need.layers
    least = need.photo + image * (3 if on_gpu else 1)
    if left < least:
        raise _too_little(memory, least, need, what)
    if not on_gpu:
        workers = min(workers, left // least)
        return Bounds(workers, min(batch, (left // workers - need.photo) // image), 4 * workers)
    # the device waits for batches, not for pictures: rather fewer workers than a smaller batch
    while workers > 1 and workers * need.photo + (workers + 3) * batch * image > left:
        workers -= 1
    while batch > 1 and workers * need.photo + 3 * batch * image > left:
        batch //= 2
    return Bounds(workers, batch, min(workers + 2, (left - workers * need.photo) // (batch * image) - 1))


def fit_chunks(need: Need, memory: int, *, rows: int, workers: int, batch: int, on_gpu: bool) -> Bounds:
    """Fit the memory as `fit_memory`, with the pixels of ``rows`` images in memory, and on the CPU the activations.

    On a GPU all workers decode the same chunk, while the one before it is computed if there is memory for both.

    Raises:
        DeviceError: E603 when one such chunk in one worker is too much.
    """
    what = f"a chunk of {rows} images"
    if on_gpu:
        left, chunk = memory - need.fixed, rows * need.pixels
        if left < need.photo + 2 * chunk:
            raise _too_little(memory, need.photo + 2 * chunk, need, what)
        workers = max(1, min(workers, (left - 2 * chunk) // max(1, need.photo)))
        return Bounds(workers, batch, 2 if workers * need.photo + 3 * chunk <= left else 1)
    held = replace(need, photo=need.photo + rows * need.pixels)
    return fit_memory(held, memory, workers=workers, batch=batch, on_gpu=False, what=what)


def _too_little(memory: int, least: int, need: Need, what: str) -> DeviceError:
    wanted = f"{_megabytes(least)} beside {_megabytes(need.fixed)} for the program and its models"
    return DeviceError("E603", f"{_megabytes(memory)} of memory are too little: {what} needs {wanted}")


def _megabytes(size: int) -> str:
    return f"{max(1, round(size / 2**20)):,} MB"
