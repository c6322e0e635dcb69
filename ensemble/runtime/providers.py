"""Start devices, strictly: the requested device is the one that runs, or an error says why it cannot."""

from __future__ import annotations

import contextlib
import functools
import io
import os
import re
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from ensemble.errors import DeviceError
from ensemble.events import SILENT, Listener, Notice
from ensemble.install import install_command
from ensemble.runtime.cuda import describe_gpu
from ensemble.runtime.device import CPU, PROVIDERS, Device, DeviceKind, parse_device
from ensemble.runtime.error_text import explain_error, keep_text


class Runtime(Protocol):
    """The part of ``onnxruntime.InferenceSession`` that runs a network; OpenVINO's runtime has the same."""

    def run(self, outputs: Sequence[str] | None, inputs: Mapping[str, Any], /) -> list[Any]:
        """Return the named outputs, or all of them, as arrays."""
        ...


class BindableRuntime(Runtime, Protocol):
    """A runtime with onnxruntime's IO binding: inputs and outputs stay in buffers on the device."""

    def io_binding(self) -> Any:
        """Return an empty ``onnxruntime.IOBinding``."""
        ...

    def run_with_iobinding(self, binding: Any, options: Any = None, /) -> None:
        """Run from the bound inputs into the bound outputs."""
        ...


@dataclass(frozen=True, slots=True)
class Start:
    """The outcome of starting a device; ``cause`` says in one line why it does not work."""

    device: Device
    works: bool
    cause: str = ""
    cure: str = field(default="", compare=False)


def choose_device(text: str, *, listener: Listener = SILENT) -> Device:
    """Return the requested device after starting it; for ``auto`` the first GPU, or else the CPU with a notice.

    Raises:
        OptionError: E203 when the name is not known.
        DeviceError: E601 when it does not start (no other device replaces it); E607 when several GPUs are of different
            models, because their logits would differ.
    """
    device = parse_device(text)
    if device is None:
        start = try_device(Device("cuda"))
        if not start.works:
            listener.notice(Notice("W601", f"no CUDA device could be used ({start.cause}); running on the CPU"))
        return start.device if start.works else CPU
    for one in device.each:
        start = try_device(one)
        if not start.works:
            raise start_error(one, start.cause)
    kinds = {str(found) for found in (describe_gpu(one.index) for one in device.each) if found} if device.others else ()
    if len(kinds) > 1:
        raise DeviceError("E607", f"{device} are different GPU models: {', '.join(sorted(kinds))}")
    return device


@functools.cache
def try_device(device: Device) -> Start:
    """Start the device on networks whose answers are known, see `proofs_of`; CUDA's libraries are loaded first."""
    from ensemble.runtime.proof import proofs_of

    for proof in proofs_of(device):
        try:
            session, log = start_runtime(proof.model, device, _options(device), proof.provider_options)
            answer = session.run(None, proof.inputs)[0]
        except NotStartedError as err:
            return Start(device, False, str(err), _cure(device.kind))
        except Exception as err:  # noqa: BLE001 - onnxruntime raises its errors as bare Exceptions
            kept = keep_text(err) if device.is_gpu else ""
            return Start(device, False, explain_log(str(err)) + kept, _cure(device.kind))
        if fault := proof.fault(answer):
            return Start(device, False, f"{fault} ({explain_log(log)})", _cure(device.kind))
    return Start(device, True)


def _options(device: Device) -> Any:
    """Return the session options of a proof; None for onnxruntime's own."""
    if not device.is_gpu:
        return None
    import onnxruntime

    from ensemble.runtime.symmetric_pads import DISABLED_OPTIMIZERS

    options = onnxruntime.SessionOptions()
    options.add_session_config_entry("optimization.disable_specified_optimizers", DISABLED_OPTIMIZERS)
    return options


