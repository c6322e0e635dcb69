"""Decode suspicious images in a subprocess, so that a decoder crash can be attributed to one image.

Normally images are decoded in threads of the run itself, and a decoder that crashes takes the run with it. The images
that a run was processing when it crashed (see `ensemble.predict.crash_note`), and those that could not be read before,
are tried here first. One process decodes one image after the other; a new one is started only after a crash.

    to the process      two big-endian lengths of 4 and 8 bytes, the name in UTF-8, the file's bytes
    from the process    an empty line when it is ready; for each image a line of JSON: null, or the error
"""

from __future__ import annotations

import errno
import json
import os
import signal
import struct
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from ensemble.errors import DataError, DeviceError
from ensemble.events import SILENT, Listener
from ensemble.images.decode import decode_file, read_file
from ensemble.images.listing import Listing
from ensemble.images.storage import RemoteImage

_LENGTHS = struct.Struct(">IQ")
_SERVE = "from ensemble.images.sandbox import serve; serve()"


def find_faults(listing: Listing, rows: Iterable[int], *, listener: Listener = SILENT) -> dict[int, DataError]:
    """Try to decode the given rows; return the error of each that fails: E325 if it crashes, else as `read_image`.

    Raises:
        DeviceError: E603 when there is too little memory for another process.
        RuntimeError: when the process does not start.
    """
    faults: dict[int, DataError] = {}
    tried = sorted(rows)
    process: DecoderProcess | None = None
    try:
        for done, row in enumerate(tried, 1):
            place = listing.place(row)
            try:
                data = read_file(place)
                process = process or DecoderProcess()
                process.decode(place, data)
            except DataError as err:
                faults[row] = err
                if process is not None and process.has_ended:
                    process.close()
                    process = None
            listener.progress("try suspicious images", done, len(tried))
    finally:
        if process is not None:
            process.close()
    return faults


class DecoderProcess:
    """A child process that decodes images."""

    def __init__(self) -> None:
        self.has_ended = False
        self._child = _start()
        try:
            if self._read() != b"\n":
                raise RuntimeError("the process that tries images alone does not start")
        except BaseException:
            self.close()
            raise

    def decode(self, place: Path | RemoteImage, data: bytes) -> None:
        """Decode one image.

        Raises:
            DataError: the codes of `decode_file`; E325 when decoding ends the process.
        """
        assert self._child.stdin is not None
        path = None if isinstance(place, RemoteImage) else place
        name = place.name.encode()
        try:
            self._child.stdin.write(_LENGTHS.pack(len(name), len(data)) + name + data)
            self._child.stdin.flush()
            answer = self._read()
        except BrokenPipeError:
            answer = b""
        if not answer.endswith(b"\n"):
            self.has_ended = True
            raise DataError("E325", f"{place.name}: crashes the decoder ({_how(self._child.wait())})", path=path)
        fault = json.loads(answer)
        if fault is not None:
            raise DataError(fault["code"], fault["message"], hint=fault["hint"], path=path)

    def close(self) -> None:
        """Kill the child if it is still running."""
        self._child.kill()
        self._child.wait()
        for pipe in (self._child.stdin, self._child.stdout):
            assert pipe is not None
            try:
                pipe.close()
            except BrokenPipeError:
                continue

    def _read(self) -> bytes:
        assert self._child.stdout is not None
        return self._child.stdout.readline()


def _start() -> subprocess.Popen[bytes]:
    # an empty entry is the working directory
    places = os.pathsep.join(place or os.getcwd() for place in sys.path)
    try:
        return subprocess.Popen(
            [sys.executable, "-P", "-c", _SERVE],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env=os.environ | {"PYTHONPATH": places},
            start_new_session=True,  # so that Ctrl-C does not look like a crash
        )
    except OSError as err:
        if err.errno not in {errno.EAGAIN, errno.ENOMEM}:
            raise
        raise DeviceError(
            "E603",
            f"there is no room for the process that tries images alone: {err.strerror}",
            hint="end other programs, or raise the limit of memory or of processes, and run the same command again",
        ) from err


def serve() -> None:
    """Run as the child: decode images from standard input until it ends."""
    source, sink = sys.stdin.buffer, os.dup(1)
    os.dup2(2, 1)  # keep what a decoder prints out of the replies
    os.write(sink, b"\n")
    while lengths := source.read(_LENGTHS.size):
        name, data = (source.read(length) for length in _LENGTHS.unpack(lengths))
        os.write(sink, json.dumps(_fault_of(name.decode(), data)).encode() + b"\n")


def _fault_of(name: str, data: bytes) -> dict[str, Any] | None:
    try:
        decode_file(data, Path(name))
    except DataError as err:
        return err.as_dict()
    except MemoryError:
        return DataError("E325", f"{name}: decoding it takes more memory than there is").as_dict()
    return None


def _how(status: int) -> str:
    try:
        return signal.Signals(-status).name
    except ValueError:
        return f"status {status}"
