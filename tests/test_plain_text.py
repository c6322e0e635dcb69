"""Text from users and files: JSON, numbers and names, each read in one way only and in bounded time."""

from __future__ import annotations

import json
import os
import time
import unicodedata
from pathlib import Path

import onnx
import pytest
from onnx import helper

from ensemble.adopt.foreign import count_expanded, read_foreign
from ensemble.blend.recipe import Recipe, make_recipe, parse_weights, read_recipe
from ensemble.card import METADATA_KEY, ModelCard
from ensemble.errors import DataError, EnsError, ModelError, PredictionError
from ensemble.ids import tidy_id
from ensemble.label_file import parse_labels
from ensemble.labels import MAX_CLASSES, Axis, LabelSpace
from ensemble.runtime.model_file import read_model
from ensemble.text.json_text import parse_json, read_utf8
from ensemble.text.plain_numbers import is_count, to_float, to_int
from ensemble.text.unicode_text import compose
from tests.support import toys
from tests.support.members import draw_logits, make_member


def a_recipe() -> Recipe:
    return make_recipe([make_member(name, draw_logits(i)) for i, name in enumerate("ab")])


@pytest.mark.parametrize("text", ['{"a": 1, "a": 2}', '[{"b": {"a": 1, "a": 1}}]', '{"a": 1, "\\u0061": 2}'])
def test_a_name_that_is_given_twice_is_no_json(text: str) -> None:
    """JSON readers differ in which value counts, so neither does."""
    with pytest.raises(ValueError, match="'a' is given twice"):
        parse_json(text)


@pytest.mark.parametrize("text", ["[" * 100_000, '{"a":' * 100_000, "{", "", "nope"])
def test_what_is_no_json_is_a_value_error(text: str) -> None:
    """Nesting without end is refused like any other damage."""
    with pytest.raises(ValueError):  # noqa: PT011 - json's own messages
        parse_json(text)


@pytest.mark.parametrize("text", ["1_0", "１０", "٣", "²", "1e1_0", "0x10", "", "ten"])
def test_only_plain_digits_are_numbers(text: str) -> None:
    """Underscores, full-width, Arabic and raised digits are text, as in every other program."""
    with pytest.raises(ValueError):  # noqa: PT011
        to_float(text)
    with pytest.raises(ValueError):  # noqa: PT011
        to_int(text)
    assert not is_count(text)
    with pytest.raises(EnsError):
        parse_weights(f"a={text}" if text else "a=")


def test_plain_numbers_are_read() -> None:
    """Signs, exponents and blanks around a number are usual."""
    assert (to_float(" -1.5e3 "), to_int("+7"), is_count("0042")) == (-1500.0, 7, True)


@pytest.mark.parametrize(
    "value",
    [
        {"axes": [{"name": str(i), "values": ["a", "b", "c", "d"]} for i in range(30)]},
        {"axes": [{"name": str(i), "values": [str(j) for j in range(1000)]} for i in range(3)]},
        {"axes": [{"name": str(i), "values": ["x" * 50_000, "y"]} for i in range(12)]},
        [str(i) for i in range(MAX_CLASSES + 1)],
    ],
)
def test_a_label_space_is_bounded_before_it_is_built(value: object) -> None:
    """A kilobyte of axes whose product is more than a memory holds is E331 at once, in labels, cards and recipes."""
    began = time.process_time()
    with pytest.raises(DataError) as caught:
        LabelSpace.from_dict(value)
    assert caught.value.code == "E331"
    card = json.loads(toys.CARD.to_json()) | {"labels": value}
    with pytest.raises(ModelError):
        ModelCard.from_json(json.dumps(card))
    recipe = json.loads(a_recipe().to_json()) | {"labels": value}
    with pytest.raises(PredictionError):
        Recipe.from_json(json.dumps(recipe))
    assert time.process_time() - began < 2


@pytest.mark.parametrize("text", ["1000000000", "99999999999999999999", "١٢"])
def test_a_number_of_classes_is_bounded(text: str) -> None:
    """A count is not tried, and digits of other scripts are the name of a file."""
    with pytest.raises(DataError) as caught:
        parse_labels(text)
    assert caught.value.code == "E331"


def test_large_label_spaces_are_still_read() -> None:
    """Twenty thousand classes, as in large collections of species, are no fault."""
    assert len(LabelSpace.flat(20_000)) == 20_000
    axes = (Axis("a", tuple(map(str, range(200)))), Axis("b", tuple(map(str, range(100)))))
    assert len(LabelSpace(axes)) == 20_000


