"""Pseudo-labels: only confident predictions, no more than allowed, and never in a score."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from numpy.typing import NDArray
from PIL import Image

from checkpoints.data.folds import Folds
from checkpoints.data.image_cache import DecodedImages
from checkpoints.data.mask_contest import Row
from checkpoints.training.batches import LabeledImages
from checkpoints.training.job import TrainJob, load_job_images
from checkpoints.training.pseudo_labels import PseudoLabels, PseudoLabelSource, read_pseudo_labels
from checkpoints.training.settings import TrainSettings
from ensemble.card import FaceCrop, Preprocess
from ensemble.cli import ens
from ensemble.errors import DataError, EnsError, OptionError, PredictionError
from ensemble.events import Recorder
from ensemble.images.face_boxes import Boxes
from ensemble.labels import LabelSpace
from ensemble.predictions.dataset import Part, part_path, read_predictions, write_complete, write_part
from tests.support.toys import card, picture

pytestmark = pytest.mark.slow

LABELS = LabelSpace.flat(["cat", "dog", "owl"])
NAMES = tuple(f"{i}.png" for i in range(6))


@pytest.fixture
def rows(tmp_path: Path) -> list[Row]:
    return [Row(f"{i}", str(i), None, None, None, i % 3, tmp_path / "train" / f"{i}.png") for i in range(12)]


@pytest.fixture
def folds(rows: list[Row]) -> Folds:
    return Folds(2, {row.person: i % 2 for i, row in enumerate(rows)})


@pytest.fixture
def images(tmp_path: Path) -> Path:
    folder = tmp_path / "unlabelled"
    folder.mkdir()
    for i, name in enumerate(NAMES):
        Image.fromarray(picture(i)).save(folder / name)
    return folder


def write(
    folder: Path, probabilities: NDArray[np.float64], *, labels: LabelSpace = LABELS, names: tuple[str, ...] = NAMES
) -> Path:
    path = part_path(folder, 0)
    logits = {"identity": np.log(probabilities).astype(np.float32)}
    write_part(path, Part(names, logits, "test", card(folder.name, labels=labels)))
    write_complete(folder, [path], len(names))
    return folder


def sure(*of_class: tuple[int, float]) -> NDArray[np.float64]:
    """Return rows in which one class has the given probability and the two others share the rest."""
    return np.array([[p if j == number else (1 - p) / 2 for j in range(3)] for number, p in of_class])


FIRST = sure((0, 0.99), (1, 0.98), (2, 0.6), (1, 0.97), (0, 0.995), (2, 0.96))


def test_only_what_the_mean_is_confident_of_is_taken(
    tmp_path: Path, rows: list[Row], folds: Folds, images: Path
) -> None:
    """Images are chosen by the blended confidence of one or two members, whose classes are matched by name."""
    one = write(tmp_path / "one", FIRST)
    found = read_pseudo_labels(PseudoLabelSource((one,), images), rows, folds, LABELS)
    assert [(row.id, row.target) for row in found.rows] == [
        ("0.png", 0),
        ("1.png", 1),
        ("3.png", 1),
        ("4.png", 0),
        ("5.png", 2),
    ]
    assert all(row.path == images / row.id for row in found.rows)
    # another member, whose columns are in another order
    turned = LabelSpace.flat(["owl", "cat", "dog"])
    second = sure((0, 0.99), (1, 0.5), (2, 0.99), (2, 0.99), (0, 0.94), (2, 0.999))[:, [2, 0, 1]]
    two = write(tmp_path / "two", second, labels=turned)
    heard = Recorder()
    found = read_pseudo_labels(PseudoLabelSource((one, two), images), rows, folds, LABELS, listener=heard)
    assert [(row.id, row.target) for row in found.rows] == [("0.png", 0), ("4.png", 0), ("5.png", 2)]
    told = {notice.code: notice.message for notice in heard.notices}
    assert told["W347"].startswith("3 of 6 ")
    assert told["I348"] == "pseudo-labels by class: cat: 2, dog: 0, owl: 1"


def test_no_fold_learns_from_more_than_the_share(tmp_path: Path, rows: list[Row], folds: Folds, images: Path) -> None:
    """At a share of 0.25, 6 images of a fold allow 2 more, the most confident; the others are counted."""
    one = write(tmp_path / "one", FIRST)
    heard = Recorder()
    found = read_pseudo_labels(PseudoLabelSource((one,), images, max_share=0.25), rows, folds, LABELS, listener=heard)
    assert [row.id for row in found.rows] == ["0.png", "4.png"]
    assert "3 more were confident" in heard.notices[-1].message


def test_what_cannot_be_learned_is_refused(tmp_path: Path, rows: list[Row], folds: Folds, images: Path) -> None:
    """Training images, other classes, other images and shares out of range are errors."""
    one = write(tmp_path / "one", FIRST)
    source = PseudoLabelSource((one,), images)

    def read(rows: list[Row] = rows, labels: LabelSpace = LABELS, **changes: Any) -> str:
        with pytest.raises(EnsError) as caught:
            read_pseudo_labels(replace(source, **changes), rows, folds, labels)
        assert isinstance(caught.value, DataError | OptionError | PredictionError)
        return caught.value.code

    known = [replace(rows[0], path=images / "." / "5.png"), *rows[1:]]
    assert read(rows=known) == "E346"
    assert read(labels=LabelSpace.flat(["a", "b", "c"])) == "E501"
    assert read(min_confidence=0.0) == read(max_share=1.0) == "E204"
    assert read(min_confidence=0.999) == read(max_share=0.1) == "E204"
    assert read(predictions=(one, write(tmp_path / "fewer", FIRST[:5], names=NAMES[:5]))) == "E504"


def test_joined_images_keep_their_fallback_crops() -> None:
    """After concatenation each image keeps its own fallback crop, or none."""

    def make(start: int, instead: list[int]) -> LabeledImages:
        pixels = np.arange(start, start + len(instead), dtype=np.uint8).reshape(-1, 1, 1, 1)
        drawn = np.array(instead)
        numbers = np.arange(len(instead), dtype=np.int64) + start
        return LabeledImages(DecodedImages(pixels, pixels[drawn >= 0] + np.uint8(100), drawn), numbers, numbers)

    joined = make(0, [-1, 0]).concatenate(make(10, [0, -1, 1]))
    assert joined.targets.tolist() == joined.labels.tolist() == joined.decoded.pixels.ravel().tolist()
    crops = [int(joined.decoded.fallback[i, 0, 0, 0]) if i >= 0 else None for i in joined.decoded.fallback_index]
    assert crops == [None, 101, 110, None, 112]


def test_training_takes_them_in_every_fold_and_scores_without_them(tmp_path: Path, images: Path) -> None:
    """`ens train --pseudo` gives other weights; hold-outs, truth and predictions are of labeled images only."""
    for i in range(12):
        path = tmp_path / "train" / LABELS.names[i % 3] / f"{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(picture(20 + i)).save(path)
    one = write(tmp_path / "one", FIRST)
    options = ("--arch", "test_resnet", "--folds", 2, "--size", 32, "--epochs", 1, "--batch", 4, "--device", "cpu")

    def train(member: str, *more: object) -> Any:
        words = ("train", tmp_path / "train", "--member", member, *options, "-o", tmp_path / "runs", *more, "--json")
        return CliRunner().invoke(ens, [str(word) for word in words])

    pseudo = ("--pseudo", one, "--pseudo-images", images)
    for member, more in (("plain", ()), ("more", pseudo)):
        done = train(member, *more)
        assert done.exit_code == 0, done.output
        assert json.loads(done.stdout)["oof"]
    plain, more_ = tmp_path / "runs" / "plain", tmp_path / "runs" / "more"
    assert (plain / "truth.csv").read_bytes() == (more_ / "truth.csv").read_bytes()
    for fold in (0, 1):
        assert (plain / f"fold{fold}.safetensors").read_bytes() != (more_ / f"fold{fold}.safetensors").read_bytes()
        first, second = (read_predictions(folder / "oof" / f"{folder.name}_f{fold}") for folder in (plain, more_))
        assert first.ids == second.ids
        assert first.holdout_sha256 == second.holdout_sha256
    for half in (pseudo[:2], pseudo[2:], ("--pseudo-boxes", one)):
        assert getattr(train("half", *half).exception, "code", None) == "E204"
    for member, words in (("plain", pseudo), ("more", (*pseudo, "--min-confidence", 0.985))):
        refused = train(member, *words)
        assert getattr(refused.exception, "code", None) == "E442"


def test_faces_are_asked_for_where_the_model_is_of_faces(tmp_path: Path, rows: list[Row], folds: Folds) -> None:
    """A training on face crops without the boxes of the pseudo-labeled images is E206."""
    settings = TrainSettings("test_resnet", Preprocess((32, 32), face=FaceCrop(0.2)))
    job = TrainJob([], folds, "m", settings, tmp_path, boxes=Boxes({}), pseudo_labels=PseudoLabels(tuple(rows)))
    with pytest.raises(OptionError) as caught:
        load_job_images(job)
    assert caught.value.code == "E206"
