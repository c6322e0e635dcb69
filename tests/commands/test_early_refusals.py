"""Options that are refused without the data are refused before torch is loaded, which takes seconds."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

_RUN = """
import sys
from ensemble.__main__ import run
status = run(sys.argv[1:])
loaded = {"torch", "timm", "scipy.stats"} & sys.modules.keys()
assert not loaded, loaded
sys.exit(status)
"""


def refuse(*command: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", _RUN, *command], capture_output=True, text=True, check=False)


@pytest.mark.parametrize(
    ("options", "code"),
    [
        (("--loss", "nonsense"), "E204"),
        (("--class-weights", "ens:2"), "E204"),
        (("--augment", "nosuch"), "E204"),
        (("--label-distribution", "age"), "E204"),
        (("--size", "0"), "E204"),
        (("--folds", "1"), "E204"),
        (("--only-fold", "9"), "E204"),
        (("--init", "nosuch.pth"), "E707"),
        (("--boxes", "nosuch.parquet"), "E707"),
        (("--pseudo", "nosuch", "--pseudo-images", "nosuch"), "E707"),
        (("--device", "gpu9"), "E203"),
    ],
)
def test_training_is_refused_before_torch_is_loaded(options: tuple[str, ...], code: str, tmp_path: Path) -> None:
    """Texts that are not understood, and files that do not exist."""
    done = refuse("train", str(tmp_path), "--arch", "resnet18", "--member", "a", *options)
    assert f"error[{code}]" in done.stderr, done.stderr
    assert "AssertionError" not in done.stderr


def test_a_folder_of_images_that_does_not_exist_is_refused_at_once(tmp_path: Path) -> None:
    """Also where nothing else is wrong."""
    done = refuse("train", str(tmp_path / "nosuch"), "--arch", "resnet18", "--member", "a")
    assert "error[E316]" in done.stderr
    assert "AssertionError" not in done.stderr


def test_a_probe_is_refused_before_what_learns_is_loaded(tmp_path: Path) -> None:
    """A network or a folder of images that does not exist."""
    (tmp_path / "a.onnx").write_bytes(b"")
    for folder, network in ((tmp_path, tmp_path / "nosuch.onnx"), (tmp_path / "nosuch", tmp_path / "a.onnx")):
        done = refuse("probe", str(folder), "--features", str(network), "--member", "a")
        assert "error[E707]" in done.stderr or "error[E316]" in done.stderr
        assert "AssertionError" not in done.stderr


@pytest.mark.parametrize(
    ("options", "code"),
    [
        (("--size", "0"), "E204"),
        (("--crop-pct", "5"), "E204"),
        (("--mean", "1,2", "--std", "1"), "E204"),
        (("--labels", "nosuch.json"), "E331"),
        (("--head-layers", "nonsense"), "E204"),
        (("--arch-option", "nonsense"), "E204"),
        (("-o", "/proc/nosuch"), "E702"),
    ],
)
def test_an_export_is_refused_before_torch_is_loaded(options: tuple[str, ...], code: str, tmp_path: Path) -> None:
    """What the options alone tell needs no network."""
    (tmp_path / "a.pth").write_bytes(b"")
    done = refuse("export", str(tmp_path / "a.pth"), "-o", str(tmp_path / "out"), *options)
    assert f"error[{code}]" in done.stderr, done.stderr
    assert "AssertionError" not in done.stderr
