"""Kill commands at random moments, run them again, and compare every byte with those of an undisturbed run.

    python -m tests.harness.kills --times 200

Each round starts a command on a toy contest in a process of its own and sends SIGKILL. Then no file may stand under a
final name but the one from before or the whole new one. The command is run again, and must leave the files of an
undisturbed run: the same names, the same bytes, nothing temporary. Most rounds are of `ens predict`, with parts of a
few rows, and of `ens submit` and `ens blend`, the others of `ens crop`, `ens train` and `ens export`, of two models in
float32 and of one in int8. What is computed is written at once, as it is otherwise after some seconds.

One moment of five is drawn over the whole of an undisturbed run, start-up included. The others are drawn over its
writing: one thread is held before or after a sync or rename, the others go on for a moment, and all are killed. Each
such point comes once before any comes again, and 200 rounds are about enough for all.

The work that a kill cost is counted in seconds of the processor: those of the killed process and of the run after it,
less those of an undisturbed run and of starting a process. What other programs do at the same time does not count.

pytest does not collect this file.
"""

from __future__ import annotations

import argparse
import collections
import contextlib
import io
import json
import os
import random
import re
import resource
import shutil
import subprocess
import tempfile
import time
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO
from unittest import mock

from ensemble.__main__ import run
from ensemble.predict import parts
from ensemble.predict.crash_note import NOTE
from tests.support import toys
from tests.support.children import PART_ROWS, start

STAGES = ("before the first file", "during a write", "between files", "at joining", "after completion")
_ROUNDS = ("predict", "submit", "train", "blend", "predict", "submit", "crop", "blend", "int8", "export")
_WITH_TORCH = ("crop", "export", "int8", "train")
_MEANWHILE = 0.03  # seconds at most that other threads go on after one is held
_LIMIT = 1800  # seconds of the clock that a command may take on a machine that others use too

_TIMED = "_run.json"  # what really ran, with seconds: whole, but never the same twice
_LOG = re.compile(r"fold\d+\.csv")  # with images per second, and a line more after each epoch


@dataclass(frozen=True, slots=True)
class Started:
    """A process, and the pipe by which it tells of each point in its writing."""

    process: subprocess.Popen[str]
    told: BinaryIO

    def count(self) -> int:
        """Wait until it ends, or has come to where it is held, and return how many points it has passed."""
        return len(self.told.read())


@dataclass(frozen=True, slots=True)
class Effort:
    """Seconds of the processor that an undisturbed run of a command takes, and that a process takes to start it."""

    run: float
    start: float

    def lost(self, killed: float, again: float) -> float:
        """What a kill cost, from the seconds of the killed process and of the run after it."""
        return max(0.0, max(0.0, killed - self.start) + again - self.run)


def processor_seconds() -> float:
    """The time of the processor that this process has used, with that of the processes it has waited for."""
    children = resource.getrusage(resource.RUSAGE_CHILDREN)
    return time.process_time() + children.ru_utime + children.ru_stime


@dataclass(frozen=True, slots=True)
class Command:
    """``arguments`` with ``{out}`` for the folder it writes to, where ``old`` files stand already."""

    name: str
    arguments: tuple[str, ...]
    old: Mapping[str, bytes] = field(default_factory=dict)

    def start(self, out: Path, rows: int, *, hold: int | None = None) -> Started:
        """Start it in a process of its own, with parts of so many rows, to be held at a point."""
        reading, writing = os.pipe()
        try:
            process = start(
                self._filled(out), part_rows=rows, points=writing, hold=-1 if hold is None else hold, early=True
            )
        finally:
            os.close(writing)
        return Started(process, open(reading, "rb"))

    def measure(self, out: Path, rows: int, generator: random.Random) -> Deck:
        """Run it to its end in a process of its own; the moments at which it can be killed.

        Raises:
            AssertionError: when it does not end with 0.
        """
        began = time.monotonic()
        started = self.start(out, rows)
        with started.told:
            points = started.count()
        said = started.process.communicate(timeout=_LIMIT)[1]
        assert started.process.returncode == 0, f"{self.name} ended with {started.process.returncode}: {said}"
        return Deck(time.monotonic() - began, points, generator)

    def run(self, out: Path, rows: int) -> None:
        """Run it to its end in this process, which needs no time to start.

        Raises:
            AssertionError: when it does not end with 0.
        """
        if self.name in _WITH_TORCH:
            import torch

            torch.set_num_threads(1)  # as OMP_NUM_THREADS has it for the process that is killed: it decides the bytes
        with mock.patch.object(parts, "PART_ROWS", rows), contextlib.redirect_stdout(io.StringIO()):
            assert run(self._filled(out)) == 0

    def prepare(self, out: Path) -> None:
        """Make ``out`` what it is before the command runs."""
        shutil.rmtree(out, ignore_errors=True)
        out.mkdir(parents=True)
        for name, data in self.old.items():
            (out / name).write_bytes(data)

    def _filled(self, out: Path) -> list[str]:
        return [argument.replace("{out}", f"{out}") for argument in self.arguments]


