"""Make a wheel of this program from its installed files: no index has it, and no build tool is needed."""

from __future__ import annotations

import base64
import hashlib
import importlib.metadata
import importlib.util
import io
import re
import zipfile
from collections.abc import Sequence
from pathlib import Path

from ensemble.install import DISTRIBUTION

PACKAGES = ("checkpoints", "ensemble", "exporters")
_DATE = (2020, 1, 1, 0, 0, 0)


def requirements() -> dict[str, str]:
    """Return the packages of the light install by name, with the versions that are installed here.

    onnxruntime is listed by that name, whichever of its packages is installed.
    """
    found: dict[str, str] = {}
    for line in importlib.metadata.requires(DISTRIBUTION) or ():
        if "extra ==" in line or "darwin" in line.replace("!= 'darwin'", "").replace('!= "darwin"', ""):
            continue
        match = re.match(r"[\w.-]+", line)
        assert match is not None, "a requirement begins with a name"
        found[match[0].replace("onnxruntime-gpu", "onnxruntime")] = importlib.metadata.version(match[0])
    return found


def own_wheel(required: Sequence[str]) -> tuple[str, bytes]:
    """Return the file name and the content of the wheel; ``required`` are requirements such as ``numpy==2.4.1``."""
    version = importlib.metadata.version(DISTRIBUTION)
    name = DISTRIBUTION.replace("-", "_")
    info = f"{name}-{version}.dist-info"
    files = {path: data for package in PACKAGES for path, data in _files_of(package)}
    metadata = f"Metadata-Version: 2.1\nName: {DISTRIBUTION}\nVersion: {version}\n"
    metadata += "".join(f"Requires-Dist: {one}\n" for one in required)
    files[f"{info}/METADATA"] = metadata.encode()
    files[f"{info}/WHEEL"] = b"Wheel-Version: 1.0\nGenerator: ens\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
    files[f"{info}/entry_points.txt"] = b"[console_scripts]\nens = ensemble.__main__:main\n"
    rows = [f"{path},sha256={_digest(data)},{len(data)}" for path, data in sorted(files.items())]
    files[f"{info}/RECORD"] = "\n".join([*rows, f"{info}/RECORD,,", ""]).encode()
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as archive:
        for path, data in sorted(files.items()):
            archive.writestr(zipfile.ZipInfo(path, _DATE), data, zipfile.ZIP_DEFLATED)
    return f"{name}-{version}-py3-none-any.whl", stream.getvalue()


def _files_of(package: str) -> list[tuple[str, bytes]]:
    spec = importlib.util.find_spec(package)
    assert spec is not None, f"{package} is part of this program"
    assert spec.origin is not None, f"{package} is a package of files"
    root = Path(spec.origin).parent
    return [
        (path.relative_to(root.parent).as_posix(), path.read_bytes())
        for path in sorted(root.rglob("*"))
        if path.is_file() and "__pycache__" not in path.parts
    ]


def _digest(data: bytes) -> str:
    return base64.urlsafe_b64encode(hashlib.sha256(data).digest()).rstrip(b"=").decode()
