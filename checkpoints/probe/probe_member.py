"""Train a linear head per fold on a frozen network's features, and write the members and out-of-fold predictions."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import numpy as np

from checkpoints.data.dataset import Dataset
from checkpoints.data.folds import Folds, read_folds, write_folds
from checkpoints.data.image_cache import decode_images
from checkpoints.data.truth_table import labels_of, truth_table
from checkpoints.probe.choose_strength import choose_strengths, plan_fits
from checkpoints.probe.feature_network import ANSWERS, FeatureNetwork, chunks, name_chunk
from checkpoints.probe.linear_head import STRENGTHS, Block, LinearHead, Target, fit_path, make_targets
from checkpoints.probe.open_network import OpenNetwork
from checkpoints.probe.ordered_axes import find_levels
from checkpoints.probe.ordinal_head import OrdinalBlock
from checkpoints.training.scores import KEY, NAME, score_classes, score_labels
from ensemble.adopt.adopt import MOST_PICTURES, adopt_network
from ensemble.adopt.foreign import ForeignModel
from ensemble.arrays import Floats, Logits, Pixels
from ensemble.card import Head, ModelCard, validate_member
from ensemble.errors import ModelError, OptionError
from ensemble.events import SILENT, Listener, Notice
from ensemble.files import locked, remove, write_atomic
from ensemble.images.face_alignment import require_points
from ensemble.images.face_boxes import Boxes
from ensemble.images.views import parse_views
from ensemble.kept_arrays import KeptArrays
from ensemble.ordinal import require_ordinal
from ensemble.predictions.dataset import COMPLETE, Part, hash_ids, part_path, write_complete, write_part
from ensemble.runtime.parity import LIMITS, relative_error

_SETTINGS = "settings.json"
_VIEWS = "hflip"


@dataclass(frozen=True, slots=True, eq=False)
class ProbeJob:
    """Everything that decides a probe, and the folder ``out`` in which its member gets a folder of its own.

    ``boxes`` are the faces of the rows, for a face crop. ``folds_file``
    is where the folds are kept for all members of ``out``. With ``balanced`` all classes, or values of an axis, count
    equally. The axes ``ordinal`` are ordered, see `checkpoints.probe.ordinal_head`.

    Raises:
        OptionError: E204 when a name cannot be that of a folder, or the labels do not allow the head; E206 when boxes
            are missing.
        DataError: E351 when an image has no entry in the boxes, E380 when faces are to be aligned and have no points.
    """

    data: Dataset
    folds: Folds
    member: str
    opened: OpenNetwork
    out: Path
    head: Head = "flat"
    seed: int = 0
    boxes: Boxes | None = None
    folds_file: Path | None = None
    balanced: bool = False
    ordinal: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        validate_member(self.member)
        validate_member(self.fold_name(self.folds.count - 1))
        if self.folds_file is not None and self.folder == self.folds_file:
            message = f"a member cannot be called {self.member}: its folder would be the file of the folds"
            raise OptionError("E204", message)
        if len(self.data.labels) < 2:
            message = f"a head needs two classes or more; the data has {len(self.data.labels)}"
            raise OptionError("E204", message, hint="ens data TRAIN_DIR shows the classes that are read")
        if self.head == "axes" and len(self.data.labels.axes) < 2:
            hint = "leave --head out, or name the axes and their values in a JSON file with --labels"
            raise OptionError("E204", "--head axes needs labels of two axes or more, such as mask18", hint=hint)
        if self.balanced and self.data.activation == "sigmoid":
            message = "--balanced is for one class per image; the images have several labels"
            raise OptionError("E204", message, hint="leave out --balanced")
        require_ordinal(self.data.labels, self.ordinal, head=self.head, activation=self.data.activation)
        if self.card.preprocess.face is not None and self.boxes is None:
            raise OptionError("E206", f"{self.network.model.path.name} takes face crops: give the boxes with --boxes")
        if self.boxes is not None:
            ids = [row.id for row in self.data.rows]
            require_points(self.card.preprocess.face, ids, self.boxes.select(ids))

    @property
    def network(self) -> FeatureNetwork:
        """The network of the features."""
        return self.opened.network

    @property
    def card(self) -> ModelCard:
        """The card with the network's preprocessing."""
        return self.opened.card

    @property
    def folder(self) -> Path:
        """The member's folder."""
        return self.out / self.member

    def fold_name(self, fold: int) -> str:
        """Return the name of a fold's model."""
        return f"{self.member}_f{fold}"

    def fingerprint(self) -> str:
        """Return all that decides the heads as JSON, with files by their hashes."""
        rows = [
            (row.id, row.label, row.target, list(row.present or ()), self.folds.of_person[row.person])
            for row in self.data.rows
        ]
        ordinal = {name: levels.of_row.tolist() for name, levels in find_levels(self.data, self.ordinal).items()}
        value = {
            "probe": self.network.source,
            "features": self.network.model.sha256,
            "input": replace(self.card, labels=self.data.labels, tools={}).to_json(),
            "head": self.head,
            "balanced": self.balanced,
            "ordinal": hashlib.sha256(json.dumps(ordinal, sort_keys=True).encode()).hexdigest(),
            "seed": self.seed,
            "boxes": None if self.boxes is None else self.boxes.sha256,
            "rows": hashlib.sha256(json.dumps(rows).encode()).hexdigest(),
        }
        return json.dumps(value, sort_keys=True)


