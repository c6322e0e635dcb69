"""Report: the facts about a blend, its members and what they answer, gathered from what the other commands wrote."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np

from ensemble.analysis.disagreements import Dispute, answers_of, find_disputes
from ensemble.analysis.evaluate import Evaluation, Scores, evaluate
from ensemble.arrays import Floats
from ensemble.blend.blend import Blended, blend
from ensemble.blend.pooling import normalise
from ensemble.blend.recipe import Recipe, make_recipe, read_recipe
from ensemble.errors import OptionError, PredictionError, TooLittleTruthError
from ensemble.events import SILENT, Listener, Notice, Recorder
from ensemble.labels import LabelSpace
from ensemble.learn.learn import learn
from ensemble.learn.objective import parse_metric
from ensemble.learn.result import CandidateScore
from ensemble.learn.view_gains import ViewGain
from ensemble.metrics import Reliability, confusion_matrix, reliability
from ensemble.predict.predict import RUN
from ensemble.predictions.dataset import Predictions, find_predictions, read_predictions, require_none_missing
from ensemble.predictions.members import common_images, members_by_name
from ensemble.predictions.out_of_fold import gather_folds
from ensemble.predictions.truth import Truth, read_truth, true_classes
from ensemble.submission.format import notice_missing

_TITLE = "macro F1"


@dataclass(frozen=True, slots=True)
class Run:
    """What a prediction folder's record says really ran: ``own`` seconds are the member's, ``wall`` the whole run's."""

    member: str
    device: str
    images: int
    views: tuple[str, ...]
    at_once: int
    workers: int
    computed: int
    own: float
    wall: float
    notices: tuple[Notice, ...]


@dataclass(frozen=True, slots=True)
class Member:
    """One member or group of folds: its share of the vote, and its scores where the truth is known."""

    name: str
    weight: float
    views: tuple[str, ...]
    scores: Scores | None


@dataclass(frozen=True, slots=True)
class Choice:
    """What a learned recipe says of itself: the candidate ``method`` and the table that justifies it."""

    method: str
    metric: str
    why: str
    table: tuple[CandidateScore, ...]

    @property
    def row(self) -> CandidateScore | None:
        """The chosen candidate's row."""
        return next((row for row in self.table if row.candidate == self.method), None)


@dataclass(frozen=True, slots=True, eq=False)
class Quality:
    """The blend against the truth: its scores, its counts ``(C, C)`` of truth by answer, and how sure it was."""

    evaluation: Evaluation
    confusion: Floats
    axes: Mapping[str, Floats]
    reliability: Reliability

    @property
    def scores(self) -> Scores:
        """The scores of the blend."""
        return self.evaluation.scores[0]


@dataclass(frozen=True, slots=True, eq=False)
class Agreement:
    """``shares`` ``(M, M)`` is how often two members' most probable classes are the same."""

    members: tuple[str, ...]
    shares: Floats


@dataclass(frozen=True, slots=True)
class Mix:
    """How many images there are of each class: in the truth (``known``), and in the blend's answers for the test."""

    known: tuple[int, ...]
    answered: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Absent:
    """A section that has no input, and what would add it."""

    section: str
    cure: str


@dataclass(frozen=True, slots=True, eq=False)
class Report:
    """Everything the page shows; what is None or empty is not shown, and ``absent`` says why."""

    labels: LabelSpace
    images: int
    out_of_fold: bool
    runs: tuple[Run, ...]
    unrecorded: tuple[str, ...]
    notices: tuple[Notice, ...]
    members: tuple[Member, ...]
    recipe: Recipe
    given: bool
    choice: Choice | None
    quality: Quality | None
    views: tuple[ViewGain, ...]
    view_metric: str
    agreement: Agreement | None
    mix: Mix | None
    disputes: tuple[Dispute, ...]
    absent: tuple[Absent, ...]
    commands: tuple[str, ...]


