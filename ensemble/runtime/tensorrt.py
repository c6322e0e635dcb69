"""TensorRT engines: the options they are built with, the folder they are cached in, and notices during a build.

onnxruntime 1.31.1 builds weakly typed networks: both of its calls of ``IBuilder::createNetworkV2`` pass no flag, and of
the precisions it sets ``BuilderFlag`` kFP16, kINT8 and kBF16 alone (the provider's binary, disassembled). So int8 needs
``trt_int8_enable``, with which TensorRT follows the QuantizeLinear and DequantizeLinear nodes of the file and reads no
calibration table; and float8, which needs kFP8 or a strongly typed network, cannot be built.
"""

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
from ensemble.runtime.model_file import INPUT, ModelFile

# the provider of onnxruntime-gpu 1.31.1 is linked against libnvinfer.so.10 and libnvonnxparser.so.10 (readelf -d)
MAJOR = 10
# onnxruntime's rule makes biases int32, which TensorRT does not quantize to
BIAS_OPTIMIZER = "WeightBiasQuantization"
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

    """
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
        "trt_int8_enable": str(int(card.precision == "int8")),
        "trt_profile_min_shapes": profile(smallest),
        "trt_profile_opt_shapes": profile(usual),
        "trt_profile_max_shapes": profile(largest),
    }


def require_symmetric(model: ModelFile, device: Device) -> None:
    """Check that TensorRT's parser takes a model's QuantizeLinear and DequantizeLinear nodes.

    Raises:
        DeviceError: E608 when one has a zero point other than zero, or a type that TensorRT does not quantize to.
    """
    if model.card.precision == "int8" and (found := _asymmetric(model.data)):
        message = f"{device} supports symmetric quantization alone, and {model.card.member} has {found}"
        hint = "export it with --precision int8 --quantization symmetric, or use --device cuda"
        raise DeviceError("E608", message, hint=hint)


def _asymmetric(data: bytes) -> str:
    """Return what TensorRT does not support of a model's quantization; empty if it supports all of it.

    The rules are those of ``QuantDequantLinearHelper`` in onnx-tensorrt 10. An int32 bias is folded by onnxruntime's
    provider (``ConstantFoldingDQ``).
    """
    import onnx

    graph = onnx.load_model_from_string(data).graph
    constants = {tensor.name: tensor for tensor in graph.initializer}
    for node in graph.node:
        if node.op_type == "Constant":
            constants |= {name: one.t for name in node.output for one in node.attribute if one.name == "value"}
    types = onnx.TensorProto
    known = {types.INT8, types.INT4}
    for node in graph.node:
        if node.op_type not in {"QuantizeLinear", "DequantizeLinear"}:
            continue
        zero = constants.get(node.input[2]) if len(node.input) > 2 else None
        named = any(one.name == "output_dtype" and one.i in known for one in node.attribute)
        if zero is None:
            if node.op_type == "QuantizeLinear" and len(node.input) < 3 and not named:
                return f"uint8 values ({node.output[0]})"  # ONNX's default
            continue
        if zero.data_type not in known and not (node.op_type == "DequantizeLinear" and zero.data_type == types.INT32):
            return f"{types.DataType.Name(zero.data_type).lower()} values ({node.output[0]})"
        if zero.data_type in {types.INT8, types.INT32} and onnx.numpy_helper.to_array(zero).any():
            return f"a zero point that is not zero ({node.output[0]})"
    return ""


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
