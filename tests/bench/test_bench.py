"""The benchmark: what it counts, what it compares, and that it compares like with like. Nothing here is about speed."""

from __future__ import annotations

import json
import os
import stat
import time
from dataclasses import replace
from multiprocessing import get_start_method
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest

from ensemble.__main__ import run
from ensemble.arrays import Pixels
from ensemble.bench import bench as module
from ensemble.bench.agreement import LIMITS, Agreement, Limit, compare, compare_classes, loosest
from ensemble.bench.bench import BenchPlan, bench
from ensemble.bench.contenders import BenchJob, RunSubmit, run_bound, run_predict
from ensemble.bench.process_meter import Pass, PassCost, PassFunction, PassResult, PassTimer, measure, sample_gpu
from ensemble.bench.results import Benchmark, Machine, ModelInfo, Timing, ratio
from ensemble.card import Precision
from ensemble.errors import DataError, DeviceError, OptionError
from ensemble.runtime.session import Session
from ensemble.submit.exit_thresholds import Keep
from exporters.bench_baselines import onnxruntime_loop
from tests.support import toys
from tests.support.gpus import fake_gpus
from tests.support.limits import HANG
from tests.test_light import ens

pytestmark = pytest.mark.slow  # each contender is measured in a process of its own, and one imports torch

NAMES = [f"{i:02d}.jpg" for i in range(11)]
LAP = PassCost(
    seconds=2.0, cpu=3.0, start=0.5, memory=100.0, batch=16, workers=2, stages={"decode": 1.0, "forward": 1.5}
)


@pytest.fixture
def contest(tmp_path: Path) -> Path:
    """Eleven pictures, and two models of different sizes."""
    toys.write_pictures(tmp_path / "images", NAMES)
    toys.write_model(tmp_path / "models", toys.card("a"), seed=1)
    toys.write_model(tmp_path / "models", toys.card("b", size=(24, 24)), seed=2)
    return tmp_path


@pytest.fixture
def passes(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, BenchJob]]:
    """Lets the passes run in this process, and keeps the contender and the job of each."""
    kept: list[tuple[str, BenchJob]] = []

    def here(function: PassFunction[BenchJob], job: BenchJob, *, name: str, gpu: int | None = None) -> Pass:
        kept.append((name, job))
        timer = PassTimer()
        result = function(job, timer)
        return Pass(result, timer.cost(result))

    monkeypatch.setattr(module, "measure", here)
    return kept


def models(contest: Path, folder: str = "models") -> list[Path]:
    return sorted((contest / folder).glob("*.onnx"))


def job(contest: Path, **changes: Any) -> BenchJob:
    made = BenchJob(tuple(models(contest)), contest / "images", tuple(NAMES), True, "cpu", batch=4, workers=2)
    return replace(made, **changes)


def costs(*seconds: float) -> tuple[PassCost, ...]:
    return tuple(replace(LAP, seconds=value) for value in seconds)


# ------------------------------------------------------------------------------------------------------- the figures
def test_rates_are_images_by_the_seconds_that_counted() -> None:
    """12 images in 1, 4 and 2 seconds are 12, 3 and 6 a second, in the middle 6; the processors' 3 seconds are 1/4 s an
    image.
    """
    timing = Timing("ens", 12, costs(1.0, 4.0, 2.0))
    assert timing.rates == (12.0, 3.0, 6.0)
    found = timing.as_dict()
    assert (found["images_per_second"], found["cpu_seconds_per_image"]) == (6.0, 0.25)
    assert found["stages"] == {"decode": 1.0, "forward": 1.5}


def test_ratios_are_taken_round_by_round() -> None:
    """Rounds of 1, 2, 10 s against 3, 2, 40 s are 3, 1 and 4 times as fast, in the middle 3, not the 1.5 of medians."""
    found = ratio(Timing("ens", 6, costs(1.0, 2.0, 10.0)), Timing("torch", 6, costs(3.0, 2.0, 40.0)))
    assert found.by_round == pytest.approx((3.0, 1.0, 4.0))
    assert found.as_dict() == {
        "of": "ens",
        "over": "torch",
        "median": pytest.approx(3.0),
        "lowest": pytest.approx(1.0),
        "highest": pytest.approx(4.0),
        "by_round": pytest.approx([3.0, 1.0, 4.0]),
    }


def test_what_was_not_measured_in_every_round_has_no_median() -> None:
    """A figure that one round lacks is None, not the median of the others."""
    timing = Timing("ens", 6, (replace(LAP, gpu_busy=0.9), LAP))
    assert timing.median(lambda cost: cost.gpu_busy) is None
    assert timing.median(lambda cost: cost.memory) == 100.0


