"""Models with a fixed batch size on GPUs: logits equal the plain model's, and a notice says what did not fit."""

from __future__ import annotations

import gc
import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from ensemble.arrays import Pixels
from ensemble.errors import DeviceError
from ensemble.events import Recorder
from ensemble.images.views import parse_views
from ensemble.predict.options import RunOptions
from ensemble.predict.predict import predict
from ensemble.predictions.dataset import read_predictions
from ensemble.runtime import gpu_start, io_binding
from ensemble.runtime import session as session_module
from ensemble.runtime.autotune import TuningResult
from ensemble.runtime.device import CPU, Device
from ensemble.runtime.fixed_batch import run_models
from ensemble.runtime.fused_views import fuse_views
from ensemble.runtime.gpu_parity import compare_kinds, expect_later
from ensemble.runtime.gpu_sessions import start_gpu_sessions
from ensemble.runtime.gpu_start import model_inputs, retry_on_oom
from ensemble.runtime.io_binding import DeviceBuffers, SharedBatchSize
from ensemble.runtime.model_file import ModelFile, read_model
from ensemble.runtime.providers import try_device
from ensemble.runtime.session import Session, run_together, start_session
from tests.support import toys
from tests.support.gpus import FakeGpus, fake_gpus

VIEWS = parse_views("hflip,scale:1.25")
TTA = parse_views("hflip")
CUDA = Device("cuda")
NAMES = [f"{i:02d}.jpg" for i in range(23)]


