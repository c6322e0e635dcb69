"""Interpret a pickle as data: nothing is imported, and nothing that the file names is called.

Python's unpickler, and torch's with weights_only, import names and call functions; this interpreter builds a `Record`
of what the file says instead. Only the functions that make tensors and plain containers have an equal here.

This module needs the standard library alone, as the sandboxed process imports it.
"""

from __future__ import annotations

import _compat_pickle
import codecs
import io
import pickle
import struct
from collections.abc import Callable
from dataclasses import replace
from typing import Protocol

from checkpoints.loading.pickle_calls import PickleError, as_key, call, extend, pairs, set_items, storage_of
from checkpoints.loading.pickle_objects import Name, Record, Storage


class Source(Protocol):
    """A pickle's bytes: an open file."""

    def read(self, size: int, /) -> bytes:
        """Return ``size`` bytes, or fewer at the end."""

    def readline(self) -> bytes:
        """Return one line."""


# torch.save before 1.6 writes its magic number, a version, the system, the content and the keys of the storages
LEGACY_PICKLES = 5

_STOP = object()
_MARK = object()
_PIECE = 16 * 2**20  # bytes


class PickleReader:
    """An interpreter of pickles, protocols 0 to 5. ``on_name`` is told each global, in order of appearance.

    ``storages`` are those that were referred to, by their keys. ``depth`` is how many pickles are around this one: a
    plain pickle of tensors holds each storage as a file in bytes.
    """

    def __init__(self, source: Source, *, on_name: Callable[[Name], None] = lambda _: None, depth: int = 0) -> None:
        self._source = source
        self._depth = depth
        self._on_name = on_name
        self.storages: dict[str, Storage] = {}
        self._stack: list[object] = []
        self._memo: dict[int, object] = {}

    def load(self) -> object:
        """Return the next pickle's value: plain Python values, `StoredTensor`, `Storage`, `Record` and `Name`.

        Raises:
            PickleError, ValueError, IndexError, KeyError, TypeError, EOFError: when the pickle is damaged.
            MemoryError, RecursionError: when its value is too large, or its keys too deep.
        """
        self._stack, self._memo = [], {}
        read = self._source.read
        while True:
            code = read(1)
            if not code:
                raise EOFError("the pickle ends early")
            step = _STEPS.get(code)
            if step is None:
                raise PickleError(f"unknown instruction {code!r}")
            if step(self) is _STOP:
                return self._stack.pop()

    # reading the arguments of instructions

    def _exactly(self, count: int) -> bytes:
        # in pieces: read(count) makes room for the count before it looks for the bytes
        pieces: list[bytes] = []
        while count > 0:
            data = self._source.read(min(count, _PIECE))
            if not data:
                raise EOFError("the pickle ends early")
            pieces.append(data)
            count -= len(data)
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)

    def _number(self, form: str) -> int:
        (value,) = struct.unpack(form, self._exactly(struct.calcsize(form)))
        assert isinstance(value, int)
        return value

    def _line(self) -> str:
        line = self._source.readline()
        if line[-1:] != b"\n":
            raise EOFError("the pickle ends early")
        return line[:-1].decode("utf-8", "surrogateescape")

    def _pop_to_mark(self) -> list[object]:
        for place in range(len(self._stack) - 1, -1, -1):
            if self._stack[place] is _MARK:
                items = self._stack[place + 1 :]
                del self._stack[place:]
                return items
        raise PickleError("there is no mark")

    def _call(self, function: object, arguments: object) -> object:
        match function, arguments:
            case (Name("torch.storage", "_load_from_bytes"), (bytes() as data,)) if self._depth < 2:
                return self._nested_storage(data)
        return call(function, arguments)

    def _nested_storage(self, data: bytes) -> object:
        """Return the storage in the bytes of a file of its own, in torch.save's format before 1.6."""
        source = io.BytesIO(data)
        reader = PickleReader(source, on_name=self._on_name, depth=self._depth + 1)
        *_, value, keys = (reader.load() for _ in range(LEGACY_PICKLES))
        if type(value) is not Storage or keys != [value.key]:
            return Record(Name("torch.storage", "_load_from_bytes"), (value,))
        source.read(8)  # the number of elements, which the storage has too
        return replace(value, data=source.read())

    def _global(self, module: str, name: str) -> Name:
        """Return the name in Python 3: torch saves with protocol 2, which writes the names of Python 2."""
        module, name = _compat_pickle.NAME_MAPPING.get((module, name), (module, name))
        found = Name(_compat_pickle.IMPORT_MAPPING.get(module, module), name)
        self._on_name(found)
        return found

    # instructions

    def _stop(self) -> object:
        return _STOP

    def _proto(self) -> None:
        self._exactly(1)

    def _frame(self) -> None:
        self._exactly(8)

    def _push_mark(self) -> None:
        self._stack.append(_MARK)

    def _pop(self) -> None:
        self._stack.pop()

    def _pop_mark(self) -> None:
        self._pop_to_mark()

    def _dup(self) -> None:
        self._stack.append(self._stack[-1])

    def _int_line(self) -> None:
        text = self._line()
        self._stack.append({"00": False, "01": True}[text] if text in {"00", "01"} else int(text))

    def _long_line(self) -> None:
        self._stack.append(int(self._line().rstrip("L")))

    def _float_line(self) -> None:
        self._stack.append(float(self._line()))

    def _binfloat(self) -> None:
        self._stack.extend(struct.unpack(">d", self._exactly(8)))

    def _long(self, form: str) -> None:
        self._stack.append(int.from_bytes(self._exactly(self._number(form)), "little", signed=True))

    def _string_line(self) -> None:
        text = self._line()
        if len(text) < 2 or text[0] != text[-1] or text[0] not in "\"'":
            raise PickleError("a string without quotes")
        self._stack.append(_text_of(codecs.escape_decode(text[1:-1].encode())[0]))

    def _unicode_line(self) -> None:
        self._stack.append(self._line().encode("utf-8", "surrogateescape").decode("raw-unicode-escape"))

    def _string(self, form: str) -> None:
        self._stack.append(_text_of(self._exactly(self._number(form))))

    def _unicode(self, form: str) -> None:
        self._stack.append(self._exactly(self._number(form)).decode("utf-8", "surrogatepass"))

    def _bytes(self, form: str) -> None:
        self._stack.append(self._exactly(self._number(form)))

    def _tuple(self) -> None:
        self._stack.append(tuple(self._pop_to_mark()))

    def _last(self, count: int) -> None:
        if len(self._stack) < count or any(item is _MARK for item in self._stack[-count:]):
            raise PickleError("a tuple of nothing")
        self._stack[-count:] = [tuple(self._stack[-count:])]

    def _list(self) -> None:
        self._stack.append(self._pop_to_mark())

    def _dict(self) -> None:
        self._stack.append(pairs(self._pop_to_mark()))

    def _frozenset(self) -> None:
        self._stack.append(frozenset(map(as_key, self._pop_to_mark())))

    def _append(self) -> None:
        item = self._stack.pop()
        extend(self._stack[-1], [item])

    def _appends(self) -> None:
        items = self._pop_to_mark()
        extend(self._stack[-1], items)

    def _setitem(self) -> None:
        value, key = self._stack.pop(), self._stack.pop()
        set_items(self._stack[-1], {as_key(key): value})

    def _setitems(self) -> None:
        entries = pairs(self._pop_to_mark())
        set_items(self._stack[-1], entries)

    def _additems(self) -> None:
        items = self._pop_to_mark()
        extend(self._stack[-1], items)

    def _put(self, number: int) -> None:
        self._memo[number] = self._stack[-1]

    def _get(self, number: int) -> None:
        self._stack.append(self._memo[number])

    def _global_lines(self) -> None:
        module, name = self._line(), self._line()
        self._stack.append(self._global(module, name))

    def _stack_global(self) -> None:
        name, module = self._stack.pop(), self._stack.pop()
        if type(module) is not str or type(name) is not str:
            raise PickleError("a global whose name is not text")
        self._stack.append(self._global(module, name))

    def _extension(self, form: str) -> None:
        # a number of copyreg's registry, which every program fills by itself
        self._stack.append(self._global("copyreg", f"extension {self._number(form)}"))

    def _reduce(self) -> None:
        arguments, function = self._stack.pop(), self._stack.pop()
        self._stack.append(self._call(function, arguments))

    def _newobj_ex(self) -> None:
        options, arguments, made = self._stack.pop(), self._stack.pop(), self._stack.pop()
        value = self._call(made, arguments)
        if type(value) is Record and type(options) is dict:
            value.build(options)
        self._stack.append(value)

    def _inst(self) -> None:
        module, name = self._line(), self._line()
        made = self._global(module, name)
        self._stack.append(self._call(made, tuple(self._pop_to_mark())))

    def _obj(self) -> None:
        made, *arguments = self._pop_to_mark()
        self._stack.append(self._call(made, tuple(arguments)))

    def _build(self) -> None:
        state = self._stack.pop()
        built = self._stack[-1]
        if type(built) is Record:
            built.build(state)
        # a plain container or a tensor keeps no state: that of a state dict is the version of its modules

    def _persid(self) -> None:
        self._stack.append(Record(Name("pickle", "persistent_load"), (self._line(),)))

    def _binpersid(self) -> None:
        storage = storage_of(self._stack.pop())
        if type(storage) is Storage:
            self.storages.setdefault(storage.key, storage)
        self._stack.append(storage)

    def _bytearray(self) -> None:
        self._stack.append(self._exactly(self._number("<Q")))

    def _readonly(self) -> None:
        """Leave the value on top as it is."""


