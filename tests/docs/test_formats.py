"""The file formats are kept: files written by version 0.1.0 are read, and written again with the same bytes.

They are in the folder golden; a change of one of them breaks what users have on their disks.
"""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from ensemble.blend.recipe import Group, Recipe
from ensemble.card import FaceCrop, ModelCard, Preprocess
from ensemble.images.face_boxes import Face, read_boxes, read_faces, write_boxes
from ensemble.predictions.dataset import read_part, read_predictions, write_complete, write_part
from tests.docs.pages import Page

GOLDEN = Path(__file__).parent / "golden"
MEMBER = GOLDEN / "resnet18_f0"
FORMATS = Page("docs/formats.md")


def section(title: str) -> str:
    """One section of the page on formats."""
    return FORMATS.text.partition(f"\n## {title}\n")[2].partition("\n## ")[0]


def require_same_parquet(written: Path, golden: Path) -> None:
    """The same rows, schema and metadata, and the same bytes where one version of pyarrow wrote both."""
    assert pq.read_table(written).equals(pq.read_table(golden), check_metadata=True)
    if pq.read_metadata(written).created_by == pq.read_metadata(golden).created_by:
        assert written.read_bytes() == golden.read_bytes()


@pytest.mark.parametrize("name", ["card.json", "card-plain.json"])
def test_cards_keep_their_bytes(name: str) -> None:
    """A card with every field, and one with none that may be left out, are read and written again as they were."""
    text = (GOLDEN / name).read_text(encoding="utf-8")
    assert ModelCard.from_json(text).to_json() == text


def test_the_fields_of_a_card_are_read_as_what_they_mean() -> None:
    """The golden card's values are where the page says."""
    card = ModelCard.from_json((GOLDEN / "card.json").read_text(encoding="utf-8"))
    assert (card.member, card.group, card.fold, card.head, card.precision) == (
        "resnet18_f0", "resnet18", 0, "axes", "int8",
    )  # fmt: skip
    assert card.class_counts == (40, 30, 20, 10)
    assert card.preprocess == Preprocess(
        (224, 160), "pad", "bicubic", 0.875, (1, 2, 3), FaceCrop(0.25, (0.5, 0.4, 0.75))
    )


@pytest.mark.parametrize("name", ["blend.json", "blend-mean.json"])
def test_recipes_keep_their_bytes(name: str) -> None:
    """A recipe with every field, and a plain mean, are read and written again as they were."""
    text = (GOLDEN / name).read_text(encoding="utf-8")
    assert Recipe.from_json(text).to_json() == text


@pytest.mark.parametrize("name", ["part-00000.parquet", "filled.parquet"])
def test_parts_keep_their_bytes(name: str, tmp_path: Path) -> None:
    """A part of predictions, and one of filled rows, are read and written again as they were."""
    part = read_part(MEMBER / name)
    write_part(tmp_path / name, part)
    require_same_parquet(tmp_path / name, MEMBER / name)


def test_finished_predictions_keep_their_bytes(tmp_path: Path) -> None:
    """A finished folder is read, and declared finished again with the same bytes."""
    found = read_predictions(MEMBER)
    assert found.ids == ("a.jpg", "사진/b.png", "bad.jpg")
    assert found.filled == ("bad.jpg",)
    assert found.logits["hflip"].tolist()[0] == [1.0, 1.125, 1.25, 1.375]
    for path in MEMBER.glob("*.parquet"):
        (tmp_path / path.name).write_bytes(path.read_bytes())
    write_complete(tmp_path, [tmp_path / "part-00000.parquet", tmp_path / "filled.parquet"], len(found))
    assert (tmp_path / "_complete.json").read_bytes() == (MEMBER / "_complete.json").read_bytes()


def test_face_boxes_keep_their_bytes(tmp_path: Path) -> None:
    """A file of face boxes is read and written again as it was."""
    golden = GOLDEN / "boxes.parquet"
    found = read_faces(golden)
    write_boxes(tmp_path / "boxes.parquet", found.faces, origin=found.origin)
    require_same_parquet(tmp_path / "boxes.parquet", golden)
    assert read_boxes(golden).select(["b.jpg", "a.jpg"])[0] is None


@pytest.mark.parametrize(
    ("title", "fields"),
    [
        ("Model card", {f.name for f in dataclasses.fields(ModelCard)}),
        ("Model card", {f.name for f in dataclasses.fields(Preprocess)} - {"face"}),
        ("Model card", {f"face.{f.name}" for f in dataclasses.fields(FaceCrop)}),
        ("blend.json", {f.name for f in dataclasses.fields(Recipe)} | {"schema"}),
        ("blend.json", {f.name for f in dataclasses.fields(Group)}),
        ("Face boxes", {f.name for f in dataclasses.fields(Face)} - {"box"} | {"left", "top", "right", "bottom"}),
    ],
    ids=["card", "preprocess", "face crop", "recipe", "group", "boxes"],
)
def test_every_field_is_described(title: str, fields: set[str]) -> None:
    """The page on formats names every field that the code has."""
    assert fields <= set(re.findall(r"`([\w.]+)`", section(title)))


def test_the_columns_of_face_boxes_are_described() -> None:
    """The page's table of face boxes has the columns of the schema with their types, and no others."""
    rows = re.findall(r"^\| ((?:`\w+`(?:, )?)+) \| (\w+) \|", section("Face boxes"), re.MULTILINE)
    described = {name: kind for names, kind in rows for name in re.findall(r"`(\w+)`", names)}
    actual = pq.read_schema(GOLDEN / "boxes.parquet")
    assert described == {field.name: str(field.type).replace("float", "float32") for field in actual}
