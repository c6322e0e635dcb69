"""Folders of files are read as members, and out-of-fold files find their members by name, or are refused."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from ensemble.errors import PredictionError
from ensemble.events import Recorder
from ensemble.labels import LabelSpace
from ensemble.learn.choose_recipe import LearnFrom, choose_recipe
from ensemble.predictions.dataset import Predictions
from ensemble.predictions.external import ExternalOptions
from ensemble.predictions.match_members import match_out_of_fold
from ensemble.predictions.read_members import read_members
from tests.support.members import draw_logits, make_member

PETS = LabelSpace.flat(["cat", "dog", "fox", "owl"])
LOGITS = ExternalOptions("logits")
TRAIN, TEST = [f"p{i:03d}.jpg" for i in range(30)], [f"q{i:03d}.jpg" for i in range(30)]


def write_files(folder: Path) -> Path:
    """A folder as notebooks leave it: one member per kind of file, and what lies beside them."""
    folder.mkdir()
    np.savez(folder / "a.npz", ids=TRAIN, identity=draw_logits(0))
    rows = "".join(f"{i},{','.join(map(str, row))}\n" for i, row in zip(TRAIN, draw_logits(1).tolist(), strict=True))
    (folder / "b.csv").write_text("id,cat,dog,fox,owl\n" + rows)
    np.save(folder / "c.npy", draw_logits(2))
    (folder / "ids.csv").write_text("id\n" + "".join(f"{i}\n" for i in TRAIN))
    (folder / "truth.csv").write_text("ImageID,ans\n" + "".join(f"{i},{n % 4}\n" for n, i in enumerate(TRAIN)))
    (folder / "notes.md").write_text("seed 0\n")
    np.save(folder / "y.npy", np.arange(30))
    return folder


def test_a_folder_of_files_is_its_members_and_the_rest_is_named(tmp_path: Path) -> None:
    """Tables and matrices are members, the truth is known, and lists, flat arrays and notes are named."""
    heard = Recorder()
    folder = write_files(tmp_path / "oof")
    found = read_members([folder], PETS, options=LOGITS, beside=[folder / "truth.csv"], listener=heard)
    assert [one.member for one in found] == ["a", "b", "c"]
    for seed, one in enumerate(found):
        np.testing.assert_allclose(one.logits["identity"], draw_logits(seed), rtol=1e-6)
        assert one.ids == tuple(TRAIN)
    (left_out,) = [notice.message for notice in heard.notices if notice.code == "I591"]
    assert all(name in left_out for name in ("ids.csv", "notes.md", "y.npy")), left_out


def test_two_files_of_one_member_are_refused(tmp_path: Path) -> None:
    """A table and an array of one name would be one member; both files are named."""
    folder = write_files(tmp_path / "oof")
    np.savez(folder / "b.npz", ids=TRAIN, identity=draw_logits(1))
    with pytest.raises(PredictionError) as caught:
        read_members([folder], PETS, options=LOGITS)
    assert caught.value.code == "E515"
    assert "b.csv" in str(caught.value)
    assert "b.npz" in str(caught.value)


def member(name: str, ids: Sequence[str] = TEST, **fields: str) -> Predictions:
    return make_member(name, draw_logits(3, len(ids)), ids=ids, labels=PETS, **fields)


def groups_of(members: Sequence[Predictions]) -> list[tuple[str, int | None]]:
    return [(one.group, one.fold) for one in members]


@pytest.mark.parametrize(
    ("oof", "test", "expected"),
    [
        (["r18"], ["r18"], ([("r18", None)], [("r18", None)])),
        (["oof_r18"], ["test_r18"], ([("test_r18", None)], [("test_r18", None)])),
        (["R18-OOF"], ["preds.r18"], ([("preds.r18", None)], [("preds.r18", None)])),
        (["r18"], ["r18_f0", "r18_fold1"], ([("r18", None)], [("r18", 0), ("r18", 1)])),
        (["exp_oof"], ["exp_test-cv0", "exp_test-cv1"], ([("exp_test", None)], [("exp_test", 0), ("exp_test", 1)])),
        (["other"], ["r18"], ([("other", None)], [("r18", None)])),
    ],
)
def test_names_tell_which_out_of_fold_file_is_whose(
    oof: list[str], test: list[str], expected: tuple[list[tuple[str, int | None]], list[tuple[str, int | None]]]
) -> None:
    """Words such as oof and test name no model, and a number after fold is that of a fold; the rest is not guessed."""
    heard = Recorder()
    held_out, members = match_out_of_fold([member(n, TRAIN) for n in oof], list(map(member, test)), listener=heard)
    assert (groups_of(held_out), groups_of(members)) == expected
    assert ([n.code for n in heard.notices] == []) == (oof == test or oof == ["other"])


def test_files_named_like_folds_are_one_member_only_if_they_share_no_image() -> None:
    """Two halves are folds of one model; two predictions of all images are two members."""
    names = ["m_f0", "m_f1"]
    halves = [member("m_f0", TRAIN[:15]), member("m_f1", TRAIN[15:])]
    oof, members = match_out_of_fold(halves, list(map(member, names)), listener=Recorder())
    assert groups_of(oof) == groups_of(members) == [("m", 0), ("m", 1)]
    whole = [member(name, TRAIN) for name in names]
    oof, members = match_out_of_fold(whole, list(map(member, names)), listener=Recorder())
    assert groups_of(oof) == groups_of(members) == [("m_f0", None), ("m_f1", None)]


def test_files_of_two_fold_splits_keep_their_split() -> None:
    """A number after r is that of a split, unless it belongs to the model's name."""
    halves = [TRAIN[:15], TRAIN[15:]]
    oof = [member(f"net_r18_r{r}_f{f}", halves[f]) for r in (0, 1) for f in (0, 1)]
    found, _ = match_out_of_fold(oof, [member("net_r18")], listener=Recorder())
    assert [(one.group, one.repeat, one.fold) for one in found] == [("net_r18", r, f) for r in (0, 1) for f in (0, 1)]
    found, _ = match_out_of_fold([member(f"net_r18_f{f}", halves[f]) for f in (0, 1)], [], listener=Recorder())
    assert [(one.group, one.repeat) for one in found] == [("net_r18", 0)] * 2


def test_two_files_that_may_be_one_members_are_refused() -> None:
    """Neither of two files is preferred."""
    with pytest.raises(PredictionError) as caught:
        match_out_of_fold([member("oof_m", TRAIN), member("m_val", TRAIN)], [member("test_m")], listener=Recorder())
    assert caught.value.code == "E590"
    assert "oof_m" in caught.value.message


def test_what_does_not_match_is_refused_before_anything_is_learned(tmp_path: Path) -> None:
    """Members without a partner (E517) and other ids than the truth's (E330) are errors that name them."""
    truth = tmp_path / "truth.csv"
    truth.write_text("ImageID,ans\n" + "".join(f"{i},{n % 4}\n" for n, i in enumerate(TRAIN)))
    heard = Recorder()
    cases = {"E517": [member("a", TRAIN), member("b", TRAIN)], "E330": [member("a", TEST)]}
    for code, oof in cases.items():
        with pytest.raises(Exception, match=r"\bb\b" if code == "E517" else "lacks 30 of 30 ids") as caught:
            choose_recipe([member("a")], LearnFrom(oof, truth), listener=heard)
        assert getattr(caught.value, "code", "") == code
    assert not [one for one in heard.notices if one.code == "I526"]
