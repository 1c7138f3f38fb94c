"""The machine's memory, to which sizes that a file declares are compared."""

from __future__ import annotations

import os


def physical_memory() -> int:
    """The bytes of this machine's memory; where the system does not tell, 16 GB."""
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):  # no such call, no such name
        return 16 * 2**30


def in_gigabytes(size: int) -> str:
    """A number of bytes as text."""
    return f"{size / 2**30:.3g} GB"
