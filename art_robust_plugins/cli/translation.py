"""Sentences about arguments of Python, in the words of the command line.

A sentence of the package names an argument, as ``ema_decay: got 2``. Here it names the option that gives the argument,
``--ema-decay: got 2``. The options are those of the command: none is listed by hand but those of another name.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

from .refusals import show_name

_DATA = {"name: got the data": "{data}: got", "x:": "{data}:", "y:": "{data}:"}
_TRAINED = {
    "checkpoint_dir:": "{out}:",
    "name: got the model": "{network}: got",
    "model:": "{network}:",
    "input_shape: got": "{network}: got images of shape",
    "validation_data:": "{validation}:",
    "threat:": "{eps}:",
}
_MADE = {**dict.fromkeys(("classifier:", "model:", "network:"), "{run}:"), "state_dir:": "{out}:"}
_OTHERS: dict[str, dict[str, str]] = {
    "train": {**_DATA, **_TRAINED},
    "evaluate": {**_DATA, **_MADE},
    "certify": {**_DATA, **_MADE},
    "export": {**_DATA, **_MADE, "path:": "{out}:"},
    "attacks": {"attacks:": "{name}:"},
    "report": {"folder:": "{runs}:", "reports:": "{runs}:"},
}
"""A command -> how a sentence begins -> how it begins there, where the command's parameter has another name."""

_SETTINGS = ("--set", "--model-set")


def translate(sentence: str, command: Any, words: Sequence[str] = ()) -> str:
    """A sentence in the words of a command: it begins with the option or argument that it is about.

    Inside, a Python name is an option's only where nothing else is meant: with an underscore, or before ``=``.

    Args:
        sentence: about an argument of Python, or anything else.
        command: the command, as typer made it.
        words: those that the command was given, of which ``--set`` and ``--model-set`` name arguments too.
    """
    names = {each.name: show_name(each) for each in command.params}
    others = {told[:-1]: shown.format_map(names)[:-1] for told, shown in _OTHERS.get(command.name, {}).items()}
    options = {name: shown for name, shown in {**others, **names}.items() if shown.startswith("--")}
    return _rename_inside(_rename_first(sentence, command.name, names, words), options)


def _rename_first(sentence: str, command: str, names: dict[str, str], words: Sequence[str]) -> str:
    first, colon, rest = sentence.partition(":")
    if not colon or not first.isidentifier():
        return sentence
    for option, name in _list_settings(words):
        if name.rpartition(".")[2] == first:
            return f"{option} {name}:{rest}"
    for told, shown in _OTHERS.get(command, {}).items():
        if sentence.startswith(told):
            return shown.format_map(names) + sentence.removeprefix(told)
    return f"{names[first]}:{rest}" if first in names else sentence


def _list_settings(words: Sequence[str]) -> list[tuple[str, str]]:
    """Each ``--set NAME=VALUE`` and ``--model-set NAME=VALUE`` as the option and the name."""
    joined = [tuple(word.split("=", 1)) for word in words if word.startswith(tuple(f"{each}=" for each in _SETTINGS))]
    apart = [pair for pair in pairwise(words) if pair[0] in _SETTINGS]
    return [(option, setting.partition("=")[0]) for option, setting in [*joined, *apart]]


def _rename_inside(sentence: str, options: dict[str, str]) -> str:
    def rename_given(found: re.Match[str]) -> str:
        if found["name"] not in options:
            return found[0]
        option = options[found["name"]]
        if found["value"] == "True":
            return option
        if found["pair"] is not None:
            return f"{option} {found['pair'].replace(' ', '')}"
        return f"{option} {found['value']}" if found["value"] else option

    # The look-behinds leave words of a Python call, of an option and of NAME=VALUE alone.
    given = r"(?<![\w.=-])(?P<name>[a-z]\w*)=(?!=|\.\.\.)(?:\((?P<pair>[\d., -]+)\)|(?P<value>[\w'/.]*\w)?)"
    sentence = re.sub(given, rename_given, sentence)
    return re.sub(
        r"(?<![\w'\"./=-])[a-z]+(?:_[a-z]+)+(?![\w'\"(=/]|\.\w)",
        lambda found: options.get(found[0], found[0]),
        sentence,
    )
