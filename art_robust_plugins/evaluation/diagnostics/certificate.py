"""The flags of a certificate that an attack refutes, by finding a fault in it or the network's rounding."""

from __future__ import annotations

from collections.abc import Iterator

from ..flags import Flag
from .findings import Findings


def flag_broken_certificate(findings: Findings) -> Iterator[Flag]:
    """A point was broken within eps, and its certified radius is at least that, rounding of the network included."""
    if findings.certificate is None:
        return
    certificate = findings.certificate
    broken = int((certificate.attacked & (certificate.computed >= certificate.eps)).sum())
    if broken:
        yield Flag(
            "certificate-broken",
            "severe",
            f"{broken} points were misclassified within their certified radius.",
            "Trust neither: the network that was certified is not the one that was attacked, or a rule of its bound "
            "does not hold.",
        )


def flag_rounded_certificate(findings: Findings) -> Iterator[Flag]:
    """A point was broken within its certified radius, but not within the one that counts the network's rounding."""
    if findings.certificate is None:
        return
    certificate = findings.certificate
    within = (certificate.radii >= certificate.eps) & (certificate.computed < certificate.eps)
    broken = int((certificate.attacked & within).sum())
    if broken:
        yield Flag(
            "certificate-rounded",
            "warning",
            f"{broken} points were misclassified within their certified radius, which does not hold with the rounding "
            f"of the network's data type.",
            "A certificate is one of exact arithmetic and of float64: evaluate the network in float64, switch TF32 "
            "off, or report the accuracy under attack.",
        )
