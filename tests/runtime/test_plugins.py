"""Plugin execution providers are devices by their own names, as strict as the built-in ones."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnxruntime
import pytest

from ensemble.errors import DeviceError, OptionError
from ensemble.events import Recorder
from ensemble.images.views import parse_views
from ensemble.predict.options import RunOptions
from ensemble.predict.predict import predict
from ensemble.predictions.dataset import read_predictions
from ensemble.runtime import doctor as doctor_module
from ensemble.runtime import plugins
from ensemble.runtime.device import CPU, Device, parse_device
from ensemble.runtime.doctor import doctor
from ensemble.runtime.model_file import read_model
from ensemble.runtime.plugins import LIBRARIES, PluginDevice, plugin_devices
from ensemble.runtime.providers import choose_device, try_device
from ensemble.runtime.session import start_session
from tests.support import toys

TOY = "ToyExecutionProvider"
DEVICE = Device("plugin", 0, plugin=TOY)


class Toy(onnxruntime.InferenceSession):  # type: ignore[misc]
    """The CPU's provider under the plugin's name; ``refused`` operators run on the CPU."""

    refused: frozenset[str] = frozenset()
    falls_back = False

    def get_providers(self) -> list[str]:
        return [CPU.provider] if self.falls_back else [TOY, CPU.provider]

    def get_provider_graph_assignment_info(self) -> list[Any]:
        return [
            SimpleNamespace(
                ep_name=CPU.provider if node.op_type in self.refused else TOY, get_nodes=lambda node=node: [node]
            )
            for part in super().get_provider_graph_assignment_info()
            for node in part.get_nodes()
        ]


@pytest.fixture
def toy(monkeypatch: pytest.MonkeyPatch) -> Iterator[type[Toy]]:
    """One plugin provider with two devices, a GPU and an NPU, and onnxruntime's own beside."""
    (cpu, *_) = onnxruntime.get_ep_devices()
    kinds = [(CPU.provider, "CPU"), (TOY, "GPU"), (TOY, "NPU")]
    listed = [
        SimpleNamespace(
            ep_name=name, ep_vendor="Toys Inc.", device=SimpleNamespace(type=SimpleNamespace(name=kind), vendor="")
        )
        for name, kind in kinds
    ]
    add = onnxruntime.SessionOptions.add_provider_for_devices
    monkeypatch.setattr(onnxruntime, "get_ep_devices", lambda: listed)
    monkeypatch.setattr(
        onnxruntime.SessionOptions, "add_provider_for_devices", lambda self, _, given: add(self, [cpu], given)
    )
    real = onnxruntime.InferenceSession

    def session(model: bytes, options: Any = None, **rest: Any) -> Any:
        return real(model, options, **rest) if rest else Toy(model, options)

    monkeypatch.setattr(onnxruntime, "InferenceSession", session)
    monkeypatch.setattr(Toy, "refused", frozenset())
    try_device.cache_clear()
    yield Toy
    try_device.cache_clear()


def test_the_devices_of_a_provider_are_counted(toy: type[Toy]) -> None:
    """onnxruntime's own providers are left out; the others' devices are numbered in its order."""
    gpu, npu = plugin_devices()
    assert gpu == PluginDevice(TOY, 0, "GPU", "Toys Inc.")
    assert str(npu) == f"{TOY}:1"
    assert parse_device(TOY) == DEVICE
    assert parse_device(f"{TOY}:1") == Device("plugin", 1, plugin=TOY)
    assert str(DEVICE) == f"{TOY}:0"
    assert DEVICE.each == (DEVICE,)


@pytest.mark.parametrize(
    "text", ["ToyExecution", f"{TOY}:2", "CPUExecutionProvider", f"{TOY}:", "toyexecutionprovider"]
)
def test_a_name_that_is_not_listed_is_refused(toy: type[Toy], text: str) -> None:
    """E203 names what onnxruntime lists; a name that is nearly one is not taken for it."""
    with pytest.raises(OptionError, match="E203") as caught:
        parse_device(text)
    assert (f"{TOY}:0, {TOY}:1" in caught.value.message) == (not text.endswith(":"))


