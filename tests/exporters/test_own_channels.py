"""Models of one to four stored channels: trained, exported and predicted with the same normalization."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from click.testing import CliRunner
from PIL import Image

import ensemble
from checkpoints.loading.open import open_checkpoint
from checkpoints.training.own_channels import fit_own_channels
from checkpoints.training.settings import TrainSettings
from ensemble.arrays import Logits
from ensemble.card import ModelCard, Preprocess
from ensemble.cli import ens
from ensemble.errors import DataError, OptionError
from ensemble.events import Recorder
from ensemble.predictions.dataset import read_predictions
from exporters import accuracy_gate
from exporters.export import ImageSet, export
from exporters.make_card import ExportOptions

pytestmark = pytest.mark.slow
SIZE = 32
MEAN, STD, SCALE = (0.4, 0.6), (0.2, 0.3), (-80.0, 20.0)


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, torch.nn.Module]:
    """A network of three classes that takes two channels, and its file."""
    torch.manual_seed(0)
    model: torch.nn.Module = timm.create_model("test_resnet.r160_in1k", num_classes=3, in_chans=2).eval()
    path = tmp_path_factory.mktemp("network") / "net.pth"
    torch.save(model.state_dict(), path)
    return path, model


def test_the_exported_graph_scales_and_normalizes(two: tuple[Path, torch.nn.Module], tmp_path: Path) -> None:
    """Python's model on an array gives the logits of torch on values that numpy normalizes; the card is read back."""
    path, model = two
    options = ExportOptions(size=(SIZE, SIZE), channels="2", scale=SCALE, mean=MEAN, std=STD, resize="squash")
    done = export(open_checkpoint(path, arch="test_resnet"), tmp_path, options=options)
    assert ModelCard.from_json(done.card.to_json()) == done.card
    assert done.card.preprocess.scale == SCALE
    values = np.random.default_rng(1).uniform(*SCALE, (SIZE, SIZE, 2))
    scaled = ((values + 80) / 100 - np.array(MEAN)) / np.array(STD)
    with torch.inference_mode():
        tensor = torch.tensor(scaled.transpose(2, 0, 1)[np.newaxis], dtype=torch.float32)
        expected: Logits = model(tensor).numpy()[0]
    loaded = ensemble.load(done.path, device="cpu")
    np.testing.assert_allclose(loaded(values).logits["identity"], expected, rtol=1e-3, atol=1e-4)
    turned = loaded(values.transpose(2, 0, 1)).logits["identity"]
    np.testing.assert_array_equal(turned, loaded(values).logits["identity"])
    with pytest.raises(DataError, match="image 0: an array of shape"):
        loaded(values[..., :1])


def test_what_cannot_be_known_or_done_is_refused(two: tuple[Path, torch.nn.Module], tmp_path: Path) -> None:
    """Without mean and std E210, int8 without images and another number of channels E204: each names the option."""
    path, _ = two
    for code, text, options in (
        ("E210", "--mean and --std", ExportOptions(channels="2", resize="squash")),
        ("E204", "--calibrate", ExportOptions(channels="2", mean=MEAN, std=STD, precision="int8", resize="squash")),
        ("E204", "--channels 1 to 4", ExportOptions(mean=None, size=(SIZE, SIZE))),
    ):
        with pytest.raises(OptionError) as caught:
            export(open_checkpoint(path, arch="test_resnet"), tmp_path, options=options)
        assert caught.value.code == code
        assert text in f"{caught.value.message} {caught.value.hint}"


