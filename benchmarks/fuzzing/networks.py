"""Networks: certificates of random small networks against attacks on them, and their constants against gradients.

From each certified point an attack looks for the nearest input of another class (steps to linearised boundaries,
random directions, then bisection); one within the radius breaks the certificate. No gradient of a difference of two
logits, and no difference quotient, may exceed the network's constant. A network with an operation that has no rule must
be refused in a sentence; one that is certified instead is held to the same checks. In some cases the network changes
after the first certificate, in ways that training, editing or pruning would change it, and is certified and attacked
again.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from art.estimators.classification import PyTorchClassifier
from torch import Tensor, nn
from torch.nn import functional

from art_robust_plugins import PyTorchLipschitzCertifier, insert_weight_maps
from art_robust_plugins.models import MinMax

from .attacks import CLASSES, attack
from .cases import Outcome, refusal
from .norms import Joined, Step
from .weights import fill

_POINTS = 6


class Networks:
    """Random networks and their certificates; see the module."""

    def check(self, seed: int) -> Outcome:
        rng = random.Random(seed)
        torch.manual_seed(seed)
        odd = rng.choice(list(ODD)) if rng.random() < 0.35 else None
        network, shape = random_network(rng, odd)
        kind = f"with {odd}" if odd else "supported"
        mean_std = (round(rng.uniform(-1, 1), 2), rng.choice([0.25, 2.0])) if rng.random() < 0.3 else (0.0, 1.0)
        changes = odd is None and rng.random() < 0.35
        case = f"{network} on {shape}, preprocessing {mean_std}".replace("\n", " ")
        x = torch.rand(_POINTS, *shape) * rng.choice([1.0, 1.0, 5.0])
        try:
            classifier = PyTorchClassifier(
                network, nn.CrossEntropyLoss(), shape, CLASSES, preprocessing=mean_std, device_type="cpu"
            )
            certifier = PyTorchLipschitzCertifier.from_classifier(classifier)
            problem, gap = attack(certifier, network, mean_std, x)
            if problem is None and changes:
                change = change_network(network, rng)
                kind, case = "changed after a certificate", f"{change}: {case}"
                problem, gap = attack(certifier, network, mean_std, x)
        except Exception as error:
            outcome = refusal(kind, error)
            if kind == "supported" and outcome.verdict == "refused":
                # These networks have nothing that has no rule.
                return Outcome("broken", kind, f"{error} ({case})"[:2000])
            return outcome
        if problem is not None:
            return Outcome("broken", kind, f"{problem}: {case}"[:2000])
        return Outcome("held", kind, gap=gap)


# The networks

ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {
    "relu": nn.ReLU,
    "relu6": nn.ReLU6,
    "leaky relu": lambda: nn.LeakyReLU(1.5),
    "tanh": nn.Tanh,
    "sigmoid": nn.Sigmoid,
    "elu": lambda: nn.ELU(1.7),
    "celu": lambda: nn.CELU(0.7),
    "selu": nn.SELU,
    "gelu": nn.GELU,
    "gelu by tanh": lambda: nn.GELU(approximate="tanh"),
    "silu": nn.SiLU,
    "mish": nn.Mish,
    "hardswish": nn.Hardswish,
    "hardsigmoid": nn.Hardsigmoid,
    "hardtanh": lambda: nn.Hardtanh(-0.3, 2.0),
    "softplus": lambda: nn.Softplus(2.0),
    "log sigmoid": nn.LogSigmoid,
    "prelu": lambda: nn.PReLU(init=-1.3),
    "minmax": lambda: nn.Sequential(Step(lambda x: torch.cat([x, x.flip(1)], dim=1), "doubled"), MinMax()),
    "sort": lambda: Step(lambda x: x.sort(dim=1).values, "sort"),
    "abs": lambda: Step(torch.abs, "abs"),
    "sin": lambda: Step(torch.sin, "sin"),
    "crelu": lambda: Step(lambda x: torch.cat([x.relu(), (-x).relu()], dim=1), "crelu"),
    "clamp": lambda: Step(lambda x: x.clamp(-1, 0.5), "clamp"),
    "maximum": lambda: Step(lambda x: torch.maximum(x, 0.5 * x.roll(1, dims=1)), "maximum"),
    "functional": lambda: Step(lambda x: functional.leaky_relu(x, 0.2) - 0.5 * functional.relu(-x), "functional"),
}
"""Activations that have rules; the number of channels may double."""


class _Attention(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        tokens = x.flatten(2) if x.dim() > 2 else x[:, None]
        return (torch.softmax(tokens @ tokens.transpose(1, 2), dim=2) @ tokens).view(x.shape)


class _Hidden(nn.Module):
    """Computes something else while it is compiled or exported."""

    def forward(self, x: Tensor) -> Tensor:
        return 0.01 * x if torch.compiler.is_compiling() else 3 * x


class _Branch(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x if float(x.sum()) > 0 else -2 * x


class _Squeeze(nn.Module):
    """A gate, as in squeeze-and-excitation."""

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.sigmoid(x.flatten(2).mean(dim=2) if x.dim() > 2 else x).view(
            *x.shape[:2], *[1] * (x.dim() - 2)
        )


class _Replaced(nn.Module):
    """Writes into its own copy of the input."""

    def forward(self, x: Tensor) -> Tensor:
        x = x.clone()
        x[:, 0] = x[:, 0] * x[:, 0]
        return x


ODD: dict[str, Callable[[], nn.Module]] = {
    "softmax": lambda: nn.Softmax(dim=1),
    "log softmax": lambda: nn.LogSoftmax(dim=1),
    "attention": _Attention,
    "a hidden branch": _Hidden,
    "a branch on data": _Branch,
    "a gate": _Squeeze,
    "a square in place": _Replaced,
    "square": lambda: Step(torch.square, "square"),
    "product": lambda: Step(lambda x: x * x.roll(1, dims=1), "product"),
    "division": lambda: Step(lambda x: x / (x.abs() + 0.01), "division"),
    "exp": lambda: Step(lambda x: x.clamp_max(5).exp(), "exp"),
    "log": lambda: Step(lambda x: (x.abs() + 1e-3).log(), "log"),
    "root": lambda: Step(lambda x: (x.abs() + 1e-6).sqrt(), "root"),
    "power": lambda: Step(lambda x: x**3, "power"),
    "vector norm": lambda: Step(lambda x: x + torch.linalg.vector_norm(x, dim=1, keepdim=True), "vector norm"),
    "normalised": lambda: Step(lambda x: functional.normalize(x, dim=1), "normalised"),
    "layer norm": lambda: Step(lambda x: functional.layer_norm(x, x.shape[1:]), "layer norm"),
    "group norm": lambda: Step(lambda x: functional.group_norm(x, 1, eps=1e-3), "group norm"),
    "instance norm": lambda: Step(lambda x: functional.layer_norm(x, x.shape[-1:]), "instance norm"),
    "batch statistics": lambda: Step(lambda x: x - x.mean(dim=0, keepdim=True), "batch statistics"),
    "round": lambda: Step(torch.round, "round"),
    "sign": lambda: Step(lambda x: x + x.sign(), "sign"),
    "floor": lambda: Step(torch.floor, "floor"),
    "modulo": lambda: Step(lambda x: x.remainder(0.3), "modulo"),
    "condition": lambda: Step(lambda x: torch.where(x > 0.2, x, -x), "condition"),
    "hard shrink": lambda: nn.Hardshrink(0.4),
    "soft shrink": lambda: nn.Softshrink(0.4),
    "threshold": lambda: nn.Threshold(0.2, -1.0),
    "tanhshrink": nn.Tanhshrink,
    "softsign": nn.Softsign,
    "softmin": lambda: nn.Softmin(dim=1),
    "rrelu": nn.RReLU,
    "cumsum": lambda: Step(lambda x: x.cumsum(dim=1), "cumsum"),
    "cumprod": lambda: Step(lambda x: x.cumprod(dim=1), "cumprod"),
    "prod": lambda: Step(lambda x: x + x.prod(dim=1, keepdim=True), "prod"),
    "std": lambda: Step(lambda x: x + x.flatten(1).std(dim=1).view(-1, *[1] * (x.dim() - 1)), "std"),
    "glu": lambda: Step(lambda x: functional.glu(torch.cat([x, x.flip(1)], dim=1), dim=1), "glu"),
    "argmax": lambda: Step(lambda x: x + x.argmax(dim=1, keepdim=True), "argmax"),
    "own indices": lambda: Step(lambda x: x.gather(1, x.argsort(dim=1)), "own indices"),
    "noise": lambda: Step(lambda x: x + 0.1 * torch.randn_like(x), "noise"),
    "dropout that stays": lambda: Step(lambda x: functional.dropout(x, 0.3, training=True), "dropout"),
    "half precision": lambda: Step(lambda x: x.half().to(x.dtype), "half precision"),
    "float32": lambda: Step(lambda x: x.float().to(x.dtype), "float32"),
    "integers": lambda: Step(lambda x: x.long().to(x.dtype), "integers"),
    "cancellation": lambda: Step(lambda x: (x + 1e13) - 1e13, "cancellation"),
    "lp pool": lambda: Step(lambda x: x + functional.lp_pool1d(x.flatten(1), 2.0, 1).view(x.shape), "lp pool"),
    "complex": lambda: Step(lambda x: torch.fft.fft(x, dim=1).abs(), "complex"),
    "einsum": lambda: Step(lambda x: torch.einsum("n...,n...->n...", x, x), "einsum"),
    "numpy": lambda: Step(lambda x: torch.from_numpy(np.tanh(x.detach().numpy())), "numpy"),
    "swapped batch": lambda: Step(lambda x: x.flip(0), "swapped batch"),
    "logsumexp": lambda: Step(lambda x: x + x.logsumexp(dim=1, keepdim=True), "logsumexp"),
    "atan2": lambda: Step(lambda x: torch.atan2(x, x.roll(1, dims=1)), "atan2"),
    "mask": lambda: Step(lambda x: x.masked_fill(x < 0.3, 0.7), "mask"),
    "hypot": lambda: Step(lambda x: torch.hypot(x, x.roll(1, dims=1)), "hypot"),
}
"""Operations that have no bound, jump, or have a bound that is proven only where there is a rule."""


def random_network(rng: random.Random, odd: str | None) -> tuple[nn.Module, tuple[int, ...]]:
    """A network with three outputs in evaluation mode, and the shape of its inputs."""
    images = rng.random() < 0.6
    layers: list[nn.Module] = []
    width = rng.randint(1, 2) if images else rng.randint(2, 6)
    shape = (width, 4, 4) if images else (width,)
    depth = rng.randint(1, 3)
    place = rng.randrange(depth) if odd else -1
    for number in range(depth):
        block, width = _image_block(rng, width) if images else _vector_block(rng, width)
        layers.append(block)
        if number == place and odd:
            layers.append(ODD[odd]())
    network = nn.Sequential(*layers)
    if images and rng.random() < 0.7:
        network.append(rng.choice([lambda: nn.AdaptiveAvgPool2d(1), lambda: nn.MaxPool2d(2, 1)])())
    network.append(nn.Flatten())
    with torch.no_grad():
        features = network.eval()(torch.zeros(2, *shape)).shape[1]
    network.append(nn.Linear(features, CLASSES))
    with torch.no_grad():
        finite = False
        while not finite:  # weight normalisation divides by the norm of what may be 0
            fill(network, rng, (1.0, 1.0, 1.0, 0.1, 3.0))
            finite = bool(network(torch.rand(2, *shape)).isfinite().all())
    if odd is None and images and rng.random() < 0.2 and any(isinstance(m, nn.Conv2d) for m in network.modules()):
        first = next(name for name, m in network.named_modules() if isinstance(m, nn.Conv2d))
        network = insert_weight_maps(network, shape, where=first, kernel=rng.choice(["smoothing", "unsharp"]))
    return network.eval(), shape


def _image_block(rng: random.Random, width: int) -> tuple[nn.Module, int]:
    wider = rng.randint(1, 4)
    activation = rng.choice(list(ACTIVATIONS.values()))
    mode = rng.choice(["zeros", "zeros", "reflect", "circular", "replicate"])
    conv = nn.Conv2d(width, wider, 3, padding=1, padding_mode=mode, bias=rng.random() < 0.7)
    form = rng.choice(["plain", "residual", "concat", "norm", "pool", "sum", "weight norm"])
    if form == "plain":
        block: nn.Module = nn.Sequential(conv, activation())
    elif form == "norm":
        block = nn.Sequential(conv, nn.BatchNorm2d(wider), activation(), nn.Dropout(0.3))
    elif form == "residual":
        branch = nn.Sequential(activation(), nn.LazyConv2d(width, 1), nn.BatchNorm2d(width))
        block = Joined(nn.Identity(), branch, how="sum")
    elif form == "concat":
        block = Joined(nn.Sequential(conv, activation()), nn.Identity(), activation(), how="concat")
    elif form == "sum":
        block = Joined(conv, nn.Conv2d(width, wider, 1), how="sum")
    elif form == "weight norm":
        block = nn.Sequential(nn.utils.parametrizations.weight_norm(conv), activation())
    else:
        pools = [nn.MaxPool2d(3, 1, 1), nn.AvgPool2d(3, 1, 1), nn.AvgPool2d(2, 1, 1, count_include_pad=False)]
        block = nn.Sequential(conv, activation(), rng.choice(pools))
    with torch.no_grad():
        return block, int(block.eval()(torch.zeros(2, width, 4, 4)).shape[1])


def _vector_block(rng: random.Random, width: int) -> tuple[nn.Module, int]:
    wider = rng.randint(2, 8)
    activation = rng.choice(list(ACTIVATIONS.values()))
    form = rng.choice(["plain", "residual", "concat", "norm", "scaled"])
    linear = nn.Linear(width, wider, bias=rng.random() < 0.7)
    if form == "plain":
        block: nn.Module = nn.Sequential(linear, activation())
    elif form == "norm":
        block = nn.Sequential(linear, nn.BatchNorm1d(wider), activation())
    elif form == "residual":
        block = Joined(nn.Identity(), nn.Sequential(activation(), nn.LazyLinear(width)), how="sum")
    elif form == "concat":
        block = Joined(nn.Sequential(linear, activation()), nn.Identity(), how="concat")
    else:
        factor = rng.uniform(-2, 2)
        block = nn.Sequential(linear, Step(lambda x: factor * x + 1, f"{factor:.3f} x + 1"), activation())
    with torch.no_grad():
        return block, int(block.eval()(torch.zeros(2, width)).shape[1])


def change_network(network: nn.Module, rng: random.Random) -> str:
    """Change a network in place, as its user might after a certificate; what was changed."""
    steps = [module for module in network.modules() if isinstance(module, Step)]
    parents = [
        (parent, name)
        for parent in network.modules()
        for name, child in parent.named_children()
        if isinstance(child, nn.ReLU | nn.Tanh | nn.Sigmoid | nn.ELU | nn.GELU | nn.SiLU | nn.Identity)
    ]
    weights = [p for p in network.parameters() if p.numel()]
    changes: dict[str, Callable[[], Any]] = {
        "weights in place": lambda: rng.choice(weights).data.mul_(-7.0),
        "a hook": lambda: next(network.children()).register_forward_hook(lambda module, x, y: 5 * y),
        "a forward of its own": lambda: _wrap_forward(next(network.children())),
    }
    if steps:
        step = rng.choice(steps)
        before = step.function
        changes["a function in an attribute"] = lambda: setattr(step, "function", lambda x: 6 * before(x))
    if parents:
        parent, name = rng.choice(parents)
        changes["a layer for another"] = lambda: setattr(parent, name, Step(lambda x: 4 * x, "times 4"))
    change = rng.choice(list(changes))
    changes[change]()
    return change


def _wrap_forward(module: nn.Module) -> None:
    before: Callable[..., Any] = module.forward
    module.forward = lambda *inputs: 4 * before(*inputs)  # type: ignore[method-assign]
