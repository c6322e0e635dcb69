"""Checkpoints: every supported format opens to the same weights, and everything else is refused."""

from __future__ import annotations

import argparse
import collections
import hashlib
import io
import os
import pathlib
import pickle
import random
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from PIL import Image

from checkpoints.loading.open import build_model, open_checkpoint, save_checkpoint
from ensemble.card import ModelCard, Preprocess
from ensemble.errors import FileError, ModelError
from ensemble.events import Recorder
from ensemble.labels import LabelSpace
from tests.support.weights import TINY, State, assert_same, codes, make_model, open_tiny, refused, save, tiny_state

pytestmark = pytest.mark.slow


def make_card(weights: Any = "raw") -> ModelCard:
    return ModelCard(
        member="r",
        arch=TINY,
        labels=LabelSpace.flat(18),
        preprocess=Preprocess((32, 32)),
        mean=(0.5, 0.5, 0.5),
        std=(0.5, 0.5, 0.5),
        checkpoint_sha256="0" * 64,
        weights=weights,
    )


# formats


@pytest.mark.parametrize("name", ["a.pth", "a.pt", "a.ckpt", "a.pth.tar", "a.safetensors", "a"])
def test_the_content_decides_and_not_the_name(tmp_path: Path, name: str) -> None:
    """Both formats open under every suffix to the same logits as the network that was saved."""
    model = make_model()
    images = torch.rand(2, 3, 32, 32)
    path = tmp_path / name
    for write in (
        lambda: torch.save(model.state_dict(), path),
        lambda: safetensors.torch.save_file(model.state_dict(), path),
    ):
        write()
        checkpoint = open_tiny(path)
        assert torch.equal(build_model(checkpoint)(images), model(images))
        assert (checkpoint.num_classes, checkpoint.weights, checkpoint.card) == (18, "raw", None)
        assert checkpoint.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()


def test_the_models_weights_are_its_own(tmp_path: Path) -> None:
    """Changing a built model changes neither the checkpoint nor the file."""
    path = save(tmp_path / "a.pth", tiny_state())
    checkpoint = open_tiny(path)
    model = build_model(checkpoint)
    assert not model.training
    with torch.no_grad():
        next(iter(model.parameters())).zero_()
    assert_same(checkpoint, open_tiny(path).state_dict)


@pytest.mark.parametrize("weights", ["raw", "ema"])
def test_a_card_comes_back_with_its_weights(tmp_path: Path, weights: Any) -> None:
    """A file of save_checkpoint opens without --arch, with the same card."""
    state, card = tiny_state(), make_card(weights)
    heard = Recorder()
    checkpoint = open_checkpoint(save_checkpoint(tmp_path / "a.safetensors", state, card), listener=heard)
    assert_same(checkpoint, state)
    assert (checkpoint.card, checkpoint.arch, checkpoint.weights, codes(heard)) == (card, TINY, weights, [])


def test_saving_twice_gives_the_same_bytes(tmp_path: Path) -> None:
    """The bytes of save_checkpoint depend on weights and card only, not on the memory layout of the tensors."""
    state = tiny_state()
    first = save_checkpoint(tmp_path / "1", state, make_card()).read_bytes()
    strided = {key: t.to(memory_format=torch.channels_last) if t.ndim == 4 else t for key, t in state.items()}
    assert save_checkpoint(tmp_path / "2", strided, make_card()).read_bytes() == first


PLACES = ["state_dict", "model", "model_state_dict", "net", "ema", "state_dict_ema", "model_ema"]


@pytest.mark.parametrize("place", PLACES)
def test_weights_are_found_in_every_usual_place(tmp_path: Path, place: str) -> None:
    """A state dict is found under each key that training scripts use, which tells averaged weights from raw ones."""
    state = tiny_state()
    checkpoint = open_tiny(save(tmp_path / "a.pth", {"epoch": 3, place: state, "optimizer": {"state": {}}}))
    assert_same(checkpoint, state)
    assert checkpoint.weights == ("ema" if "ema" in place else "raw")


