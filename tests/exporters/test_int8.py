"""int8: what is written, what judges it, and which layers stay in float."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from numpy.typing import NDArray

from ensemble.arrays import Pixels
from ensemble.card import METADATA_KEY
from ensemble.errors import DataError, DeviceError, ModelError, OptionError
from ensemble.events import Recorder
from ensemble.images.views import parse_views
from ensemble.labels import LabelSpace
from ensemble.predict.options import RunOptions
from ensemble.predict.predict import predict
from ensemble.predictions.dataset import read_predictions
from ensemble.predictions.truth import Truth
from ensemble.runtime.int8_weights import may_saturate
from ensemble.runtime.model_file import LOGITS, ModelFile, read_model
from ensemble.runtime.parity import PICTURES
from ensemble.runtime.session import start_session
from exporters import accuracy_gate
from exporters import export as module
from exporters.accuracy_gate import Verdict, judge, split_images
from exporters.export import Exported, ExportOptions, ImageSet, export
from exporters.int8 import to_int8
from exporters.int8_calibration import Activations, measure_activations
from exporters.int8_layers import count_products, find_layers, prepare
from exporters.int8_qdq import find_tensors, quantize
from exporters.int8_schemes import Range
from exporters.int8_select import Judges, Samples
from exporters.int8_timing import Times
from exporters.request import ExportRequest
from exporters.verify import ExportedModel
from tests.exporters.test_int8_saturation import LARGEST_SUM, largest_pair
from tests.support import toys
from tests.support.networks import make_checkpoint

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("one_thread")]

CHECKPOINT = make_checkpoint("test_efficientnet", classes=4, name="net.pth")
OPTIONS = ExportOptions(size=(32, 32), resize="squash", precision="int8", quantization="asymmetric")
RECORDED = "logits_of_test_images"
IDENTITY = parse_views("identity")
NAMES = tuple(f"{person}/{i}.jpg" for person in "abcdefgh" for i in range(6))


@pytest.fixture(scope="module")
def photographs(tmp_path_factory: pytest.TempPathFactory) -> ImageSet:
    """48 pictures of eight people."""
    root = tmp_path_factory.mktemp("images")
    for person in "abcdefgh":
        (root / person).mkdir()
    toys.write_pictures(root, NAMES)
    return ImageSet(NAMES, tuple(root / name for name in NAMES))


@pytest.fixture(scope="module")
def graph() -> onnx.ModelProto:
    """The network as torch's exporter writes it, once for all tests."""
    found: list[onnx.ModelProto] = []
    original = module._to_onnx

    def keep(*arguments: Any) -> onnx.ModelProto:
        found.append(original(*arguments))
        raise InterruptedError

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "_to_onnx", keep)
        with pytest.raises(InterruptedError):
            export(CHECKPOINT, Path("unused"), options=replace(OPTIONS, precision="fp32"))
    return found[0]


@pytest.fixture
def known_graph(monkeypatch: pytest.MonkeyPatch, graph: onnx.ModelProto) -> None:
    """Spares a test the seconds of torch's exporter."""

    def copy(*_: Any) -> onnx.ModelProto:
        found = onnx.ModelProto()
        found.CopyFrom(graph)
        return found

    monkeypatch.setattr(module, "_to_onnx", copy)


