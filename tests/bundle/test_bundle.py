"""A bundle has everything that its reader needs, and its script runs with onnxruntime and Pillow alone."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image

from ensemble.blend.decision_rules import ThresholdRule
from ensemble.bundle.bundle import BundleOptions, bundle
from ensemble.bundle.hub import in_markdown, push
from ensemble.card import FaceCrop, Preprocess
from ensemble.cli import ens
from ensemble.errors import DataError, DeployError, EnsError
from ensemble.events import Recorder
from ensemble.fuse.fused_session import start_fused
from ensemble.labels import LabelSpace
from tests.support.fused import LABELS, toy_recipe, write_members
from tests.support.toys import card, encode, picture

ADDRESS = "https://huggingface.co/me/masks"
ESTIMATE = {"value": 0.91234, "low": 0.9, "high": 0.92}
SCORES: dict[str, Any] = {
    "scores": [
        {
            "name": "blend",
            "macro_f1": ESTIMATE,
            "accuracy": ESTIMATE | {"value": 0.95},
            "axes": {"a": ESTIMATE | {"value": 0.97}},
            "nll": 0.3,
            "metrics": {"kappa": {"title": "kappa", "estimate": ESTIMATE | {"value": 0.88}, "by_class": None}},
        },
    ],
    "images": 1200,
    "persons": 400,
}


def run_in(folder: Path, script: str, *images: str) -> list[list[str]]:
    """The lines that a script prints in a folder, without this project on its path."""
    done = subprocess.run(
        [sys.executable, "-I", "-c", script, *images], cwd=folder, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return [line.split("\t") for line in done.stdout.splitlines()]


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The models of `toy_recipe`."""
    return write_members(tmp_path_factory.mktemp("models"))


def test_a_folder_holds_the_file_the_script_and_the_labels(models: Path, tmp_path: Path) -> None:
    """The script prints for two photographs of other sizes what the fused file answers; one is turned by its EXIF."""
    done = bundle(toy_recipe(), [models], tmp_path / "out", "folder")
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["ensemble.onnx", "labels.txt", "run.py"]
    assert (tmp_path / "out/labels.txt").read_text().splitlines() == list(LABELS.names)
    (tmp_path / "a.jpg").write_bytes(encode(picture(1)))
    turned = Image.fromarray(picture(2, size=(50, 31)))
    exif = turned.getexif()
    exif[0x0112] = 6
    turned.save(tmp_path / "b.png", exif=exif)
    script = (tmp_path / "out/run.py").read_text()
    lines = run_in(tmp_path / "out", script, str(tmp_path / "a.jpg"), str(tmp_path / "b.png"))
    session = start_fused((tmp_path / "out/ensemble.onnx").read_bytes(), tmp_path / "out/ensemble.onnx")
    for line, pixels in zip(
        lines,
        (np.asarray(Image.open(tmp_path / "a.jpg")), np.rot90(picture(2, size=(50, 31)), -1)),
        strict=True,
    ):
        found = session.run(np.ascontiguousarray(pixels)[np.newaxis])
        assert line[1:] == [LABELS.names[found.classes[0]], f"{found.probabilities[0].max():.4f}"]
    assert len(script.splitlines()) <= 12
    assert done.files["run.py"] == len(script)


@pytest.mark.parametrize("thresholds", [True, False])
def test_the_script_of_several_labels_prints_them(thresholds: bool, tmp_path: Path) -> None:
    """With thresholds those that apply are printed, without them all."""
    labels = LabelSpace.flat(("cat", "dog", "hat"))
    write_members(tmp_path / "m", [replace(card(f"m{i}", labels=labels), activation="sigmoid") for i in range(3)])
    rule: Any = ThresholdRule(np.array([0.0, 1.0, 0.0])) if thresholds else "argmax"
    bundle(toy_recipe(labels=labels, activation="sigmoid", rule=rule), [tmp_path / "m"], tmp_path / "out", "folder")
    (tmp_path / "a.jpg").write_bytes(encode(picture(1)))
    (line,) = run_in(tmp_path / "out", (tmp_path / "out/run.py").read_text(), str(tmp_path / "a.jpg"))
    assert [part.split()[0] for part in line[1:]] == (["cat", "hat"] if thresholds else ["cat", "dog", "hat"])


