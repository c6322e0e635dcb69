"""The configuration file: what it sets, what overrides it, what is refused, and the file that `ens init` writes."""

from __future__ import annotations

import json
import os
import re
import tomllib
from collections.abc import Callable
from pathlib import Path

import click
import pytest

from ensemble.__main__ import run
from ensemble.cli import ens
from ensemble.commands.config_file import name_of, read_config, settable, switch_off, with_config
from ensemble.commands.init import render_table
from ensemble.errors import FileError
from ensemble.terminal import TERMINAL

PREDICT = ens.commands["predict"]


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working directory of each test."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def merged(text: str, *given: str, name: str = "predict") -> list[str]:
    """What a command gets as its arguments from a file and a command line."""
    Path("ens.toml").write_text(text)
    tables = read_config(Path("ens.toml"), ens.commands)
    return with_config(Path("ens.toml"), ens.commands[name], name, tables.get(name, {}), list(given))


def parsed(arguments: list[str], name: str = "predict") -> dict[str, object]:
    """The values that the options of a command get."""
    return ens.commands[name].make_context(name, list(arguments)).params


def test_values_stand_for_what_would_be_typed() -> None:
    """Text, numbers, true and lists become options and arguments, in any order of the file."""
    text = '[predict]\ntta = true\nfresh = false\nbatch = 8\nmodels = ["a.onnx", "b.onnx"]\nimages = "x"\no = "out"\n'
    values = parsed(merged(text))
    assert values["models"] == (Path("a.onnx"), Path("b.onnx"))
    assert (values["images"], values["batch"], values["tta"], values["fresh"]) == ("x", 8, True, False)
    assert values["folder"] == Path("out")


@pytest.mark.parametrize(
    ("given", "models", "images", "device"),
    [
        ((), "a.onnx", "x", "cuda"),
        (("b.onnx",), "b.onnx", "x", "cuda"),
        (("--device", "cpu"), "a.onnx", "x", "cpu"),
        (("--images=y", "b.onnx", "--device=cpu"), "b.onnx", "y", "cpu"),
    ],
)
def test_the_command_line_overrides(given: tuple[str, ...], models: str, images: str, device: str) -> None:
    """What is typed replaces the file's value, and lists are not joined."""
    text = '[predict]\nmodels = ["a.onnx"]\nimages = "x"\ndevice = "cuda"\n'
    values = parsed(merged(text, *given))
    assert (values["models"], values["images"], values["device"]) == ((Path(models),), images, device)


@pytest.mark.parametrize(
    ("given", "tta"),
    [
        ((), True),
        (("--no-tta",), False),
        (("--tta", "--no-tta"), False),
        (("--no-tta", "--tta"), True),
        (("--", "--no-tta"), True),
    ],
)
def test_a_flag_is_switched_off_on_the_command_line(given: tuple[str, ...], tta: bool) -> None:
    """--no-tta stands against tta = true in the file, the last one counts, and behind -- it is an argument."""
    text = '[predict]\nimages = "x"\ntta = true\n'
    values = parsed(merged(text, *given, *(() if "--" in given else ("a.onnx",))))
    assert values["tta"] is tta
    assert values["models"] == ((Path("--no-tta"),) if "--" in given else (Path("a.onnx"),))


def test_a_flag_that_is_not_set_may_be_switched_off(capsys: pytest.CaptureFixture[str]) -> None:
    """With and without a file; the notice does not name what is not set, and an option with a value has no --no-."""
    assert parsed(merged('[predict]\nimages = "x"\n', "--no-tta", "a.onnx"))["tta"] is False
    words = ["a.onnx", "--no-tta", "--device", "cpu"]
    assert switch_off(PREDICT, words) == (["a.onnx", "--device", "cpu"], frozenset({"tta"}))
    assert switch_off(PREDICT, ["--no-device", "--no-such"]) == (["--no-device", "--no-such"], frozenset())
    Path("ens.toml").unlink()
    assert run(["predict", "a.onnx", "--images", "x", "--no-tta"]) == 3  # a.onnx does not exist
    assert "No such option" not in capsys.readouterr().err
    merged('[predict]\nimages = "x"\ntta = true\n', "--no-tta", "a.onnx")
    assert "--tta" not in capsys.readouterr().err