def test_weights_are_found_two_dictionaries_down(tmp_path: Path) -> None:
    """The model inside torch's AveragedModel is found, and its counter is left out with a notice."""
    state = tiny_state()
    averaged = {"n_averaged": torch.tensor(7)} | {f"module.{key}": tensor for key, tensor in state.items()}
    heard = Recorder()
    path = save(tmp_path / "a.pth", {"model_ema": {"state_dict": averaged}, "ema": 0.999})
    checkpoint = open_tiny(path, listener=heard)
    assert_same(checkpoint, state)
    assert checkpoint.weights == "ema"
    assert codes(heard) == ["I407", "I407"]


def test_old_files_without_batch_counters_open(tmp_path: Path) -> None:
    """Weights of old torch versions, without batch counters, open with the counters at zero."""
    state = tiny_state()
    old = {key: tensor for key, tensor in state.items() if not key.endswith("num_batches_tracked")}
    assert len(old) < len(state)
    assert_same(open_tiny(save(tmp_path / "a.pth", old)), state)


# faults 35 to 49


class Command:
    """Pickles to a call of os.system."""

    def __init__(self, marker: Path) -> None:
        self.command = f"touch {marker}"

    def __reduce__(self) -> tuple[Callable[[str], int], tuple[str]]:
        return os.system, (self.command,)


@pytest.mark.parametrize("form", ["zip", "legacy", "plain 2", "plain 4"])
def test_fault_35_a_malicious_pickle_is_refused_and_named(tmp_path: Path, form: str) -> None:
    """A pickle that calls os.system is refused in every format, the error names it, and the command never runs."""
    marker, path = tmp_path / "ran", tmp_path / "best.pth"
    content = {"state_dict": tiny_state(), "extra": Command(marker)}
    if form.startswith("plain"):
        path.write_bytes(pickle.dumps(Command(marker), protocol=int(form[-1])))
    else:
        save(path, content, _use_new_zipfile_serialization=form == "zip")
    error = refused(path, arch=TINY)
    assert isinstance(error, ModelError)
    assert error.code == "E401"
    assert f"wants to run {os.system.__module__}.system" in error.message
    assert not marker.exists()


def test_fault_35_a_command_before_broken_bytes_is_still_named(tmp_path: Path) -> None:
    """A pickle that is damaged after its command gets E401: damage hides nothing."""
    path = tmp_path / "best.pth"
    path.write_bytes(pickle.dumps(Command(tmp_path / "ran"), protocol=2)[:-1] + b"\xff")
    assert refused(path).code == "E401"


def test_fault_35_a_malicious_module_is_not_called_a_module(tmp_path: Path) -> None:
    """A pickled module that also calls os.system gets E401, which lists the call before the module's classes."""
    path = save(tmp_path / "a.pth", {"model": torch.nn.Linear(2, 2), "extra": Command(tmp_path / "ran")})
    error = refused(path)
    assert error.code == "E401"
    assert f"wants to run {os.system.__module__}.system" in error.message


def test_fault_35_the_allow_list_is_closed_again(tmp_path: Path) -> None:
    """Opening a file, or failing to, does not change torch's global allowlist."""
    before = set(torch.serialization.get_safe_globals())
    open_tiny(save(tmp_path / "a.pth", {"model": tiny_state(), "args": argparse.Namespace(lr=1)}))
    refused(save(tmp_path / "b.pth", {"extra": Command(tmp_path / "ran")}))
    assert set(torch.serialization.get_safe_globals()) == before


@pytest.mark.parametrize("arch", [TINY, "test_efficientnet"])
def test_fault_36_the_weights_of_a_whole_pickled_module_are_read(tmp_path: Path, arch: str) -> None:
    """A file of torch.save(model) opens to the model's state dict, and I480 names the class whose code did not run."""
    model, heard = make_model(arch), Recorder()
    assert_same(open_tiny(save(tmp_path / "a.pth", model), arch=arch, listener=heard), model.state_dict())
    (notice,) = heard.notices
    assert notice.code == "I480"
    assert "timm.models" in notice.message