def create_session(model: bytes, device: Device, *, options: Any, provider_options: Mapping[str, str]) -> Runtime:
    """Create an ``onnxruntime.InferenceSession`` that runs on ``device``.

    Raises:
        DeviceError: E601 when the device's provider is not the first of the session: onnxruntime itself would fall back
            to the CPU.
    """
    try:
        return start_runtime(model, device, options, provider_options)[0]
    except NotStartedError as err:
        raise start_error(device, str(err)) from err


def require_on_device(runtime: Runtime, device: Device, *, member: str) -> str:
    """Check where a session's nodes run; return it as text, such as ``CUDA 118, CPU 2 (Gather, Shape)``.

    onnxruntime assigns what a provider does not support to the next one, and finally to the CPU. Shape arithmetic may
    run there; layers may not.

    Raises:
        DeviceError: E608 when no node runs on the device, or a layer runs on the CPU.
    """
    ask = getattr(runtime, "get_provider_graph_assignment_info", list)
    places: dict[str, list[str]] = {}
    for part in ask():
        places.setdefault(part.ep_name, []).extend(node.op_type for node in part.get_nodes())
    if not places:
        return "unknown"  # this onnxruntime does not report it
    on_cpu = sorted(set(places.get(PROVIDERS["cpu"], ())))
    layers = [kind for kind in on_cpu if re.search("Conv|Gemm|MatMul", kind)]
    if not places.get(device.provider) or layers:
        what = f"{', '.join(layers)} of {member}" if layers else f"all of {member}"
        raise DeviceError("E608", f"{device} was requested, but {what} would run elsewhere")
    counts = [f"{name.removesuffix('ExecutionProvider')} {len(nodes)}" for name, nodes in places.items()]
    return ", ".join(counts) + (f" ({', '.join(on_cpu)})" if on_cpu else "")


def _cure(kind: DeviceKind) -> str:
    """Return how to install what a provider needs beside onnxruntime itself."""
    match kind:
        case "cpu":
            return install_command("onnxruntime-gpu")
        case "cuda":
            command = install_command(extra="gpu")
            return f"{command} (CUDA and cuDNN for onnxruntime), and an NVIDIA driver; or --device cpu"
        case "tensorrt":
            from ensemble.runtime.tensorrt import REQUIREMENT

            # the files on PyPI are placeholders that fetch the libraries from NVIDIA's own index
            command = install_command(REQUIREMENT, extra="gpu")
            return f"{command} (with access to NVIDIA's package index), or NVIDIA's installer; or --device cuda"
        case "openvino":
            return f"{install_command(extra='openvino')}; on a CPU without bf16, --device openvino"
        case "plugin":
            return "install the provider's own package in a version for this onnxruntime; or --device cpu"


def start_error(device: Device, cause: str) -> DeviceError:
    """Return E601 for a device, with the cause and the command that installs what is missing."""
    return DeviceError("E601", f"{device} was requested and cannot be used: {cause}", hint=_cure(device.kind))


def explain_log(log: str) -> str:
    """Return the cause in one line from onnxruntime's log: a missing library, the driver, the GPU."""
    text = re.sub(r"\x1b?\[[0-9;]*m", "", log)
    library = re.search(
        r"(lib[\w.+-]+\.so[.\d]*|\w+\.dll): cannot open shared object|Failed to load (\S+\.(?:so[.\d]*|dll))", text
    )
    if library:
        missing = library[1] or library[2]
        return f"{missing} is missing" + (": no NVIDIA driver is installed" if missing.startswith("libcuda.so") else "")
    for pattern, cause in (
        (
            r"CUDA driver version is insufficient|error code 35|cudaErrorInsufficientDriver",
            "the NVIDIA driver is too old for this CUDA",
        ),
        (r"no CUDA-capable device|cudaErrorNoDevice|CUDA failure 100", "no NVIDIA GPU is visible"),
        (r"invalid device ordinal|cudaErrorInvalidDevice|CUDA failure 101", "there is no GPU of that index"),
        (r"TensorRT libraries", "the TensorRT libraries are missing"),
        (r"cuDNN is not available|libcudnn\S* (?:is )?missing", "cuDNN is missing"),
    ):
        if re.search(pattern, text, re.IGNORECASE):
            return cause
    return explain_error(text) if text.strip() else "onnxruntime fell back to the CPU without a reason"


