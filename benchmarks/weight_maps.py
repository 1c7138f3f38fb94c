"""What do weight maps contribute under noise and under attack, beyond their kernels?

    python benchmarks/weight_maps.py digits [--workers 2] [--quick]
    python benchmarks/weight_maps.py mnist --data DIR [--workers 2] [--quick]

The claim (Amer, Maul, arXiv 1905.00568) is robustness to noise and attacks through an adaptive amplification of
activation variance. So the same network is trained plain, with learned maps of each kernel, and with the kernels alone
(maps that stay at 1), to tell the effect of the maps from that of the kernels. Every network is measured on all test
images clean and under three kinds of noise at five strengths, and on the first 100 under FGSM, PGD-20 and standard
AutoAttack at three eps (Linf). Before and after each map, two quantities are measured over the test images: the
variance of the activations, and the ratio of it that gaussian noise adds.

All networks are trained with three seeds. This is no recipe because of maps that stay at 1 and measurements at the
maps. DIR holds mnist.npz as ART's loader keeps it. Work in progress is kept under runs/; the same command continues it.
"""

from __future__ import annotations

import json
import statistics
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import comparison
import torch
from art.estimators.classification import PyTorchClassifier
from comparison import MNIST_NETWORK, format_percent
from saving import save, table
from torch import Tensor, nn

from art_robust_plugins import (
    Evaluator,
    RobustTrainer,
    StandardTrainer,
    ThreatModel,
    TrainingOptions,
    insert_weight_maps,
    weight_maps,
)
from art_robust_plugins.data import Dataset, load_data
from art_robust_plugins.models import create_model

ROWS: dict[str, dict[str, Any]] = {
    "plain": {},
    "blur alone": {"kernel": "smoothing", "learned": False},
    "unsharp alone": {"kernel": "unsharp", "learned": False},
    "map alone": {"kernel": "identity", "learned": True},
    "map, smoothing": {"kernel": "smoothing", "learned": True},
    "map, unsharp": {"kernel": "unsharp", "learned": True},
}
NOISE = 0.2
"""Standard deviation of the gaussian noise whose share of the variance is measured."""
LARGEST = {"gaussian": "gaussian-0.3", "uniform": "uniform-0.4", "salt and pepper": "salt-and-pepper-0.2"}


@dataclass(frozen=True, kw_only=True)
class Setup(comparison.Setup):
    """The settings that all rows of a table share; all test images are classified clean and under noise."""

    train: int  # images
    epochs: int
    batch_size: int
    eps: tuple[float, ...] = (0.05, 0.1, 0.15)

    def quick(self) -> Setup:
        return replace(self, train=200, epochs=1, eps=self.eps[:1], points=8, seeds=(0,))


SETUPS = {
    "digits": Setup(data="digits", train=1437, epochs=30, batch_size=64),
    "mnist": Setup(data="mnist", network_arguments=MNIST_NETWORK, train=20_000, epochs=5, batch_size=100),
}


def train_network(setup: Setup, row: str, seed: int, data: Dataset, folder: Path) -> PyTorchClassifier:
    """Train the network of one row, or load it."""

    def build() -> PyTorchClassifier:
        settings = ROWS[row]
        network = create_model(setup.network, data.input_shape, data.nb_classes, **setup.network_arguments)
        if settings:
            insert_weight_maps(network, data.input_shape, kernel=settings["kernel"], inplace=True)
            for layer in weight_maps(network).values():
                layer.requires_grad_(settings["learned"])
        trained = [parameter for parameter in network.parameters() if parameter.requires_grad]
        return comparison.build_classifier(network, data, torch.optim.Adam(trained, 1e-3))

    def train(classifier: PyTorchClassifier, options: TrainingOptions) -> RobustTrainer:
        trainer = StandardTrainer(classifier, options=options)
        x, y = data.x_train[: setup.train], data.y_train[: setup.train]
        return comparison.fit_with_cosine(trainer, x, y, batch_size=setup.batch_size, epochs=setup.epochs)

    return comparison.train_once(folder, build, train, seed=seed, row=row)


