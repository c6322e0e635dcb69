"""Kill commands at random moments, run them again, and compare every byte with those of an undisturbed run.

    python -m tests.kills --times 200

Each round starts a command on a toy contest in a process of its own and sends SIGKILL. Then no file may stand under a
final name but the one from before or the whole new one. The command is run again, and must leave the files of an
undisturbed run: the same names, the same bytes, nothing temporary. Four rounds of five are of `ens predict`, with parts
of a few rows, the others of `ens blend`, `ens submit` and `ens export`. Half of the moments are drawn over the whole of
an undisturbed run, start-up included, half over the files it writes. The commands pause before and after each step of
writing, so that every one of them is struck. pytest does not collect this file.
"""

from __future__ import annotations

import argparse
import collections
import contextlib
import io
import json
import random
import shutil
import subprocess
import tempfile
import time
from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass, field
from pathlib import Path
from unittest import mock

from ensemble import parts
from ensemble.__main__ import run
from tests import toys
from tests.children import PART_ROWS, start

STAGES = ("before the first file", "during a write", "between files", "at joining", "after completion")
_STEPS = 6  # a file is synced, renamed and its folder synced, with a pause before and after each
_LIMIT = 1800  # seconds of the clock that a command may take on a machine that others use too

_TIMED = "_run.json"  # what really ran, with seconds: whole, but never the same twice


@dataclass(frozen=True, slots=True)
class Command:
    """``arguments`` with ``{out}`` for the folder it writes to, where ``old`` files stand already.

    ``files`` is how many it writes, with a ``pause`` in seconds around each step of writing.
    """

    name: str
    arguments: tuple[str, ...]
    pause: float
    files: int
    old: Mapping[str, bytes] = field(default_factory=dict)

    def start(self, out: Path, rows: int) -> subprocess.Popen[str]:
        """Start it in a process of its own, with parts of so many rows."""
        return start(self._filled(out), part_rows=rows, pause=self.pause)

    def run(self, out: Path, rows: int, *, inside: bool = False) -> float:
        """Run it to its end, in a process of its own or ``inside`` this one, and return the seconds that it took.

        Raises:
            AssertionError: when it does not end with 0.
        """
        began = time.monotonic()
        if inside:
            with mock.patch.object(parts, "PART_ROWS", rows), contextlib.redirect_stdout(io.StringIO()):
                assert run(self._filled(out)) == 0
            return time.monotonic() - began
        process = self.start(out, rows)
        said = process.communicate(timeout=_LIMIT)[1]
        assert process.returncode == 0, f"{self.name} ended with {process.returncode}: {said}"
        return time.monotonic() - began

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
    """How often each command was killed at each stage."""

    kills: dict[str, collections.Counter[str]] = field(default_factory=dict)

    def count(self, command: str, stage: str) -> None:
        """Note a kill."""
        self.kills.setdefault(command, collections.Counter())[stage] += 1

    def render(self) -> str:
        """A table with a line a command."""
        lines = [f"{'':10}" + "".join(f"{stage:>23}" for stage in STAGES)]
        lines += [
            f"{name:10}" + "".join(f"{count[stage]:23}" for stage in STAGES) for name, count in self.kills.items()
        ]
        return "\n".join(lines)


def contents(folder: Path) -> dict[str, bytes]:
    """Every file below a folder, hidden ones too, by its name; of those that tell times or processes only the name."""
    untold = {_TIMED, ".lock"}
    found = (path for path in sorted(folder.rglob("*")) if path.is_file())
    return {f"{path.relative_to(folder)}": b"" if path.name in untold else path.read_bytes() for path in found}


def is_temporary(name: str) -> bool:
    """Whether a file is one that gets its final name later."""
    return name.endswith(".tmp")