def test_the_script_of_face_crops_uses_the_fallback(tmp_path: Path) -> None:
    """Without a box the script shows the members the square that their cards name."""
    cards = [card(f"m{i}", labels=LABELS) for i in range(3)]
    cards[0] = replace(cards[0], preprocess=Preprocess((16, 16), face=FaceCrop(0.2, (0.5, 0.4, 0.5))))
    write_members(tmp_path / "m", cards)
    bundle(toy_recipe(), [tmp_path / "m"], tmp_path / "out", "folder")
    (tmp_path / "a.png").write_bytes(encode(picture(1), "PNG"))
    (line,) = run_in(tmp_path / "out", (tmp_path / "out/run.py").read_text(), str(tmp_path / "a.png"))
    path = tmp_path / "out/ensemble.onnx"
    found = start_fused(path.read_bytes(), path).run(picture(1)[np.newaxis], [None])
    assert line[1:] == [LABELS.names[found.classes[0]], f"{found.probabilities[0].max():.4f}"]


def test_the_hub_s_model_card_runs_and_tells_the_scores(models: Path, tmp_path: Path) -> None:
    """Its Python block runs as it stands; scores have their intervals, and the metadata block is YAML's subset."""
    options = BundleOptions(license="MIT", scores=SCORES, title='Masks: "18" classes')
    bundle(toy_recipe(), [models], tmp_path / "hub", "hub", options=options)
    text = (tmp_path / "hub/README.md").read_text()
    (tmp_path / "a.jpg").write_bytes(encode(picture(1)))
    (script,) = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    (line,) = run_in(tmp_path / "hub", script, str(tmp_path / "a.jpg"))
    assert line[1] in LABELS.names
    assert "| macro f1 | 0.9123 | 0.9000 to 0.9200 |" in text
    assert "| kappa | 0.8800 | 0.9000 to 0.9200 |" in text
    assert "1,200 images of 400 persons" in text
    config = json.loads((tmp_path / "hub/config.json").read_text())
    assert config["id2label"]["3"] == LABELS.names[3]
    huggingface_hub = pytest.importorskip("huggingface_hub", reason="the extra torch has huggingface_hub")
    block = huggingface_hub.ModelCard(text).data
    assert block.license == "mit"
    assert block.pipeline_tag == "image-classification"
    assert {result.metric_value for result in block.eval_results} == {0.91234, 0.95, 0.97, 0.88}


def test_a_member_s_scores_are_not_shown_as_the_ensemble_s(models: Path, tmp_path: Path) -> None:
    """Scores that have the name of a member are E812."""
    options = BundleOptions(scores={**SCORES, "scores": [{**SCORES["scores"][0], "name": "m1"}]})
    with pytest.raises(DeployError, match="those of the member m1") as caught:
        bundle(toy_recipe(), [models], tmp_path / "out", "hub", options=options)
    assert caught.value.code == "E812"
    assert not list((tmp_path / "out").iterdir())


def test_a_model_card_without_scores_or_license_says_so(models: Path, tmp_path: Path) -> None:
    """Both are warnings, and the card says that scores are not given."""
    recorder = Recorder()
    bundle(toy_recipe(), [models], tmp_path / "hub", "hub", listener=recorder)
    warned = [notice.message for notice in recorder.notices if notice.code == "W811"]
    assert ["--license" in one for one in warned] == [True, False]
    assert ["--scores" in one for one in warned] == [False, True]
    assert "## Scores\n\nNot given." in (tmp_path / "hub/README.md").read_text()


class _Hub(BaseHTTPRequestHandler):
    """The part of the Hub's interface that an upload of small files uses; it keeps the files of the commit."""

    files: dict[str, Any]

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        if self.path == "/api/repos/create":
            self._answer({"url": ADDRESS, "name": json.loads(body)["name"]})
        elif "/preupload/" in self.path:
            asked = json.loads(body)["files"]
            self._answer(
                {"files": [{"path": one["path"], "uploadMode": "regular", "shouldIgnore": False} for one in asked]}
            )
        elif "/commit/" in self.path:
            for line in body.decode().splitlines():
                entry = json.loads(line)
                if entry["key"] == "file":
                    self.files[entry["value"]["path"]] = len(entry["value"]["content"])
            self._answer(
                {"commitUrl": "https://huggingface.co/me/masks/commit/1", "commitOid": "1", "pullRequestUrl": None}
            )
        else:
            self._answer({})

    def do_GET(self) -> None:
        self._answer({"id": "me/masks", "sha": "1", "siblings": []})

    def _answer(self, value: Any) -> None:
        data = json.dumps(value).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - the name that http.server uses
        """Keep quiet."""


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, Any]]:
    """A hub on this machine; gives the files that are committed to it."""
    constants = pytest.importorskip("huggingface_hub.constants", reason="the extra torch has huggingface_hub")
    _Hub.files = {}
    server = HTTPServer(("127.0.0.1", 0), _Hub)
    thread = Thread(target=server.serve_forever, daemon=True)
    thread.start()
    address = f"http://127.0.0.1:{server.server_port}"
    api = sys.modules["huggingface_hub"].HfApi
    monkeypatch.setattr("huggingface_hub.HfApi", lambda: api(endpoint=address, token="t"))
    monkeypatch.setattr(constants, "ENDPOINT", address)
    yield _Hub.files
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.mark.slow
def test_a_bundle_is_pushed_to_the_hub(models: Path, tmp_path: Path, hub: dict[str, Any]) -> None:
    """The hub gets the files of the bundle, and nothing else that lies in the folder."""
    done = bundle(toy_recipe(), [models], tmp_path / "hub", "hub", options=BundleOptions(license="mit"))
    (tmp_path / "hub/notes.txt").write_text("mine")
    assert push(tmp_path / "hub", list(done.files), "me/masks") == f"{ADDRESS}/commit/1"
    assert sorted(hub) == ["README.md", "config.json", "ensemble.onnx", "labels.txt", "run.py"]


