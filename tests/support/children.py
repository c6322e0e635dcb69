"""The command line in a process of its own, to be killed."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).parents[2]
PART_ROWS = 256

_START = """
import ctypes, os, resource, sys
limit, *arguments = sys.argv[1:]
if sys.platform == "linux" and os.geteuid() == 0:
    for right in (1, 2):  # CAP_DAC_OVERRIDE and CAP_DAC_READ_SEARCH, from the next program on
        ctypes.CDLL(None).prctl(24, right, 0, 0, 0)  # PR_CAPBSET_DROP
if int(limit):
    resource.setrlimit(resource.RLIMIT_FSIZE, (int(limit), int(limit)))
os.execv(sys.executable, [sys.executable, "-c", RUN, *arguments])
"""
_RUN = """
import os, sys, threading, time
from ensemble.predict import parts, resumable
from ensemble.__main__ import run
parts.PART_ROWS, pause = int(sys.argv[1]), float(sys.argv[2])
told, left = map(int, sys.argv[3:5])
if sys.argv[5] == "1":
    resumable.EARLY_SECONDS = 0.0
    if sys.argv[6] == "train":
        from checkpoints.training import training_state
        training_state._SECONDS, training_state._LEAST_SHARE = 0.0, 0
    if sys.argv[6] == "export":
        from exporters import export_steps
        export_steps._SECONDS, export_steps._LEAST_SHARE, export_steps._PER_SECOND = 0.0, 0, float("inf")
    if sys.argv[6] == "crop":
        from checkpoints.data import face_store
        face_store.ROUND = parts.PART_ROWS
lock = threading.Lock()
def between():
    global told, left
    time.sleep(pause)
    with lock:
        held, left = left == 0, left - 1
        if told >= 0:
            os.write(told, b".")
        if held:
            os.close(told)
            told = -1
    if held:
        threading.Event().wait()
def watched(step):
    def watch(*arguments, **options):
        between()
        done = step(*arguments, **options)
        between()
        return done
    return watch
if pause or told >= 0:
    os.fsync, os.replace = watched(os.fsync), watched(os.replace)
sys.exit(run(sys.argv[6:]))
"""


def start(
    arguments: Sequence[str],
    *,
    part_rows: int = PART_ROWS,
    pause: float = 0.0,
    file_bytes: int = 0,
    points: int = -1,
    hold: int = -1,
    early: bool = False,
) -> subprocess.Popen[str]:
    """Start a command; what it says on stderr can be read, and root's right to read what is closed is taken away.

    ``part_rows`` is how many rows a part of the predictions has, ``pause`` the seconds that pass before and after each
    sync and rename, ``file_bytes`` how long a file may become, where it is not 0. To the pipe ``points`` goes a byte
    before and after each sync and rename; at number ``hold`` the pipe is closed, and who has come there waits for ever.
    With ``early`` everything is written as soon as it is computed, and not every some seconds.
    """
    code = f"RUN = {_RUN!r}\n{_START}"
    return subprocess.Popen(
        [sys.executable, "-c", code, *map(str, (file_bytes, part_rows, pause, points, hold, int(early))), *arguments],
        cwd=ROOT,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        pass_fds=[points] * (points >= 0),
    )
