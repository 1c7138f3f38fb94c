"""The command line's frame: the commands by name, what holds for all of them, and the entry point.

A command's module, and with it torch and ART, is imported when the command is asked for: ``--help``, ``--version`` and
completion answer at once.
"""

from __future__ import annotations

import os
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from functools import partial
from importlib import import_module
from typing import Annotated, Any

import typer
import typer.core
import typer.main

from ..escapes import printable
from ..memory import keep_freed_memory
from .arguments import ARGUMENTS
from .refusals import HELP_ERROR, UsageError, check_paths, explain_usage
from .spellings import replace_spellings
from .translation import translate

COMMANDS = {
    "demo": "Train, attack and compare every method on one page.",
    "train": "Train a network with one method and save it.",
    "evaluate": "Attack a trained network and write a report.",
    "certify": "Prove radii in which predictions cannot change.",
    "report": "Compare evaluated runs on one page.",
    "export": "Write a trained network to a file of its own.",
    "benchmark": "Run a recipe: train, attack and compare networks.",
    "methods": "List the methods and instruments, or show one.",
    "attacks": "List the suites and attacks.",
}
"""Each command, whose module and function have its name, and what it does in at most 55 letters."""

EVERYWHERE = ("--version", "--debug", "--quiet")
"""Options of all commands."""


class Command(typer.core.TyperCommand):
    """A command that takes earlier spellings of its options too, and refuses words in one sentence."""

    function: Any = None
    """The Python function behind the command."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        ctx.meta[ARGUMENTS] = list(args)
        words = replace_spellings(self.name, args)
        if ctx.resilient_parsing:
            return super().parse_args(ctx, words)
        if ctx.parent is not None and ctx.parent.params["quiet"]:
            words = _be_quiet(self, words)
        try:
            rest = super().parse_args(ctx, list(words))
            check_paths(self, ctx, words, self.function)
            return rest
        except UsageError as error:
            raise ValueError(explain_usage(error, self, ctx, words, self.function)) from error


def _be_quiet(command: Command, words: list[str]) -> list[str]:
    """Add ``--quiet`` to the words of a command that has the option."""
    return ["--quiet", *words] if any(each.name == "quiet" for each in command.params) else words


class LoadedCommands(Mapping[str, Any]):
    """The commands by name, each imported when it is asked for."""

    def __getitem__(self, name: str) -> Any:
        if name not in COMMANDS:
            raise KeyError(name)
        frame = typer.Typer(add_completion=False, rich_markup_mode=None)
        function = getattr(import_module(f"{__package__}.{name}"), name)
        frame.command(name, cls=Command, short_help=COMMANDS[name])(function)
        command: Any = typer.main.get_command(frame)
        command.function = function
        return command

    def __iter__(self) -> Iterator[str]:
        return iter(COMMANDS)

    def __len__(self) -> int:
        return len(COMMANDS)


class Commands(typer.core.TyperGroup):
    """Ends bad input with one sentence and exit code 2, a failed run with 1, Ctrl-C with 130; --debug shows all.

    Of several processes each says why it ended: it may be the only one that knows.
    """

    def __init__(self, **settings: Any) -> None:
        super().__init__(**{**settings, "commands": {}})
        self.commands: Any = LoadedCommands()

    def list_commands(self, ctx: Any) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        """A command's name and short help, which is all that lists and completion need."""
        text = COMMANDS.get(cmd_name)
        return None if text is None else Command(cmd_name, help=text, short_help=text)

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """The options that hold for all commands stand before the command or after it."""
        if ctx.resilient_parsing:
            return super().parse_args(ctx, args)
        end = args.index("--") if "--" in args else len(args)
        moved = [word for word in args[:end] if word in EVERYWHERE]
        words = [*moved, *(word for word in args[:end] if word not in EVERYWHERE), *args[end:]]
        try:
            return super().parse_args(ctx, list(words))
        except UsageError as error:
            if type(error).__name__ == HELP_ERROR:
                raise
            print(f"error: {printable(explain_usage(error, self, ctx, words, options))}", file=sys.stderr)
            sys.exit(2)

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        if args[0] not in COMMANDS and not ctx.resilient_parsing:
            from ..checks import suggest  # which imports NumPy

            known, known_words = ", ".join(COMMANDS), [*COMMANDS, "--help", "--version"]
            raise ValueError(f"COMMAND: got {args[0]!r}, expected one of {known}{suggest(args[0], known_words)}")
        name, found, rest = super().resolve_command(ctx, args)
        return name, None if found is None else self.commands[found.name], rest

    def invoke(self, ctx: Any) -> Any:
        keep_freed_memory()
        try:
            with nullcontext() if ctx.params["debug"] else _warnings_in_one_line(partial(self._translate, ctx=ctx)):
                result = super().invoke(ctx)
            if "torch" in sys.modules:  # else there are no processes to part from
                from .running import part

                part()
            return result
        except KeyboardInterrupt:
            print("stopped", file=sys.stderr)
            sys.exit(130)
        except (FloatingPointError, ValueError, TypeError, ImportError, OSError) as error:
            if ctx.params["debug"]:
                raise
            rank = os.environ.get("RANK", "0")
            sentence = self._translate(str(error), ctx)
            told = "\n".join(map(printable, sentence.split("\n")))
            print(f"error{'' if rank == '0' else f' in process {rank}'}: {told}", file=sys.stderr)
            sys.exit(1 if isinstance(error, FloatingPointError | ConnectionError) else 2)

    def _translate(self, sentence: str, ctx: Any) -> str:
        """A sentence about an argument of Python in the words of the command that runs."""
        name = ctx.invoked_subcommand
        return translate(sentence, self.commands[name], ctx.meta.get(ARGUMENTS, ())) if name in COMMANDS else sentence


@contextmanager
def _warnings_in_one_line(translate: Callable[[str], str]) -> Iterator[None]:
    """Show warnings to users as sentences, without the place in the code, which says nothing to a user here."""
    before = warnings.formatwarning

    def format_warning(message: Warning | str, category: type[Warning], *rest: Any, **more: Any) -> str:
        if not issubclass(category, UserWarning):
            return before(message, category, *rest, **more)
        return "".join(f"{printable(line)}\n" for line in f"warning: {translate(str(message))}".split("\n"))

    warnings.formatwarning = format_warning
    try:
        yield
    finally:
        warnings.formatwarning = before


app = typer.Typer(
    name="art-robust",
    cls=Commands,
    help="Train robust classifiers with ART and PyTorch, and measure how robust they are.\n\n"
    "Begin with: art-robust demo --out runs/demo",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _show_version(asked: bool) -> None:
    if asked:
        from .. import __version__

        print(f"art-robust {__version__}")
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[
        bool, typer.Option("--version", help="Show the version and exit.", callback=_show_version, is_eager=True)
    ] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show the place in the code that an error came from.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", help="Show the results, but no progress.")] = False,
) -> None:
    """``debug`` is read by `Commands`, ``quiet`` by `Command`; both may stand after the command too."""
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
