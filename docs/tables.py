"""Write the tables of the README and the manual: measurements, operations with rules; and their figures.

python docs/tables.py                      the tables, from benchmarks/results/*.json and the registries of the package
python docs/tables.py --check              compare them with those that are there, and write nothing
python docs/tables.py --figure runs/demo   the demo's picture too: the head of its page, by headless Chromium
python docs/tables.py --weight-maps        the figure of weight maps too

A table stands in a page between ``<!-- name -->`` and ``<!-- end -->``; each has one place.
"""

from __future__ import annotations

import argparse
import json
import re
import shutil
import subprocess
import sys
import tempfile
from collections import defaultdict
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from PIL import Image, ImageChops
from torch._ops import OpOverload

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "benchmarks")]

import bang_mnist
import certified
import certified_attack
import conv_norms
import layerwise
import lipschitz_mnist
import local_ball
import weight_maps
from saving import RESULTS, table

from art_robust_plugins.evaluation import EvaluationReport
from art_robust_plugins.evaluation.ranking import rank
from art_robust_plugins.evaluation.rendering import conclude
from art_robust_plugins.experiments.recipes import available_recipes, result_rows
from art_robust_plugins.lipschitz.rules import RULES, UNBOUNDED
from art_robust_plugins.provenance import describe_conditions

