"""Signals: the first decides the exit status, wherever the command is, and later ones change nothing."""

from __future__ import annotations

import contextlib
import hashlib
import importlib
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ensemble import terminal
from ensemble.__main__ import run
from ensemble.errors import OptionError
from ensemble.stop_signals import StopSignals, ended_by_interrupts
from ensemble.thread_pool import thread_pool
from tests.support import toys
from tests.support.children import ROOT

STATUS = {"SIGINT": 130, "SIGTERM": 143, "SIGHUP": 129}


@pytest.fixture
def command(tmp_path: Path) -> list[str]:
    """A prediction of four images."""
    toys.write_pictures(tmp_path / "images", [f"{i}.jpg" for i in range(4)])
    model = toys.write_model(tmp_path / "models", toys.card("a"))
    return ["predict", f"{model}", "--images", f"{tmp_path / 'images'}", "--device", "cpu", "-o", f"{tmp_path / 'out'}"]


def sending(number: int, function: Callable[..., Any]) -> Callable[..., Any]:
    """The function, but for a signal that comes just before."""

    def send(*arguments: Any, **options: Any) -> Any:
        signal.raise_signal(number)
        return function(*arguments, **options)

    return send


@pytest.mark.parametrize("name", STATUS)
@pytest.mark.parametrize(
    "place",
    [
        "ensemble.runtime.model_file.find_models",  # before the run
        "ensemble.predict.predict._compute_in_turn",  # as it starts
        "ensemble.predict.resumable.note",  # while slices are begun
        "ensemble.predict.predict._result",  # when all is computed
        "ensemble.commands.predict.show",  # when all is written
    ],
)
def test_the_status_is_that_of_the_signal(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], command: list[str], place: str, name: str
) -> None:
    """Before, in and after the main loop a signal ends the command with 128 + its number and E801."""
    module, _, function = place.rpartition(".")
    where = importlib.import_module(module)
    monkeypatch.setattr(where, function, sending(getattr(signal, name), getattr(where, function)))
    assert run(command) == STATUS[name]
    assert "error[E801] stopped" in capsys.readouterr().err
    monkeypatch.undo()
    assert run(command) == 0


def test_a_second_signal_changes_nothing(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], command: list[str]
) -> None:
    """Ctrl-C after SIGTERM, while the command writes what it has and says so, leaves the status and the message."""
    from ensemble.predict.background_writer import Writer

    monkeypatch.setattr("ensemble.predict.resumable.note", sending(signal.SIGTERM, lambda *_: None))
    monkeypatch.setattr(Writer, "settle", sending(signal.SIGINT, Writer.settle))
    monkeypatch.setattr("ensemble.__main__.show_error", sending(signal.SIGHUP, terminal.show_error))
    assert run(command) == 143
    assert "error[E801] stopped; 0 of 4 images are done" in capsys.readouterr().err


def test_an_error_that_comes_of_the_signal_is_none(monkeypatch: pytest.MonkeyPatch, command: list[str]) -> None:
    """What fails because a library turned the signal into an error of its own ends as stopped."""

    def fail(*_: object) -> None:
        try:
            signal.raise_signal(signal.SIGTERM)
        except KeyboardInterrupt as err:
            raise ImportError("half of a library") from err

    monkeypatch.setattr("ensemble.runtime.model_file.find_models", fail)
    assert run(command) == 143


def test_a_signal_while_an_error_is_shown_still_stops(monkeypatch: pytest.MonkeyPatch, command: list[str]) -> None:
    """The error of the command was not shown: the status is that of the signal."""

    def fail(*_: object) -> None:
        raise OptionError("E204", "no")

    monkeypatch.setattr("ensemble.runtime.model_file.find_models", fail)
    monkeypatch.setattr("ensemble.__main__.show_error", sending(signal.SIGTERM, terminal.show_error))
    assert run(command) == 143


def test_what_is_ignored_stays_ignored() -> None:
    """Under nohup SIGHUP does not end a command, and every handler is as before when it has ended."""
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    hang_up = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with StopSignals().heard():
            signal.raise_signal(signal.SIGHUP)
            with pytest.raises(KeyboardInterrupt):
                signal.raise_signal(signal.SIGINT)
    finally:
        signal.signal(signal.SIGHUP, hang_up)
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == before


def test_a_signal_as_hearing_begins_is_heard(monkeypatch: pytest.MonkeyPatch, command: list[str]) -> None:
    """One that comes while the watching thread starts stops the command, and the handlers are as before."""
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    monkeypatch.setattr(threading.Thread, "start", sending(signal.SIGTERM, threading.Thread.start))
    assert run(command, StopSignals(lambda _: None)) == 143
    monkeypatch.undo()
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == before


def test_ctrl_c_during_the_imports_prints_no_traceback(tmp_path: Path) -> None:
    """Before a command begins SIGINT ends the process as any other program, which a shell shows as 130."""
    (tmp_path / "click.py").write_text("import os, signal\nos.kill(os.getpid(), signal.SIGINT)\n")
    places = os.environ | {"PYTHONPATH": f"{tmp_path}{os.pathsep}{ROOT}"}
    done = subprocess.run([sys.executable, "-m", "ensemble"], capture_output=True, text=True, timeout=50, env=places)
    assert (done.returncode, done.stderr) == (-signal.SIGINT, "")


