"""Thresholds on the command line."""

from __future__ import annotations

import pytest

from ensemble.commands.recipe_options import _parse_thresholds
from ensemble.errors import PredictionError


def test_thresholds_are_one_number_or_some_by_name() -> None:
    """For all labels, or for some of them."""
    assert _parse_thresholds("0.4") == 0.4
    assert _parse_thresholds("cat=0.3,dog=0.6") == {"cat": 0.3, "dog": 0.6}


@pytest.mark.parametrize("text", ["cat=1_0", "cat=0.3,cat=0.4", "nan", "cat=inf", "cat=,dog=1", "0x1=y"])
def test_what_is_no_threshold_is_refused_with_how_to_write_it(text: str) -> None:
    """In words of labels; it was told to give weights of groups."""
    with pytest.raises(PredictionError, match="--thresholds") as caught:
        _parse_thresholds(text)
    assert caught.value.code == "E508"
    assert "cat=0.3,dog=0.6" in str(caught.value.hint)
