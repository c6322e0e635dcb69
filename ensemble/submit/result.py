"""The result of `ensemble.submit.submit`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from ensemble.predict.result import render_unread
from ensemble.submit.exit_thresholds import Calibration
from ensemble.submit.time_budget import BudgetFit
from ensemble.text.text_table import render_columns


@dataclass(frozen=True, slots=True)
class PassCount:
    """The forward passes of one member over one view: the ``rows`` that needed it, and its ``weight`` of the whole."""

    member: str
    view: str
    weight: float
    rows: int


@dataclass(frozen=True, slots=True)
class Submitted:
    """A submission and what it took: ``passes`` forward passes of the ``whole`` number without an early exit.

    ``cells`` count the passes by member and view, in the order they ran. ``stages`` are seconds of
    ``read``, ``decode``, ``resize``, ``copy`` (on GPUs) and of each member, summed over threads; ``saved_time`` is the
    share of all members' time that was not needed, by what each pass took in this run, and None where a member had
    nothing to do. ``decisions`` say how each member ran, where it did, by what was chosen. ``filled`` and
    ``missing`` are images that could not be read: those with the class prior, and those without a row.
    """

    path: Path
    rows: int
    device: str
    early_exit: str | None
    passes: int
    whole: int
    cells: tuple[PassCount, ...]
    seconds: float
    stages: Mapping[str, float]
    saved_time: float | None
    calibration: Calibration | None = None
    fit: BudgetFit | None = None
    decisions: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    filled: tuple[str, ...] = ()
    missing: tuple[str, ...] = ()

    @property
    def saved(self) -> float:
        """The share of forward passes that were not needed."""
        return 1 - self.passes / self.whole

    def as_dict(self) -> dict[str, Any]:
        """Return JSON-ready values."""
        return asdict(self) | {
            "path": str(self.path),
            "saved": self.saved,
            "cells": [asdict(one) for one in self.cells],
            "calibration": None if self.calibration is None else self.calibration.as_dict(),
            "fit": None if self.fit is None else self.fit.as_dict(),
        }

    def render(self) -> str:
        """Return a table of the passes, what was saved and which members were left out."""
        rows = [(one.member, one.view, f"{one.weight:.4f}", f"{one.rows:,}") for one in self.cells]
        stages = ", ".join(f"{stage} {spent:.1f}" for stage, spent in self.stages.items())
        lines = [
            f"{self.rows:,} images on {self.device}, {self.seconds:.1f} s",
            f"{self.passes:,} of {self.whole:,} forward passes, {self.saved:.1%} saved"
            + (f", and {self.saved_time:.1%} of their time" if self.saved_time else ""),
            render_columns(("member", "view", "weight", "rows"), rows).rstrip("\n"),
            *([f"seconds: {stages}"] if stages else []),
        ]
        if self.calibration is not None:
            lines.append(self.calibration.render())
        if self.fit is not None:
            given_up = ", ".join(self.fit.left_out) or "nothing"
            lines.append(f"budget {self.fit.budget:.0f} s, expected {self.fit.expected:.0f} s; given up: {given_up}")
        return "\n".join([*lines, f"{render_unread(self.filled, self.missing)}{self.path}"])
