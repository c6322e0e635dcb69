"""Plugin execution providers: those that onnxruntime lists beside its own, in libraries registered with it.

A library is registered if an installed package named ``onnxruntime_ep_*`` has ``get_library_path()``, as onnxruntime's
packaging guide asks for, or if the environment variable `LIBRARIES` names it. onnxruntime then lists its devices by
``get_ep_devices()``.
"""

from __future__ import annotations

import functools
import importlib
import os
import pkgutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ensemble.errors import cut_text

LIBRARIES = "ENS_EP_LIBRARIES"
_PACKAGES = "onnxruntime_ep_"
# those with a --device of their own; the CUDA provider of some builds of onnxruntime is a plugin, too
_BUILT_IN = ("CPUExecutionProvider", "CUDAExecutionProvider", "TensorrtExecutionProvider")


@dataclass(frozen=True, slots=True)
class PluginDevice:
    """A device of a plugin provider: ``kind`` is CPU, GPU or NPU, ``index`` counts those of the provider."""

    provider: str
    index: int
    kind: str
    vendor: str

    def __str__(self) -> str:
        return f"{self.provider}:{self.index}"


def plugin_devices() -> tuple[PluginDevice, ...]:
    """Return the devices of all plugin providers, in onnxruntime's order."""
    counts: dict[str, int] = {}
    found = []
    for one in list_ep_devices():
        if one.ep_name in _BUILT_IN:
            continue
        index = counts.get(one.ep_name, 0)
        counts[one.ep_name] = index + 1
        found.append(PluginDevice(one.ep_name, index, one.device.type.name, one.device.vendor or one.ep_vendor))
    return tuple(found)


def ep_device(provider: str, index: int) -> Any:
    """Return the ``OrtEpDevice`` behind a `PluginDevice`.

    Raises:
        LookupError: when onnxruntime does not list the device.
    """
    of_provider = [one for one in list_ep_devices() if one.ep_name == provider]
    if index >= len(of_provider):
        there = f"it has {len(of_provider)}" if of_provider else "onnxruntime does not list it"
        raise LookupError(f"{provider} has no device {index}: {there}")
    return of_provider[index]


def list_ep_devices() -> list[Any]:
    """Return what onnxruntime lists after every library was registered; nothing before onnxruntime 1.23."""
    import onnxruntime

    _register_libraries()
    return list(getattr(onnxruntime, "get_ep_devices", list)())


@functools.cache
def _register_libraries() -> None:
    import onnxruntime

    register: Any = getattr(onnxruntime, "register_execution_provider_library", None)
    for name, path in _libraries() if register is not None else ():
        try:
            register(name, path)
        except Exception as err:  # noqa: BLE001 - onnxruntime raises its errors as bare Exceptions
            problems[name] = cut_text(str(err).strip().splitlines()[-1], 300)


problems: dict[str, str] = {}  # by library: why it could not be registered


def _libraries() -> Iterator[tuple[str, str]]:
    """Yield a name for each library, and its path."""
    for module in pkgutil.iter_modules():
        if not module.name.startswith(_PACKAGES):
            continue
        try:
            yield module.name, str(importlib.import_module(module.name).get_library_path())
        except Exception as err:  # noqa: BLE001 - whatever another package does when it is imported
            problems[module.name] = f"its library was not found: {err}"
    for text in os.environ.get(LIBRARIES, "").split(os.pathsep):
        if text:
            yield Path(text).stem, text
