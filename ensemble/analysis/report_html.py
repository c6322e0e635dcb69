"""Render a report as one HTML file with its style and plots inside, without scripts or external resources."""

from __future__ import annotations

from html import escape

from ensemble.analysis import report_sections as sections
from ensemble.analysis.html import STYLE, preformatted, section, table
from ensemble.analysis.report import Report, subtitle_of, summary_of
from ensemble.errors import enumerate_some

_POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"


def render_page(report: Report) -> str:
    """Render the page; the same report always gives the same text."""
    parts = (
        _runs(report),
        sections.render_members(report),
        sections.render_candidates(report),
        sections.render_confusion(report),
        sections.render_classes(report),
        sections.render_calibration(report),
        sections.render_agreement(report),
        sections.render_views(report),
        sections.render_distribution(report),
        sections.render_disagreements(report),
        _commands(report),
    )
    summary = summary_of(report)
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f'<link rel="icon" href="data:,">\n<title>{escape(summary)}</title>\n<style>{STYLE}</style>\n</head>\n'
        f'<body>\n<main>\n<header>\n<p class="kind">{escape(subtitle_of(report))}</p>\n<h1>{escape(summary)}</h1>\n'
        f"{_tiles(report)}</header>\n{''.join(parts)}{_missing(report)}</main>\n</body>\n</html>\n"
    )


def _tiles(report: Report) -> str:
    tiles: list[tuple[str, str, str]] = []
    if report.choice is not None and report.choice.row is not None:
        row = report.choice.row
        tiles.append((f"{report.choice.metric}, nested CV", f"{row.nested:.4f}", _interval(row.low, row.high)))
    if report.quality is not None:
        scores = report.quality.scores
        fitted = ", in-sample" if report.choice is not None and report.out_of_fold else ""
        for name, score in (("Macro F1", scores.macro_f1), ("Accuracy", scores.accuracy)):
            tiles.append((f"{name}{fitted}", f"{score.value:.4f}", _interval(score.low, score.high)))
        if scores.calibration_error is not None:
            tiles.append(("Calibration error (ECE)", f"{scores.calibration_error:.4f}", "15 bins; lower is better"))
    tiles.append(("Members", f"{len(report.members):,}", "groups of folds" if report.out_of_fold else ""))
    parts = (f"<div><dt>{escape(t)}</dt><dd>{value}<small>{note}</small></dd></div>" for t, value, note in tiles)
    return f'<dl class="tiles">{"".join(parts)}</dl>\n'


def _interval(low: float, high: float) -> str:
    return f"95 % CI {low:.3f} to {high:.3f}"


def _runs(report: Report) -> str:
    runs = report.runs.found
    if not runs and not report.notices:
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
        for run in runs
    ]
    devices = sorted({run.device for run in runs})
    notices = sorted(
        {(n.code, n.message) for run in runs for n in run.notices} | {(n.code, n.message) for n in report.notices}
    )
    summary = f"All predictions were computed on {' and '.join(devices)}."
    if not devices:
        summary = "The prediction folders contain no record of their runs."
    elif report.runs.unrecorded:
        summary += f" There is no record for {enumerate_some(list(report.runs.unrecorded))}."
    body = ""
    if rows:
        header = (
            "member",
            "device",
            "views",
            "images",
            "computed",
            "batch",
            "workers",
            "member s",
            "images/s",
            "run s",
        )
        body = table(header, rows, numbers=set(range(3, 10)), label="runs") + (
            '<p class="note">Computed: images that were not yet in the folder. Batch: images per forward pass. '
            "Member s: seconds spent on this member; images/s is computed from them. Run s: seconds of the whole run, "
            "which may have predicted several members.</p>"
        )
    if notices:
        body += "<h3>Warnings and notes</h3><ul>" + "".join(
            f"<li><code>{escape(code)}</code> {escape(message)}</li>" for code, message in notices
        )
        body += "</ul>"
    return section("Runs", summary, body)


def _speed(seconds: float, images: int) -> tuple[str, str]:
    return f"{seconds:.1f}", f"{images / seconds:.1f}" if seconds > 0 else "-"


def _commands(report: Report) -> str:
    if not report.commands:
        return ""
    body = preformatted("\n".join(report.commands), "commands")
    return section("Reproduce", "The same inputs give this page again, byte for byte.", body)


def _missing(report: Report) -> str:
    if not report.missing:
        return ""
    items = "".join(
        f"<li>{escape(one.section)}: <span class='muted'>{escape(one.remedy)}</span></li>" for one in report.missing
    )
    return f"<aside>\n<h2>Not in this report</h2>\n<ul>{items}</ul>\n</aside>\n"
