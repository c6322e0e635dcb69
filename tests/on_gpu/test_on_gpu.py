"""What a person with a GPU runs: its steps, figures and verdicts, as far as a fake GPU shows them."""

from __future__ import annotations

import json
import math
import struct
import sys
import tarfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from ensemble.bench.process_meter import Pass, PassTimer
from ensemble.runtime import gpu_start
from ensemble.runtime.model_file import read_model
from tests.on_gpu import __main__ as on_gpu
from tests.on_gpu import jobs, options, pack, steps
from tests.on_gpu.__main__ import SECONDS, Paths, run_step, run_steps
from tests.on_gpu.verdicts import judge
from tests.support import toys
from tests.support.gpus import fake_gpus

pytestmark = pytest.mark.slow  # steps are processes, and measure models many times
NAMES = [f"{i:02d}.jpg" for i in range(7)]


@pytest.fixture
def folders(tmp_path: Path) -> Path:
    """Seven pictures and two models."""
    toys.write_pictures(tmp_path / "images", NAMES)
    for name, size in (("a", (16, 12)), ("b", (24, 24))):
        card = toys.card(name, size=size)
        toys.write_model(tmp_path / "models", card, proto=toys.convolutional_proto(card))
    return tmp_path


@pytest.fixture
def step(folders: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[steps.Step]:
    """A step on a fake GPU, in this process; twenty images instead of 12,600."""

    def here(function: Any, job: Any, *, name: str, gpu: int | None = None) -> Pass:
        timer = PassTimer()
        result = function(job, timer)
        return Pass(result, timer.cost(result))

    monkeypatch.setattr(jobs, "measure", here)
    monkeypatch.setattr(jobs, "COUNT", 20)
    monkeypatch.setattr(steps, "ROWS", (2, 4))
    monkeypatch.setattr(options, "kernel_names", lambda *_: ("sm90_xmma_fprop_implicit_gemm_f16f16",))
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)  # the torch loop would compile for minutes
    (folders / "work").mkdir()
    monkeypatch.setattr(gpu_start, "RUNS", 1)  # times of the CPU decide nothing
    with fake_gpus(monkeypatch, folders):
        yield steps.Step(folders / "work", folders / "models", folders / "images", folders / "figures.json")


def figures(step: steps.Step) -> dict[str, Any]:
    """Read what the step has written."""
    found: dict[str, Any] = json.loads(step.figures.read_text())
    return found


