"""The pages of the papers' methods: their order, and that what they conclude is what their tables say."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

DOCS = Path(__file__).parents[1] / "docs"
SECTIONS = ["What the paper claims", "What is exact, and what is ours", "What was measured", "What we conclude"]
NAMES = ("bang", "layerwise", "local-ball", "lipschitz-margin", "weight-maps")
PAGES = {name: (DOCS / "methods" / f"{name}.md").read_text(encoding="utf-8") for name in NAMES}

Rows = list[dict[str, str]]


def read_table(name: str) -> Rows:
    """The rows of the first generated table of this name, wherever it stands in the manual."""
    pages = [path.read_text(encoding="utf-8") for path in sorted(DOCS.rglob("*.md"))]
    (block,) = (found[1] for page in pages for found in re.finditer(rf"<!-- {name} -->\n(.*?)\n\n", page, re.DOTALL))
    head, _, *lines = ([cell.strip() for cell in line.strip("|").split("|")] for line in block.splitlines())
    return [dict(zip(head, line, strict=True)) for line in lines]


def value(cell: str) -> float:
    """The mean of a cell, which may have the lowest and the highest seed behind it."""
    return float(cell.split(" ", maxsplit=1)[0])


def find(rows: Rows, column: str, **wanted: str) -> float:
    """The value in a column of the one row that has these entries; an underscore stands for a space."""
    (row,) = (row for row in rows if all(row[key.replace("_", " ")] == entry for key, entry in wanted.items()))
    return value(row[column])


@pytest.mark.parametrize("name", PAGES)
def test_every_paper_is_answered_in_the_same_order(name: str) -> None:
    assert re.findall(r"^## (.+)$", PAGES[name], re.MULTILINE) == SECTIONS


def bang_gains(share: str, eps: str) -> float:
    """By how much BANG is ahead of plain training in its table."""
    (row,) = (r for r in read_table("bang_mnist") if r["eps"] == eps and r["share of images, %"] == f"correct{share}")
    return value(row["B1"]) - value(row["R0"])


def recipe_gains(recipe: str, column: str) -> float:
    """By how much BANG is ahead of plain training in a recipe's table."""
    rows = read_table(f"recipe_{recipe}")
    return find(rows, column, training="BANG") - find(rows, column, training="plain")


def layerwise_gains(table: str, images: str, beyond: str, column: str, *, hidden: bool = False) -> float:
    """By how much layerwise perturbations of 0.3 are ahead of another training."""
    rows = [row for row in read_table(f"layerwise_{table}") if row["training images"] == images]
    layerwise = "layerwise, eps 0.3" + ", hidden layer too" * hidden
    return find(rows, column, training=layerwise) - find(rows, column, training=beyond)


LAYERWISE = [("digits", "100"), ("digits", "1,437"), ("mnist", "500"), ("mnist", "20,000")]
ATTACKED = "AutoAttack 0.1"
NOISE = "gaussian noise 0.3"
MAPS_ATTACKED = [f"AutoAttack {eps}" for eps in ("0.05", "0.1", "0.15")]


def gains_of_layerwise(column: str, cases: Sequence[tuple[str, str]] = LAYERWISE) -> list[float]:
    """By how much perturbations of 0.3 are ahead of plain training, without and with the hidden layer."""
    return [layerwise_gains(*case, "plain", column, hidden=hidden) for case in cases for hidden in (False, True)]


def map_gains(data: str, column: str, network: str, beyond: str) -> float:
    """By how much a network with maps is ahead of another one."""
    rows = read_table(f"weight_map_{data}")
    return find(rows, column, network=network) - find(rows, column, network=beyond)


def unsharp_loses() -> bool:
    """Whether unsharp maps are behind plain training in every column of both tables."""
    columns = [column for column in read_table("weight_map_mnist")[0] if column not in ("network", "seeds")]
    pairs = ((data, column) for data in ("digits", "mnist") for column in columns)
    # Within 0.5 points of each other two networks are equal here: that is less than the seeds differ.
    return all(map_gains(data, column, "map, unsharp", "plain") < 0.5 for data, column in pairs)


