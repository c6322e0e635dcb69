"""Training one fold: it learns, is reproducible, keeps the best epoch and never sees the hold-out part."""

from __future__ import annotations

import csv
import hashlib
import sys
import warnings
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.metrics import f1_score

from checkpoints.data.folds import Folds
from checkpoints.data.mask_contest import Row
from checkpoints.loading.open import build_model, open_checkpoint
from checkpoints.training import training_state
from checkpoints.training.distributed import DistributedContext
from checkpoints.training.job import TrainJob
from checkpoints.training.scores import HoldoutScores
from checkpoints.training.settings import TrainSettings
from checkpoints.training.train_fold import TrainedFold, train_fold
from checkpoints.training.training_state import StepStates, TrainingState, WithinEpoch
from ensemble.card import Preprocess
from ensemble.errors import DataError, DeviceError, ModelError, OptionError
from ensemble.events import SILENT, Listener, Notice, Recorder
from ensemble.labels import MASK18, LabelSpace
from tests.support.killed_training import Killed, Killer

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("one_thread")]

SETTINGS = TrainSettings(
    "test_efficientnet", Preprocess((32, 24)), epochs=1, learning_rate=0.01, batch=16, augment="light"
)


@pytest.fixture(scope="module")
def trained(rows: tuple[Row, ...], folds: Folds, tmp_path_factory: pytest.TempPathFactory) -> TrainedFold:
    torch.set_num_threads(1)
    return fit(rows, folds, tmp_path_factory.mktemp("trained"), settings=replace(SETTINGS, epochs=6))


def fit(
    rows: Sequence[Row],
    folds: Folds,
    out: Path,
    *,
    settings: TrainSettings = SETTINGS,
    seed: int = 0,
    device: str = "cpu",
    listener: Listener = SILENT,
) -> TrainedFold:
    job = TrainJob(rows, folds, "bars", settings, out, seed=seed)
    return train_fold(job, 1, distributed=DistributedContext(device=device), listener=listener)


def answers(path: Path, rows: Sequence[Row]) -> list[int]:
    """Return the classes that the written weights predict, by torch alone."""
    pixels = np.stack([np.asarray(Image.open(row.path)) for row in rows]).astype(np.float32)
    normal = (pixels / 255 - SETTINGS.mean) / SETTINGS.std
    with torch.no_grad():
        logits = build_model(open_checkpoint(path))(torch.from_numpy(normal.transpose(0, 3, 1, 2)).float())
    classes: list[int] = logits.argmax(dim=1).tolist()
    return classes


def test_training_learns(trained: TrainedFold) -> None:
    """Six epochs on striped images score far above chance (1 of 18) on the hold-out part."""
    assert trained.score > 0.4


def test_the_card_knows_the_mix_of_classes(trained: TrainedFold, rows: tuple[Row, ...]) -> None:
    """It counts the images of every class, with those held out: the class prior for unreadable images."""
    assert trained.card.class_counts == tuple(sum(row.label == k for row in rows) for k in range(18))


def test_the_best_epoch_is_written(trained: TrainedFold, rows: tuple[Row, ...], folds: Folds) -> None:
    """The predictions of the file on the hold-out part have the reported macro F1, according to scikit-learn."""
    held_out = [row for row in rows if folds.of_person[row.person] == 1]
    score = f1_score(
        [row.label for row in held_out],
        answers(trained.path, held_out),
        labels=range(18),
        average="macro",
        zero_division=0,
    )
    assert trained.score == pytest.approx(score, abs=1e-12)