@pytest.fixture
def gpus(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[FakeGpus]:
    with fake_gpus(monkeypatch, tmp_path) as fake:
        yield fake


@pytest.fixture
def models(tmp_path: Path) -> dict[str, ModelFile]:
    paths = [toys.write_model(tmp_path / "m", toys.card(name), seed=seed) for seed, name in enumerate("abc")]
    return {path.stem: read_model(path) for path in paths}


@pytest.fixture
def images(tmp_path: Path) -> Path:
    toys.write_pictures(tmp_path / "images", NAMES)
    return tmp_path / "images"


def pixels(count: int) -> Pixels:
    return np.stack([toys.picture(seed, size=(16, 12)) for seed in range(count)])


def look(session: Session, batch: Pixels, views: Any = VIEWS) -> dict[str, Any]:
    """Run all views of a batch."""
    buffers = DeviceBuffers(session.device.each[0])
    buffers.load_later(
        session.card.preprocess, model_inputs({session.card.preprocess: batch}, views)[session.card.preprocess]
    )
    answers = session.run_views(buffers)
    buffers.close()
    return answers


def codes(recorder: Recorder) -> list[str]:
    """What was noticed, but for the figures of each model against the CPU."""
    return [notice.code for notice in recorder.notices if notice.code != "I606"]


@pytest.mark.parametrize("count", [1, 4, 5, 11])
def test_a_batch_of_any_size_gives_the_logits_of_its_images(models: dict[str, ModelFile], count: int) -> None:
    """What fills the last piece up does not come out: each row is that of the plain model, for each view."""
    session = start_gpu_sessions(models, device=CPU, rows=4, views=TTA)["a"]
    plain = start_session(read_model(models["a"].path))
    batch = pixels(count)
    for name, logits in look(session, batch, TTA).items():
        expected = plain.run(next(view for view in TTA if view.name == name).apply(batch))
        np.testing.assert_allclose(logits, expected, rtol=1e-5, atol=1e-6)


def test_one_copy_serves_all_models_of_a_preprocessing(models: dict[str, ModelFile]) -> None:
    """Three models run on one loaded batch, and each returns its own logits."""
    sessions = start_gpu_sessions(models, device=CPU, rows=4, views=VIEWS)
    batch, buffers = pixels(3), DeviceBuffers(CPU)
    card = sessions["a"].card
    buffers.load(card.preprocess, model_inputs({card.preprocess: batch}, VIEWS)[card.preprocess], rows=4)
    for name, session in sessions.items():
        answers = session.run_views(buffers)
        assert list(answers) == ["identity", "hflip", "scale:1.25"]
        for view in VIEWS:
            expected = start_session(read_model(models[name].path)).run(view.apply(batch))
            np.testing.assert_allclose(answers[view.name], expected, rtol=1e-5, atol=1e-6)


def test_asking_about_images_of_the_host_pads_and_cuts(models: dict[str, ModelFile]) -> None:
    """`run` gives as many rows as it was given, below and above the one shape."""
    session = start_gpu_sessions(models, device=CPU, rows=4)["b"]
    plain = start_session(read_model(models["b"].path))
    for count in (1, 4, 9):
        np.testing.assert_allclose(session.run(pixels(count)), plain.run(pixels(count)), rtol=1e-5, atol=1e-6)


def test_a_shape_shrinks_once_for_all() -> None:
    """Two threads that fail at the same size halve it once, and it never goes below one."""
    shape = SharedBatchSize(5)
    assert (shape.halve(5), shape.rows) == (True, 2)
    assert (shape.halve(5), shape.rows) == (False, 2)
    assert (shape.halve(2), shape.rows) == (True, 1)
    assert (shape.halve(1), shape.rows) == (False, 1)


def test_more_views_make_smaller_batches(models: dict[str, ModelFile]) -> None:
    """A network sees at most twice the batch at once, so eight views of 16 images become pieces of 4."""
    views = parse_views("hflip,vflip,shift:1,scale:1.1")
    session = start_gpu_sessions(models, device=CPU, rows=16, views=views)["a"]
    assert session.decisions["rows"] == "4"
    assert session.decisions["views on the host"] == "scale:1.1"


def test_fault_62_a_device_that_is_full_while_running_halves_the_one_shape(
    models: dict[str, ModelFile], gpus: FakeGpus
) -> None:
    """Out of memory makes all models run with half the rows, says so once, and changes no answer."""
    sessions = start_gpu_sessions(models, device=CUDA, rows=8, views=TTA)
    gpus.rows, recorder = 2, Recorder()
    batch = pixels(7)
    for name, session in sessions.items():
        answers = retry_on_oom(session, partial(look, session, batch, TTA), recorder)
        np.testing.assert_allclose(
            answers["identity"], start_session(read_model(models[name].path)).run(batch), rtol=1e-5, atol=1e-6
        )
    assert codes(recorder) == ["W602", "W602"]
    assert "continuing with 2" in recorder.notices[-1].message


def test_fault_62_a_model_for_fewer_rows_needs_no_memory_beside_the_one_before(
    models: dict[str, ModelFile], gpus: FakeGpus
) -> None:
    """With memory for a single network, it is rebuilt for a smaller batch while its buffers are in use."""
    session = start_gpu_sessions({"a": models["a"]}, device=CUDA, rows=8, views=TTA)["a"]
    gpus.models, buffers, card = 1, DeviceBuffers(CUDA), session.card
    buffers.load_later(card.preprocess, model_inputs({card.preprocess: pixels(7)}, TTA)[card.preprocess])
    session.run_views(buffers)
    gpus.rows, recorder = 4, Recorder()
    retry_on_oom(session, partial(session.run_views, buffers), recorder)
    assert codes(recorder) == ["W602"]
    assert gpus.alive == 1
    buffers.close()


def test_a_lane_lets_go_of_memory_only_while_nobody_captures(
    models: dict[str, ModelFile], gpus: FakeGpus, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Buffers that a smaller batch size replaces are unlocked under the lock that CUDA graphs are captured under."""
    session = start_gpu_sessions({"a": models["a"]}, device=CUDA, rows=8, views=TTA)["a"]
    free: list[bool] = []
    with ThreadPoolExecutor(1) as other:
        monkeypatch.setattr(io_binding, "lock_pages", lambda *_, **__: True)
        monkeypatch.setattr(
            io_binding,
            "unlock_pages",
            lambda _: free.append(other.submit(io_binding.CUDA_LOCK.acquire, blocking=False).result()),
        )
        buffers = DeviceBuffers(CUDA)
        for rows in (8, 4):
            buffers.load(session.card.preprocess, {"image": pixels(2)}, rows=rows)
        buffers.close()
    assert free == [False, False]


@pytest.mark.parametrize("device", [CUDA, Device("cuda", 0, others=(1,)), Device("tensorrt")], ids=str)
def test_a_gpu_that_answers_otherwise_is_found_out(
    models: dict[str, ModelFile], gpus: FakeGpus, monkeypatch: pytest.MonkeyPatch, device: Device
) -> None:
    """Every model is compared on every GPU when it starts; rows that changed places are E606."""
    recorder = Recorder()
    start_gpu_sessions({"a": models["a"]}, device=device, rows=4, views=VIEWS, listener=recorder)
    figures = [notice.message for notice in recorder.notices if notice.code == "I606"]
    assert [text.split(" against ")[0] for text in figures] == [f"a on {one}" for one in device.each]
    monkeypatch.setattr(session_module, "run_models", lambda *given: [logits[::-1] for logits in run_models(*given)])
    with pytest.raises(DeviceError, match=f"E606.*a on {device.each[0]} differs"):
        start_gpu_sessions({"a": models["a"]}, device=device, rows=4, views=VIEWS)


def test_fault_62_not_even_one_image_fits(models: dict[str, ModelFile], gpus: FakeGpus) -> None:
    """When the memory is too small for a batch of one, starting is E602 after a notice for each halving."""
    gpus.rows, recorder = 0, Recorder()
    with pytest.raises(DeviceError, match="E602"):
        start_gpu_sessions(models, device=CUDA, rows=4, views=TTA, listener=recorder)
    assert codes(recorder) == ["W602", "W602"]


def test_models_that_do_not_fit_together_run_in_turn(
    models: dict[str, ModelFile], images: Path, tmp_path: Path, gpus: FakeGpus
) -> None:
    """With memory for two of three models, the third runs afterwards, W608 says so, and the parts are the same."""
    paths = [model.path for model in models.values()]
    done = predict(paths, images, tmp_path / "whole", views=TTA, options=RunOptions(device="cuda", batch=4))
    assert list(done.seconds) == ["read", "decode", "resize", "copy", "forward", "write", "wall"]
    assert done.seconds["copy"] > 0
    gc.collect()
    assert gpus.alive == 0
    gpus.models, recorder = 2, Recorder()
    predict(paths, images, tmp_path / "turns", views=TTA, options=RunOptions(device="cuda", batch=4, listener=recorder))
    assert codes(recorder) == ["W608"]
    for name in models:
        parts = [(tmp_path / run / name / "part-00000.parquet").read_bytes() for run in ("whole", "turns")]
        assert parts[0] == parts[1]


def test_two_gpus_give_the_bytes_of_one(
    models: dict[str, ModelFile], images: Path, tmp_path: Path, gpus: FakeGpus
) -> None:
    """The batches go to both devices, and the folders are the same; the CPU's logits are the same but for rounding."""
    paths = [model.path for model in models.values()]
    for run, where in (("one", "cuda:0"), ("two", "cuda:1,0")):
        predict(paths, images, tmp_path / run, views=VIEWS, options=RunOptions(device=where, batch=4, workers=2))
    assert {device.index for device, _ in gpus.started} == {0, 1}
    predict(paths, images, tmp_path / "cpu", views=VIEWS, options=RunOptions(device="cpu", workers=1))
    for name in models:
        one, two = (tmp_path / where / name for where in ("one", "two"))
        assert (one / "part-00000.parquet").read_bytes() == (two / "part-00000.parquet").read_bytes()
        ours, cpus = read_predictions(one), read_predictions(tmp_path / "cpu" / name)
        for view in VIEWS:
            np.testing.assert_allclose(ours.logits[view.name], cpus.logits[view.name], rtol=1e-4, atol=1e-5)


def test_what_was_decided_is_in_the_record(
    models: dict[str, ModelFile], images: Path, tmp_path: Path, gpus: FakeGpus
) -> None:
    """_run.json says what was measured, what was chosen, where the views were cut and that no memory is page-locked."""
    gpus.broken = frozenset({"EXHAUSTIVE"})
    recorder = Recorder()
    predict(
        [models["a"].path],
        images,
        tmp_path / "out",
        views=VIEWS,
        options=RunOptions(device="cuda", batch=4, listener=recorder),
    )
    record = json.loads((tmp_path / "out" / "a" / "_run.json").read_text())
    decisions = record["decisions"]
    assert decisions["use_tf32"] == "0"
    assert decisions["cudnn_conv_algo_search"] == "HEURISTIC"
    assert decisions["tried"].startswith("plain ")
    assert (decisions["views on the device"], decisions["views on the host"]) == ("identity, hflip", "scale:1.25")
    assert (decisions["host memory"], decisions["rows"]) == ("pageable", "2")
    assert codes(recorder) == ["W609"]
    assert [notice["code"] for notice in record["notices"]] == ["W609", "I606"]


def test_fault_60_layers_on_the_cpu_are_an_error(models: dict[str, ModelFile], gpus: FakeGpus) -> None:
    """E608 names the layers that a GPU would not take; a cast on the CPU is recorded and no error."""
    gpus.refused = frozenset({"MatMul", "Cast"})
    with pytest.raises(DeviceError, match=r"E608.*cuda:0 was requested, but MatMul of a would run elsewhere"):
        start_gpu_sessions(models, device=CUDA, rows=4, views=TTA)
    gpus.refused = frozenset({"Cast"})
    nodes = start_gpu_sessions(models, device=CUDA, rows=4, views=TTA)["a"].decisions["front"]
    assert nodes.startswith("C")
    assert "CPU" in nodes
    assert nodes.endswith("(Cast)")


def test_networks_of_one_kind_are_measured_once(models: dict[str, ModelFile], gpus: FakeGpus) -> None:
    """Three folds of one network try the candidates once: the other two start with the first one's result."""
    start_gpu_sessions(models, device=CUDA, rows=4, views=TTA)
    first = len(gpus.started)
    assert first == 4 + len(models)  # plain, three candidates for float32, and the three models
    other = read_model(toys.write_model(models["a"].path.parent, replace(toys.card("d"), arch="other")))
    start_gpu_sessions({"d": other}, device=CUDA, rows=4, views=TTA)
    assert len(gpus.started) == first + 5


def test_a_batch_is_waited_for_once(models: dict[str, ModelFile], gpus: FakeGpus) -> None:
    """Three models of one preprocessing share the front and the stream: per piece four runs, per batch one wait."""
    sessions = start_gpu_sessions(models, device=CUDA, rows=4, views=VIEWS)
    batch, buffers, card = pixels(3), DeviceBuffers(CUDA), sessions["a"].card
    buffers.load(card.preprocess, model_inputs({card.preprocess: batch}, VIEWS)[card.preprocess], rows=4)
    gpus.runs = gpus.waits = 0
    found = run_together(tuple(sessions.values()), buffers)
    pieces = -(-3 // int(sessions["a"].decisions["rows"]))
    assert (gpus.runs, gpus.waits) == (4 * pieces, 1)
    assert sessions["a"].decisions["stream"] == "one for all models"
    for name, model in models.items():
        for view in VIEWS:
            expected = start_session(model).run(view.apply(batch))
            np.testing.assert_allclose(found[name][view.name], expected, rtol=1e-5, atol=1e-6)


def test_without_a_stream_every_run_is_waited_for(
    models: dict[str, ModelFile], gpus: FakeGpus, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where CUDA's runtime cannot be called, each run ends before the next begins, and the logits are the same."""
    monkeypatch.setattr(gpu_start, "create_stream", lambda index: None)
    monkeypatch.setattr(io_binding, "synchronize", None)
    sessions = start_gpu_sessions(models, device=CUDA, rows=4, views=TTA)
    gpus.runs = gpus.waits = 0
    found = look(sessions["b"], pixels(3), TTA)
    assert (gpus.runs, gpus.waits) == (2, 2)
    np.testing.assert_allclose(found["identity"], start_session(models["b"]).run(pixels(3)), rtol=1e-5, atol=1e-6)


def test_all_networks_get_the_stream_of_their_gpu(models: dict[str, ModelFile], gpus: FakeGpus) -> None:
    """On two GPUs there are two streams, and the address is not in the record, which is compared between runs."""
    device = Device("cuda", 0, others=(1,))
    sessions = start_gpu_sessions(models, device=device, rows=4, views=TTA)
    assert {(one.index, options["user_compute_stream"]) for one, options in gpus.started} == {(0, "4096"), (1, "4097")}
    assert "user_compute_stream" not in sessions["a"].decisions


def test_two_preprocessings_have_two_fronts(tmp_path: Path, gpus: FakeGpus) -> None:
    """Models of another size or another normalization do not share a front, and all are right in one batch."""
    cards = [toys.card("a"), toys.card("b"), toys.card("c", size=(24, 24))]
    made = {card.member: read_model(toys.write_model(tmp_path, card, seed=i)) for i, card in enumerate(cards)}
    sessions = start_gpu_sessions(made, device=CUDA, rows=4, views=TTA)
    images = {made["a"].card.preprocess: pixels(6), made["c"].card.preprocess: np.full((6, 24, 24, 3), 90, np.uint8)}
    buffers = DeviceBuffers(CUDA)
    for preprocess, inputs in model_inputs(images, TTA).items():
        buffers.load(preprocess, inputs, rows=4)
    gpus.runs = gpus.waits = 0
    found = run_together(tuple(sessions.values()), buffers)
    assert (gpus.runs, gpus.waits) == (2 * 5, 1)
    for name, model in made.items():
        expected = start_session(model).run(images[model.card.preprocess])
        np.testing.assert_allclose(found[name]["identity"], expected, rtol=1e-5, atol=1e-6)


def test_one_fold_of_each_kind_is_compared_in_full(
    models: dict[str, ModelFile], gpus: FakeGpus, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of three folds the first is compared with the CPU; one whose logits are a hundred times as large is compared too,
    and found to be wrong.
    """
    recorder = Recorder()
    start_gpu_sessions(models, device=CUDA, rows=4, views=TTA, listener=recorder)
    compared = [notice.message.split(" ")[0] for notice in recorder.notices if notice.code == "I606"]
    assert compared == ["a"]

    def too_large(ran: Any, *given: Any) -> list[Any]:
        logits = run_models(ran, *given)
        (model,) = ran
        return [100 * logits[0]] if model is wrong else logits

    sessions = start_gpu_sessions(models, device=CUDA, rows=4, views=TTA)
    wrong = sessions["b"].fixed_batch
    monkeypatch.setattr(session_module, "run_models", too_large)
    with ThreadPoolExecutor(1) as pool, pytest.raises(DeviceError, match=r"E606.*b on cuda:0 differs"):
        compare_kinds(sessions, models, expect_later(pool, models, TTA), TTA, Recorder())


def test_pixels_are_moved_as_bytes(models: dict[str, ModelFile], gpus: FakeGpus) -> None:
    """The front of a graph for CUDA gathers and reshapes uint8, without a Concat of one part, before its one Cast."""
    start_gpu_sessions({"a": models["a"]}, device=CUDA, rows=4, views=TTA)
    graph = onnx.load_from_string(fuse_views(models["a"].data, TTA, rows=4, size=(16, 12), for_cudnn=True)).graph
    assert [node.op_type for node in graph.node][:4] == ["Reshape", "Gather", "Reshape", "Cast"]


def test_float16_keeps_the_tensor_cores(models: dict[str, ModelFile], gpus: FakeGpus) -> None:
    """use_tf32=0, which onnxruntime takes as "no tensor cores" for every type, goes to float32 models alone."""
    half = replace(models["a"], card=replace(models["a"].card, precision="fp16"))
    for model, expected in ((half, "1"), (models["b"], "0")):
        gpus.started.clear()
        session = start_gpu_sessions({"m": model}, device=CUDA, rows=4, views=TTA)["m"]
        start_session(model, device=CUDA)
        assert session.decisions["use_tf32"] == expected
        assert {options["use_tf32"] for _, options in gpus.started} == {expected}


def test_graphs_of_buffers_that_are_freed_are_released(models: dict[str, ModelFile], gpus: FakeGpus) -> None:
    """Every CUDA graph that was captured while options were measured and logits compared is released by its number."""
    session = start_gpu_sessions({"a": models["a"]}, device=CUDA, rows=4, views=TTA)["a"]
    captured = [one for one in gpus.graphs if one[1] == "captured"]
    assert captured
    assert {one[0] for one in captured} == {one[0] for one in gpus.graphs if one[1] == "released"}
    assert session.card.member == "a"


def test_asymmetric_padding_reaches_no_convolution(tmp_path: Path, gpus: FakeGpus) -> None:
    """A graph for CUDA has Pad nodes for a ``tf_`` network's padding and answers as before; TensorRT's is unchanged."""
    model = read_model(toys.write_model(tmp_path, toys.card(), proto=toys.convolutional_proto(asymmetric=True)))
    for device, expected in ((CUDA, True), (Device("tensorrt"), False)):
        gpus.models_started.clear()
        session = start_gpu_sessions({"a": model}, device=device, rows=4, views=TTA)["a"]
        kinds = [{node.op_type for node in onnx.load_from_string(data).graph.node} for data in gpus.models_started]
        assert {"Pad" in found for found in kinds} == {expected}
        plain = start_session(model).run(pixels(3))
        np.testing.assert_allclose(look(session, pixels(3), TTA)["identity"], plain, rtol=1e-4, atol=1e-5)


def test_tensorrt_gets_the_fused_graph_and_a_notice(models: dict[str, ModelFile], gpus: FakeGpus) -> None:
    """A model for TensorRT has the one shape in its profile, all views inside, and its build is announced."""
    recorder = Recorder()
    device = Device("tensorrt")
    session = start_gpu_sessions({"a": models["a"]}, device=device, rows=4, views=TTA, listener=recorder)["a"]
    assert gpus.started[-1][1]["trt_profile_opt_shapes"] == "image:4x16x12x3"
    assert session.decisions["trt_profile_opt_shapes"] == "image:4x16x12x3"
    assert set(look(session, pixels(3), TTA)) == {"identity", "hflip"}
    assert codes(recorder) == ["I608", "I608"]


@pytest.mark.gpu
@pytest.mark.parametrize("kind", ["cuda", "tensorrt"])
def test_a_real_gpu_gives_the_cpus_logits(models: dict[str, ModelFile], kind: Any) -> None:
    """On a machine with a GPU, all views of a padded batch are those of the CPU."""
    try_device.cache_clear()
    device = Device(kind)
    start = try_device(device)
    if not start.works:
        pytest.skip(f"no {kind} device here: {start.cause}")
    sessions = start_gpu_sessions(models, device=device, rows=4, views=VIEWS)
    for name, session in sessions.items():
        for view in VIEWS:
            expected = start_session(read_model(models[name].path)).run(view.apply(pixels(7)))
            np.testing.assert_allclose(look(session, pixels(7))[view.name], expected, rtol=1e-3, atol=1e-3)


@pytest.mark.gpu
@pytest.mark.parametrize("graphs", ["0", "1"])
def test_a_real_gpu_never_answers_for_the_batch_before(
    models: dict[str, ModelFile], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, graphs: str
) -> None:
    """Hundreds of small batches, no two alike, through two lanes and with CUDA graphs: each has the CPU's logits."""
    try_device.cache_clear()
    start = try_device(CUDA)
    if not start.works:
        pytest.skip(f"no cuda device here: {start.cause}")
    options = {"use_tf32": "0", "enable_cuda_graph": graphs}
    monkeypatch.setattr(gpu_start, "tune_cached", lambda *_, **__: TuningResult(options, {}, {}))
    names = [f"{i:03d}.jpg" for i in range(400)]
    toys.write_pictures(tmp_path / "many", names)
    for device in ("cuda", "cpu"):
        paths = [model.path for model in models.values()]
        predict(
            paths,
            tmp_path / "many",
            tmp_path / device,
            views=VIEWS,
            options=RunOptions(device=device, batch=2, workers=4),
        )
    for name in models:
        ours, cpus = (read_predictions(tmp_path / device / name) for device in ("cuda", "cpu"))
        for view in VIEWS:
            np.testing.assert_allclose(ours.logits[view.name], cpus.logits[view.name], rtol=1e-3, atol=1e-3)