def report(
    predictions: Sequence[Path],
    *,
    recipe: Path | None = None,
    truth: Path | None = None,
    oof: Sequence[Path] = (),
    images: Path | None = None,
    commands: Sequence[str] = (),
    listener: Listener = SILENT,
) -> Report:
    """Gather the facts about test predictions and their blend, with equal weights where there is no ``recipe``.

    ``truth`` is that of the out-of-fold predictions where there are some, else of the test predictions. ``commands``
    are shown as what makes the page again.

    Raises:
        OptionError: E204 when ``oof`` comes without ``truth``.
        EnsError: as `read_predictions`, `read_recipe`, `read_truth`, `gather_folds`, `blend`, `evaluate` and
            `list_images` do; E514 when the record of a run is damaged, E518 when what a recipe learned is.
    """
    if oof and truth is None:
        raise OptionError("E204", "--oof needs --truth: the answers that out-of-fold predictions are compared with")
    recorder = Recorder(listener)
    folders = [folder for path in predictions for folder in find_predictions(path)]
    read = list(members_by_name([read_predictions(folder) for folder in folders]).values())
    common = common_images(read, allow_missing=True)
    tested = common.members
    if common.missing:
        notice_missing(common.missing, recorder)
    given = make_recipe(tested) if recipe is None else read_recipe(recipe)
    choice, views = _learned(given)
    blended = blend(tested, given, listener=recorder)
    answers = None if truth is None else read_truth(truth, given.labels, listener=recorder)
    scored, applied, judged = list(tested), given, blended
    if oof and answers is not None:
        found = [read_predictions(folder) for path in oof for folder in find_predictions(path)]
        scored = gather_folds(found, answers)
        applied = _for_groups(given, scored)
        judged = blend(scored, applied, listener=recorder)
    elif answers is not None:
        require_none_missing(read, answers.ids)
    absent = list(_absent(given=recipe is not None, learned=choice is not None, truth=truth, oof=oof, images=images))
    if answers is not None and not views:
        views, reason = _measure_views(scored, answers)
        absent += [Absent("Views", reason)] if reason else []
    if len(tested) < 2:
        absent.append(Absent("Agreement and disputed images", "name the predictions of two members or more"))
    # each in the order of the blend
    alone = {m.member: blend([m], make_recipe([m]), ids=blended.ids) for m in tested}
    runs = {folder: _read_run(folder) for folder in folders}
    return Report(
        labels=given.labels,
        images=len(blended),
        out_of_fold=bool(oof),
        runs=tuple(run for run in runs.values() if run is not None),
        unrecorded=tuple(folder.name for folder, run in runs.items() if run is None),
        notices=tuple(recorder.notices),
        members=_describe(scored, applied, answers),
        recipe=given,
        given=recipe is not None,
        choice=choice,
        quality=None if answers is None else _judge(judged, answers),
        views=views,
        view_metric=_TITLE if choice is None else choice.metric,
        agreement=_agree(alone, given.labels) if len(tested) > 1 else None,
        mix=None if answers is None else _mix(answers, blended),
        disputes=find_disputes(alone, blended, None if oof else answers, images) if len(tested) > 1 else (),
        absent=tuple(absent),
        commands=tuple(commands),
    )


def _absent(
    *, given: bool, learned: bool, truth: Path | None, oof: Sequence[Path], images: Path | None
) -> list[Absent]:
    cures = [
        Absent(
            "Scores, confusion, F1 by class, reliability, views and class mix",
            "--truth CSV, the truth of PRED; or --oof PRED... --truth CSV, to judge on the training images",
        )
    ] * (truth is None)
    cures += [Absent("Out-of-fold scores", "--oof PRED... with the --truth of the training images")] * (
        truth is not None and not oof
    )
    cures += [
        Absent(
            "Candidates", "--recipe blend.json, as saved by ens blend PRED... --oof ... --truth ... --save blend.json"
        )
    ] * (not learned)
    cures += [Absent("Pictures of the disputed images", "--images DIR")] * (images is None)
    return cures if given or learned else [*cures, Absent("The weights that were used", "--recipe blend.json")]


def _learned(recipe: Recipe) -> tuple[Choice | None, tuple[ViewGain, ...]]:
    """What a learned recipe keeps of its reasons."""
    found = recipe.learned
    if found is None:
        return None, ()
    try:
        table = tuple(CandidateScore(**{key: row[key] for key in row if key != "optimism"}) for row in found["table"])
        title = parse_metric(found["metric"], recipe.labels).title
        choice = Choice(str(found["method"]), title, str(found["why"]), table)
        return choice, tuple(ViewGain(**view) for view in found.get("views", ()))
    except (KeyError, TypeError, AttributeError, OptionError) as err:
        raise PredictionError("E518", f"what the recipe learned cannot be read: {err}") from err


def _for_groups(recipe: Recipe, gathered: Sequence[Predictions]) -> Recipe:
    """The same recipe for members that are whole groups, each called like its group."""
    sha256 = {member.member: member.sha256 for member in gathered}
    missing, extra = sorted(recipe.groups.keys() - sha256), sorted(sha256.keys() - recipe.groups)
    if missing or extra:
        raise PredictionError(
            "E517",
            f"the out-of-fold predictions are of the groups {', '.join(sha256)}, the recipe of "
            f"{', '.join(recipe.groups)}",
            hint="name the same models in PRED and with --oof; groups meet by name",
        )
    groups = {name: replace(group, members={name: sha256[name]}) for name, group in recipe.groups.items()}
    return replace(recipe, groups=groups)


