"""Write the README's tables from benchmarks/results/*.json, and its figures.

python benchmarks/readme.py                      the tables
python benchmarks/readme.py --figure runs/demo   the demo's figure too, from its reports
python benchmarks/readme.py --weight-maps        the figure of weight maps too
"""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import bang_mnist
import conv_norms
import layerwise
import lipschitz_mnist
import local_ball
import weight_maps
from saving import RESULTS, table

from art_robust_plugins.evaluation import EvaluationReport
from art_robust_plugins.evaluation.rendering.figures import comparison_figure
from art_robust_plugins.experiments.recipes import available_recipes, result_rows
from art_robust_plugins.provenance import described

ROOT = Path(__file__).parents[1]


def make_blocks() -> dict[str, str]:
    """The generated parts of the README by name."""
    records = {path.stem: json.loads(path.read_text()) for path in RESULTS.glob("*.json")}

    def tables(name: str) -> str:
        """All tables of a record, then its conditions."""
        record = records[name]
        rows = record["results"].values() if isinstance(record["results"], dict) else [record["results"]]
        return "\n\n".join([*map(table, rows), f"{described(record)} {record['threads']} threads."])

    def summary(name: str, rows: Callable[[Any], list[dict[str, str]]]) -> str:
        return f"{table(rows(records[name]['results']))}\n\n{described(records[name])}"

    def part(name: str, key: str) -> str:
        return f"{table(records[name]['results'][key])}\n\n{described(records[name])}"

    return {
        "training_step": tables("training_step"),
        "autoattack_speed": part("autoattack_speed", "whole"),
        "autoattack_parity": part("autoattack_parity", "total"),
        "conv_norms": summary("conv_norms", conv_norms.summary),
        "certify_speed": tables("certify_speed"),
        "bang_mnist": summary("bang_mnist", bang_mnist.summary),
        "lipschitz_mnist": summary("lipschitz_mnist", lipschitz_mnist.summary),
        "local_ball_digits": summary("local_ball_digits", local_ball.summary),
        "local_ball_mnist": summary("local_ball_mnist", local_ball.summary),
        "local_ball_mnist_search": summary("local_ball_mnist_search", local_ball.search_summary),
        "layerwise_digits": summary("layerwise_digits", layerwise.summary),
        "layerwise_mnist": summary("layerwise_mnist", layerwise.summary),
        "weight_map_digits": summary("weight_map_digits", weight_maps.summary),
        "weight_map_mnist": summary("weight_map_mnist", weight_maps.summary),
        "weight_map_speed": tables("weight_map_speed"),
        "weight_map_mnist_variance": summary("weight_map_mnist", weight_maps.variance_summary),
        **{f"recipe_{name}": describe_recipe(name, records.get(f"recipe_{name}")) for name in available_recipes()},
    }


def describe_recipe(name: str, record: dict[str, Any] | None) -> str:
    """The table of a recipe, or how to measure it."""
    if record is None:
        path = (RESULTS / f"recipe_{name}.json").relative_to(ROOT)
        return f"Not measured. `art-robust benchmark {name} --record {path}` measures it."
    if record["quick"]:
        raise ValueError(f"recipe_{name}.json: got results of --quick, expected those of the whole recipe.")
    return f"{table(result_rows(record))}\n\n{described(record)}"


def renew(text: str) -> str:
    """The README ``text`` with its generated parts renewed."""
    for name, block in make_blocks().items():
        pattern = rf"(<!-- {name} -->\n).*?(<!-- end -->)"
        parts = re.split(pattern, text, flags=re.DOTALL)
        text = "".join([parts[0], parts[1], block, "\n", *parts[2:]]) if len(parts) == 4 else text
        count = (len(parts) - 1) // 3
        if count != 1:
            raise ValueError(f"README.md: got {count} places for {name!r}, expected one.")
    return text


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--figure", type=Path, metavar="RUNS", help="a folder that art-robust demo wrote")
    parser.add_argument("--weight-maps", action="store_true", help="draw docs/weight_maps.png")
    args = parser.parse_args()
    docs, readme = ROOT / "docs", ROOT / "README.md"
    readme.write_text(renew(readme.read_text()))
    if args.figure:
        found = sorted(args.figure.glob("*/evaluations/*/"))
        folders = sorted(found, key=lambda folder: folder.parts[-3] != "standard")
        reports = {folder.parts[-3]: EvaluationReport.load(folder) for folder in folders}
        comparison_figure(reports).savefig(docs / "demo.png", dpi=130, facecolor="white")
    if args.weight_maps:
        records = {name: json.loads((RESULTS / f"weight_map_{name}.json").read_text()) for name in ("digits", "mnist")}
        drawn = weight_maps.draw_figure({name: record["results"] for name, record in records.items()})
        drawn.savefig(docs / "weight_maps.png", dpi=110, facecolor="white")


if __name__ == "__main__":
    main()