@pytest.fixture(autouse=True)
def no_faster_layers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Times of toy networks decide nothing: they are noise."""
    monkeypatch.setattr("exporters.int8_engines.time_nodes", lambda *_: Times({"all": 1.0}))


def lenient(patch: pytest.MonkeyPatch, least: float) -> None:
    """An untrained network is in doubt about most pictures."""
    for name in ("LEAST_AGREEMENT", "LEAST_AGREEMENT_WITH_TRUTH"):
        patch.setattr(accuracy_gate, name, {"fp16": least, "int8": least})


def run(path: Path, batch: Pixels) -> NDArray[np.float32]:
    read = read_model(path)
    return ExportedModel(read.data, read.card).run(batch)[LOGITS]


def draw_batch(count: int, size: int = 32) -> Pixels:
    return np.stack([toys.picture(100 + i, size=(size, size)) for i in range(count)])


@pytest.fixture
def exported(tmp_path: Path, photographs: ImageSet, known_graph: None, monkeypatch: pytest.MonkeyPatch) -> Exported:
    """The small network in int8, behind a lenient gate."""
    lenient(monkeypatch, 0.5)
    return export(CHECKPOINT, tmp_path / "out", options=OPTIONS, gate_images=photographs)


def test_an_int8_file_keeps_the_contract(exported: Exported) -> None:
    """The predictor accepts it, its weights are int8, and its card says what was calibrated and judged."""
    read = read_model(exported.path)
    assert read.card == exported.card
    assert read.card.precision == "int8"
    assert read.card.checks["calibration_images"] == 12
    assert read.card.checks["choosing_images"] == read.card.checks["gate"]["images"] == 18
    assert read.card.checks["gate"]["seen"] == {"trained": 0, "held_out": 0, "unknown": 18}
    assert exported.verdict is not None
    proto = onnx.load(exported.path)
    assert {(opset.domain, opset.version) for opset in proto.opset_import} == {("", 20)}
    kinds = [tensor.data_type for tensor in proto.graph.initializer if len(tensor.dims) == 4 and tensor.dims[1] > 1]
    wide = kinds.count(onnx.TensorProto.FLOAT)
    assert kinds.count(onnx.TensorProto.INT8) > wide
    used = {name for node in proto.graph.node for name in node.input}
    assert {tensor.name for tensor in proto.graph.initializer} <= used


def test_no_layer_of_an_exported_file_saturates(exported: Exported) -> None:
    """In every channel of every int8 weight, 255 times the sum of two weights that a kernel pairs fits into 16 bits:
    of neighboring channels where they are a multiple of four, else of any two; depthwise kernels pair none.
    """
    graph = onnx.load(exported.path).graph
    weights = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in graph.initializer}
    axes = {node.input[0]: node.attribute[0].i for node in graph.node if node.input[0].endswith("/weight/int8")}
    moved = [np.moveaxis(weights[name], axis, 0) for name, axis in axes.items()]
    paired = [one for one in moved if one.ndim == 2 or one.shape[1] > 1]
    rows = [one if one.ndim == 4 and one.shape[1] % 4 == 0 else one.reshape(len(one), -1) for one in paired]
    assert len(rows) > 10
    assert max(map(largest_pair, rows)) <= LARGEST_SUM
    assert not may_saturate(exported.path.read_bytes())


def with_recorded(exported: Exported, target: Path, logits: object) -> ModelFile:
    """The exported model with other logits in its card; None removes them."""
    checks = {key: value for key, value in exported.card.checks.items() if key != RECORDED}
    card = replace(exported.card, checks=checks if logits is None else checks | {RECORDED: logits})
    proto = onnx.load(exported.path)
    onnx.helper.set_model_props(proto, {METADATA_KEY: card.to_json()})
    onnx.save(proto, target)
    return read_model(target)


def test_an_int8_model_that_starts_is_compared_with_its_answers_at_export(exported: Exported, tmp_path: Path) -> None:
    """The card has the logits of eight test images: other ones are E606, small differences a notice, none is silent."""
    logits = np.array(exported.card.checks[RECORDED])
    assert logits.shape == (PICTURES, 4)
    heard = Recorder()
    start_session(read_model(exported.path), listener=heard)
    start_session(with_recorded(exported, tmp_path / "older.onnx", None), listener=heard)
    assert heard.notices == []
    start_session(with_recorded(exported, tmp_path / "near.onnx", (logits * 1.01).tolist()), listener=heard)
    assert [notice.code for notice in heard.notices] == ["I606"]
    with pytest.raises(DeviceError, match="where it was exported") as caught:
        start_session(with_recorded(exported, tmp_path / "other.onnx", (-logits).tolist()))
    assert caught.value.code == "E606"
    for odd in (["a"], [[1.0, 2.0]], [[float("nan")] * 4] * PICTURES, {"0": 1}, 1, [[1.0] * 5] * PICTURES):
        with pytest.raises(ModelError) as wrong:
            start_session(with_recorded(exported, tmp_path / "odd.onnx", odd))
        assert wrong.value.code == "E427"


def test_the_same_images_give_the_same_bytes(exported: Exported, tmp_path: Path, photographs: ImageSet) -> None:
    """A second export of the checkpoint writes the same file, bit by bit."""
    again = export(CHECKPOINT, tmp_path / "again", options=OPTIONS, gate_images=photographs)
    assert again.path.read_bytes() == exported.path.read_bytes()


def test_an_int8_model_predicts_the_same_bytes_for_any_batch(exported: Exported, tmp_path: Path) -> None:
    """`ens predict` runs it like any other member, and its logits do not depend on the size of the batch."""
    toys.write_pictures(tmp_path / "images", [f"{i}.jpg" for i in range(7)])
    found = []
    for batch in (1, 3, 7):
        done = predict(
            [exported.path],
            tmp_path / "images",
            tmp_path / f"preds{batch}",
            views=IDENTITY,
            options=RunOptions(batch=batch),
        )
        found.append(read_predictions(done.members[0].folder).logits["identity"])
    assert np.isfinite(found[0]).all()
    assert all(np.array_equal(one, found[0]) for one in found)


@pytest.mark.usefixtures("known_graph")
def test_a_gate_that_does_not_pass_leaves_no_file(
    tmp_path: Path, photographs: ImageSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Answers that all differ end in E436, exit 4, with the layers that hurt and without a file."""
    monkeypatch.setattr("exporters.int8_select.judge", lambda *_: Verdict("int8", 8, 8))
    monkeypatch.setattr("exporters.int8_select.expect_changes", lambda *_, **__: 8.0)
    with pytest.raises(ModelError, match="another class on 8 of 8 images") as caught:
        export(CHECKPOINT, tmp_path, options=OPTIONS, gate_images=photographs)
    assert (caught.value.code, caught.value.exit_status) == ("E436", 4)
    layers = [layer.name for layer in find_layers(module._to_onnx().graph)]  # type: ignore[call-arg]
    assert sorted(line.partition(":")[0] for line in caught.value.details) == sorted(layers)
    assert list(tmp_path.iterdir()) == []


