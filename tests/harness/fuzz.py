"""Throw damaged and invented files at the readers: only `EnsError` may come out, in bounded memory and time.

    python -m tests.harness.fuzz TARGET --minutes 20

TARGET is ``image``, ``onnx``, ``checkpoint`` or ``csv``, or one of `tests.harness.fuzz_text`. The corpus is made here.
Where atheris is installed it steers the mutations by the lines they reach; elsewhere they are random. What fails is
kept in ``runs/fuzz``, and ``python -m tests.harness.fuzz TARGET --repeat FILE`` runs it again. pytest does not collect
this file.
"""

from __future__ import annotations

import argparse
import collections
import faulthandler
import hashlib
import importlib.util
import io
import os
import random
import resource
import struct
import sys
import tempfile
import time
import zipfile
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

SECONDS, MEGABYTES = 5, 1024  # that one input may take, of processor time and of the process's memory
_WATCHDOG = 120  # seconds of the clock, after which a process that does not answer says where it stands and ends

Check = Callable[[bytes], object]


@dataclass(frozen=True, slots=True)
class Target:
    """``check`` reads one input; ``corpus`` holds inputs to begin with, good and bad."""

    corpus: tuple[bytes, ...]
    check: Check


@dataclass(slots=True)
class Fuzzer:
    """Runs inputs and counts what came of them; raises for what must not happen."""

    check: Check
    findings: Path
    megabytes: int | None = MEGABYTES
    outcomes: collections.Counter[str] = field(default_factory=collections.Counter)
    slowest: float = 0.0

    def run(self, data: bytes) -> None:
        """Read one input.

        Raises:
            Exception: whatever escaped that is no `EnsError`, and `AssertionError` for too much time or memory; the
                input is kept first.
        """
        from ensemble.errors import EnsError

        before = _cpu_seconds()
        faulthandler.dump_traceback_later(_WATCHDOG, exit=True)
        try:
            self.check(data)
            self.outcomes["read"] += 1
        except EnsError as err:
            str(err), err.as_dict()
            self.outcomes[err.code] += 1
        except BaseException:
            self._keep(data)
            raise
        finally:
            faulthandler.cancel_dump_traceback_later()
        took = _cpu_seconds() - before
        self.slowest = max(self.slowest, took)
        if took > SECONDS or (self.megabytes is not None and peak_megabytes() > self.megabytes):
            self._keep(data)
            raise AssertionError(f"took {took:.1f} s and {peak_megabytes():,} MB")

    def summary(self) -> str:
        """What was done, in a line."""
        count = sum(self.outcomes.values())
        codes = ", ".join(f"{code} {number:,}" for code, number in self.outcomes.most_common())
        return f"{count:,} inputs, slowest {self.slowest:.2f} s, peak {peak_megabytes():,} MB: {codes}"

    def _keep(self, data: bytes) -> None:
        self.findings.mkdir(parents=True, exist_ok=True)
        path = self.findings / hashlib.sha256(data).hexdigest()[:16]
        path.write_bytes(data)
        print(f"kept as {path}", file=sys.stderr)  # noqa: T201 - a program for people


def _cpu_seconds() -> float:
    children = resource.getrusage(resource.RUSAGE_CHILDREN)
    return time.process_time() + children.ru_utime + children.ru_stime


