"""Images in storage, in tar shards and in Parquet are the images of a folder."""

from __future__ import annotations

import io
import pickle
import sys
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner

from ensemble.cli import ens
from ensemble.errors import DataError, OptionError
from ensemble.events import Recorder
from ensemble.images import storage
from ensemble.images.decode import read_image
from ensemble.images.remote_listing import is_remote, list_images_at
from ensemble.images.views import parse_views
from ensemble.install import install_command
from ensemble.predict import parts
from ensemble.predict.options import RunOptions
from ensemble.predict.predict import predict
from ensemble.predictions.dataset import read_predictions
from tests.support import toys
from tests.support.cluster_run import contents

fsspec = pytest.importorskip("fsspec", reason="fsspec is not installed")
NAMES = [f"{i:02d}.jpg" for i in range(11)]
PICTURES = {name: toys.encode(toys.picture(seed)) for seed, name in enumerate(NAMES)}


@pytest.fixture
def memory() -> Iterator[Any]:
    """A storage that is not this machine's disk, empty before and after."""
    fs = fsspec.filesystem("memory")
    storage.read_row_group.cache_clear()
    yield fs
    fs.store.clear()


def in_a_folder(fs: Any) -> str:
    for name, data in PICTURES.items():
        fs.pipe(f"/bucket/images/{name}", data)
    fs.pipe("/bucket/images/info.csv", b"ImageID\n")
    fs.pipe("/bucket/images/.hidden.jpg", b"")
    return "memory://bucket/images"


def shard(pictures: dict[str, bytes], mode: str = "w") -> bytes:
    """A WebDataset shard: each image followed by its class."""
    sink = io.BytesIO()
    with tarfile.open(fileobj=sink, mode=mode) as tar:  # type: ignore[call-overload]
        for name, data in pictures.items():
            for key, value in ((name, data), (name.replace(".jpg", ".cls"), b"3")):
                member = tarfile.TarInfo(key)
                member.size = len(value)
                tar.addfile(member, io.BytesIO(value))
    return sink.getvalue()


def in_shards(fs: Any) -> str:
    for number, names in enumerate((NAMES[:4], NAMES[4:])):
        fs.pipe(f"/bucket/shard-{number}.tar", shard({name: PICTURES[name] for name in names}))
    return "memory://bucket/shard-*.tar"


def write_table(fs: Any, path: str, ids: list[str], images: pa.Array) -> None:
    sink = io.BytesIO()
    pq.write_table(pa.table({"id": ids, "label": [1] * len(ids), "image": images}), sink, row_group_size=3)
    fs.pipe(path, sink.getvalue())


def in_tables(fs: Any) -> str:
    for number, names in enumerate((NAMES[:7], NAMES[7:])):
        write_table(fs, f"/bucket/part-{number}.parquet", names, pa.array([PICTURES[name] for name in names]))
    return "memory://bucket/part-*.parquet"


def in_structs(fs: Any) -> str:
    images = pa.array([{"bytes": data, "path": None} for data in PICTURES.values()])
    write_table(fs, "/bucket/all.parquet", NAMES, images)
    return "memory://bucket/all.parquet"


PLACES = [in_a_folder, in_shards, in_tables, in_structs]


@pytest.mark.parametrize("place", PLACES)
def test_images_are_the_same_wherever_they_are(memory: Any, place: Callable[[Any], str]) -> None:
    """Each source lists exactly the images, by name, and gives each one's bytes, on another machine too."""
    listing = list_images_at(place(memory))
    assert listing.ids == tuple(NAMES)
    sent = pickle.loads(pickle.dumps(listing.cut(2, 9)))
    assert [sent.place(row).read_bytes() for row in range(7)] == [PICTURES[name] for name in NAMES[2:9]]
    assert sent.remote[0].exists()
    assert np.array_equal(read_image(sent.place(0)).pixels, read_image(listing.place(2)).pixels)


@pytest.mark.parametrize("place", PLACES)
def test_predictions_do_not_depend_on_where_the_images_are(
    tmp_path: Path, memory: Any, monkeypatch: pytest.MonkeyPatch, place: Callable[[Any], str]
) -> None:
    """Logits equal those of the same files in a folder; from files and tars, whose sizes are known, the parts too."""
    monkeypatch.setattr(parts, "PART_ROWS", 4)
    (tmp_path / "images").mkdir()
    for name, data in PICTURES.items():
        (tmp_path / "images" / name).write_bytes(data)
    model = toys.write_model(tmp_path / "models")
    for images, out in ((str(tmp_path / "images"), "files"), (place(memory), "stored")):
        predict(
            [model],
            images,
            tmp_path / out,
            views=parse_views("hflip"),
            options=RunOptions(device="cpu", workers=3, batch=3),
        )
    files, found = (read_predictions(tmp_path / out / "toy") for out in ("files", "stored"))
    assert files.sha256 == found.sha256
    if place in {in_a_folder, in_shards}:
        assert contents(tmp_path / "files") == contents(tmp_path / "stored")


def test_ids_choose_and_order_stored_images(memory: Any) -> None:
    """An id list gives exactly its images in its order, and what is passed over is counted."""
    recorder = Recorder()
    chosen = [NAMES[7], NAMES[1]]
    listing = list_images_at(in_tables(memory), chosen, listener=recorder)
    assert [listing.place(row).read_bytes() for row in range(2)] == [PICTURES[name] for name in chosen]
    assert [(notice.code, notice.message[:2]) for notice in recorder.notices] == [("I315", "9 ")]
    with pytest.raises(DataError, match=r"E314.*nn\.jpg"):
        list_images_at(in_tables(memory), ["nn.jpg"])


