"""One night's work on real photographs, with all that can go wrong in it, and what must come out in the morning.

    python -m tests.harness.night eval/images --models models/*.onnx
        [--ids eval/info.csv] [--truth truth.csv] [--limit 300]

Odd and bad files are put among links to the photographs. Lists that no run may start with are refused first. Then `ens
predict --tta` is killed twice, meets a full disk (a small tmpfs where this may mount one, elsewhere a limit on the size
of a file) and runs to its end; no run may write again what one before it finished. `errors.csv` must name the bad files
with their codes and nothing else, and every row of the others must have the bytes of an undisturbed run without them.
In the morning `--on-bad-image skip` and `fill` must compute nothing, and `ens blend` and `ens check` must make of the
one a submission that lacks just the bad files, of the other a complete one. pytest does not collect this file.
"""

from __future__ import annotations

import argparse
import collections
import contextlib
import io
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any
from unittest import mock

from ensemble.__main__ import run
from ensemble.images.listing import read_ids
from ensemble.predict import parts
from ensemble.predict.crash_note import NOTE
from ensemble.predictions.dataset import FILLED, read_part
from ensemble.text.csv_table import read_table, render_table
from tests.support.children import PART_ROWS, start
from tests.support.disk import full_disk, small_disk
from tests.support.strange import CLOSED, bad_files, odd_files, refused_lists

_LIMIT = 3600  # seconds of the clock that a run may take


@dataclass(slots=True)
class Night:
    """A work folder: ``listed`` and ``good`` ids in order, and the codes of the ``bad`` ones; ``figures`` to tell."""

    home: Path
    models: tuple[Path, ...]
    listed: tuple[str, ...]
    good: tuple[str, ...]
    bad: Mapping[str, str]
    part_rows: int = PART_ROWS
    pause: float = 0.0
    figures: dict[str, str] = field(default_factory=dict)

    @property
    def images(self) -> Path:
        """Where all files are, good and bad."""
        return self.home / "images"

    @property
    def preds(self) -> Path:
        """What the disturbed night writes, on a disk of its own where there is one."""
        return self.home / "disk" / "preds"

    def predicting(self, ids: Path, folder: Path) -> list[str]:
        """The command that predicts a list."""
        models = [f"{path}" for path in self.models]
        return ["predict", *models, "--images", f"{self.images}", "--ids", f"{ids}", "--tta", "-o", f"{folder}"]

    def start(self, ids: Path, *options: str, file_bytes: int = 0) -> subprocess.Popen[str]:
        """Predict a list in a process of its own."""
        command = [*self.predicting(ids, self.preds), *options]
        return start(command, part_rows=self.part_rows, pause=self.pause, file_bytes=file_bytes)

    def write_list(self, name: str, ids: Sequence[str]) -> Path:
        """Write a list of ids."""
        path = self.home / name
        path.write_bytes(render_table(("ImageID", "ans"), [(i, 0) for i in ids]))
        return path

    def parts(self) -> list[Path]:
        """The parts that the night has written so far."""
        return sorted(self.preds.rglob("part-*.parquet"))

    @contextlib.contextmanager
    def keeping(self) -> Iterator[None]:
        """What happens inside must leave every part that is there as it is.

        Raises:
            AssertionError: when it writes one again.
        """
        before = {path: path.stat().st_mtime_ns for path in self.parts()}
        yield
        again = [path for path, written in before.items() if path.stat().st_mtime_ns != written]
        assert not again, again

    def records(self) -> list[dict[str, Any]]:
        """What the last run says of itself, for each member."""
        found = [json.loads(path.read_text(encoding="utf-8")) for path in sorted(self.preds.rglob("_run.json"))]
        assert len(found) == len(self.models)
        return found


def spend_night(
    photographs: Path,
    models: Sequence[Path],
    home: Path,
    *,
    ids: Sequence[str],
    seed: int = 0,
    part_rows: int = PART_ROWS,
    pause: float = 0.0,
    mount: bool = True,
) -> Night:
    """All of it, in the empty folder ``home``; see the module, and `start` for ``part_rows`` and ``pause``.

    Raises:
        AssertionError: when anything comes out other than it must.
    """
    generator = random.Random(seed)
    night = replace(prepare(photographs, models, home, ids, generator), part_rows=part_rows, pause=pause)
    refuse(night)
    listed = night.write_list("info.csv", night.listed)
    with small_disk(night.preds.parent, mount=mount) as mounted:
        disturb(night, listed, generator, mounted=mounted)
        finish(night, listed)
        clean = night.write_list("clean.csv", night.good)
        undisturbed = home / "undisturbed"
        began = time.monotonic()
        require(night, *night.predicting(clean, undisturbed))
        night.figures["undisturbed run"] = f"{time.monotonic() - began:.0f} s"
        compare(night, undisturbed)
        leave_out(night, listed)
        fill(night, listed)
    return night


