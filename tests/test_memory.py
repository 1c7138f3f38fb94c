"""Freed memory stays with the process, or returns to the system, as glibc is asked to."""

from __future__ import annotations

import os
import platform
import subprocess
import sys

import pytest

# The pages that a process holds after it freed 64 MiB, beyond those that it held before.
SCRIPT = """
import ctypes
from pathlib import Path
from art_robust_plugins.memory import keep_freed_memory

def count():
    return int(Path("/proc/self/statm").read_text().split()[1])

kept = keep_freed_memory()
libc = ctypes.CDLL(None)
libc.malloc.restype = ctypes.c_void_p
libc.free.argtypes = [ctypes.c_void_p]
before = count()
block = libc.malloc(ctypes.c_size_t(2**26))
ctypes.memset(block, 1, 2**26)
libc.free(block)
print(kept, (count() - before) * 4096 >= 2**25)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="the settings are glibc's")
@pytest.mark.parametrize(("variables", "kept"), [({}, True), ({"MALLOC_TRIM_THRESHOLD_": "131072"}, False)])
def test_freed_memory_is_kept_unless_the_user_set_it(variables: dict[str, str], kept: bool) -> None:
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("MALLOC_", "GLIBC_"))}
    found = subprocess.run(
        [sys.executable, "-c", SCRIPT], env={**environment, **variables}, capture_output=True, text=True, check=True
    )
    assert found.stdout.split() == [str(kept), str(kept)]


def test_nothing_is_set_without_glibc(monkeypatch: pytest.MonkeyPatch) -> None:
    from art_robust_plugins import memory

    monkeypatch.setattr(platform, "libc_ver", lambda: ("", ""))
    monkeypatch.setattr(memory.ctypes, "CDLL", None)
    assert not memory.keep_freed_memory()


@pytest.mark.parametrize("variable", ["MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_THRESHOLD_", "GLIBC_TUNABLES"])
def test_large_blocks_are_returned_unless_the_user_set_it(monkeypatch: pytest.MonkeyPatch, variable: str) -> None:
    from art_robust_plugins import memory

    calls: list[tuple[int, int]] = []

    class Libc:
        @staticmethod
        def mallopt(parameter: int, value: int) -> int:
            calls.append((parameter, value))
            return 1

    monkeypatch.setattr(platform, "libc_ver", lambda: ("glibc", "2.36"))
    monkeypatch.setattr(memory.ctypes, "CDLL", lambda _: Libc)
    for name in ("MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_THRESHOLD_", "GLIBC_TUNABLES"):
        monkeypatch.delenv(name, raising=False)
    assert memory.return_large_blocks()
    assert calls == [(-3, 2**20)]  # M_MMAP_THRESHOLD of malloc.h
    monkeypatch.setenv(variable, "131072")
    assert not memory.return_large_blocks()
    assert len(calls) == 1
