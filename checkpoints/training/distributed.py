"""Several processes that train one model, on GPUs or machines, through Hugging Face accelerate."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, TypeVar

import torch

from checkpoints.training.sampler import Order
from ensemble.errors import DeviceError, ModelError, OptionError

T = TypeVar("T")


class Team:
    """The ``size`` processes of a training; this one has the ``number``, and number 0 is the main one, which writes.

    All of them read the images and draw the same order of them. Each computes its share of every batch, and all know
    the whole batch's loss. MixUp and CutMix mix the images of a share with one another. Made without an accelerator,
    it is a process by itself, for which nothing here does anything.
    """

    def __init__(self, accelerator: Any = None) -> None:
        self._accelerator = accelerator
        self.number: int = 0 if accelerator is None else accelerator.process_index
        self.size: int = 1 if accelerator is None else accelerator.num_processes
        self.is_main = self.number == 0

    def share(self, count: int) -> slice:
        """This process's part of ``count`` things in a row."""
        return slice(self.number * count // self.size, (self.number + 1) * count // self.size)

    def cut(self, batch: Order) -> Order:
        """This process's part of a batch."""
        return batch[self.share(len(batch))]

    def synchronise(self, model: torch.nn.Module) -> torch.nn.Module:
        """The model with batch statistics over the whole batch, which torch can compute on GPUs only.

        On the CPU a share has its own, and those that are kept are the main process's.
        """
        if self._accelerator is None or self._accelerator.device.type != "cuda":
            return model
        from timm.layers import norm_act

        convert: Any = norm_act.convert_sync_batchnorm  # torch's own loses the activations in timm's norms
        synchronised: torch.nn.Module = convert(model)
        return synchronised

    def prepare(self, model: torch.nn.Module) -> torch.nn.Module:
        """What to call in the model's place, for gradients that are averaged over the processes.

        What is frozen must be so by now. The parameters become those of the main process.
        """
        if self._accelerator is None:
            return model
        self._accelerator.free_memory()  # else it holds on to every fold's model
        prepared: torch.nn.Module = self._accelerator.prepare(model)
        return prepared

    def averaging(self, prepared: torch.nn.Module, *, now: bool) -> AbstractContextManager[None]:
        """Around a batch, forward and back: average the gradients after it, or with those of a later one."""
        if self._accelerator is None or now:
            return nullcontext()
        held: AbstractContextManager[None] = self._accelerator.no_sync(prepared)
        return held

    def whole(self, share: torch.Tensor) -> torch.Tensor:
        """The rows of all processes' equal shares; gradients flow to one's own.

        The gradient of the whole batch's loss is then the sum of what the processes have, for any loss. They average
        it, so each has to take it ``size`` times.
        """
        if self._accelerator is None:
            return share
        rows = list(self._accelerator.gather(share.detach()).split(len(share)))
        rows[self.number] = share
        return torch.cat(rows)

    def joined(self, share: list[T]) -> list[T]:
        """All processes' lists as one."""
        if self._accelerator is None:
            return share
        from accelerate.utils import gather_object

        found: list[T] = gather_object(share)
        return found

    def told(self, value: T) -> T:
        """What the main process says."""
        if self._accelerator is None:
            return value
        from accelerate.utils import broadcast_object_list

        found: T = broadcast_object_list([value])[0]
        return found

    def spread_statistics(self, model: torch.nn.Module) -> None:
        """Give all processes the main one's batch statistics."""
        if self._accelerator is not None:
            from accelerate.utils import broadcast

            for buffer in model.buffers():
                buffer.copy_(broadcast(buffer))

    def require_same(self, value: object, what: str) -> None:
        """Compare a value with the main process's.

        Raises:
            ModelError: E446 when it is another.
        """
        if self.told(value) != value:
            raise ModelError("E446", f"process {self.number} of the training does not see the same {what}")

    @contextmanager
    def main_first(self) -> Iterator[None]:
        """Around what the main process does before the others do it."""
        if self._accelerator is None:
            yield
            return
        with self._accelerator.main_process_first():
            yield

    @contextmanager
    def watched(self) -> Iterator[None]:
        """Around what the processes do together.

        Raises:
            ModelError: E447 when another process has ended.
        """
        try:
            yield
        except RuntimeError as err:
            lost = isinstance(err, torch.distributed.DistError) or "gloo" in str(err)
            if self._accelerator is None or not lost:
                raise
            raise ModelError(
                "E447", f"process {self.number} lost the others: {str(err).partition(chr(10))[0]}"
            ) from err

    def end(self) -> None:
        """Wait for the others, and part.

        Raises:
            ModelError: E447 when another process has ended.
        """
        if self._accelerator is not None:
            with self.watched():
                self._accelerator.wait_for_everyone()
            self._accelerator.end_training()


ALONE = Team()


def join(device: str) -> tuple[Team, str]:
    """The processes that `accelerate launch` or torchrun started, this being one, and the device that it has.

    Raises:
        OptionError: E204 when a device was asked for, as each process has its own, or when models are to be divided.
        DeviceError: E601 when there are more processes on this machine than GPUs.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) < 2 or "LOCAL_RANK" not in os.environ:
        return ALONE, device
    from accelerate import Accelerator
    from accelerate.utils import DistributedType

    if device != "auto":
        raise OptionError("E204", f"--device {device}: of several processes each takes the GPU of its number")
    gpus = 0 if os.environ.get("ACCELERATE_USE_CPU") == "true" else torch.cuda.device_count()
    if gpus and int(os.environ["LOCAL_RANK"]) >= gpus:
        raise DeviceError("E601", f"there are more processes than the {gpus} GPUs", hint="start one for each GPU")
    # the precision is our own setting, whatever accelerate's configuration says
    accelerator = Accelerator(cpu=gpus == 0, mixed_precision="no")
    if accelerator.distributed_type not in {DistributedType.MULTI_GPU, DistributedType.MULTI_CPU}:
        raise OptionError(
            "E204",
            f"ens train divides batches and no models, and accelerate was set to {accelerator.distributed_type}",
            hint="accelerate launch --multi_gpu",
        )
    return Team(accelerator), str(accelerator.device) if gpus else "cpu"
