"""What is judged is what is attacked; and an image has one answer, whatever passed before it and beside it."""

from __future__ import annotations

import copy
import threading
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from art.estimators.certification.randomized_smoothing import PyTorchRandomizedSmoothing
from art.estimators.classification import HuggingFaceClassifierPyTorch, PyTorchClassifier
from art.preprocessing.expectation_over_transformation import EoTBrightnessPyTorch
from numpy.testing import assert_array_equal
from torch import Tensor, nn
from torch.nn import functional

from art_robust_plugins import ThreatModel
from art_robust_plugins.evaluation import EvaluationReport, Evaluator, Setting
from art_robust_plugins.evaluation.autoattack import APGD, FAB, Square, standard
from art_robust_plugins.evaluation.diagnostics import measure_differences
from art_robust_plugins.evaluation.transfer import transfer

from .builders import Data, custom, step, wrap

Forward = Callable[["Around", Tensor], Tensor]
SETTINGS: dict[str, Any] = {"input_shape": (1, 8, 8), "nb_classes": 10, "clip_values": (0.0, 1.0)}


class Around(nn.Module):
    """A copy of the trained network with something around it."""

    def __init__(self, network: nn.Module, around: Forward) -> None:
        super().__init__()
        self.network, self.around = copy.deepcopy(network), around

    def forward(self, x: Tensor) -> Tensor:
        return self.around(self, x)


@pytest.fixture
def few(data: Data) -> Data:
    return data[0][:20], data[1][:20]


def evaluate(classifier: PyTorchClassifier, data: Data, **arguments: Any) -> EvaluationReport:
    arguments = {"attacks": custom(step), "verbose": False, **arguments}
    return Evaluator(classifier, ThreatModel("Linf", 0.1), **arguments).evaluate(*data)


def flags(report: EvaluationReport) -> dict[str, str]:
    return {flag.name: flag.severity for flag in report.flags}


# ------------------------------------------------------------------------------------- predict and the attacked network


def subclassed(network: nn.Module, change: Callable[[Any, Any, int], Any]) -> PyTorchClassifier:
    class Own(PyTorchClassifier):
        def predict(self, x: Any, batch_size: int = 128, **other: Any) -> Any:
            return change(super().predict, x, batch_size)

    return Own(network, nn.CrossEntropyLoss(), **SETTINGS)


def rolled_off_the_grid(predict: Any, x: Any, size: int) -> Any:
    """The clean images, multiples of 1/16, get their own outputs; all others those of another class."""
    outputs, grid = predict(x, size), (x * 16 == np.round(x * 16)).reshape(len(x), -1).all(axis=1)
    return np.where(grid[:, None], outputs, np.roll(outputs, 1, axis=1))


@pytest.mark.parametrize(
    "change",
    [
        lambda predict, x, size: predict((np.round(x * 255) / 255).astype(np.float32), size),
        lambda predict, x, size: predict(x, size) + predict(x[..., ::-1].copy(), size),
        lambda predict, x, size: predict(x, size) / 2,
        lambda predict, x, size: predict((x + 0.1 * np.random.randn(*x.shape)).astype(np.float32), size),
        rolled_off_the_grid,
    ],
    ids=["quantised", "flipped", "temperature", "noise", "off the grid"],
)
def test_a_predict_that_does_more_is_refused(change: Any, network: nn.Module, few: Data) -> None:
    called: list[Any] = []
    attack = custom(lambda x, y, setting: called.append(x) or x)
    with pytest.raises(ValueError, match=r"^classifier: predict of Own gives other outputs than its network"):
        evaluate(subclassed(network, change), few, attacks=attack)
    assert not called


def test_a_predict_that_does_the_same_is_none(network: nn.Module, classifier: PyTorchClassifier, few: Data) -> None:
    same = subclassed(network, lambda predict, x, size: predict(x, size))
    assert_array_equal(evaluate(same, few).robust, evaluate(classifier, few).robust)
    noisy = Around(network, lambda self, x: self.network(x) + torch.randn(len(x), 10))
    same = subclassed(noisy, lambda predict, x, size: predict(x, size))
    assert "randomised" in flags(evaluate(same, few))


