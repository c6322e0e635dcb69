"""Run the whole pipeline on a toy contest, from drawn faces to a scored submission."""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch

from checkpoints.data.folds import make_folds
from checkpoints.data.mask_contest import read_contest
from checkpoints.loading.open import open_checkpoint
from checkpoints.training.job import TrainJob
from checkpoints.training.settings import TrainSettings
from checkpoints.training.train_fold import train_fold
from ensemble.analysis.evaluate import evaluate
from ensemble.analysis.metric_estimates import Estimate
from ensemble.blend.blend import blend
from ensemble.blend.recipe import make_recipe
from ensemble.card import Preprocess
from ensemble.events import SILENT, Listener
from ensemble.files import write_atomic
from ensemble.images.views import parse_views
from ensemble.labels import MASK18
from ensemble.predict.options import RunOptions
from ensemble.predict.predict import predict
from ensemble.predictions.dataset import read_predictions
from ensemble.predictions.truth import read_truth
from ensemble.submission.lint import check_submission, invalid_submission
from ensemble.submission.recognize import read_sheet
from ensemble.submission.sheet import Submission
from ensemble.submission.write import write_submission
from ensemble.text.text_table import render_columns
from exporters.demo.contest import draw_contest
from exporters.export import export

SEED = 18


@dataclass(frozen=True, slots=True)
class DemoMember:
    """A member's name and training settings."""

    name: str
    settings: TrainSettings


_RESNET = TrainSettings(
    "test_resnet",
    Preprocess((56, 56)),
    epochs=8,
    learning_rate=4e-3,
    batch=16,
    label_smoothing=0.1,
    class_weights="isns",
    augment="light",
    schedule="onecycle",
    warm_up=0.15,
)
_EFFICIENTNET = replace(
    _RESNET, arch="test_efficientnet", preprocess=Preprocess((64, 64)), epochs=6, learning_rate=1e-2
)
MEMBERS = (DemoMember("resnet", _RESNET), DemoMember("efficientnet", _EFFICIENTNET))


@dataclass(frozen=True, slots=True)
class DemoRow:
    """A row of the table: the scores of one member from some views, and the seconds that it took."""

    member: str
    views: str
    macro_f1: Estimate
    accuracy: Estimate
    seconds: float


@dataclass(frozen=True, slots=True)
class Demo:
    """The files that the demo wrote to ``folder``, and its table."""

    folder: Path
    submission: Path
    images: int
    rows: tuple[DemoRow, ...]
    seconds: float

    def as_dict(self) -> dict[str, object]:
        """Return JSON-ready values."""
        return asdict(self) | {"folder": str(self.folder), "submission": str(self.submission)}

    def render(self) -> str:
        """Return the table as text."""
        rows = [(r.member, r.views, str(r.macro_f1), r.accuracy.value, f"{r.seconds:.0f}") for r in self.rows]
        header = ("member", "views", "macro F1 [95 %]", "accuracy", "seconds")
        return f"{render_columns(header, rows)}\n{self.images:,} images, {self.seconds:.0f} s in all\n{self.submission}"


def demo(folder: Path, *, members: tuple[DemoMember, ...] = MEMBERS, listener: Listener = SILENT) -> Demo:
    """Draw the contest, train each member on four fifths of its people, export, predict with TTA, blend and score.

    Everything runs offline on the CPU and writes to ``folder`` only; a second run writes the same submission.

    Raises:
        FileError: E701 or E702 when the folder cannot be written.
        PredictionError: E520 when the submission has faults.
    """
    began = time.perf_counter()
    # networks this small gain nothing from a second thread, and are ten times slower when the cores are busy
    torch.set_num_threads(1)
    contest = draw_contest(folder, listener=listener)
    rows = read_contest(contest.train)
    folds = make_folds(rows, folds=5, seed=SEED)
    seconds: dict[str, float] = {}
    models = []
    for number, member in enumerate(members):
        job = TrainJob(rows, folds, member.name, member.settings, folder / "checkpoints", seed=SEED)
        trained = train_fold(job, number, listener=listener)
        exported = export(open_checkpoint(trained.path, listener=listener), folder / "models", listener=listener)
        models.append(exported.path)
        seconds[exported.card.member] = trained.seconds + exported.seconds
    sample = read_sheet(contest.info, MASK18)
    predicted = predict(
        models,
        contest.eval_images,
        folder / "preds",
        views=parse_views("hflip"),
        ids=sample.ids,
        options=RunOptions(device="cpu", fresh=True, listener=listener),
    )
    for run in predicted.members:
        seconds[run.member] += run.seconds
    found = [read_predictions(run.folder) for run in predicted.members]
    recipe = make_recipe(found)
    blended = blend(found, recipe, ids=sample.ids, listener=listener)
    submission = write_submission(
        folder / "submission.csv",
        Submission(blended.ids, blended.classes, blended.labels, blended.probabilities),
        sheet=sample,
        listener=listener,
    )
    write_atomic(folder / "blend.json", recipe.to_json().encode())
    faults = check_submission(submission, sample, MASK18, listener=listener)
    if faults:
        raise invalid_submission(submission, faults)
    truth = read_truth(contest.truth, MASK18)
    table = [
        DemoRow(member.member, scores.name, scores.macro_f1, scores.accuracy, seconds[member.member])
        for member in found
        for scores in evaluate(member, truth).scores
    ]
    (score,) = evaluate(blended, truth).scores
    spent = time.perf_counter() - began
    table.append(DemoRow("blend", "mean of all", score.macro_f1, score.accuracy, spent))
    return Demo(folder, submission, len(sample.ids), tuple(table), spent)
