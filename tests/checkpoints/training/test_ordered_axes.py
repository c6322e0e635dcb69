"""Ordinal axes: the formula of the head, and that training, export and prediction treat it like any other member."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import safetensors.torch
import torch
from numpy.typing import NDArray
from onnx import TensorProto, helper
from scipy.optimize import approx_fprime
from scipy.special import expit

from checkpoints.data.folds import Folds
from checkpoints.data.mask_contest import Row
from checkpoints.loading.axes_head import AxesHead, log_cumulative
from checkpoints.loading.network import make_network
from checkpoints.loading.open import build_model, open_checkpoint, save_checkpoint
from checkpoints.probe.head_nodes import add_head
from checkpoints.probe.linear_head import LinearHead
from checkpoints.probe.ordinal_head import OrdinalBlock
from checkpoints.training.ordered_axes import fit_classes, require_valid_ordinal
from checkpoints.training.settings import TrainSettings, settings_dict
from ensemble.card import METADATA_KEY, ModelCard, Preprocess
from ensemble.errors import EnsError, ModelError, OptionError
from ensemble.events import SILENT, Recorder
from ensemble.labels import MASK18, LabelSpace
from exporters.export import ExportOptions, export
from tests.support.killed_training import Killed, Killer, fit

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("one_thread")]

SETTINGS = TrainSettings(
    "test_resnet",
    Preprocess((32, 24)),
    epochs=2,
    learning_rate=0.01,
    augment="none",
    head="axes",
    ordinal=("age",),
    ema=0.9,
)


def head(shape: tuple[int, ...], ordered: tuple[int, ...]) -> AxesHead:
    outputs = sum(1 if position in ordered else size for position, size in enumerate(shape))
    return AxesHead(torch.nn.Linear(4, outputs), shape, ordered)


def test_the_probabilities_are_the_differences_of_the_sigmoids() -> None:
    """Equal to p(y > k - 1) - p(y > k) of Cao et al. 2020 by numpy, in float64; every row sums to 1."""
    scores, gaps = np.linspace(-9, 9, 7)[:, None], np.array([0.5, 2.0, 1.0])
    above = expit(scores - np.concatenate([[0.0], gaps.cumsum()]))
    edges = np.concatenate([np.ones((7, 1)), above, np.zeros((7, 1))], axis=1)
    found = log_cumulative(torch.from_numpy(scores), torch.from_numpy(gaps)).exp().numpy()
    np.testing.assert_allclose(found, -np.diff(edges, axis=1), rtol=1e-9)
    np.testing.assert_allclose(found.sum(axis=1), 1)


def test_trainings_probes_and_their_graphs_have_one_model() -> None:
    """Of the same score and thresholds, torch, numpy and ONNX Runtime give the same log-probabilities of five values.

    The gradient of the likelihood by torch is that of the probabilities by numpy: no other link is trained.
    """
    thresholds = np.array([0.0, 0.5, 2.5, 3.5])
    rng = np.random.default_rng(0)
    features, weights, value = rng.normal(0, 2, (60, 3)), np.array([1.0, -2.0, 0.5]), rng.integers(0, 5, 60)
    block = OrdinalBlock(weights, 1.2 - thresholds)
    scores = torch.from_numpy(features @ weights + 1.2)[:, None].requires_grad_()
    gaps = torch.from_numpy(np.diff(thresholds)).requires_grad_()
    trained = log_cumulative(scores, gaps)
    np.testing.assert_allclose(trained.detach().numpy(), block.logits(features), rtol=1e-12, atol=1e-12)

    inputs = [helper.make_tensor_value_info("row", TensorProto.FLOAT, ["batch", 3])]
    outputs = [helper.make_tensor_value_info("answers", TensorProto.FLOAT, ["batch", 5])]
    graph = helper.make_graph([], "head", inputs, outputs)
    add_head(graph, LinearHead(LabelSpace.flat(5), (block,)), "row", "answers")
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    (answers,) = session.run(None, {"row": features.astype(np.float32)})
    np.testing.assert_allclose(answers, block.logits(features), rtol=1e-4, atol=1e-4)

    torch.autograd.backward(torch.nn.functional.nll_loss(trained, torch.from_numpy(value), reduction="sum"))

    def loss(given: NDArray[np.float64]) -> float:
        moved = OrdinalBlock(np.array([1.0]), -np.concatenate([[0.0], np.cumsum(given[1:])]))
        centered = (features @ weights + 1.2 + given[0])[:, None]
        return -float(moved.logits(centered)[np.arange(60), value].sum())

    slopes = approx_fprime(np.concatenate([[0.0], np.diff(thresholds)]), loss, 1e-6)
    assert scores.grad is not None
    assert gaps.grad is not None
    np.testing.assert_allclose([float(scores.grad.sum()), *gaps.grad.tolist()], slopes, atol=1e-3)


def test_scores_far_away_keep_finite_logarithms_and_gradients() -> None:
    """At scores of +-1,000 in float32, where each difference of sigmoids is 0, nothing is infinite."""
    scores = torch.tensor([[-1000.0], [1000.0]], requires_grad=True)
    found = log_cumulative(scores, torch.tensor([1.0, 1.0]))
    torch.autograd.backward(found.sum())
    assert bool(found.isfinite().all())
    assert scores.grad is not None
    assert bool(scores.grad.isfinite().all())


def test_a_new_head_gives_all_values_the_same_probability() -> None:
    """Where the features are 0, the bias and thresholds of five values give one fifth each."""
    found = head((5,), (0,))(torch.zeros(1, 4))
    np.testing.assert_allclose(found.detach().exp().numpy(), 0.2, rtol=1e-5)


def test_two_ordinal_axes_keep_their_own_thresholds() -> None:
    """In the product of 4 ordered, 2 and 3 ordered values, each axis has the probabilities of a head of its own."""
    both = head((4, 2, 3), (0, 2))
    with torch.no_grad():
        both.log_gaps.copy_(torch.tensor([-1.0, 0.5, 1.0]))
    features = torch.randn(6, 4, generator=torch.Generator().manual_seed(0))
    rows = torch.nn.functional.linear(features, both.weight, both.bias)
    table = both(features).exp().reshape(6, 4, 2, 3)
    first, last = (
        log_cumulative(rows[:, :1], both.log_gaps[:2].exp()),
        log_cumulative(rows[:, 3:], both.log_gaps[2:].exp()),
    )
    torch.testing.assert_close(table.sum(dim=(2, 3)), first.exp())
    torch.testing.assert_close(table.sum(dim=(1, 3)), rows[:, 1:3].softmax(dim=1))
    torch.testing.assert_close(table.sum(dim=(1, 2)), last.exp())


def test_a_score_in_order_is_learned_with_one_weight() -> None:
    """Of a feature that grows with the class, 60 steps learn all four classes, whatever the learning rate's start."""
    torch.manual_seed(0)
    feature = torch.linspace(-2, 2, 40)
    target = torch.arange(40) // 10
    one = AxesHead(torch.nn.Linear(1, 1), (4,), (0,))
    optimizer = torch.optim.Adam(one.parameters(), 0.2)
    for _ in range(60):
        optimizer.zero_grad()
        torch.autograd.backward(torch.nn.functional.nll_loss(one(feature[:, None]), target))
        optimizer.step()
    assert float((one(feature[:, None]).argmax(dim=1) == target).float().mean()) >= 0.95


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"ordinal": ("gender",)}, "gender has the values male, female"),
        ({"ordinal": ("year",)}, "no axis 'year'; the classes have mask, gender, age"),
        ({"ordinal": ("age", "age")}, "twice"),
        ({"head": "flat"}, "one output per class"),
        ({"labels": LabelSpace.flat(3), "activation": "sigmoid", "head": "flat"}, "several labels"),
        ({"labels": LabelSpace.flat(2), "head": "flat", "ordinal": ("class",)}, "class has the values 0, 1"),
    ],
)
def test_axes_that_cannot_be_ordinal_are_refused_by_name(settings: dict[str, object], words: str) -> None:
    """An axis of two values, an unknown or repeated one, one output per class, and several labels are E204."""
    changed = replace(SETTINGS, **settings)  # type: ignore[arg-type]
    with pytest.raises(OptionError, match=words) as caught:
        require_valid_ordinal(changed)
    assert caught.value.code == "E204"


