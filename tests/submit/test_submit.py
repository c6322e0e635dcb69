"""Submit: the same file as predict and blend, however little of it had to run, and however often it was stopped."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner

from ensemble.blend.blend import blend
from ensemble.blend.pooling import parse_pool
from ensemble.blend.recipe import Group, Recipe
from ensemble.cli import ens
from ensemble.errors import DataError, DeviceError, EnsError, FileError, Interrupted, OptionError, PredictionError
from ensemble.events import Recorder
from ensemble.images.listing import list_images
from ensemble.images.views import parse_views
from ensemble.labels import MASK18
from ensemble.predict.memory_budget import need_of
from ensemble.predict.options import RunOptions
from ensemble.predict.predict import predict
from ensemble.predict.timing import Stopwatch
from ensemble.predictions.dataset import read_predictions
from ensemble.runtime.device import CPU
from ensemble.runtime.model_file import read_model
from ensemble.runtime.session import Session
from ensemble.submission.lint import read_submission
from ensemble.submission.recognize import read_sheet
from ensemble.submission.rows import RowMap
from ensemble.submission.sheet import Submission
from ensemble.submission.write import write_submission
from ensemble.submit import chunks as chunks_module
from ensemble.submit.chunk_file import Chunk, read_chunk, write_chunk
from ensemble.submit.early_exit import ForwardPass, used_part
from ensemble.submit.exit_thresholds import Keep
from ensemble.submit.result import Submitted
from ensemble.submit.submit import EarlyExit, share_of_time
from ensemble.submit.time_budget import Speed, fit_members, parse_budget
from tests.support import toys
from tests.support.gpus import fake_gpus
from tests.support.runs import StopAfter, run_submit

pytestmark = pytest.mark.usefixtures("small_parts")

NAMES = [f"{i:02d}.jpg" for i in range(21)]
RECIPE = Recipe(
    pool=parse_pool("linear"),
    views={"identity": 2.0, "hflip": 1.0},
    groups={
        "a": Group(6.0, {"a0": "", "a1": ""}),
        "b": Group(1.0, {"b": ""}, {"hflip": 1.0, "identity": 0.0}),
        "unused": Group(0.0, {"not there": ""}),
    },
    labels=MASK18,
    sharpness=1.3,
    bias=tuple(np.linspace(-0.2, 0.2, 18).tolist()),
)


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """Twenty-one pictures: two full chunks and one of five rows."""
    toys.write_pictures(tmp_path / "images", NAMES)
    return tmp_path / "images"


@pytest.fixture
def models(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """The recipe's models, of two input sizes, and surer of their answers than toys usually are."""
    plain = toys.linear_weights
    monkeypatch.setattr(toys, "linear_weights", lambda card, seed: 15 * plain(card, seed))
    cards = [toys.card("a0"), toys.card("a1", size=(20, 24)), toys.card("b")]
    return [toys.write_model(tmp_path / "models", card, seed=seed // 2) for seed, card in enumerate(cards)]


@pytest.fixture
def expected(tmp_path: Path, images: Path, models: list[Path]) -> bytes:
    """The file that predict and blend make with every view of every member."""
    folder = tmp_path / "expected"
    predict(models, images, folder, views=parse_views("hflip"), options=RunOptions(device="cpu"))
    used = replace(RECIPE, groups={name: g for name, g in RECIPE.groups.items() if g.weight})
    blended = blend([read_predictions(folder / name) for name in used.inputs], used)
    return write_submission(
        tmp_path / "expected.csv", Submission(blended.ids, blended.classes, blended.labels)
    ).read_bytes()


def run(tmp_path: Path, models: Sequence[Path], recipe: Recipe = RECIPE, **options: Any) -> Submitted:
    """Submit the pictures on the CPU to ``out.csv``, with the work in ``work``."""
    settings: dict[str, Any] = {"work": tmp_path / "work", "device": "cpu", "workers": 2}
    return run_submit(recipe, tmp_path / "images", models, tmp_path / "out.csv", **settings | options)


@pytest.mark.parametrize("early_exit", [None, EarlyExit()])
def test_gpus_give_the_cpus_answers(
    tmp_path: Path, models: list[Path], expected: bytes, monkeypatch: pytest.MonkeyPatch, early_exit: EarlyExit | None
) -> None:
    """Two GPUs with one batch shape, padded and cut, write the file that the CPU writes, also with early exit."""
    monkeypatch.setattr(chunks_module, "CHUNK_ROWS", {"cuda": 8})
    with fake_gpus(monkeypatch, tmp_path) as gpus:
        done = run(tmp_path, models, device="cuda:0,1", batch=4, early_exit=early_exit)
    assert done.path.read_bytes() == expected
    assert {device.index for device, _ in gpus.started} == {0, 1}
    decisions = json.loads((tmp_path / "work/_run.json").read_text())["decisions"]
    assert {name: how["nodes"][:5] for name, how in decisions.items()} == dict.fromkeys(("a0", "a1", "b"), "CUDA ")


@pytest.mark.usefixtures("images")
def test_a_sample_of_probabilities_is_filled_and_needs_all_members(tmp_path: Path, models: list[Path]) -> None:
    """Columns of classes get the probabilities that blend writes, and rows those of their images; an early exit, which
    only knows classes, is refused before any work.
    """
    names = ",".join(f'"{name}"' for name in MASK18.names)
    (tmp_path / "sample.csv").write_text(f"id,{names}\n" + "".join(f"{name},{'0,' * 17}1\n" for name in NAMES))
    sheet = read_sheet(tmp_path / "sample.csv", MASK18, independent=False)
    with pytest.raises(EnsError, match="E207"):
        run(tmp_path, models, like=sheet, early_exit=EarlyExit())
    assert not (tmp_path / "work").exists()
    run(tmp_path, models, like=sheet)
    found = read_submission(tmp_path / "out.csv", MASK18, like=sheet)
    folder, used = tmp_path / "work/preds", used_part(RECIPE)
    blended = blend([read_predictions(folder / name) for name in used.inputs], used, ids=NAMES)
    assert found.ids == tuple(NAMES)
    assert found.probabilities is not None
    np.testing.assert_allclose(found.probabilities, blended.probabilities, atol=1e-8)
    row_map = RowMap(tuple(NAMES), tuple(str(i // 3) for i in range(len(NAMES))), np.ones(len(NAMES)))
    done = run(tmp_path, models, row_map=row_map)
    assert done.rows == 7
    assert (tmp_path / "out.csv").read_text().splitlines()[:1] == ["ImageID,ans"]


def test_without_early_exit_it_is_predict_and_blend(tmp_path: Path, models: list[Path], expected: bytes) -> None:
    """The same bytes; only the views with weight are predicted; a group without weight needs no model."""
    done = run(tmp_path, models)
    assert done.path.read_bytes() == expected
    assert list(read_predictions(tmp_path / "work/preds/b").logits) == ["hflip"]
    assert done.passes == done.whole == 21 * 5
    assert set(done.stages) == {"read", "decode", "resize", "a0", "a1", "b"}
    record = json.loads((tmp_path / "work/_run.json").read_text())
    assert record["passes"] == 105
    assert set(record["models"]) == {"a0", "a1", "b"}


@pytest.mark.parametrize(
    ("early_exit", "enough"), [(None, "memory are enough for"), (EarlyExit(), "2 workers and batches of 1")]
)
def test_little_memory_is_kept_to(
    tmp_path: Path, models: list[Path], expected: bytes, early_exit: EarlyExit | None, enough: str
) -> None:
    """Room for two chunks is two workers with an early exit, and more with a few images each without; W603 says so, and
    the file is the same. Where there is no room, that is E603.
    """
    need = need_of([read_model(path) for path in models], list_images(tmp_path / "images"), CPU)
    chunk = need.photo + 9 * need.pixels + need.layers
    recorder = Recorder()
    options: dict[str, Any] = {"early_exit": early_exit, "workers": 8, "listener": recorder}
    assert run(tmp_path, models, memory=need.fixed + 2 * chunk, **options).path.read_bytes() == expected
    assert enough in next(notice.message for notice in recorder.notices if notice.code == "W603")
    with pytest.raises(DeviceError, match="E603"):
        run(tmp_path, models, memory=2**20, work=tmp_path / "other", **options)


@pytest.mark.parametrize("batch", [3, 16])
def test_exact_gives_the_same_file_with_fewer_passes(
    tmp_path: Path, models: list[Path], expected: bytes, batch: int
) -> None:
    """The same bytes though rows left early, for any size of batch; the passes' rows are the passes that ran."""
    counted = []
    original = Session.run

    def count(self: Session, batch: Any, **options: Any) -> Any:
        counted.append(len(batch))
        return original(self, batch, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Session, "run", count)
        done = run(tmp_path, models, early_exit=EarlyExit(), batch=batch)
    assert done.path.read_bytes() == expected
    assert done.passes == sum(counted) - 3  # each session runs once to prove itself
    assert done.passes == sum(one.rows for one in done.cells)
    assert 0 < done.saved < 1
    assert 0 < (done.saved_time or 0) < 1
    assert max(counted) == min(batch, 8)


def test_a_run_that_was_killed_goes_on_and_ends_the_same(tmp_path: Path, models: list[Path], expected: bytes) -> None:
    """After a stop at the second chunk, only what is missing is computed, and file and counts are the same."""
    with pytest.raises(Interrupted, match="16 of 21"):
        run(tmp_path, models, early_exit=EarlyExit(), listener=StopAfter(2))
    assert not (tmp_path / "out.csv").exists()
    before = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "work/early").glob("*.parquet")}
    assert len(before) == 2
    done = run(tmp_path, models, early_exit=EarlyExit())
    assert done.path.read_bytes() == expected
    after = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "work/early").glob("*.parquet")}
    assert {name: after[name] for name in before} == before
    assert done.cells == run(tmp_path, models, early_exit=EarlyExit(), fresh=True).cells


def test_a_damaged_chunk_is_done_again_and_another_run_refused(
    tmp_path: Path, models: list[Path], expected: bytes
) -> None:
    """Half a chunk's file is not believed; chunks of another recipe stop the run before it computes."""
    run(tmp_path, models, early_exit=EarlyExit())
    part = tmp_path / "work/early/chunk-00001.parquet"
    part.write_bytes(part.read_bytes()[:-40])
    heard = Recorder()
    assert run(tmp_path, models, early_exit=EarlyExit(), listener=heard).path.read_bytes() == expected
    assert "W705" in [notice.code for notice in heard.notices]
    with pytest.raises(FileError) as caught:
        run(tmp_path, models, replace(RECIPE, sharpness=2.0), early_exit=EarlyExit())
    assert caught.value.code == "E704"


@pytest.mark.parametrize("rows", [0, 3])
def test_a_chunk_that_all_rows_left_early_is_kept(tmp_path: Path, rows: int) -> None:
    """Where no row needed all passes, or none could be read, there are no logits, and the chunk reads as written."""
    ids, settled = tuple(NAMES[:rows]), np.full(rows, 7)
    path = tmp_path / "chunk-00000.parquet"
    write_chunk(path, Chunk(ids, settled, settled, np.zeros((0, 5, 18), dtype=np.float32), "{}"))
    found = read_chunk(path)
    assert (found.ids, found.classes.tolist(), found.logits.shape, found.origin) == (ids, [7] * rows, (0, 5, 18), "{}")


@pytest.mark.parametrize("early_exit", [None, EarlyExit()])
def test_images_that_cannot_be_read_stop_the_submission_alone(
    tmp_path: Path, images: Path, models: list[Path], expected: bytes, early_exit: EarlyExit | None
) -> None:
    """All others are done, errors.csv names them, nothing is submitted; mended, the run ends as it should."""
    good = (images / "10.jpg").read_bytes()
    (images / "10.jpg").write_bytes(b"")
    with pytest.raises(DataError) as caught:
        run(tmp_path, models, early_exit=early_exit)
    assert caught.value.code == "E326"
    assert caught.value.exit_status == 3
    assert caught.value.path == tmp_path / "work" / "errors.csv"
    assert list(tmp_path.rglob("errors.csv")) == [caught.value.path]
    assert "10.jpg,E302" in caught.value.path.read_text()
    assert not (tmp_path / "out.csv").exists()
    (images / "10.jpg").write_bytes(good)
    assert run(tmp_path, models, early_exit=early_exit).path.read_bytes() == expected
    assert not caught.value.path.exists()


def test_a_missing_model_is_named_and_an_extra_one_noticed(tmp_path: Path, images: Path, models: list[Path]) -> None:
    """E530 names the member before anything runs; a model that the recipe does not know is only mentioned."""
    with pytest.raises(PredictionError, match="1 of the recipe's 3 members have no model: b") as caught:
        run(tmp_path, models[:2])
    assert caught.value.code == "E530"
    heard = Recorder()
    extra = toys.write_model(tmp_path / "more", toys.card("extra"))
    run(tmp_path, [*models, extra], listener=heard)
    assert [notice.message for notice in heard.notices if notice.code == "I531"] == [
        "1 models are not weighed by the recipe: extra"
    ]
    assert not (tmp_path / "work/preds/extra").exists()


def test_exact_is_refused_for_a_log_linear_pool(tmp_path: Path, images: Path, models: list[Path]) -> None:
    """E207, with the hint to leave early exit out or to calibrate it."""
    with pytest.raises(OptionError, match="only a linear pool") as caught:
        run(tmp_path, models, replace(RECIPE, pool=parse_pool("logit")), early_exit=EarlyExit())
    assert caught.value.code == "E207"
    assert "0.999" in caught.value.hint


def test_a_share_is_calibrated_and_its_thresholds_are_kept_to(
    tmp_path: Path, images: Path, models: list[Path], expected: bytes
) -> None:
    """21 rows certify nothing, and the result says so; no row leaves between the folds of a group."""
    oof = [read_predictions(tmp_path / "expected" / name) for name in ("a0", "b")]
    oof[0] = replace(oof[0], group="a")
    done = run(tmp_path, models, early_exit=EarlyExit(Keep(0.999), oof))
    assert done.calibration is not None
    assert not done.calibration.certified
    assert done.early_exit == "0.999"
    folds = [one.rows for one in done.cells if (one.member, one.view) in (("a0", "hflip"), ("a1", "hflip"))]
    assert folds[0] == folds[1]
    shown = json.loads((tmp_path / "work/_run.json").read_text())
    assert shown["calibration"]["rows"] == 21
    assert "21 out-of-fold rows" in done.render()


def test_a_budget_keeps_the_heaviest_members_and_the_choice(
    tmp_path: Path, images: Path, models: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """What does not fit is left out, said and written down; a later run keeps the choice without measuring again."""
    from ensemble.submit import time_budget as budget_module

    def slow(plan: Any, *_: Any) -> Speed:
        return Speed({"a0": 1.0, "a1": 1.0, "b": 10.0}, 0.5)

    monkeypatch.setattr(budget_module, "_measure", slow)
    heard = Recorder()
    done = run(tmp_path, models, budget=100.0, listener=heard)
    assert done.fit is not None
    assert (done.fit.kept, done.fit.left_out) == (("a0", "a1"), ("b",))
    assert done.fit.weight == pytest.approx(6 / 7)
    assert done.fit.expected == pytest.approx(21 * 2.5 / 2)
    assert [notice.code for notice in heard.notices].count("W532") == 1
    assert json.loads((tmp_path / "work/_run.json").read_text())["fit"]["left_out"] == ["b"]
    monkeypatch.setattr(budget_module, "_measure", None)
    again = run(tmp_path, models, budget=100.0, early_exit=EarlyExit())
    assert again.path.read_bytes() == done.path.read_bytes()
    assert {one.member for one in again.cells} == {"a0", "a1"}


def test_a_budget_that_fits_all_changes_nothing(tmp_path: Path, models: list[Path], expected: bytes) -> None:
    """With an hour for 21 small pictures, measured here, nothing is left out."""
    done = run(tmp_path, models, budget=3600.0)
    assert done.path.read_bytes() == expected
    assert done.fit is not None
    assert done.fit.left_out == ()
    assert all(seconds > 0 for seconds in done.fit.speed.values())


def test_the_first_member_is_kept_even_where_it_does_not_fit() -> None:
    """One member is the least there is; that it will take longer is said."""
    heard = Recorder()
    passes = [ForwardPass("a", "identity", 0.75, "a"), ForwardPass("b", "identity", 0.25, "b")]
    fit = fit_members(passes, Speed({"a": 1.0, "b": 0.1}, 0), images=100, workers=1, budget=10, listener=heard)
    assert fit.kept == ("a",)
    assert [notice.code for notice in heard.notices] == ["W532", "W532"]


@pytest.mark.parametrize(("text", "seconds"), [("90m", 5400), ("2h", 7200), ("5400s", 5400), ("1.5h", 5400)])
def test_times_are_read(text: str, seconds: float) -> None:
    """Minutes, hours and seconds."""
    assert parse_budget(text) == seconds


@pytest.mark.parametrize("text", ["90", "m", "0m", "-1h", "1d", "1h30m", ""])
def test_other_times_are_refused(text: str) -> None:
    """A number without a unit could be anything."""
    with pytest.raises(OptionError):
        parse_budget(text)


def test_the_command_runs_end_to_end(tmp_path: Path, images: Path, models: list[Path], expected: bytes) -> None:
    """`ens submit` with a folder of models prints what it did as JSON."""
    (tmp_path / "blend.json").write_text(RECIPE.to_json())
    command = ["submit", str(tmp_path / "blend.json"), "--images", str(images), "--models", str(tmp_path / "models")]
    command += ["-o", str(tmp_path / "out.csv"), "--work", str(tmp_path / "work"), "--device", "cpu", "--json"]
    done = CliRunner().invoke(ens, [*command, "--early-exit", "exact"], catch_exceptions=False)
    assert (tmp_path / "out.csv").read_bytes() == expected
    shown = json.loads(done.stdout)
    assert (shown["rows"], shown["early_exit"], shown["device"]) == (21, "exact", "cpu")
    for wrong in (["--early-exit", "0.999"], ["--oof", "x"], ["--early-exit", "1.5", "--oof", "x"], ["--budget", "9"]):
        failed = CliRunner().invoke(ens, [*command, *wrong])
        assert isinstance(failed.exception, OptionError)


def test_the_time_that_was_saved_is_weighed_by_what_each_member_took() -> None:
    """100 rows; ``a`` takes 3 s a row and ``b``, seen by 40 of them, 1 s: 60 of 400 s are saved."""
    watch = Stopwatch()
    watch.seconds, watch.rows = {"decode": 9.0, "a": 300.0, "b": 40.0}, {"decode": 0, "a": 100, "b": 40}
    passes = (ForwardPass("a", "identity", 0.6, "a"), ForwardPass("b", "identity", 0.4, "b"))
    assert share_of_time(passes, [100, 40], 100, watch) == pytest.approx(0.15)
    watch.rows["b"] = 0
    assert share_of_time(passes, [100, 40], 100, watch) is None
