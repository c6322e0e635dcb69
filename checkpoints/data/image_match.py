"""Match the cells of a table with image files, as contests write them: with or without suffix, folder or both."""

from __future__ import annotations

import os
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath

from ensemble.errors import DataError, enumerate_some
from ensemble.ids import without_query
from ensemble.images.decode import SUFFIXES
from ensemble.text.unicode_text import compose

# folders that hold something else than the images to train on, beside those that do
_UNLIKELY = ("test", "mask", "thumb", "annot", "label", "segment", "eval", "pred", "sample", "depth")
_LIKELY = ("train", "image", "img", "photo", "picture")


@dataclass(frozen=True, slots=True)
class Matched:
    """The file of each cell, relative to the image folder, or None; and the cells whose file has another suffix.

    ``folders`` are all folders in which the ambiguous cells were found, the chosen one first.
    """

    files: tuple[str | None, ...]
    other_suffix: int = 0
    folders: tuple[str, ...] = ()


class ImageIndex:
    """The image files of a folder by every way to write them: any last part of their path, with or without suffix."""

    def __init__(self, files: Iterable[str]) -> None:
        self.files = tuple(files)
        self._with_suffix: dict[str, list[int]] = defaultdict(list)
        self._without: dict[str, list[int]] = defaultdict(list)
        self._folders: dict[str, set[str]] = defaultdict(set)
        for number, name in enumerate(self.files):
            parts = normalize(name).split("/")
            stem = os.path.splitext(parts[-1])[0]
            for start in range(len(parts)):
                self._with_suffix["/".join(parts[start:])].append(number)
                self._without["/".join([*parts[start:-1], stem])].append(number)
                if start + 1 < len(parts):
                    self._folders["/".join(parts[start:-1])].add("/".join(parts[:-1]))

    def count(self, cells: Iterable[str]) -> int:
        """Return how many of the cells are a file."""
        return sum(bool(self._find(cell)[0]) for cell in cells)

    def are_unique(self, cells: Iterable[str]) -> bool:
        """Return True if each cell is the end of the path of one file: of one only, with all its parts."""
        return all(
            len(numbers) == 1 and length == normalize(cell).count("/") + 1
            for cell in cells
            for numbers, length, _ in [self._find(cell)]
        )

    def below(self, cell: str) -> tuple[str, ...]:
        """Return the files in the one folder that a cell names, and none if it names no folder or several."""
        found = self._folders.get(normalize(cell).rstrip("/"), set())
        if len(found) != 1:
            return ()
        (folder,) = found
        return tuple(name for name in self.files if normalize(name).startswith(f"{folder}/"))

    def match(self, cells: Sequence[str], *, table: str) -> Matched:
        """Return the file of each cell.

        A cell is a path of which leading folders may be missing or too many, with the file's suffix, another one or
        none. Where several folders have a file of a name, one folder is used for all: that with the most of the cells,
        and among equals the one whose name says images or train.

        Raises:
            DataError: E336 when several files fit and nothing tells them apart.
        """
        found = [self._find(cell) for cell in cells]
        counts = Counter(prefix for numbers, length, _ in found for prefix in self._prefixes(numbers, length))
        chosen: str | None = None
        files: list[str | None] = []
        ambiguous: set[str] = set()
        for cell, (numbers, length, _) in zip(cells, found, strict=True):
            if len(numbers) < 2:
                files.append(self.files[numbers[0]] if numbers else None)
                continue
            prefixes = self._prefixes(numbers, length)
            if len(set(prefixes)) < len(prefixes):
                some = enumerate_some([self.files[number] for number in numbers])
                raise DataError(
                    "E336", f"{table}: {cell!r} is several images: {some}", hint="write the ids with their suffix"
                )
            ambiguous |= set(prefixes)
            best = max(prefixes, key=lambda prefix: _preference(prefix, counts))
            if sum(_preference(prefix, counts) == _preference(best, counts) for prefix in prefixes) > 1:
                some = enumerate_some([prefix or "." for prefix in sorted(prefixes)])
                raise DataError(
                    "E336",
                    f"{table}: {cell!r} is an image in several folders: {some}",
                    hint="name the folder of the training images with --images",
                )
            chosen = best
            files.append(self.files[numbers[prefixes.index(best)]])
        first = [] if chosen is None else [chosen]
        folders = (*first, *sorted(ambiguous - set(first)))
        return Matched(tuple(files), sum(bool(numbers) and other for numbers, _, other in found), folders)

    def _find(self, cell: str) -> tuple[list[int], int, bool]:
        """Return the files of a cell, how many parts of their path it has, and if their suffix is another one."""
        parts = normalize(cell).split("/")
        if not parts[-1]:
            return [], 0, False
        for start in range(len(parts)):
            key = "/".join(parts[start:])
            numbers = self._with_suffix.get(key) or self._without.get(key)
            if numbers:
                return numbers, len(parts) - start, False
        stem, suffix = os.path.splitext(parts[-1])
        if suffix.lower() in SUFFIXES or suffix.lower() in {".dcm", ".dicom", ".jfif", ".npy"}:
            for start in range(len(parts)):
                numbers = self._without.get("/".join([*parts[start:-1], stem]))
                if numbers:
                    return numbers, len(parts) - start, True
        return [], 0, False

    def _prefixes(self, numbers: Sequence[int], length: int) -> list[str]:
        return ["/".join(self.files[number].split("/")[:-length]) for number in numbers]


def normalize(cell: str) -> str:
    """Return a cell as a relative path with ``/``: without spaces around it, ``./`` and backslashes, in NFC.

    Of a URL the query and the fragment are no part of the path.
    """
    text = without_query(compose(cell.strip().strip("\u00a0\ufeff").replace("\\", "/")))
    while text.startswith("./"):
        text = text[2:]
    return text


def without_zeros(cell: str) -> str:
    """Return the stem of a file's name without leading zeros, which spreadsheets remove from numbers."""
    return PurePosixPath(normalize(cell)).stem.lstrip("0")


def _preference(prefix: str, counts: Counter[str]) -> tuple[int, int]:
    name = prefix.lower()
    likely = sum(word in name for word in _LIKELY) - 2 * sum(word in name for word in _UNLIKELY)
    return counts[prefix], likely