def test_a_predict_of_an_instance_is_refused(classifier: PyTorchClassifier, few: Data) -> None:
    predict = classifier.predict
    classifier.predict = lambda x, batch_size=128, **other: predict(1 - x, batch_size)
    with pytest.raises(ValueError, match=r"^classifier: predict of PyTorchClassifier gives other outputs"):
        evaluate(classifier, few)


def test_attacks_follow_the_estimators_own_forward(network: nn.Module, few: Data) -> None:
    """A processor, a hook on ART's wrapper, a Sequential whose forward ART passes over: each as a plain network."""

    def blur(x: Tensor) -> Tensor:
        return functional.avg_pool2d(x, 3, 1, 1)

    class Other(nn.Sequential):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(1 - x)

    inside = evaluate(wrap(Around(network, lambda self, x: self.network(blur(x)))), few)
    processed = HuggingFaceClassifierPyTorch(copy.deepcopy(network), nn.CrossEntropyLoss(), processor=blur, **SETTINGS)
    hooked = wrap(copy.deepcopy(network))
    hooked._model.register_forward_pre_hook(lambda module, inputs: (blur(inputs[0]),))
    plain = evaluate(wrap(network), few)
    assert inside.robust_accuracy < plain.robust_accuracy
    for classifier, wanted in ((processed, inside), (hooked, inside), (wrap(Other(*network)), plain)):
        report = evaluate(classifier, few)
        assert_array_equal(report.robust, wanted.robust)
        assert_array_equal(report.adversarial, wanted.adversarial)


# ---------------------------------------------------------------------------------------------------------- no decision


def test_smoothed_classifiers_are_refused(network: nn.Module) -> None:
    smoothed = PyTorchRandomizedSmoothing(network, nn.CrossEntropyLoss(), **SETTINGS)
    with pytest.raises(ValueError, match=r"^classifier: got PyTorchRandomizedSmoothing, .* certify\.$"):
        Evaluator(smoothed, ThreatModel("Linf", 0.1))


@pytest.mark.parametrize("attack", ["apgd-ce", "square", custom(step)])
def test_an_abstention_is_no_class(attack: Any, network: nn.Module, data: Data) -> None:
    def abstain(self: Around, x: Tensor) -> Tensor:
        logits = self.network(x)
        return logits * (logits.softmax(dim=1).amax(dim=1, keepdim=True) > 0.9)

    x, zeros = data[0], np.zeros(40, dtype=np.int64)
    classifier = wrap(Around(network, abstain))
    abstained = (classifier.predict(x) == 0).all(axis=1)
    assert abstained.any()
    report = evaluate(classifier, (x, np.where(abstained, zeros, data[1])), attacks=attack)
    assert not report.correct[abstained].any()
    assert flags(report)["no-decision"] == "severe"
    nothing = evaluate(wrap(Around(network, lambda self, x: 0 * self.network(x))), (x, zeros))
    assert nothing.clean_accuracy == 0


def test_ties_are_flagged_and_no_rounding_blamed(network: nn.Module, few: Data) -> None:
    report = evaluate(wrap(Around(network, lambda self, x: (self.network(x) / 4).round())), few, attacks="square")
    assert flags(report)["ties"] == "warning"
    (confirmed,) = (flag for flag in report.flags if flag.name == "not-confirmed")
    assert "ties" in confirmed.advice
    assert "rounding" not in confirmed.advice


# -------------------------------------------------------------------------------------------------------------- dynamic


def purified(take: Callable[[Around, Tensor], Tensor]) -> Forward:
    def forward(self: Around, x: Tensor) -> Tensor:
        with torch.enable_grad():
            gradient = take(self, x.detach().clone().requires_grad_())
        return self.network(x - 0.01 * gradient)

    return forward


def energy(self: Around, x: Tensor) -> Tensor:
    return self.network(x).logsumexp(dim=1).sum()


def by_backward(self: Around, x: Tensor) -> Tensor:
    energy(self, x).backward()
    assert x.grad is not None
    return x.grad


def moves_a_bias(self: Around, x: Tensor) -> Tensor:
    with torch.no_grad():
        self.network[0].bias.mul_(0.9).add_(0.01)
    return self.network(x)