def test_a_name_that_is_no_repository_is_refused(tmp_path: Path) -> None:
    """USER/NAME has one slash, with words on both sides."""
    for name in ("masks", "/masks", "me/", "me/masks/2"):
        with pytest.raises(EnsError, match="USER/NAME") as caught:
            push(tmp_path, [], name)
        assert caught.value.code == "E204"


def test_other_files_are_not_mixed_with_a_bundle(models: Path, tmp_path: Path) -> None:
    """A folder with other files is refused; one that holds a bundle is written again."""
    (tmp_path / "photo.jpg").write_text("mine")
    with pytest.raises(DeployError, match="other files") as caught:
        bundle(toy_recipe(), [models], tmp_path, "folder")
    assert caught.value.code == "E811"
    bundle(toy_recipe(), [models], tmp_path / "out", "folder")
    assert bundle(toy_recipe(), [models], tmp_path / "out", "folder").folder == tmp_path / "out"


def test_the_command_checks_scores_before_it_works(models: Path, tmp_path: Path) -> None:
    """A file of other JSON, and scores of members, are E812; options of the hub need --for hub; files are listed."""
    (tmp_path / "blend.json").write_text(toy_recipe().to_json())
    (tmp_path / "scores.json").write_text('{"scores": [{"name": "s.csv", "nll": 1}], "images": 3}')
    several = {**SCORES, "scores": [{**SCORES["scores"][0], "name": name} for name in ("m0: mean", "m1: mean")]}
    (tmp_path / "several.json").write_text(json.dumps(several))
    command = ["bundle", str(tmp_path / "blend.json"), "--models", str(models), "-o", str(tmp_path / "out")]
    for more, code in (
        (["--for", "hub", "--scores", str(tmp_path / "scores.json")], "E812"),
        (["--for", "hub", "--scores", str(tmp_path / "several.json")], "E812"),
        (["--for", "folder", "--push", "me/masks"], "E204"),
        (["--for", "folder", "--boxes", "b.parquet"], "E204"),
    ):
        refused = CliRunner().invoke(ens, [*command, *more])
        assert isinstance(refused.exception, EnsError)
        assert refused.exception.code == code
    assert not (tmp_path / "out").exists()
    done = CliRunner().invoke(ens, [*command, "--for", "folder"])
    assert done.exit_code == 0, done.output
    assert re.search(r"labels.txt +\d+ bytes", done.output)


def test_texts_of_others_stay_in_their_cell() -> None:
    """Line breaks, cells, tags and links in the names of classes and networks are text in the model card."""
    assert in_markdown("a|b\n`c` <b>[x](y)\\") == "a\\|b \\`c\\` \\<b>\\[x\\](y)\\\\"
    assert in_markdown("resnet18.a1_in1k, 30~59 / Büro") == "resnet18.a1_in1k, 30~59 / Büro"


@pytest.mark.parametrize("name", ["cat\nblack", "cat\n", "\rcat", "cat\u2028"])
def test_a_class_with_a_line_break_is_refused(tmp_path: Path, name: str) -> None:
    """labels.txt has a class per line: another line would shift all that follow, in silence."""
    recipe = replace(toy_recipe(), labels=LabelSpace.flat([name, *LABELS.names[1:]]))
    with pytest.raises(DataError, match="has a line break") as caught:
        bundle(recipe, [tmp_path], tmp_path / "out", "folder")
    assert caught.value.code == "E331"
