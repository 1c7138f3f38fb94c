"""What makes a network certify: rows that train for about a minute each, judged on held-out images.

    python benchmarks/certified.py [--data DIR] [--workers 2] [--quick]

Each row trains an MLP on the first 50,000 training images of MNIST with Lipschitz-margin training, for as many epochs
as take about a minute of one CPU thread, and certifies it on the other 10,000 by the proven bound. The test
images are not touched: what a recipe takes from here was chosen without them. One seed a row: differences below a point
are noise.

Some rows' weights are parametrized here, by torch's own parametrizations or by one that a user would write: trainer and
certifier need no word about them. DIR holds mnist.npz as ART's loader keeps it. Work in progress is kept under runs/;
the same command continues it.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import comparison
import numpy as np
import torch
from saving import save, table
from torch import Tensor, nn
from torch.nn.utils import parametrizations, parametrize

from art_robust_plugins import LipschitzMarginTrainer, TrainingOptions, certify
from art_robust_plugins.data import load_data
from art_robust_plugins.lipschitz import batch_variances
from art_robust_plugins.models import MinMax, orthogonal
from art_robust_plugins.models.orthogonal import Scaled

HELD_OUT = 10_000
"""The last training images: no row is trained on them."""

RADII = (0.5, 1.0, 1.58)


class AOL(nn.Module):
    """Rows of V rescaled so that no singular value exceeds 1 (Prach, Lampert, arXiv 2208.03160, ECCV 2022)."""

    def forward(self, v: Tensor) -> Tensor:
        wide = v.shape[0] < v.shape[1]
        a = v.t() if wide else v
        scaled = a * (a.t() @ a).abs().sum(dim=1).clamp_min(1e-12).rsqrt()
        return scaled.t() if wide else scaled


def normalise_spectrally(layer: nn.Linear) -> nn.Linear:
    """torch's division by a norm that one step of power iteration estimates."""
    return parametrizations.spectral_norm(layer)


def orthogonalise_by_torch(layer: nn.Linear) -> nn.Linear:
    """torch's own orthogonal parametrization, by Householder reflections."""
    return parametrizations.orthogonal(layer, orthogonal_map="householder")


def rescale(layer: nn.Linear) -> nn.Linear:
    """The layer with AOL."""
    parametrize.register_parametrization(layer, "weight", AOL())
    return layer


def leave_plain(layer: nn.Linear) -> nn.Linear:
    """The layer as it is: its norm is free, and trained through the bound."""
    return layer


class UnitRows(nn.Module):
    """Rows of length 1: the normalised last layer of EMMA and LiResNet."""

    def forward(self, v: Tensor) -> Tensor:
        return v / v.norm(dim=1, keepdim=True)


def normalise_rows(layer: nn.Linear) -> nn.Linear:
    """The layer with rows of length 1."""
    parametrize.register_parametrization(layer, "weight", UnitRows())
    return layer


WEIGHTS: dict[str, Callable[[nn.Linear], nn.Linear]] = {
    "orthogonal": orthogonal,
    "orthogonal by torch": orthogonalise_by_torch,
    "AOL": rescale,
    "power iteration": normalise_spectrally,
    "unit rows": normalise_rows,
    "plain": leave_plain,
}


class RaisingTrainer(LipschitzMarginTrainer):
    """Trains on the cross-entropy of logits f whose classes but the label are raised as `raised_loss` says."""

    def training_loss(self, x: Tensor, y: Tensor) -> Tensor:
        with parametrize.cached(), batch_variances(self.classifier.model) as variances:
            logits = self.logits(x)
            bound = self.graph.estimate(variances, cached=True)
        return self.raised_loss(logits, y, self.current_c * bound.pairwise[y])

    def raised_loss(self, logits: Tensor, y: Tensor, l: Tensor) -> Tensor:  # noqa: E741
        """The loss of logits f [N, C] with margins l [N, C], which are 0 at the label."""
        raise NotImplementedError


