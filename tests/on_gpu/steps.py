"""The steps of `tests.on_gpu`, one per process: ``python -m tests.on_gpu.steps STEP WORK MODELS IMAGES FIGURES``."""

from __future__ import annotations

import json
import subprocess
import sys
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from ensemble.errors import EnsError
from ensemble.runtime.cuda import cuda_versions, describe_gpu
from ensemble.runtime.device import CPU, Device
from ensemble.runtime.model_file import ModelFile, find_models, read_model
from ensemble.runtime.providers import start_runtime, try_device

CUDA = Device("cuda")
COMPARED = 64  # images of the parity step
ROWS = (128, 256)  # batch sizes of the options step
ROOT = Path(__file__).parents[2]


@dataclass
class Step:
    """The folders of a step, and its figures, which are written whenever one is added."""

    work: Path
    models: Path
    images: Path
    figures: Path
    found: dict[str, Any] = field(default_factory=dict)

    def keep(self, **figures: Any) -> None:
        """Add figures and write all of them."""
        self.found |= figures
        part = self.figures.with_suffix(".part")
        part.write_text(json.dumps(self.found), encoding="utf-8")
        part.replace(self.figures)

    def read_models(self) -> list[ModelFile]:
        """Read every model of the folder."""
        return [read_model(path) for path in find_models([self.models])]


def doctor(step: Step) -> None:
    """Start every device, and convolutions in both precisions, with and without asymmetric padding left in them."""
    from ensemble.runtime.doctor import doctor as run_doctor
    from ensemble.runtime.proof import convolution_model, proofs_of

    found = run_doctor().as_dict()
    devices: Any = found["devices"]
    (device,) = (one for one in devices if one["device"] == "cuda:0")
    gpu, versions = describe_gpu(0), cuda_versions()
    step.keep(
        doctor=found,
        gpu=None if gpu is None else gpu.name,
        capability=None if gpu is None else gpu.capability,
        cuda=versions.runtime,
        cudnn=versions.cudnn,
        driver=versions.driver,
        **{"cuda:0": {"works": device["works"], "cause": device["cause"]}},
    )
    convolutions: dict[str, str] = {}
    for proof in proofs_of(CUDA)[1:] if device["works"] else ():
        precision = proof.name.split()[-1]
        for name, data in (("split", proof.model), ("unsplit", convolution_model(precision, split=False))):
            try:
                session, _ = start_runtime(data, CUDA, None, proof.provider_options)
                said = proof.fault(session.run(None, proof.inputs)[0]) or "ok"
            except Exception:  # noqa: BLE001 - onnxruntime raises its errors as bare Exceptions
                said = traceback.format_exc()
            convolutions[f"{precision}, asymmetric padding {name}"] = said
    step.keep(
        convolutions=convolutions,
        summary=[f"{gpu}", f"CUDA {versions.runtime}, cuDNN {versions.cudnn}, driver for CUDA {versions.driver}"],
    )


def tests(step: Step) -> None:
    """Run the tests that need a GPU."""
    report = step.work / "tests.xml"
    options = ["-o", "addopts=", "-p", "no:cacheprovider", "-m", "gpu", "-q", "-rs", f"--junitxml={report}", "tests"]
    done = subprocess.run([sys.executable, "-m", "pytest", *options], cwd=ROOT, stdout=sys.stderr, check=False)
    if not report.exists():
        raise RuntimeError(f"pytest ended with status {done.returncode} and wrote no report")
    cases = list(ElementTree.parse(report).iter("testcase"))
    failed = [one for one in cases if one.find("failure") is not None or one.find("error") is not None]
    skipped = [one for one in cases if one.find("skipped") is not None]
    passed = len(cases) - len(failed) - len(skipped)
    names = [f"{one.get('classname')}.{one.get('name')}" for one in failed]
    summary = [f"{passed} passed, {len(skipped)} skipped"]
    step.keep(passed=passed, skipped_tests=len(skipped), failed=len(failed), names=names, summary=summary)


def parity(step: Step) -> None:
    """Predict the same images on the GPU and on the CPU, with each model and a small one with asymmetric padding."""
    from tests.support import toys

    small = toys.card("asymmetric", size=(64, 64))
    made = toys.write_model(step.work / "asymmetric", small, proto=toys.convolutional_proto(small, asymmetric=True))
    compared: dict[str, Any] = {}
    for model in [*step.read_models(), read_model(made)]:
        name = f"{model.path.stem} {model.card.precision}"
        try:
            compared[name] = compare(step, model)
        except EnsError as err:
            traceback.print_exc()
            compared[name] = {"failure": str(err), "precision": model.card.precision}
        step.keep(models=compared)
    worst = max((one["error"] for one in compared.values() if "error" in one), default=float("nan"))
    step.keep(summary=[f"{len(compared)} models, relative error {worst:.1e} at most"])


