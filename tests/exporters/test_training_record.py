"""Whose images a model of lower precision is judged on, by what `ens train` left beside the checkpoint."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from checkpoints.loading.open import Checkpoint
from ensemble.card import ModelCard
from ensemble.events import Recorder
from ensemble.predictions.dataset import Part, hash_ids, part_path, write_complete, write_part
from exporters.training_record import Familiar, TrainingRecord, tell_familiar, training_record
from tests.support import toys

pytestmark = pytest.mark.slow  # it imports torch

HELD_OUT = ("a/1.jpg", "a/2.jpg")
TRAINED = ("b/3.jpg", "b/4.jpg", "c/5.jpg")


def checkpoint(folder: Path, card: ModelCard | None) -> Checkpoint:
    """A checkpoint of a fold, without its weights, in a folder as `ens train` leaves it."""
    card_of_fold = replace(toys.card("m_f0"), holdout_sha256=hash_ids(HELD_OUT))
    rows = "".join(f"{name},0,{name[0]}\n" for name in (*HELD_OUT, *TRAINED))
    (folder / "truth.csv").write_text(f"ImageID,ans,person\n{rows}")
    part = part_path(folder / "oof" / "m_f0", 0)
    logits = {"identity": np.zeros((2, len(card_of_fold.labels)), np.float32)}
    write_part(part, Part(HELD_OUT, logits, "", card_of_fold))
    write_complete(part.parent, [part], 2)
    return Checkpoint(folder / "fold0.safetensors", "x", {}, 18, "", "ema", card)


def card(held_out: tuple[str, ...] = HELD_OUT) -> ModelCard:
    return replace(toys.card("m_f0"), holdout_sha256=hash_ids(held_out))


def test_images_are_told_apart_by_the_folder_of_the_training(tmp_path: Path) -> None:
    """Held out, trained on or unknown, by id or by a file name that occurs once, with the persons."""
    record = training_record(checkpoint(tmp_path, card()), ("a/1.jpg", "2.jpg", "b/3.jpg", "x/5.jpg", "new.jpg"))
    assert record.held_out == {"a/1.jpg", "2.jpg"}
    assert record.trained == {"b/3.jpg", "x/5.jpg"}
    assert record.persons == {"a/1.jpg": "a", "2.jpg": "a", "b/3.jpg": "b", "x/5.jpg": "c"}
    assert record.count(["a/1.jpg", "b/3.jpg", "new.jpg"]) == Familiar(1, 1, 1)


def test_the_hash_of_the_card_is_enough_for_the_hold_out_part(tmp_path: Path) -> None:
    """Without the folder, exactly the images that were held out are recognized by the card."""
    alone = replace(checkpoint(tmp_path, card()), path=tmp_path / "elsewhere" / "fold0.safetensors")
    assert training_record(alone, HELD_OUT[::-1]).held_out == set(HELD_OUT)
    assert training_record(alone, (*HELD_OUT, "b/3.jpg")) == TrainingRecord()


@pytest.mark.parametrize("harm", ["no card", "other training", "no truth", "torn part", "binary truth"])
def test_what_is_not_known_is_not_guessed(tmp_path: Path, harm: str) -> None:
    """Without a card or with a damaged folder, or one of another training, nothing is said about any image."""
    found = checkpoint(tmp_path, None if harm == "no card" else card())
    if harm == "other training":
        found = replace(found, card=card(("z.jpg",)))
    elif harm == "no truth":
        (tmp_path / "truth.csv").unlink()
    elif harm == "torn part":
        part_path(tmp_path / "oof" / "m_f0", 0).write_bytes(b"PAR1")
    elif harm == "binary truth":
        (tmp_path / "truth.csv").write_bytes(b"\xff\x00\n\x80")
    assert training_record(found, ("a/1.jpg", "b/3.jpg")) == TrainingRecord()


@pytest.mark.parametrize(
    ("seen", "code", "words"),
    [
        (Familiar(90, 0, 0), "W633", "90 of the 90 images that judge int8 are the network's own training images"),
        (Familiar(1, 80, 9), "W633", "1 of the 90 images"),
        (Familiar(0, 90, 0), "I633", "90 images held out of its training; its layers are chosen on 88 others"),
        (Familiar(0, 80, 10), "I633", "90 images held out of its training (80) or not in its data"),
        (Familiar(0, 0, 90), "I633", "90 images that are not in its training data"),
    ],
)
def test_the_gate_says_whose_images_it_saw(seen: Familiar, code: str, words: str) -> None:
    """Training images are a warning, however few; else a note says where the images come from."""
    heard = Recorder()
    tell_familiar("m", "int8", seen, is_recorded=True, chosen_on=88, listener=heard)
    assert [notice.code for notice in heard.notices] == [code]
    assert words in heard.notices[0].message


def test_images_of_an_unknown_training_are_not_said_to_be_new() -> None:
    """A checkpoint of another program may have been trained on the images that judge it."""
    heard = Recorder()
    tell_familiar("m", "int8", Familiar(0, 0, 90), is_recorded=False, chosen_on=88, listener=heard)
    assert "no record says whether it was trained on them" in heard.notices[0].message