def test_fault_36_a_torchscript_program_is_refused(tmp_path: Path) -> None:
    """An archive with TorchScript's constants gets E402, not torch's error."""
    path = tmp_path / "a.pt"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("a/data.pkl", b"")
        archive.writestr("a/constants.pkl", b"")
    assert refused(path).code == "E402"


class Windows:
    """An object that pickles to a path of another operating system."""

    def __reduce__(self) -> tuple[type, tuple[str, ...]]:
        return pathlib.WindowsPath, ("C:\\", "runs")


def test_fault_37_metadata_of_every_usual_kind_loads(tmp_path: Path) -> None:
    """numpy scalars and arrays, Namespaces and paths of either system are accepted beside the weights."""
    state = tiny_state()
    metadata = {
        "args": argparse.Namespace(lr=1e-3, out=pathlib.PosixPath("/tmp/x"), other=Windows()),
        "best": np.float64(0.5),
        "best32": np.float32(0.5),
        "epoch": np.int64(3),
        "confusion": np.eye(3),
        "history": collections.OrderedDict(loss=[1.0, 0.5]),
        np.str_("key"): {1, 2},
    }
    assert_same(open_tiny(save(tmp_path / "a.pth", metadata | {"state_dict": state})), state)


@pytest.mark.parametrize("share", [0.0, 0.001, 0.5, 0.999])
@pytest.mark.parametrize("form", ["zip", "legacy", "safetensors"])
def test_fault_38_an_incomplete_file_is_known(tmp_path: Path, form: str, share: float) -> None:
    """A file cut anywhere, down to nothing, gets E403 in every format."""
    buffer = io.BytesIO()
    if form == "safetensors":
        buffer.write(safetensors.torch.save(tiny_state()))
    else:
        torch.save(tiny_state(), buffer, _use_new_zipfile_serialization=form == "zip")
    data = buffer.getvalue()
    path = tmp_path / "a.pth"
    path.write_bytes(data[: int(len(data) * share)])
    assert refused(path, arch=TINY).code == "E403"


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 5\n", "Git-LFS pointer"),
        (b"\n<!DOCTYPE html><html><head><title>Google Drive - Quota exceeded</title>", "web page"),
        (b"just some text\n", "starts with"),
        (b"\x1f\x8b\x08\x00", "gzip"),
        (b"{", "starts with"),
        (b"PK is the start of a zip archive\n", "a text that starts with"),
        (b"GGUF and Rar! are names of formats\n", "a text that starts with"),
        (b"Rar!\n", "a text that starts with"),
        (b"x^2 is a square\n", "a text that starts with"),
        (b"    TFL3\n", "a text that starts with"),
    ],
)
def test_fault_39_another_file_in_the_weights_place_is_named(tmp_path: Path, content: bytes, words: str) -> None:
    """A Git-LFS pointer, a web page or any other file gets E404, which says what it is."""
    path = tmp_path / "weights.pth"
    path.write_bytes(content)
    error = refused(path)
    assert error.code == "E404"
    assert words in error.message


def test_fault_39_a_photograph_is_no_checkpoint(tmp_path: Path) -> None:
    """A JPEG file gets E404, which says that it is one."""
    path = tmp_path / "weights.pth"
    Image.new("RGB", (8, 8)).save(path, "JPEG")
    error = refused(path)
    assert (error.code, "JPEG" in error.message) == ("E404", True)


def test_fault_40_a_flipped_bit_in_a_weight_is_found_and_placed(tmp_path: Path) -> None:
    """One changed bit inside a tensor gets E405 with the record's name."""
    state = tiny_state()
    path = save(tmp_path / "a.pth", state)
    data = bytearray(path.read_bytes())
    data[data.index(state["fc.weight"].numpy().tobytes()) + 5] ^= 1
    path.write_bytes(data)
    error = refused(path, arch=TINY)
    assert error.code == "E405"
    assert "CRC error in a/data/" in error.message


