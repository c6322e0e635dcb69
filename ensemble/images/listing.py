"""Match ids with image files, and report every kind of mismatch."""

from __future__ import annotations

import errno
import hashlib
import os
import re
import stat
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Sequence, Set
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

from ensemble.errors import DataError, NoImagesError, enumerate_some, show_spaces
from ensemble.events import SILENT, Listener, Notice
from ensemble.ids import COMPARISONS, find_id_column, has_image_suffix, notice_loose, usual_id_column
from ensemble.images.decode import ARRAY_SUFFIX, SUFFIXES, read_error
from ensemble.images.formats import HEAD, NOT_DECODED, format_of
from ensemble.images.storage import RemoteImage
from ensemble.submission.long_format import find_long_rows
from ensemble.text.csv_table import read_table
from ensemble.text.unicode_text import compose


@dataclass(frozen=True, slots=True)
class Listing:
    """The images of a run, in order: ``ids[i]`` is the file ``paths[i]`` of ``sizes[i]`` bytes, or ``remote[i]``."""

    ids: tuple[str, ...]
    paths: tuple[Path, ...]
    sizes: tuple[int, ...]
    remote: tuple[RemoteImage, ...] = ()

    def __len__(self) -> int:
        return len(self.ids)

    def place(self, row: int) -> Path | RemoteImage:
        """Return where to read one image."""
        return self.remote[row] if self.remote else self.paths[row]

    def cut(self, start: int, stop: int) -> Listing:
        """Return rows ``start`` to ``stop``, with absolute paths."""
        paths = tuple(path.absolute() for path in self.paths[start:stop])
        return Listing(self.ids[start:stop], paths, self.sizes[start:stop], self.remote[start:stop])

    @property
    def sha256(self) -> str:
        """The hash of the ids and their order."""
        return hashlib.sha256("\0".join(self.ids).encode()).hexdigest()


def read_ids(
    path: Path,
    *,
    id_column: str | None = None,
    classes: Callable[[], Sequence[str]] | None = None,
    listener: Listener = SILENT,
) -> tuple[str, ...]:
    """Read the ids of a sample submission or list: the column that is named or usual, else the first one.

    A sample with one row per image and class lists each image once, in the order of its first row. ``classes`` returns
    the names of the classes, and is called where ids repeat, or end alike.

    Raises:
        DataError: E313 when an id is repeated, E322 when the column or the header line is missing.
    """
    table = read_table(path, listener=listener)
    name = find_id_column(table, named=id_column, listener=listener)
    if _is_image(name):  # without a header the first image would be lost
        raise DataError("E322", f"{path.name}: the first line must name the columns, got {name!r}", path=path)
    among = {name, *(one for one in table.header if usual_id_column([one]))}  # numbers of rows are called ids as well
    if classes is not None and any(_may_be_long(table.column(one)) for one in among):
        place = table.header.index(name)
        rest = [i for i in range(len(table.header)) if i != place]
        found = find_long_rows(table, place, rest, classes(), asked=False)
        if found is not None:
            count = f"{len(table.rows):,} rows of one image and class each: {len(found.ids):,} images"
            listener.notice(Notice("I382", f"{path.name}: {count}, such as {found.ids[0]}"))
            return found.ids
    return table.without_duplicates(name)


def _may_be_long(cells: Sequence[str]) -> bool:
    """Return True if ids repeat or have few endings, so that each may be of one image and class."""
    endings = {re.split(r"[_\-:/|. #@]", cell)[-1] for cell in cells}
    return len(cells) > 1 and (len(set(cells)) < len(cells) or 2 * len(endings) <= len(cells))


