"""A device to run on, as a value: parsed, compared and printed; nothing is started."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Literal

from ensemble.errors import OptionError

DeviceKind = Literal["cpu", "cuda", "tensorrt", "openvino", "plugin"]


PROVIDERS: Mapping[DeviceKind, str] = {
    "cpu": "CPUExecutionProvider",
    "cuda": "CUDAExecutionProvider",
    "tensorrt": "TensorrtExecutionProvider",
}


@dataclass(frozen=True, slots=True)
class Device:
    """The device that models run on: its kind, a GPU's ``index``, the ``others`` that share the work, OpenVINO's
    ``bf16``, the ``plugin`` provider's name.
    """

    kind: DeviceKind
    index: int = 0
    others: tuple[int, ...] = ()
    bf16: bool = False
    plugin: str = ""

    def __str__(self) -> str:
        if self.kind == "openvino":
            return "openvino:bf16" if self.bf16 else "openvino"
        if self.kind == "plugin":
            return f"{self.plugin}:{self.index}"
        return self.kind if self.kind == "cpu" else f"{self.kind}:{','.join(map(str, (self.index, *self.others)))}"

    @property
    def each(self) -> tuple[Device, ...]:
        """The devices one by one: one per GPU."""
        return tuple(replace(self, index=index, others=()) for index in (self.index, *self.others))

    @property
    def is_gpu(self) -> bool:
        """True for the devices on which models run with a fixed batch size and IO binding."""
        return self.kind in {"cuda", "tensorrt"}

    @property
    def provider(self) -> str:
        """The execution provider's name in onnxruntime; for OpenVINO its version and precision, which fix the bits."""
        if self.kind == "openvino":
            from ensemble.runtime.openvino import openvino_version

            return f"OpenVINO {openvino_version()} {'bf16' if self.bf16 else 'f32'}"
        if self.kind == "plugin":
            return self.plugin
        return PROVIDERS[self.kind]


CPU = Device("cpu")
# the faster of onnxruntime and OpenVINO for the models of a run, see `ensemble.runtime.fastest`
FASTEST = "cpu:fastest"


def parse_device(text: str) -> Device | None:
    """Parse ``cpu``, ``cuda``, ``cuda:1``, ``cuda:0,1``, ``tensorrt``, ``openvino`` or ``openvino:bf16``.

    Any other name must be a plugin provider's that onnxruntime lists, with or without an index. Return None for
    ``auto``.

    Raises:
        OptionError: E203 for anything else; for ``cpu:fastest`` too, which is not a device but a choice.
    """
    if text == "auto":
        return None
    if text == FASTEST:
        message = f"{FASTEST} is measured with the models of a run on this machine, which is not possible here"
        raise OptionError("E203", message, hint="give cpu or openvino")
    match = re.fullmatch(r"(cpu)|(cuda|tensorrt)(?::(\d{1,2}(?:,\d{1,2})*))?|(openvino)(:bf16)?", text)
    if match is None:
        return _parse_plugin(text)
    if match[1]:
        return CPU
    if match[4]:
        return Device("openvino", bf16=bool(match[5]))
    first, *others = (int(number) for number in (match[3] or "0").split(","))
    if len({first, *others}) <= len(others):
        raise OptionError("E203", f"{text!r} names a GPU twice")
    return Device("cuda" if match[2] == "cuda" else "tensorrt", first, others=tuple(others))


def _parse_plugin(text: str) -> Device:
    from ensemble.runtime.plugins import plugin_devices

    name, _, index = text.partition(":")
    devices = plugin_devices() if re.fullmatch(r"\w+(:\d{1,2})?", text) else ()
    for one in devices:
        if one.provider == name and one.index == int(index or 0):
            return Device("plugin", one.index, plugin=name)
    known = f"; onnxruntime lists {', '.join(map(str, devices))}" if devices else ""
    raise OptionError("E203", f"{text!r} is not a device{known}")
