"""The command line: exit statuses, messages, JSON, signals."""

from __future__ import annotations

import errno
import importlib
import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path

import click
import numpy as np
import pytest
from click.testing import CliRunner

from ensemble import cli
from ensemble.__main__ import run
from ensemble.commands.output_paths import MEMBER
from tests.support import toys
from tests.support.children import start
from tests.support.limits import HANG

NAMES = [f"{i:03d}.jpg" for i in range(40)]


@pytest.fixture
def contest(tmp_path: Path) -> Path:
    """Forty images, three models, a sample submission and a ground truth with persons."""
    toys.write_pictures(tmp_path / "images", NAMES)
    for seed, member in enumerate(("a", "b", "c")):
        toys.write_model(tmp_path / "models", toys.card(member), seed=seed)
    answers = np.random.default_rng(0).integers(0, 18, len(NAMES))
    (tmp_path / "info.csv").write_text("ImageID,ans\n" + "".join(f"{name},0\n" for name in reversed(NAMES)))
    rows = "".join(f"{name},{answer},{i // 7}\n" for i, (name, answer) in enumerate(zip(NAMES, answers, strict=True)))
    (tmp_path / "truth.csv").write_text("ImageID,ans,person\n" + rows)
    return tmp_path


def predict(contest: Path, *more: str) -> list[str]:
    models, images, info = contest / "models", contest / "images", contest / "info.csv"
    return ["predict", f"{models}", "--images", f"{images}", "--ids", f"{info}", "--tta", "--device", "cpu", *more]