def _describe(members: Sequence[Predictions], recipe: Recipe, truth: Truth | None) -> tuple[Member, ...]:
    shares = normalise({name: group.weight for name, group in recipe.groups.items()})
    weight = {name: shares[own] / len(group.members) for own, group in recipe.groups.items() for name in group.members}
    return tuple(
        Member(
            member.member,
            weight[member.member],
            tuple(member.logits),
            None if truth is None else evaluate(blend([member], make_recipe([member])), truth).scores[0],
        )
        for member in members
    )


def _judge(blended: Blended, truth: Truth) -> Quality:
    evaluation = evaluate(blended, truth)
    true = true_classes(blended.ids, truth)
    labels = blended.labels
    axes = {
        axis.name: confusion_matrix(
            labels.along(axis.name, true), labels.along(axis.name, blended.classes), classes=len(axis.values)
        )
        for axis in labels.axes
    }
    return Quality(
        evaluation,
        confusion_matrix(true, blended.classes, classes=len(labels)),
        axes,
        reliability(true, blended.probabilities),
    )


def _measure_views(members: Sequence[Predictions], truth: Truth) -> tuple[tuple[ViewGain, ...], str]:
    """What each view is worth in the plain mean, or what would tell."""
    if all(len(member.logits) == 1 for member in members):
        return (), "predict with --tta or --views: these predictions have one view"
    try:
        return learn(members, truth, method="mean", repeats=1).view_gains, ""
    except TooLittleTruthError as err:
        return (), f"a larger truth: {err.message}"


def _agree(alone: Mapping[str, Blended], labels: LabelSpace) -> Agreement:
    answers = np.stack([answers_of(one, labels) for one in alone.values()])
    return Agreement(tuple(alone), np.stack([(answers == own).mean(axis=1) for own in answers]))


def _mix(truth: Truth, blended: Blended) -> Mix:
    count = partial(np.bincount, minlength=len(blended.labels))
    return Mix(tuple(count(truth.classes).tolist()), tuple(count(blended.classes).tolist()))


def _read_run(folder: Path) -> Run | None:
    """The record that `ens predict` keeps beside its predictions; None where there is none."""
    path = folder / RUN
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
        return Run(
            member=str(value["member"]),
            device=str(value["device"]),
            images=int(value["images"]),
            views=tuple(map(str, value["views"])),
            at_once=int(value.get("at_once") or value["batch"]),
            workers=int(value["workers"]),
            computed=int(value["computed"]),
            own=float(value["seconds"]["own"]),
            wall=float(value["seconds"]["wall"]),
            notices=tuple(Notice(notice["code"], notice["message"]) for notice in value["notices"]),
        )
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError, AssertionError) as err:
        raise PredictionError(
            "E514", f"{path} cannot be read: {err}", path=path, hint="remove the file: only the report reads it"
        ) from err


def verdict_of(report: Report) -> str:
    """What it all comes to, in a sentence."""
    choice, quality = report.choice, report.quality
    if choice is not None and choice.row is not None:
        row = choice.row
        gain = f"{row.gain:+.4f} ± {row.error:.4f} against the mean of probabilities"
        return f"{choice.method}: {choice.metric} {row.nested:.4f} on people it was not fitted to" + (
            f", {gain}" if row is not choice.table[0] else ", the mean of probabilities"
        )
    if quality is None:
        count = len(report.members)
        return f"{count} {'member' if count == 1 else 'members'}, {report.images:,} images, and no truth to judge by"
    found = f"Macro F1 {quality.scores.macro_f1.value:.4f}"
    scored = [(member.scores.macro_f1.value, member.name) for member in report.members if member.scores is not None]
    if len(scored) < 2:
        return found
    best, name = max(scored)
    lead = quality.scores.macro_f1.value - best
    return f"{found}: the blend is {abs(lead):.4f} {'below' if lead < 0 else 'above'} its best member, {name}"


def basis_of(report: Report) -> str:
    """What was scored and what was predicted."""
    if report.quality is None:
        return f"Ensemble report · {report.images:,} test images"
    found = report.quality.evaluation
    persons = "" if found.persons is None else f" of {found.persons:,} persons"
    kind = "out-of-fold" if report.out_of_fold else "test"
    more = f" · {report.images:,} test images" if report.out_of_fold else ""
    return f"Ensemble report · scored on {found.images:,} {kind} images{persons}{more}"
