"""Members whose images have any number of labels: losses, scores, order, and a training from table to card."""

from __future__ import annotations

import csv
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from PIL import Image
from sklearn.metrics import average_precision_score, f1_score
from timm.loss.asymmetric_loss import AsymmetricLossMultiLabel
from torch.nn import functional
from torchvision.ops import sigmoid_focal_loss

from checkpoints.data.dataset import read_dataset
from checkpoints.data.folds import make_folds
from checkpoints.loading.open import open_checkpoint
from checkpoints.training.job import TrainJob, true_labels
from checkpoints.training.losses import Asymmetry, MultiLabelWeights, parse_multilabel_loss, positive_weights
from checkpoints.training.make_loss import require_valid_loss
from checkpoints.training.sampler import balanced_classes
from checkpoints.training.scores import score_labels
from checkpoints.training.settings import TrainSettings, settings_dict
from checkpoints.training.train_member import train_member
from ensemble.card import Preprocess
from ensemble.cli import ens
from ensemble.errors import ModelError, OptionError
from ensemble.labels import MASK18, LabelSpace
from ensemble.predictions.dataset import read_predictions

pytestmark = pytest.mark.slow

ONES = MultiLabelWeights(torch.ones(5), torch.ones(5))


def draw(seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    logits = 3 * torch.randn(16, 5, generator=generator)
    return logits.requires_grad_(), (torch.rand(16, 5, generator=generator) < 0.3).float()


def test_the_losses_are_those_of_torch_torchvision_and_timm() -> None:
    """BCE with weights, the focal loss and the asymmetric one equal other implementations, also in their gradients."""
    logits, targets = draw()
    weights = torch.tensor([0.5, 1.0, 2.0, 4.0, 8.0])
    asymmetric = AsymmetricLossMultiLabel(gamma_neg=4, gamma_pos=1, clip=0.05)
    cases = [
        (
            parse_multilabel_loss("bce", weights=MultiLabelWeights(torch.ones(5), weights)),
            functional.binary_cross_entropy_with_logits(logits, targets, pos_weight=weights),
        ),
        (
            parse_multilabel_loss("ce", weights=MultiLabelWeights(weights, torch.ones(5)), smoothing=0.2),
            functional.binary_cross_entropy_with_logits(logits, 0.8 * targets + 0.1, weight=weights),
        ),
        (
            parse_multilabel_loss("focal", weights=ONES, gamma=2.0),
            sigmoid_focal_loss(logits, targets, alpha=-1, gamma=2.0, reduction="mean"),
        ),
        (
            parse_multilabel_loss("asl", weights=ONES, asymmetry=Asymmetry(4, 1, 0.05)),
            asymmetric(logits, targets) / 5,
        ),
        (
            parse_multilabel_loss("0.5*asl+2*bce", weights=ONES, asymmetry=Asymmetry(0, 0, 0)),
            2.5 * functional.binary_cross_entropy_with_logits(logits, targets),
        ),
    ]
    for loss, expected in cases:
        found = loss(logits, targets)
        assert found.item() == pytest.approx(expected.item(), rel=1e-5)
        (gradient,) = torch.autograd.grad(found, logits)
        (wanted,) = torch.autograd.grad(expected, logits)
        torch.testing.assert_close(gradient, wanted, rtol=1e-3, atol=1e-6)


def test_the_losses_are_finite_at_the_ends() -> None:
    """Logits of 200 and mixed targets give finite losses and gradients, and so does a batch without labels."""
    logits = torch.tensor([[200.0, -200.0, 0.0, 200.0, -200.0]], requires_grad=True)
    for targets in (torch.tensor([[0.0, 1.0, 0.3, 1.0, 0.0]]), torch.zeros(1, 5)):
        for text in ("bce", "focal", "asl", "f1", "asl+f1"):
            loss = parse_multilabel_loss(text, weights=ONES, gamma=0.5)(logits, targets)
            (gradient,) = torch.autograd.grad(loss, logits)
            assert torch.isfinite(loss), text
            assert torch.isfinite(gradient).all(), text


def test_what_the_losses_refuse() -> None:
    """Losses of the other kind, weights of positives and axes where they do not fit are E204, before any image."""
    several = TrainSettings("any", activation="sigmoid", labels=LabelSpace.flat(3), pos_weight="balanced", loss="asl")
    require_valid_loss(several)
    one = TrainSettings("any", labels=LabelSpace.flat(3))
    require_valid_loss(one)
    for settings in (
        replace(one, loss="bce"),
        replace(one, loss="asl"),
        replace(one, pos_weight="sqrt"),
        replace(several, pos_weight="-1"),
        replace(several, pos_weight="much"),
        replace(several, loss="dice"),
        replace(several, gamma_negative=-1.0),
        replace(several, clip_negative=1.0),
        replace(several, labels=MASK18),
        replace(several, class_weights="some"),
    ):
        with pytest.raises(OptionError) as caught:
            require_valid_loss(settings)
        assert caught.value.code == "E204"
    # earlier versions' folders resume: what is new is not in the settings at its default
    assert not {"activation", "pos_weight", "clip_negative", "gamma_negative"} & settings_dict(one).keys()


def test_the_weights_of_positives() -> None:
    """Balanced is negatives to positives, sqrt its root; a label of no image or of all has a finite weight above 0."""
    counts = torch.tensor([10, 50, 0, 100])
    assert positive_weights("balanced", counts, 100).tolist() == pytest.approx([9, 1, 99, 1e-3])
    assert positive_weights("sqrt", counts, 100).tolist()[:2] == pytest.approx([3, 1])
    assert positive_weights("2.5", counts, 100).tolist() == [2.5] * 4
    assert positive_weights("none", counts, 100).tolist() == [1] * 4


def test_the_scores_are_those_of_scikit_learn() -> None:
    """Macro F1 at one half and mean average precision, over the labels that an image has."""
    rng = np.random.default_rng(0)
    truth = (rng.random((60, 4)) < (0.5, 0.2, 0.1, 0)).astype(np.int64)
    logits = rng.normal(size=(60, 4)).astype(np.float32).round(1)
    found = score_labels(truth, logits)
    known = slice(0, 3)
    assert found.macro_f1 == pytest.approx(f1_score(truth[:, known], logits[:, known] > 0, average="macro"))
    expected = average_precision_score(truth[:, known], logits[:, known], average="macro")
    assert found.main == found.average_precision == pytest.approx(expected)
    assert found.accuracy == np.mean([(t == (x > 0)).all() for t, x in zip(truth, logits, strict=True)])
    assert score_labels(np.zeros((3, 2), dtype=np.int64), logits[:3, :2]).main == 0


def test_images_are_balanced_by_their_rarest_label() -> None:
    """Of common and rare labels the rare one counts, and images without any label are a class of their own."""
    targets = np.array([[1, 0, 0], [1, 1, 0], [1, 0, 1], [0, 0, 0], [1, 1, 0]])
    assert balanced_classes(targets).tolist() == [0, 1, 2, 3, 1]
    assert balanced_classes(np.array([2, 0, 1])).tolist() == [2, 0, 1]


def write_contest(root: Path) -> Path:
    """Forty images of red, green and blue halves, and the colors that are in each as words in a cell."""
    rng = np.random.default_rng(0)
    lines = ["image_id,labels"]
    (root / "train").mkdir(parents=True)
    for i in range(40):
        first, second = rng.integers(0, 3, 2)
        pixels = rng.integers(0, 60, (32, 32, 3), dtype=np.uint8)
        pixels[:, :16, first] += np.uint8(190)
        pixels[:, 16:, second] += np.uint8(190)
        Image.fromarray(pixels).save(root / "train" / f"{i}.png")
        lines.append(f"{i},{' '.join(sorted({'rgb'[first], 'rgb'[second]}))}")
    (root / "train.csv").write_text("\n".join(lines) + "\n")
    return root


def test_a_member_of_several_labels_from_table_to_model(tmp_path: Path) -> None:
    """It learns, writes truth and card with labels, resumes to the same bytes, and exports with its activation."""
    place = write_contest(tmp_path / "data")
    dataset = read_dataset(place)
    assert (dataset.activation, dataset.labels.names) == ("sigmoid", ("b", "g", "r"))
    settings = TrainSettings(
        "test_resnet", Preprocess((32, 32)), epochs=6, learning_rate=0.01, augment="none", loss="asl",
        batch=8, labels=dataset.labels, activation="sigmoid", cutmix="half", mixup=0.2, balanced=True, ema=0.8,
    )  # fmt: skip
    folds = make_folds(dataset.rows, folds=2, seed=0, labels=dataset.labels)
    job = TrainJob(dataset.rows, folds, "m", settings, tmp_path / "a")
    trained = train_member(job)
    assert trained.score is not None
    assert trained.score > 0.7  # with random scores about 0.55
    assert trained.as_dict()["average_precision"] == trained.score
    assert "mean average precision" in trained.render()
    truth = list(csv.reader((trained.folder / "truth.csv").read_text().splitlines()))
    assert truth[0] == ["ImageID", "b", "g", "r", "person"]
    expected = true_labels(dataset.rows, settings)
    assert [row[1:4] for row in truth[1:]] == [[str(v) for v in row] for row in expected.tolist()]
    log = list(csv.DictReader((trained.folder / "fold0.csv").read_text().splitlines()))
    assert max(float(row["average_precision"]) for row in log) == pytest.approx(trained.trained[0].score)
    card = open_checkpoint(trained.trained[0].path).card
    assert card is not None
    assert (card.activation, card.class_counts) == ("sigmoid", tuple(expected.sum(axis=0).tolist()))
    part = read_predictions(trained.folder / "oof" / "m_f0")
    held_out = [row for row in dataset.rows if folds.of_person[row.person] == 0]
    scores = score_labels(true_labels(held_out, settings), part.logits["identity"])
    assert scores.main == pytest.approx(trained.trained[0].score, abs=1e-6)
    again = replace(job, out=tmp_path / "b")
    train_member(again, only_fold=0)
    train_member(again)
    for name in ("fold0.safetensors", "fold1.safetensors", "truth.csv", "settings.json"):
        assert (tmp_path / "b" / "m" / name).read_bytes() == (trained.folder / name).read_bytes()
    with pytest.raises(ModelError, match="other settings"):
        train_member(replace(job, settings=replace(settings, loss="bce")))
    done = CliRunner().invoke(ens, ["export", str(trained.trained[0].path), "-o", str(tmp_path / "models"), "--json"])
    assert done.exit_code == 0, done.output
    import onnx

    (model,) = (tmp_path / "models").glob("*.onnx")
    metadata = {entry.key: entry.value for entry in onnx.load(model).metadata_props}
    assert json.loads(metadata["ens.card"])["activation"] == "sigmoid"
