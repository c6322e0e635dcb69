"""`ens probe`: heads on a frozen network's features are honest out of fold, and answer as the files they are in."""

from __future__ import annotations

import contextlib
import csv
import importlib
import json
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import onnx
import pytest
from click.testing import CliRunner, Result
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from PIL import Image
from sklearn.linear_model import LogisticRegression

import ensemble
from checkpoints.data.dataset import Dataset, read_dataset
from checkpoints.data.folds import make_folds
from checkpoints.probe.choose_strength import plan_fits
from checkpoints.probe.linear_head import LinearHead, fit_path, make_targets
from checkpoints.probe.open_network import open_network
from checkpoints.probe.probe_member import ProbeJob, probe_member
from ensemble.adopt.make_card import AdoptOptions
from ensemble.card import METADATA_KEY, FaceCrop
from ensemble.cli import ens
from ensemble.errors import EnsError, ModelError, OptionError
from ensemble.events import Recorder
from ensemble.images.face_boxes import Box, Face, write_boxes
from ensemble.kept_arrays import KeptArrays
from ensemble.labels import Axis, LabelSpace
from ensemble.predictions.dataset import read_predictions
from ensemble.runtime.model_file import read_model
from tests.harness.kills import contents
from tests.support import toys

probe_module = importlib.import_module("checkpoints.probe.probe_member")
SIDE = 8
KNOWN = AdoptOptions(input_range="0..1", resize="squash", interpolation="bilinear", resizer="pillow", crop_pct=1.0)
SPACE = LabelSpace((Axis("hue", ("red", "blue")), Axis("light", ("dark", "bright"))))
COLORS = {"red / dark": (90, 20, 20), "red / bright": (250, 90, 90), "blue / dark": (20, 20, 90)}
COLORS["blue / bright"] = (90, 90, 250)


def write_network(
    path: Path,
    *,
    layout: str = "nchw",
    kind: int = TensorProto.FLOAT,
    batch: Any = "n",
    end: str = "map",
    opset: int = 17,
) -> Path:
    """A convolution of 12 channels; ``end`` is what its output is: a map, tokens, a row, a softmax, two outputs."""
    generator = np.random.default_rng(3)
    weights: dict[str, NDArray[Any]] = {
        "filters": generator.normal(0, 0.4, (12, 3, 3, 3)).astype(np.float32),
        "head": generator.normal(0, 0.4, (12, 5)).astype(np.float32),
        "far": np.array(5, dtype=np.float32),
        "little": np.array(1e-5, dtype=np.float32),
        "unused": np.zeros(50_000, dtype=np.float32),
        "tokens_shape": np.array([-1 if batch == "n" else batch, 12, SIDE * SIDE], dtype=np.int64),
    }
    shape = [batch, 3, SIDE, SIDE] if layout == "nchw" else [batch, SIDE, SIDE, 3]
    nodes = [helper.make_node("Cast", ["x"], ["x32"], to=TensorProto.FLOAT)]
    planes = "x32"
    if layout == "nhwc":
        nodes.append(helper.make_node("Transpose", ["x32"], ["moved"], perm=[0, 3, 1, 2]))
        planes = "moved"
    nodes += [
        helper.make_node("Conv", [planes, "filters"], ["conv"], pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["conv"], ["map"]),
        helper.make_node("Transpose", ["map"], ["map_last"], perm=[0, 2, 3, 1]),
        helper.make_node("GlobalAveragePool", ["map"], ["pooled"]),
        helper.make_node("Flatten", ["pooled"], ["row"]),
        helper.make_node("Mul", ["row", "little"], ["small"]),
        helper.make_node("Add", ["small", "far"], ["narrow"]),
        helper.make_node("Sub", ["row", "row"], ["same"]),
        helper.make_node("ReduceMean", ["row"], ["of_batch"], axes=[0], keepdims=1),
        helper.make_node("Sub", ["row", "of_batch"], ["in_batch"]),
        helper.make_node("MatMul", ["row", "head"], ["scores"]),
        helper.make_node("Softmax", ["scores"], ["softmax"], axis=1),
        helper.make_node("Reshape", ["map", "tokens_shape"], ["by_channel"]),
        helper.make_node("Transpose", ["by_channel"], ["tokens"], perm=[0, 2, 1]),
        helper.make_node("ArgMax", ["scores"], ["class"], axis=1),
    ]
    outputs = [helper.make_empty_tensor_value_info(name) for name in end.split(",")]
    image = helper.make_tensor_value_info("x", kind, shape)
    tensors = [numpy_helper.from_array(value, name) for name, value in weights.items()]
    graph = helper.make_graph(nodes, "g", [image], outputs, initializer=tensors)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)])
    model.ir_version = 8
    onnx.save(model, path)
    return path


