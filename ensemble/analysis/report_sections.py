"""Render the sections of a report about the blend, each with a heading, a summary and a table or plot.

A section whose facts are missing is an empty string.
"""

from __future__ import annotations

import base64
from collections.abc import Sequence
from html import escape

import numpy as np

from ensemble.analysis import plots
from ensemble.analysis.disagreements import Disagreement
from ensemble.analysis.evidence import EvidenceMap
from ensemble.analysis.html import figure, framed, preformatted, section, table
from ensemble.analysis.label_report import LabelReport
from ensemble.analysis.matrix import agreement_section, confusion_table, group_levels
from ensemble.analysis.metric_estimates import Estimate
from ensemble.analysis.report import Report
from ensemble.analysis.report_facts import LearnedChoice
from ensemble.arrays import Floats
from ensemble.blend.recipe import render_recipe
from ensemble.errors import enumerate_some
from ensemble.learn.table import render_weights
from ensemble.learn.view_gains import ViewGain

_SUPPORT = 30  # images of a class, below which its F1 is unreliable
_MOST_ROWS = 100
_MOST_CLASSES = 40


def render_members(report: Report) -> str:
    """Render the weights and scores of the members, and the recipe."""
    rows = []
    for member in report.members:
        scores = member.scores
        found = (
            ("-", "-", "-")
            if scores is None
            else (_range(scores.macro_f1), _range(scores.accuracy), f"{scores.nll:.4f}")
        )
        rows.append((member.name, f"{member.weight:.3f}", ", ".join(member.views), *found))
    equal = len({round(member.weight, 9) for member in report.members}) == 1
    first = max(report.members, key=lambda member: member.weight)
    summary = "All members have the same weight."
    if not equal:
        summary = f"{first.name} has the largest weight, {first.weight:.1%} of the vote."
    body = table(
        ("member", "weight", "views", "macro F1 [95 % CI]", "accuracy [95 % CI]", "NLL"),
        rows,
        numbers={1, 3, 4, 5},
        label="members",
    )
    scored = [m for m in report.members if m.scores is not None]
    if report.quality is not None and 1 < len(scored) <= _MOST_ROWS:
        f1 = [m.scores.macro_f1 for m in scored if m.scores is not None]
        drawn = plots.draw_intervals(
            [e.value for e in f1],
            [e.low for e in f1],
            [e.high for e in f1],
            [m.name for m in scored],
            mark=report.quality.scores.macro_f1.value,
            label="macro F1 with 95 % interval",
            name="members",
            title="Macro F1 of each member and of the blend",
        )
        best = max(scored, key=lambda m: m.scores.macro_f1.value if m.scores else 0)
        body += figure(drawn, f"The dashed line is the blend. The best single member is {best.name}.")
    most = max(len(group.members) for group in report.recipe.groups.values())
    if report.out_of_fold and most > 1:
        learned = ", and what was learned for" if report.choice is not None else ""
        body += (
            '<p class="note">The scores are those of models that did not see the image, one '
            f"fold of each member. The submission averages up to {most} models of a member, which is more accurate"
            f"{learned}. {_averaged(report)}</p>"
        )
    body += f"<h3>Recipe</h3>{preformatted(render_recipe(report.recipe), 'recipe')}"
    return section("Members", summary, body)


def _averaged(report: Report) -> str:
    """Say the score of the blend as if the folds of each member had been averaged."""
    if report.averaged is None:
        return "Its score is not estimated: there are too few people, or as many fold splits out of fold as models."
    f1 = report.averaged.macro_f1
    return (
        f"With out-of-fold predictions made as good as that mean, the macro F1 of the blend is {f1.value:.4f} "
        f"[{f1.low:.4f}, {f1.high:.4f}]."
    )


def render_choice(choice: LearnedChoice | None) -> str:
    """Render the candidates of a learned recipe."""
    if choice is None:
        return ""
    rows = [
        (
            row.candidate,
            f"{row.nested:.4f} [{row.low:.3f}, {row.high:.3f}]",
            f"{row.gain:+.4f} ± {row.error:.4f}",
            f"{row.in_sample:.4f}",
            f"{row.optimism:+.4f}",
            render_weights(row.weights),
        )
        for row in choice.table
    ]
    chosen = [index for index, row in enumerate(choice.table) if row.candidate == choice.method]
    header = (
        "candidate",
        f"{choice.metric}, nested CV [95 % CI]",
        "gain over mean ± SE",
        "in-sample",
        "optimism",
        "largest weights",
    )
    body = table(header, rows, numbers={1, 2, 3, 4}, wrapping={5}, chosen=chosen, label="candidates")
    if len(choice.table) > 1:
        others = choice.table[1:]
        drawn = plots.draw_intervals(
            [row.gain for row in others],
            [row.gain - row.error for row in others],
            [row.gain + row.error for row in others],
            [row.candidate for row in others],
            mark=0.0,
            label=f"gain in {choice.metric} over the mean of probabilities, ± one standard error",
            name="candidates",
            title="Gain of each candidate over the mean of probabilities",
        )
        clear = sum(row.gain > row.error for row in others)
        body += figure(
            drawn, f"{clear} of {len(others)} candidates improve on the mean by more than one standard error."
        )
    return section("Candidates", choice.why, body)


