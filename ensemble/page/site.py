"""Write the folder of a page: the fused model, the runtime, and the page itself."""

from __future__ import annotations

import gzip
import hashlib
import importlib.metadata
import json
from collections.abc import Mapping
from dataclasses import dataclass
from html import escape
from pathlib import Path
from string import Template
from typing import Any

from ensemble.analysis.html import PALETTE
from ensemble.errors import DeployError
from ensemble.events import SILENT, Listener, Notice
from ensemble.files import require_writable, write_atomic
from ensemble.images.size_limits import MAX_PIXELS
from ensemble.install import DISTRIBUTION
from ensemble.page import runtime
from ensemble.page.facts import FusedFile, page_facts
from ensemble.page.runtime import WebRuntime

DEFAULT_TITLE = "Classify a photograph"
FACTS, INDEX, MODEL = "facts.json", "index.html", "ensemble.onnx"
# named .js and .gz: servers that do not know .mjs or .wasm send them with a type that browsers refuse
_SCRIPT, _BINARY = "ort.js", "ort.wasm.gz"
_STATIC = Path(__file__).parent / "static"
_COPIED = ("decode.js", "map.js", "page.js", "worker.js")
_LARGE = 35_000_000  # bytes
_LICENSE = "onnxruntime-web-license.txt"
_FILES = {FACTS, INDEX, MODEL, "page.css", _SCRIPT, _BINARY, _LICENSE, *_COPIED}


@dataclass(frozen=True, slots=True)
class Site:
    """The folder of a page: ``files`` maps each file's name to its number of bytes, ``facts`` is its facts.json."""

    folder: Path
    files: Mapping[str, int]
    facts: Mapping[str, Any]

    @property
    def size(self) -> int:
        """The bytes of all files together."""
        return sum(self.files.values())

    def as_dict(self) -> dict[str, Any]:
        """Return the folder and its files as JSON-ready values."""
        maps = self.facts["maps"]
        return {
            "path": str(self.folder),
            "bytes": self.size,
            "files": dict(sorted(self.files.items())),
            "members": [member["name"] for member in self.facts["members"]],
            "maps": None if maps is None else maps["member"],
        }

    def render(self) -> str:
        """Return one line for people."""
        return f"{self.folder}: {len(self.files)} files, {self.size / 1e6:.1f} MB; serve it with any web server"


def require_site_folder(folder: Path) -> Path:
    """Create the folder of a page, and check that nothing else is in it, before any work is done.

    Raises:
        FileError: E702 when it cannot be written.
        DeployError: E833 when it holds files of something else.
    """
    require_writable(folder)
    names = {path.name for path in folder.iterdir() if not path.name.startswith(".")}
    if (names and FACTS not in names) or names - _FILES:
        other = sorted(names - _FILES) or sorted(names)
        raise DeployError("E833", f"{folder} holds other files, such as {other[0]}", path=folder)
    return folder


def write_site(
    fused: FusedFile, folder: Path, web: WebRuntime, *, title: str = DEFAULT_TITLE, listener: Listener = SILENT
) -> Site:
    """Write the page of a fused model to a folder; the same inputs give the same bytes.

    index.html is written last, so that a page is there only when it is whole.

    Raises:
        DeployError, FileError: the codes of `require_site_folder` and of `ensemble.files.write_atomic`.
    """
    require_site_folder(folder)
    binary = gzip.compress(web.binary, compresslevel=9, mtime=0)
    facts = page_facts(fused) | {
        "title": title,
        "maxPixels": MAX_PIXELS,
        "files": {
            "model": {"name": MODEL, "bytes": len(fused.data), "sha256": hashlib.sha256(fused.data).hexdigest()},
            "runtime": {"name": _BINARY, "bytes": len(binary)},
        },
        "runtime": {
            "package": runtime.PACKAGE,
            "version": runtime.VERSION,
            "integrity": runtime.INTEGRITY,
            "sha256": {_SCRIPT: runtime.SHA256[runtime.SCRIPT], "ort.wasm": runtime.SHA256[runtime.BINARY]},
        },
        "version": importlib.metadata.version(DISTRIBUTION),
    }
    files = {
        MODEL: fused.data,
        _SCRIPT: web.script,
        _BINARY: binary,
        **{name: (_STATIC / name).read_bytes() for name in _COPIED},
        _LICENSE: (_STATIC / _LICENSE).read_bytes(),
        "page.css": PALETTE.encode() + (_STATIC / "page.css").read_bytes(),
        FACTS: (json.dumps(facts, ensure_ascii=False, indent=1) + "\n").encode(),
        INDEX: _render_index(facts).encode(),
    }
    for name, data in files.items():
        write_atomic(folder / name, data)
    site = Site(folder, {name: len(data) for name, data in files.items()}, facts)
    if site.size > _LARGE:
        listener.notice(
            Notice("W830", f"the page has {site.size / 1e6:.0f} MB, which a browser loads before it answers")
        )
    return site


def _render_index(facts: Mapping[str, Any]) -> str:
    models, labels = len(facts["members"]), len(facts["labels"])
    several = facts["activation"] == "sigmoid"
    things = "labels" if several else "classes"
    decided = (
        "a label applies where their weighted vote reaches its threshold" if several else "their vote is the answer"
    )
    members = "One model gives" if models == 1 else f"Each of {models} models gives"
    licensed = "" if facts["license"] is None else f" License of the models: {facts['license']}."
    tools = f"ens {facts['version']}, {runtime.PACKAGE} {runtime.VERSION}."
    values = {
        "title": facts["title"],
        "kind": f"Ensemble of {models} {'model' if models == 1 else 'models'}, {labels} {things}",
        "explanation": f"{members} a probability to each of the {labels} {things}; {decided}.",
        "footer": f"Made with {tools}{licensed} SHA-256 of {MODEL}: {facts['files']['model']['sha256']}",
    }
    page = Template((_STATIC / INDEX).read_text(encoding="utf-8"))
    return page.substitute({name: escape(value) for name, value in values.items()})
