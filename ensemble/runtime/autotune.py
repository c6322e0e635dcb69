"""Find the fastest provider options of a network on a GPU by running it: each candidate on top of the best so far.

The result is cached by network, GPU, shape and versions, so that a resumed run computes as it did before.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from ensemble import files
from ensemble.arrays import Logits
from ensemble.errors import EnsError, FileError
from ensemble.events import Listener, Notice

_MARGIN = 0.98  # a gain below 2 % is noise
_TOLERANCE = 0.02  # of the largest logit: another order of summation, in half precision
_CANDIDATES: Mapping[str, Mapping[str, str]] = {
    "cuDNN's exhaustive search": {"cudnn_conv_algo_search": "EXHAUSTIVE"},
    "channels last": {"prefer_nhwc": "1"},
    "CUDA graphs": {"enable_cuda_graph": "1"},
}


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
    """Return the options worth trying: channels last for half precision; on several GPUs neither a search nor graphs.

    A search may choose different algorithms on each GPU, whose results differ in the last bits; and while one GPU
    captures a graph, CUDA lets no thread of another one allocate or copy.
    """
    left_out = ({"channels last"} if not fp16 else set()) | (
        {"cuDNN's exhaustive search", "CUDA graphs"} if several else set()
    )
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

    A candidate that fails, or whose logits differ, is left out with a notice.

    Raises:
        EnsError: whatever ``measure`` raises for ``base``.
    """
    best, (fastest, expected) = dict(base), measure(base)
    seconds, unusable = {"plain": fastest}, dict[str, str]()
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


def tune_cached(path: Path, find: Callable[[], TuningResult]) -> TuningResult:
    """Return the result cached in ``path``; if there is none, call ``find`` and cache its result."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
        return TuningResult(dict(value["options"]), dict(value["seconds"]), dict(value["unusable"]))
    except (OSError, ValueError, KeyError, TypeError):
        pass  # missing, or not written by us
    tuned = find()
    try:
        files.require_writable(path.parent)
        files.write_atomic(path, json.dumps(asdict(tuned), indent=1).encode() + b"\n")
    except FileError:
        pass  # without a writable cache the next run measures again, nothing worse
    return tuned
