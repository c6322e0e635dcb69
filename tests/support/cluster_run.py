"""A local run and one on a cluster of two workers, of which one is killed; run by predict/test_ray.py as a program.

Ray's own warnings would be errors in the tests' process, and its daemons are to end with a process of their own.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import tarfile
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any
from unittest import mock

from ensemble.errors import DataError, DeviceError
from ensemble.events import Recorder
from ensemble.images.views import parse_views
from ensemble.predict import parts
from ensemble.predict.options import RunOptions
from ensemble.predict.predict import predict
from ensemble.predict.ray_worker import Cluster, connect
from ensemble.predict.result import Predicted
from tests.support import toys

NAMES = [f"{i:02d}.jpg" for i in range(46)]


def workers() -> Iterator[tuple[int, int]]:
    """Processor time and process id of each worker of ours whose models have started."""
    marker = f"ENS_TEST_MARKER={os.environ['ENS_TEST_MARKER']}".encode()
    for path in Path("/proc").glob("[0-9]*"):
        try:
            title = (path / "cmdline").read_bytes()
            started = title.startswith(b"ray::PartWorker") and b".start" not in title
            if started and marker in (path / "environ").read_bytes().split(b"\0"):
                yield int((path / "stat").read_text().rpartition(")")[2].split()[11]), int(path.name)
        except OSError:
            continue  # it has ended


class Killer(Recorder):
    """Kills the worker that has done most as soon as the first part is done."""

    def __init__(self) -> None:
        super().__init__()
        self.killed: list[int] = []

    def progress(self, stage: str, done: int, total: int) -> None:
        if done and not self.killed:
            self.killed.append(max(workers())[1])
            os.kill(self.killed[0], signal.SIGKILL)


def start(stack: ExitStack) -> Cluster:
    """Ray gives its own processes thirty seconds to start, which is too short on a very busy machine."""
    for _ in range(2):
        try:
            return stack.enter_context(connect(None))
        except DeviceError as err:
            if "timed out" not in str(err):
                raise
    return stack.enter_context(connect(None))


def main(root: Path) -> dict[str, Any]:
    """What happened, for the test to judge."""
    toys.write_pictures(root / "images", NAMES)
    good = (root / "images" / NAMES[17]).read_bytes()
    (root / "images" / NAMES[17]).write_bytes(good[:200])
    (root / "images" / NAMES[30]).write_bytes(toys.encode(toys.picture(1), "PNG"))
    models = [toys.write_model(root / "models", toys.card(name), seed=seed) for seed, name in enumerate("ab")]
    parts.PART_ROWS = 4
    faults = []

    def run(folder: str, cluster: Cluster | None, listener: Recorder, images: str = "images") -> Predicted | None:
        try:
            return predict(
                models,
                root / images,
                root / folder,
                views=parse_views("hflip"),
                cluster=cluster,
                options=RunOptions(device="cpu", batch=3, workers=1, listener=listener),
            )
        except DataError as err:
            faults.append(str(err))
            return None

    quiet, killer, again = Recorder(), Killer(), Recorder()
    run("local", None, quiet)
    before = signal.getsignal(signal.SIGTERM)
    with ExitStack() as stack, mock.patch("ensemble.predict.ray_worker.available_cores", return_value=2):
        cluster = start(stack)
        kept = signal.getsignal(signal.SIGTERM) == before
        run("cluster", cluster, killer)
        between = contents(root / "local") == contents(root / "cluster")
        (root / "images" / NAMES[17]).write_bytes(good)
        resumed = run("cluster", cluster, again)
        for number, names in enumerate((NAMES[:20], NAMES[20:])):
            with tarfile.open(root / f"shard-{number}.tar", "w") as tar:
                for name in names:
                    tar.add(root / "images" / name, name)
        run("shards", cluster, Recorder(), "shard-*.tar")
    run("local", None, quiet)
    assert resumed is not None
    return {
        "killed": len(killer.killed),
        "notices": [notice.code for notice in killer.notices],
        "faults": faults,
        "same": [between, contents(root / "local") == contents(root / "cluster") == contents(root / "shards")],
        "files": len(contents(root / "cluster")),
        "resumed": [member.computed for member in resumed.members],
        "seconds": min(resumed.seconds["decode"], resumed.seconds["forward"]),
        "signals": kept,
    }


def contents(folder: Path) -> dict[str, bytes]:
    """What a run leaves apart from its timings."""
    kept = [path for path in sorted(folder.rglob("*")) if path.is_file() and path.name not in {"_run.json", ".lock"}]
    return {str(path.relative_to(folder)): path.read_bytes() for path in kept}


if __name__ == "__main__":
    result = main(Path(sys.argv[1]))
    sys.stdout.write(json.dumps(result) + "\n")
