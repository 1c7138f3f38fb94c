"""The comparison that several commands print."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from rich.table import Column, Table

from ..evaluation import EvaluationReport, save_comparison
from ..evaluation.ranking import rank
from ..evaluation.rendering import conclude
from ..evaluation.rendering.labels import worst_case_mark
from ..experiments.training_record import read_histories
from ..terminal import console


def show_comparison(
    reports: dict[str, EvaluationReport], out: Path, folders: Mapping[str, Path], runs: Mapping[str, Path]
) -> None:
    """Save and print a comparison of reports; ``folders`` hold them, and ``runs`` the networks, by the same names."""
    page = save_comparison(reports, out, folders=folders, histories=read_histories(runs))
    print_comparison(reports)
    console.print(f"Open {page} in a browser.", soft_wrap=True)


def print_comparison(reports: dict[str, EvaluationReport]) -> None:
    """Print the accuracies of named reports, the most robust first, and what follows from them."""
    table = Table(
        Column("run", overflow="fold"),
        "clean",
        "AutoAttack",
        "worst case",
        "certified",
        Column("flags", overflow="fold"),
    )
    for name in rank(reports):
        result = reports[name]
        standard = result.autoattack_accuracy
        table.add_row(
            name,
            f"{result.clean_accuracy:.1%}",
            "not run" if standard is None else f"{standard:.1%}",
            f"{result.robust_accuracy:.1%} {worst_case_mark(result)}".rstrip(),
            "no" if result.certified_accuracy is None else f"{result.certified_accuracy:.1%}",
            ", ".join(flag.name for flag in result.flags) or "none",
        )
    console.print(table)
    console.print(conclude(reports), soft_wrap=True)
