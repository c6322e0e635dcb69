"""Run a command and exit with its status: the only module that turns errors into messages and exit statuses."""

from __future__ import annotations

import atexit
import contextlib
import errno
import io
import os
import select
import signal
import sys
import tempfile
import threading
import traceback
from collections.abc import Callable, Sequence

from ensemble.stop_signals import StopSignals, ended_by_interrupts

with ended_by_interrupts():
    import click

    from ensemble.address_space import is_lack_of_memory, require_address_space
    from ensemble.cli import ens
    from ensemble.errors import DeviceError, EnsError, FileError, Interrupted
    from ensemble.terminal import TERMINAL, open_standard_streams, show_bug, show_error, show_usage_error

_UNWRITTEN = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EIO}
_NO_TEMPORARY_FOLDER = "No usable temporary directory"  # of Python's tempfile
_READER_GONE = 141  # as of a program that SIGPIPE ends
_EXIT_SECONDS = 0.5  # that a stopped command has for what libraries do at the end of a process


def main() -> None:
    """Run the command line and exit with its status."""
    with ended_by_interrupts():
        open_standard_streams()
        signals = StopSignals(_give_up)
        status = run(sys.argv[1:], signals)
    if signals.first is not None or status == DeviceError.exit_status:
        # Python's own exit waits for threads, one of which may be in a long call of a library, frees what torch holds
        # for a second, and ends with SIGINT where the signal came inside of an exec of text (pythonrun.c); where there
        # is no memory left, it crashes
        _end_process(_clean_up, status, seconds=_EXIT_SECONDS)
    sys.exit(status)


def run(arguments: Sequence[str], signals: StopSignals | None = None) -> int:
    """Run a command and return its exit status: after a signal 128 + the number of the first one."""
    signals = signals or StopSignals()
    TERMINAL.as_json = "--json" in arguments
    try:
        with signals.heard():
            try:
                status = _run(arguments, signals, debug="--debug" in arguments)
            except KeyboardInterrupt:  # while an error was being shown
                status = _stopped(signals)
            finally:
                signals.end()
                TERMINAL.close()
    except KeyboardInterrupt:  # as the block began
        status = _stopped(signals)
    return status


def _clean_up() -> None:
    with contextlib.suppress(Exception):  # what a library does at the end
        atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        if stream is not None:
            with contextlib.suppress(OSError, ValueError):  # its reader is gone
                stream.flush()


def _give_up(number: int) -> None:
    """End the process for a signal that the main thread does not hear: it is in a long call of a library."""
    message = "stopped in the middle of a step that cannot be interrupted; what is written is kept"
    err = Interrupted(message, signal_number=number)
    _end_process(lambda: show_error(err, as_json=TERMINAL.as_json), err.status)


def _end_process(say: Callable[[], object], status: int, *, seconds: float = 0.3) -> None:
    """End this process and those of its pools without waiting for a thread; ``say`` gets so many seconds.

    What ``say`` needs may be held by the thread that does not answer.
    """
    with contextlib.suppress(RuntimeError, MemoryError):  # no room for a thread
        saying = threading.Thread(target=say, daemon=True)
        saying.start()
        saying.join(seconds)
    if "multiprocessing" in sys.modules:
        from multiprocessing import active_children

        for child in active_children():
            child.terminate()
    os._exit(status)


def _run(arguments: Sequence[str], signals: StopSignals, *, debug: bool) -> int:
    try:
        _require_place(arguments)
        ens.main(list(arguments), prog_name="ens", standalone_mode=False)
    except Interrupted as err:
        return _stopped(signals, err)
    except (KeyboardInterrupt, click.Abort):
        return _stopped(signals)
    except click.exceptions.Exit as err:
        return err.exit_code
    except SystemExit:
        # click ends so, with status 1 and streams that are silent, where nobody reads the help any more
        if isinstance(sys.stdout, io.TextIOBase):
            raise
        sys.stdout = None
        return _READER_GONE
    except Exception as err:  # noqa: BLE001 - every error ends here
        return _failed(err, signals, debug=debug)
    return 0


def _require_place(arguments: Sequence[str]) -> None:
    """Refuse to work in a folder that was removed, or without room for the libraries.

    Torch and Ray end the process in such a folder without a message of ours.

    Raises:
        FileError: E740.
        DeviceError: E603.
    """
    if {"-h", "--help", "--version", "explain-error"}.isdisjoint(arguments):
        try:
            os.getcwd()
        except FileNotFoundError as err:
            raise FileError("E740", "the working folder does not exist any more") from err
        require_address_space()


def _stopped(signals: StopSignals, err: Interrupted | None = None) -> int:
    number = signals.first or (signal.SIGINT if err is None else err.signal_number)
    TERMINAL.close()
    show_error(err or Interrupted("stopped", signal_number=number), as_json=TERMINAL.as_json)
    return 128 + number


def _is_reader_gone() -> bool:
    """Return whether what reads the standard output, or the errors, has closed it, as `head` does."""
    if sys.platform == "win32":  # there, nothing tells
        return True
    poll = select.poll()
    for number in (1, 2):
        poll.register(number, 0)  # errors are always reported
    return any(event & (select.POLLERR | select.POLLHUP) for _, event in poll.poll(0))


def _failed(err: Exception, signals: StopSignals, *, debug: bool) -> int:
    """Show an error and return its exit status."""
    if signals.first is not None:  # what fails once the command is being stopped, such as an import, is no error
        return _stopped(signals)
    if isinstance(err, BrokenPipeError) and _is_reader_gone():
        sys.stdout = None
        return _READER_GONE
    if debug and not isinstance(err, click.ClickException):
        traceback.print_exception(err)
    TERMINAL.close()
    as_json = TERMINAL.as_json
    if isinstance(err, click.ClickException):
        show_usage_error(err, as_json=as_json)
        return err.exit_code
    if isinstance(err, MemoryError) or is_lack_of_memory(err):
        err = DeviceError("E603", "the machine ran out of memory; finished parts are kept")
    elif isinstance(err, OSError) and err.errno in {errno.EMFILE, errno.ENFILE}:
        hint = "raise the limit with ulimit -n, and run the same command again"
        err = DeviceError("E603", f"the limit of open files is reached: {err.strerror}", hint=hint)
    elif isinstance(err, OSError) and err.errno in _UNWRITTEN:
        from ensemble.files import write_error

        err = write_error(err, "the output could not be written")
        as_json = False  # which would go to the standard output
    elif isinstance(err, FileNotFoundError) and _NO_TEMPORARY_FOLDER in str(err):
        hint = "set TMPDIR to a folder that can be written, such as TMPDIR=$PWD"
        err = FileError("E702", "no folder for temporary files can be written", hint=hint)
    if isinstance(err, EnsError):
        show_error(err, as_json=as_json)
        return err.exit_status
    return 1 if debug else _report_bug(err)


def _report_bug(err: Exception) -> int:
    try:
        with tempfile.NamedTemporaryFile(
            "w", prefix="ens-crash-", suffix=".txt", delete=False, encoding="utf-8"
        ) as report:
            traceback.print_exception(err, file=report)
    except OSError:  # no folder for it, or no room
        show_bug(err, "what ens --debug shows")
    else:
        show_bug(err, report.name)
    return 1


if __name__ == "__main__":
    main()
