"""Predictions that tests make for themselves."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ensemble.labels import LabelSpace
from ensemble.predictions.dataset import Predictions


def make_member(
    name: str,
    logits: Mapping[str, ArrayLike] | ArrayLike,
    *,
    ids: Sequence[str] | None = None,
    labels: LabelSpace | None = None,
    group: str | None = None,
) -> Predictions:
    """A member with these logits, by view or of the view ``identity`` alone; ids are ``000.jpg`` and so on."""
    views = logits if isinstance(logits, Mapping) else {"identity": logits}
    arrays = {view: np.asarray(values, dtype=np.float32) for view, values in views.items()}
    count, classes = next(iter(arrays.values())).shape
    return Predictions(
        member=name,
        group=group or name,
        fold=None,
        labels=labels or LabelSpace.flat(classes),
        ids=tuple(f"{i:03d}.jpg" for i in range(count)) if ids is None else tuple(ids),
        logits=arrays,
        sha256=hashlib.sha256(b"".join(values.tobytes() for values in arrays.values())).hexdigest(),
    )


def draw_logits(seed: int, count: int = 30, classes: int = 4, *, scale: float = 3.0) -> NDArray[np.float32]:
    """Normal logits ``(count, classes)``; every seed gives others."""
    return (np.random.default_rng(seed).normal(size=(count, classes)) * scale).astype(np.float32)


def reorder(member: Predictions, rows: Sequence[int] | NDArray[np.intp]) -> Predictions:
    """The same predictions with their rows in another order."""
    return Predictions(
        member=member.member,
        group=member.group,
        fold=member.fold,
        labels=member.labels,
        ids=tuple(member.ids[row] for row in rows),
        logits={view: values[np.asarray(rows)] for view, values in member.logits.items()},
        sha256=member.sha256,
        holdout_sha256=member.holdout_sha256,
    )
