"""Flags: signs that the numbers of an evaluation cannot be trusted as they are. Data only.

``diagnostics`` raises them, one function a flag.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

Severity = Literal["severe", "warning", "note"]
SEVERITIES: tuple[Severity, ...] = get_args(Severity)
"""The gravest first."""


@dataclass(frozen=True)
class Flag:
    """A sign that the numbers cannot be trusted as they are.

    Attributes:
        name: a short name, such as ``"zero-gradients"``.
        severity: ``"severe"`` (the robust accuracy says little), ``"warning"`` (it may be too high), ``"note"``.
        evidence: what was measured, in one sentence.
        advice: what to do about it, in one sentence.
    """

    name: str
    severity: Severity
    evidence: str
    advice: str


def merge_flags(flags: Sequence[Flag]) -> list[Flag]:
    """One flag for each name, with all that was measured; the gravest first."""
    groups: dict[str, list[Flag]] = {}
    for flag in flags:
        groups.setdefault(flag.name, []).append(flag)
    merged = [
        Flag(
            name,
            min((flag.severity for flag in group), key=SEVERITIES.index),
            " ".join(dict.fromkeys(flag.evidence for flag in group)),
            " ".join(dict.fromkeys(flag.advice for flag in group)),
        )
        for name, group in groups.items()
    ]
    return sorted(merged, key=lambda flag: SEVERITIES.index(flag.severity))
