"""The command `ens doctor`."""

from __future__ import annotations

import click

from ensemble.commands.options import json_option
from ensemble.terminal import show


@click.command(short_help="Test devices and list missing packages")
@json_option
def doctor(as_json: bool) -> None:
    """Test which devices start, list package versions, and show how to install what is missing.

    Example: ens doctor
    """
    from ensemble.runtime.doctor import doctor as run_doctor

    diagnosis = run_doctor()
    show(diagnosis.as_dict(), diagnosis.render(), as_json=as_json)
