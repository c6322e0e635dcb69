"""Find the file beside a table that names its numbered classes, as contests give it."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

from ensemble.label_file import ClassNames, names_in_json


def find_class_names(folder: Path, numbers: Collection[int]) -> tuple[Path, ClassNames] | None:
    """Return the one JSON file in a folder that names all of the numbers, such as label_num_to_disease_map.json."""
    fitting = []
    for path in sorted(folder.glob("*.json")):
        if path.stat().st_size < 1 << 20:
            found = names_in_json(path)
            if found is not None and set(numbers) <= found.number.keys() and len(found.space) > 1:
                fitting.append((path, found))
    return fitting[0] if len(fitting) == 1 else None
