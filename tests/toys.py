"""Small models and pictures that tests make for themselves."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

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


def write_model(folder: Path, card: ModelCard = CARD, *, seed: int = 0) -> Path:
    """Write the toy model as ``<member>.onnx``."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{card.member}.onnx"
    path.write_bytes(model_proto(card, seed=seed).SerializeToString())
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
