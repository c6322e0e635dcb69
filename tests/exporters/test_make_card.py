"""Who decides what an exported model says about itself."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from checkpoints.loading.open import Checkpoint, build_model
from ensemble.card import ModelCard, Preprocess
from ensemble.errors import ModelError, OptionError
from ensemble.labels import MASK18, LabelSpace
from exporters.make_card import DEFAULTS, ExportOptions, make_card
from tests.support.networks import make_checkpoint

pytestmark = pytest.mark.slow

OWN = ModelCard(
    member="tuned_fold2",
    arch="test_resnet",
    labels=MASK18,
    preprocess=Preprocess((96, 80), "pad", "lanczos", 0.9, (1, 2, 3)),
    mean=(0.1, 0.2, 0.3),
    std=(0.4, 0.5, 0.6),
    checkpoint_sha256="",
    group="tuned",
    fold=2,
    holdout_sha256="beef",
    class_counts=tuple(range(18)),
)
OPTIONS = ExportOptions(
    labels=LabelSpace.flat([f"class {i}" for i in range(18)]),
    size=(64, 48),
    resize="squash",
    interpolation="nearest",
    crop_pct=0.8,
    mean=(0.6, 0.5, 0.4),
    std=(0.25, 0.25, 0.25),
    member="champion",
    group="champions",
    fold=4,
)
SETTINGS = ("labels", "size", "resize", "interpolation", "crop_pct", "mean", "std", "member", "group", "fold")
CHECKPOINT = make_checkpoint(name="resnet18_f1.pth.tar")
MODEL = build_model(CHECKPOINT)


def settings_of(card: ModelCard) -> dict[str, Any]:
    return {name: getattr(card.preprocess if hasattr(card.preprocess, name) else card, name) for name in SETTINGS}


def with_pretrained(**changes: Any) -> torch.nn.Module:
    model: Any = build_model(CHECKPOINT)
    model.pretrained_cfg = model.pretrained_cfg | changes
    found: torch.nn.Module = model
    return found


@pytest.mark.parametrize("setting", SETTINGS)
def test_an_option_beats_the_card_and_the_card_beats_timm(setting: str) -> None:
    """Each setting comes from the option if there is one, else from the checkpoint's card, else from the rest."""
    value = getattr(OPTIONS, setting)
    with_card = replace(CHECKPOINT, card=OWN)
    one_option: Any = {setting: value}
    chosen = make_card(with_card, MODEL, ExportOptions(**one_option))
    own = make_card(with_card, MODEL, DEFAULTS)
    neither = make_card(CHECKPOINT, MODEL, DEFAULTS)
    assert (settings_of(chosen)[setting], chosen.sources[setting]) == (value, "option")
    assert (settings_of(own)[setting], own.sources[setting]) == (settings_of(OWN)[setting], "checkpoint")
    assert neither.sources[setting] in {"timm", "name", "default"}
    assert settings_of(neither)[setting] not in (value, settings_of(OWN)[setting])


def test_counts_are_those_of_the_cards_own_classes() -> None:
    """The mix of classes is taken over with the card's label space, and left out where another one is given."""
    own = replace(CHECKPOINT, card=OWN)
    assert make_card(own, MODEL, DEFAULTS).class_counts == tuple(range(18))
    assert make_card(own, MODEL, OPTIONS).class_counts is None


def test_timm_decides_where_nobody_else_does() -> None:
    """Without options and card, a network is described by timm's pretrained configuration."""
    card = make_card(CHECKPOINT, MODEL, DEFAULTS)
    # as timm.get_pretrained_cfg("test_resnet") prints it
    assert card.preprocess == Preprocess((160, 160), "center", "bilinear", 0.95, (128, 128, 128))
    assert (card.mean, card.std) == ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))


def test_eighteen_outputs_are_not_taken_for_mask18() -> None:
    """A label space is never guessed: without an option and a card, classes are numbered."""
    card = make_card(CHECKPOINT, MODEL, DEFAULTS)
    assert card.labels == LabelSpace.flat(18)
    assert card.sources["labels"] == "default"


@pytest.mark.parametrize("card", [None, OWN])
def test_fault_46_labels_that_do_not_fit_the_head_are_refused(card: ModelCard | None) -> None:
    """A head with 10 outputs and a label space of 18 end in E411, whether an option or the card brought the labels."""
    ten = replace(make_checkpoint(classes=10), card=card)
    options = DEFAULTS if card else ExportOptions(labels=MASK18)
    with pytest.raises(ModelError, match=r"10 outputs, the label space 18") as caught:
        make_card(ten, MODEL, options)
    assert caught.value.code == "E411"
    assert caught.value.exit_status == 4


