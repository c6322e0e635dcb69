"""Installation: the command that adds an extra or a package to the environment in which this program runs."""

from __future__ import annotations

import importlib
import importlib.metadata
import json
import os
import re
import shlex
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit
from urllib.request import url2pathname

from ensemble.errors import OptionError

DISTRIBUTION = "ens-onnx"
_EXTRA = re.compile(r"""(?:\s+and\s+)?extra\s*==\s*["']([\w-]+)["']""")


def install_command(*packages: str, extra: str | None = None) -> str:
    """Return the shell command that installs an extra of this program, and further packages.

    It follows how the program was installed, as `direct_url.json` (PEP 610) and `INSTALLER` in its metadata tell: from
    a checkout, a file or a repository, by pip or by uv. No index is asked for the program by its name, which may
    belong to others there; where it came from is not recorded, the command lists the extra's packages instead.
    """
    origin = _read_origin()
    if extra is None:
        return f"{origin.installer} {_quoted(packages)}"
    if origin.is_project:
        project = "" if origin.folder == Path.cwd() else f"--project {shlex.quote(str(origin.folder))} "
        # without --inexact, the packages of the other extras would be removed
        command = f"uv sync {project}--inexact --extra {extra}"
        return f"{command} && {origin.installer} {_quoted(packages)}" if packages else command
    if origin.target is not None:
        editable = "-e " if origin.is_editable else ""
        target = f"{DISTRIBUTION}[{extra}] @ {origin.target}" if origin.is_remote else f"{origin.target}[{extra}]"
        return f"{origin.installer} {editable}{_quoted((target, *packages))}"
    return f"{origin.installer} {_quoted((*_packages_of(extra), *packages))}"


def require_module(name: str, what: str) -> None:
    """Check that a package of the light installation is there, which a bundle may lack; ``what`` begins the message.

    Raises:
        OptionError: E205 when it is not installed.
        ImportError: it is installed and cannot be loaded.
    """
    try:
        importlib.import_module(name)
    except ModuleNotFoundError as err:
        raise OptionError("E205", f"{what} needs {name}, which is not installed", hint=install_command(name)) from err


def version_of(package: str) -> str | None:
    """Return the version of an installed package, None if it is not installed."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


@dataclass(frozen=True, slots=True)
class _Installation:
    """The origin of the installation: a path or a URL, or None when it is unknown or no longer exists."""

    installer: str
    target: str | None = None
    is_editable: bool = False
    is_remote: bool = False
    is_project: bool = False

    @property
    def folder(self) -> Path:
        """The checkout."""
        assert self.target is not None
        return Path.cwd() if self.target == "." else Path(self.target)


def _read_origin() -> _Installation:
    try:
        distribution = importlib.metadata.distribution(DISTRIBUTION)
    except importlib.metadata.PackageNotFoundError:
        # the sources are on the path without having been installed
        root = Path(__file__).parents[1]
        return _Installation("pip install", _path_as_typed(root) if (root / "pyproject.toml").exists() else None)
    by_uv = (distribution.read_text("INSTALLER") or "").strip() == "uv"
    installer = "uv pip install" if by_uv else "pip install"
    if by_uv and os.environ.get("VIRTUAL_ENV") != sys.prefix:
        installer += f" --python {shlex.quote(sys.prefix)}"
    try:
        record = json.loads(distribution.read_text("direct_url.json") or "")
        url = urlsplit(record["url"])
    except (ValueError, KeyError, TypeError):
        return _Installation(installer)
    if url.scheme != "file" or "vcs_info" in record:
        return _Installation(installer, _remote(record), is_remote=True)
    path = Path(url2pathname(url.path))
    if not path.exists():
        return _Installation(installer)
    is_editable = bool(record.get("dir_info", {}).get("editable"))
    is_project = by_uv and (path / "pyproject.toml").exists() and Path(sys.prefix).resolve().parent == path.resolve()
    return _Installation(installer, _path_as_typed(path), is_editable=is_editable, is_project=is_project)


def _remote(record: dict[str, Any]) -> str:
    """Return a URL as pip writes it in a direct reference: ``git+https://host/repository@commit``."""
    repository = record.get("vcs_info")
    if repository is None:
        return str(record["url"])
    return f"{repository['vcs']}+{record['url']}@{repository['commit_id']}"


def _path_as_typed(path: Path) -> str:
    return "." if path == Path.cwd() else str(path)


def _packages_of(extra: str) -> tuple[str, ...]:
    """Return the requirements of an extra, with what is left of their markers."""
    found = []
    for requirement in importlib.metadata.requires(DISTRIBUTION) or ():
        name, _, marker = requirement.partition(";")
        asked = _EXTRA.search(marker)
        if asked is not None and asked[1] == extra:
            rest = _EXTRA.sub("", marker).strip().strip("()").replace("'", '"')
            found.append(f"{name.strip()}; {rest}" if rest else name.strip())
    return tuple(found)


def _quoted(words: tuple[str, ...]) -> str:
    return " ".join(map(shlex.quote, words))