def write_table(folder: Path, *, people: int = 8, several: bool = False) -> Path:
    """Two images per person and class, of noisy colors; a table with the person, and one label or two columns."""
    generator = np.random.default_rng(0)
    folder.mkdir()
    lines = ["image,person,red,bright" if several else "image,person,label"]
    for person in range(people):
        for number, (name, color) in enumerate(COLORS.items()):
            for copy in range(2):
                file = f"{person}_{number}_{copy}.png"
                pixels = generator.normal(color, 45, (12, 10, 3)).clip(0, 255).astype(np.uint8)
                Image.fromarray(pixels).save(folder / file)
                what = f"{int('red' in name)},{int('bright' in name)}" if several else number
                lines.append(f"{file},p{person},{what}")
    path = folder / "train.csv"
    path.write_text("\n".join(lines) + "\n")
    return path


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    return read_dataset(write_table(tmp_path_factory.mktemp("data") / "train"), labels=SPACE)


def make_job(data: Dataset, network: Path, out: Path, *, folds: int = 3, **more: Any) -> ProbeJob:
    """A job of the member p, with folds of its own; ``outputs`` and ``options`` are those of the network."""
    dealt = make_folds(data.rows, folds=folds, seed=0, labels=data.labels)
    opened = open_network(network, more.pop("options", KNOWN), more.pop("outputs", ()), face=more.pop("face", None))
    return ProbeJob(data, dealt, "p", opened, out, folds_file=out / "folds.csv", **more)


def probed(data: Dataset, tmp_path: Path, **more: Any) -> float:
    """Probe, and check every fold: its file gives the out-of-fold predictions of exactly the images it held out."""
    habits = {key: more.pop(key) for key in ("layout", "kind", "batch", "end", "opset") if key in more}
    tolerance = 0.1 if habits.get("kind") == TensorProto.FLOAT16 else 2e-3
    job = make_job(data, write_network(tmp_path / "net.onnx", **habits), tmp_path / "runs", **more)
    result = probe_member(job)
    for fold, one in enumerate(result.folds):
        card = read_model(one.path).card
        part = read_predictions(result.oof / card.member)
        held = [row for row in data.rows if job.folds.of_person[row.person] == fold]
        assert (card.group, card.fold, card.labels, part.fold) == ("p", fold, data.labels, fold)
        assert part.ids == tuple(row.id for row in held)
        assert card.holdout_sha256 is not None
        answers = ensemble.load(one.path, device="cpu")([row.path for row in held[:5]])
        logits = np.stack([answer.logits["identity"] for answer in answers])
        assert np.allclose(logits, part.logits["identity"][:5], atol=tolerance)
        assert not np.array_equal(part.logits["identity"], part.logits["hflip"])
    return result.score


@pytest.mark.parametrize(
    "habits",
    [
        {},
        {"end": "row"},
        {"end": "tokens"},
        {"end": "softmax"},
        {"end": "map_last", "layout": "nhwc"},
        {"end": "scores,class", "outputs": ["row"]},
        {"layout": "nhwc", "kind": TensorProto.UINT8, "options": AdoptOptions(resize="squash")},
        {"batch": 1, "end": "tokens"},
        {"batch": 4},
        {"kind": TensorProto.FLOAT16, "end": "row"},
        {"opset": 9, "end": "row"},
        {"head": "axes"},
        {"folds": 2},
    ],
    ids=lambda habits: "-".join(map(str, habits.values()))[:40] or "plain",
)
def test_a_probe_of_any_network_is_a_member_that_knows_the_classes(
    data: Dataset, tmp_path: Path, habits: dict[str, Any]
) -> None:
    """Maps, tokens, rows, softmax, either layout, uint8, half floats, fixed batches, an old opset, axes, two folds."""
    assert probed(data, tmp_path, **habits) > 0.8


def test_labels_that_exclude_nothing_get_a_logit_each(tmp_path: Path) -> None:
    """A table with two columns of 0 and 1 gives sigmoid members of two labels."""
    several = read_dataset(write_table(tmp_path / "train", several=True))
    assert several.activation == "sigmoid"
    assert probed(several, tmp_path) > 0.9


