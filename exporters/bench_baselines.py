"""The baselines of `ens bench`: plain inference with torch and with onnxruntime.

Both run one model after another over the images, as such scripts do, and decode the images again for each. They decode
and resize with the functions of `ens predict`, so that their predictions are the same; the benchmark checks that.

- torch on the CPU: a DataLoader with one worker per core, batches of 32, eager, float32, all cores.
- torch on CUDA: a DataLoader with 16 workers and pinned memory, batches of 128, fp16 autocast, channels_last and
  torch.compile; the last batch is padded, so that nothing is compiled twice.
- onnxruntime: default sessions (all cores, or the CUDA provider), the same batches; decode, run, flip, run, in turn.
  A fused file is run image by image: its images have any size, and its views are inside.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from checkpoints.loading.open_options import OpenOptions
from ensemble.arrays import Logits, Pixels
from ensemble.bench.agreement import MemberLogits
from ensemble.bench.contenders import BenchJob, JobInputs
from ensemble.bench.fused_contenders import read_fused_job
from ensemble.bench.process_meter import PassResult, PassTimer
from ensemble.card import Channels, ModelCard, Preprocess
from ensemble.errors import EnsError, enumerate_some
from ensemble.events import SILENT, Listener, Notice
from ensemble.files import sha256_file
from ensemble.fuse.fused_session import box_array
from ensemble.fuse.graph import BOXES, IMAGES, PLAIN_VIEW, PROBABILITIES
from ensemble.fuse.predict_fused import as_logits
from ensemble.images.decode import read_image
from ensemble.images.face_crop import prepare_image
from ensemble.runtime.machine import available_cores
from ensemble.runtime.model_file import read_model

if TYPE_CHECKING:
    import torch

BATCH, GPU_BATCH = 32, 128
GPU_WORKERS = 16


@dataclass(frozen=True, slots=True)
class PreparedImages:
    """The images as one model needs them, decoded on access: also a dataset for torch's DataLoader."""

    inputs: JobInputs
    preprocess: Preprocess
    count: int

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, row: int) -> Pixels:
        pixels = read_image(self.inputs.listing.paths[row]).pixels
        return prepare_image(pixels, self.preprocess, self.inputs.face(row)).copy()  # torch needs it writable


def onnxruntime_loop(job: BenchJob, timer: PassTimer) -> PassResult:
    """Decode a batch, run it, flip it, run it; then the next batch."""
    import onnxruntime

    inputs, cuda = job.read(), job.where.is_gpu
    provider: Any = "CPUExecutionProvider"
    if cuda:
        onnxruntime.preload_dlls()
        provider = ("CUDAExecutionProvider", {"device_id": job.where.index})
    sessions = [onnxruntime.InferenceSession(model.path, providers=[provider]) for model in inputs.models]
    batch = GPU_BATCH if cuda else BATCH

    def predict(count: int) -> MemberLogits:
        logits: dict[str, dict[str, Logits]] = {}
        for model, session in zip(inputs.models, sessions, strict=True):
            prepared = PreparedImages(inputs, model.card.preprocess, count)
            found: dict[str, list[Logits]] = {view: [] for view in job.views}
            for start in range(0, count, batch):
                images = np.stack([prepared[row] for row in range(start, min(start + batch, count))])
                found["identity"].append(session.run(["logits"], {"image": images})[0])
                if job.tta:
                    flipped = np.ascontiguousarray(images[:, :, ::-1])
                    found["hflip"].append(session.run(["logits"], {"image": flipped})[0])
            logits[model.card.member] = {view: np.concatenate(parts) for view, parts in found.items()}
        return logits

    return PassResult(_run_timed(predict, job, timer), batch, workers=1)