@pytest.mark.parametrize(
    ("file", "member"),
    [
        ("a.safetensors", "a"),
        ("resnet18_f1.pth.tar", "resnet18_f1"),
        ("v1.2-best.pt", "v1.2-best"),
        ("epoch=3-val=0.81.ckpt", "epoch-3-val-0.81"),
        ("한글.PTH", "한글"),
        (".hidden.bin", "hidden"),
    ],
)
def test_a_member_is_called_like_its_file(file: str, member: str) -> None:
    """The endings of weight files go, and what a member's name must not hold becomes a dash."""
    card = make_card(make_checkpoint(name=file), MODEL, DEFAULTS)
    assert (card.member, card.sources["member"]) == (member, "name")


@pytest.mark.parametrize(
    ("member", "group", "fold"),
    [
        ("resnet18_f0", "resnet18", 0),
        ("resnet18-fold3", "resnet18", 3),
        ("a_b_fold12", "a_b", 12),
        ("resnet18_f16", None, None),  # a precision
        ("leaf3", None, None),
        ("f1", None, None),
    ],
)
def test_a_name_tells_group_and_fold(member: str, group: str | None, fold: int | None) -> None:
    """Only an ending _f<digit>, _fold<k> or -fold<k> is read as a fold."""
    card = make_card(CHECKPOINT, MODEL, ExportOptions(member=member))
    assert (card.group, card.fold) == (group, fold)
    assert card.sources.get("fold") == (None if fold is None else "name")


def test_squash_and_pad_take_the_whole_image() -> None:
    """Asking for squash or pad without a percentage means 100 %; center, or a size alone, keeps timm's percentage."""
    found = {
        options: make_card(CHECKPOINT, MODEL, options).preprocess.crop_pct
        for options in (
            ExportOptions(resize="squash"),
            ExportOptions(resize="pad"),
            ExportOptions(resize="center"),
            ExportOptions(size=(96, 96)),
            ExportOptions(resize="squash", crop_pct=0.7),
        )
    }
    assert list(found.values()) == [1.0, 1.0, 0.95, 0.95, 0.7]


def test_timms_border_is_our_pad_filled_with_its_mean() -> None:
    """crop_mode "border" pads, with the color that normalization turns into zero."""
    card = make_card(CHECKPOINT, with_pretrained(crop_mode="border", mean=(0.485, 0.456, 0.406)), DEFAULTS)
    assert (card.preprocess.resize, card.preprocess.fill) == ("pad", (124, 116, 104))


def test_a_cards_own_fill_is_kept() -> None:
    """What a network was trained to see around a padded image stays, unless another way of resizing is asked for."""
    with_card = replace(CHECKPOINT, card=OWN)
    assert make_card(with_card, MODEL, DEFAULTS).preprocess.fill == (1, 2, 3)
    assert make_card(with_card, MODEL, ExportOptions(resize="pad")).preprocess.fill == (26, 51, 76)


def test_timms_random_interpolation_becomes_bicubic() -> None:
    """An interpolation that nothing can be predicted with becomes bicubic, and the card says that nobody chose it."""
    card = make_card(CHECKPOINT, with_pretrained(interpolation="random"), DEFAULTS)
    assert (card.preprocess.interpolation, card.sources["interpolation"]) == ("bicubic", "default")


def test_a_network_without_a_pretrained_configuration_gets_timms_assumptions() -> None:
    """Where timm knows nothing of an architecture, its own defaults stand in and are called defaults."""
    model: Any = build_model(CHECKPOINT)
    model.pretrained_cfg = {}
    card = make_card(CHECKPOINT, model, DEFAULTS)
    assert card.preprocess == Preprocess((224, 224), "center", "bicubic", 0.875, (124, 116, 104))
    assert {card.sources[name] for name in ("size", "resize", "interpolation", "crop_pct", "mean", "std")} == {
        "default"
    }


@pytest.mark.parametrize(
    "options",
    [{"mean": (127.5, 127.5, 127.5)}, {"std": (58.4, 57.1, 57.4)}, {"std": (0.0, 0.2, 0.2)}, {"mean": (0.5, 0.5)}],
)
def test_a_mean_for_pixels_of_0_to_255_is_refused(options: Any) -> None:
    """Mean and std are for RGB in 0..1: values for 0..255, zeros and pairs end in E204 with the way out."""
    with pytest.raises(OptionError) as caught:
        ExportOptions(**options)
    assert caught.value.code == "E204"
    assert "divided by 255" in caught.value.hint


def test_the_card_says_where_the_weights_come_from(monkeypatch: pytest.MonkeyPatch) -> None:
    """Hash, kind of weights and holdout are carried over; the tools' versions name no build."""
    monkeypatch.setattr(torch, "__version__", "2.99.0+cu999")
    averaged: Checkpoint = replace(CHECKPOINT, weights="ema", card=OWN)
    card = make_card(averaged, MODEL, ExportOptions(precision="fp16"))
    assert (card.checkpoint_sha256, card.weights, card.holdout_sha256) == (CHECKPOINT.sha256, "ema", "beef")
    assert card.precision == "fp16"
    assert card.tools["torch"] == "2.99.0"