@dataclass(slots=True)
class Report:
    """How often each command was killed at each stage, and the seconds of work that each kill cost."""

    kills: dict[str, collections.Counter[str]] = field(default_factory=dict)
    lost: dict[str, list[float]] = field(default_factory=dict)

    def count(self, command: str, stage: str, lost: float) -> None:
        """Note a kill."""
        self.kills.setdefault(command, collections.Counter())[stage] += 1
        self.lost.setdefault(command, []).append(lost)

    def render(self) -> str:
        """A table with a line a command."""
        lines = [f"{'':10}" + "".join(f"{stage:>23}" for stage in STAGES) + f"{'lost at most':>15}{'mean':>8}"]
        for name, count in self.kills.items():
            lost = self.lost[name]
            stages = "".join(f"{count[stage]:23}" for stage in STAGES)
            lines.append(f"{name:10}{stages}{max(lost):13.1f} s{sum(lost) / len(lost):6.1f} s")
        return "\n".join(lines)


def contents(folder: Path) -> dict[str, bytes]:
    """Every file below a folder, hidden ones too, by its name; of those that tell times or processes only the name."""
    found = (path for path in sorted(folder.rglob("*")) if path.is_file())
    return {f"{path.relative_to(folder)}": b"" if _is_untold(path.name) else path.read_bytes() for path in found}


def _is_untold(name: str) -> bool:
    return name in {_TIMED, ".lock"} or _LOG.fullmatch(name) is not None


def is_temporary(name: str) -> bool:
    """Whether a file is one that gets its final name later, or is gone when the command has ended."""
    return name.endswith((".tmp", ".early", ".partial", ".state"))


def stage_of(found: Mapping[str, bytes], expected: Mapping[str, bytes]) -> str:
    """Where a run was when it was killed, by the files it left; see `STAGES`."""
    waited = {name for name in expected if not name.endswith(".lock")}
    missing = {name for name in waited if found.get(name) != expected[name]}
    if not missing:
        return "after completion"
    many = [name for name in waited if name.endswith(".parquet")]
    if many and not missing.intersection(many):
        return "at joining"
    if any(map(is_temporary, found)):
        return "during a write"
    return "before the first file" if missing == waited else "between files"


def require_whole(found: Mapping[str, bytes], expected: Mapping[str, bytes], old: Mapping[str, bytes]) -> None:
    """Every final name holds the old file or the whole new one; beside them there may be notes of what is under way.

    Raises:
        AssertionError: when one holds anything else.
    """
    for name, data in found.items():
        if not is_temporary(name) and Path(name).name != NOTE:
            assert name in expected, f"{name} is a stray file"
            assert data in {expected[name], old.get(name, expected[name])}, (
                f"{name} is neither the old nor the new file"
            )
    for name in old:
        assert name in found, f"{name} is gone"


@dataclass(frozen=True, slots=True)
class Moment:
    """``seconds`` after a ``point`` in the writing, at which a thread is held; without one, after the start."""

    point: int | None
    seconds: float

    def __str__(self) -> str:
        return f"{self.seconds:.3f} s after " + ("the start" if self.point is None else f"point {self.point}")


