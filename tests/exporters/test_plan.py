"""What an export takes from the checkpoint's metadata, what it says, and what it refuses before the first file."""

from __future__ import annotations

import argparse
import http.server
import json
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import timm
import torch

from checkpoints.loading.hub import find_named
from checkpoints.loading.open import build_model, open_checkpoint
from checkpoints.loading.open_options import OpenOptions
from ensemble.channel_values import scale_channel_values
from ensemble.errors import DataError, EnsError
from ensemble.events import Recorder
from ensemble.labels import LabelSpace
from exporters.accuracy_gate import ImageSet
from exporters.make_card import DEFAULTS, ExportOptions, describe_settings, make_card
from exporters.plan import Judged, name_members, plan_exports, render_plan

pytestmark = pytest.mark.slow
ARCH = "resnet10t"


@pytest.fixture(scope="module")
def network() -> torch.nn.Module:
    torch.manual_seed(0)
    model = timm.create_model(ARCH, num_classes=3)
    assert isinstance(model, torch.nn.Module)
    return model.eval()


def save(path: Path, network: torch.nn.Module, **more: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save({"state_dict": network.state_dict(), **more}, path)
    return path


def code_of(action: Any) -> tuple[str, str]:
    with pytest.raises(EnsError) as caught:
        action()
    return caught.value.code, f"{caught.value.message} {caught.value.hint}"


def test_pooling_and_epsilon_of_the_checkpoint_are_used(network: torch.nn.Module, tmp_path: Path) -> None:
    """The logits are those of a network with the pooling and the epsilon that timm's arguments say."""
    path = save(tmp_path / "a.pth", network, args=argparse.Namespace(model=ARCH, gp="max", bn_eps=0.01))
    heard = Recorder()
    checkpoint = open_checkpoint(path, listener=heard)
    wanted = timm.create_model(ARCH, num_classes=3, global_pool="max")
    wanted.load_state_dict(network.state_dict())
    for module in wanted.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.eps = 0.01
    pixels = torch.randn(2, 3, 32, 32)
    with torch.inference_mode():
        torch.testing.assert_close(build_model(checkpoint)(pixels), wanted.eval()(pixels))
    said = [notice.message for notice in heard.notices if notice.code == "I451"]
    assert said == ["args.gp = 'max' is used", "args.bn_eps = 0.01 is used"]


def test_an_option_overrules_the_checkpoint(network: torch.nn.Module, tmp_path: Path) -> None:
    """``--arch-option`` is used instead of the metadata, and one that the architecture does not take is refused."""
    path = save(tmp_path / "a.pth", network, args=argparse.Namespace(gp="max"))
    assert open_checkpoint(path, arch_options={"global_pool": "avg"}).arch_options == {"global_pool": "avg"}
    code, message = code_of(lambda: open_checkpoint(path, arch_options={"widht": 2}))
    assert code == "E204"
    assert "--arch-option widht=2" in message


def test_a_claim_against_the_weights_is_refused(network: torch.nn.Module, tmp_path: Path) -> None:
    """A checkpoint that names another architecture or another number of classes is not exported without a word."""
    path = save(tmp_path / "a.pth", network, arch="resnet18")
    code, message = code_of(lambda: open_checkpoint(path))
    assert code == "E410"
    assert "resnet18 (arch)" in message
    assert "--arch resnet10t" in message
    assert open_checkpoint(path, arch=ARCH).arch == ARCH
    named = save(tmp_path / "b.pth", network, classes=["x", "y"])
    checkpoint = open_checkpoint(named)
    code, message = code_of(lambda: make_card(checkpoint, build_model(checkpoint), DEFAULTS))
    assert (code, "classes says 2 classes" in message) == ("E411", True)
    options = ExportOptions(labels=LabelSpace.flat(3))
    assert len(make_card(checkpoint, build_model(checkpoint), options).labels) == 3


def test_guesses_are_said_and_what_is_known_is_used(network: torch.nn.Module, tmp_path: Path) -> None:
    """Class names and size come from the checkpoint; one line names what is assumed, with nothing that was given."""
    path = save(tmp_path / "a.pth", network, class_to_idx={"b": 1, "a": 0, "c": 2}, config={"img_size": 64})
    checkpoint = open_checkpoint(path)
    card = make_card(checkpoint, build_model(checkpoint), ExportOptions(resize="squash"))
    assert (card.labels.names, card.preprocess.size) == (("a", "b", "c"), (64, 64))
    stored, assumed = [notice.message for notice in describe_settings(card, checkpoint)]
    assert stored == "as the checkpoint says (config.img_size, class_to_idx): size 64x64, 3 class names"
    assert assumed.startswith(
        "timm's defaults, not the checkpoint's: bicubic, mean 0.485,0.456,0.406, std 0.229,0.224,0.225;"
    )


def test_files_of_one_name_are_named_after_their_folders(tmp_path: Path) -> None:
    """Two files best.pth get their folders' names, as many as it takes; the same file twice is refused."""
    heard = Recorder()
    paths = [tmp_path / name for name in ("r1/best.pth", "r2/best.pth", "other.pth")]
    assert list(name_members(paths, {}, heard).values()) == ["r1_best", "r2_best"]
    deep = [tmp_path / name for name in ("x/fold0/best.pth", "y/fold0/best.pth")]
    assert list(name_members(deep, {}, heard).values()) == ["x_fold0_best", "y_fold0_best"]
    assert [notice.code for notice in heard.notices] == ["I453", "I453"]
    assert code_of(lambda: name_members([paths[0], paths[0]], {}, heard))[0] == "E428"
    cards = {paths[0]: "same", paths[1]: "same"}
    assert code_of(lambda: name_members(paths, cards, heard))[0] == "E428"


def test_a_plan_writes_nothing(network: torch.nn.Module, tmp_path: Path) -> None:
    """A dry run says architecture, classes, size and output, and leaves no folder behind."""
    path = save(tmp_path / "a.pth", network, config={"img_size": 64})
    plans = plan_exports([path], tmp_path / "out", DEFAULTS, OpenOptions(), listener=Recorder())
    text = render_plan(plans)
    assert all(word in text for word in (ARCH, "64x64", "a.onnx"))
    weights = {k: t for k, t in network.state_dict().items() if not k.endswith("num_batches_tracked")}
    assert plans[0].as_dict()["parameters"] == sum(tensor.numel() for tensor in weights.values())
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("options", "installed", "quantization", "near_ties", "said"),
    [
        ({"precision": "int8"}, True, None, "fp32", "openvino if it has activation functions"),
        ({"precision": "int8"}, False, "asymmetric", "fp32", "asymmetric; near ties in float32"),
        ({"precision": "int8", "quantization": "symmetric"}, True, "symmetric", "int8", "symmetric; near ties in int8"),
        ({"precision": "int8", "near_ties": "int8", "quantization": "openvino"}, True, "openvino", "int8", "openvino;"),
        ({"precision": "int8", "features": True}, False, "asymmetric", "int8", "near ties in int8"),
    ],
)
def test_a_plan_says_what_int8_would_be(
    network: torch.nn.Module,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    options: dict[str, Any],
    installed: bool,
    quantization: str | None,
    near_ties: str,
    said: str,
) -> None:
    """Precision, quantization, near ties, and how many images calibrate, choose and judge: as far as no work tells."""
    monkeypatch.setattr("exporters.plan.openvino_version", lambda: "2026.4" if installed else "missing")
    ids = tuple(f"{number}.jpg" for number in range(400))
    images = Judged(ImageSet(ids, tuple(tmp_path / name for name in ids)))
    path = save(tmp_path / "a.pth", network)
    wanted = replace(DEFAULTS, **options)
    (plan,) = plan_exports([path], tmp_path / "out", wanted, OpenOptions(), judged=images, listener=Recorder())
    found = plan.as_dict()
    assert (found["precision"], found["quantization"], found["near_ties"]) == ("int8", quantization, near_ties)
    assert found["images"] == {"calibrate": 100, "choose": 150, "judge": 150, "judge again": 0}
    text = render_plan([plan])
    assert said in text
    assert "images: 100 calibrate, 150 choose, 150 judge" in text
    assert ("fewer" in text) == (quantization in {None, "openvino"})


