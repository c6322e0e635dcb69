"""A recipe with toy members, and a fused ensemble of the form that `ens fuse --members --maps` writes, made by hand."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from scipy.special import softmax

from ensemble.blend.decision_rules import PriorRule, Rule, ThresholdRule
from ensemble.blend.pooling import parse_pool
from ensemble.blend.recipe import Group, Recipe
from ensemble.card import FaceCrop, ModelCard, Preprocess
from ensemble.fuse.detect import FUSED_KEY
from ensemble.fuse.fused_card import FusedCard, FusedMaps, FusedMember
from ensemble.labels import MASK18, LabelSpace
from tests.support import toys

SIDE = 12
LABELS = LabelSpace.from_dict(
    {"axes": [{"name": "a", "values": ["x", "y"]}, {"name": "b", "values": ["left", "right"]}]}
)


def write_members(folder: Path, cards: Sequence[ModelCard] | None = None) -> Path:
    """One linear toy model a card, each with other weights; by default the three members of `toy_recipe`.

    Two of these share their preprocessing, and one has the classes in another order.
    """
    other = LabelSpace.flat(tuple(reversed(LABELS.names)))
    default = [
        toys.card("m0", labels=LABELS),
        toys.card("m1", labels=LABELS),
        replace(
            toys.card("m2", labels=other), preprocess=Preprocess((18, 18), resize="center", interpolation="bicubic")
        ),
    ]
    for seed, one in enumerate(default if cards is None else cards):
        toys.write_model(folder, one, seed=seed)
    return folder


def toy_recipe(**changes: Any) -> Recipe:
    """Three members in two groups, by default averaged with weights 3 and 1."""
    settings: dict[str, Any] = {
        "pool": parse_pool("linear"),
        "views": {"identity": 1.0},
        "groups": {"big": Group(3.0, {"m0": "0" * 64, "m1": "0" * 64}), "small": Group(1.0, {"m2": "0" * 64})},
        "labels": LABELS,
    }
    return Recipe(**settings | changes)


def fused_proto(
    labels: LabelSpace = MASK18,
    *,
    shares: Sequence[float] = (0.75, 0.25),
    seed: int = 0,
    bias: Sequence[float] | None = None,
    independent: bool = False,
    boxes: bool = False,
    members: bool = True,
    maps: bool = True,
) -> onnx.ModelProto:
    """Linear models of the picture at 12 x 12 pixels, blended by ``shares``.

    ``bias`` is added to the logarithms of the blend before the class is chosen, as a decision rule would.
    ``independent`` labels apply from a probability of 0.5.
    """
    classes = len(labels)
    constants: dict[str, NDArray[Any]] = {
        "sizes": np.array([SIDE, SIDE, 3], np.int64),
        "scale": np.array(1 / 255, np.float32),
        "shares": np.asarray(shares, np.float32).reshape(1, -1, 1),
        "axis1": np.array([1], np.int64),
        "bias": np.asarray(bias if bias is not None else np.zeros(classes), np.float32),
        "half": np.array(0.5, np.float32),
    }
    nodes = [
        helper.make_node("Shape", ["images"], ["count"], start=0, end=1),
        helper.make_node("Concat", ["count", "sizes"], ["shape"], axis=0),
        helper.make_node(
            "Resize", ["images", "", "", "shape"], ["small"], mode="linear", antialias=1, exclude_outside=1
        ),
        helper.make_node("Cast", ["small"], ["float"], to=TensorProto.FLOAT),
        helper.make_node("Mul", ["float", "scale"], ["unit"]),
        helper.make_node("Transpose", ["unit"], ["scaled"], perm=[0, 3, 1, 2]),
        helper.make_node("Flatten", ["scaled"], ["flat"], axis=1),
    ]
    squash = "Sigmoid" if independent else "Softmax"  # over the last axis
    for number in range(len(shares)):
        generator = np.random.default_rng(seed + number)
        constants[f"w{number}"] = generator.normal(0, 0.15, (3 * SIDE * SIDE, classes)).astype(np.float32)
        nodes += [
            helper.make_node("MatMul", ["flat", f"w{number}"], [f"logits{number}"]),
            helper.make_node(squash, [f"logits{number}"], [f"p{number}"]),
            helper.make_node("Unsqueeze", [f"p{number}", "axis1"], [f"q{number}"]),
        ]
    nodes += [
        helper.make_node("Concat", [f"q{number}" for number in range(len(shares))], ["members"], axis=1),
        helper.make_node("Mul", ["members", "shares"], ["weighted"]),
        helper.make_node("ReduceSum", ["weighted", "axis1"], ["probabilities"], keepdims=0),
        helper.make_node("Log", ["probabilities"], ["logs"]),
        helper.make_node("Add", ["logs", "bias"], ["moved"]),
        helper.make_node("ArgMax", ["moved"], ["class"], axis=1, keepdims=0),
    ]
    outputs: dict[str, tuple[int, list[str | int | None]]] = {
        "probabilities": (TensorProto.FLOAT, ["N", classes]),
        "class": (TensorProto.INT64, ["N"]),
    }
    if independent:
        nodes.append(helper.make_node("GreaterOrEqual", ["probabilities", "half"], ["applies"]))
        outputs["applies"] = (TensorProto.BOOL, ["N", classes])
    if members:
        outputs["members"] = (TensorProto.FLOAT, ["N", len(shares), classes])
    if maps:
        constants["filters"] = np.random.default_rng(seed).normal(0, 1, (classes, 3, 3, 3)).astype(np.float32)
        nodes.append(helper.make_node("Conv", ["scaled", "filters"], ["maps"], pads=[1, 1, 1, 1]))
        outputs["maps"] = (TensorProto.FLOAT, ["N", classes, SIDE, SIDE])
    inputs = [helper.make_tensor_value_info("images", TensorProto.UINT8, ["N", "H", "W", 3])]
    if boxes:
        inputs.append(helper.make_tensor_value_info("boxes", TensorProto.FLOAT, ["N", 4]))
    graph = helper.make_graph(
        nodes,
        "fused",
        inputs,
        [helper.make_tensor_value_info(name, kind, shape) for name, (kind, shape) in outputs.items()],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    rule: Rule = "argmax" if bias is None else PriorRule(1.0, softmax(-np.asarray(bias, np.float64)))
    if independent:
        rule = ThresholdRule(np.full(classes, 0.5))
    card = fused_card(labels, shares, rule=rule, independent=independent, boxes=boxes)
    card = card if maps else replace(card, maps=None)
    helper.set_model_props(model, {FUSED_KEY: card.to_json()})
    return model


def fused_card(labels: LabelSpace, shares: Sequence[float], *, rule: Rule, independent: bool, boxes: bool) -> FusedCard:
    """The card of `fused_proto`."""
    cards = [toys.card(f"toy{number}", size=(SIDE, SIDE), labels=labels) for number in range(len(shares))]
    if boxes:
        cards = [replace(card, preprocess=replace(card.preprocess, face=FaceCrop(0.3))) for card in cards]
    if independent:
        cards = [replace(card, activation="sigmoid") for card in cards]
    recipe = toy_recipe(
        groups={card.member: Group(share, {card.member: "0" * 64}) for card, share in zip(cards, shares, strict=True)},
        labels=labels,
        rule=rule,
        activation="sigmoid" if independent else "softmax",
    )
    members = tuple(
        FusedMember(card.member, card.member, share, "0" * 64, card) for card, share in zip(cards, shares, strict=True)
    )
    return FusedCard(recipe, members, maps=FusedMaps("toy0", (SIDE, SIDE)))
