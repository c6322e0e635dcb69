"""Twenty sample submissions with the headers of twenty contests: predictions become what the contest asks for."""

from __future__ import annotations

import csv
import io
import json
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from ensemble.__main__ import run

ROWS = 12
Array = NDArray[np.float64]


@dataclass(frozen=True)
class Contest:
    """A sample submission: its header, ids and constant answers; ``expected`` is what is to be written."""

    name: str
    header: str
    names: list[str]
    ids: list[str]
    answer: str
    expected: str  # a key of WRITERS
    several: bool = False
    options: list[str] = field(default_factory=list)
    positive: int = 1
    newline: str = "\n"
    bom: bool = False
    suffix: str = ".jpg"  # of the images, which the members predicted


def numbered(form: str) -> list[str]:
    return [form.format(i * 37 + 5) for i in range(ROWS)]


BREEDS = [f"breed_{chr(97 + i // 26)}{chr(97 + i % 26)}" for i in range(120)]
BLEEDS = ["epidural", "intraparenchymal", "intraventricular", "subarachnoid", "subdural", "any"]
CATHETERS = ["ETT - Abnormal", "ETT - Borderline", "ETT - Normal", "NGT - Abnormal", "Swan Ganz Catheter Present"]
WEATHER = ["agriculture", "clear", "cloudy", "haze", "primary", "road", "water", "blow_down"]
WALLS = ["가구수정", "걸레받이수정", "곰팡이", "꼬임", "녹오염"]
ANIMALS = ["antelope_duiker", "bird", "blank", "civet_genet", "hog", "leopard", "monkey_prosimian", "rodent"]
WHALES = ["new_individual", "37c7aba965a5", "114207cab555", "a6e325d8e924", "19fbb960f07d", "c995c043c353"]
LEAVES = ["complex", "frog_eye_leaf_spot", "healthy", "powdery_mildew", "rust", "scab"]
PADDY = ["bacterial_leaf_blight", "blast", "brown_spot", "dead_heart", "normal", "tungro"]
DEGREES = ["No DR", "Mild", "Moderate", "Severe", "Proliferative DR"]
SPECIES = sorted(map(str, range(12)))  # folders 0, 1, 10, 11, 2, ...