def render_confusion(report: Report) -> str:
    """Render the confusion matrices of all classes and of each axis."""
    quality = report.quality
    if quality is None:
        return ""
    names = report.labels.names
    wrong = quality.confusion.copy()
    np.fill_diagonal(wrong, 0)
    row, column = divmod(int(wrong.argmax()), len(names))
    summary = "No image is misclassified."
    if wrong.max() > 0:
        count = int(wrong.max())
        summary = f"Most frequent confusion: {names[row]} predicted as {names[column]} ({_images(count)})."
    if len(names) > _MOST_CLASSES:
        body = _confusions(wrong, names)
    else:
        body = confusion_table(quality.confusion, names, group_levels(report.labels), label="confusion matrix")
        lines = " Lines separate the values of the first axes." if len(report.labels.axes) > 1 else ""
        body += f'<p class="note">Rows: true class. Columns: predicted class. Shading: share of the row.{lines}</p>'
    if len(quality.axes) > 1 and max(report.labels.shape) <= _MOST_CLASSES:
        parts: list[str] = []
        for axis in report.labels.axes:
            counts = quality.axes[axis.name]
            right = quality.scores.axes[axis.name]
            levels = [0] * len(axis.values)
            shown = confusion_table(counts, axis.values, levels, label=f"confusion matrix of {axis.name}")
            caption = f"{axis.name}: accuracy {right.value:.1%} (95 % CI {right.low:.1%} to {right.high:.1%})."
            parts.append(framed(shown, caption))
        body += f'<h3>Per axis</h3><div class="pair">{"".join(parts)}</div>'
    return section("Confusion matrix", with_caveat(report, summary), body)


def render_classes(report: Report) -> str:
    """Render the F1 score of each class."""
    quality = report.quality
    if quality is None:
        return ""
    f1, support = quality.scores.class_f1, quality.evaluation.support
    worst = int(np.argmin(f1))
    summary = f"Lowest F1: {report.labels.names[worst]}, {f1[worst]:.3f} on {_images(support[worst])}."
    if few := sum(count < _SUPPORT for count in support):
        summary += f" {few} of {len(support)} classes have fewer than {_SUPPORT} images, so their F1 is unreliable."
    shown = sorted(np.argsort(f1, kind="stable")[:_MOST_CLASSES].tolist())
    drawn = plots.draw_bars(
        [f1[place] for place in shown],
        [_images(support[place]) for place in shown],
        [report.labels.names[place] for place in shown],
        name="classes",
        title="F1 and number of images per class",
    )
    caption = f"The {len(shown)} of {len(f1)} classes with the lowest F1. " * (len(shown) < len(f1))
    caption += f"The unweighted mean over all classes is the macro F1, {quality.scores.macro_f1.value:.4f}."
    return section("F1 per class", with_caveat(report, summary), figure(drawn, caption))


def render_calibration(report: Report) -> str:
    """Render the reliability diagram."""
    quality = report.quality
    error = None if quality is None else quality.scores.calibration_error
    if quality is None or error is None:
        return ""
    found = quality.reliability
    gap = float((found.confidence - found.right).sum() / found.images.sum())
    kind = "overconfident" if gap > 0 else "underconfident"
    summary = (
        f"The blend is {kind}: its confidence is {abs(gap) * 100:.1f} points {'above' if gap > 0 else 'below'} its "
        f"accuracy. The expected calibration error is {error:.4f}."
    )
    drawn = plots.draw_reliability(found, name="reliability", title="Reliability diagram")
    caption = (
        "Below the dashed line the blend is overconfident, above it underconfident. The area of a point shows how many "
        "images it stands for."
    )
    return section("Calibration", with_caveat(report, summary), figure(drawn, caption))


def render_agreement(report: Report) -> str:
    """Render the share of equal predictions for each pair of members."""
    agreement = report.agreement
    if agreement is None:
        return ""
    return agreement_section(
        agreement.shares,
        agreement.members,
        caption="Share of test images for which two members predict the same class.",
        of_two=lambda one, other, share: f"{one} and {other} predict the same class for {share} of the test images.",
    )


def render_gains(gains: Sequence[ViewGain], metric: str) -> str:
    """Render the gain of each view of the test-time augmentation."""
    if not gains:
        return ""
    rows = [
        (
            view.view,
            f"{view.gain:+.4f} ± {view.error:.4f}",
            f"{view.wrong_to_right:,}",
            f"{view.right_to_wrong:,}",
            f"{view.cost:g}x",
            _verdict(view),
        )
        for view in gains
    ]
    worth = [view.view for view in gains if view.gain > view.error]
    harmful = [view.view for view in gains if view.gain < -view.error]
    summary = "No view gains more than one standard error."
    if worth:
        summary = f"Views that gain more than one standard error: {', '.join(worth)}."
    if harmful:
        several = "these views" if len(harmful) > 1 else "this view"
        summary += f" Drop {several}: {', '.join(harmful)} {'lower' if len(harmful) > 1 else 'lowers'} the score."
    header = ("view", f"gain in {metric} ± SE", "wrong to right", "right to wrong", "forward passes", "verdict")
    note = (
        '<p class="note">Each view is added to the first view alone, in the plain mean of all members; images whose '
        "prediction becomes right or wrong are counted.</p>"
    )
    body = table(header, rows, numbers={1, 2, 3, 4}, label="views") + note
    return section("Test-time augmentation", summary, body)


