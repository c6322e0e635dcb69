"""Targets of `tests.harness.fuzz` for what is text or tables: cards, recipes, labels, parts, boxes, tables, pages.

``card``      `ModelCard.from_json`
``recipe``    `read_recipe`, then rendering and writing what was read
``labels``    `parse_labels` and the class names of `ens train`
``part``      the Parquet files of `predict`, `submit` and other tools, and ``_complete.json``
``boxes``     `read_boxes`
``tables``    the CSV files of `train`, `data`, `blend`, `evaluate`, `report`, `check` and `bench`
``pages``     class names and ids in the pages of `report` and `data`: nothing in them becomes HTML
"""

from __future__ import annotations

import contextlib
import html.parser
import io
import json
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from tests.harness.fuzz import Target


def _try_each(reads: Iterable[Callable[[], object]]) -> None:
    """Call each; raise the first `EnsError` where none reads the input, so that it is counted."""
    from ensemble.errors import EnsError

    errors, done = list[EnsError](), 0
    for read in reads:
        try:
            read()
            done += 1
        except EnsError as err:
            errors.append(err)
    if errors and not done:
        raise errors[0]


def card_target(_: Path) -> Target:
    """`ModelCard.from_json` of any text."""
    from ensemble.card import ModelCard
    from ensemble.labels import LabelSpace
    from tests.support import toys

    card = toys.CARD.to_json()
    corpus = [card, toys.card(labels=LabelSpace.flat(3)).to_json(), card.replace('"schema":', '"schema":1,"schema":')]
    corpus += [
        "",
        "{}",
        "[]",
        "null",
        "[" * 5000,
        '{"schema":1}',
        card.replace("224", "1e400"),
        card.replace("0.5", "NaN"),
    ]

    def check(data: bytes) -> None:
        found = ModelCard.from_json(data.decode("utf-8", "replace"))
        assert ModelCard.from_json(found.to_json()).to_json() == found.to_json()

    return Target(tuple(text.encode() for text in corpus), check)


def recipe_target(folder: Path) -> Target:
    """`read_recipe` of any bytes; what was read is shown and written."""
    from ensemble.blend.pooling import parse_pool
    from ensemble.blend.recipe import make_recipe, read_recipe, render_recipe
    from ensemble.blend.smoothing import IDS, Smoothing
    from tests.support.members import draw_logits, make_member

    members = [make_member(name, draw_logits(i)) for i, name in enumerate("abc")]
    recipes = [
        make_recipe(members),
        make_recipe(members, pool=parse_pool("geometric"), weights={"a": 1, "b": 2, "c": 0.5}),
        make_recipe(members, class_weights={"a": {"0": 2.0}}),
        make_recipe(members, smoothing=Smoothing((0.25, 0.5, 0.25), IDS, "nearest")),
    ]
    corpus = [recipe.to_json() for recipe in recipes]
    corpus += ["", "{}", "[]", "[" * 5000, corpus[0].replace("1.0", "1e400"), corpus[0].replace("linear", "power:1_0")]
    path = folder / "blend.json"

    def check(data: bytes) -> None:
        path.write_bytes(data)
        found = read_recipe(path)
        render_recipe(found)
        found.to_json()

    return Target(tuple(text.encode() for text in corpus), check)


def labels_target(folder: Path) -> Target:
    """`parse_labels` and `parse_class_names` of any bytes, in files of each suffix."""
    from ensemble.label_file import parse_class_names, parse_labels
    from ensemble.labels import MASK18

    corpus = [json.dumps(MASK18.to_dict()), '["a", "b"]', '{"0": "a", "1": "b"}', '{"a": 0, "b": 1}', "a\nb\nc\n"]
    corpus += [
        "number,name\n0,a\n1,b\n",
        '{"axes": []}',
        "[]",
        "[[[[",
        '{"0": "a", "0": "b"}',
        '{"1_0": "a"}',
        "0\t1\n",
    ]
    paths = [folder / f"labels{suffix}" for suffix in (".json", ".csv", ".txt", ".tsv")]

    def check(data: bytes) -> None:
        for path in paths:
            path.write_bytes(data)
        _try_each([lambda: parse_labels(str(paths[0])), *(lambda p=path: parse_class_names(str(p)) for path in paths)])

    return Target(tuple(text.encode() for text in corpus), check)


