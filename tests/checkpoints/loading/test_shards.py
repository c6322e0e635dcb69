"""Folders that hold a checkpoint: what is read, what is refused, and what is said to be left."""

from __future__ import annotations

from pathlib import Path

import pytest

from checkpoints.loading.shards import find_files
from ensemble.errors import EnsError
from ensemble.events import Recorder


def touch(folder: Path, *names: str) -> Path:
    for name in names:
        (folder / name).touch()
    return folder


@pytest.mark.parametrize("other", ["model_ema.safetensors", "swa.pth", "model_1.safetensors", "pytorch_model_1.bin"])
def test_a_second_network_beside_the_usual_file_is_not_passed_over(tmp_path: Path, other: str) -> None:
    """A folder with averaged weights, or a second network of accelerate, in another file asks for one of them."""
    with pytest.raises(EnsError) as caught:
        find_files(touch(tmp_path, "model.safetensors", "optimizer.bin", other), Recorder())
    assert caught.value.code == "E707"
    assert f"model.safetensors, {other}" in caught.value.message
    assert f"{tmp_path.name}/{other}" in str(caught.value.hint)


def test_files_that_may_hold_an_average_are_said_to_be_left(tmp_path: Path) -> None:
    """States of optimizers and copies in another format are no weights of their own; other files are listed."""
    said = Recorder()
    left = ("optimizer.bin", "scheduler.bin", "random_states_0.pkl", "training_args.bin", "pytorch_model.bin")
    touch(tmp_path, "model.safetensors", *left)
    assert find_files(tmp_path, said).paths == (tmp_path / "model.safetensors",)
    assert not any("not read" in notice.message for notice in said.notices)
    parts = tmp_path / "global_step3"
    parts.mkdir()
    touch(parts, "mp_rank_00_model_states.pt", "bf16_zero_pp_rank_0_mp_rank_00_optim_states.pt")
    assert find_files(parts, said).path.name == "mp_rank_00_model_states.pt"
    find_files(touch(tmp_path, "custom_checkpoint_0.pkl"), said)
    assert any("not read: custom_checkpoint_0.pkl" in notice.message for notice in said.notices)


@pytest.mark.parametrize(
    ("names", "described", "hint"),
    [
        (("latest", "zero_to_fp32.py"), "DeepSpeed", "zero_to_fp32.py"),
        (("mp_rank_00_model_states.pt", "mp_rank_01_model_states.pt"), "DeepSpeed", "zero_to_fp32.py"),
        ((".metadata", "__0_0.distcp"), "torch.distributed.checkpoint", "dcp_to_torch"),
    ],
)
def test_weights_in_parts_of_processes_are_called_what_they_are(
    tmp_path: Path, names: tuple[str, ...], described: str, hint: str
) -> None:
    """Folders of DeepSpeed and torch.distributed are refused with the program that joins their parts."""
    with pytest.raises(EnsError) as caught:
        find_files(touch(tmp_path, *names), Recorder())
    assert caught.value.code == "E404"
    assert described in caught.value.message
    assert hint in str(caught.value.hint)


def test_the_weights_below_a_folder_are_named(tmp_path: Path) -> None:
    """The folder of a training of transformers has its checkpoints in folders of their own."""
    for step in (500, 1000):
        (tmp_path / f"checkpoint-{step}").mkdir()
        touch(tmp_path / f"checkpoint-{step}", "model.safetensors", "optimizer.bin", "rng_state.pth")
    with pytest.raises(EnsError) as caught:
        find_files(tmp_path, Recorder())
    assert caught.value.code == "E707"
    assert "checkpoint-1000/model.safetensors, checkpoint-500/model.safetensors:" in str(caught.value.hint)
    assert "optimizer" not in str(caught.value.hint)
