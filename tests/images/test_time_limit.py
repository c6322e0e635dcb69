"""The time limit of a decoder: a call that does not end is left behind, and all others are made as before."""

from __future__ import annotations

import threading
import time
from functools import partial
from pathlib import Path

import pytest

from ensemble.errors import DataError
from ensemble.images import decode, time_limit
from ensemble.images.decode import DecodedImage, decode_image, read_image
from ensemble.images.time_limit import run_limited, thread_time
from ensemble.images.views import parse_views
from tests.support import toys
from tests.support.runs import run_predict


def helpers() -> int:
    return sum(thread.name == "ens-decode" for thread in threading.enumerate())


def test_results_and_errors_come_through() -> None:
    """The call's value is returned and its exception raised, as without a limit, and one helper makes many calls."""
    assert [run_limited(partial(pow, 2, k)) for k in range(50)] == [2**k for k in range(50)]
    before = helpers()
    with pytest.raises(ZeroDivisionError):
        run_limited(lambda: 1 / 0)
    assert run_limited(lambda: "on") == "on"
    assert helpers() == before


def test_a_call_that_does_not_end_is_left_behind() -> None:
    """The limit ends the wait, the next call is made by another helper, and a late answer goes nowhere."""
    late = threading.Event()
    with pytest.raises(TimeoutError):
        run_limited(late.wait, seconds=0.01)
    assert run_limited(lambda: "next") == "next"
    late.set()
    assert [run_limited(partial(int, k)) for k in range(20)] == list(range(20))


def test_a_helper_ends_with_its_thread() -> None:
    """A pool of threads leaves no helpers behind."""
    before = helpers()
    threads = [threading.Thread(target=run_limited, args=(int,)) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    deadline = time.monotonic() + 60
    while helpers() > before and time.monotonic() < deadline:
        time.sleep(0.01)
    assert helpers() <= before


def test_the_work_of_the_helper_counts_as_that_of_the_thread() -> None:
    """The clock of a thread goes on while its helper computes, as the rates of the progress are made of it."""
    before = thread_time()
    run_limited(partial(sum, range(3_000_000)))
    assert thread_time() - before > 0.005


@pytest.fixture
def hanging(monkeypatch: pytest.MonkeyPatch) -> threading.Event:
    """A decoder that does not return from an image of one size, and a limit of half a second."""
    release = threading.Event()

    def hang(data: bytes) -> DecodedImage:
        found = decode_image(data)
        if found.image.size == (24, 40):
            release.wait()
        return found

    monkeypatch.setattr(decode, "decode_image", hang)
    monkeypatch.setattr(time_limit, "LIMIT", 0.5)
    return release


def test_an_image_whose_decoder_hangs_is_named(tmp_path: Path, hanging: threading.Event) -> None:
    """Reading it is E356 with its name; the next image is read."""
    for name, size in (("a.jpg", (40, 24)), ("b.jpg", (24, 24))):
        (tmp_path / name).write_bytes(toys.encode(toys.picture(0, size=size)))
    with pytest.raises(DataError, match=r"a\.jpg: decoding takes more than") as caught:
        read_image(tmp_path / "a.jpg")
    assert (caught.value.code, caught.value.path) == ("E356", tmp_path / "a.jpg")
    assert read_image(tmp_path / "b.jpg").image.size == (24, 24)
    hanging.set()


def test_a_run_goes_on_without_the_image_that_hangs(tmp_path: Path, hanging: threading.Event) -> None:
    """All others are predicted, the image is in errors.csv."""
    toys.write_pictures(tmp_path / "images", [f"{i}.jpg" for i in range(6)])
    (tmp_path / "images" / "hangs.jpg").write_bytes(toys.encode(toys.picture(0, size=(40, 24))))
    model = toys.write_model(tmp_path / "models", toys.card("a"))
    done = run_predict(
        [model], tmp_path / "images", tmp_path / "out", views=parse_views("identity"), device="cpu", on_bad_image="skip"
    )
    assert done.missing == ("hangs.jpg",)
    assert "hangs.jpg,E356" in (tmp_path / "out" / "errors.csv").read_text()
    hanging.set()
