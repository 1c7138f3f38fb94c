"""The machine's memory, to which sizes that a file declares are compared."""

from __future__ import annotations

import ctypes
import os

_MMAP_THRESHOLD = -3  # glibc's M_MMAP_THRESHOLD


def physical_memory() -> int:
    """The bytes of this machine's memory; where the system does not tell, 16 GB."""
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):  # no such call, no such name
        return 16 * 2**30


def in_gigabytes(size: int) -> str:
    """A number of bytes as text."""
    return f"{size / 2**30:.3g} GB"


def return_large_blocks() -> None:
    """From now on, blocks of 1 MiB and more go back to the system when they are freed, also under glibc.

    It would keep those of up to 32 MiB, as soon as one was freed; between others, they add up to gigabytes.
    """
    set_option = getattr(ctypes.CDLL(None), "mallopt", None) if os.name == "posix" else None
    if set_option is not None:
        set_option(_MMAP_THRESHOLD, 2**20)