def fused_loop(job: BenchJob, timer: PassTimer) -> PassResult:
    """Decode an image, run the fused file on it; then the next image."""
    import onnxruntime

    inputs = read_fused_job(job)
    session = onnxruntime.InferenceSession(inputs.path, providers=["CPUExecutionProvider"])

    def predict(count: int) -> MemberLogits:
        rows = []
        for path, face in zip(inputs.listing.paths[:count], inputs.faces[:count], strict=True):
            feed: dict[str, Any] = {IMAGES: read_image(path).pixels[np.newaxis]}
            if inputs.card.takes_boxes:
                feed[BOXES] = box_array([face])
            rows.append(as_logits(session.run([PROBABILITIES], feed)[0][0], inputs.card.recipe.activation))
        return {inputs.path.stem: {PLAIN_VIEW: np.array(rows, dtype=np.float32)}}

    return PassResult(_run_timed(predict, job, timer), 1, workers=1)


@dataclass(frozen=True, slots=True)
class TorchLoop:
    """A DataLoader, timm networks, up to two views; ``checkpoints[member]`` are the weights of each model.

    ``options[member]`` are those that its checkpoint is opened with; without, it is opened by its card alone.
    """

    checkpoints: Mapping[str, Path]
    options: Mapping[str, OpenOptions] = field(default_factory=dict)

    def __call__(self, job: BenchJob, timer: PassTimer) -> PassResult:
        """Run one network after another over the images."""
        import torch
        from torch.utils.data import DataLoader

        inputs, cuda = job.read(), job.where.is_gpu
        device = torch.device("cuda", job.where.index) if cuda else torch.device("cpu")
        batch, workers = (GPU_BATCH, GPU_WORKERS) if cuda else (BATCH, available_cores())
        torch.set_num_threads(available_cores())  # torch's own default ignores the CPU quota of a container
        networks = {model.card.member: self._network(model.card, device) for model in inputs.models}

        @torch.inference_mode()
        def predict(count: int) -> MemberLogits:
            logits: dict[str, dict[str, Logits]] = {}
            for model in inputs.models:
                network = networks[model.card.member]
                prepared: Any = PreparedImages(inputs, model.card.preprocess, count)
                card = model.card
                mean, std = (torch.tensor(v, device=device).reshape(-1, 1, 1) for v in (card.mean, card.std))
                channels = card.preprocess.channels
                found: dict[str, list[torch.Tensor]] = {view: [] for view in job.views}
                for pixels in DataLoader(prepared, batch, num_workers=workers, pin_memory=cuda):
                    rows = len(pixels)
                    images = normalize(pad(pixels, batch) if cuda else pixels, mean, std, channels)
                    with torch.autocast(device.type, torch.float16, enabled=cuda):
                        found["identity"].append(network(images)[:rows])
                        if job.tta:
                            found["hflip"].append(network(torch.flip(images, [3]))[:rows])
                logits[model.card.member] = {v: torch.cat(parts).float().cpu().numpy() for v, parts in found.items()}
            return logits

        return PassResult(_run_timed(predict, job, timer), batch, workers)

    def _network(self, card: ModelCard, device: torch.device) -> Any:
        import torch

        network = _reopen(self.checkpoints[card.member], card, self.options.get(card.member))
        if device.type == "cpu":
            return network
        placed: Any = network.to(device)
        return torch.compile(placed.to(memory_format=torch.channels_last))


@dataclass(frozen=True, slots=True)
class FoundWeights:
    """The checkpoint of each member; ``problem`` says why there is none, and is empty otherwise.

    ``options`` are those that members need which cannot be opened by their cards alone.
    """

    checkpoints: Mapping[str, Path]
    problem: str = ""
    options: Mapping[str, OpenOptions] = field(default_factory=dict)


