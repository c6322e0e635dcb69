"""Small models and pictures that tests make for themselves."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from PIL import Image

from ensemble.card import METADATA_KEY, ModelCard, Preprocess
from ensemble.labels import MASK18, LabelSpace

CARD = ModelCard(
    member="toy",
    arch="toy",
    labels=MASK18,
    preprocess=Preprocess((16, 12)),
    mean=(0.5, 0.5, 0.5),
    std=(0.5, 0.5, 0.5),
    checkpoint_sha256="0" * 64,
)


def card(member: str = "toy", *, size: tuple[int, int] = (16, 12), labels: LabelSpace = MASK18) -> ModelCard:
    """A card for a toy model."""
    return replace(CARD, member=member, labels=labels, preprocess=Preprocess(size))


def linear_weights(card: ModelCard, seed: int) -> NDArray[np.float32]:
    """The weights ``(H * W * 3, C)`` of the toy model with this seed."""
    height, width = card.preprocess.size
    generator = np.random.default_rng(seed)
    return generator.normal(0, 0.02, (height * width * 3, len(card.labels))).astype(np.float32)


def model_proto(card: ModelCard = CARD, *, seed: int = 0) -> onnx.ModelProto:
    """A linear model of the pixels, to the contract: uint8 ``image`` in, float32 ``logits`` out, a card inside."""
    height, width = card.preprocess.size
    weights = numpy_helper.from_array(linear_weights(card, seed), "weights")
    scale = numpy_helper.from_array(np.array(1 / 255, dtype=np.float32), "scale")
    nodes = [
        helper.make_node("Cast", ["image"], ["float"], to=TensorProto.FLOAT),
        helper.make_node("Mul", ["float", "scale"], ["scaled"]),
        helper.make_node("Flatten", ["scaled"], ["flat"], axis=1),
        helper.make_node("MatMul", ["flat", "weights"], ["logits"]),
    ]
    graph = helper.make_graph(
        nodes,
        "toy",
        [helper.make_tensor_value_info("image", TensorProto.UINT8, ["batch", height, width, 3])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", len(card.labels)])],
        [weights, scale],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    helper.set_model_props(model, {METADATA_KEY: card.to_json()})
    return model


def convolutional_proto(
    card: ModelCard = CARD, *, kind: str = "resnet", seed: int = 0, asymmetric: bool = False
) -> onnx.ModelProto:
    """As `model_proto`, with the layers of a ResNet (a residual block), or of an EfficientNet (SiLU, a depthwise layer,
    squeeze and excite). With ``asymmetric`` the first convolution has stride and padding of timm's ``tf_`` networks.
    """
    generator = np.random.default_rng(seed)
    weights: dict[str, NDArray[np.float32]] = {}
    nodes: list[onnx.NodeProto] = []

    def draw(*shape: int) -> str:
        weights[name := f"w{len(weights)}"] = generator.normal(0, 0.3, shape).astype(np.float32)
        return name

    def add(op: str, *inputs: str, **options: Any) -> str:
        nodes.append(helper.make_node(op, inputs, [name := f"t{len(nodes)}"], **options))
        return name

    def conv(x: str, out: int, into: int, size: int, groups: int = 1, **options: Any) -> str:
        given = {"pads": [size // 2] * 4, "group": groups} | options
        return add("Conv", x, draw(out, into // groups, size, size), draw(out), **given)

    x = add("Transpose", add("Cast", "image", to=TensorProto.FLOAT), perm=[0, 3, 1, 2])
    first: dict[str, Any] = {"pads": [0, 0, 1, 1], "strides": [2, 2]} if asymmetric else {}
    x = conv(add("Mul", x, draw(1)), 24, 3, 3, **first)
    if kind == "resnet":
        x = add("Relu", x)
        x = add("Relu", add("Add", x, conv(add("Relu", conv(x, 24, 24, 3)), 24, 24, 3)))
    else:
        x = conv(add("Mul", x, add("Sigmoid", x)), 24, 24, 5, groups=24)
        x = add("Mul", x, add("Sigmoid", x))
        squeezed = add("Relu", conv(add("GlobalAveragePool", x), 6, 24, 1))
        x = conv(add("Mul", x, add("Sigmoid", conv(squeezed, 24, 6, 1))), 24, 24, 1)
    pooled = add("Flatten", add("GlobalAveragePool", x))
    classes = len(card.labels)
    nodes.append(helper.make_node("Gemm", [pooled, draw(classes, 24), draw(classes)], ["logits"], transB=1))
    height, width = card.preprocess.size
    graph = helper.make_graph(
        nodes,
        kind,
        [helper.make_tensor_value_info("image", TensorProto.UINT8, ["batch", height, width, 3])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", classes])],
        [numpy_helper.from_array(values, name) for name, values in weights.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    helper.set_model_props(model, {METADATA_KEY: card.to_json()})
    return model


def write_model(folder: Path, card: ModelCard = CARD, *, seed: int = 0, proto: onnx.ModelProto | None = None) -> Path:
    """Write the toy model, or another one with this card, as ``<member>.onnx``."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{card.member}.onnx"
    path.write_bytes((proto or model_proto(card, seed=seed)).SerializeToString())
    return path


def picture(seed: int, *, size: tuple[int, int] = (40, 30)) -> NDArray[np.uint8]:
    """A smooth picture ``(H, W, 3)`` that a JPEG hardly changes, different for every seed."""
    generator = np.random.default_rng(seed)
    coarse = generator.integers(0, 256, (4, 3, 3), dtype=np.uint8)
    return np.asarray(Image.fromarray(coarse).resize((size[1], size[0]), Image.Resampling.BICUBIC))


def encode(pixels: NDArray[np.uint8], format_name: str = "JPEG") -> bytes:
    """The bytes of an image file."""
    sink = io.BytesIO()
    Image.fromarray(pixels).save(sink, format_name, quality=90)
    return sink.getvalue()


def write_pictures(folder: Path, names: Sequence[str], *, size: tuple[int, int] = (40, 30)) -> None:
    """Write one JPEG a name, each different."""
    folder.mkdir(parents=True, exist_ok=True)
    for seed, name in enumerate(names):
        (folder / name).write_bytes(encode(picture(seed, size=size)))