CONTESTS = [
    Contest("dog breeds", "id," + ",".join(BREEDS), BREEDS, numbered("{:08x}"), "0.00833", "columns"),
    Contest("cassava", "image_id,label", ["cbb", "cbsd", "cgm", "cmd", "healthy"], numbered("{}.jpg"), "4", "number"),
    Contest(
        "plant pathology 2020",
        "image_id,healthy,multiple_diseases,rust,scab",
        ["scab", "rust", "healthy", "multiple_diseases"],
        numbered("Test_{}"),
        "0.25",
        "columns",
    ),
    Contest("plant pathology 2021", "image,labels", LEAVES, numbered("{:016x}.jpg"), "healthy", "cells", several=True),
    Contest("brain haemorrhage", "ID,Label", BLEEDS, numbered("ID_{:09x}"), "0.5", "long", several=True),
    Contest(
        "catheters",
        "StudyInstanceUID," + ",".join(CATHETERS),
        CATHETERS,
        numbered("1.2.826.{}"),
        "0",
        "columns",
        several=True,
    ),
    Contest(
        "happy whales",
        "image,predictions",
        WHALES,
        numbered("{:014x}.jpg"),
        " ".join(WHALES[1:6]),
        "ranking",
        newline="\r\n",
    ),
    Contest("paddy", "image_id,label", PADDY, numbered("{:06}.jpg"), "", "name", options=["--answers", "name"]),
    Contest("petals", "id,label", ["pink primrose", "canterbury bells", "rose"], numbered("{:x}"), "0", "number"),
    Contest(
        "dogs and cats",
        "id,label",
        ["cat", "dog"],
        numbered("{}"),
        "0.5",
        "probability",
        options=["--positive", "dog"],
    ),
    Contest(
        "lymph nodes",
        "id,label",
        ["tumor", "normal"],
        numbered("{:040x}"),
        "0",
        "probability",
        options=["--answers", "probability"],
        positive=0,
        suffix=".tif",
    ),
    Contest("retinas", "id_code,diagnosis", DEGREES, numbered("{:012x}"), "0", "number", suffix=".png"),
    Contest(
        "distracted drivers",
        "img," + ",".join(f"c{i}" for i in range(10)),
        [f"c{i}" for i in (3, 1, 0, 2, *range(4, 10))],
        numbered("img_{}.jpg"),
        "0.1",
        "columns",
    ),
    Contest("the amazon", "image_name,tags", WEATHER, numbered("test_{}"), "primary clear road", "cells", several=True),
    Contest("proteins", "Id,Predicted", WEATHER, numbered("{:08x}-bbad"), "0", "cell numbers", several=True),
    Contest(
        "bird calls",
        "row_id," + ",".join(reversed(ANIMALS)),
        ANIMALS,
        numbered("soundscape_{}_5"),
        "0.125",
        "columns",
        several=True,
        suffix="",
    ),
    Contest(
        "melanoma",
        "image_name,target",
        ["benign", "malignant"],
        numbered("ISIC_{:07}"),
        "0",
        "probability",
        options=["--answers", "probability"],
    ),
    Contest("species", "id,predicted", SPECIES, numbered("{}"), "0 1 2", "ranking of 3"),
    Contest("wall paper", "id,label", WALLS, numbered("TEST_{:03}"), "가구수정", "name", bom=True, suffix=".png"),
    Contest(
        "camera traps", "id," + ",".join(ANIMALS), list(reversed(ANIMALS)), numbered("ZJ{:06}"), "0.125", "columns"
    ),
]


def predictions(contest: Contest) -> list[Array]:
    """The probabilities of two members, in the order of the contest's ids and names."""
    random = np.random.default_rng(len(contest.header))
    shape = (ROWS, len(contest.names))
    if contest.several:
        return [np.round(random.random(shape), 6) for _ in range(2)]
    found = [random.dirichlet(np.ones(shape[1]), ROWS) for _ in range(2)]
    return [values / values.sum(axis=1, keepdims=True) for values in found]


def expected_rows(contest: Contest, p: Array) -> list[list[str | float]]:
    """The rows below the header, computed with plain Python."""
    names = contest.names
    rows: list[list[str | float]] = []
    columns = contest.header.split(",")[1:]
    for image, values in zip(contest.ids, p.tolist(), strict=True):
        ranked = np.argsort([-value for value in values], kind="stable").tolist()
        above = [label for label, value in enumerate(values) if value >= 0.5] or ranked[:1]
        found: dict[str, list[str | float]] = {
            "number": [str(ranked[0])],
            "name": [names[ranked[0]]],
            "probability": [values[contest.positive]] if len(values) == 2 else [],
            "cells": [" ".join(names[label] for label in above)],
            "cell numbers": [" ".join(map(str, above))],
            "ranking": [" ".join(names[label] for label in ranked[:5])],
            "ranking of 3": [" ".join(names[label] for label in ranked[:3])],
        }
        if contest.expected == "columns":
            rows.append([image, *(values[names.index(column)] for column in columns)])
        elif contest.expected == "long":
            rows += [[f"{image}_{name}", value] for name, value in zip(names, values, strict=True)]
        else:
            rows.append([image, *found[contest.expected]])
    return rows