def test_scale_mean_and_std_are_measured(tmp_path: Path) -> None:
    """For 16 bits the scale is their range, for floats none; mean and std are numpy's, and the notice has them."""
    rng = np.random.default_rng(0)
    deep = [rng.integers(0, 4096, (20, 30), dtype=np.uint16) for _ in range(4)]
    paths = []
    for row, one in enumerate(deep):
        paths.append(tmp_path / f"{row}.png")
        Image.fromarray(one).save(paths[-1])
    listener = Recorder()
    settings = TrainSettings("x", preprocess=Preprocess((SIZE, SIZE), channels="1"))
    found = fit_own_channels(settings, paths, scale=None, listener=listener)
    every = np.stack(deep) / 65535
    assert found.preprocess.scale == (0.0, 65535.0)
    assert found.mean == pytest.approx((every.mean(),), rel=1e-3)
    assert found.std == pytest.approx((every.std(),), rel=1e-3)
    assert found.augment == "none"
    assert [notice.code for notice in listener.notices] == ["I562", "I561"]
    named = TrainSettings("x", preprocess=settings.preprocess, mean=(0.1,), std=(2.0,), augment="flip")
    assert fit_own_channels(named, [], scale="1", listener=listener) == named
    with pytest.raises(OptionError, match="--augment strong"):
        fit_own_channels(
            TrainSettings("x", preprocess=settings.preprocess, augment="strong"),
            paths,
            scale="1",
            listener=listener,
        )


def test_int8_is_calibrated_on_stored_values(
    two: tuple[Path, torch.nn.Module], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An int8 file of two channels is calibrated and judged on arrays, starts with recorded logits, and is close."""
    path, model = two
    names = []
    rng = np.random.default_rng(4)
    for row in range(24):
        names.append(f"{row}.npy")
        np.save(tmp_path / names[-1], rng.uniform(*SCALE, (SIZE, SIZE, 2)).astype(np.float32) * rng.uniform(0.2, 1))
    for name in ("LEAST_AGREEMENT", "LEAST_AGREEMENT_WITH_TRUTH"):  # an untrained network is in doubt about most
        monkeypatch.setattr(accuracy_gate, name, {"fp16": 0.5, "int8": 0.5})
    options = ExportOptions(
        size=(SIZE, SIZE), channels="2", scale=SCALE, mean=MEAN, std=STD, resize="squash", precision="int8"
    )
    images = ImageSet(tuple(names), tuple(tmp_path / name for name in names))
    done = export(open_checkpoint(path, arch="test_resnet"), tmp_path / "out", options=options, gate_images=images)
    values = np.load(tmp_path / names[0])
    scaled = ((values + 80) / 100 - np.array(MEAN)) / np.array(STD)
    with torch.inference_mode():
        tensor = torch.tensor(scaled.transpose(2, 0, 1)[np.newaxis], dtype=torch.float32)
        expected: Logits = model(tensor).numpy()[0]
    found = ensemble.load(done.path, device="cpu")(values).logits["identity"]
    assert done.card.precision == "int8"
    assert np.abs(found - expected).max() < 0.1 * np.abs(expected).max()


def run(*words: object) -> str:
    done = CliRunner().invoke(ens, [str(word) for word in words], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return done.output


def test_training_and_prediction_see_the_same_values(tmp_path: Path) -> None:
    """A table of arrays is trained; the exported model gives the out-of-fold logits that torch gave in training."""
    rng = np.random.default_rng(0)
    images = tmp_path / "arrays"
    images.mkdir()
    for row in range(12):
        np.save(images / f"r{row}.npy", (rng.normal(size=(2, 40, 36)) * 15 - 40 + 10 * (row % 2)).astype(np.float32))
    (tmp_path / "train.csv").write_text("id,label\n" + "".join(f"r{row},{'ab'[row % 2]}\n" for row in range(12)))
    common = ["--arch", "test_resnet", "--size", SIZE, "--epochs", 1, "--batch", 4, "--folds", 2, "--device", "cpu"]
    run(
        "train", tmp_path / "train.csv", "--images", images, "--channels", 2, *common, "--member", "net", "-o", tmp_path
    )
    run("export", tmp_path / "net/fold0.safetensors", "-o", tmp_path / "models")
    out_of_fold = read_predictions(tmp_path / "net/oof/net_f0")
    (tmp_path / "ids.csv").write_text("id\n" + "".join(f"{name}\n" for name in out_of_fold.ids))
    run("predict", tmp_path / "models/net_f0.onnx", "--images", images, "--ids", tmp_path / "ids.csv", "--tta", "-o",
        tmp_path / "preds", "--device", "cpu")  # fmt: skip
    predicted = read_predictions(tmp_path / "preds/net_f0")
    assert predicted.ids == out_of_fold.ids
    for view, logits in out_of_fold.logits.items():
        np.testing.assert_allclose(predicted.logits[view], logits, rtol=1e-3, atol=1e-3)
