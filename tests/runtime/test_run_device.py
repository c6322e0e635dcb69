"""The device of a run follows from its models: what auto is without a GPU, and warnings about int8."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner

import ensemble
from ensemble.analysis.map_source import start_member
from ensemble.blend.pooling import parse_pool
from ensemble.blend.recipe import Group, Recipe
from ensemble.card import ModelCard, Preprocess
from ensemble.cli import ens
from ensemble.errors import ModelError, OptionError
from ensemble.events import Recorder
from ensemble.images.views import parse_views
from ensemble.install import install_command
from ensemble.predict.ray_worker import Cluster
from ensemble.runtime import fastest, providers, run_device
from ensemble.runtime.device import CPU, FASTEST, Device
from ensemble.runtime.model_file import ModelFile, read_model
from ensemble.runtime.openvino import is_for_openvino
from ensemble.runtime.parity import draw_pictures
from ensemble.runtime.providers import Start
from ensemble.runtime.run_device import choose_run_device
from ensemble.runtime.session import start_session
from tests.support import toys
from tests.support.runs import run_predict, run_submit

OPENVINO = Device("openvino")
CUDA = Device("cuda")
VIEWS = parse_views("identity")


def int8_card(member: str, scheme: str | None = None, **changes: Any) -> ModelCard:
    """A card of an int8 model; asymmetric quantization has no name in cards."""
    checks = {} if scheme is None else {"scheme": scheme}
    return replace(toys.card(member), precision="int8", checks=checks, **changes)


def write(folder: Path, *cards: ModelCard) -> list[ModelFile]:
    return [read_model(toys.write_model(folder, card, seed=seed)) for seed, card in enumerate(cards)]


def set_devices(monkeypatch: pytest.MonkeyPatch, **causes: str) -> None:
    """All devices start but those with a cause."""

    def start(device: Device) -> Start:
        return Start(device, device.kind not in causes, causes.get(device.kind, ""))

    for module in (providers, run_device):
        monkeypatch.setattr(module, "try_device", start)


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Keeps what is measured out of the user's cache."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture
def no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine whose CPU runs OpenVINO, wherever the test runs."""
    set_devices(monkeypatch, cuda="there is none")
    set_version(monkeypatch, "2026.4")


def set_version(monkeypatch: pytest.MonkeyPatch, version: str) -> None:
    """OpenVINO is installed in this version, or ``missing``."""
    for module in (run_device, fastest):
        monkeypatch.setattr(module, "openvino_version", lambda: version)


def never(name: str) -> ModelFile:
    raise AssertionError(f"{name} was read")


def choose(asked: str | Device, models: list[ModelFile], **options: Any) -> tuple[Device, list[tuple[str, str]]]:
    """The device, and the notices but the one that there is no GPU."""
    heard = Recorder()
    device = choose_run_device(asked, models, listener=heard, **options)
    return device, [(one.code, one.message) for one in heard.notices if one.code != "W601"]


@pytest.mark.parametrize(
    ("card", "suits"),
    [
        (int8_card("m", "openvino"), True),
        (int8_card("m", "symmetric"), False),
        (int8_card("m"), False),
        (replace(int8_card("m", "openvino"), precision="fp32"), False),
    ],
)
def test_the_scheme_of_an_int8_card_says_what_it_is_for(card: ModelCard, suits: bool) -> None:
    """The card of a float32 model has no say, whatever it records."""
    assert is_for_openvino(card) == suits


@pytest.mark.usefixtures("no_gpu")
def test_auto_is_openvino_for_a_run_with_a_model_for_it(tmp_path: Path) -> None:
    """One such model is enough; the notice names it, counts the others and says how to have ONNX Runtime."""
    suited, plain = write(tmp_path, int8_card("quick", "openvino"), toys.card("plain"))
    device, ((code, message),) = choose("auto", [plain, suited])
    assert (device, code) == (OPENVINO, "I616")
    assert message.startswith("auto is openvino: quick is quantized for OpenVINO, and 1 more of the run with it")
    assert "--device cpu" in message
    _, ((_, message),) = choose("auto", [suited])
    assert "more of the run" not in message
    assert choose("auto", [plain]) == (CPU, [])
    assert choose("openvino", [plain, suited]) == (OPENVINO, [])