class NotStartedError(Exception):
    """A device did not start; the message is the cause in one line."""


def start_runtime(
    model: bytes, device: Device, options: Any = None, provider_options: Mapping[str, str] | None = None
) -> tuple[Runtime, str]:
    """Return a session, and what onnxruntime logged while creating it.

    Raises:
        NotStartedError: when the device's provider cannot be used.
    """
    if device.kind == "openvino":
        from ensemble.runtime.openvino import UnavailableError, build_runtime

        try:
            threads = options.intra_op_num_threads if options else 1
            return build_runtime(model, bf16=device.bf16, threads=threads), ""
        except UnavailableError as err:
            raise NotStartedError(str(err)) from err
    import onnxruntime

    from ensemble.runtime.tensorrt import explain_missing, load_libraries

    if device.kind == "plugin":
        return _start_plugin(model, device, options, provider_options or {})
    if device.provider not in onnxruntime.get_available_providers():
        raise NotStartedError(f"this onnxruntime ({onnxruntime.__version__}) was built without {device.provider}")
    if device.kind == "cpu":
        return onnxruntime.InferenceSession(model, options, providers=[device.provider]), ""
    requested = [(device.provider, {"device_id": str(device.index), **(provider_options or {})})]
    if device.kind == "tensorrt":
        # what TensorRT does not support runs on the same GPU
        half = (provider_options or {}).get("trt_fp16_enable", "0")
        requested.append((PROVIDERS["cuda"], {"device_id": str(device.index), "use_tf32": half}))
        # onnxruntime has no option that turns off TF32 in TensorRT
        os.environ.setdefault("NVIDIA_TF32_OVERRIDE", "0")
    with _captured_output() as captured:
        onnxruntime.preload_dlls()
        if device.kind == "tensorrt":
            load_libraries()
            if missing := explain_missing():
                raise NotStartedError(missing)
        session = onnxruntime.InferenceSession(model, options, providers=requested, enable_fallback=0)
    log = captured.getvalue()
    wanted = [name for name, _ in requested]
    if session.get_providers()[: len(wanted)] != wanted:
        raise NotStartedError(explain_log(log))
    return session, log


def _start_plugin(model: bytes, device: Device, options: Any, given: Mapping[str, str]) -> tuple[Runtime, str]:
    """As `start_runtime`, for a provider from a library that is registered with onnxruntime."""
    import onnxruntime

    from ensemble.runtime.plugins import ep_device

    options = options or onnxruntime.SessionOptions()
    try:
        options.add_provider_for_devices([ep_device(device.plugin, device.index)], dict(given))
    except LookupError as err:
        raise NotStartedError(str(err)) from err
    with _captured_output() as captured:
        session = onnxruntime.InferenceSession(model, options)
    if session.get_providers()[:1] != [device.plugin]:
        raise NotStartedError(explain_log(captured.getvalue()))
    return session, captured.getvalue()


@contextlib.contextmanager
def _captured_output() -> Iterator[io.StringIO]:
    """Capture what native code writes to the process's stdout and stderr, where alone onnxruntime reports a failure."""
    captured = io.StringIO()
    with tempfile.TemporaryFile() as sink, contextlib.redirect_stdout(captured):
        saved = {fd: os.dup(fd) for fd in (1, 2)}
        try:
            for fd in saved:
                os.dup2(sink.fileno(), fd)
            yield captured
        finally:
            for fd, copy in saved.items():
                os.dup2(copy, fd)
                os.close(copy)
            sink.seek(0)
            captured.write(sink.read().decode("utf-8", "replace"))
