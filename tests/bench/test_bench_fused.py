"""`ens bench` of a fused file: `ens predict`, the forward passes alone and a plain loop give the same answers."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner

from ensemble.bench import bench as module
from ensemble.bench.bench import BenchPlan, bench
from ensemble.bench.contenders import BenchJob
from ensemble.bench.fused_contenders import run_fused, run_fused_bound
from ensemble.bench.process_meter import Pass, PassFunction, PassTimer
from ensemble.cli import ens
from ensemble.errors import OptionError
from ensemble.fuse.fused_session import start_fused
from ensemble.images.decode import read_image
from ensemble.labels import LabelSpace
from exporters.bench_baselines import fused_loop
from tests.support.fused import fused_proto
from tests.support.toys import write_pictures

NAMES = [f"{i}.jpg" for i in range(5)]


def make_job(folder: Path, **changes: Any) -> BenchJob:
    """A job about a fused file and five pictures."""
    write_pictures(folder / "images", NAMES)
    (folder / "both.onnx").write_bytes(fused_proto(**changes).SerializeToString())
    return BenchJob((folder / "both.onnx",), folder / "images", tuple(NAMES), device="cpu", workers=1)


@pytest.mark.parametrize("independent", [False, True])
def test_every_contender_gives_the_files_answers(tmp_path: Path, independent: bool) -> None:
    """The logarithms of its probabilities, log-odds for independent labels, of all images after a warm-up."""
    job = replace(make_job(tmp_path, independent=independent, labels=LabelSpace.flat(4)), warm_up=2)
    session = start_fused(job.models[0].read_bytes(), job.models[0])
    p = np.concatenate([session.run(read_image(job.images / n).pixels[np.newaxis]).probabilities for n in NAMES])
    expected = np.log(p) - np.log(1 - p) if independent else np.log(p)
    for function in (run_fused, run_fused_bound, fused_loop):
        found = function(job, PassTimer()).logits["both"]["identity"]
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)


def test_the_result_lists_the_file_and_the_ratios(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """All contenders are checked, timed and compared; the file is listed as one model."""

    def here(function: PassFunction[BenchJob], job: BenchJob, *, name: str, gpu: int | None = None) -> Pass:
        timer = PassTimer()
        result = function(job, timer)
        return Pass(result, timer.cost(result))

    monkeypatch.setattr(module, "measure", here)
    done = bench(make_job(tmp_path), baselines={"onnxruntime": fused_loop}, plan=BenchPlan(rounds=2))
    assert [one.name for one in done.timings] == ["onnxruntime", "bound", "ens"]
    assert [(one.of, one.over) for one in done.ratios] == [("ens", "onnxruntime"), ("ens", "bound")]
    assert [(one.contender, one.changed) for one in done.agreements] == [("bound", 0), ("onnxruntime", 0)]
    assert str(done.models["ens"][0]) == "both (fused, fp32)"


@pytest.mark.parametrize("more", [["--tta"], ["--also", "int8"], ["--checkpoints", "weights"], ["--device", "cpu"]])
def test_options_of_members_are_refused(tmp_path: Path, more: list[str]) -> None:
    """Each is named, before anything runs."""
    job = make_job(tmp_path)
    refused = CliRunner().invoke(ens, ["bench", str(job.models[0]), "--images", str(job.images), *more]).exception
    assert isinstance(refused, OptionError)
    assert refused.message.startswith(more[0])


def test_face_crops_need_boxes(tmp_path: Path) -> None:
    """Without --boxes a file of face crops is E206, before any process starts."""
    with pytest.raises(OptionError, match="face boxes") as caught:
        bench(make_job(tmp_path, boxes=True), baselines={})
    assert caught.value.code == "E206"
