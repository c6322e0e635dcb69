"""TensorRT's engines: what they are built for, where they are kept, and what is said while one is built."""

from __future__ import annotations

import ctypes
import functools
import hashlib
import importlib.util
import os
import re
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from ensemble import files
from ensemble.card import ModelCard
from ensemble.errors import DeviceError
from ensemble.events import Listener, Notice
from ensemble.images.views import View
from ensemble.runtime.cuda import describe_gpu
from ensemble.runtime.device import Device
from ensemble.runtime.fused_views import MADE, split_views
from ensemble.runtime.model_file import INPUT

_LIBRARIES = ("libnvinfer.so.10", "libnvinfer_plugin.so.10", "libnvonnxparser.so.10")


def cache_folder() -> Path:
    """Where what took long to find out is kept between runs."""
    return Path(os.environ.get("XDG_CACHE_HOME", "~/.cache")).expanduser() / "ens"


def versions() -> str:
    """The versions of TensorRT and onnxruntime, as a part of a folder's name."""
    import onnxruntime

    return f"trt{tensorrt_version()}-ort{onnxruntime.__version__}"


def engine_options(
    card: ModelCard, sha256: str, device: Device, *, rows: int | None = None, views: Sequence[View] = ()
) -> dict[str, str]:
    """What TensorRT is told: one profile of exactly ``rows`` images, through these views.

    Without ``rows`` any batch up to 256. Engines lie in a folder of the model, the GPU, the versions, the views and the
    shape, because onnxruntime's own name for an engine tells none of them apart.

    Raises:
        DeviceError: E608 for int8, because TensorRT takes no integers with a zero point.
    """
    if card.precision == "int8":
        raise DeviceError(
            "E608", f"{device} takes no integers with a zero point, of which {card.member} (int8) is made"
        )
    height, width = card.preprocess.size
    made = len(split_views(views, card.preprocess.size)[1])
    smallest, usual, largest = (1, 128, 256) if rows is None else (rows, rows, rows)
    gpu = re.sub(r"[^\w.]+", "-", str(describe_gpu(device.index) or f"gpu{device.index}")).strip("-")
    shapes = "any" if rows is None else f"{rows}x{digest(*(view.name for view in views))}"
    home = cache_folder() / "tensorrt" / f"{versions()}-{gpu}"

    def profile(count: int) -> str:
        second = f",{MADE}:{count}x{made}x{height}x{width}x3" if made else ""
        return f"{INPUT}:{count}x{height}x{width}x3{second}"

    return {
        "trt_engine_cache_enable": "1",
        "trt_engine_cache_path": str(home / f"{sha256[:16]}-{shapes}"),
        "trt_timing_cache_enable": "1",
        "trt_timing_cache_path": str(home),
        "trt_fp16_enable": str(int(card.precision == "fp16")),
        "trt_profile_min_shapes": profile(smallest),
        "trt_profile_opt_shapes": profile(usual),
        "trt_profile_max_shapes": profile(largest),
    }


@contextmanager
def building(options: Mapping[str, str], member: str, listener: Listener) -> Iterator[None]:
    """Say before and after that an engine is built inside, when none is kept.

    Raises:
        FileError: E701 or E702 when there is nowhere to keep it.
    """
    folder = Path(options.get("trt_engine_cache_path", ""))
    if "trt_engine_cache_path" not in options or any(folder.glob("*.engine")):
        yield
        return
    files.require_writable(folder)
    listener.notice(Notice("I608", f"TensorRT builds an engine for {member}, which can take minutes", folder))
    start = time.monotonic()
    yield
    listener.notice(Notice("I608", f"the engine for {member} took {time.monotonic() - start:.0f} s", folder))


@functools.cache
def load_libraries() -> None:
    """Load TensorRT's libraries where pip has put them, so that onnxruntime finds them; elsewhere the system does."""
    found = importlib.util.find_spec("tensorrt_libs")
    for place in (found.submodule_search_locations or ()) if found else ():
        for name in _LIBRARIES:
            if Path(place, name).is_file():
                # a library that does not load is onnxruntime's to explain
                with suppress(OSError):
                    ctypes.CDLL(str(Path(place, name)))


@functools.cache
def tensorrt_version() -> str:
    """TensorRT's version by its library, such as ``10.9.0``; ``none`` where there is none."""
    load_libraries()
    try:
        number = int(ctypes.CDLL(_LIBRARIES[0]).getInferLibVersion())
    except (OSError, AttributeError):
        return "none"
    return f"{number // 10000}.{number // 100 % 100}.{number % 100}"


def digest(*parts: object) -> str:
    """A short name for a combination."""
    return hashlib.sha256("|".join(map(str, parts)).encode()).hexdigest()[:16]
