"""The named suites of attacks, and every attack by its name."""

from __future__ import annotations

from collections.abc import Sequence
from difflib import get_close_matches

from . import autoattack, noise, torchattacks
from .attack import Attack

SUITES: dict[str, tuple[Attack, ...]] = {**autoattack.SUITES, **torchattacks.SUITES, **noise.SUITES}
"""The named suites. A library's own are in its file."""

ATTACKS: dict[str, Attack] = {
    attack.name: attack for suite in (*SUITES.values(), autoattack.SINGLE_STAGES) for attack in suite
}
"""Every attack by its name."""

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


def suite_of(attack: Attack) -> str | None:
    """The name of the suite that this very attack belongs to; None for an attack of one's own."""
    return next((name for name, suite in SUITES.items() if any(attack is member for member in suite)), None)


def _find_named(name: object) -> Sequence[Attack]:
    if not isinstance(name, str):
        raise ValueError(f"attacks: got {name!r}, expected names of suites or attacks, or Attack objects.")
    if name in SUITES:
        return SUITES[name]
    if name in ATTACKS:
        return [ATTACKS[name]]
    nearest = get_close_matches(name.lower(), [*SUITES, *ATTACKS], n=1, cutoff=0.0)[0]
    suites = ", ".join(repr(suite) for suite in SUITES)
    raise ValueError(f"attacks: got {name!r}, expected a suite ({suites}) or an attack; did you mean {nearest!r}?")
