"""Two processes on the CPU, started by accelerate launch, train the same weights as one process."""

from __future__ import annotations

import csv
import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from click.testing import CliRunner, Result

from checkpoints.loading.network import make_network
from checkpoints.loading.open import open_checkpoint
from checkpoints.training.distributed import DistributedContext, init_distributed
from checkpoints.training.training_state import save_state
from ensemble.cli import ens
from ensemble.errors import EnsError, ModelError, OptionError
from ensemble.predictions.dataset import read_predictions
from tests.support.bars import draw_bars
from tests.support.limits import HANG

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("one_thread")]

ROOT = Path(__file__).parents[3]
# no batch statistics, which differ per shard on the CPU; nothing drawn per shard; a loss that is not a mean over images
OPTIONS = (
    *("--arch", "test_vit2", "--member", "m", "--size", "32", "--folds", "2", "--epochs", "2", "--batch", "4"),
    *("--optimizer", "sgd", "--lr", "0.02", "--accumulate", "2", "--ema", "0.5", "--clip", "1", "--freeze", "1"),
    *("--loss", "0.6*focal+0.4*f1", "--class-weights", "ins", "--augment", "light", "--json"),
)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Images of nine people in three classes, some of them with one image less."""
    root = tmp_path_factory.mktemp("bars")
    rows = [row for row in draw_bars(root) if row.label % 6 == 0 and (row.label or int(row.person) % 3)]
    lines = [f"{row.path.name},{row.label // 6},p{row.person}" for row in rows]
    (root / "rows.csv").write_text("\n".join(["path,label,person", *lines]) + "\n")
    return root / "rows.csv"


def words(data: Path, out: Path, *more: str) -> list[str]:
    return ["train", str(data), "-o", str(out), *OPTIONS, *more]


def alone(data: Path, out: Path) -> Result:
    return CliRunner().invoke(ens, [*words(data, out), "--device", "cpu"])


def run(*words: str, **more: str) -> subprocess.CompletedProcess[str]:
    """Python without a GPU."""
    environment = os.environ | {"PYTHONPATH": str(ROOT), "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"} | more
    return subprocess.run(
        [sys.executable, *words], env=environment, capture_output=True, text=True, check=False, timeout=HANG
    )


def files(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def losses(path: Path) -> list[float]:
    with path.open(newline="") as f:
        return [float(row["loss"]) for row in csv.DictReader(f)]


@pytest.fixture(scope="module")
def one(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("one")
    assert alone(data, out).exit_code == 0
    return out


@pytest.fixture(scope="module")
def two(data: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, subprocess.CompletedProcess[str]]:
    """Train with two processes; they resume fold 0, which one process trained for one epoch."""
    out = tmp_path_factory.mktemp("two")

    def stop(*arguments: Any, **options: Any) -> None:
        save_state(*arguments, **options)
        raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("checkpoints.training.epochs.save_state", stop)
        assert alone(data, out).exit_code != 0
    assert (out / "m" / "fold0.state").exists()
    launcher = ("-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2", "--num_machines", "1")
    quiet = ("--main_process_port", "0", "--mixed_precision", "no", "--dynamo_backend", "no")
    done = run(*launcher, *quiet, "-m", "ensemble", *words(data, out))
    assert done.returncode == 0, done.stderr
    return out, done


def test_two_processes_learn_what_one_learns(
    one: Path, two: tuple[Path, subprocess.CompletedProcess[str]], data: Path
) -> None:
    """Weights, losses and out-of-fold logits are those of one process, for a loss that is not a mean over shards."""
    out, _ = two
    for fold in (0, 1):
        states = [open_checkpoint(root / "m" / f"fold{fold}.safetensors").state_dict for root in (one, out)]
        for key, tensor in states[0].items():
            torch.testing.assert_close(tensor, states[1][key], rtol=1e-4, atol=1e-5)
        logs = [losses(root / "m" / f"fold{fold}.csv") for root in (one, out)]
        assert logs[0] == pytest.approx(logs[1], rel=1e-4)
        said = [read_predictions(root / "m" / "oof" / f"m_f{fold}") for root in (one, out)]
        assert said[0].ids == said[1].ids
        assert said[0].logits["hflip"] == pytest.approx(said[1].logits["hflip"], rel=1e-3, abs=1e-4)


def test_only_the_main_process_writes_and_speaks(one: Path, two: tuple[Path, subprocess.CompletedProcess[str]]) -> None:
    """There is one set of files, as of one process, one result, and one notice about resuming."""
    out, done = two
    assert files(out).keys() == files(one).keys()
    assert json.loads(done.stdout)["oof"] == str(out / "m" / "oof")
    assert done.stderr.count("I445") == 1


def test_a_process_that_lost_the_others_says_so() -> None:
    """If one process ends early, the other one ends with E447 instead of waiting."""
    script = """
