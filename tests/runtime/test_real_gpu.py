"""Whole runs on a GPU, as far as a fake one shows their logic, and for real where there is one."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from ensemble.arrays import Logits
from ensemble.blend.pooling import parse_pool
from ensemble.blend.recipe import Group, Recipe
from ensemble.card import METADATA_KEY, Precision
from ensemble.events import Recorder
from ensemble.images.views import parse_views
from ensemble.labels import MASK18
from ensemble.predict.options import RunOptions
from ensemble.predict.predict import predict
from ensemble.predictions.dataset import read_predictions
from ensemble.runtime import gpu_start
from ensemble.runtime.device import Device
from ensemble.runtime.parity import ON_GPUS, relative_error
from ensemble.runtime.providers import try_device
from ensemble.runtime.session import provider_options
from ensemble.submit.submit import EarlyExit
from tests.support import toys
from tests.support.gpus import FakeGpus, fake_gpus
from tests.support.runs import run_submit

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("one_thread")]

NAMES = [f"{i:02d}.jpg" for i in range(23)]
VIEWS = parse_views("hflip,shift:2:left,scale:1.1")
# the fake GPU computes on the CPU: timm's smallest networks are enough for it
NETWORKS = {"fake": ("test_resnet", "test_efficientnet"), "cuda": ("resnet18", "tf_efficientnet_lite0")}
Export = Callable[[int, Precision, int], Path]


@pytest.fixture(params=["fake", pytest.param("cuda", marks=pytest.mark.gpu)])
def gpu(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[FakeGpus | None]:
    """A fake GPU, or None for the first one of this machine."""
    if request.param == "fake":
        monkeypatch.setattr(gpu_start, "RUNS", 1)
        with fake_gpus(monkeypatch, tmp_path) as fake:
            yield fake
        return
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    try_device.cache_clear()
    start = try_device(Device("cuda"))
    if not start.works:
        pytest.skip(f"no CUDA device here: {start.cause}")
    yield None
    try_device.cache_clear()


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, Precision, int], Path]:
    """Export a network with drawn weights; each is exported once."""
    pytest.importorskip("timm", reason="timm is not installed")
    from exporters.export import ExportOptions, export
    from tests.support.networks import make_checkpoint

    made: dict[tuple[str, Precision, int], Path] = {}

    def find(arch: str, precision: Precision, size: int) -> Path:
        key = (arch, precision, size)
        if key not in made:
            checkpoint = make_checkpoint(arch, name=f"{arch}-{precision}-{size}.pth")
            options = ExportOptions(size=(size, size), precision=precision, labels=MASK18)
            made[key] = export(checkpoint, tmp_path_factory.mktemp("exported"), options=options).path
        return made[key]

    return find


@pytest.fixture
def network(gpu: FakeGpus | None, exported: Callable[[str, Precision, int], Path]) -> Export:
    """Export the ResNet (0) or the EfficientNet (1) that suits the GPU."""
    names = NETWORKS["cuda" if gpu is None else "fake"]
    return lambda number, precision, size: exported(names[number], precision, size)


@pytest.fixture
def images(tmp_path: Path) -> Path:
    toys.write_pictures(tmp_path / "images", NAMES, size=(80, 64))
    return tmp_path / "images"


def logits(models: list[Path], images: Path, folder: Path, device: str, **options: Any) -> dict[str, Logits]:
    """Predict with all views; return ``(images, views, C)`` by member."""
    run = RunOptions(device=device, batch=8, workers=2, **options)
    done = predict(models, images, folder / device, views=VIEWS, options=run)
    found = {one.member: read_predictions(one.folder).logits for one in done.members}
    return {name: np.stack([values[view.name] for view in VIEWS], axis=1) for name, values in found.items()}


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
@pytest.mark.parametrize("number", [0, 1], ids=["resnet", "efficientnet"])
def test_real_networks_answer_as_on_the_cpu(
    gpu: FakeGpus | None, network: Export, images: Path, tmp_path: Path, number: int, precision: Precision
) -> None:
    """A ResNet and an EfficientNet in both precisions give the CPU's logits for every view, within the precision."""
    model = network(number, precision, 64)
    (expected,), (found,) = (logits([model], images, tmp_path, device).values() for device in ("cpu", "cuda"))
    assert relative_error(expected, found) <= ON_GPUS[precision]


def test_members_of_two_preprocessings_and_precisions_run_together(
    gpu: FakeGpus | None, network: Export, images: Path, tmp_path: Path
) -> None:
    """Four members of two sizes in one run have the logits that each has on the CPU."""
    models = [network(0, "fp32", 64), network(0, "fp32", 48), network(1, "fp32", 64), network(1, "fp16", 64)]
    expected, found = (logits(models, images, tmp_path, device) for device in ("cpu", "cuda"))
    assert len(found) == len(models)
    for name, wanted in expected.items():
        assert relative_error(wanted, found[name]) <= ON_GPUS["fp16" if "fp16" in name else "fp32"], name


