"""Face detection: the choice among faces, all kinds of images, resuming, and devices."""

from __future__ import annotations

import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from PIL import Image

from checkpoints.data import face_detection, face_store
from checkpoints.data.face_detection import Detector, DetectorSettings, find_faces
from checkpoints.data.face_search import choose_face
from checkpoints.torch_device import choose_torch_device
from ensemble.cli import ens
from ensemble.errors import DataError, DeviceError, DiskFullError, FileError, Interrupted, OptionError
from ensemble.events import Recorder
from ensemble.images.face_boxes import Box, read_boxes, read_faces, write_boxes
from ensemble.images.listing import list_images
from ensemble.predict.resumable import Slice
from tests.support import toys

pytestmark = pytest.mark.slow

CPU = torch.device("cpu")


def rows(*values: tuple[float, ...]) -> Any:
    return np.array(values, np.float32).reshape(-1, 5)


@pytest.mark.parametrize(
    ("found", "expected"),
    [
        (rows(), None),
        (rows((0, 0, 10, 10, 0.9), (40, 40, 60, 60, 0.9)), 1),  # the larger
        (rows((0, 0, 10, 10, 0.9), (40, 40, 50, 50, 0.8)), 0),  # the more confident
        (rows((0, 0, 20, 20, 0.2), (40, 40, 55, 55, 0.9)), 1),  # 400 * 0.2 < 225 * 0.9
        (rows((0, 0, 10, 10, 0.9), (45, 45, 55, 55, 0.9)), 1),  # a tie: the more central one in 100 x 100
    ],
)
def test_fault_33_the_face_is_the_largest_times_the_most_certain(found: Any, expected: int | None) -> None:
    """Area times probability decides among faces, the distance to the center on ties; no face gives None."""
    assert choose_face(found, 100, 100) == expected


def test_fault_34_images_of_every_mode_and_size_never_crash(tmp_path: Path) -> None:
    """Grey, RGBA, palette, 1 px, just below and at 20 px, narrow and mixed sizes all get a row."""
    shapes = {"L": (64, 48), "RGBA": (48, 64), "P": (30, 30), "1": (19, 40), "RGB": (20, 20), "CMYK": (1, 1)}
    for mode, size in shapes.items():
        suffix = "jpg" if mode == "CMYK" else "png"
        Image.fromarray(toys.picture(3, size=size)).convert(mode).save(tmp_path / f"{mode}.{suffix}")
    Image.fromarray(toys.picture(4, size=(24, 200))).save(tmp_path / "narrow.png")
    found = find_faces(tmp_path, tmp_path / "out" / "boxes.parquet", device="cpu", workers=2)
    assert found.images == 7
    sizes = {face.id: (face.height, face.width) for face in read_faces(found.path).faces}
    assert sizes["RGBA.png"] == (48, 64)
    assert sizes["CMYK.jpg"] == (1, 1)


def test_fault_34_candidates_outside_the_image_cost_that_image_alone() -> None:
    """If MTCNN fails on a batch, its images are processed one by one, and only the failing one has no face."""

    class Fails:
        def detect(self, pixels: torch.Tensor) -> tuple[list[Any], list[Any]]:
            if (pixels == 99).all(dim=(1, 2, 3)).any():
                raise RuntimeError("torch.cat(): expected a non-empty list of Tensors")
            return [np.array([[1, 2, 3, 4]])] * len(pixels), [np.array([0.5])] * len(pixels)

    pixels = np.zeros((3, 30, 30, 3), np.uint8)
    pixels[1] = 99
    assert [len(found) for found in face_detection._detect(Fails(), pixels)] == [1, 0, 1]


def fake(monkeypatch: pytest.MonkeyPatch, answer: Any) -> None:
    """Replace MTCNN by ``answer(network, mean brightness)``."""

    def detect(network: Any, pixels: Any) -> list[Any]:
        return [answer(network, int(one.mean())) for one in pixels]

    monkeypatch.setattr(face_detection, "_detect", detect)


