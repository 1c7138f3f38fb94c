"""BANG against its definition: per-sample gradients in float64, scaled and summed by hand."""

from __future__ import annotations

import copy
import math
from functools import partial

import numpy as np
import pytest
import torch
from art.estimators.classification import PyTorchClassifier
from builders import make_classifier
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional

from art_robust_plugins.training import BANG, BANGTrainer, StandardTrainer, TrainingOptions, bang_gradients
from art_robust_plugins.training.methods.bang import bang_factors

# ------------------------------------------------------------------------------------------------- the factors


def test_factors_of_the_first_vector() -> None:
    factors = bang_factors(torch.tensor([0.01, 0.1, 0.5, 1.0], dtype=torch.float64), 0.815)
    expected = torch.tensor([41.086581, 5.413772, 1.326385, 1.0], dtype=torch.float64)
    assert torch.allclose(factors, expected, rtol=0, atol=5e-7)


def test_factors_of_misclassified_samples() -> None:
    factors = bang_factors(torch.tensor([0.01, 0.1, 0.5, 1.0], dtype=torch.float64), 0.855 * 0.5)
    expected = torch.tensor([7.021825, 2.425214, 1.159699, 1.0], dtype=torch.float64)
    assert torch.allclose(factors, expected, rtol=0, atol=5e-7)


def test_factors_at_the_edges() -> None:
    assert bang_factors(torch.zeros(3), 0.8).tolist() == [1, 1, 1]
    assert bang_factors(torch.tensor([0.0, 2.0]), 0.8).tolist() == [1, 1]
    assert bang_factors(torch.tensor([1e-9, 1.0]), 0.815, cap=100.0).tolist() == [100, 1]
    tiny = bang_factors(torch.tensor([1e-9, 1.0]), 0.815)
    assert tiny[0].item() == pytest.approx((1e9) ** (0.815 * (1 - 1e-9)), rel=1e-5)


@given(st.lists(st.floats(1e-9, 1e3), min_size=1, max_size=8), st.floats(0, 2))
def test_factors_never_shrink_a_sample_nor_change_the_order(norms: list[float], epsilon: float) -> None:
    n = torch.tensor(norms, dtype=torch.float64)
    factors = bang_factors(n, epsilon)
    assert (factors >= 1 - 1e-12).all()
    assert factors[n.argmax()] == 1
    assert factors.isfinite().all()


# ------------------------------------------------------------------- parameter gradients against a per-sample oracle


class Net(nn.Module):
    """One layer under test between others, so that gradients arrive at it and leave it."""

    def __init__(self, layer: nn.Module, shape: tuple[int, ...], classes: int = 4) -> None:
        super().__init__()
        self.layer = layer
        with torch.no_grad():
            features = layer(torch.zeros(1, *shape)).numel()
        self.head = nn.Linear(features, classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.tanh(self.layer(torch.tanh(x))).flatten(1))


LAYERS = {
    "linear": (lambda: nn.Linear(6, 5), (6,)),
    "linear over time steps": (lambda: nn.Linear(6, 5), (3, 6)),
    "linear, no bias": (lambda: nn.Linear(6, 5, bias=False), (6,)),
    "conv1d": (lambda: nn.Conv1d(3, 4, 3, stride=2, padding=1), (3, 9)),
    "conv2d": (lambda: nn.Conv2d(3, 4, 3, padding=1), (3, 6, 6)),
    "conv2d, stride, dilation": (lambda: nn.Conv2d(2, 4, 3, stride=2, padding=2, dilation=2), (2, 9, 7)),
    "conv2d, groups, no bias": (lambda: nn.Conv2d(4, 6, 3, groups=2, bias=False), (4, 6, 6)),
    "conv2d, padding same": (lambda: nn.Conv2d(2, 3, (4, 3), padding="same", dilation=(1, 2)), (2, 7, 6)),
    "conv2d, padding valid": (lambda: nn.Conv2d(2, 3, 3, padding="valid"), (2, 6, 6)),
    "conv2d, circular": (lambda: nn.Conv2d(2, 3, 3, padding=1, padding_mode="circular"), (2, 6, 6)),
    "conv2d, reflect, same": (lambda: nn.Conv2d(2, 3, 3, padding="same", padding_mode="reflect"), (2, 6, 6)),
    "conv3d": (lambda: nn.Conv3d(2, 3, 2, stride=(1, 2, 1)), (2, 4, 5, 4)),
    "transposed 1d": (lambda: nn.ConvTranspose1d(3, 2, 3, stride=2), (3, 5)),
    "transposed 2d": (lambda: nn.ConvTranspose2d(4, 2, 3, stride=2, padding=1, output_padding=1, groups=2), (4, 4, 4)),
    "transposed 3d": (lambda: nn.ConvTranspose3d(2, 2, 2, bias=False), (2, 3, 3, 3)),
}


