"""The beginning and end of commands: alone or among several processes, in a folder, interrupted."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from ..locks import check_output_folder
from ..processes import find_processes
from ..training.processes import Processes

_WHOLE = "each process holds the whole network here"

_LAUNCHER_SETTINGS = (
    ("ACCELERATE_MIXED_PRECISION", ("no", "bf16"), "--mixed-precision bf16 asks for the latter"),
    ("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", ("1",), "--accumulation-steps cuts batches into parts here"),
    ("ACCELERATE_DYNAMO_BACKEND", ("no",), "--compile default goes through torch.compile here"),
    ("ACCELERATE_USE_FSDP", ("false",), _WHOLE),
    ("ACCELERATE_USE_DEEPSPEED", ("false",), _WHOLE),
    ("ACCELERATE_USE_MEGATRON_LM", ("false",), _WHOLE),
    ("ACCELERATE_USE_PARALLELISM_CONFIG", ("false",), _WHOLE),
)
"""A variable that ``accelerate launch`` sets -> its values that are supported, and the advice for all others."""


def part() -> None:
    """Several processes end together: one that is still connected could be torn down in the middle of its exit."""
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        here = find_processes()
        Processes(here.device, moment="at the end", advice="its own message says why.").wait()
        here.destroy_process_group()


def is_main() -> bool:
    """Whether this process writes and speaks."""
    return bool(find_processes().is_main_process)


def check_alone(command: str) -> None:
    """Refuse several processes in a command that does not share out its work: each would write the same files."""
    if find_processes().num_processes > 1:
        raise ValueError(f"{command}: got several processes, expected one; start it without a launcher.")


def check_launcher() -> None:
    """Refuse what ``accelerate launch`` was asked for and the training would leave out."""
    for name, wanted, instead in _LAUNCHER_SETTINGS:
        value = os.environ.get(name)
        if value is not None and value.lower() not in wanted:
            raise ValueError(f"{name}: got {value!r}, expected {' or '.join(map(repr, wanted))}; {instead}.")


def check_output(name: str, folder: Path, files: Collection[str]) -> None:
    """Refuse, in all processes, a folder that the main one cannot write to."""
    Processes(find_processes().device).do_in_main(lambda: check_output_folder(name, folder, files))


@contextmanager
def advise_on_interrupt(advice: str) -> Iterator[None]:
    """Say how to go on when Ctrl-C stops the work inside, or SIGTERM, which a launcher sends where another one died."""

    def end(*_: object) -> None:
        print(f"\nended by SIGTERM; {advice}", file=sys.stderr, flush=True)
        sys.exit(128 + signal.SIGTERM)

    before = signal.signal(signal.SIGTERM, end)
    try:
        yield
    except KeyboardInterrupt:
        if os.environ.get("RANK", "0") == "0":
            print(f"\n{advice}", file=sys.stderr)
        raise
    finally:
        signal.signal(signal.SIGTERM, before)
