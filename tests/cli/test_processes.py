"""Several processes, and what launchers set."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from art_robust_plugins import available_methods, processes
from art_robust_plugins.cli import measuring, running, showing
from art_robust_plugins.data import Dataset
from art_robust_plugins.experiments import TrainingPlan, demo, runs, train_run
from art_robust_plugins.training.processes import Processes, ProcessLostError


def test_one_process_where_several_were_asked_for_says_so(
    run,  # type: ignore[no-untyped-def]
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name, value in {"ACCELERATE_MIXED_PRECISION": "no", "MASTER_PORT": "29500"}.items():
        monkeypatch.setenv(name, value)
    code, text = run("methods")
    assert code == 0
    assert "note: accelerate launch started one process, as it does on CPUs" in text
    monkeypatch.setenv("RANK", "0")
    assert "note:" not in run("methods")[1]


BY_A_LAUNCHER = [
    ("MIXED_PRECISION", "fp16", "got 'fp16',"),
    ("GRADIENT_ACCUMULATION_STEPS", "4", "got '4',"),
    ("DYNAMO_BACKEND", "INDUCTOR", "got 'INDUCTOR',"),
    ("USE_FSDP", "true", "got 'true',"),
    ("USE_DEEPSPEED", "true", "got 'true',"),
]


@pytest.mark.parametrize(("name", "value", "sentence"), BY_A_LAUNCHER, ids=[name for name, *_ in BY_A_LAUNCHER])
def test_what_a_launcher_is_asked_for_and_training_lacks_is_refused(
    run,  # type: ignore[no-untyped-def]
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    name: str,
    value: str,
    sentence: str,
) -> None:
    monkeypatch.setenv(f"ACCELERATE_{name}", value)
    code, text = run("train", "bang", "--out", tmp_path / "new")
    assert code == 2
    assert text.startswith(f"error: ACCELERATE_{name}: {sentence}")
    assert not (tmp_path / "new").exists()


@pytest.mark.slow
def test_what_accelerate_launch_sets_by_itself_is_no_error(
    run,  # type: ignore[no-untyped-def]
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    printed = tmp_path / "environment.py"
    printed.write_text("import json, os\nprint(json.dumps({k: v for k, v in os.environ.items() if 'ACCEL' in k}))")
    launch = [
        sys.executable,
        "-m",
        "accelerate.commands.launch",
        "--cpu",
        "--num_processes",
        "1",
        "--num_machines",
        "1",
    ]
    launch += ["--mixed_precision", "no", "--dynamo_backend", "no", str(printed)]
    launched = subprocess.run(launch, check=True, capture_output=True, text=True)
    set_by_it = json.loads(launched.stdout.splitlines()[-1])
    assert {"ACCELERATE_MIXED_PRECISION", "ACCELERATE_DYNAMO_BACKEND"} <= set_by_it.keys()
    for name, value in set_by_it.items():
        monkeypatch.setenv(name, value)
    assert run("train", "standard", "--epochs", 1, "--out", tmp_path / "run")[0] == 0


@pytest.mark.parametrize("command", [["certify", "{run}", "--eps", "0.1"], ["export", "{run}"], ["report", "{run}"]])
def test_commands_that_share_nothing_refuse_several_processes(
    run,  # type: ignore[no-untyped-def]
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    command: list[str],
) -> None:
    monkeypatch.setattr(running, "find_processes", lambda: SimpleNamespace(num_processes=2, is_main_process=True))
    code, text = run(*(argument.format(run=tmp_path) for argument in command))
    assert code == 2
    assert text.startswith(f"error: {command[0]}: got several processes,")


@pytest.mark.parametrize(
    ("environment", "gpus", "got"), [({"WORLD_SIZE": "3"}, 0, "got 2 beside 3"), ({}, 1, "got 2, expected at most 1")]
)
def test_workers_are_refused_where_they_cannot_work_together(
    run,  # type: ignore[no-untyped-def]
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    environment: dict[str, str],
    gpus: int,
    got: str,
) -> None:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpus > 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
    code, text = run("evaluate", tmp_path, "--workers", 2)
    assert code == 2
    assert text.startswith(f"error: --workers: {got}")


@pytest.mark.parametrize("main", [True, False])
def test_one_process_shows_the_demo(
    run,  # type: ignore[no-untyped-def]
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    main: bool,
) -> None:
    here = SimpleNamespace(num_processes=2, is_main_process=main, device=torch.device("cpu"))
    monkeypatch.setattr(running, "find_processes", lambda: here)
    monkeypatch.setattr(demo, "available_methods", lambda: {"standard": available_methods()["standard"]})
    monkeypatch.setattr(demo, "COMPOSITIONS", ())
    monkeypatch.setattr(processes, "find_processes", lambda: here)
    monkeypatch.setattr(demo, "train_run", lambda *_, **__: None)
    monkeypatch.setattr(demo, "evaluate_run", lambda *_, **__: [object()])
    monkeypatch.setattr(showing, "print_comparison", lambda _: print("table"))
    monkeypatch.setattr(showing, "save_comparison", lambda _, out, **__: out / "index.html")
    code, text = run("demo", "--out", tmp_path)
    assert code == 0
    assert ("table" in text, "in a browser" in text, text == "") == (main, main, not main)


@pytest.mark.parametrize("backwards", [False, True])
def test_the_demos_page_has_its_order_whichever_network_ends_first(
    run,  # type: ignore[no-untyped-def]
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    backwards: bool,
) -> None:
    def share_out(_: Any, jobs: list[Any], *__: Any, finished: Any, **___: Any) -> list[Any]:
        values = {"clean_accuracy": 0.5, "autoattack_accuracy": 0.25, "certified_accuracy": None}
        results = [SimpleNamespace(label=network.label, **values) for network, *_ in jobs]
        for place in sorted(range(len(jobs)), reverse=backwards):
            finished(place, results[place])
        return results

    shown: dict[str, Any] = {}
    monkeypatch.setattr(measuring, "share_out", share_out)
    monkeypatch.setattr(showing, "show_comparison", lambda reports, *_: shown.update(reports))
    code, text = run("demo", "--out", tmp_path)
    assert code == 0
    assert [report.label for report in shown.values()] == list(shown)
    single, last = list(shown)[:-1], list(shown)[-1]
    assert single[0] == "standard"
    assert single[1:] == sorted(single[1:])
    assert last == "local-ball+layerwise"
    assert all(f"{label}: clean 50.0%, AutoAttack 25.0%\n" in text for label in shown)


def test_a_lost_process_at_the_end_of_a_run_is_told_of_as_such(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    digits: Dataset,
) -> None:
    class Two(Processes):
        def __init__(self, *arguments: Any, **settings: Any) -> None:
            super().__init__(*arguments, **settings)
            if "moment" in settings:  # those that wait for the trained network, not those that hold its folder
                self.count = 2

    def lost(_: object) -> None:
        raise RuntimeError("Connection closed by peer\nand more")

    monkeypatch.setattr(runs, "Processes", Two)
    monkeypatch.setattr(torch.distributed, "all_reduce", lost)
    plan = TrainingPlan("standard", epochs=1, train=64)
    told = f"Connection closed by peer.*resume=True.*{re.escape(str(tmp_path / 'training.pt'))}"
    with pytest.raises(ProcessLostError, match=told):
        train_run(plan, digits, tmp_path, seed=0, verbose=False)
