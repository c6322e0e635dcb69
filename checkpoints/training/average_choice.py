"""The choice between the epoch that is kept and the mean of the weights, which is never made on a fold's own images.

A fold takes the mean if it scores at least as high as the kept epochs on the images that the other folds held out.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from checkpoints.training.job import TrainJob, true_labels
from checkpoints.training.scores import NAME, score_classes, score_labels
from ensemble.arrays import Logits
from ensemble.events import Listener, Notice
from ensemble.files import remove, write_atomic
from ensemble.predictions.dataset import read_predictions
from ensemble.text.json_types import require_field_types

KEPT, MEAN = "kept", "mean"
_CHOICES = "choices.json"


@dataclass(frozen=True, slots=True)
class AverageChoice:
    """The choice of a fold, from the scores of kept epochs and of means on the images of the other folds.

    ``done`` is False until the weights and predictions of the fold are those that were chosen.
    """

    fold: int
    kept: float
    mean: float
    done: bool

    @property
    def adopted(self) -> bool:
        """True if the mean is not worse."""
        return self.mean >= self.kept


def average_folder(job: TrainJob) -> Path:
    """Return the folder of the means' weights, and of the predictions by which is chosen."""
    return job.folder / "swa"


def average_weights(job: TrainJob, fold: int) -> Path:
    """Return the file with the mean of a fold's weights."""
    return average_folder(job) / f"fold{fold}.safetensors"


def candidate_folder(job: TrainJob, which: str, fold: int) -> Path:
    """Return the folder with the predictions of a fold's `KEPT` or `MEAN` weights for its hold-out images."""
    return average_folder(job) / which / job.fold_name(fold)


def choose_averages(job: TrainJob, fingerprint: str, *, listener: Listener) -> tuple[AverageChoice, ...]:
    """Return the choice of every fold, and keep those that are new; I474 says what each fold takes.

    Choices that were made before stay as they are: their weights were replaced.
    """
    before = {choice.fold: choice for choice in read_choices(job, fingerprint)}
    found = []
    for fold in range(job.folds.count):
        if fold in before:
            found.append(before[fold])
            continue
        others = [other for other in range(job.folds.count) if other != fold]
        scores = [score_folds(job, [candidate_folder(job, which, k) for k in others]) for which in (KEPT, MEAN)]
        choice = AverageChoice(fold, scores[0], scores[1], done=False)
        found.append(choice)
        taken = "takes the mean of its weights" if choice.adopted else "keeps its epoch"
        name = NAME[job.settings.activation]
        message = f"{job.fold_name(fold)} {taken}: on the images of the other folds means have a {name} of "
        listener.notice(Notice("I474", f"{message}{choice.mean:.4f}, kept epochs {choice.kept:.4f}"))
    write_choices(job, fingerprint, found)
    return tuple(found)


def read_choices(job: TrainJob, fingerprint: str) -> tuple[AverageChoice, ...]:
    """Return the choices that were made for this job; none if there are none, or those of another."""
    try:
        value = json.loads((average_folder(job) / _CHOICES).read_text(encoding="utf-8"))
        require_field_types(value, {"folds": tuple[AverageChoice, ...]})
        return tuple(AverageChoice(**choice) for choice in value["folds"]) if value["origin"] == fingerprint else ()
    except (OSError, ValueError, KeyError, TypeError):
        return ()


def write_choices(job: TrainJob, fingerprint: str, choices: Sequence[AverageChoice]) -> None:
    """Write the choices.

    Raises:
        FileError: E701 or E702 when they cannot be written.
    """
    value = {"origin": fingerprint, "folds": [asdict(choice) for choice in choices]}
    write_atomic(average_folder(job) / _CHOICES, json.dumps(value).encode())


def forget_choice(job: TrainJob, fingerprint: str, fold: int) -> None:
    """Forget the choice of a fold that is trained again."""
    choices = read_choices(job, fingerprint)
    if any(choice.fold == fold for choice in choices):
        write_choices(job, fingerprint, [choice for choice in choices if choice.fold != fold])


def clear_choices(job: TrainJob) -> None:
    """Remove all choices, of a training with other settings."""
    remove(average_folder(job) / _CHOICES)


def score_folds(job: TrainJob, folders: Sequence[Path]) -> float:
    """Return the score of the identity view on the images of the predictions in the folders."""
    predicted: dict[str, Logits] = {}
    for folder in folders:
        part = read_predictions(folder)
        predicted |= dict(zip(part.ids, part.logits["identity"], strict=True))
    chosen = np.array([row.id in predicted for row in job.rows])
    truth = true_labels(job.rows, job.settings)[chosen]
    logits = np.stack([predicted[row.id] for row, is_chosen in zip(job.rows, chosen, strict=True) if is_chosen])
    if job.settings.activation == "sigmoid":
        return score_labels(truth, logits).main
    return score_classes(truth, logits.argmax(axis=1), classes=len(job.settings.labels)).main