def write_files(folder: Path, contest: Contest, members: list[Array], truth: NDArray[np.intp]) -> None:
    rows = [[image] for image in contest.ids]
    if contest.expected == "long":
        rows = [[f"{image}_{name}"] for image in contest.ids for name in contest.names]
    width = contest.header.count(",")
    lines = [contest.header, *(",".join([*row, *[contest.answer] * width]) for row in rows)]
    text = contest.newline.join([*lines, ""])
    (folder / "sample.csv").write_bytes(text.encode("utf-8-sig" if contest.bom else "utf-8"))
    (folder / "labels.json").write_text(json.dumps(contest.names))
    order = np.random.default_rng(1).permutation(ROWS)
    images = [image if image.endswith(contest.suffix) else image + contest.suffix for image in contest.ids]
    for number, values in enumerate(members):
        lines = ["image," + ",".join(contest.names)]
        lines += [",".join([images[row], *map(repr, values[row].tolist())]) for row in order]
        (folder / f"m{number}.csv").write_text("\n".join(lines) + "\n")
    if contest.several:
        flags = [",".join(map(str, row)) for row in truth.tolist()]
        lines = ["id," + ",".join(contest.names), *map(",".join, zip(images, flags, strict=True))]
    else:
        lines = ["id,label", *(f"{image},{contest.names[label]}" for image, label in zip(images, truth, strict=True))]
    (folder / "truth.csv").write_text("\n".join(lines) + "\n")


@pytest.mark.parametrize("contest", CONTESTS, ids=[contest.name for contest in CONTESTS])
def test_a_contest_gets_what_its_sample_asks_for(
    contest: Contest, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The file has the sample's header, order and spelling and the right answers; check and evaluate read it."""
    members = predictions(contest)
    mean = np.mean(members, axis=0)
    random = np.random.default_rng(2)
    truth = random.integers(0, 2, mean.shape) if contest.several else random.integers(0, mean.shape[1], ROWS)
    write_files(tmp_path, contest, members, truth.astype(np.intp))
    monkeypatch.chdir(tmp_path)
    options = ["--labels", "labels.json", "--like", "sample.csv", *contest.options]
    several = ["--activation", "sigmoid"] if contest.several else []
    assert run(["blend", "m0.csv", "m1.csv", "--as", "probabilities", "-o", "out.csv", *several, *options]) == 0
    text = (tmp_path / "out.csv").read_bytes()
    assert text.startswith("\ufeff".encode()) == contest.bom
    assert text.count(b"\r\n") == (0 if contest.newline == "\n" else text.count(b"\n"))
    header, *rows = csv.reader(io.StringIO(text.decode("utf-8-sig"), newline=""))
    assert ",".join(header) == contest.header
    wanted = expected_rows(contest, mean)
    assert len(rows) == len(wanted)
    for row, right in zip(rows, wanted, strict=True):
        for cell, one in zip(row, right, strict=True):
            assert cell == one if isinstance(one, str) else abs(float(cell) - one) < 1e-6
        if contest.expected == "columns" and not contest.several:
            assert abs(sum(map(float, row[1:])) - 1) < 1e-6
    capsys.readouterr()
    assert run(["check", "out.csv", *options, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["faults"] == []
    assert run(["evaluate", "out.csv", "--truth", "truth.csv", *options, "--json"]) == 0
    (scores,) = json.loads(capsys.readouterr().out)["scores"]
    if contest.several:
        assert scores["micro_f1"]["value"] == pytest.approx(micro_f1(contest, truth, mean))
    else:
        assert scores["accuracy"]["value"] == pytest.approx((mean.argmax(axis=1) == truth).mean())


def micro_f1(contest: Contest, truth: NDArray[np.intp], p: Array) -> float:
    """Twice the hits by the labels that apply and those that are named."""
    named = p >= 0.5
    if contest.expected.startswith("cell"):
        named = named | (~named.any(axis=1, keepdims=True) & (p == p.max(axis=1, keepdims=True)))
    return float(2 * (named & (truth == 1)).sum() / (named.sum() + truth.sum()))


def test_there_are_twenty_contests() -> None:
    """Twenty contests with different headers and kinds of answers are tried."""
    assert len({(contest.name, contest.header) for contest in CONTESTS}) == 20
