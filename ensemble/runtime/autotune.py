"""How a network runs fastest on a GPU, found by running it: a few ways, each tried on top of the best so far.

What was found is kept by network, GPU, shape and versions: a run that goes on after a stop computes as it did before.
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

_MARGIN = 0.98  # what is not faster by 2 % is noise
_TOLERANCE = 0.02  # of the largest logit: another order of sums, in half precision
_WAYS: Mapping[str, Mapping[str, str]] = {
    "cuDNN's exhaustive search": {"cudnn_conv_algo_search": "EXHAUSTIVE"},
    "channels last": {"prefer_nhwc": "1"},
    "CUDA graphs": {"enable_cuda_graph": "1"},
}


@dataclass(frozen=True, slots=True)
class Tuned:
    """The provider options that were fastest, the seconds a batch of each way, and why a way cannot be used."""

    options: Mapping[str, str]
    seconds: Mapping[str, float]
    unusable: Mapping[str, str]

    def render(self) -> str:
        """The ways with their times or what is wrong with them, for people."""
        times = [f"{way} {1000 * spent:.2f} ms" for way, spent in self.seconds.items()]
        return "; ".join([*times, *(f"{way} unusable: {cause}" for way, cause in self.unusable.items())])


def ways(*, fp16: bool, several: bool) -> dict[str, Mapping[str, str]]:
    """What is worth trying: channels last for half precision; on several GPUs neither a search nor graphs.

    A search may find other algorithms on each GPU, and other last bits with them; and while one GPU captures a graph,
    CUDA lets no thread of another one allocate or copy.
    """
    left_out = ({"channels last"} if not fp16 else set()) | (
        {"cuDNN's exhaustive search", "CUDA graphs"} if several else set()
    )
    return {name: options for name, options in _WAYS.items() if name not in left_out}


def tune(
    base: Mapping[str, str],
    tried: Mapping[str, Mapping[str, str]],
    measure: Callable[[Mapping[str, str]], tuple[float, Logits]],
    *,
    member: str,
    listener: Listener,
) -> Tuned:
    """The fastest options; ``measure`` gives the seconds a batch takes with some, and its logits.

    A way that fails, or whose logits differ, is left out with a notice.

    Raises:
        EnsError: what ``measure`` raises for ``base``.
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
    return Tuned(best, seconds, unusable)


def tune_once(path: Path, find: Callable[[], Tuned]) -> Tuned:
    """What ``path`` keeps from an earlier time, or else what is found now, kept there."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
        return Tuned(dict(value["options"]), dict(value["seconds"]), dict(value["unusable"]))
    except (OSError, ValueError, KeyError, TypeError):
        pass  # not there, or not ours
    tuned = find()
    try:
        files.require_writable(path.parent)
        files.write_atomic(path, json.dumps(asdict(tuned), indent=1).encode() + b"\n")
    except FileError:
        pass  # a home that cannot be written costs the next run the same seconds again, and nothing else
    return tuned