@dataclass(slots=True)
class Deck:
    """The moments to kill a command at: every fifth from the ``seconds`` of a run, the others from its ``points``.

    No point comes twice before all have come.
    """

    seconds: float
    points: int
    generator: random.Random
    drawn: int = 0
    left: list[int] = field(default_factory=list)

    def draw(self) -> Moment:
        """The next moment."""
        self.drawn += 1
        if self.drawn % 5 == 0:
            return Moment(None, self.generator.uniform(0, self.seconds))
        self.left = self.left or self.generator.sample(range(self.points), self.points)
        return Moment(self.left.pop(), self.generator.uniform(0, _MEANWHILE))


def kill_at(moment: Moment, command: Command, out: Path, rows: int) -> None:
    """Start a command and kill it, if it has not ended by then.

    Raises:
        AssertionError: when it ends with another status than 0.
    """
    started = command.start(out, rows, hold=moment.point)
    if moment.point is not None:
        started.count()
    try:
        said = started.process.communicate(timeout=moment.seconds)[1]
        assert started.process.returncode == 0, f"it ended with {started.process.returncode}: {said}"
    except subprocess.TimeoutExpired:
        started.process.kill()
        started.process.communicate()
    finally:
        started.told.close()


def kill(
    command: Command, out: Path, expected: Mapping[str, bytes], *, rows: int, moment: Moment, effort: Effort
) -> tuple[str, float]:
    """Kill the command at a moment, run it to its end, compare; the stage at which it was and the seconds it cost.

    A run that had ended by then counts as killed after completion.

    Raises:
        AssertionError: when a file is torn, differs or is left over.
    """
    command.prepare(out)
    began = processor_seconds()
    kill_at(moment, command, out, rows)
    killed = processor_seconds() - began
    found = contents(out)
    require_whole(found, expected, command.old)
    for path in out.rglob(_TIMED):
        json.loads(path.read_text(encoding="utf-8"))
    began = processor_seconds()
    command.run(out, rows)
    lost = effort.lost(killed, processor_seconds() - began)
    after = contents(out)
    assert after.keys() == expected.keys(), f"{command.name}: {after.keys() ^ expected.keys()} after a kill {moment}"
    assert after == expected, f"{command.name} gives other bytes after a kill {moment}"
    return stage_of(found, expected), lost


def measure_effort(command: Command, out: Path, rows: int, seconds: float) -> Effort:
    """Run a command twice here, the second time for its seconds; ``seconds`` are those of a process of its own."""
    took = 0.0
    for _ in range(2):  # the first time imports as well
        command.prepare(out)
        began = processor_seconds()
        command.run(out, rows)
        took = processor_seconds() - began
    return Effort(took, max(0.0, seconds - took))


def make_commands(folder: Path, images: int, *, torch: bool) -> tuple[Command, ...]:
    """A toy contest in ``folder``, and the commands on it; ``torch``: also those that need it."""
    names = [f"{i:04d}.jpg" for i in range(images)]
    toys.write_pictures(folder / "images", names)
    for seed, member in enumerate(("a", "b")):
        toys.write_model(folder / "models", toys.card(member), seed=seed)
    info = folder / "info.csv"
    info.write_text("ImageID,ans\n" + "".join(f"{name},0\n" for name in reversed(names)))
    source = ("--images", f"{folder / 'images'}", "--device", "cpu", "-j", "1", "-b", "16")
    models, like = f"{folder / 'models'}", ("--like", f"{info}", "-o", "{out}/submission.csv")
    predict = Command("predict", ("predict", models, *source, "--ids", f"{info}", "--tta", "-o", "{out}"))
    predict.run(folder / "preds", PART_ROWS)
    old = {"submission.csv": b"ImageID,ans\nold.jpg,0\n", "blend.json": b"{}"}
    blend = Command("blend", ("blend", f"{folder / 'preds'}", *like, "--save", "{out}/blend.json"), old)
    blend.prepare(folder / "blended")
    blend.run(folder / "blended", PART_ROWS)
    recipe, work = f"{folder / 'blended' / 'blend.json'}", ("--work", "{out}/work", "--early-exit", "exact")
    submit = Command(
        "submit",
        ("submit", recipe, "--models", models, *source, *like, *work),
        {"submission.csv": old["submission.csv"]},
    )
    return (predict, blend, submit, *(_with_torch(folder) if torch else []))