def test_labels_recipes_and_cards_refuse_repeated_names(tmp_path: Path) -> None:
    """The last of two values does not win."""
    labels = tmp_path / "labels.json"
    labels.write_text('{"axes": [{"name": "a", "values": ["x"], "values": ["y", "z"]}]}')
    with pytest.raises(DataError, match="'values' is given twice"):
        parse_labels(str(labels))
    recipe = tmp_path / "blend.json"
    text = a_recipe().to_json()
    recipe.write_text(text.replace('"pool"', '"pool": "linear", "pool"', 1))
    with pytest.raises(PredictionError, match="'pool' is given twice"):
        read_recipe(recipe)
    with pytest.raises(ModelError, match="'arch' is given twice"):
        ModelCard.from_json(toys.CARD.to_json().replace('"arch"', '"arch":"b","arch"', 1))


def test_files_that_are_no_files_are_refused_at_once(tmp_path: Path) -> None:
    """A FIFO would be waited for forever; a file above the limit is not read."""
    os.mkfifo(tmp_path / "fifo")
    with pytest.raises(ValueError, match="not a regular file"):
        read_utf8(tmp_path / "fifo")
    for read in (lambda p: parse_labels(str(p)), read_recipe):
        with pytest.raises(EnsError):
            read(tmp_path / "fifo")
    (tmp_path / "large").write_bytes(b"x" * 100)
    with pytest.raises(ValueError, match="100 bytes"):
        read_utf8(tmp_path / "large", limit=99)


def test_normalization_is_linear() -> None:
    """Marks are sorted one by one: a long run of them is left as it is, and a long text is not."""
    marks = "a" + "\u0301\u0316" * 200_000
    began = time.process_time()
    assert compose(marks) == marks
    assert tidy_id(marks) == marks
    assert time.process_time() - began < 2
    decomposed = unicodedata.normalize("NFD", "한글" * 1000)
    assert compose(decomposed) == "한글" * 1000
    assert compose("e\u0301") == "\xe9"


def test_a_model_with_two_cards_or_no_opset_is_refused(tmp_path: Path) -> None:
    """Readers would differ in which card counts; operators without an opset have no meaning."""
    two = toys.model_proto()
    two.metadata_props.add(key=METADATA_KEY, value=toys.card("other").to_json())
    none = toys.model_proto()
    del none.opset_import[:]
    for proto, code in ((two, "E427"), (none, "E420")):
        with pytest.raises(ModelError) as caught:
            read_model(toys.write_model(tmp_path, proto=proto))
        assert caught.value.code == code
    (tmp_path / "none.onnx").write_bytes(none.SerializeToString())
    with pytest.raises(ModelError) as caught:
        read_foreign(tmp_path / "none.onnx")
    assert caught.value.code == "E420"


def test_functions_that_expand_to_a_billion_nodes_are_not_expanded(tmp_path: Path) -> None:
    """Thirty functions that each call the next one twice, and two that call each other, are E429."""
    model = toys.model_proto()
    opsets = [helper.make_opsetid("", 20), helper.make_opsetid("local", 1)]
    model.opset_import.append(helper.make_opsetid("local", 1))

    def function(name: str, called: str, domain: str) -> onnx.FunctionProto:
        nodes = [helper.make_node(called, ["x"], [f"t{i}"], domain=domain) for i in range(2)]
        return helper.make_function(
            "local", name, ["x"], ["y"], [*nodes, helper.make_node("Add", ["t0", "t1"], ["y"])], opsets
        )

    chain = [function(f"f{i}", f"f{i + 1}", "local") for i in range(30)] + [function("f30", "Abs", "")]
    model.graph.node.append(helper.make_node("f0", ["image"], ["z"], domain="local"))
    for functions in (chain, [function("f0", "g", "local"), function("g", "f0", "local")]):
        del model.functions[:]
        model.functions.extend(functions)
        (tmp_path / "m.onnx").write_bytes(model.SerializeToString())
        with pytest.raises(ModelError) as caught:
            read_foreign(tmp_path / "m.onnx")
        assert caught.value.code == "E429"
    del model.functions[:]
    model.functions.extend(chain[-3:])
    model.graph.node[-1].op_type = "f28"
    assert count_expanded(model) == len(model.graph.node) - 1 + 15
