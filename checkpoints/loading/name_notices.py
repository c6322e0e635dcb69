"""The notices about names: prefixes and marks that were removed, layouts that were renamed, the architecture."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from checkpoints.loading.layouts import Layout
from checkpoints.loading.state_dicts import AllTensors, Claim
from ensemble.errors import ModelError
from ensemble.events import Listener, Notice


def say_names(found: AllTensors, key: str, prefix: str, path: Path, listener: Listener) -> None:
    """Say which prefix was removed from the names of a network, of which ``key`` is one, and which marks."""
    origin = found.origins.get(key)
    if origin is None:
        return
    tail = key.removeprefix(prefix)
    removed = origin.key.removesuffix(tail) if origin.key.endswith(tail) else prefix
    marks = [mark for mark in found.marks if mark not in removed]
    if removed:
        listener.notice(Notice("I407", f"the prefix {removed!r} was removed from every key", path))
    if marks:
        message = f"the marks of wrappers were removed from the keys: {', '.join(marks)}"
        listener.notice(Notice("I407", message, path))


def say_layout(layout: Layout, arch: str, path: Path, listener: Listener) -> None:
    """Say which library's names were changed, and for which size it fixes its padding."""
    if (side := layout.padded_for(arch)) is not None and side < 1024:
        message = f"{layout.name} fixes its padding for images of {side} px, and so does the exported network"
        listener.notice(Notice("I418", message, path))
    if layout.changes:
        message = f"keys were renamed: {layout.changes} ({layout.name})"
        listener.notice(Notice("I418", message, path))


def say_claimed(arch: str, claim: Claim, path: Path, listener: Listener) -> None:
    """Say that the file itself names the architecture."""
    listener.notice(Notice("I419", f"{path.name} is {arch}, as {claim.place} in the file says", path))


def say_told(arch: str, twins: Sequence[str], path: Path, listener: Listener) -> None:
    """Say that the layers of a whole pickled network show the architecture."""
    others = f", of {' or '.join(twins)}" if len(twins) > 1 else ""
    listener.notice(Notice("I419", f"{path.name} is {arch}: the pickled layers are those of {arch}{others}", path))


def say_usual(arch: str, twins: Sequence[str], total: int, path: Path, listener: Listener) -> None:
    """Say which architecture the names and shapes show, what else has the same ones, and what would tell."""
    others = [name for name in twins if name != arch]
    if arch.startswith("resnet"):
        others.append(f"a dilated {arch} (--arch-option output_stride=8)")
    also = f"; so would {' and '.join(others)}: give --arch if it is one of those" if others else ""
    listener.notice(Notice("I419", f"{path.name} is {arch}: all {total} keys and shapes fit{also}", path))


def ambiguous(names: Sequence[str], path: Path) -> ModelError:
    """Return E416 for weights that fit several architectures, none of which is the usual one."""
    named = max((name for name in names if name in path.name), key=len, default=None)
    hint = f"the file's name suggests --arch {named}, but a name proves nothing" if named else None
    return ModelError(
        "E416",
        f"{path.name} fits {' and '.join(names)}: their weights have the same names and shapes, but they pad, blur or "
        "scale differently, or usually take images of another mean and std",
        hint=hint or f"give the one that was trained with --arch, such as --arch {names[0]}",
        path=path,
    )


def require_no_other_name(usual: str, names: Sequence[str], path: Path) -> None:
    """Refuse to take the usual one of several architectures for a file or folder that is named after another one.

    Raises:
        ModelError: E416 with the other name in the hint.
    """
    texts = (path.name, path.absolute().parent.name)
    for text in texts:
        named = max((name for name in names if name in text), key=len, default=usual)
        if named != usual:
            error = ambiguous(names, path)
            raise ModelError(
                "E416",
                error.message,
                hint=f"its name suggests --arch {named}, but a name proves nothing: give --arch {named} or {usual}",
                path=path,
            )
