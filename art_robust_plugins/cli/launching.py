"""``--workers``: a command, started again as several processes of this machine that work together."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
import warnings
from contextlib import ExitStack
from typing import Annotated, Any

import typer

from .arguments import ARGUMENTS

WorkersOption = Annotated[
    int, typer.Option(help="Number of processes of this machine that share the work, and the threads.", min=1)
]

_STARTED = "ART_ROBUST_STARTED_WORKER"
# Of processes that work together, those that notice that another one failed say so; the rest are ended after so many
# seconds, which the first one may need to write a report that is finished.
_GRACE = 60.0


def share_with_workers(context: typer.Context, workers: int) -> None:
    """With several ``workers``, run the command of this context in that many processes, and leave with their exit code.

    With one, and in a process that this function has started, the command goes on.

    Raises:
        ValueError: more workers than GPUs, workers beside the processes of a launcher.
        ConnectionError: a worker died.
    """
    # These import torch, which the help does without.
    import torch

    from ..experiments.workers import release_interrupts

    if _STARTED in os.environ:
        threading.Thread(target=_end_with_starter, daemon=True).start()
        release_interrupts()
        return
    if workers == 1:
        return
    launched = os.environ.get("WORLD_SIZE", "1")
    if launched != "1":
        raise ValueError(f"--workers: got {workers} beside {launched} processes of a launcher, expected 1.")
    if torch.cuda.is_available() and workers > torch.cuda.device_count():
        raise ValueError(
            f"--workers: got {workers}, expected at most {torch.cuda.device_count()}, one for each GPU; with "
            f"--device cpu, they share the CPU."
        )
    cores = _count_cores()
    if workers > cores:
        text = f"--workers: {workers} processes share {cores} CPU cores; more than {cores} gain nothing."
        warnings.warn(text, stacklevel=2)
    given = [f"--{option}" for option in ("debug", "quiet") if context.find_root().params.get(option)]
    command = [sys.executable, "-m", "art_robust_plugins", *given, str(context.info_name), *context.meta[ARGUMENTS]]
    raise typer.Exit(_Workers(command, workers, max(1, cores // workers)).run())


class _Workers:
    """One command in several processes. Only the first one speaks; what others say is kept for the case of an error."""

    def __init__(self, command: list[str], count: int, threads: int) -> None:
        self.command, self.count, self.threads = command, count, threads
        self.processes: list[subprocess.Popen[bytes]] = []
        self.error_files: list[Any] = []

    def run(self) -> int:
        """Run all processes to their end, and return the exit code.

        Raises:
            ConnectionError: a worker died.
        """
        from torch.distributed import TCPStore  # type: ignore[attr-defined]

        from ..experiments.workers import hold_interrupts

        before = signal.signal(signal.SIGTERM, _exit_on_signal)
        with ExitStack() as stack:
            stack.callback(signal.signal, signal.SIGTERM, before)
            stack.callback(self._end)
            # The processes meet at this store, which has a free port.
            store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
            try:
                with hold_interrupts():
                    for rank in range(self.count):
                        self.error_files.append(stack.enter_context(tempfile.TemporaryFile()))
                        self.processes.append(self._start(rank, store.port))
                self._wait()
            except KeyboardInterrupt:  # the first one says how to go on
                self._send(signal.SIGINT)
                self._wait()
                return 130
            return self._conclude()

    def _start(self, rank: int, port: int) -> subprocess.Popen[bytes]:
        environment = {
            "OMP_NUM_THREADS": str(self.threads),
            **os.environ,
            _STARTED: "1",
            "RANK": str(rank),
            "LOCAL_RANK": str(rank),
            "WORLD_SIZE": str(self.count),
            "LOCAL_WORLD_SIZE": str(self.count),
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(port),
            "TORCHELASTIC_USE_AGENT_STORE": "True",
        }
        speaks = rank == 0
        return subprocess.Popen(
            self.command,
            env=environment,
            stdin=subprocess.PIPE,  # which closes when this process ends
            stdout=None if speaks else subprocess.DEVNULL,
            stderr=None if speaks else self.error_files[rank],
            start_new_session=True,  # a terminal's Ctrl-C reaches them through this process, once
        )

    def _wait(self) -> None:
        """Wait until all have ended, or for a while after one failed."""
        deadline = None
        while any(process.poll() is None for process in self.processes):
            if deadline is None and any(process.poll() for process in self.processes):
                deadline = time.monotonic() + _GRACE
            if deadline is not None and time.monotonic() > deadline:
                return
            time.sleep(0.05)

    def _send(self, number: signal.Signals) -> None:
        for process in self.processes:
            if process.poll() is None:
                process.send_signal(number)

    def _end(self) -> None:
        self._send(signal.SIGTERM)
        for process in self.processes:
            try:
                process.wait(_GRACE)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()

    def _conclude(self) -> int:
        codes = [process.poll() for process in self.processes]
        if codes[0] == 2 or not any(codes):  # bad input, about which the others say the same
            return codes[0] or 0
        for error in self.error_files[1:]:
            error.seek(0)
            print(error.read().decode(errors="replace"), end="", file=sys.stderr)
        for rank, code in enumerate(codes):
            if code is not None and code < 0:
                raise ConnectionError(
                    f"--workers: process {rank} died of {signal.Signals(-code).name}, for want of memory perhaps; the "
                    f"same command goes on, maybe with fewer."
                )
        return next(code for code in codes if code)


def _exit_on_signal(number: int, _: object) -> None:
    sys.exit(128 + number)


def _end_with_starter() -> None:
    """A worker whose starter was killed would go on with nobody to end it."""
    os.read(0, 1)  # the standard input, which nothing is ever written to
    os._exit(1)


def _count_cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
