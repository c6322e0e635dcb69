"""An export of several checkpoints that did not end is resumed: the models that it has finished are kept."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from ensemble.events import Recorder
from exporters.finished_models import FinishedModel, FinishedModels

SETTINGS = ("options",)


def record(
    folder: Path, checkpoints: list[Path], settings: tuple[str, ...] = SETTINGS, inputs: list[Path | None] | None = None
) -> FinishedModels:
    return FinishedModels(folder, checkpoints, settings, inputs or [])


@pytest.fixture
def checkpoints(tmp_path: Path) -> list[Path]:
    """Two checkpoints, of which the first was exported before the process was killed."""
    (tmp_path / "runs").mkdir()
    (tmp_path / "models").mkdir()
    found = [tmp_path / "runs" / name for name in ("a.pth", "b.pth")]
    for path in found:
        path.write_bytes(path.name.encode())
    model = tmp_path / "models" / "a.onnx"
    model.write_bytes(b"model of a")
    models = record(tmp_path / "models", found)
    assert models.find(found[0], Recorder()) is None
    models.add(found[0], FinishedModel("a", model, "a.onnx  verified", {"path": "a.onnx"}))
    return found


def kept(
    checkpoints: list[Path], settings: tuple[str, ...] = SETTINGS, inputs: list[Path | None] | None = None
) -> list[bool]:
    """Which of the checkpoints have a finished model."""
    models = record(checkpoints[0].parents[1] / "models", checkpoints, settings, inputs)
    return [models.find(path, Recorder()) is not None for path in checkpoints]


def test_a_finished_model_is_kept_and_said(tmp_path: Path, checkpoints: list[Path]) -> None:
    """The model has its line and values, a notice names it, and the record is gone when all is done."""
    models, heard = record(tmp_path / "models", checkpoints), Recorder()
    found = models.find(checkpoints[0], heard)
    assert found == FinishedModel("a", tmp_path / "models" / "a.onnx", "a.onnx  verified", {"path": "a.onnx"})
    assert models.find(checkpoints[1], heard) is None
    assert [notice.code for notice in heard.notices] == ["I495"]
    models.end()
    assert [path.name for path in (tmp_path / "models").iterdir()] == ["a.onnx"]


def test_a_checkpoint_that_was_written_during_its_export_is_exported_again(
    tmp_path: Path, checkpoints: list[Path]
) -> None:
    """The record is of the checkpoint that the model was made from, not of the one that lies there afterwards."""
    models, path = record(tmp_path / "models", checkpoints), checkpoints[1]
    assert models.find(path, Recorder()) is None
    path.write_bytes(b"weights of the next epoch")
    model = tmp_path / "models" / "b.onnx"
    model.write_bytes(b"model of b")
    models.add(path, FinishedModel("b", model, "b.onnx  verified", {"path": "b.onnx"}))
    assert not kept(checkpoints)[1]


def test_another_export_keeps_nothing(tmp_path: Path, checkpoints: list[Path]) -> None:
    """Other options, other images, or one checkpoint alone: everything is exported."""
    assert kept(checkpoints) == [True, False]
    assert kept(checkpoints, ("other options",)) == [False, False]
    images = tmp_path / "images"
    images.mkdir()
    assert kept(checkpoints, inputs=[images]) == [False, False]
    assert kept(checkpoints[:1]) == [False]


@pytest.mark.parametrize("changed", ["runs/a.pth", "runs/config.json", "models/a.onnx"])
def test_a_changed_file_is_exported_again(tmp_path: Path, checkpoints: list[Path], changed: str) -> None:
    """The checkpoint, what lies beside it and the model itself have to be those of the record."""
    (tmp_path / changed).write_bytes(b"changed")
    assert kept(checkpoints) == [False, False]


def test_a_model_beside_its_checkpoint_changes_nothing(tmp_path: Path, checkpoints: list[Path]) -> None:
    """Where models are written to the folder of the checkpoints, those that appear are no change of the inputs."""
    (tmp_path / "runs" / "new.onnx").write_bytes(b"model")
    (tmp_path / "runs" / ".export.state").write_bytes(b"{}")
    assert kept(checkpoints) == [True, False]


@pytest.mark.parametrize(
    "text", ["", "[]", "null", '{"run": 1}', "{", '{"run": RUN, "models": {"x": {}}}', '{"run": RUN, "models": 3}']
)
def test_a_damaged_record_keeps_nothing(tmp_path: Path, checkpoints: list[Path], text: str) -> None:
    """What cannot be read is as if nothing was finished."""
    path = tmp_path / "models" / ".export.state"
    path.write_text(text.replace("RUN", json.dumps(json.loads(path.read_text())["run"])))
    assert kept(checkpoints) == [False, False]


def test_a_record_does_not_lead_out_of_the_folder(tmp_path: Path, checkpoints: list[Path]) -> None:
    """A file of the record is a name, no path."""
    path = tmp_path / "models" / ".export.state"
    path.write_text(path.read_text().replace("a.onnx", "../a.onnx"))
    assert kept(checkpoints) == [False, False]
