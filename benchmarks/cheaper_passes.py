"""Cheaper passes for AutoAttack: batch norm folded into the layer before it, ReLU in place, the network compiled.

    python benchmarks/cheaper_passes.py [--seconds 6] [--networks wide-resnet-10-1 ...]
    python benchmarks/cheaper_passes.py --networks --evaluations wide-resnet-10-1 cnn-6 --eps 0.03 --cifar DIR

Each network is in evaluation mode with frozen weights, and its images are in channels_last, as in an evaluation. It
runs beside copies of itself:

    folded             each batch norm that alone reads the output of a convolution is folded into this convolution; a
                       symbolic trace of the forward (torch.fx) shows which
    multiply-add       each batch norm is one multiply-add with numbers computed in advance
    both               folded where possible, the others as a multiply-add
    ReLU in place      the network as it is, but a ReLU overwrites an input that nothing else reads
    all                both, with ReLU in place
    compiled           the network as it is, by torch.compile for batches of all sizes; it is compiled before its times

They take turns in one process with one thread. Times are CPU times, and a ratio is the median over the rounds of a
copy's time by the network's own. Weights are random, batch norm's statistics those of random images. Passes are those
of the network alone. A whole evaluation is that of a network trained as in autoattack_speed.py, beside that of the copy
with all changes, at a radius that leaves about 30 % of the points; its verdicts are compared. What is not asked for is
kept in the record.
"""

from __future__ import annotations

import argparse
import copy
import statistics
import time
from collections.abc import Callable, Mapping
from typing import Any

import art
import torch
from art.estimators.classification import PyTorchClassifier
from autoattack_speed import CIFAR, evaluate, radius, train_as
from saving import RESULTS, save, table
from torch import Tensor, fx, nn

from art_robust_plugins.bridge import to_channels_last
from art_robust_plugins.data import load_data
from art_robust_plugins.files import read_json
from art_robust_plugins.memory import keep_freed_memory
from art_robust_plugins.models import create_model

SHAPE = (3, 32, 32)
# On a CPU, square has as many images of this shape in a pass.
BATCH = 42
# The fewest rounds of a row.
ROUNDS = 3
# A whole evaluation: its points, the share that its radius leaves, and how often it runs.
EVALUATED, SHARE, TURNS = 60, 0.3, 2

Pass = Callable[[Tensor], Tensor]


class MultiplyAdd(nn.Module):
    """Batch norm in evaluation mode: x * scale + shift."""

    def __init__(self, norm: nn.BatchNorm2d) -> None:
        super().__init__()
        scale, shift = read_affine(norm)
        self.register_buffer("scale", scale.float()[:, None, None])
        self.register_buffer("shift", shift.float()[:, None, None])

    def forward(self, x: Tensor) -> Tensor:
        return torch.addcmul(self.shift, x, self.scale)


def read_affine(norm: nn.BatchNorm2d) -> tuple[Tensor, Tensor]:
    """Batch norm's scale and shift [C] in evaluation mode, in float64."""
    assert norm.running_mean is not None
    assert norm.running_var is not None
    scale = norm.weight.detach().double() / (norm.running_var.double() + norm.eps).sqrt()
    return scale, norm.bias.detach().double() - norm.running_mean.double() * scale


def fold_norms(network: nn.Module) -> nn.Module:
    """A copy in which each batch norm is folded that alone reads the output of a convolution used once."""
    network = copy.deepcopy(network)
    modules = dict(network.named_modules())
    nodes = list(fx.symbolic_trace(network).graph.nodes)
    called = [node.target for node in nodes if node.op == "call_module"]
    for node in nodes:
        source = node.args[0] if node.op == "call_module" and node.args else None
        if not isinstance(source, fx.Node) or source.op != "call_module" or len(source.users) > 1:
            continue
        layer, norm = modules[str(source.target)], modules[str(node.target)]
        once = called.count(source.target) == called.count(node.target) == 1
        if once and isinstance(layer, nn.Conv2d) and isinstance(norm, nn.BatchNorm2d):
            scale, shift = read_affine(norm)
            bias = 0.0 if layer.bias is None else layer.bias.detach().double()
            weight = layer.weight.detach().double() * scale[:, None, None, None]
            layer.weight = nn.Parameter(weight.float(), requires_grad=False)
            layer.bias = nn.Parameter((bias * scale + shift).float(), requires_grad=False)
            network.set_submodule(str(node.target), nn.Identity())
    return network


