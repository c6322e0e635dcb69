"""Call CUDA's libraries through ctypes: the name of a GPU, and page-locked memory for fast copies.

onnxruntime loads these libraries; this module only calls them. Without them its functions return None and False.
"""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Sequence
from dataclasses import dataclass

from ensemble.arrays import Pixels

_DRIVER = ("libcuda.so.1", "nvcuda.dll")
_RUNTIME = ("libcudart.so.13", "libcudart.so.12")
_CUDNN = ("libcudnn.so.9", "cudnn64_9.dll")
_MAJOR, _MINOR = 75, 76  # CUdevice_attribute: the compute capability
_NON_BLOCKING = 1  # cudaStreamNonBlocking
_PORTABLE = 1  # cudaHostRegisterPortable: page-locked for every GPU of the process


@dataclass(frozen=True, slots=True)
class Gpu:
    """A GPU's name and compute capability, such as ``NVIDIA H100`` and ``9.0``."""

    name: str
    capability: str

    def __str__(self) -> str:
        return f"{self.name} (compute {self.capability})"


@functools.cache
def describe_gpu(index: int) -> Gpu | None:
    """Return the GPU of this onnxruntime index as its driver names it; None without a driver or such a GPU."""
    driver = _load(_DRIVER)
    if driver is None:
        return None
    name = ctypes.create_string_buffer(256)
    handle, major, minor = ctypes.c_int(), ctypes.c_int(), ctypes.c_int()
    failed = (
        driver.cuInit(0)
        or driver.cuDeviceGet(ctypes.byref(handle), index)
        or driver.cuDeviceGetName(name, len(name), handle)
        or driver.cuDeviceGetAttribute(ctypes.byref(major), _MAJOR, handle)
        or driver.cuDeviceGetAttribute(ctypes.byref(minor), _MINOR, handle)
    )
    if failed:
        return None
    return Gpu(name.value.decode("utf-8", "replace"), f"{major.value}.{minor.value}")


@dataclass(frozen=True, slots=True)
class CudaVersions:
    """The CUDA that the driver supports, and the CUDA and cuDNN that are loaded; None is what is not there."""

    driver: str | None
    runtime: str | None
    cudnn: str | None

    def __str__(self) -> str:
        return (
            f"CUDA {self.runtime or 'not found'}, cuDNN {self.cudnn or 'not found'}, "
            f"driver for CUDA {self.driver or 'not found'}"
        )


def cuda_versions() -> CudaVersions:
    """Return the versions of CUDA's libraries; those of pip are found once a device was tried, which loads them."""
    driver, runtime, cudnn = _load(_DRIVER), _load(_RUNTIME), _load(_CUDNN)
    found = [
        None if library is None else _cuda_version(library, name)
        for library, name in (
            (driver, "cuDriverGetVersion"),
            (runtime, "cudaRuntimeGetVersion"),
        )
    ]
    if cudnn is None:
        return CudaVersions(found[0], found[1], None)
    cudnn.cudnnGetVersion.restype = ctypes.c_size_t
    number = int(cudnn.cudnnGetVersion())
    return CudaVersions(found[0], found[1], f"{number // 10000}.{number // 100 % 100}.{number % 100}")


def _cuda_version(library: ctypes.CDLL, name: str) -> str | None:
    number = ctypes.c_int()
    if getattr(library, name)(ctypes.byref(number)) != 0:
        return None
    return f"{number.value // 1000}.{number.value // 10 % 100}"


def lock_pages(array: Pixels, *, index: int) -> bool:
    """Page-lock an array's memory for direct transfer to the GPU; return whether that worked.

    `unlock_pages` must be called before the memory is freed.
    """
    runtime = _load(_RUNTIME)
    if runtime is None or runtime.cudaSetDevice(index) != 0:
        return False
    done: int = runtime.cudaHostRegister(
        ctypes.c_void_p(array.ctypes.data), ctypes.c_size_t(array.nbytes), ctypes.c_uint(_PORTABLE)
    )
    if done != 0:
        runtime.cudaGetLastError()  # clear it, or onnxruntime would report the failure as its own
    return done == 0


@functools.cache
def create_stream(index: int) -> int | None:
    """Return a ``cudaStream_t`` on a GPU, which lives as long as the process; None where CUDA is not loaded.

    It does not wait for CUDA's default stream, nor that one for it: so the next batch is copied while one is computed.
    """
    runtime = _load(_RUNTIME)
    stream = ctypes.c_void_p()
    if runtime is None or runtime.cudaSetDevice(index) != 0:
        return None
    if runtime.cudaStreamCreateWithFlags(ctypes.byref(stream), ctypes.c_uint(_NON_BLOCKING)) != 0:
        runtime.cudaGetLastError()
        return None
    return stream.value


def synchronize(stream: int, *, index: int) -> None:
    """Wait until everything on a stream has been computed.

    Raises:
        RuntimeError: in onnxruntime's words, when something on the stream failed.
    """
    runtime = _load(_RUNTIME)
    assert runtime is not None, "it created the stream"
    runtime.cudaSetDevice(index)
    status = int(runtime.cudaStreamSynchronize(ctypes.c_void_p(stream)))
    if status != 0:
        runtime.cudaGetErrorString.restype = ctypes.c_char_p
        said = (runtime.cudaGetErrorString(status) or b"").decode("utf-8", "replace")
        raise RuntimeError(f"CUDA failure {status}: {said} ; GPU={index} ; expr=cudaStreamSynchronize")


def unlock_pages(array: Pixels) -> None:
    """Undo `lock_pages`."""
    runtime = _load(_RUNTIME)
    if runtime is not None:
        runtime.cudaHostUnregister(ctypes.c_void_p(array.ctypes.data))


def _load(names: Sequence[str]) -> ctypes.CDLL | None:
    for name in names:
        try:
            return _open(name)
        except OSError:  # not cached: it may be loaded later, from pip's folder
            continue
    return None


@functools.cache
def _open(name: str) -> ctypes.CDLL:
    return ctypes.CDLL(name)
