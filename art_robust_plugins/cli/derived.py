"""Options of the command line that set fields of a dataclass: type and default are the field's own.

A setting is written once, in its dataclass. An option adds its name and help on the command line.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import MISSING, dataclass, fields, is_dataclass
from functools import wraps
from typing import Annotated, Any, get_type_hints

import typer

_FIELD: Any = object()


@dataclass(frozen=True)
class FieldOption:
    """An option for one field of a dataclass.

    Args:
        owner: the dataclass.
        field: the field's name, by which the command gets the value.
        option: the option's name; by default the field's, and for a switch also its negation.
        help: what it does; by default the first sentence about the field in the dataclass's docstring.
        metavar: what stands for its value.
        min: the smallest whole number that it takes.
        max: the largest one.
        kind: its type where the field takes more than one option can say.
        default: its default where that is not the field's.
    """

    owner: type
    field: str
    option: str | None = None
    help: str | None = None
    metavar: str | None = None
    min: int | None = None
    max: int | None = None
    kind: Any = None
    default: Any = _FIELD

    def parameter(self) -> inspect.Parameter:
        """The parameter of a command, as typer reads it."""
        names = [] if self.option is None else [self.option]
        purpose = _read_purpose(self.owner, self.field) if self.help is None else self.help
        option = typer.Option(*names, help=purpose, metavar=self.metavar, min=self.min, max=self.max)
        kind = _read_type(self.owner, self.field) if self.kind is None else self.kind
        default = default_of(self.owner, self.field) if self.default is _FIELD else self.default
        return inspect.Parameter(
            self.field, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=Annotated[kind, option]
        )


def _read_type(owner: type, name: str) -> Any:
    """The type of a field; those of the others may be known to type checkers alone."""
    alone = type(name, (), {"__module__": owner.__module__, "__annotations__": {name: owner.__annotations__[name]}})
    return get_type_hints(alone)[name]


def list_options(
    owner: type, changes: Mapping[str, Mapping[str, Any]], *, without: Collection[str]
) -> tuple[FieldOption, ...]:
    """An option for each field of a dataclass, in its order, except those ``without`` one.

    A field's `FieldOption` gets the arguments that ``changes`` has for it. Otherwise a switch has no negation.
    """
    if unknown := {*changes, *without} - {field.name for field in fields(owner)}:
        raise ValueError(f"changes: got {', '.join(sorted(unknown))}, expected fields of {owner.__name__}.")
    options = []
    for field in fields(owner):
        if field.name in without:
            continue
        given = dict(changes.get(field.name, {}))
        if field.default is False:
            given.setdefault("option", f"--{field.name.replace('_', '-')}")
        options.append(FieldOption(owner, field.name, **given))
    return tuple(options)


def _read_purpose(owner: type, name: str) -> str:
    """The first sentence about an argument in a docstring, without its marks of code."""
    text = inspect.cleandoc(owner.__doc__ or "")
    found = re.search(rf"^    {name}: (.*?)(?:[.;:](?:\s|$)|\n    \w+: |\n\n|\Z)", text, re.MULTILINE | re.DOTALL)
    if found is None:
        return ""
    words = " ".join(found[1].replace("`", "").replace('"', "").split())
    return f"{words[:1].upper()}{words[1:]}."


def default_of(owner: type, name: str) -> Any:
    """The default of a field of a dataclass."""
    field = next(each for each in fields(owner) if each.name == name)
    return field.default if field.default_factory is MISSING else field.default_factory()


def take_settings(settings: Sequence[FieldOption] = ()) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Let a command have an option for each setting, in the place of its ``**settings``.

    A parameter whose type is a dataclass becomes the options that annotate its fields.
    """

    def decorate(command: Callable[..., None]) -> Callable[..., None]:
        groups: dict[str, type] = {}

        @wraps(command)
        def run(**given: Any) -> None:
            for name, group in groups.items():
                given[name] = group(**{field.name: given.pop(field.name) for field in fields(group)})
            command(**given)

        parameters: list[inspect.Parameter] = []
        for parameter in inspect.signature(command, eval_str=True).parameters.values():
            if parameter.kind is inspect.Parameter.VAR_KEYWORD:
                parameters += [setting.parameter() for setting in settings]
            elif is_dataclass(group := parameter.annotation) and isinstance(group, type):
                groups[parameter.name] = group
                parameters += inspect.signature(group, eval_str=True).parameters.values()
            else:
                parameters.append(parameter)
        parameters = [parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY) for parameter in parameters]
        run.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
        vars(run)["__signature__"] = inspect.Signature(parameters)
        return run

    return decorate
