"""Search for networks by their names and shapes, then as what the file claims, then with tokens averaged."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

from checkpoints.loading.arch_options import why_not
from checkpoints.loading.architectures import current_name
from checkpoints.loading.bodies import Search, Wanted, find_bodies
from checkpoints.loading.key_names import prefixes_before
from checkpoints.loading.metadata import Metadata
from checkpoints.loading.name_notices import ambiguous
from checkpoints.loading.network import ArchOptions
from checkpoints.loading.state_dicts import AllTensors, Claim

_AVERAGED = "fc_norm.weight"


@dataclass(frozen=True, slots=True)
class SearchResult:
    """The networks that were found, and the options of their architecture that their names show."""

    search: Search
    options: ArchOptions = field(default_factory=dict)


def search_networks(
    found: AllTensors, claims: tuple[Claim, ...], metadata: Metadata, wanted: Wanted, path: Path
) -> SearchResult:
    """Return every network in a checkpoint.

    Raises:
        ModelError: E416 when only values could tell which vision transformer it is.
    """
    search = find_bodies(found, wanted)
    if not search.bodies and wanted.arch is None:
        search = _find_claimed(found, claims, metadata, wanted) or search
    if not search.bodies and (averaged := _find_averaging(found, claims, wanted, path)) is not None:
        return averaged
    return SearchResult(search)


def _find_claimed(found: AllTensors, claims: tuple[Claim, ...], metadata: Metadata, wanted: Wanted) -> Search | None:
    """Return the networks of the first architecture that the metadata names and the weights fit."""
    stored = {name: one.value for name, one in metadata.arch_options.items() if name != "bn_eps"}
    for claim in claims:
        current = current_name(claim.arch)
        for options in ({}, stored) if stored and current is not None else ({},):
            if current is None or why_not(current, options) is not None:
                continue
            search = find_bodies(found, replace(wanted, arch=current, arch_options=options or None))
            if search.bodies:
                return search
    return None


def _find_averaging(found: AllTensors, claims: tuple[Claim, ...], wanted: Wanted, path: Path) -> SearchResult | None:
    """Return vision transformers that average their tokens and normalize afterwards, as MAE's fine-tuning does.

    timm calls the normalization ``fc_norm`` where it follows ``global_pool="avg"`` and ``norm`` elsewhere
    (timm/models/vision_transformer.py).
    """
    starts = [
        start for start in prefixes_before(_AVERAGED, found.tensors) if f"{start}norm.weight" not in found.tensors
    ]
    if not starts:
        return None
    options = {**(wanted.arch_options or {}), "global_pool": "avg"}
    for name in (wanted.arch,) if wanted.arch else _names(found, starts, claims, wanted, path):
        if why_not(name, options) is None:
            search = find_bodies(found, replace(wanted, arch=name, arch_options=options))
            if search.bodies:
                return SearchResult(search, {"global_pool": "avg"})
    return None


def _names(
    found: AllTensors, starts: list[str], claims: tuple[Claim, ...], wanted: Wanted, path: Path
) -> Iterator[str]:
    """Yield the architectures that the file claims, then the one that its weights show with the usual name."""
    for claim in claims:
        for text in (claim.arch, f"{claim.arch}_224"):  # MAE's vit_base_patch16
            if (current := current_name(text)) is not None:
                yield current
    usual = {f"{start}fc_norm.": f"{start}norm." for start in starts}
    renamed = {
        next((key.replace(old, new, 1) for old, new in usual.items() if key.startswith(old)), key): tensor
        for key, tensor in found.tensors.items()
    }
    for body in find_bodies(replace(found, tensors=renamed), wanted).bodies:
        if body.usual is None:
            raise ambiguous(body.twins, path)
        yield body.usual
