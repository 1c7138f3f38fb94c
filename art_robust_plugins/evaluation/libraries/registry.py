"""The named suites of attacks, and every attack by its name."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import get_args

import torch
from torch import nn

from ...checks import suggest
from ...threat import Norm, ThreatModel
from . import autoattack, noise, torchattacks
from .attack import Attack, NotApplicable, Setting

SUITES: dict[str, tuple[Attack, ...]] = {**autoattack.SUITES, **torchattacks.SUITES, **noise.SUITES}
"""The named suites. A library's own are in its file."""

ATTACKS: dict[str, Attack] = {
    attack.name: attack for suite in (*SUITES.values(), autoattack.SINGLE_STAGES) for attack in suite
}
"""Every attack by its name."""

ALIASES = {"autoattack": "standard", "auto-attack": "standard", "aa": "standard"}
"""Other names of suites, in lower case; an underscore is a dash."""

# Rows that every report has.
_RESERVED = ("clean", "worst case", "AutoAttack (standard)")


def resolve(attacks: str | Attack | Sequence[str | Attack]) -> list[Attack]:
    """The attacks of a suite, of a name, or of a sequence of both; each once, in the order given.

    Raises:
        ValueError: an unknown name (with the nearest known one), no attacks, two different attacks of one name, an
            attack of one's own with the name of a built-in one.
    """
    if not isinstance(attacks, str | Attack | Sequence | tuple | set | frozenset):
        raise ValueError(f"attacks: got {attacks!r}, expected a name, an Attack, or a sequence of them.")
    chosen: dict[str, Attack] = {}
    for item in [attacks] if isinstance(attacks, (str, Attack)) else list(attacks):
        for attack in [item] if isinstance(item, Attack) else _find_named(item):
            # A number under a known name must be that attack's.
            if attack.name in _RESERVED or ATTACKS.get(attack.name, attack) is not attack:
                raise ValueError(
                    f"attacks: got an attack of one's own with the built-in name {attack.name!r}, expected another."
                )
            if chosen.setdefault(attack.name, attack) is not attack:
                raise ValueError(f"attacks: got two different attacks named {attack.name!r}, expected one.")
    if not chosen:
        raise ValueError("attacks: got none, expected the name of a suite or of an attack.")
    return list(chosen.values())


def resolve_alias(name: str) -> str:
    """The name under which reports and folders know a suite or attack, for one that people type for it.

    Example:
        >>> resolve_alias("AutoAttack"), resolve_alias("PGD-20"), resolve_alias("my own")
        ('standard', 'pgd-20', 'my own')
    """
    folded = name.lower().replace("_", "-")
    return ALIASES.get(folded, folded if folded in SUITES or folded in ATTACKS else name)


def find_norms(attack: Attack) -> list[Norm]:
    """The norms in which an attack exists for images in colour and ten classes."""
    return [norm for norm in get_args(Norm) if find_obstacle(attack, ThreatModel(norm, 0.1), (3, 32, 32), 10) is None]


def find_obstacle(attack: Attack, threat: ThreatModel, input_shape: tuple[int, ...], classes: int) -> str | None:
    """Why an attack does not exist for this threat, images of this shape and so many classes; None where it does."""
    network = nn.Sequential(nn.Flatten(), nn.Linear(math.prod(input_shape), classes))
    try:
        attack.prepare(Setting(network, threat, input_shape, classes, seed=0, device=torch.device("cpu")))
    except NotApplicable as reason:
        return str(reason)
    except ImportError:  # a library that is not installed has it still
        pass
    return None


def suite_of(attack: Attack) -> str | None:
    """The name of the suite that this very attack belongs to; None for an attack of one's own."""
    return next((name for name, suite in SUITES.items() if any(attack is member for member in suite)), None)


def _find_named(name: object) -> Sequence[Attack]:
    if not isinstance(name, str):
        raise ValueError(f"attacks: got {name!r}, expected names of suites or attacks, or Attack objects.")
    known = resolve_alias(name)
    if known in SUITES:
        return SUITES[known]
    if known in ATTACKS:
        return [ATTACKS[known]]
    suites = ", ".join(repr(suite) for suite in SUITES)
    hint = suggest(name, [*SUITES, *ATTACKS, *ALIASES], "; art-robust attacks lists them.")
    raise ValueError(f"attacks: got {name!r}, expected a suite ({suites}) or an attack{hint}")
