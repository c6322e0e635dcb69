"""Stochastic weight averaging: the mean, its batch statistics, and that no fold chooses it by its own images."""

from __future__ import annotations

import copy
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
from numpy.typing import NDArray

from checkpoints.data.folds import Folds, make_folds
from checkpoints.data.mask_contest import Row
from checkpoints.training import average_choice
from checkpoints.training.average_choice import KEPT, MEAN, average_weights, candidate_folder, choose_averages
from checkpoints.training.job import TrainJob
from checkpoints.training.settings import TrainSettings, settings_dict
from checkpoints.training.train_fold import train_fold
from checkpoints.training.train_member import train_member
from checkpoints.training.weight_average import add_to_mean, averaged_model
from ensemble.card import Preprocess
from ensemble.errors import OptionError
from ensemble.events import SILENT, Recorder
from ensemble.predictions.dataset import read_predictions
from tests.support.killed_training import Killed, Killer

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("one_thread")]

SETTINGS = TrainSettings(
    "test_efficientnet",
    Preprocess((32, 24)),
    epochs=3,
    learning_rate=0.01,
    augment="none",
    schedule="constant",
    warm_up=1e-9,
    keep="last",
    swa=2,
)


@pytest.fixture(scope="module")
def folds(rows: tuple[Row, ...]) -> Folds:
    return make_folds(rows, folds=2, seed=0)


def network() -> torch.nn.Module:
    torch.manual_seed(0)
    return torch.nn.Sequential(
        torch.nn.Conv2d(3, 4, 3),
        torch.nn.BatchNorm2d(4),
        torch.nn.ReLU(),
        torch.nn.Conv2d(4, 5, 3),
        torch.nn.BatchNorm2d(5),
    )


def test_the_mean_is_that_of_all_states() -> None:
    """After three states of a network each weight is their mean, in whatever order they are added up."""
    models = [network() for _ in range(3)]
    mean = None
    for number, model in enumerate(models, 1):
        torch.nn.init.normal_(model.get_parameter("0.weight"), std=number)
        mean = add_to_mean(mean, model, number)
    assert mean is not None
    expected = torch.stack([model.get_parameter("0.weight") for model in models]).mean(dim=0)
    torch.testing.assert_close(mean["0.weight"], expected.detach())


def test_batch_statistics_are_those_of_torch() -> None:
    """They equal those of `torch.optim.swa_utils.update_bn`; the momentum is as before, and all is in eval mode."""
    model, batches = network(), [torch.randn(8, 3, 12, 12) for _ in range(3)]
    found = averaged_model(model, model.state_dict(), batches)
    expected = copy.deepcopy(model)
    torch.optim.swa_utils.update_bn(batches, expected)
    for name, tensor in expected.state_dict().items():
        torch.testing.assert_close(found.state_dict()[name], tensor)
    assert not found.training
    assert not any(module.training for module in found.modules())
    assert found.get_submodule("1").momentum == 0.1


def test_frozen_layers_keep_their_statistics() -> None:
    """A frozen batch normalization, whose weights never changed, has those of before; dropout changes nothing."""
    model = torch.nn.Sequential(network(), torch.nn.Dropout(0.9), torch.nn.BatchNorm2d(5))
    batches = [torch.randn(8, 3, 12, 12)]
    frozen = model.get_submodule("0.1")
    found = averaged_model(model, model.state_dict(), batches, frozen=[frozen])
    again = averaged_model(model, model.state_dict(), batches, frozen=[frozen])
    torch.testing.assert_close(found.get_buffer("0.1.running_mean"), torch.zeros(4))
    assert float(found.get_buffer("0.4.running_mean").abs().sum()) > 0
    torch.testing.assert_close(found.get_buffer("2.running_var"), again.get_buffer("2.running_var"))