class Planted(torch.nn.Module):
    """Four convolutions; one channel between the second and the third is a thousand times as large as the others."""

    def __init__(self, factor: float) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(1)
        self.convs = torch.nn.ModuleList(torch.nn.Conv2d(8 if i else 3, 8, 3) for i in range(4))
        self.head = torch.nn.Linear(8, 4)
        for parameter in self.parameters():
            torch.nn.init.normal_(parameter, std=0.3, generator=generator)
        with torch.no_grad():
            first, second = self.convs[1], self.convs[2]
            first.weight[0] *= factor  # type: ignore[operator,index]
            first.bias[0] *= factor  # type: ignore[operator,index]
            second.weight[:, 0] /= factor  # type: ignore[operator,index]
            # so that the gate's images are of all classes
            image = torch.from_numpy(draw_batch(60, 24)).permute(0, 3, 1, 2) / 255
            self.head.bias.sub_(self(image).mean(0))

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """Logits ``(B, 4)``."""
        for conv in self.convs:
            image = torch.relu(conv(image))
        found: torch.Tensor = self.head(image.mean((2, 3)))
        return found


def write_planted(factor: float) -> onnx.ModelProto:
    """The network as ONNX, written by hand: what it takes is divided by 255."""
    model = Planted(factor)
    values = {name: tensor.detach().numpy() for name, tensor in model.named_parameters()}
    values |= {"scale": np.array(1 / 255, dtype=np.float32), "axes": np.array([2, 3]), "flat": np.array([-1, 8])}
    make = onnx.helper.make_node
    nodes = [
        make("Transpose", ["image"], ["planes"], "n1", perm=[0, 3, 1, 2]),
        make("Cast", ["planes"], ["wide"], "n2", to=onnx.TensorProto.FLOAT),
        make("Mul", ["wide", "scale"], ["x0"], "n3"),
    ]
    for i in range(4):
        nodes.append(make("Conv", [f"x{i}", f"convs.{i}.weight", f"convs.{i}.bias"], [f"conv{i}"], f"conv{i}"))
        nodes.append(make("Relu", [f"conv{i}"], [f"x{i + 1}"], f"relu{i}"))
    nodes += [
        make("ReduceMean", ["x4", "axes"], ["mean"], "n4", keepdims=1),
        make("Reshape", ["mean", "flat"], ["rows"], "n5"),
        make("Gemm", ["rows", "head.weight", "head.bias"], ["logits"], "n6", transB=1),
    ]
    graph = onnx.helper.make_graph(
        nodes,
        "planted",
        [onnx.helper.make_tensor_value_info("image", onnx.TensorProto.UINT8, ["batch", 24, 24, 3])],
        [onnx.helper.make_tensor_value_info("logits", onnx.TensorProto.FLOAT, ["batch", 4])],
        [onnx.numpy_helper.from_array(np.ascontiguousarray(v) if v.ndim else v, name) for name, v in values.items()],
    )
    return onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 20)], ir_version=10)


