"""``import ensemble`` is light and offers its names when they are used."""

from __future__ import annotations

import subprocess
import sys
from importlib.metadata import version

import pytest

import ensemble

_LIGHT = """
import sys
before = set(sys.modules)
import ensemble
dir(ensemble), ensemble.__version__, ensemble.EnsError
print(*sorted({name.partition(".")[0] for name in set(sys.modules) - before} - sys.stdlib_module_names))
import ensemble.errors
ensemble.load
print("numpy" in sys.modules, "torch" in sys.modules, "ray" in sys.modules, "click" in sys.modules)
"""


def test_importing_the_package_loads_nothing_heavy() -> None:
    """The import, dir(), __version__ and EnsError load the package's own modules alone; `load` needs numpy, but no
    torch, Ray or click.
    """
    done = subprocess.run([sys.executable, "-c", _LIGHT], capture_output=True, text=True, check=True)
    light, heavy = done.stdout.splitlines()
    assert light == "ensemble"
    assert heavy.split() == ["True", "False", "False", "False"]


def test_every_offered_name_is_there() -> None:
    """Each name of __all__ is in dir() and can be read; the version is that of the distribution."""
    assert set(ensemble.__all__) <= set(dir(ensemble))
    assert all(getattr(ensemble, name) is not None for name in ensemble.__all__)
    assert ensemble.__version__ == version("ens-onnx")


def test_another_name_is_an_attribute_error() -> None:
    """A name that the package does not offer fails as in any module, and is not imported by chance."""
    with pytest.raises(AttributeError, match=r"'ensemble' has no attribute 'lode'"):
        getattr(ensemble, "lode")  # noqa: B009 - mypy would refuse ensemble.lode
