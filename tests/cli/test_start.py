"""The command line begins at once: what it imports, what it lists, and what it takes everywhere."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from typer.main import get_command

from art_robust_plugins import __version__
from art_robust_plugins.cli import app
from art_robust_plugins.cli.app import COMMANDS
from art_robust_plugins.cli.spellings import SPELLINGS, replace_spellings
from art_robust_plugins.models import MODELS

HEAVY = ("torch", "art", "matplotlib", "scipy", "sklearn", "numpy")
PROBE = """
import sys
{statement}
print("heavy:", *[name for name in {heavy} if name in sys.modules])
"""
RUN = """
sys.argv = ["art-robust", *{words}]
from art_robust_plugins.cli import main
try:
    main()
except SystemExit:
    pass
"""


def imported_by(statement: str, **environment: str) -> str:
    """What a new interpreter prints, with the heavy modules that it imported at the end."""
    code = PROBE.format(statement=statement, heavy=HEAVY)
    done = subprocess.run(
        [sys.executable, "-c", code], check=True, capture_output=True, text=True, env={**os.environ, **environment}
    )
    return done.stdout


@pytest.mark.parametrize("words", [["--help"], ["-h"], ["--version"]])
def test_the_front_imports_nothing_heavy(words: list[str]) -> None:
    printed = imported_by(RUN.format(words=words))
    assert printed.endswith("heavy:\n")
    assert ("certify" in printed) == ("--version" not in words)


@pytest.mark.parametrize("command", COMMANDS)
def test_the_help_of_a_command_imports_nothing_that_takes_seconds(command: str) -> None:
    statement = f"""
sys.argv = ["art-robust", "{command}", "--help"]
from art_robust_plugins.cli import main
try:
    main()
except SystemExit:
    pass
"""
    text, _, heavy = imported_by(statement).rpartition("heavy:")
    assert "Options:" in text
    assert heavy.split() in ([], ["numpy"])


def test_the_help_lists_the_networks_that_there_are(run) -> None:  # type: ignore[no-untyped-def]
    unbroken = "".join(run("train", "--help")[1].split())
    assert len(MODELS) > 5
    assert ",".join(MODELS) in unbroken


def test_completion_of_a_command_imports_nothing_heavy() -> None:
    asked = {"_ART_ROBUST_COMPLETE": "complete_bash", "COMP_WORDS": "art-robust ev", "COMP_CWORD": "1"}
    printed = imported_by(RUN.format(words=[]), **asked)
    assert printed.split() == ["evaluate", "heavy:"]


def test_completion_knows_the_options_of_a_command() -> None:
    asked = {"_ART_ROBUST_COMPLETE": "complete_bash", "COMP_WORDS": "art-robust certify --no", "COMP_CWORD": "2"}
    assert "--norm" in imported_by(RUN.format(words=[]), **asked).split()


def test_importing_the_package_imports_nothing_heavy() -> None:
    assert imported_by("import art_robust_plugins; art_robust_plugins.__version__").endswith("heavy:\n")


def test_commands_are_listed_as_their_docstrings_say(run) -> None:  # type: ignore[no-untyped-def]
    code, text = run("--help")
    assert code == 0
    listed = [line.split()[0] for line in text[text.index("Commands:") :].splitlines()[1:] if line.strip()]
    assert listed == list(COMMANDS)
    assert "..." not in text[text.index("Commands:") :]
    for name, command in get_command(app).commands.items():  # type: ignore[attr-defined]
        assert command.name == name
        assert "-h" in run(name, "-h")[1]


def test_version(run) -> None:  # type: ignore[no-untyped-def]
    assert run("--version") == (0, f"art-robust {__version__}\n")


def test_each_other_spelling_leads_to_an_option_that_exists() -> None:
    commands = get_command(app).commands  # type: ignore[attr-defined]
    for name, spellings in SPELLINGS.items():
        known = {option for parameter in commands[name].params for option in parameter.opts}
        assert not known & spellings.keys()
        assert {words[0] for words in spellings.values()} <= known


def test_other_spellings_keep_their_values() -> None:
    words = ["bang", "--clip=3", "--bf16", "--milestone", "2", "--", "--clip"]
    assert replace_spellings("train", words) == [
        *("bang", "--max-gradient-norm=3", "--mixed-precision", "bf16", "--milestones", "2", "--", "--clip")
    ]
    assert replace_spellings("report", words) == words


def test_train_ends_with_the_accuracy_on_held_out_images(run, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    code, text = run("train", "standard", "--epochs", 1, "--quiet", "--out", tmp_path / "run")
    assert code == 0
    assert "Accuracy on 144 training images that were held out: " in text
    assert "epoch" not in text
    code, text = run("train", "standard", "--epochs", 1, "--validation", 0, "--out", tmp_path / "whole")
    assert code == 0
    assert "Accuracy" not in text
    assert "\r" not in text
    assert [line.split(": ")[0] for line in text.splitlines()].count("epoch 1/1") == 1