def test_a_plan_refuses_too_few_images(network: torch.nn.Module, tmp_path: Path) -> None:
    """What an export would refuse after the network is opened is refused by a dry run."""
    images = Judged(ImageSet(("a.jpg",), (tmp_path / "a.jpg",)))
    path, wanted = save(tmp_path / "a.pth", network), replace(DEFAULTS, precision="int8")
    with pytest.raises(DataError, match="are left to judge by") as caught:
        plan_exports([path], tmp_path / "out", wanted, OpenOptions(), judged=images, listener=Recorder())
    assert caught.value.code == "E316"


_DRY_RUN = """
import sys
from ensemble.__main__ import run
status = run(["export", sys.argv[1], "--dry-run", "--json"])
assert not {"torch", "timm"} & sys.modules.keys(), "torch was imported"
sys.exit(status)
"""


@pytest.mark.parametrize("file", ["a.pth", "a.safetensors", "old.pth"])
def test_a_dry_run_says_the_same_without_torch(network: torch.nn.Module, tmp_path: Path, file: str) -> None:
    """Archives of torch.save, safetensors and the old format get the card that an export makes; torch is not loaded."""
    path = tmp_path / file
    state = {f"model.{key}": tensor for key, tensor in network.state_dict().items()}
    if path.suffix == ".safetensors":
        safetensors.torch.save_file(state, path)
    else:
        torch.save(
            {"net": state, "cfg": {"img_size": 96}}, path, _use_new_zipfile_serialization=not file.startswith("old")
        )
    command = [sys.executable, "-c", _DRY_RUN, str(path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    (plan,) = json.loads(done.stdout)
    checkpoint = open_checkpoint(path)
    assert plan["card"] == json.loads(make_card(checkpoint, build_model(checkpoint), DEFAULTS).to_json())
    assert plan["fits"] == [ARCH]
    assert "head net.model.fc: 3 classes" in plan["holds"] or "head model.fc: 3 classes" in plan["holds"]


def test_a_dry_run_goes_on_with_torch_where_names_do_not_tell(network: torch.nn.Module, tmp_path: Path) -> None:
    """A head without bias needs its values: the reason is said, and the plan is that of the opened checkpoint."""
    state = {key: tensor for key, tensor in network.state_dict().items() if key != "fc.bias"}
    torch.save(state, tmp_path / "a.pth")
    heard = Recorder()
    (plan,) = plan_exports([tmp_path / "a.pth"], tmp_path, DEFAULTS, OpenOptions(), listener=heard)
    assert plan.card.arch == ARCH
    told = [notice.message for notice in heard.notices if notice.code == "I485"]
    assert told == ["a.pth is opened with torch: the head is no linear layer with a bias"]


def test_mean_and_std_of_0_to_255_are_understood_together() -> None:
    """Both are divided by 255; one of each range is refused."""
    mean, std, scaled = scale_channel_values((127.5,) * 3, (51.0,) * 3)
    assert (mean, std, scaled) == ((0.5,) * 3, (0.2,) * 3, True)
    assert scale_channel_values((0.5,) * 3, None) == ((0.5,) * 3, None, False)
    assert scale_channel_values((0.0,) * 3, (255.0,) * 3) == ((0.0,) * 3, (1.0,) * 3, True)
    assert code_of(lambda: scale_channel_values((127.5,) * 3, (0.2,) * 3))[0] == "E204"
    assert code_of(lambda: scale_channel_values((0.4, 120, 0.4), None))[0] == "E204"


@pytest.fixture
def hub(network: torch.nn.Module, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A server with the routes of the Hugging Face Hub that a download needs, for one model ``user/tiny``."""
    config = {"architecture": ARCH, "pretrained_cfg": {"input_size": [3, 48, 48], "mean": [0.5] * 3}}
    files = {
        "config.json": json.dumps(config).encode(),
        "model.safetensors": safetensors.torch.save(network.state_dict()),
    }
    commit = "0123456789abcdef0123456789abcdef01234567"

    class Handler(http.server.BaseHTTPRequestHandler):
        def log_message(self, *arguments: Any) -> None:
            pass

        def do_HEAD(self) -> None:
            self.do_GET(body=False)

        def do_GET(self, body: bool = True) -> None:
            name = self.path.rpartition("/")[2]
            if self.path.startswith("/api/models/user/tiny/tree/"):
                tree = [{"type": "file", "path": file, "size": len(files[file]), "oid": file} for file in files]
                data = json.dumps(tree).encode()
            elif self.path.startswith("/api/models/user/tiny"):
                siblings = [{"rfilename": file} for file in files]
                data = json.dumps({"id": "user/tiny", "sha": commit, "siblings": siblings}).encode()
            elif self.path.startswith("/user/tiny/resolve/") and name in files:
                data = files[name]
            else:
                self.send_error(404)
                return
            self.send_response(200)
            self.send_header("Content-Length", str(len(data)))
            self.send_header("X-Repo-Commit", commit)
            self.send_header("ETag", f'"{name}"')
            self.end_headers()
            if body:
                self.wfile.write(data)

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    endpoint = f"http://127.0.0.1:{server.server_port}"
    constants = pytest.importorskip("huggingface_hub.constants")
    monkeypatch.setattr(constants, "ENDPOINT", endpoint)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_PROGRESS_BARS", True)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", endpoint + "/{repo_id}/resolve/{revision}/{filename}")
    yield endpoint
    server.shutdown()
    server.server_close()


@pytest.mark.filterwarnings("ignore")
def test_a_model_of_the_hub_is_opened_with_its_config(hub: str, network: torch.nn.Module) -> None:
    """``hf-hub:user/name`` is downloaded, and its config.json gives architecture, size and mean."""
    folder = find_named(Path("hf-hub:user/tiny"))
    checkpoint = open_checkpoint(folder)
    card = make_card(checkpoint, build_model(checkpoint), ExportOptions(member="tiny"))
    assert (card.arch, card.preprocess.size, card.mean) == (ARCH, (48, 48), (0.5, 0.5, 0.5))
    assert find_named(Path(f"local-dir:{folder}")) == folder
    code, message = code_of(lambda: find_named(Path("hf-hub:user/absent")))
    assert code == "E707"
    assert "user/absent" in message
