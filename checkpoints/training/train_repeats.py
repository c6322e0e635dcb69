"""Train a member on several fold splits, so that every image has the predictions of several models that did not see it.

How far their mean is better than one of them is then measured on images with a truth (`ensemble.learn.fold_average`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from checkpoints.training.distributed import SINGLE_PROCESS, DistributedContext
from checkpoints.training.job import TrainJob
from checkpoints.training.preflight import check_job
from checkpoints.training.train_member import TrainedMember, train_member
from ensemble.events import SILENT, Listener


@dataclass(frozen=True, slots=True)
class TrainedRepeats:
    """A member trained on one fold split or more; ``splits`` are in the order of `TrainJob.repeat`."""

    splits: tuple[TrainedMember, ...]

    def as_dict(self) -> dict[str, Any]:
        """Return JSON-ready values: those of the first split, and all as ``repeats`` where there are several."""
        first, *others = [split.as_dict() for split in self.splits]
        return first | {"repeats": [first, *others]} if others else first

    def render(self) -> str:
        """Return one line per fold, and one per split for its out-of-fold predictions."""
        if len(self.splits) == 1:
            return self.splits[0].render()
        return "\n".join(
            f"split {number}: {line}"
            for number, split in enumerate(self.splits)
            for line in split.render().splitlines()
        )


def train_repeats(
    jobs: Sequence[TrainJob],
    *,
    only_fold: int | None = None,
    fresh: bool = False,
    distributed: DistributedContext = SINGLE_PROCESS,
    listener: Listener = SILENT,
) -> TrainedRepeats:
    """Train a member on the fold split of each job, one after the other, as `train_member` does.

    A finished split is kept, so that splits may be added to a member that has been trained.

    Raises:
        EnsError: as `train_member`; what `check_job` refuses in any split is refused before the first is trained.
    """
    for job in jobs[1:]:
        check_job(job, distributed=distributed)
    return TrainedRepeats(
        tuple(
            train_member(job, only_fold=only_fold, fresh=fresh, distributed=distributed, listener=listener)
            for job in jobs
        )
    )
