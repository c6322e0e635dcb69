"""Ids and files: every way they can meet, and fail to meet."""

from __future__ import annotations

import os
import sys
import unicodedata
from pathlib import Path

import pytest

from ensemble.errors import DataError
from ensemble.events import Recorder
from ensemble.images.listing import FOLLOW_LINKS, list_images, read_ids
from ensemble.text.csv_table import render_table
from tests.support.corpus import encode, picture
from tests.support.nobody import as_nobody

ODD_NAMES = [
    "a b.jpg",
    "'\".jpg",
    "a,b;c.jpg",
    "a\nb.jpg",
    "😷한글.jpg",
    "=1+1.jpg",
    "-.jpg",
    "@x.jpg",
    "back\\slash.jpg",
]
NFC = unicodedata.normalize("NFC", "한글 é.jpg")
NFD = unicodedata.normalize("NFD", NFC)


def fill(folder: Path, *names: str) -> Path:
    """Put small files of these names into the folder."""
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(name.encode(errors="surrogateescape"))
    return folder


def codes(recorder: Recorder) -> list[str]:
    """The codes of the notices."""
    return [notice.code for notice in recorder.notices]


def test_all_images_are_listed_by_name(tmp_path: Path) -> None:
    """Without ids, every image below the folder is listed, sorted, with its size; hidden and other files are not."""
    fill(tmp_path, "b.jpg", "a/c.PNG", "a/b/d.webp", ".hidden.jpg", ".git/e.jpg", "f.txt", "jpg", ".jpg")
    recorder = Recorder()
    listing = list_images(tmp_path, listener=recorder)
    assert listing.ids == ("a/b/d.webp", "a/c.PNG", "b.jpg")
    assert listing.paths == tuple(tmp_path / name for name in listing.ids)
    assert listing.sizes == tuple(len(name) for name in listing.ids)
    assert codes(recorder) == ["I332"]
    assert recorder.notices[0].message.endswith("passed over, as they are not images: f.txt, jpg")


def test_case_09_images_are_known_by_their_content(tmp_path: Path) -> None:
    """Images without a suffix or with a rare one are listed; I333 names those by content, I332 what is passed over."""
    jpeg, png = (encode(picture(8, 8), kind) for kind in ("JPEG", "PNG"))
    contents = {"a.jpg": jpeg, "b.JFIF": jpeg, "c": jpeg, "d.pjpeg": jpeg, "e.dat": png, "f/g": png, "h.mpo": jpeg}
    others = {"notes.txt": b"BM is not an image", "raw.dng": b"II*\0" + bytes(60), "empty": b"", "i.heic": bytes(40)}
    for name, data in (contents | others).items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(data)
    recorder = Recorder()
    assert list_images(tmp_path, listener=recorder).ids == tuple(contents)
    told = {notice.code: notice.message for notice in recorder.notices}
    assert told["I333"].endswith("3 files in " + str(tmp_path) + " are images by their content alone: c, e.dat, f/g")
    assert told["I332"].endswith("not images: empty, i.heic, notes.txt, raw.dng")


def test_case_09_a_list_decides_what_is_an_image(tmp_path: Path) -> None:
    """With ids no file is opened: a listed file without a suffix is found, others are not remarked on."""
    fill(tmp_path, "a", "b", "notes.txt")
    recorder = Recorder()
    assert list_images(tmp_path, ["b", "a"], listener=recorder).ids == ("b", "a")
    assert recorder.notices == []


def test_what_is_no_file_is_not_opened_to_see_what_it_is(tmp_path: Path) -> None:
    """A FIFO without a suffix, which would block its reader, and a link to nowhere are passed over."""
    fill(tmp_path, "a.jpg")
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "gone").symlink_to("nowhere")
    recorder = Recorder()
    assert list_images(tmp_path, listener=recorder).ids == ("a.jpg",)
    assert recorder.notices[0].message.startswith("2 files")


