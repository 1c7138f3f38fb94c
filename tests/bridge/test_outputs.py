"""What networks may put out: any floating-point type, one output for two classes; else a sentence with a wrapper."""

from __future__ import annotations

from collections import OrderedDict, namedtuple
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from art.estimators.classification import PyTorchClassifier
from builders import make_classifier, make_linear
from torch import Tensor, nn

from art_robust_plugins.bridge import EstimatorModule, predict_outputs
from art_robust_plugins.export import export_classifier
from art_robust_plugins.lipschitz import PyTorchLipschitzCertifier
from art_robust_plugins.training import StandardTrainer

Pair = namedtuple("Pair", ["score", "logits"])


@dataclass
class Output:
    logits: Tensor


class ModelOutput(OrderedDict[str, Any]):
    """As Hugging Face's: a mapping whose entries are attributes too."""

    def __getattr__(self, name: str) -> Any:
        return self[name]


class Then(nn.Module):
    """A small network, and something done with its logits."""

    def __init__(self, change: Callable[[Tensor], Any], dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        self.network = make_linear(6, 4).to(dtype)
        self.change, self.dtype = change, dtype

    def forward(self, x: Tensor) -> Any:
        # Certificates are of a copy in float64, which must get what it is given.
        return self.change(self.network(x if self.dtype == torch.float32 else x.to(self.dtype)))


class Mixed(Then):
    def forward(self, x: Tensor) -> Any:
        with torch.autocast(x.device.type, torch.bfloat16):
            return self.network(x)


def classifier(network: nn.Module, loss: nn.Module | None = None, classes: int = 4) -> PyTorchClassifier:
    optimizer = partial(torch.optim.SGD, lr=0.1)
    settings = {"input_shape": (1, 2, 3), "nb_classes": classes, "device_type": "cpu"}
    return make_classifier(network, loss, optimizer=optimizer, **settings)


TYPES = {
    "float64": lambda: Then(Tensor.double),
    "float16": lambda: Then(Tensor.half),
    "bfloat16": lambda: Then(Tensor.bfloat16),
    "autocast": lambda: Mixed(lambda outputs: outputs),
    "float64 weights": lambda: Then(lambda outputs: outputs, torch.float64),
    "bfloat16 weights": lambda: Then(lambda outputs: outputs, torch.bfloat16),
}


@pytest.mark.parametrize("kind", TYPES)
def test_all_floating_point_types_become_float32(kind: str) -> None:
    torch.manual_seed(0)
    estimator, x = classifier(TYPES[kind]()), torch.rand(5, 1, 2, 3)
    module = EstimatorModule(estimator).eval()
    expected = estimator.model(x).float()
    assert estimator.model(x).dtype != torch.float32
    for outputs in (module(x), predict_outputs(estimator, x)):
        assert outputs.dtype == torch.float32
        assert torch.equal(outputs, expected)
    x.requires_grad_()
    (gradient,) = torch.autograd.grad(module(x)[:, 0].sum(), x)
    assert gradient.dtype == torch.float32
    assert bool((gradient != 0).any())


@pytest.mark.parametrize("kind", ["float64", "float16", "bfloat16", "autocast"])
def test_they_train_and_are_exported(kind: str, tmp_path: Any) -> None:
    torch.manual_seed(0)
    estimator, x = classifier(TYPES[kind]()), torch.rand(8, 1, 2, 3)
    before = estimator.model.network[1].weight.detach().clone()
    StandardTrainer(estimator).fit(x, torch.arange(8) % 4, nb_epochs=1, batch_size=8, verbose=False)
    assert not torch.equal(estimator.model.network[1].weight, before)
    assert export_classifier(estimator, tmp_path / "network.pt2", x) < 1e-3


def test_predict_leaves_nothing_behind() -> None:
    estimator, x = classifier(Then(Tensor.bfloat16)), torch.rand(5, 1, 2, 3)
    predict_outputs(estimator, x)
    with pytest.raises(TypeError, match="BFloat16"):
        estimator.predict(x.numpy())


USERS: dict[str, Callable[[PyTorchClassifier, Any], object]] = {
    "evaluation": lambda estimator, path: EstimatorModule(estimator, probabilities=True, straight_through=True),
    "training": lambda estimator, path: StandardTrainer(estimator),
    "certificates": lambda estimator, path: PyTorchLipschitzCertifier.from_classifier(estimator),
    "export": lambda estimator, path: export_classifier(estimator, path / "a.pt2", torch.rand(2, 1, 2, 3)),
}


@pytest.mark.parametrize("user", USERS)
@pytest.mark.parametrize(
    ("change", "found", "wrapper"),
    [
        (lambda z: (z.mean(), z), "tuple", r"self\.network\(x\)\[1\]"),
        (lambda z: [z], "list", r"self\.network\(x\)\[0\]"),
        (lambda z: {"loss": z.mean(), "out": z}, "dict", r"self\.network\(x\)\['out'\]"),
        (lambda z: {"a b": (1, z)}, "dict", r"self\.network\(x\)\['a b'\]\[1\]"),
        (lambda z: ModelOutput(logits=z), "ModelOutput", r"self\.network\(x\)\.logits"),
        (lambda z: Pair(z.mean(), z), "Pair", r"self\.network\(x\)\.logits"),
        (Output, "Output", r"self\.network\(x\)\.logits"),
        (lambda z: SimpleNamespace(logits=z), "SimpleNamespace", r"self\.network\(x\)\.logits"),
        (lambda z: None, "NoneType", "one tensor of logits"),
        (lambda z: z[:, :3], r"\(2, 3\)", ""),
        (lambda z: z.argmax(dim=1, keepdim=True).expand(-1, 4), r"torch\.int64", "logits"),
        (lambda z: z > 0, r"torch\.bool", "logits"),
    ],
)
def test_other_outputs_are_refused_with_what_helps(
    change: Callable[[Tensor], Any], found: str, wrapper: str, user: str, tmp_path: Any
) -> None:
    with pytest.raises(ValueError, match=rf"^classifier: .*output.* {found}.*{wrapper}"):
        USERS[user](classifier(Then(change)), tmp_path)


def test_complex_outputs_are_refused() -> None:
    with pytest.raises(ValueError, match=r"^classifier: .*outputs .*complex64"):
        EstimatorModule(classifier(Then(lambda z: z + 0j)))


def test_a_network_of_another_type_is_named_with_the_way_out() -> None:
    network = make_linear(6, 4).double()
    with pytest.raises(ValueError, match=r"^classifier: .*fails .*float64.*network\.float\(\)"):
        EstimatorModule(classifier(network))
    with pytest.raises(ValueError, match=r"^classifier: .*weights .*float64.*network\.float\(\)"):
        StandardTrainer(classifier(network))
    with pytest.raises(ValueError, match=r"^classifier: .*\(2, 1, 2, 3\)"):
        EstimatorModule(classifier(make_linear(5, 4)))


SINGLE = {
    "logit": (nn.BCEWithLogitsLoss(), lambda z: z[:, :1]),
    "flat": (nn.BCEWithLogitsLoss(), lambda z: z[:, 0]),
    "squeezed": (nn.BCEWithLogitsLoss(), lambda z: z[:, :1].squeeze()),
    "probability": (nn.BCELoss(), lambda z: z[:, :1].sigmoid()),
}


@pytest.mark.parametrize("kind", SINGLE)
def test_one_output_is_two_logits(kind: str) -> None:
    torch.manual_seed(0)
    loss, change = SINGLE[kind]
    estimator = classifier(Then(change), loss, 2)
    module, x = EstimatorModule(estimator).eval(), torch.rand(9, 1, 2, 3)
    z = estimator.model.network(x)[:, 0]
    for images, logit in ((x, z), (x[:1], z[:1])):
        outputs = module(images)
        assert outputs.shape == (len(images), 2)
        torch.testing.assert_close(outputs[:, 1] - outputs[:, 0], logit)
    raw = EstimatorModule(estimator, unit_range=False, probabilities=True)(x)
    np.testing.assert_allclose(raw.detach().numpy(), predict_outputs(estimator, x).numpy())
    assert raw.shape == (9, 1)


def test_one_output_needs_a_loss_of_one_output() -> None:
    for attempt in (EstimatorModule, StandardTrainer):
        with pytest.raises(ValueError, match=r"^classifier: .*output .*\(2, 1\).*BCEWithLogitsLoss"):
            attempt(classifier(Then(lambda z: z[:, :1]), None, 2))
    with pytest.raises(ValueError, match=r"^classifier: .*output .*\(2, 1\).*nn\.Linear\(1, 2\)"):
        PyTorchLipschitzCertifier.from_classifier(classifier(Then(lambda z: z[:, :1]), nn.BCEWithLogitsLoss(), 2))


def test_what_certificates_advise_for_one_output_is_the_same_classifier() -> None:
    torch.manual_seed(0)
    one, two = make_linear(6, 1), nn.Linear(1, 2)
    with torch.no_grad():
        two.weight.copy_(torch.tensor([[0.0], [1.0]]))
        two.bias.zero_()
    certifier = PyTorchLipschitzCertifier.from_classifier(classifier(nn.Sequential(one, two), None, 2))
    x = torch.rand(7, 1, 2, 3)
    prediction, radius = certifier.certify(x)
    z = one(x)[:, 0].detach().double()
    assert prediction.tolist() == (z > 0).long().tolist()
    np.testing.assert_allclose(radius, z.abs() / one[1].weight.double().norm().item(), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("kind", ["float16", "bfloat16", "autocast"])
def test_certificates_of_what_rounds_are_refused(kind: str) -> None:
    with pytest.raises(ValueError, match=r"^classifier: .*torch\.b?float16"):
        PyTorchLipschitzCertifier.from_classifier(classifier(TYPES[kind]()))
    PyTorchLipschitzCertifier.from_classifier(classifier(TYPES["float64"]()))


@pytest.mark.parametrize(
    ("change", "shown"),
    [
        (lambda logits: logits.argmax(axis=1), "(5,)"),
        (lambda logits: logits[:, :3], "(5, 3)"),
        (lambda logits: logits[:2], "(2, 4)"),
        (lambda logits: [[1.0], [1.0, 2.0]], "list"),
        (lambda logits: None, "NoneType"),
    ],
)
def test_a_predict_of_its_own_that_returns_no_scores_is_named(change: Callable[[Any], Any], shown: str) -> None:
    class Own(PyTorchClassifier):  # type: ignore[misc]
        def predict(self, *arguments: Any, **options: Any) -> Any:
            return change(super().predict(*arguments, **options))

    network = Then(lambda x: x)
    estimator = Own(network, nn.CrossEntropyLoss(), (1, 2, 3), 4, clip_values=(0, 1), device_type="cpu")
    with pytest.raises(ValueError, match="predict of Own returned") as caught:
        predict_outputs(estimator, torch.rand(5, 1, 2, 3))
    assert shown in str(caught.value)


@pytest.mark.parametrize("change", [torch.from_numpy, np.ndarray.tolist])
def test_a_predict_of_its_own_may_return_a_tensor_or_lists(change: Callable[[Any], Any]) -> None:
    class Own(PyTorchClassifier):  # type: ignore[misc]
        def predict(self, *arguments: Any, **options: Any) -> Any:
            return change(super().predict(*arguments, **options))

    network, x = Then(lambda x: x), torch.rand(5, 1, 2, 3)
    estimator = Own(network, nn.CrossEntropyLoss(), (1, 2, 3), 4, clip_values=(0, 1), device_type="cpu")
    torch.testing.assert_close(predict_outputs(estimator, x), network(x).detach())


def test_sparse_outputs_are_refused() -> None:
    with pytest.raises(ValueError, match="sparse_coo"):
        EstimatorModule(classifier(Then(lambda x: x.to_sparse())))


def test_the_default_type_of_torch_changes_no_input() -> None:
    estimator, x = classifier(Then(lambda x: x)), torch.rand(5, 1, 2, 3)
    expected = EstimatorModule(estimator)(x)
    torch.set_default_dtype(torch.float64)
    try:
        assert torch.equal(EstimatorModule(estimator)(x), expected)
    finally:
        torch.set_default_dtype(torch.float32)
