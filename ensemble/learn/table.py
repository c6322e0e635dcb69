"""Render the comparison of candidates for the terminal, and the reason for the selection."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Mapping, Sequence

from ensemble.errors import enumerate_some
from ensemble.learn.objective import Metric
from ensemble.learn.result import CandidateScore, Learned
from ensemble.learn.view_gains import ViewGain
from ensemble.text.text_table import render_columns, terminal_width

_HEADER = ("  method", "score", "95 % CI", "gain ± SE", "optimism")
_NO_WEIGHT = 1e-6
_NO_BREAK = "\N{NO-BREAK SPACE}"


def render_learned(learned: Learned, *, width: int | None = None) -> str:
    """Return the members' own scores, the table of all candidates and their weights, the reason, and the views' gains.

    ``width`` defaults to that of the terminal; 80 columns are enough for the tables.
    """
    width = width or terminal_width()
    groups = "" if learned.persons is None else f" of {learned.persons:,} persons"
    title = learned.metric.title
    heading = (
        f"{learned.folds}-fold CV on {learned.images:,} images{groups}, "
        f"{learned.repeats} repeat{'s' * (learned.repeats != 1)}; score: {title}"
    )
    rows = [
        (
            f"{'*' if row.candidate == learned.method else ' '} {row.candidate}",
            row.nested,
            f"[{row.low:.4f}, {row.high:.4f}]",
            f"{row.gain:+.4f} ± {row.error:.4f}",
            f"{row.optimism:+.4f}",
        )
        for row in learned.table
    ]
    members = [(f"  {one.member}", one.score, f"[{one.low:.4f}, {one.high:.4f}]") for one in learned.members]
    blocks = [
        _wrap(heading, width) + render_columns(_HEADER, rows, width=width),
        _render_all_weights(learned.table, width),
        render_columns(("  member alone", "score", "95 % CI"), members, width=width),
        _wrap(learned.reason, width),
    ]
    if learned.view_gains:
        blocks.append(_render_views(learned.view_gains, title, width))
    return "\n".join(blocks)


def explain_selection(
    table: Sequence[CandidateScore], selected: str, metric: Metric, *, expected_gain: float | None
) -> str:
    """Explain which candidate was selected and why, and which members have no weight.

    ``expected_gain`` is the bias-corrected gain of the automatic selection, or None if the user named the method.
    """
    row = next(row for row in table if row.candidate == selected)
    is_mean = selected == table[0].candidate
    gain = f"{row.gain:+.4f} ± {row.error:.4f}"
    if expected_gain is None:
        text = f"{selected} was requested; its cross-validated {metric.title} is {row.nested:.4f}"
        text += "" if is_mean else f", {gain} compared with the mean of probabilities"
    elif is_mean:
        best = max(table[1:], key=lambda row: row.gain - row.error)
        text = (
            f"The mean of probabilities is kept: no candidate clearly gains on other people; the best, "
            f"{best.candidate}, changes {metric.title} by {best.gain:+.4f} ± {best.error:.4f} in cross-validation"
        )
    else:
        text = (
            f"{selected} is selected: compared with the mean of probabilities it changes the cross-validated "
            f"{metric.title} by {gain}"
        )
    text = f"{text}{_explain_unused(row)}."
    if expected_gain is not None and not is_mean:
        text += (
            f" Corrected for selection bias (bootstrap bias-corrected CV), the expected gain is {expected_gain:+.4f} "
            f"± {row.error:.4f}."
        )
    return text


def render_weights(weights: Mapping[str, float]) -> str:
    """Return the four largest weights, or ``equal``."""
    if max(weights.values()) - min(weights.values()) < _NO_WEIGHT:
        return "equal"
    largest = sorted(weights.items(), key=lambda item: (-item[1], item[0]))
    return enumerate_some([f"{name} {weight:.2f}" for name, weight in largest if weight > _NO_WEIGHT], limit=4)


def _render_all_weights(table: Sequence[CandidateScore], width: int) -> str:
    """Return a paragraph per distinct set of weights; candidates that share a pool share one."""
    methods: dict[str, list[str]] = {}
    for row in table:
        methods.setdefault(render_weights(row.weights), []).append(row.candidate)
    # no line break between a name and its weight
    paragraphs = (
        _wrap(f"{', '.join(names)}: {re.sub(r' (?=[01][.])', _NO_BREAK, weights)}", width, indent="  ")
        for weights, names in methods.items()
    )
    return "largest weights (member/view):\n" + "".join(paragraphs).replace(_NO_BREAK, " ")


def _render_views(gains: Sequence[ViewGain], title: str, width: int) -> str:
    rows = [
        (one.view, f"{one.gain:+.4f} ± {one.error:.4f}", one.wrong_to_right, one.right_to_wrong, f"{one.cost:g}x")
        for one in gains
    ]
    header = ("added view", "gain ± SE", "wrong to right", "right to wrong", "cost")
    return _wrap(f"Effect of adding a view to the mean ({title}):", width) + render_columns(header, rows, width=width)


def _explain_unused(row: CandidateScore) -> str:
    """Name the members without weight in any view, and the cause."""
    weight_of: dict[str, float] = {}
    for name, weight in row.weights.items():
        member = name.rpartition("/")[0]
        weight_of[member] = weight_of.get(member, 0) + weight
    unused = [member for member, weight in weight_of.items() if weight < _NO_WEIGHT]
    if not unused:
        return ""
    cause = "adding it never helped" if row.candidate == "greedy" else "any weight would lower the likelihood"
    return f"; {enumerate_some(unused)} {'has' if len(unused) == 1 else 'have'} no weight: given the others, {cause}"


def _wrap(text: str, width: int, *, indent: str = "") -> str:
    lines = textwrap.wrap(
        text,
        width,
        initial_indent=indent,
        subsequent_indent=indent * 2,
        break_long_words=False,
        break_on_hyphens=False,
    )
    return "\n".join(lines) + "\n"
