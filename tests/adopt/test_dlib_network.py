"""Networks that dlib serialized: as ONNX they answer as dlib's layers do, and what is not known is named."""

from __future__ import annotations

import contextlib
import math
import struct
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
from numpy.typing import NDArray

from checkpoints.probe.open_network import open_network
from ensemble.adopt.adopt import adopt
from ensemble.adopt.dlib_network import convert_dlib, is_dlib_network
from ensemble.adopt.foreign import read_foreign
from ensemble.adopt.make_card import AdoptOptions
from ensemble.errors import EnsError, ModelError
from ensemble.events import Recorder
from ensemble.labels import LabelSpace
from ensemble.runtime.model_file import read_model
from ensemble.runtime.session import start_session

SIDE = 24
MEANS = (122.782, 117.001, 104.298)
OPTIONS = AdoptOptions(resize="squash", interpolation="bilinear", resizer="pillow", labels=LabelSpace.flat(5))
Array = NDArray[Any]


def whole(value: int) -> bytes:
    """A whole number as dlib's serialize.h packs it: sign and length, then the bytes that are needed, lowest first."""
    size = max(1, (abs(value).bit_length() + 7) // 8)
    return bytes([size | (0x80 if value < 0 else 0)]) + abs(value).to_bytes(size, "little")


def real(value: float) -> bytes:
    """A fraction as dlib's float_details: mantissa and power of two."""
    mantissa, power = math.frexp(value)
    return whole(int(mantissa * 2**24)) + whole(power - 24)


def text(value: str) -> bytes:
    return whole(len(value)) + value.encode()


def tensor(values: Array) -> bytes:
    sides = [values.size, *([1] * 3)] if values.size else [0] * 4
    return whole(2) + b"".join(map(whole, sides)) + values.astype("<f4").tobytes()


def part(*sides: int) -> bytes:
    return whole(1) + b"".join(map(whole, (*sides, *([1] * (4 - len(sides))))))


class Layer:
    """One layer: what its details are in the file, and what it does, in plain loops over ``(C, H, W)``."""

    version = 2

    def details(self) -> bytes:
        raise NotImplementedError

    def run(self, value: Array, tags: list[Array]) -> Array:
        raise NotImplementedError


class Tag(Layer):
    version = 1

    def run(self, value: Array, tags: list[Array]) -> Array:
        tags.append(value)
        return value


class Skip(Layer):
    """Of the tag before the last one, as in a residual block that halves its maps."""

    version = 1

    def run(self, value: Array, tags: list[Array]) -> Array:
        return tags.pop(-2)


class Sum(Layer):
    def details(self) -> bytes:
        return text("add_prev_")

    def run(self, value: Array, tags: list[Array]) -> Array:
        other = tags.pop()
        total = np.zeros(np.maximum(value.shape, other.shape))
        for one in (value, other):
            total[tuple(slice(side) for side in one.shape)] += one
        return total


class Relu(Layer):
    def details(self) -> bytes:
        return text("relu_")

    def run(self, value: Array, tags: list[Array]) -> Array:
        return np.maximum(value, 0)


class Factor(Layer):
    def details(self) -> bytes:
        return text("multiply_") + real(0.5)

    def run(self, value: Array, tags: list[Array]) -> Array:
        return value * 0.5


def windows(value: Array, size: int, step: int) -> Array:
    """Every window ``(H', W', C, size, size)``."""
    view = np.lib.stride_tricks.sliding_window_view(value, (size, size), axis=(1, 2))
    return view[:, ::step, ::step].transpose(1, 2, 0, 3, 4)


class Conv(Layer):
    def __init__(self, seed: int, filters: int, channels: int, size: int, step: int, kind: str = "con_4") -> None:
        generator = np.random.default_rng(seed)
        self.kernel = generator.normal(0, 0.3, (filters, channels, size, size)).astype(np.float32)
        self.bias = generator.normal(0, 0.3, filters).astype(np.float32)
        self.size, self.step, self.kind = size, step, kind
        self.border = 0 if step > 1 else size // 2  # dlib's default

    def details(self) -> bytes:
        numbers = tensor(np.concatenate([self.kernel.ravel(), self.bias]))
        sides = (len(self.bias), self.size, self.size, self.step, self.step, self.border, self.border)
        shapes = part(*self.kernel.shape) + part(1, len(self.bias))
        more = {"con_4": b"", "con_5": b"1", "con_6": b"10"}[self.kind]
        return text(self.kind) + numbers + b"".join(map(whole, sides)) + shapes + real(1) * 3 + real(0) + more

    def run(self, value: Array, tags: list[Array]) -> Array:
        padded = np.pad(value, ((0, 0), (self.border, self.border), (self.border, self.border)))
        found: Array = np.einsum("hwckl,fckl->fhw", windows(padded, self.size, self.step), self.kernel.astype(float))
        return found + self.bias[:, np.newaxis, np.newaxis]


class Affine(Layer):
    def __init__(self, seed: int, channels: int, kind: str = "affine_") -> None:
        generator = np.random.default_rng(seed)
        self.factors, self.shifts = generator.uniform(0.5, 1.5, channels), generator.normal(0, 0.2, channels)
        self.kind = kind

    def details(self) -> bytes:
        numbers = tensor(np.concatenate([self.factors, self.shifts]))
        shape = part(1, len(self.factors))
        return text(self.kind) + numbers + shape + shape + whole(0) + (b"0" if self.kind == "affine_2" else b"")

    def run(self, value: Array, tags: list[Array]) -> Array:
        return value * self.factors[:, None, None] + self.shifts[:, None, None]


class Pool(Layer):
    """``size`` 0 pools everything."""

    def __init__(self, kind: str, size: int, step: int) -> None:
        self.kind, self.size, self.step = kind, size, step

    def details(self) -> bytes:
        sides = (self.size, self.size, self.step, self.step, 0, 0)
        return text(f"{self.kind}_pool_2") + b"".join(map(whole, sides))

    def run(self, value: Array, tags: list[Array]) -> Array:
        seen = windows(value, self.size or value.shape[1], self.step)
        found: Array = seen.max(axis=(3, 4)) if self.kind == "max" else seen.mean(axis=(3, 4))
        planes: Array = found.transpose(2, 0, 1)
        return planes


class Full(Layer):
    def __init__(self, seed: int, inputs: int, outputs: int, *, bias: bool, kind: str = "fc_2") -> None:
        generator = np.random.default_rng(seed)
        self.matrix, self.bias = generator.normal(0, 1, (inputs, outputs)), generator.normal(0, 1, outputs) * bias
        self.has_bias, self.kind = bias, kind

    def details(self) -> bytes:
        inputs, outputs = self.matrix.shape
        numbers = np.concatenate([self.matrix.ravel(), self.bias] if self.has_bias else [self.matrix.ravel()])
        shapes = part(inputs, outputs) + (part(1, outputs) if self.has_bias else part(0, 0, 0, 0))
        end = real(1) * 3 + real(0) + (b"1" if self.kind == "fc_3" else b"")
        head = text(self.kind) + whole(outputs) + whole(inputs) + tensor(numbers)
        return head + shapes + whole(0 if self.has_bias else 1) + end

    def run(self, value: Array, tags: list[Array]) -> Array:
        return (value.ravel() @ self.matrix + self.bias).reshape(-1, 1, 1)


def file_of(layers: Sequence[Layer], *, loss: str | None = "loss_multiclass_log_", sized: bool = True) -> bytes:
    """The bytes of a network whose layers are given from the first to the last."""
    data = b"" if loss is None else whole(1) + text(loss) + (real(0.04) + real(0.6) if "metric" in loss else b"")
    data += b"".join(whole(layer.version) for layer in reversed(layers[1:])) + whole(3)
    data += text("input_rgb_image_sized" if sized else "input_rgb_image") + b"".join(map(real, MEANS))
    data += whole(SIDE) * 2 if sized else b""
    rest = b"110" + tensor(np.zeros(0)) * 3
    for number, layer in enumerate(layers):
        if layer.version == 2:
            data += layer.details() + rest
        data += whole(1) if number == 0 else b""
    return data


def residual(end: Sequence[Layer] = (), *, newer: bool = False) -> list[Layer]:
    """A residual network like dlib's: a block, a block that halves its maps and adds channels, a last layer."""
    con, affine = ("con_5", "affine_2") if newer else ("con_4", "affine_")
    block = [Conv(2, 4, 4, 3, 1, con), Affine(3, 4, affine), Relu(), Conv(4, 4, 4, 3, 1, con), Affine(5, 4, affine)]
    half = [Conv(6, 6, 4, 3, 2, con), Affine(7, 6), Relu(), Conv(8, 6, 6, 3, 1), Affine(9, 6)]
    return [
        *(Conv(0, 4, 3, 5, 2), Affine(1, 4), Relu(), Pool("max", 3, 2)),
        *(Tag(), *block, Sum(), Relu()),
        *(Tag(), *half, Tag(), Skip(), Pool("avg", 2, 2), Sum(), Relu()),
        *(end or (Pool("avg", 0, 1), Full(10, 6, 5, bias=False))),
    ]


def answers(layers: Sequence[Layer], pixels: Array) -> Array:
    """The answers of dlib's layers for images ``(N, H, W, 3)``."""
    rows = []
    for image in pixels:
        value, tags = ((image - np.array(MEANS)) / 256).transpose(2, 0, 1), list[Array]()
        for layer in layers:
            value = layer.run(value, tags)
        rows.append(value.ravel())
    return np.stack(rows)


PIXELS = np.random.default_rng(5).integers(0, 256, (3, SIDE, SIDE, 3), dtype=np.uint8)


@pytest.mark.parametrize(
    "layers",
    [
        residual(),
        residual(newer=True),
        residual(
            [Pool("avg", 0, 1), Full(3, 6, 7, bias=True, kind="fc_3"), Relu(), Factor(), Full(4, 7, 5, bias=True)]
        ),
        residual([Full(10, 6 * 2 * 2, 5, bias=True)]),
        [Conv(0, 4, 3, 3, 2, "con_6"), Relu(), Pool("max", 0, 1), Full(1, 4, 5, bias=True)],
    ],
    ids=["residual", "newer versions", "factor and bias", "maps", "plain"],
)
@pytest.mark.parametrize("loss", ["loss_multiclass_log_", "loss_metric_2", None])
def test_a_network_of_dlib_answers_as_its_layers(layers: list[Layer], loss: str | None) -> None:
    """Of residual blocks whose maps differ in channels and in size, with the layers of several versions of dlib."""
    data = file_of(layers, loss=loss)
    assert is_dlib_network(data)
    runtime = onnxruntime.InferenceSession(convert_dlib(data, "net.dat").SerializeToString())
    (found,) = runtime.run(None, {"images": PIXELS.transpose(0, 3, 1, 2)})
    assert np.allclose(found, answers(layers, PIXELS), atol=1e-5)


def test_a_classifier_of_dlib_becomes_a_member(tmp_path: Path) -> None:
    """Its answers are logits of RGB images; a notice says how its sums were understood."""
    path, recorder, layers = tmp_path / "net.dat", Recorder(), residual()
    path.write_bytes(file_of(layers))
    adopted = adopt(path, tmp_path / "models", options=OPTIONS, listener=recorder)
    found = start_session(read_model(adopted.path)).run(PIXELS)
    assert np.allclose(found, answers(layers, PIXELS), atol=1e-5)
    assert any("dlib" in notice.message and "residual" in notice.message for notice in recorder.notices)


def test_an_embedding_is_for_probes_and_no_member(tmp_path: Path) -> None:
    """A network trained by a metric has no classes (E471); its numbers are features, of a size that is named."""
    path = tmp_path / "faces.dat"
    path.write_bytes(file_of(residual(), loss="loss_metric_2"))
    with pytest.raises(EnsError, match="tells faces apart") as caught:
        adopt(path, tmp_path / "models", options=OPTIONS)
    assert caught.value.code == "E471"
    opened = open_network(path, AdoptOptions(resize="squash"))
    assert np.allclose(opened.network.run(PIXELS, opened.card), answers(residual(), PIXELS), atol=1e-5)
    path.write_bytes(file_of(residual(), sized=False, loss="loss_metric_2"))
    with pytest.raises(EnsError, match="images of any size"):
        open_network(path, AdoptOptions(resize="squash"))


class Odd(Relu):
    """A layer that is not known."""

    def details(self) -> bytes:
        return text("prelu_")


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (file_of(residual(), loss="loss_mmod_"), "loss_mmod_ is not known"),
        (file_of([Conv(0, 4, 3, 3, 2), Odd(), Pool("max", 0, 1)]), "prelu_ is not known"),
        (file_of([Conv(0, 4, 5, 3, 2), Pool("max", 0, 1)]), "reads 3"),
        (file_of([Conv(0, 4, 3, 3, 2), Tag(), Relu(), Pool("max", 0, 1)]), "a tag that no sum uses"),
        (file_of([Conv(0, 4, 3, 3, 2), Sum(), Pool("max", 0, 1)]), "no tag that it adds"),
        (file_of([Conv(0, 4, 3, 3, 2), Tag(), Relu(), Tag(), Tag(), Tag(), Sum()]), "which tags"),
        (file_of([Conv(0, 4, 3, 3, 2), Relu()]), "ends in a map"),
        (file_of([Conv(0, 4, 3, 30, 2), Pool("max", 0, 1)]), "smaller than its windows"),
        (file_of(residual())[:-400], "ends too early"),
        (b"\x01\x01\x01\x05input" + struct.pack("<Q", 7) * 9, "cannot be read"),
    ],
)
def test_what_is_not_known_or_damaged_is_named(tmp_path: Path, data: bytes, said: str) -> None:
    """E470 says which layer, and nothing is guessed."""
    path = tmp_path / "net.dat"
    path.write_bytes(data)
    with pytest.raises(EnsError, match=said) as caught:
        read_foreign(path)
    assert caught.value.code == "E470"


def test_a_file_cut_anywhere_is_refused() -> None:
    """No cut gives another error than E470, nor a network."""
    data = file_of([Conv(0, 2, 3, 3, 2), Relu(), Pool("max", 0, 1), Full(1, 2, 3, bias=True)])
    for end in [*range(3, 70), *range(70, len(data), 7)]:
        with pytest.raises(EnsError) as caught:
            convert_dlib(data[:end], "net.dat")
        assert caught.value.code == "E470"


def test_a_changed_byte_gives_no_other_error() -> None:
    """Numbers that became negative or huge are E470, or it is another network."""
    data = file_of([Conv(0, 2, 3, 3, 2), Relu(), Pool("max", 0, 1), Full(1, 2, 3, bias=True)])
    for place in range(len(data)):
        for value in (0x81, 0x00, 0xFF):
            with contextlib.suppress(ModelError):
                convert_dlib(data[:place] + bytes([value]) + data[place + 1 :], "net.dat")
