"""The flags of a certificate that an attack refutes, by finding a fault in it or the network's rounding."""

from __future__ import annotations

from collections.abc import Iterator

from ..flags import Flag
from .findings import Findings


def flag_broken_certificate(findings: Findings) -> Iterator[Flag]:
    """A point was broken within eps, its certified radius is at least that, and rounding does not explain it."""
    if findings.certificate is None:
        return
    broken = int((findings.certificate.refuted & ~findings.certificate.rounded).sum())
    if broken:
        yield Flag(
            "certificate-broken",
            "severe",
            f"{broken} points were misclassified within their certified radius.",
            "Trust neither: the network that was certified is not the one that was attacked, or a rule of its bound "
            "does not hold.",
        )


def flag_rounded_certificate(findings: Findings) -> Iterator[Flag]:
    """A point was broken within its certified radius by the rounding of the network, and not in float64."""
    if findings.certificate is None:
        return
    broken = int(findings.certificate.rounded.sum())
    if broken:
        yield Flag(
            "certificate-rounded",
            "warning",
            f"{broken} points were misclassified within their certified radius by the rounding of the network's data "
            f"type: float64 classifies them correctly.",
            "A certificate is one of exact arithmetic and of float64: evaluate the network in float64, switch TF32 "
            "off, or report the accuracy under attack.",
        )
