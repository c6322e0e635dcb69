"""Label spaces: which column is which class."""

from __future__ import annotations

import json
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ensemble.errors import DataError, PredictionError
from ensemble.label_file import parse_labels
from ensemble.labels import MASK18, SEPARATOR, Axis, LabelSpace

names = st.text(min_size=1, max_size=8).filter(lambda name: SEPARATOR not in name)
axes = st.builds(Axis, names, st.lists(names, min_size=1, max_size=4, unique=True).map(tuple))
spaces = st.lists(axes, min_size=1, max_size=3, unique_by=lambda axis: axis.name).map(tuple)


def make(axes: tuple[Axis, ...]) -> LabelSpace | None:
    """The label space, or None where two classes would have the same name."""
    try:
        return LabelSpace(axes)
    except DataError:
        return None


label_spaces = spaces.map(make).filter(lambda space: space is not None)


def test_mask18_is_the_contest() -> None:
    """A class is mask * 6 + gender * 3 + age, and is called after its three answers."""
    assert len(MASK18) == 18
    for mask, gender, age in product(range(3), range(2), range(3)):
        number = mask * 6 + gender * 3 + age
        assert [MASK18.along(axis, number) for axis in ("mask", "gender", "age")] == [mask, gender, age]
        answers = (MASK18.axes[0].values[mask], MASK18.axes[1].values[gender], MASK18.axes[2].values[age])
        assert MASK18.names[number] == " / ".join(answers)
    assert MASK18.names[0] == "worn / male / under 30"
    assert MASK18.names[17] == "none / female / 60 and over"


def test_along_takes_arrays_of_any_shape() -> None:
    """Answers on an axis have the shape of the classes they are asked for."""
    classes = np.arange(18).reshape(3, 2, 3)
    for position, axis in enumerate(("mask", "gender", "age")):
        assert np.array_equal(MASK18.along(axis, classes), np.indices((3, 2, 3))[position])


@given(label_spaces)
def test_json_gives_the_space_back(space: LabelSpace) -> None:
    """What is written as JSON is read back equal."""
    assert LabelSpace.from_dict(json.loads(json.dumps(space.to_dict()))) == space


@given(label_spaces)
def test_names_are_the_product_of_the_axes(space: LabelSpace) -> None:
    """There is one class for each combination of answers, the last axis changing fastest, and no name twice."""
    assert len(space.names) == len(space) == np.prod(space.shape) == len(set(space.names))
    for number, values in enumerate(product(*(axis.values for axis in space.axes))):
        assert space.names[number] == SEPARATOR.join(values)
        for axis, value in zip(space.axes, values, strict=True):
            assert axis.values[space.along(axis.name, number)] == value


@given(st.permutations(range(6)))
def test_fault_59_columns_are_permuted_by_name(order: list[int]) -> None:
    """Another order of the same classes is put right by name, whatever the order is."""
    classes = ["a", "b", "c", "d", "e", "f"]
    ours, theirs = LabelSpace.flat(classes), LabelSpace.flat([classes[i] for i in order])
    assert [theirs.names[i] for i in ours.permutation(theirs, owner="r18")] == classes


def test_fault_59_other_classes_are_refused() -> None:
    """Other classes are E501, which names the member and a class that only one side has."""
    for theirs, difference in ((["a", "b", "x"], "c"), (["a", "b"], "c"), (["a", "b", "c", "d"], "d")):
        with pytest.raises(PredictionError, match=rf"E501.*r18.*'{difference}'"):
            LabelSpace.flat(["a", "b", "c"]).permutation(LabelSpace.flat(theirs), owner="r18")


