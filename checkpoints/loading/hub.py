"""Find the files of timm's ``hf-hub:`` and ``local-dir:`` names."""

from __future__ import annotations

from pathlib import Path

from ensemble.errors import FileError

HUB, LOCAL = ("hf-hub:", "hf_hub:"), "local-dir:"
_PATTERNS = ["*.json", "*.safetensors", "*.bin"]


def is_name(path: Path) -> bool:
    """Return True for a name of timm's, which is no path."""
    return str(path).startswith((*HUB, LOCAL))


def find_named(path: Path) -> Path:
    """Return the folder of a model: downloaded from the Hugging Face Hub, or local; other paths are returned as given.

    ``hf-hub:user/name`` may have ``@revision`` behind it. Files that were downloaded before are taken from the cache.

    Raises:
        FileError: E707 when the model does not exist or cannot be downloaded.
    """
    text = str(path)
    if text.startswith(LOCAL):
        return Path(text.removeprefix(LOCAL))
    prefix = next((prefix for prefix in HUB if text.startswith(prefix)), None)
    if prefix is None:
        return path
    name, _, revision = text.removeprefix(prefix).partition("@")
    return Path(_download(name, revision or None))


def _download(name: str, revision: str | None) -> str:
    import huggingface_hub
    from huggingface_hub.errors import HFValidationError

    try:
        folder: str = huggingface_hub.snapshot_download(name, revision=revision, allow_patterns=_PATTERNS)
        return folder
    except HFValidationError as err:
        raise FileError("E707", f"hf-hub:{name} is no name on the Hugging Face Hub, such as hf-hub:user/name") from err
    except Exception as err:  # the library raises those of its HTTP client, of the file system and its own
        reason = (str(err).strip() or type(err).__name__).splitlines()[0]
        raise FileError(
            "E707",
            f"hf-hub:{name} could not be downloaded: {reason}",
            hint="check the name and the network, or download the folder and give its path",
        ) from err