PAGES = (ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md")))


def make_blocks() -> dict[str, str]:
    """The generated parts of the pages by name."""
    records = {path.stem: json.loads(path.read_text()) for path in RESULTS.glob("*.json")}

    def tables(name: str) -> str:
        """All tables of a record, then its conditions."""
        record = records[name]
        rows = record["results"].values() if isinstance(record["results"], dict) else [record["results"]]
        return "\n\n".join([*map(table, rows), f"{describe_conditions(record)} {count_threads(record)}."])

    def summary(name: str, rows: Callable[[Any], list[dict[str, str]]]) -> str:
        return f"{table(rows(records[name]['results']))}\n\n{describe_commands(records[name])}"

    def part(name: str, key: str) -> str:
        return f"{table(leave_out_not_run(records[name]['results'][key]))}\n\n{describe_conditions(records[name])}"

    return {
        "headline": table(make_headline(records)),
        "operations": describe_rules(),
        "refused": describe_refusals(),
        "training_step": tables("training_step"),
        "autoattack_speed": part("autoattack_speed", "whole"),
        "autoattack_seconds": part("autoattack_speed", "seconds"),
        "cheaper_passes": table(records["cheaper_passes"]["results"]["passes"]),
        "cheaper_evaluations": part("cheaper_passes", "AutoAttack"),
        "autoattack_others": summary("autoattack_others", show_others),
        "minmax_speed": tables("minmax_speed"),
        "memory_settings": summary("memory_settings", list),
        "processes_speed": summary("processes_speed", list),
        "evaluation_memory": summary("evaluation_memory", list),
        "autoattack_parity": part("autoattack_parity", "total"),
        "conv_norms": summary("conv_norms", conv_norms.summary),
        "conv_norms_networks": table(records["conv_norms"]["results"]["networks"]),
        "conv_norms_random": table(records["conv_norms"]["results"]["random"]),
        "certify_speed": tables("certify_speed"),
        "bang_mnist": summary("bang_mnist", bang_mnist.summary),
        "certified_mnist_search": summary("certified_mnist_search", certified.summary),
        "certified_attack_mnist": summary("certified_attack_mnist", certified_attack.summary),
        "certified_attack_cifar10": summary("certified_attack_cifar10", certified_attack.summary),
        "lipschitz_mnist": summary("lipschitz_mnist", lipschitz_mnist.summary),
        "local_ball_digits": summary("local_ball_digits", local_ball.summary),
        "local_ball_digits_search": summary("local_ball_digits_search", local_ball.search_summary),
        "local_ball_mnist": summary("local_ball_mnist", local_ball.summary),
        "local_ball_mnist_search": summary("local_ball_mnist_search", local_ball.search_summary),
        "local_ball_mnist_levers": summary("local_ball_mnist_levers", local_ball.search_summary),
        "local_ball_mnist_forms": summary("local_ball_mnist_forms", local_ball.search_summary),
        "layerwise_digits": summary("layerwise_digits", layerwise.summary),
        "layerwise_mnist": summary("layerwise_mnist", layerwise.summary),
        "weight_map_digits": summary("weight_map_digits", weight_maps.summary),
        "weight_map_mnist": summary("weight_map_mnist", weight_maps.summary),
        "weight_map_speed": tables("weight_map_speed"),
        "first_number": tables("first_number"),
        "weight_map_mnist_variance": summary("weight_map_mnist", weight_maps.variance_summary),
        **{f"recipe_{name}": describe_recipe(name, records.get(f"recipe_{name}")) for name in available_recipes()},
    }


def describe_commands(record: Mapping[str, Any]) -> str:
    """The command of a record with its conditions, and those that measured other parts of it before."""
    earlier = [f" Before: `{part['command']}`, {part['date']}, {part['machine']}." for part in record.get("parts", ())]
    return describe_conditions(record) + "".join(earlier)


def show_others(results: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The columns of the authors' AutoAttack, and of those of torchattacks and of ART."""
    kept = [
        "network",
        "points",
        "eps",
        "robust, ours",
        "ours, s",
        "reference / ours, time",
        "torchattacks / ours, time",
    ]
    kept += ["robust, torchattacks", "ART, s", "robust, ART"]
    return [{key: row[key] for key in kept} for row in results["whole"]]


def leave_out_not_run(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The rows without the columns that have no value in any of them."""
    kept = [key for key in rows[0] if any(row[key] != "not run" for row in rows)]
    return [{key: row[key] for key in kept} for row in rows]


def count_threads(record: Mapping[str, Any]) -> str:
    return "1 thread" if record["threads"] == 1 else f"{record['threads']} threads"


def describe_recipe(name: str, record: dict[str, Any] | None) -> str:
    """The table of a recipe, or how to measure it."""
    if record is None:
        path = (RESULTS / f"recipe_{name}.json").relative_to(ROOT)
        return f"Not measured. `art-robust benchmark {name} --record {path}` measures it."
    if record["quick"]:
        raise ValueError(f"recipe_{name}.json: got results of --quick, expected those of the whole recipe.")
    return f"{table(result_rows(record))}\n\n{describe_conditions(record)}"


def make_headline(records: Mapping[str, Any]) -> list[dict[str, str]]:
    """The README's rows: what was measured, the number, and the page with the whole table."""
    parity = records["autoattack_parity"]["results"]["total"]
    whole, earlier = (records[name]["results"]["whole"] for name in ("autoattack_speed", "autoattack_others"))
    anew = {row["network"] for row in whole}
    rows = [row for row in whole if "Lipschitz" not in row["network"]]
    rows += [row for row in earlier if row["network"] not in anew]
    networks = len({row["network"] for row in rows})
    ratios = [row["reference / ours, time"] for row in rows]
    art = [
        row["ART's time / ours"]
        for row in records["training_step"]["results"]["methods"]
        if row["method"].startswith("PGD") and isinstance(row["ART's time / ours"], float)
    ]
    trained = {row["training"]: row for row in local_ball.summary(records["local_ball_mnist"]["results"])}
    weak = "local ball, 1 step from previous, smoothness of logits"
    mnist, cifar10 = (result_rows(records[f"recipe_{name}-certified"])[-1] for name in ("mnist", "cifar10"))
    bang = {
        row["share of images, %"]: row
        for row in bang_mnist.summary(records["bang_mnist"]["results"])
        if row["eps"] == "0.15"
    }
    fgsm, standard = bang["correct under FGSM"], bang["correct under AutoAttack (standard)"]

    def total(column: str) -> int:
        return sum(int(row[column]) for row in parity)

    def first(cell: str) -> str:
        return cell.split(" ", maxsplit=1)[0]

    def robust(name: str) -> str:
        return f"{first(trained[name]['AutoAttack'])} %"

    return [
        {
            "measured": "verdicts of our AutoAttack that differ from the authors' code, both on a CPU",
            "result": f"{total('different')} of {total('verdicts')}",
            "table": "[AutoAttack](docs/results/autoattack.md#verdicts)",
        },
        {
            "measured": f"CPU time of the authors' code, as a multiple of ours: {networks} networks at two radii each, "
            "one run, without the network whose points are mostly certified",
            "result": f"{min(ratios)} to {max(ratios)}",
            "table": "[AutoAttack](docs/results/autoattack.md#time)",
        },
        {
            "measured": "time of ART's PGD training, as a multiple of ours",
            "result": f"{min(art):.2f} and {max(art):.2f}",
            "table": "[speed](docs/results/speed.md#training)",
        },
        {
            "measured": "MNIST, AutoAttack within Linf 0.3 (masked gradients, flagged): PGD-3, one step with a local "
            f"ball (preset previous, {trained[weak]['time / TRADES-10']} of TRADES-10's time), TRADES-10",
            "result": ", ".join(map(robust, ("PGD-3", weak, "TRADES-10"))),
            "table": "[local ball](docs/methods/local-ball.md#mnist)",
        },
        {
            "measured": "MNIST, certified within L2 1.58: Lipschitz margin, an orthogonal network, 20 epochs",
            "result": f"{first(mnist['certified, L2 1.58'])} %",
            "table": "[recipes](docs/results/index.md#mnist-certified)",
        },
        {
            "measured": "CIFAR-10, certified within L2 36/255: the same, 30 epochs",
            "result": f"{first(cifar10['certified, L2 36/255'])} %",
            "table": "[recipes](docs/results/index.md#cifar-10-certified)",
        },
        {
            "measured": "MNIST, Linf 0.15, BANG: under FGSM, and under AutoAttack (masked gradients, flagged)",
            "result": f"{first(fgsm['B1'])} %, {first(standard['B1'])} %",
            "table": "[BANG](docs/methods/bang.md#results-on-mnist)",
        },
    ]


def describe_rules() -> str:
    """A table of the operations that have a rule, by the file of the rules of this package."""
    groups: dict[str, set[str]] = defaultdict(set)
    for operation, rule in RULES.items():
        package, _, module = rule.__module__.rpartition(".")
        if package == "art_robust_plugins.lipschitz.rules":
            groups[module].add(name_operation(operation))
    rows = [
        {"rules": f"`{module}.py`", "what they bound": describe_module(module), "operations": ", ".join(sorted(names))}
        for module, names in sorted(groups.items())
    ]
    return table(rows)


def describe_module(module: str) -> str:
    """The first sentence of the docstring of a file of rules."""
    text = sys.modules[f"art_robust_plugins.lipschitz.rules.{module}"].__doc__ or ""
    return re.split(r"[.:](?:\s|$)", text.strip(), maxsplit=1)[0]


def describe_refusals() -> str:
    """A table of the reasons for which operations are refused."""
    groups: dict[str, set[str]] = defaultdict(set)
    for operation, reason in UNBOUNDED.items():
        groups[reason].add(name_operation(operation))
    return table([{"reason": reason, "operations": ", ".join(sorted(names))} for reason, names in groups.items()])


def name_operation(operation: OpOverload) -> str:
    """ATen's name, without the overload."""
    return f"`{operation._opname}`"


def renew(pages: Mapping[Path, str]) -> dict[Path, str]:
    """The texts of pages with their generated parts renewed.

    Raises:
        ValueError: a part that has no place or several.
    """
    texts = dict(pages)
    for name, block in make_blocks().items():
        pattern = re.compile(rf"(<!-- {name} -->\n).*?(<!-- end -->)", re.DOTALL)
        places = [path for path, text in texts.items() for _ in pattern.finditer(text)]
        if len(places) != 1:
            raise ValueError(f"{name}: got {len(places)} places in the pages, expected one.")
        before, start, end, after = pattern.split(texts[places[0]])
        texts[places[0]] = "".join([before, start, block, "\n", end, after])
    return texts


def take_picture(page: Path, path: Path) -> None:
    """Draw the head of a comparing page, down to its leaderboard, as an image of 255 colours."""
    chromium = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if chromium is None:
        raise FileNotFoundError("chromium: got no browser of this name, expected one to draw the page.")
    head, _ = page.read_text(encoding="utf-8").split("<h2>", 1)  # the leaderboard's heading has a name of its own
    with tempfile.TemporaryDirectory() as folder:
        cut, drawn = Path(folder) / "page.html", Path(folder) / "page.png"
        cut.write_text(f"{head}</main></body></html>", encoding="utf-8")
        given = [
            "--headless",
            "--no-sandbox",
            "--disable-gpu",
            "--hide-scrollbars",
            f"--user-data-dir={folder}/profile",
        ]
        light = [
            "--force-device-scale-factor=1.25",
            "--window-size=1230,1600",
            "--blink-settings=preferredColorScheme=1",
        ]
        subprocess.run(
            [chromium, *given, *light, f"--screenshot={drawn}", cut.as_uri()], check=True, capture_output=True
        )
        whole = Image.open(drawn).convert("RGB")
    ink = ImageChops.difference(whole, Image.new("RGB", whole.size, whole.getpixel((0, 0)))).getbbox()
    shown = whole.crop((0, 0, whole.width, ink[3] + 20))
    shown.quantize(255, dither=Image.Dither.NONE).save(path, optimize=True)


def describe_picture(reports: Mapping[str, EvaluationReport]) -> str:
    """The verdict and the worst cases, for those who do not see the picture."""
    told = [f"{name} {reports[name].robust_accuracy:.1%}" for name in rank(reports)]
    return f"The head of the demo's page. {conclude(reports)} Worst cases: {', '.join(told)}."


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="compare, and write nothing")
    parser.add_argument("--figure", type=Path, metavar="RUNS", help="a folder that art-robust demo wrote")
    parser.add_argument("--weight-maps", action="store_true", help="draw docs/weight_maps.png")
    args = parser.parse_args()
    docs = ROOT / "docs"
    present = {path: path.read_text(encoding="utf-8") for path in PAGES}
    stale = {path: text for path, text in renew(present).items() if text != present[path]}
    for path, text in stale.items():
        print(f"{path.relative_to(ROOT)}: {'out of date' if args.check else 'written'}")
        if not args.check:
            path.write_text(text, encoding="utf-8")
    if args.check:
        return int(bool(stale))
    if args.figure:
        take_picture(args.figure / "index.html", docs / "demo.png")
        reports = {folder.parts[-3]: EvaluationReport.load(folder) for folder in args.figure.glob("*/evaluations/*/")}
        print(f"The picture's text, for README.md and docs/index.md: {describe_picture(reports)}")
    if args.weight_maps:
        records = {name: json.loads((RESULTS / f"weight_map_{name}.json").read_text()) for name in ("digits", "mnist")}
        drawn = weight_maps.draw_figure({name: record["results"] for name, record in records.items()})
        drawn.savefig(docs / "weight_maps.png", dpi=110, facecolor="white")
    return 0


if __name__ == "__main__":
    sys.exit(main())
