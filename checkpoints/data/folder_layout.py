"""Training data in one folder per class, also below a folder per split."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from checkpoints.data.mask_contest import Row
from checkpoints.data.splits import TEST, TRAINING, VALIDATION
from ensemble.errors import DataError, enumerate_some
from ensemble.events import SILENT, Listener, Notice
from ensemble.images.listing import FOLLOW_LINKS, Listing, list_images
from ensemble.label_file import ClassNames, whole
from ensemble.labels import LabelSpace
from ensemble.text.plain_numbers import is_count

_TABLES = {".csv", ".tsv", ".parquet", ".xlsx", ".xls", ".ods"}
_SPLITS = TRAINING | VALIDATION | TEST


@dataclass(frozen=True, slots=True)
class FolderData:
    """The rows of the images in the folders of the classes, and their label space; ids are relative to ``images``."""

    rows: tuple[Row, ...]
    labels: LabelSpace
    images: Path


def read_folders(place: Path, names: ClassNames | None = None, *, listener: Listener = SILENT) -> FolderData:
    """Read a folder per class; the classes are the sorted names, or numbers by value.

    A single folder around those of the classes is entered. Below folders named train and valid, both are read, and a
    test folder is left out; each is a notice I338 or W338.

    Raises:
        DataError: E340 when images are in no class's folder or a folder is none of the given classes; the codes of
            `list_images`.
    """
    listing = list_images(place, listener=listener)
    prefix = _enter(listing.ids)
    if prefix:
        listener.notice(Notice("I338", f"the classes are the folders in {place / prefix}", place))
    below = [name.removeprefix(prefix) for name in listing.ids]
    tops = {name.partition("/")[0].lower() for name in below if "/" in name}
    splits = tops & _SPLITS
    classes = [name.split("/")[:-1] for name in below]
    kept = list(range(len(below)))
    if len(tops) > 1 and splits and tops <= _SPLITS | {"unlabeled", "unlabelled", "unsup"} and splits & TRAINING:
        classes, kept = _read_splits(place, below, listener)
    elif len(tops) > 1 and len(splits & (TRAINING | VALIDATION | TEST)) > 1 and splits & TRAINING:
        some = enumerate_some(sorted(tops))
        raise DataError(
            "E340",
            f"{place} has folders of splits and others: {some}",
            path=place,
            hint="give the folder of one split, such as train",
        )
    loose = [below[i] for i in kept if not classes[i]]
    if loose:
        message = f"{place} has no train.csv, and {len(loose)} images are in no class's folder: {enumerate_some(loose)}"
        raise DataError("E340", message, path=place, hint=_hint(place))
    _require_classes(place, {classes[i][0] for i in kept})
    deep = {classes[i][0] for i in kept if len(classes[i]) > 1}
    if deep:
        some = enumerate_some(sorted(deep))
        message = f"the classes are the top folders; the folders below {some} are not told apart"
        listener.notice(Notice("I338", message, place))
    return _rows(place, prefix, listing, kept, [classes[i][0] for i in kept], names)


def _require_classes(place: Path, classes: set[str]) -> None:
    if len(classes) < 2:
        tables = sorted(str(path.relative_to(place)) for path in place.rglob("*") if path.suffix.lower() in _TABLES)
        hint = f"give the table with the labels, such as {place / tables[0]}" if tables else None
        linked = sorted(path.name for path in place.iterdir() if path.is_symlink() and path.is_dir())
        if linked and not tables:
            hint = f"{enumerate_some(linked)} are links to folders, which are not entered: {FOLLOW_LINKS}"
        message = f"{place}: all images are in one folder, {', '.join(classes) or place.name}, so there is one class"
        raise DataError("E340", message, path=place, hint=hint)


def _enter(ids: Sequence[str]) -> str:
    """Return the path, with a slash at the end, of single folders around those with the images."""
    prefix = ""
    while True:
        rest = [name.removeprefix(prefix) for name in ids]
        tops = {name.partition("/")[0] for name in rest}
        inner = {name.split("/")[1] for name in rest if name.count("/") > 1}
        if len(tops) > 1 or any(name.count("/") < 2 for name in rest) or len(inner) < 1:
            return prefix
        if len(inner) < 2 and any(name.count("/") < 3 for name in rest):
            return prefix  # one class in one folder
        prefix += f"{tops.pop()}/"


def _read_splits(place: Path, below: Sequence[str], listener: Listener) -> tuple[list[list[str]], list[int]]:
    """Return the folders of each image below its split, and the images of training and validation."""
    classes = [name.split("/")[1:-1] for name in below]
    split = [name.partition("/")[0].lower() for name in below]
    kept = [i for i, name in enumerate(split) if name in TRAINING | VALIDATION]
    used = sorted({below[i].partition("/")[0] for i in kept})
    if len(used) > 1:
        message = f"{' and '.join(used)} are read as one data set, which is divided into folds again"
        listener.notice(Notice("I338", f"{message} (give {place / used[0]} to read it alone)", place))
    of_class: dict[str, set[str]] = {}
    for i in kept:
        of_class.setdefault(classes[i][0] if classes[i] else "", set()).add(below[i].partition("/")[0])
    for name in used if len(used) > 1 else ():
        alone = sorted(one for one, splits in of_class.items() if splits == {name} and one)
        if alone:
            message = (
                f"only {name} has a folder {enumerate_some(alone)}: is it a class of its own, or spelled otherwise?"
            )
            listener.notice(Notice("W338", message, place))
    others = sorted({name.partition("/")[0] for i, name in enumerate(below) if i not in set(kept)})
    if others:
        count = len(below) - len(kept)
        message = f"{count:,} images in {enumerate_some(others)} are left out"
        listener.notice(Notice("W338", f"{message}: only training and validation data are read", place))
    return classes, kept


def _hint(place: Path) -> str | None:
    tables = sorted(path.name for path in place.iterdir() if path.suffix.lower() in _TABLES)
    if not tables:
        return None
    return f"give the table instead of the folder, such as {place / tables[0]} (tables here: {enumerate_some(tables)})"


def _rows(
    place: Path, prefix: str, listing: Listing, kept: Sequence[int], folders: Sequence[str], names: ClassNames | None
) -> FolderData:
    numbers = {name: whole(name) for name in set(folders)}
    if names is None:
        numeric = all(is_count(name) for name in numbers)
        labels = LabelSpace.flat(sorted(numbers, key=int if numeric else None))
        position = {name: i for i, name in enumerate(labels.names)}
    else:
        labels = names.space
        position = {name: i for i, name in enumerate(labels.names)}
        if not any(name in position for name in numbers):  # folders 0, 1, ... with names from a file
            position = {name: names.number[n] for name, n in numbers.items() if n is not None and n in names.number}
    unknown = sorted(set(folders) - position.keys())
    if unknown:
        raise DataError("E340", f"{place}: {unknown[0]!r} is none of the {len(labels)} classes", path=place)
    rows = []
    for i, folder in zip(kept, folders, strict=True):
        name = listing.ids[i].removeprefix(prefix)  # nothing groups the images, so each is a group of its own
        rows.append(Row(name, name, None, None, None, position[folder], listing.paths[i]))
    return FolderData(tuple(rows), labels, place / prefix if prefix else place)