def squeeze(factor: float, heard: Recorder) -> Any:
    return to_int8(
        write_planted(factor),
        toys.card("planted", labels=LabelSpace.flat(4)),
        Samples(draw_batch(16, 24), Judges(draw_batch(60, 24)), Judges(draw_batch(60, 24))),
        listener=heard,
    )


def test_a_planted_sensitive_layer_stays_in_float(monkeypatch: pytest.MonkeyPatch) -> None:
    """The layers on either side of an outlying channel, and no others, return to float; without it none does."""
    lenient(monkeypatch, 0.8)
    monkeypatch.setattr("exporters.int8_select.MOST_IN_FLOAT", 0.7)
    heard = Recorder()
    assert squeeze(1, Recorder()).in_float == ()
    found = squeeze(3000, heard)
    assert set(found.in_float) == {"convs.1", "convs.2"}
    # W490 is about times of this machine
    assert [notice.code for notice in heard.notices if notice.code != "W490"] == ["I437"]
    assert found.verdict.faults == ()
    kept = {tensor.name for tensor in found.proto.graph.initializer if tensor.data_type == onnx.TensorProto.FLOAT}
    assert f"{found.in_float[0]}.weight" in kept


def test_integers_answer_as_the_formula_says() -> None:
    """A quantized product is that of the rounded weights and inputs, computed by hand."""
    proto = prepare(write_planted(1))
    layers = find_layers(proto.graph)
    head = layers[-1]
    ranges = {name: Range(-1.0, 3.0) for name in find_tensors(proto.graph, [head])}
    model = quantize(proto, ranges, [head])
    batch = draw_batch(2, 24)
    card = toys.card("planted", labels=LabelSpace.flat(4))
    del proto.graph.output[:]
    proto.graph.output.append(onnx.helper.make_tensor_value_info("rows", onnx.TensorProto.FLOAT, ["batch", 8]))
    rows = ExportedModel(proto.SerializeToString(), card).run(batch)["rows"].astype(np.float64)
    weights = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in proto.graph.initializer}
    weight, bias = weights["head.weight"].astype(np.float64), weights["head.bias"]
    ordered = np.sort(weight, axis=1)
    step = 4 / 255
    steps = np.maximum(ordered.clip(0)[:, -2:].sum(axis=1), -ordered.clip(None, 0)[:, :2].sum(axis=1)) / 127
    zero = np.rint(1 / step)
    stored = (np.clip(np.rint(rows / step) + zero, 0, 255) - zero) * step
    expected = stored @ (np.rint(weight / steps[:, None]) * steps[:, None]).T + bias
    found = ExportedModel(model.SerializeToString(), card).run(batch)[LOGITS]
    np.testing.assert_allclose(found, expected, atol=1e-3 * np.abs(expected).max())


def test_ranges_are_those_of_the_images() -> None:
    """A tensor's range holds zero and the extremes over all images; its histogram counts every value of a small one."""
    proto = prepare(write_planted(1))
    batch = draw_batch(20, 24)
    found = measure_activations(proto, ["x0", "conv0"], batch)
    ranges = found.extremes()
    assert ranges["x0"].low == 0
    assert ranges["x0"].high == pytest.approx(float(np.float32(batch.max()) * np.float32(1 / 255)))
    assert ranges["conv0"].low < 0 < ranges["conv0"].high
    np.testing.assert_array_equal(found.counts.sum(axis=1), [20 * 24 * 24 * 3, 20 * 22 * 22 * 8])
    pixels = np.bincount(batch.ravel(), minlength=256)
    assert found.counts[0][-1] == pixels[batch.max()]