def prepare(
    photographs: Path, models: Sequence[Path], home: Path, ids: Sequence[str], generator: random.Random
) -> Night:
    """Link the photographs and put the odd and the bad files among them, anywhere in the list."""
    odd, bad = odd_files(), bad_files()
    images = home / "images"
    for name in ids:
        (images / name).parent.mkdir(parents=True, exist_ok=True)
        _link(photographs / name, images / name)
    for name, data in (odd | {name: data for name, (_, data) in bad.items()}).items():
        (images / name).parent.mkdir(parents=True, exist_ok=True)
        (images / name).write_bytes(data)
    (images / CLOSED[0]).write_bytes(next(iter(odd.values())))
    (images / CLOSED[0]).chmod(0)
    codes = {name: code for name, (code, _) in bad.items()} | dict([CLOSED])
    good = list(ids)
    for name in odd:
        good.insert(generator.randrange(len(good) + 1), unicodedata.normalize("NFC", name))
    listed = list(good)
    for name in codes:
        listed.insert(generator.randrange(len(listed) + 1), name)
    night = Night(home, tuple(models), tuple(listed), tuple(good), codes)
    by_code = ", ".join(f"{code} {number}" for code, number in sorted(collections.Counter(codes.values()).items()))
    night.figures |= {
        "photographs": f"{len(ids):,}",
        "odd files, to be read": f"{len(odd)}",
        "bad files": f"{len(codes)}: {by_code}",
    }
    return night


def refuse(night: Night) -> None:
    """Every list that no run may start with is refused with its code, and nothing is written."""
    lists = refused_lists(night.images, night.good[0])
    for name, (code, ids) in lists.items():
        command = night.predicting(night.write_list("refused.csv", [*night.good[:3], *ids]), night.home / "refused")
        status, said = hear(night, *command, "--json")
        assert (status, json.loads(said)["error"]["code"]) == (3, code), f"{name}: {said}"
    assert not list((night.home / "refused").iterdir())
    night.figures["lists refused"] = f"{len(lists)}: " + ", ".join(sorted({code for code, _ in lists.values()}))


