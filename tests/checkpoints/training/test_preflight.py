"""Wrong settings of `ens train` are refused before an image is decoded or a file is written."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner, Result
from PIL import Image

from checkpoints.torch_device import choose_torch_device
from ensemble.cli import ens
from ensemble.errors import EnsError

pytestmark = pytest.mark.slow

LONG = "x" * 59


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("train")
    rng = np.random.default_rng(0)
    for name in ("a", "b"):
        (root / name).mkdir()
        for number in range(4):
            pixels = rng.integers(0, 255, (32, 32, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(root / name / f"{number}.png")
    return root


def train(data: Path, out: Path, *words: str, arch: str = "test_resnet", member: str = "m") -> Result:
    base = ["train", str(data), "-o", str(out), "--arch", arch, "--member", member, "--device", "cpu"]
    given = {"--size": "32", "--epochs": "1", "--folds": "2", "--augment": "none", "--batch": "4"}
    words = (*(word for pair in given.items() for word in pair), *words)  # the last value of an option counts
    return CliRunner().invoke(ens, [*base, *words])


def refused(result: Result) -> EnsError:
    assert isinstance(result.exception, EnsError), (result.output, result.exception)
    return result.exception


@pytest.mark.parametrize(
    ("words", "code", "says"),
    [
        (("--device", "foo"), "E203", "'foo' is not a device"),
        (("--device", "cuda:99"), "E601", "cuda:99 was asked for"),
        (("--mean", "1.3,0.5,0.5"), "E204", "--mean takes values of 0 to 1, or up to 255"),
        (("--mean", "0.5"), "E204", "3 values of --mean and --std"),
        (("--std", "0,0,0"), "E204", "--std takes values of 0.001 to 1"),
        (("--lr", "inf"), "E204", "learning rate"),
        (("--weight-decay", "nan"), "E204", "weight decay"),
        (("--clip", "0"), "E204", "clip above 0"),
        (("--smoothing", "1"), "E204", "--smoothing must be"),
        (("--size", "3"), "E204", "size must be two whole sides"),
        (("--init", "/nowhere/best.pth"), "E707", "--init /nowhere/best.pth does not exist"),
        (("--augment", "blurry"), "E204", "--augment takes"),
        (("--freeze", "50"), "E204", "--freeze must leave layers"),
        (("--head", "axes"), "E204", "--head axes needs"),
        (("--loss", "dice"), "E204", "dice"),
        (("--class-weights", "many"), "E204", "class weights are"),
        (("--only-fold", "2"), "E204", "--only-fold must be below 2"),
        (("--folds", "-3"), "E204", "--folds takes a number"),
        (("--folds", "folds.csv"), "E204", "--folds takes a number"),
        (("--boxes", "/nowhere/boxes.parquet"), "E707", "/nowhere/boxes.parquet"),
        (("--pseudo", "/nowhere/p", "--pseudo-images", "/nowhere"), "E707", "--pseudo /nowhere/p does not exist"),
        (("--fixes", "/nowhere/fixes.csv"), "E707", "/nowhere/fixes.csv"),
        (("--pretrained", "--arch", "resnetblur101d"), "E204", "timm has no pretrained weights for resnetblur101d"),
    ],
)
def test_a_wrong_option_leaves_nothing_behind(
    data: Path, tmp_path: Path, words: tuple[str, ...], code: str, says: str
) -> None:
    """The error names the option or its value, and there is no folder, so that other settings may follow."""
    error = refused(
        train(data, tmp_path / "runs", *words, arch="resnet26t" if says.startswith("timm") else "test_resnet")
    )
    assert (error.code, says in error.message) == (code, True), error.message
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    ("arch", "member", "says"),
    [
        ("resnet-18", "m", "timm has no architecture 'resnet-18'"),
        ("resnet18.no_such_weights", "m", "timm has no architecture"),
        ("test_vit", "a/b", "cannot name a member"),
        ("test_resnet", LONG, "cannot name a member"),
    ],
)
def test_names_are_checked_first(data: Path, tmp_path: Path, arch: str, member: str, says: str) -> None:
    """An unknown architecture, and a name that is too long once a fold is added to it, are E204."""
    error = refused(train(data, tmp_path / "runs", arch=arch, member=member))
    assert (error.code, says in error.message) == ("E204", True), error.message
    assert not (tmp_path / "runs").exists()


def test_a_size_that_the_architecture_does_not_take_is_refused(data: Path, tmp_path: Path) -> None:
    """A transformer of windows refuses 33 px with the sizes in the message, before any file is written."""
    error = refused(train(data, tmp_path / "runs", "--size", "33", arch="test_vit"))
    assert (error.code, "33x33 px" in error.message, "--size" in error.hint) == ("E204", True, True)
    assert not (tmp_path / "runs").exists()


def test_initial_weights_that_do_not_fit_are_refused(data: Path, tmp_path: Path) -> None:
    """Weights of another architecture are E410 before the images are decoded."""
    torch.save({"conv1.weight": torch.ones(64, 3, 7, 7)}, tmp_path / "other.pth")
    error = refused(train(data, tmp_path / "runs", "--init", str(tmp_path / "other.pth")))
    assert error.code == "E410"
    assert not (tmp_path / "runs").exists()


def test_pretrained_weights_that_cannot_be_loaded_are_named(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A download that fails is E460 with the place of the weights, before the images are decoded."""

    def fail(*_: object, **__: object) -> None:
        raise OSError("Name or service not known")

    monkeypatch.setattr("checkpoints.training.init_weights.make_network", fail)
    error = refused(train(data, tmp_path / "runs", "--pretrained", arch="resnet18"))
    assert (error.code, "timm/resnet18" in error.message, "Name or service" in error.message) == ("E460", True, True)
    assert not (tmp_path / "runs").exists()


