"""Read a classifier in ONNX that ens did not write, and find its image input and its answers."""

from __future__ import annotations

import ast
import hashlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import onnx
import onnx.inliner
from google.protobuf.message import DecodeError

from ensemble.adopt.dlib_network import convert_dlib, is_dlib_network
from ensemble.errors import FileError, ModelError, OptionError, cut_text, enumerate_some
from ensemble.runtime.model_file import refuse_oversized
from ensemble.runtime.protobuf_limits import MAX_BYTES, MAX_NODES, TooLarge, WireError, measure
from ensemble.runtime.zero_padding import keep_padded_zeros
from ensemble.text.json_text import parse_json
from ensemble.text.plain_numbers import to_int

PixelLayout = Literal["nchw", "nhwc"]
Output = Literal["logits", "probabilities"]

_TYPES = onnx.TensorProto
IMAGE_TYPES = {_TYPES.FLOAT, _TYPES.FLOAT16, _TYPES.DOUBLE, _TYPES.UINT8}
_NOT_ONNX = "name a file that a program saved as ONNX; a checkpoint of PyTorch is exported with ens export"
_LABEL_KEYS = (
    "names",
    "classes",
    "class_names",
    "labels",
    "id2label",
    "label_names",
    "categories",
    "classlabels_strings",
)
# after these, an output is not squeezed into 0..1
_LINEAR = {"Gemm", "MatMul", "Conv", "Add", "GlobalAveragePool", "ReduceMean", "QLinearAdd", "DequantizeLinear"}
_FEWEST_PIXELS = 17  # fewer are channels
_MOST_CALLS = 40  # functions inside one another
_SHAPE_ONLY = {"Identity", "Flatten", "Reshape", "Squeeze", "Unsqueeze", "Cast", "Dropout"}
_PROVEN: Mapping[str, Output] = {"Softmax": "probabilities", "Sigmoid": "probabilities", "LogSoftmax": "logits"}


@dataclass(frozen=True, slots=True)
class ImageInput:
    """The image input: ``size`` is ``(height, width)`` with None for a free side, ``batch`` None if it is free."""

    name: str
    type: int
    layout: PixelLayout
    channels: int
    size: tuple[int | None, int | None]
    batch: int | None


@dataclass(frozen=True, slots=True, eq=False)
class ForeignModel:
    """A model that another program wrote, whole in memory: its weights, even those from files beside it.

    ``zero_paddings`` are the paddings that `keep_padded_zeros` has changed.
    """

    path: Path
    proto: onnx.ModelProto
    sha256: str
    zero_paddings: int = 0

    @property
    def opset(self) -> int:
        """The version of ONNX's own operators."""
        return max((found.version for found in self.proto.opset_import if found.domain in {"", "ai.onnx"}), default=1)

    @property
    def inputs(self) -> list[onnx.ValueInfoProto]:
        """The inputs that are not weights; before IR 4 weights are inputs too."""
        weights = {tensor.name for tensor in self.proto.graph.initializer}
        return [value for value in self.proto.graph.input if value.name not in weights]


def read_foreign(path: Path) -> ForeignModel:
    """Read an ONNX file, and the files beside it that hold its weights; or a network of dlib, which becomes ONNX.

    Raises:
        FileError: E707 when the file cannot be read.
        ModelError: E420 when it is not ONNX, E422 when a file with its weights is missing or elsewhere, E429 when it
            is too large for one file; E470 when a network of dlib is damaged or not known.
    """
    if not path.is_file():
        raise FileError("E707", f"{path} is not a file; name the .onnx file", path=path)
    try:
        data = path.read_bytes()
        sha256, proto = hashlib.sha256(data).hexdigest(), onnx.ModelProto()
        if is_dlib_network(data):
            return ForeignModel(path, convert_dlib(data, path.name), sha256)
        measure(data, proto.DESCRIPTOR)
        proto.ParseFromString(data)
    except OSError as err:
        raise FileError("E707", f"{path} cannot be read: {err.strerror or err}", path=path) from err
    except TooLarge as err:
        raise ModelError("E429", f"{path.name} holds {err}", path=path) from err
    except (WireError, DecodeError) as err:
        raise ModelError("E420", f"{path.name} is damaged, or not an ONNX file", hint=_NOT_ONNX, path=path) from err
    if not proto.graph.node:
        raise ModelError("E420", f"{path.name} contains no network", hint=_NOT_ONNX, path=path)
    try:
        onnx.load_external_data_for_model(proto, str(path.parent))
    except Exception as err:  # the checks of onnx raise several kinds
        message = (
            f"{path.name} keeps weights in other files, which cannot be read: {cut_text(str(err).splitlines()[0], 200)}"
        )
        raise ModelError("E422", message, hint="put the files beside it, under their names", path=path) from err
    if proto.ByteSize() > MAX_BYTES:
        raise ModelError("E429", f"{path.name} is too large for one file with its weights inside", path=path)
    if not proto.opset_import:
        raise ModelError("E420", f"{path.name} names no opset, so that its operators have no meaning", path=path)
    if proto.functions:
        if count_expanded(proto) > MAX_NODES:
            raise ModelError(
                "E429", f"{path.name} has functions that expand to more than {MAX_NODES:,} nodes", path=path
            )
        proto = onnx.inliner.inline_local_functions(proto)
    refuse_oversized(proto, path)
    _leave_out_unread_inputs(proto.graph)
    return ForeignModel(path, proto, sha256, keep_padded_zeros(proto))


