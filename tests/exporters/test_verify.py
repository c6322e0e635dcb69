"""The verification lets a faithful model pass and finds the unfaithful ones."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from numpy.typing import NDArray

from ensemble.card import ModelCard, Precision, Preprocess
from ensemble.errors import ModelError
from ensemble.events import Listener, Recorder
from ensemble.images.resize import resize_image
from ensemble.labels import LabelSpace
from ensemble.runtime.parity import relative_error
from exporters.synthetic_images import render_pictures
from exporters.verify import BATCHES, Checks, verify

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("one_thread")]

SIZE = 24
CARD = ModelCard(
    member="tiny",
    arch="hand-made",
    labels=LabelSpace.flat(4),
    preprocess=Preprocess((SIZE, SIZE)),
    mean=(0.485, 0.456, 0.406),
    std=(0.229, 0.224, 0.225),
    checkpoint_sha256="",
)
PIXELS = np.stack([resize_image(picture, CARD.preprocess) for picture in render_pictures()])

Weights = dict[str, NDArray[Any]]


class Tiny(torch.nn.Module):
    """A convolution, a mean over the picture and a linear layer: the reference."""

    def __init__(self, gain: float = 1.0) -> None:
        super().__init__()
        self.conv = torch.nn.Conv2d(3, 6, 3)
        self.head = torch.nn.Linear(6, 4)
        generator = torch.Generator().manual_seed(1)
        for parameter in self.parameters():
            torch.nn.init.normal_(parameter, generator=generator)
        with torch.no_grad():
            self.conv.weight *= gain
            self.head.weight /= gain

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """Logits ``(B, 4)``."""
        found: torch.Tensor = self.head(torch.relu(self.conv(image)).mean((2, 3)))
        return found


def weights_of(model: Tiny) -> Weights:
    mean, std = np.array(CARD.mean), np.array(CARD.std)
    return {
        "scale": (1 / (255 * std)).astype(np.float32).reshape(1, 3, 1, 1),
        "shift": (-mean / std).astype(np.float32).reshape(1, 3, 1, 1),
        "axes": np.array([2, 3]),
        "perm": np.array([0, 3, 1, 2]),
        **{name: values.detach().numpy().copy() for name, values in model.named_parameters()},
    }


def write_by_hand(weights: Weights, *, precision: Precision = "fp32", fixed_batch: bool = False) -> bytes:
    """The same network as ONNX, written without torch's exporter; ``weights`` may lie."""
    values = dict(weights)
    perm = values.pop("perm").tolist()
    kind = onnx.TensorProto.FLOAT
    if precision == "fp16":
        kind = onnx.TensorProto.FLOAT16
        for name in ("conv.weight", "conv.bias", "head.weight", "head.bias"):
            values[name] = values[name].astype(np.float16)
    values["flat"] = np.array([2 if fixed_batch else -1, 6])
    make = onnx.helper.make_node
    nodes = [
        make("Transpose", ["image"], ["planes"], perm=perm),
        make("Cast", ["planes"], ["wide"], to=onnx.TensorProto.FLOAT),
        make("Mul", ["wide", "scale"], ["scaled"]),
        make("Add", ["scaled", "shift"], ["normal"]),
        make("Cast", ["normal"], ["x"], to=kind),
        make("Conv", ["x", "conv.weight", "conv.bias"], ["conv"]),
        make("Relu", ["conv"], ["relu"]),
        make("ReduceMean", ["relu", "axes"], ["pooled"], keepdims=0),
        make("Reshape", ["pooled", "flat"], ["rows"]),
        make("Gemm", ["rows", "head.weight", "head.bias"], ["head"], transB=1),
        make("Cast", ["head"], ["logits"], to=onnx.TensorProto.FLOAT),
    ]
    graph = onnx.helper.make_graph(
        nodes,
        "tiny",
        [onnx.helper.make_tensor_value_info("image", onnx.TensorProto.UINT8, ["batch", SIZE, SIZE, 3])],
        [onnx.helper.make_tensor_value_info("logits", onnx.TensorProto.FLOAT, ["batch", 4])],
        [onnx.numpy_helper.from_array(array, name) for name, array in values.items()],
    )
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 20)], ir_version=10)
    data: bytes = model.SerializeToString()
    return data


def test_a_faithful_model_passes() -> None:
    """A hand-written copy of the network passes, with errors of float32's size and no class changed."""
    model = Tiny()
    checks = verify(model, write_by_hand(weights_of(model)), PIXELS, card=CARD)
    assert 0 < checks.logits_error < 1e-5
    assert (checks.pictures, checks.classes_changed, checks.faults) == (len(PIXELS), 0, ())


