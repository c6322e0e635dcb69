"""The result of learning: the selected candidate, and the comparison that justifies it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass

from ensemble.labels import LabelSpace
from ensemble.learn.candidates import Fitted
from ensemble.learn.objective import Metric
from ensemble.learn.view_gains import ViewGain


@dataclass(frozen=True, slots=True)
class MemberView:
    """One view of one member: what learning gives a weight."""

    member: str
    view: str

    def __str__(self) -> str:
        return f"{self.member}/{self.view}"


@dataclass(frozen=True, slots=True)
class CandidateScore:
    """The scores of one candidate.

    ``nested`` is the mean score over repeated nested cross-validation, and ``low`` to ``high`` its 95 % bootstrap
    interval. ``gain`` is the difference to the mean of probabilities and ``error`` its standard error, from the same
    resamples for both. ``in_sample`` is the score on the images that the candidate was fitted to. ``weights``, which
    sum to one, are those of the member views by name. For the metric ``nll`` every score is the mean log-likelihood, so
    that higher is always better.
    """

    candidate: str
    nested: float
    low: float
    high: float
    gain: float
    error: float
    in_sample: float
    weights: Mapping[str, float]

    @property
    def optimism(self) -> float:
        """The in-sample score minus the cross-validated score."""
        return self.in_sample - self.nested


@dataclass(frozen=True, slots=True)
class MemberScore:
    """One member's own score, with its 95 % bootstrap interval."""

    member: str
    score: float
    low: float
    high: float


@dataclass(frozen=True, slots=True, eq=False)
class Learned:
    """The candidate ``method``, fitted to all images, and the comparison of all candidates.

    ``fitted`` refers to ``member_views`` and to the classes of ``labels``, in their order; ``candidates`` are all that
    were compared, fitted to all images. ``table`` has the mean first. ``expected_gain`` is the gain over the mean that
    `auto` is expected to have on other people (see `ensemble.learn.selection`): less than the gain of the selected
    candidate, which was selected for its gain, and 0 where the mean is kept. ``members`` are the members' own scores,
    of one fold where a model has several. ``view_gains`` measures each view beside the first in the plain mean.
    ``reason`` explains the selection.
    """

    method: str
    metric: Metric
    fitted: Fitted
    candidates: Mapping[str, Fitted]
    member_views: tuple[MemberView, ...]
    labels: LabelSpace
    table: tuple[CandidateScore, ...]
    expected_gain: float
    members: tuple[MemberScore, ...]
    view_gains: tuple[ViewGain, ...]
    reason: str
    images: int
    persons: int | None
    folds: int
    repeats: int
    seed: int

    def table_as_dicts(self) -> list[dict[str, object]]:
        """Return the table as JSON-ready values."""
        return [asdict(row) | {"optimism": row.optimism} for row in self.table]
