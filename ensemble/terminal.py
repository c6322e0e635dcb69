"""The terminal: the only module that prints. Results go to stdout; notices, progress and errors to stderr."""

from __future__ import annotations

import json
import sys
from typing import Any

import click

from ensemble.errors import EnsError
from ensemble.events import Listener, Notice


class Terminal(Listener):
    """Writes notices to stderr, and a progress bar where stderr is a terminal."""

    def __init__(self) -> None:
        self._bar: Any = None

    def notice(self, notice: Notice) -> None:
        """Write one line, above the bar."""
        line = f"{'warning' if notice.is_warning else 'note'}[{notice.code}] {notice.message}"
        if self._bar is None:
            click.echo(line, err=True)
        else:
            self._bar.write(line, file=sys.stderr)

    def progress(self, stage: str, done: int, total: int) -> None:
        """Move the stage's bar, and take it away at the end."""
        if not sys.stderr.isatty():
            return
        if self._bar is None:
            from tqdm import tqdm

            self._bar = tqdm(desc=stage, total=total, initial=done, dynamic_ncols=True, smoothing=0.1)
        self._bar.update(done - self._bar.n)
        if done >= total:
            self.close()

    def detail(self, text: str) -> None:
        """Show it behind the bar when the bar next moves."""
        if self._bar is not None:
            self._bar.set_postfix_str(text, refresh=False)

    def close(self) -> None:
        """Take the bar away, wherever it stands."""
        if self._bar is not None:
            self._bar.close()
            self._bar = None


TERMINAL = Terminal()


def show(value: object, text: str, *, as_json: bool) -> None:
    """Print a result, as JSON or as text."""
    click.echo(json.dumps(value, ensure_ascii=False, indent=1) if as_json else text.rstrip("\n"))


def show_error(err: EnsError, *, as_json: bool) -> None:
    """Print an error: what happened, every single fault, and what to do."""
    if as_json:
        click.echo(json.dumps({"error": err.as_dict()}, ensure_ascii=False, indent=1))
        return
    click.echo(f"error[{err.code}] {err.message}", err=True)
    for detail in err.details[:20]:
        click.echo(f"  {detail}", err=True)
    if len(err.details) > 20:
        click.echo(f"  ... and {len(err.details) - 20:,} more", err=True)
    click.echo(f"  hint: {err.hint}", err=True)


def show_bug(err: Exception, report: str) -> None:
    """Print one line for an error that is ours, and where its traceback is."""
    click.echo(f"bug: {type(err).__name__}: {err}\n  hint: please report it with {report}", err=True)