def test_imports_leave_the_handler_of_sigint() -> None:
    """What Python or a caller has set, ignoring it too, is as before once the modules are imported."""
    found = []
    for handler in (signal.default_int_handler, signal.SIG_IGN):
        before = signal.signal(signal.SIGINT, handler)
        try:
            with ended_by_interrupts():
                found.append(signal.getsignal(signal.SIGINT))
            assert signal.getsignal(signal.SIGINT) is handler
        finally:
            signal.signal(signal.SIGINT, before)
    assert found == [signal.SIG_DFL, signal.SIG_IGN]


def test_a_signal_that_was_lost_can_be_sent_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ten seconds after one that a library has swallowed, another stops the command, with the status of the first."""
    now = 0.0
    monkeypatch.setattr("ensemble.stop_signals.time.monotonic", lambda: now)
    signals = StopSignals()
    with signals.heard():
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGTERM)
        now = 9.0
        signal.raise_signal(signal.SIGINT)
        now = 11.0
        with pytest.raises(KeyboardInterrupt) as caught:
            signal.raise_signal(signal.SIGINT)
        assert caught.value.args == (signal.SIGTERM,)


def test_a_command_runs_in_any_thread() -> None:
    """In another thread than the main one there are no signals to hear, and the command runs."""
    found: list[int] = []
    thread = threading.Thread(target=lambda: found.append(run(["explain-error", "E801"])))
    thread.start()
    thread.join()
    assert found == [0]


def test_a_signal_during_a_long_call_of_a_library_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """Python hears no signal until the call has ended; a thread does, and says which it was."""
    monkeypatch.setattr("ensemble.stop_signals._UNHEARD", 0.1)
    given_up: list[tuple[int, bool]] = []
    running = True
    signals = StopSignals(lambda number: given_up.append((number, running)))
    main = threading.main_thread().ident
    assert main is not None

    def compute() -> None:
        nonlocal running
        threading.Timer(0.05, signal.pthread_kill, (main, signal.SIGTERM)).start()
        with signals.heard():
            hashlib.pbkdf2_hmac("sha256", b"", b"", 2_000_000)  # a second without a step of Python
            running = False

    with pytest.raises(KeyboardInterrupt):
        compute()
    assert given_up == [(signal.SIGTERM, True)]


def test_a_signal_that_is_heard_is_not_given_up(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """Where the main thread hears it, what is computed is written; a second one at that time prints nothing."""
    monkeypatch.setattr("ensemble.stop_signals._UNHEARD", 0.05)
    given_up: list[int] = []
    with StopSignals(given_up.append).heard():
        with contextlib.suppress(KeyboardInterrupt):
            signal.raise_signal(signal.SIGTERM)
        time.sleep(0.2)
        signal.raise_signal(signal.SIGTERM)
        time.sleep(0.05)
    assert given_up == []
    assert capfd.readouterr().err == ""


def test_a_command_that_does_not_end_after_a_signal_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """What has swallowed the signal, or writes to a disk that does not answer, ends some seconds later."""
    monkeypatch.setattr("ensemble.stop_signals._LONGEST", 0.1)
    given_up: list[int] = []
    with StopSignals(given_up.append).heard():
        with contextlib.suppress(KeyboardInterrupt):
            signal.raise_signal(signal.SIGHUP)
        time.sleep(0.4)
    assert given_up == [signal.SIGHUP]


def test_a_thread_in_a_long_call_does_not_keep_a_pool_from_ending(monkeypatch: pytest.MonkeyPatch) -> None:
    """After an exception what is queued is not begun, and what is in progress is left to itself."""
    monkeypatch.setattr("ensemble.thread_pool.LEAVE_SECONDS", 0.05)
    going, release = threading.Event(), threading.Event()
    begun: list[int] = []

    def work(number: int) -> None:
        begun.append(number)
        going.set()
        release.wait(10)

    def stop() -> None:
        with thread_pool(1) as pool:
            for number in range(3):
                pool.submit(work, number)
            going.wait()
            raise KeyboardInterrupt

    try:
        with pytest.raises(KeyboardInterrupt):
            stop()
        assert begun == [0]
        assert not release.is_set()
    finally:
        release.set()


def test_a_pool_ends_where_there_is_no_memory_for_a_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    """The error that ended the block stays, and what is in progress is waited for."""

    def fail(_: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    def compute() -> None:
        with thread_pool(1) as pool:
            pool.submit(int)
            monkeypatch.setattr(threading.Thread, "start", fail)
            raise MemoryError

    with pytest.raises(MemoryError):
        compute()


@pytest.mark.parametrize(
    "step",
    [
        "with thread_pool(1) as pool: pool.submit(threading.Event().wait, 60); signal.raise_signal(15)",
        "exec('signal.raise_signal(15)')",  # as dataclasses do on import
    ],
)
def test_a_process_ends_with_the_status_of_the_signal(tmp_path: Path, step: str) -> None:
    """Also where a thread does not end, and where Python itself would end with SIGINT as it was running a text."""
    (tmp_path / "stopped.py").write_text(f"""
import signal, sys, threading
from ensemble import __main__
from ensemble.thread_pool import thread_pool
def command(*_, **__):
    {step}
__main__.ens.main, sys.argv = command, ["ens"]
__main__.main()
""")
    command, places = [sys.executable, "-m", "stopped"], os.environ | {"PYTHONPATH": f"{tmp_path}{os.pathsep}{ROOT}"}
    began = time.monotonic()
    done = subprocess.run(command, capture_output=True, text=True, timeout=50, env=places)
    assert done.returncode == 143, done.stderr
    assert "error[E801] stopped" in done.stderr
    assert time.monotonic() - began < 40  # the thread waits for 60 seconds
