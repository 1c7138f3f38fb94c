"""The comparison of weight maps that weight_map_digits.py and weight_map_mnist.py run, each with its set-up.

The claim (Amer, Maul, arXiv 1905.00568) is robustness to noise and attacks through an adaptive amplification of
activation variance. So the same network is trained plain, with learned maps of each kernel, and with the kernels alone
(maps that stay at 1): what these give is not the maps' doing. Each is judged clean, under three kinds of noise at five
strengths, under FGSM and PGD-20, and under standard AutoAttack. Before and after each map two things are measured over
the test images: the variance of the activations, and how much of it gaussian noise makes of its own.
"""

from __future__ import annotations

import argparse
import json
import statistics
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import art.config
import torch
from art.estimators.classification import PyTorchClassifier
from record import save, table
from torch import Tensor, nn

from art_robust_plugins import Evaluator, StandardTrainer, ThreatModel, TrainingOptions
from art_robust_plugins.checkpoint import load_classifier, save_classifier
from art_robust_plugins.data import Dataset, load_data
from art_robust_plugins.files import read_json, write_json
from art_robust_plugins.models import create_model
from art_robust_plugins.weight_map import insert_weight_maps
from art_robust_plugins.weight_map.insert import weight_maps

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


@dataclass(frozen=True)
class Setup:
    """What all rows of one table share."""

    data: str
    network: str
    train: int
    epochs: int
    batch_size: int
    eps: tuple[float, ...]
    points: int  # test images that are attacked; all are classified clean and under noise
    network_arguments: dict[str, Any] = field(default_factory=dict)
    seeds: tuple[int, ...] = (0, 1, 2)

    def quick(self) -> Setup:
        return replace(self, train=200, epochs=1, eps=self.eps[:1], points=8, seeds=(0,))