def test_least_squares_cut_what_costs_more_than_it_is_worth() -> None:
    """Of normal values and a far one the range that rounds best is narrower, and evenly spread values keep theirs. The
    error of rounding, worked out value by value, is less.
    """
    rng = np.random.default_rng(0)
    values = np.append(rng.normal(size=1_000_000), 40.0)
    even = np.linspace(-1, 3, 10_001)
    ends = [(float(one.min()), float(one.max())) for one in (values, even)]
    counts = [np.histogram(one, 2048, span)[0] for one, span in zip((values, even), ends, strict=True)]
    low, high = np.array(ends).T
    found = Activations(("tail", "even"), low, high, np.array(counts, dtype=np.float64)).least_squares()
    assert found["even"] == Range(-1.0, 3.0)
    assert ends[0][0] <= found["tail"].low < -3
    assert 3 < found["tail"].high < 20

    def error(span: Range) -> float:
        steps = np.rint(values / span.scale) + float(span.zero)
        return float(np.mean(((np.clip(steps, 0, 255) - float(span.zero)) * span.scale - values) ** 2))

    assert error(found["tail"]) < 0.5 * error(Range(*ends[0]))


def test_multiplications_are_counted_by_hand() -> None:
    """A convolution's are its outputs times the weights that make one, a matrix product's are its weights."""
    model = prepare(write_planted(1))
    found = count_products(model, find_layers(model.graph))
    assert found == {
        "convs.0": 22 * 22 * 8 * 3 * 9,
        "convs.1": 20 * 20 * 8 * 8 * 9,
        "convs.2": 18 * 18 * 8 * 8 * 9,
        "convs.3": 16 * 16 * 8 * 8 * 9,
        "head": 8 * 4,
    }


def test_layers_that_share_a_weight_are_two() -> None:
    """A block that is applied twice has its products twice, and each time a name of its own."""
    model = prepare(write_planted(1))
    convolutions = [node for node in model.graph.node if node.op_type == "Conv"]
    convolutions[2].input[1] = convolutions[1].input[1]
    layers = find_layers(model.graph)
    found = count_products(model, layers)
    assert [layer.name for layer in layers] == ["convs.0", "convs.1", "convs.1 (2)", "convs.3", "head"]
    assert found["convs.1"] == 20 * 20 * 8 * 8 * 9
    assert found["convs.1 (2)"] == 18 * 18 * 8 * 8 * 9


@pytest.mark.parametrize("with_truth", [False, True])
def test_no_image_and_no_person_is_on_both_sides(with_truth: bool) -> None:
    """Images that calibrate never judge, nor do other images of the same person."""
    persons = tuple(name[0] for name in NAMES)
    truth = Truth(NAMES, np.zeros(len(NAMES), dtype=np.intp), persons, LabelSpace.flat(4)) if with_truth else None
    split = split_images(NAMES, truth, calibration=256)
    assert len(split.calibration) == 12
    assert len(split.gate) == 36
    assert not set(split.calibration) & set(split.gate)
    if with_truth:
        assert not {persons[i] for i in split.calibration} & {persons[i] for i in split.gate}


@pytest.mark.parametrize("with_truth", [False, True])
def test_who_chooses_does_not_judge(with_truth: bool) -> None:
    """Three sets without a person in common, the two of the gate about as large, by the truth or by the training."""
    persons = {name: name[0] for name in NAMES}
    truth = Truth(NAMES, np.zeros(len(NAMES), dtype=np.intp), tuple(persons.values()), LabelSpace.flat(4))
    split = split_images(
        NAMES, truth if with_truth else None, calibration=12, choosing=True, persons=None if with_truth else persons
    )
    people = [{persons[NAMES[i]] for i in part} for part in (split.calibration, split.choose, split.gate)]
    assert all(people)
    assert len(set.union(*people)) == sum(map(len, people))
    assert abs(len(split.choose) - len(split.gate)) <= 6


def test_what_the_network_was_trained_on_judges_nothing() -> None:
    """Training images calibrate first; where too few others are left, they have to judge."""
    split = split_images(NAMES, None, calibration=12, choosing=True, trained=NAMES[:24])
    assert {NAMES[i] for i in (*split.choose, *split.gate)} == set(NAMES[24:])
    assert {NAMES[i] for i in split.calibration} <= set(NAMES[:24])
    split = split_images(NAMES, None, calibration=12, choosing=True, trained=NAMES[:40])
    assert len(split.choose) == len(split.gate) == 18