def record_activations(network: nn.Module, x: Tensor) -> dict[str, dict[str, Tensor]]:
    """The inputs and outputs of each map, by its name."""
    recorded: dict[str, dict[str, Tensor]] = {}
    handles = [
        layer.register_forward_hook(
            lambda _, given, output, name=name: recorded.update({name: {"before": given[0], "after": output}})
        )
        for name, layer in weight_maps(network).items()
    ]
    with torch.no_grad():
        network.eval()(x)
    for handle in handles:
        handle.remove()
    return recorded


def measure_variances(network: nn.Module, x: Tensor) -> dict[str, dict[str, float]]:
    """The variance of the activations over images (its mean over places), and the mean square that noise adds to it."""
    generator = torch.Generator().manual_seed(0)
    noisy = (x + NOISE * torch.randn(x.shape, generator=generator)).clamp(0, 1)
    clean, with_noise = record_activations(network, x), record_activations(network, noisy)
    measured: dict[str, dict[str, float]] = {}
    for name, sides in clean.items():
        measured[name] = {}
        for side, values in sides.items():
            variance = float(values.var(dim=0).mean())
            measured[name][f"variance {side}"] = variance
            measured[name][f"noise {side}"] = float((with_noise[name][side] - values).square().mean()) / variance
    return measured


def list_cases(setup: Setup) -> Iterator[tuple[str, int]]:
    """The networks: row, seed."""
    yield from ((row, seed) for seed in setup.seeds for row in ROWS)


def run_job(setup: Setup, work: Path, row: str, seed: int) -> dict[str, Any]:
    """Train one network and measure it."""
    folder = comparison.network_folder(work, row, seed)

    def measure() -> dict[str, Any]:
        data = load_data(setup.data)
        classifier = train_network(setup, row, seed, data, folder)
        noise = Evaluator(classifier, ThreatModel("Linf", setup.eps[0]), attacks="noise", verbose=False)
        noisy = noise.evaluate(data.x_test, data.y_test)
        attacked, flags = attack_network(setup, classifier, data, folder)
        return {
            "row": row,
            "seed": seed,
            "clean": noisy.clean_accuracy,
            "noise": {attack.name: attack.robust_accuracy for attack in noisy.attacks},
            "attacked": attacked,
            "flags": flags,
            "variance": measure_variances(classifier.model, torch.as_tensor(data.x_test[:1000])),
            "maps": {name: describe_map(layer.map.detach()) for name, layer in weight_maps(classifier.model).items()},
        }

    return comparison.measure_once(folder, measure)


def attack_network(
    setup: Setup, classifier: PyTorchClassifier, data: Dataset, folder: Path
) -> tuple[dict[str, dict[str, float]], list[str]]:
    """The accuracies under attack by eps, and the flags of all the reports."""
    accuracies: dict[str, dict[str, float]] = {}
    flags: set[str] = set()
    for eps in setup.eps:
        evaluator = Evaluator(
            classifier,
            ThreatModel("Linf", eps),
            attacks=["fgsm", "pgd-20", "standard"],
            state_dir=folder / f"state-{eps}",
            batch_size=100,
            verbose=False,
        )
        report = evaluator.evaluate(data.x_test[: setup.points], data.y_test[: setup.points])
        stages = {attack.name: attack.robust_accuracy for attack in report.attacks}
        accuracies[str(eps)] = {"FGSM": stages["fgsm"], "PGD-20": stages["pgd-20"], "AutoAttack": stages["square"]}
        flags.update(flag.name for flag in report.flags)
    return accuracies, sorted(flags)


def describe_map(values: Tensor) -> dict[str, Any]:
    """The range of a map [C, H, W], and its mean over the channels."""
    mean = [[round(value, 3) for value in row] for row in values.mean(dim=0).tolist()]
    return {"low": float(values.min()), "high": float(values.max()), "mean": mean}