def test_a_head_is_the_minimum_that_scikit_learn_finds(data: Dataset) -> None:
    """LogisticRegression with C = 1 / (rows * strength) on the same standardized features gives the same."""
    generator = np.random.default_rng(1)
    classes = generator.integers(0, 4, 200)
    features = generator.normal(0, 1, (200, 6)) * [1, 2, 3, 4, 5, 0] + np.eye(6)[classes] + [0, 0, 0, 0, 0, 7]
    rows = np.arange(200) < 150
    (target,) = make_targets(data.labels, "flat", "softmax", classes, classes)
    *_, block = fit_path(features, target, rows, (1.0, 0.01))
    mean, spread = features[rows].mean(axis=0), features[rows].std(axis=0)
    centered = (features - mean) / np.where(spread == 0, 1, spread)
    oracle = LogisticRegression(C=1 / (150 * 0.01), tol=1e-8, max_iter=5000).fit(centered[rows], classes[rows])
    head = LinearHead(data.labels, (block,))
    powers = np.exp(head.logits(features))
    assert np.abs(powers / powers.sum(axis=1, keepdims=True) - oracle.predict_proba(centered)).max() < 2e-3


@pytest.mark.parametrize("count", [2, 3, 4])
def test_no_inner_fit_sees_the_outer_fold_or_a_person_it_is_scored_on(data: Dataset, count: int) -> None:
    """Every image but those of the outer fold is scored once for it, by a fit of other people."""
    folds = make_folds(data.rows, folds=count, seed=0, labels=data.labels)
    people = np.array([row.person for row in data.rows])
    times = np.zeros((count, len(data.rows)), dtype=int)
    for fit in plan_fits(data, folds, seed=0):
        for fold, scored in fit.scored:
            held = folds.holdout(data.rows, fold)
            assert not (fit.training & held).any()
            assert not set(people[fit.training]) & set(people[scored])
            times[fold] += scored
    for fold in range(count):
        assert np.array_equal(times[fold], (~folds.holdout(data.rows, fold)).astype(int))


def ran(*words: object, status: int = 0) -> Result:
    done = CliRunner().invoke(ens, [str(word) for word in words])
    assert isinstance(done.exception, EnsError) if status else done.exit_code == 0, (done.exception, done.output)
    return done


@pytest.mark.slow
def test_folds_of_the_command_blend_like_those_of_training(tmp_path: Path) -> None:
    """ens probe, ens predict --tta and ens blend --oof need no further option; two probes share folds.csv."""
    table = write_table(tmp_path / "train")
    labels = tmp_path / "labels.json"
    labels.write_text(json.dumps(SPACE.to_dict()))
    network, runs = write_network(tmp_path / "net.onnx"), tmp_path / "runs"
    common = ["probe", table, "--features", network, "--labels", labels, "--folds", 3, "-o", runs, "--resize", "squash"]
    first = json.loads(ran(*common, "--input-range", "0..1", "--member", "a", "--head", "axes", "--json").stdout)
    assert set(first["folds"][0]["l2"]) == {"hue", "light"}
    ran(*common, "--input-range", "0..1", "--output", "row", "--member", "b")
    with (runs / "folds.csv").open() as stream:
        assert {row["fold"] for row in csv.DictReader(stream)} == {"0", "1", "2"}
    sample = tmp_path / "sample.csv"
    sample.write_text("ImageID,ans\n0_0_0.png,0\n1_1_0.png,0\n")
    models = sorted(runs.glob("*/*.onnx"))
    assert [path.name for path in models] == [f"{name}_f{fold}.onnx" for name in "ab" for fold in range(3)]
    ran("predict", *models, "--images", table.parent, "--ids", sample, "--tta", "-o", tmp_path / "preds")
    oof = [word for name in "ab" for word in ("--oof", runs / name / "oof")]
    out = tmp_path / "submission.csv"
    ran("blend", tmp_path / "preds", *oof, "--truth", runs / "a" / "truth.csv", "--like", sample, "-o", out)
    assert len(out.read_text().splitlines()) == 3


