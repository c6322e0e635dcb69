"""`ens doctor`: start every device to see which work here, and print how to install what is missing."""

from __future__ import annotations

import platform
from collections.abc import Mapping
from dataclasses import asdict, dataclass

from ensemble.install import install_command, version_of
from ensemble.runtime.cuda import CudaVersions, cuda_versions, describe_gpu
from ensemble.runtime.device import Device
from ensemble.runtime.machine import available_cores, name_gpus
from ensemble.runtime.plugins import plugin_devices, problems
from ensemble.runtime.providers import Start, try_device
from ensemble.text.text_table import render_columns, wrap_text

_CORE = (
    "onnxruntime-gpu",
    "onnxruntime",
    "onnx",
    "numpy",
    "pillow",
    "pyarrow",
    "scikit-learn",
    "scipy",
    "click",
    "tqdm",
)
_EXTRAS = {
    "openvino": ("openvino",),
    "ray": ("ray", "fsspec"),
    "report": ("matplotlib",),
    "torch": (
        "torch",
        "torchvision",
        "timm",
        "onnxscript",
        "safetensors",
        "accelerate",
        "albumentations",
        "facenet-pytorch",
    ),
}


@dataclass(frozen=True, slots=True)
class Package:
    """A package's installed version, or None and the command that installs it."""

    name: str
    version: str | None
    cure: str = ""


@dataclass(frozen=True, slots=True)
class Diagnosis:
    """The machine, its GPUs as the driver names them, which devices start, and the packages.

    ``plugins`` are the libraries of execution providers that could not be registered, and why.
    """

    python: str
    machine: str
    cores: int
    gpus: tuple[str, ...]
    cuda: CudaVersions
    plugins: Mapping[str, str]
    devices: tuple[Start, ...]
    packages: tuple[Package, ...]

    def as_dict(self) -> dict[str, object]:
        """Return JSON-ready values."""
        return asdict(self) | {
            "devices": [asdict(start) | {"device": str(start.device), "gpu": _name(start)} for start in self.devices]
        }

    def render(self) -> str:
        """Return the tables of devices and packages for people, with what to do below each."""
        gpus = ", ".join(self.gpus) or "none seen by nvidia-smi"
        devices = [
            (str(start.device), "starts" if start.works else "does not start", _name(start)) for start in self.devices
        ]
        missing: dict[str, list[str]] = {}
        for package in self.packages:
            if package.version is None:
                missing.setdefault(package.cure, []).append(package.name)
        return "\n".join(
            (
                wrap_text(f"Python {self.python} on {self.machine}, {self.cores} cores; GPUs: {gpus}; {self.cuda}")
                + "\n",
                render_columns(("device", "state", "GPU"), devices),
                *(_render_failure(start) for start in self.devices if not start.works),
                *(wrap_text(f"the provider library {name} is left out: {why}") for name, why in self.plugins.items()),
                render_columns(("package", "version"), [(p.name, p.version or "missing") for p in self.packages]),
                *(wrap_text(f"To install {', '.join(names)}:") + f"\n  {cure}\n" for cure, names in missing.items()),
            )
        ).rstrip()


def doctor() -> Diagnosis:
    """Start every kind of device on a small model and look up the installed packages."""
    gpus = name_gpus()
    cuda = [Device("cuda", index) for index in range(max(1, len(gpus)))]
    openvino = [Device("openvino"), Device("openvino", bf16=True)]
    devices = [Device("cpu"), *openvino, *cuda, *(Device("tensorrt", one.index) for one in cuda)]
    devices += [Device("plugin", one.index, plugin=one.provider) for one in plugin_devices()]
    starts = tuple(try_device(device) for device in devices)
    packages = [_package(name) for name in _CORE if name != "onnxruntime"]
    if packages[0].version is None:
        # macOS and plain CPU installations have the package without -gpu
        packages[0] = _package("onnxruntime", install_command("onnxruntime-gpu"))
    for extra, names in _EXTRAS.items():
        packages += [_package(name, install_command(extra=extra)) for name in names]
    return Diagnosis(
        python=platform.python_version(),
        machine=platform.platform(terse=True),
        cores=available_cores(),
        gpus=gpus,
        cuda=cuda_versions(),  # now that trying the devices has loaded what there is
        devices=starts,
        plugins=dict(problems),
        packages=tuple(packages),
    )


def _name(start: Start) -> str:
    """Return the name of the GPU behind a device; empty for others."""
    found = describe_gpu(start.device.index) if start.device.is_gpu else None
    return "" if found is None else str(found)


def _render_failure(start: Start) -> str:
    """Return why a device does not start, and what to do in a line that is not wrapped, as it holds a command."""
    return wrap_text(f"{start.device} does not start: {start.cause}") + f"\n  {start.cure}\n"


def _package(name: str, cure: str | None = None) -> Package:
    version = version_of(name)
    return Package(name, version, "" if version else cure or install_command(name))
