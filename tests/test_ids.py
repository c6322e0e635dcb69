"""Ids join; positions never do."""

from __future__ import annotations

import unicodedata

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ensemble.errors import PredictionError, show_spaces
from ensemble.events import Recorder
from ensemble.ids import find_rows, join_rows, without_ids


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


@pytest.mark.parametrize(
    ("wanted", "found", "what"),
    [
        (["001", "002"], ["002.jpg", "001.jpg"], "the suffix"),
        (["001.PNG", "002.png"], ["002", "001"], "the suffix"),
        (["./a.jpg", "b.jpg\u00a0"], ["b.jpg", "a.jpg"], "surrounding spaces"),
        (["test\\a.jpg", "test\\b.jpg"], ["test/b.jpg", "test/a.jpg"], "surrounding spaces"),
        (["test/a.jpg", "test/b.jpg"], ["b.jpg", "a.jpg"], "the folder"),
        (["test/a", "test/b"], ["b.jpg", "a.jpg"], "folder and suffix"),
        (["https://x.org/a.jpg?w=1", "https://x.org/b.jpg?w=1"], ["b.jpg", "a.jpg"], "the folder"),
        (["1.2.840", "1.2.841"], ["1.2.841.dcm", "1.2.840.dcm"], "the suffix"),
    ],
)
def test_ids_meet_despite_suffix_folder_and_spaces(wanted: list[str], found: list[str], what: str) -> None:
    """Rows are joined by the strictest comparison under which both sides are the same, and the line has an example."""
    heard = Recorder()
    assert join_rows(wanted, found, complain=complain, listener=heard).tolist() == [1, 0]
    (notice,) = heard.notices
    assert notice.code == "I381"
    assert what in notice.message
    assert show_spaces(wanted[0]) in notice.message
    assert find_rows([*wanted, wanted[0]], [*found, "zz"], complain=complain).tolist() == [1, 0, 1]


@pytest.mark.parametrize(
    ("wanted", "found"),
    [
        (["001.png", "002.png"], ["001.jpg", "002.jpg"]),  # two other images
        (["1", "2"], ["01", "02"]),  # zeros count
        (["x/a.jpg", "y/a.jpg"], ["a.jpg", "b.jpg"]),  # two images of one name
        (["a", "b"], ["a.jpg", "a.png"]),
    ],
)
def test_ids_that_could_be_others_do_not_meet(wanted: list[str], found: list[str]) -> None:
    """Another suffix, lost zeros, and names that become one by leaving something out are not joined."""
    with pytest.raises(PredictionError, match=r"lacks [12] of 2 ids"):
        join_rows(wanted, found, complain=complain)


def test_spaces_of_ids_are_visible_in_messages() -> None:
    """A space at the end, a no-break space and a line break are shown, and other names are as they are."""
    with pytest.raises(PredictionError) as caught:
        join_rows(["a.jpg ", "b\u00a0c", "d\ne", "f g"], ["z"], complain=complain)
    assert caught.value.message == r"lacks 4 of 4 ids: 'a.jpg ', 'b\xa0c', 'd\ne', f g; has 1 others: z"


def test_ids_left_out_are_found_in_any_spelling() -> None:
    """An image that could not be read is left out of a sample that has no suffixes."""
    assert without_ids(["a", "b", "c"], ["x/b.jpg"]) == ("a", "c")
    assert without_ids(["a.jpg", "b.jpg"], []) == ("a.jpg", "b.jpg")
