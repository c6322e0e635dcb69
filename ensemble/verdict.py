"""The verdict of a report: what it all comes to, in a sentence."""

from __future__ import annotations

from ensemble.report import Report


def verdict_of(report: Report) -> str:
    """What it all comes to, in a sentence."""
    choice, quality = report.choice, report.quality
    if choice is not None and choice.row is not None:
        row = choice.row
        gain = f"{row.gain:+.4f} ± {row.error:.4f} against the mean of probabilities"
        return f"{choice.method}: {choice.metric} {row.nested:.4f} on people it was not fitted to" + (
            f", {gain}" if row is not choice.table[0] else ", the mean of probabilities"
        )
    if quality is None:
        count = len(report.members)
        return f"{count} {'member' if count == 1 else 'members'}, {report.images:,} images, and no truth to judge by"
    found = f"Macro F1 {quality.scores.macro_f1.value:.4f}"
    scored = [(member.scores.macro_f1.value, member.name) for member in report.members if member.scores is not None]
    if len(scored) < 2:
        return found
    best, name = max(scored)
    lead = quality.scores.macro_f1.value - best
    return f"{found}: the blend is {abs(lead):.4f} {'below' if lead < 0 else 'above'} its best member, {name}"


def basis_of(report: Report) -> str:
    """What was scored and what was predicted."""
    if report.quality is None:
        return f"Ensemble report · {report.images:,} test images"
    found = report.quality.evaluation
    persons = "" if found.persons is None else f" of {found.persons:,} persons"
    kind = "out-of-fold" if report.out_of_fold else "test"
    more = f" · {report.images:,} test images" if report.out_of_fold else ""
    return f"Ensemble report · scored on {found.images:,} {kind} images{persons}{more}"
