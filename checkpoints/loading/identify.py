"""Decide which architecture a network is: the one that is given, claimed in the file, or shown by its weights."""

from __future__ import annotations

from pathlib import Path

from checkpoints.loading.architectures import compare_body, current_name, twins_of
from checkpoints.loading.bodies import Body, Wanted, as_architecture, find_bodies
from checkpoints.loading.layouts import TIMM
from checkpoints.loading.name_notices import ambiguous, require_no_other_name, say_claimed, say_told, say_usual
from checkpoints.loading.networks import Network
from checkpoints.loading.other_networks import find_other_network
from checkpoints.loading.state_dicts import AllTensors, Claim
from ensemble.errors import ModelError
from ensemble.events import Listener

_LEAST_PERCENT = 50


def identify(
    network: Network,
    wanted: Wanted,
    claims: tuple[Claim, ...],
    path: Path,
    listener: Listener,
    *,
    told: str | None = None,
) -> Body:
    """Return the body of a network as the architecture that it is; ``told`` is the one that its pickled layers show.

    Raises:
        ModelError: E410 when it is not the given one, E416 when it can be several.
    """
    body = network.body
    if wanted.arch is not None:
        if not body.layout.accepts(wanted.arch.partition(".")[0]):
            raise _pads_differently(body, wanted.arch, path)
        return body
    for claim in claims:
        current = current_name(claim.arch)
        if current is not None and current.partition(".")[0] in body.twins and told in {None, current}:
            say_claimed(current, claim, path, listener)
            return as_architecture(body, current, None, network.tensors)
    _require_no_other_claim(body, claims, path)
    if told is not None:
        say_told(told, body.twins, path, listener)
        return as_architecture(body, told, None, network.tensors)
    if body.usual is None:
        raise ambiguous(body.twins, path)
    require_no_other_name(body.usual, body.twins, path)
    total = len([key for key in body.match.architecture.state if not key.endswith(".num_batches_tracked")])
    say_usual(body.usual, body.twins, total, path, listener)
    return as_architecture(body, body.usual, None, network.tensors)


def _require_no_other_claim(body: Body, claims: tuple[Claim, ...], path: Path) -> None:
    """Refuse weights that are not those of the architecture that the file names as its model."""
    for claim in claims:
        if claim.is_model and current_name(claim.arch) is not None:
            raise ModelError(
                "E410",
                f"{path.name} says that it is {claim.arch} ({claim.place}), but its weights are those of "
                f"{_either(body)}",
                hint=f"give the one that is right with --arch, such as --arch {body.twins[0]}",
                path=path,
            )


def unknown_network(nearest: Body | None, wanted: Wanted, found: AllTensors, path: Path) -> ModelError:
    """Return E410 or E415 for a checkpoint in which no network was found."""
    if wanted.arch is not None:
        return _does_not_fit(nearest, wanted, found, path)
    other = find_other_network(found.tensors)
    if other is not None:
        message = f"{path.name} is {other.name}, which timm does not have with these weights"
        return ModelError("E415", message, hint=other.hint, path=path)
    if nearest is None or nearest.match.percent < _LEAST_PERCENT:
        return ModelError(
            "E415", f"{path.name} is no architecture of timm that is known by its keys and shapes", path=path
        )
    return ModelError(
        "E415",
        f"{path.name} fits no known architecture; the closest is {nearest.match.arch} ({nearest.match.percent} %)",
        path=path,
        details=nearest.match.differences(),
    )


def _does_not_fit(nearest: Body | None, wanted: Wanted, found: AllTensors, path: Path) -> ModelError:
    free = find_bodies(found, Wanted())
    bodies = free.bodies or ((free.nearest,) if free.nearest and free.nearest.match.percent >= _LEAST_PERCENT else ())
    looks = f". Looks like {_either(bodies[0])} ({bodies[0].match.percent} %)" if bodies else ""
    if nearest is None or nearest.match.percent < _LEAST_PERCENT:
        nearest = _empty(wanted, found)
    match = nearest.match
    other = None if free.bodies else find_other_network(found.tensors)
    if other is not None:
        looks = f". Looks like {other.name}, which timm does not have with these weights"
    return ModelError(
        "E410",
        f"{path.name} is not {wanted.arch}: {len(match.matching)} of {match.total} keys fit"
        + ("" if bodies and wanted.arch in bodies[0].twins else looks),
        hint=None if other is None else other.hint,
        path=path,
        details=match.differences(),
    )


def _either(body: Body) -> str:
    return " or ".join(body.twins)


def _empty(wanted: Wanted, found: AllTensors) -> Body:
    """Return the comparison with the given architecture of names as they are."""
    assert wanted.arch is not None, "called for a given architecture"
    match = compare_body(wanted.arch, found.tensors, size=wanted.size, arch_options=wanted.arch_options)
    return Body(TIMM, "", match, {key: key for key in found.tensors}, (wanted.arch,), wanted.arch)


def _pads_differently(body: Body, arch: str, path: Path) -> ModelError:
    others = [name for name in twins_of(arch) if body.layout.accepts(name)]
    looks = f". Looks like {' or '.join(others)} ({body.match.percent} %)" if others else ""
    whose = f"{body.layout.name}'s" if not body.layout.name.endswith("s") else f"{body.layout.name}'"
    return ModelError("E410", f"{path.name} is {whose}, which does not pad as {arch} does{looks}", path=path)
