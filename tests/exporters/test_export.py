"""From a checkpoint to a verified, self-describing file."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import timm
import torch
from PIL import Image

from checkpoints.loading.open import build_model
from ensemble.arrays import Pixels
from ensemble.errors import DataError, FileError, ModelError, OptionError
from ensemble.labels import MASK18
from ensemble.runtime.model_file import read_model
from exporters import export as module
from exporters.export import Exported, ExportOptions, ImageSet, _unfuse_attention, export
from tests.support.networks import make_checkpoint

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("one_thread")]

OPTIONS = ExportOptions(labels=MASK18, size=(64, 48), resize="squash", mean=(0.5, 0.4, 0.3), features=True)
CHECKPOINT = make_checkpoint(name="resnet_f2.pth")

# another process exports the same checkpoint elsewhere, and is killed at the moment the file gets its name
OTHER_PROCESS = """
import os, signal, sys
from pathlib import Path
from exporters.export import ImageSet, export
from tests.exporters.test_export import CHECKPOINT, OPTIONS
os.replace = lambda *_: os.kill(os.getpid(), signal.SIGKILL)
export(CHECKPOINT, Path(sys.argv[1]), options=OPTIONS)
"""


@pytest.fixture(scope="module")
def resnet(tmp_path_factory: pytest.TempPathFactory) -> Exported:
    """A small ResNet with features, verified on the rendered pictures."""
    return export(CHECKPOINT, tmp_path_factory.mktemp("resnet"), options=OPTIONS)


@pytest.fixture(scope="module")
def efficientnet(tmp_path_factory: pytest.TempPathFactory) -> Exported:
    """A small EfficientNet in float16."""
    options = ExportOptions(size=(64, 64), precision="fp16")
    return export(make_checkpoint("test_efficientnet"), tmp_path_factory.mktemp("efficientnet"), options=options)


@pytest.fixture
def known_graph(monkeypatch: pytest.MonkeyPatch, resnet: Exported) -> onnx.ModelProto:
    """Spares a test the seconds of torch's exporter: it gives this graph, which a test may falsify."""
    graph = onnx.load(resnet.path)
    monkeypatch.setattr(module, "_to_onnx", lambda *_: graph)
    return graph


def draw_batch(count: int, size: tuple[int, int]) -> Pixels:
    return np.random.default_rng(7).integers(0, 256, (count, *size, 3), dtype=np.uint8)


def run(path: Path, batch: Pixels) -> dict[str, Any]:
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    return dict(zip([o.name for o in session.get_outputs()], session.run(None, {"image": batch}), strict=True))


def test_the_file_keeps_the_contract(resnet: Exported) -> None:
    """One file named after its member, which the predictor accepts, and whose card is the one returned."""
    assert resnet.path.name == "resnet_f2.onnx"
    assert [path.name for path in resnet.path.parent.iterdir()] == ["resnet_f2.onnx"]
    read = read_model(resnet.path)
    assert read.card == resnet.card
    assert read.outputs == ("logits", "features")
    proto = onnx.load(resnet.path, load_external_data=False)
    assert [(opset.domain, opset.version) for opset in proto.opset_import] == [("", 20)]
    for value in (*proto.graph.input, *proto.graph.output):
        assert value.type.tensor_type.shape.dim[0].dim_param == "batch"


def test_the_file_answers_as_torch_does(resnet: Exported) -> None:
    """uint8 pixels give the logits and features that torch gives for the pixels normalized by hand."""
    batch = draw_batch(3, (64, 48))
    planes = ((batch / 255 - np.array(OPTIONS.mean)) / 0.5).transpose(0, 3, 1, 2)
    model: Any = build_model(CHECKPOINT)
    with torch.inference_mode():
        image = torch.tensor(planes, dtype=torch.float32)
        expected = {"logits": model(image).numpy(), "features": model.forward_features(image).numpy()}
    found = run(resnet.path, batch)
    for name, values in expected.items():
        assert found[name].dtype == np.float32
        np.testing.assert_allclose(found[name], values, atol=1e-5 * np.abs(values).max(), rtol=0)


def test_the_logits_come_from_the_features(resnet: Exported) -> None:
    """The head applied to the features output gives the logits output; both were verified."""
    assert resnet.checks.features_error is not None
    found = run(resnet.path, draw_batch(2, (64, 48)))
    model: Any = build_model(CHECKPOINT)
    with torch.inference_mode():
        expected = model.forward_head(torch.from_numpy(found["features"])).numpy()
    np.testing.assert_allclose(found["logits"], expected, atol=1e-5 * np.abs(expected).max(), rtol=0)