def test_a_third_set_judges_where_there_are_images_for_it() -> None:
    """1,500 others make three parts of about the same size without a person in common; the rest of those who do not
    judge, and those who calibrate, tell how far apart classes are.
    """
    names = [f"{person:03}/{i}.jpg" for person in range(300) for i in range(7)]
    persons = {name: name[:3] for name in names}
    split = split_images(names, None, calibration=256, choosing=True, persons=persons)
    parts = [split.calibration, split.choose, split.gate, split.spare]
    assert [len(split.calibration), sum(map(len, parts[1:]))] == [256, 1500]
    assert all(abs(len(part) - 500) < 20 for part in parts[1:])
    people = [{persons[names[i]] for i in part} for part in parts]
    assert sum(map(len, people)) == len(set.union(*people))
    others = {persons[names[i]] for i in split.others}
    assert others
    assert not others & (people[2] | people[3])
    assert not set(split.others) & set(split.choose)
    assert set(split.calibration) <= set(split.others)
    few = split_images(names[:1400], None, calibration=256, choosing=True, persons=persons)
    assert (len(few.choose) + len(few.gate), few.spare) == (1000, ())


def test_few_people_make_no_third_set() -> None:
    """Two people with many images each cannot be three parts."""
    names = [f"{person}/{i}.jpg" for person in "ab" for i in range(900)]
    split = split_images(names, None, calibration=0, choosing=True, persons={name: name[0] for name in names})
    assert split.spare == ()
    assert split.choose
    assert split.gate


def test_one_person_cannot_choose_and_judge() -> None:
    """Images of one person are E316: there is nobody else to judge by."""
    with pytest.raises(DataError, match="1 people are too few") as caught:
        split_images(NAMES, None, calibration=0, choosing=True, persons=dict.fromkeys(NAMES, "a"))
    assert caught.value.code == "E316"


def test_the_interval_is_wilsons() -> None:
    """The ends are those of a published example (Newcombe 1998: 81 of 263 and 0 of 20), and hold all for no change."""
    low, high = Verdict("int8", 263, 263 - 81).interval
    assert (round(low, 4), round(high, 4)) == (0.2553, 0.3662)
    low, high = Verdict("int8", 20, 20).interval
    assert (round(low, 4), round(high, 4)) == (0.0, 0.1611)
    assert Verdict("int8", 231, 0).interval[1] == 1


