"""Errors of onnxruntime on GPUs are one readable line, and the rest is kept in a file."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from ensemble.errors import DeviceMemoryError, ModelRunError
from ensemble.runtime.device import CPU, Device
from ensemble.runtime.error_text import explain_error, keep_text
from ensemble.runtime.providers import BindableRuntime, explain_log
from ensemble.runtime.session import Session
from tests.support import toys

# onnxruntime's issue 26274, with the node, the places and the JSON shortened
FRONTEND = """\
[ONNXRuntimeError] : 11 : EP_FAIL : Non-zero status code returned while running Conv node. Name:'model/conv2d_1/Conv2D\
' Status Message: Failed to initialize CUDNN Frontend/onnxruntime_src/onnxruntime/core/providers/cuda/cudnn_fe_call.cc\
:99 std::conditional_t<THRW, void, onnxruntime::common::Status> onnxruntime::CudaCall(ERRTYPE, const char*, \
const char*, SUCCTYPE, const char*, const char*, int) [with ERRTYPE = cudnn_frontend::error_object; bool THRW = true; \
SUCCTYPE = cudnn_frontend::error_code_t; std::conditional_t<THRW, void, common::Status> = void] CUDNN_FE failure 8: \
HEURISTIC_QUERY_FAILED ; GPU=0 ; hostname=177c8d853272 ; file=/onnxruntime_src/onnxruntime/core/providers/\
cuda/nn/conv.cc ; line=238 ; expr=s_.cudnn_fe_graph->create_execution_plans({heur_mode});

with the cudnn frontend json:
{"context":{"compute_data_type":"FLOAT","name":"","sm_count":-1},"cudnn_backend_version":"9.6.0","nodes":[{"dilation":[1,1],
"post_padding":[1,1],"pre_padding":[0,0],"stride":[2,2],"tag":"CONV_FPROP"}]}"""
READABLE = "Conv node 'model/conv2d_1/Conv2D': CUDNN_FE failure 8: HEURISTIC_QUERY_FAILED (conv.cc, line 238)"
# onnxruntime's issue 11592
CLASSIC = """\
Non-zero status code returned while running Conv node. Name:'/mask_downscaling/Conv' Status Message: CUDNN failure 4: \
CUDNN_STATUS_INTERNAL_ERROR ; GPU=0 ; hostname=MSI ; expr=cudnnFindConvolutionForwardAlgorithmEx(...);"""


@pytest.mark.parametrize(
    ("text", "line"),
    [
        (FRONTEND, READABLE),
        (CLASSIC, "Conv node '/mask_downscaling/Conv': CUDNN failure 4: CUDNN_STATUS_INTERNAL_ERROR"),
        (
            "CUDA failure 700: an illegal memory access was encountered ; GPU=0 ; file=/o/cuda_call.cc ; line=12",
            "CUDA failure 700: an illegal memory access was encountered (cuda_call.cc, line 12)",
        ),
        (
            "Non-zero status code returned while running MatMul node. Name:'/fc' Status Message: the shapes differ\n",
            "MatMul node '/fc': the shapes differ",
        ),
        ("first\nlast line\n", "last line"),
        ("", "str"),
    ],
)
def test_an_error_is_one_line(text: str, line: str) -> None:
    """The node, the status and the place are kept; signatures and JSON are not."""
    assert explain_error(text) == line
    assert "\n" not in line


def test_a_failed_start_names_the_node_and_the_status() -> None:
    """What was "cuDNN cannot be used" for any text with cuDNN in it is the node and the status of the call."""
    assert explain_log(FRONTEND) == READABLE


def test_the_whole_text_is_kept_once(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A long text is written to a file that the message names, the same text to the same file; a short one is not."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert keep_text(FRONTEND) == keep_text(FRONTEND)
    (path,) = (tmp_path / "ens" / "errors").iterdir()
    assert keep_text(FRONTEND) == f"; the whole text is in {path}"
    assert path.read_text() == f"{FRONTEND}\n"
    assert keep_text("CUDA failure 999: unknown error") == ""


class Failing:
    """A runtime whose every run fails with this text."""

    def __init__(self, text: str) -> None:
        self.text = text

    def run(self, outputs: object, feed: object) -> list[object]:
        raise RuntimeError(self.text)


def session(text: str, device: Device) -> Session:
    runtime: BindableRuntime = Failing(text)  # type: ignore[assignment]
    return Session(toys.card("a"), "0", device, runtime)


def test_a_failed_run_on_a_gpu_names_the_file_with_the_text(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """E605 has the readable line and, on a GPU, the file; on the CPU no file is written."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    pixels = np.zeros((1, 16, 12, 3), dtype=np.uint8)
    with pytest.raises(ModelRunError, match="E605") as caught:
        session(FRONTEND, Device("cuda")).run(pixels)
    assert READABLE in caught.value.message
    assert "the whole text is in" in caught.value.message
    with pytest.raises(ModelRunError) as caught:
        session(FRONTEND, CPU).run(pixels)
    assert "the whole text" not in caught.value.message


@pytest.mark.parametrize(
    "text",
    [
        "CUDNN_FE failure 11: CUDNN_STATUS_INTERNAL_ERROR_DEVICE_ALLOCATION_FAILED ; GPU=0",
        "CUDNN failure 5003: CUDNN_STATUS_INTERNAL_ERROR_HOST_ALLOCATION_FAILED",
        "TensorRT EP execution context enqueue failed: requested memory of 1 GiB could not be allocated",
        "CUBLAS failure 3: CUBLAS_STATUS_ALLOC_FAILED",
        "BFCArena::AllocateRawInternal Failed to allocate memory for requested buffer of size 939524096",
    ],
)
def test_fault_62_every_library_that_is_out_of_memory_is_recognized(text: str) -> None:
    """Each library's words for a full device are E602, after which the batch is halved."""
    with pytest.raises(DeviceMemoryError, match="E602"):
        session(text, Device("cuda")).run(np.zeros((1, 16, 12, 3), dtype=np.uint8))


def test_signatures_of_cpp_are_left_out() -> None:
    """The sentence behind them is what helps; cut at their length it was not to be seen."""
    signature = (
        "/onnxruntime_src/core/graph/load_utils.h:46 void a::b::Validate(const std::map<int, int (*)(int)>&, bool) "
    )
    text = explain_error(f"[ONNXRuntimeError] : 1 : FAIL : {signature}Opset 99 is under development.")
    assert text == "[ONNXRuntimeError] : 1 : FAIL : Opset 99 is under development."


def test_names_as_long_as_a_file_cost_no_time() -> None:
    """The C++ signature is looked for in the beginning of the last line: a name of slashes was read once per slash."""
    for name in ("/" * 1_000_000, "/a.cc:1 (" * 100_000, "(" * 1_000_000, "/x.h:1 f" + "()" * 500_000):
        line = explain_error(f"This is an invalid model. In Node, ({name!r}")
        assert line.startswith("This is an invalid model.")
        assert len(line) <= 300
