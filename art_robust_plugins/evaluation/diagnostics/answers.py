"""Flags of networks with several answers for an image, or none: changing networks, batch dependence, ties."""

from __future__ import annotations

from collections.abc import Iterator

from ..flags import Flag
from .differences import RANDOM_DIFFERENCE
from .findings import CHANCE, Findings, list_some


def flag_dynamic(findings: Findings) -> Iterator[Flag]:
    """The network changes while it predicts, or while it is attacked."""
    clean = findings.clean
    evidence = []
    if clean.gradients:
        evidence.append("A clean pass takes gradients inside.")
    if clean.moved:
        evidence.append(f"A clean pass changed {list_some(clean.moved)} of the network.")
    if clean.memory > RANDOM_DIFFERENCE:
        evidence.append(
            f"The same images give outputs that differ by {clean.memory:.1e} of their length when other images "
            f"passed between."
        )
    if clean.seeded_difference > RANDOM_DIFFERENCE:
        evidence.append(
            f"Two passes of the same images with the same random numbers differ by {clean.seeded_difference:.1e} of "
            f"the outputs' length: the network remembers earlier passes, or draws from a generator of its own."
        )
    for name, progress in findings.progress.items():
        if progress.gradients and not clean.gradients:
            evidence.append(f"Passes of the images of {name} take gradients inside, those of clean images do not.")
        new = sorted(progress.moved - set(clean.moved))
        if new:
            evidence.append(f"While {name} ran, {list_some(new)} of the network changed.")
    if evidence:
        yield Flag(
            "dynamic",
            "severe",
            " ".join(evidence),
            "Attacks meet a network that changes, and the standard evaluation is not made for it: evaluate it "
            "without its adaptation too, and attack it with an attack that takes the adaptation into account. Its "
            "weights and buffers were put back before each verdict and at the end.",
        )


def flag_batch_dependent(findings: Findings) -> Iterator[Flag]:
    """An image's answer depends on the images beside it."""
    difference = findings.clean.batch_difference
    if difference:
        yield Flag(
            "batch-dependent",
            "severe",
            "The network takes no image alone."
            if difference == float("inf")
            else f"The same image beside other images gives outputs that differ by {difference:.1e} of their length.",
            "Batch normalisation without running statistics does this, as does any statistic over a batch: take "
            "statistics from the image or from running averages. As it is, each number holds for this batch_size, "
            "physical_batch_size and order alone.",
        )


def flag_no_decision(findings: Findings) -> Iterator[Flag]:
    """The outputs are the same for all classes."""
    clean, candidates = findings.clean.undecided, _count_candidates(findings, "undecided")
    if clean + candidates:
        yield Flag(
            "no-decision",
            "severe",
            f"The outputs for {clean} of {findings.points} clean images and for {candidates} candidates are the same "
            f"for all classes.",
            "They count as misclassified, since an abstention is no class: find out why the network abstains (dead "
            "units, an overflow, a constant branch).",
        )


def flag_ties(findings: Findings) -> Iterator[Flag]:
    """The outputs are largest at the label and at another class, more often than by chance."""
    clean, candidates = findings.clean.tied, _count_candidates(findings, "tied")
    if clean + candidates > CHANCE:
        yield Flag(
            "ties",
            "warning",
            f"The outputs for {clean} of {findings.points} clean images and for {candidates} candidates are largest at "
            f"the label and at another class.",
            "The first of such classes counts, as in AutoAttack's own code, so points may count as robust by this rule "
            "alone: let the network round less (no half precision, no quantisation of its outputs).",
        )


def _count_candidates(findings: Findings, kind: str) -> int:
    return int(sum(progress.counts[kind] for progress in findings.progress.values()))
