"""`ens distil` as it is typed: a blend's folds and labels, verified members, and the comparison with the blend."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from click.testing import CliRunner, Result
from PIL import Image

import exporters.export as export_module
from checkpoints.loading.open import Checkpoint
from checkpoints.training import average_choice
from checkpoints.training.average_choice import MEAN
from ensemble.blend.recipe import make_recipe
from ensemble.cli import ens
from ensemble.errors import Interrupted
from ensemble.events import Recorder
from ensemble.files import sha256_file
from ensemble.labels import LabelSpace
from ensemble.predictions.dataset import (
    COMPLETE,
    Part,
    hash_ids,
    part_path,
    read_predictions,
    write_complete,
    write_part,
)
from ensemble.predictions.read_members import read_members
from ensemble.runtime.model_file import find_card
from exporters.export import Exported
from tests.support.exports import each_network_once
from tests.support.toys import card, picture

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("one_thread", "exported_once")]

NAMES = ("cat", "dog", "owl")
LABELS = LabelSpace.flat(NAMES)
IDS = tuple(f"{name}/{i}.png" for name in NAMES for i in range(8))
NEW = ("n0.png", "n1.png", "n2.png")


@pytest.fixture(scope="module")
def exported_once() -> Iterator[None]:
    """Every test trains the same folds to the same weights."""
    with each_network_once():
        yield


def write_member(folder: Path, fold: int, ids: tuple[str, ...], *, group: str) -> None:
    held = tuple(name for i, name in enumerate(IDS) if i % 2 == fold)
    own = replace(card(f"{group}_f{fold}", labels=LABELS), group=group, fold=fold, holdout_sha256=hash_ids(held))
    rng = np.random.default_rng([fold, len(group), len(ids)])
    wanted = [NAMES.index(name.split("/")[0]) if "/" in name else 0 for name in ids]
    logits = (2 * np.eye(3)[wanted] + rng.normal(0, 1, (len(ids), 3))).astype(np.float32)
    path = part_path(folder / own.member, 0)
    write_part(path, Part(ids, {"identity": logits, "hflip": logits}, "test", own))
    write_complete(folder / own.member, [path], len(ids))


@pytest.fixture
def contest(tmp_path: Path) -> Path:
    for number, name in enumerate((*(f"train/{i}" for i in IDS), *(f"new/{i}" for i in NEW))):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(picture(number)).save(tmp_path / name)
    for fold in (0, 1):
        for group in ("a", "bb"):
            held = tuple(name for i, name in enumerate(IDS) if i % 2 == fold)
            write_member(tmp_path / "oof", fold, held, group=group)
            write_member(tmp_path / "seen", fold, IDS, group=group)
            write_member(tmp_path / "preds", fold, NEW, group=group)
    members = [read_predictions(path) for path in sorted((tmp_path / "preds").iterdir())]
    (tmp_path / "blend.json").write_text(make_recipe(members).to_json())
    return tmp_path


def run(root: Path, *words: object) -> Result:
    common = ("--arch", "test_resnet", "--size", 32, "--epochs", 1, "--augment", "none", "--device", "cpu")
    given = ("distil", root / "blend.json", root / "train", *common, "-o", root / "runs", "--member", "s", *words)
    return CliRunner().invoke(ens, [str(word) for word in given])


_IN_A_NEW_PROCESS = """
import sys
from ensemble.__main__ import run
print(run(sys.argv[1:]), *({"torch", "sklearn"} & sys.modules.keys()))
"""


def test_a_missing_fold_is_found_before_torch_is_loaded(contest: Path) -> None:
    """The out-of-fold predictions of one fold of two are E392 at once."""
    words = ("distil", contest / "blend.json", contest / "train", "--oof", contest / "oof" / "a_f0", "--member", "s")
    given = [sys.executable, "-c", _IN_A_NEW_PROCESS, *map(str, words), "--arch", "test_resnet"]
    done = subprocess.run(given, capture_output=True, text=True)
    assert "E392" in done.stderr
    assert "has the folds 0, and a student needs all of them" in done.stderr
    assert done.stdout.split() == ["3"]


def test_a_blend_becomes_one_network_per_fold(contest: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Members are written in the blend's folds and compared with it; a second run trains nothing again.

    So does one whose out-of-fold predictions are those of all images, with the folds in a file.

    With other labels for the same name it is refused (E442).
    """
    own = ("--oof", contest / "oof", "--predictions", contest / "seen")
    unlabeled = ("--pseudo", contest / "preds", "--pseudo-images", contest / "new")
    done = run(contest, *own, *unlabeled, "--json")
    assert done.exit_code == 0, done.output
    found = json.loads(done.stdout)
    folder = contest / "runs" / "s"
    assert [Path(one["path"]) for one in found["models"]] == [folder / "s_f0.onnx", folder / "s_f1.onnx"]
    assert all(one["verified"]["images"] == 12 for one in found["models"])
    compared = found["comparison"]
    assert (compared["student_passes"], compared["teacher_passes"], compared["optimistic"]) == (2, 8, False)
    assert compared["low"] <= compared["difference"] <= compared["high"]
    assert read_predictions(folder / "oof" / "s_f1").ids == IDS[1::2]
    folds = dict(line.split(",") for line in (contest / "runs" / "folds.csv").read_text().splitlines()[1:])
    assert folds == {name: str(i % 2) for i, name in enumerate(IDS)}
    assert "3 images without labels" in done.stderr
    assert "W391" not in done.stderr

    monkeypatch.setattr("ensemble.commands.distil._export", lambda *_: [])
    again = json.loads(run(contest, *own, *unlabeled, "--json").stdout)
    assert (again["kept"], again["comparison"]) == ([0, 1], compared)
    folds_file = contest / "runs" / "folds.csv"
    alone = run(contest, "--predictions", contest / "seen", "--folds", folds_file, *unlabeled, "--json")
    again = json.loads(alone.stdout)
    assert (again["kept"], again["comparison"]["student"]) == ([0, 1], compared["student"])
    assert ("I593" in alone.stderr, "I593" in done.stderr) == (True, False)
    for words in ((*own, *unlabeled, "--temperature", 3), own, ("--oof", contest / "oof")):
        refused = run(contest, *words)
        assert getattr(refused.exception, "code", None) == "E442"
        assert ("W391" in refused.stderr) == ("--predictions" not in words)