def test_every_flag_has_one_way_off() -> None:
    """No command has an option of its own called --no-, but those whose flag is another one's opposite."""
    for name, command in ens.commands.items():
        for one in command.params:
            if isinstance(one, click.Option) and one.is_flag:
                assert switch_off(command, [f"--no-{name_of(one)}"]) == ([], frozenset({name_of(one)})), name


def test_options_that_may_be_repeated_are_replaced_as_a_whole() -> None:
    """Two values of the file give way to the one on the command line."""
    text = '[submit]\nrecipe = "r.json"\nimages = "x"\no = "s.csv"\nmodels = ["a", "b"]\n'
    assert parsed(merged(text, name="submit"), "submit")["models"] == (Path("a"), Path("b"))
    assert parsed(merged(text, "--models", "c", name="submit"), "submit")["models"] == (Path("c"),)


def test_one_value_stands_for_a_list_and_patterns_for_files() -> None:
    """A pattern is what a shell makes of it, in the order of names; without a match it stays, for the error."""
    Path("models").mkdir()
    for name in ("b.onnx", "a.onnx"):
        Path("models", name).touch()
    values = parsed(merged('[predict]\nmodels = "models/*.onnx"\nimages = "x"\n'))
    assert values["models"] == (Path("models/a.onnx"), Path("models/b.onnx"))
    assert parsed(merged('[predict]\nmodels = "no/*.onnx"\nimages = "x"\n'))["models"] == (Path("no/*.onnx"),)


def test_texts_that_begin_with_a_dash_are_values() -> None:
    """Neither a path nor an option's value is taken for an option."""
    values = parsed(merged('[predict]\nmodels = "-a.onnx"\nimages = "-x"\no = "-out"\n'))
    assert (values["models"], values["images"], values["folder"]) == ((Path("-a.onnx"),), "-x", Path("-out"))


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[predcit]\n", "[predcit] is not a command; did you mean predict?"),
        ("predict = 1\n", "predict is a value"),
        ("[predict]\nbacth = 1\n", "has 'bacth', which is no option of ens predict; did you mean batch?"),
        ("[predict]\non_bad_image = 'fill'\n", "did you mean on-bad-image?"),
        ("[predict]\nfolder = 'x'\n", "has 'folder', which is no option of ens predict"),
        ("[predict]\nhelp = true\n", "has 'help'"),
        ("[predict]\nbatch = '8'\n", "[predict] batch takes a whole number, got '8'"),
        ("[predict]\nbatch = 1.5\n", "[predict] batch: "),
        ("[predict]\nbatch = 0\n", "[predict] batch: 0 is not in the range"),
        ("[predict]\nbatch = true\n", "[predict] batch takes a whole number, got True"),
        ("[predict]\ntta = 1\n", "[predict] tta takes true or false, got 1"),
        ("[predict]\ntta = 'yes'\n", "[predict] tta takes true or false"),
        ("[predict]\nimages = ['x', 'y']\n", "[predict] images takes one value, got a list"),
        ("[predict]\nmodels = [['x']]\n", "[predict] models takes text, got ['x']"),
        ("[predict]\nids = 2026-01-01\n", "[predict] ids takes text"),
        ("[predict.device]\nname = 'cpu'\n", "[predict] device takes text"),
        ("[predict]\non-bad-image = 'ignore'\n", "[predict] on-bad-image: 'ignore' is not one of"),
        ("[predict]\nbatch = 1\nbatch = 2\n", "is not TOML"),
        ("[predict]\nimages = 'a\\u0000b'\n".replace("'", '"'), "[predict] images has a NUL character"),
        ("[predict\n", "is not TOML"),
        ("a = " + "[" * 5000 + "]" * 5000, "is not TOML"),
        ("#" * 1_000_001, "more than 1,000,000 bytes"),
    ],
)
def test_what_is_not_understood_is_refused(text: str, words: str) -> None:
    """Unknown names, with the nearest one, wrong kinds and values, and files that are no TOML are E761."""
    with pytest.raises(FileError) as caught:
        merged(text, "m.onnx", "--images", "x")
    assert caught.value.code == "E761"
    assert words in caught.value.message


