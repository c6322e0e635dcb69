"""The ingredients of a step: accumulation, balance, MixUp, erasing and half precision, alone and after a kill."""

from __future__ import annotations

import itertools
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from checkpoints.data.folds import Folds
from checkpoints.data.mask_contest import Row
from checkpoints.loading.open import open_checkpoint
from checkpoints.training.settings import TrainSettings, settings_dict
from ensemble.card import Preprocess
from ensemble.errors import OptionError
from tests.support.killed_training import Killed, Killer, fit

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("one_thread")]

SETTINGS = TrainSettings(
    "test_efficientnet", Preprocess((32, 24)), epochs=1, learning_rate=0.01, batch=16, augment="none"
)


def test_accumulated_batches_learn_like_one_large_batch(rows: tuple[Row, ...], folds: Folds, tmp_path: Path) -> None:
    """Without batch statistics, 4 batches of 9 per step give the weights of batches of 36; single ones do not."""
    vit = replace(
        SETTINGS,
        arch="test_vit2",
        preprocess=Preprocess((64, 64)),
        optimizer="sgd",
        class_weights="none",
        ema=0.5,
        clip=1.0,
    )
    few = [row for row in rows if row.label % 2]
    states = [
        open_checkpoint(fit(few, folds, tmp_path / f"{batch}x{times}", settings).path).state_dict
        for batch, times in ((36, 1), (9, 4), (9, 1))
        for settings in [replace(vit, batch=batch, accumulate=times)]
    ]
    key = "head.weight"
    torch.testing.assert_close(states[0][key], states[1][key], rtol=1e-3, atol=1e-5)
    assert not torch.allclose(states[0][key], states[2][key], rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize(
    "settings",
    [
        replace(SETTINGS, mixup=0.4, cutmix="half", erasing=0.5, balanced=True, accumulate=2, augment="light", ema=0.9),
        replace(SETTINGS, fp16=True, head="axes"),
    ],
    ids=["mixed", "half"],
)
def test_a_killed_training_ends_with_the_same_bytes(
    rows: tuple[Row, ...], folds: Folds, tmp_path: Path, settings: TrainSettings
) -> None:
    """With everything random or scaled, a training killed after an epoch ends with the bytes of one run."""
    settings = replace(settings, epochs=2)
    few = [row for row in rows if row.label % 6 == 0]
    whole = fit(few, folds, tmp_path / "whole", settings)
    with pytest.raises(Killed):
        fit(few, folds, tmp_path / "killed", settings, Killer())
    assert fit(few, folds, tmp_path / "killed", settings).path.read_bytes() == whole.path.read_bytes()


def test_every_ingredient_changes_what_is_learned(rows: tuple[Row, ...], folds: Folds, tmp_path: Path) -> None:
    """Each of the settings gives different weights: none of them is ignored."""
    changes: list[dict[str, Any]] = [
        {},
        {"mixup": 0.4},
        {"mixup": 4.0},
        {"erasing": 0.5},
        {"balanced": True},
        {"accumulate": 2},
        {"fp16": True},
    ]
    few = [row for row in rows if row.label % 6 == 0 or row.person < "3"]
    found = [
        open_checkpoint(fit(few, folds, tmp_path / str(i), replace(SETTINGS, **change)).path)
        for i, change in enumerate(changes)
    ]
    for one, other in itertools.combinations(found, 2):
        assert not torch.equal(one.state_dict["classifier.weight"], other.state_dict["classifier.weight"])


def test_a_balanced_epoch_shows_every_class_equally_often(
    rows: tuple[Row, ...], folds: Folds, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """If a class has a third of the others' images, an epoch still has as many targets of each class."""
    fewer = [row for row in rows if row.label or int(row.person) % 3 == 0]
    seen: list[torch.Tensor] = []

    def backward(state: Any, images: torch.Tensor, targets: torch.Tensor, *_: Any, **__: Any) -> torch.Tensor:
        seen.append(targets.sum(dim=0))
        return torch.zeros(())

    monkeypatch.setattr("checkpoints.training.epochs._backward", backward)
    fit(fewer, folds, tmp_path, replace(SETTINGS, balanced=True, batch=1))
    counts = np.asarray(torch.stack(seen).sum(dim=0))
    assert counts.max() - counts.min() <= 1


def test_settings_out_of_range_are_refused() -> None:
    """Values out of range, and two precisions at once, are E204."""
    changes: list[dict[str, Any]] = [
        {"mixup": 0.0},
        {"erasing": 1.5},
        {"accumulate": 0},
        {"bf16": True, "fp16": True},
    ]
    for change in changes:
        with pytest.raises(OptionError):
            replace(SETTINGS, **change)


def test_a_training_from_before_is_still_known() -> None:
    """Settings added later are part of the fingerprint only if they differ from their defaults."""
    plain = settings_dict(SETTINGS)
    assert {"head", "mixup", "erasing", "balanced", "accumulate", "fp16"}.isdisjoint(plain)
    assert settings_dict(replace(SETTINGS, head="axes", accumulate=2)) == plain | {"head": "axes", "accumulate": 2}
