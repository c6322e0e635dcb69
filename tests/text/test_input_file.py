"""Files that users name are read whole, but not without end."""

from __future__ import annotations

import os
import threading
from pathlib import Path

import pytest

from ensemble.errors import FileError
from ensemble.text.input_file import read_input


def test_a_file_and_a_pipe_are_read(tmp_path: Path) -> None:
    """A pipe is what a shell makes of ``<(zcat ids.csv.gz)``."""
    (tmp_path / "ids.csv").write_bytes(b"id\n1\n")
    assert read_input(tmp_path / "ids.csv") == b"id\n1\n"
    os.mkfifo(tmp_path / "pipe")
    writer = threading.Thread(target=(tmp_path / "pipe").write_bytes, args=(b"id\n2\n",))
    writer.start()
    assert read_input(tmp_path / "pipe") == b"id\n2\n"
    writer.join()


def test_what_has_no_end_is_refused(tmp_path: Path) -> None:
    """A device by its kind, a large file by its size, and a pipe once it has given too much."""
    for path, said in ((Path("/dev/zero"), "neither a file nor a pipe"), (tmp_path, "Is a directory")):
        with pytest.raises(FileError, match=said) as caught:
            read_input(path)
        assert caught.value.code == "E707"
    with open(tmp_path / "sparse", "wb") as f:
        f.truncate(2**40)
    with pytest.raises(FileError, match=r"has 1,099,511,627,776 bytes"):
        read_input(tmp_path / "sparse")
    os.mkfifo(tmp_path / "pipe")
    writer = threading.Thread(target=(tmp_path / "pipe").write_bytes, args=(bytes(1000),))
    writer.start()
    with pytest.raises(FileError, match="more than the 100 bytes"):
        read_input(tmp_path / "pipe", limit=100)
    writer.join()
