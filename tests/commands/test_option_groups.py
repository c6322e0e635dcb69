"""Option groups: headings in the help, defaults from a dataclass, and values that arrive as one."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from ensemble.commands.option_groups import GroupedCommand, OptionGroup, field_option, grouped_command
from ensemble.commands.options import json_option


@dataclass(frozen=True, slots=True)
class Oven:
    """Something with a field of every kind."""

    dish: str
    degrees: int = 180
    mean: tuple[float, float] = (0.5, 0.25)
    door: Path | None = None
    herbs: tuple[str, ...] = ()
    grill: bool = False


@pytest.fixture
def command() -> GroupedCommand:
    """A command that prints what its function gets."""
    heat = OptionGroup(
        "Heat",
        (
            field_option(Oven, "degrees", "Temperature.", flag="--heat", type=click.IntRange(min=50)),
            field_option(Oven, "grill", "Grill from above."),
        ),
    )
    food = OptionGroup(
        "Food",
        (
            field_option(Oven, "dish", "The dish."),
            field_option(Oven, "herbs", "Herbs; repeatable."),
            field_option(Oven, "mean", "Two numbers.", metavar="A,B"),
            click.Option(["--guests"], type=int, default=2),
        ),
    )

    @grouped_command(heat, food, collect={"oven": Oven}, short_help="Bake.")
    @json_option
    def bake(oven: Oven, guests: int, as_json: bool) -> None:
        click.echo(f"{oven} {guests} {as_json}")

    return bake


def ran(command: click.Command, *words: str) -> str:
    done = CliRunner().invoke(command, words, catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return done.output.strip()


def test_values_arrive_as_one_dataclass(command: GroupedCommand) -> None:
    """Options named like its fields make the dataclass, fields without an option keep their default."""
    defaults = "mean='0.5,0.25', door=None"
    assert ran(command, "--dish", "pie") == f"Oven(dish='pie', degrees=180, {defaults}, herbs=(), grill=False) 2 False"
    words = ("--dish", "pie", "--heat", "200", "--herbs", "sage", "--herbs", "thyme", "--grill", "--guests", "4")
    expected = f"Oven(dish='pie', degrees=200, {defaults}, herbs=('sage', 'thyme'), grill=True) 4 True"
    assert ran(command, *words, "--json") == expected


def test_the_help_lists_each_option_once_under_its_heading(command: GroupedCommand) -> None:
    """Headings come in the order of the groups, with defaults of the dataclass, and all other options at the end."""
    text = ran(command, "--help")
    order = ("Heat:", "--heat", "180", "--grill", "Food:", "--dish", "required", "--herbs", "--mean A,B", "0.5,0.25")
    places = [text.index(word) for word in (*order, "--guests", "Other options:", "--json", "--help")]
    assert places == sorted(places)
    assert all(text.count(f"{option} ") == 1 for option in ("--heat", "--grill", "--dish", "--herbs", "--guests"))


def test_a_field_that_does_not_exist_is_found_at_once() -> None:
    """An option for a field which the dataclass has not fails when the command is defined, not when it runs."""
    with pytest.raises(KeyError):
        field_option(Oven, "fuel", "Gas or wood.")


def test_a_field_without_default_is_required(command: GroupedCommand) -> None:
    """Leaving it out is a usage error with click's exit status."""
    done = CliRunner().invoke(command, [])
    assert done.exit_code == 2
    assert "--dish" in done.output