def test_the_main_job_from_models_to_scores(contest: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """predict, blend, check and evaluate end with 0; the submission has the sample's header and order."""
    preds, submission, info = f"{contest / 'preds'}", f"{contest / 'submission.csv'}", f"{contest / 'info.csv'}"
    assert run(predict(contest, "-o", preds)) == 0
    assert run(["blend", preds, "--like", info, "-o", submission, "--save", f"{contest / 'blend.json'}"]) == 0
    assert run(["check", submission, "--like", info]) == 0
    capsys.readouterr()
    assert run(["evaluate", preds, submission, "--truth", f"{contest / 'truth.csv'}", "--json"]) == 0
    names = [scores["name"] for scores in json.loads(capsys.readouterr().out)["scores"]]
    assert names == [f"{m}: {view}" for m in "abc" for view in ("identity", "hflip", "mean")] + ["submission.csv"]
    lines = Path(submission).read_text().splitlines()
    assert lines[0] == "ImageID,ans"
    assert [line.partition(",")[0] for line in lines[1:]] == list(reversed(NAMES))


def test_a_saved_recipe_gives_the_same_submission(contest: Path) -> None:
    """Applying blend.json, with the members named in another order, gives the same bytes."""
    preds = contest / "preds"
    run(predict(contest, "-o", f"{preds}"))
    options = ["--pool", "geometric", "--weights", "a=2,b=1,c=0.5", "--views", "identity=3,hflip=1"]
    members = [f"{preds / member}" for member in "abc"]
    recipe = f"{contest / 'blend.json'}"
    assert run(["blend", *members, *options, "-o", f"{contest / 'one.csv'}", "--save", recipe]) == 0
    assert run(["blend", *reversed(members), "--apply", recipe, "-o", f"{contest / 'other.csv'}"]) == 0
    assert (contest / "one.csv").read_bytes() == (contest / "other.csv").read_bytes()


@pytest.mark.parametrize(
    ("arguments", "status", "code"),
    [
        (["predict", "models", "--images", "images", "--views", "upside-down"], 2, "E201"),
        (["predict", "models", "--images", "images", "--device", "gpu"], 2, "E203"),
        (["predict", "models", "--images", "nowhere"], 3, "E316"),
        (["predict", "models/none.onnx", "--images", "images"], 7, "E707"),
        (["predict", "info.csv", "--images", "images"], 4, "E420"),
        (["blend", "models", "-o", "x.csv"], 5, "E514"),
        (["check", "truth.csv", "--like", "info.csv"], 5, "E520"),
        (["check", "none.csv"], 7, "E707"),
        (["explain-error", "E000"], 2, "E204"),
    ],
)
def test_an_error_has_a_code_a_hint_and_a_status(
    contest: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    arguments: list[str],
    status: int,
    code: str,
) -> None:
    """Each kind of error ends with its own status and says its code and what to do, without a traceback."""
    monkeypatch.chdir(contest)
    assert run(arguments) == status
    said = capsys.readouterr().err
    assert f"error[{code}]" in said
    assert "  hint: " in said
    assert "Traceback" not in said


def test_errors_are_json_where_json_was_asked_for(contest: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """With --json the error is an object with code, message and hint on stdout."""
    assert run(["check", f"{contest / 'truth.csv'}", "--like", f"{contest / 'info.csv'}", "--json"]) == 5
    error = json.loads(capsys.readouterr().out)["error"]
    assert error["code"] == "E520"
    assert {"message", "hint", "details"} <= error.keys()


def test_usage_errors_are_clicks_own(capsys: pytest.CaptureFixture[str]) -> None:
    """An unknown option ends with 2 and click's message."""
    assert run(["predict", "--no-such-option"]) == 2
    assert "No such option" in capsys.readouterr().err


def test_our_own_bugs_leave_a_report(
    contest: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """An unexpected exception ends with 1, one line, and the traceback in a file."""

    def broken(*_: object, **__: object) -> None:
        raise ZeroDivisionError("one by nought")

    monkeypatch.setattr(importlib.import_module("ensemble.predict.predict"), "predict", broken)
    assert run(predict(contest)) == 1
    said = capsys.readouterr().err
    assert said.startswith("bug: ZeroDivisionError: one by nought")
    report = Path(said.strip().rpartition(" ")[2])
    assert "Traceback" in report.read_text()
    report.unlink()


def test_a_working_folder_that_was_removed_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Whatever the command, it is E740 before anything is imported or read; help works."""
    (tmp_path / "gone").mkdir()
    monkeypatch.chdir(tmp_path / "gone")
    (tmp_path / "gone").rmdir()
    for command in (["doctor"], ["predict", "m.onnx", "--images", "images"], ["data", "train"]):
        assert run(command) == 7
        assert "E740" in capsys.readouterr().err
    assert run(["doctor", "--help"]) == 0


@pytest.mark.parametrize(
    "arguments",
    [
        ("check", "", "--like", "info.csv"),
        ("blend", "preds", "--like", ""),
        ("blend", "preds", "--like", "info\0.csv"),
        ("predict", "models", "--images", ""),
        ("predict", "models", "--images", "images", "-o", ""),
    ],
)
def test_an_empty_path_is_not_the_working_folder(
    arguments: tuple[str, ...], contest: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A variable of the shell that is not set leaves one: the images of the working folder would be predicted."""
    monkeypatch.chdir(contest)
    assert run(arguments) == 2
    said = capsys.readouterr().err
    assert "is empty" in said or "null character" in said


def test_too_many_open_files_are_told(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """The limit of the process is E603, as that of its memory is; a report that cannot be written ends no message."""

    def fail(*_: object, **__: object) -> None:
        raise OSError(errno.EMFILE, "Too many open files")

    def break_down(*_: object, **__: object) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr("ensemble.runtime.doctor.doctor", fail)
    assert run(["doctor"]) == 6
    assert "error[E603] the limit of open files is reached" in capsys.readouterr().err
    monkeypatch.setattr("ensemble.runtime.doctor.doctor", break_down)
    monkeypatch.setattr("tempfile.NamedTemporaryFile", fail)
    assert run(["doctor"]) == 1
    assert "please report it with what ens --debug shows" in capsys.readouterr().err


def test_every_option_has_a_help_text() -> None:
    """No option is left unexplained, and every command ends in an example."""
    for command in cli.ens.commands.values():
        assert "Example: ens" in (command.help or ""), command.name
        for parameter in command.params:
            if parameter.param_type_name == "option" and parameter.name != "help":
                unexplained = {"interpolation", "precision", "mean", "std"}
                assert getattr(parameter, "help", None) or parameter.name in unexplained, (
                    f"{command.name} {parameter.name}"
                )


def test_every_command_that_computes_shows_its_progress() -> None:
    """In a pipe no command is silent for long: all but those that answer at once have -q and -v."""
    at_once = {"doctor", "explain-error", "init"}
    for name, command in cli.ens.commands.items():
        options = {option for parameter in command.params for option in parameter.opts}
        assert ({"-q", "-v"} <= options) == (name not in at_once), name


# ---------------------------------------------------------------------------------------------------- real processes
@pytest.fixture
def long_contest(contest: Path) -> Path:
    """Two thousand rows, so that there is time to be stopped."""
    names = [f"{i:04d}.jpg" for i in range(2000)]
    for number, name in enumerate(names):
        os.link(contest / "images" / NAMES[number % 40], contest / "images" / name)
    (contest / "info.csv").write_text("ImageID,ans\n" + "".join(f"{name},0\n" for name in names))
    return contest


def parts(folder: Path) -> dict[str, bytes]:
    return {f"{path.relative_to(folder)}": path.read_bytes() for path in sorted(folder.rglob("*.parquet"))}


@pytest.mark.slow
def test_fault_69_a_terminated_run_says_how_to_go_on(long_contest: Path) -> None:
    """SIGTERM ends the run with 143 and a message that says what is done; finished parts are there."""
    process = start(predict(long_contest, "-o", f"{long_contest / 'preds'}"))
    deadline = time.monotonic() + HANG
    while process.poll() is None and not parts(long_contest / "preds") and time.monotonic() < deadline:
        time.sleep(0.01)
    process.terminate()
    said = process.communicate(timeout=HANG)[1]
    assert process.returncode == 143, said
    assert "error[E801] stopped; " in said
    assert "of 2,000 images are done" in said
    assert parts(long_contest / "preds")


# ------------------------------------------------------------------------------------------------- what users mistype
def test_a_folder_without_models_is_an_error(contest: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Giving a folder of images as the models is E204, not an empty success."""
    assert run(["predict", f"{contest / 'images'}", "--images", f"{contest / 'images'}"]) == 2
    assert "holds no .onnx files" in capsys.readouterr().err


def test_nothing_is_written_over_what_is_read(contest: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The submission may be neither the sample nor the recipe; the sample stays as it was."""
    preds, info = f"{contest / 'preds'}", contest / "info.csv"
    run(predict(contest, "-o", preds))
    before = info.read_bytes()
    assert run(["blend", preds, "--like", f"{info}", "-o", f"{info}"]) == 2
    assert run(["blend", preds, "-o", f"{contest / 'x.csv'}", "--save", f"{contest / 'x.csv'}"]) == 2
    assert "are the same file" in capsys.readouterr().err
    assert info.read_bytes() == before


def test_a_fused_file_does_not_replace_its_models(contest: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The output may be beside the models, and none of them."""
    model = next((contest / "models").glob("*.onnx"))
    before = model.read_bytes()
    assert run(["fuse", f"{contest / 'blend.json'}", "--models", f"{contest / 'models'}", "-o", f"{model}"]) == 2
    assert "are the same file" in capsys.readouterr().err
    assert model.read_bytes() == before


def test_predictions_are_not_written_over(contest: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A submission in the place of a table that is blended is refused, and the table stays."""
    table = contest / "a.csv"
    table.write_text("id," + ",".join(map(str, range(18))) + "\n" + "x.jpg," + ",".join(["0.05"] * 18) + "\n")
    before = table.read_bytes()
    assert run(["blend", f"{table}", "--as", "probabilities", "-o", f"{table}"]) == 2
    assert "are the same file" in capsys.readouterr().err
    assert table.read_bytes() == before


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["blend", "p", "-o", "s.xlsx"], "-o writes CSV, but s.xlsx is named as a workbook"),
        (["blend", "p", "-o", "s.Parquet"], "-o writes CSV, but s.Parquet is named as Parquet"),
        (["blend", "p", "-o", "s.csv.gz"], "-o writes CSV, but s.csv.gz is named as an archive"),
        (["blend", "p", "-o", "s.csv", "--save", "s.toml"], "--save writes JSON, but s.toml is named as TOML"),
        (["submit", "none.json", "--models", "m", "--images", "i", "-o", "s.json"], "-o writes CSV, but s.json is"),
        (["data", "train", "-o", "info.csv"], "-o writes Parquet, but info.csv is named as CSV"),
        (["data", "train", "--html", "page.pdf"], "--html writes HTML, but page.pdf is named as a document"),
        (["data", "train", "--truth", "truth.parquet"], "--truth writes CSV, but truth.parquet is named as Parquet"),
        (["crop", "images", "-o", "boxes.json"], "-o writes Parquet, but boxes.json is named as JSON"),
        (["fuse", "none.json", "--models", "m", "-o", "fused.pt"], "-o writes ONNX, but fused.pt is named as arrays"),
        (["bench", "m", "--images", "images", "-o", "info.csv"], "-o writes JSON, but info.csv is named as CSV"),
        (["blend", "p", "-o", "s.jsonl"], "-o writes CSV, but s.jsonl is named as lines of JSON"),
        (["init", "-o", "ens.json"], "-o writes TOML, but ens.json is named as JSON"),
    ],
)
def test_a_file_is_named_as_what_it_is(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, words: list[str], said: str
) -> None:
    """A CSV called .xlsx opens nowhere, and a Parquet table called info.csv is none: refused before the work."""
    monkeypatch.chdir(tmp_path)
    for name in ("p", "m", "i", "images", "train"):
        (tmp_path / name).mkdir()
    (tmp_path / "none.json").write_text("{}")
    (tmp_path / "info.csv").write_text("id,label\n")
    assert run(words) == 2
    told = capsys.readouterr().err
    assert "error[E204]" in told
    assert said in told
    if "s.csv.gz" in words:
        assert "name it s.csv\n" in told
    assert (tmp_path / "info.csv").read_text() == "id,label\n"


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["predict", "m", "--images", "i", "-o", "preds.csv"], "-o makes a folder, but preds.csv is named as CSV"),
        (["adopt", "m.onnx", "-o", "new.onnx"], "-o makes a folder, but new.onnx is named as ONNX"),
        (["export", "c.pth", "-o", "new.onnx"], "-o makes a folder, but new.onnx is named as ONNX"),
        (
            ["bundle", "r", "--models", "m", "--for", "hub", "-o", "b.zip"],
            "-o makes a folder, but b.zip is named as an",
        ),
        (["page", "r", "--models", "m", "-o", "site.html"], "-o makes a folder, but site.html is named as HTML"),
        (["explain", "m", "i", "-o", "maps.png"], "-o makes a folder, but maps.png is named as an image"),
        (["audit", "t", "-o", "audit.csv"], "-o makes a folder, but audit.csv is named as CSV"),
        (["demo", "-o", "demo.tar.gz"], "-o makes a folder, but demo.tar.gz is named as an archive"),
        (
            ["train", "t", "--arch", "x", "--member", "m", "-o", "runs.pth"],
            "-o makes a folder, but runs.pth is named as",
        ),
        (["probe", "t", "--features", "f", "--member", "m", "-o", "r.parquet"], "-o makes a folder, but r.parquet is"),
        (["submit", "r", "--models", "m", "--images", "i", "-o", "s.csv", "--work", "w.json"], "--work makes a folder"),
        (["train", "t", "--arch", "x", "--member", "a/b", "-o", "runs"], "'a/b' cannot name a member"),
        (["probe", "t", "--features", "f", "--member", "-b"], "'-b' cannot name a member"),
        (["export", "c.pth", "--member", "a,b"], "'a,b' cannot name a member"),
        (["adopt", "m.onnx", "--member", "a=2"], "'a=2' cannot name a member"),
    ],
)
def test_names_of_folders_and_members_are_checked_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], words: list[str], said: str
) -> None:
    """A folder called as a file, and a member that cannot be one, are E204 before an input is looked at."""
    monkeypatch.chdir(tmp_path)
    assert run(words) == 2
    told = capsys.readouterr().err
    assert "error[E204]" in told
    assert said in told
    assert not list(tmp_path.iterdir())


