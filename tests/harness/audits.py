"""Compare the label errors of `ens audit` with cleanlab's rankings, and search for copies that are planted, in one run.

    uv pip install cleanlab
    python -m tests.harness.audits train --truth true.csv --folds folds.csv \
        --oof "two probes=runs/sface0/oof,runs/sface15/oof" --recipe "two probes=blend.json" --oof "two networks=seen"

Each ``--oof`` is a column: a name, and the out-of-fold predictions of its models; ``--recipe`` is for `ens audit
--recipe`. ``--truth`` has the true class of each training image, which no ranking sees: an image is wrong where its
label as given differs, and a ranking is scored by its average precision. cleanlab is given the mean of the models'
probabilities: of the classes; of each axis, where an image counts by its worst one; and of each axis where the mean is
also that of a group's images, on the axes that `ens audit` joins. Copies are made of ``--planted`` photographs in each
of six ways and searched for as evaluation images, among all training images. pytest does not collect this file.
"""

from __future__ import annotations

import argparse
import importlib.util
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import click
import numpy as np
from PIL import Image, ImageOps
from sklearn.metrics import average_precision_score

from checkpoints.audit.audit import DEFAULT, Audit, audit_dataset, mean_probability
from checkpoints.audit.findings import Finding
from checkpoints.audit.label_errors import LabelErrors, find_label_errors
from checkpoints.data.dataset import Dataset, read_dataset
from checkpoints.data.folds import read_folds
from checkpoints.data.truth_table import training_truth
from ensemble.arrays import Classes, Floats, Mask
from ensemble.blend.held_out import blend_held_out
from ensemble.blend.recipe import Recipe, read_recipe
from ensemble.events import SILENT
from ensemble.ids import join_rows
from ensemble.labels import LabelSpace
from ensemble.predictions.dataset import Predictions
from ensemble.predictions.match_members import join_folds
from ensemble.predictions.out_of_fold import gather_folds
from ensemble.predictions.read_members import read_members
from ensemble.predictions.truth import Truth, predictions_mismatch, read_truth

OURS = "ens audit"
METHODS = ("self_confidence", "normalized_margin", "confidence_weighted_entropy")
_RESAMPLES = 1000
_QUALITY = 70  # of the JPEG of a copy


@dataclass(frozen=True, slots=True, eq=False)
class Judged:
    """A training set: its labels as given and the true ones ``(N,)``, and the person or other group of each image."""

    labels: LabelSpace
    given: Classes
    true: Classes
    groups: tuple[str, ...]

    @property
    def wrong(self) -> Mask:
        """Which labels ``(N,)`` are wrong."""
        return np.not_equal(self.given, self.true)


@dataclass(frozen=True, slots=True, eq=False)
class Ranked:
    """What `ens audit` says, and by each ranking the doubt ``(N,)`` in each label, the more the surer."""

    doubts: Mapping[str, Floats]
    ours: LabelErrors


def main() -> None:
    """Print both tables."""
    args = _parse()
    if importlib.util.find_spec("cleanlab") is None:
        raise SystemExit("cleanlab is not installed: uv pip install cleanlab")
    data = read_dataset(args.train)
    given = training_truth(data, None if args.folds is None else read_folds(args.folds, data.rows))
    true = read_truth(args.truth, data.labels)
    order = join_rows(given.ids, true.ids, complain=predictions_mismatch)
    judged = Judged(data.labels, given.classes, true.classes[order], given.persons or given.ids)
    groups = len(set(judged.groups))
    click.echo(f"{len(given.ids):,} images of {groups:,} groups, {judged.wrong.sum():,} with a wrong label\n")
    recipes = {name: read_recipe(Path(path)) for name, path in map(_named, args.recipe)}
    found = {}
    for name, paths in map(_named, args.oof):
        members = read_members([Path(path) for path in paths.split(",")], data.labels)
        found[name] = rank(judged, members, given, recipes.get(name))
    if found:
        print_rankings(judged, found)
    if args.planted:
        print_copies(data, args.planted, args.seed)


def _named(option: str) -> tuple[str, str]:
    name, _, value = option.partition("=")
    return name, value


def rank(judged: Judged, members: Sequence[Predictions], given: Truth, recipe: Recipe | None) -> Ranked:
    """Rank the labels by cleanlab and by `ens audit`, and with a recipe by its blend."""
    models = [mean_probability(one) for one in gather_folds(join_folds(members, listener=SILENT), given)]
    ours = find_label_errors(models, judged.given, judged.labels, judged.groups)
    doubts = rank_by_cleanlab(judged, np.mean(models, axis=0), ours) | {OURS: _doubt(ours, judged)}
    if recipe is not None:
        blended = blend_held_out(recipe, members, given, listener=SILENT).blended
        rows = join_rows(given.ids, blended.ids, complain=predictions_mismatch)
        order = judged.labels.permutation(blended.labels, owner="the recipe")
        one = find_label_errors([blended.probabilities[rows][:, order]], judged.given, judged.labels, judged.groups)
        doubts[f"{OURS} --recipe"] = _doubt(one, judged)
    return Ranked(doubts, ours)