def test_bytes_that_are_no_text_are_refused() -> None:
    """A file in another encoding is E761."""
    Path("ens.toml").write_bytes(b"[predict]\nimages = '\xff\xfe'\n")
    with pytest.raises(FileError, match="E761"):
        read_config(Path("ens.toml"), ens.commands)


def test_a_file_is_read_where_it_is_said_or_lies(capsys: pytest.CaptureFixture[str]) -> None:
    """ens.toml of the working directory, or --config, is read and named in one line; --no-config reads none."""
    Path("ens.toml").write_text('[explain-error]\ncode = "E301"\n')
    Path("other.toml").write_text('[explain-error]\ncode = "E302"\n')
    for options, code, name in (
        ([], "E301", "ens.toml"),
        (["--config", "other.toml"], "E302", "other.toml"),
    ):
        assert run([*options, "explain-error"]) == 0
        said = capsys.readouterr()
        assert code in said.out
        assert said.err == f"note[I760] {name} sets code\n"
    assert run(["--no-config", "explain-error", "E303"]) == 0
    assert run(["explain-error", "E303"]) == 0
    assert capsys.readouterr().err == ""
    assert run(["--no-config", "explain-error"]) == 2
    assert run(["--config", "none.toml", "explain-error"]) == 7


@pytest.mark.parametrize("make", [os.mkdir, os.mkfifo, lambda path: os.symlink("nowhere", path)])
def test_what_is_called_ens_toml_and_is_no_file_is_refused(
    make: Callable[[str], None], capsys: pytest.CaptureFixture[str]
) -> None:
    """A folder, a pipe or a link that leads nowhere was passed over: the run had other options than meant."""
    make("ens.toml")
    assert run(["explain-error", "E303"]) == 7
    assert run(["--config", "ens.toml", "explain-error", "E303"]) == 7
    assert capsys.readouterr().err.count("error[E707] ens.toml ") == 2
    assert run(["--no-config", "explain-error", "E303"]) == 0


def test_short_options_are_named_as_they_are(capsys: pytest.CaptureFixture[str]) -> None:
    """-o without its value."""
    TERMINAL.close()
    assert merged("[predict]\no = 'x'\n", "m.onnx", "--images", "y") == ["-ox", "m.onnx", "--images", "y"]
    assert capsys.readouterr().err == "note[I760] ens.toml sets -o\n"


def test_init_writes_a_command_that_is_named_twice_once() -> None:
    """A table that is there twice would not be TOML."""
    assert run(["init", "predict", "predict"]) == 0
    assert list(tomllib.loads(Path("ens.toml").read_text())) == ["predict"]


def test_quiet_hides_the_line(capsys: pytest.CaptureFixture[str]) -> None:
    """With -q, or quiet in the file, the file is not named."""
    TERMINAL.close()
    assert "--images=x" in merged("[predict]\nimages = 'x'\n", "m.onnx", "-q")
    assert "--images=x" in merged("[predict]\nimages = 'x'\nquiet = true\n", "m.onnx")
    assert capsys.readouterr().err == ""


def test_quiet_is_switched_off(capsys: pytest.CaptureFixture[str]) -> None:
    """--no-quiet says again what a file sets."""
    merged('[predict]\nimages = "x"\nquiet = true\n', "a.onnx", "--no-quiet")
    assert "I760" in capsys.readouterr().err


def test_help_and_wrong_options_are_clicks(capsys: pytest.CaptureFixture[str]) -> None:
    """Where help is asked for or an option does not exist, the file adds nothing."""
    assert merged("[predict]\nimages = 'x'\n", "--help") == ["--help"]
    assert merged("[predict]\nimages = 'x'\n", "--no-such") == ["--no-such"]
    assert capsys.readouterr().err == ""