def test_the_order_that_is_taken_is_said() -> None:
    """I472 has the values of the ordinal axis in order, and nothing is said without one."""
    heard = Recorder()
    fit_classes(SETTINGS, MASK18, "softmax", listener=heard)
    assert [(n.code, n.message.partition(": ")[2]) for n in heard.notices] == [
        ("I472", "under 30 < 30 to 59 < 60 and over")
    ]
    fit_classes(replace(SETTINGS, ordinal=()), MASK18, "softmax", listener=heard)
    assert len(heard.notices) == 1


def test_cards_and_settings_without_ordinal_axes_keep_their_bytes() -> None:
    """Neither has the field; a card with it is read back, and one with an axis of two values is E427."""
    plain = ModelCard("m", "resnet18", MASK18, Preprocess((8, 8)), (0.5,) * 3, (0.5,) * 3, "", head="axes")
    assert "ordinal" not in plain.to_json()
    assert "ordinal" not in settings_dict(replace(SETTINGS, ordinal=()))
    ordinal = replace(plain, ordinal=("age",))
    assert ModelCard.from_json(ordinal.to_json()) == ordinal
    for wrong in ('"ordinal":["gender"]', '"ordinal":[3]', '"ordinal":[[]]', '"ordinal":"age"'):
        with pytest.raises(ModelError) as caught:
            ModelCard.from_json(ordinal.to_json().replace('"ordinal":["age"]', wrong))
        assert caught.value.code == "E427"


