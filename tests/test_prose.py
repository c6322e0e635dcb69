"""The English of the product: phrases that the field has better words for, and docstrings that are no imperatives."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

from ensemble.cli import ens
from ensemble.error_codes import CODES
from tests.support.sources import ROOT, SOURCES, strings, tree

THINGS = "view|fold|class|member|image|axis|group|person|checkpoint|epoch|run|step|second"
COUNTED = "images?|rows?|files?|columns?|batches|times|values?|outputs?"
# pattern: what to write instead
PHRASES = {
    r"go(es|ing)? on (where|with)\b|goes on\b": "resume, continue",
    r"\bmend(s|ed|ing)?\b": "fix",
    r"\bof equals\b": "the first wins on ties",
    r"\bno such (?!file or directory)": "say what does not exist",
    r"\banew\b": "again",
    rf"\b(one|an?) [a-z]+ (a|each) ({THINGS})\b": "per",
    rf"\b({COUNTED}) an? ({THINGS})\b": "per",
    r"\bwithout a word\b": "crashed, silently",
    r"\bfound out\b": "inferred, detected",
}
SUMMARY = re.compile(r"(What|Whether|How|Which|Where|When|Who|Whose|Why)\b(?!.*\?)")


def phrases_in(text: str) -> list[str]:
    """The phrases of the list that a text has, with what to write instead."""
    flat = " ".join(text.split())
    found = ((re.search(pattern, flat, re.IGNORECASE), better) for pattern, better in PHRASES.items())
    return [f"{match[0]!r}: {better}" for match, better in found if match is not None]


def name(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def test_texts_avoid_the_phrases_of_the_list() -> None:
    """No docstring, help text or message has a phrase for which the field has a word."""
    texts = ((f"{name(path)}:{line}", text) for path in SOURCES for line, text in strings(path))
    found = [f"{where} {one}" for where, text in texts for one in phrases_in(text)]
    assert found == []


def test_summaries_are_no_questions() -> None:
    """A docstring begins with an imperative or a noun (PEP 257), not with What, Whether, How, Which or Where."""
    found = [
        f"{name(path)}:{getattr(node, 'lineno', 1)} {text.splitlines()[0]}"
        for path in SOURCES
        for node in ast.walk(tree(path))
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef)
        and (text := ast.get_docstring(node)) is not None
        and SUMMARY.match(text)
    ]
    assert found == []


@pytest.mark.parametrize("command", ens.commands)
def test_help_texts_avoid_the_phrases_of_the_list(command: str) -> None:
    """A command's help has none of the phrases, and every option but --json and --help says what it does."""
    helps = [ens.commands[command].help or "", *(str(getattr(one, "help", "")) for one in ens.commands[command].params)]
    assert [one for text in helps for one in phrases_in(text)] == []
    options = [one for one in ens.commands[command].params if one.param_type_name == "option"]
    assert [one.name for one in options if not getattr(one, "help", None)] == []


@pytest.mark.parametrize("code", CODES)
def test_codes_avoid_the_phrases_of_the_list(code: str) -> None:
    """Neither cause nor cure has one of the phrases."""
    assert phrases_in(" ".join(CODES[code])) == []


@pytest.mark.parametrize(
    "text", ["it goes on where it was", "mend the file", "no such column", "one file a view", "12 images a second"]
)
def test_the_list_finds_its_phrases(text: str) -> None:
    """Each of these is found, and their replacements are not."""
    assert phrases_in(text) != []
    assert phrases_in("it resumes; fix the file; there is no column x; one file per view; 12 images per second") == []
