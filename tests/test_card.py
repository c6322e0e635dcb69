"""The card inside a model: it is read back as it was written, or refused with E427."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import replace
from typing import Any, get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ensemble.card import SCHEMA, Channels, Interpolation, ModelCard, Preprocess, Resizer, validate_member
from ensemble.commands import options
from ensemble.errors import ModelError, OptionError
from ensemble.labels import MASK18, LabelSpace
from tests.support import toys

CARD = ModelCard(
    member="resnet18_f0",
    arch="resnet18",
    labels=MASK18,
    preprocess=Preprocess((224, 160), "pad", "bicubic", 0.9, (1, 2, 3)),
    mean=(0.485, 0.456, 0.406),
    std=(0.229, 0.224, 0.225),
    checkpoint_sha256="0" * 64,
    group="resnet18",
    fold=0,
    holdout_sha256="1" * 64,
    sources={"size": "option"},
    checks={"images": 8, "relative": 1e-6},
    tools={"torch": "2.15.0"},
)

json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)
sides = st.integers(8, 4096)
fractions = st.floats(0.01, 1)
cards = st.builds(
    replace,
    st.just(CARD),
    member=st.sampled_from(["a", "r18 (v2)", "모델", "x" * 60]),
    labels=st.just(MASK18) | st.integers(1, 30).map(LabelSpace.flat),
    preprocess=st.builds(
        Preprocess,
        size=st.tuples(sides, sides),
        resize=st.sampled_from(["squash", "center", "pad"]),
        interpolation=st.sampled_from(["nearest", "bilinear", "bicubic", "lanczos"]),
        crop_pct=st.floats(0.1, 1),
        fill=st.tuples(*[st.integers(0, 255)] * 3),
    ),
    mean=st.tuples(fractions, fractions, fractions),
    fold=st.none() | st.integers(0, 9),
    group=st.none() | st.just("g"),
    precision=st.sampled_from(["fp32", "fp16"]),
    weights=st.sampled_from(["raw", "ema"]),
    sources=st.dictionaries(st.text(), st.text()),
)


@given(cards)
def test_cards_come_back(card: ModelCard) -> None:
    """A card's JSON gives the same card, and the same text again, on one line."""
    text = card.to_json()
    assert ModelCard.from_json(text) == card
    assert ModelCard.from_json(text).to_json() == text
    assert "\n" not in text
    assert replace(card, sources=dict(sorted(card.sources.items(), reverse=True))).to_json() == text


def test_newer_cards_are_refused() -> None:
    """A card of a later schema is E427, which says how far this version reads."""
    text = CARD.to_json().replace(f'"schema":{SCHEMA}', f'"schema":{SCHEMA + 1}')
    with pytest.raises(ModelError, match=rf"E427.*schema {SCHEMA + 1}.*up to {SCHEMA}"):
        ModelCard.from_json(text)


@pytest.mark.parametrize(
    ("place", "value"),
    [
        (("schema",), True),
        (("mean",), [True, 0.5, 0.5]),
        (("preprocess", "crop_pct"), True),
        (("preprocess", "fill"), [True, False, True]),
        (("preprocess", "scale"), [False, 255]),
        (("preprocess", "channels"), True),
        (("sources", "mean"), 3),
        (("tools", "timm"), 1.0),
        (("class_counts",), {"0": 1}),
        (("ordinal",), "age"),
    ],
)
def test_true_is_not_the_number_1(place: tuple[str, ...], value: Any) -> None:
    """A card with true or false where a number or text belongs is E427, as with any other type."""
    changed: dict[str, Any] = json.loads(CARD.to_json())
    inner = changed
    for name in place[:-1]:
        inner = inner[name]
    inner[place[-1]] = value
    with pytest.raises(ModelError, match="E427"):
        ModelCard.from_json(json.dumps(changed))