def test_an_earlier_probe_with_other_settings_is_kept_unless_told(data: Dataset, tmp_path: Path) -> None:
    """E442 before work is spent; --fresh replaces the files, and the same settings give the same bytes."""
    network = write_network(tmp_path / "net.onnx")
    job = make_job(data, network, tmp_path / "runs", outputs=["row"])
    (first,) = {one.path.read_bytes() for one in probe_member(job).folds[:1]}
    assert probe_member(job).folds[0].path.read_bytes() == first
    other = make_job(data, network, tmp_path / "runs", outputs=["scores"])
    with pytest.raises(EnsError) as caught:
        probe_member(other)
    assert caught.value.code == "E442"
    assert job.folder.joinpath("p_f0.onnx").read_bytes() == first
    assert probe_member(other, fresh=True).folds[0].path.read_bytes() != first


@pytest.mark.parametrize("ordinal", [(), ("class",)])
def test_a_probe_that_was_stopped_resumes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ordinal: tuple[str, ...]
) -> None:
    """Stopped at any step it computes, a probe computes no kept step again, and ends with the bytes of a quiet one."""
    data = read_dataset(write_table(tmp_path / "train"), labels=LabelSpace.flat(4) if ordinal else SPACE)
    head: Any = {"head": "flat" if ordinal else "axes", "ordinal": ordinal}
    network = write_network(tmp_path / "net.onnx")
    probe_member(make_job(data, network, tmp_path / "quiet", **head))
    wanted = contents(tmp_path / "quiet")
    add = KeptArrays.add
    added: list[str] = []

    def stop(self: KeptArrays, step: str, values: Any) -> None:
        add(self, step, values)
        added.append(step)
        if len(added) % 4 == 0:
            raise KeyboardInterrupt

    monkeypatch.setattr(KeptArrays, "add", stop)
    decoded: list[int] = []
    whole = probe_module.decode_images

    def decode(rows: Sequence[Any], *given: Any, **more: Any) -> Any:
        decoded.append(len(rows))
        return whole(rows, *given, **more)

    monkeypatch.setattr(probe_module, "decode_images", decode)
    job, recorder, stops = make_job(data, network, tmp_path / "runs", **head), Recorder(), 0
    while True:
        with contextlib.suppress(KeyboardInterrupt):
            probe_member(job, listener=recorder)
            break
        stops += 1
    assert stops >= 2
    assert len(set(added)) == len(added)
    assert decoded[0] == len(data.rows)
    assert decoded[-1] < len(data.rows)
    assert contents(tmp_path / "runs") == wanted
    assert {notice.code for notice in recorder.notices if "resumes" in notice.message} == {"I445"}


def test_features_of_other_images_are_computed_again(tmp_path: Path) -> None:
    """An image that changed after a probe was stopped gives the bytes of a probe that was never stopped."""
    table = write_table(tmp_path / "train")
    data = read_dataset(table, labels=SPACE)
    network = write_network(tmp_path / "net.onnx")
    job = make_job(data, network, tmp_path / "runs")
    with (
        pytest.raises(EnsError),
        mock.patch.object(probe_module, "adopt_network", side_effect=ModelError("E414", "no")),
    ):
        probe_member(job)
    assert list(job.folder.glob(".probe-*.state"))
    shutil.copy(tmp_path / "train" / "7_0_0.png", tmp_path / "train" / "0_0_0.png")
    probe_member(job)
    probe_member(make_job(data, network, tmp_path / "quiet"))
    assert contents(tmp_path / "runs") == contents(tmp_path / "quiet")


def test_a_trained_member_is_never_replaced(data: Dataset, tmp_path: Path) -> None:
    """E442 where the folder has weights of a training, even with --fresh."""
    job = make_job(data, write_network(tmp_path / "net.onnx"), tmp_path / "runs")
    job.folder.mkdir(parents=True)
    (job.folder / "fold0.safetensors").write_bytes(b"weights")
    with pytest.raises(EnsError) as caught:
        probe_member(job, fresh=True)
    assert caught.value.code == "E442"


@pytest.mark.parametrize(
    ("end", "output", "code"),
    [
        ("row", "nothing", "E204"),
        ("row,map", None, "E204"),
        ("row", "filters", "E204"),
        ("row", "class", "E424"),
    ],
)
def test_a_value_that_cannot_be_features_is_refused(tmp_path: Path, end: str, output: str | None, code: str) -> None:
    """No such value, several outputs, a weight, whole numbers."""
    network = write_network(tmp_path / "net.onnx", end=end)
    with pytest.raises(EnsError) as caught:
        open_network(network, KNOWN, [] if output is None else [output])
    assert caught.value.code == code


