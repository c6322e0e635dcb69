"""The JSON of a recipe with a number per class, in few lines."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any


def one_line_each(value: Mapping[str, Any]) -> str:
    """Return JSON with a line per field and per group: a list with a number per class stays on its line."""

    def compact(part: Any) -> str:
        return json.dumps(part, ensure_ascii=False)

    groups = ",\n".join(f"    {compact(name)}: {compact(group)}" for name, group in value["groups"].items())
    lines = [
        f"  {compact(key)}: " + (f"{{\n{groups}\n  }}" if key == "groups" else compact(part))
        for key, part in value.items()
    ]
    return "{\n" + ",\n".join(lines) + "\n}\n"