def simplify_norms(network: nn.Module) -> nn.Module:
    """A copy in which each batch norm is one multiply-add."""
    network = copy.deepcopy(network)
    for name, norm in list(network.named_modules()):
        if isinstance(norm, nn.BatchNorm2d):
            network.set_submodule(name, MultiplyAdd(norm))
    return network


def activate_in_place(network: nn.Module) -> nn.Module:
    """The network's graph, in which a ReLU overwrites its input where nothing else reads this."""
    traced = fx.symbolic_trace(copy.deepcopy(network))
    modules = dict(traced.named_modules())
    for node in list(traced.graph.nodes):
        called = modules[str(node.target)] if node.op == "call_module" else node.target
        if isinstance(called, nn.Identity):
            node.replace_all_uses_with(node.args[0])
        elif (called is torch.relu or isinstance(called, nn.ReLU)) and len(node.args[0].users) == 1:
            with traced.graph.inserting_before(node):
                node.replace_all_uses_with(traced.graph.call_function(torch.relu_, (node.args[0],)))
        else:
            continue
        traced.graph.erase_node(node)
    traced.recompile()
    return traced


def make_plain_cnn() -> nn.Module:
    """Six convolutions, each before batch norm and ReLU: all of its batch norms can be folded."""
    layers: list[nn.Module] = []
    inputs = SHAPE[0]
    for outputs, stride in ((32, 1), (32, 2), (64, 1), (64, 2), (128, 1), (128, 2)):
        layers += [nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU()]
        inputs = outputs
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(inputs * 16, 10))


NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "wide-resnet-10-1": lambda: create_model("wide-resnet", SHAPE, 10, depth=10, widen_factor=1),
    "cnn-6": make_plain_cnn,
    "wide-resnet-16-4": lambda: create_model("wide-resnet", SHAPE, 10, depth=16, widen_factor=4),
    "preact-resnet18": lambda: create_model("preact-resnet18", SHAPE, 10),
}


def make_network(name: str) -> nn.Module:
    """A network with random weights and with batch norm's statistics of random images."""
    torch.manual_seed(0)
    network = NETWORKS[name]()
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = None  # the mean over all batches
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, 0.0, 0.2)
    with torch.no_grad():
        for _ in range(3):
            network.train()(torch.rand(BATCH, *SHAPE))
    return network.eval().requires_grad_(False)


def count_norms(network: nn.Module) -> int:
    return sum(isinstance(module, nn.BatchNorm2d) for module in network.modules())


def run_forward(network: Pass, x: Tensor) -> Tensor:
    with torch.no_grad():
        logits: Tensor = network(x)
    return logits


def run_both(network: Pass, x: Tensor) -> Tensor:
    """The input gradient of the cross-entropy for class 0."""
    x = x.clone().requires_grad_()
    logits = network(x)
    return torch.autograd.grad((logits.logsumexp(dim=1) - logits[:, 0]).sum(), x)[0]


def compare_times(networks: Mapping[str, Pass], run: Callable[[Pass], object], least: float) -> dict[str, Any]:
    """The first network's time and the others' ratios to it, over rounds that take ``least`` seconds together."""
    names = list(networks)
    taken: dict[str, list[float]] = {name: [] for name in names}
    for network in networks.values():
        run(network)
    began = time.process_time()
    turn = 0
    while turn < ROUNDS or time.process_time() - began < least:
        for name in [*names[turn % len(names) :], *names[: turn % len(names)]]:
            started = time.process_time()
            run(networks[name])
            taken[name].append(time.process_time() - started)
        turn += 1
    own = taken[names[0]]
    row: dict[str, Any] = {"rounds": turn, "ms": round(1e3 * statistics.median(own), 1)}
    for name in names[1:]:
        row[name] = round(statistics.median(one / other for one, other in zip(taken[name], own, strict=True)), 2)
    return row


def compile_network(own: nn.Module) -> Pass:
    """The network by torch.compile, compiled once for batches of all sizes."""
    compiled = torch.compile(own)

    def run(x: Tensor) -> Tensor:
        torch._dynamo.maybe_mark_dynamic(x, 0)
        logits: Tensor = compiled(x)
        return logits

    return run