def test_fold_by_fold_is_one_run(contest: Path) -> None:
    """One fold is trained, exported and marked as optimistic; the last one brings the comparison, and all bytes are
    those of one run. A fold that does not exist is refused.
    """
    own = ("--oof", contest / "oof")
    whole = run(contest, *own, "--json")
    assert whole.exit_code == 0, whole.output
    folder = contest / "runs" / "s"
    names = [f"{name}{fold}{end}" for fold in (0, 1) for name, end in (("fold", ".safetensors"), ("s_f", ".onnx"))]
    names += [f"oof/s_f{fold}/{name}" for fold in (0, 1) for name in (part_path(Path(), 0).name, COMPLETE)]
    wanted = {name: (folder / name).read_bytes() for name in names}
    shutil.rmtree(contest / "runs")

    refused = run(contest, *own, "--only-fold", 2)
    assert getattr(refused.exception, "code", None) == "E204"
    assert not (contest / "runs").exists()
    second = run(contest, *own, "--only-fold", 1)
    assert second.exit_code == 0, second.output
    assert second.stdout.splitlines()[0] == "student and blend are compared once all folds are trained"
    of_second = [name for name in names if re.search(r"(fold|s_f)1\b", name)]
    assert [name for name in names if (folder / name).exists()] == of_second
    assert read_predictions(folder / "oof" / "s_f1").optimistic
    again = json.loads(run(contest, *own, "--only-fold", 1, "--json").stdout)
    assert (again["kept"], again["oof"], again["comparison"], len(again["models"])) == ([1], None, None, 1)
    first = json.loads(run(contest, *own, "--only-fold", 0, "--json").stdout)
    assert [Path(one["path"]).name for one in first["models"]] == ["s_f0.onnx", "s_f1.onnx"]
    assert first["comparison"] == json.loads(whole.stdout)["comparison"]
    assert {name: (folder / name).read_bytes() for name in names} == wanted


