"""Time the provider options of a network on a GPU, and read from the names of its kernels what they run on."""

from __future__ import annotations

import re
import traceback
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from ensemble.errors import EnsError
from ensemble.images.views import parse_views
from ensemble.runtime.device import Device
from ensemble.runtime.gpu_start import time_options
from ensemble.runtime.model_file import ModelFile
from ensemble.runtime.session import provider_options

CUDA = Device("cuda")
CHANGES: Mapping[str, Mapping[str, str]] = {
    "plain": {},
    "no tensor cores": {"use_tf32": "0"},
    "tensor cores": {"use_tf32": "1"},
    "channels last": {"prefer_nhwc": "1"},
    "fused bias": {"fuse_conv_bias": "1"},
    "channels last, fused bias": {"prefer_nhwc": "1", "fuse_conv_bias": "1"},
    "heuristics B": {"cudnn_conv_algo_search": "EXHAUSTIVE"},
    "fallback": {"cudnn_conv_algo_search": "DEFAULT"},
    "CUDA graph": {"enable_cuda_graph": "1"},
}
# as cuDNN and CUTLASS call the kernels that use them
_TENSOR_CORES = re.compile(
    r"tensorop|hmma|wgmma|s16816|s1688|16816|tensor16x8|sm90_xmma_fprop|ampere_fp16_s", re.IGNORECASE
)


@dataclass(frozen=True)
class Measured:
    """Passes per second by options, and the kernels of one batch; None is what could not be found out."""

    passes_per_second: Mapping[str, float]
    kernels: Sequence[str] = ()
    tensor_cores: bool | None = None
    failures: Mapping[str, str] = field(default_factory=dict)


def measure_options(model: ModelFile, rows: int) -> Measured:
    """Measure every change of the options, with both views of ``rows`` images; what fails is told on standard error."""
    views = parse_views("hflip")
    base = provider_options(model.card, model.sha256, CUDA)
    rates: dict[str, float] = {}
    failures: dict[str, str] = {}
    for name, change in CHANGES.items():
        try:
            seconds = time_options(model, {**base, **change}, device=CUDA, rows=rows, views=views)
        except EnsError as err:
            traceback.print_exc()
            failures[name] = str(err)
            continue
        rates[name] = rows * len(views) / seconds
    kernels = kernel_names(model, base, rows) if rates else ()
    return Measured(rates, kernels, uses_tensor_cores(kernels), failures)


def kernel_names(model: ModelFile, options: Mapping[str, str], rows: int) -> tuple[str, ...]:
    """Return the names of the kernels of a few batches, the longest-running first; none without torch's profiler."""
    try:
        from torch.profiler import ProfilerActivity, profile
    except ImportError:
        return ()
    with profile(activities=[ProfilerActivity.CUDA]) as found:
        time_options(model, options, device=CUDA, rows=rows, views=parse_views("hflip"))
    events = sorted(found.key_averages(), key=lambda event: -event.device_time_total)
    return tuple(event.key for event in events[:40])


def uses_tensor_cores(kernels: Sequence[str]) -> bool | None:
    """Return whether a kernel's name says that it uses tensor cores; None where no name is known."""
    return any(_TENSOR_CORES.search(name) for name in kernels) if kernels else None