def test_the_tables_show_what_was_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rates, CPU and GPU shares, memory, stages, ratios and reasons are shown with their units in 80 columns."""
    monkeypatch.setenv("COLUMNS", "80")
    busy = tuple(replace(cost, gpu_busy=0.9, gpu_memory=2000.0) for cost in costs(1.0, 2.0))
    ours, theirs = Timing("ens", 12, busy), Timing("torch", 12, costs(4.0, 4.0))
    text = Benchmark(
        images=12,
        views=("identity", "hflip"),
        device="cuda:0",
        models={"ens": (ModelInfo("a", "resnet18", "fp16"),)},
        machine=Machine(4, "a processor", ("a GPU",), "a system", {"Python": "3.11"}),
        timings=(theirs, ours),
        ratios=(ratio(ours, theirs),),
        agreements=(Agreement("torch", "ens", 64, 1, 1.5e-3),),
        left_out=("onnxruntime: no reason",),
    ).render()
    assert max(map(len, text.splitlines())) <= 80
    rows = [line.split() for line in text.splitlines()]
    assert ["ens", "9.0", "6.0", "12.0", "0.5"] in rows
    assert ["ens", "0.2500", "56%", "100", "90%", "2,000"] in rows
    assert ["torch", "3.0", "3.0", "3.0", "0.5"] in rows
    assert ["torch", "0.2500", "19%", "100", "-", "-"] in rows
    assert ["seconds", "in", "stage", "torch", "ens"] in rows
    assert ["decode", "1.00", "1.00"] in rows
    assert ["ens", "/", "torch", "3.00", "2.00", "4.00"] in rows
    assert "torch vs. ens: relative error of logits 1.5e-03, 1 of 64 predictions differ" in text
    assert "left out: onnxruntime: no reason" in text
    assert "4 cores of a processor; a GPU; a system; Python 3.11" in text


# ----------------------------------------------------------------------------------------------------- the agreement
def answers(logits: Any) -> dict[str, dict[str, Any]]:
    return {"a": {"identity": np.asarray(logits, dtype=np.float32)}}


def test_float32_answers_may_differ_by_rounding_only() -> None:
    """A relative difference of 1e-5 agrees, one of 1e-3 is E620 and names member and view, and so is NaN."""
    expected = answers([[1.0, 2.0, -10.0], [3.0, 0.0, 1.0]])
    limits = {"a": LIMITS["fp32"]}
    near = compare("x", answers([[1.0, 2.0001, -10.0], [3.0, 0.0, 1.0]]), "ens", expected, limits=limits)
    assert (near.answers, near.changed) == (2, 0)
    assert near.error == pytest.approx(1e-5, rel=0.01)
    for odd in (2.01, float("nan")):
        with pytest.raises(DeviceError) as caught:
            compare("x", answers([[1.0, odd, -10.0], [3.0, 0.0, 1.0]]), "ens", expected, limits=limits)
        assert caught.value.code == "E620"
        assert "a, identity: " in caught.value.details[0]


def test_another_class_is_not_excused_by_a_small_error() -> None:
    """Two logits that are almost equal and change places are E620 in float32; in fp16 one such answer may."""
    expected, found = answers([[1.0, 1.00001]] * 3), answers([[1.00001, 1.0]] + [[1.0, 1.00001]] * 2)
    with pytest.raises(DeviceError, match="the predictions of x differ from those of ens"):
        compare("x", found, "ens", expected, limits={"a": LIMITS["fp32"]})
    assert compare("x", found, "ens", expected, limits={"a": LIMITS["fp16"]}).changed == 1


def test_the_coarsest_precision_sets_the_limit() -> None:
    """fp32 against fp16 is measured by fp16's limit, whatever the order; every precision of a card has one."""
    assert loosest(["fp32", "fp32"]) == Limit(1e-4, 0.0)
    assert loosest(["fp16", "fp32"]) == loosest(["fp32", "fp16"]) == LIMITS["fp16"]
    assert loosest(["int8", "fp16"]) == LIMITS["int8"]
    assert set(get_args(Precision)) <= set(LIMITS)


def test_submissions_are_compared_by_their_classes() -> None:
    """One other class among four is within a limit of 0.3, and E620 at 0."""
    assert compare_classes("x", "aabc", "whole", "aabd", limit=0.3).changed == 1
    with pytest.raises(DeviceError, match="differ on 1 of 4 images"):
        compare_classes("x", "aabc", "whole", "aabd", limit=0.0)