def test_fault_40_no_flipped_bit_changes_the_weights(tmp_path: Path) -> None:
    """For any flipped bit of an archive, the result is the same weights or an EnsError."""
    state = tiny_state()
    path = save(tmp_path / "a.pth", state)
    data = path.read_bytes()
    directory = data.rindex(b"PK\x01\x02")
    pick = random.Random(0)
    places = [pick.randrange(len(data)) for _ in range(20)] + [pick.randrange(directory, len(data)) for _ in range(40)]
    for place in places:
        damaged = bytearray(data)
        damaged[place] ^= 1 << pick.randrange(8)
        path.write_bytes(damaged)
        try:
            checkpoint = open_tiny(path)
        except ModelError:
            continue
        assert_same(checkpoint, state)


def test_fault_40_a_part_marked_as_a_folder_is_refused(tmp_path: Path) -> None:
    """The bit that makes torch return uninitialized memory instead of a tensor gets E405."""
    path = save(tmp_path / "a.pth", tiny_state())
    data = bytearray(path.read_bytes())
    # 38: the external attributes in an entry of the central directory, APPNOTE 4.3.12
    entry = data.rindex(b"PK\x01\x02", 0, data.rindex(b"data/3"))
    data[entry + 38] |= 0x10
    path.write_bytes(data)
    assert refused(path, arch=TINY).code == "E405"


def test_fault_41_the_old_format_loads_with_a_warning(tmp_path: Path) -> None:
    """torch.save's format before 1.6 opens to the same weights, and W406 says that it has no checksums."""
    state, heard = tiny_state(), Recorder()
    path = save(tmp_path / "a.pth", {"state_dict": state}, _use_new_zipfile_serialization=False)
    assert_same(open_tiny(path, listener=heard), state)
    assert codes(heard) == ["W406"]


@pytest.mark.parametrize(
    "prefix", ["module.", "_orig_mod.", "model.", "net.", "backbone.", "model.module._orig_mod.", "module.module."]
)
def test_fault_42_any_chain_of_prefixes_comes_off(tmp_path: Path, prefix: str) -> None:
    """Any chain of wrapper prefixes is removed, and the notice names it."""
    state, heard = tiny_state(), Recorder()
    path = save(tmp_path / "a.ckpt", {"state_dict": {f"{prefix}{key}": tensor for key, tensor in state.items()}})
    assert_same(open_tiny(path, listener=heard), state)
    (notice,) = heard.notices
    assert notice.code == "I407"
    assert repr(prefix) in notice.message


def test_fault_42_a_prefix_that_not_all_keys_share_stays(tmp_path: Path) -> None:
    """Weights with a prefix on half of their keys are refused."""
    state = {f"model.{key}" if key.startswith("layer") else key: tensor for key, tensor in tiny_state().items()}
    assert refused(save(tmp_path / "a.pth", state), arch=TINY).code == "E410"


def test_fault_42_the_losss_class_weights_are_left_out(tmp_path: Path) -> None:
    """The class weights that Lightning saves beside the model are left out with a notice."""
    state, heard = tiny_state(), Recorder()
    saved = {f"model.{key}": tensor for key, tensor in state.items()} | {"criterion.weight": torch.ones(18)}
    assert_same(open_tiny(save(tmp_path / "a.ckpt", {"state_dict": saved}), listener=heard), state)
    assert any("criterion.weight" in notice.message for notice in heard.notices)


@pytest.mark.parametrize("asked", [None, "raw", "ema"])
def test_fault_43_averaged_weights_win_unless_raw_ones_are_asked_for(tmp_path: Path, asked: Any) -> None:
    """By default the averaged weights are used, on request either set, and I408 says which."""
    raw, heard = tiny_state(), Recorder()
    ema = {key: tensor * 2 for key, tensor in raw.items()}
    path = save(tmp_path / "a.pth", {"state_dict": raw, "state_dict_ema": ema})
    checkpoint = open_tiny(path, weights=asked, listener=heard)
    assert checkpoint.weights == (asked or "ema")
    assert_same(checkpoint, raw if asked == "raw" else ema)
    assert codes(heard) == ["I408"]


