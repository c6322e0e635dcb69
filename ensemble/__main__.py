"""Run a command and exit with its status: the only module that turns errors into messages and exit statuses."""

from __future__ import annotations

import errno
import signal
import sys
import tempfile
import traceback
from collections.abc import Sequence

import click

from ensemble.cli import ens
from ensemble.errors import DeviceError, DiskFullError, EnsError, FileError, Interrupted, OptionError
from ensemble.terminal import TERMINAL, show_bug, show_error


def main() -> None:
    """Run the command line and exit with its status."""
    sys.exit(run(sys.argv[1:]))


def run(arguments: Sequence[str]) -> int:
    """Run a command and return its exit status."""
    before = signal.signal(signal.SIGTERM, _stop)
    try:
        return _run(arguments, as_json="--json" in arguments, debug="--debug" in arguments)
    finally:
        TERMINAL.close()
        signal.signal(signal.SIGTERM, before)


def _run(arguments: Sequence[str], *, as_json: bool, debug: bool) -> int:
    try:
        ens.main(list(arguments), prog_name="ens", standalone_mode=False)
    except EnsError as err:
        if debug:
            traceback.print_exc()
        TERMINAL.close()
        show_error(err, as_json=as_json)
        return err.status if isinstance(err, Interrupted) else err.exit_status
    except click.exceptions.Exit as err:
        return err.exit_code
    except click.ClickException as err:
        if as_json:
            show_error(OptionError("E200", err.format_message()), as_json=True)
        else:
            err.show()
        return err.exit_code
    except (KeyboardInterrupt, click.Abort) as err:
        TERMINAL.close()
        number = int(err.args[0]) if err.args else signal.SIGINT
        show_error(Interrupted("stopped", signal_number=number), as_json=as_json)
        return 128 + number
    except BrokenPipeError:
        # the reader of the output has closed it, as `head` does
        sys.stdout = None
        return 141
    except MemoryError:
        TERMINAL.close()
        show_error(DeviceError("E603", "the machine ran out of memory; finished parts are kept"), as_json=as_json)
        return DeviceError.exit_status
    except OSError as err:
        if err.errno not in {errno.ENOSPC, errno.EDQUOT, errno.EIO}:
            return _report_bug(err, debug=debug)
        TERMINAL.close()
        show_error(DiskFullError("E701", f"the output could not be written: {err.strerror}"), as_json=False)
        return FileError.exit_status
    except Exception as err:  # noqa: BLE001 - anything else is a bug
        TERMINAL.close()
        return _report_bug(err, debug=debug)
    return 0


def _stop(number: int, _frame: object) -> None:
    raise KeyboardInterrupt(number)


def _report_bug(err: Exception, *, debug: bool) -> int:
    if debug:
        traceback.print_exc()
        return 1
    with tempfile.NamedTemporaryFile("w", prefix="ens-crash-", suffix=".txt", delete=False, encoding="utf-8") as report:
        traceback.print_exception(err, file=report)
    show_bug(err, report.name)
    return 1


if __name__ == "__main__":
    main()
