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
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from ensemble.errors import DataError, OptionError, enumerate_some
from ensemble.events import SILENT, Listener, Notice
from ensemble.images.decode import SUFFIXES
from ensemble.images.listing import Listing, list_images, match_ids
from ensemble.images.storage import RemoteImage, open_storage
from ensemble.install import install_command

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
        found = list(_find(str(images)))
    except ImportError as err:
        # each kind of storage needs its own package, which fsspec's message names
        hint = install_command(extra="ray") if err.name == "fsspec" else "install that package"
        raise OptionError("E205", f"{images} needs a package: {err}", hint=hint) from err
    except DataError:
        raise
    except Exception as err:
        raise DataError("E319", f"{images} cannot be read: {err}") from err
    if not found:
        raise DataError("E316", f"no images in {images}")
    repeated = [name for name, count in Counter(image.name for image in found).items() if count > 1]
    if repeated:
        raise DataError("E313", f"{len(repeated)} names are in {images} twice: {enumerate_some(repeated)}")
    by_name = {image.name: image for image in sorted(found, key=lambda image: image.name)}
    wanted = tuple(by_name if ids is None else ids)
    chosen = [by_name[name] for name in match_ids(None, wanted, set(by_name), listener)]
    extra = len(by_name) - len(set(chosen))
    if extra:
        listener.notice(Notice("I315", f"{extra:,} images in {images} are not listed and are ignored"))
    return Listing(wanted, (), tuple(image.size for image in chosen), tuple(chosen))


def _find(url: str) -> Iterator[RemoteImage]:
    fs, root = open_storage(url)
    suffix = os.path.splitext(root)[1].lower()
    if suffix in (*_TABLES, *_TARS):
        read = _rows if suffix in _TABLES else _members
        for path in sorted(fs.glob(root)):
            with fs.open(path, "rb") as file:
                yield from read(file, fs.unstrip_protocol(path))
        return
    for path, info in fs.find(root, detail=True).items():
        name = path.removeprefix(root.rstrip("/") + "/")
        if _is_image(name):
            yield RemoteImage(fs.unstrip_protocol(path), name, int(info["size"]))


def _members(file: Any, url: str) -> Iterator[RemoteImage]:
    """Iterate over the images of a tar; other files of a sample, such as its class, are ignored."""
    try:
        with tarfile.open(fileobj=file, mode="r:") as tar:
            for member in tar:
                if member.isreg() and _is_image(member.name):
                    yield RemoteImage(url, member.name.removeprefix("./"), member.size, start=member.offset_data)
    except tarfile.TarError as err:
        raise DataError("E319", f"{url} is not an uncompressed tar: {err}") from err


def _rows(file: Any, url: str) -> Iterator[RemoteImage]:
    """Iterate over the rows of a Parquet file without reading images; each ``size`` is the row group's image column."""
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


def _holds_bytes(kind: pa.DataType) -> bool:
    if pa.types.is_struct(kind):
        return kind.get_field_index("bytes") >= 0 and _holds_bytes(kind.field("bytes").type)
    return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind))


def _is_image(name: str) -> bool:
    parts = name.removeprefix("./").split("/")
    return os.path.splitext(name)[1].lower() in SUFFIXES and not any(part.startswith(".") for part in parts)