def test_without_plugins_nothing_is_listed() -> None:
    """This onnxruntime lists its own provider alone, whose names are not devices."""
    assert plugin_devices() == ()
    with pytest.raises(OptionError, match="'CUDAExecutionProvider' is not a device"):
        parse_device("CUDAExecutionProvider")


def test_a_plugin_starts_like_any_device(toy: type[Toy], monkeypatch: pytest.MonkeyPatch) -> None:
    """It must add and compute a convolution; a session that falls back to the CPU is E601."""
    assert choose_device(TOY) == DEVICE
    try_device.cache_clear()
    monkeypatch.setattr(toy, "falls_back", True)
    with pytest.raises(DeviceError, match=f"E601.*{TOY}:0 was requested and cannot be used"):
        choose_device(TOY)


def test_layers_of_a_plugin_do_not_run_elsewhere(
    tmp_path: Path, toy: type[Toy], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A model is compared with the CPU when it starts, and a layer that the plugin does not take is E608."""
    model = read_model(toys.write_model(tmp_path))
    recorder = Recorder()
    session = start_session(model, device=DEVICE, listener=recorder)
    assert [notice.code for notice in recorder.notices] == ["I606"]
    pixels = np.stack([toys.picture(seed, size=(16, 12)) for seed in range(3)])
    np.testing.assert_allclose(session.run(pixels), start_session(model).run(pixels), rtol=1e-5, atol=1e-6)
    monkeypatch.setattr(toy, "refused", frozenset({"MatMul"}))
    with pytest.raises(DeviceError, match=r"E608.*MatMul of toy would run elsewhere"):
        start_session(model, device=DEVICE)


def test_predictions_of_a_plugin_are_told_apart(tmp_path: Path, toy: type[Toy]) -> None:
    """`predict` runs on it, and the record of the run names it."""
    toys.write_pictures(tmp_path / "images", ["a.jpg", "b.jpg"])
    paths = [toys.write_model(tmp_path)]
    done = {
        device: predict(
            paths, tmp_path / "images", tmp_path / device, views=parse_views("hflip"), options=RunOptions(device=device)
        )
        for device in ("cpu", TOY)
    }
    assert done[TOY].device == f"{TOY}:0"
    ours, cpus = (read_predictions(one.members[0].folder).logits for one in done.values())
    np.testing.assert_allclose(ours["hflip"], cpus["hflip"], rtol=1e-5, atol=1e-6)


def test_doctor_shows_them_and_what_could_not_be_registered(toy: type[Toy], monkeypatch: pytest.MonkeyPatch) -> None:
    """Both devices are tried; a library that does not load is named with onnxruntime's reason."""
    monkeypatch.setattr(doctor_module, "problems", {"libtoy": "file too short"})
    text = doctor().render()
    assert f"{TOY}:1" in text
    assert "the provider library libtoy is left out: file too short" in text


def test_libraries_are_registered_once(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Packages named onnxruntime_ep_* and the variable's paths are registered; what fails is kept with its reason."""
    (tmp_path / "onnxruntime_ep_good.py").write_text("def get_library_path():\n    return '/libs/libgood.so'\n")
    (tmp_path / "onnxruntime_ep_odd.py").write_text("raise RuntimeError('no license')\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setenv(LIBRARIES, f"/libs/libown.so:{tmp_path / 'libbad.so'}")
    monkeypatch.setattr(plugins, "problems", {})
    asked: list[tuple[str, str]] = []

    def register(name: str, path: str) -> None:
        asked.append((name, path))
        if name == "libbad":
            raise RuntimeError("Failed to load\nfile too short")

    monkeypatch.setattr(onnxruntime, "register_execution_provider_library", register)
    plugins._register_libraries.cache_clear()
    for _ in range(2):
        plugin_devices()
    plugins._register_libraries.cache_clear()
    assert asked == [
        ("onnxruntime_ep_good", "/libs/libgood.so"),
        ("libown", "/libs/libown.so"),
        ("libbad", str(tmp_path / "libbad.so")),
    ]
    assert plugins.problems == {
        "libbad": "file too short",
        "onnxruntime_ep_odd": "its library was not found: no license",
    }