def list_images(root: Path, ids: Sequence[str] | None = None, *, listener: Listener = SILENT) -> Listing:
    """Find the images below ``root``: those of ``ids`` in their order, or all of them, sorted by name.

    An id is a path relative to ``root`` with ``/`` between folders. It matches a file exactly, or else after Unicode
    normalization (file names from macOS are decomposed), or else, with a notice, the only image that it is without
    surrounding spaces, ``./``, its suffix or its folder; the id's own spelling is kept. Files and folders whose names
    begin with a dot are ignored. Without ``ids``, files whose suffix is not an image's are listed if they begin like an
    image (I333), and the others are counted (I332). Where none has an image's suffix, ``.npy`` arrays are images.

    Raises:
        DataError: E311 two files normalize to one id, E312 only another case exists, E313 an id is repeated, E314 files
            are missing, E316 there are no images, E318 a folder may not be read, E320 not a regular file, E321 the path
            is too long, E323 an id leaves ``root``, E327 a name is not valid Unicode, E383 an id without suffix or
            folder is several images.
    """
    linked: list[str] = []
    files = set(_walk(root, linked))
    if linked:
        message = f"{_linked(linked)} below {root} were not entered: {enumerate_some(sorted(linked))}"
        listener.notice(Notice("I317", message, root))
    images = _images_of(files)
    if ids is None:
        by_content = sorted(name for name in files.difference(images) if has_image_content(root / name))
        if by_content and not any(map(_is_image, images)):
            images = []  # arrays beside images without a suffix are none
        tell_unlisted(root, by_content, files.difference(images, by_content), listener)
        images = sorted([*images, *by_content])
    if not images and files.isdisjoint(ids or ()):
        found = f"no images below {root}: {len(files)} other files"
        if linked:
            found += f", and {_linked(linked)} that are not entered: {enumerate_some(sorted(linked))}"
        raise NoImagesError("E316", found, path=root, hint=FOLLOW_LINKS if linked else None)
    wanted = tuple(images if ids is None else ids)
    if not wanted:
        raise NoImagesError("E316", "the id list is empty")
    repeated = [i for i, count in Counter(wanted).items() if count > 1]
    if repeated:
        raise DataError("E313", f"{len(repeated)} duplicate ids: {enumerate_some(repeated)}")
    names = match_ids(root, wanted, files, listener, linked=linked)
    extra = len(set(images) - set(names))
    if extra:
        listener.notice(Notice("I315", f"{extra:,} images below {root} are not listed and are ignored", root))
    return _with_sizes(wanted, tuple(root / name for name in names))


def has_image_content(path: Path) -> bool:
    """Return whether a file without an image's suffix begins like an image that `read_image` decodes."""
    if path.suffix.lower() in NOT_DECODED:
        return False
    try:
        if not stat.S_ISREG(os.stat(path).st_mode):  # a FIFO would block
            return False
        with path.open("rb") as file:
            return format_of(file.read(HEAD)) is not None
    except OSError:
        return False


def tell_unlisted(
    place: Path | str, by_content: Sequence[str], passed_over: Collection[str], listener: Listener
) -> None:
    """Name files that are images by their content alone, and files that were passed over."""
    if by_content:
        some = enumerate_some(list(by_content))
        are, their = ("is an image", "its") if len(by_content) == 1 else ("are images", "their")
        message = f"{_count(by_content)} in {place} {are} by {their} content alone: {some}"
        listener.notice(Notice("I333", message))
    if passed_over:
        some = enumerate_some(sorted(passed_over))
        were, are = ("was", "it is no image") if len(passed_over) == 1 else ("were", "they are not images")
        message = f"{_count(passed_over)} in {place} {were} passed over, as {are}: {some}"
        listener.notice(Notice("I332", message))


def _count(names: Collection[str]) -> str:
    return f"{len(names):,} file{'s' if len(names) > 1 else ''}"


def _images_of(files: Collection[str]) -> list[str]:
    """Return the files with an image's suffix, sorted; where there are none, the arrays."""
    images = sorted(name for name in files if _is_image(name))
    return images or sorted(name for name in files if name.lower().endswith(ARRAY_SUFFIX))


def _is_image(name: str) -> bool:
    return os.path.splitext(name)[1].lower() in SUFFIXES


def match_ids(
    root: Path | None, ids: Sequence[str], files: Set[str], listener: Listener, *, linked: Collection[str] = ()
) -> tuple[str, ...]:
    """Return the name of each id's file; ``linked`` are folders that were not entered, in which it may be.

    Raises:
        DataError: E311, E312, E314, E323 and E327 as `list_images`.
    """
    unwritable = [ascii(i) for i in ids if not _is_unicode(i)]
    if unwritable:
        raise DataError("E327", f"{len(unwritable)} names are not UTF-8: {enumerate_some(unwritable)}", path=root)
    escaping = [i for i in ids if _leaves(i)]
    if escaping:
        raise DataError("E323", f"{len(escaping)} ids leave the image folder: {enumerate_some(escaping)}", path=root)
    by_normal: dict[str, list[str]] = {}
    for name in files:
        by_normal.setdefault(compose(name), []).append(name)
    by_id: list[str | None] = []
    missing: list[str] = []
    for i in ids:
        candidates = by_normal.get(compose(i), [])
        if len(candidates) > 1:
            raise DataError(
                "E311", f"two files are {i!r} after normalization: {', '.join(map(ascii, sorted(candidates)))}"
            )
        by_id.append(candidates[0] if candidates else None)
        if not candidates:
            missing.append(i)
    if missing:
        loose = _match_loosely(missing, files - set(filter(None, by_id)), root, listener)
        if loose is not None:
            return tuple(name or loose[i] for i, name in zip(ids, by_id, strict=True))
        by_fold = {_fold(name): name for name in sorted(files)}
        cased = [(i, by_fold[_fold(i)]) for i in missing if _fold(i) in by_fold]
        if cased:
            raise DataError(
                "E312",
                f"{len(cased)} listed images differ from files in letter case: {cased[0][0]} is {cased[0][1]}",
                path=root,
            )
        message = f"{len(missing):,} of {len(ids):,} listed images are missing: {enumerate_some(missing)}"
        behind = sorted(name for name in linked if any(one.startswith(f"{name}/") for one in missing))
        if behind:
            message += f"; not entered: {_linked(behind)}, {enumerate_some(behind)}"
        raise DataError("E314", message, path=root, hint=FOLLOW_LINKS if behind else None)
    found = tuple(name for name in by_id if name is not None)
    normalized = sum(i != name for i, name in zip(ids, found, strict=True))
    if normalized:
        listener.notice(Notice("I310", f"{normalized:,} names matched after Unicode normalization", root))
    return found


