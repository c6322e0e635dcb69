"""Views that exchange labels: which columns, what is refused, and the whole way to a blend."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from ensemble.blend.recipe import parse_weights
from ensemble.errors import OptionError
from ensemble.images.label_swaps import swapped_columns
from ensemble.images.views import expand_views, parse_views
from ensemble.labels import MASK18, Axis, LabelSpace
from ensemble.predict.predict import predict
from ensemble.predictions.dataset import read_predictions
from tests.support import toys


@pytest.mark.parametrize(
    ("names", "swap", "expected"),
    [
        (["left", "right", "none"], ("left", "right"), [1, 0, 2]),
        (["left knee", "none", "right knee"], ("left", "right"), [2, 1, 0]),
        (["eye_left", "eye_right", "leftover"], ("left", "right"), [1, 0, 2]),
        (["a", "b", "c"], ("a", "c"), [2, 1, 0]),
    ],
)
def test_columns_of_names_and_of_words_are_exchanged(
    names: list[str], swap: tuple[str, str], expected: list[int]
) -> None:
    """Whole names go first, then whole words within names; the rest stays."""
    found = swapped_columns((swap,), LabelSpace.flat(names), member="m")
    assert found.tolist() == expected
    assert found[found].tolist() == [0, 1, 2]


def test_values_of_an_axis_are_exchanged_in_all_classes() -> None:
    """Every class moves with its value on the axis, and keeps those on the others."""
    labels = LabelSpace((Axis("side", ("left", "right")), Axis("grade", ("0", "1", "2"))))
    assert swapped_columns((("left", "right"),), labels, member="m").tolist() == [3, 4, 5, 0, 1, 2]
    found = swapped_columns((("left", "right"), ("0", "2")), labels, member="m")
    assert found.tolist() == [5, 4, 3, 2, 1, 0]


def test_what_cannot_be_exchanged_is_refused() -> None:
    """Names of no class, a class without counterpart, and a name in two pairs are E201."""
    view = parse_views("hflip:left=right")[1]
    for labels in (MASK18, LabelSpace.flat(["left knee", "none"])):
        with pytest.raises(OptionError) as caught:
            view.require_fits((8, 8), labels, member="m")
        assert caught.value.code == "E201"
    for text in ("hflip:left=", "hflip:a=b:b=c", "hflip:a=b=c", "nothing:a=b"):
        with pytest.raises(OptionError) as caught:
            parse_views(text)
        assert caught.value.code == "E201"


def test_names_and_weights_of_such_views() -> None:
    """The name has the pairs, a family has them in each of its views, and weights may follow."""
    assert [view.name for view in parse_views("hflip:left=right")] == ["identity", "hflip:left=right"]
    assert parse_views("hflip")[1].swaps == ()
    assert [view.name for view in parse_views("shift:2:l=r")][1] == "shift:2:left:l=r"
    weights = parse_weights("identity=2,hflip:left=right,vflip:a=b=0.5")
    assert weights == {"identity": 2.0, "hflip:left=right": 1.0, "vflip:a=b": 0.5}
    assert expand_views(weights) == weights


def test_predictions_of_a_view_are_those_of_the_image(tmp_path: Path) -> None:
    """The stored logits are the mirrored image's with the two columns exchanged; plain hflip is as before."""
    labels = LabelSpace.flat(["left", "right", "none"])
    card = replace(toys.card("m"), labels=labels)
    model = toys.write_model(tmp_path / "models", card)
    toys.write_pictures(tmp_path / "images", [f"{i}.png" for i in range(4)])
    for name, text in (("a", "hflip"), ("b", "hflip:left=right")):
        predict([model], tmp_path / "images", tmp_path / name, views=parse_views(text))
    plain, swapped = (read_predictions(tmp_path / name / "m") for name in "ab")
    np.testing.assert_array_equal(plain.logits["hflip"][:, [1, 0, 2]], swapped.logits["hflip:left=right"])
    np.testing.assert_array_equal(plain.logits["identity"], swapped.logits["identity"])