def render_distribution(report: Report) -> str:
    """Render the share of each class in the ground truth and in the predictions."""
    found = report.distribution
    if found is None:
        return ""
    true, predicted = (np.array(counts) / max(1, sum(counts)) for counts in (found.truth, found.predicted))
    largest = int(np.abs(true - predicted).argmax())
    summary = (
        f"Largest difference: {report.labels.names[largest]}, {true[largest]:.1%} of the ground truth and "
        f"{predicted[largest]:.1%} of the test predictions."
    )
    shown = sorted(np.argsort(-np.abs(true - predicted), kind="stable")[:_MOST_CLASSES].tolist())
    drawn = plots.draw_pairs(
        true[shown].tolist(),
        predicted[shown].tolist(),
        [report.labels.names[place] for place in shown],
        legend=("out-of-fold ground truth" if report.out_of_fold else "ground truth", "test predictions"),
        name="distribution",
        title="Share of each class in the ground truth and in the test predictions",
    )
    half = float(np.abs(true - predicted).sum() / 2)
    caption = f"Total variation distance between the two distributions: {half:.1%}."
    if len(shown) < len(true):
        caption += f" Shown are the {len(shown)} of {len(true)} classes that differ most."
    return section("Class distribution", summary, figure(drawn, caption))


def render_disagreements(report: Report) -> str:
    """Render the images on which the members disagree most."""
    if not report.disagreements:
        return ""
    items = [_dispute(one, report.evidence.get(one.image, ())) for one in report.disagreements]
    summary = (
        "The images with the highest mutual information, one per person: members are confident and contradict each "
        "other. Beside each class is the mean probability that its members give it."
    )
    if report.evidence:
        summary += " The maps show where the surest member sees the evidence for its class, dark to light."
    known = [one for one in report.disagreements if one.truth is not None]
    if known:
        right = sum(one.truth == one.blend for one in known)
        summary += f" The blend is right on {right} of these {len(known)}."
    return section("Largest disagreements", summary, f'<ol class="disagreements">{"".join(items)}</ol>')


def _dispute(one: Disagreement, evidence: Sequence[EvidenceMap]) -> str:
    picture = "" if one.thumbnail is None else _picture(one.thumbnail, one.image)
    votes = "".join(
        f"<li>{escape(vote.class_name)} <strong>{vote.confidence:.0%}</strong>, {len(vote.members)} "
        f"{'member' if len(vote.members) == 1 else 'members'} "
        f'<span class="muted">({escape(enumerate_some(list(vote.members), limit=3))})</span></li>'
        for vote in one.votes
    )
    truth = "" if one.truth is None else f"<p>true class: <strong>{escape(one.truth)}</strong></p>"
    maps = "".join(
        f"<figure>{_picture(found.picture, f'evidence of {found.member}')}<figcaption>{escape(found.class_name)}"
        f"<br>{escape(found.member)}</figcaption></figure>"
        for found in evidence
    )
    return (
        f"<li>{picture}<div><code>{escape(one.image)}</code><p>blend: <strong>{escape(one.blend)}</strong> "
        f'{one.confidence:.0%}</p>{truth}<ul>{votes}</ul><div class="maps">{maps}</div></div></li>'
    )


def _picture(content: bytes, text: str) -> str:
    data = base64.b64encode(content).decode()
    return f'<img src="data:image/jpeg;base64,{data}" alt="{escape(text)}" width="104" height="104">'


def _confusions(wrong: Floats, names: Sequence[str]) -> str:
    """List the most frequent confusions, if there are too many classes for a plot."""
    first = np.argsort(-wrong, axis=None, kind="stable")[:_MOST_CLASSES]
    pairs = [divmod(int(place), len(names)) for place in first if wrong.flat[place] > 0]
    rows = [(names[true], names[predicted], int(wrong[true, predicted])) for true, predicted in pairs]
    return table(("true class", "predicted class", "images"), rows, numbers={2}, label="confusions")


def with_caveat(report: Report | LabelReport, summary: str) -> str:
    """Add that scores are optimistic where the recipe was fitted to the images that it is scored on."""
    if report.choice is None or not report.out_of_fold:
        return summary
    return f"{summary} The recipe was fitted to these images, so this is optimistic."


def _verdict(view: ViewGain) -> str:
    if view.gain > view.error:
        return "keep"
    return "drop this view" if view.gain < -view.error else "no clear gain"


def _images(count: int) -> str:
    return f"{count:,} {'image' if count == 1 else 'images'}"


def _range(estimate: Estimate) -> str:
    return f"{estimate.value:.4f} [{estimate.low:.3f}, {estimate.high:.3f}]"
