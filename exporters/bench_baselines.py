"""The loops that `ens bench` compares with: what a good engineer writes in an hour, with torch or with onnxruntime.

Both take one model after another over the images, as such scripts do, and decode them anew for each. They read and
resize with our own functions, so that they answer exactly what `ens predict` answers; the benchmark checks that.

- torch on the CPU: a DataLoader with a worker a core, batches of 32, eager, float32, all cores.
- torch on CUDA: a DataLoader with 16 workers and pinned memory, batches of 128, fp16 autocast, channels_last and
  torch.compile, one shape for all batches so that nothing is compiled twice.
- onnxruntime: default sessions (all cores, or the CUDA provider), the same batches; decode, run, flip, run, in turn.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ensemble.arrays import Logits, Pixels
from ensemble.bench.contenders import Inputs, Job
from ensemble.bench.process_meter import Clock, Outcome
from ensemble.card import ModelCard, Preprocess
from ensemble.images.decode import read_image
from ensemble.images.face_crop import prepare_image
from ensemble.runtime.machine import available_cores

if TYPE_CHECKING:
    import torch

BATCH, GPU_BATCH = 32, 128
GPU_WORKERS = 16

LogitsByMember = dict[str, dict[str, Logits]]


@dataclass(frozen=True, slots=True)
class Photos:
    """The images as one model takes them, read when asked for: a dataset for torch's DataLoader too."""

    inputs: Inputs
    preprocess: Preprocess
    count: int

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, row: int) -> Pixels:
        pixels = read_image(self.inputs.listing.paths[row]).pixels
        return prepare_image(pixels, self.preprocess, self.inputs.face(row)).copy()  # torch wants it writable


def onnxruntime_loop(job: Job, clock: Clock) -> Outcome:
    """Decode a batch, run it, flip it, run it; the next batch."""
    import onnxruntime

    inputs, cuda = job.read(), job.where.is_gpu
    provider: Any = "CPUExecutionProvider"
    if cuda:
        onnxruntime.preload_dlls()
        provider = ("CUDAExecutionProvider", {"device_id": job.where.index})
    sessions = [onnxruntime.InferenceSession(model.path, providers=[provider]) for model in inputs.models]
    batch = GPU_BATCH if cuda else BATCH

    def run(count: int) -> LogitsByMember:
        answers: LogitsByMember = {}
        for model, session in zip(inputs.models, sessions, strict=True):
            photos = Photos(inputs, model.card.preprocess, count)
            found: dict[str, list[Logits]] = {view: [] for view in job.views}
            for start in range(0, count, batch):
                images = np.stack([photos[row] for row in range(start, min(start + batch, count))])
                found["identity"].append(session.run(["logits"], {"image": images})[0])
                if job.tta:
                    flipped = np.ascontiguousarray(images[:, :, ::-1])
                    found["hflip"].append(session.run(["logits"], {"image": flipped})[0])
            answers[model.card.member] = {view: np.concatenate(parts) for view, parts in found.items()}
        return answers

    if job.warm_up:
        run(job.warm_up)
    clock.start()
    answers = run(len(job.ids))
    clock.stop()
    return Outcome(answers, batch, workers=1)


@dataclass(frozen=True, slots=True)
class TorchLoop:
    """A DataLoader, a timm network, two views; ``checkpoints[member]`` are the weights that its model came from."""

    checkpoints: Mapping[str, Path]

    def __call__(self, job: Job, clock: Clock) -> Outcome:
        """Run one network after another over the images."""
        import torch
        from torch.utils.data import DataLoader

        inputs, cuda = job.read(), job.where.is_gpu
        device = torch.device("cuda", job.where.index) if cuda else torch.device("cpu")
        batch, workers = (GPU_BATCH, GPU_WORKERS) if cuda else (BATCH, available_cores())
        torch.set_num_threads(available_cores())  # its own count does not know a container's quota
        networks = {model.card.member: self._network(model.card, device) for model in inputs.models}

        @torch.inference_mode()
        def run(count: int) -> LogitsByMember:
            answers: LogitsByMember = {}
            for model in inputs.models:
                network = networks[model.card.member]
                photos: Any = Photos(inputs, model.card.preprocess, count)
                mean, std = (torch.tensor(v, device=device).reshape(3, 1, 1) for v in (model.card.mean, model.card.std))
                found: dict[str, list[torch.Tensor]] = {view: [] for view in job.views}
                for pixels in DataLoader(photos, batch, num_workers=workers, pin_memory=cuda):
                    rows = len(pixels)
                    images = normalise(fill(pixels, batch) if cuda else pixels, mean, std)
                    with torch.autocast(device.type, torch.float16, enabled=cuda):
                        found["identity"].append(network(images)[:rows])
                        if job.tta:
                            found["hflip"].append(network(torch.flip(images, [3]))[:rows])
                answers[model.card.member] = {v: torch.cat(parts).float().cpu().numpy() for v, parts in found.items()}
            return answers

        if job.warm_up:
            run(job.warm_up)
        clock.start()
        answers = run(len(job.ids))
        clock.stop()
        return Outcome(answers, batch, workers)

    def _network(self, card: ModelCard, device: torch.device) -> Any:
        import torch

        from checkpoints.loading.open import build_model, open_checkpoint

        network = build_model(open_checkpoint(self.checkpoints[card.member], arch=card.arch, weights=card.weights))
        if device.type == "cpu":
            return network
        placed: Any = network.to(device)
        return torch.compile(placed.to(memory_format=torch.channels_last))


def normalise(pixels: torch.Tensor, mean: torch.Tensor, std: torch.Tensor) -> torch.Tensor:
    """``(B, H, W, 3)`` uint8 to ``(B, 3, H, W)`` float32, where ``mean`` is; planes on the CPU, else channels last."""
    planes = pixels.to(mean.device, non_blocking=True).permute(0, 3, 1, 2)
    if mean.device.type == "cpu":
        planes = planes.contiguous()  # as torchvision's ToTensor gives them
    return planes.float().div_(255).sub_(mean).div_(std)


def fill(pixels: torch.Tensor, batch: int) -> torch.Tensor:
    """The last batch filled up with its last image: compiled code and cuDNN keep to one shape."""
    if len(pixels) == batch:
        return pixels  # in pinned memory, where a copy would not be
    import torch

    return torch.cat([pixels, pixels[-1:].expand(batch - len(pixels), -1, -1, -1)])
