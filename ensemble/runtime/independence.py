"""Refuse models whose answer for an image depends on the other images of the batch, on their order, or on chance.

Predictions go through a network in batches whose size is chosen by speed and memory, so such answers would differ from
run to run. Typical causes: a network exported in training mode (dropout, batch normalization), a reduction over the
batch, a layer that draws at random.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx

from ensemble.arrays import Logits, Pixels
from ensemble.errors import ChanceError, DeviceError, enumerate_some
from ensemble.runtime.parity import compare_logits, draw_pictures, relative_error
from ensemble.runtime.separate_rows import prove_rows

TRIED = 4  # images
MANY = 17  # more than most batches on a CPU, and not a multiple of a usual one
# Relative errors of one runtime on one processor: batches of other sizes are added up in another order, no more
_LIMITS = {"fp32": 1e-4, "fp16": 0.02, "int8": 0.05}


def require_independent(
    data: bytes,
    run: Callable[[Pixels], Logits],
    size: tuple[int, int],
    *,
    member: str,
    precision: str,
    output: str = "logits",
) -> None:
    """Refuse a model that does not answer for each image alone and always the same.

    What its layers do not prove is tried on four test images of ``size`` (height, width) px: all together, in reverse
    order, two of them alone, one of these again, and in a batch of 17.

    Raises:
        DeviceError: E604 when an answer is NaN or infinite, E612 when they depend on chance, E613 when they depend on
            the other images or their order.
    """
    proof = prove_rows(onnx.load_from_string(data), output)
    if proof.chance:
        raise ChanceError("E612", f"{member} draws at random: {enumerate_some(list(proof.chance))}")
    if not proof.mixing:
        return
    pictures = draw_pictures(size)[::2][:TRIED]
    together, alone = run(pictures), np.concatenate([run(one[np.newaxis]) for one in pictures[:2]])
    bad = int(np.count_nonzero(~np.isfinite(together.reshape(len(together), -1)).all(axis=1)))
    if bad:  # NaN differs from itself, which would look like chance
        hint = None if precision == "fp16" else "its weights are NaN or infinite, or overflow: use another checkpoint"
        raise DeviceError("E604", f"{bad} of {len(together)} answers of {member} are not finite", hint=hint)
    limit = _LIMITS.get(precision, _LIMITS["fp32"])
    many = pictures[np.arange(MANY) % len(pictures)]
    trials = (  # what is measured first names the cause: chance changes the other two as well
        (True, "the same image again", alone[:1], run(pictures[:1])),
        (False, "the images in another order", together, run(pictures[::-1].copy())[::-1]),
        (False, "an image without the others", together[:2], alone),
        (False, f"the images in a batch of {MANY}", together[np.arange(MANY) % len(pictures)], run(many)),
    )
    for by_chance, what, expected, found in trials:
        if expected.shape != found.shape or not compare_logits(expected, found, limit=limit).holds:
            error = relative_error(expected, found) if expected.shape == found.shape else float("nan")
            message = f"{member} answers otherwise for {what}: relative error {error:.1e}, {limit:g} is allowed"
            message += f"; not known to treat images apart: {enumerate_some(list(proof.mixing))}"
            raise ChanceError("E612", message) if by_chance else DeviceError("E613", message)
