"""TensorRT's engines are never mixed up, and building one is announced."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import onnxruntime
import pytest
from onnx import helper, numpy_helper

from ensemble.errors import DeviceError
from ensemble.events import Recorder
from ensemble.images.views import parse_views
from ensemble.runtime import tensorrt
from ensemble.runtime.cuda import Gpu
from ensemble.runtime.device import Device
from ensemble.runtime.gpu_start import GpuStarter
from ensemble.runtime.io_binding import SharedBatchSize
from ensemble.runtime.model_file import ModelFile
from ensemble.runtime.session import start_session
from ensemble.runtime.tensorrt import announce_build, engine_options, require_symmetric
from tests.support import toys

DEVICE = Device("tensorrt")
SQUARE = toys.card(size=(16, 16))


@pytest.fixture(autouse=True)
def _home(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(tensorrt, "describe_gpu", lambda _: Gpu("NVIDIA H100 80GB HBM3", "9.0"))


def folder_of(**other: object) -> str:
    given = {"card": SQUARE, "sha256": "0" * 64, "device": DEVICE, "rows": 8, "views": parse_views("hflip")} | other
    card, sha256, device = (given.pop(name) for name in ("card", "sha256", "device"))
    return engine_options(card, sha256, device, **given)["trt_engine_cache_path"]  # type: ignore[arg-type]


def test_an_engine_has_one_shape() -> None:
    """The profile's smallest, usual and largest batch are the one that runs, for both inputs."""
    options = engine_options(SQUARE, "0" * 64, DEVICE, rows=8, views=parse_views("hflip,scale:1.1,scale:1.2"))
    shapes = {options[f"trt_profile_{which}_shapes"] for which in ("min", "opt", "max")}
    assert shapes == {"image:8x16x16x3,ens.views_made:8x2x16x16x3"}
    plain = engine_options(SQUARE, "0" * 64, DEVICE, rows=8, views=parse_views("hflip"))
    assert plain["trt_profile_max_shapes"] == "image:8x16x16x3"


def test_half_precision_follows_the_card() -> None:
    """A float32 model is not computed in half precision because the GPU could."""
    assert engine_options(SQUARE, "0" * 64, DEVICE)["trt_fp16_enable"] == "0"
    assert engine_options(replace(SQUARE, precision="fp16"), "0" * 64, DEVICE)["trt_fp16_enable"] == "1"


def quantized(zero: object, *, constant: bool = False, dequantize: bool = True) -> ModelFile:
    """A model with a zero point of this type and value; None leaves it out."""
    make = helper.make_node
    inputs = ["x", "scale"] if zero is None else ["x", "scale", "zero"]
    nodes = [make("QuantizeLinear", inputs, ["stored"])]
    if dequantize:
        nodes.append(make("DequantizeLinear", ["stored", *inputs[1:]], ["y"]))
    tensors = [] if zero is None else [numpy_helper.from_array(np.asarray(zero), "zero")]
    if constant:
        nodes, tensors = [make("Constant", [], ["zero"], value=tensors[0]), *nodes], []
    graph = helper.make_graph(nodes, "g", [], [], tensors)
    data = helper.make_model(graph).SerializeToString()
    return ModelFile(Path("q.onnx"), replace(SQUARE, precision="int8"), data, "0" * 64, ("y",))


@pytest.mark.parametrize("constant", [False, True])
@pytest.mark.parametrize(
    ("zero", "said"),
    [(np.uint8(0), "uint8 values"), (np.int8(3), "a zero point that is not zero"), (np.int16(0), "int16 values")],
)
def test_tensorrt_takes_no_asymmetric_model(zero: object, said: str, constant: bool) -> None:
    """uint8, another type or a zero point other than zero is E608, which names the option that mends it."""
    with pytest.raises(DeviceError, match=rf"E608.*tensorrt:0 .* {said}") as caught:
        require_symmetric(quantized(zero, constant=constant), DEVICE)
    assert "--quantization symmetric" in caught.value.hint


def test_a_zero_point_that_is_left_out_is_onnx_own() -> None:
    """Without one ONNX rounds to uint8, TensorRT to int8: E608. An int8 zero, in a tensor or a node, is fine."""
    with pytest.raises(DeviceError, match="uint8 values"):
        require_symmetric(quantized(None, dequantize=False), DEVICE)
    for constant in (False, True):
        require_symmetric(quantized(np.zeros(3, dtype=np.int8), constant=constant), DEVICE)
    model = quantized(np.uint8(7))
    require_symmetric(replace(model, card=SQUARE), DEVICE)  # not a model of integers


def test_int8_is_a_flag_of_the_engine() -> None:
    """Networks of onnxruntime 1.31.1 are weakly typed: without the flag TensorRT refuses their Q/DQ nodes. The layers
    that stay in float keep float32, by which the file was judged; no calibration table is read.
    """
    options = engine_options(replace(SQUARE, precision="int8"), "0" * 64, DEVICE)
    assert (options["trt_int8_enable"], options["trt_fp16_enable"]) == ("1", "0")
    assert not {name for name in options if "calibration" in name}
    assert engine_options(SQUARE, "0" * 64, DEVICE)["trt_int8_enable"] == "0"


