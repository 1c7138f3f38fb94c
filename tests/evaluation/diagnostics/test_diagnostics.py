"""Each flag is raised by a network built for it, and none by a healthy one."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from builders import Data
from torch import Tensor, nn

from art_robust_plugins import ThreatModel
from art_robust_plugins.evaluation import AttackResult, EvaluationReport, Evaluator, Setting
from art_robust_plugins.evaluation.autoattack import Square, standard
from art_robust_plugins.evaluation.diagnostics import run_diagnostics
from art_robust_plugins.evaluation.diagnostics.short_attacks import Chunk
from art_robust_plugins.evaluation.flags import Flag, merge_flags

from ..builders import custom, healthy_findings, list_flags, step, strong, wrap


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


@pytest.mark.parametrize("norm", ["Linf", "L2", "L1"])
def test_a_healthy_network_has_no_flags(norm: str, network: nn.Module, data: Data) -> None:
    eps = {"Linf": 0.1, "L2": 0.5, "L1": 2.0}[norm]
    evaluator = Evaluator(wrap(network), ThreatModel(norm, eps), attacks=custom(strong), verbose=False)
    report = evaluator.evaluate(*data)
    assert list_flags(report) == []
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
    assert list_flags(report)[0] == "randomised"
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
    assert "probabilities" in list_flags(report)
    assert report.clean_accuracy == run(network, data).clean_accuracy


def test_zero_gradients_and_eps_that_does_not_matter(network: nn.Module, data: Data) -> None:
    """Rounding the input has no gradient, except through a path that does nothing."""
    report = run(Around(network, before=lambda x: (x * 8).round() / 8 + 0 * x), data)
    assert {"zero-gradients", "eps-does-not-matter"} <= set(list_flags(report))
    saturated = run(Around(network, after=lambda logits: 1000 * logits), data)
    assert "zero-gradients" in list_flags(saturated)
    # The sweep follows logit differences, which do not saturate.
    assert "eps-does-not-matter" not in list_flags(saturated)


def block(x: Tensor) -> Tensor:
    """Runs, but not under autograd."""
    if x.requires_grad:
        raise RuntimeError("no kernel for the gradient.\nA trace.")
    return x


NO_GRADIENT = "no gradient of the logits reaches the input"


@pytest.mark.parametrize(
    ("before", "reason"),
    [
        (lambda x: x.detach(), NO_GRADIENT),
        (lambda x: x.detach() + torch.ones(1, requires_grad=True), NO_GRADIENT),
        (block, "the gradient of the logits cannot be computed (no kernel for the gradient)"),
    ],
)
def test_no_gradients_at_all(before: Any, reason: str, network: nn.Module, data: Data, tmp_path: Any) -> None:
    pytest.importorskip("pyautoattack")
    few = data[0][:4], data[1][:4]
    report = run(Around(network, before=before), few, attacks=["standard", custom(step), "uniform-0.4"])
    assert list_flags(report) == ["no-gradients"]
    assert report.flags[0].severity == "severe"
    assert report.flags[0].evidence[1:] == f"{reason[1:]}."
    assert report.curve == [(0.0, report.clean_accuracy)]
    assert [result.name for result in report.attacks] == ["square", "uniform-0.4"]
    left_out = ["apgd-ce", "apgd-t", "fab-t", "custom"]
    lines = [f"{name}: it follows gradients, but {reason}." for name in left_out]
    assert report.settings["could_not_run"] == report.settings["not_run"][:4] == lines
    assert all(f"not run: {line}" in str(report) for line in lines)
    assert report.autoattack_accuracy is None
    report.save(tmp_path)
    assert "it cannot run" in (tmp_path / "report.md").read_text()


def test_no_gradients_and_nothing_else_to_run(network: nn.Module, data: Data) -> None:
    with pytest.raises(ValueError, match=rf"^attacks: .*\(custom: .* {NO_GRADIENT}\)"):
        run(Around(network, before=lambda x: x.detach()), data)


def test_torchattacks_without_gradients(network: nn.Module, data: Data) -> None:
    pytest.importorskip("torchattacks")
    few = data[0][:2], data[1][:2]
    report = run(Around(network, before=lambda x: x.detach()), few, attacks="torchattacks")
    assert [result.name for result in report.attacks] == ["torchattacks-square", "pixle", "onepixel"]


def test_the_short_attack_beats_this_run(network: nn.Module, data: Data) -> None:
    """Saturated logits stop attacks on the cross-entropy, and not the sweep's, whose images must not be forgotten."""
    pytest.importorskip("torchattacks")
    saturated = Around(network, after=lambda logits: 1000 * logits)
    report = run(saturated, data, attacks=["fgsm", "pgd-20"])
    (flag,) = (flag for flag in report.flags if flag.name == "short-attack-beats-this-run")
    assert flag.severity == "severe"
    within = dict(report.curve)[0.1]
    assert within < report.robust_accuracy
    # At least as many as the curve fell below the attacks' own accuracy.
    assert int(flag.evidence.split("within eps, ")[1].split(" ")[0]) >= round((report.robust_accuracy - within) * 40)
    assert "short-attack-beats-this-run" not in list_flags(run(saturated, data, perturb=strong))