def test_the_folder_may_be_relative_or_a_link(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """However the folder is named, the ids are the same and the paths can be opened."""
    fill(tmp_path / "images", "b/a.jpg")
    (tmp_path / "link").symlink_to("images")
    monkeypatch.chdir(tmp_path / "images")
    for root in (Path(), Path("../images"), tmp_path / "link", tmp_path / "images"):
        listing = list_images(root)
        assert listing.ids == ("b/a.jpg",)
        assert listing.paths[0].read_bytes() == b"b/a.jpg"


def test_fault_17_odd_names_survive_the_id_list(tmp_path: Path) -> None:
    """Names with commas, quotes, line breaks, backslashes and emoji are found from a written and re-read list."""
    fill(tmp_path / "images", *ODD_NAMES)
    (tmp_path / "info.csv").write_bytes(render_table(["ImageID", "ans"], [[name, 0] for name in ODD_NAMES]))
    listing = list_images(tmp_path / "images", read_ids(tmp_path / "info.csv"))
    assert listing.ids == tuple(ODD_NAMES)
    assert [path.name for path in listing.paths] == ODD_NAMES


def test_fault_17_names_that_are_no_unicode_are_told(tmp_path: Path) -> None:
    """A file whose name is not UTF-8 is E327 when it would be listed, and no matter when it is not."""
    fill(tmp_path, "a.jpg")
    try:
        (tmp_path / os.fsdecode(b"b\xff.jpg")).touch()
    except OSError:
        pytest.skip("this file system has only UTF-8 names")
    with pytest.raises(DataError, match=r"E327.*1 names.*b\\udcff"):
        list_images(tmp_path)
    listing = list_images(tmp_path, ["a.jpg"])
    assert len(listing.sha256) == 64


@pytest.mark.skipif(sys.platform == "darwin", reason="its file system normalizes names itself")
@pytest.mark.parametrize(("on_disk", "listed"), [(NFD, NFC), (NFC, NFD)])
def test_fault_18_normal_forms_match(tmp_path: Path, on_disk: str, listed: str) -> None:
    """A composed id finds a decomposed file and the other way round; I310 says so and the id keeps its spelling."""
    fill(tmp_path, on_disk, "plain.jpg")
    recorder = Recorder()
    listing = list_images(tmp_path, [listed, "plain.jpg"], listener=recorder)
    assert listing.ids == (listed, "plain.jpg")
    assert listing.paths[0].read_bytes().decode() == on_disk
    assert codes(recorder) == ["I310"]
    assert "1 names" in recorder.notices[0].message


@pytest.mark.skipif(sys.platform == "darwin", reason="its file system normalizes names itself")
@pytest.mark.parametrize("ids", [None, [NFC], [NFD]], ids=["all", "composed", "decomposed"])
def test_fault_19_two_forms_of_one_name_are_refused(tmp_path: Path, ids: list[str] | None) -> None:
    """If both normalization forms of a name exist, the id is ambiguous: E311 shows both, escaped."""
    fill(tmp_path, NFC, NFD, "plain.jpg")
    with pytest.raises(DataError, match=r"E311.*\\u1112.*\\ud55c"):
        list_images(tmp_path, ids)
    assert len(list_images(tmp_path, ["plain.jpg"])) == 1


@pytest.mark.skipif(sys.platform in {"darwin", "win32"}, reason="its file system ignores case")
def test_fault_20_another_case_is_suggested(tmp_path: Path) -> None:
    """An id in another case is E312 with the file's real name; the case itself still decides between two files."""
    fill(tmp_path, "A.JPG", "b.jpg", "B.jpg")
    with pytest.raises(DataError, match=r"E312.*1 listed.*a\.jpg is A\.JPG"):
        list_images(tmp_path, ["a.jpg", "b.jpg"])
    assert list_images(tmp_path, ["b.jpg", "B.jpg"]).ids == ("b.jpg", "B.jpg")


def test_fault_21_repeated_ids_are_refused(tmp_path: Path) -> None:
    """An id that is listed twice is E313."""
    fill(tmp_path, "a.jpg", "b.jpg")
    with pytest.raises(DataError, match=r"E313.*1 duplicate ids: b\.jpg$"):
        list_images(tmp_path, ["b.jpg", "a.jpg", "b.jpg"])


def test_large_lists_take_no_quadratic_time(tmp_path: Path) -> None:
    """Finding the duplicates of 200,000 ids compares each with few others: quadratic work would take hours."""
    fill(tmp_path, "a.jpg")
    ids = [f"{i}.jpg" for i in range(200_000)]
    with pytest.raises(DataError, match=r"E313.*200000 duplicate ids"):
        list_images(tmp_path, ids * 2)
    with pytest.raises(DataError, match=r"E314.*200,000 of 200,000"):
        list_images(tmp_path, ids)


def test_fault_22_missing_images_are_counted_and_named(tmp_path: Path) -> None:
    """Missing images are E314 with their number and the first names, and so is what is not a plain path."""
    fill(tmp_path, "a.jpg")
    with pytest.raises(DataError, match=r"E314.*6 of 7.*: b, c, d, \./a\.jpg, a\.jpg/ and 1 more$"):
        list_images(tmp_path, ["a.jpg", "b", "c", "d", "./a.jpg", "a.jpg/", "e"])


def test_fault_23_extra_images_are_told_once(tmp_path: Path) -> None:
    """Images that are not listed are ignored, which I315 counts; the listing keeps the order of the ids."""
    fill(tmp_path, "a.jpg", "b.jpg", "x/c.jpg", "d.jpg", "e.txt")
    recorder = Recorder()
    assert list_images(tmp_path, ["d.jpg", "a.jpg"], listener=recorder).ids == ("d.jpg", "a.jpg")
    assert codes(recorder) == ["I315"]
    assert recorder.notices[0].message.startswith("2 images")


def test_fault_24_folders_without_images_are_refused(tmp_path: Path) -> None:
    """An empty folder, one with other files, a file, and nothing at all are E316; so is an empty list of ids."""
    fill(tmp_path, "junk/a.txt", "junk/.b.jpg", "good/a.jpg")
    (tmp_path / "empty").mkdir()
    for name in ("empty", "junk", "junk/a.txt", "missing"):
        with pytest.raises(DataError, match="E316"):
            list_images(tmp_path / name)
    with pytest.raises(DataError, match="E316"):
        list_images(tmp_path / "good", [])


def test_fault_25_linked_folders_are_not_entered(tmp_path: Path) -> None:
    """A folder linked into itself does not go round in circles: it is left out, and I317 counts it."""
    fill(tmp_path, "a.jpg")
    (tmp_path / "loop").symlink_to(".")
    (tmp_path / "b.jpg").symlink_to("a.jpg")
    recorder = Recorder()
    assert list_images(tmp_path, listener=recorder).ids == ("a.jpg", "b.jpg")
    assert codes(recorder) == ["I317"]
    assert recorder.notices[0].message.startswith("1 linked")


def test_images_that_are_behind_linked_folders_are_missing_because_of_the_links(tmp_path: Path) -> None:
    """E316 and E314 name the links and what to do: a folder of links looked empty, and a list incomplete."""
    fill(tmp_path / "store", "cat/a.jpg", "dog/b.jpg")
    train = tmp_path / "train"
    train.mkdir()
    for name in ("cat", "dog"):
        (train / name).symlink_to(tmp_path / "store" / name)
    with pytest.raises(DataError, match=r"E316.*2 linked folders that are not entered: cat, dog") as caught:
        list_images(train)
    assert caught.value.hint == FOLLOW_LINKS
    fill(train, "c.jpg")
    with pytest.raises(DataError, match=r"E314.*not entered: 1 linked folder, cat") as one:
        list_images(train, ["c.jpg", "cat/a.jpg"])
    assert one.value.hint == FOLLOW_LINKS
    with pytest.raises(DataError, match=r"E314") as other:
        list_images(train, ["c.jpg", "gone.jpg"])
    assert "linked" not in other.value.message


@pytest.mark.parametrize("target", ["gone.jpg", "x.jpg"], ids=["dangling", "circle"])
def test_fault_25_links_to_nowhere_are_missing(tmp_path: Path, target: str) -> None:
    """A link that leads nowhere, or to itself, is E314 whether it is listed or found."""
    fill(tmp_path, "a.jpg")
    (tmp_path / "x.jpg").symlink_to(target)
    for ids in (None, ["x.jpg"]):
        with pytest.raises(DataError, match="E314"):
            list_images(tmp_path, ids)


def test_fault_26_folders_that_may_not_be_read_are_told(tmp_path: Path) -> None:
    """A folder without the right to read it is E318: its images must not be left out in silence."""
    fill(tmp_path, "images/a.jpg", "images/closed/b.jpg", "images/half/c.jpg")
    tmp_path.chmod(0o755)
    for name, mode in (("closed", 0o000), ("half", 0o444)):
        (tmp_path / "images" / name).chmod(mode)
        with as_nobody(tmp_path), pytest.raises(DataError, match="E318"):
            list_images(Path("images"))
        (tmp_path / "images" / name).chmod(0o755)
    assert len(list_images(tmp_path / "images")) == 3


def test_fault_28_what_is_not_a_file_is_refused(tmp_path: Path) -> None:
    """A FIFO, a folder and a device named like images are E320, and are not opened."""
    fill(tmp_path, "a.jpg", "folder.jpg/b.png")
    os.mkfifo(tmp_path / "fifo.jpg")
    (tmp_path / "device.jpg").symlink_to("/dev/zero")
    with pytest.raises(DataError, match=r"E320.*3 listed.*device\.jpg, fifo\.jpg, folder\.jpg"):
        list_images(tmp_path)
    assert len(list_images(tmp_path, ["a.jpg", "folder.jpg/b.png"])) == 2


def test_fault_29_long_paths(tmp_path: Path) -> None:
    """Names of 255 bytes are listed; a folder's path that the system does not take is E321."""
    name = "한" * 83 + "ab.jpg"
    fill(tmp_path, name)
    assert list_images(tmp_path, [name]).ids == (name,)
    for root in (tmp_path / ("x" * 256), tmp_path.joinpath(*["folder"] * 800)):
        with pytest.raises(DataError, match="E321"):
            list_images(root)


@pytest.mark.parametrize("bad", ["../secret.jpg", "/etc/passwd", "a/../a.jpg", "..", "a/..", "a\0.jpg"])
def test_fault_31_ids_cannot_leave_the_folder(tmp_path: Path, bad: str) -> None:
    """An id that leads out of the folder, or is written as if it did, is E323 even where its file exists."""
    fill(tmp_path, "secret.jpg", "images/a.jpg", "images/a/b.jpg")
    with pytest.raises(DataError, match=r"E323.*1 ids"):
        list_images(tmp_path / "images", ["a.jpg", bad])


def test_dots_in_names_are_no_way_out(tmp_path: Path) -> None:
    """Two dots inside a name are part of the name."""
    fill(tmp_path, "a..b.jpg", "..c.jpg/d.jpg", "e/f...jpg")
    assert len(list_images(tmp_path, ["a..b.jpg", "e/f...jpg"])) == 2


@pytest.mark.parametrize(
    ("table", "ids"),
    [
        ("ImageID,ans\na.jpg,0\n", ("a.jpg",)),
        ("ans,id\n0,a.jpg\n", ("a.jpg",)),
        ("id,imageid\nx,a.jpg\n", ("a.jpg",)),
        ("image\na.jpg\nb\n", ("a.jpg", "b")),
        ("image,ans\na.jpg,0\n", ("a.jpg",)),
        (" File Name ;label\na.jpg;0\n", ("a.jpg",)),
        ("picture,label\n001,0\n", ("001",)),
    ],
)
def test_fault_30_the_id_column_is_found(tmp_path: Path, table: str, ids: tuple[str, ...]) -> None:
    """Ids come from `ImageID`, else `id`, in any case of letters, else from the only column."""
    (tmp_path / "info.csv").write_text(table)
    assert read_ids(tmp_path / "info.csv") == ids


@pytest.mark.parametrize(
    ("table", "said"),
    [
        ("a.jpg\nb.jpg\n", r"first line must name the columns, got 'a\.jpg'"),
        ("ImageID,ans\n,0\n", "column ImageID is empty in line 2"),
    ],
)
def test_fault_30_lists_without_ids_are_told(tmp_path: Path, table: str, said: str) -> None:
    """A table without an id column, without a header or with an empty id is E322: no image is lost in silence."""
    (tmp_path / "info.csv").write_text(table)
    with pytest.raises(DataError, match=f"E322.*{said}"):
        read_ids(tmp_path / "info.csv")


def test_the_hash_is_of_ids_and_order(tmp_path: Path) -> None:
    """Another order, another id, or another cut between two ids gives another hash; the folder does not matter."""
    for folder in ("one", "two"):
        fill(tmp_path / folder, "a.jpg", "b.jpg", "a.jpgb.jpg")
    lists = [["a.jpg", "b.jpg"], ["b.jpg", "a.jpg"], ["a.jpgb.jpg"], ["a.jpg"]]
    assert len({list_images(tmp_path / "one", ids).sha256 for ids in lists}) == len(lists)
    assert list_images(tmp_path / "one").sha256 == list_images(tmp_path / "two").sha256


@pytest.mark.parametrize("form", ["{}", "./{}.jpg", "{}.jpg ", "{}.jpg\u00a0", "test/{}.jpg", ".\\{}.jpg"])
def test_ids_as_contests_and_spreadsheets_write_them(tmp_path: Path, form: str) -> None:
    """Ids without suffix, with ./, spaces or another folder find their images, keep their spelling, and are said."""
    fill(tmp_path, "001.jpg", "002.jpg", "notes.txt")
    ids, heard = [form.format(name) for name in ("002", "001")], Recorder()
    listing = list_images(tmp_path, ids, listener=heard)
    assert listing.ids == tuple(ids)
    assert [path.name for path in listing.paths] == ["002.jpg", "001.jpg"]
    assert [notice.code for notice in heard.notices] == ["I381"]


def test_an_id_of_several_images_is_refused(tmp_path: Path) -> None:
    """An id without suffix that two images have, and one name in two folders, are E383; another suffix is E314."""
    fill(tmp_path, "a.jpg", "a.png", "x/b.jpg", "y/b.jpg")
    for name in ("a", "b.jpg"):
        with pytest.raises(DataError, match="E383"):
            list_images(tmp_path, [name])
    with pytest.raises(DataError, match="E314"):
        list_images(tmp_path, ["a.tif"])