@dataclass(frozen=True, slots=True)
class Killed:
    """What a process that was killed left behind."""

    files: list[Path]
    ended: subprocess.CompletedProcess[str]


@pytest.fixture(scope="module")
def killed(tmp_path_factory: pytest.TempPathFactory) -> Killed:
    """An export in another process and another working folder, killed while its file got its name."""
    folder = tmp_path_factory.mktemp("killed")
    ended = subprocess.run(
        [sys.executable, "-W", "error", "-c", OTHER_PROCESS, str(folder)],
        cwd=tmp_path_factory.mktemp("elsewhere"),
        env=os.environ | {"PYTHONPATH": str(Path(__file__).parents[2]), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    return Killed(sorted(folder.iterdir()), ended)


def test_fault_51_a_killed_export_leaves_no_model(killed: Killed) -> None:
    """An export killed at the last moment leaves nothing under the model's name, only a temporary file."""
    assert killed.ended.returncode == -signal.SIGKILL, killed.ended.stderr
    assert [path.suffix for path in killed.files] == [".tmp"]


def test_the_same_checkpoint_gives_the_same_bytes(resnet: Exported, killed: Killed) -> None:
    """Another process, in another folder, was about to name the same file, bit by bit."""
    assert killed.files[0].read_bytes() == resnet.path.read_bytes()


def test_exporting_is_quiet(killed: Killed) -> None:
    """Neither our code nor torch's exporter prints or warns."""
    assert (killed.ended.stdout, killed.ended.stderr) == ("", "")


def test_the_file_tells_nothing_about_where_it_was_made(resnet: Exported) -> None:
    """No stack traces, paths or class names are left of what the exporter notes in every node."""
    data = resnet.path.read_bytes()
    for trace in ("site-packages", "stack_trace", "timm.models", "forward", str(Path(__file__).parents[2])):
        assert trace.encode() not in data
    assert {entry.key for entry in onnx.load(resnet.path).metadata_props} == {"ens.card"}


@pytest.mark.parametrize("fixture", ["resnet", "efficientnet"])
def test_every_weight_is_stored_once_and_used(fixture: str, request: pytest.FixtureRequest) -> None:
    """No initializer is left over from folding, and none is there twice."""
    graph = onnx.load(request.getfixturevalue(fixture).path).graph
    used = {name for node in graph.node for name in node.input}
    large = [t.raw_data for t in graph.initializer if len(t.raw_data) > 64]
    assert {tensor.name for tensor in graph.initializer} <= used
    assert len(set(large)) == len(large)


@pytest.mark.parametrize("fixture", ["resnet", "efficientnet"])
def test_the_graph_is_made_of_convolutions_alone(fixture: str, request: pytest.FixtureRequest) -> None:
    """Normalizations are folded, and pooling is not written as a gather over computed indices."""
    kinds = {node.op_type for node in onnx.load(request.getfixturevalue(fixture).path).graph.node}
    assert "Conv" in kinds
    assert kinds.isdisjoint({"BatchNormalization", "Gather", "Range", "Shape"})


def test_half_precision_halves_the_weights_and_keeps_the_interface(efficientnet: Exported) -> None:
    """An fp16 file computes in float16, takes uint8 and gives float32, within the wider limit."""
    read = read_model(efficientnet.path)
    kinds = {t.name: t.data_type for t in onnx.load(efficientnet.path).graph.initializer if len(t.dims) == 4}
    assert (kinds.pop("scale"), kinds.pop("shift")) == (onnx.TensorProto.FLOAT, onnx.TensorProto.FLOAT)
    assert set(kinds.values()) == {onnx.TensorProto.FLOAT16}
    assert read.card.precision == "fp16"
    assert 1e-5 < efficientnet.checks.logits_error < 2e-2
    assert run(efficientnet.path, draw_batch(2, (64, 64)))["logits"].dtype == np.float32


def test_a_transformer_can_be_exported_too(tmp_path: Path) -> None:
    """timm's networks of other families go through the same way, at the size they were built for."""
    exported = export(make_checkpoint("test_vit"), tmp_path)
    assert exported.card.preprocess.size == (160, 160)
    assert exported.checks.faults == ()


def test_a_size_that_the_network_refuses_is_an_error(tmp_path: Path) -> None:
    """A network of fixed size and another --size end in E204 with the network's own words, and no file."""
    with pytest.raises(OptionError, match=r"vit_tiny_patch16_224 does not take images of 64x64 px: .*224") as caught:
        export(make_checkpoint("vit_tiny_patch16_224"), tmp_path, options=ExportOptions(size=(64, 64)))
    assert caught.value.code == "E204"
    assert list(tmp_path.iterdir()) == []


def test_features_need_feature_maps(tmp_path: Path) -> None:
    """--features of a network without maps (batch, F, h, w) ends in E204."""
    with pytest.raises(OptionError, match="no feature maps") as caught:
        export(make_checkpoint("test_vit"), tmp_path, options=ExportOptions(features=True))
    assert caught.value.code == "E204"


def test_fault_46_nothing_is_written_for_labels_that_do_not_fit(tmp_path: Path) -> None:
    """A head of 10 outputs and mask18 end in E411 before anything is exported."""
    with pytest.raises(ModelError) as caught:
        export(make_checkpoint(classes=10), tmp_path, options=OPTIONS)
    assert caught.value.code == "E411"
    assert list(tmp_path.iterdir()) == []


def test_fault_50_a_model_that_fails_its_verification_is_not_written(
    tmp_path: Path, known_graph: onnx.ModelProto
) -> None:
    """A weight that is off by a percent ends in E414 and leaves no file, not even a rejected one."""
    head = next(t for t in known_graph.graph.initializer if t.name == "model.fc.weight")
    head.CopyFrom(onnx.numpy_helper.from_array(onnx.numpy_helper.to_array(head) * np.float32(1.01), head.name))
    with pytest.raises(ModelError, match=r"relative error of the logits .* > 1e-04") as caught:
        export(CHECKPOINT, tmp_path, options=OPTIONS)
    assert caught.value.code == "E414"
    assert list(tmp_path.iterdir()) == []


@pytest.mark.usefixtures("known_graph")
def test_check_images_come_from_the_whole_list(tmp_path: Path) -> None:
    """Of 70 images 64 are used, the first and the last among them, and a broken one is not passed over."""
    paths = [tmp_path / f"{i:02d}.png" for i in range(70)]
    for i, path in enumerate(paths):
        Image.effect_noise((40, 30), 20 + i).convert("RGB").save(path)
    images = ImageSet(tuple(path.name for path in paths), tuple(paths))
    exported = export(CHECKPOINT, tmp_path / "out", options=OPTIONS, check_images=images)
    assert exported.checks.pictures == exported.card.checks["pictures"] == 64
    paths[-1].write_bytes(b"")
    with pytest.raises(DataError) as caught:
        export(CHECKPOINT, tmp_path / "out", options=OPTIONS, check_images=images)
    assert caught.value.code == "E302"


def test_an_architecture_that_torch_cannot_export_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Torch's failure becomes E426 with its first line."""

    def fail(*_: Any, **__: Any) -> None:
        raise RuntimeError("no translation for aten::strange\nand many more lines")

    monkeypatch.setattr("torch.onnx.export", fail)
    with pytest.raises(ModelError, match=r"cannot be exported: no translation for aten::strange$") as caught:
        export(CHECKPOINT, tmp_path, options=OPTIONS)
    assert caught.value.code == "E426"


def test_a_folder_that_cannot_be_written_is_found_out_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """E702 comes before the network is even built."""
    monkeypatch.setattr(module, "build_model", lambda _: pytest.fail("the work began"))
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(FileError) as caught:
        export(CHECKPOINT, tmp_path / "file" / "models", options=OPTIONS)
    assert caught.value.code == "E702"


def test_a_name_that_is_taken_is_not_used_again(tmp_path: Path) -> None:
    """A second checkpoint of the same member's name is E428, and the first one's model stays."""
    with pytest.raises(ModelError, match="E428"):
        export(CHECKPOINT, tmp_path, options=replace(OPTIONS, taken=("resnet_f2",)))
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_networks_whose_fused_attention_cannot_be_traced_are_exported(tmp_path: Path) -> None:
    """A BEiT is exported with plain attention, and verified against the network as timm builds it."""
    torch.manual_seed(0)
    options: dict[str, Any] = {"img_size": 32, "depth": 1, "embed_dim": 48, "num_heads": 2}
    model = timm.create_model("beit_base_patch16_224", num_classes=3, **options).eval()
    pixels = torch.rand(2, 3, 32, 32)
    with torch.inference_mode():
        fused = model(pixels)
        assert any(getattr(module, "fused_attn", False) for module in model.modules())
        assert _unfuse_attention(model)
        torch.testing.assert_close(model(pixels), fused)
    assert not _unfuse_attention(model)
