"""The verdict on a step's figures: what must be true of them, in one line."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

# the largest relative error against the CPU
ERRORS: Mapping[str, float] = {"fp32": 1e-3, "fp16": 0.05, "int8": 0.3}
BOUND, BUSY, DECODE, FIRST, TORCH, LOOP = 1.10, 0.85, 0.90, 25.0, 3.0, 10.0


@dataclass(frozen=True)
class Verdict:
    """``PASS``, ``FAIL`` or ``SKIP`` of a step, and why: what failed, or the figures that matter."""

    step: str
    state: str
    text: str

    def __str__(self) -> str:
        return f"{self.state} {self.step}: {self.text}"


def judge(record: Mapping[str, Any]) -> Verdict:
    """Return the verdict on the figures of a step."""
    step = str(record["step"])
    if "skipped" in record:
        return Verdict(step, "SKIP", str(record["skipped"]))
    faults = list(_JUDGES[step](record))
    if record.get("error"):
        faults.insert(0, str(record["error"]))
    if faults:
        return Verdict(step, "FAIL", "; ".join(faults))
    return Verdict(step, "PASS", "; ".join(record.get("summary", ())) or "done")


def _doctor(record: Mapping[str, Any]) -> Iterator[str]:
    device = record.get("cuda:0", {})
    if not device.get("works"):
        yield f"cuda:0 does not start: {device.get('cause', 'it was not tried')}"
        return
    for name, found in record.get("convolutions", {}).items():
        # what cuDNN alone refuses is split before it is asked, and no fault
        if found != "ok" and "unsplit" not in name:
            yield f"{name}: {found}"
    if not record.get("cudnn"):
        yield "the version of cuDNN is not known"


def _tests(record: Mapping[str, Any]) -> Iterator[str]:
    if record.get("failed", 0):
        yield f"{record['failed']} tests failed: {_some(record.get('names', ()))}"
    if not record.get("passed", 0):
        yield "no test passed"


def _parity(record: Mapping[str, Any]) -> Iterator[str]:
    if not record.get("models"):
        yield "no model was compared"
    for name, found in record.get("models", {}).items():
        if "failure" in found:
            yield f"{name}: {found['failure']}"
        elif not found["error"] <= ERRORS[found["precision"]]:  # so that NaN is a fault
            yield f"{name}: relative error {found['error']:.1e}, at most {ERRORS[found['precision']]:g} is allowed"
        elif found["changed"] and found["precision"] == "fp32":
            yield f"{name}: {found['changed']} of {found['images']} classes changed"


def _options(record: Mapping[str, Any]) -> Iterator[str]:
    if not record.get("rates"):
        yield "nothing was measured"
    for name, cores in record.get("tensor_cores", {}).items():
        if name.endswith("fp16") and cores is False:
            yield f"{name}: its convolutions do not use the tensor cores"


def _r2(record: Mapping[str, Any]) -> Iterator[str]:
    yield from _run(record)
    share = record.get("of_decoding")
    if share is not None and share < DECODE and (record.get("over_bound") or 9) > BOUND:
        yield f"{share:.0%} of what all cores decode, and not at the bound of the GPU; {DECODE:.0%} is expected"


def _r10(record: Mapping[str, Any]) -> Iterator[str]:
    yield from _run(record)
    if record.get("over_bound", 0) > BOUND:
        yield f"{record['over_bound']:.2f} times the bound; {BOUND:.2f} is expected"
    if (record.get("busy") or 1) < BUSY:
        yield f"the GPU was busy {record['busy']:.0%} of the time; {BUSY:.0%} is expected"
    if record.get("first_image", 0) > FIRST:
        yield f"the first image after {record['first_image']:.0f} s; {FIRST:.0f} s are expected"
    for loop, times in (("torch", TORCH), ("onnxruntime", LOOP)):
        if f"over_{loop}" in record and record[f"over_{loop}"] < times:
            yield f"{record[f'over_{loop}']:.1f} times the {loop} loop; {times:g} are expected"


def _run(record: Mapping[str, Any]) -> Iterator[str]:
    if not record.get("images_per_second"):
        yield "it was not measured"


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


_JUDGES: Mapping[str, Callable[[Mapping[str, Any]], Iterator[str]]] = {
    "doctor": _doctor,
    "tests": _tests,
    "parity": _parity,
    "options": _options,
    "r2": _r2,
    "r10": _r10,
}
