"""Export timm's architectures with random weights, one after another, and count which succeed.

    python -m tests.harness.architectures TABLE.tsv [--families resnet,vit] [--most-parameters 100] [--seconds 300]

Each architecture is saved as a user would save it (`torch.save(model.state_dict())`), opened with its name, exported
and verified by `ens export`'s own functions in a process of its own. A line per architecture goes to the table at once;
architectures that are there already are passed over, so that the run can be stopped and resumed. pytest does not
collect this file.
"""

from __future__ import annotations

import argparse
import collections
import functools
import multiprocessing
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path

import timm
import torch

from checkpoints.loading.open import open_checkpoint
from ensemble.errors import EnsError
from ensemble.text_table import render_columns
from exporters.export import ExportOptions, export

FAMILIES: Mapping[str, tuple[str, ...]] = {
    "resnet": ("resnet*",),
    "resnext": ("resnext*",),
    "se-resnet": ("seresnet*", "seresnext*"),
    "efficientnet": ("efficientnet*", "tf_efficientnet*"),
    "convnext": ("convnext*",),
    "vit": ("vit_*",),
    "deit": ("deit*",),
    "swin": ("swin*",),
    "mobilenet": ("mobilenet*",),
    "regnet": ("regnet*",),
    "densenet": ("densenet*",),
    "maxvit": ("maxvit*", "maxxvit*", "coatnet*"),
    "beit": ("beit*",),
}
CLASSES = 5


@dataclass(frozen=True, slots=True)
class Row:
    """One line of the table: ``result`` is ``exported``, ``failed``, ``timeout`` or ``large``."""

    family: str
    arch: str
    result: str
    parameters: float
    seconds: float
    message: str

    def line(self) -> str:
        return "\t".join(
            (self.family, self.arch, self.result, f"{self.parameters:.1f}", f"{self.seconds:.1f}", self.message)
        )


def names_of(family: str) -> tuple[str, ...]:
    """Return the architectures of a family, in timm's order."""
    return tuple(dict.fromkeys(name for pattern in FAMILIES[family] for name in timm.list_models(pattern)))


def read_rows(table: Path) -> list[Row]:
    """Return the rows that an earlier run has written."""
    lines = table.read_text(encoding="utf-8").splitlines() if table.exists() else []
    cells = [line.split("\t") for line in lines]
    return [Row(c[0], c[1], c[2], float(c[3]), float(c[4]), c[5]) for c in cells]


@functools.cache
def millions_of_parameters(arch: str) -> float:
    """Count the parameters of an architecture, in millions, without allocating them."""
    with torch.device("meta"):
        model = timm.create_model(arch, num_classes=CLASSES)
    return sum(parameter.numel() for parameter in model.parameters()) / 1e6


def _export_one(arch: str, pipe: Connection) -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "model.pth")
        torch.save(timm.create_model(arch, num_classes=CLASSES).state_dict(), path)
        try:
            exported = export(open_checkpoint(path, arch=arch), Path(folder, "out"), options=ExportOptions())
            pipe.send(("exported", f"{exported.checks.as_dict()}"))
        except EnsError as err:
            pipe.send(("failed", f"{err.code} {err.message}"))
        except Exception as err:  # noqa: BLE001 - a bug in any of them is a line of the table
            pipe.send(("failed", f"{type(err).__name__}: {err}"))


def try_one(family: str, arch: str, *, most_parameters: float, seconds: float) -> Row:
    """Export one architecture in a forked process, so that a crash or a hang is a line of the table too."""
    millions = millions_of_parameters(arch)
    if millions > most_parameters:
        return Row(family, arch, "large", millions, 0, "")
    context = multiprocessing.get_context("fork")
    here, there = context.Pipe(duplex=False)
    started = time.perf_counter()
    child = context.Process(target=_export_one, args=(arch, there))
    child.start()
    there.close()
    result, message = "timeout", f"stopped after {seconds:.0f} s"
    try:
        if here.poll(seconds):
            result, message = here.recv()
    except EOFError:
        child.join(10)
        result, message = "failed", f"the process ended with status {child.exitcode}"
    child.kill()
    child.join()
    return Row(family, arch, result, millions, time.perf_counter() - started, " ".join(message.split())[:300])


def summarize(rows: list[Row]) -> str:
    """Render how many architectures of each family gave which result."""
    counts = collections.Counter((row.family, row.result) for row in rows)
    results = ("exported", "failed", "timeout", "large")
    families = dict.fromkeys(row.family for row in rows)
    return render_columns(
        ("family", *results), [(family, *(counts[family, result] for result in results)) for family in families]
    )


def pending(families: list[str], done: set[str]) -> Iterator[tuple[str, str]]:
    """Yield what is still to be tried: families in turn, small first, so that a stopped run has seen some of each."""
    queues = [
        collections.deque(
            (family, name) for name in sorted(names_of(family), key=millions_of_parameters) if name not in done
        )
        for family in families
    ]
    while queues := [queue for queue in queues if queue]:
        for queue in queues:
            yield queue.popleft()


def main() -> int:
    """Export all, print the table's summary, and return 1 if an architecture failed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("table", type=Path)
    parser.add_argument("--families", default=",".join(FAMILIES))
    parser.add_argument("--most-parameters", type=float, default=100, help="Millions; larger ones are not tried.")
    parser.add_argument("--seconds", type=float, default=300, help="Time limit per architecture.")
    chosen = parser.parse_args()
    rows = read_rows(chosen.table)
    for family, arch in pending(chosen.families.split(","), {row.arch for row in rows}):
        rows.append(try_one(family, arch, most_parameters=chosen.most_parameters, seconds=chosen.seconds))
        with chosen.table.open("a", encoding="utf-8") as table:
            table.write(rows[-1].line() + "\n")
        sys.stdout.write(rows[-1].line() + "\n")
        sys.stdout.flush()
    sys.stdout.write(summarize(rows))
    return int(any(row.result in {"failed", "timeout"} for row in rows))


if __name__ == "__main__":
    sys.exit(main())
