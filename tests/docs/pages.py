"""The pages of the documentation: their code blocks, command lines, code spans, links and headings."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

ROOT = Path(__file__).parents[2]
_FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_INDENTED = re.compile(r"(?:^ {4}.*\n|^\n(?= {4}))+", re.MULTILINE)
_SPAN = re.compile(r"`([^`\n]+)`")
_LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")


@dataclass(frozen=True)
class Block:
    """A code block; an indented one has no ``language``."""

    language: str
    text: str

    @property
    def commands(self) -> list[str]:
        """The command lines of a block of a shell: continued lines joined, comments and explanations taken off."""
        lines = self.text.replace("\\\n", " ").splitlines()
        return [re.split(r"\s+#\s|\s{2,}(?![\s-])", line.strip())[0] for line in lines if line.strip()]


@dataclass(frozen=True)
class Page:
    """One Markdown file, by its path below the top of the repository."""

    name: str

    @property
    def path(self) -> Path:
        """Where the file is."""
        return ROOT / self.name

    @cached_property
    def text(self) -> str:
        """The whole file."""
        return self.path.read_text(encoding="utf-8")

    @cached_property
    def blocks(self) -> list[Block]:
        """The fenced code blocks in order, then the indented ones."""
        fenced = [Block(language, text) for language, text in _FENCE.findall(self.text)]
        indented = [textwrap.dedent(text).strip("\n") for text in _INDENTED.findall(self.prose)]
        return fenced + [Block("", text) for text in indented]

    @cached_property
    def prose(self) -> str:
        """The text without its fenced blocks."""
        return _FENCE.sub("", self.text)

    @property
    def commands(self) -> Iterator[str]:
        """Every line of ``ens`` in a code block."""
        for block in self.blocks:
            if block.language in {"bash", ""}:
                yield from (line for line in block.commands if line.startswith("ens "))

    @property
    def spans(self) -> list[str]:
        """Every code span outside the code blocks."""
        return _SPAN.findall(_INDENTED.sub("", self.prose))

    @property
    def links(self) -> list[str]:
        """Where the links and images lead."""
        return _LINK.findall(self.prose)

    @property
    def anchors(self) -> set[str]:
        """What ``#...`` may name, as GitHub and mkdocs make it from the headings."""
        headings = re.findall(r"^#+ (.+)$", self.prose, re.MULTILINE)
        return {re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-") for heading in headings}


DOCS = tuple(Page(path.relative_to(ROOT).as_posix()) for path in sorted((ROOT / "docs").glob("*.md")))
README = Page("README.md")
PAGES = (README, Page("CONTRIBUTING.md"), Page("SECURITY.md"), *DOCS)
