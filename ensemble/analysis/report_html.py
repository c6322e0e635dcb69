"""Render a report as one HTML file with its style and plots inside, without scripts or external resources."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from ensemble.analysis import report_sections as sections
from ensemble.analysis.html import Tile, preformatted, render_document, section, table
from ensemble.analysis.report import Report, subtitle_of, summary_of
from ensemble.analysis.report_facts import MissingSection, RunRecords
from ensemble.errors import enumerate_some
from ensemble.events import Notice


def render_page(report: Report) -> str:
    """Render the page; the same report always gives the same text."""
    parts = (
        render_runs(report.runs, report.notices),
        sections.render_members(report),
        sections.render_choice(report.choice),
        sections.render_confusion(report),
        sections.render_classes(report),
        sections.render_calibration(report),
        sections.render_agreement(report),
        sections.render_gains(report.views.gains, report.views.metric),
        sections.render_distribution(report),
        sections.render_disagreements(report),
        render_commands(report.commands),
        render_missing(report.missing),
    )
    return render_document(summary_of(report), subtitle=subtitle_of(report), tiles=_tiles(report), body="".join(parts))


def _tiles(report: Report) -> list[Tile]:
    tiles: list[Tile] = []
    if report.choice is not None and report.choice.row is not None:
        row = report.choice.row
        tiles.append(
            Tile(f"{report.choice.metric}, nested CV", f"{row.nested:.4f}", render_interval(row.low, row.high))
        )
    if report.quality is not None:
        scores = report.quality.scores
        fitted = ", in-sample" if report.choice is not None and report.out_of_fold else ""
        for name, score in (("Macro F1", scores.macro_f1), ("Accuracy", scores.accuracy)):
            tiles.append(Tile(f"{name}{fitted}", f"{score.value:.4f}", render_interval(score.low, score.high)))
        if scores.calibration_error is not None:
            tiles.append(Tile("Calibration error (ECE)", f"{scores.calibration_error:.4f}", "15 bins; lower is better"))
    tiles.append(Tile("Members", f"{len(report.members):,}", "groups of folds" if report.out_of_fold else ""))
    return tiles


def render_interval(low: float, high: float) -> str:
    """Render a 95 % interval."""
    return f"95 % CI {low:.3f} to {high:.3f}"


def render_runs(records: RunRecords, noticed: Sequence[Notice]) -> str:
    """Render the records of the runs, and all notices."""
    runs = records.found
    if not runs and not noticed:
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
        {(n.code, n.message) for run in runs for n in run.notices} | {(n.code, n.message) for n in noticed}
    )
    summary = f"All predictions were computed on {' and '.join(devices)}."
    if not devices:
        summary = "The prediction folders contain no record of their runs."
    elif records.unrecorded:
        summary += f" There is no record for {enumerate_some(list(records.unrecorded))}."
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


def render_commands(commands: Sequence[str]) -> str:
    """Render the commands that make the page again."""
    if not commands:
        return ""
    body = preformatted("\n".join(commands), "commands")
    return section("Reproduce", "The same inputs give this page again, byte for byte.", body)


def render_missing(missing: Sequence[MissingSection]) -> str:
    """Render the sections that the page lacks, each with the input that would add it."""
    if not missing:
        return ""
    items = "".join(
        f"<li>{escape(one.section)}: <span class='muted'>{escape(one.remedy)}</span></li>" for one in missing
    )
    return f"<aside>\n<h2>Not in this report</h2>\n<ul>{items}</ul>\n</aside>\n"
