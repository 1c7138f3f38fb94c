"""``art-robust attacks``: what an evaluation may run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, get_args

import typer


def attacks(
    name: Annotated[str | None, typer.Argument(metavar="NAME", help="A suite or an attack, to see it alone.")] = None,
) -> None:
    """List the suites with their attacks, and every attack: names for evaluate --attacks and Evaluator(attacks=...).

    Several norms of a suite are those of any of its attacks; in a norm that an attack lacks, the report says so.

    Example: art-robust attacks standard
    """
    # These import torch and ART, which the help does without.
    from ..evaluation.libraries import ATTACKS, find_norms, resolve
    from ..terminal import print_rows

    chosen = ATTACKS if name is None else {attack.name: attack for attack in resolve(name)}
    norms = {each: find_norms(attack) for each, attack in chosen.items()}
    if name is None:
        _list_suites(norms)
        print()
    rows = [(each, " ".join(norms[each]), attack.summary) for each, attack in chosen.items()]
    print_rows([("attack", "norms", "what it does"), *rows])


def _list_suites(norms: Mapping[str, Sequence[str]]) -> None:
    from ..evaluation.libraries import ALIASES, SUITES
    from ..terminal import print_rows
    from ..threat import Norm

    rows = [("suite", "norms", "attacks")]
    for name, members in SUITES.items():
        any_of = [norm for norm in get_args(Norm) if any(norm in norms[attack.name] for attack in members)]
        rows.append((name, " ".join(any_of), ", ".join(attack.name for attack in members)))
    rows += [(other, "", f"another name of {meant}") for other, meant in ALIASES.items()]
    print_rows(rows)
