"""Signals: the first decides the exit status, wherever the command is, and later ones change nothing."""

from __future__ import annotations

import importlib
import signal
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ensemble import terminal
from ensemble.__main__ import run
from ensemble.errors import OptionError
from ensemble.stop_signals import StopSignals
from tests.support import toys

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