@pytest.mark.parametrize("text", ["", "{", "[]", "3", '"schema"', "null", "{}", '{"schema": null}', "[" * 100_000])
def test_what_is_no_card_is_e427(text: str) -> None:
    """Text that is not JSON, or JSON without a schema, is E427."""
    with pytest.raises(ModelError, match="E427"):
        ModelCard.from_json(text)


@pytest.mark.parametrize("name", sorted(json.loads(CARD.to_json())))
@pytest.mark.parametrize(
    "odd", [3.5, "224", [None], [[]], {"x": 1}, [1, 2, 3, 4], [10**400] * 3, 10**400, True], ids=lambda v: str(v)[:9]
)
def test_fields_of_the_wrong_type_are_e427(name: str, odd: Any) -> None:
    """A field of another type is never a raw TypeError, nor an error of another kind: E427, unless the type fits."""
    value = json.loads(CARD.to_json()) | {name: odd}
    try:
        card = ModelCard.from_json(json.dumps(value))
    except ModelError as err:
        assert err.code == "E427"  # noqa: PT017 - some of the values do fit some of the fields
    else:
        fitting = {
            "arch",
            "checkpoint_sha256",
            "holdout_sha256",
            "member",
            "group",
            "fold",
            "checks",
            "sources",
            "tools",
        }
        assert name in fitting
        assert json.loads(card.to_json()) == value


@pytest.mark.parametrize("part", [(), ("preprocess",), ("labels",)], ids=str)
@given(data=st.data())
def test_damaged_cards_are_e427_or_consistent(part: tuple[str, ...], data: st.DataObject) -> None:
    """Whatever a field holds, and whichever is missing or added: E427, or a card that can be written and read again."""
    value = json.loads(CARD.to_json())
    fields = value
    for name in part:
        fields = fields[name]
    name = data.draw(st.sampled_from([*fields, "unknown"]))
    if data.draw(st.booleans()):
        fields[name] = data.draw(json_values)
    else:
        fields.pop(name, None)
    try:
        card = ModelCard.from_json(json.dumps(value))
    except ModelError as err:
        assert err.code == "E427"  # noqa: PT017 - either is right; which one depends on the draw
    else:
        assert ModelCard.from_json(card.to_json()) == card


@pytest.mark.parametrize("name", json.loads(CARD.to_json()))
def test_unknown_and_missing_fields_are_told(name: str) -> None:
    """A field too many is E427 by name; so is a missing one, unless it has a default."""
    value = json.loads(CARD.to_json())
    with pytest.raises(ModelError, match=r"E427.*surprise"):
        ModelCard.from_json(json.dumps(value | {"surprise": 1}))
    del value[name]
    if name in {"group", "fold", "holdout_sha256", "precision", "weights", "sources", "checks", "tools"}:
        ModelCard.from_json(json.dumps(value))
    else:
        with pytest.raises(ModelError, match=f"E427.*{name}"):
            ModelCard.from_json(json.dumps(value))


@pytest.mark.parametrize(
    "wrong",
    [
        *[{"size": size} for size in [(224,), (7, 224), (4097, 224), (224.0, 224)]],
        *[{"crop_pct": share} for share in (0.0, 1.1, float("nan"))],
        *[{"fill": fill} for fill in [(0, 0), (0, 0, 256), (0.5, 0, 0)]],
        {"resize": "stretch"},
        {"interpolation": "cubic"},
    ],
    ids=str,
)
def test_preprocessing_out_of_range_is_refused(wrong: dict[str, Any]) -> None:
    """A size, mode or number that could not be carried out is E204 when it is stated, not when it is used."""
    with pytest.raises(OptionError, match="E204"):
        replace(CARD.preprocess, **wrong)


@pytest.mark.parametrize("name", ["r18", "resnet18 f0", "모델", "a.b", "x" * 60])
def test_member_names_are_kept(name: str) -> None:
    """Names that are valid as folders and in ``--weights a=2`` are kept unchanged."""
    assert validate_member(name) == name


