"""Cut a foreign ONNX network at the value that holds its features, and give it a linear head."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from checkpoints.probe.head_nodes import add_head
from checkpoints.probe.linear_head import LinearHead
from ensemble.adopt.check import Original
from ensemble.adopt.cut import cut_network
from ensemble.adopt.foreign import ForeignModel, ImageInput, find_last_layer
from ensemble.arrays import Floats, Pixels
from ensemble.card import METADATA_KEY, ModelCard
from ensemble.errors import ModelError, OptionError, enumerate_some
from ensemble.events import SILENT, Listener, Notice
from ensemble.kept_arrays import KeptArrays
from ensemble.runtime.machine import available_cores
from ensemble.runtime.model_file import FEATURES
from ensemble.runtime.parity import draw_pictures
from ensemble.thread_pool import thread_pool

ROW = "ens.probe.features"
ANSWERS = "ens.probe.logits"
_SAME = (
    "name another value with --output, and check --input-range, --mean and --std; a network that compares the images "
    "of a batch tells nothing about one"
)
_CHUNK = 32  # images, few enough for a large network
_NORMALIZING = {"Softmax", "LogSoftmax", "Sigmoid"}
_NUMBERS = {TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.DOUBLE}


def chunks(count: int) -> Iterator[range]:
    """Yield the images whose features are kept together."""
    yield from (range(start, min(start + _CHUNK, count)) for start in range(0, count, _CHUNK))


def name_chunk(step: str, rows: range) -> str:
    """Return the name under which the features of a chunk are kept."""
    return f"{step} {rows.start}"


@dataclass(frozen=True, slots=True, eq=False)
class FeatureNetwork:
    """A network that ends in its features, ``count`` numbers per image; ``source`` names the values."""

    model: ForeignModel
    image: ImageInput
    source: str
    count: int

    def run(
        self,
        pixels: Pixels,
        card: ModelCard,
        *,
        kept: KeptArrays | None = None,
        step: str = "features",
        listener: Listener = SILENT,
    ) -> Floats:
        """Return the features ``(N, count)`` of images ``(N, H, W, 3)`` uint8 in plain onnxruntime, an image per core.

        Those that are ``kept``, under the name of the ``step``, are not computed, and their pixels are not used.

        Raises:
            ModelError: E414 when the network fails on an image, a feature is not finite, or no feature tells one image
                from another.
        """
        original = Original(self.model, self.image, card, ROW)
        features = np.empty((len(pixels), self.count))
        with thread_pool(available_cores()) as workers:
            for rows in chunks(len(pixels)):
                known = None if kept is None else kept.get(name_chunk(step, rows))
                if known is not None:
                    features[rows.start : rows.stop] = known
                    listener.progress("features", rows.stop, len(pixels))
                else:
                    found = workers.map(original.run, (pixels[i : i + 1] for i in rows))
                    for i, row in zip(rows, found, strict=True):
                        features[i] = row[0]
                        listener.progress("features", i + 1, len(pixels))
                    if kept is not None:
                        kept.add(name_chunk(step, rows), features[rows.start : rows.stop].copy())
        if not np.isfinite(features).all():
            some = int((~np.isfinite(features)).any(axis=1).sum())
            message = f"{self.model.path.name}: the features {self.source} of {some:,} images are not finite"
            raise ModelError("E414", message, hint="name another value with --output", path=self.model.path)
        if len(features) > 1 and (features == features[0]).all():
            message = f"{self.model.path.name}: the features {self.source} of all {len(features):,} images are the same"
            raise ModelError("E414", message, hint=_SAME, path=self.model.path)
        return features

    def answers(self, pixels: Pixels, card: ModelCard) -> Floats:
        """Return the logits ``(N, classes)`` of images, of a network that `with_head` made."""
        return Original(self.model, self.image, card, ANSWERS).run(pixels)

    def with_head(self, head: LinearHead, *, center: Floats | None = None) -> ForeignModel:
        """Return the network with a linear head; its only output `ANSWERS` are the logits ``(batch, classes)``.

        ``center`` is that of `add_head`.
        """
        proto = onnx.ModelProto()
        proto.CopyFrom(self.model.proto)
        graph = proto.graph
        add_head(graph, head, ROW, ANSWERS, center=center)
        del graph.output[:]
        graph.output.append(helper.make_tensor_value_info(ANSWERS, TensorProto.FLOAT, [None, head.classes]))
        return replace(self.model, proto=proto)


def find_features(
    model: ForeignModel, image: ImageInput, card: ModelCard, names: Sequence[str], *, listener: Listener = SILENT
) -> FeatureNetwork:
    """Return the network that ends in the values ``names``, one behind the other.

    Without names it ends in its only output: before its softmax, if it has one. A map of features or a row of tokens is
    averaged over its places. A notice says what the features are.

    Raises:
        OptionError: E204 when the graph does not compute a value, or has several outputs and none is named.
        ModelError: E424 when a value is not one of numbers per image; E414 when the network fails.
    """
    sources = list(dict.fromkeys(names)) or [_only_output(model)]
    for source in sources:
        _require_value(model, source)
    proto = cut_network(model.proto, sources)
    made = [
        _FeatureValue(number, source, _shape_of(model, image, card, source)) for number, source in enumerate(sources)
    ]
    for row in made:
        row.add_to(proto.graph, image)
    count, source = sum(row.count(image) for row in made), " + ".join(sources)
    proto.graph.node.append(helper.make_node("Concat", [row.output for row in made], [ROW], axis=1))
    proto.graph.output.append(helper.make_tensor_value_info(ROW, TensorProto.FLOAT, [None, count]))
    chosen = "named" if names else "by default: --output names any other value of the graph"
    shown = ", ".join(row.words(image) for row in made)
    listener.notice(Notice("I482", f"{_are(count)} of {source} ({shown}), {chosen}", model.path))
    return FeatureNetwork(replace(model, proto=proto), image, source, count)


@dataclass(frozen=True, slots=True)
class _FeatureValue:
    """The nodes that make a row of numbers per image of one value of a network, which has a ``shape`` with a batch."""

    number: int
    source: str
    shape: tuple[int, ...]

    @property
    def output(self) -> str:
        """The value that the last node gives, ``(batch, count)``."""
        return f"ens.probe.row{self.number}"

    @property
    def _is_averaged(self) -> bool:
        return sum(size != 1 for size in self.shape[1:]) > 1

    def count(self, image: ImageInput) -> int:
        """Return how many numbers there are per image."""
        if not self._is_averaged:
            return int(np.prod(self.shape[1:]))
        order, _ = _channels_second(self.shape, image)
        return self.shape[1 if order is None else order[1]]

    def words(self, image: ImageInput) -> str:
        """Return the shape of the value, and what happens to its places."""
        what = _channels_second(self.shape, image)[1] if self._is_averaged else "as they are"
        return f"{'x'.join(map(str, self.shape[1:]))}, {what}"

    def add_to(self, graph: onnx.GraphProto, image: ImageInput) -> None:
        """Add the nodes and their constants."""
        mark = self.output
        graph.node.append(helper.make_node("Cast", [self.source], [f"{mark}.floats"], to=TensorProto.FLOAT))
        last = f"{mark}.floats"
        if self._is_averaged:
            order, _ = _channels_second(self.shape, image)
            if order is not None:
                graph.node.append(helper.make_node("Transpose", [last], [f"{mark}.moved"], perm=order))
                last = f"{mark}.moved"
            graph.node.append(helper.make_node("GlobalAveragePool", [last], [f"{mark}.means"]))
            last = f"{mark}.means"
        shape = np.array([-1, self.count(image)], dtype=np.int64)
        graph.initializer.append(numpy_helper.from_array(shape, f"{mark}.shape"))
        graph.node.append(helper.make_node("Reshape", [last, f"{mark}.shape"], [mark]))


def _are(count: int) -> str:
    return "the feature is the only number" if count == 1 else f"the features are the {count:,} numbers"


def _only_output(model: ForeignModel) -> str:
    names = [str(value.name) for value in model.proto.graph.output]
    if FEATURES in names and any(entry.key == METADATA_KEY for entry in model.proto.metadata_props):
        return FEATURES  # of a model of ens: what goes into its head
    if len(names) != 1:
        raise OptionError(
            "E204",
            f"{model.path.name} gives {enumerate_some(names) or 'nothing'}; which one has the features is not clear",
            hint="name it with --output; any value inside the network will do",
        )
    last = find_last_layer(model, names[0])
    return last.before if last.kind in _NORMALIZING else names[0]


def _require_value(model: ForeignModel, name: str) -> None:
    made = [output for node in model.proto.graph.node for output in node.output if output]
    if name not in made:
        outputs = [str(value.name) for value in model.proto.graph.output]
        inside = [value for value in made if value not in outputs][-5:]
        listed = enumerate_some([*outputs, *reversed(inside)])
        message = f"{model.path.name} computes no value {name!r}; from its end, it has {listed}"
        raise OptionError("E204", message, hint="name one of them with --output")


def _shape_of(model: ForeignModel, image: ImageInput, card: ModelCard, name: str) -> tuple[int, ...]:
    """Run the network on a test image; return the shape of a value, with the batch in front."""
    proto = cut_network(model.proto, [name])
    proto.graph.output.append(onnx.ValueInfoProto(name=name))
    found = Original(replace(model, proto=proto), image, card, name).values(draw_pictures(card.preprocess.size)[0])
    kind = helper.np_dtype_to_tensor_dtype(found.dtype)
    batch = image.batch or 1
    if kind not in _NUMBERS or found.ndim < 1 or found.ndim > 5 or found.shape[0] != batch or found.size == 0:
        raise ModelError(
            "E424",
            f"{model.path.name} gives {name} as {found.dtype} of shape {found.shape}, not numbers for each image",
            hint="name another value with --output",
            path=model.path,
        )
    return tuple(int(side) for side in found.shape)


def _channels_second(shape: Sequence[int], image: ImageInput) -> tuple[list[int] | None, str]:
    """Return the permutation that puts the channels second, None where they are, and words for the notice."""
    last = [0, len(shape) - 1, *range(1, len(shape) - 1)]
    if len(shape) == 3:
        return last, f"averaged over {shape[1]} tokens"
    if shape[1] == shape[2] != shape[3]:
        is_last = True
    elif shape[2] == shape[3] != shape[1]:
        is_last = False
    else:
        is_last = image.layout == "nhwc"
    places = int(np.prod(shape[1:-1] if is_last else shape[2:]))
    return (last if is_last else None), f"averaged over {places} places, channels {'last' if is_last else 'first'}"