class OffsetTrainer(RaisingTrainer):
    """The cross-entropy of (f + l) / T, times T: every class but the label raised by the whole margin l."""

    temperature: float = 1.0

    def raised_loss(self, logits: Tensor, y: Tensor, l: Tensor) -> Tensor:  # noqa: E741
        return self.temperature * self.loss((logits + l) / self.temperature, y)


class SharpOffsetTrainer(OffsetTrainer):
    """The same with T = 1/2."""

    temperature = 0.5


class ClippedTrainer(RaisingTrainer):
    """EMMA as its authors run it (Hu et al., arXiv 2301.12549): each class's share of its margin is at least 0.01."""

    def raised_loss(self, logits: Tensor, y: Tensor, l: Tensor) -> Tensor:  # noqa: E741
        with torch.no_grad():
            gap = logits.gather(1, y[:, None]) - logits
            reached = torch.where(l > 0, gap / l, torch.ones_like(gap)).clamp(0.01, 1)
        return self.loss(logits + reached * l, y)


class LogRampTrainer(LipschitzMarginTrainer):
    """c grows in equal factors, as GloRo's (Leino, Wang, Fredrikson, arXiv 2102.08452); its start, c / 100, is ours."""

    @property
    def current_c(self) -> float:
        reached = min(1.0, self.epochs_done / self.c_warmup_epochs)
        return float(self.c * 100 ** (reached - 1))


@dataclass(frozen=True, kw_only=True)
class Row:
    """How one network is made and trained."""

    weights: str = "orthogonal"
    head: str = "orthogonal"
    activation: str = "minmax"
    width: int = 512
    depth: int = 3
    scale: float = 2.0
    c: float = 1.8
    lr: float = 5e-3
    batch_size: int = 256
    parameters: dict[str, Any] = field(default_factory=dict)
    trainer: type[LipschitzMarginTrainer] = LipschitzMarginTrainer


ROWS: dict[str, Row] = {
    "orthogonal weights and head, MinMax, c = 1.8": Row(),
    "the same, orthogonal by torch (Householder)": Row(weights="orthogonal by torch", head="orthogonal by torch"),
    "weights by AOL": Row(weights="AOL"),
    "weights over a norm by power iteration": Row(weights="power iteration"),
    "plain weights": Row(weights="plain", lr=1e-3),
    "plain head": Row(head="plain"),
    "ReLU": Row(activation="relu"),
    "c = 1.58": Row(c=1.58),
    "c = 2": Row(c=2.0),
    "a margin for each class (EMMA)": Row(parameters={"margin": "class"}),
    "c growing over 2 epochs": Row(parameters={"c_warmup_epochs": 2}),
    "c growing over 2 epochs, in equal factors": Row(trainer=LogRampTrainer, parameters={"c_warmup_epochs": 2}),
    "EMMA, clipped": Row(trainer=ClippedTrainer),
    "EMMA, clipped, head of unit rows, c growing to 3 x 1.58 over all epochs": Row(
        trainer=ClippedTrainer, head="unit rows", c=4.74, parameters={"c_warmup_epochs": 3}
    ),
    "offset cross-entropy": Row(trainer=OffsetTrainer),
    "offset cross-entropy, T = 1/2": Row(trainer=SharpOffsetTrainer),
    "width 256": Row(width=256),
    "width 1024": Row(width=1024),
    "depth 2": Row(depth=2),
    "depth 5": Row(depth=5),
    "scale 4": Row(scale=4.0),
    "learning rate 1e-2": Row(lr=1e-2),
    "batches of 512": Row(batch_size=512),
    "batches of 128": Row(batch_size=128),
}


@dataclass(frozen=True, kw_only=True)
class Setup:
    """The settings that all rows share."""

    data: str = "mnist"
    train: int = 50_000
    held_out: int = HELD_OUT
    seconds: float = 60.0

    def quick(self) -> Setup:
        return replace(self, data="digits", train=1137, held_out=300, seconds=1.0)


def build_network(row: Row, inputs: int) -> nn.Module:
    """The row's MLP, with a fixed factor before its last layer."""
    layers: list[nn.Module] = [nn.Flatten()]
    for features in [inputs, *[row.width] * (row.depth - 1)]:
        activation = MinMax() if row.activation == "minmax" else nn.ReLU()
        layers += [build_layer(features, row.width, row.weights), activation]
    return nn.Sequential(*layers, Scaled(row.scale), build_layer(row.width, 10, row.head))


