"""A head per axis of the label space, in place of one output per class; ordered axes may be ordinal."""

from __future__ import annotations

import math
from collections.abc import Collection

import torch
from torch.nn import functional

from ensemble.card import Head
from ensemble.errors import OptionError
from ensemble.labels import LabelSpace
from ensemble.ordinal import join_values

LOG_GAPS = "log_gaps"
"""The name of an ordinal head's parameter beside weight and bias."""


class AxesHead(torch.nn.Linear):
    """One linear head per axis; the log-probability of a class is the sum of those of its values.

    Maps ``(B, F)`` to log-probabilities ``(B, C)`` in the order of the label space. The axes are assumed to be
    independent given the image: ``log p(a, b, c) = log p(a) + log p(b) + log p(c)``. The weights are
    ``(outputs, F)``, under the names of the plain head, with an output per value of an axis.

    The axes at the positions ``ordered`` are ordinal: of their K values, ``p(y > k) = sigmoid(w x + b - t_k)`` with one
    ``w`` for all of the K - 1 thresholds ``0 = t_0 < t_1 < ...``. That is the head of CORAL (Cao et al. 2020, "Rank
    consistent ordinal regression", section 3.3), whose biases are ``b - t_k``, and the cumulative logit model of
    McCullagh 1980, "Regression Models for Ordinal Data", equation 2.1. Here it is trained by the likelihood of the
    value, so every loss of classes applies, and the thresholds are in order by construction: `log_gaps` has the
    logarithms of their distances, K - 2 for each ordinal axis.
    """

    def __init__(self, plain: torch.nn.Linear, shape: tuple[int, ...], ordered: tuple[int, ...] = ()) -> None:
        # on the meta device nothing is drawn: the random state is the same as without this head
        outputs = count_rows(shape, ordered)
        super().__init__(plain.in_features, outputs, bias=plain.bias is not None, device="meta")
        self.weight, self.bias = plain.weight, plain.bias
        self.shape, self.ordered = shape, ordered
        self._rows = tuple(1 if position in ordered else size for position, size in enumerate(shape))
        if ordered:
            self.log_gaps = torch.nn.Parameter(torch.cat([_even_gaps(shape[position]) for position in ordered]).log())
            self._start_even()

    def forward(self, input: torch.Tensor) -> torch.Tensor:  # noqa: A002 - torch's name
        """Return the sum over the axes, with the last axis changing fastest."""
        # float32: a sum of logarithms in half precision is inaccurate
        scores = torch.split(super().forward(input).float(), list(self._rows), dim=1)
        first, *others = [self._log_probabilities(position, found) for position, found in enumerate(scores)]
        total = first
        for found in others:
            total = (total.unsqueeze(2) + found.unsqueeze(1)).flatten(1)
        return total

    def _log_probabilities(self, position: int, scores: torch.Tensor) -> torch.Tensor:
        if position not in self.ordered:
            return scores.log_softmax(dim=1)
        before = sum(self.shape[other] - 2 for other in self.ordered if other < position)
        gaps = self.log_gaps[before : before + self.shape[position] - 2].float().exp()
        return log_cumulative(scores, gaps)

    @torch.no_grad()
    def _start_even(self) -> None:
        """Set the bias of each ordinal axis so that a score of 0 gives all values the same probability."""
        for position in self.ordered if isinstance(self.bias, torch.Tensor) else ():
            self.bias[sum(self._rows[:position])] = math.log(self.shape[position] - 1)


def log_cumulative(scores: torch.Tensor, gaps: torch.Tensor) -> torch.Tensor:
    """Return the log-probabilities ``(B, K)`` of scores ``(B, 1)`` and the distances ``(K - 2,)`` of the thresholds.

    See `join_values`; the links are the scores minus the thresholds.
    """
    thresholds = torch.cat([gaps.new_zeros(1), gaps.cumsum(0)])
    # softplus: log(sigmoid) would be log(0) for scores far away
    reached, passed = -functional.softplus(thresholds - scores), -functional.softplus(scores - thresholds)
    between = torch.log(1 - torch.exp(-gaps))
    found: torch.Tensor = join_values(reached, passed, between, lambda parts: torch.cat(tuple(parts), dim=1))
    return found


def _even_gaps(size: int) -> torch.Tensor:
    """Return the distances ``(K - 2,)`` of thresholds between which values are equally probable."""
    shares = torch.arange(1, size, dtype=torch.float64) / size
    return torch.logit(shares).diff().float()


def count_rows(shape: tuple[int, ...], ordered: Collection[int]) -> int:
    """Return the number of outputs of the linear layer: one per value, and one for each ordinal axis."""
    return sum(1 if position in ordered else size for position, size in enumerate(shape))


def count_outputs(labels: LabelSpace, head: Head, ordered: Collection[int] = ()) -> int:
    """Return the number of outputs of the last layer: one per class, or those of `count_rows`.

    Raises:
        OptionError: E204 when heads per axis are requested and there is only one axis.
    """
    if head == "flat":
        return count_rows(labels.shape, ordered) if ordered else len(labels)
    if len(labels.shape) < 2:
        raise OptionError(
            "E204", f"--head axes needs classes that are a product of axes; these have one, {labels.axes[0].name!r}"
        )
    return count_rows(labels.shape, ordered)
