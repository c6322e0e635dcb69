"""A fused file is a model for `ens predict`, and for other commands a file that is named as what it is."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image
from scipy.special import expit

from ensemble.cli import ens
from ensemble.errors import DeployError, EnsError, ModelError, OptionError
from ensemble.fuse.fuse import Fused, fuse
from ensemble.fuse.fused_card import FusedCard
from ensemble.fuse.fused_session import FusedAnswers, FusedSession, start_fused
from ensemble.fuse.predict_fused import predict_fused
from ensemble.images.decode import DecodedImage, read_image
from ensemble.labels import LabelSpace
from ensemble.predictions.dataset import read_predictions
from ensemble.runtime.model_file import read_model
from tests.support.fused import LABELS, toy_recipe, write_members
from tests.support.toys import card, write_model, write_pictures

IDS = ["b.jpg", "a.jpg", "c.jpg"]


@pytest.fixture
def fused(tmp_path: Path) -> Fused:
    """A fused file, and three pictures beside it."""
    write_members(tmp_path / "models")
    write_pictures(tmp_path / "images", IDS)
    return fuse(toy_recipe(bias=(0.4, 0.0, -0.3, 0.1)), [tmp_path / "models"], tmp_path / "both.onnx")


def test_predictions_are_the_file_s_probabilities(fused: Fused, tmp_path: Path) -> None:
    """`ens predict` writes them as the member that the file is called; the softmax gives them back."""
    command = ["predict", str(fused.path), "--images", str(tmp_path / "images"), "-o", str(tmp_path / "preds")]
    done = CliRunner().invoke(ens, command)
    assert done.exit_code == 0, done.output
    read = read_predictions(tmp_path / "preds/both")
    session = start_fused(fused.path.read_bytes(), fused.path)
    assert sorted(read.ids) == sorted(IDS)
    assert read.labels == LABELS
    for name, logits in zip(read.ids, read.logits["identity"], strict=True):
        found = session.run(np.asarray(Image.open(tmp_path / "images" / name))[np.newaxis])
        assert np.exp(logits) == pytest.approx(found.probabilities[0], abs=1e-6)
    again = CliRunner().invoke(ens, command)
    assert again.exit_code == 0
    assert read_predictions(tmp_path / "preds/both").sha256 == read.sha256


def test_the_next_image_is_decoded_while_one_is_run(
    fused: Fused, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first image is run until the second is being read, and rows stay in the order of the images."""
    begun = {name: threading.Event() for name in IDS}
    answered = FusedSession.run

    def read_and_tell(path: Path) -> DecodedImage:
        begun[path.name].set()
        return read_image(path)

    def run_and_wait(self: FusedSession, *given: Any) -> FusedAnswers:
        assert begun[IDS[1]].wait(60)
        return answered(self, *given)

    monkeypatch.setattr("ensemble.fuse.predict_fused.read_image", read_and_tell)
    monkeypatch.setattr(FusedSession, "run", run_and_wait)
    done = predict_fused(fused.path, tmp_path / "images", tmp_path / "preds", ids=IDS)
    assert read_predictions(done.folder).ids == tuple(IDS)


def test_predictions_of_independent_labels_are_log_odds(tmp_path: Path) -> None:
    """Their sigmoid is the file's probability, and the predictions say that labels are independent."""
    labels = LabelSpace.flat(("cat", "dog"))
    write_members(tmp_path / "m", [replace(card(f"m{i}", labels=labels), activation="sigmoid") for i in range(3)])
    write_pictures(tmp_path / "images", IDS)
    done = fuse(toy_recipe(labels=labels, activation="sigmoid"), [tmp_path / "m"], tmp_path / "e.onnx")
    run = predict_fused(done.path, tmp_path / "images", tmp_path / "preds", ids=IDS[:1])
    read = read_predictions(run.folder)
    assert read.activation == "sigmoid"
    pixels = np.asarray(Image.open(tmp_path / "images" / IDS[0]))[np.newaxis]
    found = start_fused(done.path.read_bytes(), done.path).run(pixels)
    assert expit(read.logits["identity"][0]) == pytest.approx(found.probabilities[0], abs=1e-6)


@pytest.mark.parametrize("more", [["--tta"], ["--device", "cpu"], ["--views", "hflip"]], ids=lambda more: more[0])
def test_options_of_members_are_not_for_a_fused_file(more: list[str], fused: Fused, tmp_path: Path) -> None:
    """The message names the option, and nothing is written."""
    command = ["predict", str(fused.path), "--images", str(tmp_path / "images"), "-o", str(tmp_path / "preds"), *more]
    refused: Any = CliRunner().invoke(ens, command).exception
    assert isinstance(refused, OptionError)
    assert refused.message.startswith(more[0])
    assert not (tmp_path / "preds").exists()


def test_other_commands_say_what_the_file_is(fused: Fused) -> None:
    """Reading it as one model is E423 with the way out."""
    with pytest.raises(ModelError, match="fused ensemble, not one model") as caught:
        read_model(fused.path)
    assert caught.value.code == "E423"
    assert isinstance(caught.value, EnsError)
    assert "ens predict, bench, explain and page take it" in caught.value.hint


@pytest.mark.parametrize(("field", "other"), [("share", "0.5"), ("sha256", 12), ("name", None), ("group", ["a"])])
def test_a_type_that_is_not_that_of_its_card_is_named(fused: Fused, field: str, other: object) -> None:
    """A share that is text was read as its number, and a number as a hash."""
    value = json.loads(fused.card.to_json())
    value["members"][0][field] = other
    with pytest.raises(DeployError, match=rf"E807.*members\[0\]\.{field} is"):
        FusedCard.from_json(json.dumps(value))


@pytest.mark.parametrize("field", ["schema", "share"])
def test_true_in_its_card_is_not_a_number(fused: Fused, field: str) -> None:
    """The card of a fused file with true for a number is E807, and so is one that gives a name twice."""
    text = fused.card.to_json()
    value = json.loads(text)
    (value if field == "schema" else value["members"][0])[field] = True
    for damaged in (json.dumps(value), text.replace("{", '{"schema":1,', 1)):
        with pytest.raises(DeployError, match="E807"):
            FusedCard.from_json(damaged)


def test_predictions_of_a_member_load_nothing_of_blending(tmp_path: Path) -> None:
    """A model that is not a fused file is predicted without SciPy, whose import takes longer than many a start."""
    write_pictures(tmp_path / "images", ["a.jpg"])
    model = write_model(tmp_path)
    code = "import sys; from ensemble.__main__ import run; print(run(sys.argv[1:]), 'scipy' in sys.modules)"
    command = [
        sys.executable,
        "-c",
        code,
        "predict",
        str(model),
        "--images",
        str(tmp_path / "images"),
        "--device",
        "cpu",
    ]
    ended = subprocess.run([*command, "-o", str(tmp_path / "out")], capture_output=True, text=True, check=True)
    assert ended.stdout.splitlines()[-1] == "0 False"