def test_a_folder_that_is_there_keeps_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A run that made runs.csv goes on there; a file in the place of a folder is E702, and the other way round."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs.csv").mkdir()
    (tmp_path / "notes").write_text("")
    assert run(["predict", "none.onnx", "--images", "i", "-o", "runs.csv"]) == 3
    assert "E316" in capsys.readouterr().err
    assert run(["predict", "none.onnx", "--images", "i", "-o", "notes"]) == 7
    assert "error[E702] notes is a file, and -o makes a folder" in capsys.readouterr().err
    for words in (["blend", "p", "-o", "runs.csv"], ["data", "t", "--truth", "runs.csv"], ["report", "p", "-o", "."]):
        assert run(words) == 7
        assert "is a folder, and -" in capsys.readouterr().err


_BEFORE_IMPORTS = """
import sys
from ensemble.__main__ import run
for words in sys.argv[1:]:
    print(run(words.split()), *({"torch", "onnxruntime", "sklearn"} & sys.modules.keys()))
"""


def test_names_are_checked_before_torch_is_loaded(tmp_path: Path) -> None:
    """Wrong names of outputs are found without the seconds that libraries take."""
    commands = ["train t --arch x --member a/b", "data t -o i.csv", "bench m --images i -o b.csv", "export c -o m.onnx"]
    given = [sys.executable, "-c", _BEFORE_IMPORTS, *commands]
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parent.parent)}
    done = subprocess.run(given, capture_output=True, text=True, cwd=tmp_path, env=environment)
    assert done.stdout.split() == ["2"] * len(commands), done.stderr


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("errors.csv", "are the same file"),
        ("_run.json", "-o writes CSV, but _run.json is named as JSON"),
        ("budget.json", "-o writes CSV, but budget.json is named as JSON"),
    ],
)
def test_a_submission_is_none_of_the_working_files(
    contest: Path, capsys: pytest.CaptureFixture[str], name: str, said: str
) -> None:
    """-o in the place of a file that the command writes beside it is refused before the work."""
    work = contest / "work"
    models = ("--models", f"{contest / 'models'}", "--images", f"{contest / 'images'}")
    assert run(["submit", f"{contest / 'none.json'}", *models, "--work", f"{work}", "-o", f"{work / name}"]) == 2
    assert said in capsys.readouterr().err