def make(kind: str, seed: int = 0) -> tuple[Net, Tensor, Tensor]:
    build, shape = LAYERS[kind]
    torch.manual_seed(seed)
    network = Net(build(), shape).double()
    x = torch.randn(7, *shape, dtype=torch.float64)
    with torch.no_grad():
        y = network(x).argmax(dim=1)
    y[::2] = (y[::2] + 1) % 4  # half of the batch is misclassified
    return network, x, y


def oracle(
    network: nn.Module, x: Tensor, y: Tensor, *, beta: float, epsilon: float, ratio: float, cap: float = math.inf
) -> dict[str, Tensor]:
    """The definition, sample by sample: gradients of E and norms at each layer's output, weighted, summed."""
    layers = {name: m for name, m in network.named_modules() if hasattr(m, "weight")}
    norms: dict[str, list[float]] = {name: [] for name in layers}
    gradients: list[dict[str, Tensor]] = []
    correct = []
    for i in range(len(x)):
        outputs: dict[str, Tensor] = {}
        handles = [
            layer.register_forward_hook(partial(lambda store, key, m, _, out: store.update({key: out}), outputs, name))
            for name, layer in layers.items()
        ]
        logits = network(x[i : i + 1])
        for handle in handles:
            handle.remove()
        loss = functional.cross_entropy(logits, y[i : i + 1]) / len(x)
        parameters = dict(network.named_parameters())
        wanted = torch.autograd.grad(loss, [*outputs.values(), *parameters.values()])
        for name, gradient in zip(outputs, wanted, strict=False):
            norms[name].append(gradient.norm().item())
        gradients.append(dict(zip(parameters, wanted[len(outputs) :], strict=True)))
        correct.append(logits.argmax().item() == y[i].item())
    result = {}
    for parameter in gradients[0]:
        n = norms[parameter.rsplit(".", 1)[0]]
        total = torch.zeros_like(gradients[0][parameter])
        for i, gradient in enumerate(gradients):
            exponent = (epsilon if correct[i] else epsilon * ratio) * (1 - n[i] / max(n))
            total += min((max(n) / n[i]) ** exponent, cap) * gradient[parameter]
        result[parameter] = beta * total
    return result


def bang_run(network: nn.Module, x: Tensor, y: Tensor, **settings: object) -> tuple[dict[str, Tensor], Tensor]:
    network = copy.deepcopy(network)
    x = x.clone().requires_grad_()
    with bang_gradients(network, **settings) as bang:  # type: ignore[arg-type]
        bang.begin_step(y)
        functional.cross_entropy(network(x), y).backward()
    assert x.grad is not None
    return {name: p.grad for name, p in network.named_parameters() if p.grad is not None}, x.grad