def peak_megabytes() -> int:
    """The most memory that this process has had, in MB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // (1024 if sys.platform == "linux" else 1024**2)


def mutate(data: bytes, others: tuple[bytes, ...], generator: random.Random) -> bytes:
    """The input with a few of: bytes changed, cut, doubled, removed, numbers made extreme, a piece of another input."""
    changed = bytearray(data)
    for _ in range(generator.choice([1, 1, 2, 4, 8])):
        at = generator.randrange(len(changed) + 1)
        match generator.randrange(7):
            case 0:
                del changed[at:]
            case 1:
                changed[at : at + 1] = generator.randbytes(1)
            case 2:
                changed[at : at + generator.randrange(1, 64)] = b""
            case 3:
                changed[at:at] = changed[at : at + generator.randrange(1, 64)] * generator.choice([1, 2, 50])
            case 4:
                number = generator.choice([0, 1, 127, 128, 255, 2**16 - 1, 2**31 - 1, 2**32 - 1])
                changed[at : at + 4] = struct.pack(generator.choice("<>") + "I", number)
            case 5:
                other = generator.choice(others)
                start = generator.randrange(len(other) + 1)
                changed[at:at] = other[start : start + generator.randrange(1, 200)]
            case _:
                if changed:
                    changed[at % len(changed)] ^= 1 << generator.randrange(8)
    return bytes(changed)


def fuzz_at_random(
    fuzzer: Fuzzer, corpus: tuple[bytes, ...], generator: random.Random, going: Iterable[object]
) -> None:
    """Run the corpus and then mutations of it, one for every item of ``going``."""
    for data in corpus:
        fuzzer.run(data)
    for _ in going:
        fuzzer.run(mutate(generator.choice(corpus), corpus, generator))


# targets


def image_target(_: Path) -> Target:
    """`decode_image` of any bytes."""
    import numpy as np
    from PIL import Image

    from ensemble.images.decode import decode_image
    from tests.support.corpus import encode, exif, headers_only, picture, tiff

    pixels = picture()
    image = Image.fromarray(pixels)
    corpus = [encode(pixels, kind) for kind in ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF", "AVIF")]
    corpus += [encode(image.convert(mode), "PNG") for mode in ("L", "LA", "P", "1", "RGBA")]
    corpus += [encode(image.convert("CMYK"), "JPEG"), encode(pixels, "JPEG", progressive=True, exif=exif(6))]
    corpus += [encode(pixels, "TIFF", compression=kind) for kind in ("tiff_lzw", "jpeg", "packbits")]
    corpus += [encode(pixels, kind, save_all=True, append_images=[image]) for kind in ("GIF", "WEBP", "MPO", "PNG")]
    corpus += [tiff(np.arange(64, dtype=kind).reshape(8, 8)) for kind in ("<u2", ">u2", "<f4", "<i4")]
    corpus += headers_only(10_000, 10_001).values()
    corpus += [b"", b"<html>", b"version https://git-lfs", b"%!PS", b"\0\0\0\x1cftypheic"]
    return Target(tuple(corpus), lambda data: decode_image(data, max_pixels=4_000_000))


def onnx_target(folder: Path) -> Target:
    """`read_model` of any bytes."""
    from onnx import TensorProto, helper

    from ensemble.runtime.model_file import read_model
    from tests.support import toys

    model = toys.model_proto(toys.card(size=(8, 8)))
    corpus = [model.SerializeToString()]
    tensor = helper.make_tensor("w", TensorProto.FLOAT, [1], [0.0])
    tensor.external_data.add(key="location", value="../secret")
    inner = helper.make_graph([helper.make_node("Identity", ["c"], ["y"])], "inner", [], [], [tensor])
    model.graph.node.append(helper.make_node("If", ["c"], ["y"], then_branch=inner, else_branch=inner))
    corpus.append(model.SerializeToString())
    model.functions.append(helper.make_function("local", "f", ["x"], ["y"], [], [helper.make_opsetid("", 20)]))
    model.graph.sparse_initializer.add().values.CopyFrom(tensor)
    corpus += [model.SerializeToString(), b"", b"version https://git-lfs"]
    path = folder / "m.onnx"

    def check(data: bytes) -> None:
        path.write_bytes(data)
        read_model(path)

    return Target(tuple(corpus), check)


def checkpoint_target(folder: Path) -> Target:
    """`open_checkpoint` of any bytes; the first byte says whether they are a whole file or the pickle in a good one."""
    import safetensors.torch
    import torch

    from checkpoints.loading.open import open_checkpoint
    from tests.support.weights import TINY, make_model

    state = {key: value.detach() for key, value in make_model(classes=2).state_dict().items()}
    content = {"epoch": 3, "best": 0.5, "model": state, "args": {"lr": [0.1, (0.9, 0.999)]}}
    files = []
    for value, new in ((state, True), (content, True), (content, False)):
        buffer = io.BytesIO()
        torch.save(value, buffer, _use_new_zipfile_serialization=new)
        files.append(buffer.getvalue())
    files.append(safetensors.torch.save(state))
    with zipfile.ZipFile(io.BytesIO(files[1])) as archive:
        parts = {part.filename: archive.read(part) for part in archive.infolist()}
    (pickled,) = (name for name in parts if name.endswith("data.pkl"))
    corpus = [b"\1" + parts[pickled]]
    corpus += [
        b"\1\x80\x02cposix\nsystem\nX\4\0\0\0true\x85R.",
        b"\1\x80\x02}K\1\x85q\0" + b"h\0\x86q\0" * 20 + b"K\1s.",
    ]
    corpus += [b"\1\x80\x02}(X\1\0\0\0aK\1u.", b"\0\x80\x02]q\0.", b"\0"]
    # a mutation of two megabytes of numbers finds little: each file is there once, with its head and its end
    corpus += [b"\0" + data for data in files] + [b"\0" + data[:4000] for data in files]
    path = folder / "a.pth"

    def check(data: bytes) -> None:
        if data[:1] == b"\1":
            with zipfile.ZipFile(path, "w") as archive:
                for name, part in (parts | {pickled: data[1:]}).items():
                    archive.writestr(name, part)
        else:
            path.write_bytes(data[1:])
        open_checkpoint(path, arch=TINY)

    return Target(tuple(corpus), check)


def csv_target(folder: Path) -> Target:
    """Every reader of id lists and submissions."""
    from ensemble.errors import EnsError
    from ensemble.images.listing import read_ids
    from ensemble.labels import MASK18
    from ensemble.submission.lint import check_submission, read_submission
    from ensemble.submission.recognize import read_sheet
    from ensemble.submission.sheet import AnswerSheet
    from ensemble.text.csv_table import read_table

    like = AnswerSheet(("a.jpg", "한글.jpg", "c.jpg"))
    text = "ImageID,ans\na.jpg,0\n한글.jpg,17\nc.jpg,3\n"
    corpus = [text.encode(), text.encode("utf-8-sig"), text.encode("cp949"), text.replace("\n", "\r\n").encode()]
    corpus += [b"", b"\n\n", b'ImageID,ans\n"a.jpg,0\n', b"ans,ImageID\n0,a.jpg\n", b",ImageID,ans\n0,a.jpg,3.0\n"]
    corpus += [b"ImageID,ans\n a.jpg , NaN\n\n=1+1,-1\nc.jpg,1e400\n", b"a;b\n1;2\n", b"\0", b"x" * 200_000]
    path = folder / "s.csv"

    def check(data: bytes) -> None:
        path.write_bytes(data)
        check_submission(path, like, MASK18)
        errors = []
        for read in (
            read_table,
            read_ids,
            lambda p: read_sheet(p, MASK18),
            lambda p: check_submission(p, None, MASK18),
            lambda p: read_submission(p, MASK18),
        ):
            try:
                read(path)
            except EnsError as err:
                errors.append(err)
        if errors:
            raise errors[0]

    return Target(tuple(corpus), check)


TARGETS: dict[str, Callable[[Path], Target]] = {
    "image": image_target,
    "onnx": onnx_target,
    "checkpoint": checkpoint_target,
    "csv": csv_target,
}


def _all_targets() -> dict[str, Callable[[Path], Target]]:
    from tests.harness.fuzz_text import TEXT_TARGETS  # which imports this module

    return TARGETS | TEXT_TARGETS


def main() -> None:
    """Fuzz one target for some minutes, or repeat one input."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("target", choices=_all_targets())
    parser.add_argument("--minutes", type=float, default=1.0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--repeat", type=Path)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        steered = options.repeat is None and importlib.util.find_spec("atheris") is not None
        fuzz = _fuzz_with_atheris if steered else _fuzz_without
        fuzz(options, Path(folder))


def _fuzz_without(options: argparse.Namespace, folder: Path) -> None:
    target = _all_targets()[options.target](folder)
    fuzzer = Fuzzer(target.check, Path("runs", "fuzz", options.target))
    if options.repeat is not None:
        fuzzer.run(options.repeat.read_bytes())
    else:
        end = time.monotonic() + 60 * options.minutes
        going = iter(lambda: time.monotonic() < end, False)
        fuzz_at_random(fuzzer, target.corpus, random.Random(options.seed), going)
    print(f"{options.target}: {fuzzer.summary()}")  # noqa: T201 - a program for people


def _fuzz_with_atheris(options: argparse.Namespace, folder: Path) -> None:
    atheris: Any = importlib.import_module("atheris")
    with atheris.instrument_imports(include=["ensemble", "checkpoints"]):
        target = _all_targets()[options.target](folder)
    fuzzer = Fuzzer(target.check, Path("runs", "fuzz", options.target))
    corpus = folder / "corpus"
    corpus.mkdir()
    for number, data in enumerate(target.corpus):
        (corpus / f"{number:03d}").write_bytes(data)
    end = time.monotonic() + 60 * options.minutes

    def run(data: bytes) -> None:
        fuzzer.run(data)
        if time.monotonic() > end:
            print(f"{options.target}, with atheris: {fuzzer.summary()}", flush=True)  # noqa: T201 - as above
            os._exit(0)  # atheris does not return

    limits = [f"-timeout={_WATCHDOG}", f"-rss_limit_mb={MEGABYTES}", "-max_len=100000", f"-seed={options.seed + 1}"]
    atheris.Setup([sys.argv[0], str(corpus), *limits, f"-artifact_prefix={folder}/"], run)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