def test_a_row_without_an_image_is_an_empty_file(memory: Any) -> None:
    """Where a table has no bytes for an id, that image alone is E302, in a struct as in a column of bytes."""
    for images in (pa.array([None, PICTURES["00.jpg"]]), pa.array([{"bytes": None}, {"bytes": PICTURES["00.jpg"]}])):
        storage.read_row_group.cache_clear()
        write_table(memory, "/bucket/s.parquet", ["a", "b"], images)
        listing = list_images_at("memory://bucket/s.parquet")
        assert read_image(listing.place(1)).pixels.ndim == 3
        with pytest.raises(DataError, match="E302"):
            read_image(listing.place(0))


def nothing(fs: Any) -> str:
    fs.pipe("/bucket/images/info.csv", b"")
    return "memory://bucket/images"


def twice(fs: Any) -> str:
    for number in range(2):
        fs.pipe(f"/bucket/s{number}.tar", shard({"x.jpg": b"x"}))
    return "memory://bucket/*.tar"


def packed(fs: Any) -> str:
    fs.pipe("/bucket/s.tar", shard(PICTURES, "w:gz"))
    return "memory://bucket/s.tar"


def no_table(fs: Any) -> str:
    fs.pipe("/bucket/s.parquet", b"PAR?")
    return "memory://bucket/s.parquet"


def other_columns(fs: Any) -> str:
    sink = io.BytesIO()
    pq.write_table(pa.table({"key": ["a"], "jpg": [b"x"]}), sink)
    fs.pipe("/bucket/s.parquet", sink.getvalue())
    return "memory://bucket/s.parquet"


def paths_alone(fs: Any) -> str:
    write_table(fs, "/bucket/s.parquet", ["a"], pa.array(["/images/a.jpg"]))
    return "memory://bucket/s.parquet"


@pytest.mark.parametrize(
    ("place", "named"),
    [
        (nothing, "E316"),
        (twice, r"E313.*x\.jpg"),
        (packed, "E319.*tar"),
        (no_table, "E319.*Parquet"),
        (other_columns, "E322.*id and image, got key, jpg"),
        (paths_alone, "E322.*image is string, not bytes"),
        (lambda fs: "memory://nowhere/*.tar", "E316"),
        (lambda fs: "no-such-scheme://bucket", "E319"),
    ],
)
def test_a_source_that_cannot_be_read_is_refused(memory: Any, place: Callable[[Any], str], named: str) -> None:
    """No images, a name that is there twice, a packed tar, no table, other columns: each has its code."""
    with pytest.raises(DataError, match=named):
        list_images_at(place(memory))


def test_an_image_that_is_gone_is_a_fault_of_its_own(tmp_path: Path, memory: Any) -> None:
    """A file that vanishes after the listing costs its image alone, and errors.csv names it."""
    url = in_a_folder(memory)
    listing = list_images_at(url)
    memory.rm("/bucket/images/04.jpg")
    with pytest.raises(DataError, match=r"E314.*04\.jpg"):
        read_image(listing.place(4))
    memory.pipe("/bucket/images/04.jpg", b"no image")
    with pytest.raises(DataError, match="E326"):
        predict(
            [toys.write_model(tmp_path)],
            url,
            tmp_path / "out",
            views=parse_views("hflip"),
            options=RunOptions(device="cpu"),
        )
    assert "04.jpg,E303" in (tmp_path / "out" / "errors.csv").read_text()


def test_only_urls_tars_and_tables_are_storage(tmp_path: Path) -> None:
    """A path on this machine is a folder of files, and needs no fsspec."""
    assert [is_remote(place) for place in ("s3://b/images", "a/*.tar", Path("x.parquet"), tmp_path, "images")] == [
        True,
        True,
        True,
        False,
        False,
    ]


def test_without_fsspec_the_line_that_installs_it_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """A URL where fsspec is not installed is E205 with the extra."""
    monkeypatch.setitem(sys.modules, "fsspec", None)
    with pytest.raises(OptionError, match="E205") as caught:
        list_images_at("s3://bucket/images")
    assert caught.value.hint == install_command(extra="ray")


def test_the_command_takes_shards(tmp_path: Path) -> None:
    """ens predict --images names tar shards on this machine as the shell would, in quotes."""
    (tmp_path / "s-0.tar").write_bytes(shard(PICTURES))
    model = toys.write_model(tmp_path)
    command = [
        "predict",
        str(model),
        "--images",
        str(tmp_path / "s-*.tar"),
        "--device",
        "cpu",
        "-o",
        str(tmp_path / "o"),
    ]
    done = CliRunner().invoke(ens, command)
    assert done.exit_code == 0, done.output
    assert read_predictions(tmp_path / "o" / "toy").ids == tuple(NAMES)


def test_case_09_images_in_storage_are_known_by_their_content(memory: Any) -> None:
    """In a bucket and in a shard, images without a suffix are listed, and other files are counted."""
    data = next(iter(PICTURES.values()))
    for name, content in {"a.jpg": data, "b.jfif": data, "c": data, "notes.txt": b"", "x.cr2": b"II*\0"}.items():
        memory.pipe(f"/bucket/mixed/{name}", content)
    memory.pipe("/bucket/one.tar", shard({"a.jpg": data, "c.jpg.part": data}))
    for url, unnamed, passed_over in (
        ("memory://bucket/mixed", "c", "notes.txt, x.cr2"),
        ("memory://bucket/one.tar", "c.jpg.part", "a.cls, c.cls.part"),
    ):
        recorder = Recorder()
        assert {"a.jpg", unnamed} <= set(list_images_at(url, listener=recorder).ids)
        told = {notice.code: notice.message for notice in recorder.notices}
        assert told["I333"].endswith(f"content alone: {unnamed}")
        assert told["I332"].endswith(passed_over)
        assert list_images_at(url, [unnamed]).remote[0].read_bytes() == data