@pytest.mark.parametrize("end", ["same", "in_batch"])
def test_features_that_tell_no_image_from_another_are_refused(data: Dataset, tmp_path: Path, end: str) -> None:
    """The same number everywhere, and differences to the mean of a batch, which are 0 for an image by itself."""
    with pytest.raises(ModelError, match="of all 64 images are the same") as caught:
        probe_member(make_job(data, write_network(tmp_path / "net.onnx", end=end), tmp_path / "runs"))
    assert caught.value.code == "E414"


@pytest.mark.parametrize("more", [{}, {"head": "axes"}])
def test_features_that_differ_by_little_are_centered_in_the_graph(
    data: Dataset, tmp_path: Path, more: dict[str, Any]
) -> None:
    """Of 5 and a hundred-thousandth of a number float32 keeps two digits; products of large weights lose them."""
    assert probed(data, tmp_path, end="narrow", **more) > 0.5
    graph = onnx.load(tmp_path / "runs" / "p" / "p_f0.onnx").graph
    assert any(name.endswith("ens.probe.center") for node in graph.node for name in node.input)


def test_guesses_are_said(tmp_path: Path) -> None:
    """Where the features are, that they are averaged, and what preprocessing is assumed."""
    recorder = Recorder()
    opened = open_network(write_network(tmp_path / "net.onnx"), AdoptOptions(), listener=recorder)
    told = {notice.code: notice.message for notice in recorder.notices}
    assert "12 numbers of map" in told["I482"]
    assert "averaged over 64 places" in told["I482"]
    assert "mean and std of ImageNet" in told["W483"]
    assert opened.network.model.proto.ByteSize() < 20_000, "weights that the features do not need are left out"


def test_a_balanced_head_is_that_of_scikit_learn_s_class_weights() -> None:
    """The weights and bias of a rare class are those of LogisticRegression with class_weight balanced, within 1 %."""
    generator = np.random.default_rng(4)
    classes = np.repeat([0, 1, 2], [120, 60, 20])
    features = generator.normal(0, 1, (200, 4)) + np.eye(3, 4)[classes] * 1.5
    features = (features - features.mean(axis=0)) / features.std(axis=0)
    rows, space = np.ones(200, dtype=np.bool_), LabelSpace.flat(3)
    (target,) = make_targets(space, "flat", "softmax", classes, classes, balanced=True)
    *_, block = fit_path(features, target, rows, (1.0, 0.01))
    oracle = LogisticRegression(C=1 / (0.01 * 200), class_weight="balanced", max_iter=5000, tol=1e-8).fit(
        features, classes
    )
    assert np.allclose(block.weights - block.weights.mean(axis=1, keepdims=True), oracle.coef_.T, atol=0.01)
    found, wanted = block.logits(features), oracle.decision_function(features)
    assert np.allclose(
        found - found.mean(axis=1, keepdims=True), wanted - wanted.mean(axis=1, keepdims=True), atol=0.02
    )
    plain = next(fit_path(features, make_targets(space, "flat", "softmax", classes, classes)[0], rows, (0.01,)))
    assert (found.argmax(axis=1) == 2).sum() > (plain.logits(features).argmax(axis=1) == 2).sum()


def test_balance_is_in_the_card_and_for_one_class_per_image(data: Dataset, tmp_path: Path) -> None:
    """The card of each fold says so, another run without it is another probe, and several labels are E204."""
    network = write_network(tmp_path / "net.onnx", end="row")
    job = make_job(data, network, tmp_path / "runs", head="axes", balanced=True)
    card = read_model(probe_member(job).folds[0].path).card
    assert card.checks["probe"]["balanced"] is True
    plain = replace(job, balanced=False)
    with pytest.raises(EnsError) as caught:
        probe_member(plain)
    assert caught.value.code == "E442"
    with pytest.raises(OptionError, match="several labels"):
        replace(job, data=replace(data, activation="sigmoid"))


def test_several_values_of_a_network_are_joined(data: Dataset, tmp_path: Path) -> None:
    """A map, tokens and scores: their numbers one behind the other, and a head on them that its file answers as."""
    network, recorder = write_network(tmp_path / "net.onnx", end="row"), Recorder()
    pixels = np.random.default_rng(2).integers(0, 256, (3, SIDE, SIDE, 3), dtype=np.uint8)
    alone = [open_network(network, KNOWN, [name]) for name in ("map", "map_last", "scores")]
    wanted = np.concatenate([one.network.run(pixels, one.card) for one in alone], axis=1)
    names = ["map", "map_last", "scores", "map"]
    joined = open_network(network, KNOWN, names, listener=recorder)
    assert joined.network.count == 12 + 12 + 5, "a value that is named twice counts once"
    assert np.array_equal(joined.network.run(pixels, joined.card), wanted)
    assert any("map + map_last + scores" in notice.message for notice in recorder.notices)
    assert probe_member(make_job(data, network, tmp_path / "runs", outputs=names)).features == 29


