"""The classes of a submission whose label space nobody has named."""

from __future__ import annotations

from pathlib import Path

import pytest
from click.testing import CliRunner

from ensemble.cli import ens
from ensemble.errors import PredictionError
from ensemble.events import Recorder
from ensemble.labels import MASK18, LabelSpace
from ensemble.submission.assumed_labels import assume_labels
from ensemble.submission.recognize import read_sheet
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


def test_eighteen_columns_of_other_names_are_classes_of_their_own(tmp_path: Path) -> None:
    """As many columns as mask18 has classes are those of mask18 only if one of them is named or numbered so."""
    own = [f"breed {letter}" for letter in "abcdefghijklmnopqr"]
    for names, expected in ((own, LabelSpace.flat(own)), ([str(i) for i in range(18)], MASK18)):
        path = tmp_path / "like.csv"
        path.write_text(f"id,{','.join(names)}\na.jpg{',0' * 18}\n")
        assert assume_labels(path, SheetOptions(), Recorder()) == expected


@pytest.mark.parametrize("command", [["check", "ours.csv"], ["check", "ours.csv", "--like", "like.csv"]])
def test_names_of_other_classes_ask_for_the_label_space_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: list[str]
) -> None:
    """Answers that are no classes of the label space that was assumed: the hint begins with --labels."""
    monkeypatch.chdir(tmp_path)
    Path("ours.csv").write_text("id,label\na.jpg,cat\nb.jpg,dog\n")
    Path("like.csv").write_text("id,label\na.jpg,cat\nb.jpg,cat\n")
    Path("pets.json").write_text('["cat", "dog"]')
    error = CliRunner().invoke(ens, command).exception
    assert isinstance(error, PredictionError)
    assert error.hint.startswith("name the classes with --labels unless they are ")
    done = CliRunner().invoke(ens, [*command, "--labels", "pets.json"], catch_exceptions=False)
    assert "2 rows, no faults" in done.stdout


def test_a_command_without_that_option_does_not_name_it(tmp_path: Path) -> None:
    """ens submit takes the classes of its recipe: the error of its sample says how answers can be stated."""
    path = tmp_path / "like.csv"
    path.write_text("id,label\na.jpg,cat\n")
    with pytest.raises(PredictionError) as caught:
        read_sheet(path, LabelSpace.flat(("ant", "bee")))
    assert caught.value.hint.startswith("state it: --answers number")
    assert "--labels" not in caught.value.hint
