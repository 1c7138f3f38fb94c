"""The evaluator: the reference's verdicts, verdicts of its own, and what it leaves as it was."""

from __future__ import annotations

import copy
import importlib
import inspect
import random
import re
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from art.estimators.classification import PyTorchClassifier
from builders import Data, load_digits, make_linear
from numpy.testing import assert_array_equal
from torch import nn

from art_robust_plugins import ThreatModel
from art_robust_plugins.evaluation import SUITES, Evaluator, Setting
from art_robust_plugins.evaluation.autoattack import standard
from art_robust_plugins.evaluation.autoattack.square import Square
from art_robust_plugins.evaluation.libraries import reference_package
from art_robust_plugins.threat import Norm

from .builders import custom, step, strong, train_network, wrap
from .reference import needs_reference


def evaluate(classifier: PyTorchClassifier, data: Data, eps: float = 0.1, norm: str = "Linf", **arguments: Any) -> Any:
    arguments = {"batch_size": 15, "verbose": False, **arguments}
    return Evaluator(classifier, ThreatModel(norm, eps), **arguments).evaluate(*data)


# -------------------------------------------------------------------------------------------------------- the reference


@needs_reference
@pytest.mark.parametrize(("norm", "eps", "queries"), [("Linf", 0.11, 5000), ("L2", 0.55, 200), ("L1", 1.6, 200)])
def test_the_standard_suite_gives_the_references_verdicts(
    norm: str, eps: float, queries: int, network: nn.Module, data: Data, monkeypatch: pytest.MonkeyPatch
) -> None:
    package, name = reference_package()
    square = importlib.import_module(f"{package.__name__}.square").SquareAttack
    perturb = square.perturb

    def shorten(attack: Any, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        attack.n_queries = queries
        return perturb(attack, x, y)

    monkeypatch.setattr(square, "perturb", shorten)
    monkeypatch.setattr(standard, "Square", partial(Square, queries=queries))
    samples = data[0][:16], data[1][:16]
    native = evaluate(wrap(network), samples, eps, norm, batch_size=5, seed=3)
    report = evaluate(wrap(network), samples, eps, norm, batch_size=5, seed=3, backend="reference")
    x, y = (torch.from_numpy(values) for values in samples)
    # The reference leaves gradients in the parameters.
    network = copy.deepcopy(network).eval()
    direct = package.AutoAttack(network, norm=norm, eps=eps, version="standard", seed=3, device="cpu")
    direct.verbose = False
    size = "batch_size" if "batch_size" in inspect.signature(direct.run_standard_evaluation).parameters else "bs"
    found = direct.run_standard_evaluation(x, y, **{size: 5})
    adversarial = found[0] if isinstance(found, tuple) else found
    with torch.no_grad():
        robust = network(adversarial).argmax(dim=1) == y
    assert_array_equal(native.robust, robust.numpy())
    assert_array_equal(report.robust, robust.numpy())
    assert_array_equal(report.adversarial, adversarial.numpy())
    for ours, theirs in zip(native.attacks, report.attacks, strict=True):
        assert_array_equal(ours.robust, theirs.robust)
    assert 0 < report.robust_accuracy < report.clean_accuracy
    for found in (native, report):
        assert found.settings["autoattack"]
        assert found.autoattack_accuracy == found.robust_accuracy
        assert "left-the-ball" not in [flag.name for flag in found.flags]
    assert " ".join(next(iter(report.settings["attack_library"].items()))) == name
    assert list(native.settings["attack_library"]) == ["art-robust-plugins"]


def test_the_range_and_the_preprocessing_do_not_change_verdicts(network: nn.Sequential, data: Data) -> None:
    """Images in [0, 255], then standardised, against the same network on [0, 1]."""

    class Undo(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.network = network

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.network((x * 64 + 128) / 256)

    attacks = ["apgd-ce", "apgd-t"]
    plain = evaluate(wrap(network), data, 26 / 256, attacks=attacks)
    bytes_ = wrap(Undo(), clip_values=(0.0, 256.0), preprocessing=(128.0, 64.0))
    scaled = evaluate(bytes_, (data[0] * 256, data[1]), 26.0, attacks=attacks)
    assert_array_equal(scaled.robust, plain.robust)
    assert np.abs(scaled.adversarial - data[0] * 256).max() <= 26 * (1 + 1e-6)
    assert "StandardisationMeanStdPyTorch(mean=128.0, std=64.0" in scaled.settings["preprocessing"][0]
    assert plain.settings["preprocessing"] == []


def test_channels_last_gives_the_same_verdicts(network: nn.Sequential, data: Data) -> None:
    class Turn(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.network = network

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.network(x.movedim(-1, 1))

    last = wrap(Turn(), input_shape=(8, 8, 1), channels_first=False)
    turned = evaluate(last, (np.moveaxis(data[0], 1, -1), data[1]), attacks="apgd-ce")
    plain = evaluate(wrap(network), data, attacks="apgd-ce")
    assert_array_equal(turned.robust, plain.robust)
    assert turned.adversarial.shape == (40, 8, 8, 1)
    turned_back = np.moveaxis(turned.adversarial, -1, 1)
    np.testing.assert_allclose(turned_back, plain.adversarial, atol=1e-6)


@pytest.mark.parametrize("classes", [2, 3, 4])
def test_few_classes(classes: int) -> None:
    x, y = load_digits(classes)
    classifier = wrap(train_network(classes, steps=60), classes)
    report = evaluate(classifier, (x[-20:], y[-20:].astype(np.int32)), 0.3, attacks=["standard", "rand"])
    ran = {result.name: result for result in report.attacks}
    assert ("apgd-t" in ran) == (classes >= 4)
    assert ("rand-apgd-dlr" in ran) == (classes >= 3)
    assert ran["fab-t"].parameters["targets"] == classes - 1
    assert report.settings["autoattack"] == (classes >= 4)
    if classes < 4:
        assert (
            f"apgd-t: the targeted DLR loss needs 4 classes, the network has {classes}." in report.settings["not_run"]
        )
    assert report.robust_accuracy <= report.clean_accuracy


@needs_reference
def test_flat_inputs(data: Data) -> None:
    torch.manual_seed(0)
    flat = wrap(nn.Sequential(nn.Linear(64, 10)), input_shape=(64,))
    samples = data[0].reshape(-1, 64), data[1]
    report = evaluate(flat, samples)
    assert report.adversarial.shape == (40, 64)
    assert report.settings["autoattack"]
    with pytest.raises(ValueError, match=r"attacks: 'square' "):
        evaluate(flat, samples, backend="reference")


# ------------------------------------------------------------------------------------------------------------- verdicts


def test_a_lying_attack_breaks_nothing(classifier: PyTorchClassifier, data: Data) -> None:
    """Candidates outside the ball, or outside the range, do not count, and are flagged."""

    def elsewhere(x: torch.Tensor, y: torch.Tensor, setting: Setting) -> torch.Tensor:
        return 1 - x

    def out_of_range(x: torch.Tensor, y: torch.Tensor, setting: Setting) -> torch.Tensor:
        return x - 0.09

    report = evaluate(classifier, data, attacks=[custom(elsewhere, name="a"), custom(out_of_range, name="b")])
    assert report.robust_accuracy == report.clean_accuracy
    (flag,) = (flag for flag in report.flags if flag.name == "left-the-ball")
    assert re.fullmatch(
        r"a returned \d+ candidates outside the threat model, the farthest at distance 1\. "
        r"b returned \d+ candidates outside clip_values\.",
        flag.evidence,
    )
    assert_array_equal(report.adversarial, data[0])


def test_the_rounding_of_the_range_is_no_lie(network: nn.Sequential, data: Data) -> None:
    """A candidate exactly at distance eps, computed in float32 units of [0, 1], is in the ball of any range."""
    for low, high in ((0.0, 255.0), (-1.0, 1.0), (-2.5, 7.0)):
        estimator = wrap(network, clip_values=(low, high))
        for norm, eps in (("Linf", 0.013), ("L2", 0.77), ("L1", 3.3)):
            samples = data[0] * (high - low) + low, data[1]
            report = evaluate(estimator, samples, eps * (high - low), norm, attacks=custom(step))
            assert not [flag for flag in report.flags if flag.name == "left-the-ball"], (low, high, norm)
            distance = ThreatModel(norm, 1).distance(
                torch.from_numpy(report.adversarial).double(), torch.from_numpy(samples[0]).double()
            )
            allowed = eps * (high - low) + report.settings["tolerance"]
            assert distance.max() <= allowed <= eps * (high - low) * (1 + 2e-5)


@pytest.mark.parametrize(("norm", "eps"), [("L1", 12.0), ("L2", 0.5), ("Linf", 8 / 255)])
@pytest.mark.parametrize("size", [32, 128])
def test_the_tolerance_does_not_grow_with_the_image(norm: str, eps: float, size: int) -> None:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Flatten(), nn.Linear(3 * size**2, 10))
    estimator = wrap(network, input_shape=(3, size, size))
    x = torch.rand(4, 3, size, size) * 0.5 + 0.25
    y = estimator.predict(x.numpy()).argmax(axis=1)

    def too_far(x: torch.Tensor, y: torch.Tensor, setting: Setting) -> torch.Tensor:
        return setting.threat.scaled(1 + 1e-4).project(x + 0.1 * torch.randn_like(x), x)

    report = evaluate(estimator, (x, y), eps, norm, attacks=custom(too_far))
    assert report.settings["tolerance"] <= 8e-6 * eps
    distance = ThreatModel(norm, 1).distance(torch.from_numpy(report.adversarial).double(), x.double())
    assert distance.max() <= eps + report.settings["tolerance"]

    def exact(x: torch.Tensor, y: torch.Tensor, setting: Setting) -> torch.Tensor:
        return setting.threat.project(x + 0.1 * torch.randn_like(x), x, 0.0, 1.0)

    def one_value(x: torch.Tensor, y: torch.Tensor, setting: Setting) -> torch.Tensor:
        """The others change by the rounding on the way to [0, 1] and back, and all these changes have one sign."""
        found = x.clone()
        found[:, 0, 0, 0] += min(setting.threat.eps, 0.1)
        return found

    radius = eps if norm != "L1" else 0.1
    for low, high in ((0.0, 1.0), (0.0, 255.0), (-2.5, 7.0)):
        scaled = wrap(network, input_shape=(3, size, size), clip_values=(low, high))
        # Drawn in float64: float32 numbers from [0, 1] would come back from there unchanged.
        moved = (torch.rand(4, 3, size, size, dtype=torch.float64) * 0.8 * (high - low) + low).float()
        for attack, reach in ((exact, eps), (one_value, radius)):
            labels = scaled.predict(moved.numpy()).argmax(axis=1)
            report = evaluate(scaled, (moved, labels), reach * (high - low), norm, attacks=custom(attack))
            assert not [flag for flag in report.flags if flag.name == "left-the-ball"], (low, high, attack)


@pytest.mark.parametrize("norm", ["L1", "L2"])
def test_images_whose_numbers_all_round_the_same_way_are_in_the_ball(norm: Norm) -> None:
    """Flat images: the rounding of their numbers adds up in the distance, and does so again after a projection."""
    torch.manual_seed(0)
    estimator = wrap(nn.Sequential(nn.Flatten(), nn.Linear(3 * 32**2, 10)), input_shape=(3, 32, 32))
    x = torch.linspace(0.5, 0.9, 40).view(-1, 1, 1, 1).expand(-1, 3, 32, 32).contiguous()
    y = estimator.predict(x.numpy()).argmax(axis=1)
    beyond = []

    def raise_all(x: torch.Tensor, y: torch.Tensor, setting: Setting) -> torch.Tensor:
        found = setting.threat.project((x + 1).double(), x.double()).float()
        beyond.append((setting.threat.distance(found.double(), x.double()) - setting.threat.eps).max().item())
        return found

    report = evaluate(estimator, (x, y), 0.14 if norm == "L2" else 5.0, norm, attacks=custom(raise_all))
    assert max(beyond) > report.settings["tolerance"], "rounding left no ball: the case is vacuous"
    assert not [flag for flag in report.flags if flag.name == "left-the-ball"]


def test_images_that_are_not_finite_do_not_count(classifier: PyTorchClassifier, data: Data) -> None:
    report = evaluate(classifier, data, attacks=custom(lambda x, y, setting: x / 0))
    assert report.robust_accuracy == report.clean_accuracy
    assert "not-finite" in [flag.name for flag in report.flags]


def test_an_unbounded_attack_counts_only_within_the_ball(classifier: PyTorchClassifier, data: Data) -> None:
    far = custom(lambda x, y, setting: 1 - x, name="far", constraint="none")
    minimal = custom(lambda x, y, setting: 1 - x, name="minimal", constraint="minimal")
    report = evaluate(classifier, data, attacks=[far, minimal])
    assert report.attacks[0].robust_accuracy < report.clean_accuracy
    assert report.attacks[1].robust_accuracy == report.robust_accuracy == report.clean_accuracy
    assert "not-adversarial" in [flag.name for flag in report.flags]
    close = custom(step, name="close", constraint="none")
    assert evaluate(classifier, data, attacks=close).robust_accuracy < report.clean_accuracy


def test_the_worst_case_is_pointwise(classifier: PyTorchClassifier, data: Data) -> None:
    def on(rest: int) -> Any:
        """Attacks every other point only."""

        def perturb(x: torch.Tensor, y: torch.Tensor, setting: Setting) -> torch.Tensor:
            found, half = step(x, y, setting), torch.arange(len(x)) % 2 == rest
            return torch.where(half[:, None, None, None], found, x)

        return custom(perturb, name=str(rest))

    both, whole = evaluate(classifier, data, attacks=[on(0), on(1)]), evaluate(classifier, data, attacks=custom(step))
    assert_array_equal(both.robust, both.attacks[0].robust & both.attacks[1].robust)
    assert_array_equal(both.robust, whole.robust)
    broken = torch.from_numpy(both.adversarial[~both.robust])
    assert not (classifier.predict(broken.numpy()).argmax(axis=1) == data[1][~both.robust]).any()


def test_stages_act_on_the_points_that_stand_and_others_on_all(classifier: PyTorchClassifier, data: Data) -> None:
    seen: dict[str, int] = {"a": 0, "b": 0, "c": 0}

    def count(name: str) -> Any:
        def perturb(x: torch.Tensor, y: torch.Tensor, setting: Setting) -> torch.Tensor:
            seen[name] += len(x)
            return step(x, y, setting)

        return custom(perturb, name=name, cumulative=name != "c")

    report = evaluate(classifier, data, attacks=[count("a"), count("b"), count("c")])
    clean = round(report.clean_accuracy * 40)
    assert seen == {"a": clean, "b": round(report.attacks[0].robust_accuracy * 40), "c": clean}


def test_the_stages_of_each_suite_start_anew(classifier: PyTorchClassifier, data: Data) -> None:
    first = ["rand-apgd-ce", custom(step, name="own", cumulative=True)]
    alone, after = (evaluate(classifier, data, attacks=attacks) for attacks in ("apgd-ce", [*first, "apgd-ce"]))
    assert after.attacks[0].robust_accuracy < after.clean_accuracy
    correct = classifier.predict(data[0]).argmax(axis=1) == data[1]
    assert after.attacks[-1].forward_calls == alone.attacks[0].forward_calls >= correct.sum()
    assert_array_equal(after.attacks[-1].robust, alone.attacks[0].robust)


def test_only_autoattacks_own_attacks_are_autoattack(
    classifier: PyTorchClassifier, data: Data, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("apgd-ce", "cw", "clean"):
        with pytest.raises(ValueError, match=rf"^attacks: got .*'{name}'"):
            evaluate(classifier, data, attacks=custom(step, name=name))
    pretended = [custom(step, name=attack.name, cumulative=True) for attack in SUITES["standard"]]
    monkeypatch.setattr("art_robust_plugins.evaluation.libraries.registry.ATTACKS", {})
    report = evaluate(classifier, data, attacks=pretended)
    assert report.autoattack_accuracy is None
    assert "AutoAttack" not in str(report)


def test_a_caller_in_inference_mode(classifier: PyTorchClassifier, data: Data) -> None:
    plain = evaluate(classifier, data, attacks=custom(strong))
    with torch.inference_mode():
        x, y = torch.from_numpy(data[0]) + 0, torch.from_numpy(data[1]) + 0
        inside = evaluate(classifier, (x, y), attacks=custom(strong))
        made = wrap(make_linear())
    assert_array_equal(inside.robust, plain.robust)
    assert [flag.name for flag in inside.flags] == [flag.name for flag in plain.flags]
    with pytest.raises(ValueError, match=r"^classifier: .*torch\.inference_mode\(\)"):
        evaluate(made, data, attacks=custom(step))


def test_calls_are_counted_in_images(classifier: PyTorchClassifier, data: Data) -> None:
    report = evaluate(classifier, data, attacks=custom(step))
    correct = round(report.clean_accuracy * 40)
    assert (report.attacks[0].forward_calls, report.attacks[0].backward_calls) == (correct, correct)


def test_labels_may_be_one_hot_or_a_tensor(classifier: PyTorchClassifier, data: Data) -> None:
    plain = evaluate(classifier, data, attacks=custom(step))
    x, y = torch.from_numpy(data[0]), torch.from_numpy(data[1])
    one_hot = np.eye(10, dtype=np.float32)[data[1]]
    for labels in (one_hot, y, y.int(), data[1].astype(np.int32)[:, None]):
        assert_array_equal(evaluate(classifier, (x, labels), attacks=custom(step)).robust, plain.robust)


def test_the_physical_batch_size_does_not_matter(classifier: PyTorchClassifier, data: Data) -> None:
    plain, small = (evaluate(classifier, data, attacks=custom(step), physical_batch_size=size) for size in (None, 3))
    assert_array_equal(plain.robust, small.robust)


# ----------------------------------------------------------------------------------------------- what is left as it was


@pytest.mark.parametrize("failure", [None, RuntimeError, KeyboardInterrupt])
def test_the_network_and_the_random_state_are_restored(
    failure: type[BaseException] | None, network: nn.Sequential, data: Data
) -> None:
    network = copy.deepcopy(network)
    classifier = wrap(network)
    network.train()
    network[1].eval()
    network[0].weight.requires_grad_(False)
    network[2].weight.grad = torch.full_like(network[2].weight, 7.0)

    def perturb(x: torch.Tensor, y: torch.Tensor, setting: Setting) -> torch.Tensor:
        assert not any(module.training for module in setting.model.modules() if isinstance(module, nn.Conv2d))
        torch.manual_seed(5)
        np.random.seed(5)
        random.seed(5)
        if failure is not None:
            raise failure
        return step(x, y, setting)

    before = torch.get_rng_state(), np.random.get_state()[1].copy(), random.getstate()
    if failure is None:
        evaluate(classifier, data, attacks=custom(perturb))
    else:
        with pytest.raises(failure):
            evaluate(classifier, data, attacks=custom(perturb))
    assert torch.equal(torch.get_rng_state(), before[0])
    assert_array_equal(np.random.get_state()[1], before[1])
    assert random.getstate() == before[2]
    assert network.training
    assert network[2].training
    assert not network[1].training
    assert [p.requires_grad for p in network.parameters()] == [False, True, True, True, True, True]
    assert network[0].weight.grad is None
    assert (network[2].weight.grad == 7).all()


def test_the_users_data_are_not_written_to(classifier: PyTorchClassifier, data: Data) -> None:
    x = torch.from_numpy(data[0].copy())

    def write(images: torch.Tensor, y: torch.Tensor, setting: Setting) -> torch.Tensor:
        return images.zero_()

    evaluate(classifier, (x, data[1]), attacks=custom(write))
    assert_array_equal(x.numpy(), data[0])


def test_a_copy_of_torchscript(network: nn.Module, data: Data) -> None:
    few = data[0][:4], data[1][:4]
    scripted = copy.deepcopy(torch.jit.script(network))
    reports = [
        Evaluator(wrap(each), ThreatModel("Linf", 0.1), attacks="apgd-ce", verbose=False).evaluate(*few)
        for each in (network, scripted)
    ]
    assert_array_equal(reports[0].robust, reports[1].robust)


def test_a_network_that_takes_one_layout_of_a_batch_only() -> None:
    class Merging(nn.Module):
        """The channels of an image as images of their own: such a view exists for one image in any layout."""

        def __init__(self) -> None:
            super().__init__()
            self.conv, self.linear = nn.Conv2d(1, 2, 3), nn.Linear(216, 4)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.linear(self.conv(x.view(-1, 1, 8, 8)).reshape(len(x), -1))

    torch.manual_seed(0)
    classifier = wrap(Merging(), classes=4, input_shape=(3, 8, 8))
    x = torch.rand(6, 3, 8, 8).numpy()
    y = classifier.predict(x).argmax(axis=1)
    report = Evaluator(classifier, ThreatModel("Linf", 0.05), attacks="apgd-ce", verbose=False).evaluate(x, y)
    assert report.clean_accuracy == 1
