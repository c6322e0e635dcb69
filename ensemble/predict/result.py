"""The result of `ensemble.predict.predict`."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from ensemble.errors import enumerate_some
from ensemble.events import Notice
from ensemble.predict.batch_size import Sample
from ensemble.runtime.model_file import ModelFile
from ensemble.text.text_table import render_columns


@dataclass(frozen=True, slots=True)
class MemberRun:
    """The run of one member: ``computed`` rows in ``seconds`` of its own; the other rows were finished before.

    ``decisions`` say how it ran, by what was chosen; ``at_once`` is how many images went through it at once after the
    ``trial`` of several sizes, where there was one.
    """

    member: str
    folder: Path
    computed: int
    seconds: float
    decisions: Mapping[str, str] = field(default_factory=dict)
    at_once: int | None = None
    trial: tuple[Sample, ...] = ()


@dataclass(frozen=True, slots=True)
class Predicted:
    """A finished run; ``seconds`` of ``read``, ``decode``, ``resize``, ``copy`` (on GPUs), ``forward`` and ``write``,
    summed over threads, and of the whole run, ``wall``.

    ``memory`` is the memory budget in bytes, None on a cluster. ``filled`` and ``missing`` are unreadable images: those
    with the class prior, and those without a row.
    """

    images: int
    views: tuple[str, ...]
    device: str
    batch: int
    workers: int
    members: tuple[MemberRun, ...]
    seconds: Mapping[str, float]
    memory: int | None
    filled: tuple[str, ...] = ()
    missing: tuple[str, ...] = ()

    def as_dict(self) -> dict[str, Any]:
        """Return the result as JSON-ready values."""
        return asdict(self) | {"members": [asdict(run) | {"folder": str(run.folder)} for run in self.members]}

    def render(self) -> str:
        """Return a table of the members with their seconds and folders, and the seconds per stage."""
        rows = [
            (run.member, run.computed, run.at_once or self.batch, f"{run.seconds:.1f}", str(run.folder))
            for run in self.members
        ]
        stages = ", ".join(f"{stage} {spent:.1f}" for stage, spent in self.seconds.items())
        return (
            f"{self.images:,} images, views {', '.join(self.views)}, on {self.device} "
            f"with {self.workers} workers and batches of {self.batch}\n"
            + render_unread(self.filled, self.missing)
            + f"{render_columns(('member', 'computed', 'at once', 'seconds', 'folder'), rows)}"
            f"seconds: {stages}"
        )

    def record(self, model: ModelFile, notices: Sequence[Notice]) -> bytes:
        """Return the record of the run as JSON, to be stored beside the predictions of one member."""
        own = next(run for run in self.members if run.member == model.card.member)
        record = {
            "member": own.member,
            "model": {"path": str(model.path), "sha256": model.sha256},
            "images": self.images,
            "views": self.views,
            "device": self.device,
            "batch": self.batch,
            "workers": self.workers,
            "memory": self.memory,
            "at_once": own.at_once,
            "trial": [asdict(sample) for sample in own.trial],
            "decisions": dict(own.decisions),
            "computed": own.computed,
            "filled": list(self.filled),
            "missing": list(self.missing),
            "seconds": {"own": own.seconds} | dict(self.seconds),
            "notices": [notice.as_dict() for notice in notices],
        }
        return json.dumps(record, ensure_ascii=False, indent=1).encode() + b"\n"


def is_record(path: Path) -> bool:
    """Return True if there is a complete record; after a power failure there may be a partial one."""
    try:
        return isinstance(json.loads(path.read_bytes()), dict)
    except (OSError, ValueError):
        return False


def render_unread(filled: Sequence[str], missing: Sequence[str]) -> str:
    """Return a line about the unreadable images, if there are any."""
    parts = [f"{len(filled):,} images filled with the class prior: {enumerate_some(list(filled))}"] * bool(filled)
    parts += [f"{len(missing):,} images missing: {enumerate_some(list(missing))}"] * bool(missing)
    return "".join(f"{part}\n" for part in parts)
