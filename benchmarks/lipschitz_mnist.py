"""The table of results/lipschitz_mnist.json, which was measured before the comparison became a recipe.

    art-robust benchmark benchmarks/recipes/lipschitz_mnist.toml [--workers 2] [--quick]

measures it again: the same trainings, attacked by APGD-CE in place of PGD-100 (one random start, steps of
2.5 eps / 100). Its table is that of every recipe.
"""

from __future__ import annotations

from typing import Any

from comparison import format_percent

RADII = (0.3, 0.5, 1.0, 1.58)
TRAININGS = {
    "plain": "plain training",
    "paper": "the paper's set-up, c = 1",
    "larger c": "c = 2",
    "decay": "and the learning rate falls to 0",
    "orthogonal": "and orthogonal initial weights",
    "minmax": "and MinMax for ReLU",
    "ramp": "MinMax as above, c growing over 10 epochs",
    "per class": "MinMax as above, a margin for each class (EMMA)",
    "longer": "MinMax as above, 60 epochs",
}


def summary(results: list[dict[str, Any]]) -> list[dict[str, str]]:
    """A row for each training: means over seeds in percent, at the largest radius with the lowest and the highest."""
    rows = []
    for name, training in TRAININGS.items():
        runs = [run for run in results if run["recipe"] == name]
        row = {"training": training, "seeds": str(len(runs)), "clean": format_mean([run["clean"] for run in runs])}
        for radius in RADII:
            format_shares = format_percent if radius == RADII[-1] else format_mean
            row[f"{radius}: PGD-100"] = format_shares([run[f"pgd-100 {radius}"] for run in runs])
            row[f"{radius}: certified"] = format_shares([run[f"certified {radius}"] for run in runs])
        rows.append(row)
    return rows


def format_mean(shares: list[float]) -> str:
    """The mean of shares in percent."""
    return format_percent(shares).partition(" ")[0]
