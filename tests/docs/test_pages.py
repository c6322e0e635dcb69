"""The pages are true: every command, option, code, file and link on them exists, and their commands parse."""

from __future__ import annotations

import ast
import os
import re
import shlex

import click
import pytest

from ensemble import errors
from ensemble.cli import ens
from ensemble.commands.config_file import name_of
from ensemble.error_codes import CODES
from tests.docs import generate
from tests.docs.pages import DOCS, PAGES, README, ROOT, Page

OPTIONS = {
    name: {o for p in command.params for o in p.opts} | {"--help", "-h"} for name, command in ens.commands.items()
}
for command in ens.commands.values():
    flags = (one for one in command.params if isinstance(one, click.Option) and one.is_flag)
    OPTIONS[str(command.name)] |= {f"--no-{name_of(one)}" for one in flags}
EVERY = set().union(*OPTIONS.values()) | {option for parameter in ens.params for option in parameter.opts}
# programs whose options are their own
OTHERS = ("accelerate ", "git ", "pip ", "python ", "uv ", "uvx ", "pytest ", "-m ", "-n ", "--pdb")
COMMANDS = [(page, line) for page in PAGES for line in page.commands]


def name(value: object) -> str:
    return value.name if isinstance(value, Page) else str(value)


def options_in(text: str) -> set[str]:
    """Every word of a command line or code span that looks like an option."""
    return set(re.findall(r"(?<![\w-])(--[a-z][a-z0-9-]*|-[a-z]\b)", text))


@pytest.mark.parametrize("command", ens.commands)
def test_every_command_is_documented(command: str) -> None:
    """The README's table, and the page of all options, have the command."""
    assert any(line.startswith(f"ens {command} ") or line == f"ens {command}" for line in README.commands)
    assert f"\n## ens {command}\n" in Page("docs/cli.md").text


@pytest.mark.parametrize(("page", "line"), COMMANDS, ids=name)
def test_every_option_of_a_command_line_exists(page: Page, line: str) -> None:
    """A command line in a code block names a command, and options which that command has."""
    words = shlex.split(line)
    assert words[1] in OPTIONS or words[1].startswith("-"), page.name
    known = OPTIONS.get(words[1], EVERY)
    assert options_in(" ".join(words[2:])) <= known


@pytest.mark.parametrize(("page", "line"), COMMANDS, ids=name)
def test_every_command_line_parses(page: Page, line: str) -> None:
    """A command line in a code block has the arguments its command requires, with values that it takes."""
    words = [re.sub(r"\.\.\.$", "", word) for word in shlex.split(line)][1:]
    if words[0] not in ens.commands:
        return  # ens --help
    assert isinstance(ens.commands[words[0]].make_context(words[0], words[1:]), click.Context)


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_every_option_in_the_text_exists(page: Page) -> None:
    """A code span that names an option names one of the command before it, or else of some command."""
    for span in page.spans:
        if span.startswith(OTHERS):
            continue
        command = re.match(r"ens ([\w-]+)", span)
        known = OPTIONS.get(command[1], EVERY) if command else EVERY
        assert options_in(span) <= known, span


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_every_command_in_the_text_exists(page: Page) -> None:
    """A code span that begins with ens names a command."""
    found = {match[1] for span in page.spans if (match := re.match(r"ens ([a-z][\w-]*)", span))}
    assert found <= ens.commands.keys()


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_every_code_in_the_text_exists(page: Page) -> None:
    """An error code on a page is one of the catalog."""
    assert set(re.findall(r"\b[EWI]\d{3}\b", page.text)) <= CODES.keys()


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_every_link_leads_somewhere(page: Page) -> None:
    """A link to a file of the repository names one that is there, and its anchor one of that file's headings."""
    for link in page.links:
        if "://" in link:
            continue
        path, _, anchor = link.partition("#")
        target = Page(os.path.relpath((page.path.parent / path).resolve() if path else page.path, ROOT))
        assert target.path.is_file(), link
        assert not anchor or anchor in target.anchors, link


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_every_file_in_the_text_exists(page: Page) -> None:
    """A code span that is a path into the repository's code names a file or folder that is there."""
    for span in page.spans:
        if re.fullmatch(r"(ensemble|checkpoints|exporters|tests|docs)/[\w/.]*", span):
            assert (ROOT / span).exists(), span