@pytest.mark.parametrize("kind", LAYERS)
@pytest.mark.parametrize(("beta", "epsilon", "ratio"), [(1.0, 0.815, 1.0), (0.4, 0.855, 0.5)])
def test_parameter_gradients(kind: str, beta: float, epsilon: float, ratio: float) -> None:
    network, x, y = make(kind)
    predicted = network(x).argmax(dim=1)
    assert (predicted == y).any()
    assert (predicted != y).any()
    found, _ = bang_run(network, x, y, beta=beta, epsilon=epsilon, ratio=ratio)
    for name, expected in oracle(network, x, y, beta=beta, epsilon=epsilon, ratio=ratio).items():
        assert (found[name] - expected).abs().max() <= 1e-10, name


@pytest.mark.parametrize("kind", LAYERS)
def test_input_gradients_are_those_of_plain_training_to_the_last_bit(kind: str) -> None:
    network, x, y = make(kind)
    for dtype in (torch.float64, torch.float32):
        network, x = network.to(dtype), x.to(dtype)
        plain = x.clone().requires_grad_()
        functional.cross_entropy(network(plain), y).backward()
        _, found = bang_run(network, x, y, beta=0.4, epsilon=0.855, ratio=0.5)
        assert torch.equal(found, plain.grad)


def test_a_cap_limits_the_factors() -> None:
    network, x, y = make("conv2d")
    found, _ = bang_run(network, x, y, epsilon=5.0, cap=1.05)
    uncapped, _ = bang_run(network, x, y, epsilon=5.0)
    for name, expected in oracle(network, x, y, beta=1, epsilon=5.0, ratio=1, cap=1.05).items():
        assert (found[name] - expected).abs().max() <= 1e-10
    assert not any(torch.allclose(found[name], uncapped[name]) for name in found)


def test_samples_without_a_gradient_stay_without_one() -> None:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(4, 5, bias=False), nn.Linear(5, 3)).double()
    x = torch.randn(4, 4, dtype=torch.float64)
    weight = torch.tensor([0.0, 1.0, 1e-9, 0.0], dtype=torch.float64)  # of each sample's loss

    def run(rows: slice) -> list[Tensor]:
        clone = copy.deepcopy(network)
        with bang_gradients(clone, epsilon=0.815):
            (clone(x[rows]).square().sum(dim=1) * weight[rows]).sum().backward()
        return [p.grad for p in clone.parameters()]  # type: ignore[misc]

    everything, nonzero = run(slice(None)), run(slice(1, 3))
    for one, other in zip(everything, nonzero, strict=True):
        assert one.isfinite().all()
        assert torch.allclose(one, other, rtol=1e-12)


def test_a_gradient_norm_near_1e_9_in_float32() -> None:
    """s reaches 1e7 there; float32 must give what float64 gives."""
    torch.manual_seed(0)
    network = nn.Linear(4, 3)
    x, weight = torch.randn(2, 4), torch.tensor([1.0, 1e-9])

    def run(dtype: torch.dtype) -> Tensor:
        clone = copy.deepcopy(network).to(dtype)
        with bang_gradients(clone, epsilon=0.815):
            (clone(x.to(dtype)).square().sum(dim=1) * weight.to(dtype)).sum().backward()
        assert clone.weight.grad is not None
        return clone.weight.grad.double()

    assert torch.allclose(run(torch.float32), run(torch.float64), rtol=1e-5, atol=1e-7)


def test_factors_do_not_depend_on_the_loss_reduction() -> None:
    network, x, y = make("conv2d")
    mean, _ = bang_run(network, x, y)
    clone = copy.deepcopy(network)
    with bang_gradients(clone):
        functional.cross_entropy(clone(x), y, reduction="sum").backward()
    for name, parameter in clone.named_parameters():
        assert torch.allclose(parameter.grad / len(x), mean[name], rtol=1e-12, atol=1e-14)  # type: ignore[operator]


# -------------------------------------------------------------------------------------- choosing layers, attaching


def chain() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(1, 3, 3), nn.ReLU(), nn.Flatten(), nn.Linear(27, 6), nn.ReLU(), nn.Linear(6, 4))


X, Y = torch.rand(6, 1, 5, 5, generator=torch.Generator().manual_seed(1)), torch.tensor([0, 1, 2, 3, 0, 1])


