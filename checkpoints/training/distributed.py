"""Several processes that train one model, on several GPUs or machines, through Hugging Face accelerate."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, TypeVar

import torch

from checkpoints.torch_device import choose_torch_device
from ensemble.errors import DeviceError, ModelError, OptionError
from ensemble.events import SILENT, Listener

T = TypeVar("T")


class DistributedContext:
    """One of ``world_size`` processes; the process of rank 0 is the main one, which writes the files.

    All processes read the images and draw the same order. Each computes its shard of every batch, and all of them have
    the loss of the whole batch. MixUp and CutMix mix the images of one shard. Without an accelerator the context is
    that of a single process, in which every method returns its argument or does nothing.
    """

    def __init__(self, accelerator: Any = None, *, device: str = "cpu") -> None:
        self._accelerator = accelerator
        self.device = device
        self.rank: int = 0 if accelerator is None else accelerator.process_index
        self.world_size: int = 1 if accelerator is None else accelerator.num_processes
        self.is_main = self.rank == 0

    def shard(self, count: int) -> slice:
        """Return this process's part of ``count`` consecutive items."""
        return slice(self.rank * count // self.world_size, (self.rank + 1) * count // self.world_size)

    def convert_batch_norm(self, model: torch.nn.Module) -> torch.nn.Module:
        """Return the model with batch statistics over the whole batch, which torch computes on GPUs only.

        On the CPU the statistics are those of each shard, and the main process's are kept.
        """
        if self._accelerator is None or self._accelerator.device.type != "cuda":
            return model
        from timm.layers import norm_act

        convert: Any = norm_act.convert_sync_batchnorm  # torch's own drops the activations of timm's norm layers
        converted: torch.nn.Module = convert(model)
        return converted

    def prepare(self, model: torch.nn.Module) -> torch.nn.Module:
        """Return the wrapper to call instead of the model, which averages the gradients over the processes.

        Freeze parameters before. The main process's parameters are copied to all others.
        """
        if self._accelerator is None:
            return model
        self._accelerator.free_memory()  # otherwise it holds on to the model of every fold
        prepared: torch.nn.Module = self._accelerator.prepare(model)
        return prepared

    def gradient_sync(self, prepared: torch.nn.Module, *, enabled: bool) -> AbstractContextManager[None]:
        """Return a context for one batch: average the gradients after it, or accumulate them until a later batch."""
        if self._accelerator is None or enabled:
            return nullcontext()
        context: AbstractContextManager[None] = self._accelerator.no_sync(prepared)
        return context

    def gather_with_grad(self, shard: torch.Tensor) -> torch.Tensor:
        """Return the rows of all processes' equal shards; gradients flow to this process's own.

        For any loss, the gradient of the whole batch is the sum of the processes' gradients. As these are averaged,
        each process has to multiply its loss by ``world_size``.
        """
        if self._accelerator is None:
            return shard
        rows = list(self._accelerator.gather(shard.detach()).split(len(shard)))
        rows[self.rank] = shard
        return torch.cat(rows)

    def gather_objects(self, shard: list[T]) -> list[T]:
        """Return the lists of all processes as one."""
        if self._accelerator is None:
            return shard
        from accelerate.utils import gather_object

        gathered: list[T] = gather_object(shard)
        return gathered

    def broadcast(self, value: T) -> T:
        """Return the main process's value."""
        if self._accelerator is None:
            return value
        from accelerate.utils import broadcast_object_list

        received: T = broadcast_object_list([value])[0]
        return received

    def broadcast_buffers(self, model: torch.nn.Module) -> None:
        """Copy the main process's batch statistics to all processes."""
        if self._accelerator is not None:
            from accelerate.utils import broadcast

            for buffer in model.buffers():
                buffer.copy_(broadcast(buffer))

    def require_same(self, value: object, what: str) -> None:
        """Compare a value with the main process's.

        Raises:
            ModelError: E446 when they differ.
        """
        if self.broadcast(value) != value:
            raise ModelError("E446", f"process {self.rank} of the training does not see the same {what}")

    @contextmanager
    def detecting_lost_processes(self) -> Iterator[None]:
        """Translate torch's errors in a block with communication.

        Raises:
            ModelError: E447 when another process has ended.
        """
        try:
            yield
        except RuntimeError as err:
            is_lost = isinstance(err, torch.distributed.DistError) or "gloo" in str(err)
            if self._accelerator is None or not is_lost:
                raise
            message = f"process {self.rank} lost the others: {str(err).partition(chr(10))[0]}"
            raise ModelError("E447", message) from err

    def end(self) -> None:
        """Wait for the other processes, and leave the group.

        Raises:
            ModelError: E447 when another process has ended.
        """
        if self._accelerator is not None:
            with self.detecting_lost_processes():
                self._accelerator.wait_for_everyone()
            self._accelerator.end_training()


SINGLE_PROCESS = DistributedContext()


def init_distributed(device: str, *, listener: Listener = SILENT) -> DistributedContext:
    """Return the context of this process, started by `accelerate launch`, torchrun or neither, and its device.

    Without a launcher, ``auto`` is the GPU if torch has one, else the CPU with a notice.

    Raises:
        OptionError: E203 when the device is unknown, E204 when one was given to several processes, or accelerate is
            set up to split models.
        DeviceError: E601 when torch does not have the device, or there are more processes than GPUs on this machine.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) < 2 or "LOCAL_RANK" not in os.environ:
        return DistributedContext(device=str(choose_torch_device(device, listener=listener)))
    from accelerate import Accelerator
    from accelerate.utils import DistributedType

    if device != "auto":
        raise OptionError("E204", f"--device {device}: with several processes, each takes the GPU of its local rank")
    gpus = 0 if os.environ.get("ACCELERATE_USE_CPU") == "true" else torch.cuda.device_count()
    if gpus and int(os.environ["LOCAL_RANK"]) >= gpus:
        raise DeviceError("E601", f"there are more processes than the {gpus} GPUs", hint="start one process per GPU")
    # the precision is set by --bf16 and --fp16, whatever accelerate's configuration says
    accelerator = Accelerator(cpu=gpus == 0, mixed_precision="no")
    if accelerator.distributed_type not in {DistributedType.MULTI_GPU, DistributedType.MULTI_CPU}:
        raise OptionError(
            "E204",
            f"ens train is data parallel only, and accelerate is set to {accelerator.distributed_type}",
            hint="accelerate launch --multi_gpu",
        )
    return DistributedContext(accelerator, device=str(accelerator.device) if gpus else "cpu")
