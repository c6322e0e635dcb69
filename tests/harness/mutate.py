"""Remove each guard in turn, in a copy of the project, and show that a test fails.

    python -m tests.harness.mutate            # all; names of files choose some: protobuf_limits.py decode.py

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

ROOT = Path(__file__).parents[2]
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
    Guard(
        "ensemble/runtime/protobuf_limits.py",
        "if counts.parts > MAX_PARTS:",
        "if False:",
        "runtime/test_protobuf_limits.py::test_too_many_parts",
    ),
    Guard(
        "ensemble/runtime/protobuf_limits.py",
        "if counts.nodes > MAX_NODES:",
        "if False:",
        "runtime/test_protobuf_limits.py::test_too_many_nodes",
    ),
    Guard(
        "ensemble/runtime/protobuf_limits.py",
        "if depth > MAX_DEPTH:",
        "if False:",
        "runtime/test_protobuf_limits.py::test_branches_inside",
    ),
    Guard(
        "ensemble/runtime/protobuf_limits.py",
        "if at + size > end:",
        "if False:",
        "runtime/test_protobuf_limits.py::test_bytes_that_are_no",
    ),
    Guard(
        "ensemble/runtime/protobuf_limits.py",
        "    if at != end:",
        "    if False:",
        "runtime/test_protobuf_limits.py::test_bytes_that_are_no",
    ),
    Guard(
        "ensemble/runtime/protobuf_limits.py",
        "        raise WireError from err",
        "        pass",
        "runtime/test_model_file.py::test_a_name_that_is",
    ),
    Guard(
        "ensemble/runtime/model_file.py",
        "if not stat.S_ISREG(status.st_mode):",
        "if False:",
        "runtime/test_model_file.py::test_fault_28",
    ),
    Guard(
        "ensemble/runtime/model_file.py",
        "if status.st_size > MAX_BYTES:",
        "if False:",
        "runtime/test_protobuf_limits.py::test_too_many_bytes",
    ),
    Guard(
        "ensemble/runtime/model_file.py",
        "    if not model.graph.node:",
        "    if False:",
        "runtime/test_model_file.py::test_fault_52_a_model_without",
    ),
    Guard(
        "ensemble/runtime/model_file.py",
        "part.data_location == onnx.TensorProto.EXTERNAL or part.external_data",
        "part.data_location == onnx.TensorProto.EXTERNAL",
        "runtime/test_model_file.py::test_fault_54_data_outside",
    ),
    Guard(
        "ensemble/runtime/model_file.py",
        "part.data_location == onnx.TensorProto.EXTERNAL or part.external_data",
        "False",
        "runtime/test_model_file.py::test_fault_54_no_place",
    ),
    Guard(
        "ensemble/runtime/model_file.py",
        "part.op_type == _COMPILED",
        "False",
        "runtime/test_model_file.py::test_fault_54_a_compiled",
    ),
    Guard(
        "ensemble/runtime/model_file.py",
        "    if own:",
        "    if False:",
        "runtime/test_model_file.py::test_fault_57_operators",
    ),
    Guard(
        "ensemble/runtime/model_file.py", "needed |= {", "_ = {", "runtime/test_model_file.py::test_fault_57_a_custom"
    ),
    Guard(
        "ensemble/runtime/model_file.py",
        "if foreign := sorted(needed - _DOMAINS):",
        "if foreign := []:",
        "runtime/test_model_file.py::test_fault_57_custom",
    ),
    Guard("ensemble/runtime/model_file.py", "opset > newest or ", "", "runtime/test_model_file.py::test_fault_53"),
    Guard(
        "ensemble/runtime/model_file.py",
        " or model.ir_version > onnx.IR_VERSION",
        "",
        "runtime/test_model_file.py::test_fault_53",
    ),
    Guard(
        "ensemble/runtime/model_file.py",
        "if inputs != {",
        "if False and inputs != {",
        "runtime/test_model_file.py::test_fault_56",
    ),
    Guard(
        "ensemble/runtime/model_file.py",
        "if outputs.get(LOGITS) !=",
        "if False and outputs.get(LOGITS) !=",
        "runtime/test_model_file.py::test_fault_56",
    ),
    # images
    Guard(
        "ensemble/images/size_limits.py",
        "if width * height > max_pixels:",
        "if False:",
        "images/test_decode.py::test_fault_13",
    ),
    Guard(
        "ensemble/images/size_limits.py",
        "if max(width, height) > MAX_SIDE:",
        "if False:",
        "images/test_size_limits.py::test_images_of_one_long_side",
    ),
    Guard(
        "ensemble/images/size_limits.py",
        "if need > _ROOM * max(_SMALL, file_bytes):",
        "if False:",
        "images/test_size_limits.py::test_a_small_webp",
    ),
    Guard("ensemble/images/decode.py", "(data), formats=_FORMATS)", "(data))", "test_faults.py::test_fault_16"),
    Guard(
        "ensemble/images/decode.py",
        "if not stat.S_ISREG(os.stat(path).st_mode):",
        "if False:",
        "images/test_decode.py::test_fault_28",
    ),
    Guard(
        "ensemble/images/decode.py",
        "if (before.st_size, before.st_mtime_ns) != ",
        "if () != () and () != ",
        "images/test_decode.py::test_fault_27",
    ),
    Guard("ensemble/images/decode.py", "    if not data:", "    if False:", "images/test_decode.py::test_fault_04"),
    Guard("ensemble/images/decode.py", "if ended is None:", "if False:", "images/test_decode.py::test_fault_01"),
    Guard("ensemble/images/decode.py", "if complete else None", "", "images/test_formats.py::test_fault_02"),
    Guard(
        "ensemble/images/sample_bits.py",
        "(values >> (bits - 8))",
        "values.clip(0, 255)",
        "images/test_pixels.py::test_fault_08",
    ),
    Guard(
        "ensemble/images/decode.py",
        'if image.mode in {"I", "F"}:',
        "if False:",
        "images/test_pixels.py::test_fault_08_numbers",
    ),
    Guard(
        "ensemble/images/decode.py",
        "if image.has_transparency_data:",
        "if False:",
        "images/test_pixels.py::test_fault_09",
    ),
    Guard(
        "ensemble/images/formats.py",
        "elif marker == 0xDD and any(body):",
        "elif False:",
        "images/test_formats.py::test_fault_02_what",
    ),
    # lists of images
    Guard("ensemble/images/listing.py", "    if escaping:", "    if False:", "images/test_listing.py::test_fault_31"),
    Guard(
        "ensemble/images/listing.py",
        "    if unwritable:",
        "    if False:",
        "images/test_listing.py::test_fault_17_names",
    ),
    Guard(
        "ensemble/images/listing.py",
        "        if len(candidates) > 1:",
        "        if False:",
        "images/test_listing.py::test_fault_19",
    ),
    Guard(
        "ensemble/images/listing.py", "        if cased:", "        if False:", "images/test_listing.py::test_fault_20"
    ),
    Guard("ensemble/images/listing.py", "    if repeated:", "    if False:", "images/test_listing.py::test_fault_21"),
    Guard(
        "ensemble/images/listing.py",
        "followlinks=False",
        "followlinks=True",
        "images/test_listing.py::test_fault_25_linked",
    ),
    Guard("ensemble/images/listing.py", "    if irregular:", "    if False:", "images/test_listing.py::test_fault_28"),
    Guard(
        "ensemble/images/listing.py",
        "    if _is_image(name):",
        "    if False:",
        "images/test_listing.py::test_fault_30_lists",
    ),
    # tables and submissions
    Guard(
        "ensemble/text/csv_table.py",
        '    if "\\0" in text:',
        "    if False:",
        "text/test_csv_table.py::test_fault_30_broken",
    ),
    Guard(
        "ensemble/text/csv_table.py",
        "    if len(set(header)) != len(header):",
        "    if False:",
        "text/test_csv_table.py::test_fault_30_broken",
    ),
    Guard(
        "ensemble/text/csv_table.py",
        "        if len(row) != len(header):",
        "        if False:",
        "text/test_csv_table.py::test_fault_30_broken",
    ),
    Guard(
        "ensemble/text/csv_table.py",
        "        if repeated:",
        "        if False:",
        "text/test_csv_table.py::test_fault_21",
    ),
    Guard(
        "ensemble/text/csv_table.py", "        if empty:", "        if False:", "text/test_csv_table.py::test_fault_21"
    ),
    Guard(
        "ensemble/submission/lint_answers.py",
        "0 <= int(answer) < classes",
        "True",
        "submission/test_lint.py::test_fault_88_each",
    ),
    Guard(
        "ensemble/submission/lint.py",
        "        if name in first_line:",
        "        if False:",
        "submission/test_lint.py::test_fault_88_each",
    ),
    Guard(
        "ensemble/submission/lint.py",
        "[name for name in wanted if name not in first_line]",
        "[]",
        "submission/test_lint.py::test_fault_88_each",
    ),
    Guard(
        "ensemble/submission/lint.py",
        "            if name != other:",
        "            if False:",
        "submission/test_lint.py::test_fault_88_each",
    ),
    Guard(
        "ensemble/submission/lint.py",
        "    if header != list(columns):",
        "    if False:",
        "submission/test_lint.py::test_fault_88_each",
    ),
    Guard(
        "ensemble/submission/write.py", "    if formulas:", "    if False:", "submission/test_write.py::test_fault_32"
    ),
    Guard(
        "ensemble/submission/write.py",
        "    if len(answers) > 1 and len(set(answers)) == 1:",
        "    if False:",
        "submission/test_write.py::test_fault_89",
    ),
    Guard("ensemble/blend/recipe.py", "OverflowError, ", "", "blend/test_recipe.py::test_what_is_not_a_recipe"),
    Guard(
        "ensemble/blend/recipe.py",
        "not 1 / _MAX_SCALE <= group.temperature <= _MAX_SCALE",
        "False",
        "test_faults.py::test_fault_84_a",
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
    Guard("ensemble/files.py", "    if found is not None:", "    if False:", "test_files.py::test_fault_66"),
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
        "checkpoints/loading/container.py",
        "if not stat.S_ISREG(status.st_mode):",
        "if False:",
        "checkpoints/loading/test_open.py::test_a_path_that",
    ),
    Guard(
        "checkpoints/loading/container.py",
        "if unpacked > size * (100 if is_npz else 1):",
        "if False:",
        "checkpoints/loading/test_open.py::test_a_compressed",
    ),
    Guard(
        "checkpoints/loading/container.py",
        "archive.testzip() or ",
        "",
        "checkpoints/loading/test_open.py::test_fault_40_a_flipped",
    ),
    Guard(
        "checkpoints/loading/container.py",
        "part.file_size > 0 and bool(",
        "part.file_size < 0 and bool(",
        "checkpoints/loading/test_open.py::test_fault_40_a_part",
    ),
    Guard(
        "checkpoints/loading/container.py",
        '"constants.pkl" in last or ',
        "",
        "checkpoints/loading/test_open.py::test_fault_36_a_torch",
    ),
    Guard(
        "checkpoints/loading/container.py",
        "if (other := describe_archive(names)) is not None:",
        "if False:",
        "checkpoints/loading/test_open.py::test_another_zip",
    ),
    Guard(
        "checkpoints/loading/container.py",
        'if not head.startswith(b"PK\\x03\\x04"):',
        "if False:",
        "checkpoints/loading/test_hostile.py::test_fault_35_an_archive",
    ),
    Guard(
        "checkpoints/loading/container.py",
        "part.filename.lower()",
        "part.filename",
        "checkpoints/loading/test_hostile.py::test_fault_35_no_hostile",
    ),
    Guard(
        "checkpoints/loading/container.py",
        "archive.read(part)",
        "archive.read(part.filename)",
        "checkpoints/loading/test_hostile.py::test_fault_35_no_hostile",
    ),
    Guard(
        "checkpoints/loading/pickle_allowlist.py",
        "    refuse_commands(names, path)\n",
        "",
        "checkpoints/loading/test_hostile.py::test_fault_35_a_command_beside",
    ),
    Guard(
        "checkpoints/loading/pickle_allowlist.py",
        "if found.exceeded is not None:",
        "if False:",
        "checkpoints/loading/test_pickle_sandbox.py::test_fault_35_what",
    ),
    Guard(
        "checkpoints/loading/pickle_sandbox.py",
        "resource.RLIMIT_AS: memory,",
        "",
        "checkpoints/loading/test_pickle_sandbox.py::test_fault_35_what",
    ),
    Guard(
        "checkpoints/loading/pickle_sandbox.py",
        "resource.RLIMIT_CPU: seconds,",
        "",
        "checkpoints/loading/test_pickle_sandbox.py::test_fault_35_what",
    ),
    Guard(
        "checkpoints/loading/pickle_sandbox.py",
        "resource.RLIMIT_NOFILE: 3,",
        "",
        "checkpoints/loading/test_pickle_sandbox.py::test_a_child_opens",
    ),
    Guard(
        "checkpoints/loading/pickle_reader.py",
        "min(count, _PIECE)",
        "count",
        "checkpoints/loading/test_pickle_sandbox.py::test_fault_38",
    ),
    Guard(
        "checkpoints/loading/tensors.py",
        "if size > os.fstat(file.fileno()).st_size - file.tell():",
        "if False:",
        "checkpoints/loading/test_reader.py::test_storages_beyond",
    ),
    Guard(
        "checkpoints/loading/weight_checks.py",
        "if tensor.numel() * tensor.element_size() > size:",
        "if False:",
        "checkpoints/loading/test_open.py::test_a_shape",
    ),
    Guard(
        "checkpoints/loading/weight_checks.py",
        "    if broken:",
        "    if False:",
        "checkpoints/loading/test_open.py::test_fault_48",
    ),
    # images that could not be read
    Guard(
        "ensemble/text/csv_table.py",
        'if cell.startswith((*FORMULA, "\\t", "\\r")) else cell',
        "if False else cell",
        "predict/test_crashes.py::test_fault_32",
    ),
    Guard(
        "ensemble/images/sandbox.py",
        '        if not answer.endswith(b"\\n"):',
        "        if False:",
        "predict/test_crashes.py::test_fault_65_a_decoder",
    ),
    Guard(
        "ensemble/predict/crash_note.py",
        "    except MemoryError as err:",
        "    except ZeroDivisionError as err:",
        "predict/test_crashes.py::test_fault_63_memory_that_runs_out_while",
    ),
    Guard(
        "ensemble/predictions/members.py",
        "    if missing and not allow_missing:",
        "    if False:",
        "predict/test_bad_images.py::test_a_submission_lacks_rows",
    ),
    Guard(
        "ensemble/submit/submit.py",
        "    if not destination.allow_missing:",
        "    if False:",
        "predict/test_bad_images.py::test_submit_fills_as_predict",
    ),
    Guard(
        "ensemble/predictions/dataset.py",
        "wanted.intersection(member.missing)",
        "wanted.intersection(())",
        "predict/test_bad_images.py::test_what_is_compared",
    ),
    Guard(
        "ensemble/blend/blend.py",
        "_rows_without(sorted_ids, filled)",
        "_rows_without(sorted_ids, ())",
        "predict/test_bad_images.py::test_filled_rows_make_no_member",
    ),
    # learning
    Guard(
        "ensemble/learn/selection.py",
        "s.value[one] - s.value[0] - errors * s.error(one, 0) > _ROUNDING",
        "s.value[one] - s.value[0] - errors * s.error(one, 0) > 0",
        "learn/test_selection.py::test_members_that_differ_by_rounding",
    ),
    # texts, label spaces and terminals
    Guard(
        "ensemble/text/json_text.py",
        "    if len(value) < len(pairs):",
        "    if False:",
        "test_plain_text.py::test_a_name_that_is_given_twice",
    ),
    Guard(
        "ensemble/text/json_text.py",
        "except RecursionError as err:",
        "except ZeroDivisionError as err:",
        "test_plain_text.py::test_what_is_no_json",
    ),
    Guard(
        "ensemble/text/plain_numbers.py",
        'if not number.isascii() or "_" in number:',
        "if False:",
        "test_plain_text.py::test_only_plain_digits",
    ),
    Guard(
        "ensemble/terminal.py", "else _OBEYED.sub(_escaped, text)", "else text", "test_terminal.py::test_nothing_from"
    ),
    # pixels that are missing, boxes of other images
    Guard(
        "ensemble/images/completeness.py",
        "    if count > allowed:",
        "    if False:",
        "images/test_completeness.py::test_a_jpeg_of_thousands",
    ),
    Guard(
        "ensemble/images/completeness.py",
        "_inflated(data, parts, wanted) < wanted",
        "False",
        "images/test_completeness.py::test_a_png_of_too_few",
    ),
    Guard(
        "ensemble/images/face_boxes.py",
        "        if self.fits(width, height):",
        "        if True:",
        "images/test_face_boxes.py::test_a_box_of_another_image",
    ),
    # arrays that unpack to gigabytes
    Guard(
        "ensemble/text/bounded_tables.py",
        "    if count * kind.itemsize > part.file_size:",
        "    if False:",
        "text/test_bounded_tables.py::test_an_array_that_declares",
    ),
    # answers that depend on chance or on the other images of a batch
    Guard(
        "ensemble/runtime/independence.py",
        "    if proof.chance:",
        "    if False:",
        "runtime/test_independence.py::test_a_network_that_draws",
    ),
    Guard(
        "ensemble/runtime/independence.py",
        "not compare_logits(expected, found, limit=limit).holds",
        "False",
        "runtime/test_independence.py::test_a_network_that_mixes",
    ),
    # what a run that did not end has left
    Guard(
        "ensemble/kept_arrays.py",
        'hashlib.sha256(data).hexdigest() != header["sha256"]',
        "False",
        "test_kept_arrays.py::test_damaged_files",
    ),
    Guard(
        "ensemble/kept_arrays.py",
        'if header["key"] != key or',
        "if",
        "test_kept_arrays.py::test_arrays_of_another_run",
    ),
    Guard(
        "exporters/finished_models.py",
        'found["checkpoint"] != state',
        "False",
        "exporters/test_finished_models.py::test_a_checkpoint_that_was_written",
    ),
)


def main() -> int:
    """Run the guards that were asked for; 1 when one of them was not missed."""
    wanted = sys.argv[1:]
    guards = [guard for guard in GUARDS if not wanted or Path(guard.file).name in wanted]
    missed = []
    with tempfile.TemporaryDirectory() as folder:
        for package in ("ensemble", "checkpoints", "exporters", "tests", "docs"):
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