def compare(step: Step, model: ModelFile) -> dict[str, Any]:
    """Return how far a model's logits on the GPU are from those on the CPU, over both views."""
    import numpy as np

    from ensemble.images.listing import list_images
    from ensemble.images.views import parse_views
    from ensemble.predict.options import RunOptions
    from ensemble.predict.predict import predict
    from ensemble.predictions.dataset import read_predictions
    from ensemble.runtime.parity import relative_error

    ids = list_images(step.images, None).ids[:COMPARED]
    logits = []
    for device in (CPU, CUDA):
        folder = step.work / "parity" / f"{model.sha256[:8]}-{device.kind}"
        options = RunOptions(device=str(device), fresh=True)
        done = predict([model.path], step.images, folder, views=parse_views("hflip"), ids=ids, options=options)
        logits.append(read_predictions(done.members[0].folder).logits)
    expected, found = (np.stack([values[view] for view in sorted(values)], axis=1) for values in logits)
    changed = int((expected.argmax(axis=2) != found.argmax(axis=2)).sum())
    error = relative_error(expected, found)
    return {
        "error": error,
        "changed": changed,
        "images": expected.size // expected.shape[2],
        "precision": model.card.precision,
    }


def options(step: Step) -> None:
    """Time the provider options for each network, at two batch sizes, and look for the tensor cores."""
    from tests.on_gpu.options import measure_options

    rates: dict[str, Any] = {}
    cores: dict[str, Any] = {}
    kernels: dict[str, Any] = {}
    for model in one_per_network(step.read_models()):
        name = f"{model.card.arch} {model.card.precision}"
        for rows in ROWS:
            found = measure_options(model, rows)
            if rows == ROWS[0]:
                cores[name], kernels[name] = found.tensor_cores, found.kernels
            rates[f"{name}, {rows}"] = found.passes_per_second
            step.keep(rates=rates, tensor_cores=cores, kernels=kernels)
    best = [f"{name}: {max(found.values(), default=0):,.0f} passes/s" for name, found in rates.items()]
    step.keep(summary=best)


def one_per_network(models: Sequence[ModelFile]) -> list[ModelFile]:
    """Return the first model of each architecture and precision, float16 before float32."""
    chosen: dict[tuple[str, str], ModelFile] = {}
    for model in models:
        chosen.setdefault((model.card.precision, model.card.arch), model)
    return [chosen[key] for key in sorted(chosen)]


def r2(step: Step) -> None:
    """Predict 12,600 images with one model per architecture."""
    from tests.on_gpu.jobs import decode_rate, repeat_images, time_contenders

    models = preferred(step.read_models())
    images = repeat_images(step.images, step.work / "many")
    rate = decode_rate(images, models)
    step.keep(members=[model.card.member for model in models], decoding=rate)
    step.keep(**time_contenders(models, images, step.keep, decoding=rate))


def r10(step: Step) -> None:
    """Predict them with five folds of each, and compare with the plain loops on two of the ten."""
    from tests.on_gpu.jobs import make_folds, repeat_images, time_contenders, time_loops

    models = [fold for model in preferred(step.read_models()) for fold in make_folds(model, step.work / "folds")]
    images = repeat_images(step.images, step.work / "many")
    step.keep(members=[model.card.member for model in models])
    found = time_contenders(models, images, step.keep)
    step.keep(**found)
    step.keep(**time_loops(models, images, step.keep, ours=found["seconds_of_ens"]))


def preferred(models: Sequence[ModelFile]) -> list[ModelFile]:
    """Return one model per architecture, in float16 where there is one, at most two."""
    chosen: dict[str, ModelFile] = {}
    for model in one_per_network(models):
        chosen.setdefault(model.card.arch, model)
    return list(chosen.values())[:2]


STEPS: Mapping[str, Callable[[Step], None]] = {
    "doctor": doctor,
    "tests": tests,
    "parity": parity,
    "options": options,
    "r2": r2,
    "r10": r10,
}


def main(arguments: Sequence[str]) -> int:
    """Run one step; an error is one of its figures."""
    name, work, models, images, figures = arguments
    step = Step(Path(work), Path(models), Path(images), Path(figures))
    start = try_device(CUDA)
    if not start.works and name != "doctor":
        step.keep(skipped=f"no CUDA device here: {start.cause}")
        return 0
    try:
        STEPS[name](step)
    except Exception as err:  # noqa: BLE001 - whatever it is, it is told and the next step runs
        traceback.print_exc()
        step.keep(error=str(err) or type(err).__name__)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