def test_init_writes_a_file_that_changes_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    """The file of all commands is TOML without a value, it is not overwritten, and unknown commands are refused."""
    assert run(["init", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["commands"] == [name for name in ens.commands if name != "init"]
    before = Path("ens.toml").read_text(encoding="utf-8")
    assert set(tomllib.loads(before)) == set(ens.commands) - {"init"}
    assert not any(tomllib.loads(before).values())
    assert run(["init"]) == 7
    assert "error[E762]" in capsys.readouterr().err
    assert Path("ens.toml").read_text(encoding="utf-8") == before
    assert run(["init", "predict", "-o", "one.toml"]) == 0
    assert set(tomllib.loads(Path("one.toml").read_text())) == {"predict"}
    assert run(["init", "no-such"]) == 2


@pytest.mark.parametrize("name", sorted(set(ens.commands) - {"init"}))
def test_init_writes_each_option_with_its_default_or_no_value(name: str) -> None:
    """Each option is there once, in its help's group; a value is the default, and else its kind is a comment."""
    command = ens.commands[name]
    text = render_table(name, command)
    given = dict(re.findall(r"^#(\S+) =( \S.*|  # .*)$", text, flags=re.MULTILINE))
    parameters, context = settable(command), click.Context(command)
    assert sorted(given) == sorted(parameters)
    values = tomllib.loads("\n".join(f"{key} ={value}" for key, value in given.items() if not value.startswith("  #")))
    for key, value in values.items():
        default = parameters[key].default
        default = str(default) if isinstance(default, Path) else default
        assert value == default or (value is False and parameters[key].get_default(context) in {None, False}), key
    kinds = {"  # a whole number", "  # a number", "  # text in quotes", '  # a list: ["...", "..."]'}
    assert {value for value in given.values() if value.startswith("  #")} <= kinds
    for heading in re.findall(r"# --- (.*) ---", text):
        assert heading == "Other options" or heading in {group.heading for group in getattr(command, "groups", ())}


@pytest.mark.parametrize("name", sorted(set(ens.commands) - {"init"}))
def test_every_line_of_init_can_be_uncommented(name: str) -> None:
    """With a value of the kind that its comment says, each option is read; without one the file is refused."""
    command = ens.commands[name]
    text = re.sub(r"^#(?=\S+ =)", "", render_table(name, command), flags=re.MULTILINE)
    if re.search(r"=  # ", text):
        with pytest.raises(FileError, match="it is not TOML: Invalid value"):
            merged(text, name=name)
    parameters = settable(command)

    def filled(line: re.Match[str]) -> str:
        kind = parameters[line[1]].type
        number = max(getattr(kind, "min", None) or 1, 1) if "number" in line[2] else None
        value = f'"{kind.choices[0] if isinstance(kind, click.Choice) else "x"}"' if number is None else str(number)
        return f"{line[1]} = {f'[{value}]' if 'list' in line[2] else value}"

    merged(re.sub(r"^(\S+) =  # (.*)$", filled, text, flags=re.MULTILINE), name=name)


def test_names_are_those_of_the_command_line() -> None:
    """Every option has its longest name, and no two of a command have the same."""
    for command in ens.commands.values():
        names = [name_of(parameter) for parameter in command.params]
        assert len(set(names)) == len(names)
        for parameter in command.params:
            if isinstance(parameter, click.Option):
                assert {f"--{name_of(parameter)}", f"-{name_of(parameter)}"} & set(parameter.opts)


def test_json_in_a_file_makes_errors_json(capsys: pytest.CaptureFixture[str]) -> None:
    """As --json does: of a command, of its options, and of the table itself; --no-json overrides it."""
    Path("ens.toml").write_text("[check]\njson = true\n")
    assert run(["check", "none.csv"]) == 7
    assert json.loads(capsys.readouterr().out)["error"]["code"] == "E707"
    assert run(["check", "--no-such"]) == 2
    assert json.loads(capsys.readouterr().out)["error"]["code"] == "E200"
    assert run(["check", "none.csv", "--no-json"]) == 7
    assert capsys.readouterr().out == ""
    assert run(["predict", "none.onnx", "--images", "x"]) == 3
    assert capsys.readouterr().out == ""
    Path("ens.toml").write_text("[check]\njson = true\nlike = 1.5\nno-such = 2\n")
    assert run(["check", "none.csv"]) == 7
    assert json.loads(capsys.readouterr().out)["error"]["code"] == "E761"


def test_a_name_of_an_output_is_checked_in_a_file_too() -> None:
    """-o of a file of options is named as on the command line, and the error says what to name it."""
    with pytest.raises(FileError, match=r"\[predict\] o: -o makes a folder, but a.csv is named as CSV; name it a"):
        merged("[predict]\no = 'a.csv'\n")
