"""What is cheap to check is checked before what takes long: detectors, sessions, joined networks, exports."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from ensemble.cli import ens
from ensemble.errors import EnsError
from tests.support import toys

pytestmark = pytest.mark.slow


class TooEarlyError(Exception):
    """The long work was begun."""


def never(*_: object, **__: object) -> Any:
    raise TooEarlyError


def code_of(*words: object) -> str | None:
    caught = CliRunner().invoke(ens, [str(word) for word in words]).exception
    assert isinstance(caught, EnsError), repr(caught)
    return caught.code


def test_crop_lists_images_before_it_chooses_a_detector(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An empty folder is E316 while no detector is loaded."""
    monkeypatch.setattr("checkpoints.data.detector_choice.choose_detector", never)
    assert code_of("crop", tmp_path, "-o", tmp_path / "b.parquet") == "E316"
    toys.write_pictures(tmp_path / "images", ["a.jpg"])
    caught = CliRunner().invoke(ens, ["crop", str(tmp_path / "images"), "-o", str(tmp_path / "b.parquet")]).exception
    assert isinstance(caught, TooEarlyError)


def test_explain_reads_images_boxes_and_truth_before_it_starts_a_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No images, boxes that are no boxes, and a truth that is no table are found first."""
    monkeypatch.setattr("ensemble.analysis.map_source.start_member", never)
    monkeypatch.setattr("ensemble.analysis.explain.start_member", never)
    model = toys.write_model(tmp_path)
    toys.write_pictures(tmp_path / "images", ["a.jpg"])
    (tmp_path / "empty").mkdir()
    (tmp_path / "odd.parquet").write_bytes(b"nothing")
    (tmp_path / "odd.csv").write_bytes(b"")
    out = ("-o", tmp_path / "out")
    assert code_of("explain", model, tmp_path / "empty", *out) == "E316"
    assert code_of("explain", model, tmp_path / "images", "--boxes", tmp_path / "odd.parquet", *out) == "E350"
    assert code_of("explain", model, tmp_path / "images", "--truth", tmp_path / "odd.csv", *out) == "E322"


def test_fuse_lists_its_images_before_it_joins_graphs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder without images is E316 before a model is opened."""
    monkeypatch.setattr("ensemble.fuse.fuse.find_members", never)
    recipe = {
        "schema": 1,
        "pool": "linear",
        "rule": "argmax",
        "views": {"identity": 1},
        "groups": {"a": {"weight": 1, "members": {"a": ""}}},
        "labels": ["x", "y"],
    }
    (tmp_path / "blend.json").write_text(json.dumps(recipe))
    (tmp_path / "empty").mkdir()
    model = toys.write_model(tmp_path)
    words = ("fuse", tmp_path / "blend.json", "--models", model, "-o", tmp_path / "f.onnx")
    assert code_of(*words, "--check-images", tmp_path / "empty") == "E316"


def test_bench_lists_its_images_before_engines_are_timed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder without images is E316 before ``cpu:fastest`` measures for 20 seconds."""
    monkeypatch.setattr("ensemble.runtime.run_device.choose_run_device", never)
    (tmp_path / "empty").mkdir()
    model = toys.write_model(tmp_path)
    assert code_of("bench", model, "--images", tmp_path / "empty", "--device", "cpu:fastest") == "E316"


def test_probe_reads_its_data_before_networks_are_joined(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder without images, and a network that is not there, are found before any network is opened."""
    monkeypatch.setattr("checkpoints.probe.open_network.open_network", never)
    (tmp_path / "empty").mkdir()
    model = toys.write_model(tmp_path)
    common = ("--member", "m", "-o", tmp_path / "runs")
    assert code_of("probe", tmp_path / "empty", "--features", model, *common) == "E316"
    assert code_of("probe", tmp_path / "empty", "--features", tmp_path / "no.onnx", *common) == "E707"


def test_data_looks_for_boxes_before_it_decodes_images(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An image without an entry in the boxes is E351 before the first image is decoded."""
    from ensemble.images.face_boxes import Box, Face, write_boxes

    monkeypatch.setattr("checkpoints.data.summary.scan_images", never)
    names = [f"{name}/{i}.jpg" for name in ("cat", "dog") for i in range(2)]
    for name in ("cat", "dog"):
        toys.write_pictures(tmp_path / "train" / name, ["0.jpg", "1.jpg"])
    box = Box(0.0, 0.0, 4.0, 4.0)
    write_boxes(tmp_path / "b.parquet", [Face(name, box, 1.0, 1, "first", 8, 8, 9) for name in names[1:]])
    words = ("data", tmp_path / "train", "-o", tmp_path / "t.parquet", "--boxes", tmp_path / "b.parquet")
    assert code_of(*words) == "E351"


@pytest.mark.parametrize("precision", ["int8", "fp16"])
def test_export_reads_the_truth_before_it_exports(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, precision: str
) -> None:
    """A truth of other images is E330 before torch writes a graph, which takes a minute for a large network."""
    import safetensors.torch
    import timm

    monkeypatch.setattr("exporters.export._to_onnx", never)
    network = timm.create_model("test_resnet", num_classes=3)
    safetensors.torch.save_file(network.state_dict(), tmp_path / "net.safetensors")
    names = [f"{i}.jpg" for i in range(40)]
    toys.write_pictures(tmp_path / "images", names)
    (tmp_path / "truth.csv").write_text("ImageID,ans\n" + "".join(f"other{i}.jpg,{i % 3}\n" for i in range(20)))
    images = "--calibrate" if precision == "int8" else "--check-images"
    words = ("export", tmp_path / "net.safetensors", "-o", tmp_path / "models", "--arch", "test_resnet")
    given = ("--labels", 3, "--size", 32, "--precision", precision, images, tmp_path / "images")
    assert code_of(*words, *given, "--truth", tmp_path / "truth.csv") == "E330"
