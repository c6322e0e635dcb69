"""Prove and measure the CUDA path on a machine with a GPU, in about ten minutes.

    python -m tests.on_gpu --models DIR --images DIR [--work DIR] [--out DIR]
        [--budget SECONDS] [--steps doctor,tests,parity,options,r2,r10]

The steps ``doctor`` and ``tests`` need no models and images: ``python -m tests.on_gpu --steps doctor``.
``--models`` holds exported models: best a ResNet-18 and an EfficientNet-B3 in fp16 and fp32, one of them a ``tf_`` one.
Each step is a process of its own with a deadline; after a failure the next step runs. ``--out/figures.jsonl`` gets a
line of JSON per step as soon as it ends, ``--out/log.txt`` all that the steps write to standard error, and standard
output a line with the verdict of each. Steps can be run again: their lines are added. The exit status is 1 if a step
failed. Without a GPU every step but ``doctor`` is skipped, and says why.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from tests.on_gpu.verdicts import Verdict, judge

SECONDS: Mapping[str, int] = {"doctor": 40, "tests": 100, "parity": 90, "options": 130, "r2": 90, "r10": 240}
_ALONE = {"doctor", "tests"}  # steps that make their own models and images
_END = 5  # seconds that a step has to end by itself after SIGTERM


@dataclass(frozen=True)
class Paths:
    """The folders of a run."""

    work: Path
    models: Path
    images: Path
    out: Path


def main(arguments: Sequence[str]) -> int:
    """Run the steps; return the exit status."""
    parser = argparse.ArgumentParser(prog="python -m tests.on_gpu")
    parser.add_argument("--models", type=Path, help="folder of exported models")
    parser.add_argument("--images", type=Path, help="folder of images")
    parser.add_argument("--work", type=Path, default=Path("runs/gpu"), help="for what the steps write (%(default)s)")
    parser.add_argument("--out", type=Path, default=Path("runs/gpu"), help="for the figures (%(default)s)")
    parser.add_argument("--budget", type=float, default=600, help="seconds for all steps")
    parser.add_argument("--steps", default=",".join(SECONDS))
    given = parser.parse_args(arguments)
    steps = given.steps.split(",")
    unknown = [step for step in steps if step not in SECONDS]
    if unknown:
        parser.error(f"{unknown[0]!r} is not a step; there are {', '.join(SECONDS)}")
    needing = [step for step in steps if step not in _ALONE]
    if needing and (given.models is None or given.images is None):
        parser.error(f"--models and --images are needed for {', '.join(needing)}; without: --steps doctor,tests")
    folders = (given.work, given.models or given.work, given.images or given.work, given.out)
    paths = Paths(*(path.absolute() for path in folders))
    for folder in (paths.work, paths.out):
        folder.mkdir(parents=True, exist_ok=True)
    verdicts = run_steps(steps, paths, budget=given.budget)
    return int(any(verdict.state == "FAIL" for verdict in verdicts))


def run_steps(steps: Sequence[str], paths: Paths, *, budget: float) -> list[Verdict]:
    """Run each step within its share of the budget, keep its figures, and print its verdict."""
    end = time.monotonic() + budget
    scale = budget / sum(SECONDS[step] for step in steps)
    verdicts = []
    for step in steps:
        limit = min(max(1.0, scale * SECONDS[step]), max(1.0, end - time.monotonic()))
        record = run_step(step, paths, limit=limit)
        verdict = judge(record)
        with (paths.out / "figures.jsonl").open("a", encoding="utf-8") as sink:
            sink.write(json.dumps(record | {"verdict": asdict(verdict)}) + "\n")
            sink.flush()
            os.fsync(sink.fileno())
        sys.stdout.write(f"{verdict}\n")
        sys.stdout.flush()
        verdicts.append(verdict)
    return verdicts


def run_step(step: str, paths: Paths, *, limit: float) -> dict[str, Any]:
    """Run a step in a process group of its own; return its figures, with the error or the deadline that ended it."""
    figures = paths.work / f"{step}.json"
    figures.unlink(missing_ok=True)
    folders = [str(path) for path in (paths.work, paths.models, paths.images, figures)]
    command = [sys.executable, "-m", "tests.on_gpu.steps", step, *folders]
    began, error = time.monotonic(), ""
    with (paths.out / "log.txt").open("ab") as log:
        log.write(f"\n===== {step}\n".encode())
        log.flush()
        environment = os.environ | {"XDG_CACHE_HOME": str(paths.work / "cache"), "PYTHONUNBUFFERED": "1"}
        process = subprocess.Popen(command, stdout=log, stderr=log, env=environment, start_new_session=True)
        try:
            status = process.wait(limit)
            error = f"its process ended with status {status}, see log.txt" if status else ""
        except subprocess.TimeoutExpired:
            error = f"not finished after {limit:.0f} s"
        finally:
            _end(process)
    record: dict[str, Any] = {"step": step, "limit": round(limit, 1), "seconds": round(time.monotonic() - began, 1)}
    try:
        record |= json.loads(figures.read_text(encoding="utf-8"))  # a step writes what it has so far
    except (OSError, ValueError):
        error = error or "it wrote no figures"
    return record | ({"error": error} if error and "error" not in record else {})


def _end(process: subprocess.Popen[bytes]) -> None:
    """End what is left of a step's processes."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        try:
            os.killpg(process.pid, number)
        except ProcessLookupError:
            break
        try:
            process.wait(_END)
        except subprocess.TimeoutExpired:
            continue
    process.wait()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