@dataclass(frozen=True, slots=True)
class ProbedFold:
    """The member of one fold: its file, its score on the images it did not see, and the L2 strength of each block."""

    path: Path
    score: float
    strengths: dict[str, float]


@dataclass(frozen=True, slots=True)
class ProbedMember:
    """The members of all folds, the folder of their out-of-fold predictions, and the score of the view identity."""

    folds: tuple[ProbedFold, ...]
    oof: Path
    score: float
    activation: str
    features: int

    def as_dict(self) -> dict[str, Any]:
        """Return JSON-ready values; the score is called ``macro_f1`` or ``average_precision``."""
        key = KEY["sigmoid" if self.activation == "sigmoid" else "softmax"]
        return {
            "folds": [{"path": str(fold.path), key: fold.score, "l2": fold.strengths} for fold in self.folds],
            "features": self.features,
            "oof": str(self.oof),
            key: self.score,
        }

    def render(self) -> str:
        """Return one line per fold, and one for the out-of-fold predictions."""
        name = NAME["sigmoid" if self.activation == "sigmoid" else "softmax"]
        lines = [f"{fold.path}  {name} {fold.score:.4f}  L2 {_shown(fold.strengths)}" for fold in self.folds]
        return "\n".join([*lines, f"{self.oof}  out-of-fold {name} {self.score:.4f}"])


def _shown(strengths: dict[str, float]) -> str:
    return ", ".join(f"{value:g}" if len(strengths) == 1 else f"{name} {value:g}" for name, value in strengths.items())


def probe_member(job: ProbeJob, *, fresh: bool = False, listener: Listener = SILENT) -> ProbedMember:
    """Write ``<member>/<member>_f<k>.onnx`` for each fold, and the predictions ``<member>/oof/*`` as `ens train` does.

    The L2 strength of a fold's head is chosen within the fold's training part. A probe that was stopped keeps features
    and fits for the next. Each file is compared with the network
    and the head on held-out images before it is written; ``truth.csv`` has the true classes.

    Raises:
        OptionError: E204 when the folder has other folds.
        DataError: the codes of `plan_fits` and `decode_images`.
        ModelError: E414 when a file does not answer as network and head; E442 when the folder holds other results; the
            codes of `adopt_network`.
        FileError: E701 to E703 when files cannot be written.
    """
    data, rows = job.data, job.data.rows
    fits = plan_fits(data, job.folds, seed=job.seed)
    with ExitStack() as stack:
        stack.enter_context(locked(job.folder))
        _require_free(job, fresh=fresh)
        kept = stack.enter_context(KeptArrays(job.folder, "probe", _state_of(job), fresh=fresh))
        if kept.resumed:
            text = f"{job.member} resumes: {kept.resumed:,} steps of a probe that did not end are kept"
            listener.notice(Notice("I445", text, job.folder))
        pixels = _decode(job, kept, listener)
        # as training does: mirrored images are predicted, and not learned from
        features = {
            view.name: job.network.run(view.apply(pixels), job.card, kept=kept, step=view.name, listener=listener)
            for view in parse_views(_VIEWS)
        }
        trained = labels_of(rows, data.labels, data.activation, trained=True)
        true = labels_of(rows, data.labels, data.activation)
        ordered = find_levels(data, job.ordinal, listener=listener)
        targets = make_targets(
            data.labels, job.head, data.activation, trained, true, balanced=job.balanced, ordered=ordered
        )
        strengths = choose_strengths(features["identity"], targets, fits, job.folds.count, kept=kept, listener=listener)
        _start_results(job)
        done: list[ProbedFold] = []
        logits = np.empty((len(rows), len(data.labels)), dtype=np.float32)
        for fold, chosen in enumerate(strengths):
            held = job.folds.holdout(rows, fold)
            head = LinearHead(data.labels, tuple(_fit(features["identity"], targets, held, chosen, kept, fold)))
            answers = {view: head.logits(values[held]).astype(np.float32) for view, values in features.items()}
            named = {target.name: value for target, value in zip(targets, chosen, strict=True)}
            card = _make_card(job, fold, named)
            center = features["identity"][~held].mean(axis=0)
            path, card = _write_model(
                job, head, center, card, pixels[held], answers["identity"], SILENT if fold else listener
            )
            _write_holdout(job, fold, card, answers)
            logits[held] = answers["identity"]
            done.append(ProbedFold(path, _score(job, true[held], answers["identity"]), named))
    return ProbedMember(tuple(done), job.folder / "oof", _score(job, true, logits), data.activation, job.network.count)


