"""--device cpu:fastest: the engine that runs the models faster, said, recorded and kept."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest

from ensemble.card import ModelCard
from ensemble.errors import OptionError
from ensemble.events import Recorder
from ensemble.images.views import parse_views
from ensemble.install import install_command
from ensemble.predict.begun import begun_providers
from ensemble.predict.options import RunOptions
from ensemble.predict.predict import predict
from ensemble.runtime import fastest, parity, run_device
from ensemble.runtime.device import CPU, FASTEST, Device, parse_device
from ensemble.runtime.fastest import EngineTimes, choose_engine, time_engines
from ensemble.runtime.model_file import ModelFile, read_model
from ensemble.runtime.providers import choose_device
from ensemble.runtime.run_device import choose_run_device
from ensemble.runtime.session import Session
from tests.support import toys

OPENVINO = Device("openvino")


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Keeps what is measured out of the user's cache."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture
def model(tmp_path: Path) -> ModelFile:
    return read_model(toys.write_model(tmp_path / "models"))


def report(times: EngineTimes) -> Callable[..., EngineTimes]:
    """A measurement with this result."""
    return lambda *_, **__: times


def refuse(*_: Any, **__: Any) -> EngineTimes:
    raise AssertionError("measured")


@dataclass
class Worker:
    """A session that computes for a known time per call."""

    card: ModelCard
    seconds: float

    def run(self, batch: Any) -> Any:
        end = time.thread_time() + self.seconds
        while time.thread_time() < end:
            pass
        return np.zeros((len(batch), len(self.card.labels)))


def test_the_engine_with_shorter_calls_is_the_faster_one() -> None:
    """Calls of 0.5 ms against calls of 3 ms decide in five rounds, long before the time is up."""
    quick, slow = (cast("Session", Worker(toys.CARD, seconds)) for seconds in (0.0005, 0.003))
    for ours, theirs, chosen in ((quick, slow, CPU), (slow, quick, OPENVINO)):
        found = time_engines([ours], [theirs], seconds=20)
        assert found.device == chosen
        assert 5 <= found.rounds < 50


def test_one_round_is_measured_when_there_is_no_time() -> None:
    """Without any time left each engine is still timed once, through all models."""
    models = [cast("Session", Worker(toys.CARD, 0.001))] * 2
    found = time_engines(models, models, seconds=0)
    assert found.rounds == 1
    assert min(found.onnxruntime, found.openvino) > 0


@pytest.mark.parametrize(("openvino", "chosen"), [(0.9, OPENVINO), (0.985, CPU), (1.0, CPU), (1.5, CPU)])
def test_onnxruntime_stays_unless_openvino_gains_clearly(openvino: float, chosen: Device) -> None:
    """A gain below 2 % is noise and changes nothing."""
    assert EngineTimes(1.0, openvino, 5).device == chosen


def test_the_choice_is_said_and_kept(model: ModelFile, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A notice gives both times; a second run takes the same engine without measuring; another model is measured."""
    pytest.importorskip("openvino", reason="OpenVINO is not installed")
    for number, first in enumerate((EngineTimes(0.002, 0.001, 7), EngineTimes(0.001, 0.002, 7))):
        path = tmp_path / f"{number}.json"
        monkeypatch.setattr(fastest, "_cache_path", lambda _, path=path: path)
        monkeypatch.setattr(fastest, "time_engines", report(first))
        heard = Recorder()
        assert choose_engine([model], listener=heard) == first.device
        monkeypatch.setattr(fastest, "time_engines", refuse)
        assert choose_engine([model], listener=heard) == first.device
        assert [notice.code for notice in heard.notices] == ["I615", "I615"]
        assert all("2.00" in notice.message and "1.00" in notice.message for notice in heard.notices)
        assert "measured before" in heard.notices[1].message


def test_a_run_that_was_begun_keeps_its_engine(model: ModelFile, monkeypatch: pytest.MonkeyPatch) -> None:
    """Parts of one engine decide without a measurement; those of two, or of another provider, do not."""
    monkeypatch.setattr(run_device, "choose_engine", lambda *_, **__: refuse())
    for device in (CPU, OPENVINO):
        heard = Recorder()
        assert choose_run_device(FASTEST, [model], begun=(device.provider,), listener=heard) == device
        assert [notice.code for notice in heard.notices] == ["I615"]
        assert f"is {device}, as the parts that there are were computed" in heard.notices[0].message
    for begun in ((CPU.provider, OPENVINO.provider), ("CUDAExecutionProvider",), ()):
        with pytest.raises(AssertionError, match="measured"):
            choose_run_device(FASTEST, [model], begun=begun)
    assert choose_run_device("cpu", [model], begun=(OPENVINO.provider,)) == CPU


