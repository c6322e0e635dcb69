"""A member over its folds: out-of-fold predictions match the weights, finished folds stay, settings never mix."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from checkpoints.data.folds import make_folds, read_folds, write_folds
from checkpoints.data.mask_contest import Row
from checkpoints.loading.open import build_model, open_checkpoint
from checkpoints.training.job import TrainJob
from checkpoints.training.settings import TrainSettings
from checkpoints.training.train_member import train_member
from checkpoints.training.train_repeats import train_repeats
from ensemble.blend.blend import blend
from ensemble.blend.recipe import make_recipe
from ensemble.card import Preprocess
from ensemble.errors import ModelError, OptionError, PredictionError
from ensemble.events import Listener
from ensemble.labels import MASK18
from ensemble.predictions.out_of_fold import gather_folds
from ensemble.predictions.read_members import read_members
from ensemble.predictions.truth import read_truth

pytestmark = pytest.mark.slow

SETTINGS = TrainSettings("test_efficientnet", Preprocess((32, 32)), epochs=1, learning_rate=0.01, augment="none")


def make_rows(folder: Path) -> tuple[Row, ...]:
    rng = np.random.default_rng(0)
    rows = []
    for number in range(72):
        path = folder / f"{number:02d}.png"
        Image.fromarray(rng.integers(0, 255, (32, 32, 3), dtype=np.uint8)).save(path)
        rows.append(Row(path.name, str(number // 18), 0, 0, 20, number % 18, path))
    return tuple(rows)


class Heard(Listener):
    """Keeps what is said about progress."""

    def __init__(self) -> None:
        self.said: list[str] = []

    def progress(self, stage: str, done: int, total: int) -> None:
        self.said.append(f"{stage} {done}")

    def detail(self, text: str) -> None:
        self.said.append(text)


def test_a_member_resumes_and_answers_out_of_fold(tmp_path: Path) -> None:
    """Training fold by fold gives the bytes of one run; `ens blend --oof` reads them; other settings are E442.

    What takes long is said: the epochs, and the predictions of what was held out.
    """
    rows = make_rows(tmp_path)
    folds = make_folds(rows, folds=2, seed=0)
    write_folds(tmp_path / "folds.csv", folds)
    assert read_folds(tmp_path / "folds.csv", rows) == folds

    heard = Heard()

    def fit(out: str, only_fold: int | None = None, settings: TrainSettings = SETTINGS):  # type: ignore[no-untyped-def]
        job = TrainJob(rows, folds, "m", settings, tmp_path / out)
        return train_member(job, only_fold=only_fold, listener=heard)

    with pytest.raises(OptionError, match=r"channels in 0\.\.1"):
        fit("c", settings=replace(SETTINGS, mean=(123.7, 116.3, 103.5)))
    whole = fit("a")
    stages = [stage for k in (0, 1) for stage in (f"train m_f{k}", f"predict what m_f{k} held out")]
    ends = [f"{stage} {done}" for stage in stages for done in (0, 1)]
    assert [one for one in heard.said if one.startswith(("train", "predict"))] == ends
    assert heard.said.count("epoch 1: the hold-out part is predicted") == 2
    assert fit("b", 1).oof is None
    rest = fit("b")
    assert rest.kept == (1,)
    parts = [f"oof/m_f{fold}/{file}" for fold in (0, 1) for file in ("part-00000.parquet", "_complete.json")]
    for name in ("fold0.safetensors", "fold1.safetensors", "truth.csv", *parts):
        assert (whole.folder / name).read_bytes() == (rest.folder / name).read_bytes()

    lost = rest.folder / parts[0]
    lost.unlink()  # the advice to run the command again was answered by the same error
    again = fit("b")
    assert (again.kept, lost.read_bytes()) == ((1,), (whole.folder / parts[0]).read_bytes())

    assert whole.oof is not None
    found = read_members([whole.oof], MASK18)
    assert [(m.member, m.group, m.fold, set(m.logits)) for m in found] == [
        ("m_f0", "m", 0, {"identity", "hflip"}),
        ("m_f1", "m", 1, {"identity", "hflip"}),
    ]
    truth = read_truth(whole.folder / "truth.csv", MASK18)
    assert truth.persons == tuple(row.person for row in rows)
    (gathered,) = gather_folds(found, truth)
    assert gathered.ids == truth.ids
    # each row is the prediction of the fold that did not see its person, by torch alone
    for row, logits in zip(rows, gathered.logits["identity"], strict=True):
        model = build_model(open_checkpoint(whole.folder / f"fold{folds.of_person[row.person]}.safetensors"))
        pixels = (np.asarray(Image.open(row.path)) / 255 - SETTINGS.mean) / SETTINGS.std
        with torch.no_grad():
            expected = model(torch.from_numpy(pixels.transpose(2, 0, 1)[np.newaxis]).float())[0]
        np.testing.assert_allclose(logits, expected.numpy(), atol=1e-4)
    with pytest.raises(PredictionError) as refused:  # they cannot be blended: each has other images
        blend(found, make_recipe(found))
    assert refused.value.code == "E504"

    frozen = replace(SETTINGS, init=whole.folder / "fold0.safetensors", freeze=2, learning_rate=1e-9)
    again = train_member(TrainJob(rows, folds, "n", frozen, tmp_path / "a"), only_fold=0)
    start, end = (open_checkpoint(m.folder / "fold0.safetensors").state_dict for m in (whole, again))
    assert np.array_equal(start["conv_stem.weight"], end["conv_stem.weight"])
    assert not np.array_equal(start["classifier.weight"], end["classifier.weight"])
    with pytest.raises(ModelError) as caught:
        fit("a", settings=replace(SETTINGS, loss="focal"))
    assert caught.value.code == "E442"


def test_a_second_fold_split_is_added_to_a_trained_member_and_both_are_learned_from(tmp_path: Path) -> None:
    """The first split is kept, each has settings of its own, and every image has a prediction of both in oof/."""
    rows = make_rows(tmp_path)
    jobs = [
        TrainJob(rows, make_folds(rows, folds=2, seed=repeat), "m", SETTINGS, tmp_path / "runs", repeat=repeat)
        for repeat in (0, 1)
    ]
    assert len(train_repeats(jobs[:1]).splits) == 1
    done = train_repeats(jobs)
    assert [split.kept for split in done.splits] == [(0, 1), ()]
    assert [split.kept for split in train_repeats(jobs).splits] == [(0, 1), (0, 1)]
    folder = tmp_path / "runs" / "m"
    settings = [json.loads((folder / name / "settings.json").read_text()) for name in (".", "repeat1")]
    assert [one.get("repeat") for one in settings] == [None, 1]
    assert settings[0]["rows"] != settings[1]["rows"]
    found = read_members([folder / "oof"], MASK18)
    assert [(one.member, one.group, one.fold, one.repeat) for one in found] == [
        ("m_f0", "m", 0, 0),
        ("m_f1", "m", 1, 0),
        ("m_r1_f0", "m", 0, 1),
        ("m_r1_f1", "m", 1, 1),
    ]
    (gathered,) = gather_folds(found, read_truth(folder / "truth.csv", MASK18))
    assert gathered.looks is not None
    assert gathered.looks["identity"].shape == (2, 72, 18)
