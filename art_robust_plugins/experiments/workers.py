"""Jobs that are independent of each other, shared out among processes of this machine."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from typing import Any, TypeVar

import torch

Result = TypeVar("Result")


def share_out(
    work: Callable[..., Result],
    jobs: Sequence[tuple[Any, ...]],
    workers: int,
    *,
    command: str,
    finished: Callable[[int, Result], None],
) -> list[Result]:
    """Do each job in one of several processes, which take one thread each on a CPU, and the GPUs in turn.

    Args:
        work: a function of a module, called with the arguments of a job.
        jobs: the arguments of each. They are begun in this order.
        workers: how many processes.
        command: what the sentence names when a process dies.
        finished: called here with the place of a job among all and its result, as each one ends.

    Returns:
        The results in the order of the jobs, whatever the order in which they ended.

    Raises:
        OSError: a process died. What ``work`` raises is raised as it is, and ends the other jobs.
    """
    # A CUDA device cannot be used in forked processes.
    context = multiprocessing.get_context("spawn")
    numbers = context.SimpleQueue()
    for number in range(workers):
        numbers.put(number)
    with ProcessPoolExecutor(workers, context, initializer=_begin_worker, initargs=(numbers,)) as pool:
        places: dict[Future[Result], int] = {}
        try:
            with _hold_interrupts():
                places |= {pool.submit(work, *job): place for place, job in enumerate(jobs)}
            for future in as_completed(places):
                finished(places[future], future.result())
        except BrokenProcessPool as error:
            raise OSError(
                f"{command}: a worker died, for want of memory perhaps; the same command goes on, maybe with fewer."
            ) from error
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            for child in multiprocessing.active_children():
                child.terminate()
            raise
    return [future.result() for future in places]


@contextmanager
def _hold_interrupts() -> Iterator[None]:
    """A context: processes started in it get Ctrl-C when they unblock it, not as a traceback of their imports."""
    if not hasattr(signal, "pthread_sigmask"):  # on Windows
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _begin_worker(numbers: Any) -> None:
    # Ctrl-C ends each worker without a word: the process that started them speaks.
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    if hasattr(signal, "pthread_sigmask"):
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
    threading.Thread(target=_end_with_parent, daemon=True).start()
    number = numbers.get()
    if torch.cuda.is_available():
        torch.cuda.set_device(number % torch.cuda.device_count())
    else:
        torch.set_num_threads(1)


def _end_with_parent() -> None:
    """A worker whose parent was killed would wait for jobs for ever."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)
