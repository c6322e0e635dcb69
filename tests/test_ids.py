"""Ids join; positions never do."""

from __future__ import annotations

import unicodedata

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ensemble.errors import PredictionError
from ensemble.events import Recorder
from ensemble.ids import join_rows


def complain(difference: str) -> PredictionError:
    return PredictionError("E504", difference)


@given(st.data())
@settings(deadline=None)
def test_rows_are_found_wherever_they_stand(data: st.DataObject) -> None:
    """Taking the found rows gives the wanted ids, whatever the two orders."""
    ids = data.draw(st.lists(st.text(), unique=True))
    shuffled = data.draw(st.permutations(ids))
    rows = join_rows(ids, shuffled, complain=complain)
    assert [shuffled[row] for row in rows] == ids


def test_fault_79_the_difference_is_named() -> None:
    """The complaint counts and names what is lacking and what is too much."""
    wanted = [f"{i}.jpg" for i in range(30)]
    with pytest.raises(PredictionError) as caught:
        join_rows(wanted, ["z.jpg", *wanted[7:], "x.jpg"], complain=complain)
    assert caught.value.message == (
        "lacks 7 of 30 ids: 0.jpg, 1.jpg, 2.jpg, 3.jpg, 4.jpg and 2 more; has 2 others: x.jpg, z.jpg"
    )


@pytest.mark.parametrize(("wanted", "found"), [(["a", "a"], ["a", "b"]), (["a", "b"], ["a", "b", "b"])])
def test_an_id_that_comes_twice_is_refused(wanted: list[str], found: list[str]) -> None:
    """Neither side may list an id more than once: the second one would be silently lost."""
    with pytest.raises(PredictionError, match="lists 1 ids more than once"):
        join_rows(wanted, found, complain=complain)


def test_fault_18_unicode_forms_of_one_name_meet() -> None:
    """A decomposed name matches its composed form, with a notice."""
    composed = ["한글.jpg", "é.jpg", "z.jpg"]
    decomposed = [unicodedata.normalize("NFD", name) for name in reversed(composed)]
    assert set(composed) != set(decomposed)
    heard = Recorder()
    np.testing.assert_array_equal(join_rows(composed, decomposed, complain=complain, listener=heard), [2, 1, 0])
    assert [(notice.code, notice.message) for notice in heard.notices] == [
        ("I310", "2 names matched only after Unicode normalization")
    ]


def test_fault_19_two_forms_of_one_name_are_two_images() -> None:
    """Where both forms of a name are listed they are told apart by their exact spelling, or not joined at all."""
    both = ["é.jpg", unicodedata.normalize("NFD", "é.jpg")]
    np.testing.assert_array_equal(join_rows(both, both[::-1], complain=complain), [1, 0])
    with pytest.raises(PredictionError, match="lacks 1 of 2 ids"):
        join_rows(both, [both[0], "z.jpg"], complain=complain)
    with pytest.raises(PredictionError, match="lacks 1 of 2 ids"):
        join_rows(both, both[:1], complain=complain)
