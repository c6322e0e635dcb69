"""Finished steps of one model's export, in files beside the models: the next run of the same export uses them."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import time
from collections import Counter
from collections.abc import Callable, Mapping, MutableMapping, Sequence
from pathlib import Path
from typing import Any, Self

import numpy as np
import onnx
from numpy.typing import NDArray

from ensemble.errors import FileError, ModelError
from ensemble.events import SILENT, Listener, Notice
from ensemble.files import remove, remove_folder
from ensemble.kept_arrays import read_state, write_state
from ensemble.text.json_text import parse_json

Arrays = Mapping[str, NDArray[Any]]
Given = bytes | str | int | NDArray[Any] | onnx.ModelProto
Spans = Sequence[tuple[int, int]]
Adder = Callable[[MutableMapping[str, NDArray[Any]], int], None]  # of a row, by its index, to sums

_SECONDS = 10.0  # of work between two files
_STOPPED = 5.0  # and before a stop, for which they are written as well
_LEAST_SHARE = 10  # and at least so many times what writing one takes
_PER_SECOND = 30e6  # bytes: what is computed at this rate is computed again, which takes no longer than to write it
_FREE = 2**16  # bytes that are kept whatever they took, as times are, which are never the same twice
_LARGE = 4 * 2**20  # bytes of a step that has a file of its own, and is not held in memory
_FILE = re.compile(r"(\d{4}|[1-9]\d{4,8})\.state")
_JSON, _DONE = "json", "done"
_FIELD = "\n"  # between the name of a step and that of its array


class Steps:
    """Compute the steps of an export, and keep none.

    ``kind`` says in words what a step is, ``parts`` are all that its result depends on beside the export's options.
    """

    def open(self, member: str, *parts: Given) -> None:
        """Begin the export of a model that depends on ``parts``."""

    def arrays(self, kind: str, parts: Sequence[Given], make: Callable[[], Arrays]) -> Arrays:
        """Return arrays by name, each of one dimension or more."""
        del kind, parts
        return make()

    def values(self, kind: str, parts: Sequence[Given], make: Callable[[], Any]) -> Any:
        """Return JSON-ready values."""
        del kind, parts
        return make()

    def rows(self, kind: str, parts: Sequence[Given], spans: Spans, make: Callable[[int, int], Arrays]) -> Arrays:
        """Return arrays whose rows are computed by ``spans``: ``(start, stop)`` from 0 on, without gaps."""
        del kind, parts
        rows: dict[str, NDArray[Any]] = {}
        for span in spans:
            _put(rows, make(*span), span, spans[-1][1])
        return rows

    def fold(self, kind: str, parts: Sequence[Given], count: int, add: Adder) -> Arrays:
        """Return sums to which ``add`` has added each of ``count`` rows, by its index; they are empty at first."""
        del kind, parts
        sums: dict[str, NDArray[Any]] = {}
        for i in range(count):
            add(sums, i)
        return sums

    def forget(self, kind: str) -> None:
        """Remove the steps of a kind: those that were made from them are kept."""


NO_STEPS = Steps()


class KeptSteps(Steps):
    """Keep the steps in ``<folder>/.export-<member>.state/``, a file for every ten seconds of work.

    ``key`` is a hash of all that the model depends on: steps of another key are replaced. As a context manager it
    removes the steps at the end, or when the export fails for a reason of the model; after any other error, and after a
    signal, they are written. Where they cannot be written, W499 says so and the export continues without.
    """

    def __init__(
        self, folder: Path, key: str, *, listener: Listener = SILENT, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._folder, self._key, self._listener, self._clock = folder, key, listener, clock
        self._path: Path | None = None
        self._found: dict[str, Arrays] = {}  # those of an earlier run, and small ones of this run
        self._pending: dict[str, Arrays] = {}
        self._files: dict[int, set[str]] = {}  # the steps in each file that no later file has
        self._next = 1
        self._written = clock()
        self._wait = _SECONDS

    def open(self, member: str, *parts: Given) -> None:
        """Read the steps of a model's earlier export; ``parts`` are what its key lacks. Nothing is kept before.

        I497 says what is there, I498 that it is not used.
        """
        self._key = digest((self._key, *parts))
        path = self._folder / f".export-{member}.state"
        try:
            numbers = {int(match[1]) for name in os.listdir(path) if (match := _FILE.fullmatch(name))}
        except FileNotFoundError:
            numbers = set()
        except OSError as err:
            self._tell_not_kept(member, f"{path.name} cannot be read: {err.strerror or err}")
            return
        self._path = path
        self._next = max(numbers, default=0) + 1
        read = [self._read(number, _file(path, number)) for number in sorted(numbers)]
        if not all(read):
            text = (
                f"{member}: steps of an export that did not end are not used: they are of other options, checkpoints, "
                "images or versions, or damaged"
            )
            self._listener.notice(Notice("I498", text, path))
        if self._found:
            counts = Counter(name.split("/")[0] for name in self._found)
            kept = ", ".join(kind if count == 1 else f"{kind} ({count})" for kind, count in counts.items())
            text = f"{member}: an export with the same options that did not end is resumed; kept are: {kept}"
            self._listener.notice(Notice("I497", text, path))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, _error: object, _trace: object) -> None:
        if kind is None or issubclass(kind, ModelError):
            self._end()
        elif self._clock() - self._written >= _STOPPED:
            self._write()

    def arrays(self, kind: str, parts: Sequence[Given], make: Callable[[], Arrays]) -> Arrays:
        """See `Steps.arrays`."""
        if self._path is None:
            return make()
        name = f"{kind}/{digest(parts)}"
        found = self._take(name)
        if found is None:
            began = self._clock()
            found = make()
            self._keep(name, found, self._clock() - began)
        return found

    def values(self, kind: str, parts: Sequence[Given], make: Callable[[], Any]) -> Any:
        """See `Steps.values`."""

        def encode() -> Arrays:
            return {_JSON: np.frombuffer(json.dumps(make()).encode(), dtype=np.uint8)}

        return parse_json(self.arrays(kind, parts, encode)[_JSON].tobytes())

    def rows(self, kind: str, parts: Sequence[Given], spans: Spans, make: Callable[[int, int], Arrays]) -> Arrays:
        """See `Steps.rows`."""
        if self._path is None:
            return super().rows(kind, parts, spans, make)
        name = f"{kind}/{digest((*parts, repr(tuple(spans))))}"
        rows: dict[str, NDArray[Any]] = {}
        done, count = 0, spans[-1][1]
        while done < len(spans) and (found := self._take(f"{name}/{done}")) is not None:
            first, done = done, int(found[_DONE][0])
            chunk = {field: values for field, values in found.items() if field != _DONE}
            _put(rows, chunk, (spans[first][0], spans[done - 1][1]), count)
        first, began = done, self._clock()
        for number, span in enumerate(spans[done:], done + 1):
            _put(rows, make(*span), span, count)
            if number == len(spans) or self._is_due():
                chunk = {field: values[spans[first][0] : span[1]] for field, values in rows.items()}
                self._keep(f"{name}/{first}", {**chunk, _DONE: np.array([number])}, self._clock() - began)
                first, began = number, self._clock()
        return rows

    def fold(self, kind: str, parts: Sequence[Given], count: int, add: Adder) -> Arrays:
        """See `Steps.fold`."""
        if self._path is None:
            return super().fold(kind, parts, count, add)
        name = f"{kind}/{digest((*parts, count))}"
        sums = {field: values.copy() for field, values in self._found.pop(name, {}).items()}
        done = int(sums.pop(_DONE)[0]) if sums else 0
        began = self._clock()
        for i in range(done, count):
            add(sums, i)
            if i + 1 == count or self._is_due():
                self._keep(name, {**sums, _DONE: np.array([i + 1])}, self._clock() - began, changes=i + 1 < count)
        return sums

    def forget(self, kind: str) -> None:
        """See `Steps.forget`."""
        for steps in (self._found, self._pending):
            for name in [name for name in steps if name.startswith(f"{kind}/")]:
                del steps[name]
        stored = {name for names in self._files.values() for name in names if name.startswith(f"{kind}/")}
        if stored:
            self._write()  # first what was made from them
            self._drop(stored)

    def _read(self, number: int, path: Path) -> bool:
        """Read one file; remove it and return False if it is damaged or of another export."""
        arrays = read_state(path, self._key)
        if arrays is None:
            with contextlib.suppress(FileError):
                remove(path)
            return False
        steps: dict[str, dict[str, NDArray[Any]]] = {}
        for place, values in arrays.items():
            name, _, field = place.partition(_FIELD)
            steps.setdefault(name, {})[field] = values
        self._drop(set(steps))
        self._files[number] = set(steps)
        self._found |= steps
        return True

    def _take(self, name: str) -> Arrays | None:
        found = self._found.get(name)
        if found is not None and _bytes_of(found) >= _LARGE:
            del self._found[name]
        return found

    def _keep(self, name: str, step: Arrays, seconds: float, *, changes: bool = False) -> None:
        """Keep a step that took so long; one that ``changes`` afterwards is written at once."""
        size = _bytes_of(step)
        if size <= max(_FREE, _PER_SECOND * seconds):
            if size < _LARGE and not changes:
                self._found[name] = step
            self._pending[name] = step
        if self._is_due() or changes:
            self._write()

    def _is_due(self) -> bool:
        return self._clock() - self._written >= self._wait

    def _write(self) -> None:
        """Write what is not yet on disk: a file for each large step, and one for all others."""
        if self._path is None or not self._pending:
            return
        began = self._clock()
        large = {name for name, step in self._pending.items() if _bytes_of(step) >= _LARGE}
        groups = [[name] for name in self._pending if name in large]
        groups += [[name for name in self._pending if name not in large]]
        for names in filter(None, groups):
            arrays = {
                f"{name}{_FIELD}{field}": values for name in names for field, values in self._pending[name].items()
            }
            try:
                write_state(_file(self._path, self._next), self._key, arrays)
            except FileError as err:
                self._tell_not_kept(self._path.name, err.message)
                self._path = None
                break
            self._drop(set(names))
            self._files[self._next] = set(names)
            self._next += 1
        self._pending.clear()
        self._written = self._clock()
        self._wait = max(_SECONDS, _LEAST_SHARE * (self._written - began))

    def _drop(self, names: set[str]) -> None:
        """Remove the files that have no other steps than these."""
        for number, held in list(self._files.items()):
            held.difference_update(names)
            if not held and self._path is not None:
                del self._files[number]
                with contextlib.suppress(FileError):
                    remove(_file(self._path, number))

    def _end(self) -> None:
        if self._path is not None:
            with contextlib.suppress(FileError):
                remove_folder(self._path, _FILE)

    def _tell_not_kept(self, what: str, why: str) -> None:
        text = f"{what}: the steps of this export are not kept, a stop costs all of them: {why}"
        self._listener.notice(Notice("W499", text, self._folder))


def _file(folder: Path, number: int) -> Path:
    return folder / f"{number:04d}.state"


def digest(parts: Sequence[Given]) -> str:
    """Return a hash of texts, bytes, arrays and models."""
    found = hashlib.sha256()
    for part in parts:
        if isinstance(part, np.ndarray):
            data = np.ascontiguousarray(part)
            found.update(f"{data.dtype.str}{part.shape}".encode())
            found.update(data.reshape(-1).view(np.uint8).data)
        elif isinstance(part, onnx.ModelProto):
            found.update(part.SerializeToString(deterministic=True))
        else:
            found.update(part if isinstance(part, bytes) else f"{part}".encode("utf-8", "surrogateescape"))
        found.update(b"\0end of a part\0")
    return found.hexdigest()


def spans_of(count: int, size: int) -> Spans:
    """Return the spans of ``count`` rows in batches of ``size``."""
    return [(start, min(start + size, count)) for start in range(0, count, size)]


def _put(rows: dict[str, NDArray[Any]], chunk: Arrays, span: tuple[int, int], count: int) -> None:
    """Put the rows of a span in their place among ``count``."""
    for field, values in chunk.items():
        if field not in rows:
            rows[field] = np.empty((count, *values.shape[1:]), dtype=values.dtype)
        rows[field][slice(*span)] = values


def _bytes_of(step: Arrays) -> int:
    return sum(values.nbytes for values in step.values())
