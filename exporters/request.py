"""The combinations of `ens export`'s options that make sense, checked before torch is imported."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from checkpoints.loading.hub import is_name
from ensemble.card import NearTies, Precision, Quantization
from ensemble.errors import FileError, OptionError
from ensemble.install import install_command
from ensemble.runtime.openvino import openvino_version


def require_share(least_agreement: float | None) -> None:
    """Check the share of the answers that must stay those of float32.

    Raises:
        OptionError: E204 when it is below 0.5, or 1 and more.
    """
    if least_agreement is not None and not 0.5 <= least_agreement < 1:
        raise OptionError("E204", f"--least-agreement is a share from 0.5 to below 1, got {least_agreement:g}")


@dataclass(frozen=True, slots=True)
class ExportRequest:
    """Checkpoints to export, and the folders of images to verify, calibrate and evaluate on.

    ``calibrate`` is the folder that int8 is calibrated and evaluated on; ``truth`` is the ground truth of the images
    that are evaluated; ``least_agreement`` is the share of their answers that must stay those of float32. ``boxes`` are
    the face boxes of the images in either folder.

    Raises:
        OptionError: E204 when options contradict each other.
        FileError: E707 when a checkpoint, a folder of images or a table does not exist.
    """

    checkpoints: tuple[Path, ...]
    precision: Precision = "fp32"
    quantization: Quantization | None = None
    member: str | None = None
    check_images: Path | None = None
    calibrate: Path | None = None
    truth: Path | None = None
    boxes: Path | None = None
    least_agreement: float | None = None
    near_ties: NearTies | None = None

    def __post_init__(self) -> None:
        if self.member is not None and len(self.checkpoints) > 1:
            raise OptionError("E204", f"--member names one model, got {len(self.checkpoints)} checkpoints")
        if self.boxes is not None and self.check_images is None and self.calibrate is None:
            raise OptionError("E204", "--boxes needs the images that it belongs to: --check-images or --calibrate")
        if (self.calibrate is None) == (self.precision == "int8"):
            raise OptionError("E204", "--precision int8 and --calibrate belong together; give both or neither")
        judged = self.calibrate is not None or self.check_images is not None
        if self.quantization is not None and self.precision != "int8":
            raise OptionError("E204", f"--quantization is for --precision int8, not {self.precision}")
        if self.truth is not None and (self.precision == "fp32" or not judged):
            raise OptionError(
                "E204", "--truth judges int8 on the images of --calibrate, or fp16 on those of --check-images"
            )
        require_share(self.least_agreement)
        is_judged = self.precision == "int8" or self.truth is not None
        if self.least_agreement is not None and not is_judged:
            raise OptionError(
                "E204", "--least-agreement is for the check of int8, or of fp16 with --truth: nothing else is compared"
            )
        if self.quantization == "openvino" and openvino_version() == "missing":
            raise OptionError(
                "E204",
                "--quantization openvino chooses and judges with OpenVINO, which is not installed",
                hint=f"{install_command(extra='openvino')}, or give --quantization asymmetric",
            )
        if self.near_ties == "fp32" and (self.precision != "int8" or self.quantization == "symmetric"):
            raise OptionError("E204", "--near-ties fp32 is for --precision int8, but not with --quantization symmetric")
        for path in self.checkpoints:
            if not path.exists() and not is_name(path):
                raise FileError("E707", f"{path} does not exist", path=path)
        for option, folder in (("--check-images", self.check_images), ("--calibrate", self.calibrate)):
            if folder is not None and not folder.is_dir():
                raise FileError("E707", f"{option} {folder} is not a folder", path=folder)
        for option, file in (("--truth", self.truth), ("--boxes", self.boxes)):
            if file is not None and not file.is_file():
                raise FileError("E707", f"{option} {file} is not a file", path=file)