def _bind(step: Callable[..., object], argument: object) -> Callable[[PickleReader], object]:
    return lambda reader: step(reader, argument)


def _bind_number(step: Callable[..., object], form: str | None) -> Callable[[PickleReader], object]:
    if form is None:
        return lambda reader: step(reader, int(reader._line()))
    return lambda reader: step(reader, reader._number(form))


def _push(value: Callable[[], object]) -> Callable[[PickleReader], object]:
    return lambda reader: reader._stack.append(value())


def _push_number(form: str) -> Callable[[PickleReader], object]:
    return lambda reader: reader._stack.append(reader._number(form))


def _memoize(reader: PickleReader) -> None:
    reader._put(len(reader._memo))


_STEPS: dict[bytes, Callable[[PickleReader], object]] = {
    pickle.STOP: PickleReader._stop,
    pickle.PROTO: PickleReader._proto,
    pickle.FRAME: PickleReader._frame,
    pickle.MARK: PickleReader._push_mark,
    pickle.POP: PickleReader._pop,
    pickle.POP_MARK: PickleReader._pop_mark,
    pickle.DUP: PickleReader._dup,
    pickle.NONE: _push(lambda: None),
    pickle.NEWTRUE: _push(lambda: True),
    pickle.NEWFALSE: _push(lambda: False),
    pickle.EMPTY_TUPLE: _push(tuple),
    pickle.EMPTY_LIST: _push(list),
    pickle.EMPTY_DICT: _push(dict),
    pickle.EMPTY_SET: _push(set),
    pickle.INT: PickleReader._int_line,
    pickle.LONG: PickleReader._long_line,
    pickle.BININT: _push_number("<i"),
    pickle.BININT1: _push_number("<B"),
    pickle.BININT2: _push_number("<H"),
    pickle.LONG1: _bind(PickleReader._long, "<B"),
    pickle.LONG4: _bind(PickleReader._long, "<I"),
    pickle.FLOAT: PickleReader._float_line,
    pickle.BINFLOAT: PickleReader._binfloat,
    pickle.STRING: PickleReader._string_line,
    pickle.SHORT_BINSTRING: _bind(PickleReader._string, "<B"),
    pickle.BINSTRING: _bind(PickleReader._string, "<I"),
    pickle.UNICODE: PickleReader._unicode_line,
    pickle.SHORT_BINUNICODE: _bind(PickleReader._unicode, "<B"),
    pickle.BINUNICODE: _bind(PickleReader._unicode, "<I"),
    pickle.BINUNICODE8: _bind(PickleReader._unicode, "<Q"),
    pickle.SHORT_BINBYTES: _bind(PickleReader._bytes, "<B"),
    pickle.BINBYTES: _bind(PickleReader._bytes, "<I"),
    pickle.BINBYTES8: _bind(PickleReader._bytes, "<Q"),
    pickle.BYTEARRAY8: PickleReader._bytearray,
    pickle.READONLY_BUFFER: PickleReader._readonly,
    pickle.TUPLE: PickleReader._tuple,
    pickle.TUPLE1: _bind(PickleReader._last, 1),
    pickle.TUPLE2: _bind(PickleReader._last, 2),
    pickle.TUPLE3: _bind(PickleReader._last, 3),
    pickle.LIST: PickleReader._list,
    pickle.DICT: PickleReader._dict,
    pickle.FROZENSET: PickleReader._frozenset,
    pickle.APPEND: PickleReader._append,
    pickle.APPENDS: PickleReader._appends,
    pickle.SETITEM: PickleReader._setitem,
    pickle.SETITEMS: PickleReader._setitems,
    pickle.ADDITEMS: PickleReader._additems,
    pickle.PUT: _bind_number(PickleReader._put, None),
    pickle.BINPUT: _bind_number(PickleReader._put, "<B"),
    pickle.LONG_BINPUT: _bind_number(PickleReader._put, "<I"),
    pickle.MEMOIZE: _memoize,
    pickle.GET: _bind_number(PickleReader._get, None),
    pickle.BINGET: _bind_number(PickleReader._get, "<B"),
    pickle.LONG_BINGET: _bind_number(PickleReader._get, "<I"),
    pickle.GLOBAL: PickleReader._global_lines,
    pickle.STACK_GLOBAL: PickleReader._stack_global,
    pickle.EXT1: _bind(PickleReader._extension, "<B"),
    pickle.EXT2: _bind(PickleReader._extension, "<H"),
    pickle.EXT4: _bind(PickleReader._extension, "<i"),
    pickle.REDUCE: PickleReader._reduce,
    pickle.NEWOBJ: PickleReader._reduce,
    pickle.NEWOBJ_EX: PickleReader._newobj_ex,
    pickle.INST: PickleReader._inst,
    pickle.OBJ: PickleReader._obj,
    pickle.BUILD: PickleReader._build,
    pickle.PERSID: PickleReader._persid,
    pickle.BINPERSID: PickleReader._binpersid,
}


def _text_of(data: bytes) -> str:
    """Return the text of a string of Python 2, whose encoding a pickle does not tell."""
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError:
        return data.decode("latin-1")
