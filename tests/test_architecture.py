"""The rules that keep the shape: layers, one loader, one exporter, one writer, one printer, a light start."""

from __future__ import annotations

import ast
import importlib.util
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.sources import PACKAGES, ROOT, SOURCES, calls, tree

HEAVY = {"numpy", "torch", "onnxruntime", "onnx", "pyarrow", "PIL", "scipy", "sklearn", "tqdm", "timm"}


def name(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def check(*command: str) -> None:
    done = subprocess.run([sys.executable, "-m", *command], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{' '.join(command)}\n{done.stdout}{done.stderr}"


def test_ruff_finds_nothing() -> None:
    """ruff's rules hold everywhere."""
    check("ruff", "check", ".")


def test_the_code_is_formatted() -> None:
    """ruff would not reformat a file."""
    check("ruff", "format", "--check", ".")


@pytest.mark.slow
def test_mypy_strict_finds_nothing() -> None:
    """mypy in strict mode accepts the packages and the tests."""
    check("mypy")


def test_imports_keep_their_layers() -> None:
    """exporters may import checkpoints, both may import ensemble, and ensemble imports neither them nor torch."""
    command = "from importlinter.cli import lint_imports_command; lint_imports_command()"
    done = subprocess.run([sys.executable, "-c", command], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_nothing_unpickles() -> None:
    """No module calls torch.load or loads pickles by another name, and numpy is told not to."""
    loaders = {"torch.load", "torch.jit.load", "pickle.load", "pickle.loads", "pickle.Unpickler", "joblib.load"}
    for path in SOURCES:
        for called, call in calls(path):
            assert called not in loaders | {"eval", "exec"}, name(path)
            if called in {"np.load", "numpy.load"}:
                assert "allow_pickle=False" in ast.unparse(call), name(path)


def test_torch_onnx_is_touched_in_one_place() -> None:
    """Only exporters/export.py uses torch.onnx."""
    pattern = re.compile(r"torch\.onnx|from torch import onnx")
    assert [name(path) for path in SOURCES if pattern.search(code_of(path))] == ["exporters/export.py"]


def code_of(path: Path) -> str:
    """The file without docstrings and comments."""
    found = ast.parse(path.read_text(encoding="utf-8"))
    for node in ast.walk(found):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str):
            node.value.value = ""
    return ast.unparse(found)


def test_only_files_opens_for_writing() -> None:
    """Every file is written through ensemble/files.py (a crash report apart)."""
    writers = {"write_text", "write_bytes", "to_csv", "np.save", "np.savez", "torch.save", "save_file", "tofile"}
    for path in SOURCES:
        if name(path) == "ensemble/files.py":
            continue
        for called, call in calls(path):
            if called != "safetensors.torch.save":  # gives bytes
                assert not any(f".{called}".endswith(f".{writer}") for writer in writers), f"{name(path)}: {called}"
            if called in {"open", "io.open"} or called.endswith(".open"):
                modes = [arg.value for arg in call.args[1:2] if isinstance(arg, ast.Constant)]
                modes += [k.value.value for k in call.keywords if k.arg == "mode" and isinstance(k.value, ast.Constant)]
                assert not any(set(str(mode)) & set("wax+") for mode in modes), name(path)


def test_only_the_command_line_prints_and_exits() -> None:
    """Only the terminal module calls print and click.echo, and only __main__ sets an exit status."""
    for path in SOURCES:
        called = {called for called, _ in calls(path)}
        if name(path) != "ensemble/terminal.py":
            assert not called & {"print", "click.echo", "click.secho", "sys.stdout.write", "sys.stderr.write"}, name(
                path
            )
        if name(path) != "ensemble/__main__.py":
            assert not called & {"sys.exit", "exit", "quit", "os._exit"}, name(path)


def test_every_test_states_a_claim() -> None:
    """Each test has a docstring of at least four words."""
    for path in (ROOT / "tests").rglob("test_*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.FunctionDef) and node.name.startswith("test_"):
                assert len((ast.get_docstring(node) or "").split()) >= 4, f"{path.name}: {node.name}"


def test_the_command_line_starts_light() -> None:
    """At module level the command line imports the standard library, click, and our own light modules."""
    light = {
        f"ensemble.{module}"
        for module in (
            "cli",
            "error_codes",
            "errors",
            "events",
            "model_codes",
            "prediction_codes",
            "progress_lines",
            "run_codes",
            "stop_signals",
            "terminal",
        )
    } | {"click"}
    light |= {"checkpoints.training.settings", "checkpoints.data.table_options"}  # for the defaults of `ens train`
    modules = [ROOT / "ensemble" / module for module in ("cli.py", "__main__.py", "terminal.py", "errors.py")]
    modules += [ROOT / "ensemble" / "events.py", ROOT / "ensemble" / "error_codes.py"]
    modules += [
        ROOT / "ensemble" / "run_codes.py",
        ROOT / "ensemble" / "model_codes.py",
        ROOT / "ensemble" / "prediction_codes.py",
    ]
    modules += [ROOT / "ensemble" / "progress_lines.py", ROOT / "ensemble" / "stop_signals.py"]
    modules += [ROOT / "checkpoints" / "training" / "settings.py", ROOT / "checkpoints" / "data" / "table_options.py"]
    for module in (*modules, *(ROOT / "ensemble" / "commands").glob("*.py")):
        for node in tree(module).body:
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [str(node.module)] if isinstance(node, ast.ImportFrom) else []
            for found in names:
                own = found in light or found.startswith(("click.", "ensemble.commands."))
                assert own or found.partition(".")[0] in sys.stdlib_module_names, f"{module}: {found}"


def test_help_imports_nothing_heavy() -> None:
    """After `ens --help`, none of numpy, torch, onnxruntime and the like has been imported."""
    code = "import sys; from ensemble.__main__ import run; run(['--help']); print(*sys.modules, file=sys.stderr)"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert "Usage: ens" in done.stdout
    assert not HEAVY & {module.partition(".")[0] for module in done.stderr.split()}


def test_help_needs_click_alone() -> None:
    """`ens --help` imports no other project's package than click."""
    code = "import sys; from ensemble.__main__ import run; run(['--help']); print(*sys.modules, file=sys.stderr)"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    before = subprocess.run(
        [sys.executable, "-c", "import sys; print(*sys.modules)"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    found = set(done.stderr.split()) - set(before.stdout.split())
    packages = {module.partition(".")[0] for module in found} - set(sys.stdlib_module_names)
    assert {package for package in packages if not package.startswith("_")} <= {"click", "ensemble", "checkpoints"}


@pytest.mark.parametrize("package", PACKAGES)
def test_packages_say_they_are_typed(package: str) -> None:
    """Each package carries the marker by which type checkers read its annotations."""
    assert (ROOT / package / "py.typed").exists()


def test_files_stay_readable() -> None:
    """No source file grows beyond 400 lines."""
    long = [f"{name(path)}: {len(path.read_text().splitlines())}" for path in SOURCES]
    assert not [entry for entry in long if int(entry.rpartition(" ")[2]) > 400]


def test_every_class_and_type_alias_has_a_name_of_its_own() -> None:
    """No two classes or module-level type aliases of the packages share a name, with or without an underscore."""
    owners: dict[str, list[str]] = {}
    for path in SOURCES:
        found = [node.name for node in ast.walk(tree(path)) if isinstance(node, ast.ClassDef)]
        for node in tree(path).body:
            targets = node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", None)]
            found += [target.id for target in targets if isinstance(target, ast.Name)]
        for found_name in [one.lstrip("_") for one in found]:
            if found_name[0].isupper() and not found_name.isupper():
                owners.setdefault(found_name, []).append(name(path))
    assert {found_name: paths for found_name, paths in owners.items() if len(paths) > 1} == {}


def functions() -> Iterator[tuple[str, ast.FunctionDef | ast.AsyncFunctionDef]]:
    """Every function and method of the packages, by its file and name."""
    for path in SOURCES:
        for node in ast.walk(tree(path)):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                yield f"{name(path)}: {node.name}", node


def test_functions_stay_short() -> None:
    """No function has more than 80 lines, or more than 60 without its signature and docstring."""
    for place, node in functions():
        body = node.body[1:] if ast.get_docstring(node) is not None else node.body
        last = node.end_lineno or 0
        assert last - node.lineno < 80, place
        assert not body or last - body[0].lineno < 60, place


def test_functions_take_few_parameters() -> None:
    """No function takes more than eight parameters, apart from the bodies of commands, whose options click gives."""
    for place, node in functions():
        given = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]
        own = [argument for argument in given if argument.arg not in {"self", "cls"}]
        command = any("command(" in ast.unparse(decorator) for decorator in node.decorator_list)
        assert command or len(own) <= 8, f"{place} takes {len(own)}"


def test_no_lock_file_is_kept() -> None:
    """uv.lock is ignored by git: it would record where every package was fetched from."""
    assert "uv.lock" in (ROOT / ".gitignore").read_text().split()


@pytest.mark.slow
def test_the_quick_loop_does_not_import_torch() -> None:
    """Collecting what is not marked slow imports neither torch nor timm: a test that needs them is marked."""
    code = "import sys, pytest; status = pytest.main(sys.argv[1:]); print({'torch', 'timm'} & set(sys.modules), status)"
    options = ("-m", "not slow", "--collect-only", "-q", "-n", "0", "-p", "no:cacheprovider")
    done = subprocess.run([sys.executable, "-c", code, *options], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.stdout.splitlines()[-1] == "set() 0", done.stdout[-2000:] + done.stderr


def test_the_suite_needs_no_installed_package_beyond_the_project() -> None:
    """The packages under test are those of this checkout, not another installation's."""
    for package in PACKAGES:
        spec = importlib.util.find_spec(package)
        assert spec is not None
        assert Path(os.path.realpath(spec.origin or "")).is_relative_to(os.path.realpath(ROOT))