def test_axes_and_boxes_that_are_not_there_are_named(data: Dataset, tmp_path: Path) -> None:
    """--head axes without axes is E204; a network of face crops without boxes is E206."""
    network = write_network(tmp_path / "net.onnx")
    flat = read_dataset(Path(data.rows[0].path).parent / "train.csv")
    with pytest.raises(OptionError, match="axes"):
        make_job(flat, network, tmp_path / "runs", head="axes")
    own = replace(toys.card("m"), preprocess=replace(toys.card().preprocess, face=FaceCrop(0.2)))
    (tmp_path / "models").mkdir()
    with pytest.raises(OptionError) as caught:
        open_network(toys.write_model(tmp_path / "models", own), AdoptOptions())
    assert caught.value.code == "E206"


def test_a_model_of_ens_brings_its_preprocessing(data: Dataset, tmp_path: Path) -> None:
    """Its card's resizing is taken, and said; a head on its logits is a member of other classes."""
    recorder = Recorder()
    path = toys.write_model(tmp_path / "models", toys.card("m", size=(10, 8)))
    opened = open_network(path, AdoptOptions(), listener=recorder)
    assert opened.card.preprocess == toys.card(size=(10, 8)).preprocess
    assert any("model of ens" in notice.message for notice in recorder.notices)
    assert "W394" not in {notice.code for notice in recorder.notices}
    own = toys.write_model(tmp_path / "folds", replace(toys.card("m_f0", size=(10, 8)), fold=0))
    open_network(own, AdoptOptions(), listener=recorder)
    assert "W394" in {notice.code for notice in recorder.notices}, "of a training with labels"
    assert probe_member(make_job(data, path, tmp_path / "runs", options=AdoptOptions())).features == 18


def test_a_probe_of_face_crops_needs_its_boxes_ever_after(tmp_path: Path) -> None:
    """--boxes crops in training, and the card of each fold says so."""
    table = write_table(tmp_path / "train")
    faces = [Face(path.name, Box(1, 1, 9, 9), 0.9, 1, None, 10, 12) for path in sorted(table.parent.glob("*.png"))]
    boxes = write_boxes(tmp_path / "boxes.parquet", faces)
    words: Sequence[object] = ("probe", table, "--features", write_network(tmp_path / "net.onnx"), "--boxes", boxes)
    ran(*words, "--member", "f", "--folds", 2, "-o", tmp_path / "runs", "--input-range", "0..1")
    cards = [read_model(path).card for path in sorted((tmp_path / "runs" / "f").glob("*.onnx"))]
    assert [card.preprocess.face is not None for card in cards] == [True, True]
    refused = CliRunner().invoke(ens, [str(word) for word in (*words, "--member", "g", "--align", "arcface")])
    assert isinstance(refused.exception, EnsError)
    assert refused.exception.code == "E380"
    points = (2.0, 3.0, 6.0, 3.5, 4.0, 5.0, 2.5, 7.0, 5.5, 7.5)
    write_boxes(boxes, [replace(face, box=Box(1, 1, 9, 9, points)) for face in faces])
    ran(*words, "--member", "g", "--align", "arcface", "--folds", 2, "-o", tmp_path / "runs", "--input-range", "0..1")
    crops = {read_model(path).card.preprocess.face for path in (tmp_path / "runs" / "g").glob("*.onnx")}
    assert [(crop.margin, crop.align) for crop in crops if crop] == [(0.0, "arcface")]


def test_a_network_with_two_cards_is_refused(tmp_path: Path) -> None:
    """Readers differ in which of two cards counts, so neither is taken: E427 names the file."""
    path = write_network(tmp_path / "net.onnx", end="row")
    model = onnx.load(path)
    for _ in range(2):
        model.metadata_props.add(key=METADATA_KEY, value="{}")
    onnx.save(model, path)
    with pytest.raises(ModelError, match=r"E427.*net\.onnx has 2 cards"):
        open_network(path, AdoptOptions())