@pytest.mark.parametrize(
    "name", ["", ".", "..", ".a", "-a", "a/b", "a\\b", "a=b", "a,b", "a:b", "a\nb", "\ud800", "x" * 61]
)
def test_member_names_that_could_escape_are_refused(name: str) -> None:
    """Names that would leave the folder, look like an option or break ``--weights`` are E204."""
    with pytest.raises(OptionError, match=r"E204.*member"):
        validate_member(name)


def test_resizer_and_channels_are_written_if_they_are_not_the_defaults() -> None:
    """A card of before the resizers keeps its bytes; one with a resizer and grey input is read back as it was."""
    assert not {"resizer", "channels"} & set(json.loads(CARD.to_json())["preprocess"])
    grey = replace(CARD.preprocess, resizer="opencv", interpolation="area", channels="grey")
    card = replace(CARD, preprocess=grey, mean=(0.45,), std=(0.23,))
    assert {"resizer": "opencv", "channels": "grey"}.items() <= json.loads(card.to_json())["preprocess"].items()
    assert ModelCard.from_json(card.to_json()) == card


def test_mean_and_std_have_one_value_per_channel() -> None:
    """Three values for a network that takes grey are refused, and so is one for RGB: E204 says how many it takes."""
    with pytest.raises(OptionError, match=r"E204.*mean and std must be 1 numbers each, one per channel \(grey\)"):
        replace(CARD, preprocess=replace(CARD.preprocess, channels="grey"))
    with pytest.raises(OptionError, match=r"E204.*must be 3 numbers each"):
        replace(CARD, mean=(0.5,))


def test_the_options_offer_what_the_card_takes() -> None:
    """The command line's lists, which do not import the card, are those of the card."""
    assert (get_args(Interpolation), get_args(Resizer)) == (options.INTERPOLATIONS, options.RESIZERS)
    assert get_args(Channels) == options.CHANNELS


@pytest.mark.parametrize(
    "field", [{"class_counts": [10**400] * 18}, {"class_counts": [10**18] * 18}, {"fold": 10**30}, {"fold": -1}]
)
def test_a_card_with_absurd_counts_is_refused(field: dict[str, object]) -> None:
    """Numbers of images and folds that no training has would fail where they are used: E427."""
    with pytest.raises(ModelError) as caught:
        ModelCard.from_json(json.dumps(json.loads(toys.CARD.to_json()) | {"group": "g"} | field))
    assert caught.value.code == "E427"


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda value: [value], "it must be an object, not a list"),
        (lambda value: None, "it must be an object, not null"),
        (lambda value: {k: v for k, v in value.items() if k != "schema"}, "it lacks 'schema'"),
        (lambda value: {k: v for k, v in value.items() if k != "preprocess"}, "it lacks 'preprocess'"),
        (lambda value: {k: v for k, v in value.items() if k != "mean"}, "it lacks 'mean'"),
        (lambda value: value | {"preprocess": {"sizes": [8, 8]}}, "preprocess lacks 'size'"),
        (lambda value: value | {"preprocess": {"size": [8, 8], "x": 1}}, "preprocess has the unknown name 'x'"),
        (
            lambda value: value | {"preprocess": {"size": [8, 8], "face": []}},
            "preprocess.face is a list of 0, expected an object or null",
        ),
        (lambda value: value | {"preprocess": {"size": [8, 8], "face": {"margin": 0}}}, "face lacks 'fallback'"),
        (lambda value: value | {"fold": -1}, "schema 1: fold must be a number from 0"),
    ],
)
def test_what_a_card_lacks_is_named(change: Callable[[Any], Any], said: str) -> None:
    """In words of the card: Python's own were shown, such as 'NoneType' object is not subscriptable."""
    with pytest.raises(ModelError, match=re.escape(said)) as caught:
        ModelCard.from_json(json.dumps(change(json.loads(toys.CARD.to_json()))))
    assert caught.value.code == "E427"