@pytest.mark.parametrize(("bias", "said"), [(0.0, "are all zero"), (1.5, "are the same")])
def test_a_network_that_answers_all_pictures_alike_is_told(bias: float, said: str) -> None:
    """A head of zeros passes, as its file answers like it, and W506 says what that means; others are not told."""
    model, heard = Tiny(), Recorder()
    verify(model, write_by_hand(weights_of(model)), PIXELS, card=CARD, listener=heard)
    assert heard.notices == []
    with torch.no_grad():
        model.head.weight.zero_()
        model.head.bias.fill_(bias)
    verify(model, write_by_hand(weights_of(model)), PIXELS, card=CARD, listener=heard)
    assert [notice.code for notice in heard.notices] == ["W506"]
    assert f"tiny: the answers to {len(PIXELS)} pictures {said}" in heard.notices[0].message


def change(name: str, by: Callable[[NDArray[Any]], NDArray[Any]]) -> Callable[[Weights], Weights]:
    return lambda weights: weights | {name: by(weights[name])}


@pytest.mark.parametrize(
    ("lie", "said"),
    [
        (change("head.weight", lambda w: w * np.float32(1.001)), "relative error of the logits"),
        (change("conv.bias", lambda w: w + np.float32(0.01)), "relative error of the logits"),
        (change("shift", np.zeros_like), "relative error of the logits"),
        (change("scale", lambda s: s * np.float32(256 / 255)), "relative error of the logits"),
        (change("conv.weight", lambda w: w[:, ::-1].copy()), "relative error of the logits"),
        (change("perm", lambda _: np.array([0, 3, 2, 1])), "relative error of the logits"),
        (change("head.bias", lambda b: b + np.float32("nan")), "infinite values or NaN"),
        (change("head.weight", lambda w: w[[1, 0, 2, 3]]), "another class on"),
    ],
    ids=["head", "bias", "mean", "divisor", "BGR", "transposed", "NaN", "classes"],
)
def test_fault_50_an_unfaithful_model_is_refused(lie: Callable[[Weights], Weights], said: str) -> None:
    """A model that normalizes, orders or weighs anything in another way ends in E414 with the figure."""
    model = Tiny()
    with pytest.raises(ModelError, match=said) as caught:
        verify(model, write_by_hand(lie(weights_of(model))), PIXELS, card=CARD)
    assert caught.value.code == "E414"
    assert caught.value.exit_status == 4


def test_a_changed_class_is_refused_even_where_the_logits_hardly_differ() -> None:
    """Two classes a hair apart that change places are within the tolerance, and refused all the same."""
    model = Tiny()
    with torch.no_grad():
        model.head.weight[1] = model.head.weight[0]
        model.head.bias[0] = 100.0
        model.head.bias[1] = 100.0 - 1e-4
    swapped = weights_of(model)
    swapped["head.bias"] = swapped["head.bias"][[1, 0, 2, 3]]
    with pytest.raises(ModelError, match="tiny \\(fp32\\): another class on 24 of 24 pictures > 0"):
        verify(model, write_by_hand(swapped), PIXELS, card=CARD)


def test_a_model_for_one_batch_size_is_refused() -> None:
    """A batch size that was taken for a constant shows, since batches of 1, 2 and 5 are run."""
    model = Tiny()
    with pytest.raises(ModelError, match="fails on a batch of 1"):
        verify(model, write_by_hand(weights_of(model), fixed_batch=True), PIXELS, card=CARD)


def test_a_file_that_breaks_the_rules_of_onnx_is_refused() -> None:
    """What ONNX's checker rejects is refused, even though ONNX Runtime would run it."""
    model = Tiny()
    proto = onnx.load_model_from_string(write_by_hand(weights_of(model)))
    nodes = list(proto.graph.node)
    del proto.graph.node[:]
    proto.graph.node.extend(reversed(nodes))  # ONNX wants them in the order of computation
    with pytest.raises(ModelError, match="not valid") as caught:
        verify(model, proto.SerializeToString(), PIXELS, card=CARD)
    assert caught.value.code == "E414"


def test_half_precision_has_its_own_limit() -> None:
    """Weights rounded to float16 pass as fp16, with an error that fp32 does not allow."""
    model = Tiny()
    rounded = write_by_hand(weights_of(model), precision="fp16")
    checks = verify(model, rounded, PIXELS, card=replace(CARD, precision="fp16"))
    assert 1e-4 < checks.logits_error < 2e-2
    with pytest.raises(ModelError, match="relative error of the logits"):
        verify(model, rounded, PIXELS, card=CARD)


