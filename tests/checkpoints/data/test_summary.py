"""The summary of training data: counts, faults, duplicates, the table and the page."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner
from PIL import Image

from checkpoints.data import summary_html
from checkpoints.data.dataset import Dataset, read_dataset
from checkpoints.data.summary import DatasetSummary, scan_images, summarize
from ensemble.cli import ens
from ensemble.errors import DataError
from ensemble.images.face_boxes import Box, Boxes, Face, write_boxes
from tests.checkpoints.data.test_mask_contest import STEMS, make
from tests.support import toys


@pytest.fixture
def contest(tmp_path: Path) -> Path:
    """Three people: one lacks an image, one has a damaged one, and two share one; one image is gray and large."""
    root = make(tmp_path / "train", "1,male,x,20,a", "2,female,x,59,b", "3,female,x,60,c", suffix=".png")
    for seed, path in enumerate(sorted(root.rglob("*.png"))):
        path.write_bytes(toys.encode(toys.picture(seed, size=(12, 9)), "PNG"))
    (root / "images/a/mask1.png").unlink()
    (root / "images/b/mask2.png").write_bytes(b"")
    (root / "images/c/normal.png").write_bytes((root / "images/b/mask3.png").read_bytes())
    (root / "images/c/mask4.png").write_bytes((root / "images/c/mask5.png").read_bytes())
    Image.fromarray(toys.picture(99, size=(20, 30))).convert("L").save(root / "images/c/mask1.png")
    return root


def describe(data: Dataset, boxes: Boxes | None = None) -> DatasetSummary:
    return summarize(data, scan_images(data.rows, workers=1), boxes=boxes)


def test_a_description_counts_what_is_there(contest: Path) -> None:
    """Images, people, ages, sizes, modes, missing and unreadable images are those of the folder."""
    found = describe(read_dataset(contest, age_cut=59))
    assert (found.images, found.people, found.age_cut) == (20, 3, 59)
    assert found.ages == {20: 1, 59: 1, 60: 1}
    assert found.sizes == {"9x12": 18, "30x20": 1}
    assert found.modes == {"RGB": 18, "L": 1}
    assert found.incomplete == {"1": 6}
    assert [line.partition(":")[0] for line in found.unreadable] == ["b/mask2.png"]
    counts = {count.name: (count.people, count.images, count.trained) for count in found.classes}
    assert counts["worn / male / under 30"] == (1, 4, 4)
    assert counts["worn / female / 30 to 59"] == (1, 5, 0)  # 59 is trained as 60
    assert counts["worn / female / 60 and over"] == (1, 5, 10)
    assert counts["none / male / 30 to 59"] == (0, 0, 0)
    age = {count.name: (count.people, count.images, count.trained) for count in found.axes["age"]}
    assert age == {"under 30": (1, 6, 6), "30 to 59": (1, 7, 0), "60 and over": (1, 7, 14)}


def test_the_same_pixels_are_found_again(contest: Path) -> None:
    """Images with the same pixels are one group in any format, and those with several classes are listed separately."""
    pixels = np.asarray(Image.open(contest / "images/a/mask2.png"))
    (contest / "images/a/mask3.png").unlink()
    Image.fromarray(pixels).save(contest / "images/a/mask3.bmp")
    found = describe(read_dataset(contest))
    assert {frozenset(group) for group in found.duplicates} == {
        frozenset({"b/mask3.png", "c/normal.png"}),
        frozenset({"c/mask4.png", "c/mask5.png"}),
        frozenset({"a/mask2.png", "a/mask3.bmp"}),
    }
    assert found.contradictions == (("b/mask3.png", "c/normal.png"),)


def test_the_share_with_a_face_is_shown_by_class(contest: Path) -> None:
    """With boxes each class has its share of images with a face; an image without an entry is E351."""
    data = read_dataset(contest)
    boxes = {row.id: None if row.path.stem in STEMS[1:3] else Box(1, 1, 5, 5) for row in data.rows}
    found = describe(data, Boxes(boxes))
    share = {count.name: count.with_face for count in found.classes}
    assert share["worn / female / 60 and over"] == 3 / 5
    assert share["worn / male / under 30"] == 3 / 4
    assert share["none / female / 60 and over"] == 1
    assert share["none / male / 30 to 59"] is None
    with pytest.raises(DataError) as caught:
        describe(data, Boxes({}))
    assert caught.value.code == "E351"


def test_data_writes_the_table_and_the_page(contest: Path, tmp_path: Path) -> None:
    """`ens data` writes one row per image with true class and target, and a page without external references."""
    boxes = write_boxes(
        tmp_path / "boxes.parquet",
        [Face(row.id, None, None, 0, None, 9, 12) for row in read_dataset(contest).rows],
    )
    table, page = tmp_path / "data.parquet", tmp_path / "data.html"
    arguments = ["data", str(contest), "-o", str(table), "--html", str(page), "--age-cut", "59", "--boxes", str(boxes)]
    done = CliRunner().invoke(ens, [*arguments, "--fixes", str(fixes(tmp_path)), "--without", "t", "--json"])
    assert done.exit_code == 0, done.output
    value = json.loads(done.stdout)
    assert value["written"] == [str(table), str(page)]
    assert value["fixes"] == ["1: gender female (s, 6 images)"]
    rows = {row["id"]: row for row in pq.read_table(table).to_pylist()}
    assert len(rows) == 20
    assert (rows["b/normal.png"]["label"], rows["b/normal.png"]["target"]) == (16, 17)
    assert (rows["a/normal.png"]["class"], rows["a/normal.png"]["person"]) == ("none / female / under 30", "1")
    assert rows["b/mask2.png"]["fault"].startswith("[E302]")
    text = page.read_text(encoding="utf-8")
    assert not re.search(r"https?://|<script|<link(?! rel=.icon. href=.data:,.)", text)
    assert text.count("<img ") == 19
    assert "class='moved cut' style='height:100.0%' title='59: 1'" in text
    assert '<th class="n">with a face</th>' in text
    assert '<td class="n">0.0%</td>' in text
    assert "prefers-color-scheme: dark" in text


def fixes(root: Path) -> Path:
    path = root / "fixes.csv"
    path.write_text("id,field,value,source\n1,gender,female,s\n3,drop,,t\n")
    return path


def test_names_are_escaped_in_the_page(tmp_path: Path) -> None:
    """A class or file whose name is HTML is shown as text."""
    for name in ("<b>", "x"):
        (tmp_path / "set" / name).mkdir(parents=True)
        (tmp_path / "set" / name / "\"onerror='a'.png").write_bytes(toys.encode(toys.picture(1), "PNG"))
    data = read_dataset(tmp_path / "set")
    text = summary_html.write_summary_page(tmp_path / "p.html", data, describe(data)).read_text(encoding="utf-8")
    assert "<b>" not in text
    assert "&lt;b&gt;" in text
    assert "\"onerror='a'" not in text


def test_the_page_stays_small(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """For any number of images, each class shows a few, spread over it, and all together no more than the limit."""
    for name in "ab":
        toys.write_pictures(tmp_path / "set" / name, [f"{i:02}.jpg" for i in range(20)], size=(9, 9))
    monkeypatch.setattr(summary_html, "_THUMBNAILS", 6)
    data = read_dataset(tmp_path / "set")
    text = summary_html.write_summary_page(tmp_path / "p.html", data, describe(data)).read_text(encoding="utf-8")
    shown = re.findall(r'alt="([^"]+)"', text)
    assert shown == [f"{name}/{i}.jpg" for name in "ab" for i in ("00", "10", "19")]
