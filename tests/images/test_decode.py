"""Reading image files: each is decoded or refused with its code, and nothing else happens."""

from __future__ import annotations

import io
import os
import random
import signal
import struct
import sys
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ensemble.card import Preprocess
from ensemble.errors import DataError
from ensemble.images.decode import SUFFIXES, decode_image, read_image
from ensemble.images.face_crop import prepare_image
from tests.support.corpus import encode, exif, headers_only, outcome, picture, png, refusal, tiff
from tests.support.nobody import as_nobody

PICTURE = picture()


@contextmanager
def time_limit(seconds: int) -> Iterator[None]:
    """Raise TimeoutError in a test that hangs, since it would hang the whole suite."""

    def break_off(*_: object) -> None:
        raise TimeoutError

    before = signal.signal(signal.SIGALRM, break_off)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF", "AVIF"])
@pytest.mark.parametrize("kept", [0.5, 0.02])
def test_fault_01_truncated_files_are_refused(kind: str, kept: float) -> None:
    """Half of a file, and a piece of its header, are E301 in every format: never pixels, and never "not an image"."""
    data = encode(PICTURE, kind)
    assert refusal(data[: max(40, int(len(data) * kept))]).code == "E301"


def test_fault_04_an_empty_file_is_named(tmp_path: Path) -> None:
    """An empty file is E302, and the message names it."""
    (tmp_path / "0042.jpg").touch()
    with pytest.raises(DataError, match=r"\[E302\] 0042\.jpg: the file is empty"):
        read_image(tmp_path / "0042.jpg")


@pytest.mark.parametrize("suffix", sorted(SUFFIXES))
def test_fault_06_the_content_decides_not_the_name(tmp_path: Path, suffix: str) -> None:
    """A PNG under any image's name is read as a PNG, with the notice I304 unless the name says png or apng."""
    path = tmp_path / f"x{suffix.upper()}"
    path.write_bytes(encode(PICTURE, "PNG"))
    photo = read_image(path)
    assert np.array_equal(photo.pixels, PICTURE)
    assert photo.notices == (() if suffix in {".png", ".apng"} else ("I304",))


@pytest.mark.parametrize(
    ("kind", "suffixes"),
    [
        ("JPEG", "jpg jpeg jpe jfif pjpeg pjp mpo"),
        ("WEBP", "webp"),
        ("BMP", "bmp dib"),
        ("GIF", "gif"),
        ("TIFF", "tif tiff"),
        ("AVIF", "avif"),
    ],
)
def test_names_that_fit_are_not_remarked_on(tmp_path: Path, kind: str, suffixes: str) -> None:
    """No format gets a notice under its own names."""
    for suffix in suffixes.split():
        (tmp_path / f"x.{suffix}").write_bytes(encode(PICTURE, kind))
        assert read_image(tmp_path / f"x.{suffix}").notices == ()


@pytest.mark.parametrize("kind", headers_only(1, 1))
def test_fault_13_size_is_checked_before_decoding(kind: str) -> None:
    """100 MP are E307 with the size in the message, although the file ends before its first pixel."""
    error = refusal(headers_only(10_000, 10_001)[kind])
    assert error.code == "E307"
    assert error.message == "10000x10001 = 100.0 MP exceeds 64 MP"


@pytest.mark.parametrize("kind", headers_only(1, 1))
def test_fault_14_header_bombs_are_refused(kind: str) -> None:
    """3,600 MP are E307 as well, also where ``max_pixels`` is raised, and the hint is to make the image smaller."""
    for limit in (64_000_000, 10**12):
        error = refusal(headers_only(60_000, 60_000)[kind], max_pixels=limit)
        assert error.code == "E307"
        assert error.hint.startswith("make it smaller")


def test_fault_13_the_limit_is_exact() -> None:
    """As many pixels as are allowed are read, one fewer allowed is refused."""
    data = encode(PICTURE, "PNG")
    count = PICTURE.shape[0] * PICTURE.shape[1]
    assert decode_image(data, max_pixels=count).notices == ()
    assert refusal(data, max_pixels=count - 1).code == "E307"