def _fit(
    features: Floats, targets: list[Target], held: Any, chosen: list[float], kept: KeptArrays, fold: int
) -> Iterator[Block | OrdinalBlock]:
    """Yield the blocks of a fold's head, each by the path from the strongest penalty to the chosen one."""
    for target, strength in zip(targets, chosen, strict=True):
        step = f"head {fold} {target.name}"
        known = kept.get(step)
        if known is None:
            path = STRENGTHS[: STRENGTHS.index(strength) + 1]
            *_, last = fit_path(features, target, ~held, path)
            known = np.concatenate([getattr(last, field.name).ravel() for field in fields(last)])
            kept.add(step, known)
        width = features.shape[1]
        if target.levels is None:
            table = known.reshape(width + 1, target.outputs)
            yield Block(table[:width], table[width])
        else:
            yield OrdinalBlock(known[:width], known[width:])


def _decode(job: ProbeJob, kept: KeptArrays, listener: Listener) -> Pixels:
    """Return the pixels of all images; where all features are kept, only of those that the models are compared on."""
    rows = job.data.rows
    wanted = np.zeros(len(rows), dtype=np.bool_)
    for piece in chunks(len(rows)):
        if any(kept.get(name_chunk(view.name, piece)) is None for view in parse_views(_VIEWS)):
            wanted[piece.start : piece.stop] = True
    for fold in range(job.folds.count):
        held = np.flatnonzero(job.folds.holdout(rows, fold))
        wanted[held[_compared(len(held))]] = True
    places = np.flatnonzero(wanted).tolist()
    chosen = [rows[place] for place in places]
    boxes = None if job.boxes is None else job.boxes.select([row.id for row in chosen])
    decoded = decode_images(chosen, job.card.preprocess, boxes=boxes, listener=listener).pixels
    if len(decoded) == len(rows):
        return decoded
    pixels = np.zeros((len(rows), *decoded.shape[1:]), dtype=decoded.dtype)
    pixels[places] = decoded
    return pixels