def plain_gradients(network: nn.Module) -> dict[str, Tensor]:
    network = copy.deepcopy(network)
    functional.cross_entropy(network(X), Y).backward()
    return {name: p.grad for name, p in network.named_parameters() if p.grad is not None}


def test_layers_by_name_type_and_setting() -> None:
    network = chain()
    plain = plain_gradients(network)
    everything, _ = bang_run(network, X, Y)
    by_type, _ = bang_run(network, X, Y, layers=[nn.Linear])
    by_name, _ = bang_run(network, X, Y, layers={"0": {"beta": 0.5}, "5": {"beta": 0.0}})
    assert torch.equal(by_type["0.weight"], plain["0.weight"])
    assert torch.equal(by_type["3.weight"], everything["3.weight"])
    assert torch.equal(by_name["0.weight"], 0.5 * everything["0.weight"])
    assert torch.equal(by_name["3.weight"], plain["3.weight"])
    assert torch.equal(by_name["5.weight"], plain["5.weight"])  # beta 0: left alone
    adjusted = BANG(layers={"[35]": {"epsilon": 0.3}, nn.Linear: {}}).adjusted_layers(network)
    assert {name: setting.epsilon for name, setting in adjusted.items()} == {"3": 0.3, "5": 0.3}


def test_a_layer_that_is_used_twice_is_adjusted_in_each_use() -> None:
    torch.manual_seed(0)
    layer = nn.Linear(4, 4, bias=False).double()
    twice = nn.Sequential(layer, nn.Tanh(), layer, nn.Tanh())
    x = torch.randn(5, 4, dtype=torch.float64)
    found = {}
    for name, network in {"shared": twice, "apart": nn.Sequential(*[copy.deepcopy(m) for m in twice])}.items():
        with bang_gradients(network):
            network(x).square().sum().backward()
        found[name] = sum(p.grad for p in network.parameters())  # type: ignore[misc]
    assert torch.allclose(found["shared"], found["apart"], rtol=1e-12)  # type: ignore[arg-type]


def test_the_network_is_as_before_afterwards() -> None:
    network = chain()
    before = [dict(module.__dict__) for module in network.modules()]
    with bang_gradients(network, ratio=0.5):
        assert "forward" in network[0].__dict__
    assert [set(module.__dict__) for module in network.modules()] == [set(d) for d in before]
    assert not network._forward_hooks
    assert not network._forward_pre_hooks
    with pytest.raises(ZeroDivisionError), bang_gradients(network):
        raise ZeroDivisionError
    assert "forward" not in network[0].__dict__


def test_evaluation_mode_is_plain() -> None:
    network = chain().eval()
    found, _ = bang_run(network, X, Y, beta=0.3)
    for name, gradient in plain_gradients(network).items():
        assert torch.equal(found[name], gradient)


def test_two_versions_of_a_batch_in_one_forward_pass() -> None:
    """A loss over clean and adversarial images together announces the labels once."""
    network = chain().double()
    x = torch.cat([X, X + 0.1]).double()
    clone = copy.deepcopy(network)
    with bang_gradients(clone, ratio=0.5) as bang:
        bang.begin_step(Y)
        functional.cross_entropy(clone(x), Y.repeat(2)).backward()
    found, _ = bang_run(network, x, Y.repeat(2), ratio=0.5)
    for name, parameter in clone.named_parameters():
        assert torch.equal(parameter.grad, found[name])  # type: ignore[arg-type]


