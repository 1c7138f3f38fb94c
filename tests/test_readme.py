"""What the README and CONTRIBUTING say: tables are the measured ones, Python runs, commands and files exist."""

from __future__ import annotations

import json
import re
import shlex
import sys
from pathlib import Path

import pytest
from typer.main import get_command

from art_robust_plugins.cli import app
from art_robust_plugins.cli.spellings import use_present_spellings
from art_robust_plugins.recipes import load_recipe

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
CONTRIBUTING = (ROOT / "CONTRIBUTING.md").read_text()


def test_the_tables_are_those_of_the_results(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    monkeypatch.delitem(sys.modules, "readme", raising=False)
    import readme

    assert readme.renew(README) == README


@pytest.mark.parametrize(
    "path", sorted((ROOT / "benchmarks" / "results").glob("recipe_*.json")), ids=lambda path: path.stem
)
def test_recorded_recipes_are_those_of_the_package(path: Path) -> None:
    record = json.loads(path.read_text())
    now = load_recipe(path.stem.removeprefix("recipe_")).table
    assert not record["quick"]
    assert {**record["recipe"], "description": ""} == {**now, "description": ""}


@pytest.mark.parametrize("quick", [False, True])
@pytest.mark.parametrize("path", sorted((ROOT / "benchmarks" / "recipes").glob("*.toml")), ids=lambda path: path.stem)
def test_the_recipes_of_the_benchmarks_are_recipes(path: Path, quick: bool) -> None:
    recipe = load_recipe(path, quick=quick)
    assert recipe.quick == quick
    assert recipe.rows


@pytest.mark.parametrize(
    "name", sorted(set(re.findall(r"`([\w/-]+(?:/|\.py|\.toml))`|\]\((\w[\w/.-]*)", CONTRIBUTING))), ids="".join
)
def test_the_files_that_contributing_names_exist(name: tuple[str, str]) -> None:
    path = "".join(name)
    folders = (ROOT, ROOT / "art_robust_plugins", ROOT / "benchmarks", ROOT / "art_robust_plugins" / "cli")
    # In the row of a room, a file is named from its folder.
    rooms = [
        ROOT / "art_robust_plugins" / room for room in ("models", "weight_map", "lipschitz", "training", "evaluation")
    ]
    assert any((folder / path).exists() for folder in (*folders, *rooms))


@pytest.mark.parametrize("block", re.findall(r"```python\n(.*?)```", README + CONTRIBUTING, re.DOTALL))
def test_the_python_examples_run(block: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("pyautoattack")
    monkeypatch.chdir(tmp_path)
    exec(compile(block, "README.md", "exec"), {"__name__": "readme"})


@pytest.mark.parametrize("line", sorted(set(re.findall(r"^ *(art-robust .*)$", README, re.MULTILINE))))
def test_the_commands_and_their_options_exist(line: str) -> None:
    words = shlex.split(line.split("  ", maxsplit=1)[0])
    command = get_command(app).commands[words[1]]  # type: ignore[attr-defined]
    known = {option for parameter in command.params for option in parameter.opts}
    given = use_present_spellings(words[1], words[2:])
    assert {word for word in given if word.startswith("--")} <= known