def test_an_earlier_epoch_wins_when_it_is_better(
    rows: tuple[Row, ...], folds: Folds, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of the scores 0.2, 0.5, 0.5, 0.1 the third epoch is kept: the best, and the later one on ties."""
    scores = iter([0.2, 0.5, 0.5, 0.1])
    monkeypatch.setattr("checkpoints.training.epochs._score", lambda *_: HoldoutScores(next(scores), 0.0))
    found = fit(rows, folds, tmp_path, settings=replace(SETTINGS, epochs=4))
    assert (found.epoch, found.score) == (3, 0.5)


def test_the_last_epoch_is_kept_when_that_is_asked_for(
    rows: tuple[Row, ...], folds: Folds, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With ``keep="last"`` the scores 0.5, 0.2 keep the second epoch, and patience still counts from the best."""
    scores = iter([0.5, 0.2, 0.3])
    monkeypatch.setattr("checkpoints.training.epochs._score", lambda *_: HoldoutScores(next(scores), 0.0))
    found = fit(rows, folds, tmp_path, settings=replace(SETTINGS, epochs=3, patience=1, keep="last"))
    assert (found.epoch, found.score) == (2, 0.2)


@pytest.mark.parametrize("schedule", ["onecycle", "cosine"])
def test_a_killed_training_ends_with_the_same_bytes(
    rows: tuple[Row, ...], folds: Folds, tmp_path: Path, schedule: Any
) -> None:
    """A training that is killed after its second and third epoch ends with the bytes of an uninterrupted one."""
    settings = replace(
        SETTINGS,
        arch="test_vit",
        preprocess=Preprocess((160, 160)),
        epochs=4,
        ema=0.9,
        cutmix="plain",
        schedule=schedule,
    )
    few = [row for row in rows if row.label % 3 == 0]
    job = TrainJob(few, folds, "bars", settings, tmp_path)
    whole = train_fold(replace(job, out=tmp_path / "whole"), 1)

    def again(listener: Listener = SILENT, seed: int = 0) -> TrainedFold:
        return train_fold(replace(job, seed=seed), 1, resumable=True, listener=listener)

    for epoch in (2, 3):
        with pytest.raises(Killed):
            again(Killer(epoch))
    heard = Recorder()
    assert again(heard).path.read_bytes() == whole.path.read_bytes()
    assert [(notice.code, "after epoch 3 of 4" in notice.message) for notice in heard.notices] == [("I445", True)]
    log = list(csv.DictReader((job.folder / "fold1.csv").read_text().splitlines()))
    assert [row["epoch"] for row in log] == ["1", "2", "3", "4"]
    assert float(log[-1]["learning_rate"]) < float(log[1]["learning_rate"]) <= settings.learning_rate
    again(heard := Recorder(), seed=1)
    assert heard.notices == []


class StepKiller(Listener):
    """Ends the training at the start of a step."""

    def __init__(self, step: str) -> None:
        self.step = step

    def detail(self, text: str) -> None:
        if text.startswith(self.step):
            raise Killed


def test_a_training_killed_within_epochs_ends_with_the_same_bytes(
    rows: tuple[Row, ...], folds: Folds, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed in the first epoch and in the second, a training goes on at the step it was at, to the bytes of a whole
    one; the state within an epoch is gone when the epoch is over.
    """
    monkeypatch.setattr(training_state, "_SECONDS", 0.0)
    monkeypatch.setattr(training_state, "_LEAST_SHARE", 0)
    settings = replace(SETTINGS, epochs=2, ema=0.9, cutmix="half", mixup=0.2, erasing=0.5, batch=6, accumulate=2)
    job = TrainJob(rows, folds, "bars", settings, tmp_path)
    whole = train_fold(replace(job, out=tmp_path / "whole"), 1)
    heard = Recorder()
    for step in ("epoch 1: step 3 of ", "epoch 1: step 5 of ", "epoch 2: step 2 of "):
        with pytest.raises(Killed):
            train_fold(job, 1, resumable=True, listener=Recorder(StepKiller(step)))
        assert job.step_state_path(1).exists()
    assert train_fold(job, 1, resumable=True, listener=heard).path.read_bytes() == whole.path.read_bytes()
    said = [notice.message.partition(" of ")[0] for notice in heard.notices if notice.code == "I445"]
    assert said == ["bars_f1 resumes after epoch 1", "bars_f1 resumes in epoch 2, after step 1"]
    assert not job.step_state_path(1).exists()


@pytest.mark.parametrize("harm", ["torn", "settings"])
def test_a_state_within_an_epoch_that_does_not_fit_is_passed_over(
    rows: tuple[Row, ...], folds: Folds, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, harm: str
) -> None:
    """A file that a power failure has torn, or of another seed, costs the epoch and no more."""
    monkeypatch.setattr(training_state, "_SECONDS", 0.0)
    monkeypatch.setattr(training_state, "_LEAST_SHARE", 0)
    job = TrainJob(rows, folds, "bars", replace(SETTINGS, epochs=1, batch=24), tmp_path)
    with pytest.raises(Killed):
        train_fold(job, 1, resumable=True, listener=StepKiller("epoch 1: step 2 of "))
    if harm == "torn":
        path = job.step_state_path(1)
        path.write_bytes(path.read_bytes()[:-100])
    else:
        job = replace(job, seed=1)
    heard = Recorder()
    resumed = train_fold(job, 1, resumable=True, listener=heard)
    assert heard.notices == []
    assert resumed.path.read_bytes() == train_fold(replace(job, out=tmp_path / "whole"), 1).path.read_bytes()


def test_states_are_written_as_often_as_they_are_cheap(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ten seconds after the start and after each state it is time again; after one that took 4 seconds, in 40."""
    now, took = 0.0, 0.0

    def write(*_: object, **__: object) -> None:
        nonlocal now
        now += took

    monkeypatch.setattr(training_state, "write_atomic", write)
    network = torch.nn.Linear(1, 1)
    optimizer = torch.optim.SGD(network.parameters(), lr=1.0)
    schedule = torch.optim.lr_scheduler.ConstantLR(optimizer)
    state = TrainingState(network, None, optimizer, schedule, torch.amp.GradScaler("cpu", enabled=False))
    states = StepStates(tmp_path / "fold0.step.state", fingerprint="{}", clock=lambda: now)
    for took, wait in ((0.5, 10.0), (4.0, 10.0), (0.0, 40.0)):  # noqa: B007 - read by write
        due = []
        for step in (wait - 0.1, 0.2):
            now += step
            due.append(states.is_due)
        assert due == [False, True]
        states.save(state, WithinEpoch(1, 0.5, torch.Generator().get_state()))


@pytest.mark.parametrize("kind", ["wandb", "tensorboard"])
def test_a_logger_never_ends_a_training(
    rows: tuple[Row, ...], folds: Folds, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: Any
) -> None:
    """A logger that is not installed, or fails on closing, is W443 once; a working one gets all epochs."""
    heard: list[tuple[float, int]] = []

    class Run:
        def log(self, values: dict[str, float], step: int) -> None:
            heard.append((values["macro_f1"], step))

        def add_scalar(self, key: str, value: float, step: int) -> None:
            if key == "macro_f1":
                heard.append((value, step))

        def finish(self) -> None:
            raise OSError("no network")

        close = finish

    module = ModuleType(kind)
    name = {"wandb": "wandb", "tensorboard": "torch.utils.tensorboard"}[kind]
    for works in (False, True):
        monkeypatch.setitem(sys.modules, name, module if works else None)
        setattr(module, "init" if kind == "wandb" else "SummaryWriter", lambda *_, **__: Run())
        ears = Recorder()
        found = train_fold(TrainJob(rows, folds, "b", SETTINGS, tmp_path, logger=kind), 1, listener=ears)
        assert [notice.code for notice in ears.notices] == ["W443"]
        assert heard == ([(found.score, 1)] if works else [])


def test_the_card_says_what_the_export_needs(trained: TrainedFold, rows: tuple[Row, ...], folds: Folds) -> None:
    """The card in the file names member, group, fold, architecture, labels, preprocessing and the people held out."""
    checkpoint = open_checkpoint(trained.path)
    card = checkpoint.card
    assert card == trained.card
    assert card is not None
    assert trained.path.name == "fold1.safetensors"
    assert (card.member, card.group, card.fold) == ("bars_f1", "bars", 1)
    assert (card.arch, card.labels, card.preprocess) == ("test_efficientnet", MASK18, SETTINGS.preprocess)
    assert (card.mean, card.std) == (SETTINGS.mean, SETTINGS.std)
    held_out = sorted(row.id for row in rows if folds.of_person[row.person] == 1)
    assert card.holdout_sha256 == hashlib.sha256("\0".join(held_out).encode()).hexdigest()


def test_a_seed_decides_every_byte(rows: tuple[Row, ...], folds: Folds, tmp_path: Path) -> None:
    """Two trainings with one seed write the same file, whatever was drawn before; another seed gives another file."""
    first = fit(rows, folds, tmp_path / "a").path.read_bytes()
    torch.rand(5)
    assert fit(rows, folds, tmp_path / "b").path.read_bytes() == first
    assert fit(rows, folds, tmp_path / "c", seed=1).path.read_bytes() != first


def test_the_callers_random_numbers_go_on(rows: tuple[Row, ...], folds: Folds, tmp_path: Path) -> None:
    """A training leaves torch's random state as it found it."""
    before = torch.random.get_rng_state()
    fit(rows, folds, tmp_path)
    assert torch.equal(torch.random.get_rng_state(), before)


def test_people_held_out_teach_nothing(rows: tuple[Row, ...], folds: Folds, tmp_path: Path) -> None:
    """Other images and labels in the hold-out part give the same weights."""
    black = tmp_path / "black.png"
    Image.new("RGB", (24, 32)).save(black)
    changed = [replace(row, path=black, label=0) if folds.of_person[row.person] == 1 else row for row in rows]
    weights = [open_checkpoint(fit(r, folds, tmp_path / n).path).state_dict for n, r in (("a", rows), ("b", changed))]
    assert all(torch.equal(weights[0][key], weights[1][key]) for key in weights[0])


def test_fewer_images_than_a_batch_are_one_batch(rows: tuple[Row, ...], folds: Folds, tmp_path: Path) -> None:
    """A training set smaller than the batch still takes a step."""
    before = fit(rows, folds, tmp_path / "a", settings=replace(SETTINGS, learning_rate=1e-12, batch=1000))
    after = fit(rows, folds, tmp_path / "b", settings=replace(SETTINGS, batch=1000))
    key = "classifier.weight"
    assert not torch.equal(open_checkpoint(before.path).state_dict[key], open_checkpoint(after.path).state_dict[key])


def test_another_label_space_has_other_outputs(rows: tuple[Row, ...], folds: Folds, tmp_path: Path) -> None:
    """The model has one output for each class of the label space, and the card names them."""
    two = LabelSpace.flat(["low", "high"])
    coarse = [replace(row, label=int(row.label > 8)) for row in rows]
    found = fit(coarse, folds, tmp_path, settings=replace(SETTINGS, labels=two))
    assert open_checkpoint(found.path).num_classes == 2
    assert found.card.labels == two


def test_progress_and_oddities_are_told(rows: tuple[Row, ...], folds: Folds, tmp_path: Path) -> None:
    """The listener gets each epoch, and notices about images whose content differs from their suffix."""
    heard: list[object] = []

    class Ear(Listener):
        def notice(self, notice: Notice) -> None:
            heard.append(notice.code)

        def progress(self, stage: str, done: int, total: int) -> None:
            if stage != "decode":
                heard.append((stage, done, total))

        def step_done(self, text: str) -> None:
            heard.append(text.partition(", loss")[0])

    odd = tmp_path / "really.jpg"
    odd.write_bytes(rows[0].path.read_bytes())
    fit([replace(rows[0], path=odd), *rows[1:]], folds, tmp_path, settings=replace(SETTINGS, epochs=2), listener=Ear())
    first, second = "train bars_f1: epoch 1 of 2", "train bars_f1: epoch 2 of 2"
    stages = [("train bars_f1", done, 2) for done in range(3)]
    assert heard == ["I304", stages[0], first, stages[1], second, stages[2]]


def test_a_training_that_diverges_is_stopped(
    rows: tuple[Row, ...], folds: Folds, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A loss that is not finite is E440, even of a single batch, and no weights are written."""
    with pytest.raises(ModelError) as caught:
        fit(rows, folds, tmp_path, settings=replace(SETTINGS, learning_rate=1e30, epochs=3))
    assert caught.value.code == "E440"
    losses = iter([1.0, float("nan"), *[1.0] * 10])
    monkeypatch.setattr("checkpoints.training.epochs._backward", lambda *_, **__: torch.tensor(next(losses)))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the schedule steps without the optimizer
        with pytest.raises(ModelError, match="epoch 1 is nan"):
            fit(rows, folds, tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_picture_that_cannot_be_read_is_named(rows: tuple[Row, ...], folds: Folds, tmp_path: Path) -> None:
    """An empty file stops the training before it begins, and the error names it."""
    (tmp_path / "empty.jpg").touch()
    with pytest.raises(DataError, match=r"empty\.jpg") as caught:
        fit([*rows[1:], replace(rows[0], path=tmp_path / "empty.jpg")], folds, tmp_path)
    assert caught.value.code == "E302"


def test_an_architecture_unknown_to_timm_is_refused(rows: tuple[Row, ...], folds: Folds, tmp_path: Path) -> None:
    """A misspelled architecture is E204."""
    with pytest.raises(OptionError) as caught:
        fit(rows, folds, tmp_path, settings=replace(SETTINGS, arch="resnet_18"))
    assert caught.value.code == "E204"


def test_a_gpu_that_is_not_there_is_refused(
    rows: tuple[Row, ...], folds: Folds, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """CUDA without a GPU is E601, and never a silent training on the CPU."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(DeviceError) as caught:
        fit(rows, folds, tmp_path, device="cuda")
    assert caught.value.code == "E601"
