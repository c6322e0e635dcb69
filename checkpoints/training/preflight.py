"""Check everything that can be wrong with a training before an image is decoded or a file is written."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch

from checkpoints.loading.architectures import resolve_architecture
from checkpoints.training.augment import parse_policy
from checkpoints.training.distributed import DistributedContext
from checkpoints.training.init_weights import freeze, init_model
from checkpoints.training.job import TrainJob
from checkpoints.training.make_loss import require_valid_loss
from checkpoints.training.optimizer import make_optimizer
from checkpoints.training.settings import TrainSettings
from ensemble.card import ModelCard
from ensemble.errors import FileError, OptionError, cut_text
from ensemble.events import SILENT


def check_settings(settings: TrainSettings) -> None:
    """Check the settings that need no data: architecture, file of initial weights, augmentation.

    Raises:
        OptionError: E204 when timm does not know the architecture, or the augmentation is not valid.
        FileError: E707 when there is no file of initial weights.
    """
    resolve_architecture(settings.arch)
    if settings.init is not None and not settings.init.exists():
        raise FileError("E707", f"--init {settings.init} does not exist", path=settings.init)
    parse_policy(settings.augment)


def check_job(job: TrainJob, *, distributed: DistributedContext) -> None:
    """Build the network of a job with its initial weights, predict one image, and check every other setting.

    Raises:
        OptionError: E204 when a setting is not understood, or does not fit the architecture, the classes or the number
            of processes.
        ModelError: the codes of `init_model`.
        FileError: E707 when there is no file of initial weights.
    """
    settings, processes = job.settings, distributed.world_size
    require_valid_loss(settings)
    empty = sorted(set(range(job.folds.count)) - {job.folds.of_person[row.person] for row in job.rows})
    if empty:
        message = f"no training image is in fold {', '.join(map(str, empty))} of {job.folds.count}"
        raise OptionError("E204", message, hint="give --folds a number, or a file whose folds all have images")
    if not settings.preprocess.kept and max((*settings.mean, *settings.std)) > 1:
        hint = "settings.fit_channels divides values for channels in 0..255"
        raise OptionError("E204", "mean and std of a training are those of channels in 0..1", hint=hint)
    if settings.batch % processes:
        raise OptionError("E204", f"--batch must be a multiple of the {processes} processes, got {settings.batch}")
    if settings.preprocess.face is not None and job.boxes is None:
        raise OptionError("E206", "training on face crops needs the face boxes of all images")
    check_settings(settings)
    arch = resolve_architecture(settings.arch)
    with torch.random.fork_rng(devices=[]):  # the caller's random state is left as it was
        model = init_model(arch, settings, listener=SILENT)
    freeze(model, settings.freeze)
    if settings.layer_decay is not None and getattr(model, "group_matcher", None) is None:
        raise OptionError("E204", f"--layer-decay: timm defines no layer groups for {arch}")
    make_optimizer(
        model,
        settings.optimizer,
        learning_rate=settings.learning_rate,
        weight_decay=settings.weight_decay,
        layer_decay=settings.layer_decay,
    )
    ModelCard(
        member=job.fold_name(job.folds.count - 1),
        group=job.member,
        arch=arch,
        labels=settings.labels,
        preprocess=settings.preprocess,
        mean=settings.mean,
        std=settings.std,
        checkpoint_sha256="",
        head=settings.head,
        activation=settings.activation,
        ordinal=settings.ordinal,
    )
    _require_size(model, replace(settings, arch=arch))


@torch.no_grad()
def _require_size(model: torch.nn.Module, settings: TrainSettings) -> None:
    height, width = settings.preprocess.size
    network: Any = model
    try:
        network.eval()(torch.zeros(1, settings.preprocess.planes, height, width))
    except (AssertionError, RuntimeError, ValueError, IndexError) as err:
        # a wrong size raises any of these, depending on the first layer that it does not fit
        reason = cut_text((str(err).strip() or type(err).__name__).splitlines()[0], 300)
        message = f"{settings.arch} does not take images of {height}x{width} px: {reason}"
        raise OptionError("E204", message, hint="give another --size") from err