def stage_of(found: Mapping[str, bytes], expected: Mapping[str, bytes]) -> str:
    """Where a run was when it was killed, by the files it left; see `STAGES`."""
    waited = {name for name in expected if not name.endswith(".lock")}
    missing = {name for name in waited if found.get(name) != expected[name]}
    if any(map(is_temporary, found)):
        return "during a write"
    if missing == waited:
        return "before the first file"
    if not missing:
        return "after completion"
    many = [name for name in waited if name.endswith(".parquet")]
    return "at joining" if many and not missing.intersection(many) else "between files"


def require_whole(found: Mapping[str, bytes], expected: Mapping[str, bytes], old: Mapping[str, bytes]) -> None:
    """Every final name holds the old file or the whole new one.

    Raises:
        AssertionError: when one holds anything else.
    """
    for name, data in found.items():
        if not is_temporary(name):
            assert name in expected, f"{name} is a stray file"
            assert data in {expected[name], old.get(name, expected[name])}, (
                f"{name} is neither the old nor the new file"
            )


@dataclass(frozen=True, slots=True)
class Moment:
    """``seconds`` after so many ``halves`` of the files were written: of a file that is begun, one half."""

    halves: int
    seconds: float

    def __str__(self) -> str:
        return f"{self.seconds:.3f} s after " + (f"{self.halves / 2:g} files" if self.halves else "the start")


def draw_moment(command: Command, whole: float, generator: random.Random) -> Moment:
    """Every second moment from the ``whole`` seconds of a run, the others from its writing, however long that takes."""
    if generator.random() < 0.5:
        return Moment(0, generator.uniform(0, whole))
    return Moment(generator.randint(1, 2 * command.files), generator.uniform(0, _STEPS * command.pause))


def kill_at(moment: Moment, process: subprocess.Popen[str], out: Path) -> None:
    """Kill a process that writes to ``out``, if it has not ended by then.

    Raises:
        AssertionError: when it ends with another status than 0.
    """
    before = {path.stat().st_ino for path in out.iterdir()}
    end = time.monotonic() + _LIMIT
    while process.poll() is None and halves_written(out, before) < moment.halves and time.monotonic() < end:
        time.sleep(0.003)
    try:
        said = process.communicate(timeout=moment.seconds)[1]
        assert process.returncode == 0, f"it ended with {process.returncode}: {said}"
    except subprocess.TimeoutExpired:
        process.kill()
        process.communicate()


def halves_written(out: Path, before: Set[int]) -> int:
    """Two for every file that is not among those ``before``, by their inodes, and one where one is begun."""
    names = []
    for path in out.rglob("*"):
        with contextlib.suppress(FileNotFoundError):  # a temporary one that has got its name
            if path.is_file() and path.name != ".lock" and path.stat().st_ino not in before:
                names.append(path.name)
    done = sum(not is_temporary(name) for name in names)
    return 2 * done + (done < len(names))


def kill(command: Command, out: Path, expected: Mapping[str, bytes], *, rows: int, moment: Moment, inside: bool) -> str:
    """Kill the command at a moment, run it to its end, compare, and return the stage at which it was.

    A run that had ended by then counts as killed after completion.

    Raises:
        AssertionError: when a file is torn, differs or is left over.
    """
    command.prepare(out)
    kill_at(moment, command.start(out, rows), out)
    found = contents(out)
    require_whole(found, expected, command.old)
    for path in out.rglob(_TIMED):
        json.loads(path.read_text(encoding="utf-8"))
    command.run(out, rows, inside=inside)
    after = contents(out)
    assert after.keys() == expected.keys(), f"{command.name}: {after.keys() ^ expected.keys()} after a kill {moment}"
    assert after == expected, f"{command.name} gives other bytes after a kill {moment}"
    return stage_of(found, expected)


