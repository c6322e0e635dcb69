"""Results of a benchmark: rates and resources per contender, ratios per round, and the machine."""

from __future__ import annotations

import platform
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from ensemble.bench.agreement import Agreement
from ensemble.bench.process_meter import PassCost
from ensemble.card import ModelCard
from ensemble.install import version_of
from ensemble.runtime.machine import available_cores, name_gpus, processor_name
from ensemble.text.text_table import render_columns, wrap_text

_PACKAGES = ("onnxruntime-gpu", "onnxruntime", "openvino", "torch", "timm", "pillow", "numpy")


@dataclass(frozen=True, slots=True)
class Machine:
    """The machine of a benchmark: available ``cores``, processor, GPUs, system, and package versions."""

    cores: int
    processor: str
    gpus: tuple[str, ...]
    system: str
    versions: Mapping[str, str]

    def render(self) -> str:
        """Return one line for the terminal."""
        versions = ", ".join(f"{name} {version}" for name, version in self.versions.items())
        return "; ".join((f"{self.cores} cores of {self.processor}", *self.gpus, self.system, versions))


def this_machine() -> Machine:
    """Describe the machine that this runs on."""
    versions = {"Python": platform.python_version()}
    for name in _PACKAGES:
        version = version_of(name)
        if version is not None:
            versions[name] = version
    return Machine(available_cores(), processor_name(), name_gpus(), platform.platform(terse=True), versions)


@dataclass(frozen=True, slots=True)
class Timing:
    """The passes of one contender over the same ``images``, in the order of the rounds."""

    name: str
    images: int
    costs: tuple[PassCost, ...]

    @property
    def rates(self) -> tuple[float, ...]:
        """Images per second, by round."""
        return tuple(self.images / cost.seconds for cost in self.costs)

    @property
    def cpu_per_image(self) -> float | None:
        """CPU seconds per image, the median over the rounds."""
        return self.median(lambda cost: cost.cpu / self.images)

    def median(self, figure: Callable[[PassCost], float | None]) -> float | None:
        """Return the median of a figure over the rounds; None if any round lacks it."""
        found = [value for value in map(figure, self.costs) if value is not None]
        return statistics.median(found) if found and len(found) == len(self.costs) else None

    def stages(self) -> dict[str, float]:
        """Return the median seconds of each stage that the contender times itself."""
        return {
            stage: statistics.median(cost.stages.get(stage, 0.0) for cost in self.costs)
            for stage in self.costs[0].stages
        }

    def as_dict(self) -> dict[str, Any]:
        """Return JSON-ready values, including each round."""
        return {
            "name": self.name,
            "images_per_second": statistics.median(self.rates),
            "rates": list(self.rates),
            "cpu_seconds_per_image": self.cpu_per_image,
            "stages": self.stages(),
            "rounds": [asdict(cost) for cost in self.costs],
        }


@dataclass(frozen=True, slots=True)
class Ratio:
    """The speed of one contender over that of another, per round: within a round both ran minutes apart."""

    of: str
    over: str
    by_round: tuple[float, ...]

    @property
    def median(self) -> float:
        """The median over the rounds."""
        return statistics.median(self.by_round)

    def as_dict(self) -> dict[str, Any]:
        """Return JSON-ready values."""
        spread = {"median": self.median, "lowest": min(self.by_round), "highest": max(self.by_round)}
        return {"of": self.of, "over": self.over} | spread | {"by_round": list(self.by_round)}


def ratio(of: Timing, over: Timing) -> Ratio:
    """Divide the rates of two contenders, round by round."""
    return Ratio(of.name, over.name, tuple(a / b for a, b in zip(of.rates, over.rates, strict=True)))


@dataclass(frozen=True, slots=True)
class ModelInfo:
    """A model of a benchmark."""

    member: str
    arch: str
    precision: str

    @classmethod
    def of(cls, card: ModelCard) -> ModelInfo:
        """Take the model's description from its card."""
        return cls(card.member, card.arch, card.precision)

    def __str__(self) -> str:
        return f"{self.member} ({self.arch}, {self.precision})"


