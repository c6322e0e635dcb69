"""The images that a checkpoint was trained on, and those its training held out, as `ens train` recorded them."""

from __future__ import annotations

import csv
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Protocol

from ensemble.card import ModelCard, Precision
from ensemble.errors import EnsError
from ensemble.events import Listener, Notice
from ensemble.predictions.dataset import hash_ids, read_predictions

_TRUTH, _OOF = "truth.csv", "oof"  # of a member's folder


class Trained(Protocol):
    """A checkpoint, with its values or by its names alone; ``card`` is the one that `ens train` wrote."""

    @property
    def path(self) -> Path:
        """Its file or folder."""

    @property
    def card(self) -> ModelCard | None:
        """Its card."""


@dataclass(frozen=True, slots=True)
class Familiar:
    """The numbers of images that a network was trained on, that its training held out, and of the others."""

    trained: int
    held_out: int
    unknown: int

    def as_dict(self) -> dict[str, int]:
        """Return what the card keeps."""
        return {"trained": self.trained, "held_out": self.held_out, "unknown": self.unknown}


@dataclass(frozen=True, slots=True)
class TrainingRecord:
    """Of a list of image ids those that a network was ``trained`` on and those ``held_out``, and ``persons`` by id.

    Where nothing about the training is recorded (``is_found`` is false), there are none of either.
    """

    trained: frozenset[str] = frozenset()
    held_out: frozenset[str] = frozenset()
    persons: Mapping[str, str] | None = None
    is_found: bool = False

    def count(self, ids: Collection[str]) -> Familiar:
        """Return how familiar these images are."""
        trained, held_out = (sum(name in some for name in ids) for some in (self.trained, self.held_out))
        return Familiar(trained, held_out, len(ids) - trained - held_out)


def training_record(checkpoint: Trained, ids: Sequence[str]) -> TrainingRecord:
    """Return what is known about images: from the folder of `ens train`, else from the hash of the hold-out part.

    An image is known by its id, or by a file name that occurs once in the training data.
    """
    card = checkpoint.card
    if card is None or card.holdout_sha256 is None:
        return TrainingRecord()
    if hash_ids(ids) == card.holdout_sha256:
        return TrainingRecord(held_out=frozenset(ids), is_found=True)
    try:
        with open(checkpoint.path.parent / _TRUTH, encoding="utf-8", newline="") as file:
            persons = {row["ImageID"]: row.get("person") or row["ImageID"] for row in csv.DictReader(file)}
        found = read_predictions(checkpoint.path.parent / _OOF / card.member)
    except (OSError, ValueError, KeyError, csv.Error, EnsError):
        return TrainingRecord()
    own = {*found.ids, *found.missing}
    if hash_ids(own) != card.holdout_sha256:  # of another training in the same folder
        return TrainingRecord()
    counts = Counter(PurePosixPath(name).name for name in persons)
    by_name = {PurePosixPath(name).name: name for name in persons if counts[PurePosixPath(name).name] == 1}
    known = {name: name if name in persons else by_name.get(PurePosixPath(name).name) for name in ids}
    trained = frozenset(name for name, one in known.items() if one is not None and one not in own)
    held_out = frozenset(name for name, one in known.items() if one is not None and one in own)
    by_id = {name: persons[one] for name, one in known.items() if one is not None}
    return TrainingRecord(trained, held_out, by_id, is_found=True)


def tell_familiar(
    member: str, precision: Precision, seen: Familiar, *, is_recorded: bool, chosen_on: int, listener: Listener
) -> None:
    """Say whose images judge a model: W633 if the network was trained on some of them, else I633.

    Without a record of the training (``is_recorded``) it is not known whether it was trained on them.
    """
    count = seen.trained + seen.held_out + seen.unknown
    chosen = f"; its layers are chosen on {chosen_on:,} others" if chosen_on else ""
    if seen.trained:
        message = (
            f"{member}: {seen.trained:,} of the {count:,} images that judge {precision} are the network's own training "
            "images, on which answers change less than on others"
        )
        listener.notice(Notice("W633", message))
        return
    whose = "held out of its training" if seen.held_out == count else "that are not in its training data"
    if seen.held_out and seen.unknown:
        whose = f"held out of its training ({seen.held_out:,}) or not in its data"
    if not is_recorded:
        whose = "(no record says whether it was trained on them; on training images fewer answers change)"
    listener.notice(Notice("I633", f"{member}: {precision} is judged on {count:,} images {whose}{chosen}"))
