"""Pack what a machine with a GPU needs of onnxruntime-gpu, with the code of one GPU architecture alone.

    python -m tests.on_gpu.pack --out DIR [--sm 90] [--wheel onnxruntime_gpu-...-cp312-....whl]

The CUDA provider holds machine code for every architecture. That of all but ``--sm`` is filled with zeros, which
compress to nothing; the headers stay, so that no offset moves. Without ``--wheel`` the installed package is packed, for
the Python version that it was installed for. The TensorRT provider and libonnxruntime.so are left out. On the other
machine:

    tar xf onnxruntime.tar.xz -C DIR && PYTHONPATH=DIR python -m tests.on_gpu ...

Should CUDA refuse the zeroed images there (no kernel image is available), pack with ``--sm all``. ``--list`` only lists
the architectures and their sizes, as ``cuobjdump --list-elf`` does.
"""

from __future__ import annotations

import argparse
import io
import struct
import sys
import tarfile
import zipfile
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

PROVIDER = "libonnxruntime_providers_cuda.so"
_LEFT_OUT = ("libonnxruntime.so", "libonnxruntime_providers_tensorrt.so")
# a container of images, and an image in it; as NVIDIA's tools write them, see the readers of fat binaries on GitHub
_CONTAINER = struct.Struct("<IHHQ")  # magic, version, size of this header, size of the images
_IMAGE = struct.Struct("<HHIQIIHHI")  # kind, -, size of this header, size, -, -, minor, major, architecture
_MAGIC = 0xBA55ED50
_KINDS = {1: "ptx", 2: "elf"}


@dataclass(frozen=True)
class Image:
    """The machine code (``elf``) or PTX of an architecture: ``size`` bytes from ``start``."""

    kind: str
    architecture: int
    start: int
    size: int


def find_images(data: bytes | bytearray | memoryview) -> Iterator[Image]:
    """Yield every image of every fat binary in a library."""
    whole = bytes(data) if isinstance(data, memoryview) else data
    place = whole.find(_MAGIC.to_bytes(4, "little"))
    while place >= 0:
        after = place + 4
        if place + _CONTAINER.size <= len(whole):
            _, version, header, size = _CONTAINER.unpack_from(whole, place)
            images = list(_images_of(whole, place + header, size)) if version == 1 and header == _CONTAINER.size else []
            yield from images
            after = place + header + size if images else after
        place = whole.find(_MAGIC.to_bytes(4, "little"), after)


def _images_of(data: bytes | bytearray, start: int, size: int) -> Iterator[Image]:
    """Yield the images of a container; nothing if what follows is none."""
    found, place, end = [], start, start + size
    while place + _IMAGE.size <= end <= len(data):
        kind, _, header, length, _, _, _, _, architecture = _IMAGE.unpack_from(data, place)
        if kind not in _KINDS or header < _IMAGE.size or place + header + length > end:
            return
        found.append(Image(_KINDS[kind], architecture, place + header, length))
        place += header + length
    yield from found


def keep_architecture(data: bytearray, architecture: int) -> int:
    """Fill the images of all other architectures with zeros, in place; return how many bytes.

    Raises:
        ValueError: when there is no image of the architecture, or none at all.
    """
    images = list(find_images(data))
    if architecture not in {one.architecture for one in images if one.kind == "elf"}:
        there = sorted({one.architecture for one in images})
        raise ValueError(
            f"there is no code for sm_{architecture}, only for {', '.join(f'sm_{n}' for n in there) or 'none'}"
        )
    zeroed = 0
    for one in images:
        if one.architecture != architecture:
            data[one.start : one.start + one.size] = bytes(one.size)
            zeroed += one.size
    return zeroed


def read_package(wheel: Path | None) -> Iterator[tuple[str, bytes]]:
    """Yield the names and contents of the files to pack."""
    if wheel is not None:
        with zipfile.ZipFile(wheel) as archive:
            for name in archive.namelist():
                if _is_needed(name):
                    yield name, archive.read(name)
        return
    spec = find_spec("onnxruntime")
    if spec is None or spec.origin is None:
        raise ValueError("onnxruntime is not installed here: give --wheel")
    folder = Path(spec.origin).parent
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder.parent).as_posix()
        if path.is_file() and _is_needed(name):
            yield name, path.read_bytes()


def _is_needed(name: str) -> bool:
    parts = name.split("/")
    useless = {"__pycache__", "transformers", "quantization", "tools", "datasets", "backend"}
    return parts[0] == "onnxruntime" and not useless & set(parts) and not parts[-1].startswith(_LEFT_OUT)


def pack(wheel: Path | None, target: Path, *, architecture: int | None) -> None:
    """Write the archive, and tell the size of what is in it."""
    target.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(target, "w:xz") as archive:
        for name, data in read_package(wheel):
            content = bytearray(data)
            if name.endswith(PROVIDER) and architecture is not None:
                zeroed = keep_architecture(content, architecture)
                _say(f"{PROVIDER}: {zeroed / 2**20:.0f} of {len(content) / 2**20:.0f} MiB are zeros now")
            entry = tarfile.TarInfo(name)
            entry.size, entry.mode = len(content), 0o755
            archive.addfile(entry, io.BytesIO(content))
    _say(f"{target}: {target.stat().st_size / 2**20:.1f} MiB")


def _say(text: str) -> None:
    sys.stdout.write(f"{text}\n")


def main(arguments: Sequence[str]) -> int:
    """Pack, or list what there is."""
    parser = argparse.ArgumentParser(prog="python -m tests.on_gpu.pack")
    parser.add_argument("--out", type=Path, default=Path())
    parser.add_argument("--sm", default="90", help="90 for an H100 or H200; all keeps the library as it is")
    parser.add_argument("--wheel", type=Path)
    parser.add_argument("--list", action="store_true")
    given = parser.parse_args(arguments)
    try:
        if given.list:
            for name, data in read_package(given.wheel):
                if name.endswith(PROVIDER):
                    sizes: Counter[str] = Counter()
                    for one in find_images(data):
                        sizes[f"sm_{one.architecture} {one.kind}"] += one.size
                    for which, size in sorted(sizes.items()):
                        _say(f"{which}: {size / 2**20:.1f} MiB")
            return 0
        architecture = None if given.sm == "all" else int(given.sm)
        pack(given.wheel, given.out / "onnxruntime.tar.xz", architecture=architecture)
    except (OSError, ValueError, zipfile.BadZipFile) as err:
        sys.stderr.write(f"{err}\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
