"""Choose the device of a run by its models, and name the int8 models that are not quantized for it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from ensemble.card import ModelCard
from ensemble.errors import enumerate_some
from ensemble.events import SILENT, Listener, Notice
from ensemble.install import install_command
from ensemble.runtime.device import CPU, FASTEST, Device, parse_device
from ensemble.runtime.fastest import choose_engine
from ensemble.runtime.model_file import ModelFile
from ensemble.runtime.openvino import describe_for_openvino, is_for_openvino, openvino_version
from ensemble.runtime.providers import choose_device, try_device

_OPENVINO = Device("openvino")


def choose_run_device(
    asked: str | Device, models: Iterable[ModelFile], *, begun: Sequence[str] = (), listener: Listener = SILENT
) -> Device:
    """Return the device that runs these models.

    It is that of `choose_device`, and for ``cpu:fastest`` the faster engine. Where ``auto`` is the CPU, it is that of
    `choose_cpu_engine`. A warning (W616) names int8 models that are not quantized for the device. A `Device`, which was
    chosen before, is started and nothing is said again; the models are not read for it.

    ``begun`` are the providers that the parts of the run which there are were computed with: where the engine is not
    named, and they are of one engine, the rest is computed with it as well.

    Raises:
        OptionError, DeviceError: see `choose_device`.
        ModelError: when ``cpu:fastest`` cannot run a model.
    """
    if isinstance(asked, Device):
        return choose_device(str(asked))
    if asked == FASTEST:
        engine = _begun_engine(begun)
        if engine is None:
            return choose_engine(tuple(models), listener=listener)
        listener.notice(Notice("I615", f"{FASTEST} is {engine}, as the parts that there are were computed"))
        return engine
    device = choose_device(asked, listener=listener)
    cards = [model.card for model in models]
    if device == CPU and parse_device(asked) is None:
        device = choose_cpu_engine(cards, begun=begun, listener=listener)
    elif device == CPU:
        warn_of_onnxruntime(cards, listener=listener)
    warn_of_int8(cards, device, listener)
    return device


def choose_cpu_engine(cards: Sequence[ModelCard], *, begun: Sequence[str] = (), listener: Listener = SILENT) -> Device:
    """Return what ``auto`` is without a GPU: OpenVINO where an int8 model is quantized for it, else ``cpu``.

    A run that was ``begun`` keeps its engine, see `choose_run_device`. A notice says that it is OpenVINO (I616), a
    warning why it is not although a model is quantized for it (W616).
    """
    suited, engine = describe_for_openvino(cards), _begun_engine(begun)
    if engine == _OPENVINO:
        listener.notice(Notice("I616", f"auto is {engine}, as the parts that there are were computed"))
        return engine
    if not suited:
        return CPU
    cause = _why_no_openvino(cards)
    if engine == CPU and not cause:
        cause = "the parts that there are were computed in ONNX Runtime; --fresh computes them again, in OpenVINO"
    if cause:
        warn_of_onnxruntime(cards, cause, listener=listener)
        return CPU
    others = sum(not is_for_openvino(card) for card in cards)
    rest = f", and {others} more of the run with it" if others else ""
    message = f"auto is {_OPENVINO}: {suited}{rest}; --device cpu runs all in ONNX Runtime"
    listener.notice(Notice("I616", message))
    return _OPENVINO


def warn_of_onnxruntime(cards: Sequence[ModelCard], cause: str = "", *, listener: Listener = SILENT) -> None:
    """Name the int8 models for OpenVINO that run in ONNX Runtime (W616), and say why or what to do."""
    if suited := describe_for_openvino(cards):
        cause = cause or _why_no_openvino(cards) or f"--device {_OPENVINO} runs all models in OpenVINO"
        message = f"{suited}, and slower in ONNX Runtime than a float32 model: {cause}"
        listener.notice(Notice("W616", message))


def warn_of_int8(cards: Iterable[ModelCard], device: Device, listener: Listener = SILENT) -> None:
    """Name the int8 models that are quantized for another kind of device (W616).

    Those for OpenVINO that run in ONNX Runtime on the CPU are left to `choose_run_device`, which knows why.
    """
    if device.kind not in {"cpu", "cuda"}:
        return
    by_kind: dict[str, list[str]] = {}
    for card in cards:
        if card.precision == "int8":
            made_for = "TensorRT" if card.checks.get("scheme") == "symmetric" else "CPUs"
            by_kind.setdefault(made_for, []).append(card.member)
    if device.kind == "cpu":
        by_kind.pop("CPUs", None)
    for made_for, members in by_kind.items():
        message = f"int8 models for {made_for} compute in float32 on {device}, between roundings"
        listener.notice(Notice("W616", f"{message}: {enumerate_some(members)}"))


def _begun_engine(begun: Sequence[str]) -> Device | None:
    """Return the engine that all parts were computed with; None without parts, or with those of another device."""
    return next((engine for engine in (CPU, _OPENVINO) if tuple(begun) == (engine.provider,)), None)


def _why_no_openvino(cards: Iterable[ModelCard]) -> str:
    """Return why OpenVINO cannot run these models here; empty if nothing is known that keeps it from it."""
    if openvino_version() == "missing":
        return f"OpenVINO is not installed ({install_command(extra='openvino')})"
    if kept := [card.member for card in cards if card.preprocess.kept]:
        takes = "takes" if len(kept) == 1 else "take"
        return f"{enumerate_some(kept)} {takes} the channels of the files as they are, in ONNX Runtime alone"
    start = try_device(_OPENVINO)
    return "" if start.works else f"OpenVINO does not start ({start.cause})"