def _doubt(ours: LabelErrors, judged: Judged) -> Floats:
    """Return the score of each label, of several axes the highest one; 0 where it is not listed."""
    doubt = np.zeros(len(judged.given))
    for error in ours.errors:
        doubt[error.row] = max(doubt[error.row], error.score)
    return doubt


def rank_by_cleanlab(judged: Judged, mean: Floats, ours: LabelErrors) -> dict[str, Floats]:
    """Return the rankings by ``cleanlab.rank.get_label_quality_scores`` of the mean probabilities ``(N, C)``."""
    group = np.unique(judged.groups, return_inverse=True)[1]
    joined = {axis.axis for axis in ours.axes if axis.joined}
    cube = mean.reshape(-1, *judged.labels.shape)
    axes = []
    for place, axis in enumerate(judged.labels.axes):
        others = tuple(1 + other for other in range(len(judged.labels.axes)) if other != place)
        own = cube.sum(axis=others)
        means = np.stack([np.bincount(group, column) / np.bincount(group) for column in own.T], axis=1)[group]
        axes.append((judged.labels.along(axis.name, judged.given), own, means if axis.name in joined else own))
    found: dict[str, dict[str, Floats]] = {"classes": {}, "axes": {}, "axes and groups": {}}
    for method in METHODS:
        for adjust in (False, True) if method != METHODS[-1] else (False,):  # cleanlab does not adjust the entropy
            name = method.replace("_", " ") + ", adjusted" * adjust
            found["classes"][name] = _cleanlab(judged.given, mean, method, adjust)
            found["axes"][name] = np.max([_cleanlab(given, own, method, adjust) for given, own, _ in axes], axis=0)
            found["axes and groups"][name] = np.max(
                [_cleanlab(given, means, method, adjust) for given, _, means in axes], axis=0
            )
    return {f"cleanlab, {of}: {name}": doubt for of, some in found.items() for name, doubt in some.items()}


def _cleanlab(given: Classes, probabilities: Floats, method: str, adjust: bool) -> Floats:
    from cleanlab.rank import get_label_quality_scores

    return 1 - np.asarray(get_label_quality_scores(given, probabilities, method=method, adjust_pred_probs=adjust))


def print_rankings(judged: Judged, found: Mapping[str, Ranked]) -> None:
    """Print the average precision of each ranking, and that of `ens audit` minus that of cleanlab's best one."""
    click.echo("| ranked by | " + " | ".join(found) + " |\n|---|" + "---|" * len(found))
    for name in dict.fromkeys(name for one in found.values() for name in one.doubts):
        scores = [f"{_score(judged, one.doubts[name]):.2f}" if name in one.doubts else "" for one in found.values()]
        click.echo(f"| {name} | " + " | ".join(scores) + " |")
    for column, one in found.items():
        scores_of = {name: _score(judged, doubt) for name, doubt in one.doubts.items()}
        rival = max((name for name in scores_of if not name.startswith(OURS)), key=lambda name: scores_of[name])
        ours, theirs = (np.array(list(_resample(judged, one.doubts[name]))) for name in (OURS, rival))
        click.echo(f"\n{column}: {OURS} {scores_of[OURS]:.3f} ({_interval(ours)})")
        click.echo(f"minus {rival}: {scores_of[OURS] - scores_of[rival]:+.3f} ({_interval(ours - theirs)})")
        sure = one.doubts[OURS] >= DEFAULT.sure
        click.echo(f"{sure.sum():,} labels of {DEFAULT.sure} or more, {(sure & judged.wrong).sum():,} of them wrong")
        for axis in one.ours.axes:
            click.echo(_tell_axis(judged, one.ours, axis.axis, axis.noise))


def _score(judged: Judged, doubt: Floats) -> float:
    return float(average_precision_score(judged.wrong, doubt))


def _tell_axis(judged: Judged, ours: LabelErrors, name: str, noise: float) -> str:
    given, true = (judged.labels.along(name, classes) for classes in (judged.given, judged.true))
    doubt = np.zeros(len(given))
    for error in ours.errors:
        if error.axis == name:
            doubt[error.row] = error.score
    wrong = given != true
    score = f"{average_precision_score(wrong, doubt):.2f}" if wrong.any() else "none"
    return f"{name}: average precision {score}; {wrong.mean():.1%} wrong, {noise:.1%} estimated"