def summary(networks: list[dict[str, Any]]) -> list[dict[str, str]]:
    """A row for each network: clean, under the strongest noise of each kind, and under attack."""
    rows = []
    for name in ROWS:
        runs = [run for run in networks if run["row"] == name]
        row = {"network": name, "seeds": str(len(runs)), "clean": format_percent([run["clean"] for run in runs])}
        for kind, attack in LARGEST.items():
            row[f"{kind} {attack.rpartition('-')[2]}"] = format_percent([run["noise"][attack] for run in runs])
        middle = list(runs[0]["attacked"])[len(runs[0]["attacked"]) // 2]
        shown = [(attack, middle) for attack in ("FGSM", "PGD-20")] + [
            ("AutoAttack", eps) for eps in runs[0]["attacked"]
        ]
        for attack, eps in shown:
            row[f"{attack} {eps}"] = format_percent([run["attacked"][eps][attack] for run in runs])
        rows.append(row)
    return rows


def variance_summary(networks: list[dict[str, Any]]) -> list[dict[str, str]]:
    """A row for each network with maps and each map: what it does to variance and noise, the mean over seeds."""
    rows = []
    for name in ROWS:
        runs = [run for run in networks if run["row"] == name]
        for layer in runs[0]["variance"]:
            mean = {
                key: statistics.mean(run["variance"][layer][key] for run in runs) for key in runs[0]["variance"][layer]
            }
            ratios = [
                run["variance"][layer]["variance after"] / run["variance"][layer]["variance before"] for run in runs
            ]
            rows.append(
                {
                    "network": name,
                    "map after": f"`{layer}`",
                    "weights": "{:.2f} to {:.2f}".format(
                        min(run["maps"][layer]["low"] for run in runs), max(run["maps"][layer]["high"] for run in runs)
                    ),
                    "variance after / before": f"{statistics.mean(ratios):.2f}",
                    "noise / variance before": f"{mean['noise before']:.3f}",
                    "and after": f"{mean['noise after']:.3f}",
                }
            )
    return rows


def draw_figure(results: dict[str, list[dict[str, Any]]]) -> Any:
    """Accuracy against noise, and the maps that were learned: a row of axes for each data set."""
    from matplotlib.figure import Figure

    drawn = Figure(figsize=(15, 4.4 * len(results)), layout="constrained")
    axes = drawn.subplots(len(results), 5, squeeze=False, width_ratios=[3, 3, 3, 2, 2])
    colours = dict(zip(ROWS, ("#222222", "#7aa6c2", "#d9a066", "#5a9e6f", "#1f5f8b", "#b3541e"), strict=True))
    for line, (data, networks) in zip(axes, results.items(), strict=True):
        for axis, kind in zip(line, ("gaussian", "uniform", "salt-and-pepper"), strict=False):
            names = [name for name in networks[0]["noise"] if name.startswith(f"{kind}-")]
            strengths = [0.0, *(float(name.rpartition("-")[2]) for name in names)]
            for row, colour in colours.items():
                runs = [
                    [run["clean"], *(run["noise"][name] for name in names)] for run in networks if run["row"] == row
                ]
                means = [100 * statistics.mean(values) for values in zip(*runs, strict=True)]
                style = "--" if row.endswith("alone") and row != "map alone" else "-"
                axis.plot(strengths, means, style, color=colour, marker="o", markersize=3, label=row)
                low, high = ([100 * end(each) for each in zip(*runs, strict=True)] for end in (min, max))
                axis.fill_between(strengths, low, high, color=colour, alpha=0.12, linewidth=0)
            axis.set(title=f"{data}: {kind.replace('-', ' ')} noise", xlabel="strength", ylabel="accuracy, %")
            axis.grid(alpha=0.3)
        line[0].legend(fontsize=8, loc="lower left")
        for axis, row in zip(line[3:], ("map, smoothing", "map, unsharp"), strict=True):
            run = next(run for run in networks if run["row"] == row and run["seed"] == 0)
            first = next(iter(run["maps"].values()))["mean"]
            shown = axis.imshow(first, cmap="viridis")
            axis.set(title=f"{data}: first map, {run['row'].split()[-1]}\n(mean of channels)", xticks=[], yticks=[])
            axis.title.set_size(10)
            drawn.colorbar(shown, ax=axis, shrink=0.7)
    return drawn


def drop_hidden_maps(networks: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The networks without the maps that no figure shows."""
    kept = json.loads(json.dumps(networks))
    for run in kept:
        for index, values in enumerate(run["maps"].values()):
            if index > 0 or run["seed"] > 0:
                del values["mean"]
    return kept


def main() -> None:
    name, setup, networks, quick = comparison.run_setup(__doc__, "weight_map", SETUPS, run_job, list_cases)
    print(table(summary(networks)))
    print(table(variance_summary(networks)))
    if not quick:
        print(save(name, drop_hidden_maps(networks), setup=asdict(setup), worker_threads=1))


if __name__ == "__main__":
    main()
