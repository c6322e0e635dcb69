"""The options of opening a checkpoint, without torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from checkpoints.loading.head_options import HeadRequest
from ensemble.events import SILENT, Listener

if TYPE_CHECKING:
    from checkpoints.loading.open import Checkpoint

_ANY_HEAD = HeadRequest()


@dataclass(frozen=True, slots=True)
class OpenOptions:
    """The options of `checkpoints.loading.open.open_checkpoint`."""

    arch: str | None = None
    arch_options: Mapping[str, Any] = field(default_factory=dict)
    weights: str | None = None
    head: HeadRequest = _ANY_HEAD

    @property
    def are_simple(self) -> bool:
        """True if nothing is said about what the weights do not show."""
        head = self.head
        return not self.arch_options and head.layers is None and head.name is None and not head.leave_out

    def open(self, path: Path, *, listener: Listener = SILENT) -> Checkpoint:
        """Open a checkpoint with these options."""
        from checkpoints.loading.open import open_checkpoint

        return open_checkpoint(
            path,
            arch=self.arch,
            arch_options=self.arch_options,
            weights=self.weights,
            head=self.head,
            listener=listener,
        )
