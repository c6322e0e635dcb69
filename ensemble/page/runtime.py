"""The runtime of a page, the npm package onnxruntime-web: fetched with npm or read from a folder, and verified."""

from __future__ import annotations

import base64
import hashlib
import io
import shutil
import subprocess
import tarfile
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from ensemble.errors import DeployError, FileError

PACKAGE, VERSION = "onnxruntime-web", "1.30.0"
INTEGRITY = "sha512-q0y+JrrtukXSzsBWEMccVfqX25LRmosXHF+CaRJmg8pZClzcV7svNc4rKY3jL02Vb7QmRMDs1SigqR4CXAfKYQ=="
"""The hash of the package that npm's registry states for this version, in the form of Subresource Integrity."""
SCRIPT, BINARY = "ort.wasm.bundle.min.mjs", "ort-wasm-simd-threaded.wasm"
SHA256: Mapping[str, str] = {
    SCRIPT: "11e64bd8ffe11bd1a2a2f0d6275fdfbbba7262f0b76b99b53d228a8a22ef3d90",
    BINARY: "3398c10d07d229bd91b364548e130e0e51a8e5704b88c7c083ebbeb78842dee2",
}
_FETCH = ("npm", "pack", f"{PACKAGE}@{VERSION}", "--prefer-offline", "--ignore-scripts", "--loglevel=error")
_BY_HAND = f"on a machine that has npm, run npm pack {PACKAGE}@{VERSION}, and give its file with --runtime"
_SECONDS = 600


@dataclass(frozen=True, slots=True, eq=False)
class WebRuntime:
    """The two files of the package that a page needs: ``script``, a JavaScript module, and ``binary``, WebAssembly."""

    script: bytes
    binary: bytes


def read_runtime(place: Path | None) -> WebRuntime:
    """Return the runtime's files from ``place``, or else from npm's registry, verified by their SHA-256.

    ``place`` is the package's file that ``npm pack`` wrote, the folder of the package, or a folder that holds the two
    files. Without it ``npm pack`` is run, which uses npm's own configuration and cache.

    Raises:
        FileError: E707 when ``place`` cannot be read.
        DeployError: E831 when npm is missing or fails, E832 when a file is not the one of the version that is required.
    """
    if place is None:
        return _from_package(_fetch(), f"{PACKAGE} {VERSION} as npm gave it")
    try:
        if place.is_dir():
            return _from_folder(place)
        if place.exists() and not place.is_file():  # a FIFO would block forever
            raise FileError("E707", f"{place} is not a file", path=place)
        return _from_package(place.read_bytes(), str(place))
    except OSError as err:
        raise FileError("E707", f"{place} cannot be read: {err.strerror}", path=place) from err


def _fetch() -> bytes:
    program = shutil.which("npm")
    if program is None:
        raise DeployError("E831", f"{PACKAGE} is fetched with npm, which is not installed", hint=_BY_HAND)
    with tempfile.TemporaryDirectory(prefix="ens-npm-") as folder:
        command = [program, *_FETCH[1:], "--pack-destination", folder]
        try:
            done = subprocess.run(command, capture_output=True, text=True, cwd=folder, timeout=_SECONDS, check=False)
        except subprocess.TimeoutExpired as err:
            raise DeployError("E831", f"npm did not answer within {_SECONDS} seconds", hint=_BY_HAND) from err
        found = sorted(Path(folder).glob("*.tgz"))
        if done.returncode != 0 or not found:
            lines = tuple(line for line in done.stderr.splitlines() if line.strip())
            raise DeployError("E831", f"{' '.join(_FETCH[:3])} failed", hint=_BY_HAND, details=lines)
        return found[0].read_bytes()


def _from_package(data: bytes, name: str) -> WebRuntime:
    """Read the files from the gzipped tar file of a package, whose own hash is checked first."""
    found = "sha512-" + base64.b64encode(hashlib.sha512(data).digest()).decode()
    if found != INTEGRITY:
        raise DeployError("E832", f"{name} is not {PACKAGE} {VERSION}: its integrity is {found}, not {INTEGRITY}")
    with tarfile.open(fileobj=io.BytesIO(data), mode="r:gz") as package:
        files = {}
        for wanted in SHA256:
            member = package.extractfile(f"package/dist/{wanted}")
            assert member is not None, "the package of this integrity has the file"
            files[wanted] = member.read()
    return _verified(files, name)


def _from_folder(folder: Path) -> WebRuntime:
    within = (folder, folder / "dist", folder / "package" / "dist", folder / PACKAGE / "dist")
    held = next((one for one in within if all((one / name).is_file() for name in SHA256)), None)
    if held is None:
        expected = " and ".join(SHA256)
        raise DeployError("E832", f"{folder} holds no {expected}, neither itself nor in dist", path=folder)
    return _verified({name: (held / name).read_bytes() for name in SHA256}, str(held))


def _verified(files: Mapping[str, bytes], name: str) -> WebRuntime:
    for file, wanted in SHA256.items():
        found = hashlib.sha256(files[file]).hexdigest()
        if found != wanted:
            raise DeployError(
                "E832", f"{file} in {name} is not that of {PACKAGE} {VERSION}: its SHA-256 is {found}, not {wanted}"
            )
    return WebRuntime(files[SCRIPT], files[BINARY])