def test_the_installed_provider_has_no_option_for_float8() -> None:
    """It names fp16, bf16 and int8 among its options, and float8 in none: such engines cannot be asked for."""
    library = Path(onnxruntime.__file__).parent / "capi" / "libonnxruntime_providers_tensorrt.so"
    if not library.exists():
        pytest.skip("this onnxruntime was built without TensorRT")
    binary = library.read_bytes()
    assert all(f"trt_{name}_enable".encode() in binary for name in ("fp16", "bf16", "int8"))
    assert not any(name in binary for name in (b"trt_fp8", b"trt_strongly_typed"))


def test_a_rejected_model_costs_no_engine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """E608 comes before a session is created, whether the model starts alone or among others."""
    model = quantized(np.uint8(7))
    monkeypatch.setattr("ensemble.runtime.session.build_network", lambda *_: pytest.fail("a session was created"))
    with pytest.raises(DeviceError, match="E608"):
        start_session(model, device=DEVICE)
    with pytest.raises(DeviceError, match="E608"):
        GpuStarter(DEVICE, SharedBatchSize(4), parse_views("identity")).start_one(model)


def test_engines_of_other_models_views_shapes_gpus_and_versions_lie_elsewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each of them changes the folder; the same again does not."""
    monkeypatch.setattr(tensorrt, "tensorrt_version", lambda: "10.9.0")
    folders = [folder_of(), folder_of(sha256="1" * 64), folder_of(views=parse_views("vflip")), folder_of(rows=4)]
    assert "NVIDIA-H100-80GB-HBM3" in folders[0]
    assert "trt10.9.0-ort" in folders[0]
    assert folder_of() == folders[0]
    monkeypatch.setattr(tensorrt, "tensorrt_version", lambda: "10.10.0")
    folders.append(folder_of())
    monkeypatch.setattr(tensorrt, "describe_gpu", lambda _: Gpu("NVIDIA A100", "8.0"))
    folders.append(folder_of())
    assert len(set(folders)) == len(folders)


def test_a_build_is_announced_and_a_kept_engine_is_not(tmp_path: Path) -> None:
    """Without an engine in the folder there are two notices, before and after; with one there is none."""
    options = {"trt_engine_cache_path": str(tmp_path / "engines")}
    recorder = Recorder()
    with announce_build(options, "r18", recorder):
        assert [notice.code for notice in recorder.notices] == ["I608"]
        (tmp_path / "engines" / "graph_0.engine").touch()
    assert "r18 took" in recorder.notices[1].message
    with announce_build(options, "r18", recorder), announce_build({}, "r18", recorder):
        pass
    assert len(recorder.notices) == 2


@pytest.mark.parametrize(
    ("there", "said"),
    [
        ((), "libnvinfer.so.10 is missing (this onnxruntime needs TensorRT 10)"),
        (("libnvinfer.so.11",), "libnvinfer.so.10 is missing (this onnxruntime needs TensorRT 10; TensorRT 11.4.0 is"),
        (("libnvinfer.so.10",), "libnvonnxparser.so.10 is missing"),
        (("libnvinfer.so.10", "libnvonnxparser.so.10"), ""),
    ],
)
def test_the_missing_library_and_the_wrong_version_are_named(
    monkeypatch: pytest.MonkeyPatch, there: tuple[str, ...], said: str
) -> None:
    """The provider's own libraries are TensorRT 10's; a newer TensorRT is named as what is there instead."""

    def load(name: str) -> SimpleNamespace:
        if name not in there:
            raise OSError(name)
        return SimpleNamespace(getInferLibVersion=lambda: 110400 if name.endswith("11") else 101600)

    monkeypatch.setattr(tensorrt, "ctypes", SimpleNamespace(CDLL=load))
    assert tensorrt.explain_missing().startswith(said)
    assert bool(tensorrt.explain_missing()) == bool(said)


def test_the_installed_provider_is_linked_against_the_libraries_that_are_looked_for() -> None:
    """The names and the version in the cure are those in onnxruntime's own TensorRT provider."""
    library = Path(onnxruntime.__file__).parent / "capi" / "libonnxruntime_providers_tensorrt.so"
    if not library.exists():
        pytest.skip("this onnxruntime was built without TensorRT")
    binary = library.read_bytes()
    for name in ("libnvinfer.so.", "libnvonnxparser.so."):
        assert f"{name}{tensorrt.MAJOR}\0".encode() in binary
    options = engine_options(SQUARE, "0" * 64, DEVICE, rows=8)
    assert not {name for name in options if name.encode() + b"\0" not in binary}
    assert f"<{tensorrt.MAJOR + 1}" in tensorrt.REQUIREMENT