CONCLUSIONS: dict[tuple[str, str], Callable[[], bool]] = {
    ("bang", "at eps 0.1 and 0.15 BANG is far ahead of plain training"): lambda: (
        min(bang_gains(f" under {attack}", eps) for attack in ("FGSM", "PGD-20") for eps in ("0.1", "0.15")) > 10
    ),
    ("bang", "Under AutoAttack it is behind, from eps 0.05 on"): lambda: (
        max(bang_gains(" under AutoAttack (standard)", eps) for eps in ("0.05", "0.1", "0.15")) < 0
    ),
    ("bang", "it adds 7 points under AutoAttack without a flag"): lambda: (
        round(recipe_gains("digits", "AutoAttack, Linf 0.1")) == 7
        and [r["flags (networks)"] for r in read_table("recipe_digits") if r["training"] == "BANG"] == ["none"]
    ),
    ("bang", "it resists no more than plain training, and all of its reports are flagged"): lambda: (
        max(recipe_gains("mnist", column) for column in ("AutoAttack, Linf 0.1", "AutoAttack, L2 1.0")) <= 0
        and all("(3)" in r["flags (networks)"] for r in read_table("recipe_mnist") if r["training"] == "BANG")
    ),
    ("bang", "on MNIST 0.1 points are lost on LeNet and 0.2 on 2C2F (means)"): lambda: (
        [round(bang_gains(", clean", "0"), 1), round(recipe_gains("mnist", "clean"), 1)] == [-0.1, -0.2]
    ),
    ("layerwise", "add 5 to 27 points under AutoAttack in every table"): lambda: (
        [round(end(gains_of_layerwise(ATTACKED))) for end in (min, max)] == [5, 27]
    ),
    ("layerwise", "and 3 to 21 under noise except on 100 digits"): lambda: (
        [round(end(gains_of_layerwise(NOISE, LAYERWISE[1:]))) for end in (min, max)] == [3, 21]
    ),
    ("layerwise", "FGSM training adds more under attack in every table"): lambda: (
        max(layerwise_gains(*case, "FGSM", ATTACKED, hidden=hidden) for case in LAYERWISE for hidden in (False, True))
        < 0
    ),
    ("layerwise", "On digits the perturbations add as many points as dropout or more"): lambda: (
        min(layerwise_gains(*case, "dropout 0.5", column) for case in LAYERWISE[:2] for column in (ATTACKED, NOISE)) > 0
    ),
    ("layerwise", "On MNIST, perturbing the convolutions alone adds fewer"): lambda: (
        max(layerwise_gains(*case, "dropout 0.5", column) for case in LAYERWISE[2:] for column in (ATTACKED, NOISE)) < 0
    ),
    ("layerwise", "adds more than dropout under AutoAttack, and about as much under noise"): lambda: (
        min(layerwise_gains(*case, "dropout 0.5", ATTACKED, hidden=True) for case in LAYERWISE[2:]) > 0
        and max(abs(layerwise_gains(*case, "dropout 0.5", NOISE, hidden=True)) for case in LAYERWISE[2:]) < 2
    ),
    ("layerwise", "Clean accuracy gains nothing beyond the spread of the seeds"): lambda: (
        max(layerwise_gains(*case, "plain", "clean") for case in LAYERWISE) <= 1
    ),
    ("weight-maps", "at most 2.3 points under AutoAttack on MNIST"): lambda: (
        round(
            max(
                map_gains("mnist", column, f"map, {kernel}", alone)
                for column in MAPS_ATTACKED
                for kernel, alone in (("smoothing", "blur alone"), ("unsharp", "unsharp alone"))
            ),
            1,
        )
        == 2.3
    ),
    ("weight-maps", "the blur raises accuracy under PGD-20 and AutoAttack (at 0.1: 9 to 35)"): lambda: (
        [round(find(read_table("weight_map_mnist"), ATTACKED, network=n)) for n in ("plain", "blur alone")] == [9, 35]
    ),
    ("weight-maps", "The unsharp variant is never better than plain in these tables"): unsharp_loses,
}


@pytest.mark.parametrize(("page", "sentence"), CONCLUSIONS)
def test_a_conclusion_is_what_the_tables_say(page: str, sentence: str) -> None:
    assert sentence in " ".join(PAGES[page].split())
    assert CONCLUSIONS[page, sentence]()