def test_bf16_autocast_keeps_norms_in_float32(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    network = chain()
    exact, _ = bang_run(network, X, Y, beta=0.4, ratio=0.5, epsilon=0.855)
    seen: list[torch.dtype] = []

    def watch(norms: Tensor, *arguments: object) -> Tensor:
        seen.append(norms.dtype)
        return bang_factors(norms, *arguments)  # type: ignore[arg-type]

    monkeypatch.setattr("art_robust_plugins.training.methods.bang.bang_factors", watch)
    clone = copy.deepcopy(network)
    with bang_gradients(clone, beta=0.4, ratio=0.5, epsilon=0.855) as bang:
        bang.begin_step(Y)
        with torch.autocast("cpu", torch.bfloat16):
            logits = clone(X)
            assert logits.dtype == torch.bfloat16
            loss = functional.cross_entropy(logits.float(), Y)
        loss.backward()
    assert seen == [torch.float32] * 3
    for name, parameter in clone.named_parameters():
        assert parameter.grad is not None
        assert parameter.grad.dtype == torch.float32
        difference = (parameter.grad - exact[name]).norm() / exact[name].norm()
        assert difference < 0.05, name


def test_large_factors_do_not_overflow_float16() -> None:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(1, 2, 3), nn.Flatten()).half()
    x = torch.rand(2, 1, 6, 6).half() + 1
    weight = torch.tensor([1.0, 1e-6])  # s of the second sample is about 8e4, more than float16 can hold
    with bang_gradients(network, epsilon=0.815):
        (network(x).float().sum(dim=1) * weight).sum().backward()
    assert network[0].weight.grad.isfinite().all()  # type: ignore[union-attr]


class Cosine(nn.Linear):
    """A linear layer that computes something else."""

    def forward(self, input: Tensor) -> Tensor:
        return functional.linear(functional.normalize(input), functional.normalize(self.weight))


def test_names_in_a_set_are_taken_in_one_order() -> None:
    """Processes that train together compare their settings, and each has another order of a set."""
    names = [f"layer{number}" for number in range(9)]
    assert list(BANG(layers=set(names)).layers or ()) == names


def test_layers_that_compute_in_their_own_way_are_refused_not_replaced() -> None:
    network = nn.Sequential(nn.Flatten(), nn.Linear(25, 6), Cosine(6, 4))
    with pytest.raises(ValueError, match="Cosine '2' "), bang_gradients(network):
        pass
    with bang_gradients(network, layers=["1"]):
        network(X).sum().backward()
    with (
        bang_gradients(network, layers=["1"]),
        pytest.raises(ValueError, match="Linear '1' "),
        bang_gradients(network, layers=["1"]),
    ):
        pass


def test_layers_are_called_as_torch_allows() -> None:
    """By keyword, with an output size, and with an in-place operation on the output of a layer over time steps."""
    transposed, linear = nn.ConvTranspose2d(2, 3, 3, stride=2), nn.Linear(4, 5)
    network = nn.ModuleList([transposed, linear])
    with bang_gradients(network):
        assert transposed(torch.rand(2, 2, 4, 4), output_size=[10, 10]).shape == (2, 3, 10, 10)
        torch.relu_(linear(input=torch.rand(2, 3, 4))).sum().backward()
    assert linear.weight.grad is not None


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"beta": -1.0}, "beta: got -1.0,"),
        ({"epsilon": math.nan}, "epsilon: got nan,"),
        ({"ratio": "half"}, "ratio: got 'half',"),
        ({"cap": 0.5}, "cap: got 0.5,"),
        ({"layers": {"0": {"gamma": 1.0}}}, "layers: got the setting 'gamma',"),
        ({"layers": ["3.*"]}, "layers: got '3.*',"),
        ({"layers": [nn.Conv3d]}, "layers: got Conv3d,"),
    ],
)
def test_refusals(settings: dict[str, object], sentence: str) -> None:
    with pytest.raises(ValueError) as error, bang_gradients(chain(), **settings):  # type: ignore[arg-type]  # noqa: PT011
        pass
    assert str(error.value).startswith(sentence)


def test_a_ratio_needs_labels_and_a_whole_forward_pass() -> None:
    network = chain()
    with bang_gradients(network, ratio=0.5) as bang:
        with pytest.raises(RuntimeError, match="no labels are known"):
            network(X)
        bang.begin_step(Y)
        with pytest.raises(RuntimeError, match="outside a forward pass"):
            network[0](X)
        with pytest.raises(RuntimeError, match="does not fit the 6 labels"):
            network(X[:4])