def _resample(judged: Judged, doubt: Floats) -> Iterator[float]:
    """Yield the average precision on resamples of the groups, the same for all rankings."""
    group = np.unique(judged.groups, return_inverse=True)[1]
    count = int(group.max()) + 1
    rng = np.random.default_rng(0)
    for _ in range(_RESAMPLES):
        times = np.bincount(rng.integers(0, count, count), minlength=count)[group]
        yield float(average_precision_score(judged.wrong, doubt, sample_weight=times))


def _interval(values: Floats) -> str:
    low, high = np.percentile(values, [2.5, 97.5])
    return f"{low:.3f} to {high:.3f}"


def print_copies(data: Dataset, count: int, seed: int) -> None:
    """Plant copies of ``count`` photographs in each way, and print how many of them `ens audit` finds."""
    rng = np.random.default_rng(seed)
    chosen = [data.rows[i] for i in sorted(rng.choice(len(data.rows), count, replace=False))]
    with tempfile.TemporaryDirectory(prefix="ens-audits-") as folder:
        source: dict[str, str] = {}
        for row in chosen:
            with Image.open(row.path) as opened:
                photo = ImageOps.exif_transpose(opened).convert("RGB")
            for way, change in WAYS.items():
                name = f"{way} {len(source):05d}.jpg"
                change(photo, rng).save(Path(folder, name), quality=_QUALITY)
                source[name] = row.id
        began = time.process_time()
        audit = audit_dataset(data, evaluation=Path(folder))
        spent = time.process_time() - began
    _tell_copies(audit, source, spent)


def _tell_copies(audit: Audit, source: Mapping[str, str], spent: float) -> None:
    leaks = [one for one in audit.findings if one.kind == "leak"]
    found = Counter(name.rsplit(" ", 1)[0] for name in {one.other for one in leaks if source[one.other] == one.id})
    click.echo(f"\ncopies, planted and found among {audit.images:,} images in {spent:.0f} s of the processor:")
    for way, planted in Counter(name.rsplit(" ", 1)[0] for name in source).items():
        click.echo(f"{way}: {found[way]} of {planted}")
    others = [one for one in leaks if source[one.other] != one.id]
    click.echo(f"copies said to be of another image: {len(others)}, {_within(others, source)} in the same folder")
    pairs = sum(one.kind in {"duplicate", "folds"} for one in audit.findings)
    click.echo(f"pairs among the training images themselves: {pairs}")


def _within(findings: Sequence[Finding], source: Mapping[str, str]) -> int:
    return sum(Path(source[one.other]).parent == Path(one.id).parent for one in findings)


def _resized(photo: Image.Image, rng: np.random.Generator) -> Image.Image:
    share = rng.uniform(0.4, 0.9)
    return photo.resize((round(photo.width * share), round(photo.height * share)), Image.Resampling.BICUBIC)


def _cropped(photo: Image.Image, rng: np.random.Generator) -> Image.Image:
    """Return a window of 60 to 96 % of each side."""
    wide, high = (round(side * rng.uniform(0.6, 0.96)) for side in photo.size)
    left, top = (int(rng.integers(0, free + 1)) for free in (photo.width - wide, photo.height - high))
    return photo.crop((left, top, left + wide, top + high))


WAYS: dict[str, Callable[[Image.Image, np.random.Generator], Image.Image]] = {
    "re-encoded": lambda photo, rng: photo,
    "resized": _resized,
    "mirrored": lambda photo, rng: ImageOps.mirror(photo),
    "cropped": _cropped,
    "cropped and resized": lambda photo, rng: _resized(_cropped(photo, rng), rng),
    "cropped and mirrored": lambda photo, rng: ImageOps.mirror(_cropped(photo, rng)),
}


def _parse(args: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("train", type=Path, help="folder or table of training images, one class per image")
    parser.add_argument("--truth", type=Path, required=True, help="CSV of image and true class")
    parser.add_argument("--oof", action="append", default=[], help="NAME=PATH,...; repeatable")
    parser.add_argument("--recipe", action="append", default=[], help="NAME=JSON of ens blend; repeatable")
    parser.add_argument("--folds", type=Path, help="CSV of id,fold, as in ens audit")
    parser.add_argument("--planted", type=int, default=70, help="copies of each way (default 70; 0: none)")
    parser.add_argument("--seed", type=int, default=0, help="of the copies (default 0)")
    return parser.parse_args(args)


if __name__ == "__main__":
    main()
