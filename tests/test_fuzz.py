"""The fuzzers of benchmarks/fuzz.py on a few seeds each: what broke once is found again, and what holds stays so."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from art_robust_plugins import PyTorchLipschitzCertifier
from art_robust_plugins.lipschitz import Convolution, NormBound

ROOT = Path(__file__).parents[1]
NORMS, NETWORKS, FILES, ARGUMENTS = range(60), range(10), range(60), range(80)


@pytest.fixture(scope="module", autouse=True)
def benchmarks() -> Iterator[None]:
    """The fuzzers are no part of the package: their folder is on the path for these tests."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(ROOT / "benchmarks"))
        yield


@pytest.fixture(scope="module")
def fuzzers(benchmarks: None) -> dict[str, Any]:
    from fuzz import FUZZERS

    return {name: kind() for name, kind in FUZZERS.items()}


@pytest.fixture(scope="module")
def arguments(fuzzers: dict[str, Any]) -> Any:
    return fuzzers["arguments"]


@pytest.fixture(scope="module")
def check(fuzzers: dict[str, Any]) -> Callable[[str, int], Any]:
    """What came of a case of a fuzzer; the limit of time is there for what would never end."""
    from fuzzing.cases import run_case

    return lambda name, seed: run_case(fuzzers[name], seed, seconds=120)


def assert_unbroken(outcome: Any) -> None:
    assert outcome.verdict in ("held", "refused"), f"{outcome.kind}: {outcome.message}"


@pytest.mark.parametrize("seed", NORMS)
def test_norms_are_proven(check: Callable[[str, int], Any], seed: int) -> None:
    assert_unbroken(check("norms", seed))


@pytest.mark.parametrize("seed", NETWORKS)
def test_certificates_withstand_attacks(check: Callable[[str, int], Any], seed: int) -> None:
    assert_unbroken(check("networks", seed))


@pytest.mark.parametrize("seed", FILES)
def test_damaged_files_are_read_alike_or_refused(check: Callable[[str, int], Any], seed: int) -> None:
    assert_unbroken(check("files", seed))


@pytest.mark.parametrize("seed", ARGUMENTS)
def test_hostile_arguments_are_refused_by_name(check: Callable[[str, int], Any], seed: int) -> None:
    assert_unbroken(check("arguments", seed))


def test_every_call_works_with_its_valid_arguments(arguments: Any) -> None:
    for call in arguments.calls.values():
        call.function(**call.valid())


def test_the_same_seed_makes_the_same_case(check: Callable[[str, int], Any]) -> None:
    for seed in range(8):
        first, second = check("norms", seed), check("norms", seed)
        assert (first.verdict, first.kind, first.message) == (second.verdict, second.kind, second.message)
        assert first.gap == pytest.approx(second.gap, abs=1e-12)  # BLAS rounds by where a matrix lies in memory


# The oracles find what is made wrong on purpose.


def test_a_bound_that_is_too_small_is_found(check: Callable[[str, int], Any], monkeypatch: pytest.MonkeyPatch) -> None:
    right = Convolution.upper_bound

    def wrong(self: Convolution) -> NormBound:
        bound = right(self)
        return NormBound(bound.value * 0.999, bound.method)

    monkeypatch.setattr(Convolution, "upper_bound", wrong)
    broken = [outcome for outcome in (check("norms", seed) for seed in range(20)) if outcome.verdict == "broken"]
    assert broken
    assert all("below the norm" in outcome.message for outcome in broken)


def test_a_radius_that_is_too_large_is_found(check: Callable[[str, int], Any], monkeypatch: pytest.MonkeyPatch) -> None:
    right = PyTorchLipschitzCertifier.certify

    def wrong(self: PyTorchLipschitzCertifier, *arguments: Any, **settings: Any) -> Any:
        prediction, radius = right(self, *arguments, **settings)
        return prediction, 1000 * radius

    monkeypatch.setattr(PyTorchLipschitzCertifier, "certify", wrong)
    messages = [check("networks", seed).message for seed in (0, 2, 6)]
    assert any("another class at distance" in message for message in messages)


def test_files_that_are_read_as_something_else_are_found(
    check: Callable[[str, int], Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    import fuzzing.files

    monkeypatch.setattr(fuzzing.files, "fingerprint_value", lambda value: repr(torch.rand(1)))
    outcomes = [check("files", seed) for seed in range(25, 45)]  # files that load are rare
    assert any("read without a word" in outcome.message for outcome in outcomes)


def test_arguments_that_are_taken_without_a_word_are_found(arguments: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("art_robust_plugins.training.options.check_count", lambda name, value: None)
    call = replace(arguments.calls["TrainingOptions"], kinds={"validation_steps": "count"})
    monkeypatch.setattr(arguments, "calls", {"TrainingOptions": call})
    messages = [arguments.check(seed).message for seed in range(10)]
    assert any("taken without a word: TrainingOptions(validation_steps" in message for message in messages)


def test_the_command_counts_and_records(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import fuzz
    import saving

    monkeypatch.setattr(saving, "RESULTS", tmp_path)
    monkeypatch.setattr(sys, "argv", ["fuzz.py", "--minutes", "0.02", "--only", "norms", "--seed", "3"])
    with pytest.raises(SystemExit) as ended:
        fuzz.main()
    kept = json.loads((tmp_path / "fuzz.json").read_text())
    (row,) = kept["results"]
    assert row["tried"] == row["held"] + row["refused"] + row["broken"] > 0
    assert ended.value.code == (row["broken"] > 0)
    assert f"| norms | {row['tried']} | {row['held']} |" in capsys.readouterr().out