def _leave_out_unread_inputs(graph: onnx.GraphProto) -> None:
    """Remove the inputs that nothing reads: quantizers leave those of the weights they replaced."""
    read = set(names_read(graph))
    kept = [value for value in graph.input if value.name in read]
    if len(kept) < len(graph.input):
        copies = [onnx.ValueInfoProto.FromString(value.SerializeToString()) for value in kept]
        del graph.input[:]
        graph.input.extend(copies)


def names_read(graph: onnx.GraphProto) -> Iterator[str]:
    """Yield the names that the nodes and outputs of a graph read, those inside its subgraphs too."""
    for node in graph.node:
        yield from node.input
        for attribute in node.attribute:
            for inner in (*attribute.graphs, *([attribute.g] if attribute.HasField("g") else [])):
                yield from names_read(inner)
    yield from (value.name for value in graph.output)


def count_expanded(proto: onnx.ModelProto) -> int:
    """Return how many nodes a model has once its functions are put in place of their calls, counted to a limit.

    Functions that call each other in a circle count as more than the limit.
    """
    bodies = {(function.domain, function.name): function.node for function in proto.functions}
    counts: dict[tuple[str, str], int] = {}
    open_calls: set[tuple[str, str]] = set()

    def count(nodes: Iterable[onnx.NodeProto], depth: int = 0) -> int:
        total = 0
        for node in nodes:
            key = (node.domain, node.op_type)
            if key in bodies and key not in counts:
                if key in open_calls or depth > _MOST_CALLS:
                    return MAX_NODES + 1
                open_calls.add(key)
                counts[key] = count(bodies[key], depth + 1)
                open_calls.discard(key)
            total += counts.get(key, 1)
            total += sum(count(attribute.g.node, depth + 1) for attribute in node.attribute if attribute.HasField("g"))
            if total > MAX_NODES:
                return MAX_NODES + 1
        return total

    return count(proto.graph.node)


def find_input(model: ForeignModel, layout: PixelLayout | None) -> ImageInput:
    """Return the image input; ``layout`` decides where the shape does not.

    Raises:
        ModelError: E424 when there is no single input for images.
        OptionError: E204 when the shape leaves the layout open, or differs from ``layout``.
    """
    inputs = model.inputs
    images = [value for value in inputs if _is_image(value)]
    if len(images) != 1 or len(inputs) != 1:
        listed = enumerate_some([f"{value.name} {_shown(value)}" for value in inputs]) or "nothing"
        rows = [value for value in inputs if len(value.type.tensor_type.shape.dim) in {2, 3}]
        hint = "save the network with its image as the only input"
        if len(inputs) == 1 and rows:
            hint = "it takes rows, or an image without a batch: save the network with a batch of images as its input"
        message = (
            f"{model.path.name} takes {listed}; expected one input of images, (batch, 3, H, W) or (batch, H, W, 3)"
        )
        raise ModelError("E424", message, hint=hint, path=model.path)
    (value,) = images
    batch, *sides = [dim.dim_value if dim.dim_value > 0 else None for dim in value.type.tensor_type.shape.dim]
    fits: list[PixelLayout] = []
    if sides[0] in {1, 3}:
        fits.append("nchw")
    if sides[2] in {1, 3}:
        fits.append("nhwc")
    other = sides[0] if layout == "nchw" else sides[2] if layout == "nhwc" else min(sides[0] or 99, sides[2] or 99)
    if not fits and other is not None and other < _FEWEST_PIXELS:
        message = f"{model.path.name} takes {_shown(value)}: {other} channels, which are neither gray nor RGB"
        hint = "only networks of one or three channels become members"
        raise ModelError("E424", message, hint=hint, path=model.path)
    if len(fits) != 1 and layout is None:
        raise OptionError(
            "E204",
            f"{model.path.name} takes {_shown(value)}, which does not tell where the channels are",
            hint="say it with --layout nchw or --layout nhwc",
        )
    chosen = layout or fits[0]
    if fits and chosen not in fits:
        raise OptionError("E204", f"{model.path.name} takes {_shown(value)}, which is not {chosen}")
    channels, size = (sides[0], (sides[1], sides[2])) if chosen == "nchw" else (sides[2], (sides[0], sides[1]))
    return ImageInput(value.name, value.type.tensor_type.elem_type, chosen, channels or 3, size, batch)