# ---------------------------------------------------------------------------------------------------- the contenders
@pytest.mark.parametrize("function", [onnxruntime_loop, run_bound])
def test_a_contender_answers_as_predict_does(contest: Path, function: PassFunction[BenchJob]) -> None:
    """The onnxruntime baseline and the bound give the logits of `predict`, for both members, views and all rows."""
    results = [one(job(contest, warm_up=5), PassTimer()) for one in (run_predict, function)]
    expected, found = (result.logits for result in results)
    assert {member: set(views) for member, views in expected.items()} == {key: {"identity", "hflip"} for key in "ab"}
    for member, views in expected.items():
        for view, logits in views.items():
            assert logits.shape == (11, 18)
            np.testing.assert_allclose(found[member][view], logits, rtol=0, atol=1e-5)


def test_the_bound_goes_round_in_what_it_keeps(contest: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With two batches kept of three, all eleven rows are run, and those of the kept batches are answered."""
    monkeypatch.setattr("ensemble.bench.contenders._PREPARED", 8)
    asked: list[int] = []
    run_one = Session.run

    def counting(session: Session, batch: Pixels) -> Any:
        asked.append(len(batch))
        return run_one(session, batch)

    monkeypatch.setattr(Session, "run", counting)
    found = run_bound(job(contest), PassTimer()).logits
    assert sorted(asked) == [1, 1] + [3] * 4 + [4] * 8  # a model is tried on one image when it starts
    assert found["a"]["hflip"].shape == (8, 18)


def test_the_bound_takes_as_many_at_once_as_predict_did(contest: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A member that runs by twos in batches of four has two runs a batch, the other one."""
    asked: dict[str, list[int]] = {"a": [], "b": []}
    run_one = Session.run

    def counting(session: Session, batch: Pixels) -> Any:
        asked[session.card.member].append(len(batch))
        return run_one(session, batch)

    monkeypatch.setattr(Session, "run", counting)
    run_bound(replace(job(contest), at_once={"a": 2}), PassTimer())
    assert {member: max(sizes) for member, sizes in asked.items()} == {"a": 2, "b": 4}
    assert sum(asked["a"]) == sum(asked["b"]) == 1 + 2 * len(NAMES)


@pytest.mark.parametrize("device", ["cuda:0", "cuda:0,1"])
def test_the_bound_on_gpus_answers_as_predict_does(contest: Path, monkeypatch: pytest.MonkeyPatch, device: str) -> None:
    """From buffers that were filled before, on one GPU or two, the bound gives the logits of `predict`."""
    expected = run_predict(job(contest), PassTimer()).logits
    with fake_gpus(monkeypatch, contest):
        found = run_bound(job(contest, device=device, warm_up=5), PassTimer()).logits
    for member, views in expected.items():
        for view, logits in views.items():
            np.testing.assert_allclose(found[member][view], logits, rtol=0, atol=1e-5)


def test_rounds_alternate_and_the_bound_does_as_predict_did(contest: Path, passes: list[tuple[str, BenchJob]]) -> None:
    """Contenders are checked on a sample first; rounds run forwards and backwards, the bound in predict's batches."""
    done = bench(
        job(contest, ids=(), batch=3, workers=None),
        baselines={"onnxruntime": onnxruntime_loop},
        plan=BenchPlan(limit=10, rounds=2),
    )
    order = ["ens", "bound", "onnxruntime"]
    assert [name for name, _ in passes] == [*order, *order, *reversed(order)]
    assert all(one.ids == tuple(NAMES[:10]) for _, one in passes)
    assert [one.warm_up for _, one in passes] == [0] * 3 + [10] * 6
    assert {one.batch for name, one in passes if name == "bound"} == {3}
    assert {tuple(one.at_once.values()) for name, one in passes if name == "bound"} == {(3, 3)}
    assert [timing.name for timing in done.timings] == ["onnxruntime", "bound", "ens"]
    assert [(one.of, one.over) for one in done.ratios] == [("ens", "onnxruntime"), ("ens", "bound")]
    assert {one.contender: one.changed for one in done.agreements} == {"bound": 0, "onnxruntime": 0}


def test_only_the_named_contenders_run(contest: Path, passes: list[tuple[str, BenchJob]]) -> None:
    """With arms ens and bound the loop does not run; a name that is none of theirs, or a bound without ens, is E204."""
    plan = BenchPlan(rounds=1, arms=("bound", "ens"))
    done = bench(job(contest), baselines={"onnxruntime": onnxruntime_loop}, plan=plan)
    assert [name for name, _ in passes] == ["ens", "bound"] * 2
    assert [timing.name for timing in done.timings] == ["bound", "ens"]
    with pytest.raises(OptionError, match=r"E204.*'onnx' is not a contender here; there are ens, bound, onnxruntime"):
        bench(job(contest), baselines={"onnxruntime": onnxruntime_loop}, plan=BenchPlan(arms=("ens", "onnx")))
    with pytest.raises(OptionError, match=r"E204.*bound is compared with ens") as caught:
        bench(job(contest), baselines={}, plan=BenchPlan(arms=("bound",)))
    assert caught.value.hint == "add ens to --arms"


def test_a_quick_run_compares_what_it_timed(contest: Path, passes: list[tuple[str, BenchJob]]) -> None:
    """No pass only checks: one round is run, all its outputs are compared, and other weights are E620 all the same."""
    baselines = {"onnxruntime": onnxruntime_loop}
    done = bench(job(contest), baselines=baselines, plan=BenchPlan(rounds=1, quick=True))
    assert [name for name, _ in passes] == ["ens", "bound", "onnxruntime"]
    assert {one.contender: (one.answers, one.changed) for one in done.agreements} == {
        "bound": (44, 0),
        "onnxruntime": (44, 0),
    }
    for seed, (member, size) in enumerate((("a", (16, 12)), ("b", (24, 24)))):
        toys.write_model(contest / "other", toys.card(member, size=size), seed=seed + 7)
    with pytest.raises(DeviceError, match="E620"):
        bench(
            job(contest),
            baselines={},
            also={"other": models(contest, "other")},
            plan=BenchPlan(rounds=1, arms=("ens", "ens other"), quick=True),
        )


def test_on_a_gpu_predict_is_not_run_twice(contest: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The models of a GPU are warm once they have started: a pass starts each of them once, not again for a warm-up."""
    with fake_gpus(monkeypatch, contest) as gpus:
        run_predict(job(contest, device="cuda:0"), PassTimer())  # measures the provider options
        gpus.started.clear()
        run_predict(job(contest, device="cuda:0", warm_up=5), PassTimer())
        # two models, and the convolutions that prove the device, if it was not tried before in this process
        assert len([one for one in gpus.started if "arena_extend_strategy" in one[1]]) == 2


def test_other_weights_are_not_compared(contest: Path, passes: list[tuple[str, BenchJob]]) -> None:
    """A second set of the same members with other weights is E620 before anything is timed; one of other members is
    E204.
    """
    for seed, (member, size) in enumerate((("a", (16, 12)), ("b", (24, 24)))):
        toys.write_model(contest / "other", toys.card(member, size=size), seed=seed + 7)
    with pytest.raises(DeviceError) as caught:
        bench(job(contest, tta=False), baselines={}, also={"other": models(contest, "other")})
    assert caught.value.code == "E620"
    assert caught.value.message == "the predictions of ens other differ from those of ens"
    assert len(passes) == 4
    with pytest.raises(OptionError, match="other holds the members a, not a, b"):
        bench(job(contest), baselines={}, also={"other": models(contest, "other")[:1]})


def test_other_sets_and_submit_run_in_the_same_rounds(contest: Path, passes: list[tuple[str, BenchJob]]) -> None:
    """--also and --recipe add contenders for each set of models, and ratios over the loops and over `predict`."""
    preds, recipe = f"{contest / 'preds'}", f"{contest / 'blend.json'}"
    arguments = [f"{contest / 'models'}", "--images", f"{contest / 'images'}", "--tta", "--device", "cpu"]
    assert run(["predict", *arguments, "-o", preds]) == 0
    assert run(["blend", preds, "--save", recipe, "-o", f"{contest / 's.csv'}"]) == 0
    (contest / "again").mkdir()
    for path in models(contest):
        (contest / "again" / path.name).write_bytes(path.read_bytes())
    options = ["--also", f"{contest / 'again'}", "--recipe", recipe, "--early-exit", "exact", "--rounds", "1"]
    output = contest / "bench.json"
    assert run(["bench", *arguments, *options, "-o", f"{output}"]) == 0
    found = json.loads(output.read_text())
    names = ["onnxruntime", "bound again", "submit again", "ens again", "bound", "submit", "ens"]
    assert [contender["name"] for contender in found["arms"]] == names
    over = {(one["of"], one["over"]) for one in found["ratios"]}
    assert over == {
        ("ens", "onnxruntime"),
        ("ens", "bound"),
        ("submit", "onnxruntime"),
        ("submit", "ens"),
        ("ens again", "onnxruntime"),
        ("ens again", "bound again"),
        ("ens again", "ens"),
        ("submit again", "onnxruntime"),
        ("submit again", "ens"),
    }
    told = {one["arm"]: (one["reference"], one["changed"]) for one in found["agreements"]}
    assert told["submit again"] == ("all its members", 0)
    assert told["bound again"] == ("ens again", 0)
    stages = next(contender["stages"] for contender in found["arms"] if contender["name"] == "submit")
    assert stages["of"] == 44
    assert 22 <= stages["passes"] <= 44


def test_a_share_needs_out_of_fold_predictions(contest: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """--early-exit 0.99 without --oof, and any without --recipe, is E204."""
    base = ["bench", f"{contest / 'models'}", "--images", f"{contest / 'images'}"]
    assert run([*base, "--recipe", "blend.json", "--early-exit", "0.99"]) == 2
    assert run([*base, "--early-exit", "exact"]) == 2
    assert capsys.readouterr().err.count("error[E204]") == 2
    assert RunSubmit(Path("r.json"), early=True, goal=Keep(0.99), oof=(Path("oof"),)).without_exit() == RunSubmit(
        Path("r.json")
    )


# ----------------------------------------------------------------------------------------------------- real processes
def test_the_command_runs_without_torch_and_says_so(contest: Path) -> None:
    """In the light installation the torch loop is left out with W622; the rest has rates, memory, stages and ratios."""
    options = ("--tta", "--device", "cpu", "--rounds", "1", "--json", "-o", contest / "bench.json")
    done = ens("bench", contest / "models", "--images", contest / "images", *options)
    assert done.returncode == 0, done.stderr
    assert "warning[W622] torch: torch or timm is not installed" in done.stderr
    found = json.loads(done.stdout)
    assert found == json.loads((contest / "bench.json").read_text())
    assert found["left_out"] == ["torch: torch or timm is not installed"]
    assert [contender["name"] for contender in found["arms"]] == ["onnxruntime", "bound", "ens"]
    for contender in found["arms"]:
        assert contender["images_per_second"] > 0
        (cost,) = contender["rounds"]
        assert 10 < cost["memory"] < 2000
        assert cost["start"] > 0
        assert cost["cpu"] > 0
    assert {"decode", "forward", "write"} <= found["arms"][-1]["stages"].keys()
    assert found["machine"]["cores"] >= 1
    assert "onnx" in " ".join(found["machine"]["versions"])


def fail(job: str, timer: PassTimer) -> PassResult:
    """A loop that raises, has a bug or dies, as the job says."""
    if job == "raise":
        raise DataError("E302", "the file is empty")
    if job == "die":
        os._exit(3)
    raise ZeroDivisionError(job)


def test_what_goes_wrong_in_a_pass_arrives(contest: Path) -> None:
    """An error of ours crosses over as it was, a bug with its traceback, and a death is E621 with the status."""
    with pytest.raises(DataError) as caught:
        measure(fail, "raise", name="loop")
    assert caught.value.code == "E302"
    with pytest.raises(RuntimeError, match=r"(?s)Traceback.*ZeroDivisionError: bug"):
        measure(fail, "bug", name="loop")
    with pytest.raises(DeviceError) as died:
        measure(fail, "die", name="loop")
    assert (died.value.code, died.value.message) == ("E621", "loop: its process ended with status 3")


def own_way(job: str, timer: PassTimer) -> PassResult:
    """Say how worker processes would start here."""
    timer.start()
    timer.stop()
    return PassResult({}, 1, 1, classes=(get_start_method(),))


def test_a_pass_starts_its_workers_as_a_script_would() -> None:
    """A loop's worker processes start by Python's default, however the pass itself was started: spawning a DataLoader's
    workers would cost it seconds that no user pays.
    """
    assert measure(own_way, "", name="loop").result.classes == (get_start_method(),)


def test_the_gpu_is_asked_while_the_clock_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of what nvidia-smi says, only what it says while the timer runs is kept, and lines without figures are not."""
    tool = tmp_path / "nvidia-smi"
    tool.write_text('#!/bin/sh\nwhile echo "[N/A], 7" && echo "40, 1500"; do sleep 0.01; done\n')
    tool.chmod(tool.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    with sample_gpu(0) as samples:
        assert samples.busy == []
        samples.counting = True
        deadline = time.monotonic() + HANG
        while not samples.busy and time.monotonic() < deadline:
            time.sleep(0.01)
    assert set(samples.busy) == {40.0}
    assert set(samples.memory) == {1500.0}
    with sample_gpu(None) as nobody:
        pass
    assert nobody.busy == []
