"""``art-robust attacks``: what an evaluation may run."""

from __future__ import annotations

from typing import get_args


def attacks() -> None:
    """List the suites with their attacks, and every attack: names for evaluate --attacks and Evaluator(attacks=...).

    Several norms of a suite are those of any of its attacks; in a norm that an attack lacks, the report says so.
    """
    # These import torch and ART, which the help does without.
    from ..evaluation.libraries import ALIASES, ATTACKS, SUITES, find_norms
    from ..terminal import print_rows
    from ..threat import Norm

    norms = {name: find_norms(attack) for name, attack in ATTACKS.items()}
    rows = [("suite", "norms", "attacks")]
    for name, members in SUITES.items():
        any_of = [norm for norm in get_args(Norm) if any(norm in norms[attack.name] for attack in members)]
        rows.append((name, " ".join(any_of), ", ".join(attack.name for attack in members)))
    rows += [(other, "", f"another name of {meant}") for other, meant in ALIASES.items()]
    print_rows(rows)
    print()
    rows = [(name, " ".join(norms[name]), attack.summary) for name, attack in ATTACKS.items()]
    print_rows([("attack", "norms", "what it does"), *rows])