def part_target(folder: Path) -> Target:
    """Parquet files of predictions of any bytes; where they are JSON, the list of parts instead."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    from ensemble.labels import LabelSpace
    from ensemble.predictions.dataset import COMPLETE, Part, part_path, read_predictions, write_complete, write_part
    from ensemble.predictions.external import ExternalOptions, read_external
    from ensemble.submit.chunk_file import read_chunk
    from tests.support import toys

    labels, member = LabelSpace.flat(3), folder / "toy"
    member.mkdir()
    part = part_path(member, 0)
    logits = np.arange(9, dtype=np.float32).reshape(3, 3)
    write_part(part, Part(("a", "b", "c"), {"identity": logits}, "{}", toys.card(labels=labels)))
    write_complete(member, [part], 3)
    whole, listed = part.read_bytes(), (member / COMPLETE).read_bytes()
    corpus = [whole, listed, b"{}", b"[]", b"PAR1PAR1", b"", listed.replace(b"part-", b"../part-")]
    for options in ({"compression": "zstd"}, {"use_dictionary": True}, {"data_page_version": "2.0"}):
        sink = io.BytesIO()
        pq.write_table(pq.read_table(io.BytesIO(whole)), sink, **options)
        corpus.append(sink.getvalue())
    sink = io.BytesIO()
    pq.write_table(pa.table({"id": ["a", "b"], "0": [0.1, 0.2], "1": [0.1, 0.2], "2": [0.1, 0.2]}), sink)
    arrays = io.BytesIO()
    np.savez(arrays, ids=np.array(["a", "b"]), identity=np.zeros((2, 3)))
    single = io.BytesIO()
    np.save(single, np.zeros((2, 3)))
    corpus += [sink.getvalue(), arrays.getvalue(), single.getvalue()]
    others = [folder / f"m{suffix}" for suffix in (".parquet", ".npz", ".npy")]
    (folder / "ids.csv").write_text("id\na\nb\n")

    def check(data: bytes) -> None:
        as_list = data[:1] in {b"{", b"["}
        part.write_bytes(whole if as_list else data)
        if as_list:
            (member / COMPLETE).write_bytes(data)
        else:
            write_complete(member, [part], 3)
        for path in others:
            path.write_bytes(data)
        options = ExternalOptions("logits", ids=folder / "ids.csv")
        _try_each(
            [
                lambda: read_predictions(member),
                lambda: read_chunk(part),
                *(lambda p=path: read_external(p, labels, options=options) for path in others),
            ]
        )

    return Target(tuple(corpus), check)


def boxes_target(folder: Path) -> Target:
    """`read_boxes` of any bytes."""
    from ensemble.images.face_boxes import Box, Face, read_boxes, write_boxes

    path = folder / "boxes.parquet"
    faces = [Face("a.jpg", Box(1, 2, 30, 40), 0.9, 1, "first", 64, 48), Face("b.jpg", None, None, 0, None, 64, 48)]
    corpus = [write_boxes(path, faces, origin="how").read_bytes(), write_boxes(path, []).read_bytes(), b"", b"PAR1"]

    def check(data: bytes) -> None:
        path.write_bytes(data)
        for box in read_boxes(path).of.values():
            if box is not None:
                box.fits(64, 48)

    return Target(tuple(corpus), check)


def tables_target(folder: Path) -> Target:
    """Every reader of CSV files of the commands."""
    from checkpoints.data.dataset import read_dataset
    from checkpoints.data.folds import read_folds
    from checkpoints.data.label_fixes import read_fixes
    from ensemble.commands.recipe_options import _read_class_weights
    from ensemble.labels import MASK18, LabelSpace
    from ensemble.predictions.external import ExternalOptions, read_external
    from ensemble.predictions.truth import read_truth
    from ensemble.submission.diff import diff_submissions
    from ensemble.submission.lint import read_submission
    from ensemble.submission.recognize import read_sheet
    from ensemble.submission.rows import read_row_map

    few = LabelSpace.flat(3)
    corpus = [
        "ImageID,ans\na.jpg,0\nb.jpg,17\n",
        "id,0,1,2\na,0.1,0.2,0.7\nb,1,0,0\n",
        "id;0;1;2\na;0,1;0,2;0,7\n",
        "image,row,weight\na,r1,1\nb,r1,2\n",
        "id,fold\nx,0\ny,1\n",
        "id,field,value,source\n000001,gender,male,me\n",
        "class,a,b\n0,1,2\n*,1,1\n",
        "id,gender,race,age,path\n000001,female,Asian,45,000001_female_Asian_45\n",
        "image_id,label,patient\na.jpg,cat;dog,p1\nb.jpg,,p2\n",
        *("", "\n", "a\n", ",\n,\n", '"\n', "ImageID,ans\na,1_0\nb,²\n", "id,0,1,2\na,１,2,3\n"),
        "id,ans\n" + "a\u0301" * 2000 + ",1\n",
        "id,ans\n" + "a" * 200_000 + ",1\n",
        ",".join(map(str, range(5000))) + "\n" + ",".join("0" * 5000) + "\n",
    ]
    path = folder / "t.csv"

    def check(data: bytes) -> None:
        path.write_bytes(data)
        reads: Sequence[Callable[[], object]] = [
            lambda: read_truth(path, few),
            lambda: read_truth(path, MASK18, independent=True),
            lambda: read_row_map(path),
            lambda: read_folds(path, ()),
            lambda: read_fixes([path]),
            lambda: _read_class_weights(path),
            lambda: read_external(path, few, options=ExternalOptions("probabilities")),
            lambda: read_external(path, few, options=ExternalOptions("logits", in_order=True, activation="sigmoid")),
            lambda: read_sheet(path, few),
            lambda: diff_submissions(read_submission(path, few), read_submission(path, few)),
            lambda: read_dataset(path),
        ]
        _try_each(reads)

    return Target(tuple(text.encode() for text in corpus), check)


class PageTags(html.parser.HTMLParser):
    """Collects what a page would run or load, but for scripts of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Note elements with code or foreign addresses, and attributes that are handlers."""
        if tag in {"script", "iframe", "object", "embed", "base", "form", "fuzz"}:
            self.found.append(tag)
        self.found += [f"{tag} {name}" for name, _ in attrs if name.startswith("on") or name == "fuzz"]


def pages_target(folder: Path) -> Target:
    """Names and ids of any text in the pages of `ens report` and `ens data`."""
    from ensemble.analysis.html import figure, preformatted, scrolling, section, table
    from ensemble.analysis.report_html import render_commands
    from ensemble.blend.recipe import make_recipe
    from ensemble.labels import LabelSpace
    from tests.support.members import draw_logits, make_member

    corpus = ["<script>alert(1)</script>", '"><fuzz>', "' onload='x", "</pre><fuzz fuzz>", "&lt;fuzz&gt;", "]]><fuzz>"]
    corpus += ["\u202e<fuzz>", "<svg/onload=x>", "{{x}}", "</style><fuzz>", "<!--<fuzz>-->", "\0<fuzz>", "a\nb"]

    def check(data: bytes) -> None:
        text = data.decode("utf-8", "replace") or "x"
        rows: list[list[str | int]] = [[text, 3], ["b", 4]]
        page = section(text, text, figure("<svg></svg>", text))
        page += table([text, "n"], rows, numbers={1}, label=text) + preformatted(text, text) + scrolling("", text)
        page += render_commands([text])
        names = [text, f"{text}2", "c", "d"]
        with contextlib.suppress(Exception):
            names = list(LabelSpace.flat(names).names)
        labels = LabelSpace.flat(names if len(set(names)) == 4 and all(names) else 4)
        page += preformatted(make_recipe([make_member("a", draw_logits(0), labels=labels)]).to_json(), text)
        (folder / "page.html").write_text(page, encoding="utf-8", errors="replace")
        tags = PageTags()
        tags.feed(page)
        assert not tags.found, tags.found

    return Target(tuple(text.encode() for text in corpus), check)


TEXT_TARGETS: dict[str, Any] = {
    "card": card_target,
    "recipe": recipe_target,
    "labels": labels_target,
    "part": part_target,
    "boxes": boxes_target,
    "tables": tables_target,
    "pages": pages_target,
}
