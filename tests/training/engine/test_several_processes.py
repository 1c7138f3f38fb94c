"""Two processes train like one."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from art_robust_plugins import (
    LayerwiseAdversarialTrainer,
    TrainingOptions,
    load_classifier,
)
from art_robust_plugins.cli import app
from art_robust_plugins.saved_classifier import describe_classifier

from .process_cases import (
    CASES,
    LAUNCH,
    classifier,
    noise,
    run_fit,
    train_start,
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the two processes write."""
    return tmp_path_factory.mktemp("two")


@pytest.fixture(scope="module")
def two(folder: Path) -> list[dict[str, Any]]:
    """The results of two processes, from one launch for all tests."""
    tests = str(Path(__file__).parents[2])
    script = folder / "run.py"
    script.write_text(
        "import pathlib, sys\n"
        f"sys.path.insert(0, {tests!r})\n"
        "from training.engine import process_cases\n"
        f"process_cases.main(pathlib.Path({str(folder)!r}))\n"
    )
    done = subprocess.run([*LAUNCH, str(script)], check=False, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return [torch.load(folder / f"{index}.pt", weights_only=True) for index in range(2)]


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_two_processes_train_like_one(name: str, two: list[dict[str, Any]], tmp_path: Path) -> None:
    one, (first, second) = CASES[name](tmp_path), (result[name] for result in two)
    assert one["weights"].keys() == first["weights"].keys()
    for key, expected in one["weights"].items():
        assert torch.equal(first["weights"][key], second["weights"][key]), key
        torch.testing.assert_close(first["weights"][key], expected, rtol=1e-4, atol=1e-5, msg=key)
    assert first["history"] == second["history"]
    for record, expected in zip(first["history"], one["history"], strict=True):
        assert record == pytest.approx(expected, rel=1e-4)


@pytest.mark.slow
def test_what_two_processes_began_one_can_go_on_with(two: list[dict[str, Any]], folder: Path, tmp_path: Path) -> None:
    CASES["layerwise"](tmp_path)
    ends = []
    for begun in (folder, tmp_path):
        options = TrainingOptions(seed=1, checkpoint_dir=begun / "layerwise", resume=True)
        ends.append(run_fit(LayerwiseAdversarialTrainer(classifier(), eps=0.3, options=options), nb_epochs=5))
    for key, expected in ends[1]["weights"].items():
        torch.testing.assert_close(ends[0]["weights"][key], expected, rtol=1e-4, atol=1e-5, msg=key)
    assert len(ends[0]["history"]) == 5


@pytest.mark.slow
def test_a_layer_that_no_loss_reaches_stays_as_it_was(two: list[dict[str, Any]]) -> None:
    assert torch.equal(two[1]["standard"]["weights"]["unused.weight"], train_start(1)["unused.weight"])


@pytest.mark.slow
def test_two_processes_refuse_alike_and_in_one_sentence(two: list[dict[str, Any]]) -> None:
    first, second = (result["refusals"] for result in two)
    assert first == second
    assert first["labels"].startswith("ValueError: y, checksum: got ")
    for name, begin in (
        ("images", "x, checksum: got "),
        ("validation", "validation_data[1], checksum: got "),
        ("unvalidated", "validation_data[0], checksum: got none in process 0 and "),
        ("scheduler", "scheduler, state: got "),
    ):
        assert first[name].startswith(f"ValueError: {begin}"), first[name]
    for name, begin, own, others in (
        ("fewer", "samples: got ", "101", "100"),
        ("eps", "threat: got ", "Linf 0.03", "Linf 0.06"),
        ("accumulation_steps", "accumulation_steps: got ", "1", "2"),
    ):
        assert first[name].startswith(f"ValueError: {begin}{own} in process 0 and {others} in process 1,")
    for name, begin in (("lr", "optimizer: got SGD "), ("lr now", "optimizer, group 0: got ")):
        found = rf"ValueError: {begin}.*'lr': 0\.01, .* in process 0 and .*'lr': 0\.02, .* in process 1, .*"
        assert re.fullmatch(found, first[name]), first[name]
        assert len(first[name]) < 250
    assert first["epochs"].startswith("ValueError: nb_epochs: got 1 in process 0 and 2 in process 1,")
    assert first["loader"].startswith("ValueError: loader, checksum of a batch's labels: got ")
    assert re.search("samples in a batch.*: got 10 in process 0 and 0 in process 1,", first["shorter"])
    assert first["loss"].startswith("FloatingPointError: the loss became nan in epoch 2, step 1;")


@pytest.mark.slow
def test_each_process_has_noise_of_its_own_beside_that_of_the_batch(two: list[dict[str, Any]]) -> None:
    one, (first, second) = noise(), (result["noise"] for result in two)
    assert torch.equal(torch.cat([first["share_of_whole"], second["share_of_whole"]]), one["share_of_whole"])
    assert (first["own"] - second["own"]).abs().mean() > 0.2


TRAIN = ["-m", "art_robust_plugins", "train", "bang", "--model-set", "channels=4", "--model-set", "hidden=16"]
TRAIN += ["--batch-size", "200", "--epochs", "20", "--validation", "100", "--eps", "0.05", "--keep-best", "--out"]


@pytest.mark.slow
def test_a_killed_process_ends_the_run_which_then_goes_on(tmp_path: Path) -> None:
    """The survivor says what happened; resumed, the run ends as one process does that nobody kills."""
    run, output = tmp_path / "two", tmp_path / "output"
    with output.open("w") as file:
        launcher = subprocess.Popen([*LAUNCH, *TRAIN, str(run)], stdout=file, stderr=file)
        deadline = time.monotonic() + 120
        while not (run / "training.pt").exists() and time.monotonic() < deadline:
            assert launcher.poll() is None, output.read_text()
            time.sleep(0.02)
        workers = Path(f"/proc/{launcher.pid}/task/{launcher.pid}/children").read_text().split()
        os.kill(int(workers[-1]), signal.SIGKILL)
        assert launcher.wait(timeout=60) == 1
    said = output.read_text()
    sentence = r"error: another process ended in epoch \d+, or did not answer in time \(.+\); start all of them again"
    assert re.search(sentence, said) or "ended by SIGTERM; to continue: art-robust train" in said
    assert not (run / "classifier.json").exists()
    resume = [*LAUNCH, *TRAIN, str(run), "--resume"]
    done = subprocess.run(resume, check=False, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("Saved in") == 1
    app([*TRAIN[2:], str(tmp_path / "one")], standalone_mode=False)
    one, two = (load_classifier(folder).model.state_dict() for folder in (tmp_path / "one", run))
    for name, expected in one.items():
        torch.testing.assert_close(two[name], expected, rtol=1e-3, atol=1e-4, msg=name)
    histories = [describe_classifier(folder)["extra"]["history"] for folder in (tmp_path / "one", run)]
    assert [record["loss"] for record in histories[1]] == pytest.approx(
        [record["loss"] for record in histories[0]], 1e-3
    )
    assert len(histories[1]) == 20
