"""Start one model on one device and run it: uint8 images in, float32 logits out."""

from __future__ import annotations

import functools
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import cast

import numpy as np

from ensemble.arrays import Logits, Pixels
from ensemble.card import ModelCard
from ensemble.errors import DeviceError, DeviceMemoryError, EnsError, ModelError, ModelRunError, OptionError
from ensemble.events import SILENT, Listener, Notice
from ensemble.images.planes import as_planes
from ensemble.runtime.device import CPU, Device
from ensemble.runtime.device_pool import DevicePool
from ensemble.runtime.error_text import explain_error, keep_text
from ensemble.runtime.fixed_batch import FixedBatchModel, run_models
from ensemble.runtime.fused_views import cast_first, fit_for_cudnn
from ensemble.runtime.independence import require_independent
from ensemble.runtime.int8_weights import may_saturate
from ensemble.runtime.io_binding import DeviceBuffers, buffers_on
from ensemble.runtime.model_file import INPUT, LOGITS, ModelFile
from ensemble.runtime.openvino import is_for_openvino
from ensemble.runtime.parity import (
    LIMITS,
    ON_GPUS,
    has_recorded_openvino,
    near_ties_of,
    notify_parity,
    require_parity,
    require_recorded,
)
from ensemble.runtime.providers import Runtime, create_session, require_on_device, start_error
from ensemble.runtime.symmetric_pads import DISABLED_OPTIMIZERS
from ensemble.runtime.tensorrt import BIAS_OPTIMIZER, announce_build, engine_options, require_symmetric

_OUT_OF_MEMORY = re.compile(
    r"BFCArena|out of memory|OutOfMemory|failed to allocate memory|bad.alloc|CUDA failure 2:"
    # cuDNN's *_ALLOC_FAILED and *_DEVICE_ALLOCATION_FAILED; TensorRT
    r"|ALLOC_FAILED|ALLOCATION_FAILED|could not be allocated",
    re.IGNORECASE,
)


@dataclass(frozen=True, slots=True, eq=False)
class Session:
    """A started model; without ``fixed_batch``, `run` may be called from several threads at once.

    ``runtime`` is None where ``fixed_batch`` runs the model instead: with one batch size and IO binding, on GPUs.
    ``decisions`` are the settings that were chosen, for the record of a run.
    """

    card: ModelCard
    sha256: str
    device: Device
    runtime: Runtime | None
    fixed_batch: FixedBatchModel | None = None
    decisions: Mapping[str, str] = field(default_factory=dict)

    def run(self, batch: Pixels, *, output: str = LOGITS) -> Logits:
        """Return the logits ``(B, C)`` float32 of a batch ``(B, H, W, 3)`` uint8, or another of the model's outputs.

        Raises:
            DeviceError: E602 when the device's memory is too small for this batch, E603 when the machine's memory is
                too small for a single image, E604 when a logit is NaN or infinite, E605 when the device fails in
                another way, E614 when the logits have another shape.
        """
        with self.explained(len(batch)):
            if self.fixed_batch is not None:
                assert output == LOGITS
                assert len(self.fixed_batch.views) == 1
                with buffers_on(self.device) as buffers:
                    rows = self.fixed_batch.shape.rows
                    buffers.load(self.card.preprocess, {INPUT: batch}, rows=rows)
                    answers = run_models([self.fixed_batch], buffers)[0][:, 0]
            else:
                assert self.runtime is not None
                # OpenVINO adds up a single row of such a model in another order than each of several
                doubled = len(batch) == 1 and self.device.kind == "openvino" and is_for_openvino(self.card)
                taken = np.repeat(batch, 2, axis=0) if doubled else batch
                answers = self.runtime.run([output], {INPUT: taken})[0]
                answers = answers[:1] if doubled else answers
        if output == LOGITS:
            self._require_rows(answers, len(batch))
        self.require_finite(answers)
        return answers

    def run_in_pieces(self, batch: Pixels, size: int) -> Logits:
        """Run in batches of at most ``size`` images.

        Raises:
            DeviceError: as `run`.
        """
        if size >= len(batch):
            return self.run(batch)
        return np.concatenate([self.run(batch[start : start + size]) for start in range(0, len(batch), size)])

    def run_views(self, buffers: DeviceBuffers | DevicePool) -> dict[str, Logits]:
        """Return the logits ``(n, C)`` of each view of the images loaded into ``buffers``, for a ``fixed_batch`` model.

        Raises:
            DeviceError: as `run`.
        """
        return run_together([self], buffers)[self.card.member]

    @contextmanager
    def explained(self, batch: int) -> Iterator[None]:
        """Raise an error of onnxruntime inside the block as one of ours, for a batch of this size."""
        try:
            yield
        except EnsError:
            raise
        except Exception as err:
            raise _run_error(err, self.card.member, self.device, batch) from err

    def _require_rows(self, answers: object, rows: int) -> None:
        """Check that the model gave what its file declares.

        Raises:
            DeviceError: E614 when it did not.
        """
        expected = (rows, len(self.card.labels))
        if not isinstance(answers, np.ndarray) or answers.shape != expected:
            given = answers.shape if isinstance(answers, np.ndarray) else type(answers).__name__
            raise DeviceError("E614", f"{self.card.member} gave {given} for {rows} images, expected {expected}")

    def require_finite(self, answers: Logits) -> None:
        """Check logits ``(B, ...)``.

        Raises:
            DeviceError: E604 when a value is NaN or infinite.
        """
        bad = int(np.count_nonzero(~np.isfinite(answers.reshape(len(answers), -1)).all(axis=1)))
        if bad:
            raise DeviceError(
                "E604", f"{bad} of {len(answers)} answers of {self.card.member} ({self.card.precision}) are not finite"
            )


