"""The fold in a model's name, such as ``resnet18_fold3``."""

from __future__ import annotations

import re
from dataclasses import dataclass

# resnet18_f3, resnet18_fold3, resnet18-fold12; but _f16 is a precision
_FOLD = re.compile(r"(?P<group>.+)[-_](?:f(?=\d$)|fold)(?P<fold>\d{1,6})")


@dataclass(frozen=True, slots=True)
class FoldName:
    """The group of models that differ in their fold alone, and the fold."""

    group: str
    fold: int


def fold_in_name(name: str) -> FoldName | None:
    """Return the fold that ends a name; None if none does."""
    parts = _FOLD.fullmatch(name)
    return None if parts is None else FoldName(parts["group"], int(parts["fold"]))