import os
from checkpoints.training.distributed import init_distributed
from ensemble.errors import EnsError
number = int(os.fork() > 0)
os.environ |= {"RANK": str(number), "LOCAL_RANK": str(number), "WORLD_SIZE": "2"}
context = init_distributed("auto")
context.broadcast(None)
if context.is_main:
    os._exit(4)
try:
    with context.detecting_lost_processes():
        context.broadcast(None)
except EnsError as err:
    print(err.code, context.device, context.world_size)
os._exit(0)
"""
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        place = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(s.getsockname()[1])}
    done = run("-u", "-c", script, **place)
    assert done.stdout == "E447 cpu 2\n", done.stderr


@pytest.mark.parametrize("arch", ["test_resnet", "test_efficientnet"])
def test_batch_statistics_of_a_gpu_are_of_the_whole_batch(arch: str) -> None:
    """On GPUs every batch norm is synchronized, and keeps its activation and the names of its weights."""
    gpu = SimpleNamespace(process_index=0, num_processes=2, device=torch.device("cuda"))
    model = make_network(arch, outputs=3)
    before = list(model.state_dict())
    activations = sum(isinstance(module, torch.nn.ReLU | torch.nn.SiLU) for module in model.modules())
    norms = [
        m
        for m in DistributedContext(gpu).convert_batch_norm(model).modules()
        if isinstance(m, torch.nn.modules.batchnorm._BatchNorm)
    ]
    assert norms
    assert all(isinstance(norm, torch.nn.SyncBatchNorm) for norm in norms)
    assert list(model.state_dict()) == before
    assert sum(isinstance(module, torch.nn.ReLU | torch.nn.SiLU) for module in model.modules()) == activations > 0


def test_the_shares_of_a_batch_are_the_batch() -> None:
    """The shards of all processes are the batch, each item once and in order."""
    for size, count in ((1, 5), (2, 8), (3, 8), (4, 3)):
        contexts = [DistributedContext(SimpleNamespace(process_index=rank, num_processes=size)) for rank in range(size)]
        assert [i for context in contexts for i in range(count)[context.shard(count)]] == list(range(count))


def test_a_process_by_itself_needs_no_accelerate(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a launcher accelerate is not imported, and the device is the given one, or for auto the GPU if any."""
    monkeypatch.setitem(sys.modules, "accelerate", None)
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert init_distributed("cuda:1").device == "cuda:1"
    monkeypatch.setenv("WORLD_SIZE", "1")
    monkeypatch.setenv("LOCAL_RANK", "0")
    for is_available, device in ((False, "cpu"), (True, "cuda")):
        monkeypatch.setattr(torch.cuda, "is_available", lambda found=is_available: found)
        context = init_distributed("auto")
        assert (context.device, context.world_size, context.is_main) == (device, 1, True)


def test_what_processes_cannot_share_is_refused(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An explicit device, and a batch size that the processes cannot divide, are E204 before anything is written."""
    trio = DistributedContext(SimpleNamespace(process_index=1, num_processes=3))
    monkeypatch.setattr("checkpoints.training.distributed.init_distributed", lambda *_, **__: trio)
    refused = CliRunner().invoke(ens, words(data, tmp_path / "runs")).exception
    assert isinstance(refused, EnsError)
    assert (refused.code, "multiple of the 3" in refused.message) == ("E204", True)
    assert not (tmp_path / "runs" / "m").exists()
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("LOCAL_RANK", "0")
    with pytest.raises(OptionError, match="--device cuda:1"):
        init_distributed("cuda:1")


def test_processes_that_see_other_data_are_stopped(monkeypatch: pytest.MonkeyPatch) -> None:
    """A value that differs from the main process's is E446, and an equal one passes."""
    context = DistributedContext(SimpleNamespace(process_index=1, num_processes=2))
    monkeypatch.setattr(DistributedContext, "broadcast", lambda *_: "main's")
    context.require_same("main's", "images")
    with pytest.raises(ModelError, match="images") as caught:
        context.require_same("mine", "images")
    assert caught.value.code == "E446"
