"""The command `ens report`."""

from __future__ import annotations

import shlex
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import click

from ensemble.commands.options import PATH, conflict, json_option, named, progress_options, report_extra
from ensemble.commands.output_paths import HTML
from ensemble.commands.sheet_options import table_options
from ensemble.terminal import TERMINAL, show

if TYPE_CHECKING:
    from ensemble.predictions.external import ExternalOptions


@click.command(short_help="Write an HTML report about a blend")
@click.argument("predictions", nargs=-1, required=True, type=PATH)
@click.option("--recipe", type=PATH, help="Recipe of the blend, such as blend.json.  [default: equal weights]")
@click.option(
    "--truth", type=PATH, help="Ground-truth CSV of --oof, or else of PREDICTIONS (ImageID, ans, optional person)."
)
@click.option("--id-column", metavar="NAME", help="Column of the ids in --truth.  [default: by its name]")
@click.option("--label-column", metavar="NAME", help="Column of the classes in --truth.  [default: by its name]")
@click.option("--oof", type=PATH, multiple=True, help="Out-of-fold predictions to score; repeatable.")
@table_options("logits", "probabilities", submissions=False, oof=True)
@click.option(
    "--labels",
    default="mask18",
    show_default=True,
    help="Label space of tables and arrays: mask18, a number of classes, or a file of class names.  "
    "[--recipe has its own]",
)
@click.option("--images", type=PATH, help="Folder of the test images, to show those that members disagree on.")
@click.option(
    "--models",
    type=PATH,
    multiple=True,
    help="Models or folders of them, exported with --features: draws where the members that disagree see their class; "
    "repeatable.",
)
@click.option("-o", "output", type=HTML, required=True, help="HTML file to write.")
@progress_options
@json_option
def report(
    predictions: tuple[Path, ...],
    recipe: Path | None,
    truth: Path | None,
    id_column: str | None,
    label_column: str | None,
    oof: tuple[Path, ...],
    tables: ExternalOptions,
    labels: str,
    images: Path | None,
    models: tuple[Path, ...],
    output: Path,
    as_json: bool,
) -> None:
    """Write an HTML page about a blend: its runs, its scores, and the images on which its members disagree.

    Example: ens report runs/preds --recipe blend.json --truth train.csv --oof oof --images eval/images -o report.html
    """
    with report_extra("report"):
        from ensemble.analysis.label_html import render_label_page
        from ensemble.analysis.report_html import render_page
    from ensemble.analysis.label_report import label_report_of, summary_of_labels
    from ensemble.analysis.report import report_of, summary_of
    from ensemble.analysis.report_inputs import ReportFiles, gather_inputs
    from ensemble.files import require_different, write_atomic
    from ensemble.label_file import parse_labels
    from ensemble.predictions.truth import TruthOptions

    read = {"--recipe": recipe, "--truth": truth} | named("PREDICTIONS", predictions) | named("--oof", oof)
    require_different({"-o": output}, read)
    words = ["ens", "report", *map(str, predictions)]
    given = {"--recipe": recipe, "--truth": truth, "--id-column": id_column, "--label-column": label_column}
    given |= {
        "--as": tables.kind,
        "--ids": tables.ids,
        "--oof-ids": tables.oof_ids,
        "--array": tables.array,
        "--labels": None if labels == "mask18" else labels,
    }
    for option, value in (*given.items(), *(("--oof", path) for path in oof)):
        words += [] if value is None else [option, str(value)]
    words += ["--in-order"] * tables.in_order + ["--activation", "sigmoid"] * (tables.activation == "sigmoid")
    words += [word for path in models for word in ("--models", str(path))]
    words += ([] if images is None else ["--images", str(images)]) + ["-o", str(output)]
    inputs = gather_inputs(
        predictions,
        recipe=recipe,
        truth=truth,
        oof=oof,
        files=ReportFiles(
            TruthOptions(id_column, label_column),
            replace(tables, id_column=id_column),
            parse_labels(labels),
        ),
        listener=TERMINAL,
    )
    commands = (shlex.join(words),)
    if inputs.independent and models:
        raise conflict(
            "--models is for members of one class per image: maps of several labels are those of ens explain"
        )
    if inputs.independent:
        of_labels = label_report_of(inputs, images=images, commands=commands)
        text, summary, absent = render_label_page(of_labels), summary_of_labels(of_labels), of_labels.missing
    else:
        found = report_of(inputs, images=images, commands=commands, models=models)
        text, summary, absent = render_page(found), summary_of(found), found.missing
    page = text.encode()
    write_atomic(output, page)
    facts = {"path": str(output), "bytes": len(page), "verdict": summary}
    show(facts | {"absent": [one.section for one in absent]}, f"{summary}\n{output}", as_json=as_json)