def find_weights(
    models: Sequence[Path], paths: Sequence[Path], *, options: OpenOptions | None = None, listener: Listener = SILENT
) -> FoundWeights:
    """Find, by SHA-256, the checkpoint that each model was exported from, in files and folders.

    ``options`` open the checkpoints that they fit; all others are opened by their cards alone, which a notice says.

    Raises:
        EnsError: as `read_model`.
    """
    try:
        installed = all(importlib.util.find_spec(name) is not None for name in ("torch", "timm"))
    except ModuleNotFoundError:  # from an import hook that hides them
        installed = False
    if not installed:
        return FoundWeights({}, "torch or timm is not installed")
    if not paths:
        return FoundWeights({}, "it needs --checkpoints")
    files = [
        file for path in paths for file in (sorted(path.rglob("*")) if path.is_dir() else [path]) if file.is_file()
    ]
    by_sha256 = {sha256_file(file): file for file in files}
    cards = [read_model(path).card for path in models]
    missing = [card.member for card in cards if card.checkpoint_sha256 not in by_sha256]
    if missing:
        return FoundWeights({}, f"--checkpoints does not contain the weights of {enumerate_some(missing)}")
    found = {card.member: by_sha256[card.checkpoint_sha256] for card in cards}
    opened_with: dict[str, OpenOptions] = {}
    for card in cards:
        unfit = None if options is None else _why_unfit(found[card.member], card, options)
        if options is not None and unfit is None:
            opened_with[card.member] = options
            continue
        if (reason := _why_unfit(found[card.member], card, None)) is not None:
            given = "from its card alone" if unfit is None else "with the options that were given"
            message = f"the checkpoint of {card.member} cannot be opened {given}: {unfit or reason}"
            return FoundWeights({}, message)
        if unfit is not None:
            message = f"the checkpoint of {card.member} is opened by its card alone, without the options: {unfit}"
            listener.notice(Notice("W622", message, found[card.member]))
    return FoundWeights(found, options=opened_with)


def _why_unfit(path: Path, card: ModelCard, options: OpenOptions | None) -> str | None:
    """Return why a checkpoint does not open as the network of a card; None if it does."""
    try:
        _reopen(path, card, options)
    except (EnsError, RuntimeError) as err:  # such as a head that --head-layers named: the card does not have it
        return err.message if isinstance(err, EnsError) else str(err).splitlines()[0]
    return None


def _reopen(path: Path, card: ModelCard, options: OpenOptions | None) -> Any:
    """Return the network of a card from its checkpoint, which may need options that the card does not have."""
    from checkpoints.loading.open import build_model, open_checkpoint

    given = options or OpenOptions()
    checkpoint = open_checkpoint(
        path,
        arch=card.arch,
        arch_options=given.arch_options,
        weights=given.weights or card.weights,
        head=replace(given.head, labels=card.labels),
    )
    if checkpoint.num_classes != len(card.labels):
        raise RuntimeError(f"its head has {checkpoint.num_classes} outputs, not the {len(card.labels)} of the card")
    return build_model(checkpoint)


def normalize(pixels: torch.Tensor, mean: torch.Tensor, std: torch.Tensor, channels: Channels = "rgb") -> torch.Tensor:
    """Convert ``(B, H, W, 3)`` uint8 to normalized ``(B, planes, H, W)`` float32 on the device of ``mean``.

    The result is contiguous on the CPU and in channels_last elsewhere.
    """
    planes = pixels.to(mean.device, non_blocking=True).permute(0, 3, 1, 2)
    if mean.device.type == "cpu":
        planes = planes.contiguous()  # as from torchvision's ToTensor
    if channels != "rgb":
        from checkpoints.loading.channels import network_channels

        planes = network_channels(planes, channels)
    return planes.float().div_(255).sub_(mean).div_(std)


def pad(pixels: torch.Tensor, batch: int) -> torch.Tensor:
    """Pad the last batch with its last image, since compiled code and cuDNN are fastest with one shape."""
    if len(pixels) == batch:
        return pixels  # stays in pinned memory, which a copy would not
    import torch

    return torch.cat([pixels, pixels[-1:].expand(batch - len(pixels), -1, -1, -1)])


def _run_timed(predict: Callable[[int], MemberLogits], job: BenchJob, timer: PassTimer) -> MemberLogits:
    """Warm up, then time the prediction of all images; ``predict`` takes the number of images."""
    if job.warm_up:
        predict(job.warm_up)
    timer.start()
    logits = predict(len(job.ids))
    timer.stop()
    return logits
