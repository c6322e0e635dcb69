"""Render the sections of a report about members of several labels per image.

A section whose facts are missing is an empty string.
"""

from __future__ import annotations

import base64
from collections.abc import Sequence
from html import escape

import numpy as np

from ensemble.analysis import plots
from ensemble.analysis.html import figure, framed, preformatted, section, table
from ensemble.analysis.label_facts import LabelDispute, LabelQuality
from ensemble.analysis.label_report import HEADLINE, LabelReport
from ensemble.analysis.matrix import agreement_section, together_table
from ensemble.analysis.metric_estimates import Estimate
from ensemble.analysis.report_sections import with_caveat
from ensemble.arrays import Floats
from ensemble.blend.recipe import render_recipe
from ensemble.errors import enumerate_some

_SUPPORT = 30  # images of a label, below which its scores are unreliable
_MOST_ROWS = 100
_MOST_LABELS = 40
_MOST_PAIRS = 20
_COLUMNS = {
    "macro-f1": "macro F1",
    "sample-f1": "sample F1",
    "present-ap": "mean average precision",
    "roc-auc": "mean ROC AUC",
}


def render_label_members(report: LabelReport) -> str:
    """Render the weights and scores of the members, and the recipe."""
    rows = [
        (
            one.name,
            f"{one.weight:.3f}",
            ", ".join(one.views),
            *(_range(one.scores[name].estimate) if one.scores else "-" for name in _COLUMNS),
        )
        for one in report.members
    ]
    first = max(report.members, key=lambda member: member.weight)
    summary = "All members have the same weight."
    if len({round(member.weight, 9) for member in report.members}) > 1:
        summary = f"{first.name} has the largest weight, {first.weight:.1%} of the vote."
    header = ("member", "weight", "views", *(f"{title} [95 % CI]" for title in _COLUMNS.values()))
    body = table(header, rows, numbers={1, 3, 4, 5, 6}, label="members")
    if report.quality is not None and 1 < len(report.members) <= _MOST_ROWS:
        scored = [(m.name, e) for m in report.members if (e := m.scores[HEADLINE].estimate) is not None]
        blend = report.quality.scores[HEADLINE].estimate
        drawn = plots.draw_intervals(
            [e.value for _, e in scored],
            [e.low for _, e in scored],
            [e.high for _, e in scored],
            [name for name, _ in scored],
            mark=None if blend is None else blend.value,
            label="macro F1 with 95 % interval",
            name="members",
            title="Macro F1 of each member and of the blend",
        )
        best = max(scored, key=lambda one: one[1].value)[0]
        body += figure(drawn, f"The dashed line is the blend. The best single member is {best}.")
    body += f"<h3>Recipe</h3>{preformatted(render_recipe(report.recipe), 'recipe')}"
    return section("Members", summary, body)


def render_labels(report: LabelReport) -> str:
    """Render how well each label is found: average precision, ROC AUC and F1 at its threshold, with intervals."""
    quality = report.quality
    if quality is None:
        return ""
    known = [one for one in quality.labels if one.average_precision is not None]
    if not known:
        return section("Labels", "No label applies to any of these images.", "")
    worst = min(known, key=_precision_of)
    summary = (
        f"Lowest average precision: {worst.name}, {_precision_of(worst):.3f} on {_images(worst.images)}; chance is "
        f"{worst.images / quality.images:.3f}."
    )
    if few := sum(one.images < _SUPPORT for one in quality.labels):
        summary += f" {few} of {len(quality.labels)} labels have fewer than {_SUPPORT} images and are unreliable."
    shown = _lowest(quality.labels)
    rows = [
        (one.name, one.images, _range(one.average_precision), _range(one.auc), _range(one.f1))
        for one in (shown if len(quality.labels) > _MOST_ROWS else quality.labels)
    ]
    drawn = plots.draw_intervals(
        [_precision_of(one) for one in shown],
        [one.average_precision.low if one.average_precision else 0.0 for one in shown],
        [one.average_precision.high if one.average_precision else 0.0 for one in shown],
        [one.name for one in shown],
        label="average precision with 95 % interval",
        name="labels",
        title="Average precision of each label",
    )
    caption = f"The {len(shown)} of {len(known)} labels with the lowest average precision. " * (len(shown) < len(known))
    mean = quality.scores["present-ap"].estimate
    caption += f"Their unweighted mean is the mean average precision, {'-' if mean is None else f'{mean.value:.4f}'}."
    header = ("label", "images", "average precision [95 % CI]", "ROC AUC [95 % CI]", "F1 [95 % CI]")
    body = figure(drawn, caption) + table(header, rows, numbers={1, 2, 3, 4}, label="labels")
    return section("Labels", with_caveat(report, summary), body)


