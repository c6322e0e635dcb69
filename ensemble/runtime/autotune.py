"""Find the fastest provider options of a network on a GPU by running it: each candidate on top of the best so far.

The result is cached by network, GPU, shape and versions, so that a resumed run computes as it did before.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from ensemble import files
from ensemble.arrays import Logits
from ensemble.errors import EnsError, FileError, ModelRunError
from ensemble.events import Listener, Notice
from ensemble.text.json_types import require_type

_MARGIN = 0.98  # a gain below 2 % is noise
_TOLERANCE = 0.02  # of the largest logit: another order of summation, in half precision
# The names of the options are in onnxruntime-gpu 1.31.1's libonnxruntime_providers_cuda.so. EXHAUSTIVE searches nothing
# any more: conv.cc maps it to cuDNN's HeurMode B, HEURISTIC to A and DEFAULT to FALLBACK. Channels last goes first: the
# others are then measured with the layout that tensor cores like best.
_CANDIDATES: Mapping[str, Mapping[str, str]] = {
    "channels last": {"prefer_nhwc": "1"},
    "fused bias": {"fuse_conv_bias": "1"},
    "cuDNN's heuristics B": {"cudnn_conv_algo_search": "EXHAUSTIVE"},
    "CUDA graphs": {"enable_cuda_graph": "1"},
}
# what a convolution that no engine of the heuristics computes may still run with
_LAST_RESORT: Mapping[str, str] = {"cudnn_conv_algo_search": "DEFAULT"}


@dataclass(frozen=True, slots=True)
class TuningResult:
    """The fastest provider options, the seconds per batch of each candidate, and why a candidate is unusable."""

    options: Mapping[str, str]
    seconds: Mapping[str, float]
    unusable: Mapping[str, str]

    def render(self) -> str:
        """Return the candidates with their times or their faults as text."""
        times = [f"{name} {1000 * spent:.2f} ms" for name, spent in self.seconds.items()]
        return "; ".join([*times, *(f"{name} unusable: {cause}" for name, cause in self.unusable.items())])


def candidate_options(*, fp16: bool, several: bool) -> dict[str, Mapping[str, str]]:
    """Return the options worth trying: channels last for half precision alone, CUDA graphs on a single GPU alone.

    While one GPU captures a graph, CUDA lets no thread of another one allocate or copy.
    """
    left_out = ({"channels last"} if not fp16 else set()) | ({"CUDA graphs"} if several else set())
    return {name: options for name, options in _CANDIDATES.items() if name not in left_out}


def tune(
    base: Mapping[str, str],
    tried: Mapping[str, Mapping[str, str]],
    measure: Callable[[Mapping[str, str]], tuple[float, Logits]],
    *,
    member: str,
    listener: Listener,
) -> TuningResult:
    """Return the fastest options; ``measure`` returns the seconds per batch with given options, and the logits.

    A candidate that fails, or whose logits differ, is left out with a notice. So is ``base`` itself, for cuDNN's
    fallback engines, when a convolution fails with the engines of the heuristics.

    Raises:
        EnsError: whatever ``measure`` raises for ``base`` and for the fallback.
    """
    best, unusable = dict(base), dict[str, str]()
    try:
        fastest, expected = measure(best)
    except ModelRunError as err:
        if "cudnn_conv_algo_search" not in base or not re.search("cudnn", err.message, re.IGNORECASE):
            raise
        best, unusable = {**best, **_LAST_RESORT}, {"cuDNN's heuristics": err.message}
        fastest, expected = measure(best)
        tried = {name: options for name, options in tried.items() if "cudnn_conv_algo_search" not in options}
    seconds = {"plain": fastest}
    for name, options in tried.items():
        try:
            spent, logits = measure({**best, **options})
        except EnsError as err:
            unusable[name] = err.message
            continue
        difference = float(np.abs(logits - expected).max(initial=0.0))
        if difference > _TOLERANCE * max(1.0, float(np.abs(expected).max(initial=0.0))):
            unusable[name] = f"its logits are off by {difference:.3g}"
            continue
        seconds[name] = spent
        if spent < _MARGIN * fastest:
            best, fastest = {**best, **options}, spent
    for name, cause in unusable.items():
        listener.notice(Notice("W609", f"{member} runs without {name}: {cause}"))
    return TuningResult(best, seconds, unusable)


def tune_cached(path: Path, find: Callable[[], TuningResult], *, write: bool = True) -> TuningResult:
    """Return the result cached in ``path``; if there is none, call ``find`` and, with ``write``, cache its result."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
        require_type(value, TuningResult, "the file")
        return TuningResult(dict(value["options"]), dict(value["seconds"]), dict(value["unusable"]))
    except (OSError, ValueError, KeyError, TypeError):
        pass  # missing, or not written by us
    tuned = find()
    if not write:
        return tuned
    try:
        files.require_writable(path.parent)
        files.write_atomic(path, json.dumps(asdict(tuned), indent=1).encode() + b"\n")
    except FileError:
        pass  # without a writable cache the next run measures again, nothing worse
    return tuned
