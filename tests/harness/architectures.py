"""Export timm's architectures with random weights, one after another, and count which succeed.

    python -m tests.harness.architectures TABLE.tsv [--families resnet,vit] [--most-parameters 100] [--seconds 300]
        [--size 64] [--pictures 24]

Each architecture is saved as a user would save it (`torch.save(model.state_dict())`), opened with its name, exported
and verified by `ens export`'s own functions in a process of its own. A line per architecture goes to the table at once;
architectures that are there already are passed over, so that the run can be stopped and resumed. ``--size`` exports
networks that take any input size at that one, which costs a tenth of the time; networks of one size keep theirs.
pytest does not collect this file.
"""

from __future__ import annotations

import argparse
import collections
import functools
import multiprocessing
import os
import sys
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path

import timm
import torch
from PIL import Image

from checkpoints.loading.open import open_checkpoint
from ensemble.errors import EnsError
from ensemble.text.text_table import render_columns
from exporters.export import ExportOptions, ImageSet, export
from exporters.synthetic_images import render_pictures

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
POLL = 2.0


@dataclass(frozen=True, slots=True)
class Row:
    """One line of the table: ``result`` is ``exported``, ``failed``, ``timeout`` or ``large``.

    ``parameters`` are in millions, ``seconds`` those of the processor.
    """

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


def _free_size(arch: str, size: int) -> tuple[int, int] | None:
    """Return the input size to export at; None leaves it to timm: networks of one size, or with a larger minimum."""
    known = timm.models.get_pretrained_cfg(arch, allow_unregistered=True)
    fixed = known is None or known.fixed_input_size or (known.min_input_size or (3, 0, 0))[-1] > size
    return None if fixed or not size else (size, size)


def _check_images(folder: Path, count: int) -> ImageSet:
    """Save ``count`` rendered pictures as the images that the export is verified on."""
    paths = [folder / f"{number}.png" for number in range(count)]
    for path, picture in zip(paths, render_pictures(), strict=False):
        Image.fromarray(picture).save(path)
    return ImageSet(tuple(path.name for path in paths), tuple(paths))


def _export_one(arch: str, pipe: Connection, folder: Path, size: int, pictures: int) -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)
    path = folder / "model.pth"
    try:
        torch.save(timm.create_model(arch, num_classes=CLASSES).state_dict(), path)
        options = ExportOptions(size=_free_size(arch, size))
        images = _check_images(folder, pictures)
        exported = export(open_checkpoint(path, arch=arch), folder / "out", options=options, check_images=images)
        pipe.send(("exported", f"{exported.checks.as_dict()}"))
    except EnsError as err:
        pipe.send(("failed", f"{err.code} {err.message}"))
    except Exception as err:  # noqa: BLE001 - a bug in any of them is a line of the table
        pipe.send(("failed", f"{type(err).__name__}: {err}"))


def _cpu_seconds(process: int) -> float:
    """Return the processor time that a process has used, from Linux' ``/proc``."""
    fields = Path(f"/proc/{process}/stat").read_text(encoding="ascii").rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def try_one(family: str, arch: str, limits: argparse.Namespace) -> Row:
    """Export one architecture in a forked process, so that a crash or a hang is a line of the table too."""
    millions = millions_of_parameters(arch)
    if millions > limits.most_parameters:
        return Row(family, arch, "large", millions, 0, "")
    # made here: a child that is killed would leave its files behind
    with tempfile.TemporaryDirectory() as folder:
        result, message, used = _run(arch, Path(folder), limits)
    return Row(family, arch, result, millions, used, " ".join(message.split())[:300])


def _run(arch: str, folder: Path, limits: argparse.Namespace) -> tuple[str, str, float]:
    """Export one architecture in a child, and return the result, its message and the seconds of the processor."""
    context = multiprocessing.get_context("fork")
    here, there = context.Pipe(duplex=False)
    child = context.Process(target=_export_one, args=(arch, there, folder, limits.size, limits.pictures))
    child.start()
    there.close()
    assert child.pid is not None
    used = 0.0
    while used < limits.seconds and not here.poll(POLL):
        used = _cpu_seconds(child.pid)
    result, message = "timeout", f"stopped after {used:.0f} s"
    try:
        if here.poll():
            used = _cpu_seconds(child.pid)
            result, message = here.recv()
    except EOFError:
        child.join(10)
        result, message = "failed", f"the process ended with status {child.exitcode}"
    child.kill()
    child.join()
    return result, message, used


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
    parser.add_argument("--seconds", type=float, default=300, help="Limit of processor time per architecture.")
    parser.add_argument("--size", type=int, default=0, help="Input size of networks that take any; 0 is timm's own.")
    parser.add_argument("--pictures", type=int, default=24, help="Pictures that each export is verified on.")
    chosen = parser.parse_args()
    rows = read_rows(chosen.table)
    for family, arch in pending(chosen.families.split(","), {row.arch for row in rows}):
        rows.append(try_one(family, arch, chosen))
        with chosen.table.open("a", encoding="utf-8") as table:
            table.write(rows[-1].line() + "\n")
        sys.stdout.write(rows[-1].line() + "\n")
        sys.stdout.flush()
    sys.stdout.write(summarize(rows))
    return int(any(row.result in {"failed", "timeout"} for row in rows))


if __name__ == "__main__":
    sys.exit(main())
