"""The command that installs an extra: true for every way in which the program can have been installed."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest

from ensemble import install
from ensemble.install import install_command

METADATA = """\
Metadata-Version: 2.4
Name: ens-onnx
Version: 0.1.0
Requires-Dist: numpy>=2.0
Requires-Dist: onnxruntime-gpu[cuda,cudnn]>=1.23; (sys_platform != 'darwin') and extra == 'gpu'
Requires-Dist: ray>=2.40; extra == "ray"
Requires-Dist: fsspec>=2024.2; extra == 'ray'
"""


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """Return a folder with a pyproject.toml and a space in its name."""
    folder = tmp_path / "my ens"
    folder.mkdir()
    (folder / "pyproject.toml").touch()
    return folder


class Environment:
    """An environment whose metadata say how the program was installed."""

    def __init__(self, site: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self._site, self._monkeypatch = site, monkeypatch

    def install(self, record: Mapping[str, object], *, installer: str = "pip", prefix: Path | None = None) -> None:
        """Write the metadata as pip and uv do; ``record`` is direct_url.json, absent where it is empty."""
        folder = self._site / "ens_onnx-0.1.0.dist-info"
        folder.mkdir(parents=True)
        (folder / "METADATA").write_text(METADATA)
        (folder / "INSTALLER").write_text(f"{installer}\n")
        if record:
            (folder / "direct_url.json").write_text(json.dumps(record))
        self._monkeypatch.syspath_prepend(str(self._site))
        self._monkeypatch.setattr(sys, "prefix", str(prefix or self._site.parent))
        self._monkeypatch.setenv("VIRTUAL_ENV", sys.prefix)


@pytest.fixture
def environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Environment:
    """Return an environment in which nothing is installed yet."""
    return Environment(tmp_path / "env" / "site", monkeypatch)


def test_a_project_environment_of_uv_is_synchronized(environment: Environment, checkout: Path) -> None:
    """In a checkout's own .venv, uv adds the extra and keeps the others, from any folder."""
    environment.install(
        {"url": checkout.as_uri(), "dir_info": {"editable": True}}, installer="uv", prefix=checkout / ".venv"
    )
    project = f"uv sync --project '{checkout}' --inexact --extra"
    assert install_command(extra="gpu") == f"{project} gpu"
    assert install_command("tensorrt", extra="gpu") == f"{project} gpu && uv pip install tensorrt"


def test_in_the_checkout_itself_the_command_is_short(
    environment: Environment, checkout: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The checkout is not named where it is the working directory."""
    monkeypatch.chdir(checkout)
    environment.install(
        {"url": checkout.as_uri(), "dir_info": {"editable": True}}, installer="uv", prefix=checkout / ".venv"
    )
    assert install_command(extra="torch") == "uv sync --inexact --extra torch"


def test_another_environment_of_uv_is_not_synchronized(
    environment: Environment, checkout: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """uv sync would fill the checkout's .venv, not this environment; without VIRTUAL_ENV uv is told which."""
    environment.install({"url": checkout.as_uri(), "dir_info": {"editable": True}}, installer="uv")
    assert install_command(extra="ray") == f"uv pip install -e '{checkout}[ray]'"
    monkeypatch.delenv("VIRTUAL_ENV")
    assert install_command("tqdm") == f"uv pip install --python {sys.prefix} tqdm"


@pytest.mark.parametrize(("info", "editable"), [({"editable": True}, "-e "), ({}, "")])
def test_pip_takes_the_checkout_again(
    environment: Environment, checkout: Path, info: dict[str, bool], editable: str
) -> None:
    """A checkout that pip installed is named with the extra, and stays editable if it was."""
    environment.install({"url": checkout.as_uri(), "dir_info": info})
    assert install_command(extra="torch") == f"pip install {editable}'{checkout}[torch]'"
    assert install_command("tensorrt", extra="gpu") == f"pip install {editable}'{checkout}[gpu]' tensorrt"


def test_a_wheel_is_named_by_its_path(environment: Environment, tmp_path: Path) -> None:
    """The file that was installed is installed again with the extra."""
    wheel = tmp_path / "ens_onnx-0.1.0-py3-none-any.whl"
    wheel.touch()
    environment.install({"url": wheel.as_uri(), "archive_info": {}})
    assert install_command(extra="ray") == f"pip install '{wheel}[ray]'"


@pytest.mark.parametrize(
    ("record", "target"),
    [
        ({"url": "https://example.org/ens.whl", "archive_info": {}}, "https://example.org/ens.whl"),
        (
            {"url": "https://example.org/ens.git", "vcs_info": {"vcs": "git", "commit_id": "abc123"}},
            "git+https://example.org/ens.git@abc123",
        ),
        (
            {"url": "file:///srv/ens.git", "vcs_info": {"vcs": "git", "commit_id": "abc123"}},
            "git+file:///srv/ens.git@abc123",
        ),
    ],
)
def test_a_url_is_named_with_the_extra(environment: Environment, record: dict[str, object], target: str) -> None:
    """An archive or a repository elsewhere is a direct reference, which no index is asked for."""
    environment.install(record)
    assert install_command(extra="ray") == f"pip install 'ens-onnx[ray] @ {target}'"


@pytest.mark.parametrize("record", [{}, {"url": "file:///no/longer/there", "dir_info": {}}, {"odd": 1}])
def test_without_an_origin_the_packages_are_listed(environment: Environment, record: dict[str, object]) -> None:
    """From an index, a vanished folder or a broken record: the extra's packages, never the program by its name."""
    environment.install(record)
    assert install_command(extra="ray") == "pip install 'ray>=2.40' 'fsspec>=2024.2'"
    cuda = """'onnxruntime-gpu[cuda,cudnn]>=1.23; sys_platform != "darwin"'"""
    assert install_command("tensorrt", extra="gpu") == f"pip install {cuda} tensorrt"


def test_sources_that_were_not_installed_are_a_checkout(checkout: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where no distribution is found, the folder above the package is installed if it can be."""
    monkeypatch.setattr(install, "__file__", str(checkout / "ensemble" / "install.py"))
    monkeypatch.setattr(install, "DISTRIBUTION", "not-installed-anywhere")
    assert install_command(extra="report") == f"pip install '{checkout}[report]'"
    assert install_command("tqdm") == "pip install tqdm"