@dataclass(frozen=True, slots=True)
class Benchmark:
    """The result of a benchmark: the contenders' timings on one job, their ratios, and what was left out.

    ``models`` are those of each contender that runs `predict`. ``agreements`` compare the contenders' predictions.
    """

    images: int
    views: tuple[str, ...]
    device: str
    models: Mapping[str, tuple[ModelInfo, ...]]
    machine: Machine
    timings: tuple[Timing, ...]
    ratios: tuple[Ratio, ...]
    agreements: tuple[Agreement, ...]
    left_out: tuple[str, ...]

    def as_dict(self) -> dict[str, Any]:
        """Return JSON-ready values: every figure."""
        return {
            "images": self.images,
            "views": list(self.views),
            "device": self.device,
            "models": {name: [asdict(one) for one in models] for name, models in self.models.items()},
            "machine": asdict(self.machine),
            "arms": [timing.as_dict() for timing in self.timings],
            "ratios": [one.as_dict() for one in self.ratios],
            "agreements": [one.as_dict() for one in self.agreements],
            "left_out": list(self.left_out),
        }

    def render(self) -> str:
        """Return the tables for the terminal."""
        rounds = len(self.timings[0].costs)
        parts = [
            f"{self.images:,} images, {' + '.join(self.views)}, on {self.device}, {rounds} rounds in turn",
            *(wrap_text(f"{name}: {', '.join(map(str, models))}") for name, models in self.models.items()),
            wrap_text(self.machine.render()),
            "",
            self._render_rates(),
            self._render_resources(),
            _render_stages([timing for timing in self.timings if timing.costs[0].stages]),
            self._render_ratios(),
            *(wrap_text(agreement.render()) for agreement in self.agreements),
            *(wrap_text(f"left out: {reason}") for reason in self.left_out),
        ]
        return "\n".join(part for part in parts if part is not None)

    def _render_rates(self) -> str:
        """Render images per second, with their spread over the rounds, and the seconds before the first image."""
        rows = [
            [
                timing.name,
                *(_show(rate, "8.1f") for rate in (statistics.median(timing.rates), *_spread(timing.rates))),
                _show(timing.median(lambda cost: cost.start), "7.1f"),
            ]
            for timing in self.timings
        ]
        return render_columns(["", "images/s", "  lowest", " highest", "start s"], rows)

    def _render_resources(self) -> str:
        """Render the medians of CPU time, utilization and memory."""
        columns: dict[str, Callable[[Timing], str]] = {
            "CPU s/image": lambda timing: _show(timing.cpu_per_image, "11.4f"),
            "CPU busy": lambda timing: _show(
                timing.median(lambda cost: cost.cpu / cost.seconds / self.machine.cores), "8.0%"
            ),
            "memory MB": lambda timing: _show(timing.median(lambda cost: cost.memory), "9,.0f"),
        }
        if any(timing.median(lambda cost: cost.gpu_busy) is not None for timing in self.timings):
            columns["GPU busy"] = lambda timing: _show(timing.median(lambda cost: cost.gpu_busy), "8.0%")
            columns["GPU MB"] = lambda timing: _show(timing.median(lambda cost: cost.gpu_memory), "6,.0f")
        rows = [[timing.name, *(show(timing) for show in columns.values())] for timing in self.timings]
        return render_columns(["", *columns], rows)

    def _render_ratios(self) -> str:
        rows = [
            (f"{one.of} / {one.over}", *(_show(value, "7.2f") for value in (one.median, *_spread(one.by_round))))
            for one in self.ratios
        ]
        return render_columns(("speed ratio", " median", " lowest", "highest"), rows)


def _spread(values: Sequence[float]) -> tuple[float, float]:
    return min(values), max(values)


def _show(value: float | None, form: str) -> str:
    return "-" if value is None else format(value, form)


def _render_stages(timings: Sequence[Timing]) -> str | None:
    """Render the median seconds of the stages, summed over threads, one column per contender; None without any."""
    found = {timing.name: timing.stages() for timing in timings}
    if not found:
        return None
    stages = dict.fromkeys(stage for of_contender in found.values() for stage in of_contender)
    rows = [[stage, *(_show(of_contender.get(stage), "7.2f") for of_contender in found.values())] for stage in stages]
    return render_columns(["seconds in stage", *found], rows)