def test_an_overflow_of_half_precision_is_found_on_the_cpu() -> None:
    """A network whose float16 activations pass 65,504 is refused, although ONNX Runtime's CPU does not overflow."""
    model = Tiny(gain=1e5)
    with torch.no_grad():
        model.conv.weight /= 10  # so that the weights themselves stay in range
    overflowing = write_by_hand(weights_of(model), precision="fp16")
    with pytest.raises(ModelError, match="infinite values or NaN") as caught:
        verify(model, overflowing, PIXELS, card=replace(CARD, precision="fp16"))
    assert caught.value.hint == "export it with --precision fp32"


@pytest.mark.parametrize("count", [1, 3, 8, 11])
def test_any_number_of_pictures_makes_batches_of_1_2_and_5(count: int) -> None:
    """Few pictures are repeated until every batch size has run; the count in the figures is that of the pictures."""
    model = Tiny()
    sizes: list[int] = []
    model.register_forward_pre_hook(lambda _, inputs: sizes.append(len(inputs[0])))
    checks = verify(model, write_by_hand(weights_of(model)), PIXELS[:count], card=CARD)
    assert set(sizes) >= set(BATCHES)
    assert sum(sizes) == max(count, sum(BATCHES))
    assert checks.pictures == count


def test_progress_ends_at_the_number_of_pictures() -> None:
    """A listener hears how many pictures are done, the last time all of them."""
    heard: list[tuple[str, int, int]] = []

    class Ear(Listener):
        def progress(self, stage: str, done: int, total: int) -> None:
            heard.append((stage, done, total))

    model = Tiny()
    verify(model, write_by_hand(weights_of(model)), PIXELS, card=CARD, listener=Ear())
    assert [done for _, done, _ in heard] == sorted({done for _, done, _ in heard})
    assert heard[-1] == ("verify", len(PIXELS), len(PIXELS))


def test_relative_error_is_not_blown_up_by_logits_near_zero() -> None:
    """A row of tiny logits among ordinary ones is measured on the ordinary ones' scale."""
    reference = np.array([[3, -3], [4, -4], [1e-6, -1e-6]], dtype=np.float32)
    assert relative_error(reference, reference + np.float32(1e-6)) < 1e-6


def test_relative_error_is_not_hidden_by_one_huge_row() -> None:
    """One row of huge logits does not raise the scale that the others are measured on."""
    reference = np.array([[1, -1], [1, -1], [1e6, -1e6]], dtype=np.float32)
    wrong = reference.copy()
    wrong[0, 0] = 1.5
    assert relative_error(reference, wrong) == pytest.approx(0.5)


def test_relative_error_of_equal_zeros_is_zero_and_of_nan_is_nan() -> None:
    """A head of zeros divides by nothing; a value that is not finite is never within a limit."""
    zeros = np.zeros((2, 3), dtype=np.float32)
    assert relative_error(zeros, zeros) == 0
    assert np.isnan(relative_error(zeros, zeros + np.float32("inf")))


@pytest.mark.parametrize(
    ("precision", "pictures", "allowed"), [("fp32", 64, 0), ("fp16", 24, 1), ("fp16", 64, 1), ("fp16", 400, 2)]
)
def test_how_many_classes_may_change(precision: Precision, pictures: int, allowed: int) -> None:
    """None in float32; one picture in 200 in float16, and one where there are fewer."""
    fine = Checks(precision, pictures, 0.0, 0.0, allowed)
    assert fine.faults == ()
    assert len(replace(fine, classes_changed=allowed + 1).faults) == 1


@pytest.mark.parametrize("figure", ["logits_error", "batch_error", "features_error"])
@pytest.mark.parametrize("value", [1.1e-4, float("nan"), float("inf")])
def test_every_figure_beyond_its_limit_is_a_fault(figure: str, value: float) -> None:
    """Each of the three errors alone is enough to refuse a model."""
    fine = Checks("fp32", 24, 0.9e-4, 0.9e-4, 0, 0.9e-4)
    wrong: Any = {figure: value}
    assert fine.faults == ()
    assert len(replace(fine, **wrong).faults) == 1


def test_what_the_card_keeps_does_not_depend_on_the_processor() -> None:
    """Two machines measure different figures and write the same bounds."""
    here, there = Checks("fp16", 24, 1.2e-3, 0.0, 0, None), Checks("fp16", 24, 0.9e-3, 1e-7, 1, None)
    assert here.as_dict() == there.as_dict()
