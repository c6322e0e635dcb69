"""A head per axis: its logits, and that export and prediction treat it like any other member."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import safetensors.torch
import torch
from numpy.typing import NDArray
from PIL import Image
from scipy.special import log_softmax

from checkpoints.data.folds import make_folds
from checkpoints.data.mask_contest import Row
from checkpoints.loading.axes_head import count_outputs
from checkpoints.loading.network import make_network
from checkpoints.loading.open import build_model, open_checkpoint
from checkpoints.training.init_weights import init_model
from checkpoints.training.job import TrainJob
from checkpoints.training.settings import TrainSettings
from checkpoints.training.train_member import TrainedMember, train_member
from ensemble.card import METADATA_KEY, Preprocess
from ensemble.errors import ModelError, OptionError
from ensemble.events import Recorder
from ensemble.labels import MASK18, LabelSpace
from ensemble.predictions.dataset import read_predictions
from exporters.export import ExportOptions, export

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("one_thread")]

SETTINGS = TrainSettings("test_resnet", Preprocess((32, 32)), epochs=2, learning_rate=0.01, augment="none", head="axes")


def draw_pictures() -> NDArray[np.uint8]:
    return np.random.default_rng(0).integers(0, 256, (72, 32, 32, 3), dtype=np.uint8)


def write_rows(root: Path, pictures: NDArray[np.uint8]) -> list[Row]:
    rows = []
    for number, pixels in enumerate(pictures):
        path = root / f"{number:02d}.png"
        Image.fromarray(pixels).save(path)
        rows.append(Row(path.name, str(number // 18), 0, 0, 20, number % 18, path))
    return rows


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> TrainedMember:
    """A member of two folds with three heads."""
    root = tmp_path_factory.mktemp("axes")
    rows = write_rows(root, draw_pictures())
    folds = make_folds(rows, folds=2, seed=0)
    return train_member(TrainJob(rows, folds, "m", SETTINGS, root / "runs"))


def by_hand(features: NDArray[np.float32], weight: torch.Tensor, bias: torch.Tensor) -> NDArray[np.float64]:
    """Return the log-probabilities ``(N, 18)`` of features ``(N, F)``, looked up per axis in the label space."""
    scores = features.astype(np.float64) @ weight.detach().double().numpy().T + bias.detach().double().numpy()
    parts = dict(zip(("mask", "gender", "age"), np.split(scores, [3, 5], axis=1), strict=True))
    return sum(
        (log_softmax(part, axis=1)[:, MASK18.along(axis, range(18))] for axis, part in parts.items()),
        start=np.zeros((len(features), 18)),
    )


@pytest.mark.parametrize("arch", ["test_resnet", "test_vit", "test_convnext"])
def test_the_logits_are_the_sums_of_the_axes_log_probabilities(arch: str) -> None:
    """The logit of each class is the sum of three log-softmaxes by numpy, and the probabilities sum to 1."""
    torch.manual_seed(0)
    model = make_network(arch, outputs=8, shape=MASK18.shape).eval()
    head = model.get_classifier()
    torch.nn.init.normal_(head.weight)
    with torch.no_grad():
        features = model.forward_features(torch.randn(5, 3, 160, 160))
        pooled = model.forward_head(features, pre_logits=True)
        found = model.forward_head(features).numpy()
    np.testing.assert_allclose(found, by_hand(pooled.numpy(), head.weight, head.bias), rtol=1e-4)
    np.testing.assert_allclose(np.exp(found).sum(axis=1), 1, rtol=1e-5)


def test_training_to_predictions_see_eighteen_classes(trained: TrainedMember) -> None:
    """The weights have 8 outputs, the network 18, and so have the out-of-fold predictions."""
    checkpoint = open_checkpoint(trained.folder / "fold0.safetensors")
    assert checkpoint.card is not None
    assert (checkpoint.card.head, checkpoint.num_classes) == ("axes", 18)
    assert checkpoint.state_dict["fc.weight"].shape[0] == 8
    found = read_predictions(trained.folder / "oof" / "m_f0").logits["identity"]
    assert found.shape == (36, 18)
    np.testing.assert_allclose(np.exp(found).sum(axis=1), 1, rtol=1e-5)
    # fewer degrees of freedom than classes: the effect of a mask is the same for every gender and age
    table = found.reshape(-1, 3, 6)
    np.testing.assert_allclose(table[:, 0] - table[:, 1], (table[:, 0] - table[:, 1])[:, :1].repeat(6, 1), atol=1e-4)


@pytest.mark.parametrize("options", [ExportOptions(features=True), ExportOptions(precision="fp16", member="half")])
def test_the_export_answers_as_the_heads_do(trained: TrainedMember, tmp_path: Path, options: ExportOptions) -> None:
    """The exported file, also with features and in float16, gives the 18 log-probabilities of torch."""
    checkpoint = open_checkpoint(trained.folder / "fold1.safetensors")
    exported = export(checkpoint, tmp_path, options=options)
    assert exported.checks.faults == ()
    session = onnxruntime.InferenceSession(exported.path, providers=["CPUExecutionProvider"])
    pictures = draw_pictures()[:5]
    found = session.run(["logits"], {"image": pictures})[0]
    planes = ((pictures / 255 - SETTINGS.mean) / SETTINGS.std).transpose(0, 3, 1, 2)
    with torch.no_grad():
        expected = build_model(checkpoint)(torch.from_numpy(planes).float()).numpy()
    np.testing.assert_allclose(found, expected, atol=1e-3 if options.precision == "fp32" else 5e-2)


def test_a_training_goes_on_from_three_heads_to_one(trained: TrainedMember) -> None:
    """The file can initialize a member with a plain head: everything but the head is loaded."""
    heard = Recorder()
    path = trained.folder / "fold0.safetensors"
    model = init_model("test_resnet", TrainSettings("test_resnet", init=path), listener=heard)
    assert torch.equal(model.state_dict()["conv1.0.weight"], open_checkpoint(path).state_dict["conv1.0.weight"])
    assert model.state_dict()["fc.weight"].shape[0] == 18
    assert "I441" in [notice.code for notice in heard.notices]


def test_heads_that_cannot_be_are_refused(trained: TrainedMember, tmp_path: Path) -> None:
    """One axis, two classifiers or a convolution as classifier are E204; a card whose axes do not fit is E411."""
    for broken in (
        lambda: count_outputs(LabelSpace.flat(18), "axes"),
        lambda: make_network("deit_tiny_distilled_patch16_224", outputs=8, shape=(3, 2, 3)),
        lambda: make_network("resnetv2_50", outputs=8, shape=(3, 2, 3)),
    ):
        with pytest.raises(OptionError) as caught:
            broken()
        assert caught.value.code == "E204"
    checkpoint = open_checkpoint(trained.folder / "fold0.safetensors")
    assert checkpoint.card is not None
    odd = replace(checkpoint.card, labels=LabelSpace(MASK18.axes[:2]), class_counts=None)
    path = tmp_path / "odd.safetensors"
    path.write_bytes(safetensors.torch.save(dict(checkpoint.state_dict), metadata={METADATA_KEY: odd.to_json()}))
    with pytest.raises(ModelError) as wrong:
        open_checkpoint(path)
    assert wrong.value.code == "E411"


@pytest.mark.parametrize("arch", ["test_vit"])
def test_a_transformer_trains_and_exports_at_another_size(tmp_path: Path, arch: str) -> None:
    """With layer decay, from 160 px to 64x48, the exported file is verified and has the size that was trained."""
    rows = write_rows(tmp_path, draw_pictures()[:36])
    folds = make_folds(rows, folds=2, seed=0)
    settings = replace(SETTINGS, arch=arch, preprocess=Preprocess((64, 48)), head="flat", layer_decay=0.7, epochs=1)
    done = train_member(TrainJob(rows, folds, "v", settings, tmp_path), only_fold=0)
    exported = export(open_checkpoint(done.folder / "fold0.safetensors"), tmp_path)
    assert exported.checks.faults == ()
    session = onnxruntime.InferenceSession(exported.path, providers=["CPUExecutionProvider"])
    assert session.get_inputs()[0].shape[1:] == [64, 48, 3]


def test_a_size_that_an_architecture_cannot_have_is_refused() -> None:
    """Sides for which timm builds a network that fails at its first image are E204 with the reason."""
    with pytest.raises(OptionError, match="test_maxvit does not take images of 65x65 px: ") as caught:
        make_network("test_maxvit", outputs=18, size=(65, 65))
    assert caught.value.code == "E204"
