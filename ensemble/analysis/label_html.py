"""Render a report about members of several labels per image as one HTML file."""

from __future__ import annotations

from ensemble.analysis import label_sections as sections
from ensemble.analysis.html import Tile, render_document
from ensemble.analysis.label_report import HEADLINE, LabelReport, subtitle_of_labels, summary_of_labels
from ensemble.analysis.report_html import (
    render_commands,
    render_interval,
    render_missing,
    render_runs,
)
from ensemble.analysis.report_sections import render_choice, render_gains


def render_label_page(report: LabelReport) -> str:
    """Render the page; the same report always gives the same text."""
    parts = (
        render_runs(report.runs, report.notices),
        sections.render_label_members(report),
        render_choice(report.choice),
        sections.render_labels(report),
        sections.render_thresholds(report),
        sections.render_together(report),
        sections.render_label_calibration(report),
        sections.render_label_agreement(report),
        "" if report.choice is None else render_gains(report.choice.views, report.choice.metric),
        sections.render_prevalence(report),
        sections.render_disputes(report),
        render_commands(report.commands),
        render_missing(report.missing),
    )
    return render_document(
        summary_of_labels(report), subtitle=subtitle_of_labels(report), tiles=_tiles(report), body="".join(parts)
    )


def _tiles(report: LabelReport) -> list[Tile]:
    tiles: list[Tile] = []
    if report.choice is not None and report.choice.row is not None:
        row = report.choice.row
        note = render_interval(row.low, row.high)
        tiles.append(Tile(f"{report.choice.metric}, nested CV", f"{row.nested:.4f}", note))
    if report.quality is not None:
        fitted = ", in-sample" if report.choice is not None and report.out_of_fold else ""
        for title, name in (("Macro F1", HEADLINE), ("Mean average precision", "present-ap"), ("ROC AUC", "roc-auc")):
            if (found := report.quality.scores[name].estimate) is not None:
                tiles.append(Tile(f"{title}{fitted}", f"{found.value:.4f}", render_interval(found.low, found.high)))
    tiles.append(Tile("Labels", f"{len(report.labels):,}", "several may apply to an image"))
    tiles.append(Tile("Members", f"{len(report.members):,}", "groups of folds" if report.out_of_fold else ""))
    return tiles