def defined(path: str) -> set[str]:
    """The functions, classes and values at the top of a module."""
    tree = ast.parse((ROOT / path).read_text(encoding="utf-8"))
    names = {node.name for node in tree.body if isinstance(node, ast.FunctionDef | ast.ClassDef)}
    targets = [target for node in tree.body if isinstance(node, ast.Assign) for target in node.targets]
    targets += [node.target for node in tree.body if isinstance(node, ast.AnnAssign)]
    return names | {target.id for target in targets if isinstance(target, ast.Name)}


@pytest.mark.parametrize("page", [Page("docs/architecture.md"), Page("CONTRIBUTING.md")], ids=name)
def test_every_name_to_change_is_where_the_page_says(page: Page) -> None:
    """A private name in a row or paragraph about what to change is defined in one of the modules named there."""
    found = 0
    for paragraph in re.split(r"\n\n|\n(?=\|)", page.prose):
        modules = re.findall(r"`((?:ensemble|checkpoints|exporters)/[\w/]+\.py)`", paragraph)
        names = set(re.findall(r"`(_\w+)`|: `(\w+)`", paragraph)) if modules else set()
        wanted = {private or public for private, public in names}
        assert wanted <= set().union(*map(defined, modules)), paragraph
        found += len(wanted)
    assert found > 4, "the search finds the names"


@pytest.mark.parametrize("page", DOCS, ids=name)
def test_pages_open_with_something_to_run(page: Page) -> None:
    """The first thing below a page's title is a command or Python that can be copied."""
    opening = re.match(r"# .+\n\n(<!--.*-->\n\n)?```(bash|python)\n(.+)\n", page.text)
    assert opening is not None
    assert opening[2] == "python" or opening[3].startswith(("ens ", "uv run ", "pip install ", "python "))


@pytest.mark.parametrize("page", DOCS, ids=name)
def test_pages_can_be_reached_from_the_index(page: Page) -> None:
    """The index links every page, and so does the navigation of the site."""
    assert page.name == "docs/index.md" or f"({page.path.name})" in Page("docs/index.md").text
    assert f" {page.path.name}\n" in (ROOT / "mkdocs.yml").read_text(encoding="utf-8")


def test_the_readme_is_short() -> None:
    """The README has at most 120 lines of at most 120 characters, tables and links apart."""
    lines = README.text.splitlines()
    assert len(lines) <= 120
    assert [line for line in lines if len(line) > 120 and not re.match(r"\||.*\]\(", line)] == []


def test_the_figures_of_the_readme_were_measured() -> None:
    """Each figure of the README's reasons is on the page about the benchmark, with its machine and date."""
    figures = re.findall(r"\d+\.\d+", README.text.partition("## Why\n")[2].partition("\n## ")[0])
    assert len(figures) > 5, "the search finds the figures"
    assert set(figures) <= set(re.findall(r"\d+\.\d+", Page("docs/benchmark.md").text))


@pytest.mark.parametrize(("page", "text"), generate.pages().items())
def test_generated_pages_are_current(page: str, text: str) -> None:
    """docs/errors.md and docs/cli.md are what the codes and commands give: python -m tests.docs.generate."""
    assert (ROOT / "docs" / page).read_text(encoding="utf-8") == text, "run: python -m tests.docs.generate"


def test_the_page_of_options_does_not_depend_on_the_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    """A terminal of 40 columns gives the same page."""
    wide = generate.cli_page()
    monkeypatch.setenv("COLUMNS", "40")
    assert generate.cli_page() == wide


def test_the_codes_of_the_exit_statuses_are_those_of_the_errors() -> None:
    """The table of exit statuses gives each kind of error the status that it has."""
    shown = dict(re.findall(r"^\| (\d+) \|.*\| (E\dxx) \|$", Page("docs/errors.md").text, re.MULTILINE))
    kinds = (
        errors.OptionError,
        errors.DataError,
        errors.ModelError,
        errors.PredictionError,
        errors.DeviceError,
        errors.FileError,
    )
    assert shown == {str(kind.exit_status): f"E{kind.exit_status}xx" for kind in kinds}


def test_the_picture_of_the_readme_is_small() -> None:
    """No picture of the documentation has more than 150 kB."""
    pictures = list((ROOT / "docs" / "images").iterdir())
    assert pictures
    assert max(path.stat().st_size for path in pictures) <= 150_000