def render_thresholds(report: LabelReport) -> str:
    """Render each label's threshold, what it does, and the threshold with the best F1 on these images."""
    quality = report.quality
    if quality is None:
        return ""
    gaps = [one.best_f1 - one.f1.value for one in quality.labels]
    most = int(np.argmax(gaps))
    one = quality.labels[most]
    summary = (
        f"{one.name} would gain most from another threshold: F1 {one.f1.value:.3f} at {one.threshold:.3f}, "
        f"{one.best_f1:.3f} at {one.best:.3f}."
    )
    if gaps[most] < 0.005:
        summary = "No label would gain half a point of F1 from another threshold."
    order = sorted(np.argsort(gaps, kind="stable")[::-1][:_MOST_ROWS].tolist())
    rows = [
        (
            one.name,
            f"{one.threshold:.3f}",
            f"{one.precision:.3f}",
            f"{one.recall:.3f}",
            f"{one.f1.value:.3f}",
            f"{one.best:.3f}" if one.images else "-",
            f"{one.best_f1:.3f}" if one.images else "-",
        )
        for one in (quality.labels[place] for place in order)
    ]
    header = ("label", "threshold", "precision", "recall", "F1", "best threshold here", "F1 there")
    body = table(header, rows, numbers=set(range(1, 7)), label="thresholds") + (
        '<p class="note">The best threshold is chosen on the images it is scored on, so its F1 is optimistic; '
        "ens blend --oof learns thresholds with nested cross-validation.</p>"
    )
    return section("Thresholds", summary, body)


def render_together(report: LabelReport) -> str:
    """Render which labels occur together, in the ground truth and in the predictions, and what is got instead."""
    names = report.labels.names
    quality = report.quality
    shown = _most_frequent(report.together if quality is None else quality.together)
    parts = []
    pictures = [("predicted for the test images", report.together)]
    if quality is not None:
        pictures.insert(0, ("of the ground truth", quality.together))
    for title, counts in pictures:
        picked = counts[np.ix_(shown, shown)]
        drawn = together_table(picked, [names[i] for i in shown], label=f"labels {title} that occur together")
        parts.append(framed(drawn, f"Labels {title}. Diagonal: images of the label; shading: share of the row."))
    summary = _together_summary(report)
    body = f'<div class="pair">{"".join(parts)}</div>'
    if len(shown) < len(names):
        body += f'<p class="note">Shown are the {len(shown)} of {len(names)} most frequent labels.</p>'
    if quality is not None:
        body += _instead(quality.instead, names)
    return section("Labels that occur together", summary, body)


def _together_summary(report: LabelReport) -> str:
    """Name the two labels whose share of common images differs most between the ground truth and the predictions."""
    counts = report.together if report.quality is None else report.quality.together
    apart = counts.copy()
    np.fill_diagonal(apart, 0)
    first, second = divmod(int(apart.argmax()), len(apart))
    if apart.max() == 0:
        return "No image has two labels."
    where = "predictions" if report.quality is None else "ground truth"
    names = report.labels.names
    return (
        f"Most often together in the {where}: {names[first]} and {names[second]} ({_images(int(apart.max()))}; "
        f"{apart[first, second] / counts[first, first]:.0%} of those with {names[first]})."
    )


def _instead(instead: Floats, names: Sequence[str]) -> str:
    """List the labels that are predicted wrongly where another was missed."""
    first = np.argsort(-instead, axis=None, kind="stable")[:_MOST_PAIRS]
    pairs = [divmod(int(place), len(names)) for place in first if instead.flat[place] > 0]
    if not pairs:
        return ""
    rows = [(names[missed], names[wrong], int(instead[missed, wrong])) for missed, wrong in pairs]
    heading = "<h3>Missed labels, and the wrong ones of the same images</h3>"
    return heading + table(("missed", "wrongly predicted", "images"), rows, numbers={2}, label="missed labels")


def render_label_calibration(report: LabelReport) -> str:
    """Render the reliability diagram of all labels."""
    quality = report.quality
    if quality is None or report.recipe.pool.ranks:
        return ""
    found = quality.reliability
    gap = float((found.confidence - found.right).sum() / found.images.sum())
    kind = "too high" if gap > 0 else "too low"
    summary = (
        f"Probabilities are {kind} by {abs(gap) * 100:.1f} points on average. The expected calibration error over all "
        f"labels is {quality.calibration_error:.4f}."
    )
    drawn = plots.draw_reliability(
        found, name="reliability", title="Reliability diagram", axes=("probability of a label", "share that applies")
    )
    caption = (
        "Each image counts once per label. Below the dashed line probabilities are too high, above it too low. The "
        "area of a point shows how many it stands for."
    )
    return section("Calibration", with_caveat(report, summary), figure(drawn, caption))


