"""Lipschitz-margin training: the paper's loss against its vector and a float64 oracle, its state, what it refuses."""

from __future__ import annotations

import copy
import math
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from art.defences.preprocessor import FeatureSqueezing
from art.estimators.classification import PyTorchClassifier
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils import parametrizations
from torch.utils import checkpoint

from art_robust_plugins import (
    Evaluator,
    LipschitzMarginTrainer,
    PyTorchLipschitzCertifier,
    StandardTrainer,
    ThreatModel,
    TrainingOptions,
    create,
)
from art_robust_plugins.lipschitz import NoLipschitzRuleError, propagation
from art_robust_plugins.models import MinMax
from art_robust_plugins.training.methods.lipschitz_margin import margin_logits

from ..builders import IMAGES, LABELS, make_builder, weights

X = torch.from_numpy(IMAGES)
Y = torch.from_numpy(LABELS)


def network(seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Conv2d(1, 6, 3, padding=1, bias=False),
        nn.BatchNorm2d(6),
        nn.ReLU(),
        nn.Conv2d(6, 8, 4, stride=2, padding=1),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(128, 10),
    )


classifier = make_builder(network, partial(torch.optim.Adam, lr=0.003))


def converge(trainer: LipschitzMarginTrainer, x: Tensor, y: Tensor) -> None:
    """Let the power iterations reach the norms, as many small training steps would."""
    trainer.classifier.model.train()
    with torch.no_grad():
        for _ in range(400):
            trainer.training_loss(x, y)


# --------------------------------------------------------------------------------------------------------- the formula


def test_the_published_vector() -> None:
    """f = [3, 1, .5], y = 0, W = [[1, 0], [0, 1], [.6, .8]], c L_pre = 2."""
    last = nn.Linear(2, 3)
    last.weight.data = torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.6, 0.8]])
    last.bias.data = torch.tensor([1.0, 0.0, -1.5])  # features (2, 1): 2 + 1, 1, 1.2 + .8 - 1.5
    first = nn.Linear(2, 2)
    first.weight.data, first.bias.data = 2 * torch.eye(2), torch.zeros(2)
    model = nn.Sequential(first, nn.ReLU(), last)
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    estimator = PyTorchClassifier(model, nn.CrossEntropyLoss(), (2,), 3, optimizer=optimizer, clip_values=(0, 1))
    trainer = LipschitzMarginTrainer(estimator, c=1.0)
    loss = trainer.training_loss(torch.tensor([[1.0, 0.5]]), torch.tensor([0]))
    expected = functional.cross_entropy(torch.tensor([[3.0, 3.0, 1.764911]]), torch.tensor([0]))
    torch.testing.assert_close(loss, expected, rtol=1e-6, atol=1e-6)

    f, y = torch.tensor([[3.0, 1.0, 0.5]], dtype=torch.float64), torch.tensor([0])
    l = torch.tensor([[0.0, math.sqrt(8), math.sqrt(3.2)]], dtype=torch.float64)  # noqa: E741
    reached = margin_logits(f, y, l)
    torch.testing.assert_close(reached, torch.tensor([[3.0, 3.0, 1.7649110640673517]], dtype=torch.float64))
    of_classes = margin_logits(f, y, l, margin="class")
    torch.testing.assert_close(of_classes, torch.tensor([[3.0, 3.0, 0.5 + math.sqrt(3.2)]], dtype=torch.float64))


