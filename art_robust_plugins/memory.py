"""The machine's memory, to which sizes that a file declares are compared, and how freed memory is kept."""

from __future__ import annotations

import ctypes
import os
import platform

# Parameters of glibc's mallopt, as malloc.h numbers them, and the variables by which a user sets them.
_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3
_SETTINGS = ("MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_THRESHOLD_", "GLIBC_TUNABLES")
_KEPT = 2**30


def physical_memory() -> int:
    """The bytes of this machine's memory; where the system does not tell, 16 GB."""
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):  # no such call, no such name
        return 16 * 2**30


def in_gigabytes(size: int) -> str:
    """A number of bytes as text."""
    return f"{size / 2**30:.3g} GB"


def keep_freed_memory() -> bool:
    """Have glibc keep up to 1 GiB of freed memory for this process; whether it does now.

    By default glibc returns large freed blocks to the system, and tensors of a training step are such blocks: the next
    step gets them back page by page. Nothing changes elsewhere, or where an environment variable sets glibc's memory.
    """
    return _set_glibc(_TRIM_THRESHOLD, _KEPT) and _set_glibc(_MMAP_THRESHOLD, _KEPT)


def return_large_blocks() -> bool:
    """Have glibc return blocks of 1 MiB and more to the system when they are freed; whether it does now.

    By default it keeps those of up to 32 MiB, as soon as one was freed; between others, they add up to gigabytes.
    Nothing changes elsewhere, or where an environment variable sets glibc's memory.
    """
    return _set_glibc(_MMAP_THRESHOLD, 2**20)


def _set_glibc(parameter: int, value: int) -> bool:
    if platform.libc_ver()[0] != "glibc" or any(name in os.environ for name in _SETTINGS):
        return False
    return bool(ctypes.CDLL(None).mallopt(parameter, value) == 1)