def render_label_agreement(report: LabelReport) -> str:
    """Render the share of common labels for each pair of members."""
    agreement = report.agreement
    if agreement is None:
        return ""
    return agreement_section(
        agreement.shares,
        agreement.members,
        caption="Of the labels of test images that either member predicts (from 0.5), the share that both predict.",
        of_two=lambda one, other, share: f"Of the labels that {one} or {other} predicts, both predict {share}.",
    )


def render_prevalence(report: LabelReport) -> str:
    """Render the share of images of each label, in the ground truth and in the predictions."""
    quality = report.quality
    if quality is None:
        return ""
    true = np.diagonal(quality.together) / max(1, quality.images)
    predicted = report.predicted / max(1, report.images)
    gaps = np.abs(true - predicted)
    names, largest = report.labels.names, int(gaps.argmax())
    summary = (
        f"Largest difference: {names[largest]}, on {true[largest]:.1%} of the images of the ground truth and predicted "
        f"for {predicted[largest]:.1%} of the test images."
    )
    shown = sorted(np.argsort(-gaps, kind="stable")[:_MOST_LABELS].tolist())
    drawn = plots.draw_pairs(
        true[shown].tolist(),
        predicted[shown].tolist(),
        [names[place] for place in shown],
        legend=("out-of-fold ground truth" if report.out_of_fold else "ground truth", "test predictions"),
        name="prevalence",
        title="Share of images of each label in the ground truth and in the test predictions",
    )
    caption = f"Labels per image: {true.sum():.2f} in the ground truth, {predicted.sum():.2f} in the test predictions."
    if len(shown) < len(names):
        caption += f" Shown are the {len(shown)} of {len(names)} labels that differ most."
    return section("Label distribution", summary, figure(drawn, caption))


def render_disputes(report: LabelReport) -> str:
    """Render the images on which the members disagree most."""
    if not report.disputes:
        return ""
    summary = "The images with the highest mutual information: members are confident and contradict each other."
    known = [one for one in report.disputes if one.truth is not None]
    if known:
        right = sum(one.truth == one.blend for one in known)
        summary += f" The blend has all labels right on {right} of these {len(known)}."
    items = "".join(_dispute(one, len(report.agreement.members) if report.agreement else 0) for one in report.disputes)
    return section("Largest disagreements", summary, f'<ol class="disagreements">{items}</ol>')


def _dispute(one: LabelDispute, members: int) -> str:
    picture = ""
    if one.thumbnail is not None:
        data = base64.b64encode(one.thumbnail).decode()
        picture = f'<img src="data:image/jpeg;base64,{data}" alt="{escape(one.image)}" width="104" height="104">'
    votes = "".join(
        f"<li>{escape(label.name)} {label.probability:.2f}: {len(label.members)} of {members} "
        f'<span class="muted">({escape(enumerate_some(list(label.members), limit=3)) or "none"})</span></li>'
        for label in one.contested
    )
    truth = "" if one.truth is None else f"<p>true labels: <strong>{escape(_listed(one.truth))}</strong></p>"
    return (
        f"<li>{picture}<div><code>{escape(one.image)}</code><p>blend: <strong>{escape(_listed(one.blend))}</strong></p>"
        f"{truth}<ul>{votes}</ul></div></li>"
    )


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names) or "none"


def _most_frequent(counts: Floats) -> list[int]:
    return sorted(np.argsort(-np.diagonal(counts), kind="stable")[:_MOST_LABELS].tolist())


def _lowest(labels: Sequence[LabelQuality]) -> list[LabelQuality]:
    """Return the labels with the lowest average precision, in their own order."""
    known = [place for place, one in enumerate(labels) if one.average_precision is not None]
    picked = sorted(known, key=lambda place: _precision_of(labels[place]))[:_MOST_LABELS]
    return [labels[place] for place in sorted(picked)]


def _precision_of(one: LabelQuality) -> float:
    return 0.0 if one.average_precision is None else one.average_precision.value


def _images(count: int) -> str:
    return f"{count:,} {'image' if count == 1 else 'images'}"


def _range(estimate: Estimate | None) -> str:
    return "-" if estimate is None else f"{estimate.value:.4f} [{estimate.low:.3f}, {estimate.high:.3f}]"