# ------------------------------------------------------------------------------------------------------ the trainer


def classifier(seed: int = 0) -> PyTorchClassifier:
    torch.manual_seed(seed)
    network = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Dropout(0.3), nn.Linear(36, 4))
    optimizer = partial(torch.optim.SGD, lr=0.1, momentum=0.9, weight_decay=1e-3)
    return make_classifier(network, optimizer=optimizer, input_shape=(1, 5, 5), nb_classes=4)


def weights_after(trainer: type, data: tuple[np.ndarray, np.ndarray], **settings: object) -> list[Tensor]:
    trained = classifier()
    trainer(trained, options=TrainingOptions(seed=3), **settings).fit(*data, nb_epochs=3, batch_size=16, verbose=False)
    return list(trained.model.state_dict().values())


@pytest.fixture(scope="module")
def data() -> tuple[np.ndarray, np.ndarray]:
    generator = np.random.default_rng(0)
    return generator.random((50, 1, 5, 5), dtype=np.float32), generator.integers(0, 4, 50)


def test_epsilon_0_beta_1_trains_like_no_bang_bit_for_bit(data: tuple[np.ndarray, np.ndarray]) -> None:
    plain = weights_after(StandardTrainer, data)
    for one, other in zip(plain, weights_after(BANGTrainer, data, epsilon=0, ratio=0.5), strict=True):
        assert torch.equal(one, other)
    assert not torch.equal(plain[0], weights_after(BANGTrainer, data)[0])


def test_weight_decay_is_not_multiplied_by_beta() -> None:
    """With gradients of zero only weight decay moves the weights, whatever beta is."""
    moved = []
    for beta in (1.0, 1e-6):
        trained = classifier()
        start = trained.model[0].weight.detach().clone()

        class Constant(BANGTrainer):
            def training_loss(self, x: Tensor, y: Tensor) -> Tensor:
                return 0 * super().training_loss(x, y)

        Constant(trained, beta=beta, options=TrainingOptions(seed=0)).fit(X, Y, nb_epochs=1, verbose=False)
        moved.append(trained.model[0].weight.detach() - start)
    assert moved[0].abs().max() > 0
    assert torch.equal(moved[0], moved[1])


@settings(max_examples=5)
@given(st.integers(0, 10**6))
def test_any_loss_can_run_inside(seed: int) -> None:
    torch.manual_seed(seed)
    network = chain().double()
    with bang_gradients(network, ratio=0.5) as bang:
        bang.begin_step(Y)
        clean, noisy = network(X.double()), network(X.double() + 0.1)
        loss = functional.cross_entropy(clean, Y) + functional.kl_div(
            noisy.log_softmax(1), clean.softmax(1), reduction="batchmean"
        )
        loss.backward()
    # The last layer's gradient by hand: each forward pass is scaled by itself, and the two are added.
    features = nn.Sequential(*list(network)[:-1])
    expected = torch.zeros_like(network[-1].weight)
    inputs = [X.double(), X.double() + 0.1]
    hidden = [features(x).detach() for x in inputs]
    outputs = [network[-1](h).detach().requires_grad_() for h in hidden]
    loss = functional.cross_entropy(outputs[0], Y) + functional.kl_div(
        outputs[1].log_softmax(1), outputs[0].softmax(1), reduction="batchmean"
    )
    for h, output, gradient in zip(hidden, outputs, torch.autograd.grad(loss, outputs), strict=True):
        epsilon = torch.where(output.argmax(dim=1) == Y, 0.815, 0.815 * 0.5).double()
        expected += (bang_factors(gradient.norm(dim=1), epsilon)[:, None] * gradient).t() @ h
    assert torch.allclose(network[-1].weight.grad, expected, atol=1e-7)
