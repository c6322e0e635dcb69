"""`ens train` as it is typed: what the options say reaches the cards, and the folds blend without a further option."""

from __future__ import annotations

import inspect
import json
from dataclasses import fields
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner, Result
from PIL import Image

from checkpoints.data.dataset import read_dataset
from checkpoints.loading.open import open_checkpoint
from checkpoints.training.pseudo_labels import PseudoLabelSource
from checkpoints.training.settings import TrainSettings
from ensemble.card import ModelCard, Preprocess, parse_size
from ensemble.cli import ens
from ensemble.commands.train import train
from ensemble.images.face_boxes import Box, Face, write_boxes
from tests.support.toys import picture, write_model

pytestmark = pytest.mark.slow

STEMS = ("mask1", "mask2", "mask3", "mask4", "mask5", "incorrect_mask", "normal")


def write_contest(root: Path) -> list[Face]:
    """Two people or more of each gender and age group; among them some of 59, who are learned as 60."""
    lines, faces = ["id,gender,race,age,path"], []
    for number, (gender, age) in enumerate((g, a) for g in ("male", "female") for a in (20, 22, 59, 45, 46, 60, 70)):
        folder = f"{number:06d}"
        lines.append(f"{number},{gender},Asian,{age},{folder}")
        (root / "images" / folder).mkdir(parents=True)
        for i, stem in enumerate(STEMS):
            Image.fromarray(picture(7 * number + i)).save(root / "images" / folder / f"{stem}.png")
            box = Box(5, 5, 25, 25) if i else None
            faces.append(Face(f"{folder}/{stem}.png", box, 0.9 if i else None, int(bool(i)), None, 30, 40))
    (root / "train.csv").write_text("\n".join(lines) + "\n")
    return faces


def card_of(path: Path) -> ModelCard:
    card = open_checkpoint(path).card
    assert card is not None
    return card


def ran(*words: object) -> Result:
    done = CliRunner().invoke(ens, [str(word) for word in words], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return done


def test_the_command_and_the_library_have_the_same_defaults() -> None:
    """Each option's default is that of the setting or parameter of its name, and only architecture has none."""
    options = train.make_context("train", ["train", "--arch", "any", "--member", "m"]).params
    settings = TrainSettings("any")
    for field in fields(TrainSettings):
        if field.name not in {"preprocess", "labels", "activation"}:  # as the data has them
            assert (field.name, options[field.name]) == (field.name, getattr(settings, field.name))
    assert settings.preprocess == Preprocess(parse_size(options["size"]), options["resize"], options["interpolation"])
    assert options["age_cut"] == inspect.signature(read_dataset).parameters["age_cut"].default
    source = PseudoLabelSource((), Path())
    assert (options["min_confidence"], options["max_share"]) == (source.min_confidence, source.max_share)


def test_two_members_train_and_their_folds_teach_how_to_blend(tmp_path: Path) -> None:
    """Options reach card and log, members share their folds, and oof/ and truth.csv are what `ens blend` asks for."""
    boxes = write_boxes(tmp_path / "boxes.parquet", write_contest(tmp_path / "train"))
    (tmp_path / "fixes.csv").write_text("id,field,value,source\n3,age,61,me\n")
    common = (
        "--folds",
        2,
        "--size",
        32,
        "--epochs",
        1,
        "--augment",
        "light",
        "--device",
        "cpu",
        "-o",
        tmp_path / "runs",
    )
    fixed = ("--fixes", tmp_path / "fixes.csv", "--age-cut", 59)
    for member, options in (("a", ("--boxes", boxes, *fixed)), ("b", ("--keep", "last", *fixed))):
        words = ("train", tmp_path / "train", "--arch", "test_resnet", "--member", member, *common, *options, "--json")
        done = json.loads(ran(*words).stdout)
        assert done["oof"] == str(tmp_path / "runs" / member / "oof")
        assert (tmp_path / "runs" / member / "fold1.csv").read_text().count("\n") == 2
    runs = tmp_path / "runs"
    cards = [card_of(runs / member / "fold0.safetensors") for member in "ab"]
    assert cards[0].preprocess.face is not None
    assert cards[0].preprocess.face.margin == 0.2
    assert cards[1].preprocess.face is None
    assert cards[0].holdout_sha256 == cards[1].holdout_sha256
    # the truth has the true border at 60, and the fix
    truth = dict(line.split(",")[:2] for line in (runs / "a" / "truth.csv").read_text().splitlines())
    assert (truth["000002/normal.png"], truth["000003/normal.png"]) == ("13", "14")

    fields = ("--truth", runs / "a" / "truth.csv", "--method", "mean", "-o", tmp_path / "s.csv")
    ids = np.array(list(truth)[1:])
    (tmp_path / "ids.csv").write_text("ImageID,ans\n" + "".join(f"{i},0\n" for i in ids[:3]))
    models = [write_model(tmp_path / "models", card_of(runs / "b" / f"fold{fold}.safetensors")) for fold in (0, 1)]
    where = ("--images", tmp_path / "train" / "images", "--ids", tmp_path / "ids.csv", "--device", "cpu")
    ran("predict", *models, *where, "--tta", "-o", tmp_path / "preds")
    ran("blend", tmp_path / "preds", "--oof", runs / "b" / "oof", *fields)
    # a model's answers about what it was trained on are no out-of-fold predictions
    refused = CliRunner().invoke(
        ens, [str(w) for w in ("blend", tmp_path / "preds", "--oof", tmp_path / "preds", *fields)]
    )
    assert getattr(refused.exception, "code", None) == "E511"