def run_together(sessions: Sequence[Session], buffers: DeviceBuffers | DevicePool) -> dict[str, dict[str, Logits]]:
    """Return ``logits[member][view]`` of ``fixed_batch`` models that were started together, for one loaded batch.

    Raises:
        DeviceError: as `Session.run`.
    """
    by_model = {one.fixed_batch: one for one in sessions if one.fixed_batch is not None}

    def guard(model: FixedBatchModel) -> AbstractContextManager[None]:
        return by_model[model].explained(model.shape.rows)

    found: dict[str, dict[str, Logits]] = {}
    for (model, session), logits in zip(by_model.items(), run_models(list(by_model), buffers, guard), strict=True):
        session.require_finite(logits)
        found[session.card.member] = model.split(logits)
    return found


def start_session(model: ModelFile, *, device: Device = CPU, threads: int = 1, listener: Listener = SILENT) -> Session:
    """Start a model on a device and run it once, so that what fails fails here.

    On the CPU one call of `Session.run` uses ``threads`` cores. With 1 it computes in the caller's own thread, and as
    many calls as there are cores can run side by side.

    Raises:
        ModelError: E420 when onnxruntime cannot build the network, E421 when the model is too new for it.
        DeviceError: E601 when the device does not start, E602 and E603 when its memory is too small, E604 when the
            logits are not finite, E606 when they differ from onnxruntime's on the CPU, E608 when a GPU does not support
            the model's layers, E612 when the logits depend on chance, E613 on the other images of the batch.
    """
    wanted = model.card.preprocess
    if wanted.kept and device.kind != "cpu":
        message = (
            f"{model.card.member} takes images of {wanted.planes} channels as they are, on the CPU alone, not {device}"
        )
        raise OptionError("E209", message, hint="predict with --device cpu")
    options = provider_options(model.card, model.sha256, device)
    match device.kind:
        case "tensorrt":
            require_symmetric(model, device)
            data = cast_first(model.data)
        case "cuda":
            data = fit_for_cudnn(model.data)
        case _:
            data = model.data
    with announce_build(options, model.card.member, listener):
        runtime = build_network(model, data, device, options, threads, listener)
    session = Session(model.card, model.sha256, device, runtime)
    if device.is_gpu or device.kind == "plugin":
        require_on_device(runtime, device, member=model.card.member)
    with report_start_failure(device):
        session.run(np.full((1, *wanted.shape), sum(wanted.scale) / 2 + 0.5, dtype=wanted.dtype))
    if device.kind == "cpu" and model.card.precision == "int8":
        require_recorded(partial(_run_pictures, session, piece=1), model.card, listener=listener)
    if device.kind == "cpu":
        run = partial(_run_pictures, session)
        require_independent(model.data, run, wanted.size, member=model.card.member, precision=model.card.precision)
    if device.kind == "openvino" and not device.bf16 and has_recorded_openvino(model.card):
        # the model was judged in OpenVINO: onnxruntime's rounding elsewhere says less than its own answers
        run = partial(_run_pictures, session, piece=1)
        require_recorded(run, model.card, openvino=True, listener=listener)
    elif device.kind != "cpu":
        who = f"{model.card.member} on {device}"
        precision = "bf16" if device.bf16 and model.card.precision != "int8" else model.card.precision
        reference = start_session(model, threads=threads)
        limits = ON_GPUS if device.is_gpu or device.kind == "plugin" else LIMITS
        parity = require_parity(
            session.run,
            reference.run,
            wanted.size,
            who=who,
            precision=precision,
            limits=limits,
            near_ties=near_ties_of(model.card),
        )
        notify_parity(parity, who=who, listener=listener)
    return session


def _run_pictures(session: Session, pictures: Pixels, *, piece: int | None = None) -> Logits:
    """Return the logits of test images in RGB, which are made into those that the model takes.

    They are run in pieces of so many images, or all at once.
    """
    wanted = session.card.preprocess
    taken = cast("Pixels", as_planes(pictures, wanted)) if wanted.kept else pictures
    return session.run(taken) if piece is None else session.run_in_pieces(taken, piece)