@pytest.mark.parametrize(("place", "asked"), [("state_dict", "ema"), ("state_dict_ema", "raw")])
def test_fault_43_weights_that_are_not_there_cannot_be_had(tmp_path: Path, place: str, asked: Any) -> None:
    """Requesting a set that the file lacks gets E430, which says what it has."""
    error = refused(save(tmp_path / "a.pth", {place: tiny_state()}), arch=TINY, weights=asked)
    assert error.code == "E430"
    assert place in error.message


def test_fault_43_two_raw_sets_are_not_chosen_between(tmp_path: Path) -> None:
    """A file with two networks is refused, and the error names both places."""
    other = {key: tensor + 1 for key, tensor in tiny_state().items()}
    error = refused(save(tmp_path / "a.pth", {"model": tiny_state(), "net": other}), arch=TINY)
    assert error.code == "E448"
    assert "model, net" in error.message


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_fault_44_other_precisions_become_float32(tmp_path: Path, dtype: torch.dtype) -> None:
    """Weights in another precision open as float32 with the same values, and I409 says so."""
    state = {key: tensor.to(dtype) if tensor.is_floating_point() else tensor for key, tensor in tiny_state().items()}
    heard = Recorder()
    checkpoint = open_tiny(save(tmp_path / "a.pth", state), listener=heard)
    assert_same(checkpoint, {k: t.to(torch.float32) if t.is_floating_point() else t for k, t in state.items()})
    assert {tensor.dtype for tensor in checkpoint.state_dict.values()} == {torch.float32, torch.int64}
    assert codes(heard) == ["I409"]


def test_fault_44_whole_numbers_are_no_weights(tmp_path: Path) -> None:
    """Weights quantized to int8 are refused, not converted."""
    state = tiny_state()
    state["fc.weight"] = (state["fc.weight"] * 100).to(torch.int8)
    error = refused(save(tmp_path / "a.pth", state), arch=TINY)
    assert (error.code, "fc.weight is int8" in error.message) == ("E417", True)