# --------------------------------------------------------------------------------------------------------- the steps
def test_without_a_gpu_each_step_says_so(folders: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """In processes of their own, doctor fails with the cause, another step is skipped with it, and each has a line of
    figures; a second run adds lines.
    """
    given = [f"--{name}={folders / name}" for name in ("work", "models", "images", "out")]
    for lines in (2, 4):
        assert on_gpu.main([*given, "--steps", "doctor,parity"]) == 1
        said = capfd.readouterr().out.splitlines()
        assert said[0].startswith("FAIL doctor: cuda:0 does not start: ")
        assert said[1].startswith("SKIP parity: no CUDA device here: ")
        records = [json.loads(line) for line in (folders / "out" / "figures.jsonl").read_text().splitlines()]
        assert len(records) == lines
        assert [one["step"] for one in records[-2:]] == ["doctor", "parity"]
        assert records[-1]["verdict"]["state"] == "SKIP"
        assert "===== parity" in (folders / "out" / "log.txt").read_text()


def test_a_step_that_does_not_end_is_ended(folders: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Past its deadline a step's processes end, what it wrote so far is kept, and the next step runs."""
    paths = Paths(*(folders / name for name in ("work", "models", "images", "out")))
    for folder in (paths.work, paths.out):
        folder.mkdir()
    code = "import sys,time,pathlib; pathlib.Path(sys.argv[-1]).write_text('{\"passed\": 3}'); time.sleep(600)"
    monkeypatch.setattr(sys, "executable", str(_script(folders / "python", code)))
    record = run_step("tests", paths, limit=2.0)
    assert (record["passed"], record["error"]) == (3, "not finished after 2 s")
    assert str(judge(record)).startswith("FAIL tests: not finished after 2 s")
    verdicts = run_steps(["r2", "r10"], paths, budget=4.0)
    assert [(one.step, one.state) for one in verdicts] == [("r2", "FAIL"), ("r10", "FAIL")]


def _script(path: Path, code: str) -> Path:
    """Write an interpreter that runs other code than it is asked for."""
    path.write_text(f"#!{sys.executable}\n{code}\n")
    path.chmod(0o755)
    return path


def test_parity_compares_every_model(step: steps.Step) -> None:
    """Both models and one with asymmetric padding are compared over both views; the verdict passes."""
    steps.parity(step)
    found = figures(step)
    assert set(found["models"]) == {"a fp32", "b fp32", "asymmetric fp32"}
    assert all(one["error"] < 1e-4 and one["images"] == 14 for one in found["models"].values())
    assert judge({"step": "parity", **found}).state == "PASS"


def test_options_times_every_change(step: steps.Step) -> None:
    """Each change of the provider options has a rate at both batch sizes."""
    steps.options(step)
    found = figures(step)
    assert set(found["rates"]) == {f"toy fp32, {rows}" for rows in (2, 4)}
    assert all(set(rates) == set(options.CHANGES) for rates in found["rates"].values())
    assert found["tensor_cores"] == {"toy fp32": True}
    assert judge({"step": "options", **found}).state == "PASS"


def test_the_reference_jobs_are_measured(step: steps.Step) -> None:
    """r2 and r10 have rates, ratios to the bound and to the decoding, and the time to the first image."""
    steps.r2(step)
    found = figures(step)
    assert (found["images"], found["members"]) == (20, ["a"])
    assert found["of_decoding"] == pytest.approx(found["images_per_second"] / found["decoding"])
    step.found.clear()
    steps.r10(step)
    found = figures(step)
    assert found["members"] == [f"a-{fold}" for fold in range(5)]
    assert found["over_bound"] == pytest.approx(found["seconds_of_ens"] / found["seconds_of_bound"])
    assert found["torch"] == "left out: timm is not installed"
    assert found["over_onnxruntime"] > 0
    assert found["first_image"] > 0


def test_an_error_of_a_step_is_one_of_its_figures(step: steps.Step, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a step raises is kept with what was measured before it, and its exit status is 1."""

    def fail(one: steps.Step) -> None:
        one.keep(images_per_second=5.0)
        raise ZeroDivisionError("by the way")

    monkeypatch.setattr(steps, "STEPS", {"r2": fail})
    given = [str(path) for path in (step.work, step.models, step.images, step.figures)]
    assert steps.main(["r2", *given]) == 1
    assert figures(step) == {"images_per_second": 5.0, "error": "by the way"}


def test_folds_differ_a_little(folders: Path) -> None:
    """Folds have names of their own, other weights by about a thousandth, and the same graph."""
    model = read_model(folders / "models" / "a.onnx")
    made = jobs.make_folds(model, folders / "folds", count=2)
    assert [one.card.member for one in made] == ["a-0", "a-1"]
    weights = [onnx.load_from_string(one.data).graph.initializer for one in (model, *made)]
    for first, second, third in zip(*weights, strict=True):
        a, b, c = (onnx.numpy_helper.to_array(one) for one in (first, second, third))
        if a.ndim > 1:
            assert 0 < np.abs(a - b).max() < 0.01
            assert not np.array_equal(b, c)
        else:
            assert np.array_equal(a, b)


def test_images_are_linked_and_not_copied(folders: Path) -> None:
    """Twenty links to seven pictures take no space, and a second call makes none again."""
    for _ in range(2):
        many = jobs.repeat_images(folders / "images", folders / "many", count=20)
        assert len(list(many.iterdir())) == 20
    assert sum(path.stat().st_nlink for path in (folders / "images").iterdir()) == 20 + 7


# ------------------------------------------------------------------------------------------------------ the verdicts
GOOD: Mapping[str, Mapping[str, Any]] = {
    "doctor": {"cuda:0": {"works": True}, "cudnn": "9.26.0", "convolutions": {"float32, split": "ok"}},
    "tests": {"passed": 12, "failed": 0},
    "parity": {"models": {"a": {"error": 1e-4, "changed": 0, "images": 128, "precision": "fp32"}}},
    "options": {"rates": {"r18 fp16, 128": {"plain": 9e3}}, "tensor_cores": {"r18 fp16": True}},
    "r2": {"images_per_second": 2500.0, "of_decoding": 0.93},
    "r10": {"images_per_second": 400.0, "over_bound": 1.05, "busy": 0.9, "first_image": 20.0, "over_torch": 3.2},
}


@pytest.mark.parametrize(
    ("step", "change", "said"),
    [
        ("doctor", {"cuda:0": {"works": False, "cause": "no driver"}}, "cuda:0 does not start: no driver"),
        ("doctor", {"convolutions": {"float16, asymmetric padding split": "Traceback"}}, "split: Traceback"),
        ("doctor", {"cudnn": None}, "the version of cuDNN is not known"),
        ("tests", {"failed": 2, "names": ["x.a", "x.b"]}, "2 tests failed: x.a, x.b"),
        ("tests", {"passed": 0}, "no test passed"),
        ("parity", {"models": {}}, "no model was compared"),
        ("parity", {"models": {"a": {"error": 2e-3, "changed": 0, "images": 9, "precision": "fp32"}}}, "2.0e-03"),
        ("parity", {"models": {"a": {"error": math.nan, "changed": 0, "images": 9, "precision": "fp16"}}}, "nan"),
        ("parity", {"models": {"a": {"failure": "[E605] why", "precision": "fp16"}}}, "a: [E605] why"),
        ("options", {"rates": {}}, "nothing was measured"),
        ("options", {"tensor_cores": {"r18 fp16": False}}, "do not use the tensor cores"),
        ("r2", {"images_per_second": None}, "it was not measured"),
        ("r2", {"of_decoding": 0.5, "over_bound": 1.4}, "50% of what all cores decode"),
        ("r10", {"over_bound": 1.2}, "1.20 times the bound"),
        ("r10", {"busy": 0.7}, "busy 70%"),
        ("r10", {"first_image": 80.0}, "the first image after 80 s"),
        ("r10", {"over_torch": 1.5}, "1.5 times the torch loop"),
        ("r10", {"error": "not finished after 180 s"}, "not finished after 180 s"),
    ],
)
def test_a_verdict_names_what_failed(step: str, change: Mapping[str, Any], said: str) -> None:
    """Each target that is missed fails its step in words; the figures that meet it pass."""
    assert judge({"step": step, **GOOD[step]}).state == "PASS"
    verdict = judge({"step": step, **GOOD[step], **change})
    assert verdict.state == "FAIL"
    assert said in verdict.text
    assert set(GOOD) == set(SECONDS)


def test_padding_that_cudnn_refuses_unsplit_is_no_fault() -> None:
    """What cuDNN cannot do and the program does not ask of it is a figure, not a failure."""
    convolutions = {"float16, asymmetric padding unsplit": "HEURISTIC_QUERY_FAILED", "float16, ... split": "ok"}
    assert judge({"step": "doctor", **GOOD["doctor"], "convolutions": convolutions}).state == "PASS"


@pytest.mark.parametrize(
    ("kernels", "expected"),
    [
        ((), None),
        (("void implicit_convolve_sgemm<float>",), False),
        (("sm80_xmma_fprop_implicit_gemm_f16f16_f16f32_f32_nhwckrsc_nhwc_tilesize128x128x32_stage4_s16816",), True),
        (("cutlass__5x_cudnn::Kernel<cutlass_tensorop_f16_s16816fprop_optimized_f16_128x64>",), True),
    ],
)
def test_tensor_cores_are_read_from_the_names_of_kernels(kernels: tuple[str, ...], expected: bool | None) -> None:
    """Names of kernels with and without tensor cores are told apart; without names nothing is claimed."""
    assert options.uses_tensor_cores(kernels) is expected


# ------------------------------------------------------------------------------------------------------- the packing
def fat_binary(*images: tuple[int, int, bytes]) -> bytes:
    """A library with one container of images: kind, architecture, code."""
    body = b""
    for kind, architecture, code in images:
        header = struct.pack("<HHIQIIHHI", kind, 0x0101, 64, len(code), len(code), 0, 8, 1, architecture)
        body += header.ljust(64, b"\0") + code
    return b"\x7fELF...." + struct.pack("<IHHQ", 0xBA55ED50, 1, 16, len(body)) + body + b"the rest"


def test_only_the_code_of_other_architectures_becomes_zeros() -> None:
    """Headers, the wanted code and everything outside stay where they are; what is gone is zeros of the same size."""
    data = bytearray(fat_binary((2, 80, b"eighty" * 9), (2, 90, b"ninety" * 9), (1, 120, b"source" * 9)))
    before = bytes(data)
    assert pack.keep_architecture(data, 90) == 2 * 54
    assert len(data) == len(before)
    assert b"ninety" * 9 in data
    assert b"eighty" not in data
    assert b"source" not in data
    assert data.endswith(b"the rest")
    assert [(one.kind, one.architecture) for one in pack.find_images(data)] == [("elf", 80), ("elf", 90), ("ptx", 120)]


def test_an_architecture_that_is_not_there_is_an_error() -> None:
    """Nothing is zeroed when the wanted code is missing, or when the bytes hold no container that is whole."""
    data = bytearray(fat_binary((2, 80, b"eighty")))
    with pytest.raises(ValueError, match="no code for sm_90, only for sm_80"):
        pack.keep_architecture(data, 90)
    broken = bytearray(fat_binary((7, 80, b"eighty")))
    with pytest.raises(ValueError, match="only for none"):
        pack.keep_architecture(broken, 80)
    assert b"eighty" in data


def test_the_archive_holds_what_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The Python files, the binding and the zeroed CUDA provider are packed; TensorRT and what is not used are not."""
    files = {
        "onnxruntime/__init__.py": b"",
        f"onnxruntime/capi/{pack.PROVIDER}": fat_binary((2, 80, b"eighty"), (2, 90, b"ninety")),
    }
    monkeypatch.setattr(pack, "read_package", lambda wheel: iter(files.items()))
    pack.pack(None, tmp_path / "a.tar.xz", architecture=90)
    with tarfile.open(tmp_path / "a.tar.xz") as archive:
        assert archive.getnames() == list(files)
        kept = archive.extractfile(f"onnxruntime/capi/{pack.PROVIDER}")
        assert kept is not None
        assert b"eighty" not in kept.read()
    monkeypatch.undo()
    names = [name for name, _ in pack.read_package(None)]
    assert "onnxruntime/__init__.py" in names
    assert not [name for name in names if "tensorrt" in name or "/transformers/" in name or "__pycache__" in name]
