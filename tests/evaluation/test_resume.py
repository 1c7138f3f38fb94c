"""An evaluation that is stopped goes on where it was, and a foreign state is refused."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from art.defences.preprocessor.preprocessor import PreprocessorPyTorch
from builders import Data, load_digits
from numpy.testing import assert_array_equal
from torch import nn

from art_robust_plugins import ThreatModel
from art_robust_plugins.evaluation import Attack, Evaluator, Setting

from .builders import custom, step, train_network, wrap


def noisy(x: torch.Tensor, y: torch.Tensor, setting: Setting) -> torch.Tensor:
    """Depends on the random stream, as real attacks do."""
    start = setting.threat.random_start(x, 0.0, 1.0)
    return setting.threat.project(start + (step(x, y, setting) - x) * torch.rand(len(x), 1, 1, 1), x, 0.0, 1.0)


def attacks(stop_at: int = -1, pause: float = 0.0) -> tuple[list[Attack], list[int]]:
    """Two stages and one more attack; a call number ``stop_at`` is interrupted."""
    calls: list[int] = []

    def perturb(x: torch.Tensor, y: torch.Tensor, setting: Setting) -> torch.Tensor:
        calls.append(len(x))
        time.sleep(pause)
        if len(calls) - 1 == stop_at:
            raise KeyboardInterrupt
        return noisy(x, y, setting)

    made = [custom(perturb, name=name, cumulative=name != "third") for name in ("first", "second", "third")]
    return made, calls


def evaluator(network: nn.Module, made: Any, folder: Path | None, **arguments: Any) -> Evaluator:
    arguments = {"batch_size": 10, "seed": 1, "verbose": False, **arguments}
    return Evaluator(wrap(network), ThreatModel("Linf", 0.06), attacks=made, state_dir=folder, **arguments)


@pytest.mark.parametrize("stop_at", [0, 1, 4, 6])
def test_an_interrupted_evaluation_is_resumed_at_the_next_batch(
    stop_at: int, network: nn.Module, data: Data, tmp_path: Path
) -> None:
    made, all_calls = attacks()
    expected = evaluator(network, made, None).evaluate(*data)
    stopped, calls = attacks(stop_at)
    with pytest.raises(KeyboardInterrupt):
        evaluator(network, stopped, tmp_path).evaluate(*data)
    made, rest = attacks()
    report = evaluator(network, made, tmp_path).evaluate(*data)
    assert calls[:-1] + rest == all_calls
    for result, wanted in zip(report.attacks, expected.attacks, strict=True):
        assert_array_equal(result.robust, wanted.robust)
        assert (result.forward_calls, result.backward_calls) == (wanted.forward_calls, wanted.backward_calls)
    assert_array_equal(report.robust, expected.robust)
    assert_array_equal(report.adversarial, expected.adversarial)

    made, none = attacks()
    again = evaluator(network, made, tmp_path).evaluate(*data)
    for key, value in vars(again).items():
        if key not in ("attacks", "details", "examples", "settings"):
            assert_array_equal(value, getattr(report, key))
    for key, value in vars(again.details).items():
        assert_array_equal(value, getattr(report.details, key))
    for result, wanted in zip(again.attacks, report.attacks, strict=True):
        assert_array_equal(result.robust, wanted.robust)
        assert {**vars(result), "robust": 0} == {**vars(wanted), "robust": 0}
    assert none == []


def run_until_killed(folder: str) -> None:
    """The child process of the next test."""
    torch.set_num_threads(1)
    x, y = load_digits()
    network = train_network(steps=0)
    network.load_state_dict(torch.load(Path(folder) / "weights.pt", weights_only=True))
    made, _ = attacks(pause=0.3)
    evaluator(network, made, Path(folder)).evaluate(x[-40:], y[-40:])


def test_a_killed_process_is_resumed(network: nn.Module, data: Data, tmp_path: Path) -> None:
    tests = Path(__file__).parents[1]
    torch.save(network.state_dict(), tmp_path / "weights.pt")
    code = f"import sys; sys.path.insert(0, {str(tests)!r})\nfrom evaluation.test_resume import run_until_killed\n"
    child = subprocess.Popen([sys.executable, "-c", f"{code}run_until_killed({str(tmp_path)!r})"])
    state, deadline = tmp_path / "evaluation.pt", time.monotonic() + 60
    while not state.exists() and child.poll() is None and time.monotonic() < deadline:
        time.sleep(0.05)
    time.sleep(0.5)
    assert child.poll() is None
    os.kill(child.pid, signal.SIGKILL)
    child.wait()
    made, all_calls = attacks()
    expected = evaluator(network, made, None).evaluate(*data)
    made, rest = attacks()
    report = evaluator(network, made, tmp_path).evaluate(*data)
    assert 0 < len(rest) < len(all_calls)
    assert_array_equal(report.robust, expected.robust)
    assert_array_equal(report.adversarial, expected.adversarial)


def test_the_state_is_as_large_as_what_was_broken(network: nn.Module, data: Data, tmp_path: Path) -> None:
    x, y = load_digits()
    x, y = np.tile(x, (3, 1, 1, 1)), np.tile(y, 3)
    report = evaluator(network, [custom(lambda x, y, setting: x)], tmp_path, batch_size=500).evaluate(x, y)
    sizes = [path.stat().st_size for path in tmp_path.rglob("*.pt")]
    assert len(sizes) == 1 + -(-round(report.clean_accuracy * len(x)) // 500)
    # Of 1.4 MB of images nothing is stored: nothing was broken.
    assert sum(sizes) < 150_000


def test_batches_of_an_earlier_state_are_not_mixed_in(network: nn.Module, data: Data, tmp_path: Path) -> None:
    made, _ = attacks()
    evaluator(network, made, tmp_path, seed=2).evaluate(*data)
    (tmp_path / "evaluation.pt").unlink()
    stopped, _ = attacks(stop_at=2)
    with pytest.raises(KeyboardInterrupt):
        evaluator(network, stopped, tmp_path).evaluate(*data)
    made, _ = attacks()
    expected, resumed = (evaluator(network, made, folder).evaluate(*data) for folder in (None, tmp_path))
    assert_array_equal(resumed.robust, expected.robust)
    assert_array_equal(resumed.adversarial, expected.adversarial)


def test_a_foreign_state_is_refused_with_its_difference(
    network: nn.Module, data: Data, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch_version = torch.__version__
    made, _ = attacks()
    evaluator(network, made, tmp_path).evaluate(*data)
    x, y = data
    other = train_network(steps=1)

    def check_refusal(what: str, run: Evaluator, samples: Data = data) -> None:
        with pytest.raises(ValueError, match=f"^state_dir: .* another {what}"):
            run.evaluate(*samples)

    check_refusal("network", evaluator(other, made, tmp_path))
    check_refusal("x", evaluator(network, made, tmp_path), (np.clip(x + 0.01, 0, 1), y))
    check_refusal("y", evaluator(network, made, tmp_path), (x, (y + 1) % 10))
    check_refusal("seed", evaluator(network, made, tmp_path, seed=2))
    with monkeypatch.context() as patch:
        patch.setattr(torch, "__version__", "9.0")
        check_refusal(rf"version of torch \({re.escape(torch_version)}, now 9\.0\)", evaluator(network, made, tmp_path))
        patch.setattr("art_robust_plugins.evaluation.settings.version", lambda name: "9.0")
        check_refusal(r"version of art-robust-plugins \(.*, now 9\.0\) and .*", evaluator(network, made, tmp_path))
    check_refusal("batch_size", evaluator(network, made, tmp_path, batch_size=11))
    check_refusal("choice of attacks", evaluator(network, made[:2], tmp_path))
    check_refusal("x and y", evaluator(network, made, tmp_path), (x[:30], y[:30]))
    threat = Evaluator(
        wrap(network), ThreatModel("L2", 0.06), attacks=made, state_dir=tmp_path, batch_size=10, seed=1, verbose=False
    )
    check_refusal("threat", threat)


class Scaled(nn.Module):
    """A constant that is no buffer, and learned preprocessing, which no text of the classifier shows."""

    def __init__(self, network: nn.Module, factor: float) -> None:
        super().__init__()
        self.network, self.factor = network, factor

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.network(self.factor * x)


class Learned(PreprocessorPyTorch):
    params: ClassVar[list[str]] = ["layer"]

    def __init__(self, weight: float) -> None:
        super().__init__(apply_fit=True, apply_predict=True)
        self.layer = nn.Conv2d(1, 1, 1, bias=False)
        nn.init.constant_(self.layer.weight, weight)

    def forward(self, x: torch.Tensor, y: torch.Tensor | None = None) -> tuple[torch.Tensor, torch.Tensor | None]:
        return self.layer(x), y


def test_a_state_of_a_network_that_computes_something_else_is_refused(
    network: nn.Module, data: Data, tmp_path: Path
) -> None:
    made, _ = attacks()
    with_constant = Scaled(network, 1.0)
    evaluator(with_constant, made, tmp_path / "constant").evaluate(*data)
    evaluator(with_constant, made, tmp_path / "constant").evaluate(*data)
    with pytest.raises(ValueError, match=r"^state_dir: .* other outputs"):
        evaluator(Scaled(network, 0.9), made, tmp_path / "constant").evaluate(*data)

    def run(weight: float) -> None:
        classifier = wrap(network, preprocessing_defences=Learned(weight))
        Evaluator(
            classifier, ThreatModel("Linf", 0.06), attacks=made, state_dir=tmp_path / "learned", verbose=False
        ).evaluate(*data)

    run(1.0)
    with pytest.raises(ValueError, match=r"^state_dir: .* another preprocessing"):
        run(0.999)


def test_a_file_that_is_no_state_is_refused(network: nn.Module, data: Data, tmp_path: Path) -> None:
    made, _ = attacks()
    (tmp_path / "evaluation.pt").write_bytes(b"\x80\x04N.")
    with pytest.raises(ValueError, match=r"evaluation\.pt"):
        evaluator(network, made, tmp_path).evaluate(*data)
    for content in ({"something": 1}, [1]):
        torch.save(content, tmp_path / "evaluation.pt")
        with pytest.raises(ValueError, match=r"is not the state of an evaluation"):
            evaluator(network, made, tmp_path).evaluate(*data)
    torch.save({"format": "art-robust-plugins evaluation 1"}, tmp_path / "evaluation.pt")
    with pytest.raises(ValueError, match=r"earlier version"):
        evaluator(network, made, tmp_path).evaluate(*data)


@pytest.mark.parametrize("entry", ["clean", "outputs", "difference", "passes", "memory", "moved", "tied", "gradients"])
def test_a_state_without_an_entry_is_refused_with_its_name(
    entry: str, network: nn.Module, data: Data, tmp_path: Path
) -> None:
    stopped, _ = attacks(stop_at=0)
    with pytest.raises(KeyboardInterrupt):
        evaluator(network, stopped, tmp_path).evaluate(*data)
    state = torch.load(tmp_path / "evaluation.pt", weights_only=True)
    del state[entry]
    torch.save(state, tmp_path / "evaluation.pt")
    made, calls = attacks()
    with pytest.raises(ValueError, match=rf"evaluation\.pt: {entry}"):
        evaluator(network, made, tmp_path).evaluate(*data)
    assert calls == []


def test_a_file_that_was_being_written_is_passed_over(network: nn.Module, data: Data, tmp_path: Path) -> None:
    made, _ = attacks()
    expected = evaluator(network, made, tmp_path).evaluate(*data)
    whole = sorted((tmp_path / "batches").glob("*.pt"))[-1]
    (whole.parent / f".ab12cd34.{whole.name}").write_bytes(whole.read_bytes()[:100])
    whole.unlink()
    again, calls = attacks()
    report = evaluator(network, again, tmp_path).evaluate(*data)
    assert_array_equal(report.robust, expected.robust)
    assert len(calls) == 1


@pytest.mark.parametrize(
    ("entry", "value"),
    [
        ("memory", "x"),
        ("memory", None),
        ("batch_difference", None),
        ("batch_difference", torch.zeros(2)),
        ("batch_difference", -1.0),
        ("seeded_difference", float("nan")),
        ("gradients", None),
        ("moved", "x"),
        ("undecided", -1),
        ("tied", 41),
    ],
)
def test_clean_findings_of_another_kind_are_refused(
    entry: str, value: Any, network: nn.Module, data: Data, tmp_path: Path
) -> None:
    stopped, _ = attacks(stop_at=0)
    with pytest.raises(KeyboardInterrupt):
        evaluator(network, stopped, tmp_path).evaluate(*data)
    state = torch.load(tmp_path / "evaluation.pt", weights_only=True)
    torch.save({**state, entry: value}, tmp_path / "evaluation.pt")
    made, calls = attacks()
    with pytest.raises(ValueError, match=rf"evaluation\.pt: {entry}: got "):
        evaluator(network, made, tmp_path).evaluate(*data)
    assert calls == []


MISSING = object()


@pytest.mark.parametrize(
    ("entry", "value"),
    [
        ("moved", "x"),
        ("moved", MISSING),
        ("widest", "x"),
        ("widest", MISSING),
        ("repeat_difference", None),
        ("gradients", 1),
        ("gradients", MISSING),
        ("farthest", torch.zeros(2)),
        ("batches", [9]),
        ("batches", []),
        ("counts", {}),
    ],
)
def test_changes_of_another_kind_are_refused(
    entry: str, value: Any, network: nn.Module, data: Data, tmp_path: Path
) -> None:
    stopped, _ = attacks(stop_at=1)
    with pytest.raises(KeyboardInterrupt):
        evaluator(network, stopped, tmp_path).evaluate(*data)
    (path,) = (tmp_path / "batches").glob("*.pt")
    change = torch.load(path, weights_only=True)
    change.pop(entry) if value is MISSING else change.update({entry: value})
    torch.save(change, path)
    made, calls = attacks()
    with pytest.raises(ValueError, match=rf"{tmp_path}.* {entry[:5]}"):
        evaluator(network, made, tmp_path).evaluate(*data)
    assert calls == []
