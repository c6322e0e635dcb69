"""Without any extra: predicting, blending and checking need what `pip install .` brings, and no torch."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from ensemble.install import install_command
from tests.support import toys

pytestmark = pytest.mark.slow

_RUN = """
import sys
REFUSED = {"torch", "timm", "torchvision", "albumentations", "facenet_pytorch", "onnxscript", "safetensors"}
REFUSED |= {"accelerate", "fsspec", "matplotlib", "openvino", "ray"}
class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in REFUSED:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name.partition(".")[0])
sys.meta_path.insert(0, Refuse())
from ensemble.__main__ import run
sys.exit(run(sys.argv[1:]))
"""


def ens(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    """Run a command where torch and what else the extras bring cannot be imported."""
    command = [sys.executable, "-c", _RUN, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False, cwd=Path(__file__).parent.parent)


@pytest.fixture
def contest(tmp_path: Path) -> Path:
    """Twenty images, two models and a sample submission."""
    names = [f"{i}.jpg" for i in range(20)]
    toys.write_pictures(tmp_path / "images", names)
    for seed, member in enumerate(("a", "b")):
        toys.write_model(tmp_path / "models", toys.card(member), seed=seed)
    (tmp_path / "info.csv").write_text("ImageID,ans\n" + "".join(f"{name},0\n" for name in reversed(names)))
    return tmp_path


def test_a_submission_comes_about_without_torch(contest: Path) -> None:
    """help, predict, blend and check all end with status 0 and leave a submission without faults."""
    info, submission = contest / "info.csv", contest / "submission.csv"
    for arguments in (
        ("--help",),
        (
            "predict",
            contest / "models",
            "--images",
            contest / "images",
            "--ids",
            info,
            "--tta",
            "-o",
            contest / "preds",
        ),
        ("blend", contest / "preds", "--like", info, "-o", submission),
        ("check", submission, "--like", info),
        ("doctor",),
    ):
        done = ens(*arguments)
        assert done.returncode == 0, done.stderr
    assert "no faults" in ens("check", submission, "--like", info).stdout


@pytest.mark.parametrize("command", [("export", __file__), ("demo",)])
def test_what_needs_torch_says_how_to_get_it(command: tuple[str, ...]) -> None:
    """export and demo end with status 2, the missing package and the line that installs it; never a traceback."""
    done = ens(*command)
    assert done.returncode == 2
    assert done.stderr.startswith("error[E205]")
    assert install_command(extra="torch") in done.stderr
