"""The command line's frame: the group of commands, what holds for all of them, and its entry point."""

from __future__ import annotations

import os
import sys
from typing import Annotated, Any

import typer
import typer.core

from ..escapes import printable
from .running import part


class Commands(typer.core.TyperGroup):
    """Ends bad input with one sentence and exit code 2, a failed run with 1, Ctrl-C with 130; --debug shows all.

    Of several processes each says why it ended: it may be the only one that knows.
    """

    def invoke(self, ctx: Any) -> Any:
        try:
            result = super().invoke(ctx)
            part()
            return result
        except KeyboardInterrupt:
            print("stopped", file=sys.stderr)
            sys.exit(130)
        except (FloatingPointError, ValueError, TypeError, ImportError, OSError) as error:
            if ctx.params["debug"]:
                raise
            rank = os.environ.get("RANK", "0")
            told = "\n".join(map(printable, _name_option(str(error)).split("\n")))
            print(f"error{'' if rank == '0' else f' in process {rank}'}: {told}", file=sys.stderr)
            sys.exit(1 if isinstance(error, FloatingPointError | ConnectionError) else 2)


def _name_option(sentence: str) -> str:
    """A sentence about an argument that the command line gives by an option of another name, about that option."""
    name, colon, rest = sentence.partition(":")
    return f"--out{colon}{rest}" if name in ("checkpoint_dir", "state_dir") else sentence


app = typer.Typer(
    name="art-robust",
    cls=Commands,
    help="Train robust classifiers with ART and PyTorch, and measure how robust they are.\n\n"
    "Begin with: art-robust demo --out runs/demo",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)


@app.callback()
def options(
    debug: Annotated[bool, typer.Option("--debug", help="Show where an error came from.")] = False,
) -> None:
    """``debug`` is read by `Commands`."""
    asked_for_several = {"ACCELERATE_MIXED_PRECISION", "MASTER_PORT"} <= os.environ.keys()
    if asked_for_several and "RANK" not in os.environ:
        print(
            "note: accelerate launch started one process, as it does on CPUs however many are asked for; "
            "torchrun --nproc-per-node starts several.",
            file=sys.stderr,
        )


def main() -> None:
    """The entry point of ``art-robust`` and of ``python -m art_robust_plugins``."""
    app()