def trained(setup: Setup, row: str, seed: int, data: Dataset, folder: Path) -> PyTorchClassifier:
    if (folder / "classifier.json").exists():
        return load_classifier(folder)
    settings = ROWS[row]
    torch.manual_seed(seed)
    network = create_model(setup.network, data.input_shape, data.nb_classes, **setup.network_arguments)
    if settings:
        insert_weight_maps(network, data.input_shape, kernel=settings["kernel"], inplace=True)
        for layer in weight_maps(network).values():
            layer.requires_grad_(settings["learned"])
    optimizer = torch.optim.Adam([each for each in network.parameters() if each.requires_grad], 1e-3)
    classifier = PyTorchClassifier(
        network,
        nn.CrossEntropyLoss(),
        data.input_shape,
        data.nb_classes,
        optimizer=optimizer,
        clip_values=(0, 1),
        device_type="cpu",
    )
    steps = setup.epochs * -(-setup.train // setup.batch_size)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    options = TrainingOptions(seed=seed, scheduler_interval="step", checkpoint_dir=folder / "training", resume=True)
    trainer = StandardTrainer(classifier, options=options)
    x, y = data.x_train[: setup.train], data.y_train[: setup.train]
    trainer.fit(x, y, None, setup.batch_size, setup.epochs, scheduler, verbose=False)
    save_classifier(classifier, folder, extra={"row": row, "seed": seed, "history": trainer.history})
    return classifier


def activations(network: nn.Module, x: Tensor) -> dict[str, dict[str, Tensor]]:
    """What goes into each map, and what comes out."""
    kept: dict[str, dict[str, Tensor]] = {}
    handles = [
        layer.register_forward_hook(
            lambda _, given, output, name=name: kept.update({name: {"before": given[0], "after": output}})
        )
        for name, layer in weight_maps(network).items()
    ]
    with torch.no_grad():
        network.eval()(x)
    for handle in handles:
        handle.remove()
    return kept


def variances(network: nn.Module, x: Tensor) -> dict[str, dict[str, float]]:
    """Of the activations over images, the mean over places; and the mean square that noise adds, as a share of it."""
    generator = torch.Generator().manual_seed(0)
    noisy = (x + NOISE * torch.randn(x.shape, generator=generator)).clamp(0, 1)
    clean, changed = activations(network, x), activations(network, noisy)
    measured: dict[str, dict[str, float]] = {}
    for name, sides in clean.items():
        measured[name] = {}
        for side, values in sides.items():
            variance = float(values.var(dim=0).mean())
            measured[name][f"variance {side}"] = variance
            measured[name][f"noise {side}"] = float((changed[name][side] - values).square().mean()) / variance
    return measured


def job(setup: Setup, row: str, seed: int, data_dir: str, work: Path) -> dict[str, Any]:
    """Train one network and measure it; what is done already is taken up."""
    art.config.set_data_path(data_dir)
    folder = work / f"{row}-{seed}".replace(" ", "-").replace(",", "")
    result_file = folder / "result.json"
    if result_file.exists():
        done: dict[str, Any] = read_json(result_file)
        return done
    data = load_data(setup.data)
    classifier = trained(setup, row, seed, data, folder)
    noise = Evaluator(classifier, ThreatModel("Linf", setup.eps[0]), attacks="noise", verbose=False)
    noisy = noise.evaluate(data.x_test, data.y_test)
    attacked, flags = {}, set()
    for eps in setup.eps:
        names = ["fgsm", "pgd-20", "standard"]
        state = folder / f"state-{eps}"
        evaluator = Evaluator(
            classifier, ThreatModel("Linf", eps), attacks=names, state_dir=state, batch_size=100, verbose=False
        )
        report = evaluator.evaluate(data.x_test[: setup.points], data.y_test[: setup.points])
        stages = {attack.name: attack.robust_accuracy for attack in report.attacks}
        attacked[str(eps)] = {"FGSM": stages["fgsm"], "PGD-20": stages["pgd-20"], "AutoAttack": stages["square"]}
        flags.update(flag.name for flag in report.flags)
    layers = weight_maps(classifier.model)
    result = {
        "row": row,
        "seed": seed,
        "clean": noisy.clean_accuracy,
        "noise": {attack.name: attack.robust_accuracy for attack in noisy.attacks},
        "attacked": attacked,
        "flags": sorted(flags),
        "variance": variances(classifier.model, torch.as_tensor(data.x_test[:1000])),
        "maps": {
            name: {
                "low": float(m.min()),
                "high": float(m.max()),
                "mean": [[round(v, 3) for v in row] for row in m.mean(dim=0).tolist()],
            }
            for name, m in ((name, layer.map.detach()) for name, layer in layers.items())
        },
    }
    write_json(result_file, result)
    print(json.dumps({key: value for key, value in result.items() if key != "maps"}), flush=True)
    return result


def percent(values: list[float]) -> str:
    """The mean, with the lowest and the highest."""
    spread = f" ({100 * min(values):.1f} to {100 * max(values):.1f})" if len(values) > 1 else ""
    return f"{100 * statistics.mean(values):.1f}{spread}"


def summary(networks: list[dict[str, Any]]) -> list[dict[str, str]]:
    """A row for each network: clean, under the strongest noise of each kind, and under attack."""
    rows = []
    for name in ROWS:
        runs = [run for run in networks if run["row"] == name]
        row = {"network": name, "seeds": str(len(runs)), "clean": percent([run["clean"] for run in runs])}
        for kind, attack in LARGEST.items():
            row[f"{kind} {attack.rpartition('-')[2]}"] = percent([run["noise"][attack] for run in runs])
        middle = list(runs[0]["attacked"])[len(runs[0]["attacked"]) // 2]
        shown = [(attack, middle) for attack in ("FGSM", "PGD-20")] + [
            ("AutoAttack", eps) for eps in runs[0]["attacked"]
        ]
        for attack, eps in shown:
            row[f"{attack} {eps}"] = percent([run["attacked"][eps][attack] for run in runs])
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


def figure(results: dict[str, list[dict[str, Any]]]) -> Any:
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


def trimmed(networks: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Without the maps that no figure shows."""
    kept = json.loads(json.dumps(networks))
    for run in kept:
        for index, values in enumerate(run["maps"].values()):
            if index > 0 or run["seed"] > 0:
                del values["mean"]
    return kept


def run(name: str, setup: Setup, description: str | None) -> None:
    """The command line of a comparison."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    if setup.data == "mnist":
        parser.add_argument("--data", default=art.config.ART_DATA_PATH, help="folder with mnist.npz")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--quick", action="store_true", help="a minute, and not recorded")
    args = parser.parse_args()
    data_dir = getattr(args, "data", art.config.ART_DATA_PATH)
    setup = setup.quick() if args.quick else setup
    work = Path("runs") / name / ("quick" if args.quick else "full")
    cases = [(row, seed) for seed in setup.seeds for row in ROWS]
    with ProcessPoolExecutor(args.workers, initializer=torch.set_num_threads, initargs=(1,)) as pool:
        networks = [each.result() for each in [pool.submit(job, setup, *case, data_dir, work) for case in cases]]
    print(table(summary(networks)))
    print(table(variance_summary(networks)))
    if not args.quick:
        print(save(name, trimmed(networks), setup=asdict(setup), worker_threads=1))