def test_fault_26_unreadable_files_are_told(tmp_path: Path) -> None:
    """A file without the right to read it is E318."""
    (tmp_path / "x.jpg").write_bytes(encode(PICTURE, "JPEG"))
    (tmp_path / "x.jpg").chmod(0)
    tmp_path.chmod(0o755)
    with as_nobody(tmp_path), pytest.raises(DataError, match=r"E318.*x\.jpg: permission denied"):
        read_image(Path("x.jpg"))


def test_fault_27_a_file_that_grows_is_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file that another program writes to while it is read is E319, although what was read is a good image."""
    path = tmp_path / "x.png"
    data = encode(PICTURE, "PNG")
    path.write_bytes(data)
    fstat = os.fstat

    def grow_then_look(descriptor: int) -> os.stat_result:
        found = fstat(descriptor)
        with path.open("ab") as f:
            f.write(b"more")
        return found

    monkeypatch.setattr(os, "fstat", grow_then_look)
    with pytest.raises(DataError, match=r"E319.*x\.png: changed while being read"):
        read_image(path)
    monkeypatch.undo()
    path.write_bytes(data)
    assert np.array_equal(read_image(path).pixels, PICTURE)


def test_fault_27_a_file_that_vanishes_is_missing(tmp_path: Path) -> None:
    """A file that was listed and is gone, or is a link that leads nowhere or in circles, is E314."""
    (tmp_path / "dangling.jpg").symlink_to("gone")
    (tmp_path / "circle.jpg").symlink_to("circle.jpg")
    for name in ("gone.jpg", "dangling.jpg", "circle.jpg", "gone/x.jpg"):
        with pytest.raises(DataError, match="E314"):
            read_image(tmp_path / name)


def test_fault_28_what_is_not_a_file_is_not_opened(tmp_path: Path) -> None:
    """A FIFO, a folder and a device named like images are E320; opening the FIFO would wait for ever."""
    os.mkfifo(tmp_path / "fifo.jpg")
    (tmp_path / "folder.jpg").mkdir()
    (tmp_path / "device.jpg").symlink_to("/dev/zero")
    with time_limit(5):
        for name in ("fifo.jpg", "folder.jpg", "device.jpg"):
            with pytest.raises(DataError, match="E320"):
                read_image(tmp_path / name)


def test_fault_29_long_paths(tmp_path: Path) -> None:
    """A name of 255 bytes is read; a longer one, and a path of 5,000 characters, are E321 with a short message."""
    good = tmp_path / ("x" * 251 + ".png")
    good.write_bytes(encode(PICTURE, "PNG"))
    assert read_image(good).notices == ()
    for path in (tmp_path / ("x" * 252 + ".png"), tmp_path.joinpath(*["folder"] * 800, "x.png")):
        with pytest.raises(DataError, match="E321") as caught:
            read_image(path)
        assert len(caught.value.message) < 100


@pytest.mark.parametrize("name", ["a b.png", "'\".png", "a,b;c.png", "a\nb.png", "😷한글.png", "=1+1.png", "-.png"])
def test_fault_17_odd_names_are_read(tmp_path: Path, name: str) -> None:
    """No name keeps an image from being read."""
    (tmp_path / name).write_bytes(encode(PICTURE, "PNG"))
    assert np.array_equal(read_image(tmp_path / name).pixels, PICTURE)


WARNED = {
    "large": headers_only(10_000, 10_001)["png"],
    "exif": encode(PICTURE, "JPEG", exif=exif(6)[:20]),
    "animation": png(1, 1, 8, 2, b"\0\1\2\3", acTL=bytes(8)),
    "tag": tiff(np.zeros((8, 8), np.uint8), t305=5).replace(
        struct.pack("<HHII", 305, 4, 1, 5), struct.pack("<HHII", 305, 2, 10**6, 5)
    ),
}


@pytest.mark.parametrize("name", WARNED)
def test_pillows_warnings_end_here(name: str) -> None:
    """Where Pillow warns, `decode_image` does not, and it leaves the warning filters as they were."""
    with warnings.catch_warnings(record=True) as control:
        warnings.simplefilter("always")
        Image.open(io.BytesIO(WARNED[name])).close()
    assert control, "Pillow has something to warn of"
    with warnings.catch_warnings(record=True) as shown:
        warnings.simplefilter("always")
        before = list(warnings.filters)
        outcome(WARNED[name])
        assert list(warnings.filters) == before
    assert shown == []


def test_threads_see_no_warnings_either() -> None:
    """Many threads that decode at once show none of Pillow's warnings, and the filters are back when all are done."""

    def decode() -> None:
        for _ in range(20):
            results.append(decode_image(WARNED["exif"]).notices)

    results: list[tuple[str, ...]] = []
    with warnings.catch_warnings(record=True) as shown:
        warnings.simplefilter("always")
        before = list(warnings.filters)
        threads = [threading.Thread(target=decode) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert list(warnings.filters) == before
    assert shown == []
    assert results == [("W305",)] * 160


FUZZED = {
    "jpeg": encode(PICTURE, "JPEG", exif=exif(6)),
    "progressive": encode(PICTURE, "JPEG", progressive=True),
    "mpo": encode(PICTURE, "MPO", save_all=True, append_images=[Image.fromarray(PICTURE)]),
    "png": encode(PICTURE, "PNG", exif=exif(3)),
    "palette": encode(Image.fromarray(PICTURE).quantize(20), "PNG", transparency=3),
    "apng": encode(PICTURE, "PNG", save_all=True, append_images=[Image.fromarray(PICTURE[::-1].copy())]),
    "gif": encode(PICTURE, "GIF", save_all=True, append_images=[Image.fromarray(PICTURE[::-1].copy())]),
    "webp": encode(PICTURE, "WEBP", exif=exif(3)),
    "bmp": encode(PICTURE, "BMP"),
    "tiff": encode(PICTURE, "TIFF", save_all=True, append_images=[Image.fromarray(PICTURE)]),
    "lzw": encode(PICTURE, "TIFF", compression="tiff_lzw"),
    "avif": encode(PICTURE, "AVIF"),
}


@pytest.mark.parametrize("name", FUZZED)
def test_damage_of_any_kind_is_a_data_error(name: str) -> None:
    """Cut, flipped, removed and inserted bytes give pixels of a real shape or a `DataError`, and nothing else."""
    generator = random.Random(name)
    for _ in range(60):
        data = bytearray(FUZZED[name])
        at = generator.randrange(len(data))
        match generator.randrange(4):
            case 0:
                del data[at:]
            case 1:
                data[at : at + generator.randrange(40)] = generator.randbytes(generator.randrange(20))
            case 2:
                data[at % 200] = generator.choice([0, 1, 127, 255])
            case _:
                for _ in range(generator.choice([1, 5, 20])):
                    data[generator.randrange(len(data))] = generator.randrange(256)
        try:
            pixels = decode_image(bytes(data), max_pixels=1_000_000).pixels
        except DataError:
            continue
        assert pixels.dtype == np.uint8
        assert pixels.ndim == 3
        assert pixels.shape[2] == 3
        assert pixels.size > 0


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_no_file_stays_open(tmp_path: Path) -> None:
    """Reading good and bad files leaves no descriptor open."""
    (tmp_path / "good.png").write_bytes(encode(PICTURE, "PNG"))
    (tmp_path / "bad.png").write_bytes(encode(PICTURE, "PNG")[:100])
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(5):
        read_image(tmp_path / "good.png")
        with pytest.raises(DataError):
            read_image(tmp_path / "bad.png")
    assert len(os.listdir("/proc/self/fd")) == before


@pytest.mark.parametrize("subsampling", [0, 1, 2])
@pytest.mark.parametrize("progressive", [False, True])
def test_threads_wait_for_one_another_over_the_resized_pixels_alone(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, subsampling: int, progressive: bool
) -> None:
    """Pillow decodes and resizes without Python's lock, which it needs to copy pixels out (``Image.tobytes``): of a
    JPEG the network's own input is copied, once, and not the photograph.
    """
    large = Image.fromarray(PICTURE).resize((640, 480))
    large.save(tmp_path / "a.jpg", subsampling=subsampling, progressive=progressive)
    copied: list[tuple[int, int]] = []
    plain = Image.Image.tobytes

    def count(image: Image.Image, *options: object) -> bytes:
        copied.append(image.size)
        return plain(image, *options)  # type: ignore[arg-type]

    monkeypatch.setattr(Image.Image, "tobytes", count)
    image = read_image(tmp_path / "a.jpg").image
    for size in (32, 48):
        prepare_image(image, Preprocess((size, size)), None)
    assert copied == [(32, 32), (48, 48)]
