"""The audit as a whole: findings of every kind, the table, the page, and the fixes that training reads."""

from __future__ import annotations

import csv
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner, Result
from PIL import Image

from checkpoints.audit import audit
from checkpoints.audit.audit import AuditSettings, audit_dataset
from checkpoints.audit.findings import Finding, fixes_table
from checkpoints.data.dataset import Dataset, read_dataset
from checkpoints.data.folds import Folds
from checkpoints.data.table_options import TableOptions
from ensemble.analysis.html import STYLE
from ensemble.blend.recipe import make_recipe
from ensemble.cli import ens
from ensemble.errors import DataError, EnsError, OptionError, PredictionError
from ensemble.events import Recorder
from ensemble.kept_arrays import KeptArrays
from ensemble.labels import MASK18
from ensemble.predictions.dataset import Predictions
from ensemble.predictions.read_members import find_members
from tests.checkpoints.audit.test_near_duplicates import crop, flip, recoded, scene
from tests.harness.kills import contents

STEMS = ("incorrect_mask", "mask1", "mask2", "mask3", "mask4", "mask5", "normal")


@pytest.fixture(scope="module")
def contest(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twelve people of seven images each; the images of one are copies of another's."""
    root = tmp_path_factory.mktemp("contest") / "train"
    lines = ["id,gender,race,age,path"]
    for person in range(12):
        gender = ("male", "female")[person % 2]
        lines.append(f"{person},{gender},x,{25 if person < 6 else 65},p{person}")
        folder = root / "images" / f"p{person}"
        folder.mkdir(parents=True)
        for place, stem in enumerate(STEMS):
            image = scene(10 * person + place, size=(60, 80))
            if (person, stem) == (11, "mask1"):
                image = flip(scene(10 * 2 + 1, size=(60, 80)))  # mask1 of person 2, of another gender
            image.save(folder / f"{stem}.png")
    (root / "train.csv").write_text("\n".join(lines) + "\n")
    return root


def predict(data: Dataset, truth: np.ndarray[Any, Any]) -> Predictions:
    """Out-of-fold predictions of a model that knows these classes nearly always."""
    rng = np.random.default_rng(0)
    logits = rng.normal(0, 0.3, (len(data.rows), len(data.labels))).astype(np.float32)
    logits[np.arange(len(truth)), truth] += 10
    ids = tuple(row.id for row in data.rows)
    return Predictions("r18", "r18", None, data.labels, ids, {"identity": logits}, "0" * 64)


def read_fixed(contest: Path, tmp_path: Path, audit: Any, data: Dataset) -> Dataset:
    text, count = fixes_table(data, audit.findings)
    (tmp_path / "fixes.csv").write_bytes(text)
    assert count == len(text.splitlines()) - 1
    return read_dataset(contest, fixes=[tmp_path / "fixes.csv"])


def test_the_fixes_restore_the_true_labels(contest: Path, tmp_path: Path) -> None:
    """A wrong gender is one fix per person, exchanged images are a swap, another class is one image's label."""
    data = read_dataset(contest)
    true = np.array([row.label for row in data.rows])
    for i, row in enumerate(data.rows):
        if row.person == "4":  # annotated male: female in truth
            true[i] += 3
        if row.person == "7" and row.mask in {1, 2}:
            true[i] += 6 if row.mask == 1 else -6
        if row.id == "p9/mask2.png":  # worn in the annotation, not worn in truth
            true[i] += 12
    found = audit_dataset(data, predictions=[predict(data, true)], settings=AuditSettings(0.8))
    fixed = read_fixed(contest, tmp_path, found, data)
    fields = [(line["id"], line["field"]) for line in csv.DictReader((tmp_path / "fixes.csv").read_text().splitlines())]
    assert sorted(fields) == [("4", "gender"), ("7", "swap"), ("p9/mask2.png", "label")]
    assert [row.label for row in fixed.rows] == true.tolist()


def test_copies_leaks_and_folds_are_told_apart(contest: Path, tmp_path: Path) -> None:
    """A copy of an evaluation image is a leak, one of another fold's image is told, each with how it was made."""
    evaluation = tmp_path / "eval"
    evaluation.mkdir()
    crop(scene(33, size=(60, 80)), 0.05, 0.1, 0.95, 0.95).save(evaluation / "a.png")
    recoded(scene(45, size=(60, 80)), 80).save(evaluation / "b.jpg")
    scene(999).save(evaluation / "c.png")
    data, recorder = read_dataset(contest), Recorder()
    folds = Folds(2, {str(person): int(person >= 6) for person in range(12)})
    found = audit_dataset(data, evaluation=evaluation, folds=folds, listener=recorder)
    leaks = {(one.id, one.other, one.why) for one in found.findings if one.kind == "leak"}
    assert leaks == {("p3/mask3.png", "a.png", "cropped copy"), ("p4/mask5.png", "b.jpg", "re-encoded copy")}
    (across,) = [one for one in found.findings if one.kind == "folds"]
    assert (across.id, across.other) == ("p11/mask1.png", "p2/mask1.png")
    assert across.why == "mirrored copy, with another label"
    assert not across.sure, "which of the labels is right is not known"
    assert (found.images, found.evaluation) == (84, 3)
    assert [notice.code for notice in recorder.notices] == ["I862"]
    text, count = fixes_table(data, found.findings)
    assert count == 2
    assert b"p3/mask3.png,drop,,audit" in text
    without = audit_dataset(data)
    assert {one.kind for one in without.findings} == {"duplicate"}


@pytest.mark.parametrize(
    ("images", "long"), [(60_000, "29 minutes"), (100_000, "80 minutes"), (1_000_000, "133 hours")]
)
def test_the_time_of_crops_is_that_of_a_search_that_grows_with_the_square(images: int, long: str) -> None:
    """W861 said "may take hours" of minutes; twice the images take four times as long."""
    assert f"--crops yes does, for about {long} of one core" in audit._why_no_crops(images)


def test_crops_are_left_out_above_the_bound_and_looked_for_on_demand(
    contest: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of more images than the bound W861 says so, unless --crops decides."""
    monkeypatch.setattr(audit, "MOST_CROPPED", 50)
    data = read_dataset(contest)
    for crops, said in ((None, 1), (True, 0), (False, 0)):
        heard = Recorder()
        audit_dataset(data, settings=AuditSettings(crops=crops), listener=heard)
        assert [notice.code for notice in heard.notices].count("W861") == said


def test_predictions_of_other_images_are_refused_before_images_are_read(
    contest: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A member that lacks an image is an error, and no image was decoded for it."""
    data = read_dataset(contest)
    member = predict(data, np.zeros(len(data.rows), np.intp))
    short = replace(member, ids=member.ids[1:], logits={"identity": member.logits["identity"][1:]})
    monkeypatch.setattr("checkpoints.audit.audit.make_thumbnails", None)
    with pytest.raises(EnsError, match="E330"):
        audit_dataset(data, predictions=[short])
    with pytest.raises(OptionError, match="E204"):
        AuditSettings(1.3)


def test_a_recipe_judges_by_its_own_weights(contest: Path) -> None:
    """The model with all the weight decides; predictions of other models than the recipe's are refused."""
    data = read_dataset(contest)
    given = np.array([row.label for row in data.rows])
    true = given + 3 * np.array([row.person == "4" for row in data.rows])
    knows, echo = predict(data, true), replace(predict(data, given), member="echo", group="echo")
    echo = replace(echo, logits={view: 3 * logits for view, logits in echo.logits.items()})
    for weights, people in (({"r18": 1.0, "echo": 0.0}, {"4"}), ({"r18": 0.0, "echo": 1.0}, set())):
        recipe = make_recipe([knows, echo], weights=weights)
        found = audit_dataset(data, predictions=[echo, knows], recipe=recipe)
        assert found.models == ("recipe",)
        assert {one.group for one in found.findings if one.kind == "label"} == people
    with pytest.raises(PredictionError, match="E517"):
        audit_dataset(data, predictions=[knows], recipe=recipe)
    with pytest.raises(OptionError, match="--recipe needs --oof"):
        audit_dataset(data, recipe=recipe)


def test_several_models_and_what_is_joined_are_said(contest: Path) -> None:
    """Each axis has a line: the noise, the groups that were joined, the weights of the models."""
    data = read_dataset(contest)
    given = np.array([row.label for row in data.rows])
    members = [predict(data, given), replace(predict(data, given[::-1]), member="bad", group="bad")]
    found = audit_dataset(data, predictions=members)
    mask, gender, age = found.render().splitlines()[:3]
    assert "joined" not in mask
    assert "gender: about" in gender
    assert "the evidence of each of 12 groups is joined" in gender
    assert "weights bad" in age
    assert "labels with a score of 0.01 or more may be wrong" in found.render()
    assert set(found.as_dict()["axes"]["age"]["weights"]) == {"bad", "r18"}
    apart = audit_dataset(data, predictions=members, settings=AuditSettings(join=("mask",)))
    assert [axis.joined for axis in apart.axes] == [12, 0, 0]
    assert apart.axes[0].mixed > 0


def test_several_labels_are_fixed_together(tmp_path: Path) -> None:
    """The labels of an image are given anew, with what is missing and without what is too much."""
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    Image.new("RGB", (8, 8)).save(tmp_path / "b.png")
    (tmp_path / "train.csv").write_text("image,rain,snow,fog\na.png,1,1,0\nb.png,1,0,1\n")
    data = read_dataset(tmp_path / "train.csv", table=TableOptions(activation="sigmoid"))
    findings = [
        Finding("label", 0.99, "a.png", axis="rain", given="present", suggested="absent", sure=True),
        Finding("label", 0.98, "a.png", axis="fog", given="absent", suggested="present", sure=True),
        Finding("label", 0.9, "b.png", axis="fog", given="present", suggested="absent"),
    ]
    text, count = fixes_table(data, findings)
    (tmp_path / "fixes.csv").write_bytes(text)
    assert count == 1
    fixed = read_dataset(
        tmp_path / "train.csv", fixes=[tmp_path / "fixes.csv"], table=TableOptions(activation="sigmoid")
    )
    names = [{fixed.labels.names[label] for label in row.present or ()} for row in fixed.rows]
    assert names == [{"snow", "fog"}, {"rain", "fog"}]


def test_an_audit_that_was_stopped_resumes(contest: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Stopped at each step, the command searches for nothing twice, and ends with the bytes of a quiet audit."""

    def audit(folder: Path) -> Result:
        return CliRunner().invoke(ens, ["audit", str(contest), "-o", str(folder)])

    assert audit(tmp_path / "quiet").exit_code == 0
    whole, added = KeptArrays.add, list[str]()

    def stop(self: KeptArrays, step: str, values: Any) -> None:
        whole(self, step, values)
        if not step.startswith(("grey", "candidates")) or step.endswith("windows"):  # else the next belongs to it
            added.append(step)
            raise KeyboardInterrupt

    monkeypatch.setattr(KeptArrays, "add", stop)
    done = audit(tmp_path / "stopped")
    while done.exit_code:
        assert list((tmp_path / "stopped").glob(".audit-*.state"))
        done = audit(tmp_path / "stopped")
    assert "I863" in done.stderr
    assert len(added) == len(set(added)) >= 2 + 2 + 2
    assert contents(tmp_path / "stopped") == contents(tmp_path / "quiet")


def test_the_command_writes_a_table_a_page_and_fixes(contest: Path, tmp_path: Path) -> None:
    """Probabilities of any tool do; what the files hold is counted, and an id with markup cannot break the page."""
    data = read_dataset(contest)
    true = np.array([row.label + 3 * (row.person == "4") for row in data.rows])
    rows = np.full((len(true), len(MASK18)), 0.001)
    rows[np.arange(len(true)), true] = 1 - 0.017
    header = ["ImageID", *(str(label) for label in range(len(MASK18)))]
    lines = [[row.id, *map(str, values)] for row, values in zip(data.rows, rows, strict=True)]
    (tmp_path / "oof.csv").write_text("\n".join(",".join(line) for line in [header, *lines]) + "\n")
    command = ["audit", str(contest), "--oof", str(tmp_path / "oof.csv"), "--as", "probabilities", "--json"]
    done = CliRunner().invoke(ens, [*command, "-o", str(tmp_path / "out"), "--crops", "no"])
    assert done.exit_code == 0, done.output
    value = json.loads(done.stdout)
    table = list(csv.DictReader((tmp_path / "out" / "audit.csv").read_text().splitlines()))
    assert value["label"] == sum(line["kind"] == "label" for line in table) == 7
    assert {(line["group"], line["given"], line["suggested"]) for line in table if line["kind"] == "label"} == {
        ("4", "male", "female")
    }
    assert value["duplicate"] == 1
    page = (tmp_path / "out" / "audit.html").read_text()
    assert "p4/" in page
    assert "male &rarr; female" in page
    assert "http:" not in page
    assert "https:" not in page
    assert 'class="finding' in page
    assert f"<style>{STYLE}</style>" in page, "the look of the report and of ens data"
    written = (tmp_path / "out" / "fixes.csv").read_text()
    assert written.count("\n") == 1 + value["fixes"]

    again = [*command, "-o", str(tmp_path / "out"), "--crops", "no"]
    assert "W864" not in CliRunner().invoke(ens, again).stderr
    edited = f"{written}1,drop,,me,,\n"
    (tmp_path / "out" / "fixes.csv").write_text(edited)
    assert "W864" in CliRunner().invoke(ens, again).stderr, "what the user wrote is not lost"
    assert (tmp_path / "out" / "fixes.1.csv").read_text() == edited
    assert (tmp_path / "out" / "fixes.csv").read_text() == written


def test_predictions_of_images_that_fixes_dropped_are_passed_over(contest: Path, tmp_path: Path) -> None:
    """The other findings are those of an audit of all; images without a prediction are refused with what to do."""
    whole = read_dataset(contest)
    true = np.array([row.label + 3 * (row.person == "4") for row in whole.rows])
    (tmp_path / "fixes.csv").write_text("id,field,value,source\n0,drop,,audit\n")
    recorder, predicted = Recorder(), predict(whole, true)
    part = read_dataset(contest, fixes=[tmp_path / "fixes.csv"])
    found = audit_dataset(part, predictions=[predicted], settings=AuditSettings(crops=False), listener=recorder)
    assert len(part.rows) == len(whole.rows) - 7
    assert {one.group for one in found.findings if one.kind == "label"} == {"4"}
    assert [one.message for one in recorder.notices if one.code == "I330"] == [
        f"{predicted.member}: 7 predictions are of images that the labels do not have; passed over"
    ]
    with pytest.raises(DataError) as caught:
        audit_dataset(whole, predictions=[predict(part, np.array([row.label for row in part.rows]))])
    assert caught.value.code == "E330"
    assert "--fixes" in str(caught.value.hint)


def test_the_training_images_are_no_evaluation_images(contest: Path) -> None:
    """Every training image would be a copy to drop."""
    with pytest.raises(OptionError, match="84 of the 84 training images themselves"):
        audit_dataset(read_dataset(contest), evaluation=contest / "images")


def test_a_trained_members_folder_is_told_from_its_predictions(tmp_path: Path) -> None:
    """The folder above oof has a truth.csv, which would be read as predictions."""
    part = tmp_path / "r18" / "oof" / "r18_f0" / "part-00000.parquet"
    part.parent.mkdir(parents=True)
    part.touch()
    (tmp_path / "r18" / "settings.json").write_text("{}")
    (tmp_path / "r18" / "truth.csv").write_text("ImageID,ans\na,0\n")
    with pytest.raises(PredictionError) as caught:
        find_members([tmp_path / "r18"])
    assert (caught.value.code, caught.value.hint) == ("E514", f"give {tmp_path / 'r18' / 'oof'}")