def test_symmetric_int8_is_computed_by_tensorrt(gpu: FakeGpus | None, images: Path, tmp_path: Path) -> None:
    """A model of integers runs on TensorRT with its flag set, and gives the logits that it has on the CPU."""
    if gpu is None and not (start := try_device(Device("tensorrt"))).works:
        pytest.skip(f"no TensorRT here: {start.cause}")
    from exporters.int8_layers import find_layers, prepare
    from exporters.int8_qdq import find_tensors, quantize
    from exporters.int8_schemes import SYMMETRIC, Range

    card = toys.card("integers", size=(64, 64))
    plain = prepare(toys.convolutional_proto(card))
    for number, node in enumerate(plain.graph.node):
        node.name = f"n{number}"
    layers = find_layers(plain.graph)
    ranges = {name: Range(-4.0, 4.0) for name in find_tensors(plain.graph, layers)}
    made = quantize(plain, ranges, layers, scheme=SYMMETRIC)
    card = replace(card, precision="int8")
    onnx.helper.set_model_props(made, {METADATA_KEY: card.to_json()})
    model = toys.write_model(tmp_path / "m", card, proto=made)
    expected, found = (logits([model], images, tmp_path, device)["integers"] for device in ("cpu", "tensorrt"))
    assert relative_error(expected, found) <= ON_GPUS["int8"]
    if gpu is not None:
        assert {(options["trt_int8_enable"], options["trt_fp16_enable"]) for _, options in gpu.started} == {("1", "0")}


def test_asymmetric_padding_is_computed(gpu: FakeGpus | None, images: Path, tmp_path: Path) -> None:
    """A convolution that cuDNN's heuristics refuse as it is gives the CPU's logits."""
    card = toys.card("asymmetric", size=(64, 64))
    model = toys.write_model(tmp_path / "m", card, proto=toys.convolutional_proto(card, asymmetric=True))
    expected, found = (logits([model], images, tmp_path, device)["asymmetric"] for device in ("cpu", "cuda"))
    assert relative_error(expected, found) <= ON_GPUS["fp32"]


def test_early_exit_decides_as_on_the_cpu(
    gpu: FakeGpus | None, images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In chunks of eight, the classes are the CPU's (but for one that rounding may turn), with as many passes."""
    monkeypatch.setattr("ensemble.submit.chunks.CHUNK_ROWS", {"cpu": 8, "cuda": 8})
    plain = toys.linear_weights
    monkeypatch.setattr(toys, "linear_weights", lambda card, seed: 15 * plain(card, seed))
    models = [toys.write_model(tmp_path / "m", toys.card(name), seed=seed) for seed, name in enumerate("ab")]
    groups = {"a": Group(6.0, {"a": ""}), "b": Group(1.0, {"b": ""})}
    recipe = Recipe(parse_pool("linear"), {"identity": 2.0, "hflip": 1.0}, groups, MASK18)
    rows, passes = [], []
    for device in ("cpu", "cuda"):
        path, work = tmp_path / f"{device}.csv", tmp_path / f"work-{device}"
        settings: dict[str, Any] = {"work": work, "device": device, "workers": 2, "early_exit": EarlyExit()}
        done = run_submit(recipe, images, models, path, **settings)
        rows.append(path.read_text().splitlines())
        passes.append(done.passes)
    assert sum(a != b for a, b in zip(*rows, strict=True)) <= 1
    assert abs(passes[0] - passes[1]) <= 1
    assert passes[1] < done.whole


def test_a_gpu_that_is_full_halves_the_batch(
    gpu: FakeGpus | None, images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With too little memory for a batch, smaller ones run, W602 says so, and the logits are the CPU's."""
    card = toys.card("full", size=(64, 64))
    model = toys.write_model(tmp_path / "m", card, proto=toys.convolutional_proto(card))
    if gpu is not None:
        gpu.rows = 2
    else:
        given = provider_options
        limit = {"gpu_mem_limit": str(6 * 2**20)}  # of onnxruntime's arena, as BFCArena reports it
        monkeypatch.setattr("ensemble.runtime.gpu_start.provider_options", lambda *args: {**given(*args), **limit})
    recorder = Recorder()
    expected = logits([model], images, tmp_path, "cpu")["full"]
    found = logits([model], images, tmp_path, "cuda", listener=recorder)["full"]
    assert "W602" in {notice.code for notice in recorder.notices}
    assert relative_error(expected, found) <= ON_GPUS["fp32"]