def _with_torch(folder: Path) -> list[Command]:
    return [make_export(folder), make_int8(folder), make_crop(folder), make_train(folder)]


def make_export(folder: Path) -> Command:
    """`ens export` of two small networks over an older model."""
    from tests.support.weights import TINY, save, tiny_state

    checkpoints = [f"{save(folder / name, tiny_state())}" for name in ("toy.pth", "other.pth")]
    options = ("--arch", TINY, "--labels", "mask18", "--size", "64", "-o", "{out}")
    return Command("export", ("export", *checkpoints, *options), {"toy.onnx": b"old"})


def make_int8(folder: Path) -> Command:
    """`ens export` of a small network in int8, for TensorRT: times, which are never the same twice, decide nothing."""
    from tests.support.weights import TINY, save, tiny_state

    options = ("--arch", TINY, "--labels", "mask18", "--size", "64", "-o", "{out}")
    int8 = ("--precision", "int8", "--quantization", "symmetric", "--calibrate", f"{folder / 'images'}")
    return Command("int8", ("export", f"{save(folder / 'small.pth', tiny_state())}", *options, *int8))


def make_crop(folder: Path) -> Command:
    """`ens crop` of the toy pictures, in which there is hardly a face."""
    options = ("--detector", "mtcnn", "--device", "cpu", "-j", "1", "-o", "{out}/boxes.parquet")
    return Command("crop", ("crop", f"{folder / 'images'}", *options))


def make_train(folder: Path) -> Command:
    """`ens train` of a small network on three classes, in two folds of two epochs."""
    for label in range(3):
        toys.write_pictures(folder / "train" / f"class{label}", [f"{label}_{i:02d}.jpg" for i in range(12)])
    network = ("--arch", "test_resnet", "--size", "32", "--augment", "flip", "--ema", "0.9")
    options = ("--member", "toy", "--folds", "2", "--epochs", "2", "--batch", "6", "--device", "cpu", "-o", "{out}")
    return Command("train", ("train", f"{folder / 'train'}", *network, *options))


def kill_often(
    folder: Path,
    *,
    times: int,
    seed: int = 0,
    images: int = 72,
    rows: int = 18,
    names: Collection[str] = _ROUNDS,
    tell: bool = False,
) -> Report:
    """Kill commands ``times`` times, work in ``folder``; ``names`` are those of the commands to kill.

    Raises:
        AssertionError: when a file is torn, differs or is left over.
    """
    generator = random.Random(seed)
    torch = not set(names).isdisjoint(_WITH_TORCH)
    commands = {command.name: command for command in make_commands(folder, images, torch=torch)}
    rounds = [commands[name] for name in _ROUNDS if name in names]
    expected: dict[str, dict[str, bytes]] = {}
    decks: dict[str, Deck] = {}
    efforts: dict[str, Effort] = {}
    report = Report()
    for number in range(times):
        command = rounds[number % len(rounds)]
        if command.name not in expected:
            out = folder / "quiet" / command.name
            command.prepare(out)
            began = processor_seconds()
            decks[command.name] = command.measure(out, rows, generator)
            seconds = processor_seconds() - began
            expected[command.name] = contents(out)
            efforts[command.name] = measure_effort(command, folder / "again" / command.name, rows, seconds)
        moment = decks[command.name].draw()
        out = folder / "killed" / command.name
        effort = efforts[command.name]
        stage, lost = kill(command, out, expected[command.name], rows=rows, moment=moment, effort=effort)
        report.count(command.name, stage, lost)
        if tell:
            text = f"{number + 1:4} {command.name} {moment}: {stage}, {lost:.1f} s lost"
            print(text, flush=True)  # noqa: T201 - a program for people
    return report


def main(arguments: Sequence[str] | None = None) -> None:
    """Kill so many times and print at which stages."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--times", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--commands", nargs="+", choices=sorted(set(_ROUNDS)), default=sorted(set(_ROUNDS)))
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as folder:
        report = kill_often(Path(folder), times=options.times, seed=options.seed, names=options.commands, tell=True)
    print(f"{options.times} kills, and every byte as without them\n{report.render()}")  # noqa: T201 - a program for people


if __name__ == "__main__":
    main()
