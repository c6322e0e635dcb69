"""The files of a Kaggle dataset that runs an ensemble in a notebook without network."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path

from ensemble.bundle.hub import in_markdown
from ensemble.errors import OptionError
from ensemble.events import Listener, Notice

_TEMPLATE = Path(__file__).parent / "templates" / "kaggle_run.txt"
_NO_USER = "INSERT_USERNAME"  # as Kaggle's own client writes it


@dataclass(frozen=True, slots=True)
class KaggleFacts:
    """The dataset's ``name`` on Kaggle, ``USER/NAME``, its title, its license, and the time limit of a run."""

    title: str
    name: str | None = None
    license: str | None = None
    budget: str | None = None


def kaggle_files(facts: KaggleFacts, listener: Listener) -> dict[str, str]:
    """Return the script, the notebook and ``dataset-metadata.json`` by file name.

    Raises:
        OptionError: E204 when the name has another form.
    """
    slug = re.sub(r"[^a-z0-9]+", "-", facts.title.lower()).strip("-")
    if facts.name is None and len(slug) < 3:
        hint = "name the dataset with --name USER/NAME"
        raise OptionError("E204", f"the title {facts.title!r} has too few letters of a to z for an address", hint=hint)
    name = facts.name or f"{_NO_USER}/{slug[:50].rstrip('-')}"
    if not re.fullmatch(r"[\w-]+/[a-z0-9-]{3,50}", name):
        raise OptionError("E204", f"--name takes USER/NAME, with 3 to 50 letters, digits and hyphens, got {name!r}")
    if facts.name is None:
        message = f"dataset-metadata.json has {_NO_USER} in place of your name on Kaggle (--name USER/NAME)"
        listener.notice(Notice("W811", message))
    slug = name.partition("/")[2]
    metadata = {"title": facts.title, "id": name, "licenses": [{"name": facts.license or "other"}]}
    budget = f" --budget {facts.budget}" if facts.budget is not None else ""
    # where a dataset lies below the input has changed before
    command = f"!python \"$(find /kaggle/input -path '*/{slug}/run.py' -print -quit)\"{budget}"
    return {
        "run.py": _TEMPLATE.read_text(encoding="utf-8"),
        "notebook.ipynb": _notebook(facts.title, command),
        "dataset-metadata.json": json.dumps(metadata, ensure_ascii=False, indent=2) + "\n",
    }


def _notebook(title: str, command: str) -> str:
    text = "Add the dataset and the contest's data to this notebook. It needs no internet and writes `submission.csv`."
    cells = [
        {"cell_type": "markdown", "id": "about", "metadata": {}, "source": [f"# {in_markdown(title)}\n", "\n", text]},
        {
            "cell_type": "code",
            "id": "run",
            "metadata": {},
            "source": [command],
            "execution_count": None,
            "outputs": [],
        },
    ]
    kernel = {"kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"}}
    value = {"cells": cells, "metadata": kernel, "nbformat": 4, "nbformat_minor": 5}
    return json.dumps(value, ensure_ascii=False, indent=1) + "\n"
