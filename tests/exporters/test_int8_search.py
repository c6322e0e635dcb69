"""Which layers of an int8 network return to float32: orders, blocks, and sums of residual branches."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from numpy.typing import NDArray

from ensemble.errors import ModelError
from ensemble.events import SILENT, Recorder
from ensemble.labels import LabelSpace
from exporters import int8, int8_engines, int8_select
from exporters.accuracy_gate import Verdict
from exporters.int8_calibration import measure_activations
from exporters.int8_layers import Layer, find_layers
from exporters.int8_near_ties import MOST_AGAIN, NO_FALLBACK
from exporters.int8_qdq import find_tensors, quantize
from exporters.int8_schemes import Range
from exporters.int8_search import LayerOrder, find_blocks, order_two_terms, rank_layers, search
from exporters.int8_timing import Times
from tests.exporters.test_int8_equalize import build, draw, run
from tests.support import toys

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("one_thread")]

Array = NDArray[Any]


@dataclass(frozen=True, slots=True)
class Attempt:
    """A network with these layers in float."""

    in_float: tuple[str, ...]
    verdict: Verdict


def alone(names: Sequence[str]) -> LayerOrder:
    """An order of single layers."""
    return tuple((name,) for name in names)


@pytest.mark.parametrize(
    ("order", "kept"),
    [
        (alone("cbade"), ("c", "b")),
        (alone("abcde"), ("a", "b")),
        ((("d",), ("b", "a"), ("c", "e")), ("d",)),  # more than half of the multiplications with the next group
        ((("a", "b"), ("c",), ("d", "e")), ("a", "b")),
    ],
)
def test_layers_return_in_each_order_until_the_answers_stay(order: LayerOrder, kept: tuple[str, ...]) -> None:
    """The fewest groups are found after which at most 1 % of the answers change: here those up to b or d."""
    tried = []

    def attempt(returned: tuple[str, ...]) -> Attempt:
        tried.append(returned)
        return Attempt(returned, Verdict("int8", 1000, 5 if {"b", "d"} & set(returned) else 15))

    found, _ = search([order], (), dict.fromkeys("abcde", 10), attempt, most_in_float=0.5)
    assert [one.in_float for one in found] == [kept]
    assert max(map(len, tried)) <= 2  # half of the multiplications


def test_layers_that_are_in_float_already_count() -> None:
    """One fixed layer of five leaves room for one other within half of the multiplications."""
    tried = []

    def attempt(returned: tuple[str, ...]) -> Attempt:
        tried.append(returned)
        return Attempt(returned, Verdict("int8", 1000, 0))

    search([alone("abcd")], ("e",), dict.fromkeys("abcde", 10), attempt, most_in_float=0.5)
    assert tried == [("a",)]


def test_an_order_that_the_gate_refuses_is_left_out() -> None:
    """Where half of the multiplications in float are not enough, nothing is found, and what was tried is returned."""

    def attempt(returned: tuple[str, ...]) -> Attempt:
        return Attempt(returned, Verdict("int8", 1000, 50))

    found, most = search([alone("abcd")], (), dict.fromkeys("abcd", 10), attempt, most_in_float=0.5)
    assert found == []
    assert most.in_float == ("a", "b")


def test_blocks_end_where_a_linear_activation_is_made() -> None:
    """Of five convolutions two make linear activations; the last block has none."""
    proto = build()
    blocks = find_blocks(proto.graph, find_layers(proto.graph))
    assert [tuple(layer.name for layer in block) for block in blocks] == [
        ("stem", "first"),
        ("wide", "second"),
        ("last",),
    ]


def test_a_network_without_linear_activations_has_no_blocks() -> None:
    """Sums that another node reads are not linear activations."""
    proto = build(reader="Relu")
    assert find_blocks(proto.graph, find_layers(proto.graph)) == ()


def test_inputs_gain_by_what_they_take_away_for_their_products() -> None:
    """The squared error that two terms take away, for the products that they add; what gains little is left out."""
    layers = [Layer(name, (i,)) for i, name in enumerate("abcd")]
    harms = rank_layers([(one,) for one in layers], dict.fromkeys("abcd", 1.0), lambda _: 0.2, SILENT)
    products = {"a": 4000, "b": 1000, "c": 1000, "d": 1000}
    left = {"a": 0.05, "b": 0.1, "c": 0.199, "d": float("inf")}
    assert order_two_terms(harms, layers, products, lambda one: left[one.name], SILENT) == ("b", "a")


def test_groups_return_by_squared_error_for_what_they_save() -> None:
    """Twice the error is worth four times the time."""
    a, b, c = (Layer(name, (i,)) for i, name in enumerate("abc"))
    saved = {"a": 1000.0, "b": 1000.0, "c": 1000.0}
    errors = {("a",): 0.1, ("b", "c"): 0.18}
    heard = Recorder()
    ranked = rank_layers([(a,), (b, c)], saved, lambda some: errors[tuple(one.name for one in some)], heard, "rank")
    assert [one.names for one in ranked] == [("b", "c"), ("a",)]  # 0.0324 / 2000 against 0.01 / 1000
    assert [one.saved for one in ranked] == [2000.0, 1000.0]
    ranked = rank_layers([(b, c), (a,)], saved, lambda some: 0.1 if len(some) == 1 else 0.14, SILENT)
    assert [one.names for one in ranked] == [("a",), ("b", "c")]


def quantized(*, float_sums: bool) -> tuple[onnx.ModelProto, dict[str, Range]]:
    proto = build()
    layers = find_layers(proto.graph)
    ranges = measure_activations(proto, find_tensors(proto.graph, layers), draw(0)).extremes()
    return quantize(proto, ranges, layers, float_sums=float_sums), ranges


def stored(values: Array, span: Range) -> Array:
    """The values after 8 bits."""
    steps = np.rint(values / span.scale) + float(span.zero)
    found: Array = (steps.clip(0, 255) - float(span.zero)) * span.scale
    return found


def test_sums_on_integers_are_of_stored_terms() -> None:
    """Without float sums, the terms and the sum have 8 bits, and the sum is read as it is stored."""
    pixels = draw(1)
    model, ranges = quantized(float_sums=False)
    first, second, total, read = run(model, pixels, "first/real", "second/real", "sum", "sum/real")
    np.testing.assert_array_equal(total, first + second)
    np.testing.assert_allclose(read, stored(total, ranges["sum"]), atol=1e-5)


def test_sums_in_float_are_rounded_for_their_readers_alone() -> None:
    """The sum is that of terms which 1x1 convolutions return in float32; each reader rounds what it reads."""
    pixels = draw(1)
    model, ranges = quantized(float_sums=True)
    first, second, total = run(model, pixels, "first", "second", "sum")
    np.testing.assert_array_equal(total, first + second)
    for name, reader in (("sum", "last"), ("first", "wide")):
        assert [node.name for node in model.graph.node if f"{name}/real" in node.input] == [reader]
        exact, read = run(model, pixels, name, f"{name}/real")
        np.testing.assert_allclose(read, stored(exact, ranges[name]), atol=1e-5)
        assert len(np.unique(exact)) > 1000


def test_terms_of_larger_kernels_have_8_bits() -> None:
    """A convolution of 3x3 cannot return float32: what it adds to a sum in float32 is stored."""
    proto = build()
    weights = {tensor.name: tensor for tensor in proto.graph.initializer}
    wide = np.pad(onnx.numpy_helper.to_array(weights["second.weight"]), [(0, 0), (0, 0), (1, 1), (1, 1)])
    weights["second.weight"].CopyFrom(onnx.numpy_helper.from_array(wide, "second.weight"))
    (node,) = (node for node in proto.graph.node if node.name == "second")
    del node.attribute[:]
    node.attribute.append(onnx.helper.make_attribute("pads", [1, 1, 1, 1]))
    layers = find_layers(proto.graph)
    ranges = measure_activations(proto, find_tensors(proto.graph, layers), draw(0)).extremes()
    model = quantize(proto, ranges, layers, float_sums=True)
    (total,) = (node for node in model.graph.node if node.name == "sum")
    assert list(total.input) == ["second/real", "first"]
    first, second, found = run(model, draw(1), "first", "second/real", "sum")
    np.testing.assert_array_equal(found, first + second)


def test_a_stage_of_two_sums_keeps_its_error() -> None:
    """What flows from sum to sum is the float32 sum, where integers round it each time."""
    proto = build()
    # a second sum: the output of the last convolution and the first sum
    proto.graph.node.insert(8, onnx.helper.make_node("Add", ["last", "sum"], ["total"], "total"))
    (pooled,) = (node for node in proto.graph.node if node.op_type == "GlobalAveragePool")
    pooled.input[0] = "total"
    layers = find_layers(proto.graph)
    ranges = measure_activations(proto, find_tensors(proto.graph, layers), draw(0)).extremes()
    pixels = draw(2)
    for float_sums, inputs in ((True, ["last", "sum"]), (False, ["last/real", "sum/real"])):
        model = quantize(proto, ranges, layers, float_sums=float_sums)
        (node,) = (node for node in model.graph.node if node.name == "total")
        assert list(node.input) == inputs
        onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    exact, *_ = run(proto, pixels, "total")
    errors = []
    for float_sums in (True, False):
        (found,) = run(quantize(proto, ranges, layers, float_sums=float_sums), pixels, "total")
        errors.append(float(np.mean((found - exact) ** 2)))
    assert errors[0] < errors[1]


@pytest.fixture
def judged(monkeypatch: pytest.MonkeyPatch) -> Callable[[Sequence[int]], tuple[int8_select.Quantized, Recorder]]:
    """Quantize the toy network, with the answers that change in each attempt and then at the gate given."""
    monkeypatch.setattr(int8_engines, "time_nodes", lambda *_: Times({"all": 1.0}))
    monkeypatch.setattr(int8_select, "expect_changes", lambda *_, **__: None)  # the count is taken
    proto, card = build(), toys.card("net", size=(9, 9), labels=LabelSpace.flat(8))

    def to_int8(changed: Sequence[int]) -> tuple[int8_select.Quantized, Recorder]:
        left, heard = iter(changed), Recorder()
        monkeypatch.setattr(int8_select, "judge", lambda *_: Verdict("int8", 1000, next(left)))
        judges = int8_select.Judges(draw(3, 16))
        found = int8.to_int8(proto, card, int8_select.Samples(draw(0), judges, judges), listener=heard)
        assert next(left, None) is None
        return found, heard

    return to_int8


def test_sums_return_to_float_before_any_layer(
    judged: Callable[[Sequence[int]], tuple[int8_select.Quantized, Recorder]],
) -> None:
    """A network on integers that passes keeps integer sums; else float sums are tried first, recorded and said."""
    found, heard = judged([10, 10])
    assert not found.float_sums
    assert "residual_sums" not in found.as_dict()
    found, heard = judged([15, 10, 10])
    assert (found.float_sums, found.in_float) == (True, ())
    assert found.as_dict()["residual_sums"] == "float32"
    (notice,) = [notice for notice in heard.notices if notice.code != "W490"]  # times are those of no machine
    assert (notice.code, notice.message) == ("I437", "net: the sums of residual branches are in float")


def test_inputs_in_two_terms_come_before_layers_in_float(
    judged: Callable[[Sequence[int]], tuple[int8_select.Quantized, Recorder]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """With all that are worth it, and then with the fewest that are enough."""
    monkeypatch.setattr("exporters.int8_search._WORTH", -1.0)
    found, heard = judged([15, 15, 10, 10, 10])
    assert (found.in_float, found.float_sums, len(found.two_terms)) == ((), True, 1)
    (notice,) = [notice for notice in heard.notices if notice.code != "W490"]  # times are those of no machine
    assert notice.message.endswith(f"inputs with more than 8 bits: {found.two_terms[0]}")
    found, _ = judged([15, 15, 10, 15, 10])
    assert sorted(found.two_terms) == ["last", "wide"]
    assert sorted(found.as_dict()["inputs_in_two_terms"]) == ["last", "wide"]


def test_a_refused_model_is_chosen_again_on_the_images_that_refused_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """They join those that choose, with the narrower margin, and the spare images judge."""
    proto, card, heard = build(), toys.card("net", size=(9, 9), labels=LabelSpace.flat(8)), Recorder()
    monkeypatch.setattr(int8_engines, "time_nodes", lambda *_: Times({"all": 1.0}))
    asked: list[tuple[int, float]] = []

    def expect(self: Any, reference: Array, found: Array, others: Array, *, most_again: float) -> Any:
        asked.append((len(reference), self.margin))
        return Verdict("int8", 1000, 0), NO_FALLBACK

    monkeypatch.setattr(int8_select.Judges, "expect", expect)
    left = iter([50, 10, 50, 50])
    monkeypatch.setattr(int8_select, "judge", lambda *_: Verdict("int8", 1000, next(left)))
    choose, gate = int8_select.Judges(draw(3, 16)), int8_select.Judges(draw(4, 24))
    samples = int8_select.Samples(draw(0), choose, gate, lambda: int8_select.Judges(draw(5, 8)))
    quantize_it = partial(int8.to_int8, proto, card, samples, listener=heard)
    found = quantize_it()
    assert (found.verdict.changed, found.chosen_on) == (10, 40)
    assert asked == [(16, 0.75), (40, pytest.approx(2 / 3))]
    (notice,) = [notice for notice in heard.notices if notice.code != "W490"]  # times are those of no machine
    assert notice.code == "I489"
    assert "another class on 50 of 1000 images" in notice.message
    with pytest.raises(ModelError, match="another class on 50 of 1000"):
        quantize_it()
    assert next(left, None) is None


@pytest.mark.parametrize("outputs", ["logits", "logits and features"])
def test_files_with_features_say_that_near_ties_are_not_answered_again(
    monkeypatch: pytest.MonkeyPatch, outputs: str
) -> None:
    """Their search is for networks on integers alone, and the notice of what is in float says why."""
    proto, card, heard = build(), toys.card("net", size=(9, 9), labels=LabelSpace.flat(8)), Recorder()
    if outputs != "logits":
        (last,) = (node for node in proto.graph.node if node.op_type == "GlobalAveragePool")
        proto.graph.node.append(onnx.helper.make_node("Identity", last.input, ["features"], "features"))
        proto.graph.output.append(
            onnx.helper.make_tensor_value_info("features", onnx.TensorProto.FLOAT, ["n", "c", "h", "w"])
        )
    monkeypatch.setattr(int8_engines, "time_nodes", lambda *_: Times({"all": 1.0}))
    asked: list[float] = []

    def expect(self: Any, reference: Array, found: Array, others: Array, *, most_again: float) -> Any:
        asked.append(most_again)
        return Verdict("int8", 1000, 10 if len(asked) > 1 else 500), NO_FALLBACK

    monkeypatch.setattr(int8_select.Judges, "expect", expect)
    monkeypatch.setattr(int8_select, "judge", lambda *_: Verdict("int8", 1000, 10))
    samples = int8_select.Samples(draw(0), int8_select.Judges(draw(3, 16)), int8_select.Judges(draw(4, 24)))
    found = int8.to_int8(proto, card, samples, near_ties="fp32", listener=heard)
    said = "; near ties are answered on integers, as the file has features beside its logits"
    assert found.float_sums
    assert set(asked) == ({MOST_AGAIN} if outputs == "logits" else {0.0})
    (notice,) = [notice for notice in heard.notices if notice.code == "I437"]
    assert notice.message.endswith(said) == (outputs != "logits")


def test_blocks_are_an_order_of_their_own(
    judged: Callable[[Sequence[int]], tuple[int8_select.Quantized, Recorder]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where layers must return, single layers, the first ones and blocks are tried; the network is judged once."""
    asked: list[Sequence[LayerOrder]] = []

    def fake(orders: Sequence[LayerOrder], fixed: Sequence[str], products: Any, attempt: Any, **_: float) -> Any:
        asked.append(orders)
        tried = attempt(("stem", "first"))
        return [replace(tried, in_float_share=0.25)], tried

    monkeypatch.setattr(int8_select, "search", fake)
    found, heard = judged([15, 15, 10, 10])
    assert (found.in_float, found.float_sums, found.two_terms) == (("stem", "first"), True, ())
    (orders,) = asked
    assert [sorted(name for group in order for name in group) for order in orders] == [
        ["first", "last", "second", "stem", "wide"]
    ] * 3
    assert orders[1] == alone(["stem", "first", "wide", "second", "last"])
    assert {("stem", "first"), ("wide", "second"), ("last",)} == set(orders[2])
    (notice,) = [notice for notice in heard.notices if notice.code != "W490"]  # times are those of no machine
    assert notice.message == (
        "net: 2 of 5 layers with 25.0% of the multiplications stay in float: stem, first; "
        "the sums of residual branches are in float"
    )
