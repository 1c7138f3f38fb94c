"""Several processes that evaluate together: sharing the main process's results, and gathering everyone's."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from functools import cache
from typing import Any, TypeVar

import torch
from accelerate import PartialState

_Found = TypeVar("_Found")


def share_from_main(processes: PartialState, work: Callable[[], _Found]) -> _Found:
    """The result of ``work`` in the main process, for all processes; an exception is raised in all."""
    if processes.num_processes == 1:
        return work()
    outcome: list[Any] = [None]
    if processes.is_main_process:
        try:
            outcome = [work()]
        except Exception as error:
            outcome = [error]
    torch.distributed.broadcast_object_list(outcome, group=_make_patient_group())
    if isinstance(outcome[0], Exception):
        raise outcome[0]
    found: _Found = outcome[0]
    return found


def gather_from_others(processes: PartialState, own: _Found) -> list[_Found]:
    """The other processes' values of ``own``."""
    if processes.num_processes == 1:
        return []
    shares: list[Any] = [None] * processes.num_processes
    torch.distributed.all_gather_object(shares, own, group=_make_patient_group())
    del shares[processes.process_index]
    return shares


@cache
def _make_patient_group() -> Any:
    """A group of all processes without a timeout: one may wait as long as another's attack takes."""
    return torch.distributed.new_group(timeout=timedelta(days=7))
