"""The device on which torch computes: that of `ens crop` and `ens train`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ensemble.errors import DeviceError, OptionError
from ensemble.events import SILENT, Listener, Notice
from ensemble.text.plain_numbers import is_count

if TYPE_CHECKING:
    import torch


def require_torch_device(name: str) -> None:
    """Check the name of a device of torch, without torch.

    Raises:
        OptionError: E203 when it is none of ``auto``, ``cpu``, ``cuda`` and ``cuda:<index>``.
    """
    kind, _, index = name.partition(":")
    if kind not in {"auto", "cpu", "cuda"} or (index and (kind != "cuda" or not is_count(index))):
        raise OptionError("E203", f"{name!r} is not a device", hint="devices: auto, cpu, cuda, cuda:<index>")


def choose_torch_device(name: str, *, listener: Listener = SILENT) -> torch.device:
    """Return torch's device for ``auto``, ``cpu``, ``cuda`` or ``cuda:<index>``; an explicit device is never replaced.

    Raises:
        OptionError: E203 when the name is unknown.
        DeviceError: E601 when torch does not have it.
    """
    require_torch_device(name)
    import torch

    kind, _, index = name.partition(":")
    there = torch.cuda.device_count() if kind != "cpu" and torch.cuda.is_available() else 0
    if kind == "cuda" and int(index or 0) >= there:
        message = f"{name} was asked for, but torch {torch.__version__} has {there} GPUs here"
        raise DeviceError("E601", message, hint="install a torch with CUDA, or give --device cpu")
    if kind == "auto" and not there:
        listener.notice(Notice("W601", f"torch {torch.__version__} has no GPU here; the CPU is used"))
    return torch.device(name if kind != "auto" else "cuda" if there else "cpu")
