"""Errors and their codes: each one is cataloged, in use, and of the right kind."""

from __future__ import annotations

import ast
import copy
import functools
import json
import pickle
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from ensemble import errors
from ensemble.error_codes import CODES
from ensemble.errors import (
    DataError,
    EnsError,
    FileError,
    Interrupted,
    LockedError,
    ModelError,
    OptionError,
    PredictionError,
    cut_text,
    enumerate_some,
)
from ensemble.events import Notice, Recorder
from tests.support.sources import ROOT, SOURCES, tree

CODE = re.compile(r"[EWI]\d{3}")
KINDS = {
    "OptionError": "2",
    "DataError": "3",
    "ModelError": "4",
    "PredictionError": "5",
    "DeviceError": "6",
    "FileError": "7",
    "LockedError": "7",
    "Interrupted": "8",
    "DeployError": "8",
}
OWN_CLASS = {
    "UnreadableImagesError": "E326",
    "TooLittleTruthError": "E525",
    "DeviceMemoryError": "E602",
    "ModelRunError": "E605",
    "ChanceError": "E612",
    "DiskFullError": "E701",
    "LockedError": "E703",
}
KINDS |= {name: code[1] for name, code in OWN_CLASS.items()}


def literals(path: Path) -> Iterator[str]:
    """Every string in the file's code that is a code and nothing else."""
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and CODE.fullmatch(node.value):
            yield node.value


def calls(name_pattern: str) -> list[tuple[str, str, str]]:
    """Where, which function and with which code: every call of such a name whose first argument is a code."""
    return [found for found in coded_calls() if re.fullmatch(name_pattern, found[1])]


@functools.cache
def coded_calls() -> list[tuple[str, str, str]]:
    """The calls for `calls`, of whatever function."""
    made = []
    for path in SOURCES:
        for node in ast.walk(tree(path)):
            if not isinstance(node, ast.Call) or not node.args or not isinstance(node.args[0], ast.Constant):
                continue
            name = node.func.id if isinstance(node.func, ast.Name) else getattr(node.func, "attr", "")
            code = node.args[0].value
            if isinstance(code, str) and CODE.fullmatch(code):
                made.append((f"{path.name}:{node.lineno}", name, code))
    return made


CATALOG = ("error_codes.py", "model_codes.py", "prediction_codes.py", "run_codes.py")


def test_every_code_in_use_is_cataloged() -> None:
    """No module of the three packages gives a code that `ens explain-error` does not know."""
    unknown = {(path.name, code) for path in SOURCES for code in literals(path) if code not in CODES}
    assert unknown == set()


def test_every_cataloged_code_is_in_use() -> None:
    """The catalog explains no code that nothing gives."""
    given = {code for path in SOURCES if path.name not in CATALOG for code in literals(path)}
    assert set(CODES) - given == set()


def test_no_code_is_listed_twice() -> None:
    """A second entry for a code would silently replace the first one."""
    keys = [code for name in CATALOG for code in literals(ROOT / "ensemble" / name)]
    assert sorted(keys) == sorted(set(keys)) == sorted(CODES)


@pytest.mark.parametrize("code", CODES)
def test_entries_are_complete(code: str) -> None:
    """A cause is a sentence; a cure is a phrase that can follow "hint:", so it has no capital and no full stop."""
    cause, cure = CODES[code]
    assert CODE.fullmatch(code)
    assert re.fullmatch(r"[A-Z].*\.", cause)
    assert cure
    assert not cure.endswith(".")
    assert cure == cure.strip()
    assert not re.match(r"[A-Z][a-z]", cure)


def test_kinds_of_errors_give_their_own_codes() -> None:
    """An error's class, and so its exit status, fits its code: an `E3xx` is a `DataError` and so on."""
    found = calls("|".join(KINDS))
    assert len(found) > 50, "the search finds the errors"
    wrong = [(where, name, code) for where, name, code in found if code[0] != "E" or code[1] != KINDS[name]]
    assert wrong == []


def test_notices_are_no_errors() -> None:
    """A notice has a W or an I code; an E code would be an error that goes by."""
    found = calls("Notice")
    assert len(found) > 10, "the search finds the notices"
    assert [(where, code) for where, _, code in found if code[0] == "E"] == []


def test_the_tree_is_the_one_in_the_docstring() -> None:
    """Each class has the exit status that the drawing gives it, and every class is drawn."""
    drawn = dict(re.findall(r"(\w+) +E\d\S+ +exit (\d+)", errors.__doc__ or ""))
    real = {name: kind for name, kind in vars(errors).items() if isinstance(kind, type) and issubclass(kind, EnsError)}
    assert {name: str(kind.exit_status) for name, kind in real.items() if name != "EnsError"} == drawn
    assert issubclass(LockedError, FileError)