def test_a_member_called_like_the_list_of_bad_images_is_refused(
    contest: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A member errors.csv is E760 before an image is read: its folder would be in the place of that file."""
    toys.write_model(contest / "models", toys.card("Errors.csv"))
    assert run(predict(contest, "-o", f"{contest / 'preds'}")) == 7
    assert "error[E760]" in capsys.readouterr().err
    assert not list((contest / "preds").iterdir())


def test_a_recipe_brings_its_own_pool(contest: Path) -> None:
    """--apply with any --pool, the default one included, is refused."""
    preds, recipe = f"{contest / 'preds'}", f"{contest / 'b.json'}"
    run(predict(contest, "-o", preds))
    assert run(["blend", preds, "--pool", "hard", "--save", recipe, "-o", f"{contest / 'a.csv'}"]) == 0
    assert run(["blend", preds, "--pool", "linear", "--apply", recipe, "-o", f"{contest / 'b.csv'}"]) == 2


def test_a_family_of_views_can_be_weighed_by_its_name(contest: Path) -> None:
    """--views crop5 in blend means the five views that --views crop5 in predict made."""
    preds, recipe = f"{contest / 'preds'}", contest / "b.json"
    run(predict(contest, "-o", preds, "--views", "crop5"))
    arguments = ["--views", "identity=2,crop5=0.5", "--save", f"{recipe}", "-o", f"{contest / 'a.csv'}"]
    assert run(["blend", preds, *arguments]) == 0
    views = json.loads(recipe.read_text())["views"]
    assert views == {"identity": 2.0} | {f"crop5:{corner}": 0.5 for corner in ("bl", "br", "c", "tl", "tr")}


def test_two_files_of_one_name_are_both_evaluated(contest: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Submissions of the same name in two folders are two rows."""
    for folder in ("one", "two"):
        (contest / folder).mkdir()
        (contest / folder / "s.csv").write_bytes((contest / "info.csv").read_bytes())
    arguments = [f"{contest / folder / 's.csv'}" for folder in ("one", "two")]
    assert run(["evaluate", *arguments, "--truth", f"{contest / 'truth.csv'}", "--json"]) == 0
    assert len(json.loads(capsys.readouterr().out)["scores"]) == 2


def test_usage_errors_are_json_where_json_was_asked_for(capsys: pytest.CaptureFixture[str]) -> None:
    """With --json a missing argument is an object with the code E200, and the status stays 2."""
    assert run(["predict", "--json"]) == 2
    assert json.loads(capsys.readouterr().out)["error"]["code"] == "E200"


def test_export_looks_at_every_path_first(contest: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A checkpoint that is not there is E707 before another one is exported."""
    assert run(["export", f"{contest / 'info.csv'}", f"{contest / 'none.pth'}"]) == 7
    assert "none.pth" in capsys.readouterr().err


def test_a_submission_of_one_class_is_warned_of(contest: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Blending predictions that always say the same writes the submission, and W521."""
    rows = "".join(f"{name},{','.join(['5'] + ['0'] * 17)}\n" for name in NAMES)
    (contest / "same.csv").write_text("id," + ",".join(map(str, range(18))) + "\n" + rows)
    assert run(["blend", f"{contest / 'same.csv'}", "--as", "logits", "-o", f"{contest / 's.csv'}"]) == 0
    assert "warning[W521]" in capsys.readouterr().err


def test_the_list_of_commands_is_whole_at_80_columns() -> None:
    """Every command is listed once, in the order of its section, with an uncut imperative of up to 45 characters."""
    text = CliRunner().invoke(cli.ens, ["--help"], env={"COLUMNS": "80"}).output
    listed = re.findall(r"^  ([a-z-]+) {2,}(\S.*)$", text, re.MULTILINE)
    assert [name for name, _ in listed if not name.startswith("-")] == list(cli.ens.commands)
    shown = dict(listed)
    for name, command in cli.ens.commands.items():
        assert command.short_help is not None
        assert shown[name] == command.short_help
        assert len(command.short_help) <= 45
        assert re.match(r"[A-Z][a-z]+(?<!s) ", command.short_help)
    assert max(map(len, text.splitlines())) <= 80


def _text_options() -> list[tuple[str, str]]:
    """Every option of every command that takes a text of any kind."""
    kinds = (click.types.StringParamType,)
    return [
        (name, max(one.opts, key=len))
        for name, command in cli.ens.commands.items()
        for one in command.params
        if isinstance(one, click.Option) and isinstance(one.type, kinds)
    ]


def test_no_text_option_takes_line_breaks_or_control_characters() -> None:
    """They would be in pages, cards and messages: refused by each command, before its other options are looked at."""
    found = _text_options()
    assert ("bundle", "--title") in found
    assert len(found) > 100
    for name, option in found:
        parameter = next(one for one in cli.ens.commands[name].params if option in one.opts)
        if _names_a_column(parameter):
            continue
        for text in ("a\nb", "a\rb", "\x1b[31m", "a\u202eb", "\u2028", "a\tb"):
            with pytest.raises(click.BadParameter, match="line break or control character"):
                parameter.type.convert(text, parameter, None)
        if parameter.type is not MEMBER:  # which has no comma
            assert parameter.type.convert("Büro, 30~59 名", parameter, None) == "Büro, 30~59 名"


def _names_a_column(parameter: click.Parameter) -> bool:
    """Whether the help says of the value that it is a column of a file."""
    assert isinstance(parameter, click.Option)
    return str(parameter.help).startswith("Column ")


def test_a_column_has_the_name_that_the_file_gives_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """An Excel header has line breaks (Alt+Enter): each option takes them, and messages and pages show them escaped."""
    found = [(name, option) for name, option in _text_options() if _names_a_column(_option(name, option))]
    names = {option for _, option in found}
    assert names == {f"--{what}-column" for what in ("id", "label", "group", "fold")} | {
        "--smooth-group",
        "--smooth-order",
    }
    for name, option in found:
        parameter = _option(name, option)
        assert parameter.type.convert("Image\nID", parameter, None) == "Image\nID"
    monkeypatch.chdir(tmp_path)
    toys.write_pictures(tmp_path / "train" / "images", ["a.jpg", "b.jpg"])
    table = tmp_path / "train" / "train.csv"
    table.write_text('"Image\nID","ans\nwer","gr\noup"\na.jpg,0,x\nb.jpg,1,y\n')
    alike = ["check", str(table), "--like", str(table), "--id-column", "Image\nID", "--label-column", "ans\nwer"]
    assert run(alike) == 0
    assert run([*alike[:-1], "ans\nwers"]) == 3
    told = r"""column "ans\nwers" not found; have: 'Image\nID', 'ans\nwer', 'gr\noup'"""
    assert told in capsys.readouterr().err
    words = ["data", "train", "--id-column", "Image\nID", "--label-column", "ans\nwer", "--group-column", "gr\noup"]
    assert run([*words, "-o", "data.parquet", "--html", "data.html"]) == 0
    shown = capsys.readouterr()
    page = (tmp_path / "data.html").read_text()
    for text in (shown.out, shown.err, page):
        assert "gr\noup" not in text
    assert r"groups ('gr\noup')" in shown.out
    assert r"gr\noup" in page


def _option(name: str, option: str) -> click.Parameter:
    return next(one for one in cli.ens.commands[name].params if option in one.opts)


def test_a_tab_separates_and_a_path_has_its_own_name(tmp_path: Path) -> None:
    """What these options are for: --sep of a tab; the folder of --images, whatever its name is."""
    separator = next(one for one in cli.ens.commands["blend"].params if "--sep" in one.opts)
    assert separator.type.convert("\t", separator, None) == "\t"
    images = next(one for one in cli.ens.commands["predict"].params if "--images" in one.opts)
    odd = tmp_path / "a\nb"
    odd.mkdir()
    assert images.type.convert(str(odd), images, None) == str(odd)


@pytest.mark.parametrize(
    ("number", "told"),
    [
        (errno.ENOSPC, "E701] the disk is full: the output could not be written"),
        (errno.EDQUOT, "E701] your quota of disk space is used up"),
        (errno.EFBIG, "E701] the limit on the size of a file is reached"),
        (errno.EROFS, "E702] the file system is read-only"),
        (errno.EIO, "E702] the output could not be written: Input/output error"),
    ],
)
def test_output_that_cannot_be_written_says_why(
    number: int, told: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Standard output on a full disk, beyond a quota or a limit, or on a disk that fails."""

    def fail(*_: object, **__: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr("ensemble.commands.explain_error.show", fail)
    assert run(["explain-error", "E401"]) == 7
    assert told in capsys.readouterr().err


def test_no_folder_for_temporary_files_is_no_bug(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """On a read-only machine Python finds none, and the error says which variable names one."""

    def fail(*_: object, **__: object) -> None:
        raise FileNotFoundError(errno.ENOENT, "No usable temporary directory found in ['/tmp', '/var/tmp']")

    monkeypatch.setattr("ensemble.commands.explain_error.show", fail)
    assert run(["explain-error", "E401"]) == 7
    told = capsys.readouterr().err
    assert "E702] no folder for temporary files can be written" in told
    assert "TMPDIR" in told


def test_a_dash_is_no_file(contest: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """Others take it for the standard streams: a file of that name was written in silence."""
    monkeypatch.chdir(contest)
    for words in (["check", "-", "--like", "info.csv"], ["report", "x", "--truth", "-"], ["predict", "-"]):
        assert run(words) == 2
        assert "- is no file: name one; /dev/stdin is what another program prints" in capsys.readouterr().err
    outputs = (["init", "-o", "-"], ["blend", "x", "--save", "-"], ["data", ".", "--truth", "-"])
    for words in (*outputs, ["data", ".", "--html", "-"], ["submit", "x", "--work", "-"]):
        assert run(words) == 2
        told = capsys.readouterr().err
        assert "- is no file: name what is to be written" in told
        assert "stdin" not in told
    assert not (contest / "-").exists()
    assert run(["init", "check", "-o", "./-"]) == 0


@pytest.mark.parametrize("command", [["explain-error", "E401"], ["explain-error", "E401", "--json"], ["--help"]])
def test_a_reader_that_is_gone_gives_the_status_of_sigpipe(command: list[str]) -> None:
    """As `ens ... | true`: 141, which shells know, without a message; it was 1, the status of a bug."""
    reading, writing = os.pipe()
    os.close(reading)
    words = [sys.executable, "-m", "ensemble", *command]
    ended = subprocess.run(words, stdout=writing, stderr=subprocess.PIPE, text=True, cwd=Path(__file__).parent.parent)
    os.close(writing)
    assert (ended.returncode, ended.stderr) == (141, "")


@pytest.mark.parametrize("number", [errno.EPIPE, errno.ESHUTDOWN])
def test_another_pipe_that_breaks_is_a_bug_with_its_report(
    number: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """Of a process of our own, or a socket: it was 141 without a word."""

    def fail(*_: object, **__: object) -> None:
        raise BrokenPipeError(number, "the worker is gone")

    monkeypatch.setattr("ensemble.commands.explain_error.show", fail)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    streams = sys.stdout, sys.stderr
    assert run(["explain-error", "E401"]) == 1
    assert (sys.stdout, sys.stderr) == streams
    assert "bug: BrokenPipeError" in capsys.readouterr().err
    (report,) = tmp_path.glob("ens-crash-*")
    assert "the worker is gone" in report.read_text()