@pytest.mark.usefixtures("no_gpu")
def test_without_openvino_one_warning_says_that_it_is_slow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """auto, cpu and cpu:fastest run such a model in ONNX Runtime and name it; the first two name the installation."""
    set_version(monkeypatch, "missing")
    models = write(tmp_path, int8_card("quick", "openvino"), toys.card("plain"))
    for asked in ("auto", "cpu"):
        device, ((code, message),) = choose(asked, models)
        assert (device, code) == (CPU, "W616")
        assert message.startswith("quick is quantized for OpenVINO, and slower in ONNX Runtime than a float32 model")
        assert install_command(extra="openvino") in message
    device, ((code, message),) = choose(FASTEST, models)
    assert (device, code) == (CPU, "W615")
    assert message.endswith("quick is quantized for OpenVINO, and slower in ONNX Runtime than a float32 model")
    missing = f"it is not installed ({install_command(extra='openvino')})"
    assert choose(FASTEST, models[1:])[1][0][1].endswith(missing)


@pytest.mark.usefixtures("no_gpu")
def test_the_cpu_that_was_asked_for_is_onnxruntime_with_a_warning(tmp_path: Path) -> None:
    """--device cpu is not replaced; the warning names the device that is faster."""
    models = write(tmp_path, int8_card("quick", "openvino"), int8_card("fast", "openvino"))
    device, ((code, message),) = choose("cpu", models)
    assert (device, code) == (CPU, "W616")
    assert message.startswith("quick, fast are quantized for OpenVINO")
    assert "--device openvino" in message


def test_auto_stays_with_onnxruntime_where_openvino_does_not_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """OpenVINO that does not start, and models that only ONNX Runtime takes, are no error: the warning says why."""
    set_version(monkeypatch, "2026.4")
    quick, kept = write(
        tmp_path, int8_card("quick", "openvino"), replace(toys.card("deep"), preprocess=Preprocess((16, 12)))
    )
    kept = replace(kept, card=replace(kept.card, preprocess=replace(kept.card.preprocess, channels="3")))
    set_devices(monkeypatch, cuda="there is none", openvino="its library does not load")
    for asked in ("auto", "cpu"):
        device, ((code, message),) = choose(asked, [quick])
        assert (device, code) == (CPU, "W616")
        assert message.endswith("OpenVINO does not start (its library does not load)")
    set_devices(monkeypatch, cuda="there is none")
    device, ((code, message),) = choose("auto", [quick, kept])
    assert (device, code) == (CPU, "W616")
    assert "deep takes the channels of the files as they are" in message


