"""Remove each guard in turn, in a copy of the project, and show that a test fails.

    python -m tests.mutate            # all; names of files choose some: python -m tests.mutate wire.py images.py

A guard is a piece of code that stands once in its file. It is replaced by what the code would be without it, and the
named tests are run; they must pass before and fail after. pytest does not collect this file.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[1]
_SECONDS = 180  # a test that hangs without its guard has failed


@dataclass(frozen=True, slots=True)
class Guard:
    """``code`` in ``file``, what is left ``without`` it, and the ``test`` (file and, after ::, name) that must fail."""

    file: str
    code: str
    without: str
    test: str


GUARDS = (
    # ONNX files
    Guard("ensemble/wire.py", "if counts.parts > MAX_PARTS:", "if False:", "test_wire.py::test_too_many_parts"),
    Guard("ensemble/wire.py", "if counts.nodes > MAX_NODES:", "if False:", "test_wire.py::test_too_many_nodes"),
    Guard("ensemble/wire.py", "if depth > MAX_DEPTH:", "if False:", "test_wire.py::test_branches_inside"),
    Guard("ensemble/wire.py", "if at + size > end:", "if False:", "test_wire.py::test_bytes_that_are_no"),
    Guard("ensemble/wire.py", "    if at != end:", "    if False:", "test_wire.py::test_bytes_that_are_no"),
    Guard(
        "ensemble/wire.py",
        "        raise WireError from err",
        "        pass",
        "test_model_file.py::test_a_name_that_is",
    ),
    Guard(
        "ensemble/model_file.py",
        "if not stat.S_ISREG(status.st_mode):",
        "if False:",
        "test_model_file.py::test_fault_28",
    ),
    Guard("ensemble/model_file.py", "if status.st_size > MAX_BYTES:", "if False:", "test_wire.py::test_too_many_bytes"),
    Guard(
        "ensemble/model_file.py",
        "    if not model.graph.node:",
        "    if False:",
        "test_model_file.py::test_fault_52_what",
    ),
    Guard(
        "ensemble/model_file.py",
        "part.data_location == onnx.TensorProto.EXTERNAL or part.external_data",
        "part.data_location == onnx.TensorProto.EXTERNAL",
        "test_model_file.py::test_fault_54_data_outside",
    ),
    Guard(
        "ensemble/model_file.py",
        "part.data_location == onnx.TensorProto.EXTERNAL or part.external_data",
        "False",
        "test_model_file.py::test_fault_54_no_place",
    ),
    Guard(
        "ensemble/model_file.py", "part.op_type == _COMPILED", "False", "test_model_file.py::test_fault_54_a_compiled"
    ),
    Guard("ensemble/model_file.py", "    if own:", "    if False:", "test_model_file.py::test_fault_57_operators"),
    Guard("ensemble/model_file.py", "needed |= {", "_ = {", "test_model_file.py::test_fault_57_a_custom"),
    Guard(
        "ensemble/model_file.py",
        "if foreign := sorted(needed - _DOMAINS):",
        "if foreign := []:",
        "test_model_file.py::test_fault_57_custom",
    ),
    Guard("ensemble/model_file.py", "opset > newest or ", "", "test_model_file.py::test_fault_53"),
    Guard("ensemble/model_file.py", " or model.ir_version > onnx.IR_VERSION", "", "test_model_file.py::test_fault_53"),
    Guard("ensemble/model_file.py", "if inputs != {", "if False and inputs != {", "test_model_file.py::test_fault_56"),
    Guard(
        "ensemble/model_file.py",
        "if outputs.get(LOGITS) !=",
        "if False and outputs.get(LOGITS) !=",
        "test_model_file.py::test_fault_56",
    ),
    # images
    Guard("ensemble/images.py", "if width * height > max_pixels:", "if False:", "test_images.py::test_fault_13"),
    Guard("ensemble/images.py", "(data), formats=_FORMATS)", "(data))", "test_faults.py::test_fault_16"),
    Guard(
        "ensemble/images.py",
        "if not stat.S_ISREG(os.stat(path).st_mode):",
        "if False:",
        "test_images.py::test_fault_28",
    ),
    Guard(
        "ensemble/images.py",
        "if (before.st_size, before.st_mtime_ns) != ",
        "if () != () and () != ",
        "test_images.py::test_fault_27",
    ),
    Guard("ensemble/images.py", "    if not data:", "    if False:", "test_images.py::test_fault_04"),
    Guard("ensemble/images.py", "if ended is None:", "if False:", "test_images.py::test_fault_01"),
    Guard("ensemble/images.py", "if complete else None", "", "test_headers.py::test_fault_02"),
    Guard("ensemble/images.py", "(values >> 8)", "values.clip(0, 255)", "test_pixels.py::test_fault_08"),
    Guard("ensemble/images.py", 'if image.mode in {"I", "F"}:', "if False:", "test_pixels.py::test_fault_08_numbers"),
    Guard("ensemble/images.py", "if image.has_transparency_data:", "if False:", "test_pixels.py::test_fault_09"),
    Guard(
        "ensemble/headers.py",
        "elif marker == 0xDD and any(body):",
        "elif False:",
        "test_headers.py::test_fault_02_what",
    ),
    # lists of images
    Guard("ensemble/listing.py", "    if escaping:", "    if False:", "test_listing.py::test_fault_31"),
    Guard("ensemble/listing.py", "    if unwritable:", "    if False:", "test_listing.py::test_fault_17_names"),
    Guard(
        "ensemble/listing.py", "        if len(candidates) > 1:", "        if False:", "test_listing.py::test_fault_19"
    ),
    Guard("ensemble/listing.py", "        if cased:", "        if False:", "test_listing.py::test_fault_20"),
    Guard("ensemble/listing.py", "    if repeated:", "    if False:", "test_listing.py::test_fault_21"),
    Guard("ensemble/listing.py", "followlinks=False", "followlinks=True", "test_listing.py::test_fault_25_linked"),
    Guard("ensemble/listing.py", "    if irregular:", "    if False:", "test_listing.py::test_fault_28"),
    Guard("ensemble/listing.py", "    if _is_image(name):", "    if False:", "test_listing.py::test_fault_30_lists"),
    # tables and submissions
    Guard("ensemble/tables.py", '    if "\\0" in text:', "    if False:", "test_tables.py::test_fault_30_broken"),
    Guard(
        "ensemble/tables.py",
        "    if len(set(header)) != len(header):",
        "    if False:",
        "test_tables.py::test_fault_30_broken",
    ),
    Guard(
        "ensemble/tables.py",
        "        if len(row) != len(header):",
        "        if False:",
        "test_tables.py::test_fault_30_broken",
    ),
    Guard("ensemble/tables.py", "        if repeated:", "        if False:", "test_tables.py::test_fault_21"),
    Guard("ensemble/tables.py", "        if empty:", "        if False:", "test_tables.py::test_fault_21"),
    Guard("ensemble/check.py", "0 <= int(answer) < classes", "True", "test_check.py::test_fault_88_each"),
    Guard("ensemble/check.py", "        if name in first:", "        if False:", "test_check.py::test_fault_88_each"),
    Guard(
        "ensemble/check.py",
        "            if name not in first:",
        "            if False:",
        "test_check.py::test_fault_88_each",
    ),
    Guard(
        "ensemble/check.py",
        "            if name != wanted:",
        "            if False:",
        "test_check.py::test_fault_88_each",
    ),
    Guard("ensemble/check.py", "    if header != list(columns):", "    if False:", "test_check.py::test_fault_88_each"),
    Guard("ensemble/submission.py", "    if formulas:", "    if False:", "test_submission.py::test_fault_32"),
    Guard(
        "ensemble/submission.py",
        "    if len(answers) > 1 and len(set(answers)) == 1:",
        "    if False:",
        "test_submission.py::test_fault_89",
    ),
    Guard("ensemble/recipe.py", "OverflowError, ", "", "test_recipe.py::test_what_is_not_a_recipe"),
    Guard(
        "ensemble/recipe.py", "not 1 / _MOST <= group.temperature <= _MOST", "False", "test_faults.py::test_fault_84_a"
    ),
    # files
    Guard("ensemble/files.py", "path.exists() and not path.is_file()", "False", "test_files.py::test_devices"),
    Guard(
        "ensemble/files.py",
        "            if not _try_lock(handle.fileno()):",
        "            if False:",
        "test_files.py::test_fault_70",
    ),
    Guard(
        "ensemble/files.py",
        "            temporary.unlink(missing_ok=True)",
        "            pass",
        "test_files.py::test_fault_66",
    ),
    Guard("ensemble/files.py", "    if err.errno in _FULL:", "    if False:", "test_files.py::test_fault_66"),
    Guard(
        "ensemble/files.py", "with open(temporary, ", "with open(temporary := path, ", "test_files.py::test_fault_66"
    ),
    Guard("ensemble/files.py", "(folder / name).unlink(missing_ok=True)", "pass", "test_files.py::test_what_a_killed"),
    Guard("ensemble/files.py", " and _is_gone(int(match[1]))", "", "test_files.py::test_what_a_killed"),
    Guard("ensemble/files.py", "_clear_leftovers(path.parent)", "pass", "test_files.py::test_what_a_killed"),
    Guard(
        "ensemble/files.py",
        "_clear_leftovers(folder)",
        "pass",
        "test_files.py::test_what_a_killed",
    ),
    # checkpoints
    Guard(
        "checkpoints/container.py",
        "if not stat.S_ISREG(status.st_mode):",
        "if False:",
        "test_open.py::test_a_path_that",
    ),
    Guard("checkpoints/container.py", "if unpacked > size:", "if False:", "test_open.py::test_a_compressed"),
    Guard("checkpoints/container.py", "archive.testzip() or ", "", "test_open.py::test_fault_40_a_flipped"),
    Guard(
        "checkpoints/container.py",
        "part.file_size > 0 and bool(",
        "part.file_size < 0 and bool(",
        "test_open.py::test_fault_40_a_part",
    ),
    Guard(
        "checkpoints/container.py", 'if "constants.pkl" in names:', "if False:", "test_open.py::test_fault_36_a_torch"
    ),
    Guard("checkpoints/container.py", 'if "data.pkl" not in names:', "if False:", "test_open.py::test_another_zip"),
    Guard(
        "checkpoints/container.py",
        'if not head.startswith(b"PK\\x03\\x04"):',
        "if False:",
        "test_hostile.py::test_fault_35_an_archive",
    ),
    Guard(
        "checkpoints/container.py",
        "part.filename.lower()",
        "part.filename",
        "test_hostile.py::test_fault_35_no_hostile",
    ),
    Guard(
        "checkpoints/container.py",
        "archive.read(part)",
        "archive.read(part.filename)",
        "test_hostile.py::test_fault_35_no_hostile",
    ),
    Guard(
        "checkpoints/open.py",
        "    refuse_programs(names, path)\n",
        "",
        "test_hostile.py::test_fault_35_a_command_beside",
    ),
    Guard(
        "checkpoints/open.py", "weights_only=True)", "weights_only=False)", "test_architecture.py::test_checkpoints_are"
    ),
    Guard(
        "checkpoints/pickles.py", "if found.exceeded is not None:", "if False:", "test_rehearse.py::test_fault_35_what"
    ),
    Guard("checkpoints/rehearse.py", "resource.RLIMIT_AS: memory,", "", "test_rehearse.py::test_fault_35_what"),
    Guard("checkpoints/rehearse.py", "resource.RLIMIT_CPU: seconds,", "", "test_rehearse.py::test_fault_35_what"),
    Guard("checkpoints/rehearse.py", "resource.RLIMIT_NOFILE: 3,", "", "test_rehearse.py::test_a_child_opens"),
    Guard("checkpoints/rehearse.py", "min(size, 1 << 20)", "size", "test_rehearse.py::test_fault_38"),
    Guard(
        "checkpoints/values.py",
        "if tensor.numel() * tensor.element_size() > size:",
        "if False:",
        "test_open.py::test_a_shape",
    ),
    Guard("checkpoints/values.py", "    if broken:", "    if False:", "test_open.py::test_fault_48"),
    # images that could not be read
    Guard(
        "ensemble/tables.py",
        'if cell.startswith((*FORMULA, "\\t", "\\r")) else cell',
        "if False else cell",
        "test_crashes.py::test_fault_32",
    ),
    Guard(
        "ensemble/isolate.py",
        '        if not answer.endswith(b"\\n"):',
        "        if False:",
        "test_crashes.py::test_fault_65_a_decoder",
    ),
    Guard(
        "ensemble/underway.py",
        "    except MemoryError as err:",
        "    except ZeroDivisionError as err:",
        "test_crashes.py::test_fault_63_memory_that_runs_out_while",
    ),
    Guard(
        "ensemble/members.py",
        "    if missing and not allow_missing:",
        "    if False:",
        "test_bad_images.py::test_a_submission_lacks_rows",
    ),
    Guard(
        "ensemble/submit.py",
        "    if not allow_missing:",
        "    if False:",
        "test_bad_images.py::test_submit_fills_as_predict",
    ),
    Guard(
        "ensemble/predictions.py",
        "wanted.intersection(member.missing)",
        "wanted.intersection(())",
        "test_bad_images.py::test_what_is_compared",
    ),
    Guard(
        "ensemble/blend.py",
        "_rows_without(inner, filled)",
        "_rows_without(inner, ())",
        "test_bad_images.py::test_filled_rows_make_no_member",
    ),
    # what is learned
    Guard(
        "ensemble/guard.py",
        "best if clear[best] > _ROUNDING else 0",
        "best",
        "test_guard.py::test_a_candidate_is_taken",
    ),
)


def main() -> int:
    """Run the guards that were asked for; 1 when one of them was not missed."""
    wanted = sys.argv[1:]
    guards = [guard for guard in GUARDS if not wanted or Path(guard.file).name in wanted]
    missed = []
    with tempfile.TemporaryDirectory() as folder:
        for package in ("ensemble", "checkpoints", "exporters", "tests"):
            shutil.copytree(ROOT / package, Path(folder, package), ignore=shutil.ignore_patterns("__pycache__"))
        for name in ("pyproject.toml", "README.md"):
            shutil.copy(ROOT / name, folder)
        for test in sorted({guard.test for guard in guards}):
            if not _passes(Path(folder), test):
                missed.append(f"{test} does not pass with its guard in place")
        for guard in guards:
            began = time.monotonic()
            caught = not _passes_without(guard, Path(folder))
            line = f"{'caught' if caught else 'MISSED'}  {guard.file}: {guard.code.strip()}  by {guard.test}"
            print(f"{line}  {time.monotonic() - began:.1f} s", flush=True)  # noqa: T201 - a program for people
            if not caught:
                missed.append(line)
    print(f"{len(guards)} guards, {len(missed)} missed", *missed, sep="\n")  # noqa: T201 - as above
    return min(1, len(missed))


def _passes_without(guard: Guard, folder: Path) -> bool:
    path = folder / guard.file
    whole = path.read_text(encoding="utf-8")
    assert whole.count(guard.code) == 1, (
        f"{guard.file} must hold {guard.code!r} once, not {whole.count(guard.code)} times"
    )
    try:
        path.write_text(whole.replace(guard.code, guard.without), encoding="utf-8")
        return _passes(folder, guard.test)
    finally:
        path.write_text(whole, encoding="utf-8")


def _passes(folder: Path, test: str) -> bool:
    file, _, name = test.partition("::")
    command = [sys.executable, "-B", "-m", "pytest", "-n", "0", "-x", "-q", "-p", "no:cacheprovider"]
    command += [f"tests/{file}", "-k", name]
    try:
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=_SECONDS, check=False)
    except subprocess.TimeoutExpired:
        return False
    if done.returncode not in {0, 1}:
        raise RuntimeError(f"{' '.join(command)}\n{done.stdout}{done.stderr}")
    return done.returncode == 0


if __name__ == "__main__":
    sys.exit(main())