def replaces_a_bias(self: Around, x: Tensor) -> Tensor:
    self.network[0].bias = nn.Parameter(self.network[0].bias.detach() + 0.01)
    return self.network(x)


def minimises_entropy(self: Around, x: Tensor) -> Tensor:
    with torch.enable_grad():
        logits = self.network(x)
        entropy = -(logits.softmax(dim=1) * logits.log_softmax(dim=1)).sum()
        optimizer = torch.optim.SGD(self.network.parameters(), 0.01)
        optimizer.zero_grad()
        entropy.backward()
        optimizer.step()
    return logits


def remembers(self: Around, x: Tensor) -> Tensor:
    passed = self.__dict__.setdefault("passed", [])
    passed.append(x.mean())
    return self.network(x + sum(passed[-3:]) / 3)


@pytest.mark.parametrize(
    ("forward", "evidence"),
    [
        (purified(lambda self, x: torch.autograd.grad(energy(self, x), x)[0]), "takes gradients"),
        (purified(by_backward), "takes gradients"),
        (purified(lambda self, x: torch.func.grad(lambda z: energy(self, z))(x.detach())), "takes gradients"),
        (moves_a_bias, "bias"),
        (replaces_a_bias, "bias"),
        (minimises_entropy, "takes gradients"),
        (remembers, "remembers"),
    ],
)
def test_networks_that_change_while_they_predict(
    forward: Forward, evidence: str, network: nn.Module, few: Data
) -> None:
    around = Around(network, forward)
    before = copy.deepcopy(around.state_dict())
    report = evaluate(wrap(around), few, attacks=[custom(step), "uniform-0.1"])
    assert flags(report)["dynamic"] == "severe"
    assert evidence in next(flag.evidence for flag in report.flags if flag.name == "dynamic")
    after = around.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert all(parameter.requires_grad and parameter.grad is None for parameter in around.parameters())


def adapts(self: Around, x: Tensor) -> Tensor:
    minimises_entropy(self, x)
    return torch.zeros_like(x)


@pytest.mark.parametrize("take", [by_backward, adapts])
def test_gradients_that_one_clean_image_alone_makes_a_network_take(take: Any, network: nn.Module, few: Data) -> None:
    with torch.no_grad():
        confidence = network(torch.from_numpy(few[0])).softmax(dim=1).amax(dim=1)
    last = int(confidence[9:].argmin()) + 9  # beyond the images that the probes are made of
    order = [*(i for i in range(20) if i != last), last]
    mark = torch.from_numpy(few[0][last]).sum()
    marked = Around(
        network,
        lambda self, x: (
            purified(take)(self, x) if ((x.sum(dim=(1, 2, 3)) - mark).abs() < 1e-4).any() else self.network(x)
        ),
    )
    report = evaluate(wrap(marked), (few[0][order], few[1][order]), attacks=custom(lambda x, y, setting: x))
    assert "clean pass takes gradients" in next(flag.evidence for flag in report.flags if flag.name == "dynamic")


@pytest.mark.parametrize("take", [by_backward, adapts])
def test_gradients_that_candidates_alone_make_a_network_take(
    take: Any, network: nn.Module, few: Data, tmp_path: Any
) -> None:
    around = Around(
        network,
        lambda self, x: purified(take)(self, x) if (x[:, 0, 0, 0] == 0.0625).any() else self.network(x),
    )
    before = copy.deepcopy(around.state_dict())

    def mark(x: Tensor, y: Tensor, setting: Setting) -> Tensor:
        found = x.clone()
        found[:, 0, 0, 0] = 0.0625
        with torch.no_grad():
            setting.model(found)
        return found

    assert not (few[0][:, 0, 0, 0] == 0.0625).any()
    for _ in range(2):  # the second finds the state of the first
        report = evaluate(wrap(around), few, attacks=custom(mark, name="marking"), state_dir=tmp_path)
        assert "marking take gradients" in next(flag.evidence for flag in report.flags if flag.name == "dynamic")
    assert all(torch.equal(before[name], value) for name, value in around.state_dict().items())
    assert all(parameter.requires_grad and parameter.grad is None for parameter in around.parameters())


