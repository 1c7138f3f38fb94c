"""Running the networks of a recipe one after the other, or distributed over processes."""

from __future__ import annotations

import multiprocessing
import signal
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any

import torch

from ...terminal import console
from .networks import measure_network
from .recipe import Recipe, Row

Job = tuple[Recipe, Row, int, Path]


def measure_in_turn(jobs: Sequence[Job]) -> list[dict[str, Any]]:
    results = []
    for number, job in enumerate(jobs, 1):
        console.print(f"{job[1].name}, seed {job[2]} ({number} of {len(jobs)})", style="bold")
        results.append(measure_network(*job))
    return results


def share_out(jobs: Sequence[Job], workers: int) -> list[dict[str, Any]]:
    # A CUDA device cannot be used in forked processes. Ctrl-C ends each without a word: the first one speaks.
    context = multiprocessing.get_context("spawn")
    numbers = context.SimpleQueue()
    for number in range(workers):
        numbers.put(number)
    with ProcessPoolExecutor(workers, context, initializer=_begin_worker, initargs=(numbers,)) as pool:
        futures = {pool.submit(measure_network, *job, verbose=False): job for job in jobs}
        try:
            for number, future in enumerate(as_completed(futures), 1):
                future.result()
                _, row, seed, _ = futures[future]
                console.print(f"{row.name}, seed {seed}: done ({number} of {len(jobs)})")
        except BrokenProcessPool as error:
            raise OSError(
                "benchmark: a worker died, for want of memory perhaps; the same command goes on, maybe with fewer."
            ) from error
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            for child in multiprocessing.active_children():
                child.terminate()
            raise
    return [future.result() for future in futures]


def _begin_worker(numbers: Any) -> None:
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    number = numbers.get()
    if torch.cuda.is_available():
        torch.cuda.set_device(number % torch.cuda.device_count())
    else:
        torch.set_num_threads(1)
