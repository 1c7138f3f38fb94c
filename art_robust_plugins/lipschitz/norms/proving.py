"""The settings of everything that proves norms: how much work a proof may take, and where proofs are kept."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path

import torch

from ...checks import check_flag, check_number, check_path

OPERATIONS = {"cpu": 2e12, "cuda": 1e14}
"""Floating-point operations that one factorisation may take, by the type of device: about half a minute to a minute."""

MEMORY = 4 * 2**30
"""Bytes that a proof may use."""


@dataclass(frozen=True)
class ProofSettings:
    """See `configure_proofs`; None stands for the default of the device."""

    operations: float | None = None
    memory: float = MEMORY
    cache_dir: Path | None = None
    verbose: bool = True

    def allows(self, operations: float, memory: float, device: torch.device) -> bool:
        """Whether a proof may be tried that takes so many operations and bytes."""
        return operations <= self.find_limit(device) and memory <= self.memory

    def allows_more(self, other: ProofSettings, device: torch.device) -> bool:
        """Whether these settings allow all proofs that the others do, and more."""
        own, theirs = ((each.find_limit(device), each.memory) for each in (self, other))
        return own != theirs and all(mine >= limit for mine, limit in zip(own, theirs, strict=True))

    def find_limit(self, device: torch.device) -> float:
        """The most operations of one factorisation on a device."""
        return OPERATIONS.get(device.type, OPERATIONS["cpu"]) if self.operations is None else self.operations


_current: ContextVar[ProofSettings | None] = ContextVar("proof_settings", default=None)


def proof_settings() -> ProofSettings:
    """The settings in force."""
    return _current.get() or ProofSettings()


@contextmanager
def configure_proofs(
    *,
    operations: float | None = None,
    memory: float | None = None,
    cache_dir: str | Path | None = None,
    verbose: bool = True,
) -> Iterator[None]:
    """A context in which proofs of norms of convolutions may take more work, or less, and are kept in a folder.

    A convolution's norm is proven by factorising a banded matrix, as far as that takes no more than ``operations`` and
    ``memory``; beyond, a bound on a frequency grid takes its place, which may be some percent above the norm. Reports
    name the proof: ``cholesky`` or ``grid``.

    It counts in the thread that enters it, and replaces an outer one as a whole. What a certifier has proven already it
    proves again only where both limits are at least what they were, one is higher, and some norm is one by the grid.

    Args:
        operations: floating-point operations of one factorisation, of which a layer takes one or a few; a core does
            some 2e10 to 8e10 in a second. None: 2e12 on a CPU, 1e14 on a GPU. 0: no factorisation.
        memory: bytes that a proof may use; None: 4 GiB.
        cache_dir: a folder that keeps proven norms by the digest of weight and geometry, so that they are not proven
            anew; it is made if it is not there. A norm that is read from it is **believed**: name a folder in
            which only people write whom you trust as you trust this program. Where a norm cannot be written, a warning
            says so. None: nothing is kept or read.
        verbose: show the progress of proofs that take more than some seconds.

    Raises:
        ValueError: for numbers that are negative or NaN, a cache_dir that is no folder and cannot be made, or a verbose
            that is no bool.

    Example:
        >>> from art_robust_plugins.lipschitz import Convolution
        >>> operator = Convolution(torch.ones(1, 1, 3, 3), (8, 8), padding=1, stride=2)
        >>> with configure_proofs(operations=0):
        ...     operator.upper_bound().method
        'grid'
        >>> operator.upper_bound().method
        'cholesky'
    """
    check_flag("verbose", verbose)
    settings = ProofSettings(
        None if operations is None else check_number("operations", operations, zero=True),
        MEMORY if memory is None else check_number("memory", memory, zero=True),
        None if cache_dir is None else check_path("cache_dir", cache_dir),
        verbose,
    )
    if settings.cache_dir is not None:
        _make_folder(settings.cache_dir)
    token = _current.set(settings)
    try:
        yield
    finally:
        _current.reset(token)


def _make_folder(path: Path) -> None:
    """Make the folder before anything is proven, which may take minutes."""
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ValueError(f"cache_dir: {path} is no folder and cannot be made ({error}), expected a folder.") from error