def make_copies(own: nn.Module) -> dict[str, Pass]:
    """The network and the copies of it that are compared; all compute the same, but for rounding."""
    folded = fold_norms(own)
    networks: dict[str, Pass] = {
        "own": own,
        "folded": folded,
        "multiply-add": simplify_norms(own),
        "both": simplify_norms(folded),
    }
    networks |= {"ReLU in place": activate_in_place(own), "all": activate_in_place(networks["both"])}
    networks["compiled"] = compile_network(own)
    x = to_channels_last(torch.rand(BATCH, *SHAPE))
    with torch.no_grad():
        logits, *others = (network(x) for network in networks.values())
    for other in others:
        torch.testing.assert_close(other, logits, rtol=1e-4, atol=1e-4 * float(logits.abs().max()))
    return networks


def measure_passes(name: str, least: float) -> list[dict[str, Any]]:
    """The rows of a network's passes: forward, and forward and backward."""
    own = make_network(name)
    networks = make_copies(own)
    x = to_channels_last(torch.rand(BATCH, *SHAPE))
    norms = count_norms(own)
    row = {"network": name, "batch norms / folded": f"{norms} / {norms - count_norms(fold_norms(own))}"}
    work = {"forward": run_forward, "forward and backward": run_both}
    rows = []
    for kind, run in work.items():
        times = compare_times(networks, lambda network, run=run: run(network, x), least)  # type: ignore[misc]
        rows.append({**row, "work": kind, **times})
        print(rows[-1], flush=True)
    return rows


def measure_evaluation(name: str, data: Any, eps: float | None) -> dict[str, Any]:
    """The row of AutoAttack on a trained network and on its copy, in turns."""
    torch.manual_seed(0)
    own = train_as(CIFAR, NETWORKS[name](), data, "cpu")
    right = (own.predict(data.x_test).argmax(axis=1) == data.y_test).nonzero()[0][:EVALUATED]
    x, y = data.x_test[right], data.y_test[right]
    eps = radius(own, SHARE, x, y, CIFAR.halvings) if eps is None else eps
    network = own.model.eval().requires_grad_(False)
    changed = activate_in_place(simplify_norms(fold_norms(network)))
    copied = PyTorchClassifier(changed, nn.CrossEntropyLoss(), SHAPE, 10, clip_values=(0, 1), device_type="cpu")
    taken: dict[str, list[float]] = {"own": [], "all": []}
    reports = {}
    for turn in range(TURNS):
        for each, classifier in [("own", own), ("all", copied)][:: 1 - 2 * (turn % 2)]:
            started = time.process_time()
            reports[each] = evaluate(classifier, eps, x, y, attacks="standard")
            taken[each].append(time.process_time() - started)
    ratios = [one / other for one, other in zip(taken["all"], taken["own"], strict=True)]
    row = {
        "network": name,
        "points": len(x),
        "rounds": TURNS,
        "eps": round(eps, 4),
        "robust, own": f"{reports['own'].robust_accuracy:.1%}",
        "own, s": round(statistics.median(taken["own"]), 2),
        "all": round(statistics.median(ratios), 2),
        "verdicts that differ, all": int((reports["own"].robust != reports["all"].robust).sum()),
    }
    print(row, flush=True)
    return row


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=6.0, help="the CPU time of a row, at least")
    parser.add_argument("--networks", nargs="*", choices=list(NETWORKS), default=list(NETWORKS))
    parser.add_argument("--evaluations", nargs="*", choices=list(NETWORKS), default=[], help="evaluate these as well")
    parser.add_argument("--eps", type=float, help="the radius of evaluations, rather than one that is searched for")
    parser.add_argument("--cifar", help="folder with cifar-10-batches-py, for evaluations")
    args = parser.parse_args()
    if not keep_freed_memory():
        raise SystemExit("glibc: got other settings or another library, expected glibc with its defaults.")
    torch.set_num_threads(1)
    time.perf_counter = time.process_time
    asked = {"passes": args.networks, "AutoAttack": args.evaluations}
    path = RESULTS / "cheaper_passes.json"
    known = read_json(path)["results"] if path.exists() else {}
    results: dict[str, list[dict[str, Any]]] = {
        kind: [row for row in known.get(kind, []) if row["network"] not in names] for kind, names in asked.items()
    }
    for name in args.networks:
        results["passes"] += measure_passes(name, args.seconds)
        print(save("cheaper_passes", results, batch=BATCH))
    if args.evaluations:
        art.config.set_data_path(args.cifar)
        data = load_data("cifar10")
    for name in args.evaluations:
        results["AutoAttack"].append(measure_evaluation(name, data, args.eps))
        print(save("cheaper_passes", results, batch=BATCH))
    for rows in filter(None, results.values()):
        print(f"{table(rows)}\n")


if __name__ == "__main__":
    main()
