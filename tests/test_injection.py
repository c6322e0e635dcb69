"""Names and ids that are HTML stay text in the pages of `ens report` and `ens data`."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

from checkpoints.data.dataset import read_dataset
from checkpoints.data.summary import scan_images, summarize
from checkpoints.data.summary_html import write_summary_page
from ensemble.analysis.report import report
from ensemble.analysis.report_html import render_page
from ensemble.labels import LabelSpace
from ensemble.predictions.dataset import Part, part_path, write_complete, write_part
from tests.harness.fuzz_text import PageTags
from tests.support import toys

EVIL = ("<script>alert(1)<", '"><fuzz fuzz="', "' onload='x", "</pre><fuzz>", "<svg onload=x>", "</style><fuzz>")
LABELS = LabelSpace.flat(EVIL)


def tags_of(page: str) -> list[str]:
    tags = PageTags()
    tags.feed(page)
    return tags.found


def test_a_page_with_code_in_it_is_noticed() -> None:
    """The check itself sees elements and handlers."""
    assert tags_of("<p>a</p><fuzz><p onclick=x>") == ["fuzz", "p onclick"]


def test_the_report_escapes_classes_members_and_ids(tmp_path: Path) -> None:
    """Class names, ids and commands of any text: no element of theirs is in the page."""
    generator = np.random.default_rng(0)
    ids = tuple(f"{name}{i}.jpg" for i in range(5) for name in EVIL)
    for member in ("a", "b' & c"):
        folder = tmp_path / "preds" / member
        folder.mkdir(parents=True)
        logits = {"identity": generator.normal(size=(len(ids), len(LABELS))).astype(np.float32)}
        write_part(part_path(folder, 0), Part(ids, logits, "{}", toys.card(member, labels=LABELS)))
        write_complete(folder, [part_path(folder, 0)], len(ids))
    rows = [f'"{name.replace(chr(34), chr(34) * 2)}",{i % len(LABELS)}' for i, name in enumerate(ids)]
    (tmp_path / "truth.csv").write_text("\n".join(["ImageID,ans", *rows]) + "\n")
    found = report(sorted((tmp_path / "preds").iterdir()), truth=tmp_path / "truth.csv", commands=[f"ens {EVIL[1]}"])
    page = render_page(found)
    assert tags_of(page) == []
    assert "&lt;script&gt;" in page


def test_the_page_of_the_training_data_escapes_classes_and_names(tmp_path: Path) -> None:
    """Folders and files called like elements."""
    names = [name.replace("/", "_") for name in EVIL]
    for place, name in enumerate(names):
        (tmp_path / "train" / name).mkdir(parents=True)
        for number in range(2):
            pixels = np.full((24, 24, 3), 40 * place + number, np.uint8)
            Image.fromarray(pixels).save(tmp_path / "train" / name / f"{number}<fuzz>.png")
    data = read_dataset(tmp_path / "train")
    page = write_summary_page(tmp_path / "page.html", data, summarize(data, scan_images(data.rows)))
    text = page.read_text()
    assert tags_of(text) == []
    assert "&lt;script&gt;" in text
