"""List images that are not files of a local folder: in object storage, tar shards or Parquet, through fsspec.

    s3://bucket/images                  a folder in any storage that fsspec knows; ids are paths below it
    s3://bucket/shards/*.tar            WebDataset shards, not compressed; ids are the names of their images
    s3://bucket/part-*.parquet          columns ``id`` and ``image``: bytes, or a struct with ``bytes``

Each image is read only when it is decoded, on whichever machine decodes it.
"""

from __future__ import annotations

import os
import tarfile
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from ensemble.errors import DataError, NoImagesError, OptionError, enumerate_some
from ensemble.events import SILENT, Listener, Notice
from ensemble.images.decode import SUFFIXES
from ensemble.images.formats import HEAD, NOT_DECODED, format_of
from ensemble.images.listing import Listing, list_images, match_ids, tell_unlisted
from ensemble.images.storage import RemoteImage, open_storage
from ensemble.install import install_command
from ensemble.text.bounded_tables import require_pyarrow

_SIDECARS = frozenset({".cls", ".csv", ".json", ".jsonl", ".npy", ".txt", ".xml", ".yaml"})  # not worth a request each
_TABLES, _TARS = (".parquet",), (".tar",)
_ID_COLUMNS = ("id", "imageid", "image_id")


def is_remote(images: str | Path) -> bool:
    """Return whether images are read through fsspec: a URL, tar shards or Parquet."""
    return "://" in str(images) or Path(images).suffix.lower() in (*_TABLES, *_TARS)


def list_images_at(images: str | Path, ids: Sequence[str] | None = None, *, listener: Listener = SILENT) -> Listing:
    """List images at any location: as `list_images` for a local folder, and with the same rules for ids elsewhere.

    Raises:
        OptionError: E205 when fsspec, or what it needs for this storage, is not installed.
        DataError: E313 when a name occurs twice, E316 when there are no images, E319 when the storage cannot be read;
            others as `list_images`.
    """
    if not is_remote(images):
        return list_images(Path(images), ids, listener=listener)
    try:
        unlisted = _Unlisted(sniff=ids is None)
        found = list(_find(str(images), unlisted))
    except ImportError as err:
        # each kind of storage needs its own package, which fsspec's message names
        hint = install_command(extra="ray") if err.name == "fsspec" else "install that package"
        raise OptionError("E205", f"{images} needs a package: {err}", hint=hint) from err
    except DataError:
        raise
    except Exception as err:
        raise DataError("E319", f"{images} cannot be read: {err}") from err
    if not found:
        raise NoImagesError("E316", f"no images in {images}")
    repeated = [name for name, count in Counter(image.name for image in found).items() if count > 1]
    if repeated:
        raise DataError("E313", f"{len(repeated)} names are in {images} twice: {enumerate_some(repeated)}")
    if ids is None:
        tell_unlisted(str(images), unlisted.by_content, unlisted.passed_over, listener)
    by_name = {image.name: image for image in sorted(found, key=lambda image: image.name)}
    wanted = tuple(by_name if ids is None else ids)
    chosen = [by_name[name] for name in match_ids(None, wanted, set(by_name), listener)]
    extra = len({image for image in found if _has_image_suffix(image.name)} - set(chosen))
    if extra:
        listener.notice(Notice("I315", f"{extra:,} images in {images} are not listed and are ignored"))
    return Listing(wanted, (), tuple(image.size for image in chosen), tuple(chosen))


@dataclass(slots=True)
class _Unlisted:
    """Files without an image's suffix: images by their content, and others, both by name.

    With an id list (``sniff`` is False) none is opened, and the list decides which of them are images.
    """

    sniff: bool
    by_content: list[str] = field(default_factory=list)
    passed_over: list[str] = field(default_factory=list)

    def takes(self, name: str, read_head: Callable[[], bytes]) -> bool:
        """Return whether a file is listed."""
        if _is_hidden(name):
            return False
        if _has_image_suffix(name) or not self.sniff:
            return True
        suffix = os.path.splitext(name)[1].lower()
        is_image = suffix not in NOT_DECODED | _SIDECARS and format_of(read_head()) is not None
        (self.by_content if is_image else self.passed_over).append(name)
        return is_image


def _find(url: str, unlisted: _Unlisted) -> Iterator[RemoteImage]:
    fs, root = open_storage(url)
    suffix = os.path.splitext(root)[1].lower()
    if suffix in (*_TABLES, *_TARS):
        for path in sorted(fs.glob(root)):
            with fs.open(path, "rb") as file:
                if suffix in _TABLES:
                    yield from _rows(file, fs.unstrip_protocol(path))
                else:
                    yield from _members(file, fs.unstrip_protocol(path), unlisted)
        return
    for path, info in fs.find(root, detail=True).items():
        name = path.removeprefix(root.rstrip("/") + "/")
        if unlisted.takes(name, partial(fs.cat_file, path, start=0, end=HEAD)):
            yield RemoteImage(fs.unstrip_protocol(path), name, int(info["size"]))


def _members(file: Any, url: str, unlisted: _Unlisted) -> Iterator[RemoteImage]:
    """Iterate over the images of a tar; other files of a sample, such as its class, are passed over."""
    try:
        with tarfile.open(fileobj=file, mode="r:") as tar:
            for member in tar:
                if member.isreg() and unlisted.takes(member.name.removeprefix("./"), partial(_read_head, tar, member)):
                    yield RemoteImage(url, member.name.removeprefix("./"), member.size, start=member.offset_data)
    except tarfile.TarError as err:
        raise DataError("E319", f"{url} is not an uncompressed tar: {err}") from err


def _rows(file: Any, url: str) -> Iterator[RemoteImage]:
    """Iterate over the rows of a Parquet file without reading images; each ``size`` is the row group's image column."""
    require_pyarrow(url)
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        table = pq.ParquetFile(file)
        columns = {name.lower(): name for name in table.schema_arrow.names}
        name = next((columns[key] for key in _ID_COLUMNS if key in columns), None)
        if name is None or "image" not in table.schema_arrow.names:
            raise DataError("E322", f"{url} needs the columns id and image, got {', '.join(columns.values())}")
        kind = table.schema_arrow.field("image").type
        if not _holds_bytes(kind):
            raise DataError("E322", f"{url}: the column image is {kind}, not bytes or a struct with bytes")
        for group in range(table.num_row_groups):
            size = sum(
                table.metadata.row_group(group).column(k).total_compressed_size
                for k in range(table.metadata.num_columns)
                if table.metadata.row_group(group).column(k).path_in_schema.partition(".")[0] == "image"
            )
            for row, found in enumerate(table.read_row_group(group, columns=[name]).column(0).to_pylist()):
                yield RemoteImage(url, str(found), size, group=group, row=row)
    except pa.ArrowException as err:
        raise DataError("E319", f"{url} is not a Parquet file: {err}") from err


def _holds_bytes(kind: Any) -> bool:
    import pyarrow as pa

    if pa.types.is_struct(kind):
        return kind.get_field_index("bytes") >= 0 and _holds_bytes(kind.field("bytes").type)
    return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind))


def _read_head(tar: tarfile.TarFile, member: tarfile.TarInfo) -> bytes:
    file = tar.extractfile(member)
    return b"" if file is None else file.read(HEAD)


def _has_image_suffix(name: str) -> bool:
    return os.path.splitext(name)[1].lower() in SUFFIXES


def _is_hidden(name: str) -> bool:
    return any(part.startswith(".") for part in name.split("/"))
