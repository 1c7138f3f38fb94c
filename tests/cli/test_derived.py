"""Options that come from a dataclass."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import pytest
import typer
from typer.main import get_command
from typer.testing import CliRunner

from art_robust_plugins.cli.derived import list_options, take_settings


@dataclass(frozen=True)
class Oven:
    """Settings of an oven.

    Args:
        heat: degrees of ``"air"``, over the
            whole time; more is hotter.
        door: keep it open.
        seed: not for the command line.
    """

    heat: int = 180
    door: bool = False
    seed: int = 0


def test_each_field_is_an_option_with_its_default_and_the_first_sentence_about_it() -> None:
    app, met = typer.Typer(), []

    @take_settings(list_options(Oven, {}, without=("seed",)))
    def bake(**settings: object) -> None:
        met.append(settings)

    app.command()(bake)
    runner = CliRunner()
    assert runner.invoke(app, []).exit_code == 0
    assert runner.invoke(app, ["--heat", "200", "--door"]).exit_code == 0
    assert met == [{"heat": 180, "door": False}, {"heat": 200, "door": True}]
    options = {parameter.name: parameter for parameter in get_command(app).params}
    assert options["heat"].help == "Degrees of air, over the whole time."  # type: ignore[attr-defined]
    assert options["door"].help == "Keep it open."  # type: ignore[attr-defined]
    assert options["door"].opts == ["--door"]


@dataclass(frozen=True)
class Dough:
    """Options of a command, written in their dataclass."""

    flour: Annotated[int, typer.Option(help="Grams.")]
    salt: Annotated[float, typer.Option("--salted")] = 0.5


def test_a_dataclass_among_the_parameters_is_taken_apart_into_options_and_made_of_them() -> None:
    app, met = typer.Typer(), []

    @take_settings(list_options(Oven, {}, without=("seed", "door")))
    def bake(dough: Dough, minutes: int = 40, **settings: object) -> None:
        met.append((dough, minutes, settings))

    app.command()(bake)
    runner = CliRunner()
    assert runner.invoke(app, []).exit_code == 2  # no flour
    assert runner.invoke(app, ["--flour", "300"]).exit_code == 0
    assert runner.invoke(app, ["--flour", "300", "--salted", "2", "--minutes", "9", "--heat", "99"]).exit_code == 0
    assert met == [(Dough(300), 40, {"heat": 180}), (Dough(300, 2), 9, {"heat": 99})]
    assert [parameter.name for parameter in get_command(app).params][:4] == ["flour", "salt", "minutes", "heat"]


def test_an_exception_for_a_field_that_is_not_there_is_refused() -> None:
    with pytest.raises(ValueError, match="het"):
        list_options(Oven, {"het": {"help": "typo"}}, without=())
