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
        ("ImageID,ans", SheetOptions(), MASK18),
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