@pytest.mark.parametrize("settings", [{"swa": 1}, {"swa": 4}, {"patience": 1}])
def test_averages_of_no_last_epochs_are_refused(settings: dict[str, object]) -> None:
    """One epoch, more than there are, and an end that is not known before are E204."""
    with pytest.raises(OptionError) as caught:
        replace(SETTINGS, **settings)  # type: ignore[arg-type]
    assert caught.value.code == "E204"
    assert "swa" not in settings_dict(replace(SETTINGS, swa=None))


def test_a_killed_training_averages_the_same_epochs(rows: tuple[Row, ...], folds: Folds, tmp_path: Path) -> None:
    """The mean of the weights after epochs 2 and 3 is that of two trainings of 2 and 3 epochs, also after a kill."""
    job = TrainJob(rows, folds, "b", SETTINGS, tmp_path / "killed")
    with pytest.raises(Killed):
        train_fold(job, 1, resumable=True, listener=Killer(2))  # the mean already has the weights of that epoch
    third = train_fold(job, 1, resumable=True)
    second = train_fold(replace(job, settings=replace(SETTINGS, swa=None, epochs=2), out=tmp_path / "short"), 1)
    found, *both = [safetensors.torch.load_file(path) for path in (average_weights(job, 1), third.path, second.path)]
    key = "conv_head.weight"
    assert not torch.equal(both[0][key], both[1][key])
    torch.testing.assert_close(found[key], (both[0][key] + both[1][key]) / 2)
    whole = replace(job, out=tmp_path / "whole")
    train_fold(whole, 1)
    assert average_weights(whole, 1).read_bytes() == average_weights(job, 1).read_bytes()


def answers(job: TrainJob, which: str, fold: int) -> NDArray[np.float32]:
    return read_predictions(candidate_folder(job, which, fold)).logits["identity"]


def test_a_fold_takes_the_mean_that_others_found_not_worse(
    rows: tuple[Row, ...], folds: Folds, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each fold's weights and predictions are those that the other fold's scores choose, also after a stop in between.

    The scores are turned so that fold 0's mean is better on its own images alone: fold 1 takes the mean, fold 0 not.
    """
    job = TrainJob(rows, folds, "b", SETTINGS, tmp_path)
    one = train_member(job, only_fold=0)
    assert one.score is None
    assert average_weights(job, 0).exists()
    given = {(MEAN, 0): 0.6, (KEPT, 0): 0.5, (MEAN, 1): 0.4, (KEPT, 1): 0.5}

    def scores(_: TrainJob, folders: list[Path]) -> float:
        (folder,) = folders
        return given[(folder.parent.name, int(folder.name[-1]))]

    heard = Recorder()
    monkeypatch.setattr(average_choice, "score_folds", scores)
    kept = (job.folder / "fold0.safetensors").read_bytes()
    both = train_member(job, listener=heard)
    said = [notice.message for notice in heard.notices if notice.code == "I474"]
    assert [text.partition(":")[0] for text in said] == ["b_f0 keeps its epoch", "b_f1 takes the mean of its weights"]
    assert [(one.is_mean, one.epoch) for one in both.trained] == [(True, 3)]
    assert "of the mean up to epoch 3" in both.render()
    assert both.as_dict()["folds"][0]["averaged"] is True
    assert (job.folder / "fold0.safetensors").read_bytes() == kept
    for fold, which in ((0, KEPT), (1, MEAN)):
        found = read_predictions(job.folder / "oof" / f"b_f{fold}").logits["identity"]
        np.testing.assert_array_equal(found, answers(job, which, fold))
    assert not np.array_equal(answers(job, MEAN, 1), answers(job, KEPT, 1))
    assert not average_weights(job, 1).exists()

    choices = average_choice.average_folder(job) / "choices.json"
    stopped = json.loads(choices.read_text())
    stopped["folds"][1]["done"] = False
    choices.write_text(json.dumps(stopped))
    mean = (job.folder / "fold1.safetensors").read_bytes()
    average_weights(job, 1).write_bytes(mean)
    (job.folder / "fold1.safetensors").write_bytes(kept)
    train_member(job)
    assert (job.folder / "fold1.safetensors").read_bytes() == mean
    assert choose_averages(job, job.fingerprint(), listener=SILENT)[1].done
