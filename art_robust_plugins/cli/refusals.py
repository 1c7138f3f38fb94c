"""Sentences for words that a command refuses, in the form of every other refusal."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from importlib import import_module
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import typer

# Newer versions of typer have click's exceptions in a module of their own.
_exceptions: Any = import_module(typer.BadParameter.__module__)
UsageError: type[Exception] = _exceptions.UsageError
HELP_ERROR = "NoArgsIsHelpError"
"""The name of the exception that typer raises for a command without words; its text is the help."""

_KINDS = {int: "a whole number", float: "a number", Path: "a path", str: "a value"}


def explain_usage(error: Exception, command: Any, context: Any, words: Sequence[str], function: Any) -> str:
    """The sentence for words that typer refused.

    Args:
        error: what typer raised.
        command: the command, as typer made it.
        context: the context in which it was read.
        words: those after the command's name.
        function: what the command calls, whose annotations say what is expected.
    """
    if isinstance(error, _exceptions.NoSuchOption):
        option = str(error.option_name)
        known = [name.lstrip("-") for each in command.params if each.param_type_name == "option" for name in each.opts]
        from ..checks import find_nearest  # which imports NumPy

        near = find_nearest(option.lstrip("-"), [*known, "help"])
        hint = "." if near is None else f"; did you mean --{near}?"
        return (
            f"{option}: got an unknown option, expected one of those that {_name_command(command)} --help shows{hint}"
        )
    if isinstance(error, _exceptions.BadOptionUsage):
        return _explain_option(str(error.option_name), command, words, function)
    parameter = getattr(error, "param", None)
    if parameter is None:
        return _explain_rest(error, command, context, words)
    if isinstance(error, _exceptions.MissingParameter):
        return f"{show_name(parameter)}: got none, expected {_describe(parameter, function)}."
    return _explain_value(error, parameter, _read_words(command, context, words)[0].get(parameter.name), function)


def check_paths(command: Any, context: Any, words: Sequence[str], function: Any) -> None:
    """Refuse an empty path, as of a shell's variable that is not set, which would be the current folder.

    Raises:
        ValueError: names the option or argument.
    """
    values = _read_words(command, context, words)[0]
    for parameter in command.params:
        given = values.get(parameter.name)
        several = given if isinstance(given, list | tuple) else [given]
        if _read_annotation(parameter.name, function)[0] is Path and "" in several:
            raise ValueError(f"{show_name(parameter)}: got '', expected a path.")


def show_name(parameter: Any) -> str:
    """An option by its longest name, an argument by the first word that stands for it in the help."""
    if parameter.param_type_name == "option":
        return str(max(parameter.opts, key=len))
    return str(parameter.metavar or parameter.name.upper()).split(" ")[0]


def _explain_value(error: Exception, parameter: Any, given: Any, function: Any) -> str:
    """Explain a value that a parameter does not take."""
    told, refused = _expect(parameter.name, function)
    values = list(given) if isinstance(given, list | tuple) else [given]
    value = next((each for each in values if refused(each)), values[-1] if values else None)
    if told is None:
        return f"{show_name(parameter)}: got {value!r}, expected another value ({str(error).rstrip('.')})."
    from ..checks import suggest

    hint = suggest(value, _find_choices(parameter.name, function))
    return f"{show_name(parameter)}: got {value!r}, expected {told}{hint}"


def _explain_rest(error: Exception, command: Any, context: Any, words: Sequence[str]) -> str:
    """Explain words that belong to no parameter."""
    rest = _read_words(command, context, words)[1]
    taken = [show_name(each) for each in command.params if each.param_type_name == "argument"]
    if not rest:
        return f"{str(error).rstrip('.')}."
    return (
        f"{_name_command(command)}: got the word {rest[-1]!r} too much, expected {' '.join(taken) or 'options'} alone; "
        f"an option that takes several values is repeated, and a value with spaces stands in quotes."
    )


def _explain_option(option: str, command: Any, words: Sequence[str], function: Any) -> str:
    """Explain an option without its value, or a switch with one."""
    parameter = next((each for each in command.params if option in (*each.opts, *each.secondary_opts)), None)
    given = next((word.partition("=")[2] for word in words if word.startswith(f"{option}=")), None)
    if given is not None or parameter is None:
        return f"{option}: got {given!r}, expected no value: it is a switch."
    return f"{option}: got no value, expected {_describe(parameter, function)}."


def _describe(parameter: Any, function: Callable[..., Any]) -> str:
    """Describe the value that a parameter takes; for an argument, by its help."""
    purpose = str(getattr(_read_annotation(parameter.name, function)[1], "help", None) or "").rstrip(".")
    purpose = purpose[:1].lower() + purpose[1:]
    if parameter.param_type_name == "argument" and purpose:
        return purpose
    told, _ = _expect(parameter.name, function)
    return f"{told or 'a value'}{purpose and f' ({purpose})'}"


def _expect(name: str, function: Callable[..., Any]) -> tuple[str | None, Callable[[Any], bool]]:
    """Describe the values that a parameter takes, and return a test that tells whether a value is none of them."""
    kind, option = _read_annotation(name, function)
    choices = _find_choices(name, function)
    if choices:
        return f"one of {', '.join(map(repr, choices))}", lambda value: value not in choices
    if kind not in _KINDS:
        return None, lambda value: False
    least, most = getattr(option, "min", None), getattr(option, "max", None)
    bound = "" if least is None else f" of at least {least}" if most is None else f" from {least} to {most}"

    def refuses(value: Any) -> bool:
        try:
            return (least is not None and kind(value) < least) or (most is not None and kind(value) > most)
        except ValueError:
            return True

    return f"{_KINDS[kind]}{bound}", refuses


def _find_choices(name: str, function: Callable[..., Any]) -> tuple[str, ...]:
    kind, _ = _read_annotation(name, function)
    return get_args(kind) if get_origin(kind) is Literal else ()


def _read_annotation(name: str, function: Callable[..., Any]) -> tuple[Any, Any]:
    """The type of one value, without None and list, and typer's option or argument."""
    parameters = inspect.signature(function, eval_str=True).parameters
    if name not in parameters:
        return None, None
    kind, option = parameters[name].annotation, None
    if get_origin(kind) is Annotated:
        kind, option, *_ = get_args(kind)
    if get_origin(kind) in (Union, UnionType):
        kind = next((each for each in get_args(kind) if each is not NoneType), None)
    if get_origin(kind) is list:
        (kind,) = get_args(kind)
    return kind, option


def _name_command(command: Any) -> str:
    return "art-robust" if command.name in (None, "art-robust") else f"art-robust {command.name}"


def _read_words(command: Any, context: Any, words: Sequence[str]) -> tuple[dict[str, Any], list[str]]:
    """The values as they were given, by the parameters' names, and the words that belong to none."""
    values, rest, _ = command.make_parser(context).parse_args(list(words))
    return values, rest
