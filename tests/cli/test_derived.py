"""Options that come from a dataclass."""

from __future__ import annotations

from dataclasses import dataclass

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


def test_an_exception_for_a_field_that_is_not_there_is_refused() -> None:
    with pytest.raises(ValueError, match="het"):
        list_options(Oven, {"het": {"help": "typo"}}, without=())