@pytest.mark.parametrize(
    "value",
    [None, 3, "abc", {}, [], [1, 2], ["a", None], ["a", "a"], ["a", ""], {"axes": None}, {"axes": []}, {"axes": {}}]
    + [{"axes": "ab"}, {"axes": [1]}, {"axes": [{}]}, {"axes": [{"name": "x"}]}, {"axes": [{"values": ["a"]}]}]
    + [{"axes": [{"name": "x", "values": values}]} for values in (3, "abc", [], [1, 2], ["a", "a"], [["a"]], {"a": 1})]
    + [{"axes": [{"name": name, "values": ["a"]}]} for name in (1, "", None)]
    + [{"axes": [{"name": "x", "values": ["a"]}] * 2}]
    + [{"axes": [{"name": "x", "values": ["a", "a / b"]}, {"name": "y", "values": ["c", "b / c"]}]}],
    ids=repr,
)
def test_what_is_not_a_label_space_is_e331(value: Any) -> None:
    """Every other form, and every ambiguity of names, is E331 and no other exception."""
    with pytest.raises(DataError, match="E331"):
        LabelSpace.from_dict(value)


def test_labels_from_the_command_line(tmp_path: Path) -> None:
    """`mask18`, a number of classes, and a JSON file in either form, with or without BOM, are understood."""
    flat, product_of_axes = tmp_path / "한글.json", tmp_path / "axes.json"
    flat.write_text('["개", "고양이"]', encoding="utf-8-sig")
    product_of_axes.write_text(json.dumps(MASK18.to_dict()), encoding="utf-8")
    assert parse_labels("mask18") == parse_labels(str(product_of_axes)) == MASK18
    assert parse_labels("3").names == ("0", "1", "2")
    assert parse_labels(str(flat)).names == ("개", "고양이")


@pytest.mark.parametrize("content", [None, b"", b"{", b"\xff\xfe", b"[" * 100_000, b"[1]"], ids=lambda c: str(c)[:9])
def test_unreadable_label_files_are_e331(tmp_path: Path, content: bytes | None) -> None:
    """A file that is missing, no JSON, no UTF-8, absurdly deep or no labels is E331."""
    path = tmp_path / "labels.json"
    if content is not None:
        path.write_bytes(content)
    for text in (str(path), str(tmp_path), "0", "-1", ""):
        with pytest.raises(DataError, match="E331"):
            parse_labels(text)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("a.json", '["cat", "dog", "owl"]'),
        ("a.json", '{"0": "cat", "2": "owl", "1": "dog"}'),
        ("a.json", '{"dog": 1, "owl": 2, "cat": 0}'),
        ("a.json", '{"model_type": "vit", "id2label": {"0": "cat", "1": "dog", "2": "owl"}}'),
        ("labels.txt", "cat\ndog\n\nowl\n"),
        ("labels.txt", "0 cat\n1 dog\n2 owl\n"),
        ("labels.txt", "0: cat\r\n1: dog\r\n2: owl\r\n"),
        ("a.csv", "id,name\n1,cat\n2,dog\n3,owl\n"),
        ("a.csv", "name,id\nowl,2\ncat,0\ndog,1\n"),
    ],
)
def test_names_of_classes_are_read_in_every_usual_form(tmp_path: Path, name: str, text: str) -> None:
    """Lists, both directions of a mapping, and lines give the names in the order of their numbers."""
    (tmp_path / name).write_text(text, encoding="utf-8", newline="")
    assert parse_labels(str(tmp_path / name)).names == ("cat", "dog", "owl")


def test_a_name_may_begin_with_a_number(tmp_path: Path) -> None:
    """Only numbers from 0 on in all lines are those of the classes."""
    (tmp_path / "labels.txt").write_text("0 carat\n18 carat\n", encoding="utf-8")
    assert parse_labels(str(tmp_path / "labels.txt")).names == ("0 carat", "18 carat")


def test_axes_beside_other_mappings_are_axes(tmp_path: Path) -> None:
    """A file with axes is a label space, whatever else is in it."""
    (tmp_path / "a.json").write_text('{"axes": [{"name": "a", "values": ["x", "y"]}], "colors": {"0": "red"}}')
    assert parse_labels(str(tmp_path / "a.json")).names == ("x", "y")
