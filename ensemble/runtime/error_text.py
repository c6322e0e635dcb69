"""Make onnxruntime's errors readable: the node, the status and the place in one line, the whole text in a file.

An error of cuDNN arrives as kilobytes: C++ signatures, the status, and in the last line the convolution as JSON.
"""

from __future__ import annotations

import hashlib
import re

from ensemble import files
from ensemble.errors import FileError, cut_text
from ensemble.runtime.cache import cache_folder

_LONGEST = 300
_NODE = re.compile(r"while running (?P<type>\S+) node\.? ?Name:'(?P<name>[^']*)'")
# "CUDNN_FE failure 8: HEURISTIC_QUERY_FAILED", "CUDNN failure 4: CUDNN_STATUS_...", "CUDA failure 700: ..."
_STATUS = re.compile(r"(?P<library>CUDNN_FE|CUDNN|CUBLAS|CUDA|CURAND|CUFFT) failure (?P<text>\d+: ?[^;\n]*[^;\s])")
_FILE = re.compile(r"file=\S*?(?P<file>[\w.-]+\.(?:cc|cu|h)) ; line=(?P<line>\d+)")
# "/onnxruntime_src/onnxruntime/core/graph/model.cc:181 onnxruntime::Model::Model(...) const "; bounded, since names of
# nodes may be as long as a file
_SIGNATURE = re.compile(
    r"(?:^|(?<=\s))/[^\s:]{1,300}\.(?:h|cc|cpp):\d{1,6} [^()]{0,500}\((?:[^()]|\([^()]*\)){0,2000}\)(?: const)? (?=\S)"
)
_LONGEST_LINE = 4000
_JSON = re.compile(r"\s*(?:with the cudnn frontend json:)?\s*\{\"(?:context|cudnn)")


def explain_error(err: BaseException | str) -> str:
    """Return an error of onnxruntime in one line.

    The node, the status of the failed call and its place in onnxruntime's source where the text has them; else the last
    line that is neither JSON nor a C++ signature.
    """
    text = str(err).strip()
    node, status, place = _NODE.search(text), _STATUS.search(text), _FILE.search(text)
    if status is not None:
        parts = [f"{node['type']} node {node['name']!r}: " if node else "", f"{status['library']} failure "]
        parts += [status["text"].strip(), f" ({place['file']}, line {place['line']})" if place else ""]
        return cut_text("".join(parts), _LONGEST)
    readable = _JSON.split(text)[0]
    if node is not None:
        said = readable.partition("Status Message:")[2].strip()
        line = f"{node['type']} node {node['name']!r}: {_first_line(said) or 'failed without a message'}"
        return cut_text(line, _LONGEST)
    lines = [line for line in readable.splitlines() if line.strip()]
    return cut_text(_SIGNATURE.sub("", lines[-1][:_LONGEST_LINE]).strip(), _LONGEST) if lines else type(err).__name__


def keep_text(err: BaseException | str) -> str:
    """Write the whole text of a long error to a file; return `; the whole text is in PATH`, or nothing if it is short.

    The file is named after its content, so that the same error is kept once.
    """
    text = str(err).strip()
    if len(text) <= _LONGEST and "\n" not in text:
        return ""
    path = cache_folder() / "errors" / f"{hashlib.sha256(text.encode()).hexdigest()[:16]}.txt"
    try:
        files.require_writable(path.parent)
        files.write_atomic(path, text.encode("utf-8", "replace") + b"\n")
    except FileError:
        return ""  # the line is all that there is
    return f"; the whole text is in {path}"


def _first_line(text: str) -> str:
    return next((line.strip() for line in text.splitlines() if line.strip()), "")
