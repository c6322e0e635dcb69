"""A sample with one row per image and class lists the images of `ens predict`, and is filled by `ens submit` alike."""

from __future__ import annotations

import csv
import io
from dataclasses import replace
from pathlib import Path

import pytest

from ensemble.__main__ import run
from ensemble.events import Recorder
from ensemble.images.listing import read_ids
from ensemble.labels import LabelSpace
from tests.support.toys import card, write_model, write_pictures

NAMES = ("rust", "scab", "patient_overall")


@pytest.mark.parametrize("form", ["joined", "two columns", "numbered rows"])
def test_predict_blend_and_submit_take_a_long_sample(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], form: str
) -> None:
    """The images are listed once, the unlisted one is left out, and submit writes the bytes of predict and blend."""
    monkeypatch.chdir(tmp_path)
    images = [f"1.2.{number}.jpg" for number in range(4)]
    write_pictures(tmp_path / "images", images)
    model = replace(card("net", labels=LabelSpace.flat(NAMES)), activation="sigmoid")
    write_model(tmp_path / "models", model)
    ids = [name.removesuffix(".jpg") for name in images[2::-1]]
    if form == "joined":
        lines = ["row_id,fractured", *(f"{one}_{name},0.5" for one in ids for name in NAMES)]
    elif form == "numbered rows":
        pairs = [(one, name) for name in NAMES for one in ids]
        lines = ["row_id,image,class,score", *(f"{i},{one},{name},0" for i, (one, name) in enumerate(pairs))]
    else:
        lines = ["image,class,score", *(f"{one},{name},0" for name in NAMES for one in ids)]
    (tmp_path / "sample.csv").write_text("\n".join(lines) + "\n")
    assert run(["predict", "models", "--images", "images", "--ids", "sample.csv", "-o", "preds"]) == 0
    assert f"9 rows of one image and class each: 3 images, such as {ids[0]}" in capsys.readouterr().err
    sheet = ["--like", "sample.csv"]
    assert run(["blend", "preds/net", *sheet, "-o", "out.csv", "--save", "blend.json"]) == 0
    assert run(["submit", "blend.json", "--images", "images", "--models", "models", *sheet, "-o", "again.csv"]) == 0
    assert (tmp_path / "out.csv").read_bytes() == (tmp_path / "again.csv").read_bytes()
    rows = list(csv.reader(io.StringIO((tmp_path / "out.csv").read_text())))
    assert [row[:-1] for row in rows[1:]] == [line.split(",")[:-1] for line in lines[1:]]
    assert len({row[-1] for row in rows[1:]}) == 9


def test_ids_that_are_not_of_classes_stay(tmp_path: Path) -> None:
    """Views of a patient end alike without being classes, and ids that do not end alike ask for no classes."""
    (tmp_path / "views.csv").write_text("image,label\n1_left,0\n1_right,0\n2_left,0\n2_right,0\n")
    heard = Recorder()
    assert len(read_ids(tmp_path / "views.csv", classes=lambda: NAMES, listener=heard)) == 4
    assert not heard.notices
    (tmp_path / "plain.csv").write_text("image,label\na,0\nb,0\n")

    def never() -> tuple[str, ...]:
        raise AssertionError("no model is to be read")

    assert read_ids(tmp_path / "plain.csv", classes=never) == ("a", "b")