def test_the_images_of_the_gate_choose_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever the other half says, a gate that does not pass is E436, after one look at its images."""
    lenient(monkeypatch, 0.8)
    seen: list[int] = []

    def judge_both(precision: Any, reference: Any, found: Any, truth: Any) -> Verdict:
        seen.append(len(found))
        return Verdict("int8", len(found), len(found) if len(found) == 20 else 0)

    monkeypatch.setattr("exporters.int8_select.judge", judge_both)
    images = draw_batch(60, 24)
    with pytest.raises(ModelError, match="another class on 20 of 20 images"):
        to_int8(
            write_planted(1),
            toys.card("planted", labels=LabelSpace.flat(4)),
            Samples(images[:16], Judges(images[:40]), Judges(images[40:])),
        )
    assert seen == [40, 20]


@pytest.mark.parametrize(("changed", "safe"), [(5, True), (6, True), (7, False)])
def test_layers_are_chosen_with_a_margin(changed: int, safe: bool) -> None:
    """On the images that choose, two thirds of what the gate allows may change: 6.7 of 500."""
    assert Verdict("int8", 500, changed).is_safe == safe
    assert not Verdict("int8", 500, 10).faults


def test_the_share_that_must_stay_is_an_option() -> None:
    """It replaces that of the precision, in the margin, in the faults and with a ground truth; the card keeps it."""
    for f1 in (None, 0.5):
        verdict = replace(Verdict("int8", 500, 15, f1, f1), least=0.97)
        assert verdict.faults == ()
        assert not verdict.is_safe
        assert replace(verdict, changed=7).is_safe
        assert replace(verdict, changed=16).hint is None  # that of the code, which names --least-agreement
        assert replace(verdict, changed=16).faults == ("another class on 16 of 500 images, 3.0% may change",)
        assert verdict.as_dict()["least_agreement"] == 0.97
    assert "least_agreement" not in Verdict("int8", 500, 15).as_dict()
    # two thirds of what may change, whatever the rounding of 1 - 0.9
    assert replace(Verdict("int8", 300, 20), least=0.9).is_safe
    assert "--least-agreement" not in str(Verdict("int8", 500, 0, 0.4, 0.5).hint)
    judges = Judges(draw_batch(60, 24), least=0.75)
    reference = np.eye(4, dtype=np.float32)[np.arange(60) % 4]
    assert judges.compare(reference, reference).least == 0.75


@pytest.mark.parametrize("share", [0.49, 1.0, 97.0, -0.1, float("nan"), float("inf")])
def test_a_share_out_of_range_is_refused(share: float) -> None:
    """A percentage, all answers, or no number."""
    with pytest.raises(OptionError, match=r"from 0\.5 to below 1, got ") as caught:
        ExportRequest((Path(__file__),), precision="int8", calibrate=Path(__file__).parent, least_agreement=share)
    assert caught.value.code == "E204"


@pytest.mark.parametrize(("precision", "images"), [("fp32", None), ("fp16", None), ("fp16", Path(__file__).parent)])
def test_a_share_without_a_check_is_refused(precision: Any, images: Path | None) -> None:
    """Of fp32, and of fp16 without a ground truth, no answers are compared."""
    with pytest.raises(OptionError, match="--least-agreement is for the check of int8") as caught:
        ExportRequest((Path(__file__),), precision=precision, least_agreement=0.9, check_images=images)
    assert caught.value.code == "E204"


@pytest.mark.parametrize(
    "asked",
    [{"precision": "fp32"}, {"precision": "int8", "quantization": "symmetric", "calibrate": Path(__file__).parent}],
)
def test_near_ties_are_those_of_int8_on_cpus(asked: dict[str, Any]) -> None:
    """float32 has none, and TensorRT runs one network; to have none may stand in a configuration file."""
    with pytest.raises(OptionError, match="--near-ties fp32 is for --precision int8") as caught:
        ExportRequest((Path(__file__),), near_ties="fp32", **asked)
    assert caught.value.code == "E204"
    ExportRequest((Path(__file__),), near_ties="int8", **asked)


@pytest.mark.parametrize("wanted", ["fp32", "int8"])
def test_near_ties_of_an_exported_file_are_answered_in_float(
    tmp_path: Path, photographs: ImageSet, known_graph: None, monkeypatch: pytest.MonkeyPatch, wanted: Any
) -> None:
    """The card, the notice and the file say so; its other rows are those of the file without a fallback."""
    lenient(monkeypatch, 0.5)
    taken = []

    def expect(*_: Any, below: float = 0.0) -> float:
        taken.append(below)
        return 0.0 if below or wanted == "int8" else 1000.0

    monkeypatch.setattr("exporters.int8_select.expect_changes", expect)
    monkeypatch.setattr("exporters.int8.MOST_AGAIN", 0.5)
    heard = Recorder()
    options = replace(OPTIONS, near_ties=wanted)
    found = export(CHECKPOINT, tmp_path / "out", options=options, gate_images=photographs, listener=heard)
    said = [notice.message for notice in heard.notices if notice.code == "I437"]
    graph = onnx.load(found.path).graph
    if wanted == "int8":
        assert "near_ties" not in found.card.checks
        assert "If" not in {node.op_type for node in graph.node}
        return
    assert any(taken)
    below, share = found.card.checks["near_ties"].values()
    assert f"near ties are answered in float: {share:.1%} of the images" in said[0]
    (branch,) = (node for node in graph.node if node.op_type == "If")
    constants = {tensor.name: tensor for tensor in graph.initializer}
    assert float(onnx.numpy_helper.to_array(constants["near_ties/below"])) == pytest.approx(below)
    assert list(branch.output) == [LOGITS]
    plain = export(CHECKPOINT, tmp_path / "plain", options=replace(OPTIONS, precision="fp32"))
    batch = draw_batch(30, 32)
    near = np.abs(run(found.path, batch) - run(plain.path, batch)).max(axis=1) < 1e-4
    assert near.any()
    assert not near.all()


def test_an_export_accepts_fewer_answers(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, photographs: ImageSet, known_graph: None
) -> None:
    """A check that refuses the model passes where fewer answers must stay, and the card says which share was asked."""
    for name in ("LEAST_AGREEMENT", "LEAST_AGREEMENT_WITH_TRUTH"):
        monkeypatch.setattr(accuracy_gate, name, {"int8": 1.1})
    with pytest.raises(ModelError, match="another class on") as caught:
        export(CHECKPOINT, tmp_path, options=OPTIONS, gate_images=photographs)
    assert caught.value.code == "E436"
    asked = replace(OPTIONS, least_agreement=0.5)
    found = export(CHECKPOINT, tmp_path, options=asked, gate_images=photographs)
    assert found.card.checks["gate"]["least_agreement"] == 0.5
    assert found.verdict is not None
    assert found.verdict.least == 0.5


def test_images_without_a_truth_calibrate() -> None:
    """A truth of some people only leaves the others to the calibration, and all of its own to the gate."""
    known = NAMES[:24]
    truth = Truth(known, np.zeros(24, dtype=np.intp), tuple(name[0] for name in known), LabelSpace.flat(4))
    split = split_images(NAMES, truth, calibration=256)
    assert {NAMES[i] for i in split.gate} == set(known)
    assert {NAMES[i][0] for i in split.calibration} <= set("efgh")


def test_a_truth_of_other_images_is_refused() -> None:
    """A truth that names an image which is not there ends in E330; too few images to judge by in E316."""
    truth = Truth(("z.jpg",), np.zeros(1, dtype=np.intp), None, LabelSpace.flat(4))
    with pytest.raises(DataError, match=r"z\.jpg") as caught:
        split_images(NAMES, truth, calibration=8)
    assert caught.value.code == "E330"
    with pytest.raises(DataError, match="7 of 9 images are left to judge by"):
        split_images(NAMES[:9], None, calibration=8)


def test_the_gate_counts_changed_classes_and_lost_f1() -> None:
    """2 % of the classes may change in int8, macro F1 may fall by 0.003 and rise by any amount."""
    reference = np.eye(4, dtype=np.float32)[np.arange(100) % 4]
    truth = np.arange(100) % 4
    found = reference.copy()
    found[:2] = found[:2, ::-1]
    assert [len(judge("int8", reference, found, known).faults) for known in (None, truth)] == [0, 1]
    assert judge("int8", found, reference, truth).faults == ()
    found[2] = np.nan
    assert "another class on 3 of 100" in judge("int8", reference, found, None).faults[0]


@pytest.mark.usefixtures("known_graph")
def test_int8_without_images_is_refused(tmp_path: Path) -> None:
    """There is no calibration on rendered pictures: E204 names the option."""
    with pytest.raises(OptionError, match="calibrated on real images") as caught:
        export(CHECKPOINT, tmp_path, options=OPTIONS)
    assert caught.value.code == "E204"
    assert "--calibrate" in caught.value.hint


def test_half_precision_is_judged_by_the_truth(
    tmp_path: Path, photographs: ImageSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    """fp16 with a truth compares macro F1 on its images, keeps both in the card, and fails like int8."""
    truth = tmp_path / "truth.csv"
    truth.write_text("ImageID,ans\n" + "".join(f"{name},{i % 4}\n" for i, name in enumerate(NAMES)))
    options = replace(OPTIONS, precision="fp16")
    arguments: dict[str, Any] = {"options": options, "gate_images": photographs, "truth": truth}
    lenient(monkeypatch, 0.9)
    done = export(CHECKPOINT, tmp_path / "out", **arguments)
    intervals = {"agreement_interval", "macro_f1_lost_interval"}
    assert done.card.checks["gate"].keys() == {"images", "agreement", "macro_f1", "macro_f1_fp32"} | intervals
    proto = onnx.load(done.path)
    monkeypatch.setattr(module, "_to_onnx", lambda *_: proto)
    monkeypatch.setattr(module, "judge", lambda *_: Verdict("fp16", 48, 9, 0.1, 0.2))
    with pytest.raises(ModelError, match=r"another class on 9 of 48 .* macro F1 falls") as caught:
        export(CHECKPOINT, tmp_path / "again", **arguments)
    assert caught.value.code == "E436"
    assert list((tmp_path / "again").iterdir()) == []


def test_where_the_truth_is_known_the_macro_f1_decides() -> None:
    """3 % of the answers may change when the score holds, none of that when the score falls, and never 6 %."""
    assert not accuracy_gate.Verdict("int8", 1000, 30, f1=0.5, reference_f1=0.502).faults
    assert accuracy_gate.Verdict("int8", 1000, 30).faults
    assert accuracy_gate.Verdict("int8", 1000, 30, f1=0.49, reference_f1=0.5).faults
    assert accuracy_gate.Verdict("int8", 1000, 60, f1=0.5, reference_f1=0.5).faults
