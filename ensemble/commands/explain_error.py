"""The command `ens explain-error`."""

from __future__ import annotations

import click

from ensemble.commands.options import json_option
from ensemble.errors import OptionError
from ensemble.terminal import show


@click.command("explain-error", short_help="Explain an error code and its fix")
@click.argument("code")
@json_option
def explain_error(code: str, as_json: bool) -> None:
    """Explain what an error or notice code means and how to fix it.

    Example: ens explain-error E314
    """
    from ensemble.error_codes import CODES

    entry = CODES.get(code.upper())
    if entry is None:
        raise OptionError("E204", f"there is no code {code!r}", hint="codes look like E314, W301 or I304")
    show(entry._asdict(), f"{code.upper()}: {entry.cause}\n  {entry.cure}", as_json=as_json)