def oracle(f: np.ndarray[Any, Any], y: int, l: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:  # noqa: E741
    """METHODS' formula, one sample, in words of its own."""
    a = 1.0
    for i in range(len(f)):
        gap = f[y] - f[i]
        if i == y:
            continue
        if gap < 0:
            a = 0.0
        elif gap < l[i]:
            a = min(a, gap / l[i])
    return np.array([f[i] + (0.0 if i == y else a * l[i]) for i in range(len(f))])


numbers = st.floats(-5, 5, width=32)


@settings(max_examples=200)
@given(st.lists(numbers, min_size=4, max_size=4), st.integers(0, 3), st.lists(st.floats(0, 4), min_size=4, max_size=4))
def test_margin_logits_are_the_formula(f: list[float], y: int, l: list[float]) -> None:  # noqa: E741
    l[y] = 0.0
    logits, bounds = torch.tensor([f], dtype=torch.float64), torch.tensor([l], dtype=torch.float64)
    found = margin_logits(logits, torch.tensor([y]), bounds)[0]
    np.testing.assert_allclose(found.numpy(), oracle(np.array(f), y, np.array(l)), rtol=0, atol=1e-12)
    of_classes = margin_logits(logits, torch.tensor([y]), bounds, margin="class")[0]
    assert bool((of_classes >= found - 1e-12).all())  # a class's own share is at least the smallest
    assert bool((of_classes <= torch.maximum(logits[0], logits[0, y]) + 1e-12).all())  # none overtakes the label


def exact_loss(model: nn.Sequential, x: Tensor, y: Tensor, c: float, std: float) -> Tensor:
    """The same objective from dense matrices and SVDs, in float64: conv and batch norm as one, batch variance."""
    conv, norm, _, second, _, _, last = model
    z = x / std
    hidden = conv(z)
    variance = hidden.var(dim=(0, 2, 3), unbiased=False)
    factor = norm.weight / torch.sqrt(variance + norm.eps)
    fused = matrix(lambda v: functional.conv2d(v, conv.weight * factor.view(-1, 1, 1, 1), padding=1), (1, 8, 8))
    following = matrix(lambda v: functional.conv2d(v, second.weight, stride=2, padding=1), (6, 8, 8))
    before = torch.linalg.matrix_norm(fused, 2) * torch.linalg.matrix_norm(following, 2) / std
    rows = last.weight[y][:, None, :] - last.weight[None]
    l = c * before * torch.linalg.vector_norm(rows + 1e-300, dim=2)  # noqa: E741
    logits = model(z)
    gap = (logits.gather(1, y[:, None]) - logits).detach()
    share = torch.where(gap < 0, 0.0, torch.where(gap >= l, 1.0, gap / l)).scatter(1, y[:, None], 1.0)
    return functional.cross_entropy(logits + share.amin(1, keepdim=True).detach() * l, y)


def matrix(function: Any, shape: tuple[int, ...]) -> Tensor:
    basis = torch.eye(math.prod(shape), dtype=torch.float64).view(-1, *shape)
    return function(basis).flatten(1).t()


@pytest.mark.parametrize("c", [0.02, 0.3])
def test_loss_and_gradients_against_dense_float64(c: float) -> None:
    """A batch with samples on all three branches of a_i; every gradient, those through l and the variance included."""
    estimator = classifier(preprocessing=(0.0, 0.5))
    StandardTrainer(estimator, options=TrainingOptions(seed=0)).fit(X[:600], Y[:600], nb_epochs=3, verbose=False)
    trainer = LipschitzMarginTrainer(estimator, c=c)
    x, y = X[600:632], Y[600:632]
    converge(trainer, x, y)
    model = estimator.model
    model.train()
    twin = copy.deepcopy(model).double()
    model.zero_grad()
    loss = trainer.training_loss(x, y)
    loss.backward()
    expected = exact_loss(twin, x.double(), y, c, 0.5)
    expected.backward()
    torch.testing.assert_close(loss.double(), expected, rtol=2e-4, atol=1e-6)
    for (name, found), true in zip(model.named_parameters(), twin.parameters(), strict=True):
        scale = float(true.grad.abs().max())
        torch.testing.assert_close(found.grad.double(), true.grad, rtol=0, atol=2e-2 * scale, msg=name)


def test_a_is_a_constant_in_the_backward_pass() -> None:
    f = torch.tensor([[2.0, 1.0, 0.0]], dtype=torch.float64, requires_grad=True)
    l = torch.tensor([[0.0, 4.0, 4.0]], dtype=torch.float64, requires_grad=True)  # noqa: E741
    margin_logits(f, torch.tensor([0]), l).sum().backward()
    torch.testing.assert_close(f.grad, torch.ones_like(f))
    torch.testing.assert_close(l.grad, torch.full_like(l, 0.25))  # a = min(1/4, 2/4)


def test_another_last_layer_takes_the_weaker_form() -> None:
    """f'_y = f_y - a sqrt(2) c L, for a network that ends in a bounded function."""
    torch.manual_seed(0)
    inner = nn.Linear(64, 10)
    estimator = classifier(nn.Sequential(nn.Flatten(), inner, nn.Tanh()))
    trainer = LipschitzMarginTrainer(estimator, c=0.05)
    converge(trainer, X[:20], Y[:20])
    loss = trainer.training_loss(X[:20], Y[:20])
    logits = estimator.model(X[:20]).detach().double()
    l = math.sqrt(2) * 0.05 * float(torch.linalg.matrix_norm(inner.weight.detach().double(), 2))  # noqa: E741
    lowered = logits.clone()
    for row, label in zip(lowered, Y[:20], strict=True):
        gaps = (row[label] - torch.cat([row[:label], row[label + 1 :]])).clamp(0, l)
        row[label] -= gaps.min()
    torch.testing.assert_close(loss.double(), functional.cross_entropy(lowered, Y[:20]), rtol=1e-5, atol=1e-6)


# ------------------------------------------------------------------------------------------------------------- training


@pytest.mark.parametrize("margin", ["sample", "class"])
def test_no_margin_anywhere_and_dead_weights_give_finite_gradients(margin: Any) -> None:
    estimator = classifier()
    trainer = LipschitzMarginTrainer(estimator, c=1.0, margin=margin)
    wrong = (estimator.model.eval()(X[:16]).argmax(dim=1) + 1) % 10
    trainer.training_loss(X[:16], wrong).backward()
    estimator.model[-1].weight.data.zero_()
    estimator.model[3].weight.data.zero_()
    for _ in range(2):
        loss = trainer.training_loss(X[:16], Y[:16])
        loss.backward()
    assert bool(torch.isfinite(loss))
    assert all(bool(torch.isfinite(parameter.grad).all()) for parameter in estimator.model.parameters())


def test_one_power_step_for_each_operator_and_step(monkeypatch: pytest.MonkeyPatch) -> None:
    estimator, taken = classifier(), []

    def count_steps(operator: Any, vector: Tensor | None = None, *, steps: int = 1) -> tuple[Tensor, Tensor]:
        taken.append((type(operator).__name__, steps, vector is not None))
        return original(operator, vector, steps=steps)

    trainer = LipschitzMarginTrainer(estimator)
    original = propagation.lower_estimate
    monkeypatch.setattr(propagation, "lower_estimate", count_steps)
    trainer.fit(X[:40], Y[:40], batch_size=20, nb_epochs=2, verbose=False)
    steps = 4
    assert sorted(name for name, _, _ in taken) == ["Convolution"] * 2 * steps + ["Linear"] * steps
    assert {count for _, count, _ in taken} == {1}
    assert sum(warm for _, _, warm in taken) >= len(taken) - 3  # every iteration but the first goes on from the last


def test_c_zero_is_plain_training() -> None:
    results = []
    for method in (StandardTrainer, LipschitzMarginTrainer):
        estimator = classifier()
        settings = {"c": 0} if method is LipschitzMarginTrainer else {}
        method(estimator, options=TrainingOptions(seed=3), **settings).fit(
            X[:200], Y[:200], batch_size=50, nb_epochs=2, verbose=False
        )
        results.append(weights(estimator))
    for one, other in zip(*results, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=0)


def test_the_ramp_of_c() -> None:
    seen: list[float] = []

    class Watched(LipschitzMarginTrainer):
        def training_loss(self, x: Tensor, y: Tensor) -> Tensor:
            seen.append(self.current_c)
            return super().training_loss(x, y)

    trainer = Watched(classifier(), c=0.9, c_warmup_epochs=1.5, c_start=0.3)
    trainer.fit(X[:80], Y[:80], batch_size=20, nb_epochs=3, verbose=False)
    ramp = [0.3 + 0.6 * (step / 4) / 1.5 for step in range(6)]
    np.testing.assert_allclose(seen, ramp + [0.9] * 6)
    assert trainer.current_c == 0.9


def test_a_resumed_run_equals_an_uninterrupted_one(tmp_path: Path) -> None:
    def run(folder: Path, epochs: list[int]) -> tuple[list[Tensor], Any]:
        for number, last in enumerate(epochs):
            estimator = classifier()
            options = TrainingOptions(seed=1, checkpoint_dir=folder, resume=number > 0)
            trainer = LipschitzMarginTrainer(estimator, c=0.3, c_warmup_epochs=4, options=options)
            trainer.fit(X[:200], Y[:200], batch_size=50, nb_epochs=last, verbose=False)
        return weights(estimator), trainer.state_dict()

    whole, vectors = run(tmp_path / "whole", [3])
    resumed, again = run(tmp_path / "resumed", [1, 3])
    for one, other in zip(whole, resumed, strict=True):
        assert torch.equal(one, other)
    assert vectors.keys() == again.keys()
    assert len(vectors) == 3
    assert all(torch.equal(vectors[name], again[name]) for name in vectors)
    state = torch.load(tmp_path / "whole" / "training.pt", weights_only=True)
    assert state["method"].keys() == vectors.keys()


class Checkpointed(nn.Module):
    """Computes its first layer, which has a parametrized weight, once more in the backward pass."""

    def __init__(self, reentrant: bool | None) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.last, self.reentrant = (
            parametrizations.weight_norm(nn.Linear(64, 8)),
            nn.Linear(8, 10),
            reentrant,
        )

    def forward(self, x: Tensor) -> Tensor:
        x = x.flatten(1)
        if self.reentrant is None or torch.compiler.is_compiling():
            return self.last(self.first(x).relu())  # type: ignore[no-any-return]
        within = x.requires_grad_() if self.training else x
        hidden = checkpoint.checkpoint(self.first, within, use_reentrant=self.reentrant)
        return self.last(hidden.relu())  # type: ignore[no-any-return]


def test_a_weight_that_a_pass_without_gradients_computed_still_counts_in_the_margin() -> None:
    gradients = []
    for reentrant in (None, False, True):
        estimator = classifier(Checkpointed(reentrant))
        trainer = LipschitzMarginTrainer(estimator, c=0.5)
        trainer.prepare()
        estimator.model.train()
        trainer.training_loss(X[:20], Y[:20]).backward()
        gradients.append([parameter.grad for parameter in estimator.model.parameters()])
    for found in gradients[1:]:
        for one, other in zip(found, gradients[0], strict=True):
            torch.testing.assert_close(one, other)


@pytest.mark.parametrize("activation", [nn.ReLU, MinMax])
def test_it_certifies_what_plain_training_does_not(activation: type[nn.Module]) -> None:
    certified = {}
    for method, arguments in {"standard": {}, "lipschitz-margin": {"c": 0.6, "margin": "class"}}.items():
        torch.manual_seed(0)
        model = nn.Sequential(nn.Flatten(), nn.Linear(64, 64), activation(), nn.Linear(64, 32), activation())
        model.append(nn.Linear(32, 10))
        estimator = classifier(model)
        create(method, estimator, options=TrainingOptions(seed=0), **arguments).fit(
            X[:1400], Y[:1400], batch_size=64, nb_epochs=12, verbose=False
        )
        certified[method] = PyTorchLipschitzCertifier.from_classifier(estimator).certified_accuracy(
            X[1400:], Y[1400:], 0.3
        )
    assert certified["standard"] < 0.35
    assert certified["lipschitz-margin"] > certified["standard"] + 0.25


def find_broken(model: Any, x: Tensor, found: Tensor, radii: Tensor, restarts: int = 4, steps: int = 60) -> Tensor:
    """Which predictions change somewhere on projected-gradient paths on the margin, each in its L2 ball: bool [N]."""
    generator, changed = torch.Generator().manual_seed(0), torch.zeros(len(x), dtype=torch.bool)
    reach = radii.view(-1, 1, 1, 1)
    for _ in range(restarts):
        change = torch.randn(x.shape, generator=generator, dtype=x.dtype)
        change = reach * change / change.flatten(1).norm(dim=1).view(-1, 1, 1, 1)
        for _ in range(steps):
            change.requires_grad_()
            logits = model(x + change)
            changed |= logits.argmax(dim=1) != found
            others = logits.scatter(1, found[:, None], -torch.inf).amax(dim=1)
            (slope,) = torch.autograd.grad((others - logits.gather(1, found[:, None])[:, 0]).sum(), change)
            change = change.detach() + reach / 5 * slope / slope.flatten(1).norm(dim=1).view(-1, 1, 1, 1)
            change = change * (reach / change.flatten(1).norm(dim=1).view(-1, 1, 1, 1)).clamp_max(1)
    return changed


@pytest.fixture(scope="module")
def margin_trained() -> PyTorchLipschitzCertifier:
    """A network with tight bounds and ART preprocessing."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(1, 16, 4, 2, 1), MinMax(), nn.Flatten(), nn.Linear(256, 64), MinMax())
    model.append(nn.Linear(64, 10))
    for layer in (model[0], model[3], model[5]):
        nn.init.orthogonal_(layer.weight)
    estimator = classifier(model, preprocessing=(0.5, 0.25))
    trainer = LipschitzMarginTrainer(estimator, c=0.5, options=TrainingOptions(seed=0))
    trainer.fit(X[:1400], Y[:1400], batch_size=64, nb_epochs=12, verbose=False)
    return PyTorchLipschitzCertifier.from_classifier(estimator)


def test_no_attack_breaks_what_a_trained_network_certifies(margin_trained: PyTorchLipschitzCertifier) -> None:
    """The bound of a network that is trained for it is near the truth: within it nothing breaks, soon after, much."""
    prediction, radius = margin_trained.certify(X[1400:1500])
    assert np.median(radius) > 0.15
    twin = copy.deepcopy(margin_trained.model).double().eval()

    def logits(x: Tensor) -> Tensor:
        return twin((x - 0.5) / 0.25)

    x, found, radii = X[1400:1500].double(), torch.from_numpy(prediction), torch.from_numpy(radius)
    assert not bool(find_broken(logits, x, found, 0.999 * radii).any())
    assert float(find_broken(logits, x, found, 2 * radii).double().mean()) > 0.5


def test_autoattack_at_each_certified_radius(margin_trained: PyTorchLipschitzCertifier) -> None:
    """The standard version, one image at a time, each at 0.999 of its own radius; at twice the radius it succeeds."""
    pytest.importorskip("pyautoattack")
    prediction, radius = margin_trained.certify(X[1400:1500])
    chosen = np.argsort(radius)[[30, 70]]
    for index in chosen:
        x, found = X[1400 + index : 1401 + index], prediction[index : index + 1]
        evaluator = Evaluator(margin_trained, ThreatModel("L2", 0.999 * radius[index]), verbose=False)
        assert evaluator.evaluate(x, found).autoattack_accuracy == 1
    beyond = Evaluator(margin_trained, ThreatModel("L2", 2 * radius[chosen].max()), attacks="apgd-t", verbose=False)
    assert beyond.evaluate(X[1400 + chosen], prediction[chosen]).robust_accuracy == 0


def test_a_changed_network_is_traced_anew() -> None:
    estimator = classifier(nn.Sequential(nn.Flatten(), nn.Linear(64, 16), nn.ReLU(), nn.Linear(16, 10)))
    trainer = LipschitzMarginTrainer(estimator)
    bounds = [trainer.graph.estimate({}).pairwise.max().item() for _ in range(30)]  # of power iterations
    loss = float(trainer.training_loss(X[:8], Y[:8]).detach())
    estimator.model[2] = nn.Sigmoid()  # a quarter of the slope
    trainer.fit(X[:8], Y[:8], nb_epochs=1, verbose=False)
    changed = [trainer.graph.estimate({}).pairwise.max().item() for _ in range(30)]
    assert changed[-1] < bounds[-1] / 2
    assert float(trainer.training_loss(X[:8], Y[:8]).detach()) != loss


def test_bf16_and_channels_last() -> None:
    for options in (TrainingOptions(mixed_precision="bf16", seed=0), TrainingOptions(channels_last=True, seed=0)):
        trainer = LipschitzMarginTrainer(classifier(), c=0.1, options=options)
        trainer.fit(X[:320], Y[:320], batch_size=32, nb_epochs=3, verbose=False)
        assert trainer.history[-1]["loss"] < trainer.history[0]["loss"]
        assert all(vector.dtype == torch.float32 for vector in trainer.state_dict().values())


# ----------------------------------------------------------------------------------------------------------- bad input


@pytest.mark.parametrize(
    ("changed", "sentence"),
    [
        ({"c": -1.0}, "c: got -1.0,"),
        ({"c": float("nan")}, "c: got nan,"),
        ({"c": True}, "c: got True,"),
        ({"c_warmup_epochs": -1}, "c_warmup_epochs: got -1,"),
        ({"c_start": float("inf")}, "c_start: got inf,"),
        ({"margin": "best"}, "margin: got 'best',"),
    ],
)
def test_bad_settings_are_refused(changed: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence.replace(".", r"\.")):
        LipschitzMarginTrainer(classifier(), **changed)


def test_networks_and_preprocessing_without_a_bound_are_refused_by_name() -> None:
    with pytest.raises(NoLipschitzRuleError, match="hardshrink"):
        LipschitzMarginTrainer(classifier(nn.Sequential(nn.Flatten(), nn.Hardshrink(), nn.Linear(64, 10))))
    squeezing = FeatureSqueezing(clip_values=(0, 1))
    with pytest.raises(ValueError, match="FeatureSqueezing"):
        LipschitzMarginTrainer(classifier(preprocessing_defences=squeezing))


def test_soft_labels_are_refused() -> None:
    trainer = LipschitzMarginTrainer(classifier())
    with pytest.raises(ValueError, match="y: got class probabilities"):
        trainer.training_loss(X[:4], torch.full((4, 10), 0.1))
