"""The page of other contests runs as it is written: from pictures of digits to two checked submissions."""

from __future__ import annotations

import csv
import shlex
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner

from ensemble.cli import ens
from exporters.demo import digits
from tests.docs.pages import Page

pytestmark = pytest.mark.slow

PAGE = Page("docs/other-contests.md")
BLOCKS = [block.commands for block in PAGE.blocks if block.language == "bash"]
TOURS = [block for block in BLOCKS if len(block) > 1]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The contests with a few images, written by the page's own command."""
    root = tmp_path_factory.mktemp("digits")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(root)
        patch.setattr(digits.write_digit_contests, "__kwdefaults__", {"train": 80, "test": 20, "seed": 0})
        (line,) = {line for block in TOURS for line in block if line.startswith("python -m ")}
        assert line.split()[2] == digits.__name__
        digits.main(line.split()[3])
    return root


@pytest.mark.parametrize(("tour", "name"), list(zip(TOURS, ("one", "several"), strict=True)))
def test_a_contest_goes_from_a_clone_to_a_checked_submission(
    folder: Path, tour: list[str], name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At most eight commands, the first an install, end with status 0 and a submission of probabilities per label."""
    assert len(tour) <= 8
    assert [line.split()[:2] for line in tour[:2]] == [["pip", "install"], ["python", "-m"]]
    monkeypatch.chdir(folder)
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    outputs = {}
    try:
        for line in tour[2:]:
            words = shlex.split(line)
            done = CliRunner().invoke(ens, words[1:], catch_exceptions=False)
            assert done.exit_code == 0, f"{line}\n{done.output}"
            outputs[words[1]] = done.output
    finally:
        torch.set_num_threads(before)
    assert list(outputs) == ["data", "train", "export", "predict", "blend", "check"]
    assert "no faults" in outputs["check"]
    assert not [word for word in ("people", "person", "face", "photo") if word in "".join(outputs.values())]
    rows = list(csv.reader((folder / f"digits/{name}-submission.csv").read_text().splitlines()))
    sample = list(csv.reader((folder / f"digits/{name}/sample_submission.csv").read_text().splitlines()))
    assert rows[0] == sample[0] == ["image_id", *digits.NAMES]
    assert [row[0] for row in rows] == [row[0] for row in sample]
    sums = [sum(map(float, row[1:])) for row in rows[1:]]
    assert all(abs(total - 1) < 1e-6 for total in sums) == (name == "one")
    evaluated = CliRunner().invoke(
        ens, ["evaluate", f"digits/preds/{name}", "--truth", f"digits/{name}/solution.csv"], catch_exceptions=False
    )
    assert evaluated.exit_code == 0, evaluated.output
    assert ("mean average precision" in evaluated.output) == (name == "several")


def test_the_pictures_are_written_alike(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The command writes 400 pictures per contest, and a seed gives the same bytes every time."""
    monkeypatch.chdir(tmp_path)
    digits.main("whole")
    assert len(list(Path("whole").rglob("*.png"))) == 800
    for place in ("a", "b"):
        digits.write_digit_contests(Path(place), train=6, test=2, seed=3)
    found = [sorted(path.relative_to(place) for path in Path(place).rglob("*.*")) for place in ("a", "b")]
    assert found[0] == found[1]
    assert all(Path("a", path).read_bytes() == Path("b", path).read_bytes() for path in found[0])
