"""benchmarks/gpu.sh and gpu.py: order, continuing, failing parts, and commands that exist."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from art_robust_plugins.data import load_data
from art_robust_plugins.experiments.plans import TrainingPlan
from art_robust_plugins.experiments.recipes import load_recipe
from art_robust_plugins.files import read_json

ROOT = Path(__file__).parents[1]
PARTS = ("tests", "steps", "autoattack", "robust", "certified")

# Stands for python: it writes down its arguments, writes the file of --out, and fails where $BROKEN is among them.
INTERPRETER = """#!/bin/bash
echo "$*" >> "$CALLS"
while [ $# -gt 0 ]; do
  [ "$1" = --out ] && echo '{"made": true}' > "$2"
  [ "$1" = "$BROKEN" ] && exit 3
  shift
done
"""


class Script:
    """The script, with an interpreter that only writes down what it is called with."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.calls = folder, folder / "calls"
        self.python = folder / "python"
        self.python.write_text(INTERPRETER)
        self.python.chmod(0o755)

    def run(self, *arguments: str, out: str = "out", broken: str = "") -> tuple[int, list[str], str]:
        """The exit status, the commands in their order, and what was printed."""
        self.calls.write_text("")
        paths = {"PYTHON": str(self.python), "CALLS": str(self.calls), "OUT": str(self.folder / out)}
        given = ["bash", str(ROOT / "benchmarks" / "gpu.sh"), "--work", str(self.folder / "work"), *arguments]
        done = subprocess.run(
            given, env={**os.environ, **paths, "BROKEN": broken}, capture_output=True, text=True, check=False
        )
        return done.returncode, self.calls.read_text().splitlines(), done.stdout + done.stderr


@pytest.fixture
def script(tmp_path: Path) -> Script:
    return Script(tmp_path)


@pytest.fixture(scope="module")
def gpu() -> Iterator[Any]:
    """The script is no part of the package: its folder is on the path for these tests."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "path", [str(ROOT / "benchmarks"), *sys.path])
        import gpu

        yield gpu


def test_a_part_that_fails_stops_no_other_and_is_the_one_that_the_next_run_repeats(script: Script) -> None:
    code, first, text = script.run("--rehearse", broken="benchmarks/training_step.py")
    assert (code, len(first)) == (1, 5)
    assert "steps: status 3" in text
    places = ["pytest", "training_step.py", "autoattack_speed.py", "cifar10-ten-minutes", "cifar10-certified-gpu"]
    assert all(place in command for place, command in zip(places, first, strict=True))
    code, second, text = script.run("--rehearse", out="later")
    assert code == 0
    assert second == [first[1]]
    assert text.count("finished earlier") == 4
    # What came out of the first run is in the folder of the second one too.
    assert {"gpu_robust.json", "gpu_certified.json", "log.txt"} <= {p.name for p in (script.folder / "later").iterdir()}
    assert script.run("--rehearse")[:2] == (0, [])


def test_parts_can_be_chosen(script: Script) -> None:
    code, commands, _ = script.run("--rehearse", "--only", "certified,tests")
    assert code == 0
    assert [command.startswith("-m pytest") for command in commands] == [True, False]


@pytest.mark.parametrize(
    ("arguments", "named"),
    [(("--fast",), "--fast"), (("--only", "robust,all"), "all"), (("--cifar", "nowhere.npz"), "nowhere.npz")],
)
def test_a_wrong_argument_is_refused_before_anything_runs(
    script: Script, arguments: tuple[str, ...], named: str
) -> None:
    code, commands, text = script.run(*arguments)
    assert (code, commands) == (64, [])
    assert f"got {named}" in text


@pytest.mark.parametrize("arguments", [(), ("--rehearse",)])
def test_the_commands_and_their_options_exist(script: Script, gpu: Any, arguments: tuple[str, ...]) -> None:
    code, commands, _ = script.run(*arguments)
    assert (code, len(commands)) == (0, len(PARTS))
    assert all(Path(word).exists() for word in commands[0].split() if word.startswith("tests/"))
    for command in commands[1:]:
        path, *words = command.split()
        source = (ROOT / path).read_text(encoding="utf-8")
        options = [word for word in words if word.startswith("--")]
        assert options
        assert all(f'add_argument("{option}"' in source for option in options)
        if path == "benchmarks/gpu.py":
            recipe = load_recipe(words[0], quick=bool(arguments))
            row = words[words.index("--row") + 1] if "--row" in words else None
            assert gpu.choose_row(recipe, row).plan.network in ("preact-resnet18", "orthogonal-cnn")


def test_a_shorter_training_warms_up_over_the_same_share(gpu: Any) -> None:
    options = {"schedule": "piecewise", "milestones": [10, 15]}
    plan = TrainingPlan("pgd", epochs=20, parameters={"steps": 2, "eps_warmup_epochs": 8}, options=options)
    short = gpu.shorten(plan, 5)
    assert (short.epochs, short.parameters) == (5, {"steps": 2, "eps_warmup_epochs": 2})
    assert short.options == {"schedule": "piecewise", "milestones": [2.5, 3.75]}
    assert gpu.shorten(plan, 20) == plan


def test_the_number_of_epochs_follows_from_the_seconds_and_is_kept(
    gpu: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = load_recipe("digits")
    row, data = recipe.rows[0], load_data("digits")
    monkeypatch.setattr(gpu, "time_batch", lambda *_: 0.1)
    batches = -(-len(data.x_train) // row.plan.batch_size)
    planned = gpu.plan_epochs(row, data, 7.001 / gpu.SHARE * batches * 0.1, tmp_path / "planned.json")
    assert planned["epochs"] == 7
    assert gpu.plan_epochs(row, data, 1000, tmp_path / "planned.json") == planned
    assert gpu.fit_epochs(row.plan, data, 1e-9)[0] == 1


def test_a_network_is_trained_attacked_and_certified_and_the_second_call_continues(gpu: Any, tmp_path: Path) -> None:
    recipe = load_recipe("digits", quick=True)
    plan = replace(recipe.rows[0].plan, train=64, network_arguments={"channels": 2})
    row = replace(recipe.rows[0], plan=plan)
    recipe = replace(recipe, rows=(row,), attacks=("apgd-ce",), noise=(), points=4)
    found = gpu.measure(recipe, row, 0.01, tmp_path)
    assert found["epochs"] >= 1
    assert found["result"]["threats"]["Linf 0.1"]["robust"] <= 1
    assert set(found["result"]["certified"]) == set(recipe.certify)
    again = gpu.measure(recipe, row, 100, tmp_path)
    assert {**again, "seconds_of_this_call": 0} == {**found, "seconds_of_this_call": 0}
    assert read_json(tmp_path / "digits" / "plain" / "seed-0.json")["epochs"] == found["epochs"]
