"""Options of the command line that set fields of a dataclass: type and default are the field's own.

A setting is written once, in its dataclass. What stands here is how people call it on the command line.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from dataclasses import MISSING, dataclass, fields
from functools import wraps
from typing import Annotated, Any, get_type_hints

import typer

_FIELD: Any = object()


@dataclass(frozen=True)
class Setting:
    """An option for one field of a dataclass.

    Args:
        owner: the dataclass.
        field: the field's name, by which the command gets the value.
        option: the option's name; by default the field's, and for a switch also its negation.
        help: what it does.
        metavar: what stands for its value.
        min: the smallest whole number that it takes.
        kind: its type where the field takes more than one option can say.
        default: its default where that is not the field's.
    """

    owner: type
    field: str
    option: str | None = None
    help: str | None = None
    metavar: str | None = None
    min: int | None = None
    kind: Any = None
    default: Any = _FIELD

    def parameter(self) -> inspect.Parameter:
        """The parameter of a command, as typer reads it."""
        names = [] if self.option is None else [self.option]
        option = typer.Option(*names, help=self.help, metavar=self.metavar, min=self.min)
        kind = get_type_hints(self.owner)[self.field] if self.kind is None else self.kind
        default = default_of(self.owner, self.field) if self.default is _FIELD else self.default
        return inspect.Parameter(
            self.field, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=Annotated[kind, option]
        )


def default_of(owner: type, name: str) -> Any:
    """The default of a field of a dataclass."""
    field = next(each for each in fields(owner) if each.name == name)
    return field.default if field.default_factory is MISSING else field.default_factory()


def take_settings(settings: Sequence[Setting]) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Let a command have an option for each setting, in the place of its ``**settings``."""

    def decorate(command: Callable[..., None]) -> Callable[..., None]:
        @wraps(command)
        def run(**given: Any) -> None:
            command(**given)

        parameters: list[inspect.Parameter] = []
        for parameter in inspect.signature(command, eval_str=True).parameters.values():
            if parameter.kind is inspect.Parameter.VAR_KEYWORD:
                parameters += [setting.parameter() for setting in settings]
            else:
                parameters.append(parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY))
        run.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
        vars(run)["__signature__"] = inspect.Signature(parameters)
        return run

    return decorate
