"""Fetch the wheels of what a run of a saved recipe loads, for other versions of Python, with pip."""

from __future__ import annotations

import importlib.util
import re
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from ensemble.bundle.own_wheel import own_wheel, requirements
from ensemble.card import ModelCard
from ensemble.errors import DeployError, OptionError
from ensemble.files import remove, write_atomic
from ensemble.runtime.openvino import is_for_openvino, openvino_version

PYTHONS = ("3.11", "3.12", "3.13")
# what wheels for Linux on x86-64 are tagged with, newest first
_ONLY_LEARNING = ("scikit-learn", "scipy", "threadpoolctl")
_PLATFORMS = ("manylinux_2_28_x86_64", "manylinux_2_27_x86_64", "manylinux_2_17_x86_64", "manylinux2014_x86_64")


def packages_to_run(cards: Sequence[ModelCard], *, gpu: bool = False) -> dict[str, str]:
    """Return the packages that `ens submit` loads for these models, with the versions that are installed here.

    scikit-learn, scipy and threadpoolctl learn recipes and the thresholds of early exits. pyarrow reads face boxes;
    where it is not there, parts are stored as arrays. OpenVINO runs int8 models that are quantized for it, on machines
    without a ``gpu``; it is left out where it is not installed here.
    """
    unused = set(_ONLY_LEARNING)
    if all(card.preprocess.face is None for card in cards):
        unused.add("pyarrow")
    found = {name: version for name, version in requirements().items() if name not in unused}
    openvino = openvino_version()
    if not gpu and openvino != "missing" and any(is_for_openvino(card) for card in cards):
        found["openvino"] = openvino
    return found


def fetch_wheels(
    folder: Path, pythons: Sequence[str], *, packages: Mapping[str, str], gpu: bool = False
) -> dict[str, int]:
    """Write the wheels of ``packages`` and of this program into ``folder``; return their bytes by name.

    Their versions are given by name, so that a run elsewhere gives the same bytes. With ``gpu`` onnxruntime is the
    package for CUDA.

    Raises:
        OptionError: E204 when a version of Python is not written as 3.12.
        DeployError: E814 when pip is not there or finds no wheel.
    """
    for one in pythons:
        if not re.fullmatch(r"3\.\d+", one):
            raise OptionError("E204", f"--python takes 3.11, 3.12 and so on, got {one!r}")
    names = {("onnxruntime-gpu" if gpu and name == "onnxruntime" else name): v for name, v in packages.items()}
    required = [f"{name}=={version}" for name, version in names.items()]
    folder.mkdir(parents=True, exist_ok=True)
    for old in folder.glob("*.whl"):  # of an earlier bundle
        remove(old)
    pip = _pip()
    for python in pythons:
        command = [*pip, "download", "--quiet", "--disable-pip-version-check", "--only-binary=:all:"]
        command += ["--implementation", "cp", "--python-version", python, "--dest", str(folder)]
        command += [part for platform in _PLATFORMS for part in ("--platform", platform)]
        done = subprocess.run([*command, *required], capture_output=True, text=True, check=False)
        if done.returncode:
            lines = tuple(line for line in done.stderr.splitlines() if line.startswith("ERROR"))
            raise DeployError("E814", f"pip found no wheels for Python {python}", details=lines[:5])
    name, data = own_wheel(required)
    write_atomic(folder / name, data)
    return {path.name: path.stat().st_size for path in sorted(folder.glob("*.whl"))}


def _pip() -> list[str]:
    if importlib.util.find_spec("pip") is not None:
        return [sys.executable, "-m", "pip"]
    found = shutil.which("pip") or shutil.which("pip3")
    if found is None:
        raise DeployError("E814", "pip, which fetches the wheels, is not installed", hint="install pip, and run again")
    return [found]
