"""The toy contest: drawn the same way twice, in the real layout, with every class and an honest truth."""

from __future__ import annotations

import csv
import hashlib
import itertools
import re
from collections import Counter, defaultdict
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from ensemble.events import Listener
from ensemble.images.decode import read_image
from ensemble.labels import MASK18
from exporters.demo.contest import ToyContest, draw_contest
from exporters.synthetic_faces import HEIGHT, WIDTH


@pytest.fixture(scope="module")
def contest(tmp_path_factory: pytest.TempPathFactory) -> ToyContest:
    return draw_contest(tmp_path_factory.mktemp("toy"), train_people=20, eval_people=6)


def read(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as f:
        return list(csv.DictReader(f))


def hashes(folder: Path) -> dict[str, str]:
    """Every file's hash by its place below the folder."""
    files = (path for path in sorted(folder.rglob("*")) if path.is_file())
    return {path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def pictures(contest: ToyContest) -> Iterator[Path]:
    yield from sorted((contest.train / "images").glob("*/*"))
    yield from sorted(contest.eval_images.iterdir())


def test_a_seed_decides_every_byte(tmp_path: Path) -> None:
    """Two drawings with one seed are byte-identical, and another seed changes every picture."""
    folders = [tmp_path / name for name in ("a", "b", "c")]
    for folder, seed in zip(folders, (1, 1, 2), strict=True):
        draw_contest(folder, train_people=2, eval_people=1, seed=seed)
    first, again, other = (hashes(folder) for folder in folders)
    assert first == again
    assert not {first[name] for name in first if name.endswith(("g", "jpeg"))} & set(other.values())


def test_the_number_of_training_people_leaves_the_evaluation_alone(contest: ToyContest, tmp_path: Path) -> None:
    """A larger training set does not change who is evaluated."""
    smaller = draw_contest(tmp_path, train_people=1, eval_people=6)
    assert hashes(smaller.eval_images) == hashes(contest.eval_images)
    assert smaller.truth.read_bytes() == contest.truth.read_bytes()


def test_train_csv_names_the_folders(contest: ToyContest) -> None:
    """A person's folder is called <id>_<gender>_<race>_<age>, is there, and holds the seven pictures."""
    rows = read(contest.train / "train.csv")
    assert list(rows[0]) == ["id", "gender", "race", "age", "path"]
    assert len({row["id"] for row in rows}) == len(rows) == 20
    for row in rows:
        assert row["path"] == "_".join(row[key] for key in ("id", "gender", "race", "age"))
        stems = sorted(path.stem for path in (contest.train / "images" / row["path"]).iterdir())
        assert stems == ["incorrect_mask", "mask1", "mask2", "mask3", "mask4", "mask5", "normal"]
    assert sorted(path.name for path in (contest.train / "images").iterdir()) == sorted(row["path"] for row in rows)


def test_the_contest_has_the_real_ones_traps(contest: ToyContest) -> None:
    """An id is not always a number, one person's pictures differ in their suffix, and PNG files are PNG."""
    ids = [row["id"] for row in read(contest.train / "train.csv")]
    assert [i for i in ids if not i.isdecimal()] == [next(i for i in ids if i.endswith("-1"))]
    files = list((contest.train / "images").glob("*/*"))
    assert {path.suffix for path in files} == {".jpg", ".jpeg", ".png"}
    suffixes = defaultdict(set)
    for path in files:
        suffixes[path.parent].add(path.suffix)
        assert path.read_bytes().startswith(b"\x89PNG" if path.suffix == ".png" else b"\xff\xd8")
    assert max(map(len, suffixes.values())) > 1


def test_ages_are_those_of_the_contest(contest: ToyContest) -> None:
    """Ages run from 18 to 60 in three groups, and nobody is older than 60."""
    ages = [int(row["age"]) for row in read(contest.train / "train.csv")]
    assert min(ages) >= 18
    assert max(ages) == 60
    groups = Counter("young" if age < 30 else "middle" if age < 60 else "old" for age in ages)
    assert groups == {"young": 8, "middle": 8, "old": 4}


def test_six_people_show_every_class(contest: ToyContest) -> None:
    """The truth of six people holds all 18 classes."""
    assert {int(row["ans"]) for row in read(contest.truth)} == set(range(18))


def test_a_persons_truth_is_consistent(contest: ToyContest) -> None:
    """Each person has five worn masks, one incorrect and one absent, and one gender and age group."""
    answers = defaultdict(list)
    for row in read(contest.truth):
        answers[row["person"]].append(int(row["ans"]))
    assert len(answers) == 6
    for of_person in answers.values():
        assert Counter(MASK18.along("mask", of_person).tolist()) == {0: 5, 1: 1, 2: 1}
        assert len({answer % 6 for answer in of_person}) == 1


def test_the_sample_submission_lists_the_pictures(contest: ToyContest) -> None:
    """info.csv names each evaluation picture once, answers 0, and has the truth's order."""
    info = read(contest.info)
    names = [row["ImageID"] for row in info]
    assert {row["ans"] for row in info} == {"0"}
    assert sorted(names) == sorted(path.name for path in contest.eval_images.iterdir())
    assert names == [row["ImageID"] for row in read(contest.truth)]
    assert all(re.fullmatch(r"[0-9a-f]{40}\.jpg", name) for name in names)


def test_rows_give_nothing_away(contest: ToyContest) -> None:
    """The pictures of one person do not stand together in info.csv."""
    people = [row["person"] for row in read(contest.truth)]
    together = sum(a == b for a, b in itertools.pairwise(people))
    assert together < len(people) / 3


def test_pictures_are_clean_and_differ(contest: ToyContest) -> None:
    """Every picture is read without a notice at its size, and no two are alike."""
    seen = set()
    for path in pictures(contest):
        photo = read_image(path)
        assert photo.notices == ()
        assert photo.pixels.shape == (HEIGHT, WIDTH, 3)
        seen.add(photo.pixels.tobytes())
    assert len(seen) == 26 * 7


def test_old_people_are_grayer(contest: ToyContest) -> None:
    """The hair of people of 60 is less colored than that of the young, as the models are to learn."""
    color = defaultdict(list)
    for row in read(contest.train / "train.csv"):
        for path in (contest.train / "images" / row["path"]).glob("mask*"):
            crown = read_image(path).pixels[14:26, 38:58].astype(float)
            color[int(row["age"]) >= 60].append(np.ptp(crown, axis=2).mean() / crown.mean())
    assert np.median(color[True]) < np.median(color[False]) / 2


def test_progress_is_told_by_people(tmp_path: Path) -> None:
    """The listener hears of each person drawn, up to the last."""
    heard = []

    class Ear(Listener):
        def progress(self, stage: str, done: int, total: int) -> None:
            heard.append((stage, done, total))

    draw_contest(tmp_path, train_people=2, eval_people=1, listener=Ear())
    assert heard == [("draw train", 1, 2), ("draw train", 2, 2), ("draw eval", 1, 1)]