@pytest.fixture(scope="module")
def resnet18(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save(tmp_path_factory.mktemp("resnet18") / "a.pth", make_model("resnet18").state_dict())


def test_fault_45_another_architecture_is_refused_and_the_right_one_named(resnet18: Path) -> None:
    """Weights that do not fit --arch get E410 with the number of matching keys and a suggestion."""
    error = refused(resnet18, arch="efficientnet_b0")
    assert error.code == "E410"
    assert "is not efficientnet_b0: 0 of 309 keys fit. Looks like resnet18 or resnetblur18 (100 %)" in error.message
    assert error.details[0].startswith("305 missing: conv_stem.weight")
    assert error.details[0].endswith(" and 300 more")


def test_fault_45_the_right_architecture_is_found(resnet18: Path) -> None:
    """A ResNet-18 without any metadata is identified, with its number of classes, and I419 says so."""
    heard = Recorder()
    checkpoint = open_checkpoint(resnet18, listener=heard)
    assert (checkpoint.arch, checkpoint.num_classes, codes(heard)) == ("resnet18", 18, ["I419"])


def test_fault_47_missing_and_unexpected_keys_are_counted_and_named(tmp_path: Path) -> None:
    """Missing, unexpected and misshaped keys are refused, each kind with its count."""
    state = tiny_state()
    for i in range(7):
        state[f"extra.{i}"] = torch.ones(1)
    del state["layer1.0.bn1.bias"]
    state["layer1.0.conv1.weight"] = state["layer1.0.conv1.weight"][:, :1].clone()
    error = refused(save(tmp_path / "a.pth", state), arch=TINY)
    assert error.code == "E410"
    assert error.details == (
        "1 missing: layer1.0.bn1.bias",
        "7 unexpected: extra.0, extra.1, extra.2, extra.3, extra.4 and 2 more",
        "1 of another shape: layer1.0.conv1.weight",
    )


@pytest.mark.parametrize("change", [{"extra": torch.ones(2)}, {"fc.bias": torch.ones(17)}])
def test_fault_47_one_wrong_key_is_enough(tmp_path: Path, change: State) -> None:
    """A single unexpected or misshaped key is refused, even if all others fit."""
    error = refused(save(tmp_path / "a.pth", tiny_state() | change), arch=TINY)
    assert error.code == "E410"
    assert error.details[0].endswith(next(iter(change)))


@pytest.mark.parametrize(("value", "words"), [(float("nan"), "1 NaN"), (float("-inf"), "1 infinite")])
def test_fault_48_a_weight_that_is_no_number_is_named(tmp_path: Path, value: float, words: str) -> None:
    """A NaN or infinite weight gets E412 with its tensor and count."""
    state = tiny_state()
    state["layer1.0.conv1.weight"][0, 0, 0, 0] = value
    error = refused(save(tmp_path / "a.pth", state), arch=TINY)
    assert error.code == "E412"
    assert f"layer1.0.conv1.weight has {words}" in error.message


def test_fault_49_what_looks_untrained_is_warned_of(tmp_path: Path) -> None:
    """Impossible variances and a constant classifier give one W413 each, single dead channels none."""
    state, heard = tiny_state(), Recorder()
    state["layer1.0.bn1.running_var"][:2] = 0
    open_tiny(save(tmp_path / "a.pth", state), listener=heard)
    assert codes(heard) == []
    state["layer1.0.bn1.running_var"][2] = -0.1
    state["layer2.0.bn1.running_var"].zero_()
    state["fc.weight"].fill_(0.25)
    open_tiny(save(tmp_path / "a.pth", state), listener=heard)
    assert codes(heard) == ["W413", "W413"]
    assert heard.notices[0].message.endswith("layer1.0.bn1.running_var, layer2.0.bn1.running_var")
    assert "every value of fc.weight is 0.25" in heard.notices[1].message


# hostile or odd content


def test_a_shape_larger_than_its_file_is_refused(tmp_path: Path) -> None:
    """A tensor that repeats one value a trillion times is refused before it is read."""
    state = tiny_state() | {"fc.weight": torch.zeros(1, 1).expand(10**6, 10**6)}
    assert refused(save(tmp_path / "a.pth", state), arch=TINY).code == "E403"


def test_a_compressed_archive_is_refused(tmp_path: Path) -> None:
    """An archive that unpacks to more than its size is refused before it is unpacked."""
    path = tmp_path / "a.pth"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a/data.pkl", bytes(10**7))
    error = refused(path)
    assert (error.code, "compressed" in error.message) == ("E417", True)


@pytest.mark.parametrize("content", [{}, [1, 2], {"epoch": 3, "model": "resnet18"}, torch.ones(2, 2)])
def test_a_file_without_weights_says_what_it_holds(tmp_path: Path, content: object) -> None:
    """A checkpoint without a state dict gets E417."""
    assert refused(save(tmp_path / "a.pth", content)).code == "E417"


def test_another_zip_archive_is_no_checkpoint(tmp_path: Path) -> None:
    """A zip file of something else gets E417, which names what it holds."""
    path = tmp_path / "a.pth"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("readme.txt", "hello")
    error = refused(path)
    assert (error.code, "holds readme.txt" in error.message) == ("E417", True)


def test_a_safetensors_header_that_is_no_header_is_damage(tmp_path: Path) -> None:
    """A safetensors file with a broken header gets E403, not safetensors' own error."""
    path = tmp_path / "a.safetensors"
    path.write_bytes(struct.pack("<Q", 20) + b'{"a": [1, 2, 3, 4]} ')
    assert refused(path).code == "E403"


def test_a_path_that_is_no_file_is_said_to_be_none(tmp_path: Path) -> None:
    """A folder, a missing file and a pipe get E707, and the pipe does not hang."""
    pipe = tmp_path / "pipe.pth"
    os.mkfifo(pipe)
    for path in (tmp_path, tmp_path / "missing.pth", pipe):
        error = refused(path)
        assert isinstance(error, FileError)
        assert error.code == "E707"