def test_an_ordinal_member_resumes_and_is_exported(rows: tuple[Row, ...], folds: Folds, tmp_path: Path) -> None:
    """A killed training ends with the same bytes; the verified export has the 18 log-probabilities of torch.

    Its weights have 3 + 2 + 1 outputs and one distance of thresholds, which was learned. A file whose thresholds do
    not fit its card is E411.
    """
    whole = fit(rows, folds, tmp_path / "whole", SETTINGS)
    with pytest.raises(Killed):
        fit(rows, folds, tmp_path / "killed", SETTINGS, Killer())
    assert fit(rows, folds, tmp_path / "killed", SETTINGS).path.read_bytes() == whole.path.read_bytes()
    checkpoint = open_checkpoint(whole.path)
    assert checkpoint.num_classes == 18
    assert checkpoint.state_dict["fc.weight"].shape[0] == 6
    start = make_network("test_resnet", outputs=6, shape=MASK18.shape, ordered=(2,)).get_classifier().log_gaps
    assert not torch.equal(checkpoint.state_dict["fc.log_gaps"], start.detach())
    pictures = np.random.default_rng(0).integers(0, 256, (5, 32, 24, 3), dtype=np.uint8)
    planes = ((pictures / 255 - SETTINGS.mean) / SETTINGS.std).transpose(0, 3, 1, 2)
    with torch.no_grad():
        expected = build_model(checkpoint)(torch.from_numpy(planes).float()).numpy()
    np.testing.assert_allclose(np.exp(expected).sum(axis=1), 1, rtol=1e-5)
    exported = export(checkpoint, tmp_path, options=ExportOptions())
    assert exported.checks.faults == ()
    session = onnxruntime.InferenceSession(exported.path, providers=["CPUExecutionProvider"])
    np.testing.assert_allclose(session.run(["logits"], {"image": pictures})[0], expected, atol=1e-3)
    tensors = safetensors.torch.load_file(whole.path)
    for broken in ({k: v for k, v in tensors.items() if k != "fc.log_gaps"}, tensors | {"fc.log_gaps": torch.ones(2)}):
        path = tmp_path / "broken.safetensors"
        assert checkpoint.card is not None
        safetensors.torch.save_file(broken, path, metadata={METADATA_KEY: checkpoint.card.to_json()})
        with pytest.raises(EnsError) as caught:
            open_checkpoint(path)
        assert caught.value.code == "E411"


@pytest.mark.parametrize("arch", ["test_vit", "test_efficientnet"])
def test_grades_of_one_axis_have_one_output(arch: str, tmp_path: Path) -> None:
    """Five classes of a table become one score in any architecture with a linear classifier, freezing and decay too.

    The saved score is read as one, not as the logit of two classes.
    """
    from checkpoints.training.init_weights import freeze, init_model
    from checkpoints.training.optimizer import make_optimizer

    settings = TrainSettings(arch, Preprocess((160, 160)), labels=LabelSpace.flat(5), ordinal=("class",))
    model = init_model(arch, settings, listener=SILENT)
    (classifier,) = [part for part in model.modules() if isinstance(part, AxesHead)]
    assert classifier.weight.shape[0] == 1
    freeze(model, 1)
    optimizer = make_optimizer(model, "adamw", learning_rate=0.1, weight_decay=0.5, layer_decay=0.5)
    (group,) = [g for g in optimizer.param_groups if any(p is classifier.log_gaps for p in g["params"])]
    assert group["weight_decay"] == 0
    assert group["lr"] == 0.1
    found = model(torch.zeros(2, 3, 160, 160)).detach().exp()
    assert found.shape == (2, 5)
    torch.testing.assert_close(found.sum(dim=1), torch.ones(2))

    plain = ModelCard("g", arch, settings.labels, settings.preprocess, settings.mean, settings.std, "")
    card = replace(plain, ordinal=("class",))
    path, heard = save_checkpoint(tmp_path / "g.safetensors", model.state_dict(), card), Recorder()
    opened = open_checkpoint(path, listener=heard)
    assert opened.num_classes == 5
    assert not [one.message for one in heard.notices if "two classes" in one.message]
    picture = torch.rand(2, 3, 160, 160)
    with torch.no_grad():
        torch.testing.assert_close(build_model(opened)(picture), model.eval()(picture))
