"""Several processes that evaluate together: sharing the main process's results, and gathering everyone's."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from functools import cache
from typing import Any, TypeVar

import torch
from accelerate import PartialState
from torch import Tensor

from ..checks import quote_error

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
    with _together():
        torch.distributed.broadcast_object_list(outcome, group=_make_patient_group())
    if isinstance(outcome[0], Exception):
        raise outcome[0]
    found: _Found = outcome[0]
    return found


def gather_from_all(processes: PartialState, own: _Found) -> list[_Found]:
    """Each process's value of ``own``, in the order of the processes."""
    if processes.num_processes == 1:
        return [own]
    shares: list[Any] = [None] * processes.num_processes
    with _together():
        torch.distributed.all_gather_object(shares, own, group=_make_patient_group())
    return shares


class RowPartners:
    """All processes, which attack the same points together; see `Partners` of the attacks."""

    def __init__(self, processes: PartialState) -> None:
        self.count = int(processes.num_processes)

    def merge(self, flags: Tensor) -> Tensor:
        """The flags, bool [n], that hold in all processes."""
        merged = flags.to(device="cpu", dtype=torch.uint8, copy=True)
        self._reduce_to_least(merged)
        return merged.to(device=flags.device, dtype=torch.bool)

    def find_least(self, value: int) -> int:
        """The smallest of the processes' numbers."""
        least = torch.tensor(value, device="cpu")
        self._reduce_to_least(least)
        return int(least)

    def _reduce_to_least(self, values: Tensor) -> None:
        if self.count > 1:
            with _together():
                torch.distributed.all_reduce(values, torch.distributed.ReduceOp.MIN, group=_make_patient_group())


@contextmanager
def _together() -> Iterator[None]:
    """Say that another process ended where that is why something that all do together fails."""
    try:
        yield
    except RuntimeError as error:
        raise ConnectionError(
            f"another process ended during the evaluation ({quote_error(error)}); with a state_dir, the same "
            f"evaluation started again goes on where it was."
        ) from error


@cache
def _make_patient_group() -> Any:
    """A group of all processes without a timeout: one may wait as long as another's attack takes.

    It exchanges what is in a CPU's memory, also where the processes compute on GPUs.
    """
    return torch.distributed.new_group(timeout=timedelta(days=7), backend="gloo")
