"""Regular expressions from users and recipes, of which some take time that grows with a power of the text's length.

Python's `re` tries all ways to share a text among the repetitions of a pattern. One within another has exponentially
many: ``((a+)+)x`` on 30 letters takes minutes, and nothing but a signal ends it.
"""

from __future__ import annotations

import importlib
import json
import re
import subprocess
import sys
from collections.abc import Iterator, Sequence
from typing import Any

# Python's own parser of patterns, which has no public name
sre: Any = importlib.import_module("re._constants")
sre_parse: Any = importlib.import_module("re._parser")

LIMIT = 20.0  # seconds for all texts
_MOST_LETTERS = 1024  # file names have at most 255 bytes
_MOST = 4  # repetitions of any length; n letters take about n ** 4 / 24 steps
_LONG = 32  # from this many on a repetition counts as one of any length


_MATCH = """
import json, re, sys
pattern, texts = json.load(sys.stdin)
found = map(re.compile(pattern).fullmatch, texts)
json.dump([None if one is None else one.groups() for one in found], sys.stdout)
"""


def match_all(pattern: str, texts: Sequence[str]) -> list[tuple[str | None, ...] | None]:
    """Return the groups of a valid pattern in each text, None where the whole text does not match.

    A pattern that may be slow, or one of very long texts, is tried in a process of its own.

    Raises:
        TimeoutError: that takes more than `LIMIT` seconds.
    """
    if not may_be_slow(pattern) and max(map(len, texts), default=0) <= _MOST_LETTERS:
        found = map(re.compile(pattern).fullmatch, texts)
        return [None if one is None else one.groups() for one in found]
    question = json.dumps([pattern, list(texts)])
    try:
        command = [sys.executable, "-I", "-c", _MATCH]
        done = subprocess.run(command, check=False, input=question, capture_output=True, text=True, timeout=LIMIT)
    except subprocess.TimeoutExpired as err:
        raise TimeoutError(f"it takes more than {LIMIT:g} seconds") from err
    if done.returncode:
        raise TimeoutError(f"it takes too much memory: {done.stderr.strip()[-200:]}")
    return [None if one is None else tuple(one) for one in json.loads(done.stdout)]


def may_be_slow(pattern: str) -> bool:
    """Return whether a valid pattern has a repetition within a repetition, or many of them."""
    depths = list(_repetitions(sre_parse.parse(pattern), 0))
    return any(depths) or len(depths) > _MOST


def _repetitions(parsed: Any, depth: int) -> Iterator[int]:
    """Yield of each repetition of any length inside how many others it is."""
    for operator, value in parsed:
        inner = depth
        if operator in {sre.MAX_REPEAT, sre.MIN_REPEAT, sre.POSSESSIVE_REPEAT} and value[1] >= _LONG:
            yield depth
            inner = depth + 1
        for part in value if isinstance(value, tuple | list) else (value,):
            if isinstance(part, sre_parse.SubPattern):
                yield from _repetitions(part, inner)
            elif isinstance(part, list) and operator is sre.BRANCH:
                for branch in part:
                    yield from _repetitions(branch, inner)
