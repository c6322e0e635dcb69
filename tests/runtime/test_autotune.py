"""How a network runs is measured, and what cannot be used is left out in the open."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import onnxruntime
import pytest

from ensemble.arrays import Logits
from ensemble.errors import DeviceMemoryError, ModelRunError
from ensemble.events import Recorder
from ensemble.runtime.autotune import TuningResult, candidate_options, tune, tune_cached
from ensemble.runtime.device import Device
from ensemble.runtime.session import provider_options
from tests.support import toys

BASE = {"use_tf32": "0", "cudnn_conv_algo_search": "HEURISTIC"}
EXPECTED = np.array([[3.0, -4.0]], dtype=np.float32)
Measure = Callable[[Mapping[str, str]], tuple[float, Logits]]


def clock(**seconds: float) -> Measure:
    """A way takes the product of the seconds of the options that are on."""

    def measure(options: Mapping[str, str]) -> tuple[float, Logits]:
        spent = 1.0
        for value, factor in seconds.items():
            spent *= factor if value in {*options.values(), *(name for name, on in options.items() if on == "1")} else 1
        return spent, EXPECTED

    return measure


def test_what_is_faster_is_kept_and_the_rest_is_not() -> None:
    """Each way is tried on top of the best so far; a way that is slower, or faster by a hair, is not taken."""
    measure = clock(EXHAUSTIVE=0.8, prefer_nhwc=0.99, fuse_conv_bias=0.9, enable_cuda_graph=1.2)
    tuned = tune(BASE, candidate_options(fp16=True, several=False), measure, member="a", listener=Recorder())
    assert tuned.options == {"use_tf32": "0", "cudnn_conv_algo_search": "EXHAUSTIVE", "fuse_conv_bias": "1"}
    assert list(tuned.seconds) == ["plain", "channels last", "fused bias", "cuDNN's heuristics B", "CUDA graphs"]
    assert "720.00 ms" in tuned.render()


def test_float32_does_not_try_channels_last_and_several_gpus_capture_nothing() -> None:
    """Channels last is for half precision, and tried first there; several GPUs try all but CUDA graphs."""
    assert list(candidate_options(fp16=False, several=False)) == ["fused bias", "cuDNN's heuristics B", "CUDA graphs"]
    assert list(candidate_options(fp16=True, several=True)) == ["channels last", "fused bias", "cuDNN's heuristics B"]


def test_the_names_of_all_options_are_in_the_installed_provider() -> None:
    """onnxruntime's CUDA provider has every option that is tried or set, and every value of the algorithm search."""
    library = Path(onnxruntime.__file__).parent / "capi" / "libonnxruntime_providers_cuda.so"
    if not library.exists():
        pytest.skip("this onnxruntime was built without CUDA")
    binary = library.read_bytes()
    given = provider_options(toys.card("a"), "", Device("cuda"))
    names = {*given, *(name for options in candidate_options(fp16=True, several=False).values() for name in options)}
    values = {"HEURISTIC", "EXHAUSTIVE", "DEFAULT", given["arena_extend_strategy"]}
    missing = {name for name in names | values if name.encode() + b"\0" not in binary}
    assert not missing


def test_a_convolution_without_an_engine_runs_with_cudnns_fallback() -> None:
    """HEURISTIC_QUERY_FAILED with the plain options is W609, and everything is measured with DEFAULT from then on."""
    asked: list[Mapping[str, str]] = []

    def measure(options: Mapping[str, str]) -> tuple[float, Logits]:
        asked.append(options)
        if options["cudnn_conv_algo_search"] == "HEURISTIC":
            raise ModelRunError("E605", "Conv node '/conv': CUDNN_FE failure 8: HEURISTIC_QUERY_FAILED")
        return 0.5 if "fuse_conv_bias" in options else 1.0, EXPECTED

    recorder = Recorder()
    tuned = tune(BASE, candidate_options(fp16=False, several=False), measure, member="a", listener=recorder)
    assert tuned.options == {"use_tf32": "0", "cudnn_conv_algo_search": "DEFAULT", "fuse_conv_bias": "1"}
    assert all(options["cudnn_conv_algo_search"] == "DEFAULT" for options in asked[1:])
    assert ["a runs without cuDNN's heuristics: Conv node '/conv'" in one.message for one in recorder.notices] == [True]


def test_a_way_that_fails_or_computes_otherwise_is_left_out_with_a_notice() -> None:
    """W609 names the way and the cause, and what is left runs on."""

    def measure(options: Mapping[str, str]) -> tuple[float, Logits]:
        if options.get("enable_cuda_graph"):
            raise ModelRunError("E605", "nodes outside the graph")
        return 0.1 if options.get("prefer_nhwc") else 1.0, EXPECTED + ("prefer_nhwc" in options)

    recorder = Recorder()
    tuned = tune(BASE, candidate_options(fp16=True, several=False), measure, member="a", listener=recorder)
    assert tuned.options == BASE
    assert [notice.code for notice in recorder.notices] == ["W609", "W609"]
    assert "channels last: its logits are off by 1" in recorder.notices[0].message
    assert "CUDA graphs: nodes outside the graph" in recorder.notices[1].message
    assert "CUDA graphs unusable: nodes outside the graph" in tuned.render()


def test_a_model_that_does_not_run_the_ordinary_way_is_an_error() -> None:
    """What the plain way raises is not swallowed."""

    def measure(options: Mapping[str, str]) -> tuple[float, Logits]:
        raise DeviceMemoryError("E602", "full")

    with pytest.raises(DeviceMemoryError, match="E602"):
        tune(BASE, {}, measure, member="a", listener=Recorder())


def test_what_was_found_is_kept(tmp_path: Path) -> None:
    """The second run uses the first one's cached result; a damaged cache is measured again and rewritten."""
    path = tmp_path / "tuning" / "key.json"
    first = TuningResult({"prefer_nhwc": "1"}, {"plain": 1.0}, {"CUDA graphs": "why"})
    assert tune_cached(path, lambda: first) == first
    assert tune_cached(path, lambda: TuningResult({}, {}, {})) == first
    path.write_text("{")
    assert tune_cached(path, lambda: TuningResult({}, {}, {})) == TuningResult({}, {}, {})
    assert tune_cached(path, lambda: first) == TuningResult({}, {}, {})