def test_the_hint_is_the_cure_unless_given() -> None:
    """An error says what to do: the catalog's cure, or better advice where there is some."""
    assert DataError("E302", "x.jpg: the file is empty").hint == CODES["E302"].cure
    assert DataError("E302", "x.jpg: the file is empty", hint="look").hint == "look"


def test_an_error_that_callers_tell_apart_has_a_class_of_its_own() -> None:
    """No module compares an error's code with a literal: Python's way to tell errors apart is their class."""
    found = [
        f"{path.name}:{node.lineno}"
        for path in SOURCES
        for node in ast.walk(tree(path))
        if isinstance(node, ast.Compare)
        and isinstance(node.left, ast.Attribute)
        and node.left.attr == "code"
        and any(isinstance(part, ast.Constant) for side in node.comparators for part in ast.walk(side))
    ]
    assert found == []


@pytest.mark.parametrize("name", OWN_CLASS)
def test_a_class_of_its_own_is_the_only_one_with_its_code(name: str) -> None:
    """A code with a class is given with that class everywhere, or an `except` would miss it."""
    code = OWN_CLASS[name]
    given = {(kind, its) for _, kind, its in calls(r"\w*(Error|Interrupted)") if code == its or kind == name}
    assert given == {(name, code)}


def test_errors_are_json() -> None:
    """With ``--json``, an error is its code, message and hint, with path and details where it has them."""
    error = ModelError("E410", "no", hint="do", path=Path("a") / "한.pth", details=("one", "two"))
    assert json.loads(json.dumps(error.as_dict())) == {
        "code": "E410",
        "message": "no",
        "hint": "do",
        "path": str(Path("a") / "한.pth"),
        "details": ["one", "two"],
    }
    assert set(OptionError("E204", "no").as_dict()) == {"code", "message", "hint"}
    assert str(error) == "[E410] no"


@pytest.mark.parametrize(
    "error",
    [
        PredictionError("E504", "they differ", path=Path("a"), details=("x",)),
        LockedError("E703", "busy"),
        Interrupted("stopped", signal_number=15),
    ],
    ids=lambda error: type(error).__name__,
)
def test_errors_cross_processes(error: EnsError) -> None:
    """An error that a worker process raises arrives as it was: class, message and everything it carries."""
    for twin in (pickle.loads(pickle.dumps(error)), copy.copy(error)):
        assert type(twin) is type(error)
        assert vars(twin) == vars(error)
        assert str(twin) == str(error)


@pytest.mark.parametrize(("number", "status"), [(2, 130), (15, 143)])
def test_interruptions_have_the_shells_status(number: int, status: int) -> None:
    """Stopped by Ctrl-C the status is 130, by SIGTERM 143."""
    assert Interrupted("stopped", signal_number=number).status == status


def test_unknown_codes_are_our_bug() -> None:
    """An error or a notice with a code that is not cataloged cannot be made."""
    for make in (lambda: DataError("E999", "no"), lambda: Notice("W999", "no")):
        with pytest.raises(AssertionError, match="999"):
            make()


@pytest.mark.parametrize(
    ("count", "said"),
    [(0, ""), (1, "0"), (5, "0, 1, 2, 3, 4"), (6, "0, 1, 2, 3, 4 and 1 more"), (12_600, "12,595 more")],
)
def test_long_lists_are_cut(count: int, said: str) -> None:
    """Five names are shown, and the others counted."""
    shown = enumerate_some([str(i) for i in range(count)])
    assert shown.endswith(said)
    assert len(shown) < 60


def test_a_recorder_hears_and_passes_on() -> None:
    """A recorder keeps notices in order and hands them to the next listener."""
    last = Recorder()
    first = Recorder(last)
    for code in ("W301", "I304"):
        first.notice(Notice(code, "odd"))
    assert [notice.code for notice in first.notices] == [notice.code for notice in last.notices] == ["W301", "I304"]
    assert [notice.is_warning for notice in last.notices] == [True, False]


def test_a_text_is_cut_behind_a_word() -> None:
    """A long text ends in dots, behind a whole word; a single word is cut within, and a short text is whole."""
    said = "ONNX Runtime only guarantees support for models stamped with official released onnx opset versions"
    for most in range(20, len(said)):
        cut = cut_text(said, most)
        assert len(cut) <= most
        assert cut.endswith("...")
        assert said.startswith(f"{cut[:-3]} ")
    assert cut_text(said, len(said)) == said
    assert cut_text("a" * 90, 40) == "a" * 37 + "..."
    assert cut_text("first, second and third", 11) == "first..."
