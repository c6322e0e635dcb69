"""Killed anywhere, and with a disk that is full at any step: what is run again ends as if nothing had been."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from ensemble.blend.blend import blend
from ensemble.blend.recipe import make_recipe, read_recipe
from ensemble.errors import FileError
from ensemble.images.views import parse_views
from ensemble.predict import parts
from ensemble.predict.options import RunOptions
from ensemble.predict.predict import predict
from ensemble.predictions.dataset import read_predictions
from ensemble.submission.sheet import Submission
from ensemble.submission.write import write_submission
from ensemble.submit import chunks
from ensemble.submit.destination import Destination
from ensemble.submit.submit import EarlyExit, submit
from tests.harness.kills import contents, is_temporary, kill_often, require_whole
from tests.support import toys
from tests.support.disk import FAULTS, Died, Disk, Fault, through

pytestmark = pytest.mark.slow

NAMES = [f"{i:02d}.jpg" for i in range(9)]
OLD = b"ImageID,ans\nold.jpg,0\n"


def test_fault_68_killed_runs_resume_to_the_same_bytes(tmp_path: Path) -> None:
    """SIGKILL at a dozen random moments leaves, run again, every byte of a quiet run and no stray file; `python -m
    tests.harness.kills` does it for longer, and kills exports too.
    """
    report = kill_often(tmp_path, times=12, names=("predict", "submit", "blend"))
    assert sum(sum(stages.values()) for stages in report.kills.values()) == 12
    struck = set().union(*report.kills.values())
    assert len(struck) > 2, report.render()


@pytest.fixture
def contest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Nine pictures, in two parts or chunks, two models, predictions and a recipe."""
    monkeypatch.setattr(parts, "PART_ROWS", 5)
    monkeypatch.setattr(chunks, "CHUNK_ROWS", {"cpu": 5})
    # no image is bad, and the process that finds it takes a second to start
    monkeypatch.setattr("ensemble.predict.slice_folder.find_faults", lambda *_, **__: {})
    toys.write_pictures(tmp_path / "images", NAMES)
    for seed, member in enumerate("ab"):
        toys.write_model(tmp_path / "models", toys.card(member), seed=seed)
    run_predict(tmp_path, tmp_path / "preds")
    members = [read_predictions(tmp_path / "preds" / member) for member in "ab"]
    (tmp_path / "blend.json").write_text(make_recipe(members).to_json())
    return tmp_path


def run_predict(contest: Path, out: Path) -> None:
    """Predict with both models."""
    models = sorted((contest / "models").iterdir())
    predict(
        models,
        contest / "images",
        out,
        views=parse_views("hflip"),
        options=RunOptions(device="cpu", workers=1, batch=5),
    )


def run_blend(contest: Path, out: Path) -> None:
    """Blend the predictions over an older submission."""
    members = [read_predictions(contest / "preds" / member) for member in "ab"]
    blended = blend(members, read_recipe(contest / "blend.json"))
    write_submission(out / "submission.csv", Submission(blended.ids, blended.classes, blended.labels))


def run_submit(contest: Path, out: Path) -> None:
    """Submit with an early exit over an older submission."""
    submit(
        read_recipe(contest / "blend.json"),
        contest / "images",
        [contest / "models"],
        Destination(out / "submission.csv", out / "work"),
        early_exit=EarlyExit(),
        options=RunOptions(device="cpu", workers=1),
    )


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("run", [run_predict, run_blend, run_submit], ids=lambda run: run.__name__)
def test_fault_66_and_68_at_every_step_of_writing(
    contest: Path, tmp_path: Path, run: Callable[[Path, Path], None], fault: Fault
) -> None:
    """Whichever opening, writing, sync, rename or removal a run is killed at, or finds the disk full at, every file is
    the old or the whole new one, and the run after it leaves the bytes of a quiet one and nothing else.
    """
    old = {} if run is run_predict else {"submission.csv": OLD}

    def prepare(name: str) -> Path:
        out = tmp_path / "outs" / name
        out.mkdir(parents=True)
        for path, data in old.items():
            (out / path).write_bytes(data)
        return out

    quiet = prepare("quiet")
    with through(counting := Disk()):
        run(contest, quiet)
    expected = contents(quiet)
    assert len(counting.names) > 3
    for at in counting.steps_for(fault):
        out = prepare(f"{at}")
        disk = Disk(fault, at)
        ended = how_it_ends(lambda out=out: run(contest, out), disk)  # type: ignore[misc]
        assert disk.failed, at
        assert ended == ("E701" if fault == "is full" else "died") or counting.names[at] == "unlink", at
        require_whole(contents(out), expected, old)
        assert fault != "is full" or not [name for name in contents(out) if is_temporary(name)], at
        run(contest, out)
        assert contents(out) == expected, at


def how_it_ends(run: Callable[[], None], disk: Disk) -> str:
    """The code of the error, ``died``, or nothing."""
    try:
        with through(disk):
            run()
    except Died:
        return "died"
    except FileError as err:
        return err.code
    return ""
