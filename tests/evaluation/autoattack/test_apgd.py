"""Our Auto-PGD gives every point the reference's verdict, whatever the physical batch."""

from __future__ import annotations

import importlib
from typing import Any

import pytest
import torch
from builders import load_digits, make_linear
from torch import nn

from art_robust_plugins import ThreatModel
from art_robust_plugins.evaluation.autoattack.apgd import APGD
from art_robust_plugins.evaluation.libraries import reference_package

from ..builders import train_network
from ..reference import colour_digits, in_batches, needs_reference, verdicts


class _Silent:
    def warning(self, message: object) -> None:
        pass


def reference(network: nn.Module, threat: ThreatModel, loss: str, **settings: Any) -> Any:
    base = importlib.import_module(f"{reference_package()[0].__name__}.autopgd_base")
    common = {"norm": threat.norm, "eps": threat.eps, "device": "cpu", "logger": _Silent(), "n_iter": STEPS, **settings}
    if loss == "dlr-targeted":
        return base.APGDAttack_targeted(network, **common)
    return base.APGDAttack(network, loss=loss, **common)


CASES = [
    ("Linf", 0.11, "ce", {"restarts": 2}),
    ("Linf", 0.11, "dlr", {"samples": 2}),
    ("Linf", 0.11, "dlr-targeted", {"targets": 3}),
    ("L2", 0.5, "ce", {}),
    ("L2", 0.5, "dlr-targeted", {"targets": 3}),
    ("L1", 1.4, "ce", {"restarts": 2, "larger_radii": True}),
    ("L1", 1.4, "dlr", {}),
    ("L1", 1.4, "dlr-targeted", {"targets": 3, "larger_radii": True}),
]
NAMES = {
    "restarts": "n_restarts",
    "targets": "n_target_classes",
    "samples": "eot_iter",
    "larger_radii": "use_largereps",
}
STEPS = 16


@needs_reference
@pytest.mark.parametrize(("norm", "eps", "loss", "settings"), CASES)
def test_verdicts_on_digits(norm: str, eps: float, loss: Any, settings: dict[str, Any], network: nn.Module) -> None:
    x, y = (torch.from_numpy(values[-24:]) for values in load_digits())
    threat = ThreatModel(norm, eps)
    given = {"n_restarts": 1, **{NAMES[name]: value for name, value in settings.items()}}
    expected = verdicts(network, in_batches(reference(network, threat, loss, seed=3, **given), x, y, 10), y)
    for physical in (1, 7, 64) if (norm, loss) == ("Linf", "ce") else (250,):
        attack = APGD(
            network, threat, loss=loss, steps=STEPS, seed=3, batch_size=10, physical_batch_size=physical, **settings
        )
        found = attack(x, y)
        assert torch.equal(verdicts(network, found, y), expected)
        assert (threat.distance(found, x) <= eps * (1 + 1e-5)).all()
        assert (found.clamp(0, 1) - found).abs().max() <= 1e-6
    assert 0 < expected.sum() < verdicts(network, x, y).sum()


@needs_reference
@pytest.mark.parametrize(
    ("norm", "eps", "loss"), [("Linf", 0.025, "dlr-targeted"), ("L2", 0.6, "ce"), ("L1", 6.0, "ce")]
)
def test_verdicts_of_a_residual_network(norm: str, eps: float, loss: Any, residual: nn.Module) -> None:
    x, y = (values[-24:] for values in colour_digits())
    threat = ThreatModel(norm, eps)
    given = {"n_target_classes": 2} if loss == "dlr-targeted" else {"n_restarts": 1}
    expected = verdicts(residual, in_batches(reference(residual, threat, loss, **given), x, y, 10), y)
    attack = APGD(residual, threat, loss=loss, steps=STEPS, targets=2, batch_size=10, physical_batch_size=64)
    assert torch.equal(verdicts(residual, attack(x, y), y), expected)
    assert 0 < expected.sum() < verdicts(residual, x, y).sum()


@needs_reference
@pytest.mark.parametrize(("classes", "loss"), [(4, "dlr-targeted"), (3, "dlr"), (2, "ce")])
def test_few_classes(classes: int, loss: Any) -> None:
    network = train_network(classes, steps=60).eval()
    x, y = (torch.from_numpy(values[-30:]) for values in load_digits(classes))
    threat = ThreatModel("Linf", 0.3)
    targets = {"n_target_classes": 3} if loss == "dlr-targeted" else {"n_restarts": 1}
    expected = in_batches(reference(network, threat, loss, **targets), x, y, 30)
    found = APGD(network, threat, loss=loss, steps=STEPS, targets=3, batch_size=30)(x, y.int())
    assert torch.equal(verdicts(network, found, y), verdicts(network, expected, y))


def test_points_that_are_done_cost_nothing(network: nn.Module) -> None:
    x, y = (torch.from_numpy(values[-30:]) for values in load_digits())
    rows: list[int] = []
    hook = network.register_forward_pre_hook(lambda _, inputs: rows.append(len(inputs[0])))
    APGD(network, ThreatModel("Linf", 0.5), steps=100)(x, y)
    hook.remove()
    assert sum(rows) < 30 * 12
    assert rows == sorted(rows, reverse=True)


def test_nothing_of_the_callers_is_touched(network: nn.Module) -> None:
    x, y = (torch.from_numpy(values[-10:]) for values in load_digits())
    gradients = [parameter.grad.clone() for parameter in network.parameters() if parameter.grad is not None]
    before, state = (x.clone(), y.clone()), torch.get_rng_state()
    APGD(network, ThreatModel("L1", 2.0), steps=5, larger_radii=True)(x, y)
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(x, before[0])
    assert torch.equal(y, before[1])
    for parameter, gradient in zip(network.parameters(), gradients, strict=True):
        assert torch.equal(parameter.grad, gradient)


def test_logits_that_are_nan_are_misclassified() -> None:
    network = make_linear(12, 4)

    def faulty(module: nn.Module, inputs: Any, logits: torch.Tensor) -> torch.Tensor:
        far = (inputs[0] - 0.45).abs().flatten(1).amax(dim=1, keepdim=True) > 0.05
        return torch.where(far, torch.nan, logits)

    network.register_forward_hook(faulty)
    x = torch.full((6, 3, 2, 2), 0.45)
    y = network(x).argmax(dim=1)
    found = APGD(network, ThreatModel("Linf", 0.1), steps=STEPS)(x, y)
    assert network(found).isnan().all()
    assert found.isfinite().all()


def test_a_randomised_network_is_searched_to_the_end() -> None:
    """One unlucky pass says nothing: no point stops at it, and none is left out for it."""

    class Random(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.passes = 0

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            self.passes += 1
            wrong = self.passes <= 2  # the clean pass, and the one at the start
            middle = x.flatten(1).mean(dim=1, keepdim=True) - 0.5
            return torch.cat([middle, -middle], dim=1) * (-1 if wrong else 1)

    x, y = torch.full((3, 1, 4, 4), 0.6), torch.zeros(3, dtype=torch.long)
    model = Random()
    found = APGD(model, ThreatModel("Linf", 0.2), loss="ce", steps=20, samples=2)(x, y)
    assert model.passes >= 2 * 20
    assert (model(found).argmax(dim=1) != y).all()
    assert (found.flatten(1).mean(dim=1) < 0.5).all()
