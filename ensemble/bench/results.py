"""Timings: what a benchmark found. Medians, ratios round by round, and the machine they hold for."""

from __future__ import annotations

import importlib.metadata
import platform
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from ensemble.bench.agreement import Agreement
from ensemble.bench.process_meter import Lap
from ensemble.runtime.machine import available_cores, name_gpus, processor_name
from ensemble.text_table import render_columns

_PACKAGES = ("onnxruntime-gpu", "onnxruntime", "openvino", "torch", "timm", "pillow", "numpy")


@dataclass(frozen=True, slots=True)
class Machine:
    """What the figures hold for: the ``cores`` that may be used, processor, GPUs, system, and versions."""

    cores: int
    processor: str
    gpus: tuple[str, ...]
    system: str
    versions: Mapping[str, str]

    def render(self) -> str:
        """One line for people."""
        versions = ", ".join(f"{name} {version}" for name, version in self.versions.items())
        return "; ".join((f"{self.cores} cores of {self.processor}", *self.gpus, self.system, versions))


def this_machine() -> Machine:
    """The machine that this runs on."""
    versions = {"Python": platform.python_version()}
    for name in _PACKAGES:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return Machine(available_cores(), processor_name(), name_gpus(), platform.platform(terse=True), versions)


@dataclass(frozen=True, slots=True)
class Timing:
    """One arm's passes over the same ``images``, in the order of the rounds."""

    name: str
    images: int
    laps: tuple[Lap, ...]

    @property
    def rates(self) -> tuple[float, ...]:
        """Images a second, by round."""
        return tuple(self.images / lap.seconds for lap in self.laps)

    @property
    def cpu_per_image(self) -> float | None:
        """Processor seconds an image, the median over the rounds."""
        return self.median(lambda lap: lap.cpu / self.images)

    def median(self, figure: Callable[[Lap], float | None]) -> float | None:
        """The median of a figure over the rounds; None where it was not measured in all of them."""
        found = [value for value in map(figure, self.laps) if value is not None]
        return statistics.median(found) if found and len(found) == len(self.laps) else None

    def stages(self) -> dict[str, float]:
        """The median seconds of each stage that the arm counts itself."""
        return {
            stage: statistics.median(lap.stages.get(stage, 0.0) for lap in self.laps) for stage in self.laps[0].stages
        }

    def as_dict(self) -> dict[str, Any]:
        """JSON-ready values, the single rounds among them."""
        return {
            "name": self.name,
            "images_per_second": statistics.median(self.rates),
            "rates": list(self.rates),
            "cpu_seconds_per_image": self.cpu_per_image,
            "stages": self.stages(),
            "rounds": [asdict(lap) for lap in self.laps],
        }


@dataclass(frozen=True, slots=True)
class Ratio:
    """How many times as fast as another arm, in each round: both ran within minutes of one another there."""

    of: str
    over: str
    by_round: tuple[float, ...]

    @property
    def median(self) -> float:
        """The middle one."""
        return statistics.median(self.by_round)

    def as_dict(self) -> dict[str, Any]:
        """JSON-ready values."""
        spread = {"median": self.median, "lowest": min(self.by_round), "highest": max(self.by_round)}
        return {"of": self.of, "over": self.over} | spread | {"by_round": list(self.by_round)}


def ratio(of: Timing, over: Timing) -> Ratio:
    """The ratio of two arms' rates, round by round."""
    return Ratio(of.name, over.name, tuple(a / b for a, b in zip(of.rates, over.rates, strict=True)))


@dataclass(frozen=True, slots=True)
class Benchmark:
    """Arms side by side on one job: what each cost, how they compare, and what was left out.

    ``models`` are member, architecture and precision of each model, by the arm of ours that ran it; ``agreements`` say
    how near the answers of the arms are to one another.
    """

    images: int
    views: tuple[str, ...]
    device: str
    models: Mapping[str, tuple[tuple[str, str, str], ...]]
    machine: Machine
    timings: tuple[Timing, ...]
    ratios: tuple[Ratio, ...]
    agreements: tuple[Agreement, ...]
    left_out: tuple[str, ...]

    def as_dict(self) -> dict[str, Any]:
        """JSON-ready values: everything that was measured."""
        return {
            "images": self.images,
            "views": list(self.views),
            "device": self.device,
            "models": {
                name: [dict(zip(("member", "arch", "precision"), one, strict=True)) for one in models]
                for name, models in self.models.items()
            },
            "machine": asdict(self.machine),
            "arms": [timing.as_dict() for timing in self.timings],
            "ratios": [one.as_dict() for one in self.ratios],
            "agreements": [asdict(one) for one in self.agreements],
            "left_out": list(self.left_out),
        }

    def render(self) -> str:
        """The tables for people."""
        models = [
            f"{name}: {', '.join(f'{member} ({arch}, {precision})' for member, arch, precision in found)}"
            for name, found in self.models.items()
        ]
        rounds = len(self.timings[0].laps)
        parts = [
            f"{self.images:,} images, {' + '.join(self.views)}, on {self.device}, {rounds} rounds in turn",
            *models,
            self.machine.render(),
            "",
            self._render_arms(),
            _render_stages([timing for timing in self.timings if timing.laps[0].stages]),
            self._render_ratios(),
            *(agreement.render() for agreement in self.agreements),
            *(f"left out: {reason}" for reason in self.left_out),
        ]
        return "\n".join(parts)

    def _render_arms(self) -> str:
        """Medians over the rounds, and the spread of the rates."""
        header = ["", "images/s", "lowest", "highest", "CPU s/image", "CPU busy", "memory MB", "start s"]
        on_gpu = any(timing.median(lambda lap: lap.gpu_busy) is not None for timing in self.timings)
        rows = []
        for timing in self.timings:
            rates = timing.rates
            row = [
                timing.name,
                *(f"{rate:8.1f}" for rate in (statistics.median(rates), min(rates), max(rates))),
                _show(timing.cpu_per_image, "11.4f"),
                _show(timing.median(lambda lap: lap.cpu / lap.seconds / self.machine.cores), "8.0%"),
                _show(timing.median(lambda lap: lap.memory), "9,.0f"),
                _show(timing.median(lambda lap: lap.start), "7.1f"),
            ]
            if on_gpu:
                row.append(_show(timing.median(lambda lap: lap.gpu_busy), "8.0%"))
                row.append(_show(timing.median(lambda lap: lap.gpu_memory), "6,.0f"))
            rows.append(row)
        return render_columns([*header, *(["GPU busy", "GPU MB"] if on_gpu else [])], rows)

    def _render_ratios(self) -> str:
        rows = [
            (
                f"{one.of} / {one.over}",
                *(f"{value:7.2f}" for value in (one.median, min(one.by_round), max(one.by_round))),
                " ".join(f"{value:.2f}" for value in one.by_round),
            )
            for one in self.ratios
        ]
        return render_columns(("times as fast", "median", "lowest", "highest", "by round"), rows)


def _show(value: float | None, form: str) -> str:
    return "-" if value is None else format(value, form)


def _render_stages(timings: Sequence[Timing]) -> str:
    """Median seconds of the stages, summed over threads."""
    found = {timing.name: timing.stages() for timing in timings}
    stages = list(dict.fromkeys(stage for of_arm in found.values() for stage in of_arm))
    rows = [
        [name, *(f"{of_arm[stage]:7.2f}" if stage in of_arm else "-" for stage in stages)]
        for name, of_arm in found.items()
    ]
    return render_columns(["stages, seconds", *stages], rows)