@pytest.mark.parametrize(
    "forward",
    [
        lambda self, x: torch.func.vmap(lambda z: self.network(z[None])[0])(x),
        lambda self, x: (setattr(self, "calls", getattr(self, "calls", 0) + 1), self.network(x))[1],
        lambda self, x: (setattr(self, "last", x.detach().clone()), self.network(x))[1],
    ],
)
def test_networks_that_only_seem_to_change(forward: Forward, network: nn.Module, few: Data) -> None:
    assert not {"dynamic", "randomised", "batch-dependent"} & set(flags(evaluate(wrap(Around(network, forward)), few)))


def test_a_verdict_does_not_depend_on_earlier_passes(network: nn.Module, few: Data) -> None:
    def evaluated(size: int) -> EvaluationReport:
        return evaluate(wrap(Around(network, moves_a_bias)), few, batch_size=size, physical_batch_size=size)

    one, another = evaluated(20), evaluated(1)
    assert_array_equal(one.robust, another.robust)
    assert_array_equal(one.correct, another.correct)


@pytest.mark.parametrize("failure", [None, RuntimeError, KeyboardInterrupt])
def test_an_attack_that_changes_the_network(failure: Any, network: nn.Module, few: Data) -> None:
    network = copy.deepcopy(network)
    before = copy.deepcopy(network.state_dict())

    def train(x: Tensor, y: Tensor, setting: Setting) -> Tensor:
        with torch.no_grad():
            for parameter in setting.model.parameters():
                parameter.add_(1.0)
        if failure is not None:
            raise failure
        return step(x, y, setting)

    if failure is None:
        report = evaluate(wrap(network), few, attacks=custom(train, name="trainer"))
        (flag,) = (flag for flag in report.flags if flag.name == "dynamic")
        assert "trainer" in flag.evidence
    else:
        with pytest.raises(failure):
            evaluate(wrap(network), few, attacks=custom(train))
    assert all(torch.equal(before[name], value) for name, value in network.state_dict().items())


# ------------------------------------------------------------------------------------------------------ batch-dependent


