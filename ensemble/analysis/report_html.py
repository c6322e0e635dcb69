"""The page of a report: one HTML file with its style and plots inside, no script, and nothing from elsewhere."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from html import escape

import numpy as np

from ensemble.analysis import plots
from ensemble.analysis.evaluate import Estimate
from ensemble.analysis.html import STYLE, figure, preformatted, section, table
from ensemble.analysis.report import Report, basis_of, verdict_of
from ensemble.arrays import Floats
from ensemble.blend.recipe import render_recipe
from ensemble.errors import enumerate_some
from ensemble.learn.table import render_weights

_POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
_SUPPORT = 30
_MOST_ROWS = 100
_MOST_MEMBERS = 24
_MOST_CLASSES = 40


def render_page(report: Report) -> str:
    """The whole page; the same report always gives the same text."""
    sections = (
        _plan(report),
        _members(report),
        _candidates(report),
        _confusion(report),
        _classes(report),
        _reliability(report),
        _agreement(report),
        _views(report),
        _mix(report),
        _disputes(report),
        _again(report),
    )
    verdict = verdict_of(report)
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f'<link rel="icon" href="data:,">\n<title>{escape(verdict)}</title>\n<style>{STYLE}</style>\n</head>\n'
        f'<body>\n<main>\n<header>\n<p class="kind">{basis_of(report)}</p>\n<h1>{escape(verdict)}</h1>\n'
        f"{_tiles(report)}</header>\n{''.join(sections)}{_absent(report)}</main>\n</body>\n</html>\n"
    )


def _tiles(report: Report) -> str:
    tiles: list[tuple[str, str, str]] = []
    if report.choice is not None and report.choice.row is not None:
        row = report.choice.row
        tiles.append((f"Nested {report.choice.metric}", f"{row.nested:.4f}", f"{row.low:.3f} to {row.high:.3f}"))
    if report.quality is not None:
        scores = report.quality.scores
        fitted = ", as fitted" if report.choice is not None and report.out_of_fold else ""
        tiles.append((f"Macro F1{fitted}", *_tile(scores.macro_f1)))
        tiles.append((f"Accuracy{fitted}", *_tile(scores.accuracy)))
        if scores.calibration_error is not None:
            tiles.append(("Calibration error", f"{scores.calibration_error:.4f}", "15 bins; 0 is best"))
    tiles.append(("Members", f"{len(report.members):,}", "groups of folds" if report.out_of_fold else ""))
    parts = (f"<div><dt>{escape(t)}</dt><dd>{value}<small>{note}</small></dd></div>" for t, value, note in tiles)
    return f'<dl class="tiles">{"".join(parts)}</dl>\n'


def _tile(estimate: Estimate) -> tuple[str, str]:
    return f"{estimate.value:.4f}", f"{estimate.low:.3f} to {estimate.high:.3f}"


def _plan(report: Report) -> str:
    if not report.runs and not report.notices:
        return ""
    rows = [
        (
            run.member,
            run.device,
            ", ".join(run.views),
            run.images,
            run.computed,
            run.at_once,
            run.workers,
            *_speed(run.own, run.computed),
            f"{run.wall:.1f}",
        )
        for run in report.runs
    ]
    devices = sorted({run.device for run in report.runs})
    fallbacks = sorted(
        {(n.code, n.message) for run in report.runs for n in run.notices}
        | {(n.code, n.message) for n in report.notices}
    )
    take = f"Everything ran on {' and '.join(devices)}"
    take += "; what went another way than asked is below." if fallbacks else ", as asked."
    if not devices:
        take = "There is no record of the runs beside the predictions."
    elif report.unrecorded:
        take += f" No record beside the predictions of {enumerate_some(list(report.unrecorded))}."
    header = ("member", "device", "views", "images", "computed", "at once", "workers", "own s", "images/s", "run s")
    body = table(header, rows, numbers=set(range(3, 10)), label="runs") if rows else ""
    if fallbacks:
        body += "<h3>What was noticed</h3><ul>" + "".join(
            f"<li><code>{escape(code)}</code> {escape(message)}</li>" for code, message in fallbacks
        )
        body += "</ul>"
    return section("What really ran", take, body)


def _speed(seconds: float, images: int) -> tuple[str, str]:
    return f"{seconds:.1f}", f"{images / seconds:.1f}" if seconds > 0 else "-"


def _members(report: Report) -> str:
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
    take = "All weigh the same." if equal else f"{first.name} weighs most, {first.weight:.1%} of the vote."
    body = table(
        ("member", "weight", "views", "macro F1", "accuracy", "NLL"), rows, numbers={1, 3, 4, 5}, label="members"
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
            label="macro F1, 95 % interval",
            name="members",
            title="Macro F1 of each member with its interval, beside the blend",
        )
        best = max(scored, key=lambda m: m.scores.macro_f1.value if m.scores else 0)
        body += figure(drawn, f"{best.name} is the best single member; the dashed line is the blend.")
    body += f"<h3>The recipe</h3>{preformatted(render_recipe(report.recipe), 'recipe')}"
    return section("Members", take, body)


def _candidates(report: Report) -> str:
    choice = report.choice
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
    header = ("candidate", f"nested {choice.metric}", "gain over mean", "in sample", "optimism", "largest weights")
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
        body += figure(drawn, f"{clear} of {len(others)} candidates gain more than one standard error over the mean.")
    return section("Candidates", choice.why, body)


def _confusion(report: Report) -> str:
    quality = report.quality
    if quality is None:
        return ""
    names = report.labels.names
    wrong = quality.confusion.copy()
    np.fill_diagonal(wrong, 0)
    row, column = divmod(int(wrong.argmax()), len(names))
    take = "No image is answered wrongly."
    if wrong.max() > 0:
        take = f"The most frequent mistake: {names[row]} answered as {names[column]}, {int(wrong.max()):,} images."
    if len(names) > _MOST_CLASSES:
        body = _mistakes(wrong, names)
    else:
        drawn = plots.draw_confusion(quality.confusion, names, name="confusion", title="Confusion of all classes")
        body = figure(drawn, "Rows are the truth, columns the answers; shades are shares of the row.")
    if len(quality.axes) > 1 and max(report.labels.shape) <= _MOST_CLASSES:
        parts: list[str] = []
        for axis in report.labels.axes:
            counts = quality.axes[axis.name]
            right = quality.scores.axes[axis.name]
            drawn = plots.draw_confusion(
                counts, axis.values, name=f"axis{len(parts)}", title=f"Confusion of {axis.name}"
            )
            parts.append(figure(drawn, f"{axis.name}: {right.value:.2%} right, {right.low:.1%} to {right.high:.1%}."))
        body += f'<h3>Axis by axis</h3><div class="pair">{"".join(parts)}</div>'
    return section("Confusion", _as_fitted(report, take), body)


def _mistakes(wrong: Floats, names: Sequence[str]) -> str:
    """The most frequent mistakes, where the classes are too many for a picture."""
    first = np.argsort(-wrong, axis=None, kind="stable")[:_MOST_CLASSES]
    pairs = [divmod(int(place), len(names)) for place in first if wrong.flat[place] > 0]
    rows = [(names[true], names[answer], int(wrong[true, answer])) for true, answer in pairs]
    return table(("truth", "answer", "images"), rows, numbers={2}, label="mistakes")


def _classes(report: Report) -> str:
    quality = report.quality
    if quality is None:
        return ""
    f1, support = quality.scores.class_f1, quality.evaluation.support
    worst = int(np.argmin(f1))
    take = f"{report.labels.names[worst]} has the lowest F1, {f1[worst]:.3f} on {support[worst]:,} images."
    few = sum(count < _SUPPORT for count in support)
    take += (
        f" {few} of {len(support)} classes have fewer than {_SUPPORT} images: their F1 is mostly chance." if few else ""
    )
    shown = sorted(np.argsort(f1, kind="stable")[:_MOST_CLASSES].tolist())
    drawn = plots.draw_bars(
        [f1[place] for place in shown],
        [f"{support[place]:,} images" for place in shown],
        [report.labels.names[place] for place in shown],
        name="classes",
        title="F1 of each class with its support",
    )
    caption = f"The {len(shown)} of {len(f1)} classes with the lowest F1. " * (len(shown) < len(f1))
    caption += f"The plain mean of all is the macro F1, {quality.scores.macro_f1.value:.4f}."
    return section("F1 by class", _as_fitted(report, take), figure(drawn, caption))


def _reliability(report: Report) -> str:
    quality = report.quality
    error = None if quality is None else quality.scores.calibration_error
    if quality is None or error is None:
        return ""
    found = quality.reliability
    gap = float((found.confidence - found.right).sum() / found.images.sum())
    kind = "too sure" if gap > 0 else "too unsure"
    take = f"On average the blend is {abs(gap) * 100:.1f} points {kind}; its calibration error is {error:.4f}."
    drawn = plots.draw_reliability(found, name="reliability", title="Reliability diagram")
    caption = (
        "Points on the dashed line are as sure as they are right, below it too sure; larger points hold more images."
    )
    return section("Reliability", _as_fitted(report, take), figure(drawn, caption))


def _agreement(report: Report) -> str:
    agreement = report.agreement
    if agreement is None:
        return ""
    apart = agreement.shares.copy()
    np.fill_diagonal(apart, 2)
    low = divmod(int(apart.argmin()), len(apart))
    np.fill_diagonal(apart, -1)
    high = divmod(int(apart.argmax()), len(apart))
    names, shares = agreement.members, agreement.shares
    caption = "The share of test images with the same most probable class."
    shown = sorted(np.argsort(shares.mean(axis=1), kind="stable")[:_MOST_MEMBERS].tolist())
    if len(shown) < len(names):
        caption += f" Shown are the {len(shown)} of {len(names)} members that agree least with the others."
    take = (
        f"{names[high[0]]} and {names[high[1]]} agree most ({shares[high]:.1%}), {names[low[0]]} and {names[low[1]]} "
        f"least ({shares[low]:.1%}); what agrees less has more to add."
    )
    drawn = plots.draw_agreement(
        shares[np.ix_(shown, shown)], [names[i] for i in shown], name="agreement", title="Agreement between members"
    )
    return section("Agreement", take, figure(drawn, caption))


def _views(report: Report) -> str:
    if not report.views:
        return ""
    rows = [
        (
            view.view,
            f"{view.gain:+.4f} ± {view.error:.4f}",
            f"{view.wrong_to_right:,}",
            f"{view.right_to_wrong:,}",
            f"{view.cost:g}",
        )
        for view in report.views
    ]
    worth = [view.view for view in report.views if view.gain > view.error]
    take = f"Worth their passes: {', '.join(worth)}." if worth else "No view gains more than one standard error."
    header = ("view", f"gain in {report.view_metric}", "wrong to right", "right to wrong", "passes, times")
    note = '<p class="note">Each beside the first view alone, in the plain mean of all members.</p>'
    return section("Views: what each flips", take, table(header, rows, numbers={1, 2, 3, 4}, label="views") + note)


def _mix(report: Report) -> str:
    mix = report.mix
    if mix is None:
        return ""
    known, answered = (np.array(counts) / max(1, sum(counts)) for counts in (mix.known, mix.answered))
    widest = int(np.abs(known - answered).argmax())
    take = (
        f"{report.labels.names[widest]} differs most: {known[widest]:.1%} of the truth, {answered[widest]:.1%} of the "
        "answers for the test."
    )
    basis = "out-of-fold truth" if report.out_of_fold else "truth"
    shown = sorted(np.argsort(-np.abs(known - answered), kind="stable")[:_MOST_CLASSES].tolist())
    drawn = plots.draw_pairs(
        known[shown].tolist(),
        answered[shown].tolist(),
        [report.labels.names[place] for place in shown],
        legend=(basis, "test answers"),
        name="mix",
        title="Share of each class in the truth and in the test answers",
    )
    half = float(np.abs(known - answered).sum() / 2)
    caption = f"The two mixes differ in {half:.1%} of the images."
    if len(shown) < len(known):
        caption += f" Shown are the {len(shown)} of {len(known)} classes that differ most."
    return section("Class mix", take, figure(drawn, caption))


def _disputes(report: Report) -> str:
    if not report.disputes:
        return ""
    items = []
    for one in report.disputes:
        picture = ""
        if one.thumbnail is not None:
            data = base64.b64encode(one.thumbnail).decode()
            picture = f'<img src="data:image/jpeg;base64,{data}" alt="{escape(one.image)}" width="104" height="104">'
        votes = "".join(
            f"<li>{escape(name)}: {len(who)} "
            f'<span class="muted">({escape(enumerate_some(list(who), limit=3))})</span></li>'
            for name, who in one.votes
        )
        truth = "" if one.truth is None else f"<p>truth: <strong>{escape(one.truth)}</strong></p>"
        items.append(
            f"<li>{picture}<div><code>{escape(one.image)}</code><p>blend: <strong>{escape(one.blend)}</strong></p>"
            f"{truth}<ul>{votes}</ul></div></li>"
        )
    take = "Here the members are sure of themselves and contradict each other."
    known = [one for one in report.disputes if one.truth is not None]
    if known:
        right = sum(one.truth == one.blend for one in known)
        take += f" The blend is right on {right} of these {len(known)}."
    return section("Where members disagree most", take, f'<ol class="disputes">{"".join(items)}</ol>')


def _again(report: Report) -> str:
    if not report.commands:
        return ""
    body = preformatted("\n".join(report.commands), "commands")
    return section("Again", "The same inputs give this page again, byte for byte.", body)


def _absent(report: Report) -> str:
    if not report.absent:
        return ""
    items = "".join(
        f"<li>{escape(one.section)}: <span class='muted'>{escape(one.cure)}</span></li>" for one in report.absent
    )
    return f"<aside>\n<h2>Not on this page</h2>\n<ul>{items}</ul>\n</aside>\n"


def _as_fitted(report: Report, take: str) -> str:
    if report.choice is None or not report.out_of_fold:
        return take
    return f"{take} The recipe was fitted to these very images, so this looks a little too good."


def _range(estimate: Estimate) -> str:
    return f"{estimate.value:.4f} [{estimate.low:.3f}, {estimate.high:.3f}]"