def test_a_resumed_prediction_reads_the_engine_from_its_parts(model: ModelFile, tmp_path: Path) -> None:
    """Finished parts record their provider; a damaged one is passed over, and a folder without parts tells nothing."""
    toys.write_pictures(tmp_path / "images", ["a.jpg", "b.jpg"])
    folder = tmp_path / "preds"
    predict([model.path], tmp_path / "images", folder, views=parse_views("identity"), options=RunOptions(device="cpu"))
    member = folder / model.card.member
    assert begun_providers([member, tmp_path / "none"]) == (CPU.provider,)
    (part,) = member.glob("part-*.parquet")
    (member / "part-00001.parquet").write_bytes(part.read_bytes())
    part.write_bytes(b"damaged")
    assert begun_providers([member]) == (CPU.provider,)


def test_what_was_measured_belongs_to_its_models(model: ModelFile, tmp_path: Path) -> None:
    """Other weights have other times: the file in the cache is named by every model of a run, in any order."""
    other = read_model(toys.write_model(tmp_path / "other", seed=1))
    paths = [fastest._cache_path(models) for models in ([model], [other], [model, other], [other, model])]
    assert len(set(paths)) == 3
    assert paths[2] == paths[3]


def test_without_openvino_the_cpu_is_chosen_and_said(model: ModelFile, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where it is not installed nothing is measured, and a warning says so, with the line that installs it."""
    monkeypatch.setattr(fastest, "openvino_version", lambda: "missing")
    monkeypatch.setattr(fastest, "time_engines", refuse)
    heard = Recorder()
    assert choose_run_device(FASTEST, [model], listener=heard) == CPU
    assert [notice.code for notice in heard.notices] == ["W615"]
    assert f"not installed ({install_command(extra='openvino')})" in heard.notices[0].message


def test_an_engine_with_other_answers_is_not_chosen(model: ModelFile, monkeypatch: pytest.MonkeyPatch) -> None:
    """OpenVINO whose logits differ by more than the precision allows is left out, however fast it is."""
    pytest.importorskip("openvino", reason="OpenVINO is not installed")
    monkeypatch.setitem(parity.LIMITS, "fp32", -1.0)
    monkeypatch.setattr(fastest, "time_engines", refuse)
    heard = Recorder()
    assert choose_engine([model], listener=heard) == CPU
    assert [notice.code for notice in heard.notices] == ["W615"]
    assert "differs from onnxruntime" in heard.notices[0].message


@pytest.mark.parametrize(
    "content", ["", "[]", "{}", '{"onnxruntime": "x", "openvino": 1, "rounds": 2}', '{"onnxruntime": 0, "openvino": 1}']
)
def test_a_damaged_cache_is_measured_again(model: ModelFile, monkeypatch: pytest.MonkeyPatch, content: str) -> None:
    """A file that does not hold two times is no choice."""
    pytest.importorskip("openvino", reason="OpenVINO is not installed")
    path = fastest._cache_path([model])
    path.parent.mkdir(parents=True)
    path.write_text(content)
    monkeypatch.setattr(fastest, "time_engines", report(EngineTimes(2.0, 1.0, 3)))
    assert choose_engine([model]) == OPENVINO
    assert json.loads(path.read_text()) == {"onnxruntime": 2.0, "openvino": 1.0, "rounds": 3}


def test_a_run_records_the_engine_that_was_chosen(
    model: ModelFile, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The record of the predictions has the engine itself, and the times that chose it."""
    pytest.importorskip("openvino", reason="OpenVINO is not installed")
    monkeypatch.setattr(fastest, "time_engines", report(EngineTimes(0.002, 0.001, 7)))
    toys.write_pictures(tmp_path / "images", ["a.jpg", "b.jpg"])
    out = tmp_path / "out"
    predict([model.path], tmp_path / "images", out, views=parse_views("identity"), options=RunOptions(device=FASTEST))
    record = json.loads((out / model.card.member / "_run.json").read_text())
    assert record["device"] == "openvino"
    assert [notice["code"] for notice in record["notices"]] == ["I615", "I606"]


def test_a_choice_without_models_is_refused() -> None:
    """Where there is nothing to measure, such as for a cluster, cpu:fastest is E203 and not taken for the CPU."""
    for ask in (parse_device, choose_device):
        with pytest.raises(OptionError, match=r"E203.*measured"):
            ask(FASTEST)
