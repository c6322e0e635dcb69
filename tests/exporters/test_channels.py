"""Networks that take BGR or grey: the graph makes their channels, in training as in the exported model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import timm
import torch
from PIL import Image

from checkpoints.loading.channels import network_channels
from checkpoints.loading.open import open_checkpoint
from checkpoints.training.batches import normalize
from checkpoints.training.settings import TrainSettings, fit_channels
from ensemble.card import Channels, Preprocess
from ensemble.errors import OptionError
from ensemble.events import Recorder
from exporters.export import export
from exporters.make_card import ExportOptions

pytestmark = pytest.mark.slow
SIZE = 32


@pytest.fixture(scope="module")
def networks(tmp_path_factory: pytest.TempPathFactory) -> dict[int, tuple[Path, Any]]:
    """A network of three classes for each number of input channels, and its file."""
    made = {}
    for planes in (1, 2, 3):
        torch.manual_seed(planes)
        model = timm.create_model("test_resnet.r160_in1k", num_classes=3, in_chans=planes).eval()
        path = tmp_path_factory.mktemp("networks") / f"net{planes}.pth"
        torch.save(model.state_dict(), path)
        made[planes] = (path, model)
    return made


def pictures() -> Any:
    return np.random.default_rng(0).integers(0, 256, (4, SIZE, SIZE, 3), dtype=np.uint8)


def own_input(batch: Any, channels: Channels, mean: Any, std: Any) -> Any:
    """What a training loop of the user's own computes, with Pillow for grey and a reversal for BGR."""
    if channels == "grey":
        batch = np.stack([np.asarray(Image.fromarray(one).convert("L")) for one in batch])[..., None]
    elif channels == "bgr":
        batch = batch[..., ::-1]
    scaled = (batch / 255 - np.array(mean)) / np.array(std)
    return torch.tensor(scaled.transpose(0, 3, 1, 2), dtype=torch.float32)


@pytest.mark.parametrize(
    ("channels", "planes", "mean", "std"),
    [
        (None, 1, None, None),
        ("grey", 1, (0.5,), (0.25,)),
        ("bgr", 3, (0.4, 0.45, 0.48), (0.22, 0.23, 0.24)),
    ],
)
def test_an_exported_model_makes_its_channels(
    networks: Any, tmp_path: Path, channels: Channels | None, planes: int, mean: Any, std: Any
) -> None:
    """From RGB pictures the .onnx gives the logits of the user's own loop, and one channel is grey, which I470 says."""
    path, model = networks[planes]
    recorder = Recorder()
    options = ExportOptions(size=(SIZE, SIZE), channels=channels, mean=mean, std=std, resize="squash")
    checkpoint = open_checkpoint(path, arch="test_resnet", listener=recorder)
    exported = export(checkpoint, tmp_path, options=options, listener=recorder)
    card = exported.card
    session = onnxruntime.InferenceSession(exported.path, providers=["CPUExecutionProvider"])
    (logits,) = session.run(["logits"], {"image": pictures()})
    with torch.no_grad():
        own = model(own_input(pictures(), card.preprocess.channels, card.mean, card.std)).numpy()
    assert np.abs(logits - own).max() < 1e-5
    assert ("I470" in [notice.code for notice in recorder.notices]) == (channels is None)
    if mean is None:
        assert (card.preprocess.channels, len(card.mean), len(card.std)) == ("grey", 1, 1)


@pytest.mark.parametrize(("planes", "channels"), [(1, "rgb"), (3, "grey"), (2, None)])
def test_channels_that_do_not_fit_are_refused(
    networks: Any, tmp_path: Path, planes: int, channels: Channels | None
) -> None:
    """Channels of another number than the network takes are E204, before anything is written."""
    options = ExportOptions(size=(SIZE, SIZE), channels=channels)
    with pytest.raises(OptionError, match=rf"E204.*takes images of {planes} channels"):
        export(open_checkpoint(networks[planes][0], arch="test_resnet"), tmp_path, options=options)
    assert not list(tmp_path.iterdir())


def test_grey_is_pillows() -> None:
    """All greys, and 100,000 colors besides, are converted as by Image.convert("L"), exactly."""
    colors = np.random.default_rng(1).integers(0, 256, (1, 100_000, 1, 3), dtype=np.uint8)
    colors[0, :256] = np.arange(256)[:, None, None]
    found = network_channels(torch.from_numpy(colors).permute(0, 3, 1, 2), "grey")
    assert np.array_equal(found[0, 0].numpy(), np.asarray(Image.fromarray(colors[0]).convert("L")))


@pytest.mark.parametrize("channels", ["rgb", "bgr", "grey"])
def test_training_sees_the_channels_of_the_export(channels: Channels) -> None:
    """A training batch is normalized as the user's own loop would do it, for the channels of the card."""
    recorder = Recorder()
    settings = fit_channels(
        TrainSettings("test_resnet"), Preprocess((SIZE, SIZE), channels=channels), listener=recorder
    )
    expected = own_input(pictures(), channels, settings.mean, settings.std)
    assert torch.allclose(normalize(torch.from_numpy(pictures()), settings), expected, atol=1e-5)
    assert len(recorder.notices) == (channels == "grey")


def test_mean_and_std_of_a_training_fit_its_channels() -> None:
    """One mean for RGB is refused before anything is decoded."""
    settings = TrainSettings("test_resnet", mean=(0.5,), std=(0.5,))
    with pytest.raises(OptionError, match=r"--channels rgb needs 3 values"):
        fit_channels(settings, Preprocess((SIZE, SIZE)), listener=Recorder())
    assert fit_channels(settings, Preprocess((SIZE, SIZE), channels="grey"), listener=Recorder()).mean == (0.5,)


def test_mean_and_std_of_a_training_may_be_for_0_to_255() -> None:
    """Both are divided by 255, which is said once; a mean of each range, and one in between, are refused."""
    recorder = Recorder()
    settings = fit_channels(
        TrainSettings("test_resnet", mean=(127.5, 51.0, 0.0), std=(51.0, 255.0, 102.0)),
        Preprocess((SIZE, SIZE)),
        listener=recorder,
    )
    assert (settings.mean, settings.std) == ((0.5, 0.2, 0.0), (0.2, 1.0, 0.4))
    assert [notice.code for notice in recorder.notices] == ["I451"]
    alone = fit_channels(TrainSettings("test_resnet", mean=(127.5,) * 3), Preprocess((SIZE, SIZE)), listener=recorder)
    assert (alone.mean, alone.std) == ((0.5,) * 3, (0.229, 0.224, 0.225))
    mixed = TrainSettings("test_resnet", mean=(127.5,) * 3, std=(0.2,) * 3)
    with pytest.raises(OptionError, match="not for channels of the same range"):
        fit_channels(mixed, Preprocess((SIZE, SIZE)), listener=Recorder())
    with pytest.raises(OptionError, match=r"values of 0 to 1, or up to 255, got 1\.2"):
        TrainSettings("test_resnet", mean=(1.2, 1.2, 1.2))
