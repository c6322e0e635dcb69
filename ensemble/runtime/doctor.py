"""Doctor: what this machine can run, proved by running it, and the line that installs what is missing."""

from __future__ import annotations

import importlib.metadata
import platform
from dataclasses import asdict, dataclass

from ensemble.install import install_command
from ensemble.runtime.cuda import describe_gpu
from ensemble.runtime.device import Device
from ensemble.runtime.machine import available_cores, name_gpus
from ensemble.runtime.providers import Start, try_device
from ensemble.text_table import render_columns

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
    """An installed version, or None and the line that installs it."""

    name: str
    version: str | None
    cure: str = ""


@dataclass(frozen=True, slots=True)
class Diagnosis:
    """The machine, its GPUs as the driver names them, the devices that start, and the packages."""

    python: str
    machine: str
    cores: int
    gpus: tuple[str, ...]
    devices: tuple[Start, ...]
    packages: tuple[Package, ...]

    def as_dict(self) -> dict[str, object]:
        """JSON-ready values."""
        return asdict(self) | {
            "devices": [asdict(start) | {"device": str(start.device), "gpu": _name(start)} for start in self.devices]
        }

    def render(self) -> str:
        """The same for people."""
        gpus = ", ".join(self.gpus) or "none seen by nvidia-smi"
        devices = [
            (str(start.device), "starts" if start.works else "does not start", _name(start), start.cause, start.cure)
            for start in self.devices
        ]
        packages = [(p.name, p.version or "missing", p.cure) for p in self.packages]
        return "\n".join(
            (
                f"Python {self.python} on {self.machine}, {self.cores} cores; GPUs: {gpus}\n",
                render_columns(("device", "state", "GPU", "cause", "cure"), devices),
                render_columns(("package", "version", "install"), packages).rstrip(),
            )
        )


def doctor() -> Diagnosis:
    """Start every kind of device on a small model, and look up the packages."""
    gpus = name_gpus()
    cuda = [Device("cuda", index) for index in range(max(1, len(gpus)))]
    openvino = [Device("openvino"), Device("openvino", bf16=True)]
    devices = [Device("cpu"), *openvino, *cuda, *(Device("tensorrt", one.index) for one in cuda)]
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
        devices=tuple(try_device(device) for device in devices),
        packages=tuple(packages),
    )


def _name(start: Start) -> str:
    """The GPU that a device is."""
    found = describe_gpu(start.device.index) if start.device.is_gpu else None
    return "" if found is None else str(found)


def _package(name: str, cure: str | None = None) -> Package:
    try:
        return Package(name, importlib.metadata.version(name))
    except importlib.metadata.PackageNotFoundError:
        return Package(name, None, cure or install_command(name))