def find_output(model: ForeignModel, name: str | None) -> str:
    """Return the name of the output with the answers.

    Raises:
        OptionError: E204 when ``name`` is no output, or is needed to choose among several.
    """
    outputs = [value for value in model.proto.graph.output if value.type.HasField("tensor_type")]
    names = [str(value.name) for value in outputs]
    if name is not None:
        if name not in names:
            raise OptionError("E204", f"{model.path.name} has no output {name!r}, only {enumerate_some(names)}")
        return name
    # an output of more than two sides longer than 1 is a map of features or a mask
    answers = [str(value.name) for value in outputs if _may_be_answer(value)]
    if len(answers) == 1:
        return answers[0]
    listed = enumerate_some([f"{value.name} {_shown(value)}" for value in outputs]) or "no tensor"
    raise OptionError(
        "E204",
        f"{model.path.name} gives {listed}; which one has the answers is not clear",
        hint="name it with --output-name; outputs of one head per axis are joined where --labels has these axes",
    )


@dataclass(frozen=True, slots=True)
class LastLayer:
    """The last layer of an output: its type, the value that goes into it, and what it proves the output to be."""

    kind: str
    before: str
    proves: Output | None


def find_last_layer(model: ForeignModel, name: str) -> LastLayer:
    """Return the last layer that does more than change the shape of an output."""
    makers = {made: node for node in model.proto.graph.node for made in node.output}
    node = makers.get(name)
    while node is not None and node.op_type in _SHAPE_ONLY and node.input:
        node = makers.get(node.input[0])
    if node is None or not node.input:
        return LastLayer("unknown", "", None)
    kind = str(node.op_type)
    return LastLayer(kind, str(node.input[0]), "logits" if kind in _LINEAR else _PROVEN.get(kind))


def class_names(model: ForeignModel) -> tuple[str, tuple[str, ...]] | None:
    """Return the class names in the file's metadata with the key they are under; None if there are none."""
    entries = {entry.key: entry.value for entry in model.proto.metadata_props}
    for key in _LABEL_KEYS:
        names = _parse_names(entries.get(key, ""))
        if len(names) > 1:
            return key, names
    return None


def _parse_names(text: str) -> tuple[str, ...]:
    value: object = None
    for parse in (parse_json, ast.literal_eval):
        try:
            value = parse(text)
            break
        except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
            continue
    if isinstance(value, dict):
        try:
            ordered = sorted(value.items(), key=lambda entry: to_int(str(entry[0])))
        except (ValueError, TypeError):
            # class_to_idx: names to numbers
            numbers = list(value.values())
            if not all(type(number) is int for number in numbers):
                return ()
            return tuple(str(name) for name in sorted(value, key=value.__getitem__))
        return tuple(str(name) for _, name in ordered)
    if isinstance(value, list | tuple):
        return tuple(str(name) for name in value)
    return tuple(part.strip() for part in text.replace("\n", ",").split(",") if part.strip())


def _is_image(value: onnx.ValueInfoProto) -> bool:
    tensor = value.type.tensor_type
    return tensor.elem_type in IMAGE_TYPES and len(tensor.shape.dim) == 4


def _may_be_answer(value: onnx.ValueInfoProto) -> bool:
    tensor = value.type.tensor_type
    if tensor.elem_type not in IMAGE_TYPES - {_TYPES.UINT8}:
        return False
    if not tensor.HasField("shape"):
        return True
    dims = tensor.shape.dim
    return 1 <= len(dims) <= 4 and all(dim.dim_value == 1 for dim in dims[2:])


def _shown(value: onnx.ValueInfoProto) -> str:
    if not value.type.HasField("tensor_type"):
        return f"({value.type.WhichOneof('value')})"
    tensor = value.type.tensor_type
    sides = ", ".join(str(dim.dim_value) if dim.dim_value > 0 else dim.dim_param or "?" for dim in tensor.shape.dim)
    known = tensor.elem_type in _TYPES.DataType.values()
    return f"{_TYPES.DataType.Name(tensor.elem_type).lower() if known else tensor.elem_type} ({sides})"
