"""The command `ens demo`."""

from __future__ import annotations

from pathlib import Path

import click

from ensemble.commands.options import ROOT, json_option, progress_options, require_torch_extra, torch_extra
from ensemble.commands.output_paths import FOLDER
from ensemble.terminal import TERMINAL, show


@click.command(short_help="Run the whole pipeline on a toy contest")
@click.option("-o", "folder", type=FOLDER, default=Path(ROOT, "demo"), show_default=True, help="Output folder.")
@progress_options
@json_option
def demo(folder: Path, as_json: bool) -> None:
    """Run the whole pipeline on a toy contest: draw images, train two small models, export, predict, blend and score.

    Runs on the CPU, without network, in under two minutes.

    Example: ens demo
    """
    from ensemble.files import require_writable

    require_torch_extra("demo")
    require_writable(folder)  # before torch is loaded, which takes seconds
    with torch_extra("demo"):
        from exporters.demo.run import demo as run_demo
    result = run_demo(folder, listener=TERMINAL)
    show(result.as_dict(), result.render(), as_json=as_json)
