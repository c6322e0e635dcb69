"""TensorRT engines: the options they are built with, the folder they are cached in, and notices during a build."""

from __future__ import annotations

import ctypes
import functools
import hashlib
import importlib.util
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
from ensemble.runtime.cache import cache_folder
from ensemble.runtime.cuda import describe_gpu
from ensemble.runtime.device import Device
from ensemble.runtime.fused_views import HOST_VIEWS, split_views
from ensemble.runtime.model_file import INPUT

# the provider of onnxruntime-gpu 1.31.1 is linked against libnvinfer.so.10 and libnvonnxparser.so.10 (readelf -d)
MAJOR = 10
REQUIREMENT = f"tensorrt-cu13>={MAJOR}.13,<{MAJOR + 1}"
_LIBRARIES = tuple(f"{name}.so.{MAJOR}" for name in ("libnvinfer", "libnvinfer_plugin", "libnvonnxparser"))


def versions() -> str:
    """Return the versions of TensorRT and onnxruntime, as part of a folder's name."""
    import onnxruntime

    return f"trt{tensorrt_version()}-ort{onnxruntime.__version__}"


def engine_options(
    card: ModelCard, sha256: str, device: Device, *, rows: int | None = None, views: Sequence[View] = ()
) -> dict[str, str]:
    """Return TensorRT's provider options: one profile of exactly ``rows`` images with these views.

    Without ``rows`` the profile is any batch up to 256. Each combination of model, GPU, versions, views and shape has a
    folder of engines, because onnxruntime's own engine names do not distinguish them.

    Raises:
        DeviceError: E608 for int8, because TensorRT does not support integers with a zero point.
    """
    if card.precision == "int8":
        raise DeviceError("E608", f"{device} does not support int8 with zero points, which {card.member} uses")
    height, width = card.preprocess.size
    made = len(split_views(views, card.preprocess.size)[1])
    smallest, usual, largest = (1, 128, 256) if rows is None else (rows, rows, rows)
    gpu = re.sub(r"[^\w.]+", "-", str(describe_gpu(device.index) or f"gpu{device.index}")).strip("-")
    shapes = "any" if rows is None else f"{rows}x{digest(*(view.name for view in views))}"
    home = cache_folder() / "tensorrt" / f"{versions()}-{gpu}"

    def profile(count: int) -> str:
        second = f",{HOST_VIEWS}:{count}x{made}x{height}x{width}x3" if made else ""
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
def announce_build(options: Mapping[str, str], member: str, listener: Listener) -> Iterator[None]:
    """Announce with a notice before and after the block that an engine is built in it, if none is cached.

    Raises:
        FileError: E701 or E702 when the cache cannot be written.
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
    """Load TensorRT's libraries from pip's folder, so that onnxruntime finds them; others are the system's to find."""
    for place in _pip_folders():
        for name in _LIBRARIES:
            if Path(place, name).is_file():
                # onnxruntime reports a library that does not load
                with suppress(OSError):
                    ctypes.CDLL(str(Path(place, name)))


def explain_missing() -> str:
    """Return which of TensorRT's libraries is missing, and the version that is there instead; empty if none is."""
    load_libraries()
    missing = [name for name in (_LIBRARIES[0], _LIBRARIES[2]) if not _loads(name)]
    if not missing:
        return ""
    names = [f"libnvinfer.so.{major}" for major in (MAJOR + 1, MAJOR + 2, MAJOR - 1)]
    places = [*names, *(str(Path(folder, name)) for folder in _pip_folders() for name in names)]
    others = [found for place in places if (found := _version(place))]
    instead = f"; TensorRT {others[0]} is installed instead" if others else ""
    return f"{missing[0]} is missing (this onnxruntime needs TensorRT {MAJOR}{instead})"


def _pip_folders() -> Sequence[str]:
    found = importlib.util.find_spec("tensorrt_libs")
    return (found.submodule_search_locations or ()) if found else ()


def _loads(library: str) -> bool:
    try:
        ctypes.CDLL(library)
    except OSError:
        return False
    return True


def _version(library: str) -> str:
    """Return the version that a library reports, such as ``11.4.0``; empty if it does not load."""
    try:
        number = int(ctypes.CDLL(library).getInferLibVersion())
    except (OSError, AttributeError):
        return ""
    return f"{number // 10000}.{number // 100 % 100}.{number % 100}"


@functools.cache
def tensorrt_version() -> str:
    """Return the TensorRT library's version, such as ``10.9.0``, or ``none``."""
    load_libraries()
    return _version(_LIBRARIES[0]) or "none"


def digest(*parts: object) -> str:
    """Return a short hash that identifies a combination."""
    return hashlib.sha256("|".join(map(str, parts)).encode()).hexdigest()[:16]
