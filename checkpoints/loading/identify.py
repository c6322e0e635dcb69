"""Decide which architecture a network is: the one that is given, claimed in the file, or shown by its weights."""

from __future__ import annotations

from pathlib import Path

from checkpoints.loading.architectures import compare_body, current_name, twins_of
from checkpoints.loading.bodies import Body, Wanted, as_architecture, find_bodies
from checkpoints.loading.layouts import TIMM
from checkpoints.loading.networks import Network
from checkpoints.loading.state_dicts import AllTensors, Claim
from ensemble.errors import ModelError
from ensemble.events import Listener, Notice

_LEAST_PERCENT = 50
_NAMES_OF_THE_MODEL = {"model", "arch", "architecture", "model_name", "timm_model", "model_arch"}


def identify(network: Network, wanted: Wanted, claims: tuple[Claim, ...], path: Path, listener: Listener) -> Body:
    """Return the body of a network as the architecture that it is.

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
        if current is not None and current.partition(".")[0] in body.twins:
            listener.notice(Notice("I419", f"{path.name} is {current}, as {claim.place} in the file says", path))
            return as_architecture(body, current, None, network.tensors)
    _require_no_other_claim(body, claims, path)
    if body.usual is None:
        raise _ambiguous(body, path)
    total = len([key for key in body.match.architecture.state if not key.endswith(".num_batches_tracked")])
    others = _others(body)
    listener.notice(Notice("I419", f"{path.name} is {body.usual}: all {total} keys and shapes fit{others}", path))
    return as_architecture(body, body.usual, None, network.tensors)


def _require_no_other_claim(body: Body, claims: tuple[Claim, ...], path: Path) -> None:
    """Refuse weights that are not those of the architecture that the file names as its model."""
    for claim in claims:
        if claim.place.rpartition(".")[2] in _NAMES_OF_THE_MODEL and current_name(claim.arch) is not None:
            raise ModelError(
                "E410",
                f"{path.name} says that it is {claim.arch} ({claim.place}), but its weights are those of "
                f"{_either(body)}",
                hint=f"give the one that is right with --arch, such as --arch {body.twins[0]}",
                path=path,
            )


def _others(body: Body) -> str:
    """Return what else has the same names and shapes, and what would tell."""
    others = [name for name in body.twins if name != body.usual]
    if (body.usual or "").startswith("resnet"):
        others.append(f"a dilated {body.usual} (--arch-option output_stride=8)")
    if not others:
        return ""
    return f"; so would {' and '.join(others)}: give --arch if it is one of those"


def unknown_network(nearest: Body | None, wanted: Wanted, found: AllTensors, path: Path) -> ModelError:
    """Return E410 or E415 for a checkpoint in which no network was found."""
    if wanted.arch is not None:
        return _does_not_fit(nearest, wanted, found, path)
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
    return ModelError(
        "E410",
        f"{path.name} is not {wanted.arch}: {len(match.matching)} of {match.total} keys fit"
        + ("" if bodies and wanted.arch in bodies[0].twins else looks),
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


def _ambiguous(body: Body, path: Path) -> ModelError:
    names = body.twins
    named = max((name for name in names if name in path.name), key=len, default=None)
    hint = f"the file's name suggests --arch {named}, but a name proves nothing" if named else None
    return ModelError(
        "E416",
        f"{path.name} fits {' and '.join(names)}: their weights have the same names and shapes, but they pad, blur or "
        "scale differently",
        hint=hint or f"give the one that was trained with --arch, such as --arch {names[0]}",
        path=path,
    )
