"""The loops that the benchmark compares with: they do the same job as `ens predict`, from the same weights."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from checkpoints.loading.head_options import HeadRequest
from checkpoints.loading.open import open_checkpoint
from checkpoints.loading.open_options import OpenOptions
from ensemble.__main__ import run
from ensemble.bench import bench as module
from ensemble.bench.contenders import BenchJob, run_predict
from ensemble.bench.process_meter import Pass, PassTimer, measure
from ensemble.errors import DeviceError
from ensemble.events import Recorder
from ensemble.labels import MASK18
from ensemble.runtime.parity import relative_error
from exporters.bench_baselines import FoundWeights, TorchLoop, find_weights, normalize, pad
from exporters.export import ExportOptions, export
from tests.support import toys
from tests.support.networks import make_checkpoint

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("one_thread")]

NAMES = [f"{i:02d}.jpg" for i in range(9)]


@dataclass(frozen=True, slots=True)
class Bench:
    """A model, the file of its weights, one of other weights, and the images."""

    model: Path
    weights: Path
    others: Path
    job: BenchJob


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Bench:
    """A small ResNet exported from a file, with a mean and a size that no default has."""
    home = tmp_path_factory.mktemp("bench")
    paths = [home / "weights" / f"r{seed}.pth" for seed in (0, 1)]
    paths[0].parent.mkdir()
    for seed, path in enumerate(paths):
        torch.save(dict(make_checkpoint(seed=seed).state_dict), path)
    options = ExportOptions(labels=MASK18, size=(48, 32), resize="squash", mean=(0.5, 0.4, 0.3))
    model = export(open_checkpoint(paths[0], arch="test_resnet"), home / "models", options=options).path
    toys.write_pictures(home / "images", NAMES)
    return Bench(model, paths[0], paths[1], BenchJob((model,), home / "images", tuple(NAMES), True, "cpu"))


@pytest.fixture
def in_line(monkeypatch: pytest.MonkeyPatch) -> None:
    """Spares a test the worker processes of the DataLoader and of the benchmark."""
    from torch.utils import data

    loader: Any = data.DataLoader
    monkeypatch.setattr(data, "DataLoader", lambda photos, batch, **_: loader(photos, batch))

    def here(function: Any, job: BenchJob, *, name: str, gpu: int | None = None) -> Pass:
        timer = PassTimer()
        result = function(job, timer)
        return Pass(result, timer.cost(result))

    monkeypatch.setattr(module, "measure", here)


@pytest.mark.usefixtures("in_line")
def test_a_checkpoint_that_needs_options_leaves_the_torch_loop_out(made: Bench, tmp_path: Path) -> None:
    """A head whose activations the weights do not tell leaves the timed loop out, unless its options are given."""
    state = dict(make_checkpoint(seed=0).state_dict)
    head = torch.nn.Sequential(torch.nn.Linear(state["fc.weight"].shape[1], 8), torch.nn.ReLU(), torch.nn.Linear(8, 18))
    state = {key: tensor for key, tensor in state.items() if not key.startswith("fc.")}
    torch.save(state | {f"fc.{key}": tensor for key, tensor in head.state_dict().items()}, tmp_path / "a.pth")
    opened = open_checkpoint(
        tmp_path / "a.pth", arch="test_resnet", head=HeadRequest(layers=("linear", "relu", "linear"))
    )
    options = ExportOptions(labels=MASK18, size=(48, 32))
    model = export(opened, tmp_path / "models", options=options).path
    found = find_weights([model], [tmp_path])
    assert found.checkpoints == {}
    assert "the checkpoint of a cannot be opened from its card alone" in found.problem
    assert "activations between its layers" in found.problem
    given = OpenOptions(head=HeadRequest(layers=("linear", "relu")))
    wrong = find_weights([model], [tmp_path], options=given)
    assert "cannot be opened with the options that were given" in wrong.problem
    given = OpenOptions(head=HeadRequest(layers=("linear", "relu", "linear")))
    heard = Recorder()
    both = find_weights([model, made.model], [tmp_path, made.weights], options=given, listener=heard)
    assert (both.problem, both.options) == ("", {"a": given})
    job = BenchJob((model,), made.job.images, made.job.ids[:2], False, "cpu")
    expected = run_predict(job, PassTimer()).logits["a"]["identity"]
    timed = TorchLoop(both.checkpoints, both.options)(job, PassTimer()).logits["a"]["identity"]
    assert relative_error(expected, timed) < 1e-5
    (notice,) = heard.notices
    assert "the checkpoint of r0 is opened by its card alone, without the options" in notice.message


def test_the_torch_loop_answers_as_predict_does(made: Bench) -> None:
    """In a process of its own, with worker processes, the logits of both views are those of `predict`; the memory is
    that of all its processes.
    """
    expected = run_predict(made.job, PassTimer()).logits["r0"]
    done = measure(TorchLoop({"r0": made.weights}), made.job, name="torch")
    assert set(done.result.logits["r0"]) == set(expected) == {"identity", "hflip"}
    for view, logits in expected.items():
        assert relative_error(logits, done.result.logits["r0"][view]) < 1e-5
    assert relative_error(expected["identity"], expected["hflip"]) > 1e-3, "the views differ"
    assert done.cost.memory is not None
    assert done.cost.memory > 100
    assert done.result.batch == 32


@pytest.mark.usefixtures("in_line")
def test_other_weights_in_the_torch_loop_are_found_out(made: Bench) -> None:
    """A torch loop with weights that the model did not come from is E620, and nothing is timed."""
    with pytest.raises(DeviceError) as caught:
        module.bench(made.job, baselines={"torch": TorchLoop({"r0": made.others})}, plan=module.BenchPlan(rounds=1))
    assert caught.value.code == "E620"
    assert caught.value.message == "the predictions of torch differ from those of ens"
    assert len(caught.value.details) == 2


@pytest.mark.usefixtures("in_line")
def test_the_weights_are_found_by_their_hash(made: Bench, capsys: pytest.CaptureFixture[str]) -> None:
    """A folder of checkpoints serves the torch loop with the one that the model's card names."""
    arguments = [f"{made.model}", "--images", f"{made.job.images}", "--device", "cpu", "--rounds", "1", "--json"]
    assert run(["bench", *arguments, "--checkpoints", f"{made.weights.parent}"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert [contender["name"] for contender in found["arms"]] == ["torch", "onnxruntime", "bound", "ens"]
    assert found["left_out"] == []
    assert found["views"] == ["identity"]
    assert found["models"]["ens"] == [{"member": "r0", "arch": "test_resnet", "precision": "fp32"}]


def test_without_its_weights_there_is_no_torch_loop(made: Bench) -> None:
    """No --checkpoints, or others only, leaves the loop out and says why."""
    assert find_weights([made.model], [made.weights.parent]) == FoundWeights({"r0": made.weights})
    assert find_weights([made.model], []) == FoundWeights({}, "it needs --checkpoints")
    other = "--checkpoints does not contain the weights of r0"
    assert find_weights([made.model], [made.others]) == FoundWeights({}, other)


def test_the_last_batch_is_filled_up_for_a_gpu() -> None:
    """Three images become five by repeating the last; five stay five."""
    pixels = torch.arange(3 * 2 * 2 * 3, dtype=torch.uint8).reshape(3, 2, 2, 3)
    filled = pad(pixels, 5)
    assert filled.shape == (5, 2, 2, 3)
    assert torch.equal(filled[:3], pixels)
    assert torch.equal(filled[3], pixels[2])
    assert pad(filled, 5) is filled


def test_pixels_are_normalized_in_planes() -> None:
    """Planes come out contiguous, in float32, less the mean and over the deviation of each channel."""
    pixels = torch.tensor(np.random.default_rng(0).integers(0, 256, (2, 16, 12, 3), dtype=np.uint8))
    mean, std = torch.tensor([0.5, 0.4, 0.3]), torch.tensor([0.5, 0.25, 1.0])
    found = normalize(pixels, mean.reshape(3, 1, 1), std.reshape(3, 1, 1))
    assert found.is_contiguous()
    expected = (pixels.numpy() / 255 - mean.numpy()) / std.numpy()
    np.testing.assert_allclose(found.numpy(), expected.transpose(0, 3, 1, 2), atol=1e-6)
