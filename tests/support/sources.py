"""The code of the three packages, parsed once for all tests that read it."""

from __future__ import annotations

import ast
import functools
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[2]
PACKAGES = ("ensemble", "checkpoints", "exporters")
SOURCES = sorted(path for package in PACKAGES for path in (ROOT / package).rglob("*.py"))


@functools.cache
def tree(path: Path) -> ast.Module:
    """Return a file's syntax tree, which is not to be changed."""
    return ast.parse(path.read_text(encoding="utf-8"))


@functools.cache
def calls(path: Path) -> list[tuple[str, ast.Call]]:
    """Return every call in a file with the dotted name of what is called."""
    return [(ast.unparse(node.func), node) for node in ast.walk(tree(path)) if isinstance(node, ast.Call)]


def strings(path: Path) -> Iterator[tuple[int, str]]:
    """Yield every string of a file with its line: docstrings, help texts and messages; f-strings whole."""
    inside = {id(part) for node in ast.walk(tree(path)) if isinstance(node, ast.JoinedStr) for part in node.values}
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.JoinedStr):
            parts = (part.value if isinstance(part, ast.Constant) else "{}" for part in node.values)
            yield node.lineno, "".join(map(str, parts))
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in inside:
            yield node.lineno, node.value
