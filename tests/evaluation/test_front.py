"""`evaluate`, and plain networks in `Evaluator` and `sweep`: the same numbers as through ART, and nothing moved."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from functools import partial
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from art.estimators.classification import PyTorchClassifier
from builders import Data, make_linear
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from art_robust_plugins import Evaluator, ThreatModel, certify, evaluate
from art_robust_plugins.bridge import EstimatorModule, as_estimator
from art_robust_plugins.evaluation import EvaluationReport, sweep, transfer

from .builders import train_network, wrap

EPS = 0.1


@pytest.fixture(scope="module")
def through_art(network: nn.Module, data: Data) -> EvaluationReport:
    report = Evaluator(wrap(network), ThreatModel("Linf", EPS), attacks="apgd-ce", verbose=False).evaluate(*data)
    assert 0 < report.robust_accuracy < report.clean_accuracy
    return report


def attack(*arguments: Any, **settings: Any) -> EvaluationReport:
    return evaluate(*arguments, **{"norm": "linf", "eps": EPS, "attacks": "apgd-ce", "verbose": False, **settings})


class Wrapped(nn.Module):
    """A network whose outputs pass through a function."""

    def __init__(self, network: nn.Module, change: Callable[[Tensor], Any]) -> None:
        super().__init__()
        self.network, self.change = network, change

    def forward(self, x: Tensor) -> Any:
        return self.change(self.network(x))


FORMS = {
    "arrays": lambda x, y: (x, y),
    "float64": lambda x, y: (x.astype(np.float64), y),
    "one-hot": lambda x, y: (x, np.eye(10)[y]),
    "gradients": lambda x, y: (torch.tensor(x, requires_grad=True), torch.tensor(y)),
    "dataset": lambda x, y: (TensorDataset(torch.tensor(x), torch.tensor(y)),),
    "loader": lambda x, y: (DataLoader(TensorDataset(torch.tensor(x), torch.tensor(y)), 7),),
    "generator": lambda x, y: (((x[i : i + 9], y[i : i + 9]) for i in range(0, 40, 9)),),
    "list": lambda x, y: ([(x[:11], y[:11]), (x[11:], y[11:])],),
}


@pytest.mark.parametrize("form", FORMS)
def test_every_form_of_the_data_gives_the_verdicts_of_the_art_classifier(
    form: str, network: nn.Module, data: Data, through_art: EvaluationReport
) -> None:
    report = attack(network, *FORMS[form](*data))
    np.testing.assert_array_equal(report.robust, through_art.robust)
    np.testing.assert_array_equal(report.adversarial, through_art.adversarial)


def test_plain_networks_in_evaluator_and_sweep(network: nn.Module, data: Data, through_art: EvaluationReport) -> None:
    settings: dict[str, Any] = {"attacks": "apgd-ce", "verbose": False}
    report = Evaluator(network, ThreatModel("Linf", EPS), **settings).evaluate(*data)
    np.testing.assert_array_equal(report.robust, through_art.robust)
    reports = sweep(network, "Linf", [EPS, 0.02], *data, **settings)
    others = sweep(wrap(network), "Linf", [EPS, 0.02], *data, **settings)
    for eps, swept in reports.items():
        np.testing.assert_array_equal(swept.robust, others[eps].robust)


def test_outputs_with_logits_are_taken(network: nn.Module, data: Data, through_art: EvaluationReport) -> None:
    model = Wrapped(network, lambda outputs: SimpleNamespace(logits=outputs, loss=None))
    report = attack(model, *data)
    np.testing.assert_array_equal(report.robust, through_art.robust)
    assert report.settings["network"] == "Wrapped"


def test_standardisation_is_that_of_the_network_itself(data: Data) -> None:
    """Of three channels as wide as three pixels: ART alone takes three numbers for the columns."""
    torch.manual_seed(0)
    network = make_linear(27, 4)
    x, mean, std = torch.rand(6, 3, 3, 3), (0.1, 0.5, 0.7), (0.2, 0.3, 0.4)
    by_channel = [torch.tensor(values).view(1, 3, 1, 1) for values in (mean, std)]
    expected = network((x - by_channel[0]) / by_channel[1])
    module = EstimatorModule(as_estimator(network, x, mean=mean, std=std))
    torch.testing.assert_close(module(x), expected, rtol=0, atol=0)
    estimator = as_estimator(network, 255 * x, bounds=(0, 255), mean=127.5, std=torch.tensor(50.0))
    expected = network((255 * x - 127.5) / 50)
    np.testing.assert_allclose(estimator.predict(255 * x.numpy()), expected.detach().numpy(), rtol=1e-6)
    x.requires_grad_()
    (gradient,) = torch.autograd.grad(module(x).sum(), x)
    assert bool((gradient != 0).any())


def test_the_network_is_left_as_it_was(data: Data) -> None:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.Dropout(), nn.Flatten(), nn.Linear(144, 10))
    network[1].eval()
    network[0].weight.requires_grad_(False)
    network[4].weight.grad = torch.ones_like(network[4].weight)
    before = {name: value.clone() for name, value in network.state_dict().items()}
    modes, state = [module.training for module in network.modules()], torch.get_rng_state()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it has learned nothing
        attack(network, *data)
    certify(network, data[0][:4])
    assert [module.training for module in network.modules()] == modes
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
    assert not network[0].weight.requires_grad
    assert bool((network[4].weight.grad == 1).all())
    assert type(network.forward(torch.rand(2, 1, 8, 8))) is Tensor


def test_one_output_is_the_logit_of_class_1() -> None:
    network = nn.Sequential(nn.Flatten(), nn.Linear(2, 1, bias=False))
    nn.init.constant_(network[1].weight, 1.0)
    x = torch.tensor([[[[-0.5, 0.3]]], [[[0.5, 0.3]]]])
    report = attack(network, x, [0, 1], eps=0.11, bounds=(-1, 1))
    assert report.robust.tolist() == [False, True]  # the sums are -0.2 and 0.8, and 0.22 is the most that changes


def test_a_compiled_network_stands_for_the_module_that_it_compiles(network: nn.Module, data: Data) -> None:
    """Each of the many sizes of a batch would be compiled."""
    compiled = []

    def refuse(graph: Any, inputs: Any) -> Any:
        compiled.append(graph)
        return graph

    twin = torch.compile(network, backend=refuse)
    x, y = data
    report = attack(twin, x, y)
    np.testing.assert_array_equal(report.robust, attack(network, x, y).robust)
    np.testing.assert_array_equal(certify(twin, x)[1], certify(network, x)[1])
    assert Evaluator(twin, ThreatModel("Linf", 0.1), attacks="fgsm", verbose=False).evaluate(x, y).settings["classes"]
    assert not compiled
    twin(torch.tensor(x))
    assert compiled  # otherwise the case is none


def test_transfers_from_plain_networks(network: nn.Module, data: Data) -> None:
    report = attack(network, *data, transfers={"twin": network})
    assert [result.name for result in report.attacks] == ["apgd-ce", "transfer-twin"]
    both = [transfer(network, "plain"), transfer(wrap(network), "art")]
    plain, art = attack(network, *data, attacks=both).attacks
    np.testing.assert_array_equal(plain.robust, art.robust)
    assert plain.robust_accuracy < report.clean_accuracy


def test_certified_radii_of_a_linear_network_are_distances() -> None:
    network = nn.Sequential(nn.Flatten(), nn.Linear(2, 2, bias=False))
    nn.init.eye_(network[1].weight)
    x = np.array([[[[0.9, 0.2]]], [[[0.3, 0.4]]]])
    prediction, radius = certify(network, x)
    assert (prediction.dtype, radius.dtype) == (np.int64, np.float64)
    np.testing.assert_allclose(radius, [0.7 / 2**0.5, 0.1 / 2**0.5], rtol=1e-5)
    scaled = certify(network, 255 * x, bounds=(0, 255), mean=0, std=255)[1]
    np.testing.assert_allclose(scaled, 255 * radius, rtol=1e-5)
    art = PyTorchClassifier(network, nn.CrossEntropyLoss(), (1, 1, 2), 2, clip_values=(0, 1))
    np.testing.assert_array_equal(certify(art, x)[1], radius)


def test_a_network_that_guesses_is_warned_of(network: nn.Module, data: Data) -> None:
    settings = {"norm": "linf", "eps": EPS, "attacks": "apgd-ce", "verbose": False}
    with pytest.warns(UserWarning, match=r"^model: .* no better than guessing") as guessing:
        evaluate(network, data[0], (data[1] + 1) % 10, **settings)
    with pytest.warns(UserWarning, match=r"^eps: got 0\.1 ") as small:
        evaluate(network, 255 * data[0], data[1], bounds=(0, 255), mean=0, std=255, **settings)
    assert {guessing[0].filename, small[0].filename} == {__file__}  # the lines that call `evaluate`


MISTAKES: dict[str, tuple[Callable[..., Any], str]] = {
    "levels": (lambda n, x, y: attack(n, 255 * x, y), r"x: .*x / 255"),
    "normalised": (lambda n, x, y: attack(n, x - 0.5, y), "x: .*mean= and std="),
    "channels": (lambda n, x, y: attack(n, np.repeat(x, 3, 1).transpose(0, 2, 3, 1), y), "model: .*last"),
    "no channels": (lambda n, x, y: attack(n, x[:, 0], y), r"model: .*x\[:, None\]"),
    "labels from 1": (lambda n, x, y: attack(n, x, y + 1), "y: got labels from 1 to 10, .*y - 1"),
    "no labels": (lambda n, x, y: attack(n, x), "y: got None"),
    "no norm": (lambda n, x, y: evaluate(n, x, y, eps=0.1), "norm: got None"),
    "no radius": (lambda n, x, y: evaluate(n, x, y, "L2"), "eps: got None"),
    "x and y": (lambda n, x, y: attack(n, y, x), r"x: got the shape \(40,\)"),
    "norm and eps": (lambda n, x, y: attack(n, x, y, norm="8/255", eps="Linf"), "norm: got '8/255'"),
    "radius in levels": (lambda n, x, y: attack(n, x, y, eps="8"), "eps: got 8 .*'8/255'"),
    "a tuple": (lambda n, x, y: attack(Wrapped(n, lambda o: (o, 1)), x, y), r"model: .*self\.network\(x\)\[0\]"),
    "a dictionary": (lambda n, x, y: attack(Wrapped(n, lambda o: {"out": o}), x, y), r"model: .*\['out'\]"),
    "chosen classes": (lambda n, x, y: attack(Wrapped(n, lambda o: o.argmax(1)), x, y), "model: .*int64"),
    "pixels": (lambda n, x, y: attack(nn.Conv2d(1, 10, 1), x, y), "model: its output for 2 images"),
    "float64": (
        lambda n, x, y: attack(nn.Sequential(nn.Flatten(), nn.Linear(64, 10).double()), x, y),
        "model: .*float64",
    ),
    "classes": (lambda n, x, y: attack(n, x, y, nb_classes=1000), "nb_classes: got 1000,"),
    "mean alone": (lambda n, x, y: attack(n, x, y, mean=0.5), "std: got None"),
    "three means": (lambda n, x, y: attack(n, x, y, mean=(0.5,) * 3, std=(1,) * 3), "mean: got "),
    "mean in levels": (lambda n, x, y: attack(n, x, y, mean=125, std=60), "mean: got 125 "),
    "std 0": (lambda n, x, y: attack(n, x, y, mean=0, std=0), "std: got 0"),
    "bounds": (lambda n, x, y: attack(n, x, y, bounds=(1, 0)), r"bounds: got \(1, 0\)"),
    "estimator's own": (lambda n, x, y: attack(wrap(n), x, y, bounds=(0, 1)), r"bounds: got \(0, 1\)"),
    "device": (lambda n, x, y: attack(n, x, y, device="gpu"), "device: got 'gpu'"),
    "class": (lambda n, x, y: attack(nn.Linear, x, y), "model: got the class Linear"),
    "weights": (lambda n, x, y: attack(n.state_dict(), x, y), "model: got OrderedDict, .*load_state_dict"),
    "path": (lambda n, x, y: attack("weights.pt", x, y), "model: got the path or name 'weights.pt'"),
    "function": (lambda n, x, y: attack(train_network, x, y), "model: got the function train_network"),
    "bounds of text": (lambda n, x, y: attack(n, x, y, bounds="01"), "bounds: got '01'"),
    "one bound": (lambda n, x, y: attack(n, x, y, bounds=(0,)), r"bounds: got \(0,\)"),
    "no bounds": (lambda n, x, y: attack(n, x, y, bounds=(None, None)), r"bounds: got \(None, None\)"),
    "another device": (lambda n, x, y: attack(n, x, y, device="meta"), "device: got 'meta'"),
    "partial": (lambda n, x, y: attack(partial(n), x, y), "model: got the function partial"),
    "a transfer": (lambda n, x, y: attack(n, x, y, transfers={"a": 3}), r"transfers\['a'\]: got int"),
    "lazy": (lambda n, x, y: attack(nn.Sequential(nn.Flatten(), nn.LazyLinear(10)), x, y), "model: .*'1.weight'"),
    "lazy, in an Evaluator": (
        lambda n, x, y: Evaluator(nn.Sequential(nn.Flatten(), nn.LazyLinear(10)), ThreatModel("Linf", 0.1)).evaluate(
            x, y
        ),
        "estimator: .*'1.weight'",
    ),
    "on no device": (lambda n, x, y: attack(nn.Linear(8, 10, device="meta"), x, y), "model: .*meta"),
    "complex": (lambda n, x, y: attack(Wrapped(n, lambda o: o.to(torch.complex64)), x, y), "model: .*complex64"),
    "no outputs": (lambda n, x, y: attack(Wrapped(n, lambda o: o[:, :0]), x, y), r"model: .*\(2, 0\)"),
    "a program of torch.export": (
        lambda n, x, y: attack(torch.export.export(n, (torch.tensor(x[:2]),)).module(), x, y),
        r"model: got GraphModule, which has no eval\(\)",
    ),
    "certify TorchScript": (lambda n, x, y: certify(torch.jit.trace(n, torch.tensor(x)), x), "model: got a .*Script"),
    "certify NaN": (lambda n, x, y: certify(Wrapped(n, lambda o: o * np.nan), x), "model: its outputs hold NaN"),
    "single image": (lambda n, x, y: attack(n, x[0], y[:1]), r"model: .*x\[None\]"),
    "single pairs": (lambda n, x, y: attack(n, zip(x, y, strict=True)), r"x: got an array .*DataLoader\(list\(pairs"),
    "pairs of other lengths": (
        lambda n, x, y: attack(n, [(x[:3], y[:4]), (x[3:], y[4:])]),
        "y: got 4 labels for 3 samples",
    ),
    "no gradients": (
        lambda n, x, y: attack(Wrapped(n, lambda o: o.detach()), x, y),
        r"attacks: none can run here \(apgd-ce: .*input\), .*'square'",
    ),
    "empty folder": (lambda n, x, y: attack(n, x, y, state_dir=""), "state_dir: got ''"),
    "certify a generator": (lambda n, x, y: certify(n, iter(x)), "x: got a .*iterator"),
    "certify in L3": (lambda n, x, y: certify(n, x, norm="L3"), "norm: got 'L3'"),
    "certify weights": (lambda n, x, y: certify(n.state_dict(), x), "model: got OrderedDict"),
    "certify levels": (lambda n, x, y: certify(n, 255 * x), "x: got values in"),
    "certify a loader": (lambda n, x, y: certify(n, DataLoader(TensorDataset(torch.tensor(x)))), "x: got a DataLoader"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_mistakes_are_told_with_the_way_out(mistake: str, network: nn.Module, data: Data) -> None:
    call, sentence = MISTAKES[mistake]
    with pytest.raises((ValueError, TypeError), match=f"^{sentence}"):
        call(network, *data)