def _compared(count: int) -> slice:
    """Return which of the images that a fold holds out its model is compared on."""
    step = max(1, count // MOST_PICTURES)
    return slice(0, step * MOST_PICTURES, step)


def _state_of(job: ProbeJob) -> str:
    """Return all that the features and heads depend on: the job, and the sizes and times of the images."""
    states = [os.stat(row.path) for row in job.data.rows if os.path.exists(row.path)]
    return f"{job.fingerprint()} {[(state.st_size, state.st_mtime_ns) for state in states]}"


def _make_card(job: ProbeJob, fold: int, strengths: dict[str, float]) -> ModelCard:
    data = job.data
    held = job.folds.holdout(data.rows, fold)
    found = labels_of(data.rows, data.labels, data.activation)
    counts = np.bincount(found, minlength=len(data.labels)) if found.ndim == 1 else found.sum(axis=0)
    return replace(
        job.card,
        member=job.fold_name(fold),
        group=job.member,
        fold=fold,
        labels=data.labels,
        head=job.head,
        activation=data.activation,
        holdout_sha256=hash_ids(row.id for row, out in zip(data.rows, held, strict=True) if out),
        class_counts=tuple(counts.tolist()),
        checks={"probe": _record(job, strengths)},
    )


def _record(job: ProbeJob, strengths: dict[str, float]) -> dict[str, Any]:
    record = {"features": job.network.source, "count": job.network.count, "l2": strengths}
    record |= {"ordinal": sorted(job.ordinal)} if job.ordinal else {}
    return record | ({"balanced": True} if job.balanced else {})


def _write_model(
    job: ProbeJob,
    head: LinearHead,
    center: Floats,
    card: ModelCard,
    pixels: Pixels,
    answers: Logits,
    listener: Listener,
) -> tuple[Path, ModelCard]:
    """Write network and head as a member that was compared with both on up to 16 held-out images.

    The features are centered in the graph only where the head's products cancel without.
    """
    compared = _compared(len(pixels))
    pixels, answers = pixels[compared], answers[compared]
    model = job.network.with_head(head)
    options = replace(
        job.opened.options, output="logits", output_name=ANSWERS, labels=job.data.labels, activation=job.data.activation
    )
    error = _compare(job, head, model, card, pixels, answers)
    if not error <= LIMITS[card.precision]:
        model = job.network.with_head(head, center=center)
        error = _compare(job, head, model, card, pixels, answers)
    if not error <= LIMITS[card.precision]:
        message = (
            f"the head in the graph differs by {error:.1e} from the fitted one; {LIMITS[card.precision]:g} is allowed"
        )
        hint = "its features hardly differ between images, as far as float32 tells: name another value with --output"
        raise ModelError("E414", message, hint=hint, path=model.path)
    adopted = adopt_network(
        model, job.network.image, card, job.folder, options=options, pixels=pixels, listener=listener
    )
    return adopted.path, adopted.card


def _compare(
    job: ProbeJob, head: LinearHead, model: ForeignModel, card: ModelCard, pixels: Pixels, answers: Logits
) -> float:
    """Return how much a network with the head differs from the head's own answers, as `relative_error`."""
    network = replace(job.network, model=model, count=head.classes)
    return relative_error(answers, network.answers(pixels, card).astype(np.float32))


def _write_holdout(job: ProbeJob, fold: int, card: ModelCard, answers: dict[str, Logits]) -> None:
    held = job.folds.holdout(job.data.rows, fold)
    folder = job.folder / "oof" / job.fold_name(fold)
    ids = tuple(row.id for row, out in zip(job.data.rows, held, strict=True) if out)
    path = part_path(folder, 0)
    write_part(path, Part(ids, answers, job.fingerprint(), card))
    write_complete(folder, [path], len(ids))


def _score(job: ProbeJob, true: Any, logits: Logits) -> float:
    if job.data.activation == "sigmoid":
        return score_labels(true, logits).main
    return score_classes(true, logits.argmax(axis=1), classes=len(job.data.labels)).main


def _require_free(job: ProbeJob, *, fresh: bool) -> None:
    """Refuse a member's folder with other results, before work is spent."""
    settings = job.folder / _SETTINGS
    weights = [*job.folder.glob("fold*.safetensors"), *job.folder.glob("fold*.state")]
    if weights:
        message = f"{job.folder} holds the training of a network: {weights[0].name}"
        raise ModelError("E442", message, hint="choose another --member", path=job.folder)
    same = settings.exists() and settings.read_text(encoding="utf-8") == job.fingerprint()
    if not fresh and not same and any(job.folder.glob("*.onnx")):
        message = f"{job.folder} holds models of other features, settings, images or folds"
        hint = "choose another --member, or replace them with --fresh"
        raise ModelError("E442", message, hint=hint, path=job.folder)
    path = job.folds_file
    if path is not None and path.exists() and read_folds(path, job.data.rows) != job.folds:
        hint = "all members in a folder share its folds.csv: choose another folder with -o"
        raise OptionError("E204", f"{path} has other folds", hint=hint)


def _start_results(job: ProbeJob) -> None:
    """Remove earlier results, and write folds, settings and truth."""
    for path in [*(job.folder / "oof").glob(f"*/{COMPLETE}"), *job.folder.glob("*.onnx")]:
        remove(path)
    if job.folds_file is not None and not job.folds_file.exists():
        write_folds(job.folds_file, job.folds)
    write_atomic(job.folder / _SETTINGS, job.fingerprint().encode())
    write_atomic(job.folder / "truth.csv", truth_table(job.data.rows, job.data.labels, job.data.activation))
