"""Predictions of other tools are read like our own, once their content kind is stated."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ensemble.blend.pooling import log_softmax
from ensemble.errors import EnsError, PredictionError
from ensemble.events import Recorder
from ensemble.labels import LabelSpace
from ensemble.predictions.external import ContentKind, ExternalOptions, read_external

PETS = LabelSpace.flat(["cat", "dog", "fox"])
IDS = ["b.jpg", "a.jpg"]
PROBABILITIES = np.array([[0.5, 0.25, 0.25], [0.0, 0.1, 0.9]])


LOGITS, SHARES = ExternalOptions("logits"), ExternalOptions("probabilities")


def write_csv(path: Path, values: Any, header: str = "id,cat,dog,fox") -> Path:
    rows = "".join(f"{name},{','.join(map(str, row))}\n" for name, row in zip(IDS, values, strict=True))
    path.write_text(f"{header}\n{rows}")
    return path


def test_a_csv_of_probabilities_is_the_softmax_of_its_logits(tmp_path: Path) -> None:
    """The softmax of the logits is the file's probabilities, zeros included; the member has the file's name."""
    found = read_external(write_csv(tmp_path / "mate.csv", PROBABILITIES), PETS, options=SHARES)
    assert (found.member, found.group, found.ids) == ("mate", "mate", ("b.jpg", "a.jpg"))
    np.testing.assert_allclose(np.exp(log_softmax(found.logits["identity"])), PROBABILITIES, atol=1e-7)


def test_columns_are_matched_by_class_name(tmp_path: Path) -> None:
    """Columns named like the classes may be in any order; other columns are in class order."""
    swapped = write_csv(tmp_path / "a.csv", PROBABILITIES[:, [2, 0, 1]], "id,fox,cat,dog")
    plain = write_csv(tmp_path / "b.csv", PROBABILITIES, "id,0,1,2")
    one, other = (read_external(path, PETS, options=SHARES) for path in (swapped, plain))
    assert np.array_equal(one.logits["identity"], other.logits["identity"])


def test_an_npz_holds_views_by_name(tmp_path: Path) -> None:
    """Logits are read unchanged, one array per view."""
    views = {"identity": np.array([[3.0, -1.0, 0.5], [1.0, 2.0, 3.0]]), "hflip": np.zeros((2, 3))}
    np.savez(tmp_path / "mate.npz", ids=np.array(IDS), **views)  # type: ignore[arg-type]
    found = read_external(tmp_path / "mate.npz", PETS, options=LOGITS)
    assert {name: values.tolist() for name, values in found.logits.items()} == {
        name: values.tolist() for name, values in views.items()
    }


@pytest.mark.parametrize(
    ("names", "advised"),
    [
        (("logits", "probabilities"), "logits"),
        (("probs", "y_pred"), "probs"),
        (("val_logits", "val_probs", "extra"), "val_logits"),
        (("identity", "y_true"), "identity"),
        (("Labels", "scores"), "scores"),
        (("logits", "features"), "logits"),
    ],
)
def test_arrays_that_are_no_views_are_refused_and_one_can_be_named(
    tmp_path: Path, names: tuple[str, ...], advised: str
) -> None:
    """Logits beside their probabilities were averaged as two views; ``--array`` reads one of them, as identity."""
    arrays = {name: np.array([[3.0, -1.0, 0.5], [1.0, 2.0, 3.0]]) + i for i, name in enumerate(names)}
    np.savez(tmp_path / "mate.npz", ids=np.array(IDS), **arrays)  # type: ignore[arg-type]
    with pytest.raises(PredictionError, match=r"E514.*each array would count as a view") as caught:
        read_external(tmp_path / "mate.npz", PETS, options=LOGITS)
    assert caught.value.hint == f"name the one to be read: --array {advised}"
    found = read_external(tmp_path / "mate.npz", PETS, options=replace(LOGITS, array=advised))
    assert {view: values.tolist() for view, values in found.logits.items()} == {"identity": arrays[advised].tolist()}
    other = read_external(tmp_path / "mate.npz", PETS, options=replace(LOGITS, array=names[-1]))
    assert len({found.sha256, other.sha256}) == len({advised, names[-1]})
    with pytest.raises(PredictionError, match=r"E514.*no array 'hflip'"):
        read_external(tmp_path / "mate.npz", PETS, options=replace(LOGITS, array="hflip"))


@pytest.mark.parametrize(
    "names",
    [("logits",), ("probabilities",), ("a", "b"), ("logits_identity", "logits_hflip"), ("scores", "hflip"), ("1", "2")],
)
def test_other_names_of_arrays_are_views(tmp_path: Path, names: tuple[str, ...]) -> None:
    """One array may be called anything, and so may views, also with the form in the name of each."""
    arrays = {name: np.array([[3.0, -1.0, 0.5], [1.0, 2.0, 3.0]]) for name in names}
    np.savez(tmp_path / "mate.npz", ids=np.array(IDS), **arrays)  # type: ignore[arg-type]
    assert set(read_external(tmp_path / "mate.npz", PETS, options=LOGITS).logits) == set(names)


@pytest.mark.parametrize(
    ("values", "kind"),
    [
        (PROBABILITIES, None),
        (PROBABILITIES, "logits"),
        (PROBABILITIES * 2, "probabilities"),
        (-PROBABILITIES, "probabilities"),
    ],
)
def test_fault_77_the_kind_is_stated_and_never_guessed(tmp_path: Path, values: Any, kind: ContentKind | None) -> None:
    """No kind, probabilities stated as logits, and values stated as probabilities that are not are E502."""
    with pytest.raises(PredictionError, match="E502"):
        read_external(write_csv(tmp_path / "a.csv", values), PETS, options=ExternalOptions(kind))


def test_fault_80_nan_names_its_image(tmp_path: Path) -> None:
    """NaN in a row is E505 with the name of the image."""
    values = PROBABILITIES.copy()
    values[1, 0] = np.nan
    with pytest.raises(PredictionError, match=r"E505.*a\.jpg"):
        read_external(write_csv(tmp_path / "a.csv", values), PETS, options=LOGITS)


def test_a_file_of_another_shape_is_refused(tmp_path: Path) -> None:
    """Text, repeated ids, missing ids and pickled objects are E514; two columns for three classes are E541."""
    np.savez(tmp_path / "no_ids.npz", identity=np.zeros((2, 3)))
    np.savez(tmp_path / "wide.npz", ids=np.array(IDS), identity=np.zeros((2, 4)))
    np.savez(tmp_path / "twice.npz", ids=np.array(["a", "a"]), identity=np.zeros((2, 3)))
    np.savez(tmp_path / "objects.npz", ids=np.array(IDS, dtype=object), identity=np.zeros((2, 3)))
    (tmp_path / "text.npz").write_text("not a zip")
    write_csv(tmp_path / "narrow.csv", PROBABILITIES[:, :2], "id,cat,dog")
    write_csv(tmp_path / "words.csv", [["x", "y", "z"]] * 2)
    for path in sorted(tmp_path.iterdir()):
        with pytest.raises(EnsError, match="E541" if path.stem == "narrow" else "E514"):
            read_external(path, PETS, options=LOGITS)


def test_a_submission_votes_with_its_classes(tmp_path: Path) -> None:
    """With kind classes a submission is one-hot; an invalid submission is E520."""
    path = tmp_path / "mate.csv"
    path.write_text("ImageID,ans\nb.jpg,2\na.jpg,0\n")
    found = read_external(path, PETS, options=ExternalOptions("classes"))
    assert found.ids == ("b.jpg", "a.jpg")
    np.testing.assert_allclose(np.exp(log_softmax(found.logits["identity"])), [[0, 0, 1], [1, 0, 0]], atol=1e-30)
    path.write_text("ImageID,ans\nb.jpg,4\n")
    with pytest.raises(EnsError) as caught:
        read_external(path, PETS, options=ExternalOptions("classes"))
    assert caught.value.code == "E520"


def test_classes_counted_from_one_are_read_so_and_said(tmp_path: Path) -> None:
    """Of three classes a number 3 is the last one, if there is no 0."""
    path = tmp_path / "mate.csv"
    path.write_text("ImageID,ans\nb.jpg,3\na.jpg,1\n")
    heard = Recorder()
    found = read_external(path, PETS, options=ExternalOptions("classes"), listener=heard)
    assert found.logits["identity"].argmax(axis=1).tolist() == [2, 0]
    assert [notice.code for notice in heard.notices] == ["I543"]
    assert ", not from 0" in heard.notices[0].message
