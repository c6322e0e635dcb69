"""Train one fold of a member, and write its weights with their card."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from checkpoints.loading.architectures import resolve_architecture
from checkpoints.loading.open import save_checkpoint
from checkpoints.training.average_choice import average_weights
from checkpoints.training.batches import LabeledImages
from checkpoints.training.distillation import with_teacher
from checkpoints.training.distributed import SINGLE_PROCESS, DistributedContext
from checkpoints.training.epochs import FoldData, TrainingFiles, train_epochs
from checkpoints.training.init_weights import init_model
from checkpoints.training.job import JobImages, TrainJob, load_job_images
from checkpoints.training.loggers import ExperimentLogger
from checkpoints.training.settings import settings_dict
from ensemble.card import ModelCard
from ensemble.errors import DeviceError
from ensemble.events import SILENT, Listener
from ensemble.predictions.dataset import hash_ids


@dataclass(frozen=True, slots=True)
class TrainedFold:
    """The weights' file and card; ``score`` is the `HoldoutScores.main` after the epoch that was kept.

    ``mean_score`` is that of the mean of the weights, None without ``swa``; ``is_mean`` where it replaced the epoch.
    """

    path: Path
    card: ModelCard
    score: float
    epoch: int
    seconds: float
    mean_score: float | None = None
    is_mean: bool = False


def train_fold(
    job: TrainJob,
    fold: int,
    images: JobImages | None = None,
    *,
    resumable: bool = False,
    distributed: DistributedContext = SINGLE_PROCESS,
    listener: Listener = SILENT,
) -> TrainedFold:
    """Train on all images but those that ``fold`` holds out, and write ``fold<k>.safetensors`` in the member's folder.

    ``images`` are those of `load_job_images`, which are decoded here when they are not given. On the CPU the same job
    and number of torch threads give the same bytes. A ``resumable`` training writes its state after every epoch, and
    in one process every ten seconds too. It resumes from the state of the same job; the caller removes the files
    `TrainJob.state_path` and `TrainJob.step_state_path`.

    Raises:
        DataError: the codes of `load_job_images`, when images cannot be read.
        DeviceError: E601 when a GPU was asked for and torch has none.
        ModelError: E440 when the loss is not finite; the codes of `init_model`.
        OptionError: E204 when timm does not know the architecture, or a setting is not understood.
    """
    start = time.perf_counter()
    arch, device = resolve_architecture(job.settings.arch), distributed.device
    if device != "cpu" and not torch.cuda.is_available():
        raise DeviceError("E601", f"{device} was asked for, but torch {torch.__version__} has no GPU here")
    images = images or load_job_images(job, listener=listener)
    held_out = job.folds.holdout(job.rows, fold)
    data = FoldData(
        name=job.fold_name(fold),
        training=_training_part(job, fold, images),
        holdout=images.labeled[held_out],
        seed=job.seed,
        teacher=None if job.teacher is None else job.teacher.how,
    )
    files = TrainingFiles(
        log=job.folder / f"fold{fold}.csv",
        state=job.state_path(fold),
        step_state=job.step_state_path(fold),
        fingerprint=job.fingerprint() if resumable else None,
    )
    # the caller's random state is left as it was
    with torch.random.fork_rng(devices=[] if device == "cpu" else [device]):
        torch.manual_seed(job.seed)
        model = init_model(arch, job.settings, listener=listener).to(device)
        logger = ExperimentLogger(
            job.logger if distributed.is_main else None,
            job.folder,
            data.name,
            settings_dict(job.settings),
            listener=listener,
        )
        trained = train_epochs(
            model, data, job.settings, files=files, logger=logger, distributed=distributed, listener=listener
        )
        logger.close()
    card, kept, mean = _make_card(job, fold, arch, images), trained.kept, trained.mean
    path = job.folder / f"fold{fold}.safetensors"
    if distributed.is_main:
        if mean is not None:
            save_checkpoint(average_weights(job, fold), mean.weights, card)
        save_checkpoint(path, kept.weights, card)
    mean_score = None if mean is None else mean.score
    return TrainedFold(path, card, kept.score, kept.number, time.perf_counter() - start, mean_score)


def _training_part(job: TrainJob, fold: int, images: JobImages) -> LabeledImages:
    """Return the images that a fold is trained on, with the probabilities of a teacher if there is one."""
    kept = ~job.folds.holdout(job.rows, fold)
    training = images.labeled[kept]
    training = training if images.pseudo is None else training.concatenate(images.pseudo)
    if job.teacher is None:
        return training
    probabilities = job.teacher.of_fold(fold, kept)
    return with_teacher(training, probabilities, job.teacher.how, activation=job.settings.activation)


def _make_card(job: TrainJob, fold: int, arch: str, images: JobImages) -> ModelCard:
    settings = job.settings
    held_out = job.folds.holdout(job.rows, fold)
    labels = images.labeled.labels
    counts = np.bincount(labels, minlength=len(settings.labels)) if labels.ndim == 1 else labels.sum(axis=0)
    return ModelCard(
        member=job.fold_name(fold),
        group=job.member,
        fold=fold,
        arch=arch,
        labels=settings.labels,
        preprocess=settings.preprocess,
        mean=settings.mean,
        std=settings.std,
        checkpoint_sha256="",  # a file cannot contain its own hash; the export fills it in
        holdout_sha256=hash_ids(row.id for row, held in zip(job.rows, held_out, strict=True) if held),
        head=settings.head,
        activation=settings.activation,
        class_counts=tuple(counts.tolist()),
        repeat=job.repeat,
        ordinal=settings.ordinal,
    )
