"""The classes of a submission whose label space nobody has named."""

from __future__ import annotations

from pathlib import Path

import pytest

from ensemble.events import Recorder
from ensemble.labels import MASK18, LabelSpace
from ensemble.submission.assumed_labels import assume_labels
from ensemble.submission.sheet_options import SheetOptions


@pytest.mark.parametrize(
    ("header", "options", "expected"),
    [
        ("id,cat,dog,eel", SheetOptions(), LabelSpace.flat(("cat", "dog", "eel"))),
        ("cat,name,dog", SheetOptions(id_column="name"), LabelSpace.flat(("cat", "dog"))),
        ("id,label", SheetOptions(), MASK18),
    ],
)
def test_columns_are_classes_and_one_column_is_of_mask18(
    tmp_path: Path, header: str, options: SheetOptions, expected: LabelSpace
) -> None:
    """Several columns of answers are the classes, one is taken for the mask contest's, and either is said."""
    path = tmp_path / "like.csv"
    path.write_text(f"{header}\n{','.join('0' * len(header.split(',')))}\n")
    heard = Recorder()
    assert assume_labels(path, options, heard) == expected
    assert [notice.code for notice in heard.notices] == ["I543"]


def test_the_mask_contests_own_header_needs_no_words(tmp_path: Path) -> None:
    """A submission with the columns ImageID and ans is one of the mask contest."""
    path = tmp_path / "info.csv"
    path.write_text("ImageID,ans\na.jpg,0\n")
    heard = Recorder()
    assert assume_labels(path, SheetOptions(), heard) == MASK18
    assert not heard.notices