def test_a_fold_that_takes_its_mean_later_is_exported_again(contest: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With --swa the last fold decides for the others, and the model of a fold has the weights that it ends with."""
    monkeypatch.setattr(average_choice, "score_folds", lambda _, folders: float(folders[0].parent.name == MEAN))
    own = ("--oof", contest / "oof", "--swa", 2, "--epochs", 2, "--schedule", "constant")
    folder = contest / "runs" / "s"
    hashes = []
    for fold in (0, 1):
        done = run(contest, *own, "--only-fold", fold)
        assert done.exit_code == 0, done.output
        found = find_card(onnx.load(folder / "s_f0.onnx"), folder / "s_f0.onnx")
        assert found is not None
        assert found.checkpoint_sha256 == sha256_file(folder / "fold0.safetensors")
        hashes.append(found.checkpoint_sha256)
    assert hashes[0] != hashes[1]
    assert all(read_predictions(one).optimistic for one in (folder / "oof").iterdir())


def test_an_export_that_was_stopped_keeps_what_it_finished(contest: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Stopped at the second fold, the first one's model is not exported again, and the bytes are those of a quiet run;
    a run after that exports all again.
    """
    own = ("--oof", contest / "oof")
    assert run(contest, *own).exit_code == 0
    models = [contest / "runs" / "s" / f"s_f{fold}.onnx" for fold in (0, 1)]
    wanted = [path.read_bytes() for path in models]
    models[1].unlink()

    whole = export_module.export
    calls: list[str] = []

    def stop(checkpoint: Checkpoint, *arguments: Any, **options: Any) -> Exported:
        calls.append(checkpoint.path.name)
        if checkpoint.path.name == "fold1.safetensors" and len(calls) < 3:
            raise Interrupted("stopped", signal_number=15)
        return whole(checkpoint, *arguments, **options)

    monkeypatch.setattr(export_module, "export", stop)
    assert isinstance(run(contest, *own).exception, Interrupted)
    again = run(contest, *own)
    assert again.exit_code == 0, again.output
    assert "I495" in again.stderr
    assert calls == ["fold0.safetensors", "fold1.safetensors", "fold1.safetensors"]
    assert [path.read_bytes() for path in models] == wanted
    assert "I495" not in run(contest, *own).stderr
    assert len(calls) == 5


def test_a_student_of_out_of_fold_labels_says_so_wherever_it_is_learned_from(contest: Path) -> None:
    """Its folders record that they are optimistic, and reading them repeats W391; the comparison comes first."""
    done = run(contest, "--oof", contest / "oof")
    assert done.exit_code == 0, done.output
    assert done.stderr.count("W391") == 1
    lines = done.stdout.splitlines()
    assert lines[0].startswith("student and blend, macro F1 out of fold, decided by the most probable class: ")
    alone = next(line for line in lines if "out-of-fold macro F1" in line)
    assert alone.endswith(", of the student alone in the view identity, without what the recipe learned")
    oof = contest / "runs" / "s" / "oof"
    assert [json.loads((one / COMPLETE).read_text())["optimistic"] for one in sorted(oof.iterdir())] == [True, True]
    heard = Recorder()
    read = read_members([oof], LABELS, listener=heard)
    assert [one.optimistic for one in read] == [True, True]
    (said,) = [notice.message for notice in heard.notices if notice.code == "W391"]
    assert said.startswith("s, of ens distil without --predictions: ")
    assert "a blend that learns from it" in said
    scored = ["evaluate", str(oof / "s_f0"), "--truth", str(contest / "runs" / "s" / "truth.csv")]
    assert "W391" in CliRunner().invoke(ens, scored).stderr

    honest = Recorder()
    assert not any(one.optimistic for one in read_members([contest / "oof"], LABELS, listener=honest))
    assert [notice.code for notice in honest.notices] == []


def test_what_does_not_fit_is_refused_before_an_image_is_read(contest: Path) -> None:
    """Options that need each other, folds of others and predictions of a part of the models end with their codes."""
    (contest / "folds.csv").write_text("id,fold\n" + "".join(f"{name},{i % 3}\n" for i, name in enumerate(IDS)))
    oof = ("--oof", contest / "oof")
    for words, code in (
        ((), "E204"),
        (("--predictions", contest / "seen"), "E204"),
        (("--predictions", contest / "seen", "--folds", contest / "folds.csv"), "E511"),
        ((*oof, "--pseudo", contest / "preds"), "E204"),
        ((*oof, "--temperature", 0), "E204"),
        ((*oof, "--teacher-share", 2), "E204"),
        ((*oof, "--folds", contest / "folds.csv"), "E392"),
        ((*oof, "--predictions", contest / "seen" / "a_f0"), "E393"),
        (("--oof", contest / "oof" / "a_f0", "--oof", contest / "oof" / "a_f1"), "E517"),
    ):
        found = run(contest, *words)
        assert getattr(found.exception, "code", None) == code, (words, found.output)
        assert not (contest / "runs").exists()
