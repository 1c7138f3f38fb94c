"""The flag of a certificate that an attack refutes."""

from __future__ import annotations

from collections.abc import Iterator

from ..flags import Flag
from .findings import Findings


def flag_broken_certificate(findings: Findings) -> Iterator[Flag]:
    """A point was broken within eps, and its certified radius is at least that."""
    if findings.certificate is None:
        return
    certificate = findings.certificate
    broken = int((certificate.attacked & (certificate.radii >= certificate.eps)).sum())
    if broken:
        yield Flag(
            "certificate-broken",
            "severe",
            f"{broken} points were misclassified within their certified radius.",
            "Trust neither: the network that was certified is not the one that was attacked, or a rule of its bound "
            "does not hold.",
        )