def build_layer(inputs: int, outputs: int, weights: str) -> nn.Linear:
    """A linear layer that starts orthogonal, with weights of this kind."""
    layer = nn.Linear(inputs, outputs)
    nn.init.orthogonal_(layer.weight)
    nn.init.zeros_(layer.bias)
    return WEIGHTS[weights](layer)


def create_trainer(row: Row, setup: Setup, schedule: str) -> LipschitzMarginTrainer:
    """A trainer of a new network."""
    torch.manual_seed(0)
    data = load_data(setup.data)
    network = build_network(row, int(np.prod(data.input_shape)))
    optimizer = torch.optim.Adam(network.parameters(), row.lr)
    classifier = comparison.build_classifier(network, data, optimizer)
    options = TrainingOptions(seed=0, schedule=schedule)
    return row.trainer(classifier, c=row.c, options=options, **row.parameters)


def train(row: Row, setup: Setup, images: int, epochs: int, schedule: str) -> tuple[LipschitzMarginTrainer, float]:
    """A trained network's trainer, and the CPU seconds of `fit`."""
    trainer, data = create_trainer(row, setup, schedule), load_data(setup.data)
    started = time.process_time()
    trainer.fit(
        data.x_train[:images], data.y_train[:images], batch_size=row.batch_size, nb_epochs=epochs, verbose=False
    )
    return trainer, time.process_time() - started


def run_job(setup: Setup, work: Path, name: str) -> dict[str, Any]:
    """Train one network for about the seconds that all have, and certify it."""
    row = ROWS[name]

    def measure() -> dict[str, Any]:
        few = min(20 * row.batch_size, setup.train)
        train(row, setup, few, 1, "constant")
        _, probe = train(row, setup, few, 1, "constant")
        epochs = max(1, round(setup.seconds / (probe * setup.train / few)))
        try:
            trainer, seconds = train(row, setup, setup.train, epochs, "cosine")
        except FloatingPointError as error:
            return {"row": name, "epochs": epochs, "diverged": str(error)}
        data = load_data(setup.data)
        x, y = data.x_train[-setup.held_out :], data.y_train[-setup.held_out :]
        predicted, radius = certify(trainer.classifier, x)
        certified = {str(eps): float(((predicted == y) & (radius >= eps)).mean()) for eps in RADII}
        clean = float((predicted == y).mean())
        return {"row": name, "epochs": epochs, "seconds": seconds, "clean": clean, "certified": certified}

    return comparison.measure_once(comparison.network_folder(work, name.replace("/", "_")), measure)


def list_cases(_: Setup) -> Iterator[tuple[str]]:
    """The networks."""
    yield from ((name,) for name in ROWS)


def summary(results: list[dict[str, Any]]) -> list[dict[str, str]]:
    """A row for each network, with its accuracies in percent."""
    rows = []
    for run in results:
        shares = [None] * (1 + len(RADII)) if "diverged" in run else [run["clean"], *run["certified"].values()]
        cells = ["diverged" if share is None else f"{100 * share:.1f}" for share in shares]
        row = {"training": run["row"], "epochs": str(run["epochs"])}
        row |= {"CPU s": f"{run['seconds']:.0f}" if "seconds" in run else "none"}
        rows.append(row | dict(zip(["clean", *(f"certified, {eps}" for eps in RADII)], cells, strict=True)))
    return rows


def main() -> None:
    args = comparison.make_parser(__doc__).parse_args()
    setup = Setup().quick() if args.quick else Setup()
    work = comparison.work_folder("certified", args.quick)
    cases = [(setup, work, *case) for case in list_cases(setup)]
    results = comparison.run_jobs(run_job, cases, data=args.data, workers=args.workers)
    print(table(summary(results)))
    if not args.quick:
        print(save("certified_mnist_search", results, setup=asdict(setup), worker_threads=1))


if __name__ == "__main__":
    main()
