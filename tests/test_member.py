"""A member over its folds: answers out of fold that fit the files, finished folds stay, and settings do not mix."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from checkpoints.contest import Row
from checkpoints.folds import make_folds, read_folds, write_folds
from checkpoints.member import train_member
from checkpoints.open import open_checkpoint
from checkpoints.train import Settings
from ensemble.card import Preprocess
from ensemble.errors import ModelError
from ensemble.evaluate import Truth
from ensemble.holdouts import gather_folds
from ensemble.labels import MASK18
from ensemble.predictions import read_predictions

SETTINGS = Settings("test_efficientnet", Preprocess((32, 32)), epochs=1, learning_rate=0.01, augment="none")


def make_rows(folder: Path) -> tuple[Row, ...]:
    rng = np.random.default_rng(0)
    rows = []
    for number in range(72):
        path = folder / f"{number:02d}.png"
        Image.fromarray(rng.integers(0, 255, (32, 32, 3), dtype=np.uint8)).save(path)
        rows.append(Row(path.name, str(number // 18), 0, 0, 20, number % 18, path))
    return tuple(rows)


def test_a_member_resumes_and_answers_out_of_fold(tmp_path: Path) -> None:
    """Fold by fold gives the bytes of one go; `ens blend --oof` takes the folder; other settings are E442."""
    rows = make_rows(tmp_path)
    folds = make_folds(rows, folds=2, seed=0)
    write_folds(tmp_path / "folds.csv", folds)
    assert read_folds(tmp_path / "folds.csv", rows) == folds

    def fit(out: str, only_fold: int | None = None, settings: Settings = SETTINGS):  # type: ignore[no-untyped-def]
        return train_member(rows, folds, member="m", settings=settings, seed=0, out=tmp_path / out, only_fold=only_fold)

    whole = fit("a")
    assert fit("b", 1).oof is None
    rest = fit("b")
    assert rest.kept == (1,)
    for name in ("fold0.safetensors", "fold1.safetensors", "oof/part-00000.parquet", "oof/_complete.json"):
        assert (whole.folder / name).read_bytes() == (rest.folder / name).read_bytes()

    found = read_predictions(whole.oof)
    assert (found.member, found.group, found.fold, set(found.logits)) == ("m", "m", None, {"identity", "hflip"})
    truth = Truth(
        tuple(row.id for row in rows), np.array([r.label for r in rows]), tuple(r.person for r in rows), MASK18
    )
    (gathered,) = gather_folds([found], truth)
    assert gathered.ids == truth.ids

    again = train_member(
        rows,
        folds,
        member="n",
        settings=replace(SETTINGS, init=whole.folder / "fold0.safetensors", freeze=2, learning_rate=1e-9),
        seed=0,
        out=tmp_path / "a",
        only_fold=0,
    )
    start, end = (open_checkpoint(m.folder / "fold0.safetensors").state_dict for m in (whole, again))
    assert np.array_equal(start["conv_stem.weight"], end["conv_stem.weight"])
    assert not np.array_equal(start["classifier.weight"], end["classifier.weight"])
    with pytest.raises(ModelError) as caught:
        fit("a", settings=replace(SETTINGS, loss="focal"))
    assert caught.value.code == "E442"
