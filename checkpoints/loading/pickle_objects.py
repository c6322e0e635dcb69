"""The plain values that a checkpoint's pickle becomes when nothing in it is imported or called.

This module needs the standard library alone, as the sandboxed process imports it.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field


class InertObject(dict[object, object]):
    """A stand-in for an object whose class is not imported: data without code.

    It is a dictionary of the object's attributes and, for a subclass of dict, of its items; ``vars()`` returns the
    attributes alone. A whole pickled module is a dictionary of its weights, as its state dict would be. Two stand-ins
    are equal only if they are one object, and printing one prints its class alone.
    """

    __slots__ = ("__dict__", "_arguments", "_type_name")

    def __init__(
        self,
        type_name: str,
        *,
        attributes: Iterable[tuple[str, object]] = (),
        items: Iterable[tuple[object, object]] = (),
        arguments: tuple[object, ...] = (),
    ) -> None:
        super().__init__()
        self._type_name, self._arguments = type_name, arguments
        named = dict(attributes)
        # an attribute called items or get must not replace the method
        self.__dict__.update({name: value for name, value in named.items() if not hasattr(dict, name)})
        self.update(named)
        self.update(items)

    @property
    def type_name(self) -> str:
        """The class or function that the file names, as ``module.name``."""
        return self._type_name

    @property
    def arguments(self) -> tuple[object, ...]:
        """The values that the file gives to the class or function, such as the value of an enum."""
        return self._arguments

    def __eq__(self, other: object) -> bool:
        return self is other

    def __hash__(self) -> int:  # type: ignore[override]
        return id(self)

    def __repr__(self) -> str:
        return f"<{self._type_name}>"


@dataclass(frozen=True, slots=True)
class PickledLayer:
    """A module inside a whole pickled network: its class, and those of its attributes that are plain values.

    ``is_leaf`` is True for one without modules inside.
    """

    type_name: str
    settings: Mapping[str, object]
    is_leaf: bool = True

    @property
    def kind(self) -> str:
        """The name of the class without its module, such as ``Conv2d``."""
        return self.type_name.rpartition(".")[2]


@dataclass(frozen=True, slots=True)
class Name:
    """A global that a pickle refers to, with the name of Python 3."""

    module: str
    name: str

    def __str__(self) -> str:
        text = f"{self.module}.{self.name}"
        # a name of the file may hold control characters, which a terminal would obey
        return "".join(c if c.isprintable() else "?" for c in text)[:200]


@dataclass(frozen=True, slots=True)
class Storage:
    """The elements of one or more tensors: ``key`` is their record in the file, ``count`` their number.

    ``start`` is the element that a view of another storage starts at, in the format before torch 1.6. ``data`` are the
    bytes themselves where the pickle holds them.
    """

    key: str
    dtype: str
    count: int
    start: int = 0
    data: bytes | None = None


@dataclass(frozen=True, slots=True, eq=False)
class StoredTensor:
    """A tensor whose elements have not been read: ``dtype`` is torch's name without ``torch.``.

    ``storage`` is None for a tensor of torch's meta device, of which no values were saved.
    """

    storage: Storage | None
    dtype: str
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    is_quantized: bool = False

    @property
    def ndim(self) -> int:
        """The number of dimensions."""
        return len(self.shape)

    def numel(self) -> int:
        """Return the number of elements, as of a tensor."""
        return math.prod(self.shape)


@dataclass(slots=True, eq=False)
class Record:
    """Everything that a pickle says about one object that is neither a tensor nor a plain container.

    ``made`` names the class or function; ``attributes`` are those of its state, ``state`` is a state of another kind,
    ``items`` what was appended to it and ``entries`` what was set by key.
    """

    made: Name
    arguments: tuple[object, ...] = ()
    attributes: dict[str, object] = field(default_factory=dict)
    state: object = None
    items: list[object] | None = None
    entries: dict[object, object] | None = None

    def build(self, state: object) -> None:
        """Keep a state: the attributes of a dictionary, or of a pair of dictionaries as objects with slots have it."""
        if type(state) is tuple and len(state) == 2 and all(type(part) in (dict, type(None)) for part in state):
            parts = [part for part in state if part]
        elif type(state) is dict:
            parts = [state]
        else:
            self.state, parts = state, []
        for part in parts:
            assert type(part) is dict
            self.attributes.update((key, value) for key, value in part.items() if type(key) is str)

    def extend(self, items: list[object]) -> None:
        """Append items."""
        if self.items is None:
            self.items = []
        self.items += items

    def set_items(self, entries: Mapping[object, object]) -> None:
        """Set items by key."""
        if self.entries is None:
            self.entries = {}
        self.entries.update(entries)