@pytest.mark.usefixtures("no_gpu")
def test_auto_keeps_the_engine_of_a_run_that_was_begun(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Parts of one engine decide, with or without a model for OpenVINO; those of another device, or of two, do not."""
    quick, plain = write(tmp_path, int8_card("quick", "openvino"), toys.card("plain"))
    for models in ([quick], [plain], [quick, plain]):
        device, ((code, message),) = choose("auto", models, begun=(OPENVINO.provider,))
        assert (device, code) == (OPENVINO, "I616")
        assert "as the parts that there are were computed" in message
    assert choose("auto", [plain], begun=(CPU.provider,)) == (CPU, [])
    device, ((code, message),) = choose("auto", [quick, plain], begun=(CPU.provider,))
    assert (device, code) == (CPU, "W616")
    assert "were computed in ONNX Runtime" in message
    assert "--fresh" in message
    for begun in ((CPU.provider, OPENVINO.provider), ("CUDAExecutionProvider",), ("OpenVINO 2020.1 f32",)):
        assert choose("auto", [quick], begun=begun)[0] == OPENVINO
    assert choose("cpu", [plain], begun=(OPENVINO.provider,)) == (CPU, [])
    set_version(monkeypatch, "missing")
    _, ((_, message),) = choose("auto", [quick], begun=(CPU.provider,))
    assert "--fresh" not in message
    assert "not installed" in message


@pytest.mark.parametrize(
    ("asked", "device", "scheme", "said"),
    [
        ("cpu", CPU, None, None),
        ("cpu", CPU, "symmetric", "int8 models for TensorRT compute in float32 on cpu, between roundings: m"),
        ("openvino", OPENVINO, None, None),
        ("openvino", OPENVINO, "openvino", None),
        ("cuda", CUDA, None, "int8 models for CPUs compute in float32 on cuda:0, between roundings: m"),
        ("cuda", CUDA, "openvino", "int8 models for CPUs compute in float32 on cuda:0, between roundings: m"),
        ("auto", CUDA, "openvino", "int8 models for CPUs compute in float32 on cuda:0, between roundings: m"),
        ("cuda", CUDA, "symmetric", "int8 models for TensorRT compute in float32 on cuda:0, between roundings: m"),
        ("tensorrt", Device("tensorrt"), "symmetric", None),
    ],
)
def test_int8_on_a_device_that_it_is_not_for_is_named(
    asked: str, device: Device, scheme: str | None, said: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The warning names the models and what they are for; float32 beside them is not named."""
    set_devices(monkeypatch)
    models = write(tmp_path, int8_card("m", scheme), toys.card("plain"))
    expected = [] if said is None else [("W616", said)]
    assert choose(asked, models) == (device, expected)


@pytest.mark.usefixtures("no_gpu")
def test_a_device_that_was_chosen_is_not_said_again(tmp_path: Path) -> None:
    """`submit` chooses once and hands the value to `predict`: the models are not even read for it."""
    heard = Recorder()
    assert choose_run_device(CPU, map(never, ["m"]), listener=heard) == CPU
    assert choose_run_device(OPENVINO, map(never, ["m"]), listener=heard) == OPENVINO
    assert heard.notices == []


@pytest.mark.usefixtures("no_gpu")
def test_an_unknown_device_is_named_before_a_model_is_read() -> None:
    """E203 comes before the first model is opened."""
    with pytest.raises(OptionError, match="E203"):
        choose_run_device("gpu", map(never, ["m"]))


@pytest.mark.usefixtures("no_gpu")
def test_a_cluster_chooses_as_one_machine_does(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """auto is CUDA where the cluster has GPUs, else OpenVINO for a run with a model for it, with the same warnings."""

    class Ray:
        def __init__(self, gpus: int) -> None:
            self.gpus = gpus

        def cluster_resources(self) -> Mapping[str, float]:
            return {"GPU": self.gpus} if self.gpus else {}

    models = write(tmp_path, int8_card("quick", "openvino"), toys.card("plain"))

    def ask(asked: str, gpus: int = 0, **options: Any) -> tuple[Device, list[str]]:
        heard = Recorder()
        device = Cluster(Ray(gpus)).choose_device(asked, models, listener=heard, **options)
        return device, [notice.code for notice in heard.notices]

    assert ask("auto") == (OPENVINO, ["I616"])
    assert ask("auto", begun=(CPU.provider,)) == (CPU, ["W616"])
    assert ask("auto", gpus=1) == (CUDA, ["W616"])
    assert ask("cpu") == (CPU, ["W616"])
    assert ask("openvino") == (OPENVINO, [])
    set_version(monkeypatch, "missing")
    assert ask("auto") == (CPU, ["W616"])


def test_a_run_is_computed_recorded_and_resumed_in_openvino(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The result, the records and `--json` name the engine; a second run keeps it without the model for it."""
    pytest.importorskip("openvino", reason="OpenVINO is not installed")
    monkeypatch.setattr(providers, "try_device", lambda device: Start(device, device.kind != "cuda", "there is none"))
    quick, plain = write(tmp_path / "models", int8_card("quick", "openvino"), toys.card("plain"))
    toys.write_pictures(tmp_path / "images", ["a.jpg", "b.jpg"])
    heard, out = Recorder(), tmp_path / "preds"
    done = run_predict([plain.path, quick.path], tmp_path / "images", out, views=VIEWS, listener=heard)
    assert done.device == "openvino"
    assert [one.code for one in heard.notices] == ["W601", "I616", "I606", "I606"]
    for model in (quick, plain):
        record = json.loads((out / model.card.member / "_run.json").read_text())
        assert record["device"] == "openvino"
        assert "I616" in [notice["code"] for notice in record["notices"]]
    parts = {path: path.read_bytes() for path in out.rglob("part-*")}
    assert len(parts) == 2
    again = ["predict", str(plain.path), "--images", str(tmp_path / "images"), "-o", str(out), "--json"]
    said = CliRunner().invoke(ens, again, catch_exceptions=False)
    assert json.loads(said.stdout)["device"] == "openvino"
    assert "I616" in said.stderr
    assert all(path.read_bytes() == content for path, content in parts.items())
    fresh = run_predict([plain.path], tmp_path / "images", out, views=VIEWS, fresh=True)
    assert fresh.device == "cpu"


def test_a_submission_is_computed_in_openvino_and_says_so_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`submit` predicts in two runs, with other views each; the engine is said once, and kept when --device is cpu."""
    pytest.importorskip("openvino", reason="OpenVINO is not installed")
    monkeypatch.setattr(providers, "try_device", lambda device: Start(device, device.kind != "cuda", "there is none"))
    quick, plain = write(tmp_path / "models", int8_card("quick", "openvino"), toys.card("plain"))
    groups = {"a": Group(1.0, {"quick": ""}), "b": Group(1.0, {"plain": ""}, {"hflip": 1.0})}
    recipe = Recipe(pool=parse_pool("linear"), views={"identity": 1.0}, groups=groups, labels=quick.card.labels)
    toys.write_pictures(images := tmp_path / "images", ["a.jpg", "b.jpg"])
    for asked, device, codes in (("auto", "openvino", ["I616"]), ("cpu", "cpu", ["W616"])):
        heard, path = Recorder(), tmp_path / f"{asked}.csv"
        done = run_submit(
            recipe, images, [quick.path, plain.path], path, work=tmp_path / asked, device=asked, listener=heard
        )
        assert done.device == device
        assert [one.code for one in heard.notices if one.code in {"I616", "W616"}] == codes
        assert path.read_text().count("\n") == 3


def test_one_model_is_loaded_and_explained_in_openvino(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`load` and `ens explain` take the engine of `ens predict`."""
    pytest.importorskip("openvino", reason="OpenVINO is not installed")
    monkeypatch.setattr(providers, "try_device", lambda device: Start(device, device.kind != "cuda", "there is none"))
    (quick,) = write(tmp_path / "models", int8_card("quick", "openvino"))
    assert ensemble.load(quick.path).device == OPENVINO
    assert ensemble.load(quick.path, device="cpu").device == CPU
    started: list[Device] = []
    monkeypatch.setattr("ensemble.analysis.map_source.find_classifier", lambda _: None)
    monkeypatch.setattr("ensemble.analysis.map_source.start_session", lambda *_, device, **__: started.append(device))
    start_member(quick)
    assert started == [OPENVINO]


@pytest.mark.usefixtures("no_gpu")
def test_a_benchmark_has_one_device_for_all_its_sets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A set of --also with a model for OpenVINO makes auto OpenVINO for the others too, and it is said once."""
    (plain,) = write(tmp_path / "models", toys.card("m"))
    write(tmp_path / "int8", int8_card("m", "openvino"))
    toys.write_pictures(tmp_path / "images", ["a.jpg"])
    jobs: list[Any] = []

    class Stopped(Exception):
        pass

    def stop(contender: Any, *_: Any) -> None:
        jobs.append(contender.job)
        raise Stopped

    monkeypatch.setattr("ensemble.bench.bench._Passes.run", lambda _, *given: stop(*given))
    words = ["bench", str(plain.path), "--images", str(tmp_path / "images"), "--quick", "--rounds", "1"]
    for more, device in ((["--also", str(tmp_path / "int8")], OPENVINO), ([], CPU)):
        done = CliRunner().invoke(ens, [*words, *more])
        assert isinstance(done.exception, Stopped), done.output
        assert jobs[-1].where == device
        assert done.stderr.count("I616") == (device == OPENVINO)


def test_a_network_that_openvino_cannot_build_names_onnxruntime(tmp_path: Path) -> None:
    """auto may have chosen OpenVINO: the error says how to run the model all the same."""
    pytest.importorskip("openvino", reason="OpenVINO is not installed")
    proto = toys.model_proto()
    proto.graph.node[0].op_type = "NoSuchOperator"
    (tmp_path / "m.onnx").write_bytes(proto.SerializeToString())
    with pytest.raises(ModelError, match="E420") as caught:
        start_session(read_model(tmp_path / "m.onnx"), device=OPENVINO)
    assert "--device cpu" in caught.value.hint


def test_a_single_image_is_computed_as_one_of_several(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A runtime that adds up a single row in another order is never given one, for int8 quantized for OpenVINO only."""
    asked: list[int] = []

    class Runtime:
        def __init__(self, data: bytes, **_: Any) -> None:
            self.real = start_session(suited if data == suited.data else plain).runtime

        def run(self, outputs: Any, feed: Any) -> Any:
            rows = len(feed["image"])
            asked.append(rows)
            assert self.real is not None
            (answers,) = self.real.run(outputs, feed)
            return [answers + 0.001 * (rows == 1)]

    suited, plain = write(tmp_path, int8_card("quick", "openvino"), int8_card("plain"))
    monkeypatch.setattr("ensemble.runtime.openvino.build_runtime", Runtime)
    pixels = draw_pictures((16, 12))
    for model, differs in ((suited, False), (plain, True)):
        session = start_session(model, device=OPENVINO)
        asked.clear()
        (alone,) = session.run(pixels[:1])
        together = session.run(pixels)
        assert asked == [1 if differs else 2, 8]
        assert alone.shape == together[0].shape
        assert np.array_equal(alone, together[0]) != differs