def test_random_gradients_of_a_network_that_is_not_random(network: nn.Module, data: Data) -> None:
    class Noisy(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: Tensor) -> Tensor:
            return x.clone()

        @staticmethod
        def backward(ctx: Any, gradient: Tensor) -> Tensor:
            return gradient + gradient.abs().mean() * torch.randn_like(gradient)

    assert "random-gradients" in list_flags(run(Around(network, before=Noisy.apply), data, perturb=strong))


def test_nan_logits(network: nn.Module, data: Data) -> None:
    """NaN counts as misclassified, on clean images and on candidates, even where it stands at the label."""

    def poison(logits: Tensor) -> Tensor:
        bad = logits.argmax(dim=1) == 3
        return torch.where(bad[:, None], torch.nan, logits)

    report = run(Around(network, after=poison), data)
    healthy = run(network, data)
    assert "nan-logits" in list_flags(report)
    assert "infinite-logits" not in list_flags(report)
    infinite = run(Around(network, after=lambda logits: torch.where(logits < -5, -torch.inf, logits)), data)
    assert "infinite-logits" in list_flags(infinite)
    assert "nan-logits" not in list_flags(infinite)
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
    assert "fgsm-beats-pgd" in list_flags(report)


def result(name: str, accuracy: float, **fields: Any) -> AttackResult:
    arguments = {"cumulative": False, "bounded": True, **fields}
    robust = np.arange(1000) < round(1000 * accuracy)
    return AttackResult(
        name, "", accuracy, robust=robust, seconds=0.0, forward_calls=0, backward_calls=0, parameters={}, **arguments
    )


def find_flags(*results: AttackResult) -> list[str]:
    """The flags of these results, of a network that is healthy otherwise."""
    return [flag.name for flag in run_diagnostics(healthy_findings(results=results))]