def _match_loosely(ids: Sequence[str], files: Set[str], root: Path | None, listener: Listener) -> dict[str, str] | None:
    """Return the images of ids that are spelled otherwise, by the strictest comparison that finds all, if one does.

    Raises:
        DataError: E383 when an id is several images.
    """
    images = _images_of(files)
    for comparison in COMPARISONS:
        if comparison.drops_suffix and any(map(has_image_suffix, ids)):
            continue
        by_key: dict[str, list[str]] = {}
        for name in images:
            by_key.setdefault(comparison.key(name), []).append(name)
        found = {i: by_key.get(comparison.key(i), []) for i in ids}
        if not all(found.values()):
            continue
        several = next((i for i, names in found.items() if len(names) > 1), None)
        if several is not None:
            names = enumerate_some(found[several])
            raise DataError("E383", f"{show_spaces(several)} is several images {comparison.what}: {names}", path=root)
        matched = {i: names[0] for i, names in found.items()}
        taken = Counter(matched.values())
        twice = next((name for name, count in taken.items() if count > 1), None)
        if twice is not None:
            raise DataError("E383", f"{twice} is the image of several ids {comparison.what}", path=root)
        notice_loose(list(matched), list(matched.values()), comparison.what, listener)
        return matched
    return None


def _fold(name: str) -> str:
    return compose(name).casefold()


def _is_unicode(name: str) -> bool:
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True


def _leaves(image_id: str) -> bool:
    return image_id.startswith("/") or ".." in image_id.replace(os.sep, "/").split("/") or "\0" in image_id


FOLLOW_LINKS = "give the folder that the links lead to, or link the image files in folders of their own (cp -rs)"
"""What to do where the images are behind links to folders, which could lead in circles."""


def _linked(names: Collection[str]) -> str:
    return f"{len(names):,} linked folder{'s' if len(names) > 1 else ''}"


def _walk(root: Path, linked: list[str]) -> Iterator[str]:
    """Iterate over the ids of all files below ``root``; hidden folders, and those that are ``linked``, are left out."""

    def fail(err: OSError) -> NoReturn:
        if err.filename == str(root) and err.errno in {errno.ENOENT, errno.ENOTDIR}:
            raise NoImagesError("E316", f"{root} is not a folder", path=root) from err
        raise read_error(err, Path(err.filename)) from err

    for folder, subfolders, names in os.walk(root, onerror=fail, followlinks=False):
        kept = [name for name in subfolders if not name.startswith(".")]
        # a folder called x.jpg is listed like a file, so that it is reported and not overlooked
        odd = [name for name in kept if _is_image(name)]
        subfolders[:] = kept
        below = Path(folder).relative_to(root).as_posix()
        prefix = "" if below == "." else f"{below}/"
        linked += [prefix + name for name in kept if os.path.islink(os.path.join(folder, name))]
        yield from (prefix + name for name in [*names, *odd] if not name.startswith("."))


def _with_sizes(ids: tuple[str, ...], paths: tuple[Path, ...]) -> Listing:
    sizes: list[int] = []
    missing: list[str] = []
    irregular: list[str] = []
    for i, path in zip(ids, paths, strict=True):
        try:
            status = os.stat(path)
        except (FileNotFoundError, NotADirectoryError):
            missing.append(i)
            continue
        except OSError as err:
            raise read_error(err, path) from err
        if stat.S_ISREG(status.st_mode):
            sizes.append(status.st_size)
        else:
            irregular.append(i)
    if missing:
        raise DataError(
            "E314", f"{len(missing):,} of {len(ids):,} listed images are missing: {enumerate_some(missing)}"
        )
    if irregular:
        raise DataError("E320", f"{len(irregular)} listed images are not regular files: {enumerate_some(irregular)}")
    return Listing(ids, paths, tuple(sizes))
