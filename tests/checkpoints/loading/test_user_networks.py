"""Checkpoints as training scripts write them give the logits of the user's own network, or are refused by name."""

from __future__ import annotations

from pathlib import Path
from typing import BinaryIO

import pytest
import torch

from checkpoints.loading.open import build_model, open_checkpoint
from checkpoints.loading.open_options import OpenOptions
from checkpoints.loading.outline import NeedsTorchError, Outline, outline_checkpoint
from checkpoints.loading.pickle_sandbox import PickleScan, scan_pickles
from checkpoints.loading.read import read_content
from ensemble.errors import EnsError
from ensemble.events import SILENT, Recorder
from tests.support.user_containers import CONTAINERS, PROGRAMS, contents
from tests.support.user_networks import Case, all_cases
from tests.support.weights import TINY, save

pytestmark = pytest.mark.slow

CASES = all_cases()
CONTENTS = list(contents())
# some of those that a dry run tells without torch
TOLD = {"prefix model.", "mark inside module.", "average: timm", "head apart: fc", "args beside"}


@pytest.fixture(autouse=True)
def scanned_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Scan the pickle of a zip file in one process: a test reads its file twice, with values and without."""
    found: dict[tuple[bytes, int, int], PickleScan] = {}

    def scan(pickles: BinaryIO | bytes, count: int, *, size: int = 0) -> PickleScan:
        if not isinstance(pickles, bytes):
            return scan_pickles(pickles, count, size=size)
        key = (pickles, count, size)
        if key not in found:
            found[key] = scan_pickles(pickles, count, size=size)
        return found[key]

    monkeypatch.setattr("checkpoints.loading.pickle_allowlist.scan_pickles", scan)


def outline(path: Path, case: Case) -> Outline | None:
    """Return what names and shapes tell of a case's file; None where they do not, or the file is refused."""
    how = OpenOptions(**case.options)
    if not how.are_simple:
        return None
    content = read_content(path, with_values=False)
    try:
        return outline_checkpoint(
            content, path, arch=how.arch, weights=how.weights, labels=how.head.labels, listener=SILENT
        )
    except (EnsError, NeedsTorchError):
        return None


def test_the_corpus_is_large() -> None:
    """There are at least 120 checkpoints, each under a name of its own."""
    assert len(CASES) >= 120
    assert len({case.name for case in CASES}) == len(CASES)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
@torch.no_grad()
def test_the_logits_are_those_of_the_users_network(tmp_path: Path, case: Case) -> None:
    """The opened network gives the user's own logits to five digits, or the file is refused with the stated code."""
    path = save(tmp_path / "a.pth", case.content)
    if case.network is None:
        with pytest.raises(EnsError) as caught:
            open_checkpoint(path, **case.options)
        assert caught.value.code == case.code
        assert outline(path, case) is None
        return
    checkpoint = open_checkpoint(path, **case.options)
    images = torch.randn(2, case.channels, 64, 64, generator=torch.Generator().manual_seed(0))
    expected, found = case.network(images), build_model(checkpoint)(images)
    assert found.shape == expected.shape
    assert float((found - expected).abs().max()) <= 1e-5 * float(expected.abs().max())
    assert checkpoint.weights == case.weights
    if (told := outline(path, case)) is not None:
        same = (told.arch, told.num_classes, told.weights, told.sha256)
        assert same == (checkpoint.arch, checkpoint.num_classes, checkpoint.weights, checkpoint.sha256)
        assert told.parameters == sum(
            tensor.numel() for key, tensor in checkpoint.state_dict.items() if not key.endswith("num_batches_tracked")
        )
    if case.name in TOLD:
        assert told is not None


@pytest.mark.parametrize("container", CONTAINERS)
@torch.no_grad()
def test_every_container_gives_the_users_logits(tmp_path: Path, container: str) -> None:
    """A container opens by its folder, index or any file to the user's own logits, whatever is in it."""
    images = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    plain, *others = CONTENTS
    number = list(CONTAINERS).index(container)
    for name, state, network, weights in (plain, others[number % len(others)]):
        folder = tmp_path / name
        folder.mkdir()
        expected = network(images)
        paths = CONTAINERS[container](folder, state)
        for path in paths if name == "plain" else paths[:1]:
            checkpoint = open_checkpoint(path, arch=TINY)
            found = build_model(checkpoint)(images)
            assert float((found - expected).abs().max()) <= 1e-5 * float(expected.abs().max()), (name, path.name)
            assert checkpoint.weights == weights


@pytest.mark.parametrize("container", [name for name in CONTAINERS if "config.json" in name])
def test_a_config_beside_the_weights_names_the_architecture(tmp_path: Path, container: str) -> None:
    """The architecture in config.json opens the folder and its file, and is what is said to be its source."""
    _, state, _, _ = CONTENTS[0]
    for path in CONTAINERS[container](tmp_path, state):
        heard = Recorder()
        assert open_checkpoint(path, listener=heard).arch == TINY
        assert any("config.json" in notice.message for notice in heard.notices)
    (tmp_path / "config.json").unlink()
    heard = Recorder()
    open_checkpoint(tmp_path, listener=heard)
    assert not any("config.json" in notice.message for notice in heard.notices)


# torch's warnings that its older writers are deprecated
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
@pytest.mark.parametrize("program", PROGRAMS)
def test_programs_are_called_what_they_are(tmp_path: Path, program: str) -> None:
    """What holds a program is refused by what it is, whatever its name, with the line that helps."""
    write, code, description, hint = PROGRAMS[program]
    path = write(tmp_path)
    for arch in (TINY, None):
        with pytest.raises(EnsError) as caught:
            open_checkpoint(path, arch=arch)
        assert (caught.value.code, description in caught.value.message) == (code, True)
        assert hint in caught.value.hint