@pytest.mark.parametrize(("norm", "single", "flagged"), [("Linf", 20, True), ("Linf", 17, False), ("L1", 20, False)])
def test_many_steps_that_find_far_more_than_one(
    norm: str, single: int, flagged: bool, network: nn.Module, data: Data, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As of a network that has overfitted to single steps: of 40 points one step leaves some, ten leave five."""
    monkeypatch.setattr(Chunk, "count_left_after", lambda chunk, threat, steps: single if steps == 1 else 5)
    evaluator = Evaluator(wrap(network), ThreatModel(norm, 0.1), attacks=custom(strong), verbose=False)
    flags = [flag for flag in evaluator.evaluate(*data).flags if flag.name == "single-step-misleads"]
    assert len(flags) == flagged
    if flagged:
        assert flags[0].severity == "note"
        assert "On the first 40 points, one gradient step leaves 20 and 10 steps leave 5." in flags[0].evidence


def test_square_beats_the_white_box() -> None:
    assert find_flags(result("fab-t", 0.5), result("square", 0.497)) == ["square-beats-white-box"]
    # Two points are chance.
    assert find_flags(result("fab-t", 0.5), result("square", 0.498)) == []
    # Alone, it has no gradients to beat; and stages of another suite are none before it.
    assert find_flags(result("square", 0.1)) == []
    assert find_flags(result("rand-apgd-ce", 0.5), result("square", 0.1)) == []


def test_a_targeted_attack_far_ahead_of_the_cross_entropy() -> None:
    assert find_flags(result("apgd-ce", 0.7), result("apgd-t", 0.5)) == ["cross-entropy-misleads"]
    assert find_flags(result("apgd-ce", 0.52), result("apgd-t", 0.48)) == []
    assert find_flags(result("apgd-t", 0.5)) == []
    # In another order the difference is another one.
    assert find_flags(result("apgd-ce", 0.7), result("fab-t", 0.6), result("apgd-t", 0.5)) == []
    assert find_flags(result("apgd-t", 0.5), result("apgd-ce", 0.3)) == []


def test_fgsm_and_pgd_that_both_ran() -> None:
    assert find_flags(result("fgsm", 0.3), result("pgd-20", 0.5)) == ["fgsm-beats-pgd"]
    assert find_flags(result("fgsm", 0.5), result("pgd-20", 0.3)) == []
    assert find_flags(result("fgsm", 0.29), result("pgd-20", 0.3)) == []


def test_a_single_point_is_no_sign() -> None:
    def few(name: str, left: int) -> AttackResult:
        return AttackResult(name, "", left / 20, np.arange(20) < left, 0.0, 0, 0, True, False, {})

    assert find_flags(few("fgsm", 10), few("pgd-20", 12), few("apgd-ce", 9), few("apgd-t", 7), few("square", 5)) == []
    assert (
        len(find_flags(few("fgsm", 10), few("pgd-20", 13), few("apgd-ce", 9), few("apgd-t", 6), few("square", 3))) == 3
    )


def test_flags_of_one_name_become_one() -> None:
    flags = [
        Flag("a", "note", "One.", "Do."),
        Flag("b", "warning", "Two.", "Act."),
        Flag("a", "severe", "Three.", "Do."),
    ]
    assert merge_flags(flags) == [Flag("a", "severe", "One. Three.", "Do."), flags[1]]


def test_the_gravest_flags_come_first(network: nn.Module, data: Data) -> None:
    def far(x: Tensor, y: Tensor, setting: Setting) -> Tensor:
        return 1 - x

    report = run(Around(network, after=lambda logits: 1000 * logits), data, perturb=far)
    assert [flag.severity for flag in report.flags] == ["severe", "severe", "warning"]


@pytest.mark.parametrize("attacks", ["apgd-ce", "standard"])
def test_the_standard_suite_is_not_advised_after_it_ran(
    attacks: str, network: nn.Module, few: Data, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Masked(torch.autograd.Function):
        """Its gradient is there for the diagnostics alone, which come last."""

        attacked = True

        @staticmethod
        def forward(ctx: Any, x: Tensor) -> Tensor:
            return x.clone()

        @staticmethod
        def backward(ctx: Any, gradient: Tensor) -> Tensor:
            return 0 * gradient if Masked.attacked else gradient

    def unmask(x: Tensor, y: Tensor, setting: Setting) -> Tensor:
        Masked.attacked = False
        return x

    monkeypatch.setattr(standard, "Square", partial(Square, queries=1))
    report = run(Around(network, before=Masked.apply), few, attacks=[attacks, custom(unmask)])
    (flag,) = (flag for flag in report.flags if flag.name == "short-attack-beats-this-run")
    assert ("run the suite 'standard'" in flag.advice) == (attacks != "standard")