def flat(folder: Path, **brightness: int) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, value in brightness.items():
        Image.fromarray(np.full((60, 40, 3), value, np.uint8)).save(folder / f"{name}.png")


def test_fault_33_the_second_pass_takes_only_images_without_a_face(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Rows say which pass found the face and how many there were; an image without any has no box and is counted."""
    asked: list[tuple[float, int]] = []

    def answer(network: Any, brightness: int) -> Any:
        asked.append((network.thresholds[0], brightness))
        if brightness == 200:
            return rows((1, 2, 30, 40, 0.75), (0, 0, 5, 5, 1))
        return rows((5, 5, 25, 25, 0.5)) if brightness == 100 and network.thresholds[0] == 0.4 else rows()

    fake(monkeypatch, answer)
    flat(tmp_path / "images", bright=200, dim=100, dark=0)
    found = find_faces(tmp_path / "images", tmp_path / "b.parquet", device="cpu", workers=1)
    assert (found.images, found.first, found.second, found.without) == (3, 1, 1, 1)
    assert sorted(asked) == [(0.4, 0), (0.4, 100), (0.5, 0), (0.5, 100), (0.5, 200)]
    kept = {face.id: face for face in read_faces(found.path).faces}
    assert kept["bright.png"].box == Box(1, 2, 30, 40)
    assert (kept["bright.png"].faces, kept["bright.png"].found_by, kept["bright.png"].probability) == (2, "first", 0.75)
    assert kept["dim.png"].found_by == "second"
    assert (kept["dark.png"].box, kept["dark.png"].found_by, kept["dark.png"].faces) == (None, None, 0)


@pytest.mark.parametrize(
    ("fault", "raised"),
    [
        (RuntimeError("CUDA error: an illegal memory access was encountered"), RuntimeError),
        (ValueError("all the input arrays must have the same number of dimensions"), ValueError),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes"), DeviceError),
        (torch.OutOfMemoryError("CUDA out of memory"), DeviceError),
    ],
)
def test_a_device_that_fails_is_no_image_without_a_face(
    fault: Exception, raised: type[Exception], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """A device's error or too little memory stops the search; no row says that there is no face."""

    def fail(*_: object) -> None:
        raise fault

    monkeypatch.setattr("checkpoints.data.face_detection.MTCNN.detect", fail)
    (tmp_path / "images").mkdir()
    for name in "ab":
        Image.new("RGB", (40, 40)).save(tmp_path / "images" / f"{name}.png")
    with pytest.raises(raised) as caught:
        find_faces(tmp_path / "images", tmp_path / "boxes.parquet", device="cpu", workers=1)
    assert getattr(caught.value, "code", "E602") == "E602"
    assert not (tmp_path / "boxes.parquet").exists()


def test_large_photographs_are_searched_smaller(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Boxes are in px of the original image, and the smallest face is a share of it, whatever the reduction."""
    seen: list[Any] = []

    def detect(network: Any, pixels: Any) -> list[Any]:
        seen.append((pixels.shape, network.min_face_size))
        return [rows((10, 20, 110, 120, 1.0))] * len(pixels)

    monkeypatch.setattr(face_detection, "_detect", detect)
    Image.new("RGB", (2100, 2048)).save(tmp_path / "large.png")
    found = find_faces(tmp_path, tmp_path / "b.parquet", settings=DetectorSettings(0.5), device="cpu", workers=1)
    assert seen == [((1, 512, 525, 3), 256)]
    assert read_boxes(found.path).of["large.png"] == Box(40, 80, 440, 480)


@pytest.mark.parametrize(("device", "ahead"), [("cpu", 0), ("cuda", 1)])
def test_a_gpu_detects_while_the_next_round_is_decoded(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, device: str, ahead: int
) -> None:
    """A GPU gets a round when the decoding of the next has begun; the CPU decodes one round at a time."""
    flat(tmp_path / "images", a=1, b=2, c=3)
    listing = list_images(tmp_path / "images")
    begun: list[int] = []

    def rounds() -> Iterator[Slice]:
        for index in range(3):
            begun.append(index)
            yield Slice(index, (index,))

    with Detector(DetectorSettings(), CPU, workers=1) as detector:
        monkeypatch.setattr(detector, "_device", torch.device(device))
        order = []
        for piece, decodings in detector.decode_rounds(rounds(), listing):
            order.append(piece.index)
            assert begun == list(range(min(3, piece.index + 1 + ahead)))
            assert [decoding.result(60).pixels.mean() for decoding in decodings] == [piece.index + 1]  # type: ignore[union-attr]
    assert order == [0, 1, 2]


@pytest.mark.parametrize(("device", "sizes"), [("cpu", [64, 6, 5]), ("cuda", [70, 5])])
def test_a_round_on_the_cpu_is_detected_piece_by_piece(
    monkeypatch: pytest.MonkeyPatch, device: str, sizes: list[int]
) -> None:
    """Each core gets a few batches at a time, whose faces can be written; a GPU gets the whole round."""
    detector = Detector(DetectorSettings(), CPU, workers=2)
    monkeypatch.setattr(detector, "_device", torch.device(device))
    pieces = list(detector.cut(iter([Slice(0, range(70)), Slice(1, range(90, 95))])))
    assert [len(piece.rows) for piece in pieces] == sizes
    assert [row for piece in pieces for row in piece.rows] == [*range(70), *range(90, 95)]


def test_a_stopped_search_goes_on_and_ends_alike(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """After Ctrl-C the finished rounds are kept, only the others are computed, and the file is that of one run."""
    fake(monkeypatch, lambda _, brightness: rows((1, 1, 10 + brightness, 20, 0.5)))
    flat(tmp_path / "images", a=1, b=2, c=3, d=4, e=5)
    monkeypatch.setattr(face_store, "ROUND", 2)
    whole = find_faces(tmp_path / "images", tmp_path / "whole.parquet", device="cpu")
    original = Detector.find
    calls = 0

    def stops(self: Detector, paths: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == 3:
            raise KeyboardInterrupt
        return original(self, paths)

    monkeypatch.setattr(Detector, "find", stops)
    with pytest.raises(Interrupted, match="4 of 5"):
        find_faces(tmp_path / "images", tmp_path / "b.parquet", device="cpu")
    assert not (tmp_path / "b.parquet").exists()
    again = find_faces(tmp_path / "images", tmp_path / "b.parquet", device="cpu")
    assert again.computed == 1
    assert again.path.read_bytes() == whole.path.read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["b.parquet", "images", "whole.parquet"]
    assert find_faces(tmp_path / "images", tmp_path / "b.parquet", device="cpu").computed == 0


def test_a_full_disk_is_told_with_what_is_kept(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """E701 says how many images are kept and how much to free, as `ens predict` does, and the next search resumes."""
    fake(monkeypatch, lambda *_: rows())
    flat(tmp_path / "images", a=1, b=2, c=3, d=4, e=5)
    monkeypatch.setattr(face_store, "ROUND", 2)
    written: list[Path] = []

    def write(path: Path, *arguments: Any, **options: Any) -> Path:
        written.append(path)
        if len(written) == 2:
            raise DiskFullError("E701", "the disk is full", path=path)
        return write_boxes(path, *arguments, **options)

    monkeypatch.setattr("checkpoints.data.face_store.write_boxes", write)
    with pytest.raises(FileError, match=r"E701.*; 2 of 5 images are done and kept") as caught:
        find_faces(tmp_path / "images", tmp_path / "b.parquet", device="cpu")
    assert caught.value.hint == "free 1 MB and run the same command again: it resumes where it stopped"
    assert find_faces(tmp_path / "images", tmp_path / "b.parquet", device="cpu").computed == 3


def test_a_search_that_died_before_its_last_step_loses_nothing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Where new images were found and only the partial file has them, the next search takes them from there."""
    fake(monkeypatch, lambda *_: rows())
    flat(tmp_path / "images", a=1)
    path = find_faces(tmp_path / "images", tmp_path / "b.parquet", device="cpu").path
    old = path.read_bytes()
    flat(tmp_path / "images", b=2)
    whole = find_faces(tmp_path / "images", path, device="cpu").path.read_bytes()
    path.with_name("b.parquet.partial").write_bytes(whole)
    path.write_bytes(old)
    assert find_faces(tmp_path / "images", path, device="cpu").computed == 0
    assert path.read_bytes() == whole
    assert not path.with_name("b.parquet.partial").exists()


def test_unreadable_images_do_not_stop_the_others(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """All others are written, the unreadable one is listed with its code; once fixed, only that one is computed."""
    fake(monkeypatch, lambda *_: rows())
    flat(tmp_path / "images", a=1, b=2)
    (tmp_path / "images" / "bad.png").write_bytes(b"")
    with pytest.raises(DataError, match=r"1 of 3 images") as caught:
        find_faces(tmp_path / "images", tmp_path / "b.parquet", device="cpu")
    assert (caught.value.code, caught.value.exit_status) == ("E326", 3)
    assert set(read_boxes(tmp_path / "b.parquet").of) == {"a.png", "b.png"}
    assert "bad.png,E302" in (tmp_path / "b.errors.csv").read_text()
    flat(tmp_path / "images", bad=3)
    assert find_faces(tmp_path / "images", tmp_path / "b.parquet", device="cpu").computed == 1
    assert not (tmp_path / "b.errors.csv").exists()


def test_other_settings_need_a_fresh_start(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Boxes found with other thresholds are never mixed; --fresh discards them."""
    fake(monkeypatch, lambda *_: rows())
    flat(tmp_path / "images", a=1)
    find_faces(tmp_path / "images", tmp_path / "b.parquet", device="cpu")
    other = DetectorSettings(thresholds=(0.6, 0.7, 0.7))
    with pytest.raises(FileError) as caught:
        find_faces(tmp_path / "images", tmp_path / "b.parquet", settings=other, device="cpu")
    assert caught.value.code == "E704"
    assert find_faces(tmp_path / "images", tmp_path / "b.parquet", settings=other, device="cpu", fresh=True).computed


def test_a_gpu_that_is_not_there_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    """cuda without a GPU is E601 and an unknown name E203; auto falls back to the CPU with a notice."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    for name in ("cuda", "cuda:1"):
        with pytest.raises(DeviceError) as missing:
            choose_torch_device(name)
        assert missing.value.code == "E601"
    for name in ("gpu", "cpu:1", "cuda:x"):
        with pytest.raises(OptionError) as unknown:
            choose_torch_device(name)
        assert unknown.value.code == "E203"
    recorder = Recorder()
    assert choose_torch_device("auto", listener=recorder) == CPU
    assert [notice.code for notice in recorder.notices] == ["W601"]


@pytest.mark.parametrize("arguments", [(0.0,), (1.0,), (0.1, (0.5, 0.5, 1.0)), (0.1, (0.5, 0.5, 0.5), (0, 0.1, 0.1))])
def test_a_search_out_of_range_is_refused(arguments: tuple[Any, ...]) -> None:
    """Shares and thresholds out of range are E204."""
    with pytest.raises(OptionError) as caught:
        DetectorSettings(*arguments)
    assert caught.value.code == "E204"


def test_crop_writes_boxes_and_says_how_many_have_none(tmp_path: Path) -> None:
    """`ens crop` runs MTCNN on images of two sizes, one of them without a face, and counts that."""
    data = io.BytesIO(toys.encode(np.full((60, 48, 3), 128, np.uint8), "PNG")).getvalue()
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "grey.png").write_bytes(data)
    out = tmp_path / "boxes.parquet"
    done = CliRunner().invoke(
        ens, ["crop", str(tmp_path / "images"), "-o", str(out), "--detector", "mtcnn", "--device", "cpu"]
    )
    assert done.exit_code == 0, done.output
    assert "none in 1 (100.0%)" in done.stdout
    assert read_boxes(out).of == {"grey.png": None}
