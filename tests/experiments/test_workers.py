"""Jobs shared out among processes: in which order results come, and what happens when a process dies."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from art_robust_plugins.experiments.workers import share_out


def wait_for(there: str, made: str) -> tuple[str, int]:
    """Ends once the file ``there`` is there, and makes another."""
    while there and not Path(there).exists():
        time.sleep(0.01)
    Path(made).touch()
    return made, os.getpid()


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def ignore(*_: Any) -> None:
    pass


@pytest.mark.slow
def test_results_have_the_order_of_the_jobs_whichever_ends_first(tmp_path: Path) -> None:
    ended: list[int] = []
    one, two = str(tmp_path / "one"), str(tmp_path / "two")
    jobs = [(two, one), ("", two)]  # the first waits for the second
    results = share_out(wait_for, jobs, 2, command="c", finished=lambda place, _: ended.append(place))
    assert [made for made, _ in results] == [one, two]
    assert sorted(ended) == [0, 1]
    assert len({pid for _, pid in results} | {os.getpid()}) == 3


@pytest.mark.slow
def test_the_death_of_a_worker_is_told_of() -> None:
    with pytest.raises(OSError, match=r"^c: a worker died"):
        share_out(die, [()], 1, command="c", finished=ignore)


ORPHANED = """
import sys
sys.path.insert(0, sys.argv[1])
from experiments import test_workers
if __name__ == "__main__":
    test_workers.share_out(test_workers.report_and_sleep, [()], 1, command="c", finished=test_workers.ignore)
"""


def report_and_sleep() -> None:
    print("begun", flush=True)
    time.sleep(30)
    print("nobody stopped it", flush=True)


@pytest.mark.slow
def test_workers_end_with_the_process_that_began_them(tmp_path: Path) -> None:
    script = tmp_path / "orphaned.py"
    script.write_text(ORPHANED)
    command = [sys.executable, str(script), str(Path(__file__).parents[1])]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, env=os.environ)
    assert process.stdout is not None
    assert process.stdout.readline() == b"begun\n"
    process.kill()
    assert process.stdout.read() == b""  # which ends when the worker does: it holds the other end of the pipe
    process.stdout.close()
    process.wait()
