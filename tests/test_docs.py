"""What README and manual say: tables are current, Python and tutorials run, commands, links and names exist."""

from __future__ import annotations

import ast
import json
import re
import shlex
import sys
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
from typer.main import get_command

import art_robust_plugins
from art_robust_plugins import evaluation, lipschitz, models, training
from art_robust_plugins.cli import app
from art_robust_plugins.evaluation import diagnostics
from art_robust_plugins.experiments.recipes import load_recipe
from art_robust_plugins.lipschitz.rules import RULES

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
MANUAL = sorted(DOCS.rglob("*.md"))
PAGES = {
    path.relative_to(ROOT).as_posix(): path.read_text(encoding="utf-8")
    for path in (ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "SECURITY.md", *MANUAL)
}
TUTORIALS = sorted((DOCS / "tutorials").glob("*.ipynb"))
PYTHON = re.compile(r"```python\n(.*?)```", re.DOTALL)


@pytest.fixture(scope="module")
def tables() -> Iterator[Any]:
    """The script is no part of the package: its folder is on the path for these tests."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "path", [str(DOCS), *sys.path])
        patch.delitem(sys.modules, "tables", raising=False)
        import tables

        yield tables


def test_the_readme_is_one_screen_after_another_and_no_more() -> None:
    assert len(PAGES["README.md"].splitlines()) <= 150


# Tables that are generated or mirror the code.


def test_the_tables_are_those_of_the_results_and_the_rules(tables: Any) -> None:
    present = {path: path.read_text(encoding="utf-8") for path in tables.PAGES}
    assert tables.renew(present) == present


def test_a_stale_table_is_found(tables: Any) -> None:
    present = {path: path.read_text(encoding="utf-8") for path in tables.PAGES}
    stale = {path: text.replace("`relu`", "`reluu`") for path, text in present.items()}
    assert stale != present
    assert tables.renew(stale) == present


def find_flags() -> dict[str, set[str]]:
    """The names of the flags that the diagnostics give, as patterns, with their severities where these are plain."""
    found: dict[str, set[str]] = {}
    for path in Path(diagnostics.__file__).parent.glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "Flag":
                name, severity = node.args[:2]
                parts = name.values if isinstance(name, ast.JoinedStr) else [name]
                pattern = "".join(str(part.value) if isinstance(part, ast.Constant) else "[a-z]+" for part in parts)
                severities = {str(leaf.value) for leaf in ast.walk(severity) if isinstance(leaf, ast.Constant)}
                found.setdefault(pattern, set()).update(severities & {"severe", "warning", "note"})
    return found


def test_every_flag_stands_in_the_manual_with_its_severity() -> None:
    rows = re.findall(r"^\| `([a-z-]+)` \| ([^|]+) \| [^|]+ \| [^|]+ \|$", PAGES["docs/flags.md"], re.MULTILINE)
    flags = find_flags()
    assert len(flags) > 20
    assert len(dict(rows)) == len(rows)
    for pattern, severities in flags.items():
        said = [set(severity.split(" or ")) for name, severity in rows if re.fullmatch(pattern, name)]
        assert said, pattern
        assert all(severity == severities for severity in said), pattern
    for name, _ in rows:
        assert any(re.fullmatch(pattern, name) for pattern in flags), name


def test_every_public_name_stands_in_the_manual() -> None:
    named = re.findall(r"^::: art_robust_plugins\.(?:\w+\.)*(\w+)$", PAGES["docs/api.md"], re.MULTILINE)
    packages = (art_robust_plugins, evaluation, lipschitz, models, training)
    public = {name: getattr(package, name) for package in packages for name in package.__all__}
    assert sorted(named) == sorted(public)
    assert all(getattr(package, name) is public[name] for package in packages for name in package.__all__)


def test_every_option_of_the_loop_stands_in_the_manual() -> None:
    cells = re.findall(r"^\| (`[^|]+) \|", PAGES["docs/training.md"], re.MULTILINE)
    described = set(re.findall(r"`(\w+)`", " ".join(cells) + PAGES["docs/training.md"]))
    assert {field.name for field in fields(art_robust_plugins.TrainingOptions)} <= described


def test_every_method_has_its_row_in_the_readme_and_in_the_manual() -> None:
    own = {name for name, method in art_robust_plugins.available_methods().items() if is_own(method)}
    assert len(own) >= 10
    for page in ("README.md", "docs/methods/index.md"):
        assert own <= set(re.findall(r"`([a-z-]+)`", PAGES[page]))


def is_own(method: Any) -> bool:
    return str(getattr(method, "__module__", "")).startswith("art_robust_plugins.")


# Recipes.


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


# Links, files and commands.


def make_anchor(heading: str) -> str:
    """The anchor that GitHub and the manual give to a heading."""
    return re.sub(r"[^\w\- ]", "", re.sub(r"[`*]", "", heading).strip().lower()).replace(" ", "-")


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_to_files_and_headings(page: str) -> None:
    folder = (ROOT / page).parent
    prose = re.sub(r"^```.*?^```$", "", PAGES[page], flags=re.DOTALL | re.MULTILINE)
    for path, anchor in re.findall(r"\]\((?!https?:|mailto:)([^)#\s]*)(?:#([^)\s]+))?\)", prose):
        target = (folder / path).resolve() if path else ROOT / page
        assert target.exists(), path
        if anchor:
            headings = re.findall(r"^#+ (.*)$", target.read_text(encoding="utf-8"), re.MULTILINE)
            assert anchor in map(make_anchor, headings), f"{path}#{anchor}"


@pytest.mark.parametrize(
    "name",
    sorted(set(re.findall(r"`([\w/-]+(?:/|\.py|\.toml))`|\]\((\w[\w/.-]*)", PAGES["CONTRIBUTING.md"]))),
    ids="".join,
)
def test_the_files_that_contributing_names_exist(name: tuple[str, str]) -> None:
    path = "".join(name)
    folders = (ROOT, ROOT / "art_robust_plugins", ROOT / "benchmarks", ROOT / "art_robust_plugins" / "cli")
    # In the row of a room, a file is named from its folder.
    rooms = [
        ROOT / "art_robust_plugins" / room for room in ("models", "weight_map", "lipschitz", "training", "evaluation")
    ]
    assert any((folder / path).exists() for folder in (*folders, *rooms))


def find_definitions(path: Path) -> set[str]:
    """The functions, classes and variables of a file, and the functions of its classes by their qualified names."""
    body = ast.parse(path.read_text(encoding="utf-8")).body
    kinds = (ast.FunctionDef, ast.ClassDef)
    members = [(node, each) for node in body if isinstance(node, ast.ClassDef) for each in node.body]
    targets = [target for node in body if isinstance(node, ast.Assign) for target in node.targets]
    targets += [node.target for node in body if isinstance(node, ast.AnnAssign)]
    return {
        *(node.name for node in body if isinstance(node, kinds)),
        *(f"{node.name}.{each.name}" for node, each in members if isinstance(each, kinds)),
        *(target.id for target in targets if isinstance(target, ast.Name)),
    }


def find_missing(rows: list[tuple[str, str]]) -> list[tuple[str, str]]:
    """The pairs of a name and a file of the package that does not define it."""
    package = Path(art_robust_plugins.__file__).parent
    return [(name, path) for name, path in rows if name not in find_definitions(package / path)]


def test_the_functions_that_contributing_names_are_in_their_files() -> None:
    rows = re.findall(r"^\| [^|`]+ \| `([\w/.]+\.py)` \| `([\w.]+)` \|$", PAGES["CONTRIBUTING.md"], re.MULTILINE)
    assert len(rows) > 10
    assert find_missing([(name, path) for path, name in rows]) == []


def test_the_names_of_an_addition_are_in_their_files() -> None:
    _, additions = PAGES["CONTRIBUTING.md"].split("\n## Add ...\n")
    rows = re.findall(r"`(\w+)` (?:in|of) `([\w/]+\.py)`", additions)
    assert ("NetworkOptions", "cli/arguments.py") in rows
    assert len(rows) > 7
    assert find_missing(rows) == []


@pytest.mark.parametrize(
    "line", sorted({line for text in PAGES.values() for line in re.findall(r"^ *(art-robust .*)$", text, re.MULTILINE)})
)
def test_the_commands_and_their_options_exist(line: str) -> None:
    words = shlex.split(re.split(r"  +", line)[0])
    command = get_command(app).commands[words[1]]  # type: ignore[attr-defined]
    known = {option for parameter in command.params for option in parameter.opts}
    assert {word for word in words[2:] if word.startswith("--")} <= known


# Python.


@pytest.mark.parametrize("page", [page for page, text in PAGES.items() if PYTHON.search(text)])
def test_the_python_of_a_page_runs_from_its_top_to_its_end(
    page: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    namespace: dict[str, Any] = {"__name__": "manual"}
    with mock.patch.dict(RULES):  # a page may register a rule of its own
        for block in PYTHON.findall(PAGES[page]):
            exec(compile(block, page, "exec"), namespace)


def code_cells(path: Path) -> list[dict[str, Any]]:
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    return [cell for cell in cells if cell["cell_type"] == "code"]


@pytest.mark.parametrize("path", TUTORIALS, ids=lambda path: path.stem)
def test_a_tutorial_is_shown_as_it_was_executed(path: Path) -> None:
    cells = code_cells(path)
    assert [cell["execution_count"] for cell in cells] == list(range(1, len(cells) + 1))
    outputs = [output for cell in cells for output in cell["outputs"]]
    assert len(outputs) > 1
    assert not [output for output in outputs if output["output_type"] == "error" or output.get("name") == "stderr"]


@pytest.mark.parametrize("path", TUTORIALS, ids=lambda path: path.stem)
def test_a_tutorial_runs(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if path.stem == "robustbench_user":
        pytest.importorskip("pyautoattack")
    monkeypatch.chdir(tmp_path)
    namespace: dict[str, Any] = {"__name__": "tutorial"}
    for cell in code_cells(path):
        exec(compile("".join(cell["source"]), path.name, "exec"), namespace)