def disturb(night: Night, listed: Path, generator: random.Random, *, mounted: bool) -> None:
    """Kill two runs and let a third meet a full disk."""
    whole = len(night.models) * -(-len(night.listed) // night.part_rows)
    for share in (generator.uniform(0, 0.3), generator.uniform(0.3, 0.6)):
        with night.keeping():
            process = night.start(listed)
            began = time.monotonic()
            while process.poll() is None and len(night.parts()) < share * whole and time.monotonic() < began + _LIMIT:
                time.sleep(0.01)
            time.sleep(generator.uniform(0, (time.monotonic() - began) / 20))
            process.kill()
            said = process.communicate()[1]
        assert process.returncode == -signal.SIGKILL, said
        night.figures["killed with"] = f"{night.figures.get('killed with', '')} {len(night.parts())}".strip()
    night.figures["killed with"] += f" of {whole} parts written"
    with full_disk(night.preds.parent, mounted=mounted) as limit, night.keeping():
        process = night.start(listed, file_bytes=limit)
        said = process.communicate(timeout=_LIMIT)[1]
    assert process.returncode == 7, said
    assert "error[E701]" in said, said
    how = "a tmpfs" if mounted else f"files of {limit} bytes at most"
    night.figures["full disk"] = f"{how}: exit status 7, E701; {len(night.parts())} parts kept"


def finish(night: Night, listed: Path) -> None:
    """The last run of the night does the rest, and tells of every bad file and of no other."""
    with night.keeping():
        process = night.start(listed)
        said = process.communicate(timeout=_LIMIT)[1]
    assert process.returncode == 3, said
    assert "error[E326]" in said, said
    table = read_table(night.preds / "errors.csv")
    named = dict(zip(table.column("id"), table.column("code"), strict=True))
    assert named == night.bad, sorted(named.items() ^ night.bad.items())
    left = [path for path in night.preds.rglob("*") if path.suffix == ".tmp" or path.name == NOTE]
    assert not left, left
    computed = night.records()[0]["computed"]
    night.figures["last run"] = f"exit status 3, E326; {computed:,} of {len(night.good):,} rows computed"
    night.figures["errors.csv"] = f"names the {len(named)} bad files with their codes, and no other"


def compare(night: Night, undisturbed: Path) -> None:
    """Every row of every member and view has the bytes of the run without disturbance and bad files."""
    rows = 0
    for member in sorted(path.name for path in undisturbed.iterdir() if path.is_dir()):
        found, expected = (_rows(folder / member) for folder in (night.preds, undisturbed))
        assert expected.keys() == set(night.good)
        assert found.keys() == expected.keys(), found.keys() ^ expected.keys()
        differing = [name for name, row in found.items() if row != expected[name]]
        assert not differing, differing
        rows += len(found)
    night.figures["rows compared"] = f"{rows:,}, each of two views: equal to the last bit"


def decide(night: Night, listed: Path, policy: str) -> Path:
    """Run once more with another policy for bad images, which computes nothing, and blend; where the submission is."""
    with night.keeping():
        process = night.start(listed, "--on-bad-image", policy)
        said = process.communicate(timeout=_LIMIT)[1]
    assert process.returncode == 0, said
    assert [record["computed"] for record in night.records()] == [0] * len(night.models)
    submission = night.home / "submission.csv" if policy == "skip" else night.home / "filled.csv"
    options = ["--allow-missing"] * (policy == "skip")
    blending = ("blend", f"{night.preds}", "--like", f"{listed}", "-o", f"{submission}", "--json", *options)
    told = json.loads(require(night, *blending))
    named = {"skip": {"missing": sorted(night.bad), "filled": []}, "fill": {"missing": [], "filled": sorted(night.bad)}}
    assert {key: told[key] for key in ("missing", "filled")} == named[policy]
    require(night, "check", f"{submission}", "--like", f"{listed}", *options)
    return submission


def leave_out(night: Night, listed: Path) -> None:
    """With ``skip`` the submission has every good image in its place, and a check that allows nothing names the bad."""
    submission = decide(night, listed, "skip")
    assert read_ids(submission) == night.good
    status, said = hear(night, "check", f"{submission}", "--like", f"{listed}", "--json")
    (fault,) = json.loads(said)["error"]["details"]
    assert (status, fault.partition(":")[0]) == (5, f"missing ({len(night.bad)})"), said
    night.figures["submission"] = f"{len(night.good):,} rows, ens check --allow-missing finds no faults"
    night.figures["left out"] = f"the {len(night.bad)} bad files, and no other; nothing is computed for that"


def fill(night: Night, listed: Path) -> None:
    """With ``fill`` the submission is complete, its filled rows are those of the bad files, and the others stay."""
    submission = decide(night, listed, "fill")
    assert read_ids(submission) == night.listed
    found = [read_part(path) for path in night.preds.rglob(FILLED)]
    assert [(set(part.ids), set(part.filled)) for part in found] == [(set(night.bad),) * 2] * len(night.models)
    rows = read_table(submission).rows
    assert tuple(row for row in rows if row[0] not in night.bad) == read_table(night.home / "submission.csv").rows
    night.figures["filled"] = f"{len(rows):,} rows, {len(night.bad)} of them the class prior; the others stay"


def require(night: Night, *arguments: str) -> str:
    """Run a command in this process, which must end with 0, and return what it says on stdout."""
    status, said = hear(night, *arguments)
    assert status == 0, f"{arguments[0]} ended with {status}: {said}"
    return said


def hear(night: Night, *arguments: str) -> tuple[int, str]:
    """Run a command in this process; its exit status and what it says on stdout."""
    heard = io.StringIO()
    with (
        mock.patch.object(parts, "PART_ROWS", night.part_rows),
        contextlib.redirect_stdout(heard),
        contextlib.redirect_stderr(io.StringIO()),
    ):
        return run(arguments), heard.getvalue()


def _rows(folder: Path) -> dict[str, bytes]:
    found = {}
    for path in sorted(folder.glob("part-*.parquet")):
        part = read_part(path)
        for number, name in enumerate(part.ids):
            found[name] = b"".join(logits[number].tobytes() for logits in part.logits.values())
    return found


def _link(source: Path, path: Path) -> None:
    try:
        os.link(source, path)
    except OSError:
        shutil.copyfile(source, path)


def score(night: Night, truth: Path) -> str:
    """What `ens evaluate` says of the photographs in the submission."""
    told = set(night.good) & set(read_table(truth).column("ImageID"))
    known = {night.home / "known.csv": night.home / "submission.csv", night.home / "truth.csv": truth}
    for path, source in known.items():
        table = read_table(source)
        path.write_bytes(render_table(table.header, [row for row in table.rows if row[0] in told]))
    answers, truths = map(str, known)
    (found,) = json.loads(require(night, "evaluate", answers, "--truth", truths, "--json"))["scores"]
    return f"macro F1 {found['macro_f1']['value']:.4f} of {len(told):,} photographs"


def main(arguments: Sequence[str] | None = None) -> None:
    """Spend a night and print what came of it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("photographs", type=Path)
    parser.add_argument("--models", type=Path, nargs="+", required=True)
    parser.add_argument("--ids", type=Path, help="info.csv; by default the one beside the folder")
    parser.add_argument("--truth", type=Path)
    parser.add_argument("--limit", type=int)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(arguments)
    ids = read_ids(options.ids or options.photographs.parent / "info.csv")[: options.limit]
    began = time.monotonic()
    with tempfile.TemporaryDirectory(dir=options.photographs.parent) as home:  # on the same disk, for links
        night = spend_night(options.photographs, options.models, Path(home), ids=ids, seed=options.seed)
        if options.truth is not None:
            night.figures["score"] = score(night, options.truth)
    night.figures["all in all"] = f"{time.monotonic() - began:.0f} s"
    for name, figure in night.figures.items():
        sys.stdout.write(f"{name:24}{figure}\n")


if __name__ == "__main__":
    main()