def make_commands(folder: Path, images: int, rows: int, *, torch: bool) -> tuple[Command, ...]:
    """A toy contest in ``folder``, and the commands on it; ``torch`` says whether `ens export` is one of them."""
    names = [f"{i:04d}.jpg" for i in range(images)]
    toys.write_pictures(folder / "images", names)
    for seed, member in enumerate(("a", "b")):
        toys.write_model(folder / "models", toys.card(member), seed=seed)
    info = folder / "info.csv"
    info.write_text("ImageID,ans\n" + "".join(f"{name},0\n" for name in reversed(names)))
    source = ("--images", f"{folder / 'images'}", "--device", "cpu", "-j", "1", "-b", "16")
    models, like = f"{folder / 'models'}", ("--like", f"{info}", "-o", "{out}/submission.csv")
    files = 2 * -(-images // rows) + 4
    predict = Command(
        "predict",
        ("predict", models, *source, "--ids", f"{info}", "--tta", "-o", "{out}"),
        pause=0.002,
        files=files,
    )
    predict.run(folder / "preds", PART_ROWS, inside=True)
    old = {"submission.csv": b"ImageID,ans\nold.jpg,0\n", "blend.json": b"{}"}
    blend = Command(
        "blend", ("blend", f"{folder / 'preds'}", *like, "--save", "{out}/blend.json"), pause=0.1, files=2, old=old
    )
    blend.prepare(folder / "blended")
    blend.run(folder / "blended", PART_ROWS, inside=True)
    recipe, work = f"{folder / 'blended' / 'blend.json'}", ("--work", "{out}/work", "--early-exit", "exact")
    submit = Command(
        "submit",
        ("submit", recipe, "--models", models, *source, *like, *work),
        pause=0.03,
        files=-(-images // 64) + 2,
        old={"submission.csv": old["submission.csv"]},
    )
    return (predict, blend, submit, *([make_export(folder)] if torch else []))


def make_export(folder: Path) -> Command:
    """`ens export` of a small network over an older model."""
    from tests.weights import TINY, save, tiny_state

    checkpoint = save(folder / "toy.pth", tiny_state())
    options = ("--arch", TINY, "--labels", "mask18", "--size", "64", "-o", "{out}")
    return Command("export", ("export", f"{checkpoint}", *options), pause=0.2, files=1, old={"toy.onnx": b"old"})


def kill_often(
    folder: Path,
    *,
    times: int,
    seed: int = 0,
    images: int = 320,
    rows: int = 8,
    torch: bool = True,
    inside: bool = False,
    tell: bool = False,
) -> Report:
    """Kill commands ``times`` times, work in ``folder``; four rounds of five are of `ens predict`.

    ``inside`` runs what is not killed in this process, which is quicker; ``torch`` allows `ens export`.

    Raises:
        AssertionError: when a file is torn, differs or is left over.
    """
    generator = random.Random(seed)
    predict, *others = make_commands(folder, images, rows, torch=torch)
    others = [*others[:2], *others]  # torch takes long to start
    expected: dict[str, dict[str, bytes]] = {}
    seconds: dict[str, float] = {}
    report = Report()
    for number in range(times):
        command = others[number // 5 % len(others)] if number % 5 == 4 else predict
        if command.name not in expected:
            out = folder / "quiet" / command.name
            command.prepare(out)
            seconds[command.name] = command.run(out, rows)
            expected[command.name] = contents(out)
        moment = draw_moment(command, seconds[command.name], generator)
        out = folder / "killed" / command.name
        stage = kill(command, out, expected[command.name], rows=rows, moment=moment, inside=inside)
        report.count(command.name, stage)
        if tell:
            print(f"{number + 1:4} {command.name} {moment}: {stage}", flush=True)  # noqa: T201 - a program for people
    return report


def main(arguments: Sequence[str] | None = None) -> None:
    """Kill so many times and print at which stages."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--times", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as folder:
        report = kill_often(Path(folder), times=options.times, seed=options.seed, tell=True)
    print(f"{options.times} kills, and every byte as without them\n{report.render()}")  # noqa: T201 - a program for people


if __name__ == "__main__":
    main()
