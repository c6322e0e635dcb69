"""A dataset for Kaggle runs without network, finds the contest's files itself, and gives the bytes of home."""

from __future__ import annotations

import json
import os
import re
import runpy
import shutil
import subprocess
import sys
import zipfile
from dataclasses import replace
from pathlib import Path

import pytest

import ensemble
from ensemble.bundle import bundle as bundle_module
from ensemble.bundle import wheels
from ensemble.bundle.bundle import BundleOptions, bundle
from ensemble.bundle.own_wheel import own_wheel, requirements
from ensemble.card import FaceCrop
from ensemble.errors import DeployError, EnsError
from ensemble.events import Recorder
from ensemble.submission.recognize import read_sheet
from ensemble.submission.sheet_options import SheetOptions
from ensemble.submit.destination import Destination
from ensemble.submit.submit import submit
from tests.support.fused import LABELS, toy_recipe, write_members
from tests.support.toys import card, write_pictures

ROOT = Path(ensemble.__file__).parents[1]
_MODULES = {"scikit-learn": "sklearn"}


@pytest.fixture
def dataset(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A bundle without wheels, which only an index has."""
    monkeypatch.setattr(bundle_module, "fetch_wheels", lambda *arguments, **options: {})
    write_members(tmp_path / "models")
    options = BundleOptions(title="Toy masks", name="me/toy-masks", budget="8h", license="CC0-1.0")
    return bundle(toy_recipe(), [tmp_path / "models"], tmp_path / "dataset", "kaggle", options=options).folder


def test_the_dataset_describes_itself(dataset: Path) -> None:
    """Kaggle's metadata has name, title and license, and the notebook runs the script below the dataset's name."""
    metadata = json.loads((dataset / "dataset-metadata.json").read_text())
    assert metadata == {"title": "Toy masks", "id": "me/toy-masks", "licenses": [{"name": "CC0-1.0"}]}
    notebook = json.loads((dataset / "notebook.ipynb").read_text())
    assert [cell["cell_type"] for cell in notebook["cells"]] == ["markdown", "code"]
    (line,) = notebook["cells"][1]["source"]
    assert line == "!python \"$(find /kaggle/input -path '*/toy-masks/run.py' -print -quit)\" --budget 8h"
    below = dataset.parent / "input/datasets/me"
    shutil.copytree(dataset, below / "toy-masks")
    command = line.removeprefix("!").replace("python", "echo").replace("/kaggle/input", str(dataset.parent / "input"))
    done = subprocess.run(["sh", "-c", command], capture_output=True, text=True, check=True)
    assert done.stdout == f"{below}/toy-masks/run.py --budget 8h\n"
    assert sorted(path.name for path in (dataset / "models").iterdir()) == ["m0.onnx", "m1.onnx", "m2.onnx"]


@pytest.mark.slow
def test_the_script_writes_the_bytes_of_home_without_network(dataset: Path, tmp_path: Path) -> None:
    """It finds the sample and the images below the input, also ids without suffix; no network is there where Linux
    lets it be taken away, and no package of which the bundle has no wheel. Other options are those of `ens submit`.
    """
    contest = tmp_path / "input" / "contest"
    names = [f"{number:02d}" for number in range(12)]
    write_pictures(contest / "test" / "images", [f"{name}.jpg" for name in names])
    write_pictures(contest / "train", [f"{name}.jpg" for name in names[:3]])
    sample = contest / "Sample_Submission.csv"
    sample.write_text("id,label\n" + "".join(f"{name},0\n" for name in names))
    shutil.copytree(dataset, tmp_path / "input" / "toy-masks")
    command = [sys.executable, str(tmp_path / "input/toy-masks/run.py"), "--input", str(tmp_path / "input")]
    command += ["--packages", str(ROOT), "-o", str(tmp_path / "there.csv"), "--budget", "1h", "--device", "cpu"]
    command += ["--answers", "name"]
    alone = ["unshare", "-n", "-r"]
    if shutil.which("unshare") and subprocess.run([*alone, "true"], capture_output=True).returncode == 0:
        command = [*alone, *command]
    left_out = requirements().keys() - wheels.packages_to_run([card()]).keys()
    for name in left_out:
        module = tmp_path / "hidden" / _MODULES.get(name, name) / "__init__.py"
        module.parent.mkdir(parents=True)
        module.write_text(f"raise ModuleNotFoundError('{name} has no wheel in the bundle')\n")
    hidden = {**os.environ, "PYTHONPATH": str(tmp_path / "hidden")}
    done = subprocess.run(command, env=hidden, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"images: {contest / 'test' / 'images'}" in done.stdout
    recipe = toy_recipe()
    sheet = read_sheet(sample, recipe.labels, options=SheetOptions("name"))
    destination = Destination(tmp_path / "home.csv", tmp_path / "work", sheet)
    submit(recipe, contest / "test" / "images", [tmp_path / "models"], destination)
    assert (tmp_path / "there.csv").read_bytes() == (tmp_path / "home.csv").read_bytes()


def test_the_script_asks_for_what_it_cannot_find(dataset: Path, tmp_path: Path) -> None:
    """Two samples, images of other names and a budget without a unit end with a sentence, before anything runs."""
    run = [sys.executable, str(dataset / "run.py"), "--input", str(tmp_path / "input"), "--packages", str(ROOT)]
    write_pictures(tmp_path / "input" / "images", ["x.jpg"])
    for samples, more, words in (
        ([], [], "0 sample submissions are below"),
        (["sample_submission.csv"], [], "no images below"),
        (["sample_submission.csv", "b/sample-submission.csv"], [], "2 sample submissions"),
        ([], ["--budget", "8"], "--budget takes 90m, 8h or 5400s, got '8'"),
    ):
        for sample in samples:
            (tmp_path / "input" / sample).parent.mkdir(exist_ok=True)
            (tmp_path / "input" / sample).write_text("id,label\na,0\n")
        done = subprocess.run([*run, *more], capture_output=True, text=True, check=False)
        assert done.returncode == 1
        assert words in done.stderr


@pytest.mark.parametrize("text", ["id,a\n{},0\n", "sep=;\r\nid;a\r\n{};0\r\n", '"id";"a,b"\n{};0\n', "id\ta\n{}\t0\n"])
def test_the_script_finds_the_images_of_a_sample_of_any_separator(dataset: Path, tmp_path: Path, text: str) -> None:
    """As `ens submit` reads it: with cells between commas only, no id of ``sep=;`` was found."""
    write_pictures(tmp_path / "input" / "test", ["x y.jpg"])
    sample = tmp_path / "sample.csv"
    sample.write_text(text.format("x y.jpg"), newline="")
    functions = runpy.run_path(str(dataset / "run.py"))
    assert functions["find_images"](tmp_path / "input", sample) == str(tmp_path / "input" / "test")


def test_the_wheel_of_this_program_is_whole(tmp_path: Path) -> None:
    """It has every module and page file, its requirements with their versions, and equal bytes each time."""
    name, data = own_wheel(["numpy==2.4.1"])
    assert (name, data) == own_wheel(["numpy==2.4.1"])
    path, stem = tmp_path / name, name.removesuffix("-py3-none-any.whl")
    path.write_bytes(data)
    with zipfile.ZipFile(path) as archive:
        names = set(archive.namelist())
        metadata = archive.read(f"{stem}.dist-info/METADATA").decode()
        record = archive.read(f"{stem}.dist-info/RECORD").decode().splitlines()
    assert {"ensemble/cli.py", "checkpoints/__init__.py", "exporters/py.typed"} <= names
    assert "ensemble/bundle/templates/kaggle_run.txt" in names
    assert re.search(r"^Requires-Dist: numpy==2.4.1$", metadata, re.MULTILINE)
    assert len(record) == len(names)


def test_the_light_install_is_required_in_the_versions_of_home() -> None:
    """No package of an extra is among them, and onnxruntime goes by that name."""
    found = requirements()
    assert {"numpy", "onnx", "onnxruntime", "pillow", "pyarrow", "click"} <= found.keys()
    assert not {"torch", "timm", "onnxruntime-gpu", "nvidia-cublas"} & found.keys()
    assert all(re.match(r"\d", version) for version in found.values())


def test_large_packages_are_there_where_a_model_needs_them() -> None:
    """pyarrow comes with face crops, what only learns never, whatever the resizer."""
    pillow = card()
    face = replace(pillow, preprocess=replace(pillow.preprocess, face=FaceCrop(0.2)))
    opencv = replace(pillow, preprocess=replace(pillow.preprocess, resizer="opencv"))
    whole = requirements().keys()
    learning = {"scikit-learn", "scipy", "threadpoolctl"}
    assert whole - wheels.packages_to_run([pillow, opencv]).keys() == {"pyarrow"} | learning
    assert whole - wheels.packages_to_run([pillow, face]).keys() == learning


@pytest.mark.parametrize(("gpu", "version"), [(False, "2026.4.0"), (True, "2026.4.0"), (False, "missing")])
def test_openvino_is_there_for_int8_models_of_its_quantization(
    gpu: bool, version: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where it cannot be, the bundle says that the model is slower without it; with a GPU it would not be used."""
    monkeypatch.setattr(wheels, "openvino_version", lambda: version)
    monkeypatch.setattr(bundle_module, "fetch_wheels", lambda *arguments, **options: {})
    suited = replace(card("m2", labels=LABELS), precision="int8", checks={"scheme": "openvino"})
    for one in (card(), replace(suited, checks={"scheme": "asymmetric"})):
        assert "openvino" not in wheels.packages_to_run([one], gpu=gpu)
    expected = not gpu and version != "missing"
    assert (wheels.packages_to_run([card(), suited], gpu=gpu).get("openvino") == version) is expected
    heard = Recorder()
    models = write_members(tmp_path / "models", [card("m0", labels=LABELS), card("m1", labels=LABELS), suited])
    bundle(toy_recipe(), [models], tmp_path / "out", "kaggle", options=BundleOptions(gpu=gpu), listener=heard)
    warned = [notice.message for notice in heard.notices if notice.code == "W616"]
    assert len(warned) == (version == "missing")
    assert all("openvino" in message for message in warned)
    assert any("OpenVINO is there" in notice.message for notice in heard.notices) is expected


def test_pip_is_asked_for_each_version_of_python(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The command names version, platform and exact packages; a failure is told in pip's own lines."""
    asked: list[list[str]] = []

    def run(command: list[str], **options: object) -> subprocess.CompletedProcess[str]:
        asked.append(command)
        fails = "3.13" in command
        return subprocess.CompletedProcess(command, int(fails), "", "WARNING: x\nERROR: no numpy\n" if fails else "")

    monkeypatch.setattr(wheels.subprocess, "run", run)  # type: ignore[attr-defined]
    monkeypatch.setattr(wheels, "_pip", lambda: ["pip"])
    packages = wheels.packages_to_run([card()])
    (tmp_path / "pyarrow-1-py3-none-any.whl").write_bytes(b"of an earlier bundle")
    made = wheels.fetch_wheels(tmp_path, ["3.12"], packages=packages, gpu=True)
    assert [name.partition("-")[0] for name in made] == ["ens_onnx"]
    assert "3.12" in asked[0]
    assert "manylinux_2_28_x86_64" in asked[0]
    assert any(part.startswith("onnxruntime-gpu==") for part in asked[0])
    assert not any(part.startswith("pyarrow") for part in asked[0])
    with pytest.raises(DeployError, match=r"Python 3\.13") as caught:
        wheels.fetch_wheels(tmp_path, ["3.13"], packages=packages)
    assert caught.value.code == "E814"
    assert caught.value.details == ("ERROR: no numpy",)
    with pytest.raises(EnsError, match="--python takes"):
        wheels.fetch_wheels(tmp_path, ["cp312"], packages=packages)


def test_a_name_is_asked_for_and_checked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without --name the metadata has the words of Kaggle's client, with a warning; a wrong one is refused."""
    monkeypatch.setattr(bundle_module, "fetch_wheels", lambda *arguments, **options: {})
    write_members(tmp_path / "models")
    recorder = Recorder()
    bundle(toy_recipe(), [tmp_path / "models"], tmp_path / "my masks", "kaggle", listener=recorder)
    metadata = json.loads((tmp_path / "my masks/dataset-metadata.json").read_text())
    assert metadata["id"] == "INSERT_USERNAME/my-masks"
    assert "--name" in next(notice.message for notice in recorder.notices if notice.code == "W811")
    options = BundleOptions(name="masks")
    with pytest.raises(EnsError, match="USER/NAME"):
        bundle(toy_recipe(), [tmp_path / "models"], tmp_path / "other", "kaggle", options=options)