def test_a_start_that_failed_does_not_stop_the_right_command(data: Path, tmp_path: Path) -> None:
    """After a damaged image the settings and folds of that start are gone; after a training they are kept."""
    broken = tmp_path / "train"
    for path in data.glob("*/*.png"):
        (broken / path.parent.name).mkdir(parents=True, exist_ok=True)
        (broken / path.parent.name / path.name).write_bytes(path.read_bytes())
    good = (broken / "a" / "0.png").read_bytes()
    (broken / "a" / "0.png").write_bytes(good[:60])
    out = tmp_path / "runs"
    assert refused(train(broken, out, "--folds", "4")).code == "E301"
    assert not (out / "folds.csv").exists()
    assert not (out / "m" / "settings.json").exists()
    (broken / "a" / "0.png").write_bytes(good)
    done = train(broken, out, "--folds", "2")
    assert done.exit_code == 0, done.output
    assert (out / "folds.csv").read_text().count("\n") == 9

    error = refused(train(broken, out, "--epochs", "2", "--lr", "0.01"))
    assert (error.code, len(error.details)) == ("E442", 2)
    assert "epochs: 1 before, now 2" in error.details
    assert (out / "m" / "fold1.safetensors").exists()
    assert refused(train(broken, out, "--folds", "4", member="n")).hint.startswith("all members in a folder share")


def test_settings_of_a_start_that_was_killed_are_replaced(data: Path, tmp_path: Path) -> None:
    """Settings beside no weights and no training state belong to no training, and stop none."""
    (tmp_path / "m").mkdir()
    (tmp_path / "m" / "settings.json").write_text('{"epochs": 7}')
    assert train(data, tmp_path).exit_code == 0


def test_auto_says_that_it_falls_back(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a GPU `--device auto` is the CPU with W601, as in `ens crop`."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert choose_torch_device("auto").type == "cpu"
    done = train(data, tmp_path, "--device", "auto", "--only-fold", "0")
    assert (done.exit_code, "W601" in done.output) == (0, True), done.output


def test_the_files_of_ens_data_are_checked_before_images_are_read(data: Path, tmp_path: Path) -> None:
    """A folder as `-o`, and a page over the table itself, are refused before the first image is decoded."""
    folder = CliRunner().invoke(ens, ["data", str(data), "-o", str(tmp_path)])
    assert (refused(folder).code, "is a folder" in refused(folder).message) == ("E702", True)
    same = str(tmp_path / "data.parquet")
    twice = CliRunner().invoke(ens, ["data", str(data), "-o", same, "--html", same])
    assert refused(twice).code == "E204"
    assert not Path(same).exists()
