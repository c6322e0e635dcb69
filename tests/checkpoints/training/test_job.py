"""A job's fingerprint: it decides whether a folder of an earlier version still resumes."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from pathlib import Path

import pytest

from checkpoints.data.folds import Folds
from checkpoints.data.mask_contest import Row
from checkpoints.training.job import TrainJob
from checkpoints.training.pseudo_labels import PseudoLabels
from checkpoints.training.settings import TrainSettings
from ensemble.card import FaceCrop, Preprocess
from ensemble.errors import OptionError
from ensemble.images.face_boxes import Box, Boxes

pytestmark = pytest.mark.slow

ROWS = [Row(f"{i}.png", str(i // 2), None, None, None, i % 3, Path("x")) for i in range(4)]
SETTINGS = TrainSettings("resnet18", Preprocess((64, 48), face=FaceCrop(0.2)), epochs=3, learning_rate=0.01, mixup=0.2)
JOB = TrainJob(ROWS, Folds(2, {"0": 0, "1": 1}), "m", SETTINGS, Path("runs"), seed=7)


def digest(job: TrainJob) -> str:
    return hashlib.sha256(job.fingerprint().encode()).hexdigest()


def test_a_fingerprint_is_that_of_earlier_versions() -> None:
    """The same job has the fingerprint that version 0.1.0 wrote to settings.json, with pseudo-labels too."""
    assert digest(JOB) == "77468eb80411ffa94bd7bcde135af2b1aa3251ce37504ce27dc90ddad93972ff"
    more = replace(JOB, boxes=Boxes({"a": Box(1, 2, 3, 4)}), pseudo_labels=PseudoLabels(tuple(ROWS[:2])))
    assert digest(more) == "9e0d178009f655d108daef55d15c40ac487643efbded3993d0477a7de93e508e"


def test_a_fingerprint_does_not_depend_on_where_it_is_written() -> None:
    """Another folder or logger has the same fingerprint, another seed, label or fold a different one."""
    assert digest(replace(JOB, out=Path("elsewhere"), logger="wandb")) == digest(JOB)
    others = (
        replace(JOB, seed=8),
        replace(JOB, rows=[replace(ROWS[0], label=2), *ROWS[1:]]),
        replace(JOB, folds=Folds(2, {"0": 1, "1": 0})),
    )
    assert len({digest(job) for job in (JOB, *others)}) == 4


def test_a_name_that_is_no_folder_is_refused() -> None:
    """A member whose name has a slash is E204 before anything is read or written."""
    with pytest.raises(OptionError) as caught:
        replace(JOB, member="../m")
    assert caught.value.code == "E204"