class Stuck(nn.Module):
    """Batch norm that stays in training mode."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.norm, self.network = nn.BatchNorm2d(1), copy.deepcopy(network)

    def train(self, mode: bool = True) -> Stuck:
        super().train(mode)
        self.norm.train()
        return self

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.network(self.norm(x))
        return logits


@pytest.mark.parametrize("size", [None, 8, 1])
def test_batch_norm_stuck_in_training_mode(size: int | None, network: nn.Module, few: Data) -> None:
    stuck = Stuck(network)
    before = copy.deepcopy(stuck.state_dict())
    report = evaluate(wrap(stuck), few, physical_batch_size=size, attacks=[custom(step), "square"])
    assert flags(report)["batch-dependent"] == flags(report)["dynamic"] == "severe"
    assert "randomised" not in flags(report)
    assert not [flag for flag in report.flags if "rounding" in flag.advice]
    assert all(torch.equal(before[name], value) for name, value in stuck.state_dict().items())


@pytest.mark.parametrize(
    "forward",
    [
        lambda self, x: self.network(functional.batch_norm(x, None, None, training=True)),
        lambda self, x: self.network(x + 0.01 * x.mean(dim=0)),
        lambda self, x: self.network(x * (1.0 if len(x) > 4 else 0.5)),
        lambda self, x: self.network(x) + torch.arange(len(x))[:, None],
        lambda self, x: self.network(x) if x.mean() < 0.6 else self.network(1 - x),
    ],
    ids=["batch norm", "mean", "number", "position", "branch"],
)
@pytest.mark.parametrize(("points", "size"), [(20, None), (20, 5), (1, None), (1, 6)])
def test_networks_whose_answer_depends_on_the_batch(
    forward: Forward, points: int, size: int | None, network: nn.Module, few: Data
) -> None:
    report = evaluate(wrap(Around(network, forward)), (few[0][:points], few[1][:points]), physical_batch_size=size)
    assert flags(report)["batch-dependent"] == "severe"
    assert "randomised" not in flags(report)


@pytest.mark.parametrize(
    "forward",
    [
        lambda self, x: self.network(functional.batch_norm(x, None, None, training=True)),
        lambda self, x: self.network(x + 0.05 * x.mean(dim=0)),
        lambda self, x: self.network(x) + torch.arange(len(x))[:, None] * torch.eye(10)[3],
    ],
    ids=["batch norm", "mean", "position"],
)
def test_of_images_alone_two_pass_to_show_a_dependence(forward: Forward, network: nn.Module, few: Data) -> None:
    """With one image a pass no verdict depends on others, and the report says that the number is not the usual one."""
    report = evaluate(wrap(Around(network, forward)), few, physical_batch_size=1)
    assert flags(report)["batch-dependent"] == "severe"


def crowded(self: Around, x: Tensor) -> Tensor:
    """Experts with room for three images of a class: the others are passed over."""
    logits: Tensor = self.network(x)
    classes = functional.one_hot(logits.argmax(dim=1), 10)
    late = (classes.cumsum(dim=0) * classes).sum(dim=1) > 3
    return torch.where(late[:, None], 0.1 * logits.roll(1, dims=1), logits)


@pytest.mark.parametrize(
    "forward",
    [
        lambda self, x: self.network(x * torch.where(torch.arange(len(x)) < 20, 1.0, -1.0).view(-1, 1, 1, 1)),
        lambda self, x: self.network(x * torch.where(torch.arange(len(x)) < 32, 1.0, 0.5).view(-1, 1, 1, 1)),
        crowded,
    ],
    ids=["half", "last", "capacity"],
)
def test_a_dependence_that_only_large_batches_show(forward: Forward, network: nn.Module, data: Data) -> None:
    assert flags(evaluate(wrap(Around(network, forward)), data))["batch-dependent"] == "severe"


@pytest.mark.parametrize("size", [1, 2, 3, 8])
def test_no_pass_is_larger_than_the_physical_batch(size: int, network: nn.Module, few: Data) -> None:
    sizes: set[int] = set()

    def limited(self: Around, x: Tensor) -> Tensor:
        sizes.add(len(x))
        return self.network(x)

    report = evaluate(wrap(Around(network, limited)), few, physical_batch_size=size, attacks="apgd-ce")
    assert max(sizes) == max(size, 2)  # the checks before the attacks pass two
    assert "batch-dependent" not in flags(report)


def test_a_network_that_takes_no_image_alone(network: nn.Module, few: Data) -> None:
    flat = nn.Sequential(nn.Flatten(), nn.BatchNorm1d(64), nn.Unflatten(1, (1, 8, 8)), *copy.deepcopy(network))
    flat.train = lambda mode=True: flat
    assert flags(evaluate(wrap(flat), few))["batch-dependent"] == "severe"


def test_rounding_is_no_dependence_on_the_batch(network: nn.Module, few: Data) -> None:
    def coarse(self: Around, x: Tensor) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            return self.network(x).float()

    assert "batch-dependent" not in flags(evaluate(wrap(Around(network, coarse)), few))
    rarely = Around(network, lambda self, x: self.network(x) * (1 if torch.rand(()) < 0.8 else -1))
    assert "batch-dependent" not in flags(evaluate(wrap(rarely), few))


def test_outputs_that_are_not_finite_have_differences() -> None:
    nan, inf = torch.nan, torch.inf
    one = torch.tensor([[nan, 1.0], [nan, 1.0], [inf, 1.0], [1.0, 0.0]])
    another = torch.tensor([[nan, 1.0], [2.0, 1.0], [inf, 1.0], [1.5, 0.0]])
    assert measure_differences(one, another).tolist() == [0, inf, 0, 0.5]


def test_randomness_that_clean_images_do_not_show(network: nn.Module, data: Data) -> None:
    """The outputs of images near the boundary alone are random."""

    def unsure(self: Around, x: Tensor) -> Tensor:
        logits: Tensor = self.network(x)
        two = logits.softmax(dim=1).topk(2, dim=1).values
        close = (two[:, 0] - two[:, 1]) < 0.3
        return torch.where(close[:, None], logits * torch.randn(len(x), 1), logits)

    around = Around(network, unsure)
    with torch.no_grad():
        two = network(torch.from_numpy(data[0])).softmax(dim=1).topk(2, dim=1).values
    sure = (two[:, 0] - two[:, 1] > 0.8).numpy()
    report = evaluate(wrap(around), (data[0][sure], data[1][sure]), attacks="apgd-ce")
    assert "not-confirmed" in flags(report)
    (confirmed,) = (flag for flag in report.flags if flag.name == "not-confirmed")
    assert "random" in confirmed.advice
    assert "smooth" not in confirmed.advice
    assert flags(report)["randomised"] == "severe"


# ------------------------------------------------------------------------------------------------------------- in place


def in_place(self: Around, x: Tensor) -> Tensor:
    return self.network(x.mul_(0.9).add_(0.05))


def not_in_place(self: Around, x: Tensor) -> Tensor:
    return self.network(x * 0.9 + 0.05)


@pytest.mark.parametrize("size", [None, 3])
def test_a_forward_in_place_changes_no_data(size: int | None, network: nn.Module, few: Data) -> None:
    x = few[0].copy()
    attacks = [custom(step), "apgd-ce", "square", transfer(wrap(Around(network, in_place)), "own")]
    one, another = (
        evaluate(wrap(Around(network, forward)), (x, few[1]), attacks=attacks, physical_batch_size=size)
        for forward in (in_place, not_in_place)
    )
    assert_array_equal(x, few[0])
    assert_array_equal(one.adversarial, another.adversarial)
    for result, wanted in zip(one.attacks, another.attacks, strict=True):
        assert_array_equal(result.robust, wanted.robust)
    assert one.curve == another.curve
    assert flags(one) == flags(another)


@pytest.mark.parametrize("kind", [APGD, FAB, Square])
def test_an_attack_by_itself_hands_out_copies(kind: Any, network: nn.Module, few: Data) -> None:
    x, y = (torch.from_numpy(values[:6]) for values in few)
    more = {"queries": 50} if kind is Square else {"steps": 5} if kind is FAB else {}
    found = [
        kind(Around(network, forward).eval(), ThreatModel("Linf", 0.1), **more)(x.clone(), y)
        for forward in (in_place, not_in_place)
    ]
    assert torch.equal(*found)


# ---------------------------------------------------------------------------------------------- state that is no tensor


class Extra(nn.Module):
    def __init__(self, network: nn.Module, state: Any) -> None:
        super().__init__()
        self.network, self.state = copy.deepcopy(network), state

    def get_extra_state(self) -> Any:
        return self.state

    def set_extra_state(self, state: Any) -> None:
        self.state = state

    def forward(self, x: Tensor) -> Tensor:
        if isinstance(self.state, dict):
            self.state["passes"] = self.state.get("passes", 0) + 1
        logits: Tensor = self.network(x)
        return logits


def test_a_quantised_network_meets_square_alone(network: nn.Module, few: Data, tmp_path: Any) -> None:
    quantised = torch.ao.quantization.quantize_dynamic(copy.deepcopy(network), {nn.Linear}, torch.qint8)
    classifier = wrap(quantised)
    report = evaluate(classifier, few, attacks=["standard"], state_dir=tmp_path)
    assert [result.name for result in report.attacks] == ["square"]
    assert flags(report)["no-gradients"] == "severe"
    again = evaluate(classifier, few, attacks=["standard"], state_dir=tmp_path)
    assert_array_equal(again.robust, report.robust)
    with pytest.raises(ValueError, match=r"^attacks: the source of 'transfer-own' cannot be followed \("):
        evaluate(wrap(network), few, attacks=transfer(classifier, "own"))


@pytest.mark.parametrize("state", [{"scale": 2}, b"bytes", np.arange(3), {"b", "a"}, object()])
def test_extra_state(state: Any, network: nn.Module, few: Data, tmp_path: Any) -> None:
    extra = Extra(network, state)
    before = copy.deepcopy(state) if isinstance(state, dict) else state
    report = evaluate(wrap(extra), few, state_dir=tmp_path)
    assert ("dynamic" in flags(report)) == isinstance(state, dict)
    assert isinstance(state, np.ndarray) or extra.state == before
    assert_array_equal(evaluate(wrap(extra), few, state_dir=tmp_path).robust, report.robust)
    if isinstance(state, bytes):
        with pytest.raises(ValueError, match=r"^state_dir: .* another network, expected"):
            evaluate(wrap(Extra(network, b"other")), few, state_dir=tmp_path)


@pytest.mark.parametrize(
    "matrix",
    [
        torch.eye(8).to_sparse(),
        torch.eye(8).to_sparse_csr(),
        torch.nested.nested_tensor([torch.ones(2), torch.ones(3)]),
    ],
    ids=["sparse", "CSR", "nested"],
)
def test_buffers_that_are_not_dense(matrix: Tensor, network: nn.Module, few: Data) -> None:
    around = Around(network, lambda self, x: self.network(x))
    around.register_buffer("matrix", matrix)
    report, plain = evaluate(wrap(around), few), evaluate(wrap(network), few)
    assert_array_equal(report.robust, plain.robust)
    assert flags(report) == flags(plain)


def test_extra_state_that_cannot_be_copied_or_read(network: nn.Module, few: Data) -> None:
    class Unreadable(Extra):
        def get_extra_state(self) -> Any:
            raise NotImplementedError("no state")

    assert "dynamic" not in flags(evaluate(wrap(Extra(network, threading.Lock())), few))
    with pytest.raises(ValueError, match=r"^classifier: the state of the network cannot be read \(NotImpl.*no state"):
        evaluate(wrap(Unreadable(network, None)), few)


def registers(self: Around, x: Tensor) -> Tensor:
    self.register_buffer("late", x.mean())
    self.network.append(nn.Identity())
    return self.network(x)


def deletes(self: Around, x: Tensor) -> Tensor:
    if "count" in self._buffers:
        del self.count
    return self.network(x)


@pytest.mark.parametrize(("forward", "name"), [(registers, "late"), (deletes, "count")])
def test_buffers_that_come_and_go(forward: Forward, name: str, network: nn.Module, few: Data) -> None:
    around = Around(network, forward)
    around.register_buffer("count", torch.zeros(1))
    before = list(around.state_dict())
    report = evaluate(wrap(around), few)
    assert list(around.state_dict()) == before
    assert name in next(flag.evidence for flag in report.flags if flag.name == "dynamic")


# ------------------------------------------------------------------------------------------------------------ sentences


def test_preprocessing_that_makes_several_inputs_of_one(network: nn.Module, few: Data) -> None:
    def brightened(samples: int) -> PyTorchClassifier:
        defence = EoTBrightnessPyTorch(nb_samples=samples, delta=0.1, clip_values=(0.0, 1.0))
        return wrap(network, preprocessing_defences=defence)

    with pytest.raises(ValueError, match=r"^classifier: the preprocessing EoTBrightnessPyTorch makes 6 inputs of 2, "):
        evaluate(brightened(3), few)
    assert "randomised" in flags(evaluate(brightened(1), few))


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
    masked = Around(network, lambda self, x: self.network(Masked.apply(x)))
    report = evaluate(wrap(masked), few, attacks=[attacks, custom(unmask)])
    (flag,) = (flag for flag in report.flags if flag.name == "short-attack-beats-this-run")
    assert ("run the suite 'standard'" in flag.advice) == (attacks != "standard")


def test_a_hook_that_arts_predict_passes_over(network: nn.Module, few: Data) -> None:
    """On a Sequential: one that looks on is called, one that changes something is refused."""
    seen: list[int] = []
    watched, changed = copy.deepcopy(network), copy.deepcopy(network)
    watched.register_forward_hook(lambda module, inputs, outputs: seen.append(len(outputs)))
    changed.register_forward_hook(lambda module, inputs, outputs: -outputs)
    assert_array_equal(evaluate(wrap(watched), few).robust, evaluate(wrap(network), few).robust)
    assert seen
    with pytest.raises(ValueError, match=r"^classifier: predict of PyTorchClassifier gives other outputs"):
        evaluate(wrap(changed), few)
