"""The terminal: the only module that prints. Results go to stdout; notices, progress and errors to stderr.

What comes from files and names is escaped where a terminal would obey it, and long messages are cut. A stderr that is
closed or full stops no work: what it would have said is lost.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import sys
import threading
from typing import Any

import click

from ensemble.errors import EnsError, OptionError
from ensemble.events import Listener, Notice
from ensemble.progress_lines import ProgressLines

# the bar takes what the words leave of the line, and is the first to give way
_BAR = "{desc} {percentage:3.0f}% {n_fmt}/{total_fmt}, {remaining} left{postfix} |{bar}|"
_MOST = 2000  # characters of a message
_AROUND_DETAIL = 27  # columns of the rest: without stage, counts and detail, and with a bar of one column


class Terminal(Listener):
    """Writes notices to stderr, and progress: a bar where stderr is a terminal, else a line now and then.

    ``level`` is -1 for warnings and errors only (``-q``), and 1 for more about the progress (``-v``). ``as_json`` says
    that errors are printed as JSON: by ``--json``, or by a file of options once it is read.
    """

    def __init__(self) -> None:
        self.as_json = False
        self._bar: Any = None
        self._around: dict[str, Any] = {}  # bars of stages that others interrupt, by the stage's text
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
        kind, color = ("warning", "yellow") if notice.is_warning else ("note", "cyan")
        line = f"{_styled(f'{kind}[{notice.code}]', color)} {shorten(notice.message)}"
        if self._bar is None:
            _say(line)
        else:
            self._bar.write(line, file=sys.stderr)

    def progress(self, stage: str, done: int, total: int) -> None:
        """Move the stage's bar, and remove it at the end."""
        if self._lines is not None:
            self._lines.progress(stage, done, total)
        if self._level < 0 or not _is_terminal():
            return
        if self._bar is not None and self._bar.desc != escape(stage):
            self._bar.close()
            self._around[self._bar.desc] = self._bar
            self._bar = None
        if self._bar is None:
            from tqdm import tqdm

            self._bar = tqdm(
                desc=escape(stage), total=total, initial=done, dynamic_ncols=True, smoothing=0.1, bar_format=_BAR
            )
            before = self._around.pop(escape(stage), None)
            if before is not None and before.total == total and before.n <= done:
                # its rate is that of all its units so far, and not of those since the last interruption
                self._bar.initial, self._bar.start_t = before.initial, before.start_t
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
            self._bar.write(escape(text), file=sys.stderr)

    def close(self) -> None:
        """End the progress of the command, finished or not."""
        self._ended.set()
        self._ended, self._lines, self._level, self._around = threading.Event(), None, 0, {}
        if self._bar is not None:
            self._bar.close()
            self._bar = None


TERMINAL = Terminal()


def show(value: object, text: str, *, as_json: bool) -> None:
    """Print a result, as JSON or as text."""
    click.echo(_to_json(value) if as_json else escape(text.rstrip("\n")))


def show_error(err: EnsError, *, as_json: bool) -> None:
    """Print an error: what happened, its details, and what to do."""
    if as_json:
        said = {
            key: shorten(value, raw=True) if isinstance(value, str) else value for key, value in err.as_dict().items()
        }
        if err.details:
            said["details"] = [shorten(detail, raw=True) for detail in err.details]
        click.echo(_to_json({"error": said}))
        return
    lines = [f"{_styled(f'error[{err.code}]', 'red')} {shorten(err.message)}"]
    lines += [f"  {shorten(detail)}" for detail in err.details[:20]]
    if len(err.details) > 20:
        lines.append(f"  ... and {len(err.details) - 20:,} more")
    lines.append(f"  {_styled('hint:', 'cyan')} {shorten(err.hint)}")
    _say("\n".join(lines))


def show_usage_error(err: click.ClickException, *, as_json: bool) -> None:
    """Print an error in the command line itself, as click does."""
    if as_json:
        show_error(OptionError("E200", err.format_message()), as_json=True)
        return
    if isinstance(err, click.UsageError) and err.ctx is not None:
        _say(f"{err.ctx.get_usage()}\nTry '{err.ctx.command_path} --help' for help.\n")
    _say(f"Error: {shorten(err.format_message())}")


def show_bug(err: Exception, report: str) -> None:
    """Print one line for an error in the program itself, and where its traceback is."""
    bug = _styled("bug:", "red")
    _say(f"{bug} {type(err).__name__}: {shorten(str(err))}\n  hint: please report it with {report}")


def open_standard_streams() -> None:
    """Open the standard streams that are closed (``2>&-``), on nothing: else the next file would take their place.

    What a library writes to its stderr would then end up in that file.
    """
    for descriptor, name in enumerate(("stdin", "stdout", "stderr")):
        try:
            os.fstat(descriptor)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # gives the lowest number that is free
        if getattr(sys, name) is None:
            setattr(sys, name, os.fdopen(descriptor, "r" if descriptor == 0 else "w", encoding="utf-8", closefd=False))


def escape(text: str) -> str:
    """Return a text without characters that a terminal obeys: escape sequences, bidirectional marks, half characters.

    They become escapes such as ``\\x1b``; line breaks and tabs stay.
    """
    return text if text.isascii() and text.isprintable() else _OBEYED.sub(_escaped, text)


def shorten(text: str, *, raw: bool = False) -> str:
    """Return a message escaped, unless ``raw``, and cut at 2,000 characters."""
    cut = text if len(text) <= _MOST else f"{text[:_MOST]}... and {len(text) - _MOST:,} more characters"
    return cut if raw else escape(cut)


def shorten_detail(text: str, room: int) -> str:
    """Return the first of the comma-separated parts that fit into ``room`` columns together, at least one of them."""
    first, *others = text.split(", ")
    for part in others:
        if len(first) + 2 + len(part) > room:
            break
        first += f", {part}"
    return first


# control characters but for tab and line feed, marks that change the direction of text or end a line, surrogates
_OBEYED = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")


def _escaped(found: re.Match[str]) -> str:
    return found[0].encode("unicode_escape").decode("ascii")


def _to_json(value: object) -> str:
    text = json.dumps(value, ensure_ascii=False, indent=1)
    return _OBEYED.sub(lambda found: f"\\u{ord(found[0]):04x}", text)


def _write_line(line: str) -> None:
    _say(escape(line))


def _say(text: str) -> None:
    """Write to stderr, if it can be."""
    with contextlib.suppress(OSError, ValueError):
        click.echo(text, err=True, color=_has_color())


def _tick(lines: ProgressLines, ended: threading.Event) -> None:
    while not ended.wait(lines.until_next()):
        lines.tick()


def _is_terminal() -> bool:
    return sys.stderr is not None and sys.stderr.isatty()


def _styled(text: str, color: str) -> str:
    return click.style(text, fg=color, bold=True) if _has_color() else text


def _has_color() -> bool:
    """Return True where stderr is a terminal; NO_COLOR and FORCE_COLOR (no-color.org, force-color.org) decide first."""
    if os.environ.get("NO_COLOR"):
        return False
    if os.environ.get("FORCE_COLOR"):
        return True
    return _is_terminal() and os.environ.get("TERM") != "dumb"