def build_network(
    model: ModelFile,
    data: bytes,
    device: Device,
    options: Mapping[str, str],
    threads: int = 1,
    listener: Listener = SILENT,
) -> Runtime:
    """Create the session of ``data``, which is the model's bytes or a graph made from them.

    Raises:
        ModelError: E420 when onnxruntime cannot build the network, E421 when it is too new.
        DeviceError: E601 when the device does not start, E602 when its memory is too small for the weights, E603 when
            the machine's memory is.
    """
    import onnxruntime

    settings = onnxruntime.SessionOptions()
    settings.log_severity_level = 3
    settings.intra_op_num_threads = threads
    settings.inter_op_num_threads = 1
    if device.kind == "cpu":
        _share_arena()
        settings.add_session_config_entry("session.use_env_allocators", "1")
    if device.is_gpu or device.kind == "plugin":
        settings.add_session_config_entry("session.record_ep_graph_assignment_info", "1")
    if device.is_gpu:
        # else the pads that `split_asymmetric_pads` took out of the convolutions would come back
        disabled = DISABLED_OPTIMIZERS + (f";{BIAS_OPTIMIZER}" if device.kind == "tensorrt" else "")
        settings.add_session_config_entry("optimization.disable_specified_optimizers", disabled)
    try:
        if device.kind == "cpu" and model.card.precision == "int8" and may_saturate(data):
            # the kernels of uint8 by uint8, which add in 32 bits
            settings.add_session_config_entry("session.x64quantprecision", "1")
            message = "its int8 weights, of an older export, need slower kernels to be exact on every processor"
            listener.notice(Notice("I438", f"{model.card.member}: {message}"))
        return create_session(data, device, options=settings, provider_options=options)
    except EnsError:
        raise
    except Exception as err:
        if _is_out_of_memory(err):
            if not device.is_gpu:
                raise _host_is_full(f"to load {model.card.member}") from err
            raise DeviceMemoryError("E602", f"{device} has too little memory to load {model.card.member}") from err
        code = "E421" if re.search(r"IR version|opset", str(err)) else "E420"
        runtime = "OpenVINO" if device.kind == "openvino" else "onnxruntime"
        message = f"{model.path.name}: {runtime} cannot build it: {_explain(err, device)}"
        hint = "use --device cpu, which is ONNX Runtime" if device.kind == "openvino" else None
        raise ModelError(code, message, path=model.path, hint=hint) from err


@functools.cache
def _share_arena() -> None:
    """Share one arena among all CPU sessions; by default each keeps the most memory that it ever needed."""
    import onnxruntime

    where = onnxruntime.OrtMemoryInfo(
        "Cpu", onnxruntime.OrtAllocatorType.ORT_ARENA_ALLOCATOR, 0, onnxruntime.OrtMemType.DEFAULT
    )
    # as a session's own: no limit, and blocks of powers of two, which later batches of other sizes fit into
    onnxruntime.create_and_register_allocator(where, onnxruntime.OrtArenaCfg(0, -1, -1, -1))


@contextmanager
def report_start_failure(device: Device) -> Iterator[None]:
    """Report a failure of a GPU's first run inside the block as a device that did not start.

    Raises:
        DeviceError: E601 instead of E605.
    """
    try:
        yield
    except ModelRunError as err:
        if device.is_gpu:
            raise start_error(device, err.message) from err
        raise


def provider_options(card: ModelCard, sha256: str, device: Device, *, rows: int | None = None) -> Mapping[str, str]:
    """Return the provider options; TensorRT engines are built for ``rows`` images.

    ``use_tf32`` is on for float16 alone. onnxruntime's convolutions take "0" as "no engine that uses tensor cores",
    without a look at the type (``deselect_numeric_notes`` in conv.cc), so float16 would lose them too. TF32 itself
    rounds as float16 does, so what a float16 model keeps in float32 is no less exact than the rest.
    """
    match device.kind:
        case "cpu" | "openvino" | "plugin":
            return {}
        case "cuda":
            return {
                "use_tf32": str(int(card.precision == "fp16")),
                "cudnn_conv_algo_search": "HEURISTIC",
                "arena_extend_strategy": "kSameAsRequested",
            }
        case "tensorrt":
            return engine_options(card, sha256, device, rows=rows)


def _run_error(err: Exception, member: str, device: Device, batch: int) -> DeviceError:
    if _is_out_of_memory(err):
        if not device.is_gpu and batch <= 1:
            return _host_is_full(f"for one image in {member}")
        return DeviceMemoryError("E602", f"{device} has too little memory for {member} at a batch of {batch}")
    return ModelRunError("E605", f"{member} failed on {device}: {_explain(err, device)}")


def _is_out_of_memory(err: Exception) -> bool:
    return isinstance(err, MemoryError) or _OUT_OF_MEMORY.search(str(err)) is not None


def _host_is_full(what: str) -> DeviceError:
    return DeviceError(
        "E603",
        f"this machine has too little memory {what}; finished work is kept",
        hint="run the same command again with a smaller --memory, --batch or --workers, or with fewer members",
    )


def _explain(err: Exception, device: Device) -> str:
    """Return the error in one line; of a GPU's, the whole text is kept in a file that the line names."""
    return explain_error(err) + (keep_text(err) if device.is_gpu else "")
