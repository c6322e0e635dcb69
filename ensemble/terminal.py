"""The terminal: the only module that prints. Results go to stdout; notices, progress and errors to stderr."""

from __future__ import annotations

import json
import os
import sys
import threading
from typing import Any

import click

from ensemble.errors import EnsError
from ensemble.events import Listener, Notice
from ensemble.progress_lines import ProgressLines

# the bar takes what the words leave of the line, and is the first to give way
_BAR = "{desc} {percentage:3.0f}% {n_fmt}/{total_fmt}, {remaining} left{postfix} |{bar}|"
_AROUND_DETAIL = 27  # columns of the rest: without stage, counts and detail, and with a bar of one column


class Terminal(Listener):
    """Writes notices to stderr, and progress: a bar where stderr is a terminal, else a line now and then.

    ``level`` is -1 for warnings and errors only (``-q``), and 1 for more about the progress (``-v``).
    """

    def __init__(self) -> None:
        self._bar: Any = None
        self._level = 0
        self._lines: ProgressLines | None = None
        self._ended = threading.Event()

    def begin(self, name: str, *, level: int = 0) -> None:
        """Begin a command: from now on its progress is shown."""
        self.close()
        self._level = level
        if level >= 0 and not _is_terminal():
            self._lines = ProgressLines(_write_line, name=name, with_details=level > 0)
            threading.Thread(target=_tick, args=(self._lines, self._ended), name="ens-progress", daemon=True).start()

    def notice(self, notice: Notice) -> None:
        """Write one line, above the bar."""
        if self._level < 0 and not notice.is_warning:
            return
        kind, colour = ("warning", "yellow") if notice.is_warning else ("note", "cyan")
        line = f"{_styled(f'{kind}[{notice.code}]', colour)} {notice.message}"
        if self._bar is None:
            click.echo(line, err=True, color=_has_colour())
        else:
            self._bar.write(line, file=sys.stderr)

    def progress(self, stage: str, done: int, total: int) -> None:
        """Move the stage's bar, and remove it at the end."""
        if self._lines is not None:
            self._lines.progress(stage, done, total)
        if self._level < 0 or not _is_terminal():
            return
        if self._bar is not None and self._bar.desc != stage:
            self._bar.close()
            self._bar = None
        if self._bar is None:
            from tqdm import tqdm

            self._bar = tqdm(desc=stage, total=total, initial=done, dynamic_ncols=True, smoothing=0.1, bar_format=_BAR)
        self._bar.update(done - self._bar.n)
        if done >= total:
            self._bar.close()
            self._bar = None

    def detail(self, text: str) -> None:
        """Show as many of the comma-separated parts as there is room for before the bar, when it next moves."""
        if self._lines is not None:
            self._lines.detail(text)
        if self._bar is not None:
            counts = 2 * len(str(self._bar.total))
            room = (self._bar.ncols or 80) - _AROUND_DETAIL - len(self._bar.desc) - counts
            self._bar.set_postfix_str(shorten_detail(text, room), refresh=False)

    def step_done(self, text: str) -> None:
        """Write the line of an epoch; on a terminal, where the bar shows the progress, only with ``-v``."""
        if self._lines is not None:
            self._lines.step_done(text)
        elif self._bar is not None and self._level > 0:
            self._bar.write(text, file=sys.stderr)

    def close(self) -> None:
        """End the progress of the command, finished or not."""
        self._ended.set()
        self._ended, self._lines, self._level = threading.Event(), None, 0
        if self._bar is not None:
            self._bar.close()
            self._bar = None


TERMINAL = Terminal()


def show(value: object, text: str, *, as_json: bool) -> None:
    """Print a result, as JSON or as text."""
    click.echo(json.dumps(value, ensure_ascii=False, indent=1) if as_json else text.rstrip("\n"))


def show_error(err: EnsError, *, as_json: bool) -> None:
    """Print an error: what happened, its details, and what to do."""
    if as_json:
        click.echo(json.dumps({"error": err.as_dict()}, ensure_ascii=False, indent=1))
        return
    lines = [f"{_styled(f'error[{err.code}]', 'red')} {err.message}"]
    lines += [f"  {detail}" for detail in err.details[:20]]
    if len(err.details) > 20:
        lines.append(f"  ... and {len(err.details) - 20:,} more")
    lines.append(f"  {_styled('hint:', 'cyan')} {err.hint}")
    click.echo("\n".join(lines), err=True, color=_has_colour())


def show_bug(err: Exception, report: str) -> None:
    """Print one line for an error in the program itself, and where its traceback is."""
    bug = _styled("bug:", "red")
    line = f"{bug} {type(err).__name__}: {err}\n  hint: please report it with {report}"
    click.echo(line, err=True, color=_has_colour())


def shorten_detail(text: str, room: int) -> str:
    """Return the first of the comma-separated parts that fit into ``room`` columns together, at least one of them."""
    first, *others = text.split(", ")
    for part in others:
        if len(first) + 2 + len(part) > room:
            break
        first += f", {part}"
    return first


def _write_line(line: str) -> None:
    click.echo(line, err=True)


def _tick(lines: ProgressLines, ended: threading.Event) -> None:
    while not ended.wait(1.0):
        lines.tick()


def _is_terminal() -> bool:
    return sys.stderr.isatty()


def _styled(text: str, colour: str) -> str:
    return click.style(text, fg=colour, bold=True) if _has_colour() else text


def _has_colour() -> bool:
    """Return True where stderr is a terminal; NO_COLOR and FORCE_COLOR (no-color.org, force-color.org) decide first."""
    if os.environ.get("NO_COLOR"):
        return False
    if os.environ.get("FORCE_COLOR"):
        return True
    return sys.stderr.isatty() and os.environ.get("TERM") != "dumb"
