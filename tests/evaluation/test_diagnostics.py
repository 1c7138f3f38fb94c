"""Each flag is raised by a network built for it, and none by a healthy one."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from art_robust_plugins import ThreatModel
from art_robust_plugins.evaluation import AttackResult, EvaluationReport, Evaluator, Setting
from art_robust_plugins.evaluation.diagnostics import of_results

from .conftest import Data, custom, step, wrap


class Around(nn.Module):
    """The trained network with something done to its input or its output."""

    def __init__(self, network: nn.Module, before: Any = None, after: Any = None) -> None:
        super().__init__()
        self.network, self.before, self.after = network, before, after

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.network(x if self.before is None else self.before(x))
        return logits if self.after is None else self.after(logits)


def run(network: nn.Module, data: Data, perturb: Any = step, **arguments: Any) -> EvaluationReport:
    arguments = {"attacks": custom(perturb), "verbose": False, **arguments}
    return Evaluator(wrap(network), ThreatModel("Linf", 0.1), **arguments).evaluate(*data)


def names(report: EvaluationReport) -> list[str]:
    return [flag.name for flag in report.flags]


@pytest.mark.parametrize("norm", ["Linf", "L2", "L1"])
def test_a_healthy_network_has_no_flags(norm: str, network: nn.Module, data: Data) -> None:
    eps = {"Linf": 0.1, "L2": 0.5, "L1": 2.0}[norm]
    evaluator = Evaluator(wrap(network), ThreatModel(norm, eps), attacks=custom(step), verbose=False)
    report = evaluator.evaluate(*data)
    assert names(report) == []
    radii, accuracies = zip(*report.curve, strict=True)
    assert radii[0] == 0
    assert radii[-1] == pytest.approx({"Linf": 1, "L2": 8, "L1": 64}[norm])
    assert eps in [pytest.approx(radius) for radius in radii]
    assert list(accuracies) == sorted(accuracies, reverse=True)
    assert accuracies[0] == report.clean_accuracy
    assert accuracies[-1] == 0
    assert report.settings["diagnostics"]["points"] == 40


def test_a_randomised_network(network: nn.Module, data: Data) -> None:
    noisy = Around(network, after=lambda logits: logits + 3 * torch.randn_like(logits))
    report = run(noisy, data)
    assert names(report)[0] == "randomised"
    assert report.flags[0].severity == "severe"
    assert "'rand'" in report.flags[0].advice
    assert report.settings["verdict_passes"] == 10
    # Verdicts of the mean over ten passes, from the seed alone.
    assert (run(noisy, data).robust == report.robust).all()
    assert report.clean_accuracy > 0.8


def test_rand_on_a_randomised_network_is_a_milder_flag(network: nn.Module, data: Data) -> None:
    pytest.importorskip("pyautoattack")
    noisy = Around(network, after=lambda logits: logits + torch.randn_like(logits))
    report = run(noisy, (data[0][:5], data[1][:5]), attacks="rand-apgd-ce")
    assert [(flag.name, flag.severity) for flag in report.flags if flag.name == "randomised"] == [
        ("randomised", "warning")
    ]


def test_softmax_outputs(network: nn.Module, data: Data) -> None:
    report = run(Around(network, after=lambda logits: logits.softmax(dim=1)), data)
    assert "probabilities" in names(report)
    assert report.clean_accuracy == run(network, data).clean_accuracy


def test_zero_gradients_and_eps_that_does_not_matter(network: nn.Module, data: Data) -> None:
    """Rounding the input has no gradient, except through a path that does nothing."""
    report = run(Around(network, before=lambda x: (x * 8).round() / 8 + 0 * x), data)
    assert {"zero-gradients", "eps-does-not-matter"} <= set(names(report))
    saturated = run(Around(network, after=lambda logits: 1000 * logits), data)
    assert "zero-gradients" in names(saturated)
    # The sweep follows logit differences, which do not saturate.
    assert "eps-does-not-matter" not in names(saturated)


def test_no_gradients_at_all(network: nn.Module, data: Data) -> None:
    report = run(Around(network, before=lambda x: x.detach()), data, perturb=lambda x, y, setting: x)
    assert names(report) == ["no-gradients"]
    assert report.curve == [(0.0, report.clean_accuracy)]


def test_nan_logits(network: nn.Module, data: Data) -> None:
    """NaN counts as misclassified, on clean images and on candidates, even where it stands at the label."""

    def poison(logits: Tensor) -> Tensor:
        bad = logits.argmax(dim=1) == 3
        return torch.where(bad[:, None], torch.nan, logits)

    report = run(Around(network, after=poison), data)
    healthy = run(network, data)
    assert "nan-logits" in names(report)
    assert not report.robust[data[1] == 3].any()
    assert report.clean_accuracy < healthy.clean_accuracy
    assert (report.robust <= healthy.robust).all()


def test_fgsm_beats_pgd(network: nn.Module, data: Data) -> None:
    """A bump of noise of high frequency bends the gradient after the first step."""

    class Fold(torch.autograd.Function):
        """The gradient is right at clean images only: those are multiples of 1/16."""

        @staticmethod
        def forward(ctx: Any, x: Tensor) -> Tensor:
            ctx.save_for_backward(x)
            return x.clone()

        @staticmethod
        def backward(ctx: Any, gradient: Tensor) -> Tensor:
            (x,) = ctx.saved_tensors
            on_grid = ((x * 16).round() == x * 16).flatten(1).all(dim=1)
            return torch.where(on_grid[:, None, None, None], gradient, -gradient)

    report = run(Around(network, before=Fold.apply), data)
    assert "fgsm-beats-pgd" in names(report)


def result(name: str, accuracy: float, **fields: Any) -> AttackResult:
    arguments = {"cumulative": False, "bounded": True, **fields}
    empty: Any = None
    return AttackResult(
        name, "", accuracy, robust=empty, seconds=0.0, forward_calls=0, backward_calls=0, parameters={}, **arguments
    )


def test_square_beats_the_white_box(network: nn.Module, data: Data) -> None:
    blind = custom(lambda x, y, setting: x, name="apgd-ce", cumulative=True)
    report = run(network, data, attacks=[blind, custom(step, name="square", cumulative=True)])
    assert "square-beats-white-box" in names(report)
    stages = [result("apgd-ce", 0.5, cumulative=True), result("square", 0.499, cumulative=True)]
    assert of_results(stages, 1.0) == []
    # Alone, it has no gradients to beat.
    assert of_results([result("square", 0.1, cumulative=True)], 1.0) == []


def test_a_targeted_attack_far_ahead_of_the_cross_entropy() -> None:
    stages = [result("apgd-ce", 0.7, cumulative=True), result("apgd-t", 0.5, cumulative=True)]
    assert [flag.name for flag in of_results(stages, 1.0)] == ["cross-entropy-misleads"]
    usual = [result("apgd-ce", 0.52, cumulative=True), result("apgd-t", 0.48, cumulative=True)]
    assert of_results(usual, 1.0) == []
    assert of_results(stages[1:], 1.0) == []


def test_fgsm_and_pgd_that_both_ran() -> None:
    assert [f.name for f in of_results([result("fgsm", 0.3), result("pgd-20", 0.5)], 1.0)] == ["fgsm-beats-pgd"]
    assert of_results([result("fgsm", 0.5), result("pgd-20", 0.3)], 1.0) == []


def test_the_gravest_flags_come_first(network: nn.Module, data: Data) -> None:
    def far(x: Tensor, y: Tensor, setting: Setting) -> Tensor:
        return 1 - x

    report = run(Around(network, after=lambda logits: 1000 * logits), data, perturb=far)
    assert [flag.severity for flag in report.flags] == ["severe", "warning"]
